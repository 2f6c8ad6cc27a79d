//! Where a cache is: reading its documents there, and both ends of moving its blobs.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_registry::blob::{BlobSink, BlobSource, InMemory};
use kiln_registry::client::{Bucket, Client, Repository};
use kiln_registry::digest::Digest;
use kiln_registry::layout::{Layout, LayoutError};
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::{OCI_MANIFEST, is_index};
use kiln_registry::spec::platform::choose;
use kiln_registry::spec::{Descriptor, Index, Manifest, Platform, Raw};
use tokio::io::AsyncReadExt as _;

use super::document::{CONFIG, Contents, MAX_CONFIG};
use super::options::Spec;
use super::{RemoteError, blocking};

/// A place that has, or gets, a cache.
#[derive(Clone, Debug)]
pub enum Place {
    /// A repository of a registry.
    Registry {
        /// Its name there.
        reference: Reference,
        /// The client's view of it.
        repository: Arc<Repository>,
        /// The client.
        client: Client,
    },
    /// An OCI image layout.
    Local {
        /// Its folder.
        path: PathBuf,
        /// The name in it.
        tag: String,
        /// The manifest, instead of the name.
        digest: Option<Digest>,
    },
    /// A bucket of S3.
    S3 {
        /// The bucket.
        bucket: Arc<Bucket>,
        /// The names in it; the first is read.
        names: Vec<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { reference, .. } => f.write_str(&reference.familiar()),
            Self::Local { path, .. } => write!(f, "{}", path.display()),
            Self::S3 { bucket, names } => write!(f, "{bucket}: {}", names.join(", ")),
        }
    }
}

/// The documents of a cache, as they were read.
pub(in crate::cache) type Documents = (Raw<Manifest>, Vec<u8>);

