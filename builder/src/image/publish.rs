//! Images out of the store: into registries and archives.
//!
//! An image that came from elsewhere leaves as it came: its manifest and blobs are the bytes
//! received. One that was built here has no manifest before it leaves; its layers are compressed
//! once, for the first registry, and archives may hold them as they are.

use std::io::{self, Write};
use std::sync::Arc;

use kiln_registry::archive::ArchiveWriter;
use kiln_registry::blob::Put;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::{
    Compression, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
    layer_compression,
};
use kiln_registry::spec::{Descriptor, DiffId, Manifest, Raw};
use kiln_registry::transfer;

use super::ImageError;
use super::altered::{is_mismatch, remove_altered};
use crate::event::{Event, Observer};
use crate::layer::gzip::GzipWriter;
use crate::layer::{self, Hashing, PackOptions};
use crate::runtime::Cancel;
use crate::snapshot::{SnapshotId, Snapshots};
use crate::step::{StepError, blob_event, open_layer};
use crate::store::{LayerBlob, Store, StoreError};

/// Blobs sent at once.
const JOBS: usize = 5;

/// Pushes an image under a name; returns the descriptor of its manifest, and whether the registry
/// had it under that name already.
///
/// # Errors
/// [`ImageError`]; the image in the store stays as it is.
pub async fn push(
    store: &Arc<Store>,
    client: &Client,
    reference: &Reference,
    image: &Digest,
    observer: &Observer,
    cancel: &Cancel,
) -> Result<(Descriptor, bool), ImageError> {
    let work = async {
        let (owned, id, watch) = (Arc::clone(store), *image, observer.clone());
        let task = tokio::task::spawn_blocking(move || registry_manifest(&owned, &id, &watch));
        let (manifest, descriptor) = task.await.map_err(|_| StepError::Thread)??;
        remember_neighbours(store, client, reference)?;
        let sink = client.repository(reference);
        let watch = observer.clone();
        let progress = move |blob: &Descriptor, step| watch.tell(blob_event(blob, step));
        let tag = Some(reference.tag_or_latest());
        let copied = transfer::copy(
            &manifest,
            &descriptor,
            &**store,
            &sink,
            tag,
            JOBS,
            &progress,
        )
        .await?;
        store.write_blob(&manifest.bytes)?;
        store.add_image(image, Some(&descriptor))?;
        store.add_repo_digest(reference, &descriptor.digest, image)?;
        Ok((descriptor, copied.manifest == Some(Put::Existed)))
    };
    let result = tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(StepError::Cancelled.into()),
    };
    match result {
        Err(error) if is_mismatch(&error) => {
            let (owned, id) = (Arc::clone(store), *image);
            let task = tokio::task::spawn_blocking(move || remove_altered(&owned, &id));
            task.await.map_err(|_| StepError::Thread)??;
            Err(error)
        }
        result => result,
    }
}

/// Tells the client which layers other repositories of the registry are known to hold: those of the
/// images that were pulled from there or pushed there. They are mounted, not sent (D7.4).
fn remember_neighbours(
    store: &Store,
    client: &Client,
    reference: &Reference,
) -> Result<(), StoreError> {
    for entry in store.repo_digests()? {
        let Ok(neighbour) = Reference::parse(&entry.repository) else {
            continue;
        };
        if neighbour.registry != reference.registry {
            continue;
        }
        // The repository may know the image by an index; its layers are in the manifest.
        let Some(manifest) = store.image(&entry.image)?.manifest else {
            continue;
        };
        let Ok(bytes) = store.read_blob(&manifest.digest) else {
            continue;
        };
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
            for layer in manifest.layers {
                client.remember(&neighbour, layer.digest);
            }
        }
    }
    Ok(())
}

