//! The processes between kiln and the step.
//!
//! ```text
//! kiln ── server ── keeper ── outer init ── the step, PID 1 of its own namespace
//!                   in the     PID 1 of a
//!                   host's     namespace
//!                   namespaces around it
//! ```
//!
//! When the step's first process ends, the kernel ends its namespace. When kiln ends, however it
//! ends, the keeper sees its socket close and kills the outer init, and with that everything below
//! dies: a process cannot leave a namespace, while a death signal is lost by the first program
//! with a set-user-id bit. None of them knows what is run but the last, which waits to be told and may
//! be there long before. When the keeper is killed, the outer init, which never changes its user
//! nor its program, gets a death signal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open,
    pidfd_send_signal, set_dumpable_behavior, set_parent_process_death_signal, waitpid,
};
use rustix::thread::UnshareFlags;

use super::init::Given;
use super::message::{self, Failure, Message, Order, errno};
use super::server::{self, Ends, Kind};
use super::single::Registrar;
use super::{Exit, Streams, chroot, init, oci};
use crate::sys::owner;
use crate::sys::process::{self, Side};

/// Becomes a sandbox: `main` calls it first of all when its first argument is
/// [`INIT_ARGUMENT`](super::INIT_ARGUMENT). Standard input is the socket on which the builder orders
/// sandboxes.
#[must_use]
pub fn sandbox_main() -> ExitCode {
    if let Some(owners) = std::env::args_os().nth(2) {
        owner::open_table(Path::new(&owners));
    }
    let done = server::serve(rustix::stdio::stdin()).and_then(|split| {
        let Some((kind, ends)) = split else {
            return Ok(());
        };
        let mut control = take_ends(ends)?;
        let kept = match kind {
            Kind::Chroot => receive_order(&mut control)
                .and_then(|(order, input)| chroot::keep(&order.spec, &mut control, input)),
            Kind::Namespaces => keep(&mut control, None),
            Kind::Single => {
                Registrar::start().and_then(|registrar| keep(&mut control, Some(registrar)))
            }
        };
        kept.or_else(|error| report(&mut control, "start the sandbox", &error))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // There is nobody to tell: the socket is what failed.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Waits for what is to be run, and for the end of a pipe that the step reads from, where it reads
/// what kiln does.
fn receive_order(control: &mut UnixStream) -> io::Result<(Order, Option<OwnedFd>)> {
    let order: Order = message::receive(control)?;
    if order.spec.streams != Streams::Input {
        return Ok((order, None));
    }
    let mut received = Vec::new();
    message::read_with(control, &mut [0], &mut received)?;
    let input = received.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((order, Some(input)))
}

fn report(control: &mut UnixStream, act: &str, error: &io::Error) -> io::Result<()> {
    let failure = Failure::Setup {
        act: act.to_owned(),
        errno: errno(error),
    };
    message::send(control, &Message::Failed(failure))
}

/// Takes the ends of this sandbox for its own and closes whatever else was inherited.
fn take_ends(ends: Ends) -> io::Result<UnixStream> {
    let Ends {
        control,
        stdout,
        stderr,
    } = ends;
    rustix::stdio::dup2_stdout(&stdout)?;
    rustix::stdio::dup2_stderr(&stderr)?;
    drop((stdout, stderr));
    let nothing = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    drop(nothing);
    process::close_all_but(control.as_fd())?;
    Ok(UnixStream::from(control))
}

/// The keeper: lives in the host's namespaces until the sandbox is gone.
fn keep(control: &mut UnixStream, registrar: Option<Registrar>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // What runs below shall neither read nor trace what its ancestors hold.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    lower_protection()?;
    let keeper = pidfd_open(getpid(), PidfdFlags::empty())?;
    process::new_namespaces(UnshareFlags::NEWPID)?;
    let (given, registrar) = match registrar {
        Some(Registrar { process, socket }) => (Some(socket), Some(process)),
        None => (None, None),
    };
    let watched = match process::fork()? {
        Side::Child => return outer_init(control, &keeper, given),
        Side::Parent(outer) => {
            drop(given);
            watch(control.as_fd(), outer)
        }
    };
    if let Some(registrar) = registrar {
        // It ends by itself; whatever held it up is over.
        _ = rustix::process::kill_process(registrar, Signal::KILL);
        wait(registrar)?;
    }
    watched
}

/// A step does not inherit the builder's protection from the out-of-memory killer.
pub(super) fn lower_protection() -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(path)?;
    if score.starts_with('-') {
        std::fs::write(path, "0")?;
    }
    Ok(())
}

/// Waits for the end of the sandbox, and brings it about when the builder closes its end.
fn watch(control: BorrowedFd<'_>, outer: Pid) -> io::Result<()> {
    let sandbox = pidfd_open(outer, PidfdFlags::empty())?;
    loop {
        let mut fds = [
            // What comes there is for the step.
            PollFd::new(&control, PollFlags::RDHUP),
            PollFd::new(&sandbox, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Harmless when it has ended already: it is still to be waited for.
    _ = pidfd_send_signal(&sandbox, Signal::KILL);
    wait(outer).map(drop)
}

/// PID 1 of the namespace around the step's.
fn outer_init(
    control: &mut UnixStream,
    keeper: &OwnedFd,
    registrar: Option<OwnedFd>,
) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The keeper may have died before that line, when there was no signal to get yet.
    let mut fds = [PollFd::new(keeper, PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&Timespec::default()))? != 0 {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    process::new_namespaces(UnshareFlags::NEWPID)?;
    match process::fork()? {
        Side::Child => {
            let (Order { spec, container }, input) = receive_order(control)?;
            if let Some(container) = container {
                return oci::run(&spec, &container, control, input.as_ref());
            }
            let failure = init::run(&spec, control, &Given { input, registrar });
            message::send(control, &Message::Failed(failure))
        }
        Side::Parent(step) => {
            let made_up = registrar.is_some();
            drop(registrar);
            let exit = wait(step)?;
            let said = match made_up {
                // The registrar may still write down an owner that a killed process has changed.
                true => Message::Ended(exit),
                false => Message::Over(exit),
            };
            message::send(control, &said)
        }
    }
}

fn wait(process: Pid) -> io::Result<Exit> {
    loop {
        match waitpid(Some(process), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(exit) = exit(status) {
                    return Ok(exit);
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn exit(status: WaitStatus) -> Option<Exit> {
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}
