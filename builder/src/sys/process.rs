//! Processes: fork, exec, inherited descriptors, signals, keyrings, seccomp.
#![expect(unsafe_code, reason = "rustix has none of these system calls")]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Which side of a [`fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The new process.
    Child,
    /// The caller, with the id of the new process.
    Parent(Pid),
}

/// Splits the calling process in two.
///
/// # Errors
/// Those of `fork`; also when the process has more than one thread, because the child of such a
/// process could find any lock taken.
pub fn fork() -> io::Result<Side> {
    if !is_single_threaded()? {
        return Err(io::Error::other("fork in a process with several threads"));
    }
    // SAFETY: the process has a single thread, so that the child finds memory and locks in order.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Child),
        id => Pid::from_raw(id)
            .filter(|_| id > 0)
            .map(Side::Parent)
            .ok_or_else(io::Error::last_os_error),
    }
}

/// Whether the calling process has no other thread.
fn is_single_threaded() -> io::Result<bool> {
    // SAFETY: changes nothing: there is nothing to be unshared from where it is allowed.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    // Containers forbid the call whatever it is asked for.
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

/// Ends this process at once, as a forked child must: what its parent registered to be run at the
/// end is the parent's to run.
pub fn exit_now() -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(0) }
}

/// Closes every descriptor above standard error except one, whatever the caller inherited.
///
/// # Errors
/// When `keep` is a standard stream, or the kernel is older than 5.9.
pub fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = u32::try_from(keep.as_raw_fd()).map_err(io::Error::other)?;
    if keep < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (first, last) in [(3, keep - 1), (keep + 1, u32::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: closes descriptors only; the one process that calls this, early in its life,
        // owns no other than `keep` and the standard streams.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Marks every descriptor above standard error to be closed by the next [`exec`].
///
/// # Errors
/// When the kernel is older than 5.11.
pub fn close_all_on_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: changes a flag of descriptors, closes none.
    if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts the calling thread (or, for process ids, its children) into new namespaces.
///
/// # Errors
/// Those of `unshare`; `InvalidInput` for flags that are no namespaces.
pub fn new_namespaces(flags: UnshareFlags) -> io::Result<()> {
    let shared = UnshareFlags::FILES | UnshareFlags::FS | UnshareFlags::SYSVSEM;
    if flags.intersects(shared) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the descriptor table stays shared, so that no descriptor loses its meaning.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// Puts the calling thread into a network namespace that exists.
///
/// # Errors
/// Those of `setns`, for one when the descriptor is none of a network namespace.
pub fn join_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    let kind = LinkNameSpaceType::Network;
    Ok(move_into_link_name_space(namespace, Some(kind))?)
}

/// Replaces the program of this process. Returns only on failure.
///
/// # Errors
/// Those of `execve`.
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let strings = strings.iter().map(|string| string.as_ptr());
        strings.chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in a null pointer, and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Gives every signal its default action and unblocks all, as a new program expects.
///
/// # Errors
/// When the signal mask cannot be set.
pub fn reset_signals() -> io::Result<()> {
    // A kernel `sigaction` of zeros: the default action, no flags, an empty mask. The C library's
    // own function would leave out the two signals that it keeps to itself.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // Fails for SIGKILL and SIGSTOP only.
        // SAFETY: the array is as long as the struct, and the default action runs no code of ours.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    // SAFETY: an all-zero set is a valid value, and `sigemptyset` makes it the empty one.
    let done = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Joins a new session keyring, so that keys of the host are out of reach.
///
/// # Errors
/// Those of `keyctl`; a kernel without keyrings is no error.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    let unnamed = ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for a keyring without one.
    if unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, unnamed) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

/// Installs a seccomp filter for this process and its children, with flags of the kernel
/// (`SECCOMP_FILTER_FLAG_*`). Needs `CAP_SYS_ADMIN`, because `no_new_privs` stays off (B5.1).
///
/// # Errors
/// Those of `seccomp`, for one a filter that is malformed or too long.
pub fn install_filter(program: &mut [libc::sock_filter], flags: u32) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the length is that of the instructions, which outlive the call; the kernel checks them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::c_ulong::from(flags),
            &raw const program,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
