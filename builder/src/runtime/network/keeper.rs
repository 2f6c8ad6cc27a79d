//! The processes behind a network namespace.
//!
//! ```text
//! kiln ── keeper ─┬ holder   PID 1 of a namespace of process ids, alone in the network namespace
//!                 └ pasta    in the host's network, goes to the background
//! ```
//!
//! When kiln ends, however it ends, the keeper sees its socket close and kills the holder, and with
//! it the kernel kills `pasta`. When the keeper is killed, the holder gets a death signal. When
//! `pasta` ends, the holder ends, and the keeper: kiln sees that the namespace is of no use.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, wait,
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};
use serde::{Deserialize, Serialize};

use super::{NETWORK_ARGUMENT, NetworkError, pasta};
use crate::runtime::executable;
use crate::runtime::message::{self, errno};
use crate::sys::loopback;
use crate::sys::process::{self, Side};

/// How long `pasta` may take, seconds.
const PATIENCE: u64 = 20;
/// How much is read of what it prints, bytes.
const PRINTED: u64 = 64 << 10;

/// From the keeper to kiln.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The namespace is ready; this process is in it.
    Ready(u32),
    /// `pasta` ended with an error.
    Refused(String),
    /// A system call failed.
    Failed(i32),
}

/// A network namespace with a way out, for as long as this value lives.
#[derive(Debug)]
pub(super) struct Namespace {
    keeper: Child,
    control: UnixStream,
    file: Option<OwnedFd>,
}

impl Namespace {
    /// Starts the keeper, and waits until the namespace is ready.
    pub(super) fn start(executable: &Path, pasta: &Path) -> Result<Self, NetworkError> {
        let (mut command, control) =
            executable::helper(executable, NETWORK_ARGUMENT).map_err(NetworkError::Keeper)?;
        let keeper = command.spawn().map_err(NetworkError::Keeper)?;
        // From here on, dropping it ends the keeper.
        let mut namespace = Self {
            keeper,
            control,
            file: None,
        };
        match namespace.converse(pasta) {
            Ok(Answer::Ready(holder)) => {
                let file = File::open(format!("/proc/{holder}/ns/net"));
                namespace.file = Some(file.map_err(NetworkError::Namespace)?.into());
                Ok(namespace)
            }
            Ok(Answer::Refused(reason)) => Err(NetworkError::Refused(reason)),
            Ok(Answer::Failed(number)) => Err(NetworkError::Namespace(
                io::Error::from_raw_os_error(number),
            )),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(NetworkError::Slow(PATIENCE))
            }
            Err(error) => Err(NetworkError::Keeper(error)),
        }
    }

    fn converse(&mut self, pasta: &Path) -> io::Result<Answer> {
        let patience = Some(Duration::from_secs(PATIENCE));
        self.control.set_read_timeout(patience)?;
        message::send(&mut self.control, &pasta)?;
        message::receive(&mut self.control)
    }

    /// Whether its keeper lives, and with it `pasta`.
    pub(super) fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
        // The keeper says nothing more: what there is to read is the end.
        matches!(
            rustix::event::poll(&mut fds, Some(&Timespec::default())),
            Ok(0)
        )
    }

    /// The file that stands for it. It is kiln's own descriptor, so that it cannot come to mean
    /// another namespace.
    pub(super) fn path(&self) -> PathBuf {
        let number = self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.control.shutdown(Shutdown::Both));
        drop(self.keeper.wait());
    }
}

