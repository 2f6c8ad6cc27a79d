//! Locks and temporary folders. All locks are `flock`s: the kernel frees them when the process
//! that holds them ends, however it ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use kiln_registry::digest::Digest;

use super::{Store, StoreError};

/// A name that nobody else uses: 128 random bits in hexadecimal.
pub(super) fn random_name() -> String {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        // Cannot fail for valid flags; an interrupted call is repeated.
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .unwrap_or(0);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes the shared lock of those that add content, waiting for a sweep to end.
pub(super) fn content(root: &Path) -> Result<File, StoreError> {
    let path = root.join("locks/content");
    let file = open(&path)?;
    file.lock_shared()
        .map_err(StoreError::io("locking", &path))?;
    Ok(file)
}

pub(super) fn open(path: &Path) -> Result<File, StoreError> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(StoreError::io("opening the lock", path))
}

/// Removes what killed processes left in `tmp`. What cannot be removed is left for the next one.
pub(super) fn clean_temporary(root: &Path) {
    let Ok(entries) = fs::read_dir(root.join("tmp")) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(lock) = File::open(path.join("lock")) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            // The lock file goes last: without it nobody would look at the folder again.
            remove_all_but(&path, "lock");
            drop(fs::remove_dir_all(&path));
        }
    }
}

pub(super) fn remove_all_but(folder: &Path, keep: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name() != keep {
            let path = entry.path();
            drop(if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            });
        }
    }
}

/// A folder in the store for unfinished things, gone when dropped.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    _lock: File,
}

impl TempDir {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        remove_all_but(&self.path, "lock");
        // What could not be removed now, the next process will find unlocked.
        drop(fs::remove_dir_all(&self.path));
    }
}

/// The right to execute one step; held by one process at a time.
#[derive(Debug)]
pub struct StepLock {
    file: File,
    path: PathBuf,
}

impl Drop for StepLock {
    fn drop(&mut self) {
        // Removed while still locked: who waited for it notices and takes a new file.
        drop(fs::remove_file(&self.path));
        drop(self.file.unlock());
    }
}

impl Store {
    /// Makes a folder for unfinished things, on the same file system as everything else.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn temporary(&self) -> Result<TempDir, StoreError> {
        loop {
            let path = self.root.join("tmp").join(random_name());
            fs::create_dir(&path).map_err(StoreError::io("making the folder", &path))?;
            let file = path.join("lock");
            let lock = File::create(&file).map_err(StoreError::io("making", &file))?;
            match lock.try_lock() {
                // A cleaner may have come between the two calls and removed the folder again.
                Ok(()) if file.exists() => {
                    return Ok(TempDir { path, _lock: lock });
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::io("locking", &file)(error));
                }
            }
        }
    }

    /// Waits for, and takes, the right to execute the step with this key. Blocks.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn lock_step(&self, key: &Digest) -> Result<StepLock, StoreError> {
        let path = self.root.join("locks").join(format!("step-{}", key.hex()));
        loop {
            let file = open(&path)?;
            file.lock().map_err(StoreError::io("locking", &path))?;
            if same_file(&file, &path).map_err(StoreError::io("reading", &path))? {
                return Ok(StepLock { file, path });
            }
        }
    }

    /// Runs a removal of content while no other process adds any; does nothing and says `None`
    /// when one does.
    pub(super) fn alone<T>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let path = self.root.join("locks/content");
        // A new description of the file: converting our own shared lock could lose it.
        let file = open(&path)?;
        self.content
            .unlock()
            .map_err(StoreError::io("unlocking", &path))?;
        let result = match file.try_lock() {
            Ok(()) => work().map(Some),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(StoreError::io("locking", &path)(error)),
        };
        drop(file);
        self.content
            .lock_shared()
            .map_err(StoreError::io("locking", &path))?;
        result
    }
}

/// Whether the opened file is still the one of that name.
pub(super) fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok(named.ino() == ours.ino() && named.dev() == ours.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
