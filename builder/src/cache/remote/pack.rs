//! Layers as blobs: made of snapshots, and checked.

use std::io;
use std::sync::Arc;

use kiln_registry::digest::Digest;
use kiln_registry::spec::Descriptor;
use kiln_registry::spec::media_type::{
    Compression, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, layer_compression,
};

use super::RemoteError;
use super::document::{Layer, LayerFacts};
use super::options::Packing;
use crate::layer::{self, Hashing, Limits, PackOptions};
use crate::store::{LayerBlob, SnapshotId, Store};

/// A layer that lies in the store as a blob of the wanted form, or `None`.
pub(super) fn packed(
    store: &Store,
    id: &SnapshotId,
    packing: Packing,
) -> Result<Option<Layer>, RemoteError> {
    let facts = store.snapshot(id)?;
    let Some((diff_id, size)) = facts.layer else {
        return Ok(None);
    };
    let facts = LayerFacts {
        diff_id,
        size,
        created: facts.created,
        bytes: facts.bytes,
        entries: facts.entries,
    };
    let blobs = store.layer_blobs(diff_id)?.into_iter();
    let mut fitting = blobs.filter_map(|blob| {
        let compression = layer_compression(&blob.media_type)?;
        let wanted = match packing.force {
            true => compression == packing.compression,
            false => compression != Compression::None || packing.compression == Compression::None,
        };
        wanted.then(|| Descriptor::new(media_type(compression), blob.digest, blob.size))
    });
    Ok(fitting.next().map(|blob| Layer { facts, blob }))
}

/// Makes a blob of a snapshot, and keeps it. Blocks.
pub(super) fn pack(
    store: &Arc<Store>,
    id: &SnapshotId,
    compression: Compression,
) -> Result<Layer, RemoteError> {
    store.claim_ids()?;
    let facts = store.snapshot(id)?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut writer = store.new_blob()?;
    let path = store.snapshot_path(id);
    let options = PackOptions::default();
    let sealed = layer::seal(&path, compression, threads, &mut writer, &options)?;
    let layer = (sealed.diff_id, sealed.packed.size);
    match facts.layer {
        Some(known) if known != layer => return Err(RemoteError::Layer),
        Some(_) => {}
        None => store.seal_snapshot(id, layer.0, layer.1)?,
    }
    let (digest, size) = writer.commit(store)?;
    let media_type = media_type(compression);
    let blob = LayerBlob {
        digest,
        media_type: media_type.to_owned(),
        size,
    };
    store.add_layer_blob(layer.0, &blob)?;
    Ok(Layer {
        facts: LayerFacts {
            diff_id: layer.0,
            size: layer.1,
            created: facts.created,
            bytes: facts.bytes,
            entries: facts.entries,
        },
        blob: Descriptor::new(media_type, digest, size),
    })
}

fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => OCI_LAYER,
        Compression::Gzip => OCI_LAYER_GZIP,
        Compression::Zstd => OCI_LAYER_ZSTD,
    }
}

/// Whether a blob of the store holds the layer that it is said to hold. Blocks.
pub(super) fn verify(
    store: &Store,
    facts: &LayerFacts,
    blob: &Digest,
    compression: Compression,
) -> Result<bool, RemoteError> {
    let file = store.open_blob(blob)?;
    let limits = Limits {
        size: facts.size,
        ..Limits::default()
    };
    let reader = layer::decompressor(compression.into(), file, limits);
    let mut tar = Hashing::new(reader.map_err(unreadable)?);
    if io::copy(&mut tar, &mut io::sink()).is_err() {
        return Ok(false);
    }
    let (digest, size, _) = tar.finish();
    Ok((digest, size) == (facts.diff_id.0, facts.size))
}

fn unreadable(source: io::Error) -> RemoteError {
    RemoteError::Io {
        action: "decompressing the layer",
        source,
    }
}
