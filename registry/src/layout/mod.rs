//! An OCI image layout: a folder of blobs with an index of images (D10.3).
//!
//! Files appear whole: they are written under another name, flushed to the disk, then renamed.
//! Several processes may write one layout; the index is rewritten under a lock.

#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::blob::{
    BlobError, BlobReader, BlobSink, BlobSource, BoxFuture, InMemory, Progress, Put, pump,
};
use crate::digest::{Digest, Mismatch, Verifier};
use crate::reference::Reference;
use crate::section::Section;
use crate::spec::annotation::{IMAGE_NAME, REF_NAME};
use crate::spec::{Descriptor, Index, media_type};

const VERSION: &str = "1.0.0";
const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Bytes of a document accepted.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Chunks that may wait for the disk.
const CHUNKS_WAITING: usize = 4;

/// Why a layout cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Reading or writing failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It is no layout.
    #[error("`{0}` is not an OCI image layout: it has no file `{MARKER}`")]
    NotALayout(PathBuf),
    /// It is one of a version that is not known.
    #[error("`{path}` is an OCI image layout of version `{version}`, only {VERSION} is supported")]
    Version {
        /// The layout.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// One of its files cannot be understood.
    #[error("cannot read `{path}`")]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A document is larger than is accepted.
    #[error("`{path}` is larger than {MAX_DOCUMENT} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A blob is not what it is announced to be.
    #[error("`{path}` is not what it is announced to be")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// How it differs.
        source: Mismatch,
    },
    /// No image is listed under a name.
    #[error("`{path}` has no image `{name}`; it has {}", list(.available))]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// The name.
        name: String,
        /// The names that it has.
        available: Vec<String>,
    },
    /// There are several images and none is named.
    #[error("`{path}` has {} images, one must be named: {}", .available.len(), list(.available))]
    Ambiguous {
        /// The layout.
        path: PathBuf,
        /// The names that it has.
        available: Vec<String>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

/// An OCI image layout.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Opens a layout that is there.
    ///
    /// # Errors
    /// [`LayoutError::NotALayout`] when the folder is none, [`LayoutError::Version`] when it is
    /// of another version.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into() };
        let path = layout.root.join(MARKER);
        let bytes = match read(&path) {
            Err(LayoutError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(LayoutError::NotALayout(layout.root));
            }
            other => other?,
        };
        let marker: Marker = parse(&path, &bytes)?;
        // The specification lets minor versions add files only.
        if marker.image_layout_version.split('.').next() == Some("1") {
            Ok(layout)
        } else {
            Err(LayoutError::Version {
                path: layout.root,
                version: marker.image_layout_version,
            })
        }
    }

    /// Opens a layout, made first where there is none.
    ///
    /// # Errors
    /// As [`Layout::open`]; [`LayoutError::Io`] when it cannot be made.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, LayoutError> {
        let layout = Self { root: root.into() };
        let blobs = layout.root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        let marker = layout.root.join(MARKER);
        if !marker.exists() {
            let index = layout.root.join(INDEX);
            if !index.exists() {
                layout.write_document(&index, &empty_index())?;
            }
            let version = Marker {
                image_layout_version: VERSION.to_owned(),
            };
            layout.write_document(&marker, &version)?;
        }
        Self::open(layout.root)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The images, as `index.json` lists them.
    ///
    /// # Errors
    /// [`LayoutError`] when it cannot be read.
    pub fn index(&self) -> Result<Index, LayoutError> {
        let path = self.root.join(INDEX);
        parse(&path, &read(&path)?)
    }

    /// The image listed under a name: a tag, a whole name or a digest; the only one without a
    /// name.
    ///
    /// # Errors
    /// [`LayoutError::NoImage`] and [`LayoutError::Ambiguous`], which list what there is.
    pub fn resolve(&self, name: Option<&str>) -> Result<Descriptor, LayoutError> {
        let images = self.index()?.manifests;
        let path = self.root.clone();
        let Some(name) = name else {
            let mut distinct: Vec<&Descriptor> = Vec::new();
            for image in &images {
                if distinct.iter().all(|other| other.digest != image.digest) {
                    distinct.push(image);
                }
            }
            return match distinct[..] {
                [only] => Ok(only.clone()),
                [] => Err(LayoutError::NoImage {
                    path,
                    name: "latest".to_owned(),
                    available: Vec::new(),
                }),
                _ => Err(LayoutError::Ambiguous {
                    path,
                    available: images.iter().map(label).collect(),
                }),
            };
        };
        let whole = Reference::parse(name).map(|name| name.with_default_tag().to_string());
        let is_it = |image: &&Descriptor| {
            let [ref_name, image_name] =
                [REF_NAME, IMAGE_NAME].map(|key| image.annotations.get(key));
            ref_name.is_some_and(|text| text == name)
                || image_name.is_some_and(|text| Some(text) == whole.as_ref().ok())
                || image.digest.to_string() == name
        };
        let found = images.iter().find(is_it).cloned();
        found.ok_or_else(|| LayoutError::NoImage {
            path,
            name: name.to_owned(),
            available: images.iter().map(label).collect(),
        })
    }

    /// The bytes of a manifest, index or config, verified.
    ///
    /// # Errors
    /// [`LayoutError`] when it is not there, or is not what the descriptor says.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
        let path = self.blob_path(&descriptor.digest);
        let bytes = read(&path)?;
        let mut verifier = Verifier::new(descriptor.digest, descriptor.size);
        verifier
            .update(&bytes)
            .and_then(|()| verifier.finish())
            .map_err(|source| LayoutError::Mismatch { path, source })?;
        Ok(bytes)
    }

    /// Lists an image whose manifest is there. A bare word is listed as a tag; a whole name as
    /// its tag and as itself. What was listed under the same name before no longer is.
    ///
    /// # Errors
    /// [`LayoutError::Io`] when the index cannot be rewritten.
    pub fn list(&self, image: &Descriptor, name: Option<&str>) -> Result<(), LayoutError> {
        let marker = self.root.join(MARKER);
        let lock = File::open(&marker).map_err(io_error("open", &marker))?;
        // Released when the file is closed.
        lock.lock().map_err(io_error("lock", &marker))?;
        let mut index = self.index()?;
        let mut entry = image.clone();
        for key in [REF_NAME, IMAGE_NAME] {
            entry.annotations.remove(key);
        }
        if let Some(name) = name {
            entry.annotations.extend(annotations(name));
        }
        let names = |entry: &Descriptor| {
            [REF_NAME, IMAGE_NAME].map(|key| entry.annotations.get(key).cloned())
        };
        let wanted = names(&entry);
        let unnamed = name.is_none();
        index
            .manifests
            .retain(|other| names(other) != wanted || (unnamed && other.digest != entry.digest));
        index.manifests.push(entry);
        self.write_document(&self.root.join(INDEX), &index)
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob of that size is there.
    fn has(&self, blob: &Descriptor) -> bool {
        let metadata = fs::metadata(self.blob_path(&blob.digest));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size)
    }

    fn reader(&self, blob: &Descriptor, offset: u64) -> Result<Section, BlobError> {
        let path = self.blob_path(&blob.digest);
        let unreadable = |source| BlobError::Io {
            action: format!("cannot read `{}`", path.display()),
            source,
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let place = self.root.display().to_string();
                return Err(BlobError::NotFound(blob.digest, place));
            }
            other => other.map_err(unreadable)?,
        };
        let size = file.metadata().map_err(unreadable)?.len();
        if size != blob.size {
            return Err(BlobError::Mismatch(Mismatch::Size {
                digest: blob.digest,
                expected: blob.size,
                actual: size,
                more: false,
            }));
        }
        let offset = offset.min(size);
        let section = Section::new(Arc::new(file), offset, size - offset);
        Ok(match offset {
            0 => section.verified(blob.digest),
            _ => section,
        })
    }

    fn write_document(&self, path: &Path, document: &impl Serialize) -> Result<(), LayoutError> {
        let bytes = serde_json::to_vec(document).map_err(|source| LayoutError::Document {
            path: path.to_owned(),
            source,
        })?;
        let written = Partial::new(&self.root).and_then(|mut partial| {
            partial.file.write_all(&bytes)?;
            partial.publish(path)
        });
        written.map_err(io_error("write", path))
    }

    /// Writes a blob from chunks; it appears when all of them came and are what they should be.
    fn receive(
        &self,
        blob: &Descriptor,
        mut chunks: mpsc::Receiver<Bytes>,
    ) -> Result<(), BlobError> {
        let path = self.blob_path(&blob.digest);
        let unwritable = |source| BlobError::Io {
            action: format!("cannot write `{}`", path.display()),
            source,
        };
        let mut partial = Partial::new(&self.root).map_err(unwritable)?;
        let mut verifier = Verifier::new(blob.digest, blob.size);
        while let Some(chunk) = chunks.blocking_recv() {
            verifier.update(&chunk)?;
            partial.file.write_all(&chunk).map_err(unwritable)?;
        }
        verifier.finish()?;
        partial.publish(&path).map_err(unwritable)
    }

    async fn store(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        progress: &Progress,
    ) -> Result<Put, BlobError> {
        if self.has(blob) {
            return Ok(Put::Existed);
        }
        let reader = source.open(blob, 0).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let (layout, descriptor) = (self.clone(), blob.clone());
        let writer = tokio::task::spawn_blocking(move || layout.receive(&descriptor, receiver));
        let read = pump(reader, sender, blob, progress).await;
        let written = writer.await.map_err(|error| BlobError::Io {
            action: format!("cannot write {}", blob.digest),
            source: io::Error::other(error),
        })?;
        // The source's failure is why the blob is too short.
        read?;
        written.map(|()| Put::Sent)
    }
}

