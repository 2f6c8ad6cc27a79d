//! The processes of a step without namespaces: a keeper, and the step below it.
//!
//! The keeper adopts whatever loses its parent, so that it can find and kill all descendants when
//! the step's first process ends, or when kiln does and the socket closes.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open,
    set_child_subreaper, set_dumpable_behavior, set_parent_process_death_signal,
};

use super::super::init::{self, Act};
use super::super::message::{self, Failure, Message, errno};
use super::super::mount_points::Points;
use super::super::sandbox::{exit, lower_protection};
use super::super::{Exit, ProcessSpec, privileges, program};
use crate::sys::process::{self, Side};
use crate::sys::root::Root;
use crate::sys::users;

/// Runs a step and kills all that it leaves behind.
pub(in crate::runtime) fn keep(
    spec: &ProcessSpec,
    control: &mut UnixStream,
    input: Option<OwnedFd>,
) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // What runs below shall neither read nor trace what its ancestors hold.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    lower_protection()?;
    set_child_subreaper(Some(getpid()))?;
    let keeper = pidfd_open(getpid(), PidfdFlags::empty())?;
    match process::fork()? {
        Side::Child => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The keeper may have died before that line, when there was no signal to get yet.
            let mut fds = [PollFd::new(&keeper, PollFlags::IN)];
            if rustix::event::poll(&mut fds, Some(&Timespec::default()))? != 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let failure = match become_program(spec, control, input.as_ref()) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            message::send(control, &Message::Failed(failure))
        }
        Side::Parent(step) => {
            // Else the builder would never see that nobody reads any more.
            drop(input);
            let ended = watch(control, step)?;
            kill_all()?;
            ended.map_or(Ok(()), |ended| {
                message::send(control, &Message::Over(ended))
            })
        }
    }
}

/// Waits for the end of the step's first process; `None` when the builder closed its end before.
fn watch(control: &UnixStream, step: Pid) -> io::Result<Option<Exit>> {
    let running = pidfd_open(step, PidfdFlags::empty())?;
    let control = control.as_fd();
    loop {
        let mut fds = [
            PollFd::new(&running, PollFlags::IN),
            PollFd::new(&control, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [ended, closed] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            return reap(step).map(Some);
        }
        if closed {
            return Ok(None);
        }
    }
}

fn reap(step: Pid) -> io::Result<Exit> {
    loop {
        match rustix::process::waitpid(Some(step), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(exit) = exit(status) {
                    return Ok(exit);
                }
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills all descendants: each child, and then those that it leaves to this process, until there are
/// none.
fn kill_all() -> io::Result<()> {
    loop {
        for child in children()? {
            match kill_process(child, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                Err(Errno::CHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The children of this process. Not all kernels list them in one file.
fn children() -> io::Result<Vec<Pid>> {
    let own = getpid().as_raw_nonzero().get();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        if parent(&stat) == Some(own) {
            children.extend(Pid::from_raw(process));
        }
    }
    Ok(children)
}

/// The parent that a line of `/proc/PID/stat` names; the program's name before it may hold
/// anything.
fn parent(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn become_program(
    spec: &ProcessSpec,
    control: &mut UnixStream,
    input: Option<&OwnedFd>,
) -> Result<Infallible, Failure> {
    // Until the program starts, modes are as written.
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().act("start a session")?;
    for procs in &spec.cgroups {
        // Zero is the writer.
        fs::write(procs, "0").act("enter the control group of the step")?;
    }
    let root = Root::open(spec.root.files.writable()).act("open the root file system")?;
    let user = users::resolve(&root, &spec.user).map_err(|error| Failure::User(error.into()))?;
    init::check_ids(spec, &user)?;
    let cwd = init::make_cwd(&root, &spec.cwd, &user).map_err(|error| Failure::Cwd {
        path: spec.cwd.clone(),
        errno: errno(&error),
    })?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).act("open `/dev/null`")?;
    init::report(control, Points::default(), None).act("report the process")?;
    rustix::process::fchdir(&root)
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::fchdir(&cwd))
        .act("change the root directory")?;
    init::connect_streams(input, &null, &user).act("connect the standard streams")?;
    drop((root, cwd, null));
    privileges::drop_to(spec, &user, None)?;
    // A change of the user has taken it away.
    set_parent_process_death_signal(Some(Signal::KILL)).act("bind the process to its parent")?;
    program::exec(spec, &user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_hide_whose_child_a_process_is() {
        assert_eq!(parent("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a) S 1 (b) R 9 12"), Some(9));
        assert_eq!(parent(""), None);
    }
}
