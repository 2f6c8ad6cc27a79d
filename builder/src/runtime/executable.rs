//! Kiln as a helper of its own: a process with another task, on the other end of a socket.
//!
//! The program file of the sandbox is opened in a form that a step cannot write to. A step can make
//! kiln's process show up as `/proc/self/exe` (its program may even be that path) and, once kiln has
//! ended, open the file behind it for writing. That is how a container overwrote its runtime in
//! CVE-2019-5736. So the sandbox is not started from the file itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mount::MountAttrFlags;

use crate::sys::mount;

/// A command that starts kiln with a hidden argument, and the other end of the socket that is its
/// standard input. It ends when that one is closed.
pub(super) fn helper(program: &Path, argument: &str) -> io::Result<(Command, UnixStream)> {
    let (socket, theirs) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .arg0("kiln")
        .arg(argument)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is the builder's to judge.
        .process_group(0);
    Ok((command, socket))
}

/// Opens a program for execution through a read-only mount of its own, or, where the kernel refuses
/// that, as a sealed copy in memory.
pub(super) fn open_sealed(path: &Path) -> io::Result<OwnedFd> {
    read_only(path).or_else(|_| copy(path))
}

fn read_only(path: &Path) -> io::Result<OwnedFd> {
    let mount = mount::clone(rustix::fs::CWD, path)?;
    mount::set_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    Ok(mount)
}

fn copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("kiln", flags)?);
    io::copy(&mut File::open(path)?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(File::open(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_runs_and_cannot_be_written() {
        let program = copy(Path::new("/bin/true")).unwrap();
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        assert!(Command::new(&path).status().unwrap().success());
        assert!(rustix::io::write(&program, b"x").is_err());
        assert!(rustix::fs::ftruncate(&program, 0).is_err());
    }
}
