//! OCI archives: an image layout in a tar file (D10.3).

use std::collections::HashMap;

use super::ArchiveError;
use super::docker::{self, Entry};
use super::read::{
    ArchivedImage, ArchivedLayer, ArchivedManifest, Content, Documents, MAX_IMAGES, MAX_LAYERS,
    blob_name, check_count, check_size, config_platform,
};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::spec::annotation::{IMAGE_NAME, REF_NAME};
use crate::spec::config::ImageConfig;
use crate::spec::media_type::{self, Compression};
use crate::spec::{Descriptor, DiffId, Index, Manifest, Platform, Raw};

const INDEX: &str = "index.json";
/// Indexes accepted inside each other.
const MAX_DEPTH: usize = 8;
/// Manifests without a platform whose configs are read to learn it.
const MAX_CONFIGS: usize = 64;

/// The images that `index.json` lists; several entries of one digest are one image with several
/// names.
pub(super) fn images(
    documents: &mut Documents,
    is_docker_too: bool,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let bytes = documents.named(INDEX, "the OCI layout")?;
    documents.spend(bytes.len())?;
    let index: Raw<Index> = Documents::parse(INDEX, bytes)?;
    check_count("images", index.value.manifests.len(), MAX_IMAGES)?;
    let entries = if is_docker_too {
        docker::entries(documents)?
    } else {
        Vec::new()
    };
    let mut images: Vec<ArchivedImage> = Vec::new();
    let mut places: HashMap<Digest, usize> = HashMap::new();
    for root in index.value.manifests {
        if !media_type::is_index(&root.media_type) && !media_type::is_manifest(&root.media_type) {
            continue;
        }
        let (mut names, ref_name) = names(&root)?;
        if names.is_empty() && ref_name.is_none() {
            names = names_by_docker(documents, &root, &entries)?;
        }
        let place = *places.entry(root.digest).or_insert(images.len());
        if let Some(image) = images.get_mut(place) {
            image.merge(names, ref_name);
            continue;
        }
        let mut manifests = Vec::new();
        flatten(documents, &root, MAX_DEPTH, &mut manifests)?;
        images.push(ArchivedImage {
            names,
            ref_name,
            content: Content::Oci {
                root: Box::new(root),
                manifests,
            },
        });
    }
    Ok(images)
}

impl ArchivedImage {
    /// Takes in the names of another entry of the same image.
    fn merge(&mut self, names: Vec<Reference>, ref_name: Option<String>) {
        for name in names {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
        self.ref_name = self.ref_name.take().or(ref_name);
    }
}

/// The names in the annotations of an image, and what is left of them that is no name.
fn names(root: &Descriptor) -> Result<(Vec<Reference>, Option<String>), ArchiveError> {
    let ref_name = root.annotations.get(REF_NAME);
    if let Some(text) = root.annotations.get(IMAGE_NAME) {
        return Ok((vec![docker::name(text)?], None));
    }
    let Some(text) = ref_name else {
        return Ok((Vec::new(), None));
    };
    // A bare word is a tag to some writers and a name to others; only a whole name is certain.
    match Reference::parse(text) {
        Ok(name) if text.contains([':', '/']) => Ok((vec![name.with_default_tag()], None)),
        _ => Ok((Vec::new(), Some(text.clone()))),
    }
}

/// The names that `manifest.json` of the same archive has for an image without any.
fn names_by_docker(
    documents: &mut Documents,
    root: &Descriptor,
    entries: &[Entry],
) -> Result<Vec<Reference>, ArchiveError> {
    if entries.is_empty() || !media_type::is_manifest(&root.media_type) || !has(documents, root)? {
        return Ok(Vec::new());
    }
    let bytes = documents.blob(root)?;
    documents.spend(bytes.len())?;
    let manifest: Raw<Manifest> = Documents::parse(&blob_name(&root.digest), bytes)?;
    let config = blob_name(&manifest.value.config.digest);
    let mut names = Vec::new();
    for entry in entries.iter().filter(|entry| entry.config == config) {
        names.extend(entry.names()?);
    }
    Ok(names)
}

fn has(documents: &Documents, blob: &Descriptor) -> Result<bool, ArchiveError> {
    let found = documents.members.find(&blob_name(&blob.digest))?;
    Ok(found.is_some())
}

/// Collects the manifests below an image, through nested indexes. What is not there is collected
/// too: it is missed only when it is wanted.
fn flatten(
    documents: &mut Documents,
    root: &Descriptor,
    depth: usize,
    manifests: &mut Vec<Descriptor>,
) -> Result<(), ArchiveError> {
    check_count("manifests of an image", manifests.len() + 1, MAX_IMAGES)?;
    if !media_type::is_index(&root.media_type) || !has(documents, root)? {
        manifests.push(root.clone());
        return Ok(());
    }
    if depth == 0 {
        return Err(ArchiveError::Limit {
            what: "indexes inside indexes".to_owned(),
            limit: MAX_DEPTH as u64,
        });
    }
    let bytes = documents.blob(root)?;
    documents.spend(bytes.len())?;
    let index: Raw<Index> = Documents::parse(&blob_name(&root.digest), bytes)?;
    for child in &index.value.manifests {
        let attestation = child.platform.as_ref().is_some_and(Platform::is_unknown);
        let known =
            media_type::is_index(&child.media_type) || media_type::is_manifest(&child.media_type);
        if known && !attestation && child.artifact_type.is_none() {
            flatten(documents, child, depth - 1, manifests)?;
        }
    }
    Ok(())
}

/// Chooses the manifest for a platform; without a wish the only one, or the host's best.
pub(super) fn choose<'a>(
    documents: &Documents,
    image: &ArchivedImage,
    manifests: &'a [Descriptor],
    wanted: Option<&Platform>,
) -> Result<&'a Descriptor, ArchiveError> {
    if let ([only], None) = (manifests, wanted) {
        return Ok(only);
    }
    let wanted = wanted.cloned().unwrap_or_else(Platform::host);
    let mut available = Vec::new();
    let mut best = None;
    let mut unknown = None;
    for (number, descriptor) in manifests.iter().enumerate() {
        let platform = match &descriptor.platform {
            Some(platform) => platform.clone(),
            None if has(documents, descriptor)? && number < MAX_CONFIGS => {
                platform_of_config(documents, image, descriptor)?
            }
            None => {
                unknown = Some(descriptor);
                continue;
            }
        };
        let rank = wanted.rank(&platform);
        available.push(platform);
        if let Some(rank) = rank
            && best.is_none_or(|(least, _)| rank < least)
        {
            best = Some((rank, descriptor));
        }
    }
    // What is not there may be what is wanted; reading it then says what is missing.
    let best = best.map(|(_, descriptor)| descriptor).or(unknown);
    best.ok_or_else(|| ArchiveError::NoPlatform {
        image: image.label(),
        wanted: Box::new(wanted),
        available,
    })
}

