//! The kernel's file systems that a step sees: /proc, /dev, /sys (B5.3, B5.4; B3.2 for steps with
//! `--security=insecure`, from which nothing of them is kept).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, makedev};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::init::Act;
use super::message::{Failure, errno};
use super::mount_points::{Kind, MountPoints};
use super::provide::Provider;
use super::{Privileges, ProcessSpec};
use crate::sys::ids::Map;
use crate::sys::mount;

/// Where they stand.
pub(super) const PLACES: [&str; 3] = ["/proc", "/dev", "/sys"];

/// Device nodes of every step: name and numbers. There is no console, because there is no terminal.
pub(super) const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Devices of a step that may do everything, where the host has them.
const MORE_DEVICES: [(&str, u32, u32); 5] = [
    ("fuse", 10, 229),
    ("kmsg", 1, 11),
    ("kvm", 10, 232),
    ("loop-control", 10, 237),
    ("net/tun", 10, 200),
];

/// Loop devices of such a step, as many as there are at first.
const LOOPS: u32 = 8;
/// Their major number.
const LOOP: u32 = 7;

const DEVICE_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Who fills /dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DevBy {
    /// We do, with all that belongs in it.
    Us,
    /// Another runtime makes its nodes and links, and does not bear that they are there already.
    Runtime,
}

/// Relative to /proc.
pub(super) const MASKED_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

/// Relative to /proc.
pub(super) const READ_ONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Relative to /sys.
pub(super) const MASKED_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];

/// The group of terminals.
const TTY: u32 = 5;

const SEALED: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Mounts all of them and opens the null device for standard input.
pub(super) fn mount_all(
    spec: &ProcessSpec,
    points: &mut MountPoints<'_>,
    provider: &Provider,
) -> Result<OwnedFd, Failure> {
    let devices = mount_dev(spec, points, DevBy::Us)?;
    mount_in(devices.as_fd(), "mqueue", "mqueue", &[], SEALED).act("mount `/dev/mqueue`")?;
    let sealed = match spec.privileges {
        Privileges::Sandbox(_) => Some(provider),
        Privileges::Insecure => None,
    };
    mount_proc(points, sealed)?;
    mount_sys(spec, points, sealed)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(&devices, "null", flags, Mode::empty()).act("open `/dev/null`")
}

/// Mounts on a directory of the image; the descriptor of the mount stands for it from then on.
fn put(points: &mut MountPoints<'_>, mount: OwnedFd, target: &str) -> Result<OwnedFd, Failure> {
    let place = points.find(target, Kind::Directory);
    place
        .and_then(|place| mount::attach(mount.as_fd(), place.as_fd()))
        .map_err(|error| Failure::MountPoint {
            target: target.to_owned(),
            errno: errno(&error),
        })?;
    Ok(mount)
}

/// With a provider of empty files, some paths are hidden and some cannot be written.
fn mount_proc(points: &mut MountPoints<'_>, sealed: Option<&Provider>) -> Result<(), Failure> {
    let proc = mount::filesystem("proc", &[], SEALED).or_else(|error| shown("/proc", error));
    let proc = proc.act("mount `/proc`")?;
    let proc = put(points, proc, "/proc")?;
    let Some(provider) = sealed else {
        return Ok(());
    };
    for path in MASKED_PROC {
        mask(proc.as_fd(), path, provider).act("mask paths of `/proc`")?;
    }
    for path in READ_ONLY_PROC {
        make_read_only(proc.as_fd(), path).act("make paths of `/proc` read-only")?;
    }
    Ok(())
}

/// See [`mount_proc`].
fn mount_sys(
    spec: &ProcessSpec,
    points: &mut MountPoints<'_>,
    sealed: Option<&Provider>,
) -> Result<(), Failure> {
    let attributes = match sealed {
        Some(_) => SEALED.union(MountAttrFlags::MOUNT_ATTR_RDONLY),
        None => SEALED,
    };
    let sys = match mount::filesystem("sysfs", &[], attributes) {
        Err(error) => shown("/sys", error).and_then(|sys| {
            mount::set_tree_attributes(sys.as_fd(), attributes)?;
            Ok(sys)
        }),
        sys => sys,
    };
    let sys = sys.act("mount `/sys`")?;
    let sys = put(points, sys, "/sys")?;
    mount_cgroup(sys.as_fd(), attributes, shows_hierarchies(spec)).act("mount `/sys/fs/cgroup`")?;
    let Some(provider) = sealed else {
        return Ok(());
    };
    for path in MASKED_SYS {
        mask(sys.as_fd(), path, provider).act("mask paths of `/sys`")?;
    }
    for path in thermal_throttle_paths() {
        mask(sys.as_fd(), &path, provider).act("mask paths of `/sys`")?;
    }
    Ok(())
}

