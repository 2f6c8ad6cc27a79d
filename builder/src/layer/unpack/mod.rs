//! A tar to a directory: a layer to overlayfs's form, or an archive into an existing tree.
//!
//! No name of an archive is ever given to the kernel as it is: names are cut into components,
//! links on the way are resolved below the target directory, and files are made by their last
//! component in an opened directory.

mod lower;
mod node;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::tar::{Header, Kind, Reader, TarError, Time};
use super::whiteout::{self, Name, display};
use super::xattr;
use crate::sys::root::Root;
use tree::{Parent, Tree};

/// What an archive becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// A layer directory of overlayfs in a fresh directory: whiteouts become devices and opaque
    /// marks (D5.8).
    #[default]
    Overlay,
    /// Files in an existing tree (A12.1): whiteout names are ordinary, what is in the way of an
    /// entry is replaced, the rest stays.
    Plain,
}

/// Whom the files belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// As the archive says.
    #[default]
    Archive,
    /// This user and group, for directories that the archive lacks too.
    Fixed(u32, u32),
    /// The process that unpacks; ids are not touched.
    Caller,
}

/// The layers below the one that is unpacked.
#[derive(Clone, Copy, Default)]
pub enum Below<'a> {
    /// There are none, or they do not count.
    #[default]
    Nothing,
    /// They are here.
    Tree(&'a Root),
    /// They may be unpacked at this moment; most layers need none of them.
    Later(&'a dyn Lower),
}

/// Layers below that are not waited for before something of them is needed.
pub trait Lower {
    /// Waits for them; `None` when there are none.
    ///
    /// # Errors
    /// When they cannot be had.
    fn tree(&self) -> Result<Option<&Root>, Unavailable>;
}

/// The layers below cannot be had; why, is for whoever unpacks them to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the layers below cannot be had")]
pub struct Unavailable;

impl std::fmt::Debug for Below<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Tree(_) => "Tree",
            Self::Later(_) => "Later",
        })
    }
}

impl<'a> From<Option<&'a Root>> for Below<'a> {
    fn from(tree: Option<&'a Root>) -> Self {
        tree.map_or(Self::Nothing, Self::Tree)
    }
}

/// How to unpack.
#[derive(Clone, Copy, Debug)]
pub struct UnpackOptions<'a> {
    /// What the archive becomes.
    pub form: Form,
    /// The layers below, as one tree. Hard links to files that only it has are copied from there,
    /// and directories that the layer does not mention keep its metadata.
    pub lower: Below<'a>,
    /// Whom the files belong to.
    pub owner: Owner,
    /// Entries that the archive may have.
    pub max_entries: u64,
}

impl Default for UnpackOptions<'_> {
    fn default() -> Self {
        Self {
            form: Form::default(),
            lower: Below::Nothing,
            owner: Owner::default(),
            max_entries: 10_000_000,
        }
    }
}

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of file content, holes included.
    pub size: u64,
    /// Whether the layer hides everything below it. Overlayfs does not honour the mark on a
    /// layer's own root: leave the lower layers out.
    pub opaque_root: bool,
    /// What could not be done as the archive says; at most [`MAX_WARNINGS`].
    pub warnings: Vec<UnpackWarning>,
    /// Warnings beyond that number.
    pub more_warnings: u64,
}

/// Warnings that are kept.
pub const MAX_WARNINGS: usize = 100;

/// Something that is not as the archive says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackWarning {
    /// The process may not give files to this owner.
    #[error("`/{path}` does not get its owner {uid}:{gid}")]
    Owner {
        /// The file.
        path: String,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// The process may not make devices, or overlayfs would take it for a deletion.
    #[error("device `/{0}` is left out")]
    Device(String),
    /// The file system or the kernel does not take an attribute.
    #[error("`/{path}` does not get its attribute `{attribute}`")]
    Attribute {
        /// The file.
        path: String,
        /// The attribute.
        attribute: String,
    },
}

