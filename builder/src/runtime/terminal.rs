//! The terminal of a process: a pseudoterminal of the sandbox's own, whose other end kiln holds.
//!
//! It comes from the sandbox's `/dev/pts`, not from the host's, so that `tty` names a file that is
//! there, and what the process does to it (`TIOCSTI` for one) never reaches the terminal that kiln
//! itself runs in.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::sys::mount;
use crate::sys::root::Root;

/// Both ends of a pseudoterminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// Kiln's end.
    pub(super) master: OwnedFd,
    /// The end of the process.
    pub(super) slave: OwnedFd,
}

impl Terminal {
    /// Makes a terminal of so many rows and columns in a root whose /dev is mounted, and shows it
    /// as /dev/console.
    pub(super) fn open(root: &Root, rows: u16, columns: u16) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = root.open_at(Path::new("/dev/pts/ptmx"), flags, Mode::empty())?;
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // By descriptor: the name would have to be looked up in the root.
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        resize(&slave, rows, columns)?;
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        let dev = root.open_at(Path::new("/dev"), directory, Mode::empty())?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(&dev, "console", flags, Mode::from_raw_mode(0o600))?;
        let shown = mount::clone(slave.as_fd(), Path::new(""))?;
        mount::attach(shown.as_fd(), place.as_fd())?;
        Ok(Self { master, slave })
    }
}

/// Tells a terminal its size; its processes hear of it from the kernel.
pub(super) fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
