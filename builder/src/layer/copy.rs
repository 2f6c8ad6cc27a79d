//! Single files of unpacked trees to another tree, with all that belongs to them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::whiteout::{self, display};
use super::xattr::{self, Place};
use crate::sys::content;
use crate::sys::owner;
use crate::sys::root::Root;

/// Why a tree cannot be read or made. Paths are within it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} `/{path}`")]
pub struct TreeError {
    /// What was tried, for example "copy".
    pub act: &'static str,
    /// The file.
    pub path: String,
    /// Why it failed.
    pub source: io::Error,
}

impl TreeError {
    /// Names what was tried with a file.
    pub fn new<E: Into<io::Error>>(act: &'static str, path: &[u8]) -> impl FnOnce(E) -> Self {
        move |source| Self {
            act,
            path: display(path).into_owned(),
            source: source.into(),
        }
    }
}

/// How a file comes to its second place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Under a second name, for trees that are only read.
    Link,
    /// As a copy, which shares blocks where the file system can.
    Copy,
    /// As a copy of its own for each of several hard links. To write to one of them changes the others
    /// no more than it does with overlayfs, which copies a file when it is written to.
    Split,
    /// Under a second name, unless it carries attributes that speak to overlayfs: for trees that are
    /// thrown away afterwards, and whose files anybody may have marked.
    Take,
}

/// What all names of a file have in common.
type Shared = (u64, u64, (i64, u64));

/// Copies files of one tree to one other.
#[derive(Debug)]
pub struct Copier {
    how: How,
    /// Where the first of several hard links went, by what they share: device, inode, and the time of
    /// the last change. The time tells those apart that only share a number, as in a merged tree where
    /// one of them was written to.
    links: HashMap<Shared, Vec<u8>>,
    xattrs: xattr::Reader,
    buffer: Vec<u8>,
}

impl Copier {
    /// A copier that has copied nothing yet.
    #[must_use]
    pub fn new(how: How) -> Self {
        Self {
            how,
            links: HashMap::new(),
            xattrs: xattr::Reader::new(),
            buffer: vec![0; content::BUFFER],
        }
    }

    /// Copies what is no directory from one directory to the same name in another one, where
    /// nothing is in the way. `path` is its path in the tree `root` that it goes to. A device that
    /// this process may not make is left out.
    ///
    /// # Errors
    /// [`TreeError`] when it cannot be read or made.
    pub fn file(
        &mut self,
        from: BorrowedFd<'_>,
        root: &Root,
        to: BorrowedFd<'_>,
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), TreeError> {
        let copied = self.place(from, root, to, path, stat);
        copied.map_err(TreeError::new("copy", path))
    }

