//! Why a level of isolation cannot be had.

use std::fs;
use std::io;

/// Why a level of isolation cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// No user namespace can be made.
    #[error("cannot make a user namespace: {denial}")]
    UserNamespace {
        /// What denies it.
        denial: Denial,
        /// What the kernel said, where that says more.
        source: Option<io::Error>,
    },
    /// A user namespace was made, but it cannot be given its ids.
    #[error("cannot give ids to the user namespace: {why}")]
    Ids {
        /// Why.
        why: String,
    },
    /// There is a user namespace, but nothing can be mounted in it.
    #[error("cannot mount in the user namespace: {denial}")]
    Mounts {
        /// What denies it.
        denial: Denial,
        /// What the kernel said, where that says more.
        source: Option<io::Error>,
    },
    /// A level that was asked for cannot be had.
    #[error("isolation `{level}` is not possible here: {why}")]
    Level {
        /// The level.
        level: &'static str,
        /// Why.
        why: String,
    },
    /// The facts of this process cannot be read.
    #[error("cannot find out what this process may do")]
    Facts(#[from] io::Error),
}

impl IsolationError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UserNamespace { denial, .. } | Self::Mounts { denial, .. } => denial.hint(),
            Self::Ids { .. } | Self::Level { .. } => {
                Some("`kiln doctor` shows what this machine allows".to_owned())
            }
            Self::Facts(_) => Some("kiln needs /proc".to_owned()),
        }
    }
}

/// What denies something to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// `kernel.unprivileged_userns_clone` is 0.
    Clone,
    /// `user.max_user_namespaces` is 0, or so many exist already.
    Maximum(Option<u64>),
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    AppArmor,
    /// A seccomp filter, as containers have one.
    Seccomp,
    /// A kernel that was built without it.
    Kernel,
    /// Missing capabilities, or a security module.
    Rights,
}

impl IsolationError {
    /// No user namespace can be made.
    pub(super) fn user_namespace(error: io::Error) -> Self {
        Self::UserNamespace {
            denial: Denial::of(&error),
            // "No space left on device" would lead astray.
            source: Some(error).filter(|error| error.kind() != io::ErrorKind::StorageFull),
        }
    }
}

impl Denial {
    /// Guesses from what the kernel said, and from its settings, what is behind it.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        let number = |name: &str| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
            text.trim().parse().ok()
        };
        let maximum = number("user/max_user_namespaces");
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EUSERS) => Self::Maximum(maximum),
            Some(libc::EINVAL | libc::ENOSYS | libc::ENODEV) => Self::Kernel,
            _ if maximum == Some(0) => Self::Maximum(maximum),
            _ if number("kernel/unprivileged_userns_clone") == Some(0) => Self::Clone,
            _ if number("kernel/apparmor_restrict_unprivileged_userns") == Some(1) => {
                Self::AppArmor
            }
            _ if has_filter() => Self::Seccomp,
            _ => Self::Rights,
        }
    }

    fn hint(self) -> Option<String> {
        let hint = match self {
            Self::Clone => "as root: sysctl -w kernel.unprivileged_userns_clone=1",
            Self::Maximum(_) => "as root: sysctl -w user.max_user_namespaces=15000",
            Self::AppArmor => {
                "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give kiln a profile with `userns,`"
            }
            Self::Seccomp => {
                "start the container with --security-opt seccomp=unconfined, or run kiln as root in it"
            }
            Self::Kernel => "use a kernel with CONFIG_USER_NS, or run kiln as root",
            Self::Rights => "run kiln as root; `kiln doctor` shows what this machine allows",
        };
        Some(hint.to_owned())
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clone => f.write_str("denied by the sysctl kernel.unprivileged_userns_clone=0"),
            Self::Maximum(Some(most)) => {
                write!(f, "denied by the sysctl user.max_user_namespaces={most}")
            }
            Self::Maximum(None) => f.write_str("denied by the limit on user namespaces"),
            Self::AppArmor => {
                f.write_str("denied by AppArmor (kernel.apparmor_restrict_unprivileged_userns=1)")
            }
            Self::Seccomp => f.write_str("denied by a seccomp filter, most likely a container's"),
            Self::Kernel => f.write_str("the kernel does not have them"),
            Self::Rights => {
                f.write_str("denied by the kernel (missing rights, or a security module)")
            }
        }
    }
}

/// Whether this process is under a seccomp filter.
pub(in crate::runtime) fn has_filter() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter_map(|line| line.strip_prefix("Seccomp:"))
        .any(|mode| mode.trim() == "2")
}
