//! The build cache: when a step need not run again.
//!
//! # What is in a key
//!
//! A vertex has two keys, and either one finds its remembered result (a snapshot: the layer it
//! made). The *definition key* is known before anything runs, but for one case below; the *content
//! key* needs the results of the inputs.
//!
//! | vertex | definition key | content key |
//! |---|---|---|
//! | image | diff ids of its layers | the same |
//! | `RUN` | arguments, environment (`ENV` and visible `ARG`s), directory, user, network, `--security`, mounts; key of the root, and of all that mounts show | the same with the identity of the root's layers, and the content of what binds show |
//! | `COPY`, `ADD` | destination, `--chown`, `--chmod` and the other flags, names and content of heredocs; key of the root; content of the selected context files, or the keys of the stages copied from | the same with the identity of the root's layers and the content of all selected files |
//! | `WORKDIR` | path, user; key of the root | with the identity of the root's layers |
//! | `ADD URL` | digest of the body: it is fetched first, then copied | |
//! | git repository | address without credentials, commit, folder, whether `.git` and submodules are there: the commit is asked for first, its files then remembered | |
//!
//! `COPY --link` stands on nothing: the root is in neither of its keys, unless `--chown` names users
//! of it (A11.9).
//!
//! Content of files means: path relative to the selection, type, mode, owner (0:0 for context
//! files), bytes, link target, device numbers and extended attributes (A15.1).
//!
//! Of a mount its type, target and options count (A15.2), and of a bind the files that it shows: not
//! what lies beside them, nor where they lie. A whole stage or image is known by its layers.
//!
//! # What is not, and why
//!
//! - What is in secrets, cache mounts and agents, the id of a cache mount and how it is shared: a
//!   step may use them, but must not depend on them (A15.2).
//! - Times of files: a fresh checkout has others and the same content (A15.1).
//! - Absolute paths of the host: another checkout is the same context.
//! - Values of proxy variables that no `ARG` declares, and the host's certificates: they are the
//!   machine's, not the image's (A6.9).
//! - Names of images and tags: what was resolved counts, not how it was called (A15.4).
//! - Metadata instructions: `ENV` counts where a `RUN` sees it, `LABEL` and `CMD` nowhere (A15.7).
//!
//! # When the content is not read first
//!
//! The digest of files that nobody has read yet is only needed where a layer may be there for it. Of
//! every layer that a `COPY` made the store knows what its files look like: names, types, modes, sizes.
//! Where it has none like those that are selected now, they are copied at once, and their digest is
//! taken while they are: each byte is read once. The keys of the copy and of all that depends on it are
//! made afterwards, and until then stand-ins tell that they are none that were there before. Where
//! caches beyond the store are asked, a miss is an error, or nearly all is known, files are read first.
//!
//! # Early cut-off
//!
//! The content key names the *results* of the inputs, not how they came about. A `COPY` that is
//! executed again because its stage was rebuilt, and selects the same bytes as before, finds its
//! old layer by its content key; what stands on it sees the same identity and is not run again
//! (A15.5).
//!
//! So it is with any step that is executed again: where its layer holds the same as that of its
//! counterpart in the build before, but for times, the former layer is its result. That costs a look
//! at two numbers (entries and bytes of both layers); files are read only where those are the same.
//!
//! # A layer stands on what it was made upon
//!
//! A definition may be executed twice and leave two results: without the cache, or after the first
//! was evicted. A record therefore says what the results of the inputs were, and a layer is never put
//! upon another result of the same definition; it is looked for by its content then. What a step only
//! reads may be gone; where it is there, it must be the same, too.
//!
//! # Why a step is missed
//!
//! [`explain`] compares what went into the definition key of a step with what went into that of its
//! counterpart in the build before; the store keeps both (`store::builds`).
//!
//! [`remote`] says how that works between machines.

pub mod mounts;
pub mod remote;

pub mod explain;

use std::fmt;

use kiln_registry::digest::{Digest, Hasher};
use kiln_registry::spec::ChainId;

use crate::graph::Vertex;
use crate::snapshot::SnapshotId;

/// Version of the keys; raised when the meaning of a key, or of what it finds, changes.
const VERSION: &str = "kiln cache 1";

/// Names the result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey(Digest);

impl CacheKey {
    /// The key of something that comes from elsewhere and is known by what it is, as a commit.
    #[must_use]
    pub fn of_source(identity: Digest) -> Self {
        Self(identity)
    }

