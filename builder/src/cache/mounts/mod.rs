//! Contents of cache mounts beyond one machine (`--cache-mounts`): restored before the step that uses
//! a mount, saved after the build.
//!
//! # The format, version 1
//!
//! An OCI image manifest, in the same places as a cache ([`super::remote`]), under its own name. Its
//! config, of media type [`CONFIG`], is
//!
//! ```json
//! {"version": 1, "mounts": [
//!   {"id": "go-mod", "key": "sha256:…", "saved": 1764374400, "bytes": 812000000, "index": 0,
//!    "packs": [{"layer": 1, "size": 815000000}, {"layer": 2, "size": 14000000}]}]}
//! ```
//!
//! where `index` and `layer` are indices of the manifest's layers and `size` is that of a plain tar.
//! `key` is what the mount is known by: its id and its seed. The index, JSON compressed with zstd, lists
//! all that is in the mount: path, kind, mode, owner, time to the nanosecond, size and digest, and in
//! which pack it is. A pack is an ordinary tar, compressed with zstd, of what was new or had changed when
//! it was written. So a build sends what it has changed. A mount is restored from its packs in their
//! order, less what is not in the index. When the packs are many, or half of what is in them is not
//! wanted any more, all is written anew as one.
//!
//! # When
//!
//! A mount is restored where it is not on this machine or empty, or was used here before it was saved
//! there; once a build, by who has it alone. It is made aside, and takes the place of what was there
//! when it is whole. What cannot be read is a warning, and the mount stays as it was. Nothing that is
//! restored can come to lie outside of the mount: it is unpacked like any archive.

mod index;
mod restore;
mod save;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_registry::blob::{BlobSink as _, Put};
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{Descriptor, Platform};
use serde::{Deserialize, Serialize};
use tokio::sync::SetOnce;

use super::remote::options::CacheMounts;
use super::remote::{Place, RemoteError};
use crate::event::{Event, Observer};
use crate::layer::UnpackError;
use crate::store::{Store, StoreError};

/// Media type of the config.
pub const CONFIG: &str = "application/vnd.kiln.mounts.config.v1+json";
/// Media type of an index.
const INDEX: &str = "application/vnd.kiln.mounts.index.v1+zstd";
/// The version that this kiln reads and writes.
const VERSION: u32 = 1;
/// Packs of one mount that are read.
const MAX_PACKS: usize = 64;
/// Mounts that are read.
const MAX_MOUNTS: usize = 10_000;

