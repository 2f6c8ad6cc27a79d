//! `RUN`: a process in a sandbox on top of a stack of layers.

use std::collections::BTreeSet;
use std::path::Path;

use super::mounts::Mounts;
use super::{Inputs, StepError, Worker, adopt, opaque};
use crate::event::{Event, Stream};
use crate::graph::{Network, RunOp, Security};
use crate::runtime::cgroup::{Groups, MemoryKill, Report};
use crate::runtime::network::{self, HostEntry, Lease};
use crate::runtime::{self, Exit, Files, Isolation, Mount, Privileges, ProcessSpec, Root, Streams};
use crate::snapshot::{Active, SnapshotId, Writable};

/// Host name inside the sandbox (B4.3).
const HOSTNAME: &str = "buildkitsandbox";
/// Size of `/dev/shm`, bytes (B5.3).
const SHM_SIZE: u64 = 64 << 20;
/// Where the host's certificates appear for programs that are told by a variable.
const CA_FILE: &str = "/dev/kiln-host-ca.crt";
/// Where programs look for certificates by themselves: Debian and Alpine, Alpine's OpenSSL, Red Hat.
const CA_PATHS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// Variables that tell OpenSSL, pip, requests, Node, npm, curl, git and others where to look.
const CA_VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
];

/// Lines of output that an error repeats.
const TAIL: usize = 20;
/// Bytes of one line that an error repeats.
const TAIL_LINE: usize = 4096;

/// Runs the process; its changes are in the active snapshot afterwards.
pub(super) fn execute(
    worker: &Worker,
    op: &RunOp,
    inputs: &Inputs<'_>,
    stack: &[SnapshotId],
    active: &Active,
) -> Result<(), StepError> {
    let mut writable = worker.snapshots.writable(stack)?;
    let root = Root {
        files: match &writable {
            Writable::Layers(lowers) => Files::Overlay {
                lowers: lowers.clone(),
                upper: active.upper(),
            },
            Writable::Tree(tree) => Files::Tree(tree.path()),
        },
        work: active.work(),
        points: worker.mount_points()?,
        read_only: false,
    };
    let step = inputs.id.index();
    let mut mounts = Mounts::make(worker, op, inputs, step)?;
    let lease = lease(worker, op)?;
    let mut spec = specification(worker, op, &mut mounts, root, stack, lease.as_ref())?;
    let groups = groups(worker, op)?;
    spec.cgroups = groups.as_ref().map(Groups::procs).unwrap_or_default();
    if let Writable::Tree(tree) = &mut writable {
        for place in spec.places() {
            tree.tolerate(place)?;
        }
    }
    let mut tail = Tail::default();
    let mut show = |stream, bytes: Vec<u8>| {
        if !bytes.is_empty() {
            tail.add(&bytes);
            let output = Event::Output {
                step,
                stream,
                bytes,
            };
            worker.observer.tell(output);
        }
    };
    let exit = worker.runtime.run(
        &spec,
        &mut |stream, bytes| show(stream, mounts.mask.push(stream, bytes)),
        &worker.cancel,
    );
    for stream in [Stream::Stdout, Stream::Stderr] {
        show(stream, mounts.mask.finish(stream));
    }
    let report = groups.map(Groups::finish).unwrap_or_default();
    if let Ok(exit) = exit {
        for text in remarks(exit, &report) {
            let step = Some(step);
            worker.observer.tell(Event::Note { step, text });
        }
    }
    let error = match exit {
        Ok(Exit::Code(0)) => {
            return match writable {
                Writable::Layers(_) => {
                    adopt::adopt(worker, stack, &op.user, &active.upper())?;
                    opaque::settle(worker, stack, &active.upper())
                }
                Writable::Tree(tree) => {
                    // There, because the tree stays for the next step.
                    adopt::adopt(worker, stack, &op.user, &tree.path())?;
                    let keep = inputs.graph.is_run_upon(inputs.id);
                    Ok(worker.snapshots.collect(*tree, stack, active, keep)?)
                }
            };
        }
        Ok(exit) => failure(shown(&op.args), exit, report.memory, tail.lines()),
        Err(error) => error.into(),
    };
    if let (Writable::Tree(tree), false) = (writable, matches!(error, StepError::Cancelled)) {
        // For a shell in the step; what cannot be collected is not to be seen there.
        drop(worker.snapshots.collect(*tree, stack, active, false));
    }
    Err(error)
}

/// Why a step failed: what its process says of itself, or what the kernel did to it.
fn failure(command: String, exit: Exit, kill: Option<MemoryKill>, log: Vec<String>) -> StepError {
    match (kill, exit) {
        (Some(kill), exit) => StepError::Memory {
            command,
            exit,
            kill,
            log,
        },
        (None, Exit::Code(code)) => StepError::Exit { command, code, log },
        (None, Exit::Signal(signal)) => StepError::Signal {
            command,
            signal,
            log,
        },
    }
}

/// What a step's control groups tell and its result does not.
fn remarks(exit: Exit, report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    match (exit, &report.memory, report.processes) {
        (Exit::Code(0), Some(kill), _) => remarks.push(format!(
            "a process of this step was killed, and the step succeeded all the same: {kill}"
        )),
        (Exit::Code(0), ..) => {}
        (_, _, Some((hits, limit))) => remarks.push(format!(
            "--pids-limit: {hits} times no process could be started, because there were {limit}"
        )),
        _ => {}
    }
    remarks
}

/// The control groups that keep a step's limits.
pub(super) fn groups(worker: &Worker, op: &RunOp) -> Result<Option<Groups>, StepError> {
    let parent = worker.settings.cgroup_parent.as_deref();
    Ok(Groups::make(&op.limits.resources, parent)?)
}

