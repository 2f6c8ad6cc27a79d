//! Which vertices must run, and running them: cached results are looked up from the definition of
//! each vertex first; what is missing runs as soon as its inputs are there, independent vertices
//! at the same time.
//!
//! `define` makes the keys, `lookup` finds what is remembered here and `elsewhere` in other places,
//! `execute` does the rest, `history` says why and keeps it for the next build, `plan` only tells.

mod define;
mod elsewhere;
mod execute;
mod history;
mod lookup;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use futures_util::future::{join, join_all, try_join};
use futures_util::stream::FuturesUnordered;
use kiln_registry::digest::Digest;
use kiln_registry::spec::DiffId;
use tokio::sync::{Mutex, Semaphore, SetOnce, mpsc};
use tokio::task::JoinHandle;

use crate::cache::CacheKey;
use crate::event::Event;
use crate::graph::{Graph, Network, Op, VertexId};
use crate::layer::Following;
use crate::snapshot::SnapshotId;
use crate::step::{Made, Stack, StepError, Worker};
use define::{Definitions, Reading, reads_root};
use elsewhere::{Elsewhere, Want};
use history::History;

pub use elsewhere::Sharing;
pub use history::{About, StepReport};
pub use plan::Forecast;

/// More steps are never executed at once.
const MOST_JOBS: u32 = 4096;

/// A step that failed, and which vertex it was.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// The vertex.
    pub vertex: VertexId,
    /// What went wrong.
    #[source]
    pub error: StepError,
}

/// Which remembered results may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// All that fit.
    Use,
    /// None (`--no-cache`); new ones are remembered all the same (A15.6).
    Ignore,
}

/// What the user says of a run.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Which remembered results may be used.
    pub cache: CachePolicy,
    /// Steps that are executed whatever is remembered (`--no-cache-filter`).
    pub executed: BTreeSet<VertexId>,
    /// Steps that must not be executed (`--require-cached`).
    pub required: BTreeSet<VertexId>,
    /// How many steps are executed at once (`--jobs`); `None` for as many as the machine bears.
    pub jobs: Option<NonZeroU32>,
}

/// A run over a graph.
pub struct Schedule {
    graph: Arc<Graph>,
    worker: Arc<Worker>,
    rules: Rules,
    about: About,
    /// Vertices whose layers are part of the image: their digests are computed early.
    exported: BTreeSet<VertexId>,
    /// What is known of each vertex that the root needs before anything runs.
    definitions: Arc<Definitions>,
    /// Vertices whose results are not to be taken from their definition: those that are executed
    /// because the user says so, and all that depend on them.
    open: BTreeSet<VertexId>,
    /// What was known of these steps before, and what became of each; there once they are defined.
    history: Option<Arc<History>>,
    results: Vec<SetOnce<Stack>>,
    /// What is waited for.
    wanted: mpsc::UnboundedSender<Want>,
    requests: Mutex<mpsc::UnboundedReceiver<Want>>,
    /// Each step holds one while it executes; who gets all of them knows that nothing runs.
    permits: Arc<Semaphore>,
    /// The same for images that are unpacked while they come: they mostly wait for the network.
    unpacking: Arc<Semaphore>,
    width: u32,
    seals: Mutex<BTreeMap<SnapshotId, Seal>>,
    /// The steps that are executed, each by one vertex at a time.
    locks: Mutex<BTreeMap<CacheKey, Arc<Mutex<()>>>>,
    elsewhere: Elsewhere,
}

/// A layer whose digest and tar size are being computed.
type Seal = JoinHandle<Result<(DiffId, u64), StepError>>;

impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schedule")
            .field("vertices", &self.results.len())
            .finish_non_exhaustive()
    }
}

/// What a finished run leaves.
#[derive(Debug)]
pub struct Finished {
    /// The result of the root.
    pub root: Stack,
    /// The exported layers: snapshot, digest and tar size (bytes).
    pub layers: BTreeMap<VertexId, (SnapshotId, DiffId, u64)>,
}

impl Schedule {
    /// Prepares a run.
    #[must_use]
    pub fn new(
        graph: Graph,
        worker: Arc<Worker>,
        rules: Rules,
        about: About,
        exported: BTreeSet<VertexId>,
    ) -> Self {
        let results = graph.ids().map(|_| SetOnce::new()).collect();
        let (wanted, requests) = mpsc::unbounded_channel();
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let most = u32::try_from(cores.max(4) * 2).unwrap_or(8);
        let width = rules.jobs.map_or(most, NonZeroU32::get).min(MOST_JOBS);
        Self {
            graph: Arc::new(graph),
            worker,
            rules,
            about,
            exported,
            definitions: Arc::default(),
            open: BTreeSet::new(),
            history: None,
            results,
            wanted,
            requests: Mutex::new(requests),
            permits: Arc::new(Semaphore::new(width as usize)),
            unpacking: Arc::new(Semaphore::new(width as usize)),
            width,
            seals: Mutex::default(),
            locks: Mutex::default(),
            elsewhere: Elsewhere::default(),
        }
    }

