//! The runtime core: runs one process in a prepared root and streams what it prints.
//!
//! `native` is kiln's own implementation: kiln starts itself anew with a hidden argument
//! ([`INIT_ARGUMENT`], looked at first in `main`), and that single-threaded process enters the
//! namespaces, builds the root and becomes, or waits for, the process of the step. Read in this
//! order: `native` (the builder's side), `supply` and `server` (where sandboxes come from), `message` (what passes
//! between the processes), `sandbox` (which processes there are), `init` (the step's process, up to
//! its program). `oci` is the way to another runtime: from the sandbox on, it does the rest.

mod binfmt;
mod cancel;
pub mod cgroup;
mod chroot;
mod error;
mod executable;
mod feed;
mod filesystems;
mod init;
pub mod isolation;
mod message;
mod mount_points;
mod native;
pub mod network;
mod oci;
mod orders;
mod privileges;
mod program;
mod provide;
mod sandbox;
mod seccomp;
mod server;
mod single;
mod supply;
mod terminal;

use std::path::{Path, PathBuf};

use kiln_registry::credentials::SecretBytes;
use serde::{Deserialize, Serialize};

pub use crate::event::Stream;

pub use binfmt::Foreign;
pub use cancel::Cancel;
pub use error::RuntimeError;
pub use native::{Attached, Native};
pub use oci::Program as OciProgram;
pub use orders::{Order, Orders};
pub use sandbox::sandbox_main;
pub use seccomp::{ProfileError, check as check_seccomp};

/// First argument of the kiln process that becomes a sandbox.
pub const INIT_ARGUMENT: &str = "__kiln-sandbox";

/// A process and all it needs to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in the spec's `PATH` inside the root.
    pub args: Vec<String>,
    /// Environment; `HOME` is added from the root's passwd file where it is not set.
    pub env: Vec<(String, String)>,
    /// Variables whose values are secret: no file on the host may hold them. They win over `env`.
    pub secret_env: Vec<(String, SecretBytes)>,
    /// Working directory, absolute; created (mode 0755, owner as `user`) when missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved inside the root (A9.8); empty for root.
    pub user: String,
    /// The root file system.
    pub root: Root,
    /// Host name.
    pub hostname: String,
    /// What it sees of the network.
    pub network: Network,
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
    /// What it may do.
    pub privileges: Privileges,
    /// The `cgroup.procs` files of the control groups that it runs in, one of each hierarchy; none
    /// leaves it where kiln is.
    pub cgroups: Vec<PathBuf>,
    /// How far it is kept apart from the host.
    pub isolation: Isolation,
    /// What it reads and where it writes.
    pub streams: Streams,
}

impl ProcessSpec {
    /// All paths of the root where something is shown for the time of the run.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        let mounts = self.mounts.iter().map(Mount::target);
        let own = filesystems::PLACES.into_iter().chain(provide::FILES);
        own.chain(mounts)
    }
}

/// What a process sees of the network (B3.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// All that the host sees.
    Host,
    /// A loopback interface of its own, and nothing else.
    None,
    /// A network namespace that exists: the file that stands for it.
    Namespace(PathBuf),
}

/// What a process may do (B3.2, B5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Privileges {
    /// What docker gives: 14 capabilities, masked paths, and these system calls.
    Sandbox(Seccomp),
    /// All that the host's root has: `--security=insecure`.
    Insecure,
}

/// The system calls that a process may make (B5.5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Those of docker's default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those of a profile of the user's, docker's JSON as read from its file.
    Profile(String),
}

/// How far a process is kept apart from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// Namespaces and mounts by the host's root.
    #[default]
    Root,
    /// The same in a user namespace that kiln has entered at its start.
    Rootless(Ids),
    /// Root without the right to mount: a changed root directory, and nothing else. Steps are not
    /// isolated from each other, nor from kiln.
    Chroot,
}

/// The users and groups that a user namespace has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ids {
    /// Root and the subordinate ids of the user.
    Range,
    /// Root only; all other owners exist in the records of snapshots, not on disk.
    Single,
}

/// What a process reads and where it writes (B4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Streams {
    /// Nothing to read; standard output and error are kept apart.
    #[default]
    Pipes,
    /// As kiln's own standard input; standard output and error are kept apart.
    Input,
    /// A terminal of this many rows and columns, connected to kiln's own.
    Terminal {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// A root file system for a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Where its files are.
    pub files: Files,
    /// An empty directory for the runtime's own use; with an overlay, on the same file system.
    pub work: PathBuf,
    /// A directory on the same file system in which layers of mount points are kept for the runs
    /// to come, of this kiln only. The caller removes it when there are none.
    pub points: PathBuf,
    /// Whether the process may not write to it; what is mounted in it may still be written to.
    #[serde(default)]
    pub read_only: bool,
}

/// Where the files of a root are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Files {
    /// In layers, to be merged by overlayfs.
    Overlay {
        /// Layer directories in overlayfs form, topmost first; may be empty.
        lowers: Vec<PathBuf>,
        /// Directory that receives changes.
        upper: PathBuf,
    },
    /// In one directory that is complete as it is, and is changed.
    Tree(PathBuf),
}

impl Files {
    /// The directory that is written to.
    #[must_use]
    pub fn writable(&self) -> &Path {
        match self {
            Self::Overlay { upper, .. } => upper,
            Self::Tree(tree) => tree,
        }
    }

    /// The layers below it, topmost first.
    #[must_use]
    pub fn lowers(&self) -> &[PathBuf] {
        match self {
            Self::Overlay { lowers, .. } => lowers,
            Self::Tree(_) => &[],
        }
    }
}

/// Something to be shown in the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// A file, directory or socket of the host. What a process writes to a writable one is kept.
    Bind {
        /// Path on the host.
        source: PathBuf,
        /// Absolute path in the root.
        target: String,
        /// Whether the process may write to it.
        writable: bool,
    },
    /// A directory of kiln's own that is kept. Where nothing can be mounted it is moved into the root
    /// for the time of the run, so that nobody else may use it meanwhile.
    Cache {
        /// Path on the host, on the file system of the root's own directory.
        source: PathBuf,
        /// Absolute path in the root.
        target: String,
        /// Whether the process may write to it.
        writable: bool,
    },
    /// A file with given content, read-only; no file system but one in memory may hold it.
    File {
        /// The content.
        content: SecretBytes,
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

impl Mount {
    /// Where it is shown: absolute path in the root.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Cache { target, .. }
            | Self::File { target, .. }
            | Self::Layers { target, .. }
            | Self::Tmpfs { target, .. } => target,
        }
    }
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
    Native::default().run(spec, output, cancel)
}