fn shown(args: &[String]) -> String {
    args.join(" ")
}

/// The process of an operation in a root, with all that the machine gives to it.
pub(super) fn specification(
    worker: &Worker,
    op: &RunOp,
    made: &mut Mounts,
    root: Root,
    stack: &[SnapshotId],
    lease: Option<&Lease>,
) -> Result<ProcessSpec, StepError> {
    let mut env = op.env.clone();
    let mut mounts = std::mem::take(&mut made.mounts);
    for script in &op.scripts {
        let target = format!("/dev/pipes/{}", script.name);
        mounts.push(Mount::File {
            content: script.content.clone().into_bytes().into(),
            target,
            mode: 0o755,
            owner: (0, 0),
        });
    }
    // The machine's own settings come last and never override what the Dockerfile says.
    for (name, value) in &made.env {
        set_default(&mut env, name, value);
    }
    for (name, value) in &worker.settings.proxies {
        set_default(&mut env, name, value);
    }
    if let Some(bundle) = &worker.settings.host_ca {
        for name in CA_VARIABLES {
            set_default(&mut env, name, CA_FILE);
        }
        mounts.push(bind(bundle, CA_FILE));
        mounts.extend(
            present(worker, stack, &CA_PATHS)?
                .iter()
                .map(|path| bind(bundle, path)),
        );
    }
    let hostname = op.hostname.as_deref().unwrap_or(HOSTNAME);
    let network = match (op.network, lease) {
        (_, Some(lease)) => lease.network(),
        (Network::None, None) => runtime::Network::None,
        (Network::Host | Network::Default, None) => runtime::Network::Host,
    };
    let view = network.view();
    Ok(ProcessSpec {
        args: op.args.clone(),
        env,
        secret_env: std::mem::take(&mut made.secret_env),
        cwd: op.cwd.clone(),
        user: op.user.clone(),
        root,
        hostname: hostname.to_owned(),
        hosts: network::hosts(hostname, &extra_hosts(worker, op), view),
        resolv_conf: network::resolv_conf(Path::new("/"), view),
        network,
        mounts,
        shm_size: op.limits.shm_size.unwrap_or(SHM_SIZE),
        rlimits: op
            .limits
            .ulimits
            .iter()
            .map(|limit| (limit.name.clone(), limit.soft, limit.hard))
            .collect(),
        privileges: match op.security {
            Security::Sandbox => Privileges::Sandbox(worker.settings.seccomp.clone()),
            Security::Insecure => Privileges::Insecure,
        },
        cgroups: Vec::new(),
        isolation: worker.settings.isolation,
        streams: Streams::Pipes,
    })
}

fn set_default(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    if !env.iter().any(|(known, _)| known == name) {
        env.push((name.to_owned(), value.to_owned()));
    }
}

fn bind(source: &Path, target: &str) -> Mount {
    Mount::Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        writable: false,
    }
}

/// Those of the paths that are files of the image. A bundle that the image does not have is not
/// mounted over: installing one (`apt-get install ca-certificates`) has to stay possible.
fn present(
    worker: &Worker,
    stack: &[SnapshotId],
    paths: &[&'static str],
) -> Result<Vec<&'static str>, StepError> {
    let Some(view) = worker.snapshots.view(stack)? else {
        return Ok(Vec::new());
    };
    // Two of the paths may be one file by way of links; one mount shows in both.
    let mut seen = BTreeSet::new();
    Ok(paths
        .iter()
        .filter(|path| {
            let Ok(stat) = view.stat(Path::new(path), true) else {
                return false;
            };
            let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::RegularFile;
            regular && seen.insert((stat.st_dev, stat.st_ino))
        })
        .copied()
        .collect())
}

/// A network for a step that wants the default one. One that may do everything may also change it.
pub(super) fn lease(worker: &Worker, op: &RunOp) -> Result<Option<Lease>, StepError> {
    // Without namespaces there is but one network.
    if op.network != Network::Default || worker.settings.isolation == Isolation::Chroot {
        return Ok(None);
    }
    let mut lease = worker.networks.take()?;
    if op.security == Security::Insecure {
        lease.spoil();
    }
    Ok(Some(lease))
}

/// The hosts that the step's definition names, with what they stand for on this machine.
fn extra_hosts(worker: &Worker, op: &RunOp) -> Vec<HostEntry> {
    let hosts = worker.settings.hosts.iter();
    hosts
        .filter(|host| op.extra_hosts.contains(&host.name))
        .cloned()
        .collect()
}

/// The last lines of a process's output, in bounded memory.
#[derive(Debug, Default)]
struct Tail {
    lines: std::collections::VecDeque<Vec<u8>>,
    open: bool,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if !self.open {
                self.lines.push_back(Vec::new());
                if self.lines.len() > TAIL {
                    self.lines.pop_front();
                }
            }
            self.open = !piece.ends_with(b"\n");
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            if let Some(line) = self.lines.back_mut() {
                let room = TAIL_LINE.saturating_sub(line.len());
                line.extend_from_slice(&text[..text.len().min(room)]);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lines
            .iter()
            .map(|line| {
                String::from_utf8_lossy(line)
                    .trim_end_matches('\r')
                    .to_owned()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_however_they_arrive() {
        let mut tail = Tail::default();
        for number in 0..50 {
            tail.add(b"li");
            tail.add(format!("ne {number}\n").as_bytes());
        }
        tail.add(b"unfinished");
        let lines = tail.lines();
        assert_eq!(lines.len(), TAIL);
        assert_eq!(lines[0], "line 31");
        assert_eq!(lines[TAIL - 1], "unfinished");
        tail.add(&vec![b'x'; 1 << 20]);
        assert_eq!(tail.lines()[TAIL - 1].len(), TAIL_LINE);
    }
}
