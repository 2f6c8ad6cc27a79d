//! Moves an image between any two ends: push, pull, save and load are this one function.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

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
    let mut round = 0;
    loop {
        round += 1;
        let mut copied = copy_blobs(&manifest.value, source, sink, jobs, progress).await?;
        match sink.put_manifest(descriptor, &manifest.bytes, tag).await {
            Ok(put) => {
                copied.manifest = Some(put);
                return Ok(copied);
            }
            // A registry may say that it has a blob and find out only now that it has not: it is
            // asked once more, and then believed less.
            Err(BlobError::Client(error)) if error.is_blob_unknown() && round < ROUNDS => {}
            Err(error) => return Err(error),
        }
    }
}

async fn copy_blobs(
    manifest: &Manifest,
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    jobs: usize,
    progress: &Progress,
) -> Result<Copied, BlobError> {
    let mut seen = HashSet::from([manifest.config.digest]);
    let layers = manifest
        .layers
        .iter()
        .filter(|layer| seen.insert(layer.digest));
    // Boxed, so that the compiler sees that the copy may move between threads.
    let pending: Vec<BoxFuture<'_, _>> = layers
        .map(|layer| Box::pin(copy_blob(layer, source, sink, progress)) as BoxFuture<'_, _>)
        .collect();
    let mut blobs: Vec<(Descriptor, Put)> = stream::iter(pending)
        .buffer_unordered(jobs.max(1))
        .try_collect()
        .await?;
    blobs.push(copy_blob(&manifest.config, source, sink, progress).await?);
    Ok(Copied {
        blobs,
        manifest: None,
    })
}

async fn copy_blob(
    blob: &Descriptor,
    source: &dyn BlobSource,
    sink: &dyn BlobSink,
    progress: &Progress,
) -> Result<(Descriptor, Put), BlobError> {
    progress(blob, Step::Start);
    let put = sink.put(blob, source, progress).await?;
    progress(blob, Step::Done(put.clone()));
    Ok((blob.clone(), put))
}
