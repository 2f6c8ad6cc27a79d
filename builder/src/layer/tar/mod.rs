//! The tar format, as image layers use it.
//!
//! [`Reader`] follows the rules of Go's `archive/tar`, because that reader stands behind nearly
//! all other tools that read layers; where two readers in use could understand an archive in two
//! ways, it refuses with the offset instead of choosing. [`Writer`] makes one form only, so that
//! the same entries always give the same bytes.

mod field;
mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

use std::collections::BTreeMap;

pub use header::MAX_NAME;
pub use reader::{MAX_METADATA, MAX_PENDING, Reader};
pub use sparse::MAX_SEGMENTS;
pub use writer::{WriteError, Writer};

/// Size of the blocks that an archive consists of, bytes.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file; the only kind with content.
    File,
    /// Another name of an earlier entry, named by its link.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A point in time: seconds since 1970, which may be negative, and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds, rounded towards the past.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanos: u32,
}

impl Time {
    /// A whole second.
    #[must_use]
    pub fn seconds(seconds: i64) -> Self {
        Self { seconds, nanos: 0 }
    }
}

/// Everything an archive says about one entry, apart from its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name as written, without a slash at the end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Text of a symbolic link, name of a hard link's target; empty for others.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky, at most `0o7777`.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Size of the content, bytes, holes included; 0 for all kinds but files.
    pub size: u64,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Header {
    /// An entry of a kind with nothing but a name: mode 0, owner 0:0, time 0.
    #[must_use]
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Self {
        Self {
            path: path.into(),
            kind,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            device: (0, 0),
            xattrs: BTreeMap::new(),
        }
    }
}

/// Why an archive cannot be read. Offsets are of the header block in question, in bytes of the
/// uncompressed archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes could not be had.
    #[error("cannot read the archive at offset {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The archive ends in the middle of something.
    #[error("the archive is cut off at offset {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// A block is no tar header.
    #[error("no valid tar header at offset {offset}: {what}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Tools in use would read different things.
    #[error("ambiguous tar entry at offset {offset}: {what}")]
    Ambiguous {
        /// Where.
        offset: u64,
        /// What can be understood in two ways.
        what: &'static str,
    },
    /// A limit is exceeded.
    #[error("tar entry at offset {offset} exceeds the limit of {limit} {what}")]
    TooLarge {
        /// Where.
        offset: u64,
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// An entry is of a kind that layers do not have.
    #[error("tar entry at offset {offset} has the unsupported type `{}`", .flag.escape_ascii())]
    Unsupported {
        /// Where.
        offset: u64,
        /// The type flag.
        flag: u8,
    },
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::fraction_header;
