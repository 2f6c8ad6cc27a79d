//! What a step may do: limits, capabilities, system calls, user (B4.5, B5).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::init::Act;
use super::isolation::has_filter;
use super::message::{Failure, errno};
use super::{Isolation, Privileges, ProcessSpec, Seccomp, seccomp, single};
use crate::sys::owner;
use crate::sys::process;
use crate::sys::users::User;

/// The capabilities of root in a step (B5.2); another user has them in the bounding set only.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Their names, in the order of the kernel.
pub(super) const CAPABILITY_NAMES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

/// Gives up everything that a step does not have, in the one order that works: the filter needs
/// capabilities that go, and the user changes only while there is one to change with.
pub(super) fn drop_to(
    spec: &ProcessSpec,
    user: &User,
    registrar: Option<&OwnedFd>,
) -> Result<(), Failure> {
    for (name, soft, hard) in &spec.rlimits {
        limit(name, *soft, *hard)?;
    }
    // A container's filter may refuse it; then its keys are nobody's but the container's.
    let in_container = spec.isolation == Isolation::Chroot;
    let allowed = |result: io::Result<()>| match result {
        Err(error) if in_container && error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        result => result,
    };
    allowed(process::new_session_keyring()).act("join a new session keyring")?;
    if registrar.is_some() {
        single::make_up(user)?;
    }
    clear_ambient().act("limit capabilities")?;
    let kept = match &spec.privileges {
        Privileges::Sandbox(seccomp) => {
            allowed(bound_capabilities().map_err(Into::into)).act("limit capabilities")?;
            if in_container {
                filter_in_container(seccomp).act("filter system calls")?;
            } else {
                seccomp::install(seccomp).act("filter system calls")?;
            }
            CAPABILITIES
        }
        // All that there are: in a user namespace, those over it (B3.2).
        Privileges::Insecure => {
            let own = capabilities(None).act("read capabilities")?;
            own.permitted
        }
    };

    let kept = if in_container {
        kept & capabilities(None).act("read capabilities")?.permitted
    } else {
        kept
    };
    match registrar {
        None => change_user(user)?,
        Some(registrar) if user.uid == 0 => single::connect(registrar.as_fd(), user)?,
        Some(_) => {}
    }
    let kept = if user.uid == 0 {
        kept
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).act("set capabilities")?;
    process::reset_signals().act("reset signals")?;
    process::close_all_on_exec().act("close inherited descriptors")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn change_user(user: &User) -> Result<(), Failure> {
    let groups = user.groups.iter().map(|group| Gid::from_raw(*group));
    set_thread_groups(&groups.collect::<Vec<_>>()).act("set supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).act("change the group")?;
    set_thread_res_uid(uid, uid, uid).act("change the user")
}

/// Gives what is no file of the image to a user of the step; the group `u32::MAX` is none. With a single id it is everybody's.
pub(super) fn give(file: impl AsFd, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    if owner::is_kept_for_all() {
        return Ok(());
    }
    let gid = (gid != u32::MAX).then(|| Gid::from_raw(gid));
    rustix::fs::fchown(file, Some(Uid::from_raw(uid)), gid)
}

/// A filter of the container's stays in force, so that the default one need not be added; and without
/// the right to add one, no program may gain privileges any more.
fn filter_in_container(seccomp: &Seccomp) -> io::Result<()> {
    if *seccomp == Seccomp::Default && has_filter() {
        return Ok(());
    }
    match seccomp::install(seccomp) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            rustix::thread::set_no_new_privs(true)?;
            seccomp::install(seccomp)
        }
        result => result,
    }
}

fn clear_ambient() -> rustix::io::Result<()> {
    match clear_ambient_capability_set() {
        // Before Linux 4.3 there was none.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error),
    }
}

fn bound_capabilities() -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if CAPABILITIES.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The first number that this kernel does not know; there are none above.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn limit(name: &str, soft: u64, hard: u64) -> Result<(), Failure> {
    let resource = resource(name).ok_or_else(|| Failure::Limit {
        name: name.to_owned(),
    })?;
    let value = |value: u64| (value != u64::MAX).then_some(value);
    let limit = Rlimit {
        current: value(soft),
        maximum: value(hard),
    };
    setrlimit(resource, limit).map_err(|error| Failure::LimitRefused {
        name: name.to_owned(),
        hard,
        most: getrlimit(resource).maximum.unwrap_or(u64::MAX),
        errno: errno(&error.into()),
    })
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}
