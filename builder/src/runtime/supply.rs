//! Sandboxes that wait to be told what to run.
//!
//! Their processes take as long to make as all else that a short step needs. So while a step runs, those
//! of the next one are made: at most one sandbox is kept in stock.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::pipe::PipeFlags;

use super::server::{Ends, Kind, Server, is_silent};

/// Where sandboxes come from. Dropped, it ends those that still wait.
#[derive(Debug)]
pub(super) struct Supply {
    executable: PathBuf,
    // Goes before the server, which waits for it.
    spare: Mutex<Option<Waiting>>,
    server: Mutex<Option<Server>>,
}

/// A sandbox that waits: the builder's ends of it.
#[derive(Debug)]
pub(super) struct Waiting {
    kind: Kind,
    /// Takes the order, and tells what happens.
    pub(super) control: UnixStream,
    /// What the step prints; reading does not block.
    pub(super) stdout: OwnedFd,
    /// What the step prints as errors; reading does not block.
    pub(super) stderr: OwnedFd,
}

impl Waiting {
    /// Whether it has not failed, nor been killed by somebody who kills what is not theirs.
    fn is_there(&self) -> bool {
        is_silent(&self.control)
    }
}

impl Supply {
    /// A supply whose sandboxes are this program, which is started with the first of them.
    pub(super) fn new(executable: PathBuf) -> Self {
        Self {
            executable,
            spare: Mutex::default(),
            server: Mutex::default(),
        }
    }

    /// One of the same program, with nothing started yet.
    pub(super) fn another(&self) -> Self {
        Self::new(self.executable.clone())
    }

    /// A sandbox of a kind: the one in stock, or a new one.
    pub(super) fn take(&self, kind: Kind) -> io::Result<Waiting> {
        let spare = lock(&self.spare).take();
        let fits = |spare: &Waiting| {
            // One whose server is gone is about to be, too.
            spare.kind == kind && spare.is_there() && self.serves()
        };
        match spare.filter(fits) {
            Some(spare) => Ok(spare),
            None => self.make(kind),
        }
    }

    /// Has one made for the step that may come, unless there is one. Does not wait for it.
    pub(super) fn refill(&self, kind: Kind) {
        let mut spare = lock(&self.spare);
        if spare.is_none() {
            // What is in the way now will be told to the step that comes, if it still is.
            *spare = self.make(kind).ok();
        }
    }

    fn make(&self, kind: Kind) -> io::Result<Waiting> {
        let (control, theirs) = UnixStream::pair()?;
        let (stdout, their_stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        for pipe in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let ends = Ends {
            control: theirs.into(),
            stdout: their_stdout,
            stderr: their_stderr,
        };
        self.split(kind, &ends)?;
        Ok(Waiting {
            kind,
            control,
            stdout,
            stderr,
        })
    }

    fn serves(&self) -> bool {
        lock(&self.server).as_ref().is_some_and(Server::is_there)
    }

    /// Has the server split off a sandbox. A server that somebody killed is started anew.
    fn split(&self, kind: Kind, ends: &Ends) -> io::Result<()> {
        let mut server = lock(&self.server);
        if let Some(running) = &*server {
            match running.split(kind, ends) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                result => return result,
            }
        }
        let started = server.insert(Server::start(&self.executable)?);
        started.split(kind, ends)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
