//! kiln's own runtime core, seen from the builder.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::chroot::{self, COVERED, Covers};
use super::feed::{self, Feed};
use super::message::{self, Frames, Message};
use super::mount_points::{self, Points};
use super::server::Kind;
use super::supply::{Supply, Waiting};
use super::{
    Cancel, Exit, Isolation, Order, Orders, ProcessSpec, Root, RuntimeError, Stream, Streams, oci,
    terminal,
};

/// Read from a pipe at once: what the kernel keeps in one.
const CHUNK: usize = 64 << 10;

/// Directory in [`Root::work`] for what a step writes to views that forget it.
pub(super) const SCRATCH: &str = "scratch";

/// What a run leaves in [`Root::work`], to be removed: the first two are overlayfs's own.
const LEFT: [&str; 5] = [
    "work",
    "incompat",
    SCRATCH,
    mount_points::NEW_LAYER,
    COVERED,
];

/// What connects a process to whoever runs it in the foreground.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attached<'a> {
    /// What it reads, with [`Streams::Input`] and [`Streams::Terminal`]; nothing otherwise.
    pub input: Option<BorrowedFd<'a>>,
    /// Signals for it and sizes of its terminal.
    pub orders: Option<&'a Orders>,
}

/// The native runtime core. Clones share the process that their sandboxes come from, which is
/// started with the first of them.
///
/// While a step runs, the processes of the next one's sandbox are made, so that it has only to be told
/// what to run.
#[derive(Clone, Debug)]
pub struct Native(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    supply: Supply,
    /// What runs the process in the sandbox, where that is not kiln.
    runtime: Option<oci::Program>,
}

impl Default for Native {
    /// The runtime core whose sandbox is the running program itself.
    fn default() -> Self {
        Self::new(PathBuf::from("/proc/self/exe"))
    }
}

impl Native {
    /// A runtime core with this program as the sandbox: its `main` calls
    /// [`sandbox_main`](super::sandbox_main) when [`INIT_ARGUMENT`](super::INIT_ARGUMENT) is its
    /// first argument.
    #[must_use]
    pub fn new(executable: PathBuf) -> Self {
        Self(Arc::new(Shared {
            supply: Supply::new(executable),
            runtime: None,
        }))
    }

    /// The same with another runtime in its sandboxes.
    #[must_use]
    pub fn with_runtime(&self, runtime: oci::Program) -> Self {
        Self(Arc::new(Shared {
            supply: self.0.supply.another(),
            runtime: Some(runtime),
        }))
    }

    /// The container that a process is run in, with another runtime.
    fn container(&self, spec: &ProcessSpec) -> Result<Option<oci::Container>, RuntimeError> {
        let Some(runtime) = &self.0.runtime else {
            return Ok(None);
        };
        runtime.check(spec)?;
        let container = oci::Container::new(runtime.clone());
        container.map(Some).map_err(RuntimeError::Start)
    }

    /// Runs a process to its end and hands over what it prints, as it comes. Blocks meanwhile.
    /// When it returns, all processes of the step are gone, whatever the result; only when the
    /// sandbox was killed from outside ([`RuntimeError::Lost`]) the kernel may still be at it. Those of
    /// the sandbox around them are gone when the runtime core is dropped.
    ///
    /// [`Root::work`] is used for scratch and empty again afterwards; the writable directory of
    /// [`Root::files`] holds what the process changed, in the form of overlayfs where it is one, and
    /// nothing of the runtime's own (B1.6).
    ///
    /// # Errors
    /// [`RuntimeError`] when the process was not started, was cancelled, or its end is not known.
    pub fn run(
        &self,
        spec: &ProcessSpec,
        output: &mut dyn FnMut(Stream, &[u8]),
        cancel: &Cancel,
    ) -> Result<Exit, RuntimeError> {
        self.run_attached(spec, Attached::default(), output, cancel)
    }

