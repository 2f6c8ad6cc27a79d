//! Images: their config from a plan and its layers, and their manifests for the places they go.

mod altered;
pub mod form;
pub mod history;
pub mod load;
pub mod output;
pub mod publish;
pub mod pull;
pub mod tree;

use std::collections::BTreeMap;

use kiln_registry::digest::Digest;
use kiln_registry::spec::config::{History, ImageConfig};
use kiln_registry::spec::{DiffId, Raw};

use crate::graph::VertexId;
use crate::lower::Plan;
use crate::snapshot::SnapshotId;
use crate::step::StepError;
use crate::store::{Store, StoreError};

/// Why an image could not be assembled, loaded or published.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A layer could not be made or read.
    #[error("{0}")]
    Step(#[from] StepError),
    /// A document could not be written as JSON; a bug.
    #[error("writing the {0} as JSON")]
    Json(&'static str, #[source] serde_json::Error),
    /// An archive could not be read.
    #[error("{0}")]
    Archive(#[from] kiln_registry::archive::ArchiveError),
    /// A layout cannot be written.
    #[error("{0}")]
    Layout(#[from] kiln_registry::layout::LayoutError),
    /// The files could not be written out.
    #[error("{0}")]
    Tree(#[from] crate::layer::TreeError),
    /// The files could not be packed.
    #[error("packing the files of the image")]
    Pack(#[from] crate::layer::PackError),
    /// Bytes could not be moved.
    #[error("{0}")]
    Blob(#[from] kiln_registry::blob::BlobError),
    /// A layer in an archive is not the one that the image's config names.
    #[error("invalid diffID for layer {number}: expected {expected}, got {actual}")]
    DiffId {
        /// Which layer, from 0.
        number: usize,
        /// What the config says.
        expected: DiffId,
        /// What the layer's bytes are.
        actual: DiffId,
    },
    /// An archive holds nothing that can be loaded.
    #[error("the archive holds no image")]
    Empty,
}

/// Writes the config of a built image and records the image; returns its id.
///
/// Times are those of the layers (A16.2), which the cache remembers: the same build from the cache
/// gives the same image. `epoch` (SOURCE_DATE_EPOCH, C11.1) replaces them.
///
/// # Errors
/// When the store refuses.
pub fn assemble(
    store: &Store,
    plan: &Plan,
    layers: &BTreeMap<VertexId, (SnapshotId, DiffId, u64)>,
    epoch: Option<i64>,
) -> Result<Digest, ImageError> {
    let mut config = plan.config.clone();
    let mut times = Vec::with_capacity(plan.history.len());
    for entry in &plan.history {
        let layer = entry.layer.and_then(|vertex| layers.get(&vertex));
        times.push(match layer {
            Some((snapshot, diff_id, _)) => {
                config.rootfs.diff_ids.push(*diff_id);
                Some(
                    epoch
                        .map_or_else(|| store.snapshot(snapshot).map(|facts| facts.created), Ok)?,
                )
            }
            None => None,
        });
    }
    let before = base_time(&config);
    let first = times.iter().flatten().next().copied();
    let mut last = epoch.or(first).map_or_else(|| before.clone(), timestamp);
    for (entry, time) in plan.history.iter().zip(times) {
        if let Some(time) = time {
            last = timestamp(time);
        }
        config.history.push(History {
            created: Some(last.clone()),
            created_by: Some(entry.created_by.clone()),
            // As in docker's builds, `MAINTAINER` names the author of the image, not of its steps.
            author: None,
            comment: entry.comment.clone(),
            empty_layer: time.is_none(),
            ..History::default()
        });
    }
    config.created = Some(last);
    let raw = Raw::write(config).map_err(|error| ImageError::Json("image config", error))?;
    let id = store.write_blob(&raw.bytes)?;
    store.add_image(&id, None)?;
    Ok(id)
}

/// When the base image was made; the beginning of time for an image from scratch.
fn base_time(config: &ImageConfig) -> String {
    let last = config
        .history
        .iter()
        .rev()
        .find_map(|entry| entry.created.clone());
    last.or_else(|| config.created.clone())
        .unwrap_or_else(|| timestamp(0))
}

/// Seconds since 1970 as RFC 3339 in UTC.
fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| "1970-01-01T00:00:00Z".to_owned(),
        |time| time.to_string(),
    )
}
