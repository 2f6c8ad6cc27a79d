//! Images: their layers are fetched when a build needs the image, and unpacked when a step needs
//! their files, also while they still come.

use std::io::Read;
use std::sync::Arc;

use kiln_registry::blob::BlobError;
use kiln_registry::client::{Client, ClientError, Known, Resolved};
use kiln_registry::layout::LayoutError;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::layer_compression;
use kiln_registry::spec::{Descriptor, DiffId, ImageConfig, Manifest, Platform};
use kiln_registry::transfer;

use super::{LayoutImage, Stack, StepError, Worker};
use crate::event::{BlobState, Event, Observer};
use crate::layer::{self, Limits};
use crate::snapshot::{SnapshotId, Snapshots};
use crate::store::{Expected, LayerBlob, Store, StoreError};
use crate::sys::root::Root;

/// Blobs larger than this, in bytes, are decompressed by a thread of their own.
const LARGE: u64 = 1 << 20;

/// Blobs fetched at once.
pub(super) const JOBS: usize = 6;

/// Why an image could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The registry refused.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The image's config could not be fetched.
    #[error("{0}")]
    Blob(#[from] BlobError),
    /// The layout cannot be read, or has no such image.
    #[error("{0}")]
    Layout(#[from] LayoutError),
    /// A layout has no image for the platform.
    #[error("no match for platform `{wanted}` in `{image}`: it has {available}")]
    NoPlatform {
        /// The image.
        image: String,
        /// The platform.
        wanted: String,
        /// The platforms that it has.
        available: String,
    },
    /// What a layout names is no image.
    #[error("`{image}` is no image but a `{media_type}`")]
    NotAnImage {
        /// What was named.
        image: String,
        /// What it is.
        media_type: String,
    },
    /// The image's config is no config.
    #[error("the image's config cannot be understood")]
    Config(#[from] serde_json::Error),
    /// The image is no image that can be run or built on.
    #[error("the image has {layers} layers but its config names {diff_ids}")]
    Layers {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the config.
        diff_ids: usize,
    },
}

/// An image that was resolved, and may not be here yet.
#[derive(Debug)]
pub enum SourceImage {
    /// In a registry.
    Registry(Box<RemoteImage>),
    /// In an OCI image layout.
    Layout(Box<LayoutImage>),
}

impl SourceImage {
    /// Bytes of the image's layers that the store lacks.
    #[must_use]
    pub fn missing(&self, store: &Store) -> u64 {
        let manifest = match self {
            Self::Registry(image) => &image.resolved.manifest.value,
            Self::Layout(image) => &image.manifest.value,
        };
        let missing = manifest.layers.iter();
        let missing = missing.filter(|layer| !store.has_blob(&layer.digest));
        missing.map(|layer| layer.size).sum()
    }

    /// Has the store know which layers will be fetched, so that they can be read meanwhile.
    #[must_use]
    pub fn expect(&self, store: &Store) -> Expected {
        let (config, manifest) = match self {
            Self::Registry(image) => return image.expect(store),
            Self::Layout(image) => (&image.config, &image.manifest.value),
        };
        store.expect(layers_of(config, manifest))
    }

    /// Fetches what the store lacks of the image.
    ///
    /// # Errors
    /// When something cannot be fetched or stored.
    pub async fn fetch(
        &self,
        client: &Client,
        store: &Store,
        observer: &Observer,
    ) -> Result<(), StepError> {
        match self {
            Self::Registry(image) => image.fetch(client, store, observer).await,
            Self::Layout(image) => image.fetch(store, observer).await,
        }
    }
}

/// An image that was resolved in a registry.
#[derive(Debug)]
pub struct RemoteImage {
    /// Its manifest and where it came from.
    pub resolved: Resolved,
    /// Its config.
    pub config: ImageConfig,
}

impl RemoteImage {
    /// Finds out what an image is: its manifest for a platform, and its config, which is
    /// fetched where the store has it not; the store stays as it is.
    ///
    /// # Errors
    /// [`ResolveError`] when the registry refuses or the image is none that kiln understands.
    pub async fn resolve(
        client: &Client,
        store: &Store,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Self, ResolveError> {
        let blobs = store.blobs();
        let known = Known::new(move |digest| blobs.small(digest));
        let resolved = client
            .resolve_known(reference, platform, Some(known))
            .await?;
        // One that is here but damaged is as good as none.
        let known = store.read_blob(&resolved.manifest.value.config.digest).ok();
        let bytes = match known {
            Some(bytes) => bytes,
            None => client.config(&resolved).await?,
        };
        let config: ImageConfig = serde_json::from_slice(&bytes)?;
        check_layers(&config, &resolved.manifest.value)?;
        Ok(Self { resolved, config })
    }

    /// Has the store know which layers will be fetched, so that they can be read meanwhile.
    #[must_use]
    pub fn expect(&self, store: &Store) -> Expected {
        store.expect(layers_of(&self.config, &self.resolved.manifest.value))
    }

    /// Fetches what the store lacks of the image, then records it under its name.
    ///
    /// # Errors
    /// When something cannot be fetched or stored.
    pub async fn fetch(
        &self,
        client: &Client,
        store: &Store,
        observer: &Observer,
    ) -> Result<(), StepError> {
        let Resolved {
            reference,
            manifest,
            descriptor,
            ..
        } = &self.resolved;
        let source = client.repository(reference);
        let observer = observer.clone();
        let progress = move |blob: &Descriptor, step| observer.tell(blob_event(blob, step));
        transfer::copy(manifest, descriptor, &source, store, None, JOBS, &progress)
            .await
            .map_err(|error| StepError::Blob(reference.familiar(), error))?;
        let id = manifest.value.config.digest;
        store.add_image(&id, Some(descriptor))?;
        record_layers(store, &self.config, &manifest.value)?;
        if let Some((_, bytes)) = &self.resolved.index {
            store.write_blob(bytes)?;
        }
        store.add_repo_digest(reference, &self.resolved.digest(), &id)?;
        if reference.digest.is_none() {
            store.tag(reference, &id)?;
        }
        Ok(())
    }
}

/// Records which blobs hold the layers of an image.
pub(super) fn record_layers(
    store: &Store,
    config: &ImageConfig,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    for (diff_id, blob) in layers_of(config, manifest) {
        store.add_layer_blob(diff_id, &blob)?;
    }
    Ok(())
}

/// The layers of an image and their blobs.
fn layers_of<'a>(
    config: &'a ImageConfig,
    manifest: &'a Manifest,
) -> impl Iterator<Item = (DiffId, LayerBlob)> + 'a {
    let layers = config.rootfs.diff_ids.iter().zip(&manifest.layers);
    layers.map(|(diff_id, blob)| {
        let blob = LayerBlob {
            digest: blob.digest,
            media_type: blob.media_type.clone(),
            size: blob.size,
        };
        (*diff_id, blob)
    })
}

/// Refuses an image whose parts do not fit each other.
pub(super) fn check_layers(config: &ImageConfig, manifest: &Manifest) -> Result<(), ResolveError> {
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers == diff_ids {
        Ok(())
    } else {
        Err(ResolveError::Layers { layers, diff_ids })
    }
}

/// A transfer's progress as an event.
#[must_use]
pub fn blob_event(blob: &Descriptor, step: kiln_registry::blob::Step) -> Event {
    use kiln_registry::blob::{Put, Step};
    let state = match step {
        Step::Start => BlobState::Started,
        Step::Resumed(count) => BlobState::Resumed(count),
        Step::Bytes(count) => BlobState::Bytes(count),
        Step::Retry(wait, reason) => BlobState::Retry { wait, reason },
        Step::Done(Put::Sent) => BlobState::Done,
        Step::Done(Put::Existed) => BlobState::Existed,
        Step::Done(Put::Mounted(from)) => BlobState::Mounted(from),
    };
    Event::Blob {
        digest: blob.digest,
        size: blob.size,
        state,
    }
}

/// The snapshots of a stack; layers of its image are unpacked where they are not yet.
pub(super) fn unpacked(worker: &Worker, stack: &Stack) -> Result<Vec<SnapshotId>, StepError> {
    let mut snapshots = super::unpack::all(worker, &stack.image)?;
    for layer in &stack.built {
        worker.snapshots.unpack(layer)?;
        snapshots.push(layer.clone());
    }
    Ok(snapshots)
}

/// The merged tree of an image's layers, unpacked where they are not yet; `None` for one without
/// files. Blocks.
///
/// # Errors
/// [`StepError`] when a layer is missing or damaged.
pub fn tree(worker: &Worker, layers: &[DiffId]) -> Result<Option<Root>, StepError> {
    let layers = super::unpack::all(worker, layers)?;
    Ok(worker.snapshots.view(&layers)?)
}

/// Removes the forms of a layer that are not what they were, so that they can come anew.
///
/// # Errors
/// [`StoreError::Altered`] when there are any.
pub fn remove_altered(store: &Arc<Store>, diff_id: DiffId) -> Result<(), StepError> {
    let mut altered = false;
    for blob in layer_blobs(store, diff_id)? {
        altered |= store.remove_if_altered(&blob.digest)?;
    }
    if let Some((id, _)) = store.sealed_snapshot(diff_id)? {
        altered |= !Snapshots::new(Arc::clone(store)).verify(&id)?;
    }
    if altered {
        return Err(StoreError::Altered {
            what: format!("layer {diff_id}"),
            path: store.root().to_owned(),
        }
        .into());
    }
    Ok(())
}

/// The blobs in the store that hold a layer. The one of an image that is being fetched is recorded
/// only with all others.
fn layer_blobs(store: &Store, diff_id: DiffId) -> Result<Vec<LayerBlob>, StoreError> {
    // In this order: what is expected no more is recorded already.
    let coming = store.coming(diff_id).map(|coming| coming.blob);
    let mut blobs = store.layer_blobs(diff_id)?;
    if blobs.is_empty() {
        blobs.extend(coming.filter(|blob| store.has_blob(&blob.digest)));
    }
    Ok(blobs)
}

/// The uncompressed tar of a layer that lies in the store as a blob.
///
/// # Errors
/// When no form of it is here.
pub fn open_layer(store: &Store, diff_id: DiffId) -> Result<Box<dyn Read + Send>, StepError> {
    for blob in layer_blobs(store, diff_id)? {
        let file = store.open_blob(&blob.digest)?;
        if let Some(layer) = uncompressed(store, &blob, file)? {
            return Ok(layer);
        }
    }
    Err(StoreError::Missing {
        what: format!("layer {diff_id}"),
        path: store.root().to_owned(),
    }
    .into())
}

/// The uncompressed tar of a layer from its blob; `None` when that is no form that kiln knows.
pub(super) fn uncompressed(
    store: &Store,
    blob: &LayerBlob,
    bytes: impl Read + Send + 'static,
) -> Result<Option<Box<dyn Read + Send>>, StepError> {
    let Some(compression) = layer_compression(&blob.media_type) else {
        return Ok(None);
    };
    let layer = layer::decompressor(compression.into(), bytes, Limits::default());
    let layer = layer.map_err(|source| StepError::Io {
        action: "reading the layer",
        path: store.blob_path(&blob.digest),
        source,
    })?;
    // A small one is done before a thread has begun.
    Ok(Some(match blob.size > LARGE {
        true => layer::read_ahead(layer),
        false => layer,
    }))
}
