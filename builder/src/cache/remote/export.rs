//! Exporting a cache: layers are compressed and sent as soon as their steps have ended, while later
//! steps run; the documents that name them follow at the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kiln_registry::blob::{BlobSource, Put};
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ChainId, Descriptor, DiffId, Platform};
use tokio::sync::{Semaphore, SetOnce};
use tokio::task::JoinSet;

use super::document::{Collected, Content, Contents, Layer, LayerFacts};
use super::import::{Found, Imports};
use super::options::{CacheTo, Mode, Target as To};
use super::pack::{pack, packed};
use super::place::Place;
use super::prune::{fit, prune};
use super::{RemoteError, blocking};
use crate::cache::CacheKey;
use crate::snapshot::{SnapshotId, Snapshots};
use crate::store::Store;

/// Layers that are got ready for one place at once.
const JOBS: usize = 8;

/// As many steps are kept at least when a build that failed adds its own to those of others.
const KEPT: usize = 500;

/// Where the layer of a step is.
#[derive(Clone, Debug)]
pub enum Made {
    /// In the store.
    Here(SnapshotId),
    /// In a cache that was imported, and not needed here.
    Elsewhere(Box<Found>),
}

/// A step that is exported.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its definition key.
    pub key: CacheKey,
    /// What it reads ([`crate::cache::reads_key`]), and what it stands on: layers of an image, and
    /// those of steps. `None` where it was not looked at.
    pub content: Option<(Digest, Vec<DiffId>, Vec<Made>)>,
    /// Its layer.
    pub made: Made,
    /// Whether its layer is the image's.
    pub in_image: bool,
}

/// How an export went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Bytes of blobs that were sent, while steps ran and after.
    pub sent: u64,
    /// How long the build has waited for the export after its last step, seconds.
    pub seconds: f64,
    /// Bytes that a folder holds, and that it may hold.
    pub kept: Option<(u64, u64)>,
    /// What could not be exported.
    pub failed: Vec<Failed>,
}

/// A place that a cache could not be exported to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The place.
    pub place: String,
    /// Why not.
    pub reason: String,
    /// Whether that is an error (C5.2).
    pub fatal: bool,
}

/// Exports the cache of one build.
#[derive(Debug)]
pub struct Exporter {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    snapshots: Snapshots,
    imports: Option<Arc<Imports>>,
    targets: Vec<Target>,
    /// One layer is compressed at a time, by all cores.
    packing: Semaphore,
}

/// A place that a cache is exported to.
#[derive(Debug)]
struct Target {
    to: CacheTo,
    place: Place,
    /// What it has, as far as that can be read.
    previous: SetOnce<Contents>,
    jobs: Semaphore,
    sent: AtomicU64,
    /// Layers that are there.
    ready: Mutex<BTreeMap<SnapshotId, Layer>>,
}

impl Exporter {
    /// Gets ready to export to places, and begins to read what they have. `None` without any.
    ///
    /// # Errors
    /// When an address is none.
    pub fn start(
        to: &[CacheTo],
        client: &Client,
        platform: &Platform,
        snapshots: &Snapshots,
        store: &Arc<Store>,
        imports: Option<Arc<Imports>>,
    ) -> Result<Option<Self>, RemoteError> {
        let mut targets = Vec::new();
        for to in to {
            if let To::Place(spec) = &to.target {
                targets.push(Target {
                    to: to.clone(),
                    place: Place::new(spec, client)?,
                    previous: SetOnce::new(),
                    jobs: Semaphore::new(to.parallel),
                    sent: AtomicU64::new(0),
                    ready: Mutex::default(),
                });
            }
        }
        if targets.is_empty() {
            return Ok(None);
        }
        let exporter = Self {
            shared: Arc::new(Shared {
                store: Arc::clone(store),
                snapshots: snapshots.clone(),
                imports,
                targets,
                packing: Semaphore::new(1),
            }),
            tasks: Mutex::default(),
        };
        for at in 0..exporter.shared.targets.len() {
            let (shared, platform) = (Arc::clone(&exporter.shared), platform.clone());
            lock(&exporter.tasks).spawn(async move {
                let target = &shared.targets[at];
                // What cannot be read is written anew; that it cannot be written shows later.
                let previous = target.place.read(&platform).await.unwrap_or_default();
                drop(target.previous.set(previous));
            });
        }
        Ok(Some(exporter))
    }

    /// Takes note of a layer that is finished: it is compressed and sent now, where a place wants it.
    pub fn layer(&self, snapshot: &SnapshotId, in_image: bool) {
        for (at, target) in self.shared.targets.iter().enumerate() {
            if !in_image && target.to.mode == Mode::Min {
                continue;
            }
            let (shared, snapshot) = (Arc::clone(&self.shared), snapshot.clone());
            lock(&self.tasks).spawn(async move {
                // Whatever fails here is tried once more, and told, when the cache is put together.
                drop(shared.send(&shared.targets[at], &snapshot).await);
            });
        }
    }