/// Why an archive cannot be unpacked. Paths are as in the archive.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive cannot be read.
    #[error("{0}")]
    Tar(#[from] TarError),
    /// The content of an entry, or what follows the last one, cannot be read.
    #[error("cannot read the content of `{path}`")]
    Read {
        /// The entry.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The target directory cannot be opened.
    #[error("cannot open `{path}`")]
    Open {
        /// Its path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name with `..`.
    #[error("`{path}` would be outside of the directory that is unpacked to")]
    Escapes {
        /// The name.
        path: String,
    },
    /// A whiteout of nothing, or something within a whiteout.
    #[error("`{path}` is no valid name in a layer")]
    Reserved {
        /// The name.
        path: String,
    },
    /// A directory of the name is something else.
    #[error("cannot create `{path}`: `/{place}` is not a directory")]
    NotDirectory {
        /// The name.
        path: String,
        /// What is in the way.
        place: String,
    },
    /// Links that lead in a circle, or to a name that is too long.
    #[error("cannot create `{path}`: too many or too long links in its name")]
    Links {
        /// The name.
        path: String,
    },
    /// A hard link to what is not there.
    #[error("cannot create `{path}`: it is a hard link to `{target}`, which does not exist")]
    MissingTarget {
        /// The name.
        path: String,
        /// The target.
        target: String,
    },
    /// The file system refused.
    #[error("cannot create `{path}`")]
    Create {
        /// The name.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Something of the layers below is needed.
    #[error("cannot create `{path}`")]
    Below {
        /// The name.
        path: String,
        /// Why not.
        source: Unavailable,
    },
    /// More entries than allowed.
    #[error("the archive has more than {limit} entries")]
    TooMany {
        /// The limit.
        limit: u64,
    },
}

/// Unpacks into a directory that exists. Reads the stream to its end, so that readers which verify
/// it come to their verdict. Nothing is synced to disk; after an error the directory is to be
/// thrown away.
///
/// # Errors
/// [`UnpackError`]
pub fn unpack(
    tar: &mut dyn Read,
    target: &Path,
    options: &UnpackOptions<'_>,
) -> Result<Unpacked, UnpackError> {
    let root = Root::open(target).map_err(|source| UnpackError::Open {
        path: target.to_owned(),
        source,
    })?;
    unpack_at(tar, &root, options)
}

/// Unpacks into a directory that is open already.
///
/// # Errors
/// [`UnpackError`]
pub fn unpack_at(
    tar: &mut dyn Read,
    target: &Root,
    options: &UnpackOptions<'_>,
) -> Result<Unpacked, UnpackError> {
    let mut unpacker = Unpacker {
        options,
        tree: Tree::new(target),
        directories: BTreeMap::new(),
        copied: BTreeSet::new(),
        xattrs: xattr::Reader::new(),
        buffer: vec![0; BUFFER],
        unpacked: Unpacked::default(),
    };
    let mut reader = Reader::new(tar);
    while let Some(header) = reader.next_entry()? {
        unpacker.unpacked.entries += 1;
        if unpacker.unpacked.entries > options.max_entries {
            return Err(UnpackError::TooMany {
                limit: options.max_entries,
            });
        }
        unpacker.entry(&header, &mut reader)?;
    }
    unpacker.finish_directories()?;
    io::copy(reader.into_inner(), &mut io::sink()).map_err(|source| UnpackError::Read {
        path: "end of archive".to_owned(),
        source,
    })?;
    Ok(unpacker.unpacked)
}

const BUFFER: usize = 256 << 10;

struct Unpacker<'a> {
    options: &'a UnpackOptions<'a>,
    tree: Tree<'a>,
    /// Mode and time of directories, set when nothing is created in them any more.
    directories: BTreeMap<Vec<u8>, (u32, Time)>,
    /// Files copied from lower layers for the sake of hard links: not entries of this layer.
    copied: BTreeSet<Vec<u8>>,
    xattrs: xattr::Reader,
    buffer: Vec<u8>,
    unpacked: Unpacked,
}

impl Unpacker<'_> {
    /// Applies one entry.
    fn entry(
        &mut self,
        header: &Header,
        content: &mut Reader<&mut dyn Read>,
    ) -> Result<(), UnpackError> {
        let names = components(&header.path)?;
        let Some((&name, directories)) = names.split_last() else {
            return self.root_entry(header);
        };
        if self.options.form != Form::Plain {
            for &directory in directories {
                match whiteout::classify(directory) {
                    Name::Plain => {}
                    Name::Meta => return Ok(()),
                    _ => return Err(reserved(&header.path)),
                }
            }
            match whiteout::classify(name) {
                Name::Plain => {}
                Name::Meta => return Ok(()),
                Name::Invalid => return Err(reserved(&header.path)),
                Name::Opaque => {
                    let parent = self.parent(directories, header)?;
                    self.unpacked.opaque_root |= parent.path.is_empty();
                    return self.mark_opaque(&parent, b".", &header.path);
                }
                Name::Whiteout(deleted) => {
                    let parent = self.parent(directories, header)?;
                    return self.whiteout(&parent, deleted, header);
                }
            }
        }
        let parent = self.parent(directories, header)?;
        if header.kind == Kind::HardLink {
            return self.hard_link(&parent, name, header);
        }
        self.put(&parent, name, header, &mut |buffer| {
            content.read_stored(buffer)
        })
    }

    /// An entry for the directory that is unpacked to.
    fn root_entry(&mut self, header: &Header) -> Result<(), UnpackError> {
        if header.kind != Kind::Directory {
            return Err(UnpackError::Escapes {
                path: display(&header.path).into_owned(),
            });
        }
        // The destination of an ADD keeps its own metadata (A11.3).
        if self.options.form == Form::Plain {
            return Ok(());
        }
        let root = self.tree.top(&header.path)?;
        self.existing_directory(&root, b".", header)
    }

    /// Hides a name of lower layers, unless this layer has an entry of that name: then the entry
    /// stays, and a directory shows only what this layer puts there.
    fn whiteout(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
    ) -> Result<(), UnpackError> {
        let path = parent.join(name);
        match self.tree.stat(parent, name, &header.path)? {
            Some(stat) if tree::is_directory(&stat) => {
                return self.mark_opaque(parent, name, &header.path);
            }
            Some(_) if self.copied.remove(&path) => self.remove(parent, name, &header.path)?,
            Some(_) => return Ok(()),
            None => {}
        }
        let mode = Mode::empty();
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(&parent.directory, name, kind, mode, 0)
            .map_err(|error| refused(&header.path, error))
    }

    fn mark_opaque(&self, parent: &Parent, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        let attribute = whiteout::OPAQUE_ATTRIBUTE;
        let place = xattr::Place::In(parent.directory.as_fd(), name);
        xattr::set(place, attribute.as_bytes(), b"y").map_err(|error| refused(path, error))
    }

    /// Removes what is in the way of an entry.
    fn remove(&mut self, parent: &Parent, name: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        self.tree.forget();
        let full = parent.join(name);
        self.copied.remove(&full);
        match rustix::fs::unlinkat(&parent.directory, name, AtFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::ISDIR) => {}
            Err(error) => return Err(refused(path, error)),
        }
        self.directories.remove(&full);
        let inside = [&full[..], b"/"].concat();
        let below = self.directories.split_off(&inside);
        let after = below
            .into_iter()
            .filter(|(key, _)| !key.starts_with(&inside));
        self.directories.extend(after);
        std::fs::remove_dir_all(xattr::path(parent.directory.as_fd(), name)).map_err(|source| {
            UnpackError::Create {
                path: display(path).into_owned(),
                source,
            }
        })
    }

    /// Sets modes and times of directories, the inner ones first: a mode may close the way.
    fn finish_directories(&mut self) -> Result<(), UnpackError> {
        for (path, (mode, mtime)) in std::mem::take(&mut self.directories).into_iter().rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let directory = match self.tree.open(&path, flags) {
                Ok(directory) => directory,
                Err(error) => return Err(refused(&path, error)),
            };
            rustix::fs::chmodat(&directory, ".", Mode::from(mode), AtFlags::empty())
                .and_then(|()| {
                    let times = node::timestamps(mtime);
                    rustix::fs::utimensat(&directory, ".", &times, AtFlags::empty())
                })
                .map_err(|error| refused(&path, error))?;
        }
        Ok(())
    }

    fn warn(&mut self, warning: UnpackWarning) {
        if self.unpacked.warnings.len() < MAX_WARNINGS {
            self.unpacked.warnings.push(warning);
        } else {
            self.unpacked.more_warnings += 1;
        }
    }
}

/// The components of a name. A slash before it, `.` and doubled slashes mean nothing; `..` is
/// refused (D5.8).
fn components(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let names: Vec<_> = path
        .split(|&b| b == b'/')
        .filter(|name| !name.is_empty() && name != b".")
        .collect();
    if names.contains(&&b".."[..]) {
        return Err(UnpackError::Escapes {
            path: display(path).into_owned(),
        });
    }
    Ok(names)
}

fn reserved(path: &[u8]) -> UnpackError {
    UnpackError::Reserved {
        path: display(path).into_owned(),
    }
}

fn refused(path: &[u8], error: rustix::io::Errno) -> UnpackError {
    UnpackError::Create {
        path: display(path).into_owned(),
        source: error.into(),
    }
}
