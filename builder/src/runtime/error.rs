//! Why a process did not run.

use std::io;
use std::path::PathBuf;

use super::binfmt::{self, Foreign};
use super::message::{ExecFailure, Failure, IdKind};
use crate::sys::users::UserError;

/// Why a process did not run to its end. That it ran and failed is no error but an [`Exit`].
///
/// [`Exit`]: super::Exit
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The sandbox process itself cannot be started.
    #[error("cannot start the sandbox process")]
    Start(#[source] io::Error),
    /// The host does not let the sandbox be built.
    #[error("cannot {act}")]
    Setup {
        /// What was tried, for example "mount the root file system".
        act: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A place in the image cannot be mounted on, for one because it is a file and the source
    /// of the mount a directory.
    #[error("cannot mount on `{target}` of the image")]
    MountPoint {
        /// Path in the image.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// What is to be mounted cannot be opened.
    #[error("cannot open `{path}` to mount it")]
    MountSource {
        /// Path on the host.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The working directory cannot be made or entered.
    #[error("cannot use `{path}` of the image as the working directory")]
    Cwd {
        /// Path in the image.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There is no such resource limit.
    #[error("unknown resource limit `{0}`")]
    Limit(String),
    /// A resource limit cannot be set, for one because it may not be raised that far.
    #[error("cannot set --ulimit `{name}`: {}", LimitCause { name, hard: *hard, most: *most, source })]
    LimitRefused {
        /// Its name.
        name: String,
        /// The hard limit that was asked for; `u64::MAX` is none.
        hard: u64,
        /// The hard limit that there is.
        most: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// The user cannot be resolved in the image.
    #[error("{0}")]
    User(#[from] UserError),
    /// A user or group that the user namespace does not have.
    #[error(
        "{kind} id {id} does not exist here: the user namespace has the ids 0 to {subordinates}"
    )]
    Unmapped {
        /// "user" or "group".
        kind: &'static str,
        /// The id.
        id: u32,
        /// How many ids there are besides root.
        subordinates: u64,
    },
    /// There is nothing to run.
    #[error("no program to run")]
    NoProgram,
    /// The program is not in the image.
    #[error("exec `{program}`: no such file or directory in the image")]
    NotFound {
        /// The program as it was asked for.
        program: String,
    },
    /// The program was looked up and is in no directory of `PATH`.
    #[error("exec `{program}`: executable file not found in PATH of the image")]
    NotInPath {
        /// The program as it was asked for.
        program: String,
    },
    /// The program is there, but what is to load it is not: the interpreter that its `#!` line
    /// names, or the dynamic loader.
    #[error("exec `{program}`: its interpreter or dynamic loader is not in the image")]
    NoInterpreter {
        /// The program as it was asked for.
        program: String,
    },
    /// The file is not executable by this user.
    #[error("exec `{program}`: permission denied")]
    Denied {
        /// The program as it was asked for.
        program: String,
    },
    /// The file is no program that this machine can run (B6.4).
    #[error("exec `{program}`: exec format error{}", Machine(machine.as_deref()))]
    Format {
        /// The program as it was asked for.
        program: String,
        /// The instruction set that it is for, where the file tells.
        machine: Option<String>,
    },
    /// The program is for another architecture, and nothing here runs it (B6.4).
    #[error("exec `{program}`: exec format error: it is for {machine}, and {cause}")]
    Foreign {
        /// The program as it was asked for.
        program: String,
        /// The instruction set that it is for.
        machine: String,
        /// What is amiss.
        cause: Foreign,
    },
    /// The program cannot be started for another reason.
    #[error("exec `{program}`")]
    Exec {
        /// The program as it was asked for.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Another runtime failed, not the process in it.
    #[error("{runtime}: {message}")]
    Oci {
        /// Its name.
        runtime: String,
        /// What it says.
        message: String,
    },
    /// Another runtime cannot do what is asked for.
    #[error("{what} cannot be had with `--runtime {runtime}`, only with kiln's own")]
    Unsupported {
        /// Its name.
        runtime: String,
        /// What is asked for.
        what: &'static str,
    },
    /// It was cancelled; no process is left.
    #[error("cancelled")]
    Cancelled,
    /// The sandbox was killed from outside.
    #[error("the sandbox process was killed")]
    Lost,
    /// The level of isolation has no way to give what was asked for.
    #[error(
        "{what} is not possible with isolation `chroot`, which neither mounts nor makes namespaces"
    )]
    Level {
        /// What was asked for.
        what: String,
    },
    /// A directory of the step's root cannot be prepared or cleaned.
    #[error("cannot clean `{}`", path.display())]
    Clean {
        /// Path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Says why a limit cannot be set.
struct LimitCause<'a> {
    name: &'a str,
    hard: u64,
    most: u64,
    source: &'a io::Error,
}

impl std::fmt::Display for LimitCause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |limit: u64| match limit {
            u64::MAX => "unlimited".to_owned(),
            limit => limit.to_string(),
        };
        if self.source.raw_os_error() != Some(libc::EPERM) {
            return write!(f, "{}", self.source);
        }
        let (hard, most) = (shown(self.hard), shown(self.most));
        write!(f, "the hard limit may not be raised from {most} to {hard}")?;
        match self.name {
            // Root, too, is held by it.
            "nofile" => f.write_str(" (nor above fs.nr_open)"),
            _ => Ok(()),
        }
    }
}

/// Says for which machine a program is, where that is known.
struct Machine<'a>(Option<&'a str>);

impl std::fmt::Display for Machine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let here = std::env::consts::ARCH;
        match self.0 {
            Some(machine) => write!(f, " (it is for {machine}, this machine is {here})"),
            None => Ok(()),
        }
    }
}

