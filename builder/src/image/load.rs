//! Images out of archives into the store (D10.4).

use std::io::{self, Read as _, Write as _};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;

use kiln_registry::archive::{Archive, ArchiveError, ArchivedLayer, ArchivedManifest};
use kiln_registry::digest::{Digest, Hasher};
use kiln_registry::reference::Reference;
use kiln_registry::spec::DiffId;
use kiln_registry::spec::media_type::{Compression, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};

use super::ImageError;
use crate::layer::{self, Limits};
use crate::step::StepError;
use crate::store::{BlobWriter, LayerBlob, Store, StoreError};

/// Bytes moved at once.
const CHUNK: usize = 256 * 1024;
/// Layers stored at once; more only make the disk slow.
const AT_ONCE: usize = 4;

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// Its names.
    pub names: Vec<Reference>,
    /// Names that stood for another image before, and that image's id.
    pub moved: Vec<(Reference, Digest)>,
}

/// Loads all images of an archive, and nothing that is none, for this machine's platform where there is a choice. Names are
/// given last, when all content is in the store and was verified.
///
/// # Errors
/// [`ImageError`]; no name changes then.
pub fn load(store: &Arc<Store>, archive: &Archive) -> Result<Vec<Loaded>, ImageError> {
    let mut images = Vec::new();
    let mut artifact = None;
    for image in archive.images() {
        let manifest = match archive.load(image, None) {
            // What came along with images, signatures for example, has no place in the store.
            Err(error @ ArchiveError::NotAnImage { .. }) => {
                artifact = Some(error);
                continue;
            }
            loaded => loaded?,
        };
        let blobs = store_layers(store, archive, &manifest.layers)?;
        store.write_blob(&manifest.config.bytes)?;
        images.push((image.names.clone(), manifest, blobs));
    }
    if images.is_empty() {
        return Err(artifact.map_or(ImageError::Empty, ImageError::from));
    }
    let mut loaded = Vec::with_capacity(images.len());
    for (names, manifest, blobs) in images {
        for (diff_id, blob) in &blobs {
            store.add_layer_blob(*diff_id, blob)?;
        }
        let id = manifest.config.digest;
        record(store, &manifest, &blobs)?;
        let mut moved = Vec::new();
        for name in &names {
            moved.extend(store.tag(name, &id)?.map(|before| (name.clone(), before)));
        }
        loaded.push(Loaded { id, names, moved });
    }
    Ok(loaded)
}

/// Records the image. A manifest of plain layers is how archives hold images that never were in a
/// registry; it is not what a push should send, so it is not kept.
fn record(
    store: &Store,
    manifest: &ArchivedManifest,
    blobs: &[(DiffId, LayerBlob)],
) -> Result<(), ImageError> {
    let compressed = blobs.iter().all(|(diff_id, blob)| blob.digest != diff_id.0);
    let keep = manifest
        .manifest
        .as_ref()
        .filter(|_| manifest.announced && compressed);
    if let Some(raw) = keep {
        store.write_blob(&raw.bytes)?;
    }
    store.add_image(
        &manifest.config.digest,
        keep.and_then(|_| manifest.descriptor()).as_ref(),
    )?;
    Ok(())
}

/// Stores the layers of an image, several at a time; the error is that of the first one that has any.
fn store_layers(
    store: &Store,
    archive: &Archive,
    layers: &[ArchivedLayer],
) -> Result<Vec<(DiffId, LayerBlob)>, ImageError> {
    let next = AtomicUsize::new(0);
    let stored: Vec<_> = layers.iter().map(|_| OnceLock::new()).collect();
    let failed = AtomicBool::new(false);
    let work = || {
        while !failed.load(Relaxed) {
            let number = next.fetch_add(1, Relaxed);
            let Some((layer, slot)) = layers.get(number).zip(stored.get(number)) else {
                return;
            };
            let result = store_layer(store, archive, number, layer);
            failed.fetch_or(result.is_err(), Relaxed);
            drop(slot.set(result));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..threads.min(AT_ONCE).min(layers.len()) {
            let thread = thread::Builder::new().name("load".to_owned());
            // Without it the others do its work.
            drop(thread.spawn_scoped(scope, work));
        }
        work();
    });
    // After an error the rest was not begun; what was begun before it is all there.
    let done = stored.into_iter().filter_map(OnceLock::into_inner);
    layers
        .iter()
        .zip(done)
        .map(|(layer, stored)| Ok((layer.diff_id, stored?)))
        .collect()
}

/// Stores a layer as it lies in the archive.
fn store_layer(
    store: &Store,
    archive: &Archive,
    number: usize,
    layer: &ArchivedLayer,
) -> Result<LayerBlob, ImageError> {
    let media_type = match layer.compression {
        Compression::None => OCI_LAYER,
        Compression::Gzip => OCI_LAYER_GZIP,
        Compression::Zstd => OCI_LAYER_ZSTD,
    };
    let plain = layer.compression == Compression::None;
    let announced = layer.digest.or(plain.then_some(layer.diff_id.0));
    if let Some(digest) = announced.filter(|digest| store.has_blob(digest)) {
        return Ok(LayerBlob {
            digest,
            media_type: media_type.to_owned(),
            size: layer.size,
        });
    }
    // What the archive announces is verified as it is read.
    let mut writer = match layer.digest {
        Some(digest) => store.new_verified_blob(digest)?,
        None => store.new_blob()?,
    };
    copy(archive, layer, &mut writer)?;
    let stored = writer.digest();
    let expected = layer.diff_id;
    // A layer whose stored bytes nobody announced is known by its diff id alone: check that now.
    let actual = match (plain, layer.digest) {
        (true, _) => DiffId(stored),
        (false, Some(_)) => expected,
        (false, None) => {
            let section = archive.layer(layer)?;
            let unpacked =
                layer::decompressor(layer.compression.into(), section, Limits::default());
            unpacked.and_then(hash).map_err(|source| StepError::Io {
                action: "decompressing the layer",
                path: layer.member.clone().into(),
                source,
            })?
        }
    };
    if actual != expected {
        return Err(ImageError::DiffId {
            number,
            expected,
            actual,
        });
    }
    let (digest, size) = writer.commit(store)?;
    Ok(LayerBlob {
        digest,
        media_type: media_type.to_owned(),
        size,
    })
}

/// Copies a layer out of an archive; the error tells which of the two is to blame.
fn copy(
    archive: &Archive,
    layer: &ArchivedLayer,
    writer: &mut BlobWriter,
) -> Result<(), ImageError> {
    let mut section = archive.layer(layer)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = section
            .read(&mut buffer)
            .map_err(|source| ArchiveError::Io {
                action: format!("cannot read `{}`", layer.member),
                source,
            })?;
        if count == 0 {
            return Ok(());
        }
        writer
            .write_all(&buffer[..count])
            .map_err(|source| StoreError::Io {
                action: "writing",
                path: writer.path().to_owned(),
                source,
            })?;
    }
}

fn hash(mut reader: impl io::Read) -> io::Result<DiffId> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(DiffId(hasher.finish())),
            count => hasher.update(&buffer[..count]),
        }
    }
}
