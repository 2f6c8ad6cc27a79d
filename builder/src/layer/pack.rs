//! A directory in overlayfs's form to a layer's tar, always the same bytes for the same tree.
//!
//! A directory stands before what is in it; names in one directory are in byte order; names have
//! no `./` before them. A directory's opaque mark comes right after it. The first of several hard
//! links in that order is the file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, vec};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::tar::{Header, Kind, Time, WriteError, Writer};
use super::whiteout::{self, Name, display};
use super::xattr::{self, Place};
use crate::sys::owner;
use crate::sys::root::Root;

/// What is to be chosen in packing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Times after this one, seconds since 1970, become this one (C11.2).
    pub clamp: Option<i64>,
    /// Whether the root directory has an entry, `./`, because its own metadata changed.
    pub root: bool,
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the tar.
    pub size: u64,
    /// Entries of the tar, whiteouts included.
    pub entries: u64,
    /// What the layer lacks or should perhaps not have.
    pub warnings: Vec<PackWarning>,
}

/// Something about a layer that its maker should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackWarning {
    /// A socket, which the format does not have.
    #[error("`/{0}` is left out: layers cannot hold sockets")]
    Socket(String),
    /// A file whose name means something else in a layer.
    #[error("`/{0}` is left out: in a layer its name would delete another file")]
    ReservedName(String),
    /// An attribute whose name cannot be written.
    #[error("attribute `{attribute}` of `/{path}` is left out: layers cannot hold its name")]
    Attribute {
        /// The file.
        path: String,
        /// The attribute.
        attribute: String,
    },
    /// A file that is far larger than what it holds, and takes its full size in the layer.
    #[error("`/{path}` is sparse: {allocated} bytes on disk become {size} bytes in the layer")]
    Sparse {
        /// The file.
        path: String,
        /// Its size, bytes.
        size: u64,
        /// What it takes on disk, bytes.
        allocated: u64,
    },
}

/// Why a directory cannot be packed. Paths are within it.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The directory itself cannot be opened.
    #[error("cannot open `{path}`")]
    Open {
        /// Its path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read `/{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file changed while it was packed.
    #[error("`/{path}` changed while it was read")]
    Changed {
        /// The file.
        path: String,
    },
    /// Overlayfs left something out because the directory was mounted with a feature that kiln
    /// does not use.
    #[error("`/{path}` is incomplete: overlayfs keeps `{attribute}` for it")]
    Redirected {
        /// The file.
        path: String,
        /// The attribute that says so.
        attribute: String,
    },
    /// The layer cannot be written.
    #[error("cannot write the layer")]
    Write {
        /// Why.
        source: WriteError,
    },
}

impl From<WriteError> for PackError {
    fn from(source: WriteError) -> Self {
        Self::Write { source }
    }
}

/// A file of this size that takes less than a sixteenth of it on disk gets a warning.
const SPARSE_SIZE: u64 = 64 << 30;
/// Directories that are held open at once; deeper ones are opened again when it is their turn.
const OPEN: usize = 64;
const BUFFER: usize = 256 << 10;

/// Packs a directory (A8.3, A10.7). The caller flushes the writer.
///
/// # Errors
/// [`PackError`]; what was written is no layer then.
pub fn pack(upper: &Path, out: impl Write, options: &PackOptions) -> Result<Packed, PackError> {
    let root = Root::open(upper).map_err(|source| PackError::Open {
        path: upper.to_owned(),
        source,
    })?;
    pack_at(&root, out, options)
}

/// Packs a directory that is open already.
///
/// # Errors
/// [`PackError`]; what was written is no layer then.
pub fn pack_at(root: &Root, out: impl Write, options: &PackOptions) -> Result<Packed, PackError> {
    let mut packer = Packer {
        root,
        options,
        writer: Writer::new(out),
        links: HashMap::new(),
        xattrs: xattr::Reader::new(),
        buffer: vec![0; BUFFER],
        packed: Packed::default(),
    };
    packer.tree()?;
    let Packer {
        writer, mut packed, ..
    } = packer;
    packed.size = writer.finish()?.1;
    Ok(packed)
}

