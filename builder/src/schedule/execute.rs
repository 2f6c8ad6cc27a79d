//! Executing what is not remembered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::join;
use kiln_registry::digest::Digest;
use tokio::sync::OwnedSemaphorePermit;

use super::{Schedule, blocking};
use crate::cache::explain::reason::Reason;
use crate::cache::{CacheKey, content_key};
use crate::event::Event;
use crate::graph::{GitOp, ImageOp, Op, Vertex, VertexId};
use crate::snapshot::SnapshotId;
use crate::step::{self, Inputs, Made, Selections, Stack, StepError};

impl Schedule {
    /// The files of a git repository: remembered for their commit, or checked out now.
    pub(super) async fn repository(
        &self,
        id: VertexId,
        op: &GitOp,
    ) -> Result<SnapshotId, StepError> {
        let (worker, op) = (Arc::clone(&self.worker), op.clone());
        let resolved = self
            .permitted(move || step::git::resolve(&worker, &op))
            .await?;
        let key = CacheKey::of_source(resolved.key());
        if let Some(layer) = self.remembered(key).await? {
            return Ok(layer);
        }
        let lock = self.lock(id, key).await?;
        if let Some(layer) = self.remembered(key).await? {
            return Ok(layer);
        }
        let worker = Arc::clone(&self.worker);
        let layer = self.permitted(move || resolved.checkout(&worker)).await?;
        self.worker.store.remember(&[key.digest()], &layer)?;
        drop(lock);
        Ok(layer)
    }

    /// Fetches what is missing of an image. Who needs its files unpacks them meanwhile, so that
    /// its result is there at once.
    pub(super) async fn image(
        &self,
        id: VertexId,
        image: &ImageOp,
        stack: &Stack,
    ) -> Result<(), StepError> {
        let Some(remote) = self.worker.images.get(&image.config) else {
            self.cached_event(id);
            return Ok(());
        };
        let _expected = remote.expect(&self.worker.store);
        // Nobody else sets it.
        drop(self.results[id.index()].set(stack.clone()));
        let fetch = async {
            tokio::select! {
                result = remote.fetch(&self.worker.client, &self.worker.store, &self.worker.observer) => result,
                () = self.worker.cancel.cancelled() => Err(StepError::Cancelled),
            }
        };
        self.observed(id, fetch).await
    }

    /// The layer of a vertex whose inputs are there: remembered for what they are, here or with
    /// `imports` elsewhere, or made now.
    pub(super) async fn made(
        &self,
        id: VertexId,
        root: Stack,
        inputs: Vec<Stack>,
        imports: bool,
    ) -> Result<Made, StepError> {
        let vertex = self.graph.vertex(id);
        let defined = &self.defined[&id];
        let inputs = self.all_with_files(inputs).await?;
        let selected = match (&vertex.op, &defined.selected) {
            (Op::Copy(_), None) => Some(self.select(id, inputs.clone()).await?),
            (_, known) => known.clone(),
        };
        let known = self.copied(vertex);
        let content = match (&selected, &vertex.op) {
            (Some((_, digest)), _) => Some(*digest),
            (None, Op::Run(_)) => self.bound(id, inputs.clone(), known.clone()).await?,
            (None, _) => None,
        };
        let reads = self.note_reads(id, content.as_ref());
        let key = content_key(vertex, &root.identity(), content.as_ref());
        let upon = self.upon(vertex, &root, &inputs);
        let definition = (defined.key.digest(), Some(upon.as_str()));
        if let Some(layer) = self.found_content(id, key).await? {
            let store = &self.worker.store;
            store.remember_upon(&[definition], &layer)?;
            store.remember_reads(defined.key.digest(), &reads)?;
            self.note_packed(id, defined.key, &layer);
            return Ok(layer.into());
        }
        if imports && let Some(layer) = self.imported_content(id, &root, &reads).await? {
            self.cached_event(id);
            return Ok(layer.into());
        }
        let root = self.with_files(root).await?;
        let key = content_key(vertex, &root.identity(), content.as_ref());
        let upon = self.upon(vertex, &root, &inputs);
        let definition = (defined.key.digest(), Some(upon.as_str()));
        // Another process may be executing the very same step: then its result is ours.
        let lock = self.lock(id, key).await?;
        if let Some(layer) = self.found_content(id, key).await? {
            self.worker.store.remember_upon(&[definition], &layer)?;
            self.note_packed(id, defined.key, &layer);
            return Ok(layer.into());
        }
        let (reason, mut made) = self
            .execute_explained(id, (root, inputs), known, selected)
            .await?;
        let layer = self.cut_off(id, &reason, made.layer.clone()).await?;
        if layer != made.layer {
            made = layer.into();
        }
        self.elsewhere.executed.fetch_add(1, Ordering::Relaxed);
        let keys = [(key.digest(), None), definition];
        let store = &self.worker.store;
        store.remember_upon(&keys, &made.layer)?;
        store.remember_reads(defined.key.digest(), &reads)?;
        drop(lock);
        Ok(made)
    }

