//! Puts selected files of one tree into a directory of the layer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::attributes::{Flags, Owners, times};
use super::destination::{Destination, Layer};
use super::write::{self, Job, Order, Told};
use super::{CopyError, Note};
use crate::context::metadata::{Kind, Metadata};
use crate::context::resolve::{End, Seen};
use crate::context::select::Picked;
use crate::context::xattr::{self, Xattr};
use crate::context::{ContextError, Copied, Tree};
use crate::layer::{self, Following, Writing};
use crate::sys::owner;
use crate::sys::xattr::Place;

/// Holes of more than so many bytes are worth a note.
const LARGE_HOLES: u64 = 1 << 30;

/// What was written of one item.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// What the files hold, where that was to be found out.
    pub(super) copied: Copied,
}

/// What is told of the files that are written, and the digest that is taken of them.
pub(super) type Follower = (Writing, Following);

/// A directory of the layer that files are put in.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// Its path relative to the item.
    name: PathBuf,
    /// Its path in the layer.
    path: Arc<Path>,
    /// Whether it is new, so that nothing can be in the way in it.
    fresh: bool,
}

impl Base {
    /// The directory of an item that may have had content before.
    pub(super) fn existing(path: PathBuf) -> Self {
        Self {
            name: PathBuf::new(),
            path: path.into(),
            fresh: false,
        }
    }

    /// The directory of an item that was just created.
    pub(super) fn created(path: PathBuf) -> Self {
        Self {
            fresh: true,
            ..Self::existing(path)
        }
    }
}

