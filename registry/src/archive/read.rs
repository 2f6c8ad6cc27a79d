//! Reading an archive: its images, their documents and their blobs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::member::{Extent, Members};
use super::spool::Format;
use super::{ArchiveError, docker, oci};
use crate::blob::{BlobError, BlobReader, BlobSource, BoxFuture, InMemory};
use crate::digest::{Digest, Mismatch};
use crate::reference::Reference;
use crate::section::Section;
use crate::spec::config::ImageConfig;
use crate::spec::media_type::{self, Compression};
use crate::spec::{Descriptor, DiffId, Manifest, Platform, Raw};

/// Bytes of one document accepted.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Bytes of all documents read to list the images.
const MAX_DOCUMENTS: u64 = 64 << 20;
/// Images, or manifests of one image, accepted.
pub(super) const MAX_IMAGES: usize = 10_000;
/// Layers of one image accepted; engines stop at 127.
pub(super) const MAX_LAYERS: usize = 4096;

/// An archive of images, open for reading.
#[derive(Debug)]
pub struct Archive {
    pub(super) documents: Documents,
    images: Vec<ArchivedImage>,
    /// Blobs of docker archives, which are not named after their digests.
    blobs: HashMap<Digest, Place>,
}

/// Where a blob is.
#[derive(Debug)]
pub(super) enum Place {
    Stored(Extent),
    Synthesised(Vec<u8>),
}

/// One image of an archive.
#[derive(Clone, Debug)]
pub struct ArchivedImage {
    /// Its names, each with a tag; none when it has no name.
    pub names: Vec<Reference>,
    /// The annotation `org.opencontainers.image.ref.name` when it is no whole name, often a bare
    /// tag.
    pub ref_name: Option<String>,
    /// What it is.
    pub content: Content,
}

/// What an archive has of an image.
#[derive(Clone, Debug)]
pub enum Content {
    /// Documents with digests of their own, as a registry has them.
    Oci {
        /// The image's manifest or index.
        root: Box<Descriptor>,
        /// The manifests of images that can be run, of all platforms; not all need be there.
        manifests: Vec<Descriptor>,
    },
    /// A config and layers only.
    Docker(Box<ArchivedManifest>),
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct ArchivedManifest {
    /// The manifest: the archive's own, or one made of config and layers as they lie there;
    /// `None` when the digest of a compressed layer is not announced, see
    /// [`ArchivedManifest::synthesise`].
    pub manifest: Option<Raw<Manifest>>,
    /// Whether the manifest is the archive's own.
    pub announced: bool,
    /// The config.
    pub config: Raw<ImageConfig>,
    /// The layers, lowest first.
    pub layers: Vec<ArchivedLayer>,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct ArchivedLayer {
    /// Digest of its uncompressed tar as the config announces it; it is for the reader to check.
    pub diff_id: DiffId,
    /// The member that it is, or should be.
    pub member: String,
    /// Its media type.
    pub media_type: String,
    /// How its stored bytes are compressed, by their first bytes.
    pub compression: Compression,
    /// Its stored size, bytes.
    pub size: u64,
    /// Digest of its stored bytes; `None` when the archive announces none: whoever stores the
    /// layer computes it.
    pub digest: Option<Digest>,
    /// Where it lies; `None` when it is not in the archive.
    pub(super) extent: Option<Extent>,
}

impl Archive {
    /// Reads the index of an uncompressed archive and finds its images.
    ///
    /// # Errors
    /// [`ArchiveError`] when it is damaged, hostile, or no archive of images.
    pub fn open(file: File) -> Result<Self, ArchiveError> {
        let members = Members::index(&file)?;
        let mut documents = Documents {
            file: Arc::new(file),
            members,
            budget: MAX_DOCUMENTS,
        };
        let mut blobs = HashMap::new();
        let is_there = |name: &str| Ok::<_, ArchiveError>(documents.members.find(name)?.is_some());
        let [layout, index, docker] = [
            is_there("oci-layout")?,
            is_there("index.json")?,
            is_there("manifest.json")?,
        ];
        // Where an archive is both, the OCI part says more: digests, platforms, whole names.
        let images = if index && (layout || !docker) {
            oci::images(&mut documents, docker)?
        } else if docker {
            docker::images(&mut documents, &mut blobs)?
        } else {
            return Err(ArchiveError::NoManifest);
        };
        if images.is_empty() {
            return Err(ArchiveError::NoImages);
        }
        Ok(Self {
            documents,
            images,
            blobs,
        })
    }

    /// The images, in the archive's order.
    #[must_use]
    pub fn images(&self) -> &[ArchivedImage] {
        &self.images
    }

    /// Reads an image for the platform that is wanted; without a wish, its only platform or the
    /// one that serves this machine best.
    ///
    /// # Errors
    /// [`ArchiveError::NoPlatform`] when it is not for that platform,
    /// [`ArchiveError::MissingBlob`] when its manifest or config is not in the archive, others
    /// when they are damaged. That layers are missing is for the caller to judge, see
    /// [`ArchivedManifest::missing`].
    pub fn load(
        &self,
        image: &ArchivedImage,
        wanted: Option<&Platform>,
    ) -> Result<ArchivedManifest, ArchiveError> {
        match &image.content {
            Content::Docker(manifest) => {
                let platform = manifest.platform();
                match wanted {
                    Some(wanted) if wanted.rank(&platform).is_none() => {
                        Err(ArchiveError::NoPlatform {
                            image: image.label(),
                            wanted: Box::new(wanted.clone()),
                            available: vec![platform],
                        })
                    }
                    _ => Ok((**manifest).clone()),
                }
            }
            Content::Oci { manifests, .. } => {
                let chosen = oci::choose(&self.documents, image, manifests, wanted)?;
                oci::manifest(&self.documents, image, chosen)
            }
        }
    }

    /// Opens a layer, as stored; verified while it is read when its digest is announced.
    ///
    /// # Errors
    /// [`ArchiveError::MissingMember`] when it is not in the archive.
    pub fn layer(&self, layer: &ArchivedLayer) -> Result<Section, ArchiveError> {
        let extent = layer.extent.ok_or_else(|| ArchiveError::MissingMember {
            member: layer.member.clone(),
            wanted_by: "the image's list of layers".to_owned(),
        })?;
        let section = self.documents.section(extent);
        Ok(match layer.digest {
            Some(digest) => section.verified(digest),
            None => section,
        })
    }

    /// The bytes of a manifest, index or config, verified.
    ///
    /// # Errors
    /// [`ArchiveError::MissingMember`] when it is not there, others when it is damaged.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ArchiveError> {
        let place = self.blobs.get(&descriptor.digest);
        let member = descriptor.digest.to_string();
        let bytes = match place {
            Some(Place::Synthesised(bytes)) => bytes.clone(),
            Some(Place::Stored(extent)) => self.documents.read(&member, *extent)?,
            None => return self.documents.blob(descriptor),
        };
        check_digest(descriptor.digest, Digest::of(&bytes))
            .map_err(|source| ArchiveError::Mismatch { member, source })?;
        Ok(bytes)
    }

    /// Whether the archive has a blob.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
            || matches!(self.documents.members.find(&blob_name(digest)), Ok(Some(_)))
    }

