//! Running a bundle, inside of the sandbox.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{UnshareFlags, capabilities};
use serde_json::Value;

use super::config::{Facts, Late};
use super::{Container, Program, is_unified};
use crate::runtime::init::{self, Act};
use crate::runtime::message::{self, Failure, Message, errno};
use crate::runtime::mount_points::{self, MountPoints, Points};
use crate::runtime::provide::{Prepared, Provider};
use crate::runtime::{Exit, Network, Privileges, ProcessSpec, filesystems, program, seccomp};
use crate::sys::users::{self, User};
use crate::sys::{mount, process};

/// What the runtime mounts itself, because it is of the namespaces that it makes.
const LATE: [&str; 2] = ["/proc", "/sys"];

/// Devices of a step, and the making of any: those that every one has, terminals.
const DEVICES: [&str; 10] = [
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c *:* m",
    "b *:* m",
];

/// Most of a runtime's log that is read.
const LONGEST_LOG: u64 = 1 << 20;

/// Runs the process, and says how it ended. Returns why it did not run.
pub(in crate::runtime) fn run(
    spec: &ProcessSpec,
    container: &Container,
    control: &mut UnixStream,
    input: Option<&OwnedFd>,
) -> io::Result<()> {
    let said = match contain(spec, container, control, input) {
        Ok(exit) => Message::Ended(exit),
        Err(failure) => Message::Failed(failure),
    };
    message::send(control, &said)
}

fn contain(
    spec: &ProcessSpec,
    container: &Container,
    control: &mut UnixStream,
    input: Option<&OwnedFd>,
) -> Result<Exit, Failure> {
    rustix::process::umask(Mode::empty());
    rustix::process::setsid().act("start a session")?;
    process::reset_signals().act("reset signals")?;
    if let Network::Namespace(path) = &spec.network {
        init::join_network(path).act("enter the network namespace")?;
    }
    process::new_namespaces(UnshareFlags::NEWNS).act("create namespaces")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).act("make mounts private")?;
    // The runtime looks its processes up there, and they are of this namespace.
    show_processes().act("mount `/proc`")?;
    let staging = &spec.root.work;
    let own = init::open_directory(staging);
    let own = own.act("open the directory for the runtime's own use")?;
    let mut provider = Provider::new(own.as_fd()).act("mount a file system in memory")?;
    // By its descriptor: at its place there is that file system now.
    let work = PathBuf::from(format!("/proc/self/fd/{}", own.as_raw_fd()));
    let mounts = provider.prepare_all(spec, &work)?;
    let places = init::places(&mounts);
    let (root, upper) = init::mount_root(spec, &places, &work).act("mount the root file system")?;
    let user = users::resolve(&root, &spec.user).map_err(|error| Failure::User(error.into()))?;
    let mut points = MountPoints::new(&root, upper);
    drop(filesystems::mount_dev(
        spec,
        &mut points,
        container.dev_by(),
    )?);
    let late = put_all(mounts, &mut points, &mut provider, staging)?;
    let points = Points {
        made: std::mem::take(&mut points.made),
        laid_out: mount_points::directories(&places),
    };
    drop(
        init::make_cwd(&root, &spec.cwd, &user).map_err(|error| Failure::Cwd {
            path: spec.cwd.clone(),
            errno: errno(&error),
        })?,
    );
    if spec.root.read_only {
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
        mount::set_attributes(root.as_fd(), read_only).act("make the root read-only")?;
    }
    let bundle = describe(spec, &user, &late, container, staging);
    let started = program::check(spec, &root).and(bundle).and_then(|bundle| {
        connect(input, &user).act("connect the standard streams")?;
        let child = bundle.start();
        child.act(&format!("start `{}`", container.program.name()))
    });
    // What was made is taken away again, whether the program was started or not. Signals go to the
    // runtime, which passes them on.
    let process = started.as_ref().ok().and_then(|(child, _)| pidfd(child));
    let descriptors: Vec<_> = process.iter().map(AsFd::as_fd).collect();
    message::send_with(control, &Message::Points(points), &descriptors)
        .act("report mount points")?;
    let (mut child, log) = started?;
    let status = child.wait().act("wait for the runtime")?;
    ended(status, &log, &container.program)
}

fn pidfd(child: &Child) -> Option<OwnedFd> {
    let pid = Pid::from_child(child);
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn connect(input: Option<&OwnedFd>, user: &User) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    init::connect_streams(input, &null, user)
}

fn show_processes() -> io::Result<()> {
    let proc = mount::filesystem("proc", &[], MountAttrFlags::empty())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::open("/proc", flags, Mode::empty())?;
    mount::attach(proc.as_fd(), place.as_fd())
}