struct Packer<'a, W> {
    root: &'a Root,
    options: &'a PackOptions,
    writer: Writer<W>,
    /// Names of files that have more than one, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    xattrs: xattr::Reader,
    buffer: Vec<u8>,
    packed: Packed,
}

/// A directory whose content is being packed.
struct Frame {
    path: Vec<u8>,
    directory: Option<OwnedFd>,
    names: vec::IntoIter<Vec<u8>>,
}

/// A file's attributes: those to be packed, and what overlayfs says by its own.
struct Attributes {
    packed: BTreeMap<Vec<u8>, Vec<u8>>,
    opaque: bool,
    whiteout: bool,
}

impl<W: Write> Packer<'_, W> {
    fn tree(&mut self) -> Result<(), PackError> {
        let directory = self.open(b"")?;
        let mut stack = vec![self.directory(Vec::new(), directory)?];
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.names.next() else {
                stack.pop();
                continue;
            };
            let path = join(&frame.path, &name);
            let directory = match frame.directory.take() {
                Some(directory) => directory,
                None => self.open(&frame.path)?,
            };
            let child = self.entry(directory.as_fd(), path, &name)?;
            if stack.len() < OPEN
                && let Some(frame) = stack.last_mut()
            {
                frame.directory = Some(directory);
            }
            stack.extend(child);
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, PackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        self.root
            .open_at(Path::new(OsStr::from_bytes(path)), flags, Mode::empty())
            .map_err(|source| unreadable(path, source))
    }

    /// Packs one name in a directory; a directory is given back for its content.
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        path: Vec<u8>,
        name: &[u8],
    ) -> Result<Option<Frame>, PackError> {
        let failed = |error: rustix::io::Errno| unreadable(&path, error.into());
        let mut stat =
            rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        owner::correct(Place::In(parent, name), &mut stat).map_err(failed)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.whiteout(&path)?;
                return Ok(None);
            }
            _ if whiteout::classify(name) != Name::Plain => {
                let warning = PackWarning::ReservedName(display(&path).into_owned());
                self.packed.warnings.push(warning);
                return Ok(None);
            }
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = rustix::fs::openat(parent, name, flags, Mode::empty());
                let directory = directory.map_err(failed)?;
                return self.directory(path, directory).map(Some);
            }
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket | FileType::Unknown => {
                let warning = PackWarning::Socket(display(&path).into_owned());
                self.packed.warnings.push(warning);
                return Ok(None);
            }
        };
        self.node(parent, path, name, kind, &stat)?;
        Ok(None)
    }

    /// Packs what is no directory.
    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        path: Vec<u8>,
        name: &[u8],
        kind: Kind,
        stat: &Stat,
    ) -> Result<(), PackError> {
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let mut header = self.header(path, Kind::HardLink, stat);
                header.link.clone_from(first);
                return self.put(&header);
            }
            self.links.insert(inode, path.clone());
        }
        if kind == Kind::File {
            return self.file(parent, path, name, stat);
        }
        let attributes = self.attributes(Place::In(parent, name), &path)?;
        let mut header = self.header(path, kind, stat);
        if kind == Kind::Symlink {
            let link = rustix::fs::readlinkat(parent, name, Vec::new());
            let link = link.map_err(|error| unreadable(&header.path, error.into()))?;
            header.link = link.into_bytes();
        }
        header.xattrs = attributes.packed;
        self.put(&header)
    }

    /// Packs a directory's own entry and lists its content.
    fn directory(&mut self, path: Vec<u8>, directory: OwnedFd) -> Result<Frame, PackError> {
        let failed = |error: rustix::io::Errno| unreadable(&path, error.into());
        let mut stat = rustix::fs::fstat(&directory).map_err(failed)?;
        owner::correct(Place::Open(directory.as_fd()), &mut stat).map_err(failed)?;
        let attributes = self.attributes(Place::Open(directory.as_fd()), &path)?;
        let is_root = path.is_empty();
        if !is_root || self.options.root {
            let name = if is_root { b".".to_vec() } else { path.clone() };
            let mut header = self.header(name, Kind::Directory, &stat);
            header.xattrs = attributes.packed;
            self.put(&header)?;
        }
        if attributes.opaque {
            let header = Header::new(join(&path, whiteout::OPAQUE), Kind::File);
            self.put(&header)?;
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(Frame {
            path,
            directory: Some(directory),
            names: names.into_iter(),
        })
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        path: Vec<u8>,
        name: &[u8],
        seen: &Stat,
    ) -> Result<(), PackError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty());
        let file = file.map_err(|error| unreadable(&path, error.into()))?;
        let mut file = File::from(file);
        let attributes = self.attributes(Place::Open(file.as_fd()), &path)?;
        if attributes.whiteout && seen.st_size == 0 {
            return self.whiteout(&path);
        }
        let mut header = self.header(path, Kind::File, seen);
        header.size = u64::try_from(seen.st_size).unwrap_or(0);
        header.xattrs = attributes.packed;
        self.warn_sparse(&header, seen);
        self.put(&header)?;
        let changed = || PackError::Changed {
            path: display(&header.path).into_owned(),
        };
        let mut left = header.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let count = match file.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(changed()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(&header.path, error)),
            };
            self.writer.content(&self.buffer[..count])?;
            left -= count as u64;
        }
        let now = rustix::fs::fstat(&file);
        let now = now.map_err(|error| unreadable(&header.path, error.into()))?;
        let state = |stat: &Stat| {
            let modified = (stat.st_mtime, stat.st_mtime_nsec);
            (stat.st_dev, stat.st_ino, stat.st_size, modified)
        };
        if state(&now) == state(seen) {
            Ok(())
        } else {
            Err(changed())
        }
    }

    fn warn_sparse(&mut self, header: &Header, stat: &Stat) {
        // The unit is 512 bytes whatever the file system's block size is.
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if header.size > SPARSE_SIZE && allocated < header.size / 16 {
            self.packed.warnings.push(PackWarning::Sparse {
                path: display(&header.path).into_owned(),
                size: header.size,
                allocated,
            });
        }
    }

    /// Writes that a path is deleted.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), PackError> {
        let start = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
        let name = whiteout::name_of(&path[start..]);
        let header = Header::new([&path[..start], &name].concat(), Kind::File);
        self.put(&header)
    }

    fn attributes(&mut self, place: Place<'_>, path: &[u8]) -> Result<Attributes, PackError> {
        let wanted =
            |name: &[u8]| whiteout::is_packed(name) || whiteout::overlay_attribute(name).is_some();
        let all = self.xattrs.read(place, wanted);
        let mut attributes = Attributes {
            packed: BTreeMap::new(),
            opaque: false,
            whiteout: false,
        };
        for (name, value) in all.map_err(|error| unreadable(path, error))? {
            match whiteout::overlay_attribute(&name) {
                Some(b"opaque") => attributes.opaque = value == b"y",
                Some(b"whiteout") => attributes.whiteout = true,
                Some(b"redirect" | b"metacopy") => {
                    return Err(PackError::Redirected {
                        path: display(path).into_owned(),
                        attribute: display(&name).into_owned(),
                    });
                }
                Some(_) => {}
                None if name.contains(&b'=') => {
                    self.packed.warnings.push(PackWarning::Attribute {
                        path: display(path).into_owned(),
                        attribute: display(&name).into_owned(),
                    });
                }
                None => {
                    attributes.packed.insert(name, value);
                }
            }
        }
        Ok(attributes)
    }

    fn header(&self, path: Vec<u8>, kind: Kind, stat: &Stat) -> Header {
        let mut header = Header::new(path, kind);
        header.mode = stat.st_mode & 0o7777;
        header.uid = stat.st_uid;
        header.gid = stat.st_gid;
        let seconds = stat.st_mtime;
        header.mtime = Time::seconds(self.options.clamp.map_or(seconds, |most| seconds.min(most)));
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            let device = stat.st_rdev;
            header.device = (rustix::fs::major(device), rustix::fs::minor(device));
        }
        header
    }

    fn put(&mut self, header: &Header) -> Result<(), PackError> {
        self.writer.entry(header)?;
        self.packed.entries += 1;
        Ok(())
    }
}

fn unreadable(path: &[u8], source: io::Error) -> PackError {
    PackError::Read {
        path: display(path).into_owned(),
        source,
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    }
}
