//! Copies images between registries, layouts and archives, past any store (D9.3).
//!
//! [`Place`] is what a user writes, [`Source`] and [`Sink`] are opened places, [`copy`] moves images
//! from one to the other: as they are, with all their platforms and all their digests. Nothing is
//! held in memory but documents; blobs stream, and are verified on their way.

mod archive;
mod place;
mod sink;
mod source;
mod tree;

use std::collections::HashSet;
use std::path::PathBuf;

pub use archive::{ArchiveSink, ArchiveSource};
pub use place::{Place, PlaceError};
pub use sink::Sink;
pub use source::{Image, Source};

use crate::archive::ArchiveError;
use crate::blob::{BlobError, BoxFuture, Progress};
use crate::client::ClientError;
use crate::digest::Digest;
use crate::layout::LayoutError;
use crate::spec::{Descriptor, Platform};
use crate::transfer;
use tree::{Node, Tree};

/// Referrers of referrers, at most.
const DEPTH: usize = 4;

/// Why images could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A registry or the network said no.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// A blob or manifest could not be moved.
    #[error("{0}")]
    Blob(#[from] BlobError),
    /// A layout cannot be read or written.
    #[error("{0}")]
    Layout(#[from] LayoutError),
    /// An archive cannot be read or written.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A document cannot be understood.
    #[error("{digest} is no valid {what}")]
    Document {
        /// The document.
        digest: Digest,
        /// What was expected.
        what: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A document is too large.
    #[error("the manifest {digest} is larger than {limit} bytes")]
    TooLarge {
        /// The document.
        digest: Digest,
        /// The limit, bytes.
        limit: u64,
    },
    /// An index holds too much, or too deeply.
    #[error(
        "{digest} goes beyond the limits for one image: 10000 manifests of 64 MiB, indexes in 4 levels"
    )]
    TooMuch {
        /// Where the limit was reached.
        digest: Digest,
    },
    /// It is nothing that can be copied.
    #[error("`{name}` cannot be copied: unsupported media type `{media_type}`")]
    Unsupported {
        /// What it is called.
        name: String,
        /// What it is.
        media_type: String,
    },
    /// There is no image for a platform.
    #[error("`{image}` has no image for `{wanted}`")]
    NoPlatform {
        /// The image.
        image: String,
        /// The platform asked for.
        wanted: Box<Platform>,
    },
    /// The source has not the image that is named, or none is named of several.
    #[error("`{place}` {problem}; it has {available}")]
    NoImage {
        /// The source.
        place: String,
        /// What is wrong.
        problem: String,
        /// What it has, for people.
        available: String,
    },
    /// A name cannot be a tag of a registry.
    #[error("`{0}` is no tag that a registry could have")]
    NoTag(String),
    /// What is copied is not what the destination's digest says.
    #[error("the destination is to be {expected}, but {actual} is copied")]
    Digest {
        /// The destination's digest.
        expected: Digest,
        /// The image's.
        actual: Digest,
    },
    /// A destination for all tags names one.
    #[error("with all tags, neither source nor destination may name one: `{0}`")]
    OneOfAll(String),
    /// A thread died.
    #[error("a thread of the copy ended early")]
    Thread(#[source] tokio::task::JoinError),
}

impl CopyError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Client(error) | Self::Blob(BlobError::Client(error)) => return error.hint(),
            Self::Blob(BlobError::NotFound(..)) => {
                "parts of the image are missing there; one platform that is whole can be copied with --platform"
            }
            Self::NoPlatform { .. } => "`kiln manifest inspect` shows the platforms there are",
            Self::NoTag(_) => "name the tag in the destination",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// What is copied, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only the image for this platform; all of them without.
    pub platform: Option<Platform>,
    /// All tags of the source.
    pub all_tags: bool,
    /// What refers to the images, too: signatures, attestations (D8.2).
    pub referrers: bool,
    /// Blobs moved at once.
    pub jobs: usize,
}

/// An image that was copied.
#[derive(Clone, Debug, PartialEq)]
pub struct Copied {
    /// Its name in the destination; none when only its digest names it.
    pub name: Option<String>,
    /// Its manifest or index.
    pub descriptor: Descriptor,
    /// How many manifests that refer to it came along.
    pub referrers: usize,
}

