//! From a fresh process in a fresh process id namespace to the step's program, step by step.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::UnshareFlags;

use super::message::{self, Failure, IdKind, Message, errno};
use super::mount_points::{self, Kind, MountPoints, Points};
use super::provide::{Prepared, Provider};
use super::terminal::Terminal;
use super::{
    Files, Ids, Isolation, Network, Privileges, ProcessSpec, Streams, filesystems, privileges,
    program,
};
use crate::sys::ids::Map;
use crate::sys::mount::Writable;
use crate::sys::root::Root;
use crate::sys::users::{self, User};
use crate::sys::{loopback, mount, owner, process, xattr};

/// Descriptors that a step's process is given.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// What it reads, where it reads anything ([`Streams::Input`]).
    pub(super) input: Option<OwnedFd>,
    /// The way to the process that makes users up, with a single id.
    pub(super) registrar: Option<OwnedFd>,
}

/// Becomes the step's program; returns only when that failed.
pub(super) fn run(spec: &ProcessSpec, control: &mut UnixStream, given: &Given) -> Failure {
    match become_program(spec, control, given) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

/// Names what was tried when something fails.
pub(super) trait Act<T> {
    /// Turns an error into "cannot `what`".
    fn act(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Act<T> for Result<T, E> {
    fn act(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup {
            act: what.to_owned(),
            errno: errno(&error.into()),
        })
    }
}

fn become_program(
    spec: &ProcessSpec,
    control: &mut UnixStream,
    given: &Given,
) -> Result<Infallible, Failure> {
    // Until the program starts, modes are as written.
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().act("start a session")?;
    enter_namespaces(spec)?;
    let own = open_directory(&spec.root.work);
    let own = own.act("open the directory for the runtime's own use")?;
    let mut provider = Provider::new(own.as_fd()).act("mount a file system in memory")?;
    // By its descriptor: at its place there is that file system now.
    let work = PathBuf::from(format!("/proc/self/fd/{}", own.as_raw_fd()));
    let mounts = provider.prepare_all(spec, &work)?;
    let places = places(&mounts);
    let (root, upper) = mount_root(spec, &places, &work).act("mount the root file system")?;
    let user = users::resolve(&root, &spec.user).map_err(|error| Failure::User(error.into()))?;
    check_ids(spec, &user)?;

    let mut points = MountPoints::new(&root, upper);
    let null = filesystems::mount_all(spec, &mut points, &provider)?;
    let terminal = match spec.streams {
        Streams::Terminal { rows, columns } => Some(Terminal::open(&root, rows, columns)),
        Streams::Pipes | Streams::Input => None,
    };
    let terminal = terminal.transpose().act("make a terminal")?;
    for mount in mounts {
        mount.put(&mut points)?;
    }
    let points = Points {
        made: std::mem::take(&mut points.made),
        // Without an overlay there is no such layer, and an empty directory is the image's.
        laid_out: match spec.root.files {
            Files::Overlay { .. } => mount_points::directories(&places),
            Files::Tree(_) => Vec::new(),
        },
    };
    let cwd = make_cwd(&root, &spec.cwd, &user).map_err(|error| Failure::Cwd {
        path: spec.cwd.clone(),
        errno: errno(&error),
    })?;
    if spec.root.read_only {
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
        mount::set_attributes(root.as_fd(), read_only).act("make the root read-only")?;
    }
    report(control, points, terminal.as_ref()).act("report mount points")?;

    enter_root(&root, &cwd).act("enter the root file system")?;
    let connected = match &terminal {
        Some(terminal) => connect_terminal(terminal, &user),
        None => connect_streams(given.input.as_ref(), &null, &user),
    };
    connected.act("connect the standard streams")?;
    drop((root, cwd, provider, own));
    privileges::drop_to(spec, &user, given.registrar.as_ref())?;
    program::exec(spec, &user)
}

/// The process id namespace was made before this process, the others are made here (B5.1).
fn enter_namespaces(spec: &ProcessSpec) -> Result<(), Failure> {
    let mut flags =
        UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    if spec.network == Network::None {
        flags |= UnshareFlags::NEWNET;
    }
    for procs in &spec.cgroups {
        // Zero is the writer. The control group namespace that follows has its root there.
        std::fs::write(procs, "0").act("enter the control group of the step")?;
    }
    if let Network::Namespace(path) = &spec.network {
        join_network(path).act("enter the network namespace")?;
    }
    process::new_namespaces(flags).act("create namespaces")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).act("make mounts private")?;
    rustix::system::sethostname(spec.hostname.as_bytes()).act("set the host name")?;
    if spec.network == Network::None {
        loopback::up().act("bring the loopback interface up")?;
    }
    Ok(())
}

pub(super) fn join_network(path: &Path) -> io::Result<()> {
    let namespace = std::fs::File::open(path)?;
    process::join_network(namespace.as_fd())
}

/// Mounts the root, over its own writable directory: any place does, and that one is there.
///
/// Device nodes in it do not work (`nodev`), because a step may make them and there is no device
/// cgroup that would tell the harmless ones from the disks of the host; with `--security=insecure` they
/// do (B3.2).
pub(super) fn mount_root(
    spec: &ProcessSpec,
    places: &[(String, Kind)],
    work: &Path,
) -> io::Result<(Root, OwnedFd)> {
    let attributes = match spec.privileges {
        Privileges::Sandbox(_) => MountAttrFlags::MOUNT_ATTR_NODEV,
        Privileges::Insecure => MountAttrFlags::empty(),
    };
    let mount = match &spec.root.files {
        Files::Overlay { lowers, upper } => {
            let points = mount_points::lay_out(&spec.root.points, work, places)?;
            let lowers = lowers.iter().chain([&points]);
            let lowers = lowers.map(|layer| layer.as_path()).collect::<Vec<_>>();
            let writable = Writable { upper, work };
            mount::overlay(&lowers, Some(writable), attributes)?
        }
        Files::Tree(tree) => {
            let mount = mount::clone(rustix::fs::CWD, tree)?;
            mount::set_attributes(mount.as_fd(), attributes)?;
            mount
        }
    };
    let writable = open_directory(spec.root.files.writable())?;
    mount::attach(mount.as_fd(), writable.as_fd())?;
    Ok((Root::from_fd(mount), writable))
}

pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes sure that the user and its groups exist in this user namespace. With a single id nobody
/// exists but root, and every user is made up.
pub(super) fn check_ids(spec: &ProcessSpec, user: &User) -> Result<(), Failure> {
    if spec.isolation == Isolation::Rootless(Ids::Single) {
        return Ok(());
    }
    let map = Map::current().act("read the ids of the namespace")?;
    let groups = [user.gid].into_iter().chain(user.groups.iter().copied());
    let unmapped = if map.has_user(user.uid) {
        groups
            .map(|group| (IdKind::Group, group))
            .find(|(_, group)| !map.has_group(*group))
    } else {
        Some((IdKind::User, user.uid))
    };
    match unmapped {
        None => Ok(()),
        Some((kind, id)) => Err(Failure::Unmapped {
            kind,
            id,
            subordinates: map.subordinates(),
        }),
    }
}

/// All mount points that the image may lack. What stands below a file system of the sandbox is made
/// there.
pub(super) fn places(mounts: &[Prepared]) -> Vec<(String, Kind)> {
    let own = filesystems::PLACES.map(|place| (place.to_owned(), Kind::Directory));
    let inside = |target: &str| {
        let mut places = filesystems::PLACES.iter();
        places.any(|place| Path::new(target).starts_with(place))
    };
    let others = mounts.iter().filter(|mount| !inside(&mount.target));
    let others = others.map(|mount| (mount.target.clone(), mount.kind));
    own.into_iter().chain(others).collect()
}

/// Opens the working directory; what is missing of it is made and belongs to the user (B4.2).
pub(super) fn make_cwd(root: &Root, cwd: &str, user: &User) -> io::Result<OwnedFd> {
    let directory = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        root.open_at(path, flags, Mode::empty())
    };
    let mut path = PathBuf::from("/");
    let mut at = directory(&path)?;
    let parts = Path::new(cwd).components();
    for part in parts.skip_while(|part| *part == Component::RootDir) {
        path.push(part);
        at = match directory(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = part.as_os_str();
                rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                let place = xattr::Place::In(at.as_fd(), name.as_bytes());
                owner::set(place, (user.uid, user.gid))?;
                directory(&path)?
            }
            found => found?,
        };
    }
    Ok(at)
}