/// Writes images to an archive that docker, podman, skopeo and OCI tools read (D10.1); layers that
/// images share are written once. Each image comes with the names it is to have.
///
/// # Errors
/// [`ImageError`]; what was written is no archive then.
pub fn save<W: Write>(
    store: &Arc<Store>,
    images: &[(Digest, Vec<Reference>)],
    out: W,
    cancel: &Cancel,
) -> Result<W, ImageError> {
    let mut archive = ArchiveWriter::new(out)?;
    for (image, names) in images {
        match add_image(store, &mut archive, image, names, cancel) {
            Err(error) if is_mismatch(&error) => {
                remove_altered(store, image)?;
                return Err(error);
            }
            added => added?,
        }
    }
    Ok(archive.finish()?)
}

fn add_image<W: Write>(
    store: &Arc<Store>,
    archive: &mut ArchiveWriter<W>,
    image: &Digest,
    names: &[Reference],
    cancel: &Cancel,
) -> Result<(), ImageError> {
    let (manifest, descriptor) = archive_manifest(store, image)?;
    let config = store.config(image)?;
    for (layer, &diff_id) in manifest.value.layers.iter().zip(&config.rootfs.diff_ids) {
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled.into());
        }
        if !archive.has(&layer.digest) {
            add_layer(store, archive, layer, diff_id)?;
        }
    }
    let bytes = store.read_blob(image)?;
    archive.add_blob(&manifest.value.config, &bytes[..])?;
    archive.add_manifest(&descriptor, &manifest.bytes)?;
    archive.add_image(&descriptor, names)?;
    Ok(())
}

fn add_layer<W: Write>(
    store: &Arc<Store>,
    archive: &mut ArchiveWriter<W>,
    layer: &Descriptor,
    diff_id: DiffId,
) -> Result<(), ImageError> {
    if store.has_blob(&layer.digest) {
        archive.add_blob(layer, store.open_blob(&layer.digest)?)?;
        return Ok(());
    }
    let snapshot = snapshot(store, diff_id)?;
    store.claim_ids()?;
    let path = store.snapshot_path(&snapshot);
    let failed = |source| StepError::Io {
        action: "packing",
        path: path.clone(),
        source,
    };
    let (reader, writer) = io::pipe().map_err(failed)?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| {
            layer::pack(
                &path,
                io::BufWriter::with_capacity(256 << 10, writer),
                &PackOptions::default(),
            )
        });
        let added = archive.add_blob(layer, reader);
        let packed = packing.join().map_err(|_| StepError::Thread)?;
        // A reader that gave up makes the packer fail, too; its own error is the one that counts.
        added?;
        packed.map_err(StepError::from)?;
        Ok(())
    })
}

/// The manifest that a registry gets, all of whose layers lie in the store compressed.
fn registry_manifest(
    store: &Arc<Store>,
    image: &Digest,
    observer: &Observer,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    if let Some(known) = received(store, image)? {
        return Ok(known);
    }
    let mut layers = Vec::new();
    for diff_id in store.config(image)?.rootfs.diff_ids {
        layers.push(match compressed(store, diff_id)? {
            Some(layer) => layer,
            None => compress(store, diff_id, observer)?,
        });
    }
    manifest(store, image, layers)
}

/// The manifest that an archive gets: layers as they lie here, compressed or not.
fn archive_manifest(
    store: &Arc<Store>,
    image: &Digest,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    if let Some(known) = received(store, image)? {
        return Ok(known);
    }
    let mut layers = Vec::new();
    for diff_id in store.config(image)?.rootfs.diff_ids {
        layers.push(
            match (compressed(store, diff_id)?, plain(store, diff_id)?) {
                (Some(layer), _) | (None, Some(layer)) => layer,
                (None, None) => {
                    let (_, size) = Snapshots::new(Arc::clone(store))
                        .seal(&snapshot(store, diff_id)?)
                        .map_err(StepError::from)?;
                    Descriptor::new(OCI_LAYER, diff_id.0, size)
                }
            },
        );
    }
    manifest(store, image, layers)
}

