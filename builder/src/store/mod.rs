//! The store: where images, layers and cached steps lie on disk.
//!
//! ```text
//! ROOT/version             format version of the store, one line
//! ROOT/ids                 whose files the snapshots are, where not every id is the host's own
//! ROOT/owners              owners of links in snapshots, where the disk cannot hold them (`sys::owner`)
//! ROOT/blobs/sha256/HEX    manifests, configs and layers as pulled, loaded or pushed
//! ROOT/partial/HEX         a blob that is not whole yet, see `partial`
//! ROOT/partial/upload-HEX  where a blob is being uploaded to; readable by its owner only
//! ROOT/snapshots/ID/       one layer each, unpacked, in overlayfs form; never changed once named
//! ROOT/kiln.db             names, images, layer facts, cache records, what was built last (SQLite,
//!                         write-ahead log)
//! ROOT/cache/              stat caches of build contexts
//! ROOT/mounts/KEY/N/       contents of cache mounts, with the lock of those who use them
//! ROOT/last/build.json     the steps of the last build, for `kiln shell`; readable by its owner only
//! ROOT/last/ID/fs          what its failed step had changed; `lock` in it is held by who looks at it
//! ROOT/lists/HEX.json      lists of images that are not pushed yet, by the digest of their name
//! ROOT/locks/content       held shared by whoever adds content, exclusively by who removes it
//! ROOT/locks/step-KEY      held by the process that executes that step
//! ROOT/locks/last          held while `last` is changed
//! ROOT/locks/lists         held while a list is changed
//! ROOT/tmp/ID/             unfinished things; `lock` in it is held by the process they belong to
//! ```
//!
//! Many processes use one store at once. Files are immutable once named and names appear by
//! rename, so readers need no locks; the database serves several processes; what a killed process
//! left in `tmp` is removed by the next one, because the kernel freed its lock.

mod blobs;
mod builds;
mod cache;
mod coming;
mod ids;
mod images;
mod last;
mod layers;
mod lists;
mod lock;
mod mounts;
mod packed;
mod partial;
mod schema;
mod sweep;
mod version;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kiln_registry::digest::{Digest, Mismatch};
use rusqlite::Connection;

pub use blobs::{BlobWriter, Blobs};
pub use builds::{BuildRecord, Eviction, FileList, Project, StepRecord};
pub use cache::CacheRecord;
pub use coming::{Coming, Expected, Follower, Verdict};
pub use images::{ImageRecord, NamedImage, RepoDigest};
pub use last::Held;
pub use layers::{LayerBlob, SnapshotFacts, SnapshotId};
pub use lists::{ImageList, ListEntry};
pub use lock::{StepLock, TempDir};
pub use mounts::CacheMount;

