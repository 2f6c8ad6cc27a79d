//! What a process reads: copied from kiln's own standard input, which the process never holds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// Copied at once.
const CHUNK: usize = 32 << 10;

/// A copy in progress: at most one piece is held, so that who reads slowly is waited for.
#[derive(Debug, Default)]
pub(super) struct Feed<'a> {
    /// Where from, until it ends.
    pub(super) source: Option<BorrowedFd<'a>>,
    /// Where to, until nobody reads any more. Does not block.
    pub(super) sink: Option<OwnedFd>,
    pending: Vec<u8>,
}

impl<'a> Feed<'a> {
    /// Copies from `source`, once there is a sink.
    pub(super) fn from(source: Option<BorrowedFd<'a>>) -> Self {
        Self {
            source,
            ..Self::default()
        }
    }

    /// What to wait for in the source and in the sink; `other` stands in for what is not there.
    pub(super) fn interest<'b>(&'b self, other: BorrowedFd<'b>) -> [PollFd<'b>; 2] {
        let nothing = || PollFd::from_borrowed_fd(other, PollFlags::empty());
        let source = match (&self.source, &self.sink) {
            (Some(source), Some(_)) if self.pending.is_empty() => {
                PollFd::from_borrowed_fd(*source, PollFlags::IN)
            }
            _ => nothing(),
        };
        let sink = match &self.sink {
            Some(sink) if !self.pending.is_empty() => PollFd::new(sink, PollFlags::OUT),
            _ => nothing(),
        };
        [source, sink]
    }

    /// Reads a piece.
    pub(super) fn read(&mut self) {
        let Some(source) = self.source else {
            return;
        };
        let mut piece = vec![0; CHUNK];
        match rustix::io::read(source, &mut piece[..]) {
            Ok(length) if length > 0 => {
                piece.truncate(length);
                self.pending = piece;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The end; also of a terminal that hung up.
            Ok(_) | Err(_) => self.end(),
        }
    }

    /// Writes what is held, as far as it goes.
    pub(super) fn write(&mut self) {
        let Some(sink) = &self.sink else {
            return;
        };
        match rustix::io::write(sink, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Nobody reads any more; what comes is left to whoever reads kiln's input next.
            Err(_) => {
                self.pending.clear();
                self.end();
            }
        }
    }

    /// The reader sees the end of its input.
    fn end(&mut self) {
        self.source = None;
        self.sink = None;
    }
}

/// A pipe for the input of a process: its end to read from, and ours, which does not block.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(ours.as_fd(), true)?;
    Ok((theirs, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_copied_and_then_the_end() {
        let (source, writer) = rustix::pipe::pipe().unwrap();
        let (theirs, ours) = pipe().unwrap();
        let mut feed = Feed::from(Some(source.as_fd()));
        feed.sink = Some(ours);
        rustix::io::write(&writer, b"some text").unwrap();
        feed.read();
        feed.write();
        drop(writer);
        feed.read();
        assert!(feed.sink.is_none(), "its reader would wait for ever");
        let mut text = [0; 20];
        assert_eq!(rustix::io::read(&theirs, &mut text[..]).unwrap(), 9);
        assert_eq!(&text[..9], b"some text");
        assert_eq!(rustix::io::read(&theirs, &mut text[..]).unwrap(), 0);
    }

    #[test]
    fn a_reader_that_left_ends_the_copy() {
        let (source, writer) = rustix::pipe::pipe().unwrap();
        let (theirs, ours) = pipe().unwrap();
        let mut feed = Feed::from(Some(source.as_fd()));
        feed.sink = Some(ours);
        drop(theirs);
        rustix::io::write(&writer, b"some text").unwrap();
        feed.read();
        feed.write();
        assert!(feed.source.is_none());
    }
}
