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
    /// What the results were that it was made upon, where that is known.
    pub upon: Option<String>,
    /// What the step reads besides its root, where that is known.
    pub reads: Option<Digest>,
}

impl Store {
    /// The result of the step with this key, if it is remembered and still there.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn cached(&self, key: &Digest) -> Result<Option<CacheRecord>, StoreError> {
        let record = self.query(|db| {
            db.prepare_cached(
                "SELECT snapshots.id, snapshots.created, cache.upon, cache.reads FROM cache JOIN snapshots ON snapshots.id = cache.snapshot
                 WHERE cache.key = ?1",
            )?
            .query_row([key.to_string()], |row| {
                Ok(CacheRecord { snapshot: SnapshotId::from_name(row.get(0)?), created: row.get(1)?, upon: row.get(2)?, reads: row.get::<_, Option<String>>(3)?.and_then(|reads| reads.parse().ok()) })
            })
            .optional()
        })?;
        // A record of which somebody removed the files is a miss, never a failed build.
        match record {
            Some(record) if self.holds(&record.snapshot)? => Ok(Some(record)),
            _ => Ok(None),
        }
    }

    /// Remembers what the step with this key reads besides its root.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remember_reads(&self, key: &Digest, reads: &Digest) -> Result<(), StoreError> {
        self.change(|db| {
            db.prepare_cached("UPDATE cache SET reads = ?2 WHERE key = ?1")?
                .execute([key.to_string(), reads.to_string()])
        })?;
        Ok(())
    }

    /// Remembers what the files look like that were copied into a layer.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remember_shape(&self, shape: &Digest, snapshot: &SnapshotId) -> Result<(), StoreError> {
        self.change(|db| {
            db.prepare_cached("INSERT OR IGNORE INTO shapes (shape, snapshot) VALUES (?1, ?2)")?
                .execute([shape.to_string(), snapshot.name().to_owned()])
        })?;
        Ok(())
    }

    /// Whether there may be a layer of files that look like one of these: one that is remembered so, or
    /// one of which nobody knows.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_shape(&self, shapes: [&Digest; 2]) -> Result<bool, StoreError> {
        let [one, other] = shapes.map(ToString::to_string);
        self.query(|db| {
            db.prepare_cached("SELECT EXISTS (SELECT 1 FROM shapes WHERE shape IN (?1, ?2, ''))")?
                .query_row([one, other], |row| row.get(0))
        })
    }

    /// Remembers the result of a step under its keys.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remember(&self, keys: &[&Digest], snapshot: &SnapshotId) -> Result<(), StoreError> {
        let keys: Vec<_> = keys.iter().map(|key| (*key, None)).collect();
        self.remember_upon(&keys, snapshot)
    }

    /// Remembers the result of a step under its keys, and for each of them what it was made upon,
    /// where the key itself does not say it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remember_upon(
        &self,
        keys: &[(&Digest, Option<&str>)],
        snapshot: &SnapshotId,
    ) -> Result<(), StoreError> {
        self.change(|db| {
            let mut insert = db.prepare_cached(
                "INSERT OR REPLACE INTO cache (key, snapshot, upon, used) VALUES (?1, ?2, ?3, unixepoch())",
            )?;
            let mut there = db.prepare_cached("DELETE FROM evictions WHERE key = ?1")?;
            for (key, upon) in keys {
                insert.execute(params![key.to_string(), snapshot.name(), upon])?;
                there.execute([key.to_string()])?;
            }
            Ok(())
        })
    }
}
