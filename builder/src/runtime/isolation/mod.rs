//! How far steps are kept apart from the host, found out at the start by trying.
//!
//! Root with the right to mount works as it is. An ordinary user enters one user namespace, before
//! there are threads, and is root there, so that all code works on what it sees as root: unpacking,
//! copying and packing see the same owners as the steps do. Root without rights, as in a container,
//! does that too where it may, and else works without mounts.

mod enter;
mod error;
pub mod probe;
pub mod subordinate;
pub mod survey;

use std::fmt;

use super::{Ids, Isolation};
use crate::sys::ids::{self, Map};

pub(super) use error::has_filter;
pub use error::{Denial, IsolationError};

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The best that there is.
    #[default]
    Best,
    /// This one, or an error.
    Root,
    /// This one, or an error.
    Rootless,
    /// This one, or an error.
    Chroot,
}

/// A level of isolation that this process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The level.
    pub isolation: Isolation,
    /// Users that there are besides root; all but root of the host's.
    pub subordinates: u64,
    /// Why it is no better one.
    pub reason: Option<String>,
}

impl Level {
    fn new(isolation: Isolation, reason: Option<String>) -> Result<Self, IsolationError> {
        Ok(Self {
            isolation,
            subordinates: Map::current()?.subordinates(),
            reason,
        })
    }

    /// The level of a namespace that this process is in.
    fn rootless(reason: Option<String>) -> Result<Self, IsolationError> {
        let ids = if Map::current()?.is_single() {
            Ids::Single
        } else {
            Ids::Range
        };
        Self::new(Isolation::Rootless(ids), reason)
    }
}

/// `rootless (65536 subordinate ids)`
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |f: &mut fmt::Formatter<'_>| match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        };
        match self.isolation {
            Isolation::Root => f.write_str("root"),
            Isolation::Rootless(Ids::Range) => {
                write!(f, "rootless ({} subordinate ids)", self.subordinates)
            }
            Isolation::Rootless(Ids::Single) => {
                f.write_str("rootless (a single id")?;
                reason(f)?;
                f.write_str(")")
            }
            Isolation::Chroot => {
                f.write_str("chroot")?;
                if let Some(reason) = &self.reason {
                    write!(f, " ({reason})")?;
                }
                f.write_str(": steps are not isolated from each other or from this container, and have no /proc")
            }
        }
    }
}

/// Brings this process, which must be single-threaded, to a level of isolation. It may be in
/// another user namespace afterwards.
///
/// # Errors
/// [`IsolationError`] that names what denies it.
pub fn enter(wanted: Wanted) -> Result<Level, IsolationError> {
    let root = rustix::process::geteuid().is_root();
    let initial = ids::in_initial_namespace()?;
    let refused = |level, why: &str| {
        let why = why.to_owned();
        Err(IsolationError::Level { level, why })
    };
    match wanted {
        Wanted::Chroot if !root => refused("chroot", "it needs root"),
        Wanted::Chroot => Level::new(Isolation::Chroot, None),
        Wanted::Root if !root => refused("root", "this is not root"),
        Wanted::Root if !initial => {
            refused("root", "root of a user namespace is not root of the host")
        }
        Wanted::Root => match probe::sandbox() {
            Ok(()) => Level::new(Isolation::Root, None),
            Err(error) => refused("root", &unable(&error)),
        },
        Wanted::Rootless if root && !initial && probe::sandbox().is_ok() => Level::rootless(None),
        Wanted::Rootless => Level::rootless(enter::enter()?),
        Wanted::Best if !root => Level::rootless(enter::enter()?),
        Wanted::Best => match probe::sandbox() {
            Ok(()) if initial => Level::new(Isolation::Root, None),
            Ok(()) => Level::rootless(None),
            Err(error) => match probe::rootless() {
                Ok(()) => Level::rootless(enter::enter()?),
                Err(_) => Level::new(Isolation::Chroot, Some(unable(&error))),
            },
        },
    }
}

/// What denies namespaces and mounts to root.
fn unable(error: &std::io::Error) -> String {
    match Denial::of(error) {
        Denial::Seccomp => "a seccomp filter denies namespaces or mounts".to_owned(),
        _ => format!("no right to make namespaces or to mount: {error}"),
    }
}
