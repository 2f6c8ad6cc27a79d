//! Opaque directories that hide something.
//!
//! Overlayfs marks a directory as opaque that is made where anything was deleted, be it a file or a
//! link, and with some of its features on every new one: that spares it the look-up in the lower
//! layers. In a layer the mark says that a directory was replaced, and other tools take it at its
//! word, so it stays only where there is a directory to hide.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{StepError, Worker};
use crate::layer::whiteout;
use crate::snapshot::SnapshotId;
use crate::sys::root::Root;

/// Takes the mark from all directories in `upper` below which the stack has no directory.
pub(super) fn settle(worker: &Worker, stack: &[SnapshotId], upper: &Path) -> Result<(), StepError> {
    let failed = |source| StepError::Io {
        action: "finishing the directories of",
        path: upper.to_owned(),
        source,
    };
    let marked = marked(upper).map_err(failed)?;
    if marked.is_empty() {
        return Ok(());
    }
    let view = worker.snapshots.view(stack)?;
    for path in marked {
        if !hides(view.as_ref(), &path).map_err(failed)? {
            let directory = upper.join(&path);
            rustix::fs::lremovexattr(&directory, whiteout::OPAQUE_ATTRIBUTE)
                .map_err(|error| failed(error.into()))?;
        }
    }
    Ok(())
}

/// The opaque directories in a directory, as paths below it.
fn marked(upper: &Path) -> io::Result<Vec<PathBuf>> {
    let mut marked = Vec::new();
    for entry in walkdir::WalkDir::new(upper).min_depth(1) {
        let entry = entry?;
        if !entry.file_type().is_dir() {
            continue;
        }
        // "x" on a directory is overlayfs's for "may hold whiteouts that are files"
        let mut value = [0; 1];
        let attribute = whiteout::OPAQUE_ATTRIBUTE;
        match rustix::fs::lgetxattr(entry.path(), attribute, &mut value) {
            Ok(1) if value == *b"y" => {
                let path = entry.path().strip_prefix(upper).unwrap_or(entry.path());
                marked.push(path.to_owned());
            }
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(marked)
}

/// Whether a view has a directory at a path.
fn hides(view: Option<&Root>, path: &Path) -> io::Result<bool> {
    let Some(view) = view else {
        return Ok(false);
    };
    match view.stat(path, false) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(error) => match Errno::from_io_error(&error) {
            // nothing there, or a file or a dangling link above it
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            _ => Err(error),
        },
    }
}
