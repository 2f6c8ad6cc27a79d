//! Finding steps in caches from elsewhere, and fetching their layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_registry::blob::{BlobSink as _, Progress};
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::spec::media_type::layer_compression;
use kiln_registry::spec::{ChainId, DiffId, Platform};
use tokio::sync::{Semaphore, SetOnce};

use super::document::{Content, Contents, Layer};
use super::options::CacheFrom;
use super::pack::verify;
use super::place::Place;
use super::{RemoteError, blocking};
use crate::cache::CacheKey;
use crate::event::{Event, Observer, masked};
use crate::store::{LayerBlob, SnapshotFacts, SnapshotId, Store};

/// Blobs fetched at once.
const JOBS: usize = 6;

/// A remembered result, in a cache from elsewhere.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its layer.
    pub layer: Layer,
    /// What its step read, where that is known.
    pub content: Option<Content>,
    /// The cache that has it.
    pub place: Place,
}

/// The caches that a build may use besides its store's.
#[derive(Debug)]
pub struct Imports {
    loaded: Arc<SetOnce<Loaded>>,
    jobs: Semaphore,
    observer: Observer,
}

#[derive(Debug, Default)]
struct Loaded {
    places: Vec<(Place, Contents)>,
    /// Definition key -> place and step.
    keys: BTreeMap<Digest, Vec<(usize, usize)>>,
    /// What is read -> place and step.
    reads: BTreeMap<Digest, Vec<(usize, usize)>>,
    /// Layer -> place and layer.
    layers: BTreeMap<DiffId, (usize, usize)>,
}

impl Imports {
    /// Begins to read the caches, all at once. One that cannot be read is told of, and no more
    /// (C5.2).
    ///
    /// # Errors
    /// When an address is none.
    pub fn start(
        from: &[CacheFrom],
        client: &Client,
        platform: &Platform,
        observer: &Observer,
    ) -> Result<Self, RemoteError> {
        let loaded = Arc::new(SetOnce::new());
        let mut places = Vec::new();
        for from in from {
            places.extend(Place::all(&from.spec, client)?);
        }
        let (platform, watch, set) = (platform.clone(), observer.clone(), Arc::clone(&loaded));
        tokio::spawn(async move {
            let reading = places.into_iter().map(|place| {
                let platform = platform.clone();
                async move { (place.read(&platform).await, place) }
            });
            let mut all = Vec::new();
            for (read, place) in futures_util::future::join_all(reading).await {
                match read {
                    Ok(contents) => all.push((place, contents)),
                    Err(error) => watch.tell(Event::Note {
                        step: None,
                        text: format!(
                            "importing cache manifest from {place}: {}; the build goes on without it",
                            error.line()
                        ),
                    }),
                }
            }
            // Nobody else sets it.
            drop(set.set(Loaded::new(all)));
        });
        Ok(Self {
            loaded,
            jobs: Semaphore::new(JOBS),
            observer: observer.clone(),
        })
    }

    /// What is remembered of a step, by its definition key; all that are, the first named cache
    /// first (C5.4).
    pub async fn find(&self, key: &CacheKey) -> Vec<Found> {
        let loaded = self.loaded.wait().await;
        let steps = loaded.keys.get(key.digest());
        steps
            .into_iter()
            .flatten()
            .map(|at| loaded.found(*at))
            .collect()
    }

    /// Whether a step that reads this is remembered, on whatever root.
    pub async fn reads(&self, reads: &Digest) -> bool {
        self.loaded.wait().await.reads.contains_key(reads)
    }

    /// What is remembered of a step by what it reads and by the layers below.
    pub async fn find_content(&self, reads: &Digest, root: Option<ChainId>) -> Vec<Found> {
        let loaded = self.loaded.wait().await;
        let steps = loaded.reads.get(reads).into_iter().flatten();
        let found = steps.map(|at| loaded.found(*at));
        found
            .filter(|found| found.content == Some((*reads, root)))
            .collect()
    }

    /// A blob of a layer in one of the caches, and where.
    pub async fn layer(&self, diff_id: DiffId) -> Option<(Layer, Place)> {
        let loaded = self.loaded.wait().await;
        let (place, layer) = loaded.layers.get(&diff_id)?;
        let (place, contents) = loaded.places.get(*place)?;
        Some((contents.layers.get(*layer)?.clone(), place.clone()))
    }

    /// Brings a layer into the store as a snapshot of this name: its blob, and unless `unpack` leaves
    /// that to the unpacking, the proof that it is what it should be.
    ///
    /// # Errors
    /// [`RemoteError`] when it cannot be fetched or is not what the cache says.
    pub async fn fetch(
        &self,
        found: &Found,
        id: &SnapshotId,
        store: &Arc<Store>,
        unpack: bool,
        progress: &Progress,
    ) -> Result<(), RemoteError> {
        let blob = &found.layer.blob;
        {
            let permit = self.jobs.acquire().await;
            let _permit = permit.map_err(|_| RemoteError::Thread)?;
            let source = found.place.source()?;
            store.put(blob, source.as_ref(), progress).await?;
        }
        let (store, found, id) = (Arc::clone(store), found.clone(), id.clone());
        blocking(move || record(&store, &found, &id, unpack)).await
    }

    /// Tells that an entry of a cache is of no use.
    pub fn refuse(&self, found: &Found, step: &str, error: &RemoteError) {
        let step = step.lines().next().unwrap_or_default();
        self.observer.tell(Event::Note {
            step: None,
            text: format!(
                "what the cache {} has for `{}` is of no use: {}",
                found.place,
                masked(step),
                error.line()
            ),
        });
    }
}

impl Found {
    /// The blob that is said to hold the layer.
    #[must_use]
    pub fn blob(&self) -> LayerBlob {
        let blob = &self.layer.blob;
        LayerBlob {
            digest: blob.digest,
            media_type: blob.media_type.clone(),
            size: blob.size,
        }
    }
}

/// Records a layer whose blob is here. What only unpacking will prove is not recorded as a blob of the
/// layer yet.
fn record(store: &Store, found: &Found, id: &SnapshotId, unpack: bool) -> Result<(), RemoteError> {
    let (facts, blob) = (&found.layer.facts, found.blob());
    if !unpack {
        let compression = layer_compression(&blob.media_type).ok_or(RemoteError::Layer)?;
        if !verify(store, facts, &blob.digest, compression)? {
            return Err(RemoteError::Layer);
        }
        store.add_layer_blob(facts.diff_id, &blob)?;
    }
    let facts = SnapshotFacts {
        layer: Some((facts.diff_id, facts.size)),
        bytes: facts.bytes,
        entries: facts.entries,
        created: facts.created,
        settled: true,
    };
    Ok(store.add_packed(id, &facts)?)
}

impl Loaded {
    fn new(places: Vec<(Place, Contents)>) -> Self {
        let mut loaded = Self::default();
        for (place, (_, contents)) in places.iter().enumerate() {
            for (at, step) in contents.steps.iter().enumerate() {
                loaded.keys.entry(step.key).or_default().push((place, at));
                if let Some((reads, _)) = step.content {
                    loaded.reads.entry(reads).or_default().push((place, at));
                }
            }
            for (at, layer) in contents.layers.iter().enumerate() {
                let known = loaded.layers.entry(layer.facts.diff_id);
                known.or_insert((place, at));
            }
        }
        loaded.places = places;
        loaded
    }

    fn found(&self, (place, step): (usize, usize)) -> Found {
        let (place, contents) = &self.places[place];
        let step = &contents.steps[step];
        Found {
            layer: contents.layers[step.layer].clone(),
            content: step.content,
            place: place.clone(),
        }
    }
}
