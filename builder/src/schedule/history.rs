//! What was known of the steps before this build, and what became of each in it: the reasons of
//! misses, how long steps take, and the record that the next build is compared with.
//!
//! All of it is looked up when the first step misses, and written when a build had a step that is
//! not on record: a build that finds everything in the cache reads one list of keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_registry::digest::Digest;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::define::{Definitions, Digested};
use super::{CachePolicy, Schedule, blocking};
use crate::cache::explain::description::{Description, Names};
use crate::cache::explain::files::{compare, pack, unpack};
use crate::cache::explain::reason::{Difference, Reason};
use crate::cache::explain::{Explanation, Step, explain};
use crate::graph::{Graph, ImageOp, Op, VertexId};
use crate::snapshot::SnapshotId;
use crate::step::{Selections, SourceImage, StepError, Worker};
use crate::store::{BuildRecord, FileList, Project, StepRecord, StoreError};

/// What is built, as far as the graph does not say it.
#[derive(Clone, Debug)]
pub struct About {
    /// The Dockerfile in its context.
    pub project: Project,
    /// The variables that `ARG`s set, of each stage.
    pub arguments: Vec<BTreeSet<String>>,
}

/// What the cache knew of a step.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// What progress shows in brackets, for example `builder 2/5`.
    pub step: String,
    /// The instruction.
    pub instruction: String,
    /// Its definition key; none where the build ended before it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `hit`, `miss`, or `not needed`: nothing asked for its result, or the build ended before.
    pub result: &'static str,
    /// Why it was missed: `code`, `text` and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Value>,
    /// How long it took, or for a forecast how long it took the last time, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// What became of a step.
#[derive(Clone, Debug)]
enum Fate {
    Hit,
    Miss(Reason),
}

/// A list of files that is being made.
type Listing = JoinHandle<Option<FileList>>;

/// See the module.
#[derive(Debug)]
pub(super) struct History {
    graph: Arc<Graph>,
    worker: Arc<Worker>,
    about: About,
    /// The steps of this build: the key of each, that of what stands on it, and what it selects.
    definitions: Arc<Definitions>,
    forced: Option<&'static str>,
    compared: OnceLock<Result<Compared, StoreError>>,
    fates: Mutex<BTreeMap<VertexId, Fate>>,
    seconds: Mutex<BTreeMap<VertexId, f64>>,
    lists: Mutex<BTreeMap<VertexId, Listing>>,
    /// What was selected in other stages, by digest.
    selected: Mutex<BTreeMap<VertexId, Digest>>,
}

/// This build against the one before.
#[derive(Debug)]
struct Compared {
    before: Vec<StepRecord>,
    explanations: BTreeMap<VertexId, Explanation>,
}

impl Schedule {
    /// The history of the steps that are defined now.
    pub(super) fn begin_history(&self) -> History {
        let forced = match self.rules.cache {
            CachePolicy::Ignore => Some("--no-cache"),
            CachePolicy::Use if self.rules.executed.is_empty() => None,
            CachePolicy::Use => Some("--no-cache-filter"),
        };
        History {
            graph: Arc::clone(&self.graph),
            worker: Arc::clone(&self.worker),
            about: self.about.clone(),
            definitions: Arc::clone(&self.definitions),
            forced,
            compared: OnceLock::new(),
            fates: Mutex::default(),
            seconds: Mutex::default(),
            lists: Mutex::default(),
            selected: Mutex::default(),
        }
    }

    /// Why a step has to be executed.
    pub(super) fn explain(
        &self,
        id: VertexId,
        selected: Option<Digested>,
    ) -> impl Future<Output = Result<Reason, StepError>> + use<> {
        let cause = self.cause(id);
        let history = self.history.clone();
        async move {
            let Some(history) = history else {
                return Ok(Reason::NeverBuilt);
            };
            blocking(move || {
                let reason = history.reason(id, cause, selected.as_ref())?;
                lock(&history.fates).insert(id, Fate::Miss(reason.clone()));
                Ok(reason)
            })
            .await
        }
    }

    /// Why a step cannot be taken from its definition, although that is as it was: it is to be
    /// executed itself, or the step where that begins is.
    fn cause(&self, id: VertexId) -> Option<VertexId> {
        let mut at = id;
        while !self.is_forced(at) {
            let mut inputs = self.graph.vertex(at).inputs.iter();
            at = *inputs.find(|input| self.open.contains(input))?;
        }
        Some(at)
    }

    /// Remembers that the result of a step was there.
    pub(super) fn hit(&self, id: VertexId) {
        if let Some(history) = &self.history {
            lock(&history.fates).insert(id, Fate::Hit);
        }
    }