    /// Runs what the root needs. The first failure cancels everything else, and is returned only
    /// after all that ran has ended.
    ///
    /// # Errors
    /// The first [`Failure`].
    pub async fn run(&mut self, root: VertexId) -> Result<Finished, Failure> {
        let result = self.run_all(root).await;
        if result.is_err() {
            self.worker.cancel.cancel();
            // Nothing may outlive the build: wait for the steps of other stages, too.
            for running in [&self.permits, &self.unpacking] {
                drop(running.acquire_many(self.width).await);
            }
            for (_, task) in std::mem::take(&mut *self.seals.lock().await) {
                drop(task.await);
            }
        }
        result
    }

    /// The result of a vertex, where there is one.
    #[must_use]
    pub fn result_of(&self, id: VertexId) -> Option<&Stack> {
        self.results[id.index()].get()
    }

    /// Digests of inputs of a vertex that are nothing but a copy, for [`Inputs`](crate::step::Inputs).
    #[must_use]
    pub fn known_of(&self, id: VertexId) -> BTreeMap<usize, Digest> {
        self.copied(self.graph.vertex(id))
    }

    async fn run_all(&mut self, root: VertexId) -> Result<Finished, Failure> {
        self.define(root, Reading::Once).await?;
        self.compute(&[root]).await?;
        let mut layers = BTreeMap::new();
        for &id in &self.exported {
            // Every exported vertex is below the root, so its result is there.
            let Some(snapshot) = self.results[id.index()]
                .get()
                .and_then(|stack| stack.built.last())
            else {
                continue;
            };
            let snapshot = &self.actual(snapshot);
            let seal = self.seals.lock().await.remove(snapshot);
            let (diff_id, size) = match seal {
                Some(task) => task.await.map_err(|_| StepError::Thread).flatten(),
                None => self
                    .worker
                    .snapshots
                    .seal(snapshot)
                    .map_err(StepError::from),
            }
            .map_err(|error| Failure { vertex: id, error })?;
            layers.insert(id, (snapshot.clone(), diff_id, size));
        }
        Ok(Finished {
            root: self.finished(root),
            layers,
        })
    }

    /// The result of a vertex that has one already; nothing for the context.
    fn finished(&self, id: VertexId) -> Stack {
        self.results[id.index()].get().cloned().unwrap_or_default()
    }

    /// Computes the results of vertices and, once each, what they wait for. All computations stand
    /// side by side here, none within another: a graph may be deeper than a thread's stack.
    async fn compute(&self, ids: &[VertexId]) -> Result<(), Failure> {
        let known = |id: &VertexId| self.results[id.index()].get().is_some();
        let mut requests = self.requests.lock().await;
        let mut started = BTreeSet::new();
        let mut running = FuturesUnordered::new();
        // Layers that are on their way: nobody waits for those of the image, but the image. The
        // results of base images are there before their layers.
        let mut coming = 0_usize;
        let is_coming = |want: &Want| match want {
            Want::Result(id) => matches!(self.graph.vertex(*id).op, Op::Image(_)),
            Want::Layer(_) | Want::Files(_) => true,
        };
        let mut without = None;
        let mut start = |want: Want, running: &mut FuturesUnordered<_>, coming: &mut usize| {
            if matches!(&want, Want::Result(id) if known(id)) || !started.insert(want.clone()) {
                return;
            }
            let came = usize::from(is_coming(&want));
            *coming += came;
            running.push(async move {
                let (id, result) = match want {
                    Want::Result(id) => (Some(id), self.evaluate(id).await),
                    Want::Layer(layer) => (None, self.bring(layer, false).await.map(one_layer)),
                    Want::Files(layer) => (None, self.bring(layer, true).await.map(one_layer)),
                };
                (id, came, result)
            });
        };
        for &id in ids {
            start(Want::Result(id), &mut running, &mut coming);
        }
        loop {
            while let Ok(want) = requests.try_recv() {
                start(want, &mut running, &mut coming);
            }
            if coming == 0 {
                match without.take() {
                    Some(failure) => return Err(failure),
                    None if ids.iter().all(known) => return Ok(()),
                    None => {}
                }
            }
            tokio::select! {
                Some(want) = requests.recv() => start(want, &mut running, &mut coming),
                Some((id, came, result)) = running.next() => {
                    coming -= came;
                    match (id, result) {
                        // Each vertex is started once; an image has set its own result before.
                        (Some(id), Ok(stack)) => drop(self.results[id.index()].set(stack)),
                        (None, Ok(_)) => {}
                        // Who fetches the layer is about to say why.
                        (_, Err(failure)) if matches!(failure.error, StepError::NotFetched(_)) => {
                            without = Some(failure);
                        }
                        (_, Err(failure)) => return Err(failure),
                    }
                }
            }
        }
    }

