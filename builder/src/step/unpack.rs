//! The layers of an image, unpacked several at a time.
//!
//! A layer seldom needs those below it: for a directory that it does not mention, or a hard link to a
//! file that it does not hold. Then it waits for them. Layers are begun from the lowest on, so the
//! one that is waited for is always under way.

use std::io::Read;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use kiln_registry::spec::{ChainId, DiffId};

use super::image::{open_layer, remove_altered, uncompressed};
use super::{StepError, Worker};
use crate::layer::unpack::{Lower, Unavailable};
use crate::layer::{self, Below, Hashing, UnpackOptions};
use crate::snapshot::{SnapshotError, SnapshotId};
use crate::store::Verdict;
use crate::sys::root::Root;

/// More than this at once only make the disk slow. Those that still come mostly wait.
const AT_ONCE: usize = 4;

/// Whether a layer of an image is being fetched.
pub(super) fn are_coming(worker: &Worker, layers: &[DiffId]) -> bool {
    let mut layers = layers.iter();
    layers.any(|&diff_id| worker.store.coming(diff_id).is_some())
}

/// The snapshots of all layers of an image, unpacked where they are not yet.
pub(super) fn all(worker: &Worker, layers: &[DiffId]) -> Result<Vec<SnapshotId>, StepError> {
    let chains = ChainId::of(layers);
    let mut found = Vec::with_capacity(layers.len());
    for (&chain, &diff_id) in chains.iter().zip(layers) {
        found.push(known(worker, chain, diff_id)?);
    }
    let missing = found.iter().filter(|found| found.is_none()).count();
    let layers = Layers {
        worker,
        chains: &chains,
        diff_ids: layers,
        state: Mutex::new(State {
            next: 0,
            found,
            failed: None,
        }),
        news: Condvar::new(),
        stopped: Arc::default(),
    };
    let at_once = match are_coming(worker, layers.diff_ids) {
        true => AT_ONCE,
        false => AT_ONCE.min(thread::available_parallelism().map_or(1, NonZero::get)),
    };
    thread::scope(|scope| {
        for _ in 1..at_once.min(missing) {
            let thread = thread::Builder::new().name("unpack".to_owned());
            // Without it the others do its work.
            drop(thread.spawn_scoped(scope, || layers.work()));
        }
        layers.work();
    });
    let state = layers.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    match state.failed {
        Some(error) => Err(error),
        None => Ok(state.found.into_iter().flatten().collect()),
    }
}

/// The layers of one image.
struct Layers<'a> {
    worker: &'a Worker,
    chains: &'a [ChainId],
    diff_ids: &'a [DiffId],
    state: Mutex<State>,
    news: Condvar,
    /// Set once one has failed: the others need not come.
    stopped: Arc<AtomicBool>,
}

struct State {
    /// The first layer that nobody has looked at.
    next: usize,
    /// Those that are unpacked.
    found: Vec<Option<SnapshotId>>,
    failed: Option<StepError>,
}

