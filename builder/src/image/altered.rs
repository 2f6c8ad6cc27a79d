//! Layers that were altered in the store, which shows when their image is to leave it.

use std::io;
use std::sync::Arc;

use kiln_registry::client::ClientError;
use kiln_registry::digest::{Digest, Mismatch};

use super::ImageError;
use crate::step::{self, StepError};
use crate::store::Store;

/// Whether bytes were not those of their digest.
pub(super) fn is_mismatch(error: &ImageError) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let refused = cause.downcast_ref().and_then(ClientError::code);
        if cause.is::<Mismatch>()
            || inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<Mismatch>)
            || matches!(cause.downcast_ref(), Some(StepError::DiffId { .. }))
            || refused == Some("DIGEST_INVALID")
        {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Removes the layers of an image that were altered in the store, and says so.
pub(super) fn remove_altered(store: &Arc<Store>, image: &Digest) -> Result<(), ImageError> {
    for diff_id in store.config(image)?.rootfs.diff_ids {
        step::remove_altered(store, diff_id)?;
    }
    Ok(())
}
