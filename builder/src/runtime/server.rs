//! The process that all sandboxes of a kiln come from.
//!
//! Starting a program as large as kiln takes longer than all that a sandbox does, so it is started
//! once: this process waits, with a single thread and hardly any memory of its own, and splits for
//! each sandbox. A message to it is a byte, the [`Kind`], and three descriptors: the new sandbox's
//! control socket, and what its standard output and error are. It ends when kiln does, because its own
//! socket closes then.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::WaitOptions;

use super::message::{self, Failure, Message};
use super::{INIT_ARGUMENT, Ids, Isolation, executable, seccomp};
use crate::sys::owner;
use crate::sys::process::{self, Side};

/// Descriptors in a message: control socket, standard output, standard error.
const DESCRIPTORS: usize = 3;

/// What processes a sandbox is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keeper, and the step in namespaces of its own.
    Namespaces,
    /// The same with a registrar, which makes users up.
    Single,
    /// A keeper, and the step beside it.
    Chroot,
}

impl Kind {
    /// The processes for a level of isolation.
    pub(super) fn of(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Root | Isolation::Rootless(Ids::Range) => Self::Namespaces,
            Isolation::Rootless(Ids::Single) => Self::Single,
            Isolation::Chroot => Self::Chroot,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Namespaces => b'n',
            Self::Single => b's',
            Self::Chroot => b'c',
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let kinds = [Self::Namespaces, Self::Single, Self::Chroot];
        kinds.into_iter().find(|kind| kind.byte() == byte)
    }
}

/// The descriptors of a new sandbox, its own ends.
pub(super) struct Ends {
    /// To the builder.
    pub(super) control: OwnedFd,
    /// Standard output of the step.
    pub(super) stdout: OwnedFd,
    /// Standard error of the step.
    pub(super) stderr: OwnedFd,
}

/// The server, seen from the builder. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    socket: UnixStream,
}

impl Server {
    /// Starts it.
    pub(super) fn start(executable: &Path) -> io::Result<Self> {
        let program = executable::open_sealed(executable)?;
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        let (mut command, socket) = executable::helper(Path::new(&path), INIT_ARGUMENT)?;
        let child = command.args(owner::table()).spawn()?;
        Ok(Self { child, socket })
    }

    /// Whether nobody has killed it. Its sandboxes end after it.
    pub(super) fn is_there(&self) -> bool {
        is_silent(&self.socket)
    }

    /// Has it split off a sandbox of a kind with these ends.
    ///
    /// # Errors
    /// `EPIPE` or `ECONNRESET` when the server is gone.
    pub(super) fn split(&self, kind: Kind, ends: &Ends) -> io::Result<()> {
        let descriptors = [&ends.control, &ends.stdout, &ends.stderr].map(AsFd::as_fd);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        loop {
            let byte = [kind.byte()];
            match sendmsg(
                &self.socket,
                &[IoSlice::new(&byte)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Err(Errno::INTR) => {}
                result => return Ok(result.map(drop)?),
            }
        }
    }
}

/// Whether a socket has neither something to read nor an end.
pub(super) fn is_silent(socket: &UnixStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())) == Ok(0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closing is the order to end; what cannot be shut down is closed already.
        drop(self.socket.shutdown(std::net::Shutdown::Both));
        drop(self.child.wait());
    }
}

/// Waits for orders on a socket and splits for each one. Returns in the new process, with its
/// ends; in the server itself `None` when the builder is gone, and all sandboxes with it.
pub(super) fn serve(socket: BorrowedFd<'_>) -> io::Result<Option<(Kind, Ends)>> {
    // What every sandbox needs and takes time to make is made before there are any.
    seccomp::prepare();
    loop {
        let Some((kind, ends)) = receive(socket)? else {
            // Each has seen its own socket close, or is at its end.
            reap(WaitOptions::empty());
            return Ok(None);
        };
        reap(WaitOptions::NOHANG);
        match process::fork() {
            Ok(Side::Child) => return Ok(Some((kind, ends))),
            Ok(Side::Parent(_)) => {}
            Err(error) => {
                let failure = Failure::Setup {
                    act: "split off a process for the sandbox".to_owned(),
                    errno: message::errno(&error),
                };
                // Fails when the builder has lost interest.
                let mut control = UnixStream::from(ends.control);
                drop(message::send(&mut control, &Message::Failed(failure)));
            }
        }
    }
}

/// Forgets sandboxes that have ended, or waits for the end of all.
fn reap(options: WaitOptions) {
    while let Ok(Some(_)) | Err(Errno::INTR) = rustix::process::wait(options) {}
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Kind, Ends)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let length = loop {
        let mut into = [IoSliceMut::new(&mut byte)];
        match recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result?.bytes,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let ends = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors).ok();
    let [control, stdout, stderr] = ends.ok_or(io::ErrorKind::InvalidData)?;
    let kind = Kind::from_byte(byte[0]).ok_or(io::ErrorKind::InvalidData)?;
    let ends = Ends {
        control,
        stdout,
        stderr,
    };
    Ok(Some((kind, ends)))
}
