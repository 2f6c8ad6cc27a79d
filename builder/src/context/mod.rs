//! Trees that files are copied from: the build context, stages and images.
//!
//! - [`Tree`] is an opened root with what is known of it: listings of directories (`walk`), seen
//!   through an ignore file, and digests of contents (`digests`, `stat_cache`). Both are found out
//!   once, when first needed, and shared by all steps of a build.
//! - [`Contexts`] are the trees of the folders that a build was given.
//! - [`select`] finds what a `COPY` or `ADD` names; [`key`] makes the content key of it, and
//!   [`listed`] a list to tell later what changed.
//! - [`resolve`], [`metadata`], [`xattr`], [`chmod`] are shared with the step that writes.

pub mod chmod;
mod digests;
pub mod key;
pub mod listed;
pub mod metadata;
mod named;
pub mod resolve;
mod rules;
pub mod select;
mod stat_cache;
mod suggest;
#[cfg(test)]
pub(crate) mod testing;
mod walk;
pub mod xattr;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_grammar::dockerignore::IgnoreFile;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use crate::sys::owner;
use crate::sys::root::Root;
use crate::sys::xattr::Place as OnDisk;
use metadata::{Kind, Metadata};
use resolve::{Place, Seen};
use rules::{Rules, Verdict};
use select::Picked;
use stat_cache::StatCache;
use walk::Listing;

pub use digests::Found;
pub(crate) use digests::{Content, ContentHasher, Copied};
pub use named::Contexts;
pub use rules::ExcludedBy;
pub use walk::Entry;

