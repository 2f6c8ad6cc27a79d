//! Removal of content that no image needs any more.

use std::collections::HashSet;
use std::fs;

use kiln_registry::digest::Digest;
use kiln_registry::spec::{ChainId, Index, Manifest};

use super::{Eviction, Store, StoreError};

impl Store {
    /// Removes blobs, and unpacked image layers, that no image refers to; returns the bytes of
    /// blobs that were freed, or `None` when another process uses the store and nothing was done.
    /// Snapshots of build steps stay: they are the build cache. What a failed step left goes.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn sweep(&self) -> Result<Option<u64>, StoreError> {
        self.alone(|| {
            let (blobs, chains) = self.reachable()?;
            let known = self.query(|db| {
                db.prepare("SELECT chain_id, snapshot FROM chains")?
                    .query_map([], |row| {
                        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                    })?
                    .collect::<rusqlite::Result<Vec<_>>>()
            })?;
            for (chain, snapshot) in known {
                if !chains.contains(&chain) {
                    self.forget_snapshots("id = ?1", &snapshot, Eviction::Removed)?;
                }
            }
            self.forget_failed()?;
            self.remove_blobs(&blobs)
        })
    }

    /// Hexadecimal names of all blobs, and chain ids, that images refer to.
    fn reachable(&self) -> Result<(HashSet<String>, HashSet<String>), StoreError> {
        let mut blobs = HashSet::new();
        let mut chains = HashSet::new();
        for image in self.images()? {
            blobs.insert(image.id.hex());
            // A damaged image keeps what still can be found of it, and does not stop the sweep.
            if let Ok(config) = self.config(&image.id) {
                chains.extend(
                    ChainId::of(&config.rootfs.diff_ids)
                        .iter()
                        .map(ToString::to_string),
                );
                for &diff_id in &config.rootfs.diff_ids {
                    blobs.extend(
                        self.layer_blobs(diff_id)?
                            .iter()
                            .map(|blob| blob.digest.hex()),
                    );
                }
            }
            if let Some(manifest) = image.manifest {
                self.reachable_from(&manifest.digest, &mut blobs);
            }
        }
        // The results of steps that came from a cache elsewhere, and are not unpacked.
        for diff_id in self.packed_layers()? {
            let forms = self.layer_blobs(diff_id)?;
            blobs.extend(forms.iter().map(|blob| blob.digest.hex()));
        }
        for entry in self.repo_digests()? {
            self.reachable_from(&entry.digest, &mut blobs);
        }
        Ok((blobs, chains))
    }

    /// Adds a manifest or index and what it refers to, as far as it is here.
    fn reachable_from(&self, digest: &Digest, blobs: &mut HashSet<String>) {
        if !blobs.insert(digest.hex()) {
            return;
        }
        let Ok(bytes) = self.read_blob(digest) else {
            return;
        };
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
            blobs.insert(manifest.config.digest.hex());
            blobs.extend(manifest.layers.iter().map(|layer| layer.digest.hex()));
        } else if let Ok(index) = serde_json::from_slice::<Index>(&bytes) {
            for child in index.manifests {
                self.reachable_from(&child.digest, blobs);
            }
        }
    }

    fn remove_blobs(&self, keep: &HashSet<String>) -> Result<u64, StoreError> {
        let folder = self.root().join("blobs/sha256");
        let mut freed = 0;
        for entry in fs::read_dir(&folder)
            .map_err(StoreError::io("listing", &folder))?
            .flatten()
        {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| keep.contains(name)) {
                continue;
            }
            let size = entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            fs::remove_file(entry.path()).map_err(StoreError::io("removing", &entry.path()))?;
            freed += size;
        }
        Ok(freed)
    }
}
