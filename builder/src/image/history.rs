//! The history of an image with the sizes of its layers (D11.3).

use kiln_registry::digest::Digest;
use kiln_registry::spec::config::History;

use super::ImageError;
use crate::store::Store;

/// One line of an image's history.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryLine {
    /// What the config says.
    pub entry: History,
    /// Size of its layer in bytes: unpacked where that is known, else as it lies here.
    pub size: u64,
}

/// The history of an image, newest first.
///
/// # Errors
/// When the image is missing or damaged.
pub fn history(store: &Store, image: &Digest) -> Result<Vec<HistoryLine>, ImageError> {
    let config = store.config(image)?;
    let mut layers = config.rootfs.diff_ids.iter();
    let mut lines = Vec::with_capacity(config.history.len());
    for entry in config.history {
        let layer = if entry.empty_layer {
            None
        } else {
            layers.next()
        };
        let size = layer.map_or(Ok(0), |&diff_id| store.layer_size(diff_id))?;
        lines.push(HistoryLine { entry, size });
    }
    lines.reverse();
    Ok(lines)
}

/// Size of an image in bytes: the sum of its layers.
///
/// # Errors
/// When the image is missing or damaged.
pub fn size(store: &Store, image: &Digest) -> Result<u64, ImageError> {
    let config = store.config(image)?;
    config
        .rootfs
        .diff_ids
        .iter()
        .try_fold(0, |sum, &diff_id| Ok(sum + store.layer_size(diff_id)?))
}