impl Layers<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unpacks one layer after the other, until all are or one cannot be.
    fn work(&self) {
        while let Some(index) = self.next() {
            let unpacked = self.once(index);
            let failed = unpacked.is_err();
            let mut state = self.state();
            match unpacked {
                Ok(id) => state.found[index] = Some(id),
                // One that failed for want of those below says nothing new.
                Err(error) => state.failed = Some(state.failed.take().unwrap_or(error)),
            }
            self.news.notify_all();
            drop(state);
            if failed {
                self.stop();
            }
        }
    }

    /// Ends the waiting for layers that still come.
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for &diff_id in self.diff_ids {
            if let Some(coming) = self.worker.store.coming(diff_id) {
                coming.wake();
            }
        }
    }

    fn next(&self) -> Option<usize> {
        let mut state = self.state();
        let from = state.next;
        let missing = |found: &Option<SnapshotId>| found.is_none();
        let index = from + state.found[from..].iter().position(missing)?;
        state.next = index + 1;
        state.failed.is_none().then_some(index)
    }

    /// Waits until all layers below one are unpacked, and gives their snapshots.
    fn below(&self, index: usize) -> Result<Vec<SnapshotId>, Unavailable> {
        let mut state = self.state();
        loop {
            if state.failed.is_some() {
                return Err(Unavailable);
            }
            let below: Option<Vec<_>> = state.found[..index].iter().cloned().collect();
            match below {
                Some(below) => return Ok(below),
                None => {
                    let news = self.news.wait(state);
                    state = news.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Unpacks a layer, or waits for the process or thread that is doing it.
    fn once(&self, index: usize) -> Result<SnapshotId, StepError> {
        let (store, chain) = (&self.worker.store, self.chains[index]);
        let _lock = store.lock_step(&chain.0)?;
        if let Some(id) = store.chain_snapshot(chain)? {
            return Ok(id);
        }
        let diff_id = self.diff_ids[index];
        if let Some(unpacked) = self.coming(index) {
            return unpacked;
        }
        let unpacked = self.unpack(index, open_layer(store, diff_id)?);
        if is_of_bytes(&unpacked) {
            // Either the image never was what it says, or its layer was altered here.
            remove_altered(store, diff_id)?;
        }
        unpacked
    }

    /// Unpacks a layer while it comes; `None` when it is here.
    fn coming(&self, index: usize) -> Option<Result<SnapshotId, StepError>> {
        let (store, diff_id) = (&self.worker.store, self.diff_ids[index]);
        loop {
            let coming = store.coming(diff_id)?;
            if store.has_blob(&coming.blob.digest) {
                return None;
            }
            let Some(bytes) = coming.follow(&self.stopped) else {
                return Some(Err(StepError::NotFetched(diff_id)));
            };
            let attempt = bytes.attempt();
            let unpacked = match uncompressed(store, &coming.blob, bytes) {
                Ok(Some(tar)) => self.unpack(index, tar),
                // Nothing of it can be read, whoever brings it.
                Ok(None) => return None,
                Err(error) => Err(error),
            };
            if !is_of_bytes(&unpacked) {
                return Some(unpacked);
            }
            // Bytes that are not those of the blob are the fetch's failure, not the layer's.
            match coming.verdict(attempt, &self.stopped) {
                Verdict::Right => return Some(unpacked),
                Verdict::Lost => return Some(Err(StepError::NotFetched(diff_id))),
                Verdict::Anew => {}
            }
        }
    }

    /// Makes the snapshot of a layer from its tar. Nothing is left of it when that is not what the
    /// image's config says, or cannot be read to its end.
    fn unpack(&self, index: usize, tar: Box<dyn Read + Send>) -> Result<SnapshotId, StepError> {
        let (worker, diff_id) = (self.worker, self.diff_ids[index]);
        let active = worker.snapshots.prepare()?;
        let mut tar = Hashing::new(tar);
        let view = View {
            layers: self,
            index,
            tree: OnceLock::new(),
        };
        let options = UnpackOptions {
            lower: Below::Later(&view),
            ..UnpackOptions::default()
        };
        let unpacked = layer::unpack(&mut tar, &active.upper(), &options);
        if let Some(Err(error)) = view.tree.into_inner() {
            return Err(error.into());
        }
        unpacked.map_err(|error| StepError::Unpack(diff_id, error))?;
        let actual = DiffId(tar.finish().0);
        if actual != diff_id {
            return Err(StepError::DiffId {
                expected: diff_id,
                actual,
            });
        }
        let id = worker.snapshots.commit(active)?;
        worker.store.set_chain_snapshot(self.chains[index], &id)?;
        Ok(id)
    }
}

/// Whether a layer could not be unpacked for what it is.
fn is_of_bytes(unpacked: &Result<SnapshotId, StepError>) -> bool {
    matches!(
        unpacked,
        Err(StepError::Unpack(..) | StepError::DiffId { .. })
    )
}

/// The layers below one, as one tree, once they are there.
struct View<'a> {
    layers: &'a Layers<'a>,
    index: usize,
    tree: OnceLock<Result<Option<Root>, SnapshotError>>,
}

impl Lower for View<'_> {
    fn tree(&self) -> Result<Option<&Root>, Unavailable> {
        let tree = match self.tree.get() {
            Some(tree) => tree,
            None => {
                let below = self.layers.below(self.index)?;
                let snapshots = &self.layers.worker.snapshots;
                self.tree.get_or_init(|| snapshots.view(&below))
            }
        };
        tree.as_ref().map(Option::as_ref).map_err(|_| Unavailable)
    }
}

/// The layer where it lies unpacked: from an image, or because it was built here.
fn known(
    worker: &Worker,
    chain: ChainId,
    diff_id: DiffId,
) -> Result<Option<SnapshotId>, StepError> {
    if let Some(id) = worker.store.chain_snapshot(chain)? {
        return Ok(Some(id));
    }
    let built = worker.store.sealed_snapshot(diff_id)?.map(|(id, _)| id);
    Ok(built.filter(|id| matches!(worker.snapshots.check(id), Ok(true))))
}
