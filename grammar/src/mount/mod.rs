//! `RUN --mount`: one CSV record to a typed mount (B1, B2).

mod record;

use crate::diagnostic::{did_you_mean, suggest};
use crate::word::WordError;
use record::{KEYS, TYPES};

pub(crate) use record::check;
pub use record::{csv, expand_mount, parse_mount};

/// A mount of `RUN --mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A view of the context, a stage or an image.
    Bind(Bind),
    /// A directory that outlives the build.
    Cache(Cache),
    /// An empty file system in memory.
    Tmpfs(Tmpfs),
    /// A file or a variable that holds a secret.
    Secret(Secret),
    /// A socket of the client's ssh agent.
    Ssh(Ssh),
}

/// `type=bind`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where it appears; relative ones join the working directory.
    pub target: String,
    /// What appears there, below the root of `from`; `None` is the root itself.
    pub source: Option<String>,
    /// A stage, named context or image; `None` is the build context.
    pub from: Option<String>,
    /// Whether writes succeed (they are thrown away).
    pub writable: bool,
}

/// `type=cache`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Where it appears; relative ones join the working directory.
    pub target: String,
    /// What it is known by; `None` is the cleaned target.
    pub id: Option<String>,
    /// What several writers at once do.
    pub sharing: Sharing,
    /// Whether writes are refused.
    pub readonly: bool,
    /// Where its first contents come from: a stage, named context or image.
    pub from: Option<String>,
    /// The directory in `from` that its first contents come from.
    pub source: Option<String>,
    /// Permission bits when it is created; 0755 if `None`.
    pub mode: Option<u32>,
    /// Owner when it is created; 0 if `None`.
    pub uid: Option<u32>,
    /// Group when it is created; 0 if `None`.
    pub gid: Option<u32>,
}

/// `type=tmpfs`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where it appears; relative ones join the working directory.
    pub target: String,
    /// Size limit in bytes.
    pub size: Option<u64>,
}

/// `type=secret`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Which secret.
    pub id: String,
    /// The file; `None` if it is given only in the environment.
    pub target: Option<String>,
    /// The variable; `None` if it is given only as a file.
    pub env: Option<String>,
    /// Whether its absence fails the build.
    pub required: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// `type=ssh`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ssh {
    /// Which agent.
    pub id: String,
    /// The socket; `None` is `/run/buildkit/ssh_agent.N`, N counting the sockets of the step.
    pub target: Option<String>,
    /// Whether its absence fails the build.
    pub required: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// How several writers use one cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// At the same time.
    #[default]
    Shared,
    /// Each with a directory of its own.
    Private,
    /// One after the other.
    Locked,
}

/// What can be wrong with a `--mount` value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The record is no CSV.
    #[error("failed to parse csv mounts: {0}")]
    Csv(&'static str),
    /// A type that does not exist.
    #[error("unsupported mount type {0:?}{more}", more = near(.0, &TYPES.map(|(name, _)| name)))]
    Type(String),
    /// A key that does not exist.
    #[error("unexpected key '{key}' in '{field}'{more}", more = near(.key, &KEYS.map(|(name, _)| name)))]
    Key {
        /// The key.
        key: String,
        /// Where it stands.
        field: String,
    },
    /// A key that this type does not take.
    #[error("unexpected key '{key}' for mount type '{kind}'")]
    KeyForType {
        /// The key.
        key: &'static str,
        /// The type.
        kind: &'static str,
    },
    /// A key without a value.
    #[error("invalid field '{0}' must be a key=value pair")]
    NoValue(String),
    /// A value that its key does not take.
    #[error("invalid value for {key}: {value}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
    /// `sharing` with an unknown value.
    #[error("unsupported sharing value {0:?}{more}", more = near(.0, &["shared", "private", "locked"]))]
    Sharing(String),
    /// A variable in `from` (A5.2).
    #[error("'from' doesn't support variable expansion, define alias stage instead")]
    FromVariable,
    /// A key that this type cannot do without (B1.4).
    #[error("missing key '{key}' for mount type '{kind}'")]
    Missing {
        /// The key.
        key: &'static str,
        /// The type.
        kind: &'static str,
    },
    /// A secret that nothing names.
    #[error("invalid secret mount. one of source, target required")]
    Unnamed,
    /// A secret that is named twice.
    #[error("both source and id can't be set")]
    NamedTwice,
    /// A target that is the root.
    #[error("invalid mount target {0:?}")]
    Root(String),
    /// A variable in a value could not be expanded.
    #[error("cannot expand the value of '{key}'")]
    Expansion {
        /// The key.
        key: &'static str,
        /// Why.
        source: WordError,
    },
}

impl MountError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        matches!(self, Self::Missing { .. }).then(|| "add target=/path".to_owned())
    }
}

fn near(written: &str, known: &[&str]) -> String {
    did_you_mean(suggest(written, known.iter().copied()))
}

#[cfg(test)]
mod tests;
