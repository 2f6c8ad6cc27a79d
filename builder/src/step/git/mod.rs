//! Git repositories: `ADD` of one, and named contexts that are one (A12.4).
//!
//! A reference is resolved to a commit first, which costs one question to the server; the files of
//! a commit that was checked out before are remembered. Everything goes through the `git` program
//! (`program`), which is told nothing by the machine's configuration and may start no hooks. The
//! files of one commit are always the same: modes 0644 and 0755, owner 0:0, and the commit's time
//! instead of that of the checkout.

mod program;
mod refs;
mod tidy;

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_registry::digest::{Digest, Hasher};
use rustix::fs::{Mode, OFlags};

use super::{StepError, Worker};
use crate::graph::GitOp;
use crate::runtime::Cancel;
use crate::snapshot::SnapshotId;
use crate::sys::root::Root;
use program::Program;
use refs::Found;

/// How long git may be silent; it reports its progress when all is well.
const PATIENCE: Duration = Duration::from_secs(300);

/// What makes the folders `.git` of submodules speak of their commits alone.
const SETTLE: &str = "git read-tree HEAD && cd \"$(git rev-parse --absolute-git-dir)\" && \
     rm -rf FETCH_HEAD ORIG_HEAD logs";

/// Version of the key of a checkout; raised when the same commit gives other files.
const VERSION: &str = "kiln git 1";

