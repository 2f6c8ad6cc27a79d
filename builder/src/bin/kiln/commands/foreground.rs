//! A process in the foreground: kiln's terminal becomes its terminal, kiln's signals its signals,
//! and its exit code kiln's.

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;

use anyhow::Context as _;
use kiln_builder::runtime::{Attached, Cancel, Exit, Order, Orders, Stream, Streams};
use rustix::termios::{OptionalActions, OutputModes, Termios, Winsize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::report::{Exited, Interrupted};

/// Lines and characters in a line of a terminal that does not say how large it is.
const SIZE: (u16, u16) = (24, 80);
/// What programs end by that write to a pipe which nobody reads.
const BROKEN_PIPE: u8 = 128 + 13;

/// Whether kiln reads from one terminal and writes to one.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// A terminal for the process, as large as kiln's own.
pub(crate) fn terminal() -> Streams {
    let (rows, columns) = size().unwrap_or(SIZE);
    Streams::Terminal { rows, columns }
}

/// The size of kiln's terminal, where it has one.
fn size() -> Option<(u16, u16)> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let known = |size: &Winsize| size.ws_row > 0 && size.ws_col > 0;
    [stdout.as_fd(), stdin.as_fd(), stderr.as_fd()]
        .iter()
        .filter_map(|stream| rustix::termios::tcgetwinsize(stream).ok())
        .find(known)
        .map(|size| (size.ws_row, size.ws_col))
}

/// Runs `work`, which runs a process with what it is given, to its end. With `input` the process
/// reads what kiln reads. Its exit code, unless 0, comes as the error [`Exited`].
pub(crate) fn run(
    cancel: &Cancel,
    streams: Streams,
    input: bool,
    work: impl FnOnce(Attached<'_>, &mut dyn FnMut(Stream, &[u8])) -> anyhow::Result<Exit> + Send,
) -> anyhow::Result<()> {
    let orders = Orders::new()?;
    let terminal = matches!(streams, Streams::Terminal { .. });
    // Restored at the end of this function, however it is left.
    let raw = match (terminal, input) {
        (true, true) => RawMode::of_input(),
        (true, false) => RawMode::of_output(),
        (false, _) => Ok(None),
    };
    let _raw = raw.context("preparing the terminal")?;
    let signals = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let mut broken = None;
    let (killed, result) = std::thread::scope(|scope| {
        let (done, ended) = oneshot::channel::<()>();
        let process = scope.spawn(|| {
            let _done = done;
            let stdin = io::stdin();
            let attached = Attached {
                input: input.then(|| stdin.as_fd()),
                orders: Some(&orders),
            };
            work(attached, &mut |stream, bytes| {
                if broken.is_none()
                    && let Err(error) = write(stream, bytes)
                {
                    // Nobody is interested any more, and the process does not know.
                    broken = Some(error);
                    cancel.cancel();
                }
            })
        });
        let killed = signals.block_on(forward(&orders, cancel, ended, terminal));
        (
            killed,
            process.join().unwrap_or_else(|panic| resume_unwind(panic)),
        )
    });
    match broken {
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            return Err(Exited { code: BROKEN_PIPE }.into());
        }
        Some(error) => return Err(error).context("writing what the process prints"),
        None => {}
    }
    if let Some(signal) = killed? {
        return Err(Interrupted { signal }.into());
    }
    let code = match result? {
        Exit::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    };
    match code {
        0 => Ok(()),
        code => Err(Exited { code }.into()),
    }
}

fn write(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        }
        Stream::Stderr => io::stderr().lock().write_all(bytes),
    }
}

/// The signals that a process gets when kiln gets them.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
}

impl Signals {
    fn watch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next one.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.user1.recv() => SignalKind::user_defined1(),
            _ = self.user2.recv() => SignalKind::user_defined2(),
            _ = self.window.recv() => SignalKind::window_change(),
        }
    }
}

/// Passes signals on until the process has ended. The second request to end is not passed on, it
/// kills: a process may ignore the first. Gives the signal that did so.
async fn forward(
    orders: &Orders,
    cancel: &Cancel,
    mut ended: oneshot::Receiver<()>,
    terminal: bool,
) -> anyhow::Result<Option<u8>> {
    let mut signals = Signals::watch()
        .context("watching for signals")
        .inspect_err(|_| {
            cancel.cancel();
        })?;
    let mut asked = false;
    loop {
        let kind = tokio::select! {
            _ = &mut ended => return Ok(None),
            kind = signals.next() => kind,
        };
        let number = kind.as_raw_value();
        if kind == SignalKind::window_change() {
            if let Some((rows, columns)) = size() {
                orders.give(Order::Size { rows, columns });
            }
            continue;
        }
        let gone = terminal && kind == SignalKind::hangup();
        let ends = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::quit(),
        ];
        if gone || asked && ends.contains(&kind) {
            cancel.cancel();
            drop((&mut ended).await);
            return Ok(u8::try_from(number).ok());
        }
        asked |= ends.contains(&kind);
        orders.give(Order::Signal(number));
    }
}

/// Kiln's terminal while another one is shown in it; as it was before, when this value goes.
pub(super) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Passes every key on.
    pub(super) fn of_input() -> io::Result<Option<Self>> {
        Self::enter(io::stdin().as_fd(), Termios::make_raw)
    }

    /// Shows what comes as it is; keys are still kiln's. Nothing to do where no terminal shows it.
    fn of_output() -> io::Result<Option<Self>> {
        let stdout = io::stdout();
        match stdout.is_terminal() {
            true => Self::enter(stdout.as_fd(), |modes| {
                modes.output_modes.remove(OutputModes::OPOST);
            }),
            false => Ok(None),
        }
    }

    fn enter(
        terminal: BorrowedFd<'_>,
        change: impl FnOnce(&mut Termios),
    ) -> io::Result<Option<Self>> {
        let terminal = terminal.try_clone_to_owned()?;
        let before = rustix::termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        change(&mut raw);
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Fails only when the terminal is gone.
        _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