    /// Remembers how long a step took, seconds.
    pub(super) fn took(&self, id: VertexId, seconds: f64) {
        if let Some(history) = &self.history {
            lock(&history.seconds).insert(id, seconds);
        }
    }

    /// Remembers how the execution of a step ended.
    pub(super) fn executed<T>(
        &self,
        id: VertexId,
        selected: Option<Digested>,
        result: &Result<T, StepError>,
    ) {
        let Some(history) = &self.history else {
            return;
        };
        match result {
            Ok(_) => {
                if let Some((selections, digest)) = selected {
                    history.list(id, selections, digest);
                }
            }
            Err(error) if error.has_run() && !self.defined(id).stand_in => {
                // The next build says less about it then, no more.
                drop(
                    self.worker
                        .store
                        .record_failure(self.defined(id).key.digest()),
                );
            }
            Err(_) => {}
        }
    }

    /// The layer that the counterpart of an executed step left in the build before, where it is the
    /// same but for times: then what stands on it need not be executed again. A `COPY` that something
    /// changed for writes something else, so that comparing its layer is in vain.
    pub(super) async fn cut_off(
        &self,
        id: VertexId,
        reason: &Reason,
        layer: SnapshotId,
    ) -> Result<SnapshotId, StepError> {
        let Some(history) = self.history.clone() else {
            return Ok(layer);
        };
        let hopeless = match reason {
            Reason::NeverBuilt => true,
            Reason::Changed(_) => matches!(self.graph.vertex(id).op, Op::Copy(_)),
            _ => false,
        };
        if hopeless || self.rules.cache == CachePolicy::Ignore {
            return Ok(layer);
        }
        blocking(move || {
            let Some(former) = history.former_layer(id)? else {
                return Ok(layer);
            };
            let worker = &history.worker;
            if former == layer || !worker.snapshots.same(&former, &layer)? {
                return Ok(layer);
            }
            worker.snapshots.forget(&layer)?;
            Ok(former)
        })
        .await
    }

    /// Records this build for the next one to be compared with. `failed` keeps what is known of steps
    /// that were not reached.
    ///
    /// # Errors
    /// When the store cannot be read or written; the build itself is not affected.
    pub async fn record_build(&self) -> Result<(), StepError> {
        let Some(history) = self.history.clone() else {
            return Ok(());
        };
        let listings = std::mem::take(&mut *lock(&history.lists));
        let mut lists = Vec::new();
        for listing in listings.into_values() {
            // Without a list the next build says less, no more.
            lists.extend(listing.await.unwrap_or(None));
        }
        let done: BTreeSet<VertexId> = self
            .definitions
            .ids()
            .filter(|id| self.result_of(*id).is_some())
            .collect();
        blocking(move || Ok(history.write(&done, &lists)?)).await
    }

    /// What the cache knew of each step.
    #[must_use]
    pub fn report(&self) -> Vec<StepReport> {
        let Some(history) = &self.history else {
            return Vec::new();
        };
        let fates = lock(&history.fates);
        let seconds = lock(&history.seconds);
        history
            .steps()
            .map(|id| {
                let (result, reason) = match fates.get(&id) {
                    Some(Fate::Hit) => ("hit", None),
                    Some(Fate::Miss(reason)) => ("miss", Some(reason.json())),
                    None => ("not needed", None),
                };
                StepReport {
                    result,
                    reason,
                    seconds: seconds.get(&id).copied(),
                    ..history.blank(id)
                }
            })
            .collect()
    }
}

impl History {
    /// The steps that make layers.
    pub(super) fn steps(&self) -> impl Iterator<Item = VertexId> {
        let makes_layer = |id: &VertexId| {
            let op = &self.graph.vertex(*id).op;
            matches!(op, Op::Run(_) | Op::Copy(_) | Op::Mkdir(_))
        };
        self.definitions.ids().filter(makes_layer)
    }

    /// The definition key of a step.
    fn key(&self, id: VertexId) -> Digest {
        *self.definitions.of(id).key.digest()
    }

    /// A report on a step without what became of it.
    pub(super) fn blank(&self, id: VertexId) -> StepReport {
        let description = self.describe(id);
        StepReport {
            step: description.label,
            instruction: description.text,
            key: (!self.definitions.of(id).stand_in).then(|| self.key(id).to_string()),
            result: "not needed",
            reason: None,
            seconds: None,
        }
    }

    /// How long a step took the last time, or its counterpart did.
    pub(super) fn former_seconds(&self, id: VertexId) -> Result<Option<f64>, StepError> {
        let known = self.worker.store.step_record(&self.key(id))?;
        if let Some(seconds) = known.and_then(|step| step.seconds) {
            return Ok(Some(seconds));
        }
        let former = self.counterpart(id)?;
        Ok(former.and_then(|former| former.seconds))
    }

