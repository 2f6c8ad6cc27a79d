//! Archives as the ends of a copy (D10.1, D10.3).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::CopyError;
use crate::archive::{
    self, Archive, ArchiveError, ArchiveWriter, ArchivedImage, ArchivedLayer, ArchivedManifest,
    Content,
};
use crate::blob::{
    BlobError, BlobReader, BlobSink, BlobSource, BoxFuture, InMemory, Progress, Put, pump,
};
use crate::digest::{Digest, Hasher};
use crate::reference::Reference;
use crate::spec::{Descriptor, Raw};

/// Bytes gathered before they are written, or hashed.
const BUFFER: usize = 256 << 10;

/// Chunks that may wait for the disk.
const CHUNKS_WAITING: usize = 4;

type Writer = ArchiveWriter<BufWriter<File>>;

/// An archive that is being written; it appears under its name when it is finished.
#[derive(Debug)]
pub struct ArchiveSink {
    path: PathBuf,
    partial: PathBuf,
    writer: Arc<Mutex<Option<Writer>>>,
    done: bool,
}

impl ArchiveSink {
    /// Begins an archive beside the file that it will be.
    ///
    /// # Errors
    /// When it cannot be written, or there is something already that is no file.
    pub fn create(path: &Path) -> Result<Self, CopyError> {
        let unwritable = |source| CopyError::File {
            action: "write",
            path: path.to_owned(),
            source,
        };
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(unwritable(io::Error::from(io::ErrorKind::IsADirectory)));
        };
        let mut partial = name.to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(partial);
        let file = File::create(&partial).map_err(unwritable)?;
        let mut sink = Self {
            path: path.to_owned(),
            partial,
            writer: Arc::default(),
            done: false,
        };
        let writer = ArchiveWriter::new(BufWriter::with_capacity(BUFFER, file))?;
        sink.writer = Arc::new(Mutex::new(Some(writer)));
        Ok(sink)
    }

    /// Lists what was put, under a tag or whole name, or under its digest alone.
    ///
    /// # Errors
    /// When a part of it was not put.
    pub async fn list(&self, root: &Descriptor, name: Option<&str>) -> Result<(), CopyError> {
        let root = root.clone();
        let name = name.map(str::to_owned);
        let listed = self.with(move |writer| {
            let whole = name.as_deref().filter(|name| name.contains([':', '/']));
            match whole.and_then(|name| Reference::parse(name).ok()) {
                Some(name) => writer.add_image(&root, &[name]),
                None => writer.add_bare(&root, name.as_deref()),
            }
        });
        listed.await?;
        Ok(())
    }

    /// Ends the archive and gives it its name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn finish(mut self) -> Result<(), CopyError> {
        let Some(writer) = self.writer.lock().await.take() else {
            return Ok(());
        };
        let (partial, path) = (self.partial.clone(), self.path.clone());
        let work = move || {
            let out = writer.finish()?;
            let file = out.into_inner().map_err(io::IntoInnerError::into_error);
            let named = file
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(&partial, &path));
            named.map_err(|source| CopyError::File {
                action: "write",
                path,
                source,
            })
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(CopyError::Thread)??;
        self.done = true;
        Ok(())
    }

    /// Does something to the archive on the blocking pool, when nobody else does.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let guard = Arc::clone(&self.writer).lock_owned().await;
        blocking(guard, work).await
    }

    async fn store(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        progress: &Progress,
    ) -> Result<Put, BlobError> {
        let guard = Arc::clone(&self.writer).lock_owned().await;
        if guard
            .as_ref()
            .is_some_and(|writer| writer.has(&blob.digest))
        {
            return Ok(Put::Existed);
        }
        let reader = source.open(blob, 0).await?;
        let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
        let content = Chunks {
            chunks,
            rest: Bytes::new(),
        };
        let added = blob.clone();
        let writing = blocking(guard, move |writer| writer.add_blob(&added, content));
        // What the source has to say is why the archive lacks bytes.
        let (read, written) = tokio::join!(pump(reader, sender, blob, progress), writing);
        read?;
        written.map(|_| Put::Sent)
    }
}

impl Drop for ArchiveSink {
    fn drop(&mut self) {
        if !self.done {
            // Its name says that it may be deleted.
            drop(fs::remove_file(&self.partial));
        }
    }
}

impl BlobSink for ArchiveSink {
    fn put<'a>(
        &'a self,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(self.store(blob, source, progress))
    }

    fn put_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: &'a [u8],
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        let (descriptor, bytes) = (descriptor.clone(), bytes.to_vec());
        let added = self.with(move |writer| writer.add_manifest(&descriptor, &bytes));
        Box::pin(async move { added.await.map(|_| Put::Sent) })
    }
}

