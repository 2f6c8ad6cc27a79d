//! The record of a build: enough of its steps to open a shell in any of them later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_grammar::mount::Sharing;
use kiln_registry::digest::Digest;
use kiln_registry::spec::DiffId;
use serde::{Deserialize, Serialize};

use crate::event::{Event, Observer, masked};
use crate::graph::{Graph, MountOp, Op, RunOp, VertexId};
use crate::lower::Plan;
use crate::runtime::Seccomp;
use crate::runtime::network::HostEntry;
use crate::schedule::{Failure, Schedule};
use crate::snapshot::{Active, SnapshotId};
use crate::step::secrets::SecretSource;
use crate::step::{Settings, Stack, StepError, Worker};

/// Version of the record's form; one of another version is no record.
const VERSION: u32 = 1;

/// What is known of a build that has ended.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Record {
    version: u32,
    /// The vertices of its graph, with the same indices.
    pub(super) steps: Vec<Step>,
    pub(super) failed: Option<Failed>,
    /// Where its secrets came from; never what they are.
    pub(super) secrets: Vec<SecretSource>,
    pub(super) machine: Machine,
}

/// Of a build's settings, what makes a difference for a person in one of its steps.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Machine {
    pub(super) host_ca: Option<PathBuf>,
    pub(super) proxies: Vec<(String, String)>,
    pub(super) hosts: Vec<HostEntry>,
    pub(super) seccomp: Seccomp,
}

/// The step that failed.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Failed {
    /// Its index.
    pub(super) step: usize,
    /// The folder with what it had changed, where it ran a process.
    pub(super) changes: Option<String>,
}

/// One step.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Step {
    /// As progress names it.
    pub(super) name: String,
    /// As progress counts it, from 1; `None` where it was not mentioned.
    pub(super) number: Option<usize>,
    /// Indices of its inputs.
    pub(super) inputs: Vec<usize>,
    /// Whether it has a result.
    pub(super) done: bool,
    kind: Kind,
    /// The layer it put on its first input.
    layer: Option<SnapshotId>,
    /// See [`crate::step::Inputs::known`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) known: BTreeMap<usize, Digest>,
}

/// What a step does, as far as it matters for a shell.
#[derive(Debug, Deserialize, Serialize)]
enum Kind {
    /// It begins with an image: its config, and its layers.
    Image(Digest, Vec<DiffId>),
    /// It runs a process. What the process's encoding leaves out of cache mounts stands beside it.
    Run(RunOp, Vec<(String, u8)>),
    /// It makes a working directory.
    Directory(String),
    /// It puts a layer on its first input.
    Layer,
    /// It begins with nothing.
    Source,
}

/// Counts steps as whoever watches does: in the order in which they are first mentioned.
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<BTreeMap<usize, usize>>);

impl Numbers {
    /// The observer, and the numbers of what it is told.
    pub(super) fn of(observer: Observer) -> (Observer, Arc<Self>) {
        let numbers = Arc::new(Self::default());
        let count = Arc::clone(&numbers);
        let observer = Observer::new(move |event| {
            // Held until it is shown: two steps that begin at once get the same numbers there.
            let mut mentioned = count.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(step) = step_of(&event) {
                let next = mentioned.len() + 1;
                mentioned.entry(step).or_insert(next);
            }
            observer.tell(event);
        });
        (observer, numbers)
    }

    fn number(&self, step: usize) -> Option<usize> {
        let mentioned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mentioned.get(&step).copied()
    }
}

fn step_of(event: &Event) -> Option<usize> {
    match event {
        Event::Started { step, .. }
        | Event::Cached { step, .. }
        | Event::Miss { step, .. }
        | Event::Output { step, .. }
        | Event::Done { step, .. }
        | Event::Failed { step, .. }
        | Event::Cancelled { step } => Some(*step),
        Event::Note { step, .. } => *step,
        Event::Blob { .. } | Event::Explained(_) => None,
    }
}

impl Record {
    /// The record of a build that has ended.
    pub(super) fn new(
        graph: &Graph,
        schedule: &Schedule,
        numbers: &Numbers,
        secrets: &[SecretSource],
        settings: &Settings,
        failed: Option<Failed>,
    ) -> Self {
        let steps = graph
            .ids()
            .map(|id| Step::new(graph, schedule, numbers, id));
        Self {
            version: VERSION,
            steps: steps.collect(),
            failed,
            secrets: secrets.to_vec(),
            machine: Machine {
                host_ca: settings.host_ca.clone(),
                proxies: settings.proxies.clone(),
                hosts: settings.hosts.clone(),
                seccomp: settings.seccomp.clone(),
            },
        }
    }