    /// Why a step has to be executed; see [`Schedule::cause`] for `cause`.
    pub(super) fn reason(
        &self,
        id: VertexId,
        cause: Option<VertexId>,
        selected: Option<&Digested>,
    ) -> Result<Reason, StepError> {
        if let Some(flag) = self.forced.filter(|_| cause == Some(id)) {
            return Ok(Reason::Forced(flag));
        }
        if let Some((_, digest)) = selected {
            lock(&self.selected).insert(id, *digest);
        }
        let store = &self.worker.store;
        let key = self.key(id);
        if let Some((why, at)) = store.eviction(&key)? {
            let seconds = at.map(|at| now().saturating_sub(at).unsigned_abs());
            return Ok(Reason::Evicted(why, seconds));
        }
        let compared = self.compared()?;
        let explanation = compared.explanations.get(&id);
        let explanation = explanation.cloned().unwrap_or_default();
        let Some(former) = explanation
            .counterpart
            .and_then(|index| compared.before.get(index))
        else {
            return Ok(Reason::NeverBuilt);
        };
        let mut differences = explanation.differences;
        self.fill_views(id, &mut differences);
        self.fill(id, former, selected, &mut differences)?;
        if !differences.is_empty() {
            return Ok(Reason::Changed(differences));
        }
        let same = former.key == key;
        let below = cause.or_else(|| {
            let inputs = &self.graph.vertex(id).inputs;
            let steps = |input: &&VertexId| self.steps().any(|step| step == **input);
            // The record is there, but what it was made upon is not: see `Schedule::found`.
            let known = store.cached(&key).ok().flatten().is_some();
            inputs.iter().find(steps).copied().filter(|_| known)
        });
        Ok(match below.filter(|_| same) {
            Some(step) => Reason::OtherResult {
                step: self.describe(step).name(),
            },
            None => Reason::Unfinished,
        })
    }

    /// Says of files that mounts show what was found out for these.
    fn fill_views(&self, id: VertexId, differences: &mut Vec<Difference>) {
        if self.definitions.of(id).selected.is_some() {
            return;
        }
        let fates = lock(&self.fates);
        let mut found = Vec::new();
        for input in &self.graph.vertex(id).inputs {
            if let Some(Fate::Miss(Reason::Changed(changes))) = fates.get(input) {
                let files = |one: &&Difference| matches!(one, Difference::Files(Some(_)));
                found.extend(changes.iter().filter(files).cloned());
            }
        }
        let place = |one: &Difference| matches!(one, Difference::Files(None));
        if !found.is_empty()
            && let Some(place) = differences.iter().position(place)
        {
            differences.splice(place..=place, found);
        }
    }

    /// Says of files what changed, where both lists can be had.
    fn fill(
        &self,
        id: VertexId,
        former: &StepRecord,
        selected: Option<&Digested>,
        differences: &mut Vec<Difference>,
    ) -> Result<(), StepError> {
        let place = differences
            .iter()
            .position(|one| matches!(one, Difference::Files(None)));
        // The files of other stages are known only once those are there.
        let late = place.is_none() && self.definitions.of(id).selected.is_none();
        let Some((selections, digest)) = selected.filter(|_| place.is_some() || late) else {
            return Ok(());
        };
        let before = match former.files {
            Some(before) if before != *digest => self.worker.store.file_list(&before)?,
            _ => None,
        };
        let Some(before) = before.and_then(|packed| unpack(&packed)) else {
            return Ok(());
        };
        // A file that changed meanwhile is for the copy itself to complain of.
        let Ok(after) = selections.listed() else {
            return Ok(());
        };
        let changes = compare(&before, &after);
        let digest = *digest;
        let listing = tokio::task::spawn_blocking(move || {
            let packed = pack(&after)?;
            Some(FileList { digest, packed })
        });
        lock(&self.lists).insert(id, listing);
        let filled = (!changes.changes.is_empty()).then_some(Difference::Files(Some(changes)));
        match place {
            Some(place) => drop(differences.splice(place..=place, filled)),
            None => differences.extend(filled),
        }
        Ok(())
    }

    /// Starts listing the files of a step that was executed, unless they are listed already.
    fn list(&self, id: VertexId, selections: Arc<Selections>, digest: Digest) {
        lock(&self.selected).insert(id, digest);
        lock(&self.lists).entry(id).or_insert_with(|| {
            tokio::task::spawn_blocking(move || {
                let packed = pack(&selections.listed().ok()?)?;
                Some(FileList { digest, packed })
            })
        });
    }

    /// The layer that the counterpart of a step left.
    fn former_layer(&self, id: VertexId) -> Result<Option<SnapshotId>, StepError> {
        let Some(former) = self.counterpart(id)? else {
            return Ok(None);
        };
        let Some(record) = self.worker.store.cached(&former.key)? else {
            return Ok(None);
        };
        let whole = self.worker.snapshots.check(&record.snapshot)?;
        Ok(whole.then_some(record.snapshot))
    }