/// Why contents of mounts cannot be restored or saved.
#[derive(Debug, thiserror::Error)]
pub enum MountsError {
    /// The place refused, or holds something else.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A pack could not be unpacked.
    #[error("unpacking it")]
    Unpack(#[from] UnpackError),
    /// The mount could not be packed.
    #[error("packing it")]
    Pack(#[from] crate::layer::PackError),
    /// What was packed could not be read again, or not be written.
    #[error("packing it")]
    Tar(#[from] crate::layer::tar::TarError),
    /// What was packed could not be written.
    #[error("packing it")]
    Write(#[from] crate::layer::tar::WriteError),
    /// A document cannot be understood.
    #[error("its index cannot be understood")]
    Json(#[from] serde_json::Error),
    /// There is something else.
    #[error("it holds something else than cache mounts")]
    Foreign,
    /// Something is not what the index says.
    #[error("it is damaged: {0}")]
    Wrong(&'static str),
    /// A file could not be read or written.
    #[error("{action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> MountsError {
    move |source| MountsError::Io { action, source }
}

/// The document as JSON has it.
#[derive(Debug, Deserialize, Serialize)]
struct Document {
    version: u32,
    mounts: Vec<MountFacts>,
}

#[derive(Debug, Deserialize, Serialize)]
struct MountFacts {
    id: String,
    key: Digest,
    saved: i64,
    bytes: u64,
    index: usize,
    packs: Vec<PackFacts>,
}

#[derive(Debug, Deserialize, Serialize)]
struct PackFacts {
    layer: usize,
    size: u64,
}

/// A mount as it was saved.
#[derive(Clone, Debug, PartialEq)]
struct Saved {
    id: String,
    key: Digest,
    /// When, seconds since 1970.
    time: i64,
    /// Bytes of its files.
    bytes: u64,
    index: Descriptor,
    /// Blobs, and sizes of their plain tars.
    packs: Vec<(Descriptor, u64)>,
}

impl Saved {
    /// Bytes that it takes where it is saved.
    fn size(&self) -> u64 {
        let packs = self.packs.iter().map(|(pack, _)| pack.size);
        packs.fold(self.index.size, u64::saturating_add)
    }

    /// All its blobs.
    fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let packs = self.packs.iter().map(|(pack, _)| pack);
        packs.chain([&self.index])
    }
}

/// How a build used a mount.
#[derive(Clone, Debug, Default)]
struct Used {
    id: String,
    /// Bytes that were restored, and in how many seconds.
    restored: Option<(u64, f64)>,
    /// Whether what is saved is of no use: it is not built upon then.
    useless: bool,
}

/// What became of each mount; one is held while it is restored.
type Uses = BTreeMap<Digest, Arc<Mutex<Option<Used>>>>;

/// The contents of cache mounts that one build restores and saves.
#[derive(Debug)]
pub struct SavedMounts {
    place: Place,
    max: Option<u64>,
    store: Arc<Store>,
    observer: Observer,
    loaded: Arc<SetOnce<Vec<Saved>>>,
    used: Mutex<Uses>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SavedMounts {
    /// Begins to read what is saved at a place. That nothing is, is no more than told of a failure.
    ///
    /// # Errors
    /// When an address is none.
    pub fn start(
        mounts: &CacheMounts,
        client: &Client,
        store: &Arc<Store>,
        observer: &Observer,
    ) -> Result<Self, RemoteError> {
        let place = Place::new(&mounts.spec, client)?;
        let loaded = Arc::new(SetOnce::new());
        let (set, from, watch) = (Arc::clone(&loaded), place.clone(), observer.clone());
        tokio::spawn(async move {
            let read = read(&from).await.unwrap_or_else(|error| {
                watch.tell(Event::Note {
                    step: None,
                    text: format!(
                        "cache mounts are not restored from {from}: {}",
                        line(&error)
                    ),
                });
                Vec::new()
            });
            // Nobody else sets it.
            drop(set.set(read));
        });
        Ok(Self {
            place,
            max: mounts.max,
            store: Arc::clone(store),
            observer: observer.clone(),
            loaded,
            used: Mutex::default(),
        })
    }

    fn note(&self, id: &str, text: &str) {
        self.observer.tell(Event::Note {
            step: None,
            text: format!("mount {id}: {text}"),
        });
    }
}

/// An error with its causes, on one line.
fn line(error: &MountsError) -> String {
    super::remote::chain(error)
}

/// Reads what is saved at a place; nothing where there is nothing.
async fn read(place: &Place) -> Result<Vec<Saved>, MountsError> {
    let (manifest, config) = match place.documents(&Platform::host()).await {
        Err(RemoteError::Missing) => return Ok(Vec::new()),
        documents => documents?,
    };
    if manifest.value.config.media_type != CONFIG {
        return Err(MountsError::Foreign);
    }
    let document: Document = serde_json::from_slice(&config)?;
    if document.version != VERSION {
        return Err(RemoteError::Version(document.version).into());
    }
    if document.mounts.len() > MAX_MOUNTS {
        return Err(MountsError::Wrong("it has too many mounts"));
    }
    let layers = &manifest.value.layers;
    let layer = |index: usize| {
        let found = layers.get(index);
        let found = found.map(|one| Descriptor::new(one.media_type.clone(), one.digest, one.size));
        found.ok_or(MountsError::Wrong("it names a layer that it has not"))
    };
    let mounts = document.mounts.into_iter().map(|mount| {
        if mount.packs.len() > MAX_PACKS {
            return Err(MountsError::Wrong("a mount has too many packs"));
        }
        let packs = mount
            .packs
            .iter()
            .map(|pack| Ok((layer(pack.layer)?, pack.size)));
        Ok(Saved {
            id: mount.id,
            key: mount.key,
            time: mount.saved,
            bytes: mount.bytes,
            index: layer(mount.index)?,
            packs: packs.collect::<Result<_, MountsError>>()?,
        })
    });
    mounts.collect()
}

/// Fetches a blob into the store; says whether it was not there yet.
async fn fetch(place: &Place, blob: &Descriptor, store: &Store) -> Result<bool, MountsError> {
    let source = place.source()?;
    let put = store.put(blob, source.as_ref(), &|_, _| ()).await;
    Ok(put.map_err(RemoteError::from)? == Put::Sent)
}
