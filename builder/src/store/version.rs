//! The format version of a store, and how a store of an earlier version becomes one of this.
//!
//! Version 2 keeps overlayfs's marks in snapshots as `user.overlay.*`, which every user can read
//! and set in files of their own; version 1 kept them as `trusted.overlay.*`, for root alone.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::{StoreError, lock};

/// Format version that this kiln reads and writes.
pub(super) const VERSION: &str = "2";
/// The one before, which is converted.
const OLD: &str = "1";

/// The mark of a directory that hides what lies below, in version 1 and in version 2.
const MARKS: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];
/// Nothing means this attribute; only whether it can be set is asked.
const PROBE: &str = "trusted.kiln.probe";

/// Makes sure that a store has this version: a new one gets it, one of the version before is
/// converted.
pub(super) fn check(root: &Path) -> Result<(), StoreError> {
    match read(root)?.as_deref() {
        Some(VERSION) => Ok(()),
        Some(OLD) => convert(root),
        Some(found) => Err(StoreError::Version {
            path: root.to_owned(),
            found: found.chars().take(40).collect(),
        }),
        None => write(root),
    }
}

fn read(root: &Path) -> Result<Option<String>, StoreError> {
    let path = root.join("version");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("reading", &path)(error)),
    }
}

fn write(root: &Path) -> Result<(), StoreError> {
    let (path, temporary) = (
        root.join("version"),
        root.join("tmp").join(lock::random_name()),
    );
    let write = || {
        fs::write(&temporary, format!("{VERSION}\n"))?;
        fs::rename(&temporary, &path)
    };
    write().map_err(StoreError::io("writing", &path))
}

/// Converts a store while nobody has it open. It may be killed at any instant: a mark is set in its
/// new form before the old one goes, and the version is written when all is done.
fn convert(root: &Path) -> Result<(), StoreError> {
    let path = root.join("locks/content");
    let alone = lock::open(&path)?;
    alone.lock().map_err(StoreError::io("locking", &path))?;
    // Another process may have done it while this one waited.
    if read(root)?.as_deref() != Some(OLD) {
        return check(root);
    }
    let snapshots = root.join("snapshots");
    let mut entries = fs::read_dir(&snapshots).map_err(StoreError::io("reading", &snapshots))?;
    if entries.next().is_some() {
        if !may_convert(root).map_err(StoreError::io("converting", root))? {
            return Err(StoreError::OldVersion {
                path: root.to_owned(),
                found: OLD.to_owned(),
            });
        }
        move_marks(&snapshots).map_err(StoreError::io("converting", &snapshots))?;
    }
    write(root)
}

/// Whether this process can see the marks of version 1 at all: to others there seem to be none.
fn may_convert(root: &Path) -> io::Result<bool> {
    let folder = root.join("tmp");
    match rustix::fs::setxattr(&folder, PROBE, b"1", XattrFlags::empty()) {
        Ok(()) => Ok(rustix::fs::removexattr(&folder, PROBE).map(|()| true)?),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn move_marks(snapshots: &Path) -> io::Result<()> {
    let [old, new] = MARKS;
    for entry in walkdir::WalkDir::new(snapshots).min_depth(1) {
        let entry = entry?;
        if !entry.file_type().is_dir() {
            continue;
        }
        let path = entry.path();
        // "y" for most; "x" says that whiteouts in the directory may be files
        let mut value = [0; 1];
        let length = match rustix::fs::lgetxattr(path, old, &mut value[..]) {
            Ok(length) => length,
            Err(Errno::NODATA | Errno::NOTSUP) => continue,
            Err(error) => return Err(error.into()),
        };
        let value = value.get(..length).unwrap_or_default();
        rustix::fs::lsetxattr(path, new, value, XattrFlags::empty())?;
        rustix::fs::lremovexattr(path, old)?;
    }
    // The version must not be on disk before what it says.
    Ok(rustix::fs::syncfs(File::open(snapshots)?.as_fd())?)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    fn old_store(root: &Path) -> std::path::PathBuf {
        drop(Store::open(root).unwrap());
        let directory = root.join("snapshots/one/etc/hidden");
        fs::create_dir_all(&directory).unwrap();
        fs::write(root.join("version"), "1\n").unwrap();
        directory
    }

    fn mark(path: &Path, name: &str) -> Option<Vec<u8>> {
        let mut value = [0; 9];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
        Some(value[..length].to_vec())
    }

    #[test]
    fn a_store_of_version_1_is_converted() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: trusted attributes need root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let hidden = old_store(&root);
        let [old, new] = MARKS;
        let (layer, plain) = (root.join("snapshots/one"), root.join("snapshots/one/etc"));
        for path in [&hidden, &layer] {
            rustix::fs::setxattr(path, old, b"y", XattrFlags::empty()).unwrap();
        }
        // Where an earlier conversion was killed, between the two forms of one mark.
        rustix::fs::setxattr(&layer, new, b"y", XattrFlags::empty()).unwrap();
        drop(Store::open(&root).unwrap());
        for path in [&hidden, &layer] {
            assert_eq!(mark(path, old), None);
            assert_eq!(mark(path, new).unwrap(), b"y");
        }
        assert_eq!(mark(&plain, new), None);
        assert_eq!(fs::read_to_string(root.join("version")).unwrap(), "2\n");
        drop(Store::open(&root).unwrap());
    }

    #[test]
    fn a_conversion_waits_for_those_who_use_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        drop(Store::open(&root).unwrap());
        fs::write(root.join("version"), "1\n").unwrap();
        let user = lock::content(&root).unwrap();
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| Store::open(&root).map(drop));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(fs::read_to_string(root.join("version")).unwrap(), "1\n");
            drop(user);
            opened.join().unwrap().unwrap();
        });
        assert_eq!(fs::read_to_string(root.join("version")).unwrap(), "2\n");
    }
}