impl Place {
    /// The places that the command line names to be read: of several names in a bucket each is one.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn all(spec: &Spec, client: &Client) -> Result<Vec<Self>, RemoteError> {
        let place = Self::new(spec, client)?;
        let Self::S3 { bucket, names } = place else {
            return Ok(vec![place]);
        };
        let single = |name| Self::S3 {
            bucket: Arc::clone(&bucket),
            names: vec![name],
        };
        Ok(names.into_iter().map(single).collect())
    }

    /// The place that the command line names.
    ///
    /// # Errors
    /// When an address is none.
    pub fn new(spec: &Spec, client: &Client) -> Result<Self, RemoteError> {
        Ok(match spec {
            Spec::S3 { bucket, names } => Self::S3 {
                bucket: Arc::new(client.bucket(bucket.as_ref().clone())?),
                names: names.clone(),
            },
            Spec::Registry(reference) => Self::Registry {
                repository: Arc::new(client.repository(reference)),
                reference: reference.clone(),
                client: client.clone(),
            },
            Spec::Local { path, tag, digest } => Self::Local {
                path: path.clone(),
                tag: tag.clone(),
                digest: *digest,
            },
        })
    }

    /// What the cache there says. Of an image for several platforms the one for `platform` counts.
    ///
    /// # Errors
    /// [`RemoteError::Missing`] when there is none.
    pub async fn read(&self, platform: &Platform) -> Result<Contents, RemoteError> {
        let (manifest, config) = self.documents(platform).await?;
        Contents::read(&manifest.value, &config)
    }

    /// A manifest that is there, and its config.
    ///
    /// # Errors
    /// [`RemoteError::Missing`] when there is none.
    pub(in crate::cache) async fn documents(
        &self,
        platform: &Platform,
    ) -> Result<Documents, RemoteError> {
        Ok(match self {
            Self::Registry {
                reference, client, ..
            } => self.fetch(client, reference, platform).await?,
            Self::Local { path, tag, digest } => {
                let (path, tag, digest) = (path.clone(), tag.clone(), *digest);
                blocking(move || read_layout(&path, &tag, digest)).await?
            }
            Self::S3 { bucket, names } => {
                let name = names.first().ok_or(RemoteError::Missing)?;
                let bytes = bucket.manifest(name).await?.ok_or(RemoteError::Missing)?;
                let manifest: Raw<Manifest> = Raw::parse(bytes).map_err(RemoteError::Json)?;
                let config = small(bucket.as_ref(), &manifest.value.config).await?;
                (manifest, config)
            }
        })
    }

    /// The folder, where it is one.
    pub(in crate::cache) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Local { path, .. } => Some(path),
            Self::Registry { .. } | Self::S3 { .. } => None,
        }
    }

    async fn fetch(
        &self,
        client: &Client,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Documents, RemoteError> {
        let document = |reference: Reference| async move {
            client
                .document(&reference)
                .await
                .map_err(|error| match error.is_not_found() {
                    true => RemoteError::Missing,
                    false => error.into(),
                })
        };
        let mut found = document(reference.clone()).await?;
        if is_index(&found.descriptor.media_type) {
            let index: Index = serde_json::from_slice(&found.bytes).map_err(RemoteError::Json)?;
            let chosen = choose(platform, &index).ok_or_else(|| {
                // BuildKit's older form is an index of layers, with its config among them.
                let buildkit = |one: &Descriptor| one.media_type.contains("buildkit");
                match index.manifests.iter().any(buildkit) {
                    true => RemoteError::BuildKit,
                    false => RemoteError::NoCache,
                }
            })?;
            found = document(Reference {
                tag: None,
                digest: Some(chosen.digest),
                ..reference.clone()
            })
            .await?;
        }
        let manifest: Raw<Manifest> = Raw::parse(found.bytes).map_err(RemoteError::Json)?;
        let config = small(self.source()?.as_ref(), &manifest.value.config).await?;
        Ok((manifest, config))
    }

    /// Where its blobs are read.
    ///
    /// # Errors
    /// When a folder is no layout.
    pub fn source(&self) -> Result<Arc<dyn BlobSource>, RemoteError> {
        Ok(match self {
            Self::Registry { repository, .. } => Arc::clone(repository) as Arc<dyn BlobSource>,
            Self::Local { path, .. } => Arc::new(Layout::open(path)?),
            Self::S3 { bucket, .. } => Arc::clone(bucket) as Arc<dyn BlobSource>,
        })
    }

    /// Where blobs are written; a folder is made.
    ///
    /// # Errors
    /// When a folder cannot be made or is something else.
    pub fn sink(&self) -> Result<Arc<dyn BlobSink>, RemoteError> {
        Ok(match self {
            Self::Registry { repository, .. } => Arc::clone(repository) as Arc<dyn BlobSink>,
            Self::Local { path, .. } => Arc::new(Layout::create(path)?),
            Self::S3 { bucket, .. } => Arc::clone(bucket) as Arc<dyn BlobSink>,
        })
    }

    /// Puts the documents of a cache whose blobs are there; the manifest last, so that nobody sees a
    /// cache that is not whole.
    ///
    /// # Errors
    /// When they cannot be put.
    pub async fn publish(&self, contents: &Contents, oci: bool) -> Result<(), RemoteError> {
        let layers = contents.layers.iter().map(|layer| layer.blob.clone());
        self.put_documents(CONFIG, contents.config()?, layers.collect(), oci)
            .await
    }

    /// Puts a config and the manifest that names it and its layers.
    ///
    /// # Errors
    /// When they cannot be put.
    pub(in crate::cache) async fn put_documents(
        &self,
        media_type: &str,
        config: Vec<u8>,
        layers: Vec<Descriptor>,
        oci: bool,
    ) -> Result<(), RemoteError> {
        if config.len() as u64 > MAX_CONFIG {
            return Err(RemoteError::TooLarge(MAX_CONFIG));
        }
        let descriptor = Descriptor::new(media_type, Digest::of(&config), config.len() as u64);
        let mut manifest = Manifest::new(descriptor.clone(), layers);
        if !oci {
            manifest = docker(manifest)?;
        }
        let kind = manifest.media_type.clone();
        let kind = kind.unwrap_or_else(|| OCI_MANIFEST.to_owned());
        let raw = Raw::write(manifest).map_err(RemoteError::Json)?;
        let listed = Descriptor::new(kind, raw.digest, raw.bytes.len() as u64);
        let sink = self.sink()?;
        sink.put(&descriptor, &InMemory(config), &|_, _| ()).await?;
        let tags = match self {
            Self::Registry { reference, .. } => vec![reference.tag_or_latest()],
            Self::Local { tag, .. } => vec![tag.as_str()],
            Self::S3 { names, .. } => names.iter().map(String::as_str).collect(),
        };
        for tag in tags {
            sink.put_manifest(&listed, &raw.bytes, Some(tag)).await?;
        }
        Ok(())
    }

    /// Keeps other builds from writing the same folder, as long as the value lives. Registries need
    /// no such care: there the last one simply counts.
    pub(in crate::cache) async fn lock(&self) -> Result<Option<File>, RemoteError> {
        let Self::Local { path, .. } = self else {
            return Ok(None);
        };
        let path = path.clone();
        blocking(move || {
            let failed = |source| RemoteError::Io {
                action: "locking the folder of the cache",
                source,
            };
            fs::create_dir_all(&path).map_err(failed)?;
            let folder = File::open(&path).map_err(failed)?;
            folder.lock().map_err(failed)?;
            Ok(Some(folder))
        })
        .await
    }
}

