//! What is known of layers: the snapshots and blobs they lie in.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use kiln_registry::digest::Digest;
use kiln_registry::spec::{ChainId, DiffId};
use rusqlite::{OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::lock::random_name;
use super::{Eviction, Store, StoreError, digest};

/// After so many seconds the kernel has written dirty pages by itself, so syncing is cheap.
const SETTLED: i64 = 60;

/// Names a snapshot of one store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// The id of that name; names are those that the store gave.
    #[must_use]
    pub fn from_name(name: String) -> Self {
        Self(name)
    }

    /// An id that no other snapshot has.
    #[must_use]
    pub fn random() -> Self {
        Self(random_name())
    }

    /// Its name, which is also that of its folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// A form of a layer that lies in the store as a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob.
    pub digest: Digest,
    /// Its media type, which says how it is compressed.
    pub media_type: String,
    /// Its size, bytes.
    pub size: u64,
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Digest of its layer tar, and that tar's size in bytes, once computed.
    pub layer: Option<(DiffId, u64)>,
    /// Bytes of file content in it.
    pub bytes: u64,
    /// Number of files and directories in it.
    pub entries: u64,
    /// When it was made, seconds since 1970.
    pub created: i64,
    /// Whether it surely survived: `false` when an earlier boot wrote it and nobody synced or
    /// checked it since.
    pub settled: bool,
}

impl Store {
    /// Folder of a snapshot.
    #[must_use]
    pub fn snapshot_path(&self, id: &SnapshotId) -> PathBuf {
        self.root.join("snapshots").join(id.name())
    }

    /// Records a snapshot whose folder has its name already.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_snapshot(&self, id: &SnapshotId, facts: &SnapshotFacts) -> Result<(), StoreError> {
        let (diff_id, size) = facts
            .layer
            .map(|(id, size)| (id.to_string(), signed(size)))
            .unzip();
        self.change(|db| {
            db.execute(
                "INSERT INTO snapshots (id, diff_id, tar_size, bytes, entries, created, boot) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![id.name(), diff_id, size, signed(facts.bytes), signed(facts.entries), facts.created, self.boot],
            )
        })?;
        Ok(())
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no such snapshot.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotFacts, StoreError> {
        let row = self.query(|db| {
            db.prepare_cached(
                "SELECT diff_id, tar_size, bytes, entries, created, boot IS NULL OR boot = ?2 FROM snapshots WHERE id = ?1",
            )?
            .query_row([id.name(), &self.boot], |row| {
                let layer = (row.get::<_, Option<String>>(0)?, row.get::<_, Option<i64>>(1)?);
                let facts = SnapshotFacts {
                    layer: None,
                    bytes: unsigned(row, 2)?,
                    entries: unsigned(row, 3)?,
                    created: row.get(4)?,
                    settled: row.get(5)?,
                };
                Ok((layer, facts))
            })
            .optional()
        })?;
        let (layer, facts) = row.ok_or_else(|| self.missing(format!("snapshot {}", id.name())))?;
        let layer = match layer {
            (Some(id), Some(size)) => {
                Some((DiffId(digest(&id, "a snapshot")?), size.unsigned_abs()))
            }
            _ => None,
        };
        Ok(SnapshotFacts { layer, ..facts })
    }

