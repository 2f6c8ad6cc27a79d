//! What a machine allows, mechanism by mechanism, for a person who asks why (`kiln doctor`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use serde::Serialize;

use super::error::Denial;
use super::{probe, subordinate};
use crate::runtime::{Seccomp, seccomp};
use crate::sys::ids;

/// The old hierarchies of control groups lie in folders of their own here, the new one is it.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Handlers of foreign programs.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
/// Runtimes that can run a step instead of kiln's own core.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];

/// File systems that stores lie on, by their magic numbers (statfs(2)).
const FILE_SYSTEMS: [(u64, &str); 10] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlayfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
];

/// Something that a machine allows or denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mechanism {
    /// What it is called.
    pub name: &'static str,
    /// Whether it can be used.
    pub allowed: bool,
    /// What there is, or what denies it.
    pub detail: String,
    /// What it costs that it is denied, or what it costs to use it; empty where it costs nothing.
    pub cost: &'static str,
}

impl Mechanism {
    /// What came of an attempt: `Ok` with what there is, or an error with what denies it, whose
    /// cost then counts.
    pub fn of(name: &'static str, result: Result<String, String>, cost: &'static str) -> Self {
        match result {
            Ok(detail) => Self {
                name,
                allowed: true,
                detail,
                cost: "",
            },
            Err(detail) => Self {
                name,
                allowed: false,
                detail,
                cost,
            },
        }
    }
}

/// What levels of isolation are made of, seen from where this process is; it must be
/// single-threaded and not have entered anything yet.
#[must_use]
pub fn levels() -> Vec<Mechanism> {
    let root = rustix::process::geteuid().is_root();
    let denied = |error: io::Error| format!("{}: {error}", Denial::of(&error));
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let ranges = subordinate::find(uid, gid).map(|found| {
        let map = found.map;
        let groups = map.groups.iter().skip(1).map(|span| u64::from(span.count));
        format!(
            "{} users and {} groups, through {}",
            map.subordinates(),
            groups.sum::<u64>(),
            found.users.display()
        )
    });
    let mounts = if root {
        probe::sandbox()
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    };
    let mounts = mounts
        .map(|()| match ids::in_initial_namespace() {
            Ok(true) => "as this machine's root".to_owned(),
            _ => "as root of a user namespace".to_owned(),
        })
        .map_err(|error| {
            if root {
                denied(error)
            } else {
                "this is not root".to_owned()
            }
        });
    let namespaces = probe::user_namespace().map(|()| String::new());
    let inside = probe::rootless().map(|()| String::new());
    let change_root = if root {
        probe::change_root().map(|()| String::new()).map_err(denied)
    } else {
        Err("this is not root".to_owned())
    };
    vec![
        Mechanism::of(
            "mount rights",
            mounts,
            "no isolation `root`: steps run in a user namespace, or in a changed root directory only",
        ),
        Mechanism::of(
            "user namespaces",
            namespaces.map_err(denied),
            "no isolation `rootless`: kiln builds as root only",
        ),
        Mechanism::of(
            "mounts in them",
            inside.map_err(denied),
            "no isolation `rootless`: kiln builds as root only",
        ),
        Mechanism::of(
            "subordinate ids",
            ranges,
            "rootless with a single id: owners are written down beside the files and users of steps are made up, which makes steps slower",
        ),
        Mechanism::of(
            "chroot",
            change_root,
            "no isolation `chroot`, which needs nothing else",
        ),
    ]
}

/// What steps have at the level that this process has entered; it must still be single-threaded.
#[must_use]
pub fn steps() -> Vec<Mechanism> {
    let filter = probe::attempt(|| seccomp::install(&Seccomp::Default));
    vec![
        Mechanism::of(
            "seccomp",
            filter
                .map(|()| "docker's default filter".to_owned())
                .map_err(|error| error.to_string()),
            "no step can be run",
        ),
        Mechanism::of(
            "cgroup controllers",
            controllers(),
            "no --memory and --cpus, and no limit on what a step takes",
        ),
        Mechanism::of(
            "binfmt handlers",
            handlers(),
            "no RUN for other platforms than this machine's",
        ),
        Mechanism::of(
            "OCI runtimes",
            programs(&RUNTIMES),
            "no --runtime; kiln's own core needs none",
        ),
    ]
}

