//! What a tree looked like: enough to see later what changed, without reading any file.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, OFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::time::ClockId;

use crate::layer::TreeError;
use crate::layer::copy::{join, names};
use crate::sys::root::Root;

/// Seconds and nanoseconds since 1970.
type Time = (i64, u32);

/// A file as `statx` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mode: u32,
    pub(super) inode: u64,
    pub(super) links: u32,
    pub(super) owner: (u32, u32),
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    pub(super) modified: Time,
    /// When anything of the file was changed; nobody can set it back.
    pub(super) changed: Time,
    /// When it was made, where the file system knows: numbers of inodes are given again.
    pub(super) born: Option<Time>,
}

impl Entry {
    fn of(stat: &Statx) -> Self {
        let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        let born = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        Self {
            mode: u32::from(stat.stx_mode),
            inode: stat.stx_ino,
            links: stat.stx_nlink,
            owner: (stat.stx_uid, stat.stx_gid),
            size: stat.stx_size,
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            modified: time(stat.stx_mtime),
            changed: time(stat.stx_ctime),
            born: born.then(|| time(stat.stx_btime)),
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Overlayfs does not let a process make one of these, and in a layer it would delete a file.
    fn is_whiteout(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.device == (0, 0)
    }
}

/// All files of a tree by their paths in it; without the root itself.
#[derive(Debug, Default)]
pub(super) struct Record(BTreeMap<Vec<u8>, Entry>);

impl Record {
    /// Looks at a tree that nobody changes meanwhile.
    pub(super) fn of(root: &Root) -> Result<Self, TreeError> {
        let mut entries = BTreeMap::new();
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let directory = open(root, &path).map_err(TreeError::new("open", &path))?;
            let found = names(std::os::fd::AsFd::as_fd(&directory));
            for name in found.map_err(TreeError::new("read", &path))? {
                let child = join(&path, &name);
                let entry = look(&directory, &name).map_err(TreeError::new("look at", &child))?;
                if entry.is_whiteout() {
                    continue;
                }
                if entry.is_directory() {
                    pending.push(child.clone());
                }
                entries.insert(child, entry);
            }
        }
        Ok(Self(entries))
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.0.get(path)
    }

    /// The files, a directory before what is in it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_slice(), entry))
    }

    /// Waits until a change would get another time than any that is recorded. The clock of file
    /// systems may tick only every few milliseconds.
    pub(super) fn settle(&self) {
        let newest = self.0.values().map(|entry| entry.changed).max();
        // A clock that was set back is no reason to wait for ever.
        for _ in 0..50 {
            let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
            let now = (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default());
            if newest.is_none_or(|newest| newest < now) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

pub(super) fn open(root: &Root, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    root.open_beneath(Path::new(OsStr::from_bytes(path)), flags)
}

fn look(directory: &OwnedFd, name: &[u8]) -> io::Result<Entry> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    Ok(Entry::of(&stat))
}