/// Makes the root the only file system there is.
fn enter_root(root: &Root, cwd: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root.as_fd())?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies on the new one now, at the same place.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(rustix::process::fchdir(cwd)?)
}

/// Tells the builder what was made in the root, and gives it this process, for signals, and the
/// other end of its terminal.
pub(super) fn report(
    control: &mut UnixStream,
    points: Points,
    terminal: Option<&Terminal>,
) -> io::Result<()> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    let mut descriptors = vec![process.as_fd()];
    descriptors.extend(terminal.map(|terminal| terminal.master.as_fd()));
    message::send_with(control, &Message::Points(points), &descriptors)
}

/// Leaves the group of a file as it is (chown(2)).
const UNCHANGED: u32 = u32::MAX;

/// The terminal is all three standard streams, belongs to the user, and controls this process, as
/// job control wants it.
fn connect_terminal(terminal: &Terminal, user: &User) -> io::Result<()> {
    let slave = &terminal.slave;
    rustix::process::ioctl_tiocsctty(slave)?;
    privileges::give(slave, (user.uid, UNCHANGED))?;
    rustix::stdio::dup2_stdin(slave)?;
    rustix::stdio::dup2_stdout(slave)?;
    Ok(rustix::stdio::dup2_stderr(slave)?)
}

/// Standard input is empty, unless kiln's is passed on; output and error belong to the user, so
/// that a step may open `/dev/stdout` anew (B4.1).
pub(super) fn connect_streams(
    input: Option<&OwnedFd>,
    null: &OwnedFd,
    user: &User,
) -> io::Result<()> {
    rustix::stdio::dup2_stdin(input.unwrap_or(null))?;
    if let Some(input) = input {
        privileges::give(input, (user.uid, user.gid))?;
    }
    for pipe in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        privileges::give(pipe, (user.uid, user.gid))?;
    }
    Ok(())
}
