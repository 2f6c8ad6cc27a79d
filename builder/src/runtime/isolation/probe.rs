//! What this process may do, tried in a child that is gone afterwards: no version and no flag says
//! as much as an attempt.

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::UnshareFlags;

use crate::sys::mount;
use crate::sys::process::{self, Side};

/// Tries something in a child of its own. The caller must be single-threaded.
///
/// # Errors
/// What the attempt gave; `Other` when the child died over it.
pub fn attempt(act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (from, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match process::fork()? {
        Side::Child => {
            drop(from);
            let code = match act() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // The parent takes silence for death.
            drop(File::from(to).write_all(&code.to_le_bytes()));
            process::exit_now()
        }
        Side::Parent(child) => {
            drop(to);
            let mut code = [0; 4];
            let read = File::from(from).read_exact(&mut code);
            loop {
                match waitpid(Some(child), WaitOptions::empty()) {
                    Err(rustix::io::Errno::INTR) => {}
                    done => {
                        done?;
                        break;
                    }
                }
            }
            read.map_err(|_| io::Error::other("the attempt was killed"))?;
            match i32::from_le_bytes(code) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// Whether this process may do what a sandbox needs where it is: namespaces and mounts.
///
/// # Errors
/// The first refusal.
pub fn sandbox() -> io::Result<()> {
    attempt(|| {
        let flags = UnshareFlags::NEWNS
            | UnshareFlags::NEWPID
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS;
        process::new_namespaces(flags)?;
        mounts()
    })
}

/// Whether this process may mount, in a mount namespace that is its own already.
///
/// # Errors
/// The first refusal.
pub fn mounts() -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    mount::filesystem("tmpfs", &[], MountAttrFlags::empty()).map(drop)
}

/// Whether this process may make a user namespace.
///
/// # Errors
/// The refusal.
pub fn user_namespace() -> io::Result<()> {
    attempt(|| process::new_namespaces(UnshareFlags::NEWUSER))
}

/// Whether this process may do in a user namespace what a sandbox needs.
///
/// # Errors
/// The first refusal.
pub fn rootless() -> io::Result<()> {
    attempt(|| {
        process::new_namespaces(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
        mounts()
    })
}

/// Whether this process may change its root directory.
///
/// # Errors
/// The refusal.
pub fn change_root() -> io::Result<()> {
    attempt(|| Ok(rustix::process::chroot("/")?))
}
