//! The runtime core: runs one process in a prepared root and streams what it prints.
//!
//! `native` is kiln's own implementation: kiln starts itself anew with a hidden argument
//! ([`INIT_ARGUMENT`], looked at first in `main`), and that single-threaded process enters the
//! namespaces, builds the root and becomes, or waits for, the process of the step. Read in this
//! order: `native` (the builder's side), `message` (what passes between the processes), `sandbox`
//! (which processes there are), `init` (the step's process, up to its program).

mod cancel;
mod error;
mod executable;
mod filesystems;
mod init;
mod message;
mod mount_points;
mod native;
mod privileges;
mod program;
mod provide;
mod sandbox;
mod seccomp;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::event::Stream;

pub use cancel::Cancel;
pub use error::RuntimeError;
pub use native::Native;
pub use sandbox::sandbox_main;

/// First argument of the kiln process that becomes a sandbox.
pub const INIT_ARGUMENT: &str = "__kiln-sandbox";

/// A process and all it needs to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in the spec's `PATH` inside the root.
    pub args: Vec<String>,
    /// Environment; `HOME` is added from the root's passwd file where it is not set.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; created (mode 0755, owner as `user`) when missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved inside the root (A9.8); empty for root.
    pub user: String,
    /// The root file system.
    pub root: Root,
    /// Host name.
    pub hostname: String,
    /// Whether the process shares the host's network; else it has a loopback of its own only.
    pub host_network: bool,
    /// Content of `/etc/hosts`, shown read-only.
    pub hosts: String,
    /// Content of `/etc/resolv.conf`, shown read-only.
    pub resolv_conf: String,
    /// More mounts, in order. Mount points that are missing are made for the time of the run and
    /// leave no trace (B1.6).
    pub mounts: Vec<Mount>,
    /// Size limit of `/dev/shm`, bytes.
    pub shm_size: u64,
    /// Resource limits: name as `ulimit` has it (`nofile`), soft and hard.
    pub rlimits: Vec<(String, u64, u64)>,
}

/// A root file system to be mounted for a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Layer directories in overlayfs form, topmost first; may be empty.
    pub lowers: Vec<PathBuf>,
    /// Directory that receives changes.
    pub upper: PathBuf,
    /// An empty directory on the same file system, for overlayfs.
    pub work: PathBuf,
}

/// Something to be shown in the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// A file or directory of the host.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Absolute path in the root.
        target: String,
        /// Whether the process may write to it.
        writable: bool,
    },
    /// A file with given content, read-only.
    File {
        /// The content.
        content: Vec<u8>,
        /// Absolute path in the root.
        target: String,
        /// Permission bits.
        mode: u32,
        /// User and group that own it.
        owner: (u32, u32),
    },
    /// A view of a merged tree of layers, or of one directory that must stay as it is.
    Layers {
        /// Layer directories in overlayfs form, topmost first; at least one.
        lowers: Vec<PathBuf>,
        /// Path of a file or directory in the merged tree; links are followed inside of it.
        source: String,
        /// Absolute path in the root.
        target: String,
        /// Whether the process may write to it; what it writes is thrown away.
        writable: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Absolute path in the root.
        target: String,
        /// Size limit in bytes.
        size: Option<u64>,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Runs a process with kiln's own core ([`Native::run`]), the sandbox being this very program.
///
/// # Errors
/// [`RuntimeError`] when the process was not started, was cancelled, or its end is not known.
pub fn run(
    spec: &ProcessSpec,
    output: &mut dyn FnMut(Stream, &[u8]),
    cancel: &Cancel,
) -> Result<Exit, RuntimeError> {
    Native::current().run(spec, output, cancel)
}
