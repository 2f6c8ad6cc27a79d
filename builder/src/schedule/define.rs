//! What is known of each vertex before anything runs: the keys that name its layer, and the files
//! that it copies.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_registry::digest::Digest;

use super::{Failure, Schedule, blocking};
use crate::cache::{CacheKey, content_key, definition_key};
use crate::graph::{Op, Vertex, VertexId};
use crate::step::{Selections, Stack, StepError};

/// What is known of a vertex before anything runs.
#[derive(Clone, Debug)]
pub(super) struct Defined {
    /// Names its layer.
    pub(super) key: CacheKey,
    /// Names its layer and those below, for what stands on it. They differ with `--link` only.
    pub(super) stack: CacheKey,
    /// The files it copies, where they are known already, and their digest.
    pub(super) selected: Option<(Arc<Selections>, Digest)>,
}

impl Schedule {
    /// Computes the definition keys of all that the root needs. URLs and git repositories are
    /// fetched here: what they give is part of the definition (A15.4).
    pub(super) async fn define(&mut self, root: VertexId) -> Result<(), Failure> {
        let needed = self.needed(root);
        let fetches: Vec<_> = needed
            .iter()
            .copied()
            .filter(|&id| matches!(self.graph.vertex(id).op, Op::Fetch(_) | Op::Git(_)))
            .collect();
        self.compute(&fetches).await?;
        for id in needed {
            let defined = self
                .define_one(id)
                .await
                .map_err(|error| Failure { vertex: id, error })?;
            self.defined.insert(id, defined);
        }
        self.open = self.open();
        self.history = Some(Arc::new(self.begin_history()));
        Ok(())
    }

    /// The vertices that the user wants executed, and all that depend on them.
    fn open(&self) -> BTreeSet<VertexId> {
        let mut open = BTreeSet::new();
        for id in self.defined.keys() {
            let vertex = self.graph.vertex(*id);
            if self.is_forced(*id) || vertex.inputs.iter().any(|input| open.contains(input)) {
                open.insert(*id);
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

    async fn define_one(&self, id: VertexId) -> Result<Defined, StepError> {
        let vertex = self.graph.vertex(id);
        let keys: Vec<CacheKey> = vertex
            .inputs
            .iter()
            .map(|input| self.defined[input].stack)
            .collect();
        let local = |input: &VertexId| {
            let op = &self.graph.vertex(*input).op;
            matches!(op, Op::Context(_) | Op::Fetch(_) | Op::Git(_))
        };
        // Not the address, but what came from it.
        if let Op::Fetch(_) | Op::Git(_) = &vertex.op {
            let key = content_key(vertex, &self.finished(id).identity(), None);
            return Ok(Defined {
                key,
                stack: key,
                selected: None,
            });
        }
        // What is selected in local files stands for them; other inputs have keys.
        let (inputs, selected) = match &vertex.op {
            Op::Copy(_) if vertex.inputs[1..].iter().all(local) => {
                let stacks = vertex.inputs[1..]
                    .iter()
                    .map(|input| self.finished(*input))
                    .collect();
                (&keys[..1], Some(self.select(id, stacks).await?))
            }
            _ => (&keys[..], None),
        };
        let digest = selected.as_ref().map(|(_, digest)| digest);
        let stack = definition_key(vertex, inputs, digest);
        let key = if reads_root(vertex) {
            stack
        } else {
            definition_key(vertex, &inputs[1..], digest)
        };
        Ok(Defined {
            key,
            stack,
            selected,
        })
    }

    /// Which files a `COPY` selects in its inputs, and their digest.
    pub(super) async fn select(
        &self,
        id: VertexId,
        inputs: Vec<Stack>,
    ) -> Result<(Arc<Selections>, Digest), StepError> {
        let (worker, graph) = (Arc::clone(&self.worker), Arc::clone(&self.graph));
        blocking(move || {
            let selections = Selections::of(&worker, &graph, id, &inputs)?;
            let digest = selections.digest()?;
            Ok((Arc::new(selections), digest))
        })
        .await
    }
}

/// Whether the result of a vertex depends on its first input (A11.9).
pub(super) fn reads_root(vertex: &Vertex) -> bool {
    !matches!(&vertex.op, Op::Copy(op) if !op.reads_root())
}
