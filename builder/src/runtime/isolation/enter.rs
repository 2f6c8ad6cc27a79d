//! Entering a user namespace: this process itself moves, so that its terminal, its signals and
//! its exit code stay what they are.
//!
//! The maps of the namespace are written from outside of it. A helper is forked first, waits until
//! this process has moved, and has `newuidmap` and `newgidmap` write the maps.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use rustix::thread::UnshareFlags;

use super::error::{Denial, IsolationError};
use super::probe;
use super::subordinate::{self, Subordinate};
use crate::sys::ids::{Map, Span};
use crate::sys::process::{self, Side};

/// How the ids of a namespace come about.
#[derive(Debug)]
enum Plan {
    /// By the programs that may give a user its subordinate ids.
    Programs(Subordinate),
    /// Written by root itself: all ids that there are.
    Own(Map),
    /// One id, and why not more.
    Single(String),
}

/// Moves this process, which must be single-threaded, into a user namespace and a mount namespace
/// of its own. Says why there is a single id when there is.
///
/// # Errors
/// [`IsolationError`]; when the ids could not be given, the process is of no use any more.
pub(super) fn enter() -> Result<Option<String>, IsolationError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    match plan(uid, gid)? {
        Plan::Single(reason) => {
            move_in()?;
            single(uid, gid)?;
            check()?;
            Ok(Some(reason))
        }
        plan => {
            let helper = Helper::start(&plan)?;
            move_in()?;
            let reason = helper.map().err();
            if let Some(why) = &reason {
                // The programs may lack their privilege, as where new privileges are forbidden.
                // Where one of them has done its work and the other failed, nothing more can be done.
                single(uid, gid).map_err(|_| IsolationError::Ids { why: why.clone() })?;
            }
            check()?;
            Ok(reason)
        }
    }
}

fn plan(uid: u32, gid: u32) -> Result<Plan, IsolationError> {
    match subordinate::find(uid, gid) {
        Ok(found) => Ok(Plan::Programs(found)),
        Err(_) if uid == 0 && may_set_ids() => {
            let identity = |spans: Vec<Span>| {
                let same = |span: Span| Span {
                    outside: span.inside,
                    ..span
                };
                spans.into_iter().map(same).collect()
            };
            let map = Map::current()?;
            Ok(Plan::Own(Map {
                users: identity(map.users),
                groups: identity(map.groups),
            }))
        }
        Err(reason) => Ok(Plan::Single(reason)),
    }
}

/// Whether this process may write maps with other ids than its own.
fn may_set_ids() -> bool {
    use rustix::thread::CapabilitySet;
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

fn move_in() -> Result<(), IsolationError> {
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
    process::new_namespaces(flags).map_err(IsolationError::user_namespace)
}

/// Gives the namespace this user and group and nobody else. The kernel wants that groups cannot be
/// dropped then.
fn single(uid: u32, gid: u32) -> Result<(), IsolationError> {
    let write = |name: &str, text: &str| {
        fs::write(format!("/proc/self/{name}"), text).map_err(|error| IsolationError::Ids {
            why: format!("writing {name}: {error}"),
        })
    };
    write("setgroups", "deny")?;
    write("uid_map", &format!("0 {uid} 1\n"))?;
    write("gid_map", &format!("0 {gid} 1\n"))
}

/// A namespace is of use only when it gives the right to mount, which a security module may deny.
fn check() -> Result<(), IsolationError> {
    probe::mounts().map_err(|source| IsolationError::Mounts {
        denial: Denial::of(&source),
        source: Some(source),
    })
}

/// The process that gives ids to this one.
struct Helper {
    process: Pid,
    go: OwnedFd,
    answer: OwnedFd,
}

impl Helper {
    fn start(plan: &Plan) -> io::Result<Self> {
        let (wait, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (answer, say) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let parent = getpid();
        match process::fork()? {
            Side::Child => {
                drop((go, answer));
                help(plan, parent, wait, say);
                process::exit_now()
            }
            Side::Parent(process) => Ok(Self {
                process,
                go,
                answer,
            }),
        }
    }

    /// Has the maps written, now that this process is in its namespace.
    fn map(self) -> Result<(), String> {
        let Self {
            process,
            go,
            answer,
        } = self;
        let mut answer = File::from(answer);
        let mut text = String::new();
        let done = File::from(go)
            .write_all(b"!")
            .and_then(|()| answer.read_to_string(&mut text));
        while let Err(rustix::io::Errno::INTR) = waitpid(Some(process), WaitOptions::empty()) {}
        match (done, text.strip_prefix('!')) {
            (Ok(_), Some("")) => Ok(()),
            (Ok(_), Some(reason)) => Err(reason.trim().to_owned()),
            _ => Err("the helper that gives ids was killed".to_owned()),
        }
    }
}

/// The helper: waits for the order, which does not come when there is no namespace.
fn help(plan: &Plan, parent: Pid, wait: OwnedFd, say: OwnedFd) {
    if File::from(wait).read_exact(&mut [0; 1]).is_err() {
        return;
    }
    let done = match plan {
        Plan::Programs(found) => run(&found.users, parent, &found.map.users)
            .and_then(|()| run(&found.groups, parent, &found.map.groups)),
        Plan::Own(map) => write(parent, "uid_map", &map.users)
            .and_then(|()| write(parent, "gid_map", &map.groups)),
        Plan::Single(_) => Ok(()),
    };
    let answer = format!("!{}", done.err().unwrap_or_default());
    // The parent takes silence for death.
    drop(File::from(say).write_all(answer.as_bytes()));
}

fn run(program: &Path, parent: Pid, spans: &[Span]) -> Result<(), String> {
    let numbers = spans
        .iter()
        .flat_map(|span| [span.inside, span.outside, span.count]);
    let output = Command::new(program)
        .arg(parent.as_raw_nonzero().to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run `{}`: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(match said.trim() {
        "" => format!("`{}` failed: {}", program.display(), output.status),
        said => said.replace('\n', "; "),
    })
}

fn write(parent: Pid, name: &str, spans: &[Span]) -> Result<(), String> {
    let path = format!("/proc/{}/{name}", parent.as_raw_nonzero());
    let lines = spans
        .iter()
        .map(|span| format!("{} {} {}\n", span.inside, span.outside, span.count));
    fs::write(&path, lines.collect::<String>()).map_err(|error| format!("writing {name}: {error}"))
}
