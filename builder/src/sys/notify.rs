//! System calls that another process answers (seccomp_unotify(2)).
#![expect(unsafe_code, reason = "rustix has none of these requests")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

// `_IOWR('!', 0, struct seccomp_notif)`, `_IOWR('!', 1, struct seccomp_notif_resp)` and
// `_IOW('!', 2, __u64)`, the same on all instruction sets that kiln knows.
const RECEIVE: u32 = 0xc050_2100;
const SEND: u32 = 0xc018_2101;
const ID_VALID: u32 = 0x4008_2102;

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Which one it is, for [`answer`].
    pub id: u64,
    /// The thread that makes it, as this process's namespace numbers it.
    pub thread: u32,
    /// Number of the call.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// Installs a filter for this process and its children; the descriptor is where the calls that it
/// does not decide are answered. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// Those of `seccomp`; `EBUSY` where such a filter is installed already.
pub fn listen(program: &mut [libc::sock_filter]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the length is that of the instructions, which outlive the call; the kernel checks them.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    match i32::try_from(listener) {
        // SAFETY: the kernel has just opened this descriptor for us; nobody else knows it.
        Ok(listener) if listener >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for the next call.
///
/// # Errors
/// Those of the request; `ENOENT` when its process was killed meanwhile.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Call> {
    // SAFETY: all-zero bytes are a valid value of this struct of integers, and what the kernel wants.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request fills in a `seccomp_notif`, which lives across the call.
    if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Call {
        id: call.id,
        thread: call.pid,
        number: i64::from(call.data.nr),
        arguments: call.data.args,
    })
}

/// Whether a call still waits, so that its process is the one that made it.
#[must_use]
pub fn is_waiting(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the request reads a number, which lives across the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), ID_VALID as _, &raw const id) == 0 }
}

/// Answers a call with the value that it returns or the error that it fails with.
///
/// # Errors
/// Those of the request; `ENOENT` when nobody waits for the answer any more.
pub fn answer(listener: BorrowedFd<'_>, id: u64, result: Result<i64, Errno>) -> io::Result<()> {
    let response = libc::seccomp_notif_resp {
        id,
        val: result.unwrap_or(0),
        error: result.err().map_or(0, |errno| -errno.raw_os_error()),
        flags: 0,
    };
    // SAFETY: the request reads a `seccomp_notif_resp`, which lives across the call.
    if unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const response) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
