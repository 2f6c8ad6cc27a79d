//! What the processes of a sandbox tell each other, over one socket: first the specification down,
//! then messages up. A frame is a length (4 bytes, little endian) and JSON.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::mount_points::Points;
use super::oci::Container;
use super::{Exit, ProcessSpec};
use crate::sys::users::UserError;

/// Largest frame; a specification holds at most some scripts and secrets.
const LIMIT: usize = 256 << 20;

/// Most descriptors that come with one frame.
const DESCRIPTORS: usize = 2;

/// From the builder to the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// What is run.
    pub(super) spec: ProcessSpec,
    /// The runtime that runs it, where that is not kiln.
    pub(super) container: Option<Container>,
}

/// From the sandbox to the builder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// Mount points that were made, and may have left something. With it come descriptors: the
    /// step's process and, where it has one, its terminal.
    Points(Points),
    /// The step's program was not started.
    Failed(Failure),
    /// The step's process ended.
    Ended(Exit),
    /// The step's process ended, nothing that could touch its files is left, and kiln's own
    /// processes around it are about to end too.
    Over(Exit),
}

/// Why the step's program was not started. System errors travel as numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Failure {
    /// Something that the sandbox does for every step.
    Setup { act: String, errno: i32 },
    /// A place in the image that cannot be mounted on.
    MountPoint { target: String, errno: i32 },
    /// A path of the host that cannot be mounted.
    MountSource { path: String, errno: i32 },
    /// The working directory.
    Cwd { path: String, errno: i32 },
    /// A resource limit that does not exist.
    Limit { name: String },
    /// A resource limit that may not be had; `most` is the hard limit that there is.
    LimitRefused {
        name: String,
        hard: u64,
        most: u64,
        errno: i32,
    },
    /// The user.
    User(UserFailure),
    /// An id that the user namespace does not have.
    Unmapped {
        kind: IdKind,
        id: u32,
        subordinates: u64,
    },
    /// The program.
    Exec(ExecFailure),
    /// Another runtime that runs it, in its own words.
    Oci { runtime: String, message: String },
}

/// What an id is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum IdKind {
    User,
    Group,
}

/// [`UserError`] in a form that travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UserFailure {
    NoUser(String),
    NoGroup(String),
    Malformed(String),
    PasswdUnreadable(i32),
    GroupUnreadable(i32),
}

/// Why `execve` failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExecFailure {
    /// The program as the step names it.
    pub program: String,
    /// The error.
    pub errno: i32,
    /// Whether there is such a file: then what is missing is its interpreter.
    pub exists: bool,
    /// The instruction set that the file is for, if it is an ELF file.
    pub machine: Option<String>,
}

impl From<UserError> for UserFailure {
    fn from(error: UserError) -> Self {
        match error {
            UserError::NoUser(name) => Self::NoUser(name),
            UserError::NoGroup(name) => Self::NoGroup(name),
            UserError::Malformed(text) => Self::Malformed(text),
            UserError::Unreadable { file, source } => {
                let errno = errno(&source);
                match file {
                    "/etc/group" => Self::GroupUnreadable(errno),
                    _ => Self::PasswdUnreadable(errno),
                }
            }
        }
    }
}

impl From<UserFailure> for UserError {
    fn from(failure: UserFailure) -> Self {
        let unreadable = |file, errno| Self::Unreadable {
            file,
            source: io::Error::from_raw_os_error(errno),
        };
        match failure {
            UserFailure::NoUser(name) => Self::NoUser(name),
            UserFailure::NoGroup(name) => Self::NoGroup(name),
            UserFailure::Malformed(text) => Self::Malformed(text),
            UserFailure::PasswdUnreadable(errno) => unreadable("/etc/passwd", errno),
            UserFailure::GroupUnreadable(errno) => unreadable("/etc/group", errno),
        }
    }
}

/// The number of a system error; those without one are about what was asked for.
pub(super) fn errno(error: &io::Error) -> i32 {
    let fallback = match error.kind() {
        io::ErrorKind::FileTooLarge => libc::EFBIG,
        io::ErrorKind::Unsupported => libc::ENOTSUP,
        _ => libc::EINVAL,
    };
    error.raw_os_error().unwrap_or(fallback)
}

/// Writes one frame, in one piece.
pub(super) fn send(stream: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    stream.write_all(&frame(value)?)
}

/// Writes one frame, with descriptors that arrive no later than its first byte.
pub(super) fn send_with(
    stream: &mut UnixStream,
    value: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let frame = frame(value)?;
    let sent = send_bytes(stream, &frame, descriptors)?;
    stream.write_all(frame.get(sent..).unwrap_or_default())
}

fn send_bytes(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        let parts = [IoSlice::new(bytes)];
        match rustix::net::sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Sends one descriptor, behind the frames that were sent before.
pub(super) fn send_descriptor(stream: &UnixStream, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    send_bytes(stream, &[0], &[descriptor]).map(drop)
}

/// Reads what is there, and the descriptors that came with it.
pub(super) fn read_with(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut impl Extend<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = rustix::net::recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

fn frame(value: &impl Serialize) -> io::Result<Zeroizing<Vec<u8>>> {
    // A specification may hold secrets: no copy of it stays in memory.
    let body = Zeroizing::new(serde_json::to_vec(value)?);
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut frame = Zeroizing::new(Vec::with_capacity(4 + body.len()));
    frame.extend(length.to_le_bytes());
    frame.extend(body.iter());
    Ok(frame)
}

/// Reads one frame.
pub(super) fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = Zeroizing::new(vec![0; frame_length(length)?]);
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

fn frame_length(bytes: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(bytes) as usize;
    if length > LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(length)
}

/// Frames that arrive in pieces.
#[derive(Debug, Default)]
pub(super) struct Frames(Vec<u8>);

impl Frames {
    /// Adds bytes as they arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes the next complete message.
    pub(super) fn next(&mut self) -> io::Result<Option<Message>> {
        let Some((head, rest)) = self.0.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = frame_length(*head)?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body)?;
        self.0.drain(..4 + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut() {
        let messages = [
            Message::Ended(Exit::Code(3)),
            Message::Failed(Failure::Limit {
                name: "nofile".to_owned(),
            }),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            send(&mut bytes, message).unwrap();
        }
        let mut frames = Frames::default();
        let mut received = Vec::new();
        for byte in bytes {
            frames.push(&[byte]);
            received.extend(frames.next().unwrap());
        }
        assert_eq!(received, messages);
    }

    #[test]
    fn an_absurd_length_is_an_error() {
        let mut frames = Frames::default();
        frames.push(&[0xff; 4]);
        assert!(frames.next().is_err());
        assert!(receive::<Message>(&mut &[0xff; 8][..]).is_err());
    }
}