    fn reader(&self, blob: &Descriptor, offset: u64) -> Result<BlobReader, BlobError> {
        let not_found = || BlobError::NotFound(blob.digest, "the archive".to_owned());
        let extent = match self.blobs.get(&blob.digest) {
            Some(Place::Synthesised(bytes)) => {
                let mut cursor = Cursor::new(bytes.clone());
                cursor.set_position(offset);
                return Ok(Box::new(cursor));
            }
            Some(Place::Stored(extent)) => *extent,
            None => match self.documents.members.find(&blob_name(&blob.digest)) {
                Ok(Some(extent)) => extent,
                Ok(None) | Err(_) => return Err(not_found()),
            },
        };
        check_size(blob.digest, blob.size, extent.size)?;
        if offset == 0 {
            let section = self.documents.section(extent);
            return Ok(Box::new(section.verified(blob.digest).into_async()));
        }
        let offset = offset.min(extent.size);
        let rest = Extent {
            offset: extent.offset + offset,
            size: extent.size - offset,
        };
        Ok(Box::new(self.documents.section(rest).into_async()))
    }
}

impl BlobSource for Archive {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        if let Some(bytes) = blob.embedded().filter(|_| !self.has(&blob.digest)) {
            return InMemory(bytes).reader(offset);
        }
        Box::pin(std::future::ready(self.reader(blob, offset)))
    }
}

impl ArchivedImage {
    /// The manifest or index, which a transfer can move as a whole; `None` when it
    /// has to be made first, see [`ArchivedManifest::synthesise`].
    #[must_use]
    pub fn root(&self) -> Option<Descriptor> {
        match &self.content {
            Content::Oci { root, .. } => Some((**root).clone()),
            Content::Docker(manifest) => manifest.descriptor(),
        }
    }

    /// What to call it in a message: a name, or a digest.
    #[must_use]
    pub fn label(&self) -> String {
        if let Some(name) = self.names.first() {
            return name.familiar();
        }
        match &self.content {
            Content::Oci { root, .. } => root.digest.to_string(),
            Content::Docker(manifest) => manifest.config.digest.to_string(),
        }
    }
}

impl ArchivedManifest {
    /// The platform its config names.
    #[must_use]
    pub fn platform(&self) -> Platform {
        config_platform(&self.config.value)
    }

    /// Descriptor of the manifest, if there is one.
    #[must_use]
    pub fn descriptor(&self) -> Option<Descriptor> {
        self.manifest.as_ref().map(|manifest| {
            let media_type = manifest.value.media_type.clone();
            let media_type = media_type.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
            Descriptor::new(media_type, manifest.digest, manifest.bytes.len() as u64)
        })
    }

    /// The layers that are not in the archive although they belong there; foreign layers do not.
    pub fn missing(&self) -> impl Iterator<Item = &ArchivedLayer> {
        self.layers.iter().filter(|layer| {
            layer.extent.is_none() && !media_type::is_nondistributable(&layer.media_type)
        })
    }

