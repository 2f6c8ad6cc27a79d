//! Executing what is not remembered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::future::join;
use kiln_registry::digest::Digest;
use tokio::sync::OwnedSemaphorePermit;

use super::define::{Digested, Reading};
use super::{Schedule, blocking};
use crate::cache::explain::reason::Reason;
use crate::cache::{CacheKey, content_key, shape_key};
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
        let inputs = self.all_with_files(inputs).await?;
        let selected = self.selected(id, &inputs).await?;
        if let Some(files) = &selected
            && files.taken_digest().is_none()
            && let Some(made) = self.copied_unread(id, &root, &inputs, files).await?
        {
            return Ok(made);
        }
        let digested = match selected {
            Some(files) => {
                let digest = self.digest(&files).await?;
                Some((files, digest))
            }
            None => None,
        };
        let defined = self.redefine(id);
        let known = self.copied(vertex);
        let content = match (&digested, &vertex.op) {
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
        // Nobody waits for the files below a step that must not be executed, unless these may turn out to
        // be others.
        let refused = self.rules.required.contains(&id);
        let root = match refused && !root.built.iter().any(|it| self.is_elsewhere(it)) {
            true => root,
            false => self.with_files(root).await?,
        };
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
        let files = digested.as_ref().map(|(files, _)| Arc::clone(files));
        let (reason, made) = self
            .execute_explained(id, (root, inputs), known, digested)
            .await?;
        let made = self.cut_off_made(id, &reason, made).await?;
        let keys = [(key.digest(), None), definition];
        self.keep(id, &keys, &reads, files.as_deref(), &made.layer)?;
        drop(lock);
        Ok(made)
    }

    /// The layer of a copy of files that were not read yet, because there is no layer of any that look
    /// like them: they are copied, and what they hold is known then. `None` when somebody has made such
    /// a layer meanwhile.
    async fn copied_unread(
        &self,
        id: VertexId,
        root: &Stack,
        inputs: &[Stack],
        files: &Arc<Selections>,
    ) -> Result<Option<Made>, StepError> {
        let vertex = self.graph.vertex(id);
        let shape = CacheKey::of_source(shape_key(vertex, Some(&files.shape()?)));
        let unread = self.lock(id, shape).await?;
        if !self.is_forced(id) && self.has_shape(id, files).await? {
            return Ok(None);
        }
        let root = self.with_files(root.clone()).await?;
        let (reason, made) = self
            .copy_explained(id, root.clone(), inputs.to_vec(), files)
            .await?;
        let (defined, digest) = (self.defined(id), self.digest(files).await?);
        let reads = self.note_reads(id, Some(&digest));
        let key = content_key(vertex, &root.identity(), Some(&digest));
        let upon = self.upon(vertex, &root, inputs);
        let keys = [
            (key.digest(), None),
            (defined.key.digest(), Some(upon.as_str())),
        ];
        // Another process that has read the files before may have executed the very same step.
        let lock = self.lock(id, key).await?;
        let made = match self.remembered(key).await? {
            Some(layer) if !self.is_forced(id) => {
                self.worker.snapshots.forget(&made.layer)?;
                self.note_packed(id, defined.key, &layer);
                layer.into()
            }
            _ => self.cut_off_made(id, &reason, made).await?,
        };
        self.keep(id, &keys, &reads, Some(files), &made.layer)?;
        drop((lock, unread));
        Ok(Some(made))
    }

    /// The files that a copy selects, now that its inputs are there.
    async fn selected(
        &self,
        id: VertexId,
        inputs: &[Stack],
    ) -> Result<Option<Arc<Selections>>, StepError> {
        let known = self.redefine(id).selected;
        if known.is_some() || !matches!(self.graph.vertex(id).op, Op::Copy(_)) {
            return Ok(known);
        }
        let files = self.select(id, inputs.to_vec()).await?;
        self.read(id, &files, Reading::Once).await?;
        Ok(Some(files))
    }

    /// Digest of the files that a copy selects.
    async fn digest(&self, files: &Arc<Selections>) -> Result<Digest, StepError> {
        let files = Arc::clone(files);
        blocking(move || files.digest()).await
    }

    /// What an executed step has made, or the same from the build before.
    async fn cut_off_made(
        &self,
        id: VertexId,
        reason: &Reason,
        made: Made,
    ) -> Result<Made, StepError> {
        self.elsewhere.executed.fetch_add(1, Ordering::Relaxed);
        let layer = self.cut_off(id, reason, made.layer.clone()).await?;
        Ok(if layer == made.layer {
            made
        } else {
            layer.into()
        })
    }

    /// Remembers the layer of an executed step.
    fn keep(
        &self,
        id: VertexId,
        keys: &[(&Digest, Option<&str>); 2],
        reads: &Digest,
        files: Option<&Selections>,
        layer: &SnapshotId,
    ) -> Result<(), StepError> {
        let store = &self.worker.store;
        if let Some(files) = files {
            // Before its keys: what has these always has a shape.
            let shape = shape_key(self.graph.vertex(id), Some(&files.shape()?));
            store.remember_shape(&shape, layer)?;
        }
        store.remember_upon(keys, layer)?;
        store.remember_reads(keys[1].0, reads)?;
        Ok(())
    }

    /// Executes a vertex, and says why meanwhile.
    async fn execute_explained(
        &self,
        id: VertexId,
        (root, inputs): (Stack, Vec<Stack>),
        known: BTreeMap<usize, Digest>,
        digested: Option<Digested>,
    ) -> Result<(Reason, Made), StepError> {
        if self.rules.required.contains(&id) {
            let reason = self.explain(id, digested).await?;
            return Err(StepError::NotCached(reason.to_string()));
        }
        let explain = self.explain(id, digested.clone());
        let files = digested.as_ref().map(|(files, _)| Arc::clone(files));
        let work = async {
            let told = self.told(id, explain);
            let execution = self.execute(id, root, inputs, known, files);
            let (reason, made) = join(told, execution).await;
            self.with_reason(reason, made)
        };
        let result = self.observed(id, work).await;
        self.executed(id, digested, &result);
        result
    }

    /// Copies files that were not read yet, and says why then: what changed is known afterwards.
    async fn copy_explained(
        &self,
        id: VertexId,
        root: Stack,
        inputs: Vec<Stack>,
        files: &Arc<Selections>,
    ) -> Result<(Reason, Made), StepError> {
        let known = BTreeMap::new();
        let digested = || Some((Arc::clone(files), files.taken_digest()?));
        let work = async {
            let copied = async {
                let made = self.execute(id, root, inputs, known, Some(Arc::clone(files)));
                let made = made.await?;
                if let Err(error) = self.digest(files).await {
                    self.worker.snapshots.forget(&made.layer)?;
                    return Err(error);
                }
                Ok(made)
            };
            let made = copied.await;
            self.redefine(id);
            let reason = self.told(id, self.explain(id, digested())).await;
            self.with_reason(reason, made)
        };
        let result = self.observed(id, work).await;
        self.executed(id, digested(), &result);
        result
    }

    /// A layer with why it was made; without that nothing is left of it, as nobody will remember it.
    fn with_reason(
        &self,
        reason: Result<Reason, StepError>,
        made: Result<Made, StepError>,
    ) -> Result<(Reason, Made), StepError> {
        let made = made?;
        match reason {
            Ok(reason) => Ok((reason, made)),
            Err(error) => {
                self.worker.snapshots.forget(&made.layer)?;
                Err(error)
            }
        }
    }

    /// Tells the observer why a step is executed.
    async fn told(
        &self,
        id: VertexId,
        explain: impl Future<Output = Result<Reason, StepError>>,
    ) -> Result<Reason, StepError> {
        let reason = explain.await?;
        self.worker.observer.tell(Event::Miss {
            step: id.index(),
            reason: reason.to_string(),
        });
        Ok(reason)
    }

    /// The inputs of a vertex, by index, that are a copy on nothing, with the digest of what they copy.
    pub(super) fn copied(&self, vertex: &Vertex) -> BTreeMap<usize, Digest> {
        let copied = |(index, input): (usize, &VertexId)| {
            let of = self.graph.vertex(*input);
            let root = &self.graph.vertex(*of.inputs.first()?).op;
            let (_, digest) = self.definitions.find(*input)?.digested()?;
            matches!(root, Op::Scratch).then_some((index, digest))
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