    /// Like [`Self::run`], for a process in the foreground: it reads what kiln reads, and gets
    /// signals. What a terminal shows comes as standard output.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub fn run_attached(
        &self,
        spec: &ProcessSpec,
        attached: Attached<'_>,
        output: &mut dyn FnMut(Stream, &[u8]),
        cancel: &Cancel,
    ) -> Result<Exit, RuntimeError> {
        if spec.args.is_empty() {
            return Err(RuntimeError::NoProgram);
        }
        if cancel.is_cancelled() {
            return Err(RuntimeError::Cancelled);
        }
        let container = self.container(spec)?;
        // What a run that was killed has left.
        remove_work(&spec.root)?;
        let mut covers = match spec.isolation {
            Isolation::Chroot => {
                chroot::check(spec)?;
                Some(Covers::put(spec)?)
            }
            Isolation::Root | Isolation::Rootless(_) => None,
        };
        for note in covers.iter().flat_map(|covers| &covers.notes) {
            output(Stream::Stderr, format!("note: {note}\n").as_bytes());
        }
        let kind = Kind::of(spec.isolation);
        let waiting = self.0.supply.take(kind).map_err(RuntimeError::Start)?;
        let mut sandbox = Sandbox::new(waiting, attached);
        let supervised = sandbox.order(spec, container.as_ref()).and_then(|()| {
            self.0.supply.refill(kind);
            sandbox.supervise(output, cancel)
        });
        let ended = sandbox.end(output);
        if let Some(container) = &container {
            container.clean(spec);
        }
        let uncovered = covers.as_mut().map_or(Ok(()), Covers::remove);
        drop(covers);
        let cleaned = uncovered
            .map_err(|source| RuntimeError::Clean {
                path: spec.root.files.writable().to_owned(),
                source,
            })
            .and_then(|()| clean(&spec.root, &sandbox.points));
        supervised.and(ended).map_err(RuntimeError::Start)?;
        let exit = match sandbox.result {
            _ if cancel.is_cancelled() => return Err(RuntimeError::Cancelled),
            Some(result) => result?,
            None => return Err(RuntimeError::Lost),
        };
        cleaned.map(|()| exit)
    }
}

