//! Extended attributes of files that cannot all be opened: links, devices and pipes are reached
//! through the directory that holds them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The most that the kernel lets a list of names, or a value, have.
const MOST: usize = 64 << 10;
/// What nearly all of them fit in. The kernel takes as much memory as it is offered, each time.
const USUAL: usize = 1 << 10;

/// A file whose attributes are meant.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// An opened file.
    Open(BorrowedFd<'a>),
    /// A file that was opened as a place only.
    At(BorrowedFd<'a>),
    /// A name in an opened directory; a symbolic link there is meant itself.
    In(BorrowedFd<'a>, &'a [u8]),
}

/// Reads attributes, with buffers that are used again and again.
#[derive(Debug)]
pub struct Reader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader that has read nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            names: vec![0; MOST],
            value: vec![0; MOST],
        }
    }

    /// The attributes with names that are wanted; none where the file system has none.
    ///
    /// # Errors
    /// Those of listing and reading them.
    pub fn read(
        &mut self,
        place: Place<'_>,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut attributes = BTreeMap::new();
        let listed = match list(place, &mut self.names[..USUAL]) {
            Err(Errno::RANGE) => list(place, &mut self.names),
            listed => listed,
        };
        let length = match listed {
            Ok(length) => length,
            Err(Errno::NOTSUP | Errno::NODATA) => return Ok(attributes),
            Err(error) => return Err(error.into()),
        };
        let names = &self.names[..length];
        for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            if !wanted(name) {
                continue;
            }
            let value = match get(place, name, &mut self.value[..USUAL]) {
                Err(Errno::RANGE) => get(place, name, &mut self.value),
                value => value,
            };
            match value {
                Ok(length) => {
                    attributes.insert(name.to_vec(), self.value[..length].to_vec());
                }
                // Listed but for others only, or gone again.
                Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(attributes)
    }
}

fn list(place: Place<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    match place {
        Place::Open(file) => rustix::fs::flistxattr(file, buffer),
        Place::At(file) => rustix::fs::listxattr(link(file), buffer),
        Place::In(directory, name) => rustix::fs::llistxattr(path(directory, name), buffer),
    }
}

/// Reads one attribute, and says how long it is.
///
/// # Errors
/// Those of `fgetxattr`, for one `RANGE` when it is longer than the buffer.
pub fn get(place: Place<'_>, attribute: &[u8], buffer: &mut [u8]) -> rustix::io::Result<usize> {
    match place {
        Place::Open(file) => rustix::fs::fgetxattr(file, attribute, buffer),
        Place::At(file) => rustix::fs::getxattr(link(file), attribute, buffer),
        Place::In(directory, name) => {
            rustix::fs::lgetxattr(path(directory, name), attribute, buffer)
        }
    }
}

/// Sets one attribute.
///
/// # Errors
/// Those of `fsetxattr`, for one `PERM` for a `user.` attribute of what is neither file nor directory.
pub fn set(place: Place<'_>, attribute: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    let flags = XattrFlags::empty();
    match place {
        Place::Open(file) => rustix::fs::fsetxattr(file, attribute, value, flags),
        Place::At(file) => rustix::fs::setxattr(link(file), attribute, value, flags),
        Place::In(directory, name) => {
            rustix::fs::lsetxattr(path(directory, name), attribute, value, flags)
        }
    }
}

/// Removes one attribute.
///
/// # Errors
/// Those of `fremovexattr`, for one `NODATA` when it is not there.
pub fn remove(place: Place<'_>, attribute: &[u8]) -> rustix::io::Result<()> {
    match place {
        Place::Open(file) => rustix::fs::fremovexattr(file, attribute),
        Place::At(file) => rustix::fs::removexattr(link(file), attribute),
        Place::In(directory, name) => rustix::fs::lremovexattr(path(directory, name), attribute),
    }
}

/// Leads to the very file that is open, be it a link itself.
fn link(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The kernel knows these calls for opened files and for paths only; this path leads through the
/// opened directory and no other.
#[must_use]
pub fn path(directory: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    path
}
