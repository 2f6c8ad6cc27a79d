//! Images out of registries into the store (D5).

use std::sync::Arc;

use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::ImageError;
use crate::event::Observer;
use crate::runtime::Cancel;
use crate::step::{RemoteImage, Stack, StepError, Worker};
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
        let (remote, before) = resolve(store, client, reference, platform).await?;
        remote.fetch(client, store, observer).await?;
        Ok(pulled(&remote, before))
    };
    tokio::select! {
        result = work => result,
        () = cancel.cancelled() => Err(StepError::Cancelled.into()),
    }
}

/// Pulls an image like [`pull`], for a worker that is about to use its files: they are unpacked while
/// they come.
///
/// # Errors
/// [`ImageError`]; of an image that did not come whole, the layers that did are kept.
pub async fn pull_unpacked(
    worker: &Arc<Worker>,
    reference: &Reference,
    platform: &Platform,
    observer: &Observer,
) -> Result<Pulled, ImageError> {
    let (store, client) = (&worker.store, &worker.client);
    let resolved = tokio::select! {
        resolved = resolve(store, client, reference, platform) => resolved,
        () = worker.cancel.cancelled() => Err(StepError::Cancelled.into()),
    };
    let (remote, before) = resolved?;
    let expected = remote.expect(store);
    let unpacking = tokio::task::spawn_blocking({
        let stack = Stack {
            image: remote.config.rootfs.diff_ids.clone(),
            built: Vec::new(),
        };
        let worker = Arc::clone(worker);
        move || worker.unpacked(&stack)
    });
    let fetched = tokio::select! {
        fetched = remote.fetch(client, store, observer) => fetched,
        () = worker.cancel.cancelled() => Err(StepError::Cancelled),
    };
    drop(expected);
    let unpacked = unpacking.await.map_err(|_| StepError::Thread).flatten();
    // What did not come could not be unpacked either.
    fetched?;
    unpacked?;
    Ok(pulled(&remote, before))
}

/// What a name stands for in its registry, and in the store before.
async fn resolve(
    store: &Store,
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<(RemoteImage, Option<Digest>), ImageError> {
    let remote = RemoteImage::resolve(client, store, reference, platform)
        .await
        .map_err(StepError::from)?;
    let before = store.named(reference)?;
    Ok((remote, before))
}

fn pulled(remote: &RemoteImage, before: Option<Digest>) -> Pulled {
    let image = remote.resolved.manifest.value.config.digest;
    Pulled {
        image,
        digest: remote.resolved.digest(),
        new: before != Some(image),
    }
}