use version::VERSION;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store could not be read or written.
    #[error("{action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The database refused.
    #[error("the store's database `{path}`")]
    Database {
        /// The database file.
        path: PathBuf,
        /// Why it refused.
        source: rusqlite::Error,
    },
    /// Another version of kiln made the store.
    #[error("the store `{path}` has format version `{found}`, this kiln knows version {VERSION}")]
    Version {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// Another version of kiln made the store's database.
    #[error(
        "the store's database `{path}` has format version {found}, this kiln knows version {known}"
    )]
    DatabaseVersion {
        /// The database file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version that this kiln knows.
        known: i64,
    },
    /// The owners of the snapshots' files mean something else here.
    #[error(
        "the files of the store `{path}` belong to the ids {found}, and this process has {here}"
    )]
    Ids {
        /// The store.
        path: PathBuf,
        /// The ids that it was made with.
        found: String,
        /// The ids that there are.
        here: String,
    },
    /// An earlier version of kiln made the store, and this process lacks the right to convert it.
    #[error(
        "the store `{path}` has the older format version `{found}`, which only root can convert"
    )]
    OldVersion {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// Content is not what it was announced to be; nothing was stored.
    #[error("{0}")]
    Mismatch(#[from] Mismatch),
    /// No image of this name or id.
    #[error("No such image: {0}")]
    NoImage(String),
    /// An id prefix fits several images.
    #[error("the id prefix `{0}` fits several images, give more of its digits")]
    Ambiguous(String),
    /// A record in the store cannot be understood.
    #[error("the store's record of {what} is damaged: {detail}")]
    Damaged {
        /// Which record.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Content of the store is not what it was; it is removed, so that it can come anew.
    #[error("{what} in the store `{path}` was altered and is removed now")]
    Altered {
        /// What.
        what: String,
        /// The store.
        path: PathBuf,
    },
    /// Something the store should hold is gone.
    #[error("{what} is missing in the store `{path}`")]
    Missing {
        /// What.
        what: String,
        /// The store.
        path: PathBuf,
    },
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            Self::Database { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }

    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Version { .. } | Self::DatabaseVersion { .. } => {
                "use the kiln that made it, or choose another place with --root"
            }
            Self::Ids { .. } => {
                "use the isolation and the subordinate ids that it was made with, or choose another place with --root"
            }
            Self::OldVersion { .. } => {
                "run `kiln images` on it once as root, with all rights, or choose another place with --root"
            }
            Self::Missing { .. } | Self::Damaged { .. } | Self::Altered { .. } => {
                "pull, load or build the image again"
            }
            Self::Database { source, .. }
                if matches!(
                    source.sqlite_error_code(),
                    Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
                ) =>
            {
                "remove the store, or choose another place with --root; its images have to be pulled or built again"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// An opened store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    database: Mutex<Connection>,
    /// Held shared as long as the store is open, so that nobody sweeps what we are adding.
    content: fs::File,
    boot: String,
    /// Set once the owners of files are known to be what they were.
    claimed: OnceLock<()>,
    /// Layers that are fetched at this moment.
    coming: coming::Table,
}

impl Store {
    /// Opens a store, making it first where there is none.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be made or opened, or is of another version.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let fresh = !root.exists();
        for folder in [
            "",
            "blobs/sha256",
            "partial",
            "snapshots",
            "cache",
            "locks",
            "tmp",
        ] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(StoreError::io("making the folder", &path))?;
        }
        if fresh && !ids::is_root_of_host() {
            // A program with a set-user-id bit in a snapshot would be its owner's, on the host too.
            fs::set_permissions(root, fs::Permissions::from_mode(0o700))
                .map_err(StoreError::io("setting the mode of", root))?;
        }
        let root = fs::canonicalize(root).map_err(StoreError::io("finding the folder", root))?;
        version::check(&root)?;
        let content = lock::content(&root)?;
        let database = schema::open(&root.join("kiln.db"))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let store = Self {
            root,
            database: Mutex::new(database),
            content,
            boot,
            claimed: OnceLock::new(),
            coming: coming::Table::default(),
        };
        lock::clean_temporary(&store.root);
        partial::clean(&store.root);
        store.settle_snapshots()?;
        Ok(store)
    }

    /// The store's folder, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database. A panic of another thread while it held the connection leaves at worst an
    /// open transaction, which the next one rolls back; so poisoning is ignored.
    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs queries and says on failure which database it was.
    fn query<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(&self.database()).map_err(|source| self.database_error(source))
    }

    /// Runs queries that change something, all or nothing.
    fn change<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut database = self.database();
        let run = || {
            let transaction =
                database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|source| self.database_error(source))
    }

    fn database_error(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Database {
            path: self.root.join("kiln.db"),
            source,
        }
    }

    fn damaged(
        what: impl Into<String>,
    ) -> impl FnOnce(kiln_registry::digest::DigestError) -> StoreError {
        move |error| StoreError::Damaged {
            what: what.into(),
            detail: error.to_string(),
        }
    }
}

/// Reads a digest that the store itself wrote.
fn digest(text: &str, what: &str) -> Result<Digest, StoreError> {
    text.parse().map_err(Store::damaged(what))
}

#[cfg(test)]
mod tests;