fn remove_work(root: &Root) -> Result<(), RuntimeError> {
    for name in LEFT {
        let path = root.work.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RuntimeError::Clean {
                    path,
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes out of the root what the run itself put there (B1.6).
fn clean(root: &Root, points: &Points) -> Result<(), RuntimeError> {
    let writable = root.files.writable();
    mount_points::clean(writable, root.files.lowers(), points).map_err(|source| {
        RuntimeError::Clean {
            path: writable.to_owned(),
            source,
        }
    })?;
    remove_work(root)
}

/// A running sandbox.
struct Sandbox<'a> {
    control: UnixStream,
    frames: Frames,
    /// Descriptors that came, and whose message was not read yet.
    received: VecDeque<OwnedFd>,
    /// Standard output and error, and the terminal.
    outputs: [Output; 3],
    feed: Feed<'a>,
    orders: Option<&'a Orders>,
    /// Those that came before there was anybody to take them.
    waiting: VecDeque<Order>,
    /// The step's process, once there is one.
    process: Option<OwnedFd>,
    points: Points,
    result: Option<Result<Exit, RuntimeError>>,
    /// The step is gone whole; kiln's own processes need not be waited for.
    over: bool,
}

struct Output {
    stream: Stream,
    pipe: Option<OwnedFd>,
}

impl<'a> Sandbox<'a> {
    fn new(waiting: Waiting, attached: Attached<'a>) -> Self {
        let output = |stream, pipe| Output { stream, pipe };
        Self {
            control: waiting.control,
            frames: Frames::default(),
            received: VecDeque::new(),
            outputs: [
                output(Stream::Stdout, Some(waiting.stdout)),
                output(Stream::Stderr, Some(waiting.stderr)),
                output(Stream::Stdout, None),
            ],
            feed: Feed::from(attached.input),
            orders: attached.orders,
            waiting: VecDeque::new(),
            process: None,
            points: Points::default(),
            result: None,
            over: false,
        }
    }

    /// Hands over what is to be run.
    fn order(&mut self, spec: &ProcessSpec, container: Option<&oci::Container>) -> io::Result<()> {
        let order = message::Order {
            spec: spec.clone(),
            container: container.cloned(),
        };
        message::send(&mut self.control, &order)?;
        if spec.streams == Streams::Input {
            let (theirs, ours) = feed::pipe()?;
            message::send_descriptor(&self.control, theirs.as_fd())?;
            // Without a source the end is there at once.
            self.feed.sink = self.feed.source.is_some().then_some(ours);
        }
        Ok(())
    }

    /// Listens until the step is over or the sandbox closes its socket.
    fn supervise(
        &mut self,
        output: &mut dyn FnMut(Stream, &[u8]),
        cancel: &Cancel,
    ) -> io::Result<()> {
        loop {
            let ready = self.wait(cancel)?;
            if ready.cancelled {
                return Ok(());
            }
            if ready.source {
                self.feed.read();
            }
            if ready.sink {
                self.feed.write();
            }
            if ready.orders {
                self.obey();
            }
            for (output_of, ready) in self.outputs.iter_mut().zip(ready.outputs) {
                if ready {
                    output_of.forward(output)?;
                }
            }
            if ready.control && !self.listen()? {
                return Ok(());
            }
        }
    }

    fn wait(&self, cancel: &Cancel) -> io::Result<Ready> {
        let [out, err, terminal] = &self.outputs;
        let token = cancel.as_fd();
        let [source, sink] = self.feed.interest(token);
        let mut fds = [
            PollFd::new(&self.control, PollFlags::IN),
            PollFd::from_borrowed_fd(token, PollFlags::IN),
            out.interest(token),
            err.interest(token),
            terminal.interest(token),
            source,
            sink,
            match self.orders {
                Some(orders) => PollFd::new(orders, PollFlags::IN),
                None => PollFd::from_borrowed_fd(token, PollFlags::empty()),
            },
        ];
        loop {
            match rustix::event::poll(&mut fds, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let [control, cancelled, out, err, terminal, source, sink, orders] =
            fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            control,
            cancelled,
            outputs: [out, err, terminal],
            source,
            sink,
            orders,
        })
    }

    /// Reads what the sandbox says. Tells whether more is to be waited for.
    fn listen(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let length = match message::read_with(&self.control, &mut buffer, &mut self.received) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            // A killed sandbox leaves what it has not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            result => result?,
        };
        self.frames.push(buffer.get(..length).unwrap_or_default());
        while let Some(message) = self.frames.next()? {
            match message {
                Message::Points(points) => {
                    self.points = points;
                    self.process = self.received.pop_front();
                    if let Some(terminal) = self.received.pop_front() {
                        self.connect(terminal)?;
                    }
                    self.obey();
                }
                Message::Failed(failure) => self.result = Some(Err(failure.into())),
                // Why the program was not started says more than how its process ended.
                Message::Ended(exit) => {
                    self.result.get_or_insert(Ok(exit));
                }
                Message::Over(exit) => {
                    self.result.get_or_insert(Ok(exit));
                    self.over = true;
                }
            }
        }
        Ok(length > 0 && !self.over)
    }

    /// Shows what the process writes to its terminal, and types what kiln reads.
    fn connect(&mut self, terminal: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&terminal, true)?;
        self.feed.sink = match self.feed.source {
            Some(_) => Some(terminal.try_clone()?),
            None => None,
        };
        self.outputs[2].pipe = Some(terminal);
        Ok(())
    }

    /// Does what it was told, once the process is there that it is about.
    fn obey(&mut self) {
        self.waiting
            .extend(self.orders.map(Orders::take).unwrap_or_default());
        let Some(process) = &self.process else {
            return;
        };
        for order in self.waiting.drain(..) {
            // Fails only when the process has ended, or its terminal is gone.
            match order {
                Order::Signal(number) => {
                    if let Some(signal) = Signal::from_named_raw(number) {
                        _ = pidfd_send_signal(process, signal);
                    }
                }
                Order::Size { rows, columns } => {
                    if let Some(terminal) = &self.outputs[2].pipe {
                        drop(terminal::resize(terminal, rows, columns));
                    }
                }
            }
        }
    }

    /// Ends the sandbox if it has not ended, and hands over what is left in its pipes.
    fn end(&mut self, output: &mut dyn FnMut(Stream, &[u8])) -> io::Result<()> {
        // The keeper takes that as the order to kill. It ends after everything else has, and with
        // it the last one that holds the socket.
        drop(self.control.shutdown(Shutdown::Write));
        while !self.over && self.listen()? {}
        for left in &mut self.outputs {
            while left.forward(output)? {}
        }
        Ok(())
    }
}

/// What [`Sandbox::wait`] found.
struct Ready {
    control: bool,
    cancelled: bool,
    outputs: [bool; 3],
    source: bool,
    sink: bool,
    orders: bool,
}

impl Output {
    /// What to wait for; a closed pipe would always be ready, so that another descriptor stands in.
    fn interest<'a>(&'a self, other: BorrowedFd<'a>) -> PollFd<'a> {
        match &self.pipe {
            Some(pipe) => PollFd::new(pipe, PollFlags::IN),
            None => PollFd::from_borrowed_fd(other, PollFlags::empty()),
        }
    }

    /// Hands over what is in the pipe. Tells whether there may be more.
    fn forward(&mut self, output: &mut dyn FnMut(Stream, &[u8])) -> io::Result<bool> {
        let Some(pipe) = &self.pipe else {
            return Ok(false);
        };
        let mut buffer = vec![0; CHUNK];
        match rustix::io::read(pipe, &mut buffer[..]) {
            // A terminal that nobody has open any more fails to be read.
            Ok(0) | Err(Errno::IO) => {
                self.pipe = None;
                Ok(false)
            }
            Ok(length) => {
                output(self.stream, buffer.get(..length).unwrap_or_default());
                Ok(true)
            }
            Err(Errno::INTR) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