/// Puts mounts where they belong. Those below a file system that the runtime mounts are staged for
/// it.
fn put_all(
    mounts: Vec<Prepared>,
    points: &mut MountPoints<'_>,
    provider: &mut Provider,
    staging: &Path,
) -> Result<Vec<Late>, Failure> {
    let mut late = Vec::new();
    for mount in mounts {
        let target = mount.target.clone();
        if !LATE
            .iter()
            .any(|place| Path::new(&target).starts_with(place))
        {
            mount.put(points)?;
            continue;
        }
        let staged = provider.stage(&mount);
        let (name, writable) = staged.act(&format!("stage the mount for `{target}`"))?;
        late.push(Late {
            source: staging.join(name).to_string_lossy().into_owned(),
            target,
            writable,
        });
    }
    Ok(late)
}

/// Writes the bundle.
fn describe(
    spec: &ProcessSpec,
    user: &User,
    late: &[Late],
    container: &Container,
    staging: &Path,
) -> Result<Bundle, Failure> {
    let profile = match &spec.privileges {
        Privileges::Sandbox(seccomp) => seccomp::profile(seccomp)
            .map_err(io::Error::from)
            .act("read the seccomp profile")?,
        Privileges::Insecure => None,
    };
    let joins = container.joins();
    let facts = Facts {
        spec,
        user,
        seccomp: profile.as_ref(),
        late,
        cgroup: container.cgroup(spec),
        permitted: capabilities(None).act("read capabilities")?.permitted,
        dev_by: container.dev_by(),
    };
    if !is_unified() {
        join(&spec.cgroups).act("enter the control group of the step")?;
    }
    if joins {
        if facts.is_sandbox() {
            limit_devices(&container.devices()).act("limit devices by a control group")?;
        }
        hide_hybrid().act("hide the unified hierarchy")?;
    }
    Bundle::write(staging, container, &facts, joins).act("write the bundle")
}

/// Goes into control groups, and with it what is started later.
fn join(groups: &[PathBuf]) -> io::Result<()> {
    groups.iter().try_for_each(|file| fs::write(file, "0"))
}

/// Goes into a control group without the host's devices: crun lets those of the root open. What a
/// step makes itself, it may.
fn limit_devices(group: &Path) -> io::Result<()> {
    fs::create_dir_all(group)?;
    fs::write(group.join("devices.deny"), "a")?;
    for allowed in DEVICES {
        fs::write(group.join("devices.allow"), allowed)?;
    }
    fs::write(group.join("cgroup.procs"), "0")
}

/// On hosts that mix both kinds of hierarchies crun gives up, also where it is to leave them alone.
fn hide_hybrid() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open("/sys/fs/cgroup/unified", flags, Mode::empty()) {
        Ok(place) => {
            let empty = mount::filesystem("tmpfs", &[], MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            mount::attach(empty.as_fd(), place.as_fd())
        }
        // Not one of those.
        Err(_) => Ok(()),
    }
}

/// A bundle, in the sandbox's file system in memory, and how it is run.
struct Bundle {
    command: Command,
    log: PathBuf,
}

impl Bundle {
    fn write(
        staging: &Path,
        container: &Container,
        facts: &Facts<'_>,
        joins: bool,
    ) -> io::Result<Self> {
        let directory = staging.join("bundle");
        fs::create_dir(&directory)?;
        let config = serde_json::to_vec(&facts.config())?;
        fs::write(directory.join("config.json"), config)?;
        let log = staging.join("log");
        let mut command = Command::new(&container.program.path);
        if joins {
            command.arg("--cgroup-manager=disabled");
        }
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .current_dir("/")
            .arg("--root")
            .arg(staging.join("state"))
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json", "run", "--bundle"])
            .arg(directory)
            .arg(&container.id);
        Ok(Self { command, log })
    }

    /// Starts the runtime; its log is where it says why it failed.
    fn start(mut self) -> io::Result<(Child, PathBuf)> {
        let inherit = Stdio::inherit;
        let command = self.command.stdin(inherit()).stdout(inherit());
        Ok((command.stderr(inherit()).spawn()?, self.log))
    }
}

/// What the runtime's end means. It ends with the code of the process, or with one of its own after
/// it has said in its log what went wrong.
fn ended(status: ExitStatus, log: &Path, program: &Program) -> Result<Exit, Failure> {
    if !status.success()
        && let Some(message) = last_error(log)
    {
        return Err(Failure::Oci {
            runtime: program.name(),
            message,
        });
    }
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(Exit::Code(code)),
        (None, signal) => Ok(Exit::Signal(signal.unwrap_or_default())),
    }
}

/// The last error in a log of JSON lines, each of which has a level and a message: `msg` is what runc and
/// crun call it, `message` youki.
fn last_error(log: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(log).ok()?;
    file.take(LONGEST_LOG).read_to_string(&mut text).ok()?;
    let lines = text.lines().rev();
    let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find_map(|line| {
        let level = line["level"].as_str()?.to_lowercase();
        let message = line["msg"].as_str();
        let message = message.or_else(|| line["message"].as_str());
        let message = message.or_else(|| line["fields"]["message"].as_str())?;
        matches!(level.as_str(), "error" | "fatal").then(|| message.to_owned())
    })
}