    /// The key as the store keeps it.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One layer of a vertex's result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StackLayer {
    /// A layer of an image, unpacked only when something needs it.
    Image(ChainId),
    /// A layer made by a step.
    Built(SnapshotId),
}

impl StackLayer {
    fn text(&self) -> String {
        match self {
            Self::Image(chain) => format!("image {chain}"),
            Self::Built(snapshot) => format!("built {}", snapshot.name()),
        }
    }
}

/// Tells a result from others in a few characters: which layers it has. A layer that a step made
/// upon one result must not be put upon another.
#[must_use]
pub fn identity(layers: &[StackLayer]) -> String {
    let mut hasher = blake3::Hasher::new();
    for layer in layers {
        hasher.update(layer.text().as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize().to_hex().chars().take(20).collect()
}

/// The definition key of a vertex, from those of its inputs and, where it copies from the build
/// context, the content of what it selects there.
#[must_use]
pub fn definition_key(vertex: &Vertex, inputs: &[CacheKey], context: Option<&Digest>) -> CacheKey {
    let inputs = inputs.iter().map(ToString::to_string);
    key("definition", vertex, inputs, context)
}

/// The content key of a vertex, from the result of its root and the content of what it reads.
#[must_use]
pub fn content_key(vertex: &Vertex, root: &[StackLayer], content: Option<&Digest>) -> CacheKey {
    let layers = root.iter().map(StackLayer::text);
    key("content", vertex, layers, content)
}

/// What a vertex does and reads besides its root: of its content key the part that is the same on every
/// machine, see [`remote`].
#[must_use]
pub fn reads_key(vertex: &Vertex, content: Option<&Digest>) -> Digest {
    key("reads", vertex, std::iter::empty(), content).0
}

/// What a copy does, and what the files look like that it copies; without a `shape` only what it does,
/// for layers whose files nobody has looked at here. While the store has no layer of either, it has no
/// result of the copy.
#[must_use]
pub fn shape_key(vertex: &Vertex, shape: Option<&Digest>) -> Digest {
    key("shape", vertex, std::iter::empty(), shape).0
}

fn key(
    kind: &str,
    vertex: &Vertex,
    parts: impl Iterator<Item = String>,
    content: Option<&Digest>,
) -> CacheKey {
    let mut hasher = Hasher::new();
    let mut line = |text: &str| {
        hasher.update(text.as_bytes());
        hasher.update(b"\n");
    };
    line(VERSION);
    line(kind);
    line(&vertex.digest().to_string());
    for part in parts {
        line(&part);
    }
    line(&content.map_or_else(|| "-".to_owned(), ToString::to_string));
    CacheKey(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{MkdirOp, Op};

    fn vertex(path: &str) -> Vertex {
        let op = Op::Mkdir(MkdirOp {
            path: path.to_owned(),
            user: String::new(),
        });
        Vertex {
            op,
            inputs: Vec::new(),
            name: "any".to_owned(),
            origin: None,
        }
    }

    #[test]
    fn keys_differ_by_what_is_in_them_and_by_nothing_else() {
        let a = vertex("/a");
        let renamed = Vertex {
            name: "other".to_owned(),
            ..a.clone()
        };
        let input = definition_key(&vertex("/in"), &[], None);
        let content = Digest::of(b"content");
        let key = definition_key(&a, &[input], Some(&content));
        assert_eq!(key, definition_key(&renamed, &[input], Some(&content)));
        assert_ne!(key, definition_key(&vertex("/b"), &[input], Some(&content)));
        assert_ne!(key, definition_key(&a, &[], Some(&content)));
        assert_ne!(key, definition_key(&a, &[input], None));
        assert_ne!(
            key,
            definition_key(&a, &[input], Some(&Digest::of(b"other")))
        );
        assert_ne!(content_key(&a, &[], None), definition_key(&a, &[], None));
    }

    #[test]
    fn the_identity_of_the_root_is_its_layers() {
        let built = |name: &str| StackLayer::Built(SnapshotId::from_name(name.to_owned()));
        let image = StackLayer::Image(ChainId(Digest::of(b"layer")));
        let key = content_key(&vertex("/a"), &[image.clone(), built("one")], None);
        assert_eq!(
            key,
            content_key(&vertex("/a"), &[image.clone(), built("one")], None)
        );
        assert_ne!(
            key,
            content_key(&vertex("/a"), &[image.clone(), built("two")], None)
        );
        assert_ne!(key, content_key(&vertex("/a"), &[image], None));
    }
}