impl BlobSource for Layout {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        if let Some(bytes) = blob.embedded().filter(|_| !self.has(blob)) {
            return InMemory(bytes).reader(offset);
        }
        Box::pin(async move {
            let (layout, blob) = (self.clone(), blob.clone());
            let section = blocking(move || layout.reader(&blob, offset)).await?;
            Ok(Box::new(section.into_async()) as BlobReader)
        })
    }
}

impl BlobSink for Layout {
    fn put<'a>(
        &'a self,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(self.store(blob, source, progress))
    }

    /// Stores the document; with a tag or name it is listed in the index too (D10.3). Without one
    /// it is only stored: it may be part of an index. See [`Layout::list`].
    fn put_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: &'a [u8],
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        let (layout, descriptor) = (self.clone(), descriptor.clone());
        let (bytes, tag) = (bytes.to_vec(), tag.map(str::to_owned));
        Box::pin(blocking(move || {
            let put = if layout.has(&descriptor) {
                Put::Existed
            } else {
                let (sender, receiver) = mpsc::channel(1);
                // There is room for one.
                sender.try_send(bytes.into()).ok();
                drop(sender);
                layout.receive(&descriptor, receiver)?;
                Put::Sent
            };
            if let Some(tag) = tag {
                layout.list(&descriptor, Some(&tag)).map_err(blob_error)?;
            }
            Ok(put)
        }))
    }
}

