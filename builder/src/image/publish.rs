//! Images out of the store: into registries and archives.
//!
//! An image that came from elsewhere leaves as it came: its manifest and blobs are the bytes
//! received. One that was built here has no manifest before it leaves; its layers are compressed
//! once, for the first registry, and archives may hold them as they are.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use kiln_registry::archive::ArchiveWriter;
use kiln_registry::blob::Put;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::layout::Layout;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::OCI_LAYER;
use kiln_registry::spec::{Descriptor, DiffId, Manifest, Raw};
use kiln_registry::transfer::{self, Transfer};
use tokio::sync::mpsc;

use super::ImageError;
use super::altered::{is_mismatch, remove_altered};
use super::form::{self, Form, Listener};
use crate::event::Observer;
use crate::layer::{self, PackOptions};
use crate::runtime::Cancel;
use crate::snapshot::{SnapshotId, Snapshots};
use crate::step::{StepError, blob_event};
use crate::store::{Store, StoreError};

/// Blobs sent at once.
const JOBS: usize = 5;

/// Where an image is pushed to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its name there.
    pub reference: &'a Reference,
    /// Whether no tag is set: the image has its digest as its only name (C4.4).
    pub by_digest: bool,
    /// How it leaves.
    pub form: &'a Form,
}

/// Pushes an image under a name; returns the descriptor of its manifest, and whether the registry
/// had it under that name already.
///
/// # Errors
/// [`ImageError`]; the image in the store stays as it is.
pub async fn push(
    store: &Arc<Store>,
    client: &Client,
    target: Target<'_>,
    image: &Digest,
    observer: &Observer,
    cancel: &Cancel,
) -> Result<(Descriptor, bool), ImageError> {
    let reference = target.reference;
    let work = async {
        remember_neighbours(store, client, reference)?;
        let sink = client.repository(reference);
        let watch = observer.clone();
        let progress = move |blob: &Descriptor, step| watch.tell(blob_event(blob, step));
        let tag = Some(reference.tag_or_latest()).filter(|_| !target.by_digest);
        // A layer is sent while the next one is compressed.
        let (made, layers) = mpsc::unbounded_channel();
        let making = prepare_telling(store, image, target.form, observer, Listener::new(made));
        let transfer = Transfer {
            source: &**store,
            sink: &sink,
            jobs: JOBS,
            progress: &progress,
        };
        let sending = async { Ok(transfer.layers(layers).await?) };
        let ((manifest, descriptor), sent) = tokio::try_join!(making, sending)?;
        let copied = transfer.image(sent, &manifest, &descriptor, tag).await?;
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

/// Puts an image into an OCI layout that is a folder, which is made where there is none; returns the
/// descriptor of its manifest.
///
/// # Errors
/// [`ImageError`]; the layout lists no image that it has not whole.
pub async fn layout(
    store: &Arc<Store>,
    image: &Digest,
    names: &[Reference],
    folder: &Path,
    form: &Form,
    observer: &Observer,
    cancel: &Cancel,
) -> Result<Descriptor, ImageError> {
    let work = async {
        let (manifest, descriptor) = prepare(store, image, form, observer).await?;
        let (path, known) = (folder.to_owned(), descriptor.clone());
        let open = move || Layout::create(path);
        let layout = tokio::task::spawn_blocking(open);
        let layout = layout.await.map_err(|_| StepError::Thread)??;
        let silent = |_: &Descriptor, _| ();
        transfer::copy(&manifest, &known, &**store, &layout, None, JOBS, &silent).await?;
        let names: Vec<String> = names
            .iter()
            .map(|name| name.tag_or_latest().to_owned())
            .collect();
        let list = move || match names.as_slice() {
            [] => layout.list(&known, None),
            names => names
                .iter()
                .try_for_each(|name| layout.list(&known, Some(name))),
        };
        let listed = tokio::task::spawn_blocking(list);
        listed.await.map_err(|_| StepError::Thread)??;
        Ok(descriptor)
    };
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(StepError::Cancelled.into()),
    }
}

/// Gives an image in the store the form in which it is to leave later.
///
/// # Errors
/// [`ImageError`] when a layer is missing or damaged, or the store refuses.
pub async fn keep(
    store: &Arc<Store>,
    image: &Digest,
    form: &Form,
    observer: &Observer,
) -> Result<Descriptor, ImageError> {
    let (manifest, descriptor) = prepare(store, image, form, observer).await?;
    store.write_blob(&manifest.bytes)?;
    store.add_image(image, Some(&descriptor))?;
    Ok(descriptor)
}

/// Makes all that leaves of an image in a form, so that it lies in the store.
///
/// # Errors
/// [`ImageError`] when a layer is missing or damaged, or the store refuses.
pub async fn prepare(
    store: &Arc<Store>,
    image: &Digest,
    form: &Form,
    observer: &Observer,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    // Nobody reads it, but as long as it is there, somebody waits.
    let (made, _waiting) = mpsc::unbounded_channel();
    prepare_telling(store, image, form, observer, Listener::new(made)).await
}

/// The same, and tells which layers are ready. What is left is not made when the listener is gone.
async fn prepare_telling(
    store: &Arc<Store>,
    image: &Digest,
    form: &Form,
    observer: &Observer,
    listener: Listener,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    let (owned, id) = (Arc::clone(store), *image);
    let (form, watch) = (form.clone(), observer.clone());
    let task = tokio::task::spawn_blocking(move || {
        form::manifest_telling(&owned, &id, &form, &watch, &listener)
    });
    task.await.map_err(|_| StepError::Thread)?
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
/// images share are written once. Each image comes with the names it is to have. Without a form,
/// layers are written as they lie here, compressed or not.
///
/// # Errors
/// [`ImageError`]; what was written is no archive then.
pub fn save<W: Write>(
    store: &Arc<Store>,
    images: &[(Digest, Vec<Reference>)],
    form: Option<&Form>,
    out: W,
    cancel: &Cancel,
) -> Result<W, ImageError> {
    let mut archive = ArchiveWriter::new(out)?;
    for (image, names) in images {
        match add_image(store, &mut archive, (image, names), form, cancel) {
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
    (image, names): (&Digest, &[Reference]),
    form: Option<&Form>,
    cancel: &Cancel,
) -> Result<(), ImageError> {
    let (manifest, descriptor) = match form {
        Some(form) => form::manifest(store, image, form, &Observer::silent())?,
        None => archive_manifest(store, image)?,
    };
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
    archive.add_blob_by(layer, |out| {
        let packed = layer::pack_digested(&path, out, &PackOptions::default());
        let (diff_id, _) = packed.map_err(StepError::from)?;
        Ok::<_, ImageError>(diff_id.0)
    })?;
    Ok(())
}

/// The manifest that an archive gets: layers as they lie here, compressed or not.
fn archive_manifest(
    store: &Arc<Store>,
    image: &Digest,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    if let Some(known) = form::received(store, image)? {
        return Ok(known);
    }
    let mut layers = Vec::new();
    for diff_id in store.config(image)?.rootfs.diff_ids {
        layers.push(
            match (
                form::compressed(store, diff_id)?,
                form::plain(store, diff_id)?,
            ) {
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
    form::assemble(store, image, layers, &Form::default())
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
