//! The directories of cache mounts (B2): `mounts/KEY/N/fs`, and beside each the lock of those who use
//! it, `used`, which is as old as its last use, and `synced`, which says what it was saved as elsewhere
//! last. `mounts/KEY/id` says for people what a key stands for. Nothing of it belongs to an image, so
//! that removing images leaves it alone.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_grammar::mount::Sharing;
use kiln_registry::digest::Digest;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::lock::{open, same_file};
use super::{Store, StoreError};

/// How many users of one private cache mount there may be at once.
const PRIVATE: usize = 10_000;

/// The directory of a cache mount, held against those who may not use it at the same time. The
/// kernel frees it when the process that holds it ends, however it ends.
#[derive(Debug)]
pub struct CacheMount {
    path: PathBuf,
    _lock: File,
}

impl CacheMount {
    /// The directory; it is there once it was made.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the directory is there.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes a finished directory, on the store's file system, that of the cache mount. When another
    /// user of the mount came first, theirs stays.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn make(&self, finished: &Path) -> Result<(), StoreError> {
        match rustix::fs::renameat_with(CWD, finished, CWD, &self.path, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(StoreError::io("making", &self.path)(error.into())),
        }
    }

    /// Puts a finished directory in the place of the cache mount's, for who has it alone; what was
    /// there is at `finished` then.
    ///
    /// # Errors
    /// When it cannot be renamed; the mount is as it was then.
    pub fn replace(&self, finished: &Path) -> Result<(), StoreError> {
        let how = match self.is_made() {
            true => RenameFlags::EXCHANGE,
            false => RenameFlags::NOREPLACE,
        };
        rustix::fs::renameat_with(CWD, finished, CWD, &self.path, how)
            .map_err(|error| StoreError::io("replacing", &self.path)(error.into()))
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// Remembers that a step uses the mount now.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn touch(&self) -> Result<(), StoreError> {
        let path = self.beside("used");
        fs::write(&path, "").map_err(StoreError::io("writing", &path))
    }

    /// When a step used it last; `None` where none has.
    #[must_use]
    pub fn last_used(&self) -> Option<SystemTime> {
        fs::metadata(self.beside("used")).ok()?.modified().ok()
    }

    /// Remembers which saved content it has had.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn set_synced(&self, saved: &str) -> Result<(), StoreError> {
        let path = self.beside("synced");
        fs::write(&path, saved).map_err(StoreError::io("writing", &path))
    }

    /// Which saved content it has had.
    #[must_use]
    pub fn synced(&self) -> Option<String> {
        fs::read_to_string(self.beside("synced")).ok()
    }
}

impl Store {
    /// Takes the directory of a cache mount if its other users allow it now: `Shared` stands beside
    /// others of its kind, `Locked` alone, and `Private` takes the first one that nobody uses.
    ///
    /// # Errors
    /// When the lock cannot be made or taken.
    pub fn cache_mount(
        &self,
        key: &Digest,
        id: &str,
        sharing: Sharing,
    ) -> Result<Option<CacheMount>, StoreError> {
        let folder = self.root.join("mounts").join(key.hex());
        make_folder(&folder)?;
        let label = folder.join("id");
        if !label.exists() {
            let temporary = self.temporary()?;
            let text = temporary.path().join("id");
            let written = fs::write(&text, format!("{id}\n"));
            let named = written.and_then(|()| fs::rename(&text, &label));
            named.map_err(StoreError::io("writing", &label))?;
        }
        let places = match sharing {
            Sharing::Private => PRIVATE,
            Sharing::Shared | Sharing::Locked => 1,
        };
        for place in 0..places {
            let place = folder.join(place.to_string());
            if let Some(lock) = take(&place, sharing)? {
                let path = place.join("fs");
                return Ok(Some(CacheMount { path, _lock: lock }));
            }
        }
        Ok(None)
    }
}

fn take(place: &Path, sharing: Sharing) -> Result<Option<File>, StoreError> {
    let path = place.join("lock");
    loop {
        make_folder(place)?;
        let file = open(&path)?;
        let locked = match sharing {
            Sharing::Shared => file.try_lock_shared(),
            Sharing::Private | Sharing::Locked => file.try_lock(),
        };
        match locked {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(StoreError::io("locking", &path)(error)),
            // Who removes a cache mount removes its lock while holding it.
            Ok(()) if same_file(&file, &path).map_err(StoreError::io("reading", &path))? => {
                return Ok(Some(file));
            }
            Ok(()) => {}
        }
    }
}

/// Makes a folder that only kiln may look into: caches hold what steps left there.
fn make_folder(path: &Path) -> Result<(), StoreError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    let made = match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => is_folder(path),
        made => made,
    };
    made.map_err(StoreError::io("making the folder", path))
}

fn is_folder(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_dir() {
        true => Ok(()),
        false => Err(ErrorKind::NotADirectory.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Digest {
        Digest::of(b"key")
    }

    #[test]
    fn b2_users_of_a_cache_mount_stand_side_by_side_alone_or_apart() {
        let folder = tempfile::tempdir().unwrap();
        // Two openings, as two processes have them.
        let (one, two) = (
            Store::open(folder.path()).unwrap(),
            Store::open(folder.path()).unwrap(),
        );
        let take = |store: &Store, sharing| store.cache_mount(&key(), "id", sharing).unwrap();

        let shared = take(&one, Sharing::Shared).unwrap();
        let beside = take(&two, Sharing::Shared).unwrap();
        assert_eq!(shared.path(), beside.path());
        assert!(take(&two, Sharing::Locked).is_none());
        let apart = take(&two, Sharing::Private).unwrap();
        assert_ne!(apart.path(), shared.path());
        drop((shared, beside));

        let locked = take(&one, Sharing::Locked).unwrap();
        assert!(take(&two, Sharing::Locked).is_none());
        assert!(take(&two, Sharing::Shared).is_none());
        drop(locked);

        let first = take(&one, Sharing::Private).unwrap();
        assert_ne!(first.path(), apart.path(), "both are in use");
        drop((first, apart));
        let again = take(&two, Sharing::Private).unwrap();
        assert!(again.path().ends_with("0/fs"), "the first free one");
        let label = folder.path().join("mounts").join(key().hex()).join("id");
        assert_eq!(fs::read_to_string(label).unwrap(), "id\n");
    }

    #[test]
    fn the_first_one_to_make_a_cache_mount_makes_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mount = store
            .cache_mount(&key(), "id", Sharing::Shared)
            .unwrap()
            .unwrap();
        assert!(!mount.is_made());
        for name in ["one", "two"] {
            let temporary = store.temporary().unwrap();
            let finished = temporary.path().join("fs");
            fs::create_dir(&finished).unwrap();
            fs::write(finished.join("name"), name).unwrap();
            mount.make(&finished).unwrap();
        }
        assert_eq!(
            fs::read_to_string(mount.path().join("name")).unwrap(),
            "one"
        );
    }

    #[test]
    fn removing_images_leaves_cache_mounts_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mount = store
            .cache_mount(&key(), "id", Sharing::Shared)
            .unwrap()
            .unwrap();
        fs::create_dir(mount.path()).unwrap();
        store.sweep().unwrap();
        assert!(mount.is_made());
    }
}