/// The same manifest in docker's media types, which have no zstd.
fn docker(mut manifest: Manifest) -> Result<Manifest, RemoteError> {
    use kiln_registry::spec::media_type::{
        Compression, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, layer_compression,
    };
    manifest.media_type = Some(DOCKER_MANIFEST.to_owned());
    for layer in &mut manifest.layers {
        layer.media_type = match layer_compression(&layer.media_type) {
            Some(Compression::None) => DOCKER_LAYER.to_owned(),
            Some(Compression::Gzip) => DOCKER_LAYER_GZIP.to_owned(),
            _ => return Err(RemoteError::Wrong("docker's media types have no zstd")),
        };
    }
    Ok(manifest)
}

/// Reads a small blob whole, and checks it.
async fn small(source: &dyn BlobSource, blob: &Descriptor) -> Result<Vec<u8>, RemoteError> {
    if blob.size > MAX_CONFIG {
        return Err(RemoteError::TooLarge(MAX_CONFIG));
    }
    let mut bytes = Vec::new();
    let reader = source.open(blob, 0).await?;
    let read = reader.take(MAX_CONFIG + 1).read_to_end(&mut bytes).await;
    read.map_err(|source| RemoteError::Io {
        action: "reading the config of the cache",
        source,
    })?;
    if Digest::of(&bytes) != blob.digest {
        return Err(RemoteError::Wrong("its config is not what its digest says"));
    }
    Ok(bytes)
}

fn read_layout(path: &Path, tag: &str, digest: Option<Digest>) -> Result<Documents, RemoteError> {
    let missing = |error| match error {
        LayoutError::NotALayout(_) if !path.join("index.json").exists() => RemoteError::Missing,
        LayoutError::NoImage { .. } => RemoteError::Missing,
        LayoutError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            RemoteError::Missing
        }
        error => error.into(),
    };
    let layout = Layout::open(path).map_err(missing)?;
    let name = digest.map_or_else(|| tag.to_owned(), |digest| digest.to_string());
    let listed = match (layout.resolve(Some(&name)), digest) {
        (Err(LayoutError::NoImage { .. }), Some(digest)) => {
            // A manifest whose name a later one has is there still.
            let size = fs::metadata(layout.blob_path(&digest)).map_err(|_| RemoteError::Missing)?;
            Descriptor::new(OCI_MANIFEST, digest, size.len())
        }
        (listed, _) => listed.map_err(missing)?,
    };
    if is_index(&listed.media_type) {
        return Err(RemoteError::BuildKit);
    }
    let manifest: Raw<Manifest> =
        Raw::parse(layout.document(&listed)?).map_err(RemoteError::Json)?;
    let config = layout.document(&manifest.value.config)?;
    Ok((manifest, config))
}
