//! Layers that are known and not here: a step that is found in a cache from elsewhere has a layer at
//! once, by a name; its bytes come when the image, or a step upon it, needs them. What then turns out
//! to be of no use is a miss after all, and the step is executed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{join, join_all, try_join_all};
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ChainId, Descriptor, DiffId};
use tokio::sync::{OnceCell, SetOnce};

use super::{CachePolicy, Schedule, blocking};
use crate::cache::remote::{Entry, Exporter, Found, Imports, Made, RemoteError};
use crate::cache::{CacheKey, shape_key};
use crate::graph::{Op, Vertex, VertexId};
use crate::snapshot::SnapshotId;
use crate::step::{Stack, StepError, blob_event};
use crate::store::{Eviction, LayerBlob, Store};

/// How a build shares its cache beyond its store.
#[derive(Debug, Default)]
pub struct Sharing {
    /// Caches that it may use.
    pub imports: Option<Arc<Imports>>,
    /// Where its own goes.
    pub exporter: Option<Exporter>,
}

/// Something that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// The result of a vertex.
    Result(VertexId),
    /// A layer from elsewhere in the store, in whatever form.
    Layer(SnapshotId),
    /// A layer from elsewhere as files.
    Files(SnapshotId),
}

/// A layer of which the files, or all bytes, are not here.
#[derive(Debug)]
struct Absent {
    /// What makes it.
    vertex: VertexId,
    /// The step, by its definition.
    key: CacheKey,
    /// Where it can be fetched; nowhere when it lies here, packed.
    found: Vec<Found>,
    /// What it turned out to be.
    layer: SetOnce<SnapshotId>,
    files: SetOnce<SnapshotId>,
    /// What its step made when it was executed after all.
    again: OnceCell<SnapshotId>,
}

