//! What an image is made of: its manifests and indexes, read and checked before anything moves.

use std::collections::HashSet;

use tokio::io::AsyncReadExt as _;

use super::CopyError;
use crate::blob::{BlobError, BlobSource, BoxFuture};
use crate::digest::{Digest, Verifier};
use crate::spec::media_type::{is_index, is_manifest};
use crate::spec::platform::choose;
use crate::spec::{Descriptor, Index, Manifest, Platform, Raw};

/// The largest manifest or index, bytes; registries use the same limit (D7.3).
const DOCUMENT: u64 = 4 << 20;

/// The most bytes of all documents of one image.
const DOCUMENTS: u64 = 64 << 20;

/// The most documents of one image.
const COUNT: usize = 10_000;

/// Indexes in indexes, at most.
const DEPTH: usize = 4;

/// One part of an image that is moved as a whole.
#[derive(Debug)]
pub(super) enum Node {
    /// A manifest, with the blobs that it names.
    Manifest(Box<Raw<Manifest>>, Descriptor),
    /// An index, after everything that it lists.
    Index(Vec<u8>, Descriptor),
    /// What an index lists besides manifests; build caches do.
    Blob(Descriptor),
}

impl Node {
    pub(super) fn descriptor(&self) -> &Descriptor {
        match self {
            Self::Manifest(_, descriptor) | Self::Index(_, descriptor) | Self::Blob(descriptor) => {
                descriptor
            }
        }
    }
}

/// The parts of an image, children before parents, each once.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    seen: HashSet<Digest>,
    spent: u64,
}

impl Tree {
    /// Reads all documents of an image. Its own is handed over where it is known already.
    pub(super) async fn read(
        source: &dyn BlobSource,
        root: &Descriptor,
        bytes: Option<Vec<u8>>,
    ) -> Result<Self, CopyError> {
        let mut tree = Self::default();
        tree.add(source, root, bytes, DEPTH).await?;
        Ok(tree)
    }

    fn add<'a>(
        &'a mut self,
        source: &'a dyn BlobSource,
        descriptor: &'a Descriptor,
        bytes: Option<Vec<u8>>,
        depth: usize,
    ) -> BoxFuture<'a, Result<(), CopyError>> {
        Box::pin(async move {
            if !self.seen.insert(descriptor.digest) {
                return Ok(());
            }
            let (index, manifest) = kinds(descriptor);
            if !index && !manifest {
                self.nodes.push(Node::Blob(descriptor.clone()));
                return Ok(());
            }
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => document(source, descriptor).await?,
            };
            self.spent += bytes.len() as u64;
            if self.seen.len() > COUNT || self.spent > DOCUMENTS {
                return Err(CopyError::TooMuch {
                    digest: descriptor.digest,
                });
            }
            if manifest {
                let manifest = Box::new(parse(bytes, descriptor, "image manifest")?);
                self.nodes
                    .push(Node::Manifest(manifest, descriptor.clone()));
                return Ok(());
            }
            let index: Raw<Index> = parse(bytes, descriptor, "image index")?;
            if depth == 0 {
                return Err(CopyError::TooMuch {
                    digest: descriptor.digest,
                });
            }
            for child in &index.value.manifests {
                self.add(source, child, None, depth - 1).await?;
            }
            self.nodes
                .push(Node::Index(index.bytes, descriptor.clone()));
            Ok(())
        })
    }
}

/// Whether something is an index, and whether it is a manifest.
fn kinds(descriptor: &Descriptor) -> (bool, bool) {
    let kind = &descriptor.media_type;
    (is_index(kind), is_manifest(kind))
}

/// The manifest for a platform, found through indexes; a lone manifest is for every platform.
pub(super) async fn pick(
    source: &dyn BlobSource,
    root: &Descriptor,
    bytes: Option<Vec<u8>>,
    wanted: &Platform,
    name: &str,
) -> Result<(Descriptor, Option<Vec<u8>>), CopyError> {
    let (mut at, mut bytes) = (root.clone(), bytes);
    for _ in 0..DEPTH {
        if !is_index(&at.media_type) {
            return Ok((at, bytes));
        }
        let text = match bytes.take() {
            Some(bytes) => bytes,
            None => document(source, &at).await?,
        };
        let index: Raw<Index> = parse(text, &at, "image index")?;
        let Some(chosen) = choose(wanted, &index.value) else {
            return Err(CopyError::NoPlatform {
                image: name.to_owned(),
                wanted: Box::new(wanted.clone()),
            });
        };
        at = chosen.clone();
    }
    Err(CopyError::TooMuch {
        digest: root.digest,
    })
}

/// The bytes of a manifest or index, verified.
pub(super) async fn document(
    source: &dyn BlobSource,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, CopyError> {
    let digest = descriptor.digest;
    if descriptor.size > DOCUMENT {
        return Err(CopyError::TooLarge {
            digest,
            limit: DOCUMENT,
        });
    }
    let mut bytes = Vec::new();
    let reader = source.open(descriptor, 0).await?;
    let mut reader = reader.take(descriptor.size + 1);
    let read = reader.read_to_end(&mut bytes).await;
    read.map_err(|source| BlobError::Io {
        action: format!("cannot read {digest}"),
        source,
    })?;
    let mut verifier = Verifier::new(digest, descriptor.size);
    let verified = verifier.update(&bytes).and_then(|()| verifier.finish());
    verified.map_err(BlobError::from)?;
    Ok(bytes)
}

fn parse<T: serde::de::DeserializeOwned>(
    bytes: Vec<u8>,
    descriptor: &Descriptor,
    what: &'static str,
) -> Result<Raw<T>, CopyError> {
    Raw::parse(bytes).map_err(|source| CopyError::Document {
        digest: descriptor.digest,
        what,
        source,
    })
}