    /// Sends what is missing, and then what names it. Of a build that is not `complete` it is added
    /// to what the places have.
    pub async fn finish(self, entries: &[Entry], complete: bool) -> Summary {
        let start = Instant::now();
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
        let shared = &self.shared;
        let finished = shared.targets.iter().map(|target| async move {
            let result = shared.finish(target, entries, complete).await;
            (target, result)
        });
        let mut summary = Summary::default();
        for (target, result) in futures_util::future::join_all(finished).await {
            summary.sent += target.sent.load(Ordering::Relaxed);
            match result {
                Ok(None) => {}
                Ok(kept) => summary.kept = kept,
                Err(error) => summary.failed.push(Failed {
                    place: target.place.to_string(),
                    reason: error.line(),
                    fatal: !target.to.ignore_error,
                }),
            }
        }
        summary.seconds = start.elapsed().as_secs_f64();
        summary
    }
}

impl Shared {
    /// Sends a layer of the store to a place, and gives it as it is there.
    async fn send(&self, target: &Target, snapshot: &SnapshotId) -> Result<Layer, RemoteError> {
        let known = lock(&target.ready).get(snapshot).cloned();
        if let Some(layer) = known {
            return Ok(layer);
        }
        let (mut layer, elsewhere) = self.form(target, snapshot).await?;
        let sent = match &elsewhere {
            Some(place) => target.put(&layer.blob, place.source()?.as_ref()).await,
            None => target.put(&layer.blob, &*self.store).await,
        };
        if let Err(error) = sent {
            // What a cache named, it need not have.
            if elsewhere.is_none() || !self.store.snapshot_path(snapshot).is_dir() {
                return Err(error);
            }
            layer = self.pack(target, snapshot).await?;
            target.put(&layer.blob, &*self.store).await?;
        }
        lock(&target.ready).insert(snapshot.clone(), layer.clone());
        Ok(layer)
    }

    /// The blob of a layer, and where it is if not in the store. Only what neither is here nor known
    /// to a cache is compressed.
    async fn form(
        &self,
        target: &Target,
        snapshot: &SnapshotId,
    ) -> Result<(Layer, Option<Place>), RemoteError> {
        let previous = target.previous.wait().await;
        let (store, id, packing) = (Arc::clone(&self.store), snapshot.clone(), target.to.packing);
        let here = move || packed(&store, &id, packing);
        if let Some(layer) = blocking(here).await? {
            return Ok((layer, None));
        }
        if !packing.force && (!previous.layers.is_empty() || self.imports.is_some()) {
            let (snapshots, id) = (self.snapshots.clone(), snapshot.clone());
            let (diff_id, _) = blocking(move || Ok(snapshots.seal(&id)?)).await?;
            let mut there = previous.layers.iter();
            if let Some(layer) = there.find(|layer| layer.facts.diff_id == diff_id) {
                return Ok((layer.clone(), Some(target.place.clone())));
            }
            if let Some(imports) = &self.imports
                && let Some((layer, place)) = imports.layer(diff_id).await
            {
                return Ok((layer, Some(place)));
            }
        }
        Ok((self.pack(target, snapshot).await?, None))
    }

    async fn pack(&self, target: &Target, snapshot: &SnapshotId) -> Result<Layer, RemoteError> {
        let permit = self.packing.acquire().await;
        let _permit = permit.map_err(|_| RemoteError::Thread)?;
        let (store, id, packing) = (Arc::clone(&self.store), snapshot.clone(), target.to.packing);
        // It may have been packed for another place meanwhile.
        blocking(move || match packed(&store, &id, packing)? {
            Some(layer) => Ok(layer),
            None => pack(&store, &id, packing.compression),
        })
        .await
    }

    /// Puts the cache together at one place; gives the bytes that are kept there of how many.
    async fn finish(
        &self,
        target: &Target,
        entries: &[Entry],
        complete: bool,
    ) -> Result<Option<(u64, u64)>, RemoteError> {
        let wanted = |entry: &&Entry| entry.in_image || target.to.mode == Mode::Max;
        let entries: Vec<&Entry> = entries.iter().filter(wanted).collect();
        let _lock = target.place.lock().await?;
        let layers: BTreeMap<usize, Layer> = stream::iter(entries.iter().enumerate())
            .map(|(at, entry)| async move {
                let layer = match &entry.made {
                    Made::Here(snapshot) => self.send(target, snapshot).await?,
                    Made::Elsewhere(found) => {
                        let source = found.place.source()?;
                        target.put(&found.layer.blob, source.as_ref()).await?;
                        found.layer.clone()
                    }
                };
                Ok::<_, RemoteError>((at, layer))
            })
            .buffer_unordered(JOBS)
            .try_collect()
            .await?;
        let previous = target.previous.wait().await;
        let mut collected = Collected::default();
        for (at, entry) in entries.iter().enumerate() {
            if let Some(layer) = layers.get(&at) {
                let content = self.content(entry, layer, previous)?;
                collected.add(*entry.key.digest(), content, layer);
            }
        }
        if collected.contents.steps.is_empty() {
            return Ok(None);
        }
        let older = target.older(complete).await?;
        let most = match complete {
            true => usize::MAX,
            false => older.steps.len().max(KEPT),
        };
        collected.add_older(&older, most);
        target.publish(collected.contents).await
    }