impl From<Failure> for RuntimeError {
    fn from(failure: Failure) -> Self {
        let source = io::Error::from_raw_os_error;
        match failure {
            Failure::Setup { act, errno } => Self::Setup {
                act,
                source: source(errno),
            },
            Failure::MountPoint { target, errno } => Self::MountPoint {
                target,
                source: source(errno),
            },
            Failure::MountSource { path, errno } => Self::MountSource {
                path,
                source: source(errno),
            },
            Failure::Cwd { path, errno } => Self::Cwd {
                path,
                source: source(errno),
            },
            Failure::Limit { name } => Self::Limit(name),
            Failure::LimitRefused {
                name,
                hard,
                most,
                errno,
            } => Self::LimitRefused {
                name,
                hard,
                most,
                source: source(errno),
            },
            Failure::User(failure) => Self::User(failure.into()),
            Failure::Unmapped {
                kind,
                id,
                subordinates,
            } => Self::Unmapped {
                kind: match kind {
                    IdKind::User => "user",
                    IdKind::Group => "group",
                },
                id,
                subordinates,
            },
            Failure::Exec(failure) => failure.into(),
            Failure::Oci { runtime, message } => Self::Oci { runtime, message },
        }
    }
}

impl From<ExecFailure> for RuntimeError {
    fn from(failure: ExecFailure) -> Self {
        let program = failure.program;
        if let (libc::ENOEXEC | libc::ENOENT, true, Some(machine)) =
            (failure.errno, failure.exists, &failure.machine)
            && let Some(cause) = binfmt::problem(machine)
            // What nothing is registered for is no matter of a missing interpreter.
            && (failure.errno == libc::ENOEXEC || matches!(cause, Foreign::NotFixed { .. }))
        {
            return Self::Foreign {
                program,
                machine: machine.clone(),
                cause,
            };
        }
        match failure.errno {
            libc::ENOENT if failure.exists => Self::NoInterpreter { program },
            libc::ENOENT | libc::ENOTDIR if program.contains('/') => Self::NotFound { program },
            libc::ENOENT | libc::ENOTDIR => Self::NotInPath { program },
            libc::EACCES | libc::EPERM => Self::Denied { program },
            libc::ENOEXEC => Self::Format {
                program,
                machine: failure.machine,
            },
            errno => Self::Exec {
                program,
                source: io::Error::from_raw_os_error(errno),
            },
        }
    }
}
