//! Processes in the foreground: a program of an image, or a shell in a step. They run as a `RUN`
//! does, by the same specification; what they change is thrown away.

use std::path::Path;

use super::mounts::Mounts;
use super::{Stack, StepError, Worker, run};
use crate::event::Stream;
use crate::graph::RunOp;
use crate::runtime::cgroup::Groups;
use crate::runtime::{Attached, Exit, Files, Mount, Root, Streams};

/// A process for whoever watches it.
#[derive(Clone, Debug)]
pub struct Foreground<'a> {
    /// The process.
    pub op: &'a RunOp,
    /// Its root.
    pub root: &'a Stack,
    /// One more layer on top, in overlayfs form: what a failed step had changed.
    pub changes: Option<&'a Path>,
    /// Mounts besides those of the operation.
    pub mounts: Vec<Mount>,
    /// Whether it cannot write to its root.
    pub read_only: bool,
    /// What it reads and where it writes.
    pub streams: Streams,
}

/// Runs a process to its end. Blocks.
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
    let mut lowers = worker.snapshots.lowers(&stack)?;
    if let Some(changes) = process.changes {
        lowers.insert(0, changes.to_owned());
    }
    let root = Root {
        files: Files::Overlay {
            lowers,
            upper: active.upper(),
        },
        work: active.work(),
        points: worker.mount_points()?,
        read_only: process.read_only,
    };
    let mut made = Mounts::default();
    let lease = run::lease(worker, process.op)?;
    let mut spec = run::specification(worker, process.op, &mut made, root, &stack, lease.as_ref())?;
    spec.mounts.extend(process.mounts.iter().cloned());
    spec.streams = process.streams;
    let groups = run::groups(worker, process.op)?;
    spec.cgroups = groups.as_ref().map(Groups::procs).unwrap_or_default();
    let exit = worker
        .runtime
        .run_attached(&spec, attached, output, &worker.cancel)?;
    if let Some(kill) = groups.and_then(|groups| groups.finish().memory) {
        // Whoever watches sees no more than the exit code otherwise.
        output(
            Stream::Stderr,
            format!("kiln: killed: {kill}\r\n").as_bytes(),
        );
    }
    Ok(exit)
}