/// Becomes the keeper of a network namespace: `main` calls it when its first argument is
/// [`NETWORK_ARGUMENT`]. Standard input is the socket to kiln.
#[must_use]
pub fn network_main() -> ExitCode {
    let done = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(io::Error::from)
        .and_then(|control| {
            let mut control = UnixStream::from(control);
            process::close_all_but(std::os::fd::AsFd::as_fd(&control))?;
            let program: PathBuf = message::receive(&mut control)?;
            keep(&program, &mut control)
                .or_else(|error| message::send(&mut control, &Answer::Failed(errno(&error))))
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // There is nobody to tell: the socket is what failed.
        Err(_) => ExitCode::FAILURE,
    }
}

fn keep(program: &Path, control: &mut UnixStream) -> io::Result<()> {
    let keeper = pidfd_open(getpid(), PidfdFlags::empty())?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    // All further children of this process are in the holder's namespace of process ids.
    process::new_namespaces(UnshareFlags::NEWPID)?;
    let holder = match process::fork()? {
        Side::Child => {
            drop(ours);
            // The keeper sees that it ended, and tells.
            drop(hold(&keeper, &mut theirs));
            return Ok(());
        }
        Side::Parent(holder) => Holder(holder),
    };
    drop(theirs);
    let mut ready = [0; 5];
    ours.read_exact(&mut ready)?;
    let [0, ..] = ready else {
        let [_, number @ ..] = ready;
        return Err(io::Error::from_raw_os_error(i32::from_le_bytes(number)));
    };
    let number = holder.0.as_raw_nonzero().get();
    let mut printed = File::from(rustix::fs::memfd_create("pasta", MemfdFlags::CLOEXEC)?);
    let mut child = Command::new(program)
        .args(pasta::arguments(&format!("/proc/{number}/ns/net")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(printed.try_clone()?)
        .spawn()?;
    let id = i32::try_from(child.id()).map_err(io::Error::other)?;
    let id = Pid::from_raw(id).ok_or(io::ErrorKind::InvalidData)?;
    if either(control, &pidfd_open(id, PidfdFlags::empty())?)? {
        // Kiln does not want it any more.
        return Ok(());
    }
    if !child.wait()?.success() {
        let mut text = Vec::new();
        printed.rewind()?;
        printed.take(PRINTED).read_to_end(&mut text)?;
        let reason = pasta::reason(&String::from_utf8_lossy(&text));
        return message::send(control, &Answer::Refused(reason));
    }
    // From now on the holder has the one that is in the background for a child.
    ours.write_all(&[0])?;
    message::send(control, &Answer::Ready(number.unsigned_abs()))?;
    either(control, &pidfd_open(holder.0, PidfdFlags::empty())?).map(drop)
}

/// Waits for the first of two ends; tells whether it is kiln's.
fn either(control: &UnixStream, process: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(control, PollFlags::IN),
            PollFd::new(process, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The holder, which dies with this value.
struct Holder(Pid);

impl Drop for Holder {
    fn drop(&mut self) {
        // Harmless when it has ended already: it is still to be waited for.
        if let Ok(process) = pidfd_open(self.0, PidfdFlags::empty()) {
            _ = pidfd_send_signal(&process, Signal::KILL);
        }
        // The kernel lets it go only when all of its namespace are reaped, and a `pasta` that is not
        // in the background yet is this process's to reap.
        loop {
            match wait(WaitOptions::empty()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// Makes the network namespace, and gives up all rights: `pasta`, which has few, may only look into
/// processes that have no more.
fn make_namespace() -> io::Result<()> {
    process::new_namespaces(UnshareFlags::NEWNET)?;
    loopback::up()?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, none)?)
}

/// The first process of its namespace; lives until `pasta` has ended.
fn hold(keeper: &OwnedFd, control: &mut UnixStream) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The keeper may have died before that line, when there was no signal to get yet.
    let mut fds = [PollFd::new(keeper, PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&Timespec::default()))? != 0 {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let made = make_namespace();
    let number = made.as_ref().err().map_or(0, errno);
    let [a, b, c, d] = number.to_le_bytes();
    control.write_all(&[u8::from(made.is_err()), a, b, c, d])?;
    control.read_exact(&mut [0])?;
    // Whoever ends first is `pasta`: there is no other.
    loop {
        match wait(WaitOptions::empty()) {
            Err(Errno::INTR) => {}
            _ => return Ok(()),
        }
    }
}
