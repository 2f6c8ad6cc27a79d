//! Looks at the files of a batch, and reads the small ones.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::walk::Step;
use super::{PackError, PackOptions, PackWarning, changed, unreadable};
use crate::layer::copy::{join, name_of};
use crate::layer::tar::{Header, Kind, Time};
use crate::layer::whiteout::{self, Name, display};
use crate::layer::xattr::{self, Place};
use crate::sys::owner;

/// A file of at most so many bytes is read with its batch.
const SMALL: u64 = 64 << 10;
/// A batch holds no more bytes than this.
const MOST: usize = 1 << 20;

/// Entries of the tar, in its order.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    /// The contents that were read.
    pub(super) bytes: Vec<u8>,
}

/// One entry, or what came instead.
pub(super) enum Item {
    Entry {
        header: Header,
        /// Device and inode of a file that may have other names.
        inode: Option<(u64, u64)>,
        content: Content,
    },
    Warning(PackWarning),
    Failed(PackError),
}

/// What stands behind a header.
pub(super) enum Content {
    None,
    /// In the bytes of the batch.
    Read(Range<usize>),
    /// Still in the file, in this directory, as it looked.
    Later(Arc<OwnedFd>, Box<Stat>),
}

/// Attributes of a file: those to be packed, and what overlayfs says by its own.
struct Attributes {
    packed: BTreeMap<Vec<u8>, Vec<u8>>,
    opaque: bool,
    whiteout: bool,
}

/// Reads one batch after the other.
pub(super) struct Reader<'a> {
    options: &'a PackOptions,
    xattrs: xattr::Reader,
    batch: Batch,
}

impl<'a> Reader<'a> {
    pub(super) fn new(options: &'a PackOptions) -> Self {
        Self {
            options,
            xattrs: xattr::Reader::new(),
            batch: Batch::default(),
        }
    }

    /// Reads what these steps name into an empty batch; ends with the first failure.
    pub(super) fn read(&mut self, steps: Vec<Step>, empty: Batch) -> Batch {
        self.batch = empty;
        for step in steps {
            let done = match step {
                Step::Directory {
                    path,
                    header: Some(header),
                    ..
                } => {
                    self.promised(*header, &path);
                    Ok(())
                }
                Step::Directory {
                    directory, path, ..
                } => self.directory(&directory, &path),
                Step::File { parent, path } => self.file(&parent, path),
                Step::Failed(error) => Err(error),
            };
            if let Err(error) = done {
                self.batch.items.push(Item::Failed(error));
                break;
            }
        }
        std::mem::take(&mut self.batch)
    }

    /// The entry of a directory that is not yet what it will be.
    fn promised(&mut self, header: Header, path: &[u8]) {
        if !path.is_empty() {
            self.put(header, None, Content::None);
        }
    }

