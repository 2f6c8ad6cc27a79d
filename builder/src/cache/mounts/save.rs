//! Saving the content of mounts: what is new or has changed since it was saved last.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self as stdio, BufReader, BufWriter, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_grammar::mount::Sharing;
use kiln_registry::blob::Put;
use kiln_registry::digest::{Digest, Hasher};
use kiln_registry::spec::Descriptor;
use kiln_registry::spec::media_type::OCI_LAYER_ZSTD;
use rustix::fs::OFlags;

use super::index::{self, Entry, path_of};
use super::{
    CONFIG, Document, INDEX, MountFacts, MountsError, PackFacts, Saved, SavedMounts, Used, VERSION,
    fetch, io, line, lock, read,
};
use crate::cache::remote::{RemoteError, prune};
use crate::layer::tar::{Header, Kind, Reader, Writer};
use crate::layer::{PackOptions, pack_at};
use crate::snapshot::now;
use crate::store::{BlobWriter, Store};
use crate::sys::root::Root;

/// With so many packs all is written anew.
const PACKS: usize = 16;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// A pack that is being written.
type Pack = Writer<zstd::Encoder<'static, BlobWriter>>;

/// What one mount has come to.
struct Scanned {
    saved: Saved,
    /// What is new where it is saved: blobs that lie in the store because of this.
    made: Vec<Descriptor>,
}

impl Scanned {
    /// Bytes that are new where it is saved.
    fn added(&self) -> u64 {
        self.made.iter().map(|blob| blob.size).sum()
    }
}

impl SavedMounts {
    /// Saves the mounts that the build has used, and gives a line for each that says what was done.
    /// Failures are told in their lines; what was saved before stays then.
    pub async fn save(self: &Arc<Self>) -> Vec<String> {
        let used: BTreeMap<Digest, Used> = {
            let all = lock(&self.used);
            let all = all
                .iter()
                .filter_map(|(key, used)| Some((*key, lock(used).clone()?)));
            all.collect()
        };
        if used.is_empty() {
            return Vec::new();
        }
        let mut lines = BTreeMap::new();
        let mut scanned = Vec::new();
        for (key, one) in &used {
            match self.scan(*key, one).await {
                Ok(Some(found)) => {
                    lines.insert(*key, format!("saved +{}", size(found.added())));
                    scanned.push(found);
                }
                Ok(None) => drop(lines.insert(*key, "not saved: another build uses it".to_owned())),
                Err(error) => drop(lines.insert(*key, format!("not saved: {}", line(&error)))),
            }
        }
        if let Err(error) = self.publish(&scanned, &mut lines).await {
            for found in &scanned {
                lines.insert(found.saved.key, format!("not saved: {}", line(&error)));
            }
        }
        let line = |(key, one): (&Digest, &Used)| {
            let restored = match one.restored {
                Some((bytes, seconds)) => format!("restored {} in {seconds:.1} s, ", size(bytes)),
                None => String::new(),
            };
            let saved = lines.get(key).map_or("", String::as_str);
            format!("mount {}: {restored}{saved}", one.id)
        };
        used.iter().map(line).collect()
    }

    async fn scan(
        self: &Arc<Self>,
        key: Digest,
        used: &Used,
    ) -> Result<Option<Scanned>, MountsError> {
        let mut loaded = self.loaded.wait().await.iter();
        let previous = loaded.find(|saved| saved.key == key && !used.useless);
        let previous = previous.filter(|saved| saved.packs.len() < PACKS).cloned();
        if let Some(previous) = &previous {
            // Without it all is new.
            drop(fetch(&self.place, &previous.index, &self.store).await);
        }
        let (this, id) = (Arc::clone(self), used.id.clone());
        let scan = tokio::task::spawn_blocking(move || scan(&this.store, key, &id, previous));
        scan.await.map_err(|_| RemoteError::Thread)?
    }

