//! Makes the files of a commit what they are on every machine and at every time.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use walkdir::{DirEntry, WalkDir};

use super::GitError;

/// What git writes into `.git` that speaks of this checkout, not of the commit.
const PRIVATE: &[&str] = &["FETCH_HEAD", "ORIG_HEAD", "logs", "hooks", "info"];

/// Gives every file mode 0644 or 0755, the owner 0:0 and a time (seconds since 1970), and removes
/// what is git's own: all of it, or what is of no use to others.
pub(super) fn tidy(folder: &Path, keep_git_dir: bool, time: i64) -> Result<(), GitError> {
    if keep_git_dir {
        for name in PRIVATE {
            remove(&folder.join(".git").join(name))?;
        }
    } else {
        // A commit cannot hold files of that name: those of submodules are git's own, too.
        let walk = WalkDir::new(folder).contents_first(true);
        for entry in walk {
            let entry = readable(entry, folder)?;
            if entry.file_name() == OsStr::new(".git") {
                remove(entry.path())?;
            }
        }
    }
    // Contents first: what happens in a directory changes its time.
    for entry in WalkDir::new(folder).contents_first(true) {
        settle(&readable(entry, folder)?, time)?;
    }
    Ok(())
}

fn readable(entry: walkdir::Result<DirEntry>, folder: &Path) -> Result<DirEntry, GitError> {
    entry.map_err(|error| GitError::io("listing", folder)(error.into()))
}

fn remove(path: &Path) -> Result<(), GitError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.map_err(GitError::io("removing", path))
}

fn settle(entry: &DirEntry, time: i64) -> Result<(), GitError> {
    let path = entry.path();
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let set = || {
        let stat = rustix::fs::statat(CWD, path, nofollow)?;
        rustix::fs::chownat(CWD, path, Some(Uid::ROOT), Some(Gid::ROOT), nofollow)?;
        let executable = stat.st_mode & 0o100 != 0;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {}
            FileType::RegularFile if !executable => {
                rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o644), AtFlags::empty())?;
            }
            _ => rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o755), AtFlags::empty())?,
        }
        let time = Timespec {
            tv_sec: time,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, nofollow)
    };
    set().map_err(|error| GitError::io("setting owner, mode and time of", path)(error.into()))
}