/// Paths relative to /sys that are masked: of some processors, how warm they are tells what others
/// compute.
pub(super) fn thermal_throttle_paths() -> impl Iterator<Item = String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (0..processors).map(|processor| format!("devices/system/cpu/cpu{processor}/thermal_throttle"))
}

/// What the host shows at a path, where a user namespace may not make such a file system: /sys
/// belongs to the network, which is the host's; and of /proc there is no second one without what
/// a container covers in the first. Processes of the container are seen in it then, but remain out
/// of reach: the step is in a process id namespace of its own.
fn shown(path: &str, error: io::Error) -> io::Result<OwnedFd> {
    match error.raw_os_error() {
        Some(libc::EPERM) => mount::clone_tree(Path::new(path)),
        _ => Err(error),
    }
}

/// The unified hierarchy where the host uses it, or else the old ones, if they are to be seen.
fn mount_cgroup(
    sys: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    hierarchies: bool,
) -> io::Result<()> {
    let Some(place) = open_below(sys, "fs/cgroup")? else {
        return Ok(());
    };
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let empty = || mount::filesystem("tmpfs", &[("mode", "755")], SEALED);
    let mount = if unified {
        mount::filesystem("cgroup2", &[], attributes).or_else(|error| {
            match error.raw_os_error() {
                Some(libc::EPERM) => empty(),
                _ => Err(error),
            }
        })?
    } else {
        empty()?
    };
    mount::attach(mount.as_fd(), place.as_fd())?;
    if hierarchies && !unified {
        mount_hierarchies(mount.as_fd(), attributes)?;
    }
    mount::set_attributes(mount.as_fd(), attributes)
}

/// Whether a step sees the old hierarchies of control groups, each of which takes time to mount: when
/// it has limits, which programs read there, or may write to them.
pub(super) fn shows_hierarchies(spec: &ProcessSpec) -> bool {
    !spec.cgroups.is_empty() || spec.privileges == Privileges::Insecure
}

/// Every hierarchy that this process is in, seen from where it is (cgroups(7)).
fn mount_hierarchies(dir: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    for line in std::fs::read_to_string("/proc/self/cgroup")?.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let named = controllers.strip_prefix("name=");
        let mounted = match (controllers, named) {
            ("", _) => mount_in(dir, "unified", "cgroup2", &[], attributes),
            (_, Some(name)) => {
                let options = [("none", ""), ("name", name)];
                mount_in(dir, name, "cgroup", &options, attributes)
            }
            _ => {
                let options = controllers.split(',').map(|controller| (controller, ""));
                let options = options.collect::<Vec<_>>();
                mount_in(dir, controllers, "cgroup", &options, attributes)
            }
        };
        match mounted {
            // A user namespace has none of the old hierarchies.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            mounted => mounted?,
        }
    }
    Ok(())
}

/// Hides a path, if it exists: a directory is empty then, a file too.
fn mask(dir: BorrowedFd<'_>, path: &str, provider: &Provider) -> io::Result<()> {
    let Some(place) = open_below(dir, path)? else {
        return Ok(());
    };
    let status = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?;
    let cover = match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => provider.empty_directory()?,
        _ => clone_device("null", 1, 3)?,
    };
    mount::attach(cover.as_fd(), place.as_fd())
}

