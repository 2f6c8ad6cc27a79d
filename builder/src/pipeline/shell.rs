//! A shell in a step of the last build: in the one that failed, as far as it got, or in any other.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_registry::digest::Digest;
use kiln_registry::spec::config::ContainerConfig;

use super::record::{Machine, Record, Step};
use super::run::Invocation;
use crate::event::Stream;
use crate::graph::{MountOp, RunOp};
use crate::runtime::{Attached, Exit, RuntimeError, Streams};
use crate::step::secrets::SecretSource;
use crate::step::{self, Foreground, Settings, Stack, StepError, Worker};
use crate::store::{Held, Store, StoreError};

/// The shell where nothing says another.
const SHELL: &str = "/bin/sh";
/// What docker tells programs that have a terminal.
const TERM: &str = "xterm";

/// A step of the last build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that failed.
    Failed,
    /// The one with this number, as plain progress counts, or this place, as in `2/5` or
    /// `builder 2/5`.
    Named(String),
}

/// Why no shell was opened.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// Nothing was built on this store yet, or by another kiln.
    #[error("nothing is known of a last build on this store")]
    NoBuild,
    /// The last build did not fail.
    #[error("the last build on this store did not fail")]
    NotFailed,
    /// What a failed step had changed was removed.
    #[error("the files of the failed step `{0}` are gone: removing images frees their space, too")]
    Gone(String),
    /// The build has no such step.
    #[error("the last build on this store had no step `{wanted}`; it had {known}")]
    NoStep {
        /// What was asked for.
        wanted: String,
        /// The steps that it had.
        known: String,
    },
    /// The step was not reached.
    #[error("the step `{0}` was not run")]
    NotRun(String),
    /// There is no shell to run.
    #[error("{place} has no shell `{shell}`")]
    NoShell {
        /// Where, as in "the step `[2/3] RUN make`".
        place: String,
        /// What was looked for.
        shell: String,
    },
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The process could not be started, or was cancelled.
    #[error("{0}")]
    Step(#[from] StepError),
}

impl ShellError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoBuild | Self::Gone(_) | Self::NotRun(_) => Some("build it again"),
            Self::NotFailed => Some("--step N opens any of its steps"),
            Self::NoShell { .. } => {
                Some("give a command that it has, as in `kiln shell --failed -- /app --version`")
            }
            _ => None,
        }
    }
}

/// A step, ready for a shell or another process.
#[derive(Debug)]
pub struct Shell {
    name: String,
    state: State,
    op: RunOp,
    root: Stack,
    changes: Option<Held>,
    inputs: Vec<Stack>,
    known: BTreeMap<usize, Digest>,
    secrets: Vec<SecretSource>,
    machine: Machine,
}

/// How much of a step is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    AsFarAsItGot,
    After,
}

impl Shell {
    /// Opens a step of the last build; with `before` as it was before it ran.
    ///
    /// # Errors
    /// [`ShellError`] when there is no such step, or its files are gone.
    pub fn open(store: &Arc<Store>, which: &Which, before: bool) -> Result<Self, ShellError> {
        let record = store.last()?;
        let record = record.and_then(|bytes| Record::parse(&bytes));
        let record = record.ok_or(ShellError::NoBuild)?;
        let index = match which {
            Which::Failed => record.failed.as_ref().map(|failed| failed.step),
            Which::Named(wanted) => Some(find(&record, wanted)?),
        };
        let index = index.ok_or(ShellError::NotFailed)?;
        let step = &record.steps[index];
        let failed = record.failed.as_ref().filter(|failed| failed.step == index);
        let mut changes = None;
        let state = match failed {
            _ if before => State::Before,
            None if step.done => State::After,
            None => return Err(ShellError::NotRun(step.name.clone())),
            Some(failed) => match &failed.changes {
                Some(name) => {
                    let held = store.hold_failed(name)?;
                    changes = Some(held.ok_or_else(|| ShellError::Gone(step.name.clone()))?);
                    State::AsFarAsItGot
                }
                None => State::Before,
            },
        };
        let root = match (state, step.inputs.first()) {
            (State::After, _) => record.result(index),
            (_, Some(input)) => record.result(*input),
            (_, None) => Stack::default(),
        };
        let of_image = |id: &Digest| Some(process_of(&store.config(id).ok()?.config));
        let op = record.process(index, of_image);
        let op = op.unwrap_or_else(|| process_of(&ContainerConfig::default()));
        let inputs = step.inputs.iter().skip(1);
        Ok(Self {
            name: step.name.clone(),
            state,
            op,
            root,
            changes,
            inputs: inputs.map(|input| record.result(*input)).collect(),
            known: step.known.clone(),
            secrets: record.secrets,
            machine: record.machine,
        })
    }

