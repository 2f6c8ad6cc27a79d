//! An ordinary user for kiln to be run by: one that the machine does not know, with an /etc of its
//! own in which it exists.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};
use tempfile::TempDir;

/// User and group id of the user.
pub(crate) const ID: u32 = 4711;
/// Its first subordinate id.
pub(crate) const SUBORDINATE: u32 = 300_000;

/// Which subordinate ids a user has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// As many as distributions give.
    Many,
    /// Ten.
    Few,
    /// None.
    None,
}

/// A user.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    /// Holds its /etc and a copy of kiln that it can reach.
    folder: Arc<TempDir>,
}

/// Becomes the user: first the folder, then the program. Paths may be covered before that, as a
/// container does.
const BECOME: &str = "mount --bind \"$0/etc\" /etc && \
    if [ -e \"$0/fuse\" ]; then mount --bind \"$0/fuse\" /dev/fuse; fi && \
    if [ -e \"$0/covered\" ]; then \
        mount --bind /dev/null /proc/interrupts && mount -t tmpfs -o ro none /proc/bus; \
    fi && exec setpriv --reuid 4711 --regid 4711 \
    --clear-groups -- \"$@\"";

impl Person {
    pub(crate) fn new(ids: Ids) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        // Another process copies: one of ours that starts a program meanwhile would have the copy open
        // for writing, and then it cannot be run.
        let mut copy = Command::new("cp");
        copy.args(["-a", "/etc", env!("CARGO_BIN_EXE_kiln")]);
        assert!(copy.arg(path).status().unwrap().success());
        let etc = path.join("etc");
        let mut passwd = fs::File::options()
            .append(true)
            .open(etc.join("passwd"))
            .unwrap();
        writeln!(passwd, "fresh:x:{ID}:{ID}::/nowhere:/bin/sh").unwrap();
        let ranges = match ids {
            Ids::Many => format!("fresh:{SUBORDINATE}:65536\n"),
            Ids::Few => format!("fresh:{SUBORDINATE}:10\n"),
            Ids::None => String::new(),
        };
        for file in ["subuid", "subgid"] {
            fs::write(etc.join(file), &ranges).unwrap();
        }
        Self {
            folder: Arc::new(folder),
        }
    }

    /// May use FUSE, which distributions allow to everybody.
    pub(crate) fn with_fuse(self) -> Self {
        let (path, mode) = (self.folder.path().join("fuse"), Mode::from_raw_mode(0o666));
        let device = rustix::fs::makedev(10, 229);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device).unwrap();
        // Not what the umask leaves.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        self
    }

    /// Runs kiln where parts of /proc are covered, as in a container.
    pub(crate) fn in_container(self) -> Self {
        fs::write(self.folder.path().join("covered"), "").unwrap();
        self
    }

    /// The program and the first arguments that start kiln as this user.
    pub(crate) fn kiln(&self) -> (&'static str, Vec<String>) {
        let folder = self.folder.path().display().to_string();
        let kiln = format!("{folder}/kiln");
        let first = ["-m", "--propagation", "private", "sh", "-c", BECOME];
        let mut args = first.map(str::to_owned).to_vec();
        args.extend([folder, kiln]);
        ("unshare", args)
    }
}

/// Gives a folder with all that is in it to the user; everything else about the files stays.
pub(crate) fn give(folder: &Path) {
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.unwrap();
        let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode());
        let mut capability = [0; 64];
        let length = rustix::fs::lgetxattr(path, "security.capability", &mut capability[..]);
        let (uid, gid) = (Some(Uid::from_raw(ID)), Some(Gid::from_raw(ID)));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        if entry.path_is_symlink() {
            continue;
        }
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(CWD, path, mode, AtFlags::empty()).unwrap();
        if let Ok(length) = length {
            let flags = XattrFlags::empty();
            let value = &capability[..length];
            rustix::fs::setxattr(path, "security.capability", value, flags).unwrap();
        }
    }
}

/// Gives one folder, and not what is in it, to the user.
pub(crate) fn give_one(folder: &Path) {
    chown(folder, Some(ID), Some(ID)).unwrap();
}