    /// Records the digest and size of a snapshot's layer tar.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn seal_snapshot(
        &self,
        id: &SnapshotId,
        diff_id: DiffId,
        tar_size: u64,
    ) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "UPDATE snapshots SET diff_id = ?2, tar_size = ?3 WHERE id = ?1",
                params![id.name(), diff_id.to_string(), signed(tar_size)],
            )
        })?;
        Ok(())
    }

    /// A snapshot that packs to this layer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn sealed_snapshot(
        &self,
        diff_id: DiffId,
    ) -> Result<Option<(SnapshotId, u64)>, StoreError> {
        let found = self.query(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, tar_size FROM snapshots WHERE diff_id = ?1 AND tar_size IS NOT NULL",
            )?;
            let rows = statement.query_map([diff_id.to_string()], |row| {
                Ok((SnapshotId::from_name(row.get(0)?), unsigned(row, 1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        Ok(found
            .into_iter()
            .find(|(id, _)| self.snapshot_path(id).is_dir()))
    }

    /// The unpacked top layer of a stack of image layers.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn chain_snapshot(&self, chain: ChainId) -> Result<Option<SnapshotId>, StoreError> {
        let found = self.query(|db| {
            db.prepare_cached("SELECT snapshot FROM chains WHERE chain_id = ?1")?
                .query_row([chain.to_string()], |row| {
                    row.get(0).map(SnapshotId::from_name)
                })
                .optional()
        })?;
        Ok(found.filter(|id| self.snapshot_path(id).is_dir()))
    }

    /// Records the unpacked top layer of a stack of image layers. It is not recorded as a form of
    /// that layer: packing it anew would not give the bytes that it came from.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_chain_snapshot(&self, chain: ChainId, id: &SnapshotId) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "INSERT OR REPLACE INTO chains (chain_id, snapshot) VALUES (?1, ?2)",
                params![chain.to_string(), id.name()],
            )
        })?;
        Ok(())
    }

    /// Records that a blob is a form of a layer.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_layer_blob(&self, diff_id: DiffId, blob: &LayerBlob) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "INSERT OR REPLACE INTO layer_blobs (diff_id, digest, media_type, size) VALUES (?1, ?2, ?3, ?4)",
                params![diff_id.to_string(), blob.digest.to_string(), blob.media_type, signed(blob.size)],
            )
        })?;
        Ok(())
    }

    /// The forms of a layer that lie in the store as blobs.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn layer_blobs(&self, diff_id: DiffId) -> Result<Vec<LayerBlob>, StoreError> {
        let rows = self.query(|db| {
            let mut statement = db.prepare_cached("SELECT digest, media_type, size FROM layer_blobs WHERE diff_id = ?1 ORDER BY size, digest")?;
            let rows = statement.query_map([diff_id.to_string()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, unsigned(row, 2)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut blobs = Vec::with_capacity(rows.len());
        for (text, media_type, size) in rows {
            let digest = digest(&text, "a layer")?;
            if self.has_blob(&digest) {
                blobs.push(LayerBlob {
                    digest,
                    media_type,
                    size,
                });
            }
        }
        Ok(blobs)
    }

    /// Size of a layer in bytes: the content of its files where it was unpacked or built here, else
    /// that of its smallest blob; 0 when it is not here at all.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn layer_size(&self, diff_id: DiffId) -> Result<u64, StoreError> {
        let known = self.query(|db| {
            db.prepare_cached("SELECT bytes FROM snapshots WHERE diff_id = ?1 LIMIT 1")?
                .query_row([diff_id.to_string()], |row| unsigned(row, 0))
                .optional()
        })?;
        match known {
            Some(bytes) => Ok(bytes),
            None => Ok(self
                .layer_blobs(diff_id)?
                .first()
                .map_or(0, |blob| blob.size)),
        }
    }

    /// Records that a snapshot was found whole, after an earlier boot had left that open.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn settle_snapshot(&self, id: &SnapshotId) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "UPDATE snapshots SET boot = NULL WHERE id = ?1",
                [id.name()],
            )
        })?;
        Ok(())
    }

    /// Makes a snapshot look as if an earlier boot had written it.
    #[cfg(test)]
    pub(crate) fn unsettle_snapshot(&self, id: &SnapshotId) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "UPDATE snapshots SET boot = 'another' WHERE id = ?1",
                [id.name()],
            )
        })?;
        Ok(())
    }

    /// Forgets a snapshot and what refers to it; for steps that it was the result of, the reason is
    /// kept.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn forget_snapshot(&self, id: &SnapshotId, why: Eviction) -> Result<(), StoreError> {
        self.forget_snapshots("id = ?1", id.name(), why)
    }

    /// Makes sure that snapshots of earlier commands are on disk. Snapshots are not synced one by
    /// one, which would make every build wait for the disk; so a power failure may catch some half
    /// written. Those of an earlier boot that were never synced are therefore forgotten here, or,
    /// when the digest of their layer is known, checked against it before they are used again.
    pub(super) fn settle_snapshots(&self) -> Result<(), StoreError> {
        let unsettled = self.query(|db| {
            db.query_row(
                "SELECT count(*) FILTER (WHERE boot <> ?1 AND diff_id IS NULL), count(*) FILTER (WHERE boot = ?1 AND created < unixepoch() - ?2) FROM snapshots
                 WHERE boot IS NOT NULL",
                params![self.boot, SETTLED],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
            )
        })?;
        if unsettled.0 > 0 {
            self.forget_snapshots(
                "boot <> ?1 AND diff_id IS NULL",
                &self.boot,
                Eviction::Unsafe,
            )?;
        }
        if unsettled.1 > 0 {
            let folder = self.root.join("snapshots");
            let sync = || rustix::fs::syncfs(fs::File::open(&folder)?.as_fd()).map_err(Into::into);
            sync().map_err(StoreError::io("syncing", &folder))?;
            self.change(|db| {
                db.execute(
                    "UPDATE snapshots SET boot = NULL WHERE boot = ?1 AND created < unixepoch() - ?2",
                    params![self.boot, SETTLED],
                )
            })?;
        }
        Ok(())
    }

    /// Drops the records of some snapshots, then their folders.
    pub(super) fn forget_snapshots(
        &self,
        condition: &str,
        parameter: &str,
        why: Eviction,
    ) -> Result<(), StoreError> {
        let ids = self.change(|db| {
            let ids = db
                .prepare(&format!("SELECT id FROM snapshots WHERE {condition}"))?
                .query_map([parameter], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            db.execute(
                &format!("INSERT OR REPLACE INTO evictions (key, reason, at) SELECT key, ?2, unixepoch() FROM cache WHERE snapshot IN (SELECT id FROM snapshots WHERE {condition})"),
                [parameter, why.word()],
            )?;
            for table in ["cache", "chains", "shapes"] {
                let delete = format!("DELETE FROM {table} WHERE snapshot IN (SELECT id FROM snapshots WHERE {condition})");
                db.execute(&delete, [parameter])?;
            }
            db.execute(&format!("DELETE FROM snapshots WHERE {condition}"), [parameter])?;
            Ok(ids)
        })?;
        for id in ids {
            // What cannot be removed is only wasted space: no record names it any more.
            drop(fs::remove_dir_all(
                self.snapshot_path(&SnapshotId::from_name(id)),
            ));
        }
        Ok(())
    }

    fn missing(&self, what: String) -> StoreError {
        StoreError::Missing {
            what,
            path: self.root.clone(),
        }
    }
}

/// SQLite's integers are signed; sizes beyond 8 EiB do not occur.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::unsigned_abs)
}
