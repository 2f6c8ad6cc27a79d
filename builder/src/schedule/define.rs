//! What is known of each vertex before anything runs: the keys that name its layer, and the files
//! that it copies.
//!
//! Of files that must be copied anyway the content is not read for that. Keys of such copies, and of
//! what depends on them, are made when they have run; stand-ins are in their place meanwhile, which
//! nothing is remembered for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use kiln_registry::digest::Digest;

use super::{Failure, Schedule, blocking};
use crate::cache::{CacheKey, content_key, definition_key, shape_key};
use crate::graph::{Op, Vertex, VertexId};
use crate::snapshot::SnapshotId;
use crate::step::{Selections, Stack, StepError};
use crate::store::Store;

/// What is known of a vertex before anything runs.
#[derive(Clone, Debug)]
pub(super) struct Defined {
    /// Names its layer.
    pub(super) key: CacheKey,
    /// Names its layer and those below, for what stands on it. They differ with `--link` only.
    pub(super) stack: CacheKey,
    /// The files it copies, where they are known already.
    pub(super) selected: Option<Arc<Selections>>,
    /// Whether a key is none yet, but stands in for it.
    pub(super) stand_in: bool,
}

/// The files that a copy selects, and their digest.
pub(super) type Digested = (Arc<Selections>, Digest);

impl Defined {
    /// The files it copies, where they were read.
    pub(super) fn digested(&self) -> Option<Digested> {
        let files = self.selected.as_ref()?;
        Some((Arc::clone(files), files.taken_digest()?))
    }
}

/// The definitions of all vertices that the root needs.
#[derive(Debug, Default)]
pub(super) struct Definitions(RwLock<BTreeMap<VertexId, Defined>>);

impl Definitions {
    /// The vertices, inputs before what needs them.
    pub(super) fn ids(&self) -> impl DoubleEndedIterator<Item = VertexId> + use<> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<VertexId> = all.keys().copied().collect();
        ids.into_iter()
    }

    /// What is known of a vertex, where the root needs it.
    pub(super) fn find(&self, id: VertexId) -> Option<Defined> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&id).cloned()
    }

    /// What is known of a vertex that the root needs.
    pub(super) fn of(&self, id: VertexId) -> Defined {
        let defined = self.find(id);
        defined.unwrap_or_else(|| unreachable!("vertex {} is not needed", id.index()))
    }

    fn set(&self, id: VertexId, defined: Defined) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, defined);
    }
}

/// Whether the content of files may wait until they are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// All files are read first.
    First,
    /// Those that must be copied anyway are read then.
    Once,
}

impl Schedule {
    /// What is known of a vertex that the root needs.
    pub(super) fn defined(&self, id: VertexId) -> Defined {
        self.definitions.of(id)
    }

    /// Computes the definition keys of all that the root needs. URLs and git repositories are
    /// fetched here: what they give is part of the definition (A15.4).
    pub(super) async fn define(&mut self, root: VertexId, reading: Reading) -> Result<(), Failure> {
        let needed = self.needed(root);
        let fetches: Vec<_> = needed
            .iter()
            .copied()
            .filter(|&id| matches!(self.graph.vertex(id).op, Op::Fetch(_) | Op::Git(_)))
            .collect();
        self.compute(&fetches).await?;
        let definitions = Definitions::default();
        for id in needed {
            let defined = self
                .define_one(&definitions, id, reading)
                .await
                .map_err(|error| Failure { vertex: id, error })?;
            definitions.set(id, defined);
        }
        self.definitions = Arc::new(definitions);
        self.open = self.open();
        self.history = Some(Arc::new(self.begin_history()));
        Ok(())
    }

    /// The vertices that the user wants executed, and all that depend on them.
    fn open(&self) -> BTreeSet<VertexId> {
        let mut open = BTreeSet::new();
        for id in self.definitions.ids() {
            let vertex = self.graph.vertex(id);
            if self.is_forced(id) || vertex.inputs.iter().any(|input| open.contains(input)) {
                open.insert(id);
            }
        }
        open
    }

    fn needed(&self, root: VertexId) -> BTreeSet<VertexId> {
        let mut needed = BTreeSet::from([root]);
        // Inputs have smaller ids, so one pass from the last to the first sees all.
        for id in self.graph.ids().rev() {
            if needed.contains(&id) {
                needed.extend(self.graph.vertex(id).inputs.iter().copied());
            }
        }
        needed
    }

    async fn define_one(
        &self,
        definitions: &Definitions,
        id: VertexId,
        reading: Reading,
    ) -> Result<Defined, StepError> {
        let vertex = self.graph.vertex(id);
        // Not the address, but what came from it.
        if let Op::Fetch(_) | Op::Git(_) = &vertex.op {
            let key = content_key(vertex, &self.finished(id).identity(), None);
            return Ok(Defined {
                key,
                stack: key,
                selected: None,
                stand_in: false,
            });
        }
        let selected = if self.selects_locally(vertex) {
            let inputs = vertex.inputs[1..].iter().map(|input| self.finished(*input));
            let files = self.select(id, inputs.collect()).await?;
            self.read(id, &files, reading).await?;
            Some(files)
        } else {
            None
        };
        Ok(self.keyed(definitions, id, selected))
    }