    /// Puts what is new, then what names it.
    async fn publish(
        &self,
        scanned: &[Scanned],
        lines: &mut BTreeMap<Digest, String>,
    ) -> Result<(), MountsError> {
        if scanned.iter().all(|found| found.made.is_empty()) {
            return Ok(());
        }
        let _lock = self.place.lock().await?;
        let (mut mounts, mut new) = (Vec::<Saved>::new(), Vec::new());
        let mut held = 0_u64;
        let max = self.max.unwrap_or(u64::MAX);
        for found in scanned {
            if held.saturating_add(found.saved.size()) > max {
                let text = format!("not saved: with it there would be more than {}", size(max));
                lines.insert(found.saved.key, text);
                continue;
            }
            held += found.saved.size();
            mounts.push(found.saved.clone());
            new.extend(&found.made);
        }
        // Those of others that were saved meanwhile stay, as far as they fit: the newest first.
        let mut others = match read(&self.place).await {
            Err(MountsError::Foreign) => return Err(MountsError::Foreign),
            others => others.unwrap_or_default(),
        };
        others.retain(|other| scanned.iter().all(|found| found.saved.key != other.key));
        others.sort_by_key(|other| std::cmp::Reverse(other.time));
        for other in others {
            if held.saturating_add(other.size()) <= max {
                held += other.size();
                mounts.push(other);
            }
        }
        let sink = self.place.sink()?;
        // Nothing else leaves the store, or goes from it, whatever the document names.
        for blob in new {
            let put = sink.put(blob, &*self.store, &|_, _| ()).await;
            if put.map_err(RemoteError::from)? == Put::Sent {
                drop(fs::remove_file(self.store.blob_path(&blob.digest)));
            }
        }
        let (config, layers) = document(&mounts)?;
        self.place
            .put_documents(CONFIG, config, layers, true)
            .await?;
        if let Some(folder) = self.place.folder() {
            let folder = folder.to_owned();
            let pruned = tokio::task::spawn_blocking(move || prune(&folder)).await;
            pruned.map_err(|_| RemoteError::Thread)??;
        }
        for mount in &mounts {
            if let Ok(Some(here)) = self
                .store
                .cache_mount(&mount.key, &mount.id, Sharing::Locked)
            {
                here.set_synced(&mount.index.digest.to_string())?;
            }
        }
        Ok(())
    }
}

fn document(mounts: &[Saved]) -> Result<(Vec<u8>, Vec<Descriptor>), MountsError> {
    let mut layers = Vec::new();
    let mut facts = Vec::new();
    for mount in mounts {
        let index = layers.len();
        layers.push(mount.index.clone());
        let packs = mount.packs.iter().map(|(pack, size)| {
            layers.push(pack.clone());
            PackFacts {
                layer: layers.len() - 1,
                size: *size,
            }
        });
        facts.push(MountFacts {
            id: mount.id.clone(),
            key: mount.key,
            saved: mount.time,
            bytes: mount.bytes,
            packs: packs.collect(),
            index,
        });
    }
    let document = Document {
        version: VERSION,
        mounts: facts,
    };
    Ok((serde_json::to_vec(&document)?, layers))
}

/// Looks through a mount that nobody uses meanwhile; packs what is not as it was saved. `None` when
/// somebody does, or it is not here. Blocks.
fn scan(
    store: &Arc<Store>,
    key: Digest,
    id: &str,
    previous: Option<Saved>,
) -> Result<Option<Scanned>, MountsError> {
    let Some(mount) = store.cache_mount(&key, id, Sharing::Locked)? else {
        return Ok(None);
    };
    if !mount.is_made() {
        return Ok(None);
    }
    store.claim_ids()?;
    let old = previous
        .as_ref()
        .and_then(|saved| index::read(store, &saved.index.digest).ok());
    let old = old.filter(|old| {
        // What the packs hold, and what of it is still wanted.
        let wanted = old
            .iter()
            .map(|entry| entry.size)
            .fold(0, u64::saturating_add);
        let packs = previous.iter().flat_map(|saved| &saved.packs);
        let packed = packs.map(|(_, size)| *size).fold(0, u64::saturating_add);
        wanted >= packed / 2 || packed < (1 << 20)
    });
    let (old, before) = match (old, previous) {
        (Some(old), Some(previous)) => (old, Some(previous)),
        _ => (Vec::new(), None),
    };
    let mut scan = Scan {
        store,
        path: mount.path().to_owned(),
        root: Root::open(mount.path()).map_err(io("opening it"))?,
        number: before.as_ref().map_or(0, |saved| saved.packs.len()),
        old: old
            .into_iter()
            .map(|entry| (entry.path.clone(), entry))
            .collect(),
        entries: Vec::new(),
        changed: BTreeSet::new(),
        pack: None,
        buffer: vec![0; CHUNK],
    };
    scan.all()?;
    scan.finish(key, id, before)
}

struct Scan<'a> {
    store: &'a Store,
    path: PathBuf,
    root: Root,
    /// Number of the pack that is written.
    number: usize,
    old: BTreeMap<String, Entry>,
    entries: Vec<Entry>,
    /// Files that are in the new pack, for those that are other names of them.
    changed: BTreeSet<String>,
    pack: Option<Pack>,
    buffer: Vec<u8>,
}