    fn counterpart(&self, id: VertexId) -> Result<Option<&StepRecord>, StepError> {
        let compared = self.compared()?;
        let explanation = compared.explanations.get(&id);
        let index = explanation.and_then(|explanation| explanation.counterpart);
        Ok(index.and_then(|index| compared.before.get(index)))
    }

    fn compared(&self) -> Result<&Compared, StepError> {
        let compared = self.compared.get_or_init(|| self.compare());
        compared.as_ref().map_err(|error| {
            // The error itself belongs to whoever came first; it is about the same database.
            StepError::Store(StoreError::Damaged {
                what: "the build before".to_owned(),
                detail: error.to_string(),
            })
        })
    }

    fn compare(&self) -> Result<Compared, StoreError> {
        let now: BTreeMap<VertexId, Step> = self
            .steps()
            .map(|id| {
                let key = self.key(id);
                let description = self.describe(id);
                (id, Step { key, description })
            })
            .collect();
        let keys: Vec<_> = now.values().map(|step| step.key).collect();
        let (before, descriptions): (Vec<_>, Vec<_>) = self
            .worker
            .store
            .last_build(&self.about.project, &keys)?
            .into_iter()
            // What another version has written is as good as nothing.
            .filter_map(|step| {
                let description = Description::parse(&step.description)?;
                let key = step.key;
                Some((step, (key, description)))
            })
            .unzip();
        let explanations = explain(&self.graph, &descriptions, &now);
        Ok(Compared {
            before,
            explanations,
        })
    }

    fn describe(&self, id: VertexId) -> Description {
        let names = Names {
            arguments: &self.about.arguments,
            image: &|image| self.image(image),
        };
        // Files that were not read yet are none that there were before.
        let unread = || Digest::of(b"");
        let selected = self.definitions.of(id).selected;
        let files = selected.map(|files| files.taken_digest().unwrap_or_else(unread));
        let key = |input: VertexId| self.definitions.of(input).stack;
        Description::of(&self.graph, id, &names, &key, files)
    }

    /// The digest that people know an image by: of its manifest, else of its config.
    fn image(&self, image: &ImageOp) -> Digest {
        if let Some(SourceImage::Registry(remote)) = self.worker.images.get(&image.config) {
            return remote.resolved.descriptor.digest;
        }
        let known = self.worker.store.image(&image.config).ok();
        let manifest = known.and_then(|known| known.manifest);
        manifest.map_or(image.config, |manifest| manifest.digest)
    }

    /// Writes the record of this build; nothing where it would be the one that is there.
    fn write(&self, done: &BTreeSet<VertexId>, lists: &[FileList]) -> Result<(), StoreError> {
        let store = &self.worker.store;
        let project = &self.about.project;
        let keys: Vec<Digest> = self.steps().map(|id| self.key(id)).collect();
        let missed = lock(&self.fates)
            .values()
            .any(|fate| matches!(fate, Fate::Miss(_)));
        if !missed && store.last_keys(project)? == keys {
            return Ok(());
        }
        let compared = self.compared.get_or_init(|| self.compare());
        let compared = compared.as_ref().ok();
        let (mut steps, mut new) = (Vec::new(), Vec::new());
        for id in self.steps() {
            let key = self.key(id);
            if store.step_record(&key)?.is_some() {
                steps.push(key);
            } else if done.contains(&id) {
                steps.push(key);
                new.push(self.step_record(id, key));
            } else if let Some(former) = compared.and_then(|compared| compared.former(id)) {
                // It was not reached: what is known of it stays.
                steps.push(former);
            }
        }
        let seconds = lock(&self.seconds);
        let took = |id: &VertexId| Some((self.key(*id), *seconds.get(id)?));
        let seconds: Vec<_> = done.iter().filter_map(took).collect();
        store.record_build(&BuildRecord {
            project,
            steps: &steps,
            new: &new,
            lists,
            seconds: &seconds,
        })
    }

    fn step_record(&self, id: VertexId, key: Digest) -> StepRecord {
        let description = self.describe(id);
        StepRecord {
            key,
            files: description
                .files
                .or_else(|| lock(&self.selected).get(&id).copied()),
            description: description.encode(),
            // One that was not executed now would take as long as its counterpart did.
            seconds: self
                .counterpart(id)
                .ok()
                .flatten()
                .and_then(|former| former.seconds),
        }
    }
}

impl Compared {
    fn former(&self, id: VertexId) -> Option<Digest> {
        let index = self.explanations.get(&id)?.counterpart?;
        Some(self.before.get(index)?.key)
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// Locks what one thread leaves whole whenever it stops.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
