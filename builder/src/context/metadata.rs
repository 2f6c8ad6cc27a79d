//! What `lstat` says about one file, in the form that selection, keys and copying share.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Stat, Timespec};

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Socket; layers cannot hold one.
    Socket,
}

/// A point in time with nanoseconds, as file systems keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Metadata of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Group id of the owner.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes that the file occupies; fewer than its size where it has holes.
    pub blocks: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of content or metadata.
    pub ctime: Timestamp,
    /// Device of the file system that holds it.
    pub device: u64,
    /// Number of its inode there.
    pub inode: u64,
    /// How many names the inode has.
    pub links: u64,
    /// Device number, of devices.
    pub rdev: u64,
}

impl Metadata {
    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Whether the file occupies less than its size, so that looking for holes is worth it.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }

    /// The key under which other names of the same inode are found, where there are any.
    #[must_use]
    pub fn hard_link(&self) -> Option<(u64, u64)> {
        (self.links > 1 && !self.is_dir()).then_some((self.device, self.inode))
    }
}

impl From<&Stat> for Metadata {
    fn from(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Socket => Kind::Socket,
            FileType::RegularFile | FileType::Unknown => Kind::File,
        };
        #[expect(
            clippy::unnecessary_cast,
            reason = "the fields differ in type between architectures"
        )]
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            mtime: Timestamp {
                seconds: stat.st_mtime as i64,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            ctime: Timestamp {
                seconds: stat.st_ctime as i64,
                nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
            },
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            links: stat.st_nlink as u64,
            rdev: stat.st_rdev as u64,
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanoseconds: after.subsec_nanos(),
            },
            // Before 1970 whole seconds are precise enough.
            Err(before) => Self {
                seconds: -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
                nanoseconds: 0,
            },
        }
    }
}

impl From<Timestamp> for Timespec {
    fn from(time: Timestamp) -> Self {
        Self {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        }
    }
}

impl Timestamp {
    /// Nanoseconds from `self` to `later`; negative when `later` is earlier.
    #[must_use]
    pub fn until(self, later: Self) -> i128 {
        let nanoseconds =
            |time: Self| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
        nanoseconds(later) - nanoseconds(self)
    }
}