    /// Makes the manifest of an image that has none from descriptors of its layers, lowest first.
    #[must_use]
    pub fn synthesise(&self, layers: Vec<Descriptor>) -> Manifest {
        let config = &self.config;
        let size = config.bytes.len() as u64;
        let config = Descriptor::new(media_type::OCI_CONFIG, config.digest, size);
        Manifest::new(config, layers)
    }
}

impl ArchivedLayer {
    /// Whether it is in the archive.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.extent.is_some()
    }

    /// Its descriptor, when its digest is announced.
    #[must_use]
    pub fn descriptor(&self) -> Option<Descriptor> {
        let digest = self.digest?;
        Some(Descriptor::new(self.media_type.clone(), digest, self.size))
    }
}

/// The documents in an archive, read whole and within limits.
#[derive(Debug)]
pub(super) struct Documents {
    file: Arc<File>,
    pub(super) members: Members,
    budget: u64,
}

impl Documents {
    pub(super) fn section(&self, extent: Extent) -> Section {
        Section::new(Arc::clone(&self.file), extent.offset, extent.size)
    }

    /// Counts a document that is read only to list the images, so that a small archive cannot
    /// have the same large one read without end.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), ArchiveError> {
        self.budget = self
            .budget
            .checked_sub(bytes as u64)
            .ok_or_else(|| ArchiveError::Limit {
                what: "bytes of documents".to_owned(),
                limit: MAX_DOCUMENTS,
            })?;
        Ok(())
    }

    /// The content of a member that another one names.
    pub(super) fn named(&self, member: &str, wanted_by: &str) -> Result<Vec<u8>, ArchiveError> {
        let extent = self.members.find(member)?;
        let extent = extent.ok_or_else(|| ArchiveError::MissingMember {
            member: member.to_owned(),
            wanted_by: wanted_by.to_owned(),
        })?;
        self.read(member, extent)
    }

    fn read(&self, member: &str, extent: Extent) -> Result<Vec<u8>, ArchiveError> {
        if extent.size > MAX_DOCUMENT {
            return Err(ArchiveError::Limit {
                what: format!("the size of the document `{member}`"),
                limit: MAX_DOCUMENT,
            });
        }
        let mut bytes = Vec::new();
        self.section(extent)
            .read_to_end(&mut bytes)
            .map_err(ArchiveError::io("cannot read the archive"))?;
        Ok(bytes)
    }

    /// The content of a blob that is a document, verified.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ArchiveError> {
        let member = blob_name(&descriptor.digest);
        let bytes = self.named(&member, "a document of the archive")?;
        let size = bytes.len() as u64;
        check_size(descriptor.digest, descriptor.size, size)
            .and_then(|()| check_digest(descriptor.digest, Digest::of(&bytes)))
            .map_err(|source| ArchiveError::Mismatch { member, source })?;
        Ok(bytes)
    }

    pub(super) fn parse<T: serde::de::DeserializeOwned>(
        member: &str,
        bytes: Vec<u8>,
    ) -> Result<Raw<T>, ArchiveError> {
        Raw::parse(bytes).map_err(|source| ArchiveError::Document {
            member: member.to_owned(),
            source,
        })
    }

    /// How the content of a layer is compressed.
    pub(super) fn compression(
        &self,
        member: &str,
        extent: Extent,
    ) -> Result<Compression, ArchiveError> {
        let mut start = [0; Format::MAGIC];
        let length = usize::try_from(extent.size).unwrap_or(usize::MAX);
        let start = &mut start[..length.min(Format::MAGIC)];
        self.file
            .read_exact_at(start, extent.offset)
            .map_err(ArchiveError::io("cannot read the archive"))?;
        match Format::sniff(start) {
            None => Ok(Compression::None),
            Some(Format::Gzip) => Ok(Compression::Gzip),
            Some(Format::Zstd) => Ok(Compression::Zstd),
            Some(other) => Err(ArchiveError::LayerCompression {
                member: member.to_owned(),
                format: other.name(),
            }),
        }
    }
}

/// The member that a blob is in an OCI layout.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Refuses more of something than is accepted, before room for it is made.
pub(super) fn check_count(what: &str, count: usize, limit: usize) -> Result<(), ArchiveError> {
    if count <= limit {
        return Ok(());
    }
    Err(ArchiveError::Limit {
        what: what.to_owned(),
        limit: limit as u64,
    })
}

pub(super) fn check_size(digest: Digest, expected: u64, actual: u64) -> Result<(), Mismatch> {
    if expected == actual {
        return Ok(());
    }
    Err(Mismatch::Size {
        digest,
        expected,
        actual,
        more: false,
    })
}

pub(super) fn check_digest(expected: Digest, actual: Digest) -> Result<(), Mismatch> {
    if expected == actual {
        Ok(())
    } else {
        Err(Mismatch::Digest { expected, actual })
    }
}

pub(super) fn config_platform(config: &ImageConfig) -> Platform {
    Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        os_version: config.os_version.clone(),
        os_features: config.os_features.clone(),
        variant: config.variant.clone(),
    }
    .normalized()
}
