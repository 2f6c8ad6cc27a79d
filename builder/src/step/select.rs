//! What a `COPY` or `ADD` reads: trees of its inputs, and the files selected in them.

use std::io::{Seek as _, SeekFrom};
use std::sync::Arc;

use kiln_registry::digest::Digest;

use super::{Stack, StepError, Worker, copy};
use crate::context::Tree;
use crate::context::key::content_key;
use crate::context::listed::{FileEntry, listed};
use crate::context::select::{Item, Selection, select_all};
use crate::event::Event;
use crate::graph::{CopyOp, Graph, Op, VertexId};
use crate::layer::{self, Following, Form, Limits, UnpackOptions};
use crate::snapshot::{Active, Measured, SnapshotId};

/// So many files and bytes are packed before a thread that does it has begun.
const MANY: usize = 100;
const LARGE: u64 = 1 << 20;

/// The files that a copy selects. They are found once, for the cache key, and then copied.
#[derive(Debug)]
pub struct Selections {
    op: CopyOp,
    /// At the indices of the vertex's inputs; input 0, which is written to, has none.
    trees: Vec<Option<Arc<Tree>>>,
    files: Vec<Selection>,
    /// Which of the trees hold a download.
    fetched: Vec<bool>,
    /// Empty directories that stand for stages without files.
    _empty: Vec<Active>,
}

impl Selections {
    /// Finds the files of a copy; `inputs` are the results of the vertex's inputs but the first.
    /// Blocks, and unpacks images where it has to.
    ///
    /// # Errors
    /// When sources are missing or unreadable.
    pub fn of(
        worker: &Worker,
        graph: &Graph,
        id: VertexId,
        inputs: &[Stack],
    ) -> Result<Self, StepError> {
        let vertex = graph.vertex(id);
        let Op::Copy(op) = &vertex.op else {
            return Err(StepError::Thread);
        };
        let mut trees = vec![None];
        let mut fetched = vec![false];
        let mut empty = Vec::new();
        for (input, stack) in vertex.inputs[1..].iter().zip(inputs) {
            let input = graph.vertex(*input);
            fetched.push(matches!(input.op, Op::Fetch(_) | Op::Git(_)));
            trees.push(Some(match &input.op {
                Op::Context(context) => worker.contexts.get(context.name.as_deref())?,
                _ => Arc::new(tree(worker, stack, &mut empty)?.named(format!("`{}`", input.name))),
            }));
        }
        let borrowed: Vec<_> = trees.iter().map(Option::as_deref).collect();
        let files = select_all(op, &borrowed).map_err(copy::CopyError::from)?;
        Ok(Self {
            op: op.clone(),
            trees,
            files,
            fetched,
            _empty: empty,
        })
    }

    /// Digest of all that is selected (A15.1).
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self) -> Result<Digest, StepError> {
        Ok(content_key(&self.op, &self.trees(), &self.files)?)
    }

    /// The files that went into that digest, to say later what changed.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn listed(&self) -> Result<Vec<FileEntry>, StepError> {
        Ok(listed(&self.op, &self.trees(), &self.files)?)
    }

    fn trees(&self) -> Vec<Option<&Tree>> {
        self.trees.iter().map(Option::as_deref).collect()
    }

    /// Writes the selected files into a new layer on top of a stack; with `follow` the layer's digest is
    /// taken meanwhile, where there is enough of it.
    pub(super) fn copy(
        &self,
        worker: &Worker,
        stack: &[SnapshotId],
        step: usize,
        active: &Active,
        follow: bool,
    ) -> Result<(Option<Measured>, Option<Following>), StepError> {
        let lower = worker.snapshots.view(stack)?;
        let upper = active.upper();
        let inputs = copy::CopyInputs {
            trees: &self.trees(),
            fetched: &self.fetched,
            lower: lower.as_ref(),
            upper: &upper,
            scratch: &active.work(),
            time: worker.settings.time(),
            follow: follow && self.is_large(),
        };
        let report = copy::copy(&self.op, &self.files, &inputs, &mut unpack)?;
        for note in report.notes {
            worker.observer.tell(Event::Note {
                step: Some(step),
                text: note.to_string(),
            });
        }
        Ok((report.measured, report.following))
    }

    /// Whether taking the digest of all takes long enough to be worth some threads.
    fn is_large(&self) -> bool {
        let (mut files, mut bytes) = (0, 0);
        let items = self.files.iter().flat_map(|selection| &selection.items);
        for item in items {
            let picked = match item {
                Item::Inline { .. } => continue,
                Item::File { file, .. } => std::slice::from_ref(file),
                Item::Directory { below, .. } | Item::Parents { below, .. } => &below[..],
            };
            for file in picked {
                files += 1;
                bytes += file.metadata.size;
                if files > MANY || bytes > LARGE {
                    return true;
                }
            }
        }
        false
    }
}

/// The merged tree of a stack.
pub(super) fn tree(
    worker: &Worker,
    stack: &Stack,
    empty: &mut Vec<Active>,
) -> Result<Tree, StepError> {
    let root = match worker.snapshots.view(&worker.unpacked(stack)?)? {
        Some(root) => root,
        None => {
            let active = worker.snapshots.prepare()?;
            let root = worker.snapshots.open(&active)?;
            empty.push(active);
            root
        }
    };
    Ok(Tree::merged(root))
}

/// Unpacks a file that `ADD` met, if it is an archive (A12.1).
fn unpack(archive: &copy::Archive<'_>) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let mut file = archive.file;
    let Some(compression) = layer::is_tar_archive(file)? else {
        return Ok(false);
    };
    file.seek(SeekFrom::Start(0))?;
    let mut tar = layer::decompressor(compression, file, Limits::default())?;
    let options = UnpackOptions {
        form: Form::Plain,
        lower: archive.existing.into(),
        ..UnpackOptions::default()
    };
    layer::unpack(&mut tar, archive.into, &options)?;
    Ok(true)
}
