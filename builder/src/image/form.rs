//! How an image leaves the store: what its layers are compressed with, its media types, its
//! annotations (C4.1).
//!
//! What was received leaves as it came. A layer that was built here leaves in the form that is asked
//! for, and is compressed once; one of a base image stays what it is, unless it is to be compressed
//! anew by all means (C4.2).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use kiln_registry::digest::Digest;
use kiln_registry::spec::media_type::{
    Compression, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, OCI_CONFIG,
    OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, layer_compression,
};
use kiln_registry::spec::{Descriptor, DiffId, Manifest, Raw};
use tokio::sync::mpsc::UnboundedSender;

use super::ImageError;
use crate::event::{Event, Observer};
use crate::layer::{self, Encoder, Hashing, PackOptions};
use crate::step::{StepError, open_layer};
use crate::store::{LayerBlob, Store, StoreError};

/// How an image leaves. The default is what a push sends: gzip, where a layer has no compressed form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// What layers that were built here are compressed with.
    pub compression: Option<Compression>,
    /// How hard; the compressor's own level without.
    pub level: Option<i32>,
    /// Whether all layers are compressed so, those of base images as well.
    pub force: bool,
    /// Whether manifest and layers have docker's media types, where those have a name for them.
    pub docker: bool,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// The manifest of an image in a form, all of whose layers lie in the store then. Blocks.
///
/// # Errors
/// [`ImageError`] when a layer is missing or damaged, or the store refuses.
pub fn manifest(
    store: &Arc<Store>,
    image: &Digest,
    form: &Form,
    observer: &Observer,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    manifest_telling(store, image, form, observer, &Listener::default())
}

/// Who waits for the layers of an image, if anybody does: hears of each that it lies in the store, and
/// has the rest not be made when it is gone.
#[derive(Debug, Default)]
pub(super) struct Listener(Option<UnboundedSender<Descriptor>>);

impl Listener {
    pub(super) fn new(ready: UnboundedSender<Descriptor>) -> Self {
        Self(Some(ready))
    }

    fn tell(&self, layer: &Descriptor) {
        if let Some(ready) = &self.0 {
            // Whether it is gone is asked where that saves work.
            drop(ready.send(layer.clone()));
        }
    }

    fn is_gone(&self) -> bool {
        self.0.as_ref().is_some_and(UnboundedSender::is_closed)
    }
}

/// Passes bytes on as long as somebody waits for what is made of them.
struct WhileWanted<'a, W> {
    inner: W,
    listener: &'a Listener,
}

impl<W: Write> Write for WhileWanted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.listener.is_gone() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The same as [`manifest`], for a listener. Nothing is said of an image that has its manifest.
pub(super) fn manifest_telling(
    store: &Arc<Store>,
    image: &Digest,
    form: &Form,
    observer: &Observer,
    listener: &Listener,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    let known = received(store, image)?;
    if *form == Form::default()
        && let Some(known) = known
    {
        return Ok(known);
    }
    let mut layers = Vec::new();
    for diff_id in store.config(image)?.rootfs.diff_ids {
        let layer = layer(store, diff_id, form, observer, listener)?;
        listener.tell(&layer);
        layers.push(layer);
    }
    match known {
        // What came from elsewhere, and has that form, keeps its digest.
        Some((manifest, descriptor))
            if form.annotations.is_empty()
                && !form.docker
                && same(&manifest.value.layers, &layers) =>
        {
            Ok((manifest, descriptor))
        }
        _ => assemble(store, image, layers, form),
    }
}

fn same(left: &[Descriptor], right: &[Descriptor]) -> bool {
    let digests =
        |layers: &[Descriptor]| layers.iter().map(|layer| layer.digest).collect::<Vec<_>>();
    digests(left) == digests(right)
}

/// A layer in the form that is asked for.
fn layer(
    store: &Arc<Store>,
    diff_id: DiffId,
    form: &Form,
    observer: &Observer,
    listener: &Listener,
) -> Result<Descriptor, ImageError> {
    let wanted = form.compression.unwrap_or(Compression::Gzip);
    let make = || encode(store, diff_id, wanted, form.level, observer, listener);
    // What has a snapshot that it is packed from was built here.
    let changes = form.force || store.sealed_snapshot(diff_id)?.is_some();
    let blobs = store.layer_blobs(diff_id)?;
    let fitting = blobs
        .iter()
        .find(|blob| layer_compression(&blob.media_type) == Some(wanted));
    match (fitting, form.level) {
        // How hard a blob was compressed nobody knows.
        (Some(blob), level) if level.is_none() || !changes => Ok(described(wanted, blob)),
        _ if changes => make(),
        _ => match (compressed(store, diff_id)?, plain(store, diff_id)?) {
            (Some(layer), _) => Ok(layer),
            // Only what nobody has asked for otherwise leaves compressed whatever it was.
            (None, Some(layer)) if form.compression.is_some() => Ok(layer),
            _ => make(),
        },
    }
}

