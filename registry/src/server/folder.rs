//! What a registry holds, as files.
//!
//! ```text
//! ROOT/lock                                       held by the server
//! ROOT/blobs/sha256/HEX                           content of blobs and manifests, each once
//! ROOT/repositories/NAME/_blobs/HEX               the repository holds this blob
//! ROOT/repositories/NAME/_manifests/HEX           the repository holds this manifest: its media type
//! ROOT/repositories/NAME/_tags/TAG                the digest that the tag names
//! ROOT/repositories/NAME/_referrers/HEX/HEX       a manifest about another one: its descriptor
//! ROOT/uploads/ID/NAME..., ROOT/uploads/ID/data   a blob that is coming in, and its repository
//! ROOT/tmp/                                       unfinished files
//! ```
//!
//! Components of a repository's name never begin with `_`. Files appear by rename, written whole
//! and flushed. What belongs together is changed under one lock.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;
use crate::spec::Descriptor;

/// The largest manifest, bytes.
pub(super) const MANIFEST: usize = 4 << 20;

/// The largest of the small files here, bytes.
const RECORD: u64 = 64 << 10;

/// Components of a repository's name that are looked into for a catalog.
const DEPTH: usize = 128;

/// A folder that a registry keeps its things in.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Held while manifests and tags change.
    changing: Mutex<()>,
    count: AtomicU64,
    _lock: File,
}

/// A manifest that a repository holds.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