    /// Reads a record; `None` for what is none of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut record: Self = serde_json::from_slice(bytes).ok()?;
        if record.version != VERSION {
            return None;
        }
        let count = record.steps.len();
        // Inputs have smaller indices, so that walking down them ends.
        let ordered =
            |(index, step): (usize, &Step)| step.inputs.iter().all(|input| *input < index);
        let failed = record.failed.as_ref();
        if !record.steps.iter().enumerate().all(ordered)
            || failed.is_some_and(|one| one.step >= count)
        {
            return None;
        }
        for step in &mut record.steps {
            step.complete();
        }
        Some(record)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // Serialising plain structs, strings and numbers cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The files that a step left.
    pub(super) fn result(&self, index: usize) -> Stack {
        let mut layers = Vec::new();
        let mut at = Some(index);
        let mut image = Vec::new();
        while let Some(step) = at.and_then(|index| self.steps.get(index)) {
            layers.extend(step.layer.clone());
            at = match &step.kind {
                Kind::Image(_, below) => {
                    image.clone_from(below);
                    None
                }
                Kind::Source => None,
                Kind::Run(..) | Kind::Directory(_) | Kind::Layer => step.inputs.first().copied(),
            };
        }
        layers.reverse();
        Stack {
            image,
            built: layers,
        }
    }

    /// The process that a step runs; for one that runs none, that of the step or the image below it
    /// whose environment, user and directory it shares.
    pub(super) fn process(
        &self,
        index: usize,
        config: impl Fn(&Digest) -> Option<RunOp>,
    ) -> Option<RunOp> {
        let mut at = Some(index);
        let mut directory = None;
        while let Some(step) = at.and_then(|index| self.steps.get(index)) {
            let found = match &step.kind {
                Kind::Run(op, _) => Some(op.clone()),
                Kind::Image(id, _) => config(id),
                Kind::Directory(path) => {
                    directory.get_or_insert_with(|| path.clone());
                    None
                }
                Kind::Layer | Kind::Source => None,
            };
            if let Some(mut op) = found {
                if at != Some(index) {
                    op.mounts.clear();
                    op.scripts.clear();
                }
                op.cwd = directory.unwrap_or(op.cwd);
                return Some(op);
            }
            at = step.inputs.first().copied();
        }
        None
    }
}

impl Step {
    fn new(graph: &Graph, schedule: &Schedule, numbers: &Numbers, id: VertexId) -> Self {
        let vertex = graph.vertex(id);
        let result = schedule.result_of(id);
        let kind = match &vertex.op {
            Op::Image(image) => Kind::Image(image.config, image.layers.clone()),
            Op::Run(op) => Kind::Run(op.clone(), op.mounts.iter().map(left_out).collect()),
            Op::Mkdir(op) => Kind::Directory(op.path.clone()),
            Op::Copy(_) => Kind::Layer,
            Op::Scratch | Op::Context(_) | Op::Fetch(_) | Op::Git(_) => Kind::Source,
        };
        let layer = match kind {
            Kind::Image(..) => None,
            _ => result.and_then(|stack| schedule.here(stack.built.last()?)),
        };
        let elsewhere = layer.is_none() && result.is_some_and(|stack| !stack.built.is_empty());
        let known = match kind {
            Kind::Run(..) => schedule.known_of(id),
            _ => BTreeMap::new(),
        };
        Self {
            // A password in an address is of no use for a shell.
            name: masked(&vertex.name),
            number: numbers.number(id.index()),
            inputs: vertex.inputs.iter().map(|input| input.index()).collect(),
            // What came from a cache elsewhere and nobody needed is not here.
            done: result.is_some() && !elsewhere,
            kind,
            layer,
            known,
        }
    }

    /// Puts back what the encoding of an operation leaves out.
    fn complete(&mut self) {
        let Kind::Run(op, left_out) = &mut self.kind else {
            return;
        };
        for (mount, (known, number)) in op.mounts.iter_mut().zip(left_out) {
            if let MountOp::Cache { id, sharing, .. } = mount {
                id.clone_from(known);
                *sharing = match number {
                    1 => Sharing::Private,
                    2 => Sharing::Locked,
                    _ => Sharing::Shared,
                };
            }
        }
    }
}

/// What is no part of a mount's identity, and therefore not in its encoding: see [`MountOp::Cache`].
fn left_out(mount: &MountOp) -> (String, u8) {
    match mount {
        MountOp::Cache { id, sharing, .. } => {
            let number = match sharing {
                Sharing::Shared => 0,
                Sharing::Private => 1,
                Sharing::Locked => 2,
            };
            (id.clone(), number)
        }
        _ => (String::new(), 0),
    }
}