async fn blocking<T: Send + 'static>(
    mut guard: OwnedMutexGuard<Option<Writer>>,
    work: impl FnOnce(&mut Writer) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, BlobError> {
    let failed = |source: io::Error| BlobError::Io {
        action: "cannot write the archive".to_owned(),
        source,
    };
    let task = tokio::task::spawn_blocking(move || match guard.as_mut() {
        Some(writer) => work(writer).map_err(io::Error::other),
        None => Err(io::Error::other("it is finished")),
    });
    task.await
        .map_err(|error| failed(io::Error::other(error)))?
        .map_err(failed)
}

/// Chunks from a channel, as a blocking reader.
struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.advance(count);
        Ok(count)
    }
}

/// An archive to copy from.
#[derive(Debug)]
pub struct ArchiveSource {
    archive: Archive,
    /// Manifests that had to be made, and layers that the archive itself names no digest for.
    documents: HashMap<Digest, InMemory>,
    layers: HashMap<Digest, ArchivedLayer>,
    roots: Vec<Descriptor>,
}

impl ArchiveSource {
    /// Opens an archive, unpacked into a folder for temporary files first where it is compressed; images of
    /// docker's older form get the manifest that they lack.
    ///
    /// # Errors
    /// [`CopyError`] when it cannot be read or is damaged.
    pub fn open(path: &Path, temporary: &Path) -> Result<Self, CopyError> {
        let file = File::open(path).map_err(|source| CopyError::File {
            action: "open",
            path: path.to_owned(),
            source,
        })?;
        let mut source = Self {
            archive: archive::open(file, temporary)?,
            documents: HashMap::new(),
            layers: HashMap::new(),
            roots: Vec::new(),
        };
        for image in source.archive.images().to_vec() {
            let root = source.root(&image)?;
            source.roots.push(root);
        }
        Ok(source)
    }

    /// The images with their manifests or indexes, in the archive's order.
    pub fn images(&self) -> impl Iterator<Item = (&ArchivedImage, &Descriptor)> {
        self.archive.images().iter().zip(&self.roots)
    }

    /// The bytes of a manifest or index, verified; `None` where they cannot be had.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Option<Vec<u8>> {
        match self.documents.get(&descriptor.digest) {
            Some(InMemory(bytes)) => Some(bytes.clone()),
            None => self.archive.document(descriptor).ok(),
        }
    }

    fn root(&mut self, image: &ArchivedImage) -> Result<Descriptor, CopyError> {
        match (&image.content, image.root()) {
            (_, Some(root)) => Ok(root),
            (Content::Docker(manifest), None) => self.made(manifest),
            (Content::Oci { root, .. }, None) => Ok((**root).clone()),
        }
    }

    /// Makes the manifest of an image whose layers have no digests yet.
    fn made(&mut self, image: &ArchivedManifest) -> Result<Descriptor, CopyError> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let digest = match layer.digest {
                Some(digest) => digest,
                None => self.hashed(layer)?,
            };
            layers.push(Descriptor::new(&layer.media_type, digest, layer.size));
        }
        let made = Raw::write(image.synthesise(layers)).map_err(|source| CopyError::Document {
            digest: image.config.digest,
            what: "image manifest",
            source,
        })?;
        let kind = made.value.media_type.clone().unwrap_or_default();
        let descriptor = Descriptor::new(kind, made.digest, made.bytes.len() as u64);
        self.documents.insert(made.digest, InMemory(made.bytes));
        let config = InMemory(image.config.bytes.clone());
        self.documents.insert(image.config.digest, config);
        Ok(descriptor)
    }

    fn hashed(&mut self, layer: &ArchivedLayer) -> Result<Digest, CopyError> {
        let mut reader = self.archive.layer(layer)?;
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; BUFFER]);
        loop {
            let count = reader.read(&mut buffer).map_err(|source| BlobError::Io {
                action: format!("cannot read the layer `{}`", layer.member),
                source,
            })?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        let digest = hasher.finish();
        let mut layer = layer.clone();
        layer.digest = Some(digest);
        self.layers.insert(digest, layer);
        Ok(digest)
    }
}

impl BlobSource for ArchiveSource {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        if let Some(document) = self.documents.get(&blob.digest) {
            return document.open(blob, offset);
        }
        let Some(layer) = self.layers.get(&blob.digest) else {
            return self.archive.open(blob, offset);
        };
        Box::pin(async move {
            let unreadable = |source: io::Error| BlobError::Io {
                action: format!("cannot read the layer `{}`", layer.member),
                source,
            };
            let section = self
                .archive
                .layer(layer)
                .map_err(|error| unreadable(io::Error::other(error)))?;
            let mut reader = section.into_async();
            // A section is verified from its start only, and so read from there.
            let mut before = (&mut reader).take(offset);
            tokio::io::copy(&mut before, &mut tokio::io::sink())
                .await
                .map_err(unreadable)?;
            Ok(Box::new(reader) as BlobReader)
        })
    }
}