/// What the file system of a store can do.
#[must_use]
pub fn files(folder: &Path) -> Vec<Mechanism> {
    let kind = rustix::fs::statfs(folder).map(|found| {
        let magic = u64::try_from(found.f_type).unwrap_or_default() & u64::from(u32::MAX);
        let known = FILE_SYSTEMS.iter().find(|(number, _)| *number == magic);
        known.map_or_else(|| format!("type {magic:x}"), |(_, name)| (*name).to_owned())
    });
    let kind = kind.unwrap_or_else(|error| error.to_string());
    let (one, two) = (folder.join("one"), folder.join("two"));
    let attributes = || -> io::Result<()> {
        fs::write(&one, b"x")?;
        let flags = XattrFlags::empty();
        Ok(rustix::fs::setxattr(&one, "user.kiln.probe", b"1", flags)?)
    };
    let attributes = attributes()
        .map(|()| kind.clone())
        .map_err(|error| format!("{kind}: {error}"));
    let reflink = || -> io::Result<()> {
        let (from, to) = (fs::File::open(&one)?, fs::File::create(&two)?);
        Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
    };
    let reflink = reflink()
        .map(|()| kind.clone())
        .map_err(|_| format!("{kind} has no files that share blocks"));
    vec![
        Mechanism::of("user attributes", attributes, "no store can lie there"),
        Mechanism::of("reflinks", reflink, "copies of files take their full size"),
    ]
}

/// Controllers of which this process may make groups, which is tried.
fn controllers() -> Result<String, String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let (mut delegated, mut others) = (Vec::new(), Vec::new());
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        let (folder, names) = match controllers {
            "" => {
                let unified = Path::new(CGROUPS).join("unified");
                let top = if unified.is_dir() {
                    unified
                } else {
                    PathBuf::from(CGROUPS)
                };
                let folder = top.join(path);
                let list = fs::read_to_string(folder.join("cgroup.controllers"));
                let list = list.unwrap_or_default();
                let names = list.split_whitespace().map(str::to_owned);
                (folder, names.collect::<Vec<_>>())
            }
            named if named.starts_with("name=") => continue,
            controllers => (
                Path::new(CGROUPS).join(controllers).join(path),
                controllers.split(',').map(str::to_owned).collect(),
            ),
        };
        let group = folder.join(format!("kiln-doctor-{}", std::process::id()));
        match fs::create_dir(&group) {
            Ok(()) => {
                // An empty group of ours; what keeps it would keep everything else too.
                drop(fs::remove_dir(&group));
                delegated.extend(names);
            }
            Err(_) => others.extend(names),
        }
    }
    match (delegated.is_empty(), others.is_empty()) {
        (false, true) => Ok(delegated.join(", ")),
        (false, false) => Ok(format!(
            "{}; not delegated: {}",
            delegated.join(", "),
            others.join(", ")
        )),
        (true, false) => Err(format!("not delegated: {}", others.join(", "))),
        (true, true) => Err("there are none here".to_owned()),
    }
}

/// Handlers that are on and bring their program with them.
fn handlers() -> Result<String, String> {
    let entries = fs::read_dir(HANDLERS).map_err(|error| format!("{HANDLERS}: {error}"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let mut lines = text.lines();
            let fixed = |line: &str| {
                line.strip_prefix("flags:")
                    .is_some_and(|flags| flags.contains('F'))
            };
            lines.next() == Some("enabled") && lines.any(fixed)
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        return Err("none is registered with the flag F (package qemu-user-static)".to_owned());
    }
    Ok(names.join(", "))
}

/// Those of some programs that are in `PATH`.
fn programs(names: &[&str]) -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let found: Vec<&str> = names.iter().filter(find).copied().collect();
    if found.is_empty() {
        return Err(format!("none of {} is in PATH", names.join(", ")));
    }
    Ok(found.join(", "))
}