/// Why files of a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The root of the build context cannot be opened.
    #[error("cannot open build context `{}`", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A context that was not opened; a bug.
    #[error("the context `{0}` is not open")]
    Unknown(String),
    /// A directory that is to be copied cannot be listed.
    #[error("cannot list directory `{}` of {tree}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Which tree, as in "the build context".
        tree: String,
        /// Why.
        source: io::Error,
    },
    /// A file that is to be copied cannot be read.
    #[error("cannot read `{}` of {tree}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Which tree.
        tree: String,
        /// Why.
        source: io::Error,
    },
    /// A file is not the same any more.
    #[error("`{}` of {tree} changed during the build", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Which tree.
        tree: String,
    },
    /// The digests found out cannot be kept for later builds.
    #[error("cannot write stat cache `{}`", path.display())]
    StatCache {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A tree of files to copy from.
#[derive(Debug)]
pub struct Tree {
    root: Root,
    label: String,
    ignore_file: String,
    rules: Rules,
    /// Whether people may change files meanwhile; the trees of stages are nobody's but ours.
    live: bool,
    listings: Mutex<HashMap<PathBuf, Arc<Listing>>>,
    stats: Mutex<StatCache>,
    stats_path: Option<PathBuf>,
}

impl Tree {
    /// Opens a build context, seen through an ignore file (A14); digests of its files are
    /// remembered in the file `stat_cache`, see [`Self::save_stat_cache`].
    ///
    /// # Errors
    /// [`ContextError::Open`] when it is not a directory that can be opened.
    pub fn context(
        dir: &Path,
        ignore: Option<Arc<IgnoreFile>>,
        stat_cache: Option<&Path>,
    ) -> Result<Self, ContextError> {
        let root = Root::open(dir).map_err(|source| ContextError::Open {
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self {
            root,
            label: "the build context".to_owned(),
            ignore_file: ".dockerignore".to_owned(),
            rules: Rules::new(ignore),
            live: true,
            listings: Mutex::default(),
            stats: Mutex::new(StatCache::open(stat_cache)),
            stats_path: stat_cache.map(Path::to_owned),
        })
    }

    /// Takes the merged tree of a stage or image, whose files nobody changes while it is open.
    #[must_use]
    pub fn merged(root: Root) -> Self {
        Self {
            root,
            label: "the stage or image".to_owned(),
            ignore_file: String::new(),
            rules: Rules::default(),
            live: false,
            listings: Mutex::default(),
            stats: Mutex::default(),
            stats_path: None,
        }
    }

    /// Sets how messages name the tree, for example ``stage `builder` ``.
    #[must_use]
    pub fn named(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Sets how messages name the ignore file, if it is not `.dockerignore` (A14.1).
    #[must_use]
    pub fn ignored_by(mut self, name: impl Into<String>) -> Self {
        self.ignore_file = name.into();
        self
    }

    /// The rule of the ignore file that hides a path (relative, clean); whether anything is there
    /// does not matter.
    #[must_use]
    pub fn excluded_by(&self, path: &Path) -> Option<ExcludedBy> {
        self.rules.excluded_by(path)
    }

    /// How messages name the tree.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The root that all its paths are relative to. What the ignore file hides is visible here.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// All files of the tree with their paths, a directory before what it holds, in the order of
    /// names. Directories that cannot be listed are there without content.
    #[must_use]
    pub fn entries(&self) -> Vec<(PathBuf, Metadata)> {
        self.prefetch(Path::new(""));
        let mut all = Vec::new();
        self.collect(Path::new(""), &mut all);
        all
    }

    /// Writes the digests found out to the stat cache file, for the next build.
    ///
    /// # Errors
    /// [`ContextError::StatCache`]; the build itself is not affected.
    pub fn save_stat_cache(&self) -> Result<(), ContextError> {
        lock(&self.stats)
            .save()
            .map_err(|source| ContextError::StatCache {
                path: self.stats_path.clone().unwrap_or_default(),
                source,
            })
    }

    /// How many bytes the regular files among these hold, and how many those of them that are not known.
    pub(crate) fn unknown_bytes(&self, files: &[Picked]) -> (u64, u64) {
        let mut stats = lock(&self.stats);
        let mut bytes = (0_u64, 0_u64);
        for metadata in files.iter().map(|file| &file.metadata) {
            if metadata.kind == Kind::File {
                bytes.0 = bytes.0.saturating_add(metadata.size);
                if stats.get(metadata).is_none() {
                    bytes.1 = bytes.1.saturating_add(metadata.size);
                }
            }
        }
        bytes
    }

    /// Opens a regular file to read it. Never blocks, follows no link at the end.
    pub(crate) fn open(&self, path: &Path) -> Result<OwnedFd, ContextError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.root
            .open_at(path, flags, Mode::empty())
            .map_err(|source| self.read_error(path, source))
    }

    /// The target of a symbolic link.
    pub(crate) fn read_link(&self, path: &Path) -> Result<PathBuf, ContextError> {
        read_link(&self.root, path).map_err(|source| self.read_error(path, source))
    }

    /// Whether an opened file is still what was listed. In trees of our own the ctime says
    /// nothing: another build may have linked the same inode into a snapshot meanwhile.
    pub(crate) fn check_unchanged(
        &self,
        path: &Path,
        file: impl std::os::fd::AsFd,
        listed: &Metadata,
    ) -> Result<(), ContextError> {
        let mut stat = rustix::fs::fstat(&file).map_err(|e| self.read_error(path, e.into()))?;
        self.correct(OnDisk::Open(file.as_fd()), &mut stat)
            .map_err(|e| self.read_error(path, e.into()))?;
        let found = Metadata::from(&stat);
        let same = found.inode == listed.inode
            && found.kind == listed.kind
            && found.size == listed.size
            && found.mtime == listed.mtime
            && (!self.live || found.ctime == listed.ctime);
        if same {
            Ok(())
        } else {
            Err(ContextError::Changed {
                path: path.to_owned(),
                tree: self.label.clone(),
            })
        }
    }

    pub(crate) fn read_error(&self, path: &Path, source: io::Error) -> ContextError {
        ContextError::Read {
            path: path.to_owned(),
            tree: self.label.clone(),
            source,
        }
    }

    /// Follows a path (relative, clean) through what is visible of the tree.
    fn follow(&self, path: &Path, follow_last: bool) -> Result<Place, ContextError> {
        resolve::follow(path, follow_last, |path| {
            Ok(match self.lookup(path)? {
                None => None,
                Some(found) => Some(match found.kind {
                    Kind::Directory => Seen::Directory,
                    Kind::Symlink => Seen::Link(self.read_link(path)?),
                    _ => Seen::Other,
                }),
            })
        })
    }

    /// What `lstat` says of a path, and for files of ours what is written down of them.
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let file = self.root.open_at(path, flags, Mode::empty())?;
        let mut stat = rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH)?;
        self.correct(OnDisk::At(file.as_fd()), &mut stat)?;
        Ok(stat)
    }

    /// Files of people are whose they are on disk; they may have any attributes.
    fn correct(&self, place: OnDisk<'_>, stat: &mut Stat) -> rustix::io::Result<()> {
        if self.live {
            return Ok(());
        }
        owner::correct(place, stat)
    }

    /// What is visible at a path that is free of links; `None` where there is nothing.
    fn lookup(&self, path: &Path) -> Result<Option<Metadata>, ContextError> {
        let stat = match self.stat(path) {
            Ok(stat) => stat,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(source) => return Err(self.read_error(path, source)),
        };
        let metadata = Metadata::from(&stat);
        let visible = match self.rules.verdict(path, metadata.is_dir()) {
            Verdict::Included => true,
            Verdict::Excluded => false,
            Verdict::Passage => self.holds_something(path),
        };
        Ok(visible.then_some(metadata))
    }

    /// The same for a path that may be the root.
    fn lookup_or_root(&self, path: &Path) -> Result<Option<Metadata>, ContextError> {
        if !path.as_os_str().is_empty() {
            return self.lookup(path);
        }
        let stat = self.stat(path);
        stat.map(|stat| Some(Metadata::from(&stat)))
            .map_err(|source| self.read_error(Path::new("/"), source))
    }

    /// The visible files in a directory.
    fn list_or_fail(&self, dir: &Path) -> Result<Vec<Entry>, ContextError> {
        match &self.list(dir).entries {
            Ok(entries) => Ok(entries.clone()),
            Err(error) => Err(self.list_error(dir, *error)),
        }
    }

    fn list_error(&self, dir: &Path, error: rustix::io::Errno) -> ContextError {
        ContextError::List {
            path: if dir.as_os_str().is_empty() {
                PathBuf::from("/")
            } else {
                dir.to_owned()
            },
            tree: self.label.clone(),
            source: error.into(),
        }
    }

    /// Whether anything below an excluded directory is included again.
    fn holds_something(&self, dir: &Path) -> bool {
        self.list(dir).entries.as_ref().is_ok_and(|entries| {
            entries
                .iter()
                .any(|entry| !entry.passage || self.holds_something(&dir.join(&entry.name)))
        })
    }

    fn collect(&self, dir: &Path, all: &mut Vec<(PathBuf, Metadata)>) {
        let listing = self.list(dir);
        for entry in listing.entries.iter().flatten() {
            let path = dir.join(&entry.name);
            let mark = all.len();
            all.push((path.clone(), entry.metadata));
            if entry.metadata.is_dir() {
                self.collect(&path, all);
            }
            if entry.passage && all.len() == mark + 1 {
                all.pop();
            }
        }
    }
}

/// The target of a symbolic link inside a root.
pub(crate) fn read_link(root: &Root, path: &Path) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let link = root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
}

/// Whether an error says that there is nothing at a path.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Locks what one thread leaves whole whenever it stops.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many threads read files at once.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().min(8))
}