    /// What is opened, for a person.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = match self.state {
            State::Before => "as it was before it",
            State::AsFarAsItGot => "as far as it got",
            State::After => "as it left it",
        };
        format!("{} ({state})", self.name)
    }

    /// Where the secrets came from that the step's mounts show.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretSource> {
        let mounts = |wanted: &str| {
            self.op
                .mounts
                .iter()
                .any(|mount| matches!(mount, MountOp::Secret { id, .. } if id == wanted))
        };
        self.secrets.iter().filter(move |source| mounts(&source.id))
    }

    /// The secrets that the step's mounts show and these settings do not have.
    pub fn absent<'a>(&'a self, settings: &'a Settings) -> impl Iterator<Item = &'a str> {
        self.op.mounts.iter().filter_map(|mount| match mount {
            MountOp::Secret { id, .. } if !settings.secrets.contains_key(id) => Some(id.as_str()),
            _ => None,
        })
    }

    /// The agents of ssh that the step's mounts show and these settings do not have.
    pub fn absent_agents<'a>(&'a self, settings: &'a Settings) -> impl Iterator<Item = &'a str> {
        self.op.mounts.iter().filter_map(|mount| match mount {
            MountOp::Ssh { id, .. } if !settings.agents.contains_key(id) => Some(id.as_str()),
            _ => None,
        })
    }

    /// Adds what the build had of the machine's settings.
    #[must_use]
    pub fn settings(&self, settings: Settings) -> Settings {
        Settings {
            host_ca: self.machine.host_ca.clone(),
            proxies: self.machine.proxies.clone(),
            hosts: self.machine.hosts.clone(),
            seccomp: self.machine.seccomp.clone(),
            ..settings
        }
    }

    /// Runs a command, or without one a shell: that of the step, else `/bin/sh`. Blocks. What is
    /// changed is thrown away, what is written to cache mounts is not.
    ///
    /// # Errors
    /// [`ShellError`] when it was not started, or cancelled; how it ended is no error.
    pub fn run(
        &self,
        worker: &Worker,
        command: &[String],
        user: Option<&str>,
        streams: Streams,
        attached: Attached<'_>,
        output: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<Exit, ShellError> {
        let shell = shell_of(&self.op.args);
        let mut op = self.op.clone();
        op.args = match command {
            [] => vec![shell.to_owned()],
            command => command.to_vec(),
        };
        if let Some(user) = user {
            user.clone_into(&mut op.user);
        }
        if matches!(streams, Streams::Terminal { .. })
            && !op.env.iter().any(|(name, _)| name == "TERM")
        {
            op.env.push(("TERM".to_owned(), TERM.to_owned()));
        }
        for mount in &mut op.mounts {
            // What is absent was said; it is no reason to see nothing at all.
            if let MountOp::Secret { required, .. } | MountOp::Ssh { required, .. } = mount {
                *required = false;
            }
        }
        let process = Foreground {
            op: &op,
            root: &self.root,
            changes: self.changes.as_ref().map(Held::path),
            inputs: &self.inputs,
            known: &self.known,
            mounts: Vec::new(),
            read_only: false,
            streams,
        };
        let exit = step::foreground(worker, &process, attached, output);
        exit.map_err(|error| match error {
            StepError::Runtime(
                RuntimeError::NotFound { .. }
                | RuntimeError::NotInPath { .. }
                | RuntimeError::NoInterpreter { .. },
            ) if command.is_empty() => ShellError::NoShell {
                place: format!("the step `{}`", self.name),
                shell: shell.to_owned(),
            },
            error => error.into(),
        })
    }
}

/// The shell of an image: what its `SHELL` says.
///
/// # Errors
/// When the image's config cannot be read.
pub fn image_shell(store: &Store, image: &Digest) -> Result<String, StoreError> {
    let config = store.config(image)?.config;
    Ok(shell_of(&config.shell.unwrap_or_default()).to_owned())
}

/// The program that runs a shell command, if these are the arguments of one.
fn shell_of(args: &[String]) -> &str {
    let first = args.first().map_or("", String::as_str);
    let name = first.rsplit('/').next().unwrap_or_default();
    match name {
        "sh" | "ash" | "bash" | "dash" | "zsh" | "ksh" | "fish" => first,
        _ => SHELL,
    }
}

/// A process in what an image says, as a step on top of it would have it.
fn process_of(config: &ContainerConfig) -> RunOp {
    let shell = config.shell.clone().unwrap_or_default();
    let mut op = Invocation::default().around(config, shell, Vec::new());
    op.env.retain(|(name, _)| name != "HOSTNAME");
    op.hostname = None;
    op
}

/// Finds a step by its number or its place.
fn find(record: &Record, wanted: &str) -> Result<usize, ShellError> {
    let number = wanted.trim_start_matches('#').parse::<usize>().ok();
    let place = wanted.trim_start_matches('[').trim_end_matches(']');
    let is_it = |step: &Step| match number {
        Some(number) => step.number == Some(number),
        None => {
            step.number.is_some()
                && step
                    .name
                    .strip_prefix('[')
                    .and_then(|name| name.split(']').next())
                    == Some(place)
        }
    };
    record.steps.iter().position(is_it).ok_or_else(|| {
        let named = |step: &Step| Some((step.number?, format!("#{} {}", step.number?, step.name)));
        let known: BTreeMap<_, _> = record.steps.iter().filter_map(named).collect();
        let known: Vec<_> = known.into_values().collect();
        ShellError::NoStep {
            wanted: wanted.to_owned(),
            known: known.join(", "),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_is_that_of_the_command() {
        let shell = |args: &[&str]| {
            let args: Vec<_> = args.iter().map(ToString::to_string).collect();
            shell_of(&args).to_owned()
        };
        assert_eq!(
            shell(&["/bin/bash", "-o", "pipefail", "-c", "make"]),
            "/bin/bash"
        );
        assert_eq!(shell(&["ash", "-c", "make"]), "ash");
        assert_eq!(shell(&["/usr/bin/make"]), "/bin/sh");
        assert_eq!(shell(&[]), "/bin/sh");
    }
}
