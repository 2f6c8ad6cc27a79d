//! Images in one tar file: docker archives and OCI archives (D10.1-D10.4).
//!
//! [`ArchiveWriter`] writes one file that is both, as docker does since version 25. [`Archive`]
//! reads either kind, whoever wrote it, from a file that can be read at any offset; [`spool()`] and
//! [`open`] make one of a pipe or of a compressed file. An archive is untrusted: its members are
//! indexed once, within limits, and every byte handed out later is verified where a digest for it
//! is announced.

mod docker;
mod member;
mod oci;
mod read;
mod spool;
#[cfg(test)]
mod tests;
mod write;

use crate::digest::{Digest, DigestError, Mismatch};
use crate::reference::ReferenceError;
use crate::spec::{DiffId, Platform};

pub use read::{Archive, ArchivedImage, ArchivedLayer, ArchivedManifest, Content};
pub use spool::{open, spool};
pub use write::ArchiveWriter;

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading or writing failed.
    #[error("{action}")]
    Io {
        /// What was being done, to what.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// There is no room for the archive's content where it is unpacked to.
    #[error("no space left in `{directory}` after {written} bytes of the archive")]
    NoSpace {
        /// Where it was written.
        directory: String,
        /// Bytes written until then.
        written: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no archive.
    #[error("the archive is empty")]
    Empty,
    /// It is compressed, or its compressed content is damaged.
    #[error("cannot decompress the archive as {format}")]
    Decompress {
        /// The format it announces.
        format: &'static str,
        /// What is wrong.
        source: std::io::Error,
    },
    /// It is no tar file.
    #[error("not a tar archive")]
    NotTar,
    /// It is damaged, or of a form that is not accepted.
    #[error("invalid archive: {reason} at offset {offset}")]
    Corrupt {
        /// What is wrong.
        reason: &'static str,
        /// Where, bytes from its start.
        offset: u64,
    },
    /// It ends too early.
    #[error("invalid archive: it ends inside `{member}`, at {actual} of {expected} bytes")]
    Truncated {
        /// The member it ends in.
        member: String,
        /// Bytes that it should have at least.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// It has more of something than is accepted.
    #[error("invalid archive: {what} beyond the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is accepted.
        limit: u64,
    },
    /// A member's name, or a link, leads out of it.
    #[error("invalid archive: {what} `{name}` leads out of the archive")]
    UnsafePath {
        /// What leads out: a member or a link.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Two members have the same name.
    #[error("invalid archive: `{0}` appears twice")]
    Duplicate(String),
    /// Links lead in a circle.
    #[error("invalid archive: `{0}` is a link that never ends")]
    LinkLoop(String),
    /// It is neither a docker archive nor an OCI archive.
    #[error("invalid archive: does not contain a manifest.json or an index.json")]
    NoManifest,
    /// It has no image.
    #[error("invalid archive: it contains no image")]
    NoImages,
    /// A member that another one names is not there.
    #[error("invalid archive: `{member}`, which `{wanted_by}` names, is missing")]
    MissingMember {
        /// What is missing.
        member: String,
        /// What names it.
        wanted_by: String,
    },
    /// A document cannot be understood.
    #[error("invalid archive: cannot read `{member}`")]
    Document {
        /// The document.
        member: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Something is not of the digest or size that is announced for it.
    #[error("invalid archive: `{member}` is not what it is announced to be")]
    Mismatch {
        /// The member.
        member: String,
        /// How it differs.
        source: Mismatch,
    },
    /// A layer is not the one that the image config names.
    #[error("invalid diffID for layer {layer}: expected {expected}, got {actual}")]
    DiffId {
        /// The layer's number, from 0.
        layer: usize,
        /// What the config names.
        expected: DiffId,
        /// What lies in the archive.
        actual: Digest,
    },
    /// An image has not as many layers as its config says.
    #[error("invalid archive: `{image}` has {layers} layers, its config names {diff_ids}")]
    LayerCount {
        /// The image's name or digest.
        image: String,
        /// Layers listed.
        layers: usize,
        /// Layers that the config names.
        diff_ids: usize,
    },
    /// A layer is compressed in a way that layers are not.
    #[error("layer `{member}` is compressed with {format}, which is not supported")]
    LayerCompression {
        /// The layer.
        member: String,
        /// The format.
        format: &'static str,
    },
    /// An image has a name that is none.
    #[error("invalid archive: invalid image name `{name}`")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        source: ReferenceError,
    },
    /// A file named after its digest has no such name.
    #[error("invalid archive: `{member}` is not named after a digest")]
    Digest {
        /// The member.
        member: String,
        /// What is wrong.
        source: DigestError,
    },
    /// A blob of an image is not in the archive.
    #[error("the archive lacks {digest}, {what} of `{image}`")]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// What it is.
        what: String,
        /// The image that needs it.
        image: String,
    },
    /// An image is not there for the platform that is wanted.
    #[error("`{image}` has nothing for {wanted}; it has {}", list(.available))]
    NoPlatform {
        /// The image's name or digest.
        image: String,
        /// What is wanted.
        wanted: Box<Platform>,
        /// What there is.
        available: Vec<Platform>,
    },
    /// It is no image that can be run, but something else in the form of one.
    #[error("`{image}` is no image: its config is of type `{media_type}`")]
    NotAnImage {
        /// The name or digest.
        image: String,
        /// The media type of its config.
        media_type: String,
    },
}

impl ArchiveError {
    fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none".to_owned();
    }
    let texts: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
