//! Images out of registries into the store (D5).

use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::ImageError;
use crate::event::Observer;
use crate::runtime::Cancel;
use crate::step::{RemoteImage, StepError};
use crate::store::Store;

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its id.
    pub image: Digest,
    /// Digest under which the registry knows what was asked for: an index or a manifest.
    pub digest: Digest,
    /// Whether the name stood for another image, or none, before.
    pub new: bool,
}

/// Pulls what is missing of an image and gives it its name. Nothing is unpacked.
///
/// # Errors
/// [`ImageError`]; blobs that arrived whole are kept for the next try.
pub async fn pull(
    store: &Store,
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    observer: &Observer,
    cancel: &Cancel,
) -> Result<Pulled, ImageError> {
    let work = async {
        let remote = RemoteImage::resolve(client, store, reference, platform)
            .await
            .map_err(StepError::from)?;
        let before = store.named(reference)?;
        remote.fetch(client, store, observer).await?;
        let image = remote.resolved.manifest.value.config.digest;
        let digest = remote.resolved.digest();
        Ok(Pulled {
            image,
            digest,
            new: before != Some(image),
        })
    };
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(StepError::Cancelled.into()),
    }
}
