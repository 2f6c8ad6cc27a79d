//! Processes in the foreground: a program of an image, or a shell in a step. They run as a `RUN`
//! does, by the same specification; what they change is thrown away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_registry::digest::Digest;

use super::mounts::Mounts;
use super::{Inputs, Stack, StepError, Worker, run};
use crate::event::Stream;
use crate::graph::{Graph, Op, RunOp, Vertex};
use crate::layer::{self, How};
use crate::runtime::cgroup::Groups;
use crate::runtime::{Attached, Exit, Files, Mount, Root, Streams};
use crate::snapshot::{SnapshotError, Writable};

/// A process for whoever watches it.
#[derive(Clone, Debug)]
pub struct Foreground<'a> {
    /// The process.
    pub op: &'a RunOp,
    /// Its root.
    pub root: &'a Stack,
    /// One more layer on top, in overlayfs form: what a failed step had changed.
    pub changes: Option<&'a PathBuf>,
    /// What its mounts are read from, see [`Inputs::stacks`].
    pub inputs: &'a [Stack],
    /// See [`Inputs::known`].
    pub known: &'a BTreeMap<usize, Digest>,
    /// Mounts besides those of the operation.
    pub mounts: Vec<Mount>,
    /// Whether it cannot write to its root.
    pub read_only: bool,
    /// What it reads and where it writes.
    pub streams: Streams,
}

/// Runs a process to its end. Blocks. Secrets are hidden in what it prints, but not on a terminal:
/// there somebody asked for them.
///
/// # Errors
/// [`StepError`] when it was not started, or cancelled; how it ended is no error.
pub fn foreground(
    worker: &Worker,
    process: &Foreground<'_>,
    attached: Attached<'_>,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Exit, StepError> {
    let stack = worker.unpacked(process.root)?;
    let active = worker.snapshots.prepare()?;
    let changes = process.changes;
    // A tree stays as long as this value.
    let writable = worker.snapshots.writable(&stack)?;
    let root = Root {
        files: match &writable {
            Writable::Layers(lowers) => Files::Overlay {
                lowers: changes.into_iter().chain(lowers).cloned().collect(),
                upper: active.upper(),
            },
            Writable::Tree(tree) => {
                let changes: Vec<&Path> = changes.iter().map(|changes| changes.as_path()).collect();
                layer::merge(&changes, &tree.path(), How::Copy).map_err(SnapshotError::from)?;
                Files::Tree(tree.path())
            }
        },
        work: active.work(),
        points: worker.mount_points()?,
        read_only: process.read_only,
    };
    let mut graph = Graph::default();
    let id = graph.add(Vertex {
        op: Op::Run(process.op.clone()),
        inputs: Vec::new(),
        name: String::new(),
        origin: None,
    });
    let inputs = Inputs {
        graph: &graph,
        id,
        stacks: process.inputs,
        known: process.known,
    };
    let mut made = Mounts::make(worker, process.op, &inputs, id.index())?;
    let lease = run::lease(worker, process.op)?;
    let mut spec = run::specification(worker, process.op, &mut made, root, &stack, lease.as_ref())?;
    spec.mounts.extend(process.mounts.iter().cloned());
    spec.streams = process.streams;
    let groups = run::groups(worker, process.op)?;
    spec.cgroups = groups.as_ref().map(Groups::procs).unwrap_or_default();
    let runtime = &worker.runtime;
    let exit = if matches!(process.streams, Streams::Terminal { .. }) {
        runtime.run_attached(&spec, attached, output, &worker.cancel)
    } else {
        let exit = runtime.run_attached(
            &spec,
            attached,
            &mut |stream, bytes| output(stream, &made.mask.push(stream, bytes)),
            &worker.cancel,
        );
        for stream in [Stream::Stdout, Stream::Stderr] {
            output(stream, &made.mask.finish(stream));
        }
        exit
    };
    if let Some(kill) = groups.and_then(|groups| groups.finish().memory) {
        // Whoever watches sees no more than the exit code otherwise.
        let told = format!("kiln: killed: {kill}\r\n");
        output(Stream::Stderr, told.as_bytes());
    }
    Ok(exit?)
}
