//! What a `COPY` or `ADD` reads: trees of its inputs, and the files selected in them.

use std::io::{Seek as _, SeekFrom};
use std::sync::{Arc, OnceLock};

use kiln_registry::digest::Digest;

use super::{Stack, StepError, Worker, copy};
use crate::context::key::{content_key, known_content_key, shape_key};
use crate::context::listed::{FileEntry, listed};
use crate::context::select::{Item, Picked, Selection, select_all};
use crate::context::{Found, Tree};
use crate::event::Event;
use crate::graph::{CopyOp, Graph, Op, VertexId};
use crate::layer::{self, Following, Form, Limits, UnpackOptions};
use crate::snapshot::{Active, Measured, SnapshotId};

/// So many files and bytes are packed before a thread that does it has begun.
const MANY: usize = 100;
const LARGE: u64 = 1 << 20;
/// Files of less than this part of the bytes are read before the rest is copied, although they are read
/// again then: what changed can be told at once, which is what people wait for when little did.
const WORTH: u64 = 16;

/// The files that a copy selects. They are found once, for the cache key and for the copy. Their
/// contents are read once, too, where the digest is not asked for before they are copied.
#[derive(Debug)]
pub struct Selections {
    op: CopyOp,
    /// At the indices of the vertex's inputs; input 0, which is written to, has none.
    trees: Vec<Option<Arc<Tree>>>,
    files: Vec<Selection>,
    /// Which of the trees hold a download.
    fetched: Vec<bool>,
    digest: OnceLock<Digest>,
    shape: OnceLock<Digest>,
    /// What was found out of the files while they were copied.
    found: OnceLock<Found>,
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
            digest: OnceLock::new(),
            shape: OnceLock::new(),
            found: OnceLock::new(),
            _empty: empty,
        })
    }

    /// Digest of all that is selected (A15.1): of what was copied, where it was.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self) -> Result<Digest, StepError> {
        if let Some(digest) = self.taken_digest() {
            return Ok(digest);
        }
        let digest = content_key(&self.op, &self.trees(), &self.files, self.found())?;
        Ok(*self.digest.get_or_init(|| digest))
    }

    /// The digest, where it was taken already.
    #[must_use]
    pub fn taken_digest(&self) -> Option<Digest> {
        self.digest.get().copied()
    }

    /// The digest, where it is known without reading a file.
    ///
    /// # Errors
    /// When a link or the attributes of a directory cannot be read.
    pub fn known_digest(&self) -> Result<Option<Digest>, StepError> {
        let digest = known_content_key(&self.op, &self.trees(), &self.files)?;
        Ok(digest.map(|digest| *self.digest.get_or_init(|| digest)))
    }

    /// A digest of what the selected files look like: whatever has their contents has that, too.
    ///
    /// # Errors
    /// When the operation is malformed.
    pub fn shape(&self) -> Result<Digest, StepError> {
        if let Some(shape) = self.shape.get() {
            return Ok(*shape);
        }
        let shape = shape_key(&self.op, &self.trees(), &self.files)?;
        Ok(*self.shape.get_or_init(|| shape))
    }

    /// Whether the digest may better be taken while the files are copied: where a good part of them is
    /// not known, and none may be an archive, which is unpacked instead.
    #[must_use]
    pub fn are_better_copied(&self) -> bool {
        if self.op.unpack || self.op.unpack_fetched {
            return false;
        }
        let (mut all, mut unknown) = (0_u64, 0_u64);
        for (input, files) in self.picked() {
            if let Some(Some(tree)) = self.trees.get(input) {
                let bytes = tree.unknown_bytes(files);
                all = all.saturating_add(bytes.0);
                unknown = unknown.saturating_add(bytes.1);
            }
        }
        unknown > all / WORTH
    }

    /// The files of each item, and the input that they are from.
    fn picked(&self) -> impl Iterator<Item = (usize, &[Picked])> {
        let items = self.files.iter().flat_map(|selection| &selection.items);
        items.filter_map(|item| match item {
            Item::Inline { .. } => None,
            Item::File { input, file, .. } => Some((*input, std::slice::from_ref(file))),
            Item::Directory { input, below, .. } | Item::Parents { input, below } => {
                Some((*input, &below[..]))
            }
        })
    }

    fn found(&self) -> &Found {
        static NONE: Found = Found::none();
        self.found.get().unwrap_or(&NONE)
    }

    /// The files that went into that digest, to say later what changed.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn listed(&self) -> Result<Vec<FileEntry>, StepError> {
        let (trees, found) = (self.trees(), self.found());
        Ok(listed(&self.op, &trees, &self.files, found)?)
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
            learn: self.taken_digest().is_none(),
        };
        let report = copy::copy(&self.op, &self.files, &inputs, &mut unpack)?;
        if inputs.learn {
            // Files are copied once.
            drop(self.found.set(report.found));
        }
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
        self.picked().flat_map(|(_, files)| files).any(|file| {
            files += 1;
            bytes += file.metadata.size;
            files > MANY || bytes > LARGE
        })
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
