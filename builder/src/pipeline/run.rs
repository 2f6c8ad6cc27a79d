//! An image's program in the foreground, by docker's rules of `docker run`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::spec::ImageConfig;
use kiln_registry::spec::config::ContainerConfig;

use crate::context::Contexts;
use crate::event::{Observer, Stream};
use crate::graph::{Limits, Network, RunOp, Security};
use crate::runtime::{Attached, Cancel, Exit, Mount, Streams};
use crate::snapshot::{Backend, Snapshots};
use crate::step::{self, Foreground, Settings, Stack, StepError, Worker};
use crate::store::{Store, StoreError};

/// Host name of a process that has none of its own.
const HOSTNAME: &str = "kiln";
/// What docker tells programs that have a terminal.
const TERM: &str = "xterm";
/// `PATH` where an image sets none (A7.3).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the command line says about the process of an image.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// Arguments, instead of the image's `CMD`.
    pub command: Vec<String>,
    /// Program instead of the image's `ENTRYPOINT` and `CMD`; empty for none.
    pub entrypoint: Option<String>,
    /// Environment on top of the image's.
    pub env: Vec<(String, String)>,
    /// Working directory instead of the image's.
    pub cwd: Option<String>,
    /// User instead of the image's.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// What it sees of the network.
    pub network: Network,
    /// What it may use of the machine.
    pub limits: Limits,
    /// Files and folders of the host that it sees.
    pub volumes: Vec<Volume>,
    /// Empty file systems in memory: path and size limit in bytes.
    pub tmpfs: Vec<(String, Option<u64>)>,
    /// Whether it cannot write to its root.
    pub read_only: bool,
    /// What it reads and where it writes.
    pub streams: Streams,
}

/// A file or folder of the host, shown to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is, absolute.
    pub source: PathBuf,
    /// Where it is shown, absolute.
    pub target: String,
    /// Whether the process may write to it.
    pub writable: bool,
}

/// Why an image's program did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Neither the image nor the command line names a program.
    #[error("no command specified")]
    NoCommand,
    /// The image is not here, or damaged.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The process could not be started, or was cancelled.
    #[error("{0}")]
    Step(#[from] StepError),
}

/// Runs the program of an image in the store to its end. Blocks.
///
/// # Errors
/// [`RunError`] when it was not started, or cancelled; how it ended is no error.
pub fn run(
    worker: &Worker,
    image: &Digest,
    invocation: &Invocation,
    attached: Attached<'_>,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Exit, RunError> {
    let config = worker.store.config(image)?;
    let hosts = worker.settings.hosts.iter();
    let hosts = hosts.map(|host| host.name.clone()).collect();
    let op = invocation.process(&config.config, hosts)?;
    let process = Foreground {
        op: &op,
        root: &Stack {
            image: config.rootfs.diff_ids.clone(),
            built: Vec::new(),
        },
        changes: None,
        inputs: &[],
        known: &BTreeMap::new(),
        mounts: invocation.mounts(&config),
        read_only: invocation.read_only,
        streams: invocation.streams,
    };
    Ok(step::foreground(worker, &process, attached, output)?)
}

impl Worker {
    /// A worker that runs single processes, without a build.
    #[must_use]
    pub fn for_processes(
        store: &Arc<Store>,
        backend: Backend,
        client: Client,
        cancel: &Cancel,
        settings: Settings,
    ) -> Self {
        Self {
            snapshots: Snapshots::with(Arc::clone(store), backend),
            store: Arc::clone(store),
            runtime: settings.core(),
            contexts: Contexts::default(),
            client,
            images: BTreeMap::new(),
            observer: Observer::silent(),
            cancel: cancel.clone(),
            networks: settings.networks(Observer::silent()),
            settings,
            failed: Mutex::default(),
            saved: None,
            points: OnceLock::new(),
        }
    }
}

impl Invocation {
    /// The process, by the rules for `ENTRYPOINT` and `CMD` (A9.3).
    fn process(
        &self,
        config: &ContainerConfig,
        extra_hosts: Vec<String>,
    ) -> Result<RunOp, RunError> {
        let set = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (mut args, default) = match &self.entrypoint {
            None => (set(&config.entrypoint), set(&config.cmd)),
            // Arguments for another program are none for this one.
            Some(none) if none.is_empty() => (Vec::new(), Vec::new()),
            Some(program) => (vec![program.clone()], Vec::new()),
        };
        args.extend(match self.command.as_slice() {
            [] => default,
            command => command.to_vec(),
        });
        if args.first().is_none_or(String::is_empty) {
            return Err(RunError::NoCommand);
        }
        Ok(self.around(config, args, extra_hosts))
    }

