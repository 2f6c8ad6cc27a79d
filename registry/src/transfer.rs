//! Moves an image between any two ends: push, pull, save and load are this one function.

use std::collections::HashSet;
use std::fmt;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::blob::{BlobError, BlobSink, BlobSource, BoxFuture, Progress, Put, Step};
use crate::spec::{Descriptor, Manifest, Raw};

/// How often blobs are looked at when a registry takes a manifest for one without its blobs: the
/// second time it is asked which it has, the third time all that it may lack are sent.
const ROUNDS: u32 = 3;

/// What became of the blobs of an image: its layers, each digest once, and its config.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Copied {
    /// The blobs, in the order in which they were done.
    pub blobs: Vec<(Descriptor, Put)>,
    /// What became of the manifest.
    pub manifest: Option<Put>,
}

/// Copies an image: its layers, up to `jobs` at once, then its config, then the manifest, under
/// its digest or under a tag. Nothing refers to what is not there yet (D7.3).
///
/// Tells `progress` when a blob starts and is done; the sink tells what happens in between. The
/// first error ends the copy, what is under way is dropped.
///
/// # Errors
/// [`BlobError`] of either end.
pub async fn copy(
    manifest: &Raw<Manifest>,
    descriptor: &Descriptor,
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    tag: Option<&str>,
    jobs: usize,
    progress: &Progress,
) -> Result<Copied, BlobError> {
    let transfer = Transfer {
        source,
        sink,
        jobs,
        progress,
    };
    let nothing = Copied::default();
    transfer.image(nothing, manifest, descriptor, tag).await
}

/// A copy of an image that is still being made.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// Where its blobs are.
    pub source: &'a dyn BlobSource,
    /// Where they go to.
    pub sink: &'a dyn BlobSink,
    /// The most that are copied at once.
    pub jobs: usize,
    /// Is told what happens to each of them.
    pub progress: &'a Progress,
}

impl fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("source", &self.source)
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}

impl Transfer<'_> {
    /// Copies layers as they become known, until there are no more.
    ///
    /// # Errors
    /// As [`copy`].
    pub async fn layers(&self, known: UnboundedReceiver<Descriptor>) -> Result<Copied, BlobError> {
        let mut seen = HashSet::new();
        let known = stream::unfold(known, |mut known| async move {
            let layer = known.recv().await?;
            Some((layer, known))
        });
        let pending = known
            .filter(move |layer| std::future::ready(seen.insert(layer.digest)))
            .map(|layer| -> BoxFuture<'_, _> { Box::pin(async move { self.blob(&layer).await }) });
        let copied = pending.buffer_unordered(self.jobs.max(1)).try_collect();
        Ok(Copied {
            blobs: copied.await?,
            manifest: None,
        })
    }

    /// Copies an image as [`copy`] does, some of whose layers are copied already.
    ///
    /// # Errors
    /// As [`copy`].
    pub async fn image(
        &self,
        mut done: Copied,
        manifest: &Raw<Manifest>,
        descriptor: &Descriptor,
        tag: Option<&str>,
    ) -> Result<Copied, BlobError> {
        let mut round = 0;
        loop {
            round += 1;
            let done = std::mem::take(&mut done.blobs);
            let blobs = self.rest(done, &manifest.value).await?;
            match self
                .sink
                .put_manifest(descriptor, &manifest.bytes, tag)
                .await
            {
                Ok(put) => {
                    let manifest = Some(put);
                    return Ok(Copied { blobs, manifest });
                }
                // A registry may say that it has a blob and find out only now that it has not: it is
                // asked once more, and then believed less.
                Err(BlobError::Client(error)) if error.is_blob_unknown() && round < ROUNDS => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies the blobs of an image that are not among these.
    async fn rest(
        &self,
        mut blobs: Vec<(Descriptor, Put)>,
        manifest: &Manifest,
    ) -> Result<Vec<(Descriptor, Put)>, BlobError> {
        let mut seen: HashSet<_> = blobs.iter().map(|(blob, _)| blob.digest).collect();
        seen.insert(manifest.config.digest);
        let layers = manifest
            .layers
            .iter()
            .filter(|layer| seen.insert(layer.digest));
        // Boxed, so that the compiler sees that the copy may move between threads.
        let pending: Vec<BoxFuture<'_, _>> = layers
            .map(|layer| Box::pin(self.blob(layer)) as BoxFuture<'_, _>)
            .collect();
        let rest: Vec<_> = stream::iter(pending)
            .buffer_unordered(self.jobs.max(1))
            .try_collect()
            .await?;
        blobs.extend(rest);
        blobs.push(self.blob(&manifest.config).await?);
        Ok(blobs)
    }

    async fn blob(&self, blob: &Descriptor) -> Result<(Descriptor, Put), BlobError> {
        (self.progress)(blob, Step::Start);
        let put = self.sink.put(blob, self.source, self.progress).await?;
        (self.progress)(blob, Step::Done(put.clone()));
        Ok((blob.clone(), put))
    }
}
