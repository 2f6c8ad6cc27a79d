//! A directory that is the root of some file system, and paths that cannot leave it.
//!
//! Every path inside an image is resolved by the kernel with `RESOLVE_IN_ROOT`: absolute links
//! and `..` stay below the root, `/proc`-style magic links are refused. There is no string work
//! on paths that came from an image.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

/// An opened root directory.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    /// What has to stay as long as this does.
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

impl Root {
    /// Opens a directory of the host as a root.
    ///
    /// # Errors
    /// When it cannot be opened as a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            dir: rustix::fs::open(path, flags, Mode::empty())?,
            _held: None,
        })
    }

    /// Takes an already opened directory (also a detached mount) as a root.
    #[must_use]
    pub fn from_fd(dir: OwnedFd) -> Self {
        Self { dir, _held: None }
    }

    /// Keeps something, for one the owner of a temporary folder, as long as the root is open.
    #[must_use]
    pub fn holding(self, held: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            _held: Some(held),
            ..self
        }
    }

    /// Opens a path. Links in all components, the last one too unless `NOFOLLOW` is asked for,
    /// are followed inside the root.
    ///
    /// # Errors
    /// Those of `openat2`.
    pub fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        loop {
            match rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // A rename elsewhere in the system disturbed the look-up; openat2(2) says try again.
                Err(rustix::io::Errno::AGAIN) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Opens a path that has no links in it, not at its end either, and that stays below the root.
    ///
    /// # Errors
    /// Those of `openat2`; `ELOOP` for a link.
    pub fn open_beneath(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), resolve) {
                Err(rustix::io::Errno::AGAIN) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Opens a path as a place only (`O_PATH`); a link at its end is followed.
    ///
    /// # Errors
    /// Those of `openat2`.
    pub fn locate(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::PATH, Mode::empty())
    }

    /// What is at a path; a link at its end is followed when `follow` is set.
    ///
    /// # Errors
    /// Those of `openat2` and `fstat`.
    pub fn stat(&self, path: &Path, follow: bool) -> io::Result<Stat> {
        let nofollow = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let place = self.open_at(path, OFlags::PATH | nofollow, Mode::empty())?;
        Ok(rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?)
    }

    /// Reads a regular file of at most `limit` bytes. Never blocks on a fifo or device.
    ///
    /// # Errors
    /// Those of `openat2`; `InvalidInput` for what is no regular file, `FileTooLarge` beyond the limit.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open_at(
            path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
        )?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let mut bytes = Vec::new();
        File::from(file).take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