impl Scan<'_> {
    /// Reads the mount as the tar that packing it makes: so owners, attributes and links of every kind
    /// are what they are in layers.
    fn all(&mut self) -> Result<(), MountsError> {
        let (reader, writer) = stdio::pipe().map_err(io("making a pipe"))?;
        let root = Root::open(&self.path);
        let root = root.map_err(io("opening it"))?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let out = BufWriter::with_capacity(CHUNK, writer);
                let options = PackOptions {
                    root: true,
                    ..PackOptions::default()
                };
                pack_at(&root, out, &options)
            });
            let scanned = self.entries(BufReader::with_capacity(CHUNK, reader));
            let packed = packing.join().map_err(|_| RemoteError::Thread)?;
            // A reader that gave up makes the packer fail, too; its own error is the one that counts.
            scanned?;
            packed?;
            Ok(())
        })
    }

    fn entries(&mut self, tar: impl stdio::Read) -> Result<(), MountsError> {
        let mut tar = Reader::new(tar);
        while let Some(header) = tar.next_entry()? {
            self.entry(&header, &mut tar)?;
        }
        // The packer ends only when all is read.
        stdio::copy(&mut tar.into_inner(), &mut stdio::sink()).map_err(io("reading it"))?;
        Ok(())
    }

    fn entry<R: stdio::Read>(
        &mut self,
        header: &Header,
        tar: &mut Reader<R>,
    ) -> Result<(), MountsError> {
        let path = Path::new(OsStr::from_bytes(path_of(header)));
        let stat = self
            .root
            .stat(path, false)
            .map_err(io("looking at a file in it"))?;
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let mut entry = Entry::new(header, nanoseconds);
        let old = self
            .old
            .get(&entry.path)
            .filter(|old| old.is_like(&entry))
            .cloned();
        let old = old.filter(|old| {
            let moved = old
                .same_as()
                .is_some_and(|file| self.changed.contains(file));
            !moved
        });
        if header.kind != Kind::File {
            match old {
                Some(old) => entry.pack = old.pack,
                None => {
                    self.writer()?.entry(header)?;
                    entry.pack = self.number;
                }
            }
            self.entries.push(entry);
            return Ok(());
        }
        let digest = self.content(header, tar, old.is_none())?;
        entry.digest = Some(digest);
        entry.pack = match old {
            Some(old) if old.digest == Some(digest) => old.pack,
            Some(_) => {
                // Changed, and its time is the same: read once more, now for the pack.
                self.reread(header, path)?;
                self.number
            }
            None => self.number,
        };
        if entry.pack == self.number {
            self.changed.insert(entry.path.clone());
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Reads the content of a file, and writes it to the pack or not.
    fn content<R: stdio::Read>(
        &mut self,
        header: &Header,
        tar: &mut Reader<R>,
        write: bool,
    ) -> Result<Digest, MountsError> {
        let mut hasher = Hasher::new();
        if write {
            self.writer()?.entry(header)?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some((_, count)) = tar.read_stored(&mut buffer).map_err(io("reading it"))? {
            hasher.update(&buffer[..count]);
            if write {
                self.writer()?.content(&buffer[..count])?;
            }
        }
        self.buffer = buffer;
        Ok(hasher.finish())
    }

    fn reread(&mut self, header: &Header, path: &Path) -> Result<(), MountsError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = self
            .root
            .open_beneath(path, flags)
            .map_err(io("opening a file in it"))?;
        let mut file = File::from(file);
        self.writer()?.entry(header)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            match file.read(&mut buffer).map_err(io("reading a file in it"))? {
                0 => break,
                count => self.writer()?.content(&buffer[..count])?,
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// The pack; begun when there is something for it.
    fn writer(&mut self) -> Result<&mut Pack, MountsError> {
        if self.pack.is_none() {
            let failed = |error| io("compressing it")(error);
            let mut encoder = zstd::Encoder::new(self.store.new_blob()?, 3).map_err(failed)?;
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            encoder
                .multithread(u32::try_from(threads).unwrap_or(1))
                .map_err(failed)?;
            self.pack = Some(Writer::new(encoder));
        }
        self.pack
            .as_mut()
            .ok_or(MountsError::Wrong("it has no pack"))
    }

    fn finish(
        self,
        key: Digest,
        id: &str,
        before: Option<Saved>,
    ) -> Result<Option<Scanned>, MountsError> {
        let removed = self.old.len() != self.entries.len();
        let mut packs = before
            .as_ref()
            .map_or_else(Vec::new, |saved| saved.packs.clone());
        let mut made = Vec::new();
        match (self.pack, before) {
            (None, Some(before)) if !removed => {
                return Ok(Some(Scanned {
                    saved: before,
                    made,
                }));
            }
            (None, _) => {}
            (Some(pack), _) => {
                let (encoder, size) = pack.finish()?;
                let blob = encoder
                    .finish()
                    .map_err(io("compressing it"))?
                    .commit(self.store)?;
                let blob = Descriptor::new(OCI_LAYER_ZSTD, blob.0, blob.1);
                made.push(blob.clone());
                packs.push((blob, size));
            }
        }
        let (digest, size) = index::write(self.store, &self.entries)?;
        let index = Descriptor::new(INDEX, digest, size);
        made.push(index.clone());
        let bytes = self.entries.iter().map(|entry| entry.size);
        Ok(Some(Scanned {
            saved: Saved {
                id: id.to_owned(),
                key,
                time: now(),
                bytes: bytes.fold(0, u64::saturating_add),
                index,
                packs,
            },
            made,
        }))
    }
}

/// A size for people, in decimal units.
fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 10_000 {
            break;
        }
        (value, unit) = (value / 1000, next);
    }
    format!("{value} {unit}")
}