    /// Whether all that a vertex copies is selected in local files: what is selected stands for them,
    /// while other inputs have keys.
    fn selects_locally(&self, vertex: &Vertex) -> bool {
        let local = |input: &VertexId| {
            let op = &self.graph.vertex(*input).op;
            matches!(op, Op::Context(_) | Op::Fetch(_) | Op::Git(_))
        };
        matches!(vertex.op, Op::Copy(_)) && vertex.inputs[1..].iter().all(local)
    }

    /// The definition of a vertex with these files, from those of its inputs.
    fn keyed(
        &self,
        definitions: &Definitions,
        id: VertexId,
        selected: Option<Arc<Selections>>,
    ) -> Defined {
        let vertex = self.graph.vertex(id);
        let inputs = match &selected {
            Some(_) if self.selects_locally(vertex) => &vertex.inputs[..1],
            _ => &vertex.inputs[..],
        };
        let below: Vec<Defined> = inputs.iter().map(|input| definitions.of(*input)).collect();
        let keys: Vec<CacheKey> = below.iter().map(|input| input.stack).collect();
        let taken = selected.as_ref().map(|files| files.taken_digest());
        let digest = taken.map(|digest| {
            // Stands for what was not read yet: a digest that was never there before.
            let stand_in = || Digest::of(SnapshotId::random().name().as_bytes());
            digest.unwrap_or_else(stand_in)
        });
        let stack = definition_key(vertex, &keys, digest.as_ref());
        let key = if reads_root(vertex) {
            stack
        } else {
            definition_key(vertex, &keys[1..], digest.as_ref())
        };
        Defined {
            key,
            stack,
            selected,
            stand_in: taken == Some(None) || below.iter().any(|input| input.stand_in),
        }
    }

    /// Makes the keys of a vertex anew, whose inputs have run, or whose files were read.
    pub(super) fn redefine(&self, id: VertexId) -> Defined {
        let defined = self.defined(id);
        if !defined.stand_in {
            return defined;
        }
        let defined = self.keyed(&self.definitions, id, defined.selected);
        self.definitions.set(id, defined.clone());
        defined
    }

    /// Which files a `COPY` selects in its inputs.
    pub(super) async fn select(
        &self,
        id: VertexId,
        inputs: Vec<Stack>,
    ) -> Result<Arc<Selections>, StepError> {
        let (worker, graph) = (Arc::clone(&self.worker), Arc::clone(&self.graph));
        blocking(move || Ok(Arc::new(Selections::of(&worker, &graph, id, &inputs)?))).await
    }

    /// Takes the digest of what a `COPY` selects, but where that can wait until it is copied, because
    /// there is no layer for it.
    pub(super) async fn read(
        &self,
        id: VertexId,
        files: &Arc<Selections>,
        reading: Reading,
    ) -> Result<(), StepError> {
        // A layer that is elsewhere is asked for by its key, and a miss that is an error has a reason.
        let once =
            reading == Reading::Once && self.rules.required.is_empty() && !self.imports_any();
        let (store, files) = (Arc::clone(&self.worker.store), Arc::clone(files));
        let (vertex, forced) = (self.graph.vertex(id).clone(), self.is_forced(id));
        blocking(move || {
            let waits = once
                && files.known_digest()?.is_none()
                && files.are_better_copied()
                && (forced || !has_shape(&store, &vertex, &files)?);
            if !waits {
                files.digest()?;
            }
            Ok(())
        })
        .await
    }

    /// Whether a layer may have been made meanwhile of files that look like these.
    pub(super) async fn has_shape(
        &self,
        id: VertexId,
        files: &Arc<Selections>,
    ) -> Result<bool, StepError> {
        let (store, files) = (Arc::clone(&self.worker.store), Arc::clone(files));
        let vertex = self.graph.vertex(id).clone();
        blocking(move || has_shape(&store, &vertex, &files)).await
    }
}

/// Whether there may be a layer of a copy of files that look like these.
fn has_shape(store: &Store, vertex: &Vertex, files: &Selections) -> Result<bool, StepError> {
    let shape = shape_key(vertex, Some(&files.shape()?));
    Ok(store.has_shape([&shape, &shape_key(vertex, None)])?)
}

/// Whether the result of a vertex depends on its first input (A11.9).
pub(super) fn reads_root(vertex: &Vertex) -> bool {
    !matches!(&vertex.op, Op::Copy(op) if !op.reads_root())
}
