//! Caches outside of the store: how builds on different machines share their work (C5).
//!
//! # The format, version 1
//!
//! A cache is an OCI image manifest, under a tag in a registry or under a name in a folder that is an
//! OCI image layout. Its layers are ordinary image layers, each once. Its config, of media type
//! [`CONFIG`], is this document:
//!
//! ```json
//! {
//!   "version": 1,
//!   "layers": [
//!     {"diffId": "sha256:…", "size": 10240, "created": 1764374400, "bytes": 4711, "entries": 12}
//!   ],
//!   "steps": [
//!     {"key": "sha256:…", "reads": "sha256:…", "root": "sha256:…", "layer": 0}
//!   ]
//! }
//! ```
//!
//! `layers` are those of the manifest, in its order: digest and size of the plain tar, when it was
//! made (the same image comes out wherever it is built from the cache), and what `SIZE` shows. `steps`
//! are remembered results, those that were used last first: `key` is the definition key
//! ([`crate::cache`]), `layer` an index. With `type=inline` the same document stands in the config of
//! the image, as the member [`INLINE`], and its layers are among the image's.
//!
//! # What a key means on another machine
//!
//! A definition key is made of operations, digests of base images' layers and of contents of files:
//! nothing of the machine is in it, so it names the same step everywhere. A content key names
//! snapshots, which only one store has. So what is written of it is what it consists of: `reads` is
//! the digest of the operation and of the content of all that it reads besides its root
//! ([`crate::cache::reads_key`]), `root` the chain id of the layers below, none for a step that stands
//! on nothing. A step that is run again elsewhere and gives the same bytes so stops the invalidation
//! there, too (A15.5). A chain id needs the digests of all layers below; they are computed only where
//! a cache knows a step that reads the same.
//!
//! # Trust
//!
//! Who may write a cache decides what is in the images that are built from it, as with every cache.
//! Apart from that nothing in it is believed: documents have a limit, a blob is what its digest says,
//! its content what the digest of the tar says before anything uses it, and an entry of which
//! something of that is not so is a miss. A cache that cannot be read is a warning. Neither names nor
//! commands are in it, and of secrets nothing, not even by way of a key (A15.2).
//!
//! # The parts
//!
//! [`options`] reads the command line, [`Place`] is where a cache is, [`Contents`] what it says,
//! [`Imports`] finds steps and fetches layers, [`Exporter`] compresses and sends layers while later
//! steps run.

mod document;
mod export;
mod import;
pub mod options;
mod pack;
mod place;
mod prune;

use kiln_registry::blob::BlobError;
use kiln_registry::client::{ClientError, is_library_error};
use kiln_registry::layout::LayoutError;

use crate::layer::PackError;
use crate::snapshot::SnapshotError;
use crate::store::StoreError;

pub use document::{CONFIG, Content, Contents, INLINE, Layer, LayerFacts, Step};
pub use export::{Entry, Exporter, Failed, Made, Summary, inline};
pub use import::{Found, Imports};
pub use place::Place;
pub(in crate::cache) use prune::prune;

/// Why a cache, or an entry of one, is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// There is none.
    #[error("not found")]
    Missing,
    /// A registry refused.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// Bytes could not be moved.
    #[error("{0}")]
    Blob(#[from] BlobError),
    /// A folder is no layout, or cannot be read or written.
    #[error("{0}")]
    Layout(#[from] LayoutError),
    /// A document is not what it should be.
    #[error("its document cannot be understood")]
    Json(#[source] serde_json::Error),
    /// A document is too large.
    #[error("its document is larger than {0} bytes")]
    TooLarge(u64),
    /// A cache of a later kiln.
    #[error("it has version {0}, and this kiln reads version 1")]
    Version(u32),
    /// A cache that another tool wrote.
    #[error(
        "it is a cache of BuildKit, which kiln cannot read: export one with kiln under another name"
    )]
    BuildKit,
    /// An image, or something else.
    #[error("it holds no cache of kiln's (an image has one with --cache-to type=inline)")]
    NoCache,
    /// A document that contradicts itself.
    #[error("it is damaged: {0}")]
    Wrong(&'static str),
    /// A layer is not what the cache says.
    #[error("its layer is not what the cache says")]
    Layer,
    /// A layer could not be compressed.
    #[error("{0}")]
    Pack(#[from] PackError),
    /// A layer could not be unpacked.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A thread of kiln died; a bug.
    #[error("a worker thread ended without a result")]
    Thread,
}

impl RemoteError {
    /// The error with its causes, on one line.
    #[must_use]
    pub fn line(&self) -> String {
        chain(self)
    }
}

/// An error with its causes, on one line.
pub(in crate::cache) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(mut error) = cause {
        // Of the HTTP library's many causes only the last says something.
        while let Some(deeper) = error.source().filter(|_| is_library_error(error)) {
            error = deeper;
        }
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Runs work that blocks on a thread for such work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| RemoteError::Thread)?
}