    /// What a step read and stood on, from this build or from what the place said of it before.
    fn content(
        &self,
        entry: &Entry,
        layer: &Layer,
        previous: &Contents,
    ) -> Result<Option<Content>, RemoteError> {
        if entry.content.is_some() {
            return content(&self.store, entry);
        }
        if let Made::Elsewhere(found) = &entry.made {
            return Ok(found.content);
        }
        let known = previous
            .steps
            .iter()
            .find(|step| step.key == *entry.key.digest());
        let known =
            known.filter(|step| previous.layers[step.layer].facts.diff_id == layer.facts.diff_id);
        Ok(known.and_then(|step| step.content))
    }
}

impl Target {
    /// What stays of what is there. It is read now: another build may have written meanwhile.
    async fn older(&self, complete: bool) -> Result<Contents, RemoteError> {
        let is_folder = self.place.folder().is_some();
        if complete && (!is_folder || self.to.reset) {
            return Ok(Contents::default());
        }
        match self.place.read(&Platform::host()).await {
            // What a build that failed did not get to must not be lost by it.
            Err(error) if !complete && !matches!(error, RemoteError::Missing) => Err(error),
            older => Ok(older.unwrap_or_default()),
        }
    }

    /// Puts the documents; gives the bytes that are kept in a folder of how many.
    async fn publish(&self, mut contents: Contents) -> Result<Option<(u64, u64)>, RemoteError> {
        let Place::Local { path, .. } = &self.place else {
            self.place.publish(&contents, self.to.oci).await?;
            return Ok(None);
        };
        let held = fit(&mut contents, self.to.max);
        self.place.publish(&contents, self.to.oci).await?;
        if self.to.max.is_some() || self.to.reset {
            let path = path.clone();
            blocking(move || prune(&path)).await?;
        }
        Ok(self.to.max.map(|max| (held, max)))
    }

    /// Sends a blob where it is not there.
    async fn put(&self, blob: &Descriptor, source: &dyn BlobSource) -> Result<(), RemoteError> {
        let permit = self.jobs.acquire().await;
        let _permit = permit.map_err(|_| RemoteError::Thread)?;
        let sink = self.place.sink()?;
        if sink.put(blob, source, &|_, _| ()).await? == Put::Sent {
            self.sent.fetch_add(blob.size, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What stands in the config of an image whose own layers are its cache (C5, `type=inline`).
///
/// # Errors
/// When the store cannot be read.
pub fn inline(store: &Store, entries: &[Entry]) -> Result<serde_json::Value, RemoteError> {
    let mut collected = Collected::default();
    for entry in entries.iter().filter(|entry| entry.in_image) {
        let Made::Here(snapshot) = &entry.made else {
            continue;
        };
        let facts = store.snapshot(snapshot)?;
        let Some((diff_id, size)) = facts.layer else {
            continue;
        };
        let layer = Layer {
            facts: LayerFacts {
                diff_id,
                size,
                created: facts.created,
                bytes: facts.bytes,
                entries: facts.entries,
            },
            // The image's manifest says which blob it is.
            blob: Descriptor::new("", diff_id.0, size),
        };
        let content = content(store, entry)?;
        collected.add(*entry.key.digest(), content, &layer);
    }
    collected.contents.inline()
}

/// What a step read and stood on, where all layers below have a digest.
fn content(store: &Store, entry: &Entry) -> Result<Option<Content>, RemoteError> {
    let Some((reads, image, made)) = &entry.content else {
        return Ok(None);
    };
    let mut below = image.clone();
    for made in made {
        let diff_id = match made {
            Made::Elsewhere(found) => Some(found.layer.facts.diff_id),
            Made::Here(id) => store.snapshot(id)?.layer.map(|(diff_id, _)| diff_id),
        };
        match diff_id {
            Some(diff_id) => below.push(diff_id),
            None => return Ok(None),
        }
    }
    Ok(Some((*reads, ChainId::of(&below).last().copied())))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