    fn place(
        &mut self,
        from: BorrowedFd<'_>,
        root: &Root,
        to: BorrowedFd<'_>,
        path: &[u8],
        stat: &Stat,
    ) -> io::Result<()> {
        let name = name_of(path);
        let linked = stat.st_nlink > 1 && self.how != How::Split;
        let inode = (
            stat.st_dev,
            stat.st_ino,
            (stat.st_ctime, stat.st_ctime_nsec),
        );
        if linked && let Some(first) = self.links.get(&inode) {
            let directory = open(root, parent_of(first), OFlags::PATH)?;
            let first = name_of(first);
            return Ok(rustix::fs::linkat(
                &directory,
                first,
                to,
                name,
                AtFlags::empty(),
            )?);
        }
        let link = match self.how {
            How::Link => true,
            How::Copy | How::Split => false,
            How::Take => self.overlay_attributes(Place::In(from, name))?.is_empty(),
        };
        let made = if link {
            match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
                // Too many names, or not one of ours.
                Err(Errno::MLINK | Errno::PERM | Errno::XDEV) => self.copy(from, to, name, stat)?,
                result => result.map(|()| true)?,
            }
        } else {
            self.copy(from, to, name, stat)?
        };
        if linked && made {
            self.links.insert(inode, path.to_vec());
        }
        Ok(())
    }

    /// Says whether it was made.
    fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
    ) -> io::Result<bool> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
            return self.opened(&source, to, name, stat).map(|()| true);
        }
        let made = if kind == FileType::Symlink {
            let text = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&text, to, name)
        } else {
            rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)
        };
        match made {
            Err(Errno::PERM) if kind != FileType::Fifo => return Ok(false),
            result => result?,
        }
        let attributes = self.attributes(Place::In(from, name))?;
        let place = Place::In(to, name);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        tolerate(rustix::fs::chownat(
            to,
            name,
            Some(uid),
            Some(gid),
            nofollow,
        ))?;
        set_attributes(place, &attributes)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(to, name, mode(stat), AtFlags::empty())?;
        }
        rustix::fs::utimensat(to, name, &times(stat), nofollow)?;
        Ok(true)
    }

    /// Copies an opened file, with the name and metadata that are given.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn opened(
        &mut self,
        source: &OwnedFd,
        to: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        // The unit is 512 bytes whatever the file system's block size is.
        let holes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512 < size;
        content::copy(source, &target, size, holes, &mut self.buffer)?;
        let attributes = self.attributes(Place::Open(source.as_fd()))?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        tolerate(rustix::fs::fchown(&target, Some(uid), Some(gid)))?;
        set_attributes(Place::Open(target.as_fd()), &attributes)?;
        rustix::fs::fchmod(&target, mode(stat))?;
        Ok(rustix::fs::futimens(&target, &times(stat))?)
    }

    /// Makes a file of its own of one of several hard links, in its opened directory, which keeps its
    /// time. `beside` is a directory outside of the tree, for the copy while it is made.
    ///
    /// # Errors
    /// [`TreeError`] when it cannot be copied.
    pub fn split(
        &mut self,
        directory: BorrowedFd<'_>,
        beside: BorrowedFd<'_>,
        path: &[u8],
    ) -> Result<(), TreeError> {
        const COPY: &[u8] = b"split";
        let name = name_of(path);
        let mut split = || -> io::Result<()> {
            let before = rustix::fs::fstat(directory)?;
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                self.opened(&source, beside, COPY, &stat)?;
                rustix::fs::renameat(beside, COPY, directory, name)?;
            }
            Ok(rustix::fs::futimens(directory, &times(&before))?)
        };
        split().map_err(TreeError::new("split the hard link", path))
    }

    /// Gives a directory the owner, attributes, mode and time of another one. `path` is for errors.
    ///
    /// # Errors
    /// [`TreeError`] when they cannot be read or set.
    pub fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &[u8],
    ) -> Result<(), TreeError> {
        let mut set = || -> io::Result<()> {
            let stat = rustix::fs::fstat(from)?;
            let attributes = self.attributes(Place::Open(from))?;
            let place = Place::Open(to);
            for name in self.attributes(place)?.keys() {
                if !attributes.contains_key(name) {
                    tolerate(xattr::remove(place, name))?;
                }
            }
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            tolerate(rustix::fs::fchown(to, Some(uid), Some(gid)))?;
            set_attributes(place, &attributes)?;
            rustix::fs::fchmod(to, mode(&stat))?;
            Ok(rustix::fs::futimens(to, &times(&stat))?)
        };
        set().map_err(TreeError::new("set the metadata of", path))
    }

    /// The attributes that travel with a file.
    fn attributes(&mut self, place: Place<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        self.xattrs.read(place, travels)
    }

    fn overlay_attributes(&mut self, place: Place<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        self.xattrs.read(place, whiteout::is_overlay)
    }
}

/// The attributes of a file that travel with it; a name in an opened directory, links not followed.
///
/// # Errors
/// Those of `llistxattr` and `lgetxattr`.
pub fn attributes_of(
    directory: BorrowedFd<'_>,
    name: &[u8],
) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    xattr::Reader::new().read(Place::In(directory, name), travels)
}

/// What a layer may hold, and what kiln itself has written down of the file.
fn travels(name: &[u8]) -> bool {
    whiteout::is_unpacked(name) || owner::is_record(name)
}

/// Whether a directory of a layer shows nothing of the layers below.
///
/// # Errors
/// Those of `fgetxattr`.
pub fn is_opaque(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(directory, whiteout::OPAQUE_ATTRIBUTE, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        // Too long for the one letter that counts.
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Marks a directory of a layer so.
///
/// # Errors
/// Those of `fsetxattr`.
pub fn set_opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    let place = Place::Open(directory);
    Ok(xattr::set(
        place,
        whiteout::OPAQUE_ATTRIBUTE.as_bytes(),
        b"y",
    )?)
}

/// The names in a directory, in no order.
///
/// # Errors
/// Those of `getdents`.
pub fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Removes what is at a name, with all below it.
///
/// # Errors
/// Those of removing.
pub fn remove(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => std::fs::remove_dir_all(xattr::path(directory, name)),
        Err(error) => Err(error.into()),
    }
}

/// Opens a path without links in a tree.
pub(super) fn open(root: &Root, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    root.open_beneath(Path::new(OsStr::from_bytes(path)), flags)
}

/// The last component of a path.
#[must_use]
pub fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// The path without its last component; empty for one in the root.
#[must_use]
pub fn parent_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte == b'/');
    end.map_or(&[][..], |end| &path[..end])
}

/// A path in a directory of a tree.
#[must_use]
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    }
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        },
    }
}

fn set_attributes(place: Place<'_>, attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
    for (name, value) in attributes {
        tolerate(xattr::set(place, name, value))?;
    }
    Ok(())
}

/// What this process has no right to set, or the file system cannot keep, the tree goes without: its
/// layers still have it.
fn tolerate(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL | Errno::RANGE) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
