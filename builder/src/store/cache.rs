//! Cache records: which snapshot a step made.

use kiln_registry::digest::Digest;
use rusqlite::{OptionalExtension as _, params};

use super::{SnapshotId, Store, StoreError};

/// The remembered result of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// The layer it made.
    pub snapshot: SnapshotId,
    /// When it was made, seconds since 1970.
    pub created: i64,
}

impl Store {
    /// The result of the step with this key, if it is remembered and still there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn cached(&self, key: &Digest) -> Result<Option<CacheRecord>, StoreError> {
        let record = self.query(|db| {
            db.prepare_cached(
                "SELECT snapshots.id, snapshots.created FROM cache JOIN snapshots ON snapshots.id = cache.snapshot
                 WHERE cache.key = ?1",
            )?
            .query_row([key.to_string()], |row| {
                Ok(CacheRecord { snapshot: SnapshotId::from_name(row.get(0)?), created: row.get(1)? })
            })
            .optional()
        })?;
        // A record whose folder somebody removed is a miss, never a failed build.
        Ok(record.filter(|record| self.snapshot_path(&record.snapshot).is_dir()))
    }

    /// Remembers the result of a step under its keys.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remember(&self, keys: &[&Digest], snapshot: &SnapshotId) -> Result<(), StoreError> {
        self.change(|db| {
            let mut insert = db.prepare_cached(
                "INSERT OR REPLACE INTO cache (key, snapshot, used) VALUES (?1, ?2, unixepoch())",
            )?;
            for key in keys {
                insert.execute(params![key.to_string(), snapshot.name()])?;
            }
            Ok(())
        })
    }
}
