//! Programs of the host that the tests and chores use, and the Debian packages they come from.

use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// A program and the package that has it, or several packages that are of use together only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    program: &'static str,
    package: &'static str,
}

const fn peer(program: &'static str, package: &'static str) -> Peer {
    Peer { program, package }
}

impl Peer {
    /// Returns the program's name.
    pub(crate) fn program(&self) -> &'static str {
        self.program
    }
}

/// A registry that is not ours.
pub(crate) const REGISTRY: Peer = peer("docker-registry", "docker-registry");
/// The programs of the small base image.
pub(crate) const BUSYBOX: Peer = peer("busybox", "busybox-static");
/// Makes the root file system of the Debian base image.
pub(crate) const DEBOOTSTRAP: Peer = peer("debootstrap", "debootstrap");
/// The builder that kiln is measured against.
pub(crate) const BUILDAH: Peer = peer("buildah", "buildah");
/// Pulls and pushes beside kiln.
pub(crate) const PODMAN: Peer = peer("podman", "podman");
/// Copies beside kiln.
pub(crate) const SKOPEO: Peer = peer("skopeo", "skopeo");
/// Runs containers for buildah, and for kiln with `--runtime`.
pub(crate) const RUNC: Peer = peer("runc", "runc");
/// Sends blobs, and looks at nothing.
pub(crate) const CURL: Peer = peer("curl", "curl");
/// Takes digests with the processor's instructions for them.
pub(crate) const OPENSSL: Peer = peer("openssl", "openssl");
/// The C compiler for the static binary.
pub(crate) const MUSL: Peer = peer("musl-gcc", "musl-tools");

/// The C compiler and library for the static binary of the other architecture.
pub(crate) const AARCH64: Peer = peer(
    "aarch64-linux-gnu-gcc",
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
);

/// All that the test suite uses.
pub(crate) const TESTS: [Peer; 28] = [
    REGISTRY,
    BUSYBOX,
    DEBOOTSTRAP,
    BUILDAH,
    RUNC,
    MUSL,
    peer("crun", "crun"),
    PODMAN,
    SKOPEO,
    peer("umoci", "umoci"),
    peer("htpasswd", "apache2-utils"),
    peer("gcc", "gcc"),
    peer("git", "git"),
    peer("ip", "iproute2"),
    peer("pasta", "passt"),
    peer("fuse-overlayfs", "fuse-overlayfs"),
    peer("qemu-aarch64-static", "qemu-user-static"),
    peer("ssh-agent", "openssh-client"),
    peer("scmp_sys_resolver", "seccomp"),
    peer("setsid", "util-linux"),
    OPENSSL,
    CURL,
    peer("bash", "bash"),
    peer("newuidmap", "uidmap"),
    peer("setpriv", "util-linux"),
    peer("mkfs.ext4", "e2fsprogs"),
    peer("losetup", "mount"),
    peer("mount", "mount"),
];

/// Returns whether we are root.
pub(crate) fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Installs the packages of those `peers` that are missing, saying which.
///
/// # Errors
/// When something is missing and cannot be installed: the message says what, and how.
pub(crate) fn ensure(peers: &[Peer]) -> Result<()> {
    let missing = missing(peers);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if process::find("apt-get").is_none() {
        bail!(
            "missing: {list} (names of Debian's packages); install them with the system's package manager"
        );
    }
    if !is_root() {
        bail!("missing: {list}; install them with `apt-get install {list}`");
    }
    eprintln!("installing: {list}");
    process::quiet(apt_get().arg("update"))?;
    let install = ["install", "-y", "--no-install-recommends"];
    process::quiet(apt_get().args(install).args(&missing))?;
    Ok(())
}

fn missing(peers: &[Peer]) -> Vec<&'static str> {
    peers
        .iter()
        .filter(|peer| process::find(peer.program).is_none())
        .flat_map(|peer| peer.package.split(' '))
        .collect()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_packages_of_missing_programs_only() {
        let peers = [
            peer("sh", "dash"),
            peer("no-such-program-here", "nowhere nowhere-dev"),
        ];
        assert_eq!(missing(&peers), ["nowhere", "nowhere-dev"]);
        assert!(ensure(&peers[..1]).is_ok());
    }
}
