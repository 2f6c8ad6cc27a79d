//! What is kept of the last build: which steps it had, and the files of the one that failed.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::lock::{open, random_name, remove_all_but};
use super::{Store, StoreError};

/// The record of the last build's steps.
const RECORD: &str = "build.json";

/// The files in a folder that is kept.
const FILES: &str = "fs";

/// What a failed step had changed, held so that nobody removes it.
#[derive(Debug)]
pub struct Held {
    files: PathBuf,
    _lock: File,
}

impl Held {
    /// The files, in overlayfs form.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.files
    }
}

impl Store {
    /// Keeps the record of a build, and the files of its failed step under the name of their folder,
    /// instead of those of the build before. Of builds that end at the same time the later one stays.
    /// The record may hold what people give as build arguments, so nobody else may read it.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn set_last(&self, record: &[u8], failed: Option<&Path>) -> Result<(), StoreError> {
        let folder = self.last_folder();
        fs::create_dir_all(&folder).map_err(StoreError::io("making the folder", &folder))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700))
            .map_err(StoreError::io("setting the mode of", &folder))?;
        let _lock = self.lock_last()?;
        let kept = failed.map(|failed| keep(failed, &folder)).transpose()?;
        let temporary = self.root().join("tmp").join(random_name());
        let path = folder.join(RECORD);
        let write = || {
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(record)?;
            fs::rename(&temporary, &path)
        };
        let written = write().map_err(StoreError::io("writing", &path));
        if written.is_err() {
            // Most likely the disk is full; perhaps of what is kept here.
            drop(fs::remove_file(&temporary));
            self.remove_failed_but(None)?;
        }
        written.and_then(|()| self.remove_failed_but(kept.as_deref()))
    }

    /// The record of the last build, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn last(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.last_folder().join(RECORD);
        match fs::read(&path) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("reading", &path)(error)),
        }
    }

    /// The files that were kept under this name, if they are still there.
    ///
    /// # Errors
    /// When it cannot be locked.
    pub fn hold_failed(&self, name: &str) -> Result<Option<Held>, StoreError> {
        let _lock = self.lock_last()?;
        let folder = self.last_folder().join(name);
        let path = folder.join("lock");
        match File::open(&path) {
            Ok(lock) => {
                lock.lock_shared()
                    .map_err(StoreError::io("locking", &path))?;
                Ok(Some(Held {
                    files: folder.join(FILES),
                    _lock: lock,
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("opening the lock", &path)(error)),
        }
    }

    /// Removes the files of failed steps that nobody looks at.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(super) fn forget_failed(&self) -> Result<(), StoreError> {
        if !self.last_folder().exists() {
            return Ok(());
        }
        let _lock = self.lock_last()?;
        self.remove_failed_but(None)
    }

    fn remove_failed_but(&self, keep: Option<&Path>) -> Result<(), StoreError> {
        let folder = self.last_folder();
        let entries = fs::read_dir(&folder).map_err(StoreError::io("listing", &folder))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let Ok(lock) = File::open(path.join("lock")) else {
                continue;
            };
            // Who looks at it holds the lock; then the next build removes it.
            if keep != Some(&*path) && !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
                remove_all_but(&path, "lock");
                drop(fs::remove_dir_all(&path));
            }
        }
        Ok(())
    }

    fn last_folder(&self) -> PathBuf {
        self.root().join("last")
    }

    fn lock_last(&self) -> Result<File, StoreError> {
        let path = self.root().join("locks/last");
        let file = open(&path)?;
        file.lock().map_err(StoreError::io("locking", &path))?;
        Ok(file)
    }
}

/// Moves the files of a failed step to a folder of their own.
fn keep(files: &Path, last: &Path) -> Result<PathBuf, StoreError> {
    let folder = last.join(files.file_name().unwrap_or_default());
    let moved = || {
        fs::create_dir(&folder)?;
        File::create(folder.join("lock"))?;
        fs::rename(files, folder.join(FILES))
    };
    moved().map_err(StoreError::io("keeping", files))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_stays_and_held_files_stay_as_long_as_they_are_held() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.last().unwrap().is_none());
        let fail = |record: &[u8]| {
            let failed = store.temporary().unwrap();
            let name = String::from_utf8_lossy(record).into_owned();
            let files = failed.path().join(&name);
            fs::create_dir(&files).unwrap();
            fs::write(files.join("file"), record).unwrap();
            store.set_last(record, Some(&files)).unwrap();
            name
        };
        let first = fail(b"1");
        let held = store.hold_failed(&first).unwrap().unwrap();
        let second = fail(b"2");
        assert_eq!(store.last().unwrap().unwrap(), b"2");
        assert_eq!(fs::read(held.path().join("file")).unwrap(), b"1");
        drop(held);
        let mode = fs::metadata(folder.path().join("last/build.json")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        store.set_last(b"3", None).unwrap();
        for name in [first, second] {
            assert!(store.hold_failed(&name).unwrap().is_none());
        }
        let third = fail(b"4");
        assert!(store.sweep().unwrap().is_some());
        assert!(store.hold_failed(&third).unwrap().is_none());
        assert_eq!(store.last().unwrap().unwrap(), b"4");
        assert_eq!(fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    }
}