fn platform_of_config(
    documents: &Documents,
    image: &ArchivedImage,
    descriptor: &Descriptor,
) -> Result<Platform, ArchiveError> {
    let (_, config) = documents_of(documents, image, descriptor)?;
    Ok(config_platform(&config.value))
}

/// Reads the manifest and config of a descriptor.
fn documents_of(
    documents: &Documents,
    image: &ArchivedImage,
    descriptor: &Descriptor,
) -> Result<(Raw<Manifest>, Raw<ImageConfig>), ArchiveError> {
    let read = |blob: &Descriptor, what: &str| {
        if has(documents, blob)? {
            return documents.blob(blob);
        }
        Err(ArchiveError::MissingBlob {
            digest: blob.digest,
            what: what.to_owned(),
            image: image.label(),
        })
    };
    let what = match &descriptor.platform {
        Some(platform) => format!("the manifest for {platform}"),
        None if media_type::is_index(&descriptor.media_type) => "an index".to_owned(),
        None => "the manifest".to_owned(),
    };
    let bytes = read(descriptor, &what)?;
    let manifest: Raw<Manifest> = Documents::parse(&blob_name(&descriptor.digest), bytes)?;
    let blob = &manifest.value.config;
    if !media_type::is_config(&blob.media_type) {
        return Err(ArchiveError::NotAnImage {
            image: image.label(),
            media_type: blob.media_type.clone(),
        });
    }
    let bytes = read(blob, "the config")?;
    let config = Documents::parse(&blob_name(&blob.digest), bytes)?;
    Ok((manifest, config))
}

/// Reads the image of a manifest.
pub(super) fn manifest(
    documents: &Documents,
    image: &ArchivedImage,
    descriptor: &Descriptor,
) -> Result<ArchivedManifest, ArchiveError> {
    let (manifest, config) = documents_of(documents, image, descriptor)?;
    let blobs = &manifest.value.layers;
    let diff_ids = &config.value.rootfs.diff_ids;
    if blobs.len() != diff_ids.len() {
        return Err(ArchiveError::LayerCount {
            image: image.label(),
            layers: blobs.len(),
            diff_ids: diff_ids.len(),
        });
    }
    check_count("layers of an image", blobs.len(), MAX_LAYERS)?;
    let layers = blobs
        .iter()
        .zip(diff_ids)
        .map(|(blob, diff_id)| layer(documents, blob, *diff_id))
        .collect::<Result<_, _>>()?;
    Ok(ArchivedManifest {
        manifest: Some(manifest),
        announced: true,
        config,
        layers,
    })
}

fn layer(
    documents: &Documents,
    blob: &Descriptor,
    diff_id: DiffId,
) -> Result<ArchivedLayer, ArchiveError> {
    let member = blob_name(&blob.digest);
    let extent = documents.members.find(&member)?;
    let announced = media_type::layer_compression(&blob.media_type);
    let mut compression = announced.unwrap_or(Compression::None);
    if let Some(extent) = extent {
        check_size(blob.digest, blob.size, extent.size).map_err(|source| {
            ArchiveError::Mismatch {
                member: member.clone(),
                source,
            }
        })?;
        compression = documents.compression(&member, extent)?;
    }
    Ok(ArchivedLayer {
        diff_id,
        member,
        media_type: blob.media_type.clone(),
        compression,
        size: blob.size,
        digest: Some(blob.digest),
        extent,
    })
}
