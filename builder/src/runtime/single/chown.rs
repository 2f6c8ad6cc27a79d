//! Changes of owners, written down beside the file.
//!
//! The path is resolved as the kernel would for the process that asks: this process takes its root
//! and working directory for the time of one look-up. Magic links are not followed, so that no path
//! leads out of the sandbox by way of /proc.

use std::fs::File as OsFile;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::fs::{UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::calls::{self, Chown, File, Form};
use crate::sys::notify::{self, Reply};
use crate::sys::owner;
use crate::sys::xattr::Place;

/// The longest path that the kernel takes, its end included.
const MAX_PATH: usize = 4096;

const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Looks at the processes of the step, and writes down what they do to owners.
#[derive(Debug)]
pub(super) struct Owners {
    /// This process's own root.
    root: OwnedFd,
    /// Its /proc.
    proc: OwnedFd,
    /// Its `self/fd`.
    descriptors: OwnedFd,
}

impl Owners {
    pub(super) fn open() -> rustix::io::Result<Self> {
        let open = |path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        Ok(Self {
            root: open("/")?,
            proc: open("/proc")?,
            descriptors: open("/proc/self/fd")?,
        })
    }

    /// A file of a thread's folder in /proc.
    pub(super) fn file(
        &self,
        thread: u32,
        name: &str,
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let path = format!("{thread}/{name}");
        rustix::fs::openat(&self.proc, path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Reads from the memory of a thread.
    pub(super) fn memory(
        &self,
        thread: u32,
        address: u64,
        into: &mut [u8],
    ) -> Result<usize, Errno> {
        let memory = OsFile::from(self.file(thread, "mem", OFlags::RDONLY)?);
        let read = memory.read_at(into, address);
        read.map_err(|_| Errno::FAULT)
    }

    /// Writes to the memory of a thread.
    pub(super) fn write_memory(
        &self,
        thread: u32,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let memory = OsFile::from(self.file(thread, "mem", OFlags::RDWR)?);
        let written = memory.write_all_at(bytes, address);
        written.map_err(|_| Errno::FAULT)
    }

    /// The text of a file of a thread's folder in /proc.
    pub(super) fn text(&self, thread: u32, name: &str) -> Result<String, Errno> {
        let mut text = String::new();
        let mut file = OsFile::from(self.file(thread, name, OFlags::RDONLY)?);
        file.read_to_string(&mut text).map_err(|_| Errno::SRCH)?;
        Ok(text)
    }

    /// Answers what a file is, where its owner is another one than the disk says. All else the
    /// kernel answers, also what is wrong with the question.
    pub(super) fn tell(
        &self,
        call: &notify::Call,
        stat: &calls::Stat,
        is_waiting: &dyn Fn() -> bool,
    ) -> Reply {
        let told = || -> Result<Reply, Errno> {
            let file = self.locate(call.thread, stat.file)?;
            let place = Place::At(file.as_fd());
            let on_disk = rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH)?;
            let mut corrected = on_disk;
            owner::correct(place, &mut corrected)?;
            let owner = (corrected.st_uid, corrected.st_gid);
            if owner == (on_disk.st_uid, on_disk.st_gid) {
                return Ok(Reply::Go);
            }
            let answer = match stat.form {
                Form::Stat => notify::stat(file.as_fd(), owner),
                Form::Statx(flags, mask) => notify::statx(file.as_fd(), flags, mask, owner),
            };
            let answer = answer.map_err(|_| Errno::IO)?;
            if !is_waiting() {
                return Err(Errno::SRCH);
            }
            self.write_memory(call.thread, stat.into, &answer)?;
            Ok(Reply::Value(0))
        };
        told().unwrap_or(Reply::Go)
    }

    /// Opens the file that a call means, as a place only.
    fn locate(&self, thread: u32, file: File) -> Result<OwnedFd, Errno> {
        match file {
            File::Descriptor(number) => self.descriptor(thread, number),
            File::Path {
                directory,
                address,
                follow,
                empty,
            } => {
                // Some calls with an empty path have none at all.
                let path = match address {
                    0 if empty => Vec::new(),
                    _ => self.path(thread, address)?,
                };
                match (path.is_empty(), empty) {
                    (true, true) => self.directory(thread, directory),
                    (true, false) => Err(Errno::NOENT),
                    (false, _) => self.find(thread, directory, &path, follow),
                }
            }
        }
    }

    pub(super) fn change(
        &self,
        call: &notify::Call,
        chown: &Chown,
        is_waiting: &dyn Fn() -> bool,
    ) -> Result<i64, Errno> {
        let file = self.locate(call.thread, chown.file)?;
        // Its number may have been another process's since; then what was found is that one's.
        if !is_waiting() {
            return Err(Errno::SRCH);
        }
        self.write_down(&file, chown.uid, chown.gid)?;
        Ok(0)
    }

    /// Reads a path, up to its end.
    fn path(&self, thread: u32, address: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; MAX_PATH];
        // The memory behind a path may be nobody's: what is there up to that is read.
        let length = self.memory(thread, address, &mut bytes)?;
        bytes.truncate(length);
        match bytes.iter().position(|byte| *byte == 0) {
            Some(end) => {
                bytes.truncate(end);
                Ok(bytes)
            }
            None if length == MAX_PATH => Err(Errno::NAMETOOLONG),
            None => Err(Errno::FAULT),
        }
    }

    fn descriptor(&self, thread: u32, number: u64) -> Result<OwnedFd, Errno> {
        let number = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        self.file(thread, &format!("fd/{number}"), PLACE)
            .map_err(|_| Errno::BADF)
    }

    /// The directory that a relative path begins at.
    fn directory(&self, thread: u32, number: u64) -> Result<OwnedFd, Errno> {
        let here = libc::AT_FDCWD.cast_unsigned();
        if number & u64::from(u32::MAX) == u64::from(here) {
            return self.file(thread, "cwd", PLACE);
        }
        self.descriptor(thread, number)
    }

    fn find(
        &self,
        thread: u32,
        directory: u64,
        path: &[u8],
        follow: bool,
    ) -> Result<OwnedFd, Errno> {
        let root = self.file(thread, "root", PLACE)?;
        take_root(&root)?;
        let found = self.find_here(thread, directory, path, follow);
        take_root(&self.root)?;
        found
    }

    /// Finds a file below the root that this process has taken.
    fn find_here(
        &self,
        thread: u32,
        directory: u64,
        path: &[u8],
        follow: bool,
    ) -> Result<OwnedFd, Errno> {
        if !path.starts_with(b"/") {
            rustix::process::fchdir(self.directory(thread, directory)?)?;
        }
        let nofollow = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        loop {
            let resolve = ResolveFlags::NO_MAGICLINKS;
            let flags = PLACE | nofollow;
            match rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                found => return found,
            }
        }
    }

    fn write_down(&self, file: &OwnedFd, uid: u32, gid: u32) -> Result<(), Errno> {
        let mut stat = rustix::fs::statat(file, "", AtFlags::EMPTY_PATH)?;
        // What is in no layer needs no owner: what is mounted, what is not on disk.
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(
            kind,
            FileType::RegularFile | FileType::Directory | FileType::Symlink | FileType::Fifo
        ) {
            return Ok(());
        }
        if matches!(kind, FileType::Symlink | FileType::Fifo) {
            return write_down_link(file, &mut stat, uid, gid);
        }
        // As the kernel does, this takes set-user-id bits and capabilities away.
        let root = Some(Uid::ROOT);
        rustix::fs::chownat(file, "", root, None, AtFlags::EMPTY_PATH)?;
        let number = file.as_raw_fd().to_string();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.descriptors, number, flags, Mode::empty())?;
        let place = Place::Open(file.as_fd());
        owner::correct(place, &mut stat)?;
        match owner::set(place, changed(&stat, uid, gid)) {
            Ok(_) | Err(Errno::NOTSUP) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Makes a directory this process's root and working directory.
fn take_root(root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(".")
}

fn write_down_link(file: &OwnedFd, stat: &mut Stat, uid: u32, gid: u32) -> Result<(), Errno> {
    // Its owner is in what was asked for already.
    owner::correct(Place::At(file.as_fd()), stat)?;
    let nanoseconds = owner::nanoseconds(changed(stat, uid, gid))?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: nanoseconds.into(),
        },
    };
    rustix::fs::utimensat(file, "", &times, AtFlags::EMPTY_PATH)
}

fn changed(stat: &Stat, uid: u32, gid: u32) -> (u32, u32) {
    let new = |id: u32, old: u32| if id == u32::MAX { old } else { id };
    (new(uid, stat.st_uid), new(gid, stat.st_gid))
}
