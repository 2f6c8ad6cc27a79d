//! A single id: users that do not exist, made up for the step.
//!
//! In a user namespace with root alone nobody can change users nor give files away, and most
//! package managers do both. So these system calls of a step are not made but answered, by a
//! process of kiln's beside the sandbox ([`Registrar`]): a changed owner is written down beside the
//! file ([`owner`](crate::sys::owner)) and is what `stat` tells of it, a changed user is remembered for
//! the process that asked, and is what that process is told when it asks who it is.
//!
//! Not made up are permissions: who has changed users may do what root may, and what it makes is the
//! step's user's. A step of another user than root runs in one more namespace, whose one user is
//! that one; all files are its own there, and there are no such calls to be answered.

mod calls;
mod chown;
mod users;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use super::init::Act as _;
use super::message::Failure;
use crate::sys::notify::{self, Reply};
use crate::sys::process::{self, Side};
use crate::sys::users::User;
use calls::Call;

/// Bytes of groups that are told to the registrar: 1024 of them.
const GROUPS: usize = 4096;

/// The process that answers, seen from the keeper; and the way to it, for the step.
#[derive(Debug)]
pub(super) struct Registrar {
    /// The process.
    pub(super) process: Pid,
    /// Where it waits for the listener.
    pub(super) socket: OwnedFd,
}

impl Registrar {
    /// Starts it: a child of this process, in its namespaces. It ends with the last process that it
    /// answers.
    pub(super) fn start() -> io::Result<Self> {
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        match process::fork()? {
            Side::Parent(process) => Ok(Self { process, socket }),
            Side::Child => {
                drop(socket);
                // Nobody is there to be told: what is not answered fails in the step.
                drop(register(theirs));
                process::exit_now()
            }
        }
    }
}

/// Makes the step's user: of its own namespace for another user than root, else answered by the
/// registrar from now on. Afterwards, calls to change users must not be made any more.
pub(super) fn make_up(user: &User) -> Result<(), Failure> {
    if user.uid == 0 {
        return Ok(());
    }
    process::new_namespaces(UnshareFlags::NEWUSER).act("make a namespace for the step's user")?;
    // The right to drop groups is gone already, which the kernel wants for that.
    let write = |name: &str, id: u32| std::fs::write(name, format!("{id} 0 1\n"));
    write("/proc/self/uid_map", user.uid).act("give the step its user")?;
    write("/proc/self/gid_map", user.gid).act("give the step its group")
}

/// Has the calls of this process answered from now on.
pub(super) fn connect(registrar: BorrowedFd<'_>, user: &User) -> Result<(), Failure> {
    let listener = notify::listen(&mut calls::filter()).act("have system calls answered")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let listeners = [listener.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&listeners));
    // The group and the others, which are numbers.
    let groups = [user.gid].into_iter().chain(user.groups.iter().copied());
    let groups = groups.flat_map(u32::to_ne_bytes).take(GROUPS);
    let groups = groups.collect::<Vec<_>>();
    let groups = [IoSlice::new(&groups)];
    loop {
        match sendmsg(registrar, &groups, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).act("have system calls answered"),
        }
    }
}

fn register(socket: OwnedFd) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    process::close_all_but(socket.as_fd())?;
    let Some((listener, groups)) = receive(&socket)? else {
        return Ok(());
    };
    drop(socket);
    let mut registry = Registry {
        owners: chown::Owners::open()?,
        users: users::Users::of_root(&groups),
    };
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().contains(PollFlags::IN) {
            // The last process that has the filter is gone.
            return Ok(());
        }
        match notify::receive(listener.as_fd()) {
            Ok(call) => registry.answer(listener.as_fd(), &call),
            // Killed since, or interrupted.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The listener, and the groups of the step's user.
fn receive(socket: &OwnedFd) -> io::Result<Option<(OwnedFd, Vec<u32>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; GROUPS];
    let length = loop {
        let mut into = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result?.bytes,
        }
    };
    let (groups, _) = bytes.get(..length).unwrap_or_default().as_chunks::<4>();
    let groups = groups.iter().map(|bytes| u32::from_ne_bytes(*bytes));
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok(descriptors
        .next()
        .map(|listener| (listener, groups.collect())))
}

/// What is made up.
#[derive(Debug)]
struct Registry {
    owners: chown::Owners,
    users: users::Users,
}

impl Registry {
    fn answer(&mut self, listener: BorrowedFd<'_>, call: &notify::Call) {
        let is_waiting = || notify::is_waiting(listener, call.id);
        let result = match Call::of(call) {
            Some(Call::Chown(chown)) => self.owners.change(call, &chown, &is_waiting),
            Some(Call::Users(change)) => {
                self.users.answer(call, &change, &self.owners, &is_waiting)
            }
            Some(Call::Stat(stat)) => {
                let reply = self.owners.tell(call, &stat, &is_waiting);
                // Fails only when the process was killed meanwhile.
                drop(notify::answer(listener, call.id, reply));
                return;
            }
            None => Err(Errno::NOSYS),
        };
        let reply = result.map_or_else(Reply::Error, Reply::Value);
        // Fails only when the process was killed meanwhile.
        drop(notify::answer(listener, call.id, reply));
    }
}
