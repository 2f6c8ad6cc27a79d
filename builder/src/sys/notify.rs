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

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;

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

/// What comes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It returns this value.
    Value(i64),
    /// It fails with this error.
    Error(Errno),
    /// The kernel makes it after all.
    Go,
}

/// Answers a call.
///
/// # Errors
/// Those of the request; `ENOENT` when nobody waits for the answer any more.
pub fn answer(listener: BorrowedFd<'_>, id: u64, reply: Reply) -> io::Result<()> {
    let (val, error, flags) = match reply {
        Reply::Value(value) => (value, 0, 0),
        Reply::Error(errno) => (0, -errno.raw_os_error(), 0),
        Reply::Go => (0, 0, CONTINUE),
    };
    let response = libc::seccomp_notif_resp {
        id,
        val,
        error,
        flags,
    };
    // SAFETY: the request reads a `seccomp_notif_resp`, which lives across the call.
    if unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const response) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What `stat` tells of an opened file, with another owner, as the kernel writes it.
///
/// # Errors
/// Those of `fstatat`.
pub fn stat(file: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> io::Result<Vec<u8>> {
    // SAFETY: all-zero bytes are a valid value of this struct of integers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty C string, and the struct lives across the call.
    if unsafe { libc::fstatat(file.as_raw_fd(), c"".as_ptr(), &raw mut stat, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    (stat.st_uid, stat.st_gid) = (uid, gid);
    // SAFETY: every byte of the struct was set, first to zero, and it lives until they are copied.
    Ok(
        unsafe { std::slice::from_raw_parts((&raw const stat).cast::<u8>(), size_of_val(&stat)) }
            .to_vec(),
    )
}

/// The same of `statx`, which is asked for some fields in some way.
///
/// # Errors
/// Those of `statx`.
pub fn statx(
    file: BorrowedFd<'_>,
    flags: i32,
    mask: u32,
    (uid, gid): (u32, u32),
) -> io::Result<Vec<u8>> {
    // SAFETY: all-zero bytes are a valid value of this struct of integers.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = flags & (libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC);
    let flags = flags | libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty C string, and the struct lives across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            flags,
            mask,
            &raw mut stat,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    (stat.stx_uid, stat.stx_gid) = (uid, gid);
    // SAFETY: every byte of the struct was set, first to zero, and it lives until they are copied.
    Ok(
        unsafe { std::slice::from_raw_parts((&raw const stat).cast::<u8>(), size_of_val(&stat)) }
            .to_vec(),
    )
}