/// The manifest as it was received or pushed, if all of it is here.
pub(super) fn received(
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

/// Writes a manifest for these layers.
pub(super) fn assemble(
    store: &Store,
    image: &Digest,
    mut layers: Vec<Descriptor>,
    form: &Form,
) -> Result<(Raw<Manifest>, Descriptor), ImageError> {
    // docker has no name for zstd, nor for annotations.
    let zstd = layers
        .iter()
        .any(|layer| layer.media_type == OCI_LAYER_ZSTD);
    let docker = form.docker && form.annotations.is_empty() && !zstd;
    let (kind, config) = match docker {
        true => (DOCKER_MANIFEST, DOCKER_CONFIG),
        false => (OCI_MANIFEST, OCI_CONFIG),
    };
    if docker {
        for layer in &mut layers {
            let plain = layer.media_type == OCI_LAYER;
            layer.media_type = if plain {
                DOCKER_LAYER
            } else {
                DOCKER_LAYER_GZIP
            }
            .to_owned();
        }
    }
    let size = store.read_blob(image)?.len() as u64;
    let mut manifest = Manifest::new(Descriptor::new(config, *image, size), layers);
    manifest.media_type = Some(kind.to_owned());
    manifest.annotations.clone_from(&form.annotations);
    let raw = Raw::write(manifest).map_err(|error| ImageError::Json("manifest", error))?;
    let descriptor = Descriptor::new(kind, raw.digest, raw.bytes.len() as u64);
    Ok((raw, descriptor))
}

/// A compressed form of a layer.
pub(super) fn compressed(store: &Store, diff_id: DiffId) -> Result<Option<Descriptor>, ImageError> {
    let blobs = store.layer_blobs(diff_id)?;
    Ok(blobs.iter().find_map(|blob| {
        let compression = layer_compression(&blob.media_type);
        let compression = compression.filter(|kind| *kind != Compression::None)?;
        Some(described(compression, blob))
    }))
}

/// The plain tar of a layer, where it lies in the store as a blob.
pub(super) fn plain(store: &Store, diff_id: DiffId) -> Result<Option<Descriptor>, ImageError> {
    let blobs = store.layer_blobs(diff_id)?;
    let blob = blobs.iter().find(|blob| blob.digest == diff_id.0);
    Ok(blob.map(|blob| described(Compression::None, blob)))
}

/// A blob under the OCI name of its type: docker's names mean the same.
fn described(compression: Compression, blob: &LayerBlob) -> Descriptor {
    Descriptor::new(media_type(compression), blob.digest, blob.size)
}

fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => OCI_LAYER,
        Compression::Gzip => OCI_LAYER_GZIP,
        Compression::Zstd => OCI_LAYER_ZSTD,
    }
}

/// Compresses a layer, or writes it plainly, and keeps the result. With a level of its own it is no
/// form that others are given.
fn encode(
    store: &Arc<Store>,
    diff_id: DiffId,
    compression: Compression,
    level: Option<i32>,
    observer: &Observer,
    listener: &Listener,
) -> Result<Descriptor, ImageError> {
    if compression != Compression::None {
        observer.tell(Event::Note {
            step: None,
            text: format!("{}: Compressing", diff_id.0.short()),
        });
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failed = |source| StepError::Io {
        action: "compressing layer",
        path: diff_id.to_string().into(),
        source,
    };
    let encoder = Encoder::new(store.new_blob()?, compression, level, threads);
    let mut tar = Hashing::new(encoder.map_err(failed)?);
    let inner = &mut tar;
    let mut out = WhileWanted { inner, listener };
    match store.sealed_snapshot(diff_id)? {
        Some((id, _)) => {
            store.claim_ids()?;
            layer::pack(&store.snapshot_path(&id), &mut out, &PackOptions::default())
                .map_err(StepError::from)?;
        }
        None => {
            io::copy(&mut open_layer(store, diff_id)?, &mut out).map_err(failed)?;
        }
    }
    let (actual, _, encoder) = tar.finish();
    if actual != diff_id.0 {
        return Err(StepError::DiffId {
            expected: diff_id,
            actual: DiffId(actual),
        }
        .into());
    }
    let (digest, size) = encoder.finish().map_err(failed)?.commit(store)?;
    let blob = LayerBlob {
        digest,
        media_type: media_type(compression).to_owned(),
        size,
    };
    if level.is_none() {
        store.add_layer_blob(diff_id, &blob)?;
    }
    Ok(described(compression, &blob))
}