/// Copies what the source names, tells `progress` about every blob, and `done` about every image
/// when it is there.
///
/// # Errors
/// [`CopyError`]. What was copied before stays; no tag names an image that is not whole.
pub async fn copy(
    source: &Source,
    sink: &Sink,
    options: &Options,
    progress: &Progress,
    mut done: impl FnMut(Copied) + Send,
) -> Result<(), CopyError> {
    if options.all_tags && sink.is_named() {
        return Err(CopyError::OneOfAll(sink.to_string()));
    }
    for image in source.images(options.all_tags).await? {
        let mut image = image;
        if let Some(wanted) = &options.platform {
            let (root, bytes) = (&image.descriptor, image.bytes.take());
            let picked =
                tree::pick(source.blobs(), root, bytes, wanted, &source.to_string()).await?;
            (image.descriptor, image.bytes) = picked;
        }
        let name = sink.name_for(&image)?;
        let task = Task {
            source,
            sink,
            options,
            progress,
        };
        let mut seen = HashSet::new();
        let root = image.descriptor.clone();
        let referrers = task
            .image(&root, image.bytes, name.as_deref(), &mut seen, DEPTH)
            .await?;
        done(Copied {
            name,
            descriptor: root,
            referrers,
        });
    }
    Ok(())
}

/// What the parts of a copy share.
struct Task<'a> {
    source: &'a Source,
    sink: &'a Sink,
    options: &'a Options,
    progress: &'a Progress,
}

impl Task<'_> {
    /// Copies one image and, where that is wanted, what refers to it; gives the number of these.
    fn image<'a>(
        &'a self,
        root: &'a Descriptor,
        bytes: Option<Vec<u8>>,
        name: Option<&'a str>,
        seen: &'a mut HashSet<Digest>,
        depth: usize,
    ) -> BoxFuture<'a, Result<usize, CopyError>> {
        Box::pin(async move {
            check(root, &self.source.to_string())?;
            seen.insert(root.digest);
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => tree::document(self.source.blobs(), root).await?,
            };
            // What is there whole has all its parts, by the registry's own rules.
            let there = self.sink.holds(root).await?;
            if there && !self.options.referrers {
                self.sink.publish(root, &bytes, name).await?;
                return Ok(0);
            }
            let tree = Tree::read(self.source.blobs(), root, Some(bytes.clone())).await?;
            let tag = self.sink.tag(name);
            if !there {
                for node in &tree.nodes {
                    let is_root = node.descriptor().digest == root.digest;
                    self.node(node, tag.filter(|_| is_root)).await?;
                }
            }
            if there || tag.is_none() {
                self.sink.publish(root, &bytes, name).await?;
            }
            self.referrers(&tree, seen, depth).await
        })
    }

    async fn node(&self, node: &Node, tag: Option<&str>) -> Result<(), CopyError> {
        let (source, sink) = (self.source.blobs(), self.sink.blobs());
        match node {
            Node::Manifest(manifest, descriptor) => {
                if tag.is_none() && self.sink.holds(descriptor).await? {
                    return Ok(());
                }
                let value = &manifest.value;
                for blob in value.layers.iter().chain([&value.config]) {
                    self.source.remember(blob.digest);
                }
                let jobs = self.options.jobs;
                transfer::copy(manifest, descriptor, source, sink, tag, jobs, self.progress)
                    .await?;
            }
            Node::Index(bytes, descriptor) => {
                sink.put_manifest(descriptor, bytes, tag).await?;
            }
            Node::Blob(blob) => {
                self.source.remember(blob.digest);
                sink.put(blob, source, self.progress).await?;
            }
        }
        Ok(())
    }

    async fn referrers(
        &self,
        tree: &Tree,
        seen: &mut HashSet<Digest>,
        depth: usize,
    ) -> Result<usize, CopyError> {
        if !self.options.referrers || depth == 0 {
            return Ok(0);
        }
        let mut count = 0;
        for node in &tree.nodes {
            if matches!(node, Node::Blob(_)) {
                continue;
            }
            for referrer in self.source.referrers(node.descriptor().digest).await? {
                if seen.contains(&referrer.digest) {
                    continue;
                }
                count += 1 + self.image(&referrer, None, None, seen, depth - 1).await?;
            }
        }
        Ok(count)
    }
}

/// Refuses what is neither a manifest nor an index.
fn check(root: &Descriptor, name: &str) -> Result<(), CopyError> {
    use crate::spec::media_type::{is_index, is_manifest};
    let kind = &root.media_type;
    if is_index(kind) || is_manifest(kind) {
        return Ok(());
    }
    if kind.contains("docker.distribution.manifest.v1+") {
        let reference = name.to_owned();
        return Err(ClientError::Schema1 { reference }.into());
    }
    Err(CopyError::Unsupported {
        name: name.to_owned(),
        media_type: kind.chars().filter(|c| !c.is_control()).take(100).collect(),
    })
}