/// What a schedule knows of layers from elsewhere.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    pub(super) sharing: Sharing,
    absent: Mutex<BTreeMap<SnapshotId, Arc<Absent>>>,
    /// Digest of what a vertex has read besides its root.
    contents: Mutex<BTreeMap<VertexId, Digest>>,
    pub(super) hits: AtomicUsize,
    pub(super) executed: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Schedule {
    /// With caches besides the store's.
    #[must_use]
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.elsewhere.sharing = sharing;
        self
    }

    /// How many steps were found in a cache, and how many were executed.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let Elsewhere { hits, executed, .. } = &self.elsewhere;
        (
            hits.load(Ordering::Relaxed),
            executed.load(Ordering::Relaxed),
        )
    }

    fn absent(&self, layer: &SnapshotId) -> Option<Arc<Absent>> {
        lock(&self.elsewhere.absent).get(layer).cloned()
    }

    /// Whether nothing of a layer is in the store yet.
    pub(super) fn is_elsewhere(&self, layer: &SnapshotId) -> bool {
        let absent = self.absent(layer);
        absent.is_some_and(|absent| !absent.found.is_empty() && absent.latest().is_none())
    }

    /// The layer that stands for this one now, unless it is elsewhere only.
    #[must_use]
    pub fn here(&self, layer: &SnapshotId) -> Option<SnapshotId> {
        (!self.is_elsewhere(layer)).then(|| self.actual(layer))
    }

    /// The layer that stands for this one now.
    pub(super) fn actual(&self, layer: &SnapshotId) -> SnapshotId {
        let actual = self.absent(layer).and_then(|absent| absent.latest());
        actual.unwrap_or_else(|| layer.clone())
    }

    /// Whether there are caches from elsewhere, and they count.
    pub(super) fn imports_any(&self) -> bool {
        self.elsewhere.sharing.imports.is_some() && self.rules.cache == CachePolicy::Use
    }

    /// What caches from elsewhere have of a step, by its definition.
    pub(super) async fn imports(&self, key: CacheKey) -> Vec<Found> {
        match &self.elsewhere.sharing.imports {
            Some(imports) if self.rules.cache == CachePolicy::Use => imports.find(&key).await,
            _ => Vec::new(),
        }
    }

    /// The layer of a step in a cache from elsewhere, by the step's definition, with what it stands on.
    /// Where a cache says what that was, it must be the same here.
    pub(super) async fn imported(
        &self,
        id: VertexId,
        key: CacheKey,
    ) -> Result<Option<(Stack, SnapshotId)>, StepError> {
        let mut found = self.imports(key).await;
        if found.is_empty() || self.is_open(id) {
            return Ok(None);
        }
        let vertex = self.graph.vertex(id);
        let root = self.result(vertex.inputs[0]).await;
        if super::reads_root(vertex) {
            let below = self.chain_of(&root).await?;
            found.retain(|one| one.content.is_none_or(|(_, upon)| upon == below));
        }
        let layer = self.take(id, key, found).await?;
        Ok(layer.map(|layer| (root, layer)))
    }

    /// The chain of a result's layers.
    async fn chain_of(&self, stack: &Stack) -> Result<Option<ChainId>, StepError> {
        let mut layers = stack.image.clone();
        for layer in &stack.built {
            layers.push(self.diff_id(layer).await?);
        }
        Ok(ChainId::of(&layers).last().copied())
    }

    /// Takes note of what a step reads besides its root.
    pub(super) fn note_reads(&self, id: VertexId, content: Option<&Digest>) -> Digest {
        let reads = crate::cache::reads_key(self.graph.vertex(id), content);
        lock(&self.elsewhere.contents).insert(id, reads);
        reads
    }

    /// The layer of a step in a cache from elsewhere, by what it reads and by the layers below
    /// (A15.5).
    pub(super) async fn imported_content(
        &self,
        id: VertexId,
        root: &Stack,
        reads: &Digest,
    ) -> Result<Option<SnapshotId>, StepError> {
        let Some(imports) = &self.elsewhere.sharing.imports else {
            return Ok(None);
        };
        if self.rules.cache == CachePolicy::Ignore || !imports.reads(reads).await {
            return Ok(None);
        }
        let below = self.chain_of(root).await?;
        let found = imports.find_content(reads, below).await;
        self.take(id, self.defined(id).key, found).await
    }

    async fn diff_id(&self, layer: &SnapshotId) -> Result<DiffId, StepError> {
        if let Some(absent) = self.absent(layer).filter(|one| one.latest().is_none())
            && let Some(found) = absent.found.first()
        {
            return Ok(found.layer.facts.diff_id);
        }
        let (worker, layer) = (Arc::clone(&self.worker), self.actual(layer));
        blocking(move || Ok(worker.snapshots.seal(&layer)?.0)).await
    }

    /// Gives a layer that was found a name; it is the name of the same layer where that is here. What
    /// the image needs is fetched from now on.
    async fn take(
        &self,
        id: VertexId,
        key: CacheKey,
        found: Vec<Found>,
    ) -> Result<Option<SnapshotId>, StepError> {
        if found.is_empty() {
            return Ok(None);
        }
        let (worker, diff_ids) = (
            Arc::clone(&self.worker),
            found
                .iter()
                .map(|one| one.layer.facts.diff_id)
                .collect::<Vec<_>>(),
        );
        let reads = found.iter().find_map(|one| Some(one.content?.0));
        let vertex = self.graph.vertex(id).clone();
        let here = blocking(move || {
            for diff_id in diff_ids {
                if let Some(layer) = worker.store.layer_snapshot(diff_id)?
                    && worker.snapshots.check(&layer)?
                {
                    remember_unseen(&worker.store, &vertex, &layer)?;
                    worker.store.remember(&[key.digest()], &layer)?;
                    if let Some(reads) = reads {
                        worker.store.remember_reads(key.digest(), &reads)?;
                    }
                    return Ok(Some(layer));
                }
            }
            Ok(None)
        });
        if let Some(layer) = here.await? {
            self.note_packed(id, key, &layer);
            return Ok(Some(layer));
        }
        let layer = SnapshotId::random();
        self.add_absent(&layer, Absent::new(id, key, found));
        if self.exported.contains(&id) {
            self.wanted.send(Want::Layer(layer.clone())).ok();
        }
        Ok(Some(layer))
    }

    fn add_absent(&self, layer: &SnapshotId, absent: Absent) {
        let mut all = lock(&self.elsewhere.absent);
        all.entry(layer.clone()).or_insert_with(|| Arc::new(absent));
    }

    /// Takes note of a remembered layer whose files are to be unpacked first.
    pub(super) fn note_packed(&self, id: VertexId, key: CacheKey, layer: &SnapshotId) {
        if !self.worker.store.snapshot_path(layer).is_dir() {
            self.add_absent(layer, Absent::new(id, key, Vec::new()));
        }
    }

    /// A stack with the files of all its layers.
    pub(super) async fn with_files(&self, mut stack: Stack) -> Result<Stack, StepError> {
        let layers = stack.built.iter().map(|layer| self.files(layer));
        let (image, built) = join(self.unpack_coming(&stack), join_all(layers)).await;
        image?;
        stack.built = built;
        Ok(stack)
    }

    /// The same for several.
    pub(super) async fn all_with_files(&self, stacks: Vec<Stack>) -> Result<Vec<Stack>, StepError> {
        try_join_all(stacks.into_iter().map(|stack| self.with_files(stack))).await
    }

    /// Unpacks the image below a stack while it is fetched. One that is here is unpacked by the step
    /// that needs it.
    async fn unpack_coming(&self, stack: &Stack) -> Result<(), StepError> {
        if !self.worker.is_coming(stack) {
            return Ok(());
        }
        let (worker, image) = (Arc::clone(&self.worker), stack.image.clone());
        let image = Stack {
            image,
            built: Vec::new(),
        };
        let unpacking = Arc::clone(&self.unpacking).acquire_owned();
        // The semaphore is never closed.
        let permit = unpacking.await.map_err(|_| StepError::Thread)?;
        blocking(move || {
            let _permit = permit;
            worker.unpacked(&image).map(drop)
        })
        .await
    }

    async fn files(&self, layer: &SnapshotId) -> SnapshotId {
        let Some(absent) = self.absent(layer) else {
            return layer.clone();
        };
        // The receiver lives as long as the sender: it is always heard.
        self.wanted.send(Want::Files(layer.clone())).ok();
        absent.files.wait().await.clone()
    }

    /// Brings a layer here or, where that fails, executes its step.
    pub(super) async fn bring(
        &self,
        layer: SnapshotId,
        files: bool,
    ) -> Result<SnapshotId, super::Failure> {
        let Some(absent) = self.absent(&layer) else {
            return Ok(layer);
        };
        let id = absent.vertex;
        let fail = |error| super::Failure { vertex: id, error };
        let brought = tokio::select! {
            brought = self.brought(&absent, &layer, files) => brought.map_err(fail)?,
            () = self.worker.cancel.cancelled() => return Err(fail(StepError::Cancelled)),
        };
        let actual = match brought {
            true => layer,
            false => {
                let again = absent.again.get_or_try_init(|| self.again(id));
                again.await?.clone()
            }
        };
        let set = if files { &absent.files } else { &absent.layer };
        // Each is wanted once.
        drop(set.set(actual.clone()));
        Ok(actual)
    }

    /// Whether a layer could be brought here.
    async fn brought(
        &self,
        absent: &Absent,
        layer: &SnapshotId,
        files: bool,
    ) -> Result<bool, StepError> {
        let observer = self.worker.observer.clone();
        let progress = move |blob: &Descriptor, step| observer.tell(blob_event(blob, step));
        let Some(imports) = &self.elsewhere.sharing.imports else {
            return self.unpacked(layer, None).await;
        };
        if absent.found.is_empty() {
            return self.unpacked(layer, None).await;
        }
        for found in &absent.found {
            let store = &self.worker.store;
            let fetched = imports.fetch(found, layer, store, files, &progress).await;
            let error = match fetched {
                Ok(()) if !files => {
                    self.remember_found(absent, layer)?;
                    return Ok(true);
                }
                Ok(()) => match self.unpacked(layer, Some(found.blob())).await? {
                    true => {
                        self.remember_found(absent, layer)?;
                        return Ok(true);
                    }
                    false => RemoteError::Layer,
                },
                Err(error) => error,
            };
            imports.refuse(found, &self.graph.vertex(absent.vertex).name, &error);
        }
        Ok(false)
    }

    /// Remembers a layer that was found elsewhere like one of this store's own.
    fn remember_found(&self, absent: &Absent, layer: &SnapshotId) -> Result<(), StepError> {
        let (store, key) = (&self.worker.store, absent.key.digest());
        remember_unseen(store, self.graph.vertex(absent.vertex), layer)?;
        store.remember(&[key], layer)?;
        if let Some((reads, _)) = absent.found.iter().find_map(|found| found.content) {
            store.remember_reads(key, &reads)?;
        }
        Ok(())
    }

    /// Whether a layer could be unpacked, from the blob that is `said` to hold it or one that is known
    /// to; it is forgotten where not.
    async fn unpacked(
        &self,
        layer: &SnapshotId,
        said: Option<LayerBlob>,
    ) -> Result<bool, StepError> {
        let (worker, layer) = (Arc::clone(&self.worker), layer.clone());
        self.permitted(move || {
            if worker.snapshots.unpack_from(&layer, said.as_ref()).is_ok() {
                return Ok(true);
            }
            worker.store.forget_snapshot(&layer, Eviction::Damaged)?;
            Ok(false)
        })
        .await
    }

    /// Executes a step that seemed to be remembered.
    async fn again(&self, id: VertexId) -> Result<SnapshotId, super::Failure> {
        let vertex = self.graph.vertex(id);
        let inputs = vertex.inputs.iter().map(|&input| self.result(input));
        let mut stacks = join_all(inputs).await.into_iter();
        let mut root = stacks.next().unwrap_or_default();
        if !super::reads_root(vertex) {
            root = Stack::default();
        }
        self.elsewhere.hits.fetch_sub(1, Ordering::Relaxed);
        let made = self.made(id, root, stacks.collect(), false).await;
        made.map(|made| made.layer)
            .map_err(|error| super::Failure { vertex: id, error })
    }

    /// Hands a finished layer to the export.
    pub(super) fn offer(&self, id: VertexId, layer: &SnapshotId) {
        let exports = matches!(
            self.graph.vertex(id).op,
            Op::Run(_) | Op::Copy(_) | Op::Mkdir(_)
        );
        if let Some(exporter) = &self.elsewhere.sharing.exporter
            && exports
        {
            exporter.layer(layer, self.exported.contains(&id));
        }
    }

    /// The export, which goes on when the build is done.
    #[must_use]
    pub fn take_exporter(&mut self) -> Option<Exporter> {
        self.elsewhere.sharing.exporter.take()
    }

    /// All steps for an export, whether they were looked at or only stand below something that was
    /// remembered.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn entries(&self) -> Result<Vec<Entry>, StepError> {
        let mut entries = Vec::new();
        for id in self.definitions.ids() {
            let key = self.defined(id).key;
            let op = &self.graph.vertex(id).op;
            if !matches!(op, Op::Run(_) | Op::Copy(_) | Op::Mkdir(_)) {
                continue;
            }
            let Some(made) = self.where_made(id, key).await? else {
                continue;
            };
            let reads = self.reads_of(id, key)?;
            entries.push(Entry {
                key,
                content: reads.and_then(|reads| self.stands_on(id, reads)),
                made,
                in_image: self.exported.contains(&id),
            });
        }
        Ok(entries)
    }

    async fn where_made(&self, id: VertexId, key: CacheKey) -> Result<Option<Made>, StepError> {
        if let Some(layer) = self.results[id.index()]
            .get()
            .and_then(|stack| stack.built.last())
        {
            return Ok(Some(self.made_at(layer)));
        }
        if let Some(record) = self.worker.store.cached(key.digest())? {
            return Ok(Some(Made::Here(record.snapshot)));
        }
        let Some(imports) = &self.elsewhere.sharing.imports else {
            return Ok(None);
        };
        let found = imports.find(&key).await.into_iter().next();
        Ok(found.map(|found| Made::Elsewhere(Box::new(found))))
    }

    fn made_at(&self, layer: &SnapshotId) -> Made {
        let absent = self.absent(layer).filter(|one| one.latest().is_none());
        match absent.and_then(|absent| absent.found.first().cloned()) {
            Some(found) => Made::Elsewhere(Box::new(found)),
            None => Made::Here(self.actual(layer)),
        }
    }

    /// What a step reads besides its root, where anybody knows.
    fn reads_of(&self, id: VertexId, key: CacheKey) -> Result<Option<Digest>, StepError> {
        if let Some(reads) = lock(&self.elsewhere.contents).get(&id) {
            return Ok(Some(*reads));
        }
        let record = self.worker.store.cached(key.digest())?;
        Ok(record.and_then(|record| record.reads))
    }

    /// The same with the layers below; `None` where these were not looked at.
    fn stands_on(&self, id: VertexId, reads: Digest) -> Option<(Digest, Vec<DiffId>, Vec<Made>)> {
        let vertex = self.graph.vertex(id);
        if !super::reads_root(vertex) {
            return Some((reads, Vec::new(), Vec::new()));
        }
        let root = self.results[vertex.inputs.first()?.index()].get()?;
        let built = root.built.iter().map(|layer| self.made_at(layer));
        Some((reads, root.image.clone(), built.collect()))
    }
}

/// Remembers of a layer of a copy that was made elsewhere that nobody has seen its files here.
fn remember_unseen(store: &Store, vertex: &Vertex, layer: &SnapshotId) -> Result<(), StepError> {
    if matches!(vertex.op, Op::Copy(_)) {
        store.remember_shape(&shape_key(vertex, None), layer)?;
    }
    Ok(())
}

impl Absent {
    fn new(vertex: VertexId, key: CacheKey, found: Vec<Found>) -> Self {
        Self {
            vertex,
            key,
            found,
            layer: SetOnce::new(),
            files: SetOnce::new(),
            again: OnceCell::new(),
        }
    }

    /// What it turned out to be, as far as that is known.
    fn latest(&self) -> Option<SnapshotId> {
        self.files.get().or_else(|| self.layer.get()).cloned()
    }
}