impl Folder {
    /// Opens a folder, made where there is none, and locks it.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        for folder in ["blobs/sha256", "repositories", "uploads", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        let lock = File::options()
            .create(true)
            .append(true)
            .open(root.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                let problem = format!("`{}` is served by another process", root.display());
                io::Error::new(ErrorKind::WouldBlock, problem)
            }
            fs::TryLockError::Error(error) => error,
        })?;
        // What a killed server left; nobody else writes here now.
        for entry in fs::read_dir(root.join("tmp"))?.flatten() {
            fs::remove_file(entry.path())?;
        }
        Ok(Self {
            root: root.to_owned(),
            changing: Mutex::default(),
            count: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// The file of some content.
    pub(super) fn content(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// The folder of an upload.
    pub(super) fn upload(&self, id: &str) -> PathBuf {
        self.root.join("uploads").join(id)
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name)
    }

    /// Begins a change of manifests and tags. What is read until its end is not changed by others.
    pub(super) fn change(&self) -> Change<'_> {
        let held = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        Change {
            folder: self,
            _held: held,
        }
    }

    /// Whether a repository has been pushed to.
    pub(super) fn has_repository(&self, name: &str) -> bool {
        let folder = self.repository(name);
        folder.join("_manifests").is_dir() || folder.join("_blobs").is_dir()
    }

    /// The file and size of a blob, if the repository holds it. Manifests are served as blobs, too.
    pub(super) fn blob(&self, name: &str, digest: Digest) -> io::Result<Option<(PathBuf, u64)>> {
        let folder = self.repository(name);
        let linked = ["_blobs", "_manifests"].map(|kind| folder.join(kind).join(digest.hex()));
        if !linked.iter().any(|link| link.exists()) {
            return Ok(None);
        }
        let path = self.content(digest);
        let size = missing_is_none(fs::metadata(&path))?;
        Ok(size.map(|metadata| (path, metadata.len())))
    }

    /// Puts content that is there into a repository.
    pub(super) fn link_blob(&self, name: &str, digest: Digest) -> io::Result<()> {
        self.write(
            &self.repository(name).join("_blobs").join(digest.hex()),
            b"",
        )
    }

    /// Takes a blob out of a repository; false when it was not there.
    pub(super) fn unlink_blob(&self, name: &str, digest: Digest) -> io::Result<bool> {
        let link = self.repository(name).join("_blobs").join(digest.hex());
        Ok(missing_is_none(fs::remove_file(link))?.is_some())
    }

    /// Makes a file the content of a digest. The file was verified, and is gone afterwards.
    pub(super) fn adopt(&self, file: &Path, digest: Digest) -> io::Result<()> {
        let path = self.content(digest);
        File::open(file)?.sync_all()?;
        fs::rename(file, &path)?;
        sync_folder(&path)
    }

    /// The manifest that a tag names, or of a digest.
    pub(super) fn manifest(
        &self,
        name: &str,
        wanted: &super::route::Wanted,
    ) -> io::Result<Option<Stored>> {
        let digest = match wanted {
            super::route::Wanted::Digest(digest) => Some(*digest),
            super::route::Wanted::Tag(tag) => self.tag(name, tag)?,
        };
        let Some(digest) = digest else {
            return Ok(None);
        };
        let record = self.repository(name).join("_manifests").join(digest.hex());
        let Some(media_type) = read_record(&record)? else {
            return Ok(None);
        };
        let Some(file) = missing_is_none(File::open(self.content(digest)))? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Some(Stored {
            digest,
            media_type,
            bytes,
        }))
    }

    fn tag(&self, name: &str, tag: &str) -> io::Result<Option<Digest>> {
        let text = read_record(&self.repository(name).join("_tags").join(tag))?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// The tags of a repository, sorted.
    pub(super) fn tags(&self, name: &str) -> io::Result<Vec<String>> {
        entries(&self.repository(name).join("_tags"))
    }

    /// The referrers of a manifest, sorted by digest.
    pub(super) fn referrers(&self, name: &str, subject: Digest) -> io::Result<Vec<Descriptor>> {
        let folder = self.repository(name).join("_referrers").join(subject.hex());
        let mut found = Vec::new();
        for entry in entries(&folder)? {
            let text = read_record(&folder.join(entry))?;
            found.extend(text.and_then(|text| serde_json::from_str(&text).ok()));
        }
        Ok(found)
    }

    /// The names of all repositories that hold a manifest, sorted.
    pub(super) fn catalog(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut waiting = vec![(String::new(), 0)];
        while let Some((name, depth)) = waiting.pop() {
            let folder = self.repository(&name);
            if !entries(&folder.join("_manifests"))?.is_empty() {
                names.push(name.clone());
            }
            let children = entries(&folder)?.into_iter();
            for child in children.filter(|child| !child.starts_with('_') && depth < DEPTH) {
                let below = if name.is_empty() {
                    child
                } else {
                    format!("{name}/{child}")
                };
                waiting.push((below, depth + 1));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Writes a file, which appears whole or not at all.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let partial = self.root.join("tmp").join(number.to_string());
        let written = (|| {
            let mut file = File::create(&partial)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&partial, path)?;
            sync_folder(path)
        })();
        if written.is_err() {
            drop(fs::remove_file(&partial));
        }
        written
    }
}

/// A change of manifests and tags that is under way; there is one at a time.
#[derive(Debug)]
pub(super) struct Change<'a> {
    folder: &'a Folder,
    _held: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// Stores a manifest, in this order: its content, that the repository has it, who it is about,
    /// its tags.
    pub(super) fn put_manifest(
        &self,
        name: &str,
        manifest: &Stored,
        tags: &[String],
        about: Option<&(Digest, Descriptor)>,
    ) -> io::Result<()> {
        let folder = self.folder.repository(name);
        let hex = manifest.digest.hex();
        let content = self.folder.content(manifest.digest);
        if !content.exists() {
            self.folder.write(&content, &manifest.bytes)?;
        }
        self.folder.write(
            &folder.join("_manifests").join(&hex),
            manifest.media_type.as_bytes(),
        )?;
        if let Some((subject, entry)) = about {
            let entry = serde_json::to_vec(entry)?;
            self.folder.write(
                &folder.join("_referrers").join(subject.hex()).join(&hex),
                &entry,
            )?;
        }
        for tag in tags {
            let text = manifest.digest.to_string();
            self.folder
                .write(&folder.join("_tags").join(tag), text.as_bytes())?;
        }
        Ok(())
    }

    /// Deletes a manifest with all its tags; false when it was not there.
    pub(super) fn delete_manifest(&self, name: &str, digest: Digest) -> io::Result<bool> {
        let folder = self.folder.repository(name);
        for tag in entries(&folder.join("_tags"))? {
            if self.folder.tag(name, &tag)? == Some(digest) {
                missing_is_none(fs::remove_file(folder.join("_tags").join(&tag)))?;
            }
        }
        for subject in entries(&folder.join("_referrers"))? {
            let entry = folder.join("_referrers").join(subject).join(digest.hex());
            missing_is_none(fs::remove_file(entry))?;
        }
        let record = folder.join("_manifests").join(digest.hex());
        Ok(missing_is_none(fs::remove_file(record))?.is_some())
    }

    /// Deletes a tag; false when it was not there.
    pub(super) fn delete_tag(&self, name: &str, tag: &str) -> io::Result<bool> {
        let path = self.folder.repository(name).join("_tags").join(tag);
        Ok(missing_is_none(fs::remove_file(path))?.is_some())
    }
}

/// The names in a folder, sorted; none where there is no folder.
fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = missing_is_none(fs::read_dir(folder))? else {
        return Ok(Vec::new());
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
    let names: io::Result<Vec<Option<String>>> = names.collect();
    let mut names: Vec<String> = names?.into_iter().flatten().collect();
    names.sort_unstable();
    Ok(names)
}

fn read_record(path: &Path) -> io::Result<Option<String>> {
    let Some(file) = missing_is_none(File::open(path))? else {
        return Ok(None);
    };
    let mut text = String::new();
    file.take(RECORD).read_to_string(&mut text)?;
    Ok(Some(text))
}

pub(super) fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
