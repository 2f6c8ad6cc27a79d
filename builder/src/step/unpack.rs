//! The layers of an image, unpacked several at a time.
//!
//! A layer seldom needs those below it: for a directory that it does not mention, or a hard link to a
//! file that it does not hold. Then it waits for them. Layers are begun from the lowest on, so the
//! one that is waited for is always under way.

use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use kiln_registry::spec::{ChainId, DiffId};

use super::image::{open_layer, remove_altered};
use super::{StepError, Worker};
use crate::layer::unpack::{Lower, Unavailable};
use crate::layer::{self, Below, Hashing, UnpackOptions};
use crate::snapshot::{SnapshotError, SnapshotId};
use crate::sys::root::Root;

/// More than this at once only make the disk slow.
const AT_ONCE: usize = 4;

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
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..threads.min(AT_ONCE).min(missing) {
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
            let mut state = self.state();
            match unpacked {
                Ok(id) => state.found[index] = Some(id),
                // One that failed for want of those below says nothing new.
                Err(error) => state.failed = Some(state.failed.take().unwrap_or(error)),
            }
            self.news.notify_all();
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
        let (worker, chain, diff_id) = (self.worker, self.chains[index], self.diff_ids[index]);
        let _lock = worker.store.lock_step(&chain.0)?;
        if let Some(id) = worker.store.chain_snapshot(chain)? {
            return Ok(id);
        }
        let active = worker.snapshots.prepare()?;
        let mut tar = Hashing::new(open_layer(&worker.store, diff_id)?);
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
        let unpacked = unpacked
            .map_err(|error| StepError::Unpack(diff_id, error))
            .and_then(|_| match DiffId(tar.finish().0) {
                actual if actual == diff_id => Ok(()),
                actual => Err(StepError::DiffId {
                    expected: diff_id,
                    actual,
                }),
            });
        if let Err(error) = unpacked {
            // Either the image never was what it says, or its layer was altered here.
            remove_altered(&worker.store, diff_id)?;
            return Err(error);
        }
        let id = worker.snapshots.commit(active)?;
        worker.store.set_chain_snapshot(chain, &id)?;
        Ok(id)
    }
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
