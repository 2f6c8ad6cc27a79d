//! What a mount shows of another vertex: which files, and the digest that stands for them in cache keys
//! (B1.7, A15.2).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kiln_registry::digest::{Digest, Hasher};
use kiln_registry::spec::ChainId;

use super::select::tree;
use super::{Stack, StepError, Worker, copy};
use crate::context::key::content_key;
use crate::context::select::{Item, Selection, select_all};
use crate::context::{Found, Tree};
use crate::graph::{CopyOp, CopySource, Graph, MountOp, Op, VertexId};
use crate::snapshot::Active;

/// The inputs of a step, for its mounts to be read from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The step.
    pub id: VertexId,
    /// The results of its inputs but the first, which is its root.
    pub stacks: &'a [Stack],
    /// Digests of inputs that are nothing but a copy, by index among all inputs: what is copied
    /// stands for them.
    pub known: &'a BTreeMap<usize, Digest>,
}

/// Files selected in the result of a vertex.
pub(super) struct Files {
    op: CopyOp,
    tree: Arc<Tree>,
    selections: Vec<Selection>,
    /// An empty directory that stands for a stage without files.
    _empty: Vec<Active>,
}

impl Inputs<'_> {
    /// The result of an input; nothing for one that is not there.
    pub(super) fn stack(&self, input: usize) -> Stack {
        let index = input.checked_sub(1);
        let stack = index.and_then(|index| self.stacks.get(index));
        stack.cloned().unwrap_or_default()
    }

    /// Digest of all that the binds of a step show, in their order; `None` without any. Blocks, and
    /// unpacks images where it has to.
    ///
    /// # Errors
    /// When a source is missing or unreadable.
    pub fn binds(&self, worker: &Worker) -> Result<Option<Digest>, StepError> {
        let Op::Run(op) = &self.graph.vertex(self.id).op else {
            return Ok(None);
        };
        let mut all = None;
        for mount in &op.mounts {
            if let MountOp::Bind { input, source, .. } = mount {
                let digest = self.digest(worker, *input, source)?;
                all.get_or_insert_with(Hasher::new).update(digest.bytes());
            }
        }
        Ok(all.map(Hasher::finish))
    }

    /// Digest of what a path of an input holds. A whole image or stage is known by its layers: to read
    /// it would take longer than most steps.
    pub(super) fn digest(
        &self,
        worker: &Worker,
        input: usize,
        source: &str,
    ) -> Result<Digest, StepError> {
        if let Some(digest) = self.known.get(&input) {
            return Ok(*digest);
        }
        let stack = self.stack(input);
        if source == "/" {
            let mut hasher = Hasher::new();
            let image = ChainId::of(&stack.image).last().map(ToString::to_string);
            hasher.update(image.unwrap_or_default().as_bytes());
            for layer in &stack.built {
                hasher.update(b"\n");
                hasher.update(layer.name().as_bytes());
            }
            return Ok(hasher.finish());
        }
        self.files(worker, input, source, "/")?.digest()
    }

    /// Finds the files of a path of an input, to be copied to a destination.
    pub(super) fn files(
        &self,
        worker: &Worker,
        input: usize,
        source: &str,
        destination: &str,
    ) -> Result<Files, StepError> {
        let vertex = self.graph.vertex(self.id);
        let name = vertex
            .inputs
            .get(input)
            .map(|id| &self.graph.vertex(*id).name);
        let mut empty = Vec::new();
        let tree = tree(worker, &self.stack(input), &mut empty)?;
        let tree = Arc::new(tree.named(format!("`{}`", name.map_or("", |name| name))));
        let op = CopyOp {
            sources: vec![CopySource::Path {
                input: 1,
                path: source.to_owned(),
            }],
            destination: destination.to_owned(),
            keep_owner: true,
            literal: true,
            ..CopyOp::default()
        };
        let selections = select_all(&op, &[None, Some(&tree)]).map_err(copy::CopyError::from)?;
        Ok(Files {
            op,
            tree,
            selections,
            _empty: empty,
        })
    }
}

impl Files {
    /// Digest of the files (A15.1).
    pub(super) fn digest(&self) -> Result<Digest, StepError> {
        let trees = [None, Some(&*self.tree)];
        let found = Found::default();
        Ok(content_key(&self.op, &trees, &self.selections, &found)?)
    }

    /// Whether it is one directory.
    pub(super) fn is_directory(&self) -> bool {
        let mut items = self
            .selections
            .iter()
            .flat_map(|selection| &selection.items);
        items.all(|item| matches!(item, Item::Directory { .. }))
    }

    /// Copies the files below a directory.
    pub(super) fn copy(&self, worker: &Worker, into: &Path) -> Result<(), StepError> {
        let inputs = copy::CopyInputs {
            trees: &[None, Some(&self.tree)],
            fetched: &[false, false],
            lower: None,
            upper: into,
            scratch: into,
            time: worker.settings.time(),
            follow: false,
            learn: false,
        };
        copy::copy(&self.op, &self.selections, &inputs, &mut |_| Ok(false))?;
        Ok(())
    }
}
