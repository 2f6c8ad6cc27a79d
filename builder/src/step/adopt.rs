//! Whose the files are that a step has made, where the disk does not say it.

use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{StepError, Worker};
use crate::snapshot::SnapshotId;
use crate::sys::root::Root;
use crate::sys::users;
use crate::sys::{owner, xattr};

/// Writes down, with a single id, that what has no owner yet belongs to the user of the step. What
/// overlayfs has copied up has an owner already.
pub(super) fn adopt(
    worker: &Worker,
    stack: &[SnapshotId],
    user: &str,
    upper: &Path,
) -> Result<(), StepError> {
    if !owner::is_kept_for_all() {
        return Ok(());
    }
    let failed = |source| StepError::Io {
        action: "writing down owners in",
        path: upper.to_owned(),
        source,
    };
    let root = Root::open(upper).map_err(failed)?;
    let view = worker.snapshots.view(stack)?;
    let user = users::resolve(view.as_ref().unwrap_or(&root), user)?;
    for entry in walkdir::WalkDir::new(upper).min_depth(1) {
        let entry = entry.map_err(|error| failed(error.into()))?;
        let path = entry.path().strip_prefix(upper).unwrap_or(entry.path());
        one(&root, path.as_os_str().as_bytes(), (user.uid, user.gid))
            .map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

fn one(root: &Root, path: &[u8], user: (u32, u32)) -> rustix::io::Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statat(root, path, nofollow)?;
    let place = xattr::Place::In(root.as_fd(), path);
    match owner::adopt(place, &stat, user) {
        Ok(None) | Err(Errno::PERM) => Ok(()),
        Ok(Some(nanoseconds)) => {
            rustix::fs::utimensat(root, path, &times(&stat, nanoseconds), nofollow)
        }
        Err(error) => Err(error),
    }
}

fn times(stat: &Stat, nanoseconds: u32) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: nanoseconds.into(),
        },
    }
}
