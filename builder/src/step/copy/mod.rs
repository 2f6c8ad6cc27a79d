//! `COPY` and `ADD`: writes selected files into a layer (A11).
//!
//! 1. [`select_all`](crate::context::select::select_all) finds what the sources name and
//!    [`content_key`](crate::context::key::content_key) makes a key of it; a step that is cached
//!    ends there. Where it cannot be, the key is made afterwards, of what was copied.
//! 2. [`copy`] writes the same selections into the upper directory of a new layer: `destination`
//!    is that layer above the lower ones, `merge` decides for every file where it goes and whether
//!    it may, `write` writes files on several threads, `sys::content` copies bytes, `attributes` sets
//!    owner, mode and times; archives of `ADD` are unpacked aside and moved in by `archive`. The
//!    layer's digest is taken while `write` is at work, see [`follow`](mod@crate::layer::follow).

mod archive;
mod attributes;
mod destination;
mod merge;
mod write;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::context::chmod::{ModeChange, ModeError};
use crate::context::key::INLINE_MODE;
use crate::context::metadata::{Kind, Timestamp};
use crate::context::resolve::{End, clean};
use crate::context::select::{Item, Picked, SelectError, Selection};
use crate::context::{ContextError, Found, Tree};
use crate::graph::CopyOp;
use crate::layer::{Following, Writing};
use crate::snapshot::Measured;
use crate::sys::root::Root;
use crate::sys::users::{self, UserError};
use attributes::{Attributes, Flags, Owners};
use destination::Destination;
use merge::{Base, Merge};

pub use archive::Archive;

/// Where a copy reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct CopyInputs<'a> {
    /// Trees at the indices of the vertex's inputs, the same as for the selection.
    pub trees: &'a [Option<&'a Tree>],
    /// Which of them hold a download: its archives are unpacked only when that is asked for.
    pub fetched: &'a [bool],
    /// The merged tree of the layers below; `None` for `FROM scratch`. With `--link` only its
    /// user names are read (A11.9).
    pub lower: Option<&'a Root>,
    /// Empty directory that becomes the layer, in the form of overlayfs's upper directory.
    pub upper: &'a Path,
    /// Directory on the same file system as `upper` in which archives are unpacked; it may be
    /// missing, and nothing of it is left.
    pub scratch: &'a Path,
    /// Time of inline files and of directories that are created.
    pub time: SystemTime,
    /// Whether to take the layer's digest already while the files of the last source are written.
    pub follow: bool,
    /// Whether to find out what the files hold while they are copied.
    pub learn: bool,
}

/// What a copy has written.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Files that are no directories.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// How much the layer holds, where that is known from the writing.
    pub measured: Option<Measured>,
    /// The layer's digest, if it is being taken; nothing may change in the layer any more.
    pub following: Option<Following>,
    /// What the files hold, where that was to be found out.
    pub found: Found,
    /// What could not be kept as it was; at most a hundred.
    pub notes: Vec<Note>,
}

