//! Snapshots whose files lie in a blob until something needs them.

use std::fs;
use std::io;

use kiln_registry::digest::Digest;
use kiln_registry::spec::DiffId;
use kiln_registry::spec::media_type::layer_compression;

use super::{Active, SnapshotError, SnapshotId, Snapshots, io_error, measure};
use crate::layer::{self, Hashing, Limits, UnpackOptions};
use crate::store::LayerBlob;

impl Snapshots {
    /// Unpacks a snapshot that is recorded, and whose files are in no folder yet; what is unpacked is
    /// compared with the digest of the layer. Blocks.
    ///
    /// # Errors
    /// When it cannot be unpacked, or not just as it is; it stays as it was then.
    pub fn unpack(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        self.unpack_from(id, None)
    }

    /// The same from a blob that is only said to hold the layer. When it does, that is recorded: until
    /// then nobody else may take it for the layer.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    pub fn unpack_from(
        &self,
        id: &SnapshotId,
        said: Option<&LayerBlob>,
    ) -> Result<(), SnapshotError> {
        let folder = self.store.snapshot_path(id);
        if folder.is_dir() {
            return Ok(());
        }
        let Some((diff_id, size)) = self.store.snapshot(id)?.layer else {
            return Ok(());
        };
        let _lock = self.store.lock_step(&Digest::of(id.name().as_bytes()))?;
        if folder.is_dir() {
            return Ok(());
        }
        let blobs = self.store.layer_blobs(diff_id)?;
        let blob = said.or(blobs.first());
        let blob = blob.ok_or(SnapshotError::Altered(diff_id))?;
        let active = self.prepare()?;
        self.extract(&active, diff_id, size, blob)?;
        if said.is_some() {
            self.store.add_layer_blob(diff_id, blob)?;
        }
        let upper = active.upper();
        let measured = measure(&upper).map_err(io_error("measuring", &upper))?;
        fs::rename(&upper, &folder).map_err(io_error("naming the snapshot", &folder))?;
        Ok(self
            .store
            .set_unpacked(id, measured.entries, measured.bytes)?)
    }

    /// A layer of a step names all folders on the way to its files, and no file of a layer below: so it
    /// needs none of those to be unpacked.
    fn extract(
        &self,
        active: &Active,
        diff_id: DiffId,
        size: u64,
        blob: &LayerBlob,
    ) -> Result<(), SnapshotError> {
        let altered = || SnapshotError::Altered(diff_id);
        let compression = layer_compression(&blob.media_type).ok_or_else(altered)?;
        let path = self.store.blob_path(&blob.digest);
        let failed = |source: io::Error| io_error("reading the layer", &path)(source);
        let file = self.store.open_blob(&blob.digest)?;
        let limits = Limits {
            size,
            ..Limits::default()
        };
        let reader = layer::decompressor(compression.into(), file, limits).map_err(failed)?;
        let mut tar = Hashing::new(reader);
        let unpacked = layer::unpack(&mut tar, &active.upper(), &UnpackOptions::default())
            .map_err(|error| SnapshotError::Unpack(diff_id, error))?;
        let (digest, found, _) = tar.finish();
        match (digest, found) == (diff_id.0, size) && unpacked.warnings.is_empty() {
            true => Ok(()),
            false => Err(altered()),
        }
    }
}