    /// A process with these arguments in what the image and the command line give to it.
    pub(super) fn around(
        &self,
        config: &ContainerConfig,
        args: Vec<String>,
        extra_hosts: Vec<String>,
    ) -> RunOp {
        let hostname = self.hostname.as_deref().unwrap_or(HOSTNAME);
        let cwd = self.cwd.as_ref().unwrap_or(&config.working_dir);
        RunOp {
            args,
            env: self.environment(config, hostname),
            cwd: if cwd.is_empty() { "/" } else { cwd }.to_owned(),
            user: self.user.as_ref().unwrap_or(&config.user).clone(),
            network: self.network,
            security: Security::Sandbox,
            hostname: Some(hostname.to_owned()),
            scripts: Vec::new(),
            mounts: Vec::new(),
            limits: Box::new(self.limits.clone()),
            extra_hosts,
        }
    }

    /// What docker sets, then what the image sets, then what the command line says.
    fn environment(&self, config: &ContainerConfig, hostname: &str) -> Vec<(String, String)> {
        let mut env = Vec::new();
        let mut set = |name: &str, value: &str| {
            let pair = (name.to_owned(), value.to_owned());
            match env.iter_mut().find(|(known, _)| known == name) {
                Some(known) => *known = pair,
                None => env.push(pair),
            }
        };
        set("PATH", PATH);
        set("HOSTNAME", hostname);
        if matches!(self.streams, Streams::Terminal { .. }) {
            set("TERM", TERM);
        }
        for pair in config.env.iter().flatten() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            set(name, value);
        }
        for (name, value) in &self.env {
            set(name, value);
        }
        env
    }

    fn mounts(&self, config: &ImageConfig) -> Vec<Mount> {
        let tmpfs = self.tmpfs.iter().map(|(target, size)| Mount::Tmpfs {
            target: target.clone(),
            size: *size,
        });
        let volumes = self.volumes.iter().map(|volume| Mount::Bind {
            source: volume.source.clone(),
            target: volume.target.clone(),
            writable: volume.writable,
        });
        // What an image declares as a volume can be written to, also in a root that cannot be.
        let declared = config.config.volumes.iter().flatten();
        let declared = declared
            .filter(|_| self.read_only)
            .map(|(target, _)| Mount::Tmpfs {
                target: target.clone(),
                size: None,
            });
        declared.chain(tmpfs).chain(volumes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(entrypoint: &[&str], cmd: &[&str]) -> ContainerConfig {
        let list = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(ToString::to_string).collect();
            (!words.is_empty()).then_some(words)
        };
        ContainerConfig {
            entrypoint: list(entrypoint),
            cmd: list(cmd),
            ..ContainerConfig::default()
        }
    }

    fn args(entrypoint: Option<&str>, command: &[&str], config: &ContainerConfig) -> String {
        let invocation = Invocation {
            entrypoint: entrypoint.map(ToOwned::to_owned),
            command: command.iter().map(ToString::to_string).collect(),
            ..Invocation::default()
        };
        match invocation.process(config, Vec::new()) {
            Ok(op) => op.args.join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a9_3_entrypoint_and_cmd_make_the_arguments() {
        let both = config(&["/entry", "-x"], &["a", "b"]);
        assert_eq!(args(None, &[], &both), "/entry -x a b");
        assert_eq!(args(None, &["c"], &both), "/entry -x c");
        assert_eq!(args(Some("/other"), &[], &both), "/other");
        assert_eq!(args(Some("/other"), &["c"], &both), "/other c");
        assert_eq!(args(Some(""), &["c"], &both), "c");
        assert_eq!(args(Some(""), &[], &both), "no command specified");
        assert_eq!(args(None, &[], &config(&[], &["sh"])), "sh");
        assert_eq!(args(None, &[], &config(&[], &[])), "no command specified");
    }

    #[test]
    fn the_command_line_overrides_the_image() {
        let config = ContainerConfig {
            env: Some(vec![
                "A=1".to_owned(),
                "B=2".to_owned(),
                "PATH=/p".to_owned(),
            ]),
            user: "app".to_owned(),
            working_dir: "/srv".to_owned(),
            cmd: Some(vec!["sh".to_owned()]),
            ..ContainerConfig::default()
        };
        let plain = Invocation::default().process(&config, Vec::new()).unwrap();
        assert_eq!((plain.user.as_str(), plain.cwd.as_str()), ("app", "/srv"));
        let names: Vec<_> = plain
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(names, ["PATH=/p", "HOSTNAME=kiln", "A=1", "B=2"]);
        let other = Invocation {
            env: vec![("A".to_owned(), "3".to_owned())],
            user: Some("0".to_owned()),
            cwd: Some("/tmp".to_owned()),
            streams: Streams::Terminal {
                rows: 1,
                columns: 1,
            },
            ..Invocation::default()
        };
        let other = other.process(&config, Vec::new()).unwrap();
        assert_eq!((other.user.as_str(), other.cwd.as_str()), ("0", "/tmp"));
        assert!(other.env.contains(&("A".to_owned(), "3".to_owned())));
        assert!(other.env.contains(&("TERM".to_owned(), "xterm".to_owned())));
    }
}
