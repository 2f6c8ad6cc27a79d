//! Layers of steps that lie here as blobs only: they came from a cache elsewhere, and are unpacked
//! when something needs their files.

use kiln_registry::spec::DiffId;
use rusqlite::{OptionalExtension as _, params};

use super::layers::signed;
use super::{SnapshotFacts, SnapshotId, Store, StoreError};

impl Store {
    /// Records a snapshot of which the files are to be unpacked from a blob of its layer.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_packed(&self, id: &SnapshotId, facts: &SnapshotFacts) -> Result<(), StoreError> {
        let layer = facts.layer.map(|(id, size)| (id.to_string(), signed(size)));
        let (diff_id, size) = layer.unzip();
        self.change(|db| {
            // Blobs are on disk before they have their name, so no boot is in question.
            db.execute(
                "INSERT OR IGNORE INTO snapshots (id, diff_id, tar_size, bytes, entries, created, boot) VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL)",
                params![id.name(), diff_id, size, signed(facts.bytes), signed(facts.entries), facts.created],
            )
        })?;
        Ok(())
    }

    /// Records that the files of such a snapshot lie in its folder now, and what they are.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_unpacked(
        &self,
        id: &SnapshotId,
        entries: u64,
        bytes: u64,
    ) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "UPDATE snapshots SET entries = ?2, bytes = ?3, boot = ?4 WHERE id = ?1",
                params![id.name(), signed(entries), signed(bytes), self.boot],
            )
        })?;
        Ok(())
    }

    /// Whether the files of a recorded snapshot are here, in its folder or in a blob.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn holds(&self, id: &SnapshotId) -> Result<bool, StoreError> {
        if self.snapshot_path(id).is_dir() {
            return Ok(true);
        }
        match self.snapshot(id)?.layer {
            Some((diff_id, _)) => Ok(!self.layer_blobs(diff_id)?.is_empty()),
            None => Ok(false),
        }
    }

    /// A snapshot of a step that is this layer, in whatever form.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn layer_snapshot(&self, diff_id: DiffId) -> Result<Option<SnapshotId>, StoreError> {
        if let Some((id, _)) = self.sealed_snapshot(diff_id)? {
            return Ok(Some(id));
        }
        let found = self.query(|db| {
            db.prepare_cached("SELECT id FROM snapshots WHERE diff_id = ?1 LIMIT 1")?
                .query_row([diff_id.to_string()], |row| {
                    row.get(0).map(SnapshotId::from_name)
                })
                .optional()
        })?;
        match found {
            Some(id) if self.holds(&id)? => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// The layers that are remembered results of steps and lie here as blobs only.
    pub(super) fn packed_layers(&self) -> Result<Vec<DiffId>, StoreError> {
        let known = self.query(|db| {
            let mut statement = db.prepare(
                "SELECT DISTINCT snapshots.id, diff_id FROM cache JOIN snapshots ON snapshots.id = cache.snapshot
                 WHERE diff_id IS NOT NULL",
            )?;
            let rows = statement.query_map([], |row| {
                Ok((SnapshotId::from_name(row.get(0)?), row.get::<_, String>(1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut layers = Vec::new();
        for (id, diff_id) in known {
            if !self.snapshot_path(&id).is_dir() {
                layers.push(DiffId(super::digest(&diff_id, "a snapshot")?));
            }
        }
        Ok(layers)
    }
}

#[cfg(test)]
mod tests {
    use kiln_registry::digest::Digest;

    use super::super::LayerBlob;
    use super::*;

    #[test]
    fn a_packed_result_is_remembered_as_long_as_its_blob_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let digest = store.write_blob(b"layer").unwrap();
        let diff_id = DiffId(Digest::of(b"tar"));
        let blob = LayerBlob {
            digest,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            size: 5,
        };
        store.add_layer_blob(diff_id, &blob).unwrap();
        let facts = SnapshotFacts {
            layer: Some((diff_id, 10)),
            bytes: 1,
            entries: 1,
            created: 1,
            settled: true,
        };
        let (id, key) = (SnapshotId::random(), Digest::of(b"key"));
        store.add_packed(&id, &facts).unwrap();
        store.remember(&[&key], &id).unwrap();
        assert_eq!(store.cached(&key).unwrap().unwrap().snapshot, id);
        assert_eq!(store.layer_snapshot(diff_id).unwrap(), Some(id.clone()));
        assert_eq!(store.sealed_snapshot(diff_id).unwrap(), None);
        store.sweep().unwrap();
        assert!(store.holds(&id).unwrap(), "it is the build cache");
        std::fs::remove_file(store.blob_path(&digest)).unwrap();
        assert_eq!(store.cached(&key).unwrap(), None);
        assert_eq!(store.layer_snapshot(diff_id).unwrap(), None);
    }
}
