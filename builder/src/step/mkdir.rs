//! `WORKDIR`: makes a directory with its parents (A9.9).

use std::path::Path;

use rustix::fs::FileType;

use super::{StepError, Worker, copy};
use crate::graph::MkdirOp;
use crate::snapshot::SnapshotId;
use crate::sys::root::Root;
use crate::sys::users;

/// Makes the directory in `upper`, unless the stack has it already; existing ones are not touched.
pub(super) fn execute(
    worker: &Worker,
    op: &MkdirOp,
    stack: &[SnapshotId],
    upper: &Path,
) -> Result<(), StepError> {
    let view = worker.snapshots.view(stack)?;
    let path = Path::new(&op.path);
    if let Some(view) = &view
        && let Ok(stat) = view.stat(path, true)
        && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
    {
        return Ok(());
    }
    let owner = if op.user.is_empty() {
        (0, 0)
    } else {
        // Without layers below there are no names: the new layer, still empty, has none either.
        let empty = Root::open(upper);
        let empty = empty.map_err(|source| StepError::Io {
            action: "opening",
            path: upper.to_owned(),
            source,
        })?;
        let user = users::resolve(view.as_ref().unwrap_or(&empty), &op.user)?;
        (user.uid, user.gid)
    };
    copy::make_directory(view.as_ref(), upper, path, owner, worker.settings.time())?;
    Ok(())
}