/// A file that has no name of its own until it is published, and is gone if it never is.
struct Partial {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Partial {
    fn new(directory: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!(".kiln-{}-{number}.partial", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path,
                        published: false,
                    });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn publish(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        self.published = true;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about it here; its name says that it may be deleted.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// The annotations of an image listed under a name.
fn annotations(name: &str) -> Vec<(String, String)> {
    match Reference::parse(name) {
        Ok(reference) if name.contains([':', '/']) => {
            let reference = reference.with_default_tag();
            let tag = reference.tag_or_latest().to_owned();
            let pairs = [(REF_NAME, tag), (IMAGE_NAME, reference.to_string())];
            pairs.map(|(key, text)| (key.to_owned(), text)).into()
        }
        _ => vec![(REF_NAME.to_owned(), name.to_owned())],
    }
}

fn empty_index() -> Index {
    Index::new(media_type::OCI_INDEX, Vec::new())
}

fn label(image: &Descriptor) -> String {
    let names = [IMAGE_NAME, REF_NAME].map(|key| image.annotations.get(key));
    let name = names.into_iter().flatten().next();
    name.map_or_else(|| image.digest.to_string(), |name| format!("`{name}`"))
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Reads a document, within the limit.
fn read(path: &Path) -> Result<Vec<u8>, LayoutError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(LayoutError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes).map_err(|source| LayoutError::Document {
        path: path.to_owned(),
        source,
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
    let path = path.to_owned();
    move |source| LayoutError::Io {
        action,
        path,
        source,
    }
}

fn blob_error(error: LayoutError) -> BlobError {
    BlobError::Io {
        action: "cannot list the image in the layout".to_owned(),
        source: io::Error::other(error),
    }
}

/// Runs blocking code on tokio's pool for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| {
        Err(BlobError::Io {
            action: "cannot use the image layout".to_owned(),
            source: io::Error::other(error),
        })
    })
}
