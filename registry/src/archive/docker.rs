//! Docker archives: `manifest.json` over configs and layers (D10.1, D10.2).

use std::collections::HashMap;

use serde::Deserialize;

use super::ArchiveError;
use super::read::{
    ArchivedImage, ArchivedLayer, ArchivedManifest, Content, Documents, MAX_IMAGES, MAX_LAYERS,
    Place, check_count, check_digest,
};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::spec::config::ImageConfig;
use crate::spec::media_type::{self, Compression};
use crate::spec::{DiffId, Raw};

pub(super) const MANIFEST: &str = "manifest.json";

/// One image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry {
    /// The member that is the config.
    pub(super) config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Entry {
    /// The image's names; null and an empty list mean the same (D10.2).
    pub(super) fn names(&self) -> Result<Vec<Reference>, ArchiveError> {
        let texts = self.repo_tags.as_deref().unwrap_or_default();
        texts.iter().map(|text| name(text)).collect()
    }
}

/// A name in an archive, with a tag.
pub(super) fn name(text: &str) -> Result<Reference, ArchiveError> {
    Reference::parse(text)
        .map(Reference::with_default_tag)
        .map_err(|source| ArchiveError::Name {
            name: text.to_owned(),
            source,
        })
}

/// The images that `manifest.json` lists.
pub(super) fn entries(documents: &mut Documents) -> Result<Vec<Entry>, ArchiveError> {
    let bytes = documents.named(MANIFEST, "docker")?;
    documents.spend(bytes.len())?;
    let entries: Raw<Vec<Entry>> = Documents::parse(MANIFEST, bytes)?;
    check_count("images", entries.value.len(), MAX_IMAGES)?;
    Ok(entries.value)
}

/// Reads all images of a docker archive, and where the blobs of each lie.
pub(super) fn images(
    documents: &mut Documents,
    blobs: &mut HashMap<Digest, Place>,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let entries = entries(documents)?;
    entries
        .iter()
        .map(|entry| {
            let manifest = manifest(documents, entry)?;
            remember(documents, entry, &manifest, blobs)?;
            Ok(ArchivedImage {
                names: entry.names()?,
                ref_name: None,
                content: Content::Docker(Box::new(manifest)),
            })
        })
        .collect()
}

fn manifest(documents: &mut Documents, entry: &Entry) -> Result<ArchivedManifest, ArchiveError> {
    let bytes = documents.named(&entry.config, MANIFEST)?;
    documents.spend(bytes.len())?;
    let config: Raw<ImageConfig> = Documents::parse(&entry.config, bytes)?;
    if let Some(announced) = digest_in_name(&entry.config) {
        check_digest(announced, config.digest).map_err(|source| ArchiveError::Mismatch {
            member: entry.config.clone(),
            source,
        })?;
    }
    let members = entry.layers.as_deref().unwrap_or_default();
    let diff_ids = &config.value.rootfs.diff_ids;
    if members.len() != diff_ids.len() {
        return Err(ArchiveError::LayerCount {
            image: entry.config.clone(),
            layers: members.len(),
            diff_ids: diff_ids.len(),
        });
    }
    check_count("layers of an image", members.len(), MAX_LAYERS)?;
    let layers = (0..)
        .zip(members.iter().zip(diff_ids))
        .map(|(number, (member, diff_id))| layer(documents, number, member, *diff_id))
        .collect::<Result<Vec<_>, _>>()?;
    let descriptors: Option<Vec<_>> = layers.iter().map(ArchivedLayer::descriptor).collect();
    let mut manifest = ArchivedManifest {
        manifest: None,
        announced: false,
        config,
        layers,
    };
    if let Some(descriptors) = descriptors {
        let raw = Raw::write(manifest.synthesise(descriptors));
        manifest.manifest = Some(raw.map_err(|source| ArchiveError::Document {
            member: entry.config.clone(),
            source,
        })?);
    }
    Ok(manifest)
}

fn layer(
    documents: &Documents,
    number: usize,
    member: &str,
    diff_id: DiffId,
) -> Result<ArchivedLayer, ArchiveError> {
    let extent = documents.members.find(member)?;
    let extent = extent.ok_or_else(|| ArchiveError::MissingMember {
        member: member.to_owned(),
        wanted_by: MANIFEST.to_owned(),
    })?;
    let compression = documents.compression(member, extent)?;
    let named = digest_in_name(member).filter(|_| member.starts_with("blobs/"));
    let digest = match (compression, named) {
        // The stored bytes are the uncompressed tar, so the config announces them.
        (Compression::None, Some(actual)) if actual != diff_id.0 => {
            return Err(ArchiveError::DiffId {
                layer: number,
                expected: diff_id,
                actual,
            });
        }
        (Compression::None, _) => Some(diff_id.0),
        (_, named) => named,
    };
    let media_type = match compression {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
    };
    Ok(ArchivedLayer {
        diff_id,
        member: member.to_owned(),
        media_type: media_type.to_owned(),
        compression,
        size: extent.size,
        digest,
        extent: Some(extent),
    })
}

/// Notes where the blobs lie that the image's manifest names.
fn remember(
    documents: &Documents,
    entry: &Entry,
    manifest: &ArchivedManifest,
    blobs: &mut HashMap<Digest, Place>,
) -> Result<(), ArchiveError> {
    if let Some(extent) = documents.members.find(&entry.config)? {
        blobs.insert(manifest.config.digest, Place::Stored(extent));
    }
    for layer in &manifest.layers {
        if let (Some(digest), Some(extent)) = (layer.digest, layer.extent) {
            blobs.insert(digest, Place::Stored(extent));
        }
    }
    if let Some(raw) = &manifest.manifest {
        blobs.insert(raw.digest, Place::Synthesised(raw.bytes.clone()));
    }
    Ok(())
}

/// The digest that a member is named after: `blobs/sha256/<hex>`, `<hex>.json`, `sha256:<hex>`.
fn digest_in_name(member: &str) -> Option<Digest> {
    let file = member.rsplit('/').next()?;
    let hex = file.strip_suffix(".json").unwrap_or(file);
    let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
    format!("sha256:{hex}").parse().ok()
}
