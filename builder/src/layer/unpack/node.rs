//! Creates one file, directory, link or device with its metadata.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::tree::{Parent, is_directory, is_whiteout};
use super::{Form, Owner, UnpackError, UnpackWarning, Unpacker, refused};
use crate::layer::tar::{Header, Kind, Time};
use crate::layer::whiteout::{self, display};
use crate::layer::xattr::{self, Place};
use crate::sys::owner::{self, Nanoseconds};

/// Gives the next stored piece of a file: its offset and how much was put into the buffer.
pub(super) type Pieces<'a> = dyn FnMut(&mut [u8]) -> io::Result<Option<(u64, usize)>> + 'a;

/// Zeros of this length become a hole.
const HOLE: usize = 4096;

impl Unpacker<'_> {
    /// Creates an entry that is no hard link; what is in its way is removed.
    pub(super) fn put(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
        content: &mut Pieces<'_>,
    ) -> Result<(), UnpackError> {
        if self.is_fake_device(header) {
            self.warn(UnpackWarning::Device(display(&header.path).into_owned()));
            return Ok(());
        }
        let mut opaque = false;
        if let Some(stat) = self.tree.stat(parent, name, &header.path)? {
            if is_directory(&stat) && header.kind == Kind::Directory {
                return self.existing_directory(parent, name, header);
            }
            // Whiteout and directory of one name: nothing of lower layers is seen in it.
            opaque = self.options.form != Form::Plain && is_whiteout(&stat);
            self.remove(parent, name, &header.path)?;
        }
        match header.kind {
            Kind::File => self.file(parent, name, header, content),
            Kind::Directory => {
                let created = rustix::fs::mkdirat(&parent.directory, name, Mode::RWXU);
                created.map_err(|error| refused(&header.path, error))?;
                if opaque {
                    self.mark_opaque(parent, name, &header.path)?;
                }
                self.directory(parent, name, header)
            }
            Kind::Symlink => {
                let created = rustix::fs::symlinkat(&header.link[..], &parent.directory, name);
                created.map_err(|error| refused(&header.path, error))?;
                self.metadata(Place::In(parent.directory.as_fd(), name), header)
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.special(parent, name, header),
            Kind::HardLink => Ok(()),
        }
    }

    /// Updates a directory that is there already.
    pub(super) fn existing_directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
    ) -> Result<(), UnpackError> {
        if self.options.form != Form::Plain {
            // The last of two entries wins, with its attributes only.
            let place = Place::In(parent.directory.as_fd(), name);
            let old = self.xattrs.read(place, whiteout::is_unpacked);
            let old = old.map_err(|source| UnpackError::Create {
                path: display(&header.path).into_owned(),
                source,
            })?;
            for attribute in old.keys().filter(|name| !header.xattrs.contains_key(*name)) {
                match xattr::remove(place, attribute) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(error) => return Err(refused(&header.path, error)),
                }
            }
        }
        self.directory(parent, name, header)
    }

    fn directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
    ) -> Result<(), UnpackError> {
        self.metadata(Place::In(parent.directory.as_fd(), name), header)?;
        let path = if name == b"." {
            parent.path.clone()
        } else {
            parent.join(name)
        };
        self.directories.insert(path, (header.mode, header.mtime));
        Ok(())
    }

    fn file(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
        content: &mut Pieces<'_>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&parent.directory, name, flags, mode);
        let file = File::from(file.map_err(|error| refused(&header.path, error))?);
        let failed = |source| UnpackError::Create {
            path: display(&header.path).into_owned(),
            source,
        };
        let mut end = 0;
        loop {
            let piece = content(&mut self.buffer).map_err(|source| UnpackError::Read {
                path: display(&header.path).into_owned(),
                source,
            })?;
            let Some((offset, count)) = piece else { break };
            let bytes = &self.buffer[..count];
            if is_hole(bytes) {
                continue;
            }
            file.write_all_at(bytes, offset).map_err(failed)?;
            end = offset + count as u64;
        }
        if end < header.size {
            file.set_len(header.size).map_err(failed)?;
        }
        self.unpacked.size += header.size;
        self.metadata(Place::Open(file.as_fd()), header)
    }

    fn special(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
    ) -> Result<(), UnpackError> {
        let kind = match header.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(header.device.0, header.device.1);
        match owner::make_device(parent.directory.as_fd(), name, kind, device) {
            Ok(()) => {}
            Err(Errno::PERM) if header.kind != Kind::Fifo => {
                self.warn(UnpackWarning::Device(display(&header.path).into_owned()));
                return Ok(());
            }
            Err(error) => return Err(refused(&header.path, error)),
        }
        self.metadata(Place::In(parent.directory.as_fd(), name), header)
    }

    /// Whether an entry is a device that overlayfs would take for a deletion.
    fn is_fake_device(&self, header: &Header) -> bool {
        self.options.form != Form::Plain
            && header.kind == Kind::CharDevice
            && header.device == (0, 0)
    }

    /// Sets owner, attributes, mode and times, in this order: a new owner takes setuid bits and
    /// file capabilities away. Mode and times of directories come at the very end.
    fn metadata(&mut self, place: Place<'_>, header: &Header) -> Result<(), UnpackError> {
        let nanoseconds = self.owner(place, header)?;
        self.attributes(place, header)?;
        if header.kind == Kind::Directory {
            return Ok(());
        }
        let mode = Mode::from(header.mode);
        let mut times = timestamps(header.mtime);
        if let Some(nanoseconds) = nanoseconds {
            times.last_modification.tv_nsec = nanoseconds.into();
        }
        let set = match place {
            Place::Open(file) => {
                rustix::fs::fchmod(file, mode).and_then(|()| rustix::fs::futimens(file, &times))
            }
            Place::At(file) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::chmod(&path, mode).and_then(|()| {
                    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty())
                })
            }
            Place::In(parent, name) => {
                let mode = if header.kind == Kind::Symlink {
                    Ok(())
                } else {
                    rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
                };
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                mode.and_then(|()| rustix::fs::utimensat(parent, name, &times, nofollow))
            }
        };
        set.map_err(|error| refused(&header.path, error))
    }

    /// Gives the file to its owner, and hands back what the time of a link has to say of that.
    fn owner(
        &mut self,
        place: Place<'_>,
        header: &Header,
    ) -> Result<Option<Nanoseconds>, UnpackError> {
        let (uid, gid) = match self.options.owner {
            Owner::Archive => (header.uid, header.gid),
            Owner::Fixed(uid, gid) => (uid, gid),
            Owner::Caller => return Ok(None),
        };
        match owner::set(place, (uid, gid)) {
            Ok(nanoseconds) => Ok(nanoseconds),
            // No privilege, or an id that the user namespace does not have.
            Err(Errno::PERM | Errno::INVAL) => {
                let path = display(&header.path).into_owned();
                self.warn(UnpackWarning::Owner { path, uid, gid });
                Ok(None)
            }
            Err(error) => Err(refused(&header.path, error)),
        }
    }

    fn attributes(&mut self, place: Place<'_>, header: &Header) -> Result<(), UnpackError> {
        for (name, value) in &header.xattrs {
            if !whiteout::is_unpacked(name) {
                continue;
            }
            match xattr::set(place, name, value) {
                Ok(()) => {}
                Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::RANGE) => {
                    let path = display(&header.path).into_owned();
                    let attribute = display(name).into_owned();
                    self.warn(UnpackWarning::Attribute { path, attribute });
                }
                Err(error) => return Err(refused(&header.path, error)),
            }
        }
        Ok(())
    }
}

/// The time of the last change; that of the last access is left alone.
pub(super) fn timestamps(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.into(),
        },
    }
}

/// Whether bytes need not be written because a new file has zeros there already.
fn is_hole(bytes: &[u8]) -> bool {
    bytes.len() >= HOLE && bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}
