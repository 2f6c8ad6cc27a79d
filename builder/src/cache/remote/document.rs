//! The config document of a cache: what is in it, reading it without trust, and writing it.

use std::collections::{BTreeMap, BTreeSet};

use kiln_registry::digest::Digest;
use kiln_registry::spec::media_type::layer_compression;
use kiln_registry::spec::{ChainId, Descriptor, DiffId, ImageConfig, Manifest};
use serde::{Deserialize, Serialize};

use super::RemoteError;

/// Media type of the config of a cache.
pub const CONFIG: &str = "application/vnd.kiln.cache.config.v1+json";
/// Where an image's config holds the cache of its own layers.
pub const INLINE: &str = "io.kiln.cache.v1";
/// The version that this kiln reads and writes.
const VERSION: u32 = 1;
/// The largest config that is read, bytes.
pub(super) const MAX_CONFIG: u64 = 8 << 20;
/// The largest layer that is believed, bytes of its tar.
const MAX_LAYER: u64 = 1 << 40;
/// The config of BuildKit's caches, and what it puts into an image's config.
const BUILDKIT: [&str; 2] = [
    "application/vnd.buildkit.cacheconfig.v0",
    "moby.buildkit.cache.v0",
];

/// The document as JSON has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Document {
    version: u32,
    layers: Vec<LayerFacts>,
    steps: Vec<StepFacts>,
}

/// What is known of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerFacts {
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Size of its tar, bytes.
    pub size: u64,
    /// When it was made, seconds since 1970: the same image comes out elsewhere.
    pub created: i64,
    /// Bytes of file content in it.
    pub bytes: u64,
    /// Files and folders in it.
    pub entries: u64,
}

/// A step, by its keys, and its layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StepFacts {
    key: Digest,
    #[serde(flatten)]
    content: Option<ContentFacts>,
    layer: usize,
}

/// What a step does and reads, apart from how that came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ContentFacts {
    reads: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<ChainId>,
}

/// The same as [`super::super::reads_key`], and the layers below; [`None`] below for nothing.
pub type Content = (Digest, Option<ChainId>);

/// A layer that a cache has.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// What is known of it.
    pub facts: LayerFacts,
    /// The blob that it lies in.
    pub blob: Descriptor,
}

/// A step that a cache has.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its definition key.
    pub key: Digest,
    /// What it read.
    pub content: Option<Content>,
    /// Its layer, an index.
    pub layer: usize,
}

/// All that a cache has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Its layers.
    pub layers: Vec<Layer>,
    /// Its steps, those that were used last first.
    pub steps: Vec<Step>,
}

impl Contents {
    /// Reads what a manifest and its config say.
    ///
    /// # Errors
    /// [`RemoteError`] for what is no cache of kiln's, or does not fit together.
    pub fn read(manifest: &Manifest, config: &[u8]) -> Result<Self, RemoteError> {
        let kind = manifest.config.media_type.as_str();
        if kind == CONFIG {
            let document = serde_json::from_slice(config).map_err(RemoteError::Json)?;
            return Self::join(document, &manifest.layers);
        }
        if BUILDKIT.contains(&kind) {
            return Err(RemoteError::BuildKit);
        }
        let image: ImageConfig =
            serde_json::from_slice(config).map_err(|_| RemoteError::NoCache)?;
        let Some(inline) = image.extra.get(INLINE) else {
            let buildkit = BUILDKIT.iter().any(|name| image.extra.contains_key(*name));
            return Err(match buildkit {
                true => RemoteError::BuildKit,
                false => RemoteError::NoCache,
            });
        };
        let document: Document = Document::deserialize(inline).map_err(RemoteError::Json)?;
        let diff_ids = &image.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(RemoteError::Wrong(
                "its layers and their digests differ in number",
            ));
        }
        let known: BTreeMap<_, _> = diff_ids.iter().zip(&manifest.layers).collect();
        let blobs = document
            .layers
            .iter()
            .map(|layer| known.get(&layer.diff_id));
        let blobs: Option<Vec<Descriptor>> =
            blobs.map(|blob| blob.map(|&blob| blob.clone())).collect();
        let blobs = blobs.ok_or(RemoteError::Wrong(
            "it names a layer that the image has not",
        ))?;
        Self::join(document, &blobs)
    }

    fn join(document: Document, blobs: &[Descriptor]) -> Result<Self, RemoteError> {
        if document.version != VERSION {
            return Err(RemoteError::Version(document.version));
        }
        if document.layers.len() != blobs.len() {
            return Err(RemoteError::Wrong(
                "its layers and their blobs differ in number",
            ));
        }
        let layers = document.layers.into_iter().zip(blobs);
        let layers = layers.map(|(facts, blob)| Layer {
            facts,
            // Not from somewhere else, and nothing that the manifest carries itself.
            blob: Descriptor::new(blob.media_type.clone(), blob.digest, blob.size),
        });
        let layers: Vec<Layer> = layers.collect();
        let fits = |layer: &Layer| {
            layer_compression(&layer.blob.media_type).is_some()
                && layer.facts.size <= MAX_LAYER
                && layer.blob.size <= MAX_LAYER
        };
        if !layers.iter().all(fits) {
            return Err(RemoteError::Wrong(
                "it has a layer of a kind or size that kiln does not take",
            ));
        }
        if document.steps.iter().any(|step| step.layer >= layers.len()) {
            return Err(RemoteError::Wrong("a step names a layer that it has not"));
        }
        let steps = document.steps.into_iter().map(|step| Step {
            key: step.key,
            content: step.content.map(|content| (content.reads, content.root)),
            layer: step.layer,
        });
        Ok(Self {
            steps: steps.collect(),
            layers,
        })
    }

    /// The config that says it.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no such document is.
    pub fn config(&self) -> Result<Vec<u8>, RemoteError> {
        serde_json::to_vec(&self.document()).map_err(RemoteError::Json)
    }

    /// What stands in the config of an image for the same.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn inline(&self) -> Result<serde_json::Value, RemoteError> {
        serde_json::to_value(self.document()).map_err(RemoteError::Json)
    }

    fn document(&self) -> Document {
        let steps = self.steps.iter().map(|step| StepFacts {
            key: step.key,
            content: step
                .content
                .map(|(reads, root)| ContentFacts { reads, root }),
            layer: step.layer,
        });
        Document {
            version: VERSION,
            layers: self
                .layers
                .iter()
                .map(|layer| layer.facts.clone())
                .collect(),
            steps: steps.collect(),
        }
    }
}

/// Contents that are being put together.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) contents: Contents,
    keys: BTreeSet<Digest>,
    layers: BTreeMap<DiffId, usize>,
}

impl Collected {
    /// Adds the steps that a cache had before, as long as there are not this `most` in all.
    pub(super) fn add_older(&mut self, older: &Contents, most: usize) {
        for step in &older.steps {
            if self.contents.steps.len() >= most {
                break;
            }
            self.add(step.key, step.content, &older.layers[step.layer]);
        }
    }

    /// Adds a step with its layer, unless it is there.
    pub(super) fn add(&mut self, key: Digest, content: Option<Content>, layer: &Layer) {
        if !self.keys.insert(key) {
            return;
        }
        let layers = &mut self.contents.layers;
        let next = layers.len();
        let index = *self.layers.entry(layer.facts.diff_id).or_insert(next);
        if index == next {
            layers.push(layer.clone());
        }
        self.contents.steps.push(Step {
            key,
            content,
            layer: index,
        });
    }
}
