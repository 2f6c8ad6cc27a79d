//! Blobs: files named by their digest.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use kiln_registry::blob::{BlobError, BlobReader, BlobSink, BlobSource, BoxFuture, Progress, Put};
use kiln_registry::digest::{Digest, Hasher, Verifier};
use kiln_registry::spec::Descriptor;
use tokio::io::AsyncSeekExt as _;

use super::{Store, StoreError, TempDir};
use crate::sys::writeback;

/// Bytes read at once when a blob is copied.
pub(super) const CHUNK: usize = 256 * 1024;

/// Bytes after which the kernel is asked to write them to disk.
pub(super) const AT_ONCE: u64 = 8 << 20;

/// A blob being written; it gets its name with [`BlobWriter::commit`].
#[derive(Debug)]
pub struct BlobWriter {
    file: File,
    path: PathBuf,
    name: Name,
    size: u64,
    /// What the kernel was asked to write to disk.
    begun: u64,
    _folder: TempDir,
}

/// Where a blob has its digest from.
#[derive(Debug)]
enum Name {
    Taken(Hasher),
    Known(Digest),
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        if let Name::Taken(hasher) = &mut self.name {
            hasher.update(&bytes[..count]);
        }
        self.size += count as u64;
        if self.size - self.begun >= AT_ONCE {
            writeback::begin(&self.file, self.begun, self.size - self.begun);
            self.begun = self.size;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The largest blob that is read as a manifest, bytes; registries have the same limit (D7.3).
const MANIFEST: u64 = 4 << 20;

/// Reads blobs of a store, which it does not hold open.
#[derive(Clone, Debug)]
pub struct Blobs(PathBuf);

impl Blobs {
    /// The bytes of a blob that may be a manifest, not verified; `None` when it is not here, or
    /// larger than a manifest may be.
    #[must_use]
    pub fn small(&self, digest: &Digest) -> Option<Vec<u8>> {
        let file = File::open(self.0.join(digest.hex())).ok()?;
        let small = file.metadata().is_ok_and(|found| found.len() <= MANIFEST);
        let mut bytes = Vec::new();
        let mut file = Some(file).filter(|_| small)?.take(MANIFEST);
        file.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl Store {
    /// Its blobs, for reading.
    #[must_use]
    pub fn blobs(&self) -> Blobs {
        Blobs(self.root.join("blobs/sha256"))
    }

    /// Path of a blob, whether it is there or not.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob is there.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing {
                what: digest.to_string(),
                path: self.root.clone(),
            },
            _ => StoreError::io("opening the blob", &path)(error),
        })
    }

    /// Reads a small blob whole and checks its digest.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is not there, [`StoreError::Damaged`] when it is not what
    /// its name says.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut self.open_blob(digest)?, &mut bytes)
            .map_err(StoreError::io("reading the blob", &self.blob_path(digest)))?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            // It can come anew only when it is not there.
            drop(fs::remove_file(self.blob_path(digest)));
            let detail = format!("its bytes have the digest {actual}");
            return Err(StoreError::Damaged {
                what: format!("blob {digest}"),
                detail,
            });
        }
        Ok(bytes)
    }

    /// Removes a blob whose bytes are not those of its name, and says whether it did.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn remove_if_altered(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.blob_path(digest);
        let mut reader = self.open_blob(digest)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            match io::Read::read(&mut reader, &mut buffer)
                .map_err(StoreError::io("reading the blob", &path))?
            {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        let altered = hasher.finish() != *digest;
        if altered {
            fs::remove_file(&path).map_err(StoreError::io("removing", &path))?;
        }
        Ok(altered)
    }

    /// Stores a small blob and returns its digest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest) {
            let mut writer = self.new_blob()?;
            let path = writer.path.clone();
            writer
                .write_all(bytes)
                .map_err(StoreError::io("writing", &path))?;
            writer.commit(self)?;
        }
        Ok(digest)
    }

    /// Starts a blob whose digest is computed while it is written.
    ///
    /// # Errors
    /// When no temporary file can be made.
    pub fn new_blob(&self) -> Result<BlobWriter, StoreError> {
        self.new_named_blob(Name::Taken(Hasher::new()))
    }

    /// Starts a blob of this digest, of whose bytes the caller makes sure that they have it.
    ///
    /// # Errors
    /// When no temporary file can be made.
    pub fn new_verified_blob(&self, digest: Digest) -> Result<BlobWriter, StoreError> {
        self.new_named_blob(Name::Known(digest))
    }

    fn new_named_blob(&self, name: Name) -> Result<BlobWriter, StoreError> {
        let folder = self.temporary()?;
        let path = folder.path().join("blob");
        let file = File::create(&path).map_err(StoreError::io("making", &path))?;
        Ok(BlobWriter {
            file,
            path,
            name,
            size: 0,
            begun: 0,
            _folder: folder,
        })
    }
}

impl BlobWriter {
    /// Where it is written.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Digest of what was written so far, or of all where that is known.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.name {
            Name::Taken(hasher) => hasher.clone().finish(),
            Name::Known(digest) => *digest,
        }
    }

    /// Gives the blob its name, after it is surely on disk; returns its digest and size.
    ///
    /// # Errors
    /// When it cannot be synced or renamed.
    pub fn commit(self, store: &Store) -> Result<(Digest, u64), StoreError> {
        let digest = self.digest();
        let size = self.size;
        self.publish(&store.blob_path(&digest))?;
        Ok((digest, size))
    }

    fn publish(self, target: &Path) -> Result<(), StoreError> {
        self.file
            .sync_data()
            .map_err(StoreError::io("syncing", &self.path))?;
        fs::rename(&self.path, target).map_err(StoreError::io("naming the blob", target))
    }
}

pub(super) fn io_error(action: String) -> impl FnOnce(io::Error) -> BlobError {
    move |source| BlobError::Io { action, source }
}

/// A store's error as an end of a transfer reports it.
pub(super) fn blob_error(error: StoreError) -> BlobError {
    match error {
        StoreError::Io {
            action,
            path,
            source,
        } => BlobError::Io {
            action: format!("{action} `{}`", path.display()),
            source,
        },
        StoreError::Mismatch(mismatch) => BlobError::Mismatch(mismatch),
        other => BlobError::Io {
            action: "using the store".to_owned(),
            source: io::Error::other(other),
        },
    }
}

impl BlobSource for Store {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        Box::pin(async move {
            let path = self.blob_path(&blob.digest);
            let mut file =
                tokio::fs::File::open(&path)
                    .await
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::NotFound => {
                            BlobError::NotFound(blob.digest, self.root.display().to_string())
                        }
                        _ => io_error(format!("opening the blob `{}`", path.display()))(error),
                    })?;
            file.seek(io::SeekFrom::Start(offset))
                .await
                .map_err(io_error(format!("reading the blob `{}`", path.display())))?;
            file.set_max_buf_size(CHUNK);
            Ok(Box::new(file) as BlobReader)
        })
    }
}

impl BlobSink for Store {
    fn put<'a>(
        &'a self,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(self.receive(blob, source, progress))
    }

    fn put_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: &'a [u8],
        _tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        // Tags of the store are names in its database, given when the whole image is there.
        Box::pin(async move {
            let mut verifier = Verifier::new(descriptor.digest, descriptor.size);
            verifier.update(bytes)?;
            verifier.finish()?;
            if self.has_blob(&descriptor.digest) {
                return Ok(Put::Existed);
            }
            self.write_blob(bytes).map_err(blob_error)?;
            Ok(Put::Sent)
        })
    }
}