/// The manifest as it was received or pushed, if all of it is here.
fn received(
    store: &Store,
    image: &Digest,
) -> Result<Option<(Raw<Manifest>, Descriptor)>, ImageError> {
    let Some(descriptor) = store.image(image)?.manifest else {
        return Ok(None);
    };
    if !store.has_blob(&descriptor.digest) {
        return Ok(None);
    }
    let raw: Raw<Manifest> =
        Raw::parse(store.read_blob(&descriptor.digest)?).map_err(|error| StoreError::Damaged {
            what: format!("manifest {}", descriptor.digest),
            detail: error.to_string(),
        })?;
    let whole = raw
        .value
        .layers
        .iter()
        .all(|layer| store.has_blob(&layer.digest));
    Ok(whole.then_some((raw, descriptor)))
}

fn manifest(
    store: &Store,
    image: &Digest,
    layers: Vec<Descriptor>,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    let size = store.read_blob(image)?.len() as u64;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, *image, size),
        layers,
        subject: None,
        annotations: std::collections::BTreeMap::new(),
        extra: serde_json::Map::new(),
    };
    let raw = Raw::write(manifest).map_err(|error| ImageError::Json("manifest", error))?;
    let descriptor = Descriptor::new(OCI_MANIFEST, raw.digest, raw.bytes.len() as u64);
    Ok((raw, descriptor))
}

/// A compressed form of a layer, under the OCI name of its type: docker's names mean the same.
fn compressed(store: &Store, diff_id: DiffId) -> Result<Option<Descriptor>, ImageError> {
    let blobs = store.layer_blobs(diff_id)?;
    Ok(blobs.iter().find_map(|blob| {
        let media_type = match layer_compression(&blob.media_type)? {
            Compression::Gzip => OCI_LAYER_GZIP,
            Compression::Zstd => OCI_LAYER_ZSTD,
            Compression::None => return None,
        };
        Some(Descriptor::new(media_type, blob.digest, blob.size))
    }))
}

/// The plain tar of a layer, where it lies in the store as a blob.
fn plain(store: &Store, diff_id: DiffId) -> Result<Option<Descriptor>, ImageError> {
    let blobs = store.layer_blobs(diff_id)?;
    let blob = blobs.iter().find(|blob| blob.digest == diff_id.0);
    Ok(blob.map(|blob| Descriptor::new(OCI_LAYER, blob.digest, blob.size)))
}

/// Compresses a layer and keeps the result.
fn compress(
    store: &Arc<Store>,
    diff_id: DiffId,
    observer: &Observer,
) -> Result<Descriptor, ImageError> {
    observer.tell(Event::Note {
        step: None,
        text: format!("{}: Compressing", diff_id.0.short()),
    });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let writer = store.new_blob()?;
    let failed = |source| StepError::Io {
        action: "compressing layer",
        path: diff_id.to_string().into(),
        source,
    };
    let mut tar = Hashing::new(GzipWriter::new(writer, threads).map_err(failed)?);
    match store.sealed_snapshot(diff_id)? {
        Some((id, _)) => {
            store.claim_ids()?;
            layer::pack(&store.snapshot_path(&id), &mut tar, &PackOptions::default())
                .map_err(StepError::from)?;
        }
        None => {
            io::copy(&mut open_layer(store, diff_id)?, &mut tar).map_err(failed)?;
        }
    }
    let (actual, _, gzip) = tar.finish();
    if actual != diff_id.0 {
        return Err(StepError::DiffId {
            expected: diff_id,
            actual: DiffId(actual),
        }
        .into());
    }
    let (digest, size) = gzip.finish().map_err(failed)?.commit(store)?;
    store.add_layer_blob(
        diff_id,
        &LayerBlob {
            digest,
            media_type: OCI_LAYER_GZIP.to_owned(),
            size,
        },
    )?;
    Ok(Descriptor::new(OCI_LAYER_GZIP, digest, size))
}

/// The snapshot that a layer is packed from.
fn snapshot(store: &Store, diff_id: DiffId) -> Result<SnapshotId, ImageError> {
    let found = store.sealed_snapshot(diff_id)?;
    let missing = || StoreError::Missing {
        what: format!("layer {diff_id}"),
        path: store.root().to_owned(),
    };
    Ok(found.ok_or_else(missing)?.0)
}