    /// Waits for the result of a vertex that another one needs.
    async fn result(&self, id: VertexId) -> Stack {
        // The receiver lives as long as the sender: it is always heard.
        self.wanted.send(Want::Result(id)).ok();
        self.results[id.index()].wait().await.clone()
    }

    async fn evaluate(&self, id: VertexId) -> Result<Stack, Failure> {
        let fail = |error| Failure { vertex: id, error };
        if self.worker.cancel.is_cancelled() {
            return Err(fail(StepError::Cancelled));
        }
        match &self.graph.vertex(id).op {
            Op::Scratch | Op::Context(_) => Ok(Stack::default()),
            Op::Image(image) => {
                let stack = Stack {
                    image: image.layers.clone(),
                    built: Vec::new(),
                };
                self.image(id, image, &stack).await.map_err(fail)?;
                Ok(stack)
            }
            Op::Fetch(_) => {
                let made = self
                    .observed(
                        id,
                        self.execute(id, Stack::default(), Vec::new(), BTreeMap::new(), None),
                    )
                    .await
                    .map_err(fail)?;
                Ok(Stack::default().with(made.layer))
            }
            Op::Git(git) => {
                let layer = self
                    .observed(id, self.repository(id, git))
                    .await
                    .map_err(fail)?;
                self.start_seal(id, &layer, None).await;
                Ok(Stack::default().with(layer))
            }
            Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) => self.layered(id).await,
        }
    }

    /// A vertex that puts a layer on its first input.
    async fn layered(&self, id: VertexId) -> Result<Stack, Failure> {
        let fail = |error| Failure { vertex: id, error };
        let vertex = self.graph.vertex(id);
        let key = self.defined(id).key;
        let mut found = self.found(id).await.map_err(fail)?;
        match &found {
            Some((_, layer)) => self.note_packed(id, key, layer),
            None => found = self.imported(id, key).await.map_err(fail)?,
        }
        if let Some((root, layer)) = found {
            self.cached_event(id);
            self.start_seal(id, &layer, None).await;
            return Ok(root.with(layer));
        }
        if let Op::Run(run) = &vertex.op
            && run.network == Network::Default
        {
            // It is most likely to run, and has something to wait for meanwhile.
            self.worker.networks.warm();
        }
        let root = self.result(vertex.inputs[0]);
        let others = join_all(vertex.inputs[1..].iter().map(|&input| self.result(input)));
        let made = if reads_root(vertex) {
            let (root, others) = join(root, others).await;
            let made = self.made(id, root.clone(), others, true).await;
            made.map(|made| (root, made))
        } else {
            let root = async { Ok(root.await) };
            let made = async { self.made(id, Stack::default(), others.await, true).await };
            try_join(root, made).await
        };
        let (root, Made { layer, following }) = made.map_err(fail)?;
        // Of a copy that did not wait for its root, the key of what stands upon both.
        self.redefine(id);
        self.start_seal(id, &layer, following).await;
        Ok(root.with(layer))
    }

    fn cached_event(&self, id: VertexId) {
        if !matches!(self.graph.vertex(id).op, Op::Image(_)) {
            self.elsewhere.hits.fetch_add(1, Ordering::Relaxed);
        }
        self.hit(id);
        self.worker.observer.tell(Event::Cached {
            step: id.index(),
            name: self.graph.vertex(id).name.clone(),
        });
    }

    /// Starts computing the digest of a layer that the image will name, beside the next steps.
    async fn start_seal(&self, id: VertexId, layer: &SnapshotId, begun: Option<Following>) {
        if self.is_elsewhere(layer) {
            return;
        }
        self.offer(id, layer);
        if !self.exported.contains(&id) {
            return;
        }
        let (worker, snapshot) = (Arc::clone(&self.worker), layer.clone());
        self.seals
            .lock()
            .await
            .entry(layer.clone())
            .or_insert_with(|| {
                tokio::task::spawn_blocking(move || {
                    let sealed = worker.snapshots.seal_telling(&snapshot, begun, |text| {
                        let step = Some(id.index());
                        worker.observer.tell(Event::Note { step, text });
                    });
                    Ok(sealed?)
                })
            });
    }
}

/// A layer as a result.
fn one_layer(layer: SnapshotId) -> Stack {
    Stack::default().with(layer)
}

/// Runs work that blocks on a thread for such work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StepError::Thread)?
}
