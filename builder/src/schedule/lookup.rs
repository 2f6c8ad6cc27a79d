//! Looking up remembered results, and the right to make one that is not remembered.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::define::reads_root;
use super::{CachePolicy, Schedule, blocking};
use crate::cache::{CacheKey, identity};
use crate::event::Event;
use crate::graph::{Op, Vertex, VertexId};
use crate::snapshot::SnapshotId;
use crate::step::{Stack, StepError, Worker};
use crate::store::{CacheRecord, StepLock};

/// Stands for an input whose result does not matter.
const ANY: &str = "-";
/// How long another process is waited for without a word.
const SILENCE: Duration = Duration::from_secs(1);

impl Schedule {
    /// Whether a step is executed whatever is remembered.
    pub(super) fn is_forced(&self, id: VertexId) -> bool {
        let makes_layer = matches!(
            self.graph.vertex(id).op,
            Op::Run(_) | Op::Copy(_) | Op::Mkdir(_)
        );
        let all = self.rules.cache == CachePolicy::Ignore;
        makes_layer && (all || self.rules.executed.contains(&id))
    }

    /// Whether a result is not to be taken from its definition.
    pub(super) fn is_open(&self, id: VertexId) -> bool {
        self.open.contains(&id) || self.defined(id).stand_in
    }

    /// The layer of a vertex that is remembered for its definition, with what it stands on. That must
    /// be the very result that it was made upon: an equal definition may have been executed again
    /// since, and have left something else.
    pub(super) async fn found(
        &self,
        id: VertexId,
    ) -> Result<Option<(Stack, SnapshotId)>, StepError> {
        if self.is_open(id) {
            return Ok(None);
        }
        let vertex = self.graph.vertex(id);
        let Some(record) = self.recorded(self.defined(id).key).await? else {
            return Ok(None);
        };
        let root = self.result(vertex.inputs[0]).await;
        Ok(match self.stands(vertex, &record, &root).await? {
            true => Some((root, record.snapshot)),
            false => None,
        })
    }

    /// Whether a remembered layer was made upon what is there now. What a step only reads need not be
    /// there at all; where it is, it must be the same.
    async fn stands(
        &self,
        vertex: &Vertex,
        record: &CacheRecord,
        root: &Stack,
    ) -> Result<bool, StepError> {
        let Some(upon) = &record.upon else {
            return Ok(true);
        };
        let upon: Vec<&str> = upon.split(' ').collect();
        if upon.len() != vertex.inputs.len() {
            return Ok(false);
        }
        for (index, (mark, input)) in upon.iter().zip(&vertex.inputs).enumerate() {
            if *mark == ANY {
                continue;
            }
            let now = match index {
                0 => Some(root.clone()),
                _ => self.peek(*input).await?,
            };
            if now.is_some_and(|now| identity(&now.identity()) != *mark) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a layer of a vertex is made upon, for [`CacheRecord::upon`].
    pub(super) fn upon(&self, vertex: &Vertex, root: &Stack, others: &[Stack]) -> String {
        let stacks = std::iter::once(root).chain(others);
        let inputs = vertex.inputs.iter().zip(stacks).enumerate();
        let marks: Vec<_> = inputs
            .map(|(index, (input, stack))| {
                // What is selected in these is part of the definition itself.
                let local = matches!(
                    self.graph.vertex(*input).op,
                    Op::Scratch | Op::Context(_) | Op::Fetch(_) | Op::Git(_)
                );
                match index {
                    0 if !reads_root(vertex) => ANY.to_owned(),
                    _ if local => ANY.to_owned(),
                    _ => identity(&stack.identity()),
                }
            })
            .collect();
        marks.join(" ")
    }

    /// The result of a vertex as far as it is known without executing anything.
    async fn peek(&self, id: VertexId) -> Result<Option<Stack>, StepError> {
        let mut keys = Vec::new();
        let mut at = id;
        let mut stack = loop {
            if let Some(stack) = self.result_of(at) {
                break stack.clone();
            }
            let vertex = self.graph.vertex(at);
            match &vertex.op {
                Op::Image(image) => {
                    break Stack {
                        image: image.layers.clone(),
                        built: Vec::new(),
                    };
                }
                Op::Scratch | Op::Context(_) => break Stack::default(),
                Op::Fetch(_) | Op::Git(_) => return Ok(None),
                Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) if self.is_open(at) => {
                    return Ok(None);
                }
                Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) => {
                    keys.push(self.defined(at).key);
                    at = vertex.inputs[0];
                }
            }
        };
        let worker = Arc::clone(&self.worker);
        blocking(move || {
            for key in keys.into_iter().rev() {
                match record(&worker, key)? {
                    Some(record) => stack = stack.with(record.snapshot),
                    None => return Ok(None),
                }
            }
            Ok(Some(stack))
        })
        .await
    }

    /// The layer of a vertex that is remembered for what it reads.
    pub(super) async fn found_content(
        &self,
        id: VertexId,
        key: CacheKey,
    ) -> Result<Option<SnapshotId>, StepError> {
        if self.is_forced(id) {
            return Ok(None);
        }
        let layer = self.remembered(key).await?;
        if layer.is_some() {
            self.cached_event(id);
        }
        Ok(layer)
    }

    /// The layer that is remembered for a key.
    pub(super) async fn remembered(&self, key: CacheKey) -> Result<Option<SnapshotId>, StepError> {
        Ok(self.recorded(key).await?.map(|record| record.snapshot))
    }

    pub(super) async fn recorded(&self, key: CacheKey) -> Result<Option<CacheRecord>, StepError> {
        if self.rules.cache == CachePolicy::Ignore {
            return Ok(None);
        }
        let worker = Arc::clone(&self.worker);
        blocking(move || record(&worker, key)).await
    }

    /// The right to execute a step. Another process may hold it for as long as the step takes, so
    /// who waits is told for whom, and waiting ends when the build is cancelled.
    pub(super) async fn lock(&self, id: VertexId, key: CacheKey) -> Result<StepGuard, StepError> {
        let here = Arc::clone(self.locks.lock().await.entry(key).or_default());
        let worker = Arc::clone(&self.worker);
        let lock = async {
            let here = here.lock_owned().await;
            let elsewhere = blocking(move || Ok(worker.store.lock_step(key.digest())?));
            let _lock = self.telling(id, elsewhere).await?;
            Ok(StepGuard { _lock, _here: here })
        };
        tokio::select! {
            lock = lock => lock,
            () = self.worker.cancel.cancelled() => Err(StepError::Cancelled),
        }
    }

    /// Waits for another process, and says so where it takes long.
    async fn telling<T>(&self, id: VertexId, lock: impl Future<Output = T>) -> T {
        let mut lock = pin!(lock);
        if let Ok(lock) = timeout(SILENCE, lock.as_mut()).await {
            return lock;
        }
        let name = &self.graph.vertex(id).name;
        self.worker.observer.tell(Event::Note {
            step: Some(id.index()),
            text: format!("waiting for another kiln process, which is executing `{name}`"),
        });
        lock.await
    }
}

/// The right to execute a step: of this build's steps of that key the only one, and of all
/// processes' the only one.
#[derive(Debug)]
pub(super) struct StepGuard {
    _lock: StepLock,
    _here: OwnedMutexGuard<()>,
}

/// The record of a key whose result is still there, and whole.
fn record(worker: &Worker, key: CacheKey) -> Result<Option<CacheRecord>, StepError> {
    let Some(record) = worker.store.cached(key.digest())? else {
        return Ok(None);
    };
    Ok(worker.snapshots.check(&record.snapshot)?.then_some(record))
}
