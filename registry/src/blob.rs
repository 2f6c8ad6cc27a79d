//! The two ends of every transfer: where blobs come from and where they go.
//!
//! A registry repository, an OCI layout, an archive and kiln's own store implement what they can
//! of [`BlobSource`] and [`BlobSink`]; [`crate::transfer::copy`] moves an image between any two.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::digest::{Digest, Mismatch};
use crate::spec::Descriptor;

/// A boxed future, so that ends can be told apart at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The bytes of a blob.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// Why a blob or manifest could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The source does not have it.
    #[error("{0} not found in {1}")]
    NotFound(Digest, String),
    /// What arrived is not what was announced.
    #[error("{0}")]
    Mismatch(#[from] Mismatch),
    /// The registry or the network said no.
    #[error("{0}")]
    Client(#[from] crate::client::ClientError),
    /// Reading or writing failed.
    #[error("{action}")]
    Io {
        /// What was being done, to what.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// What became of a blob that was put into a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// Its bytes were moved.
    Sent,
    /// The sink had it already.
    Existed,
    /// The registry linked it from another of its repositories.
    Mounted(String),
}

/// A place that blobs can be read from.
pub trait BlobSource: Send + Sync + fmt::Debug {
    /// Opens a blob, or embedded document, for reading from a byte offset.
    ///
    /// Readers of untrusted places (network, archives) fail at the end of the content unless size
    /// and digest match, when read from offset 0; with another offset the caller verifies.
    ///
    /// # Errors
    /// [`BlobError`] when the blob is not there or cannot be opened.
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>>;

    /// Like [`Self::open`], for who verifies size and digest anyway: a source may leave that to them.
    ///
    /// # Errors
    /// As of [`Self::open`].
    fn open_unverified<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        self.open(blob, offset)
    }
}

/// A single blob in memory: every blob that is asked for is this one.
#[derive(Clone, Debug)]
pub struct InMemory(pub Vec<u8>);

impl BlobSource for InMemory {
    fn open<'a>(
        &'a self,
        _: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        self.clone().reader(offset)
    }
}

impl InMemory {
    /// The bytes from an offset on.
    pub(crate) fn reader<'a>(self, offset: u64) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        let mut bytes = std::io::Cursor::new(self.0);
        // Beyond the end there is nothing to read.
        bytes.set_position(offset);
        let reader: BlobReader = Box::new(bytes);
        Box::pin(std::future::ready(Ok(reader)))
    }
}

/// A place that blobs and manifests can be written to.
pub trait BlobSink: Send + Sync + fmt::Debug {
    /// Puts a blob. Nothing is visible in the sink before size and digest were verified. The
    /// source is asked again for each attempt; a blob that is there already is not read at all.
    ///
    /// # Errors
    /// [`BlobError`] of either end.
    fn put<'a>(
        &'a self,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<Put, BlobError>>;

    /// Puts a manifest or index, bytes unchanged, after everything it refers to; under its digest
    /// or, when given, under a tag. [`Put::Existed`] says that it was there already.
    ///
    /// # Errors
    /// [`BlobError`] when the sink refuses it.
    fn put_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: &'a [u8],
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Put, BlobError>>;
}

/// Called with what happens to each blob.
pub type Progress = dyn Fn(&Descriptor, Step) + Send + Sync;

/// What happens to a blob in a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its turn has come.
    Start,
    /// It goes on where an earlier process ended: so many of its bytes are there.
    Resumed(u64),
    /// So many of its bytes are there by now.
    Bytes(u64),
    /// It failed and is tried again, after a wait in milliseconds, for this reason.
    Retry(u64, String),
    /// It is done.
    Done(Put),
}

/// Bytes moved at once.
const CHUNK: usize = 256 * 1024;

/// Moves a blob from its source into a channel, until all of it came or nobody wants more.
pub(crate) async fn pump(
    mut reader: BlobReader,
    sender: mpsc::Sender<Bytes>,
    blob: &Descriptor,
    progress: &Progress,
) -> Result<(), BlobError> {
    let mut moved = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match reader.read_buf(&mut chunk).await {
            Ok(0) => return Ok(()),
            Ok(count) => moved += count as u64,
            Err(error) => return Err(source_error(blob, error)),
        }
        if sender.send(chunk.into()).await.is_err() {
            return Ok(());
        }
        progress(blob, Step::Bytes(moved));
    }
}

/// A failure to read the source; a mismatch that it found stays one.
fn source_error(blob: &Descriptor, error: std::io::Error) -> BlobError {
    let mismatch = error.get_ref().and_then(|source| source.downcast_ref());
    match mismatch.cloned() {
        Some(mismatch) => BlobError::Mismatch(mismatch),
        None => BlobError::Io {
            action: format!("cannot read {}", blob.digest),
            source: error,
        },
    }
}