/// Keeps what a shell in a step needs later.
pub(super) struct Keep<'a> {
    pub(super) worker: &'a Worker,
    pub(super) plan: &'a Plan,
    pub(super) schedule: &'a Schedule,
    pub(super) numbers: &'a Numbers,
    pub(super) secrets: &'a [SecretSource],
}

impl Keep<'_> {
    /// Records how a build ended; one that was cancelled leaves the record of the build before. Says
    /// whether what a failed process had changed is kept: that costs a rename. Nothing of it makes a
    /// build fail.
    pub(super) fn record(&self, failure: Option<&Failure>) -> bool {
        if matches!(failure, Some(failure) if matches!(failure.error, StepError::Cancelled)) {
            return false;
        }
        let left = failure.and_then(|failure| {
            let failed = self.worker.failed.lock();
            let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
            failed.remove(&failure.vertex.index())
        });
        let files = left.as_ref().map(Active::upper);
        let name = files.as_deref().and_then(Path::file_name);
        let failed = failure.map(|failure| Failed {
            step: failure.vertex.index(),
            changes: name.map(|name| name.to_string_lossy().into_owned()),
        });
        let kept = files.is_some();
        let record = Record::new(
            &self.plan.graph,
            self.schedule,
            self.numbers,
            self.secrets,
            &self.worker.settings,
            failed,
        );
        match self
            .worker
            .store
            .set_last(&record.encode(), files.as_deref())
        {
            Ok(()) => kept,
            Err(error) => {
                self.worker.observer.tell(Event::Note {
                    step: None,
                    text: format!("no shell can be opened in the steps of this build: {error}"),
                });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_as_they_are_shown() {
        let (observer, numbers) = Numbers::of(Observer::silent());
        for step in [7, 3, 7, 5] {
            observer.tell(Event::Cancelled { step });
        }
        observer.tell(Event::Note {
            step: None,
            text: String::new(),
        });
        assert_eq!(
            [7, 3, 5, 4].map(|step| numbers.number(step)),
            [Some(1), Some(2), Some(3), None]
        );
    }

    fn record(inputs: &[usize], failed: usize) -> Vec<u8> {
        let step = |inputs: &[usize]| Step {
            name: "[1/2] RUN make".to_owned(),
            number: Some(1),
            inputs: inputs.to_vec(),
            done: true,
            kind: Kind::Layer,
            layer: Some(SnapshotId::from_name("layer".to_owned())),
            known: BTreeMap::new(),
        };
        let record = Record {
            version: VERSION,
            steps: vec![step(&[]), step(inputs)],
            failed: Some(Failed {
                step: failed,
                changes: None,
            }),
            secrets: Vec::new(),
            machine: Machine {
                host_ca: None,
                proxies: Vec::new(),
                hosts: Vec::new(),
                seccomp: Seccomp::Default,
            },
        };
        record.encode()
    }

    #[test]
    fn a_record_that_leads_nowhere_is_none() {
        let good = Record::parse(&record(&[0], 1)).unwrap();
        assert_eq!(good.result(1).built.len(), 2);
        for bad in [record(&[1], 1), record(&[2], 1), record(&[0], 2)] {
            assert!(Record::parse(&bad).is_none());
        }
        assert!(Record::parse(b"{}").is_none());
        let text = String::from_utf8(record(&[0], 1)).unwrap();
        let other = text.replace("\"version\":1", "\"version\":2");
        assert!(Record::parse(other.as_bytes()).is_none());
    }

    /// Neither is part of a mount's identity, so that its encoding leaves them out.
    #[test]
    fn cache_mounts_come_back_with_their_ids() {
        let mount = MountOp::Cache {
            id: "apt".to_owned(),
            target: "/c".to_owned(),
            sharing: Sharing::Locked,
            writable: true,
            seed: None,
            mode: None,
            uid: None,
            gid: None,
        };
        let encoded = serde_json::to_vec(&(&mount, left_out(&mount))).unwrap();
        let (bare, beside): (MountOp, (String, u8)) = serde_json::from_slice(&encoded).unwrap();
        assert_ne!(bare, mount);
        let mut op = crate::pipeline::Invocation::default().around(
            &kiln_registry::spec::config::ContainerConfig::default(),
            Vec::new(),
            Vec::new(),
        );
        op.mounts = vec![bare];
        let mut step = Step {
            name: String::new(),
            number: None,
            inputs: Vec::new(),
            done: false,
            kind: Kind::Run(op, vec![beside]),
            layer: None,
            known: BTreeMap::new(),
        };
        step.complete();
        let Kind::Run(op, _) = step.kind else {
            panic!("it was one");
        };
        assert_eq!(op.mounts, [mount]);
    }
}