/// The merging of one item.
#[derive(Debug)]
pub(super) struct Merge<'a, 'd> {
    tree: &'a Tree,
    flags: &'a Flags,
    destination: &'a mut Destination<'d>,
    owners: &'a mut Owners,
    /// Whether the layer's digest is to be taken while the files are written.
    follow: bool,
    /// Whether what the files hold is to be found out.
    learn: bool,
    /// Whether a directory was found to be a link to another one of the layer, so that two paths
    /// of the source may lead to one place and their order counts.
    redirected: bool,
    jobs: Vec<Job<'a>>,
    /// Hard links to be made once the files that they name are written.
    links: Vec<(Arc<Path>, &'a OsStr, (u64, u64))>,
    inodes: HashMap<(u64, u64), (Arc<Path>, &'a OsStr)>,
    written: Written,
}

impl<'a, 'd> Merge<'a, 'd> {
    pub(super) fn new(
        tree: &'a Tree,
        flags: &'a Flags,
        destination: &'a mut Destination<'d>,
        owners: &'a mut Owners,
        (follow, learn): (bool, bool),
    ) -> Self {
        Self {
            tree,
            flags,
            destination,
            owners,
            follow,
            learn,
            redirected: false,
            jobs: Vec::new(),
            links: Vec::new(),
            inodes: HashMap::new(),
            written: Written::default(),
        }
    }

    /// Puts the files in a directory; a directory comes before what it holds.
    pub(super) fn run(
        mut self,
        base: Base,
        files: &'a [Picked],
    ) -> Result<(Written, Option<Follower>), CopyError> {
        let mut stack = vec![base];
        for (number, file) in files.iter().enumerate() {
            let parent = file.name.parent().unwrap_or(Path::new(""));
            while stack.len() > 1 && stack.last().is_some_and(|level| level.name != parent) {
                stack.pop();
            }
            let Some(level) = stack.last() else { break };
            if file.metadata.is_dir() {
                let next = self.directory(level, file)?;
                stack.push(next);
            } else {
                let level = level.clone();
                self.file(&level, number, file)?;
            }
        }
        let follower = self.followed();
        self.write_files(follower.as_ref().map(|(writing, _)| writing))?;
        self.make_links()?;
        Ok((self.written, follower))
    }

    /// Merges a sub-directory: it gets mode, owner and time of the source (A11.3).
    fn directory(&mut self, level: &Base, file: &Picked) -> Result<Base, CopyError> {
        let name = file.name.file_name().unwrap_or_default();
        let xattrs = directory_xattrs(self.tree, &file.path)?;
        let attributes = self.flags.of(&file.metadata, xattrs);
        let mut next = Base {
            name: file.name.clone(),
            path: level.path.join(name).into(),
            fresh: true,
        };
        let found = if level.fresh {
            None
        } else {
            self.destination.look(&next.path)?
        };
        let Some((found, _)) = found else {
            self.destination.create(&next.path, attributes)?;
            return Ok(next);
        };
        next.fresh = false;
        if found.kind == Kind::Symlink {
            next.path = self.linked_directory(&next.path)?.into();
            self.redirected = true;
        } else if !found.is_dir() {
            return Err(CopyError::NotDirectory(next.path.to_path_buf()));
        }
        self.destination.directory(&next.path)?;
        if let Some(kept) = self.destination.attributes(&next.path) {
            let mut xattrs = std::mem::take(&mut kept.xattrs);
            *kept = attributes;
            xattrs.retain(|(name, _)| kept.xattrs.iter().all(|(new, _)| new != name));
            kept.xattrs.extend(xattrs);
        }
        Ok(next)
    }

    /// The directory that a link of the layer leads to, as `/lib` often does (A11.5).
    fn linked_directory(&self, link: &Path) -> Result<PathBuf, CopyError> {
        let place = self.destination.follow(link)?;
        match place.end {
            End::Found(Seen::Directory) => Ok(place.path),
            _ => Err(CopyError::NotDirectory(link.to_owned())),
        }
    }

    fn file(&mut self, level: &Base, number: usize, file: &'a Picked) -> Result<(), CopyError> {
        let name = file.name.file_name().unwrap_or_default();
        let metadata = &file.metadata;
        let path = level.path.join(name);
        if let Some(note) = skipped(metadata, &path) {
            self.owners.note(note);
            return Ok(());
        }
        if !level.fresh {
            if self.redirected {
                self.write_files(None)?;
            }
            clear_for_file(self.destination, &level.path, name)?;
        }
        if let Some(inode) = metadata.hard_link() {
            if self.inodes.contains_key(&inode) {
                self.links.push((Arc::clone(&level.path), name, inode));
                return Ok(());
            }
            self.inodes.insert(inode, (Arc::clone(&level.path), name));
        }
        self.written.files += 1;
        if metadata.kind == Kind::File {
            self.written.bytes += metadata.size;
            self.jobs.push(Job {
                number,
                source: &file.path,
                metadata,
                dir: Arc::clone(&level.path),
                name,
            });
            Ok(())
        } else {
            self.special(level, name, (number, file))
        }
    }

    /// Makes a link, fifo or device.
    fn special(
        &mut self,
        level: &Base,
        name: &OsStr,
        (number, file): (usize, &Picked),
    ) -> Result<(), CopyError> {
        let path = level.path.join(name);
        let failed = |error: Errno| CopyError::write("create", &path, error.into());
        let handle = self.destination.handle(&level.path)?;
        let mode = Mode::from_raw_mode(self.flags.mode(file.metadata.mode, false));
        let kind = match file.metadata.kind {
            Kind::Symlink => None,
            Kind::CharDevice => Some(FileType::CharacterDevice),
            Kind::BlockDevice => Some(FileType::BlockDevice),
            _ => Some(FileType::Fifo),
        };
        match kind {
            None => {
                let target = self.tree.read_link(&file.path)?;
                rustix::fs::symlinkat(&target, &*handle, name).map_err(failed)?;
                if self.learn {
                    let targets = &mut self.written.copied.targets;
                    targets.insert(number, target);
                }
            }
            Some(kind) => {
                let made = if kind == FileType::Fifo {
                    rustix::fs::mknodat(&*handle, name, kind, mode, 0)
                } else {
                    owner::make_device(handle.as_fd(), name.as_bytes(), kind, file.metadata.rdev)
                };
                match made {
                    Err(Errno::PERM) if kind != FileType::Fifo => {
                        self.owners.note(Note::DeviceSkipped(path));
                        self.written.files -= 1;
                        self.inodes
                            .retain(|_, first| first.1 != name || first.0 != level.path);
                        return Ok(());
                    }
                    made => made.map_err(failed)?,
                }
            }
        }
        let owner = self.flags.owner(&file.metadata);
        let mut nanoseconds = None;
        if !self.owners.is_process(owner) {
            let place = Place::In(handle.as_fd(), name.as_bytes());
            nanoseconds = self
                .owners
                .give(place, &path, owner)
                .map_err(|error| CopyError::write("change owner of", &path, error))?;
        }
        if kind.is_some() {
            // The mode given to mknod went through the umask.
            rustix::fs::chmodat(&*handle, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        let times = times(file.metadata.mtime, nanoseconds);
        rustix::fs::utimensat(&*handle, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Begins to take the digest of the layer, where nothing but files is still to come. Without that
    /// it is taken afterwards.
    fn followed(&mut self) -> Option<Follower> {
        if !self.follow || !self.links.is_empty() {
            return None;
        }
        // Mostly they are in this order already.
        self.jobs.sort_by(Job::in_order);
        let mut promise = self.destination.promise();
        let promised = self.jobs.iter().all(|job| {
            let directory = job.dir.as_os_str().as_bytes();
            promise.file(directory, job.name.as_bytes())
        });
        let root = self.destination.open_again().ok().filter(|_| promised)?;
        layer::follow(root, promise).ok()
    }

    fn write_files(&mut self, following: Option<&Writing>) -> Result<(), CopyError> {
        let jobs = std::mem::take(&mut self.jobs);
        let order = Order {
            tree: self.tree,
            upper: &self.destination.upper,
            flags: self.flags,
            owners: self.owners,
            learn: self.learn,
        };
        let Told { notes, copied } = write::write_all(order, &jobs, following)?;
        for note in notes {
            self.owners.note(note);
        }
        self.written.copied.add(copied);
        Ok(())
    }

    fn make_links(&mut self) -> Result<(), CopyError> {
        for (dir, name, inode) in std::mem::take(&mut self.links) {
            let Some((first_dir, first)) = self.inodes.get(&inode).cloned() else {
                continue;
            };
            let from = self.destination.handle(&first_dir)?;
            let to = self.destination.handle(&dir)?;
            clear_for_file(self.destination, &dir, name)?;
            self.destination.uncounted = true;
            rustix::fs::linkat(&*from, first, &*to, name, AtFlags::empty())
                .map_err(|error| CopyError::write("link", &dir.join(name), error.into()))?;
            self.written.files += 1;
        }
        Ok(())
    }
}

/// Makes room for a file: one of the upper layer is removed (a link itself, not what it leads to),
/// one of the lower layers will be hidden, a directory stays (A11.5, A11.6).
pub(super) fn clear_for_file(
    destination: &mut Destination<'_>,
    dir: &Path,
    name: &OsStr,
) -> Result<(), CopyError> {
    let path = dir.join(name);
    match destination.look(&path)? {
        Some((found, _)) if found.is_dir() => Err(CopyError::IsDirectory(path)),
        Some((_, Layer::Upper)) => destination.unlink(dir, name),
        _ => Ok(()),
    }
}

/// The attributes that a copy of a directory carries.
pub(super) fn directory_xattrs(tree: &Tree, path: &Path) -> Result<Vec<Xattr>, ContextError> {
    let directory = tree.open(path)?;
    xattr::read(directory).map_err(|error| tree.read_error(path, error))
}

/// Why a file is left out, or deserves a note.
fn skipped(metadata: &Metadata, path: &Path) -> Option<Note> {
    match metadata.kind {
        Kind::Socket => Some(Note::SocketSkipped(path.to_owned())),
        // In a layer this means that a file of the layers below is removed.
        Kind::CharDevice if metadata.rdev == 0 => Some(Note::DeviceSkipped(path.to_owned())),
        _ => None,
    }
}

/// A note about a file whose holes are large.
pub(super) fn sparse(metadata: &Metadata, path: PathBuf) -> Option<Note> {
    let held = metadata.blocks.saturating_mul(512);
    (metadata.size.saturating_sub(held) > LARGE_HOLES).then_some(Note::Sparse {
        path,
        size: metadata.size,
        held,
    })
}