    /// A directory's own entry, and its opaque mark.
    fn directory(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<(), PackError> {
        let failed = |error: Errno| unreadable(path, error.into());
        let place = Place::Open(directory.as_fd());
        let mut stat = rustix::fs::fstat(directory).map_err(failed)?;
        owner::correct(place, &mut stat).map_err(failed)?;
        let attributes = self.attributes(place, path)?;
        let is_root = path.is_empty();
        if !is_root || self.options.root {
            let name = if is_root {
                b".".to_vec()
            } else {
                path.to_vec()
            };
            let mut header = self.header(name, Kind::Directory, &stat);
            header.xattrs = attributes.packed;
            self.put(header, None, Content::None);
        }
        if attributes.opaque {
            let header = Header::new(join(path, whiteout::OPAQUE), Kind::File);
            self.put(header, None, Content::None);
        }
        Ok(())
    }

    /// What is no directory.
    fn file(&mut self, parent: &Arc<OwnedFd>, path: Vec<u8>) -> Result<(), PackError> {
        let failed = |error: Errno| unreadable(&path, error.into());
        let place = Place::In(parent.as_fd(), name_of(&path));
        let mut stat = rustix::fs::statat(&**parent, name_of(&path), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)?;
        owner::correct(place, &mut stat).map_err(failed)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.whiteout(&path);
                return Ok(());
            }
            _ if whiteout::classify(name_of(&path)) != Name::Plain => {
                let warning = PackWarning::ReservedName(display(&path).into_owned());
                self.batch.items.push(Item::Warning(warning));
                return Ok(());
            }
            FileType::RegularFile => return self.regular(parent, path, &stat),
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            // It was none when the names were listed.
            FileType::Directory => return Err(changed(&path)),
            FileType::Socket | FileType::Unknown => {
                let warning = PackWarning::Socket(display(&path).into_owned());
                self.batch.items.push(Item::Warning(warning));
                return Ok(());
            }
        };
        let attributes = self.attributes(place, &path)?;
        let mut header = self.header(path, kind, &stat);
        if kind == Kind::Symlink {
            let link = rustix::fs::readlinkat(&**parent, name_of(&header.path), Vec::new());
            let link = link.map_err(|error| unreadable(&header.path, error.into()))?;
            header.link = link.into_bytes();
        }
        header.xattrs = attributes.packed;
        self.put(header, several_names(&stat), Content::None);
        Ok(())
    }

    fn regular(
        &mut self,
        parent: &Arc<OwnedFd>,
        path: Vec<u8>,
        seen: &Stat,
    ) -> Result<(), PackError> {
        let file = open(parent, &path)?;
        let attributes = self.attributes(Place::Open(file.as_fd()), &path)?;
        if attributes.whiteout && seen.st_size == 0 {
            self.whiteout(&path);
            return Ok(());
        }
        let mut header = self.header(path, Kind::File, seen);
        header.size = u64::try_from(seen.st_size).unwrap_or(0);
        header.xattrs = attributes.packed;
        let start = self.batch.bytes.len();
        let content = match usize::try_from(header.size) {
            Ok(size) if header.size <= SMALL && start + size <= MOST => {
                read_small(&file, size, &mut self.batch.bytes, &header.path)?;
                check_unchanged(&file, seen, &header.path)?;
                Content::Read(start..start + size)
            }
            _ => Content::Later(Arc::clone(parent), Box::new(*seen)),
        };
        self.put(header, several_names(seen), content);
        Ok(())
    }

    /// Says that a path is deleted.
    fn whiteout(&mut self, path: &[u8]) {
        let start = path.len() - name_of(path).len();
        let name = whiteout::name_of(&path[start..]);
        let header = Header::new([&path[..start], &name].concat(), Kind::File);
        self.put(header, None, Content::None);
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
                    let warning = PackWarning::Attribute {
                        path: display(path).into_owned(),
                        attribute: display(&name).into_owned(),
                    };
                    self.batch.items.push(Item::Warning(warning));
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

    fn put(&mut self, header: Header, inode: Option<(u64, u64)>, content: Content) {
        self.batch.items.push(Item::Entry {
            header,
            inode,
            content,
        });
    }
}

/// Reads a file of so many bytes to the end of others, whose memory is not cleared first.
fn read_small(file: &File, size: usize, bytes: &mut Vec<u8>, path: &[u8]) -> Result<(), PackError> {
    let end = bytes.len() + size;
    bytes.reserve(size);
    while bytes.len() < end {
        match rustix::io::read(file, spare_capacity(bytes)) {
            Ok(0) => return Err(changed(path)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(unreadable(path, error.into())),
        }
    }
    // One that has grown is found out by its metadata.
    bytes.truncate(end);
    Ok(())
}

/// Opens a file in its directory.
pub(super) fn open(parent: &OwnedFd, path: &[u8]) -> Result<File, PackError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name_of(path), flags, Mode::empty());
    Ok(File::from(
        file.map_err(|error| unreadable(path, error.into()))?,
    ))
}

/// Fails when a file is not the one that was seen, or was written to since.
pub(super) fn check_unchanged(file: &File, seen: &Stat, path: &[u8]) -> Result<(), PackError> {
    let now = rustix::fs::fstat(file).map_err(|error| unreadable(path, error.into()))?;
    let state = |stat: &Stat| {
        let modified = (stat.st_mtime, stat.st_mtime_nsec);
        (stat.st_dev, stat.st_ino, stat.st_size, modified)
    };
    if state(&now) == state(seen) {
        Ok(())
    } else {
        Err(changed(path))
    }
}

/// Device and inode of a file that has several names.
fn several_names(stat: &Stat) -> Option<(u64, u64)> {
    (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino))
}