/// Something that a copy could not keep, and that is no reason to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A socket, which no layer can hold.
    SocketSkipped(PathBuf),
    /// A device that this process may not create, or that would be a whiteout in a layer.
    DeviceSkipped(PathBuf),
    /// An owner that this process may not give.
    OwnerLost {
        /// The file in the layer.
        path: PathBuf,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// A file capability that the file system or the kernel did not take.
    CapabilityLost(PathBuf),
    /// A file with large holes: programs that know nothing of holes will fill a disk with it.
    Sparse {
        /// The file in the layer.
        path: PathBuf,
        /// Size in bytes.
        size: u64,
        /// Bytes that it really holds.
        held: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SocketSkipped(path) => write!(f, "skipped socket `{}`", path.display()),
            Self::DeviceSkipped(path) => write!(f, "skipped device `{}`", path.display()),
            Self::OwnerLost { path, uid, gid } => {
                write!(f, "`{}` could not be given to {uid}:{gid}", path.display())
            }
            Self::CapabilityLost(path) => {
                write!(f, "`{}` lost its file capabilities", path.display())
            }
            Self::Sparse { path, size, held } => write!(
                f,
                "`{}` is sparse: {size} bytes long, of which it holds {held}",
                path.display()
            ),
        }
    }
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What the sources name cannot be found.
    #[error("{0}")]
    Select(#[from] SelectError),
    /// A source cannot be read, or changed while it was.
    #[error("{0}")]
    Context(#[from] ContextError),
    /// The value of `--chmod` is malformed.
    #[error("{0}")]
    Mode(#[from] ModeError),
    /// The value of `--chown` is malformed or names nobody in the image.
    #[error("cannot resolve `--chown={spec}`")]
    Owner {
        /// The value.
        spec: String,
        /// Why.
        source: UserError,
    },
    /// A directory is copied to what is none (A11.6).
    #[error("cannot copy to non-directory: /{}", .0.display())]
    NotDirectory(PathBuf),
    /// A directory is made where something else is (A9.9).
    #[error("cannot create directory {}: /{} is not a directory", path.display(), obstacle.display())]
    Obstructed {
        /// The directory, as it was named.
        path: PathBuf,
        /// What is in the way, in the image.
        obstacle: PathBuf,
    },
    /// A file is copied to a directory of that exact name (A11.6).
    #[error("cannot replace to directory /{} with file", .0.display())]
    IsDirectory(PathBuf),
    /// The links of a destination lead in a circle.
    #[error("destination `{0}` leads through too many symbolic links")]
    Loop(String),
    /// The destination is `/` or ends in `..` and so names no file.
    #[error("destination `{0}` does not name a file")]
    NoFileName(String),
    /// The layer cannot be written.
    #[error("cannot {act} `/{}` in the layer", path.display())]
    Write {
        /// What was tried.
        act: &'static str,
        /// Path in the layer.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An archive cannot be unpacked.
    #[error("cannot unpack `{}`", path.display())]
    Unpack {
        /// Path in its tree.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CopyError {
    /// What may help the user, apart from the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Select(error) => error.hint(),
            Self::IsDirectory(_) => Some(
                "remove the directory in a step before, or choose another destination".to_owned(),
            ),
            Self::Owner {
                source: UserError::NoUser(name) | UserError::NoGroup(name),
                ..
            } => Some(if name.bytes().all(|byte| byte.is_ascii_digit()) {
                format!("the largest number of a user or group is {}", u32::MAX - 1)
            } else {
                "add it to the image in a step before, or give a number".to_owned()
            }),
            _ => None,
        }
    }

    fn write(act: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Write { act, path, source }
    }
}

/// Unpacks archives for [`copy`]: says whether the file was an archive, by its content only
/// (A12.1), and writes nothing if it was not.
pub type Unpack<'a> =
    dyn FnMut(&Archive<'_>) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Writes what [`select_all`](crate::context::select::select_all) found into a layer. `unpack` is
/// called for local files of an `ADD` only.
///
/// On an error the layer directory is left half written, for the caller to remove.
///
/// # Errors
/// [`CopyError`].
pub fn copy(
    op: &CopyOp,
    selections: &[Selection],
    inputs: &CopyInputs<'_>,
    unpack: &mut Unpack<'_>,
) -> Result<CopyReport, CopyError> {
    let flags = flags(op, inputs)?;
    let created = Attributes {
        mode: flags.mode(0o755, true),
        owner: op.chown.as_ref().and(flags.owner).unwrap_or((0, 0)),
        mtime: inputs.time.into(),
        xattrs: Vec::new(),
    };
    let lower = inputs.lower.filter(|_| !op.link);
    let mut step = Step {
        op,
        inputs,
        time: inputs.time.into(),
        flags,
        destination: Destination::open(inputs.upper, lower, created)?,
        owners: Owners::new(),
        last: false,
        items: 0,
        writing: None,
        report: CopyReport::default(),
    };
    let items = selections.iter().flat_map(|selection| &selection.items);
    let mut items = items.peekable();
    while let Some(item) = items.next() {
        step.last = items.peek().is_none();
        step.item(item, unpack)?;
        step.items += 1;
    }
    if !step.destination.uncounted {
        step.report.measured = Some(Measured {
            entries: step.report.files + step.destination.directories(),
            bytes: step.report.bytes,
        });
    }
    step.destination.finish(&mut step.owners)?;
    if let Some(writing) = step.writing {
        writing.finish();
    }
    step.report.notes.append(&mut step.owners.notes);
    Ok(step.report)
}

/// Makes a directory with its parents in a layer (A9.9): mode 0755, this owner, this time. Existing
/// ones are not touched.
///
/// # Errors
/// [`CopyError`] when something else is in the way, or the layer cannot be written.
pub fn make_directory(
    lower: Option<&Root>,
    upper: &Path,
    path: &Path,
    owner: (u32, u32),
    time: SystemTime,
) -> Result<(), CopyError> {
    let created = Attributes {
        mode: 0o755,
        owner,
        mtime: time.into(),
        xattrs: Vec::new(),
    };
    let mut destination = Destination::open(upper, lower, created)?;
    let place = destination.follow(&clean(path))?;
    let path = match place.end {
        End::Found(crate::context::resolve::Seen::Directory) => return Ok(()),
        End::Missing(rest) => place.path.join(rest),
        End::Found(_) | End::NotDirectory => {
            let (path, obstacle) = (path.to_owned(), place.path);
            return Err(CopyError::Obstructed { path, obstacle });
        }
        End::Loop => return Err(CopyError::Loop(path.display().to_string())),
    };
    destination.directory(&path)?;
    destination.finish(&mut Owners::new())
}

fn flags(op: &CopyOp, inputs: &CopyInputs<'_>) -> Result<Flags, CopyError> {
    let chmod = op.chmod.as_deref().map(ModeChange::parse).transpose()?;
    let owner = match &op.chown {
        Some(spec) => Some(resolve_owner(spec, inputs)?),
        None if op.keep_owner => None,
        None => Some((0, 0)),
    };
    Ok(Flags { owner, chmod })
}

fn resolve_owner(spec: &str, inputs: &CopyInputs<'_>) -> Result<(u32, u32), CopyError> {
    let resolved = if let Some(lower) = inputs.lower {
        users::resolve_owner(lower, spec)
    } else {
        // The layer is still empty: there are no names in it, as in `scratch`.
        let empty = Root::open(inputs.upper)
            .map_err(|error| CopyError::write("open layer directory", Path::new(""), error))?;
        users::resolve_owner(&empty, spec)
    };
    resolved.map_err(|source| CopyError::Owner {
        spec: spec.to_owned(),
        source,
    })
}

/// A copy that is going on.
#[derive(Debug)]
struct Step<'a> {
    op: &'a CopyOp,
    inputs: &'a CopyInputs<'a>,
    time: Timestamp,
    flags: Flags,
    destination: Destination<'a>,
    owners: Owners,
    /// Whether nothing comes after this item.
    last: bool,
    /// How many items came before it.
    items: usize,
    /// Who is taking the digest hears from this.
    writing: Option<Writing>,
    report: CopyReport,
}

impl<'a> Step<'a> {
    fn item(&mut self, item: &'a Item, unpack: &mut Unpack<'_>) -> Result<(), CopyError> {
        match item {
            Item::Inline { name, content } => {
                let (dir, name) = self.file_target(name)?;
                self.inline(&dir, &name, content)
            }
            Item::File { input, name, file } => {
                let tree = self.tree(*input)?;
                if self.unpacks(*input)
                    && file.metadata.kind == Kind::File
                    && self.unpack(tree, file, unpack)?
                {
                    return Ok(());
                }
                let (dir, name) = self.file_target(name)?;
                let target = Picked {
                    name: name.into(),
                    ..file.clone()
                };
                let base = Base::existing(dir);
                self.merge(*input, base, std::slice::from_ref(&target))
            }
            Item::Directory {
                input,
                top,
                path,
                below,
            } => {
                let tree = self.tree(*input)?;
                let xattrs = merge::directory_xattrs(tree, path)?;
                let base = self.top_directory(&self.flags.of(top, xattrs))?;
                self.merge(*input, base, below)
            }
            Item::Parents { input, below } => {
                let base = Base::existing(self.directory_target()?);
                self.merge(*input, base, below)
            }
        }
    }

    /// Whether archives among the files of an input are unpacked (A12.1).
    fn unpacks(&self, input: usize) -> bool {
        let fetched = self.inputs.fetched.get(input).copied().unwrap_or(false);
        if fetched {
            self.op.unpack_fetched
        } else {
            self.op.unpack
        }
    }

    fn tree(&self, input: usize) -> Result<&'a Tree, CopyError> {
        let tree = self.inputs.trees.get(input).copied().flatten();
        tree.ok_or_else(|| SelectError::NoTree(input).into())
    }

    fn merge(&mut self, input: usize, base: Base, files: &[Picked]) -> Result<(), CopyError> {
        let tree = self.tree(input)?;
        let follow = self.inputs.follow && self.last;
        let merge = Merge::new(
            tree,
            &self.flags,
            &mut self.destination,
            &mut self.owners,
            (follow, self.inputs.learn),
        );
        let (written, follower) = merge.run(base, files)?;
        (self.writing, self.report.following) = follower.unzip();
        self.report.files += written.files;
        self.report.bytes += written.bytes;
        if self.inputs.learn {
            self.report.found.add(self.items, written.copied);
        }
        Ok(())
    }

    /// The directory and name that a file is written to (A11.2). The directory exists afterwards.
    fn file_target(
        &mut self,
        name: &std::ffi::OsStr,
    ) -> Result<(PathBuf, std::ffi::OsString), CopyError> {
        let cleaned = clean(Path::new(&self.op.destination));
        let place = self.destination.follow(&cleaned)?;
        let is_directory = place.end == End::Found(crate::context::resolve::Seen::Directory);
        if is_directory || self.op.destination.ends_with('/') {
            return Ok((self.directory_target()?, name.to_owned()));
        }
        // A link at the end is replaced, wherever it leads (A11.5).
        let (Some(parent), Some(name)) = (cleaned.parent(), cleaned.file_name()) else {
            return Err(CopyError::NoFileName(self.op.destination.clone()));
        };
        Ok((self.ensure(parent)?, name.to_owned()))
    }

    /// The destination as a directory, which exists afterwards.
    fn directory_target(&mut self) -> Result<PathBuf, CopyError> {
        self.ensure(&clean(Path::new(&self.op.destination)))
    }

    /// Follows a path and makes it a directory of the layer, with those above it (A11.4, A11.5).
    fn ensure(&mut self, path: &Path) -> Result<PathBuf, CopyError> {
        let (path, _) = self.locate(path)?;
        self.destination.directory(&path)?;
        Ok(path)
    }

    /// The directory that the content of a source directory is merged into (A11.3): an existing
    /// one keeps its mode and owner and gets the source's time, a new one is like the source.
    fn top_directory(&mut self, source: &Attributes) -> Result<Base, CopyError> {
        let (path, exists) = self.locate(&clean(Path::new(&self.op.destination)))?;
        if exists {
            self.destination.directory(&path)?;
            if let Some(attributes) = self.destination.attributes(&path) {
                attributes.mtime = source.mtime;
            }
            return Ok(Base::existing(path));
        }
        if let Some(parent) = path.parent() {
            self.destination.directory(parent)?;
        }
        self.destination.create(&path, source.clone())?;
        Ok(Base::created(path))
    }

    /// Where a path leads, and whether a directory is there already.
    fn locate(&self, path: &Path) -> Result<(PathBuf, bool), CopyError> {
        let place = self.destination.follow(path)?;
        match place.end {
            End::Found(crate::context::resolve::Seen::Directory) => Ok((place.path, true)),
            End::Missing(rest) => Ok((place.path.join(rest), false)),
            End::Found(_) | End::NotDirectory => Err(CopyError::NotDirectory(place.path)),
            End::Loop => Err(CopyError::Loop(self.op.destination.clone())),
        }
    }

    /// Writes a file given in the Dockerfile (A13.8).
    fn inline(
        &mut self,
        dir: &Path,
        name: &std::ffi::OsStr,
        content: &[u8],
    ) -> Result<(), CopyError> {
        let path = dir.join(name);
        merge::clear_for_file(&mut self.destination, dir, name)?;
        let attributes = Attributes {
            mode: self.flags.mode(INLINE_MODE, false),
            owner: self.flags.owner.unwrap_or((0, 0)),
            mtime: self.time,
            xattrs: Vec::new(),
        };
        let handle = self.destination.handle(dir)?;
        let written = write::create(&*handle, name, attributes.mode).and_then(|file| {
            let mut file = File::from(file);
            io::Write::write_all(&mut file, content)?;
            attributes.apply(&file, &path, &mut self.owners)
        });
        written.map_err(|error| CopyError::write("write", &path, error))?;
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