    /// Executes a vertex, and says why meanwhile.
    async fn execute_explained(
        &self,
        id: VertexId,
        (root, inputs): (Stack, Vec<Stack>),
        known: BTreeMap<usize, Digest>,
        selected: Option<(Arc<Selections>, Digest)>,
    ) -> Result<(Reason, Made), StepError> {
        let explain = self.explain(id, selected.clone());
        if self.rules.required.contains(&id) {
            return Err(StepError::NotCached(explain.await?.to_string()));
        }
        let selections = selected
            .as_ref()
            .map(|(selections, _)| Arc::clone(selections));
        let work = async {
            let told = async {
                let reason: Reason = explain.await?;
                self.worker.observer.tell(Event::Miss {
                    step: id.index(),
                    reason: reason.to_string(),
                });
                Ok::<_, StepError>(reason)
            };
            let execution = self.execute(id, root, inputs, known, selections);
            let (reason, made) = join(told, execution).await;
            Ok((reason?, made?))
        };
        let result = self.observed(id, work).await;
        self.executed(id, selected, &result);
        result
    }

    /// The inputs of a vertex, by index, that are a copy on nothing, with the digest of what they copy.
    pub(super) fn copied(&self, vertex: &Vertex) -> BTreeMap<usize, Digest> {
        let copied = |(index, input): (usize, &VertexId)| {
            let of = self.graph.vertex(*input);
            let root = &self.graph.vertex(*of.inputs.first()?).op;
            let (_, digest) = self.defined.get(input)?.selected.as_ref()?;
            matches!(root, Op::Scratch).then_some((index, *digest))
        };
        vertex
            .inputs
            .iter()
            .enumerate()
            .filter_map(copied)
            .collect()
    }

    /// Digest of what the binds of a `RUN` show.
    pub(super) async fn bound(
        &self,
        id: VertexId,
        stacks: Vec<Stack>,
        known: BTreeMap<usize, Digest>,
    ) -> Result<Option<Digest>, StepError> {
        let (worker, graph) = (Arc::clone(&self.worker), Arc::clone(&self.graph));
        blocking(move || {
            let inputs = Inputs {
                graph: &graph,
                id,
                stacks: &stacks,
                known: &known,
            };
            inputs.binds(&worker)
        })
        .await
    }

    /// Executes a vertex on a thread that may block.
    pub(super) async fn execute(
        &self,
        id: VertexId,
        root: Stack,
        inputs: Vec<Stack>,
        known: BTreeMap<usize, Digest>,
        selections: Option<Arc<Selections>>,
    ) -> Result<Made, StepError> {
        let (worker, graph) = (Arc::clone(&self.worker), Arc::clone(&self.graph));
        if let Op::Fetch(fetch) = &graph.vertex(id).op {
            let _permit = self.permit().await?;
            return tokio::select! {
                result = step::fetch(&worker, fetch) => Ok(result?.into()),
                () = worker.cancel.cancelled() => Err(StepError::Cancelled),
            };
        }
        let follow = self.exported.contains(&id);
        self.permitted(move || {
            let inputs = Inputs {
                graph: &graph,
                id,
                stacks: &inputs,
                known: &known,
            };
            step::execute(&worker, &inputs, &root, selections.as_deref(), follow)
        })
        .await
    }

    /// Runs work that blocks, when it is its turn.
    pub(super) async fn permitted<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
    ) -> Result<T, StepError> {
        let permit = self.permit().await?;
        blocking(move || {
            let _permit = permit;
            work()
        })
        .await
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, StepError> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned();
        permit.await.map_err(|_| StepError::Thread)
    }

    /// Tells the observer of a step's begin and end.
    pub(super) async fn observed<T>(
        &self,
        id: VertexId,
        work: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let step = id.index();
        let observer = &self.worker.observer;
        observer.tell(Event::Started {
            step,
            name: self.graph.vertex(id).name.clone(),
        });
        let start = Instant::now();
        let result = work.await;
        let seconds = start.elapsed().as_secs_f64();
        self.took(id, seconds);
        observer.tell(match &result {
            Ok(_) => Event::Done { step, seconds },
            Err(StepError::Cancelled) => Event::Cancelled { step },
            Err(_) => Event::Failed { step, seconds },
        });
        result
    }
}