fn make_read_only(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let Some(place) = open_below(dir, path)? else {
        return Ok(());
    };
    let cover = mount::clone(place.as_fd(), Path::new(""))?;
    mount::set_attributes(cover.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    mount::attach(cover.as_fd(), place.as_fd())
}

/// Opens a path in a file system of the kernel; `None` where this kernel does not have it.
fn open_below(dir: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn fill_dev(spec: &ProcessSpec, dev: BorrowedFd<'_>) -> Result<(), Failure> {
    for (name, major, minor) in DEVICES {
        add_device(dev, name, major, minor).act(&format!("provide `/dev/{name}`"))?;
    }
    if spec.privileges == Privileges::Insecure {
        add_more_devices(dev).act("provide devices in `/dev`")?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, dev, name).act("fill `/dev`")?;
    }
    Ok(())
}

/// Mounts /dev with what belongs in it. Its nodes are mounts of the host's one by one: the file
/// system itself is `nodev`, so that a node which a step makes there is of no use. Message queues are
/// those of the IPC namespace, and come later.
///
/// Nodes that another runtime makes have to work there: its steps may make none
/// ([`oci`](super::oci)).
pub(super) fn mount_dev(
    spec: &ProcessSpec,
    points: &mut MountPoints<'_>,
    by: DevBy,
) -> Result<OwnedFd, Failure> {
    let attributes = match (&spec.privileges, by) {
        (Privileges::Sandbox(_), DevBy::Us) => {
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
        }
        _ => MountAttrFlags::MOUNT_ATTR_NOSUID,
    };
    let options = [("mode", "755"), ("size", "65536k")];
    let dev = mount::filesystem("tmpfs", &options, attributes).act("mount `/dev`")?;
    let dev = put(points, dev, "/dev")?;
    if by == DevBy::Us {
        fill_dev(spec, dev.as_fd())?;
    }
    let nodev = SEALED;
    // The kernel makes the nodes of devpts itself.
    let pts = SEALED.difference(MountAttrFlags::MOUNT_ATTR_NODEV);
    let size = spec.shm_size.to_string();
    let ids = Map::current().act("read the ids of the namespace")?;
    let mut terminals = vec![("ptmxmode", "0666"), ("mode", "0620")];
    // The group that owns terminals everywhere, where it is there at all.
    if ids.has_group(TTY) {
        terminals.push(("gid", "5"));
    }
    let shared = [("mode", "1777"), ("size", size.as_str())];
    for (name, kind, options, attributes) in [
        ("pts", "devpts", &terminals[..], pts),
        ("shm", "tmpfs", &shared[..], nodev),
    ] {
        mount_in(dev.as_fd(), name, kind, options, attributes)
            .act(&format!("mount `/dev/{name}`"))?;
    }
    Ok(dev)
}

fn mount_in(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<()> {
    let mount = match mount::filesystem(kind, options, attributes) {
        // A kernel without message queues.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        mount => mount?,
    };
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
    let place = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(mount.as_fd(), place.as_fd())
}

/// What a step with `--security=insecure` has besides, as far as the host has it (B3.2): the
/// devices for loops, FUSE, virtual machines, tunnels and the kernel's log.
fn add_more_devices(dev: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::mkdirat(dev, "net", Mode::from_raw_mode(0o755))?;
    let loops = (0..LOOPS).map(|number| (format!("loop{number}"), LOOP, number));
    let others = MORE_DEVICES.map(|(name, major, minor)| (name.to_owned(), major, minor));
    for (name, major, minor) in others.into_iter().chain(loops) {
        match add_device(dev, &name, major, minor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

fn add_device(dev: BorrowedFd<'_>, name: &str, major: u32, minor: u32) -> io::Result<()> {
    let node = clone_device(name, major, minor)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
    mount::attach(node.as_fd(), place.as_fd())
}

/// Clones the mount of one device node of the host, after making sure that it is that device.
fn clone_device(name: &str, major: u32, minor: u32) -> io::Result<OwnedFd> {
    let path = Path::new("/dev").join(name);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::open(&path, flags, Mode::empty())?;
    let status = rustix::fs::statat(&node, "", AtFlags::EMPTY_PATH)?;
    let kind = match major {
        LOOP => FileType::BlockDevice,
        _ => FileType::CharacterDevice,
    };
    if FileType::from_raw_mode(status.st_mode) != kind || status.st_rdev != makedev(major, minor) {
        return Err(Errno::NODEV.into());
    }
    mount::clone(node.as_fd(), Path::new(""))
}