/// Why the files of a repository cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no `git` here.
    #[error("the program `git` is not installed, and git repositories need it")]
    NoProgram,
    /// The program cannot be started or listened to.
    #[error("cannot run the program `git`")]
    Run(#[source] io::Error),
    /// Git failed.
    #[error("git {action}: {message}")]
    Failed {
        /// What it was doing.
        action: String,
        /// Its last words.
        message: String,
    },
    /// Git hangs.
    #[error("git {action} was silent for {seconds} seconds")]
    Silent {
        /// What it was doing.
        action: String,
        /// How long it may be silent.
        seconds: u64,
    },
    /// Git says more than it should.
    #[error("git {action} gave an answer of more than {limit} bytes")]
    TooLong {
        /// What it was doing.
        action: String,
        /// The limit.
        limit: usize,
    },
    /// Git says something else than it should.
    #[error("git {0} gave an answer that cannot be understood")]
    Answer(&'static str),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// There is no such reference.
    #[error("the repository has no branch, tag or reference `{0}`")]
    NoReference(String),
    /// The repository has no commits.
    #[error("the repository is empty")]
    Empty,
    /// It is another commit than announced (A12.4).
    #[error("checksum mismatch: expected commit {expected}, got {actual}")]
    Checksum {
        /// What was announced.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// There is no such directory in the repository.
    #[error("the repository has no directory `{0}`")]
    NoDirectory(String),
    /// Files cannot be read or written.
    #[error("{action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl GitError {
    /// Whether the machine or the network is to blame, rather than what was asked for.
    #[must_use]
    pub fn is_environment(&self) -> bool {
        match self {
            Self::NoProgram | Self::Run(_) | Self::Silent { .. } | Self::Io { .. } => true,
            Self::Failed { message, .. } => [
                "Could not resolve host",
                "unable to look up",
                "Failed to connect",
                "unable to connect",
                "Connection refused",
                "Connection timed out",
                "early EOF",
                "No space left on device",
            ]
            .iter()
            .any(|sign| message.contains(sign)),
            _ => false,
        }
    }

    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoProgram => "install git on this machine, where kiln runs",
            Self::NoReference(name)
                if name.len() >= 7 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
            {
                "a commit is named by all its digits"
            }
            Self::Failed { message, .. }
                if message.contains("could not read Username")
                    || message.contains("Authentication failed") =>
            {
                "the repository is private or does not exist; for a private one use an address \
                 that ssh serves, `git@HOST:PATH`, and an ssh agent"
            }
            Self::Failed { message, .. } if message.contains("Permission denied (publickey") => {
                "the server knows none of the keys that ssh offers: look at `ssh-add -l`"
            }
            Self::Failed { message, .. } if message.contains("Host key verification failed") => {
                "add the host to `~/.ssh/known_hosts`, as `ssh-keyscan HOST` prints it"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// A repository with the commit that is wanted of it.
#[derive(Debug)]
pub struct Resolved {
    op: GitOp,
    found: Found,
}

/// Asks the server what a reference stands for. Blocks.
///
/// # Errors
/// [`GitError`] when it cannot be asked, has no such reference, or has another commit there.
pub fn resolve(worker: &Worker, op: &GitOp) -> Result<Resolved, StepError> {
    let folder = worker.store.temporary()?;
    let resolved = || {
        let git = program(op, folder.path(), &worker.cancel);
        let found = refs::resolve(&git, op)?;
        if let Some(expected) = &op.commit
            && !found.commit.starts_with(expected)
        {
            return Err(GitError::Checksum {
                expected: expected.clone(),
                actual: found.commit,
            });
        }
        Ok(found)
    };
    let found = resolved().map_err(|error| failed(op, error))?;
    let op = op.clone();
    Ok(Resolved { op, found })
}

impl Resolved {
    /// Names the files (A15.4): the commit, and what is taken of it. The address is in it because
    /// submodules and a kept `.git` depend on it.
    #[must_use]
    pub fn key(&self) -> Digest {
        let mut hasher = Hasher::new();
        for part in [
            VERSION,
            &self.op.url,
            &self.found.commit,
            &self.op.subdir,
            if self.op.keep_git_dir { "keep" } else { "" },
            if self.op.submodules { "submodules" } else { "" },
            // A tag is kept with the folder `.git`.
            self.found
                .name
                .as_deref()
                .filter(|_| self.op.keep_git_dir)
                .unwrap_or_default(),
        ] {
            hasher.update(part.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finish()
    }

    /// Checks the commit out into a layer. Blocks.
    ///
    /// # Errors
    /// [`GitError`]; nothing is left of the checkout then.
    pub fn checkout(&self, worker: &Worker) -> Result<SnapshotId, StepError> {
        let active = worker.snapshots.prepare()?;
        let folder = active.work().join("checkout");
        let git = program(&self.op, &folder, &worker.cancel);
        let done = fs::create_dir(&folder)
            .map_err(GitError::io("making the folder", &folder))
            .and_then(|()| self.fill(&git, &folder))
            .and_then(|()| take(&folder, &self.op.subdir, &active.upper()));
        done.map_err(|error| failed(&self.op, error))?;
        Ok(worker.snapshots.commit(active)?)
    }

    /// Fetches the commit and writes its files into the folder.
    fn fill(&self, git: &Program<'_>, folder: &Path) -> Result<(), GitError> {
        let (op, commit) = (&self.op, self.found.commit.as_str());
        let format = match commit.len() {
            64 => "--object-format=sha256",
            _ => "--object-format=sha1",
        };
        git.run(&["init", "-q", "--initial-branch=main", format])?;
        // Addresses of submodules may be relative to it.
        git.run(&["remote", "add", "origin", &op.url])?;
        self.fetch(git)?;
        git.run(&["checkout", "--progress", "--force", "--detach", commit])?;
        let submodules = op.submodules && folder.join(".gitmodules").is_file();
        if submodules {
            git.run(&[
                "submodule",
                "update",
                "--progress",
                "--init",
                "--recursive",
                "--depth=1",
            ])?;
        }
        // What was named may be the object of a tag.
        let peeled = format!("{commit}^{{commit}}");
        let time = git.run(&["show", "-s", "--format=%ct", &peeled])?;
        let time = time.trim().parse().map_err(|_| GitError::Answer("show"))?;
        if op.keep_git_dir {
            // An index without the times of the files here.
            git.run(&["read-tree", commit])?;
            if submodules {
                git.run(&["submodule", "foreach", "--quiet", "--recursive", SETTLE])?;
            }
        }
        tidy::tidy(folder, op.keep_git_dir, time)
    }

    /// Fetches the commit alone: by the name it has there, else by itself. A server that gives
    /// neither (because it knows nothing of shallow copies, or the commit is not the newest one of
    /// a branch) gives all branches and tags, and the commit must be in them.
    fn fetch(&self, git: &Program<'_>) -> Result<(), GitError> {
        let commit = self.found.commit.as_str();
        let fetch = |depth: &[&str], refspecs: &[&str]| {
            let arguments = ["fetch", "--progress", "--no-tags"];
            git.run(&[&arguments[..], depth, &["origin"], refspecs].concat())
        };
        let has = || {
            git.run(&["cat-file", "-e", &format!("{commit}^{{commit}}")])
                .is_ok()
        };
        if let Some(name) = &self.found.name {
            let refspec = if name.starts_with("refs/tags/") && self.op.keep_git_dir {
                format!("+{name}:{name}")
            } else {
                format!("+{name}")
            };
            if answered(fetch(&["--depth=1"], &[&refspec]))? && has() {
                return Ok(());
            }
        }
        if answered(fetch(&["--depth=1"], &[commit]))? {
            return Ok(());
        }
        fetch(
            &[],
            &[
                "+refs/heads/*:refs/remotes/origin/*",
                "+refs/tags/*:refs/tags/*",
            ],
        )?;
        if has() {
            Ok(())
        } else {
            Err(GitError::NoReference(commit.to_owned()))
        }
    }
}

/// Whether a server gave what was asked for; one that cannot be reached is not asked again.
fn answered(fetched: Result<String, GitError>) -> Result<bool, GitError> {
    match fetched {
        Ok(_) => Ok(true),
        Err(error @ GitError::Failed { .. }) if !error.is_environment() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves a directory of the checkout to where the layer is; links on the way stay inside.
fn take(folder: &Path, subdir: &str, upper: &Path) -> Result<(), GitError> {
    let root = Root::open(folder).map_err(GitError::io("opening", folder))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let found = root
        .open_at(Path::new(subdir), flags, Mode::empty())
        .map_err(|_| GitError::NoDirectory(subdir.to_owned()))?;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let path = fs::read_link(link).map_err(GitError::io("finding", folder))?;
    fs::rename(&path, upper).map_err(GitError::io("moving", &path))
}

fn program<'a>(op: &GitOp, folder: &'a Path, cancel: &'a Cancel) -> Program<'a> {
    Program::new(folder, cancel, PATIENCE).with_login(&op.url, op.login.as_ref())
}

fn failed(op: &GitOp, error: GitError) -> StepError {
    match error {
        GitError::Cancelled => StepError::Cancelled,
        source => StepError::Git {
            url: op.url.clone(),
            source,
        },
    }
}
