//! Uploads that a registry has opened, and where they are remembered, so that the next process goes
//! on with them (D7.2).
//!
//! An address of an upload may let whoever knows it write to it: the files that hold one are
//! readable by their owner only, appear in no message, and are gone when the upload is done or the
//! registry has forgotten it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use reqwest::Url;
use reqwest::header::HeaderName;
use serde::{Deserialize, Serialize};

use super::error::ClientError;
use super::transport::{Answer, lock};
use super::wire::location;
use crate::digest::Digest;
use crate::spec::Descriptor;

const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// Blobs from this size on are remembered, bytes; smaller ones are sent again in no time.
const WORTH: u64 = 1 << 20;

/// The largest record that is read, bytes.
const RECORD: u64 = 64 << 10;

/// What the names of records begin with; the rest is a digest in hexadecimal.
pub(super) const PREFIX: &str = "upload-";

/// An upload that a registry has opened.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Where to send to; each answer gives a new one.
    pub(super) location: Url,
    /// The smallest chunk that the registry takes, bytes.
    pub(super) smallest: u64,
}

impl Session {
    /// The session that an answer opened.
    pub(super) fn opened(answer: &Answer) -> Result<Self, ClientError> {
        let headers = answer.response.headers();
        let smallest = answer
            .header(CHUNK_MIN_LENGTH)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Ok(Self {
            location: location(&answer.method, &answer.url, headers)?,
            smallest,
        })
    }
}

/// What is known of the uploads of a client.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// Where they are remembered; without it they end with the process.
    folder: Option<PathBuf>,
    /// Registries that forget what they have of a request that broke.
    forgetful: Mutex<HashSet<String>>,
}

impl Sessions {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self {
            folder,
            forgetful: Mutex::default(),
        }
    }

    /// Whether a registry is known to lose an upload when a request breaks.
    pub(super) fn is_forgetful(&self, registry: &str) -> bool {
        lock(&self.forgetful).contains(registry)
    }

    /// Notes that it is.
    pub(super) fn found_forgetful(&self, registry: &str) {
        lock(&self.forgetful).insert(registry.to_owned());
    }

    /// The memory of one upload. Where another process is at the same upload, or nothing can be
    /// written, it remembers nothing: the upload is made all the same.
    pub(super) async fn memory(
        &self,
        registry: &str,
        repository: &str,
        blob: &Descriptor,
    ) -> Memory {
        let Some(folder) = self.folder.clone().filter(|_| blob.size >= WORTH) else {
            return Memory(None);
        };
        let key = format!("{registry}\n{repository}\n{}", blob.digest);
        let path = folder.join(format!("{PREFIX}{}", Digest::of(key.as_bytes()).hex()));
        let claimed = tokio::task::spawn_blocking(move || claim(&folder, &path));
        Memory(
            claimed
                .await
                .ok()
                .flatten()
                .map(|place| Arc::new((key, place))),
        )
    }
}

/// Where one upload is remembered, for as long as this process is at it.
#[derive(Debug)]
pub(super) struct Memory(Option<Arc<(String, Place)>>);

#[derive(Debug)]
struct Place {
    /// Locked.
    file: Mutex<File>,
    path: PathBuf,
}

/// What is written down.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// Registry, repository and blob, to be sure.
    key: String,
    location: String,
    smallest: u64,
    /// Size of the chunks that it was sent in.
    chunk: Option<u64>,
}

impl Memory {
    /// The upload that an earlier process left, and the size of the chunks it sent.
    pub(super) async fn load(&self) -> Option<(Session, Option<u64>)> {
        let place = self.0.clone()?;
        let read =
            tokio::task::spawn_blocking(move || read(&place.1).ok().map(|text| (text, place)));
        let (text, place) = read.await.ok()??;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let location = Url::parse(&record.location).ok()?;
        let usable = record.key == place.0 && matches!(location.scheme(), "http" | "https");
        let session = Session {
            location,
            smallest: record.smallest,
        };
        usable.then_some((session, record.chunk))
    }

    /// Writes down where an upload is. That it cannot be is no reason to fail.
    pub(super) async fn save(&self, session: &Session, chunk: Option<u64>) {
        let Some(place) = self.0.clone() else { return };
        let record = Record {
            key: place.0.clone(),
            location: session.location.to_string(),
            smallest: session.smallest,
            chunk,
        };
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&record).unwrap_or_default();
            drop(write(&place.1, &text));
        });
        drop(written.await);
    }

    /// Removes what was written down.
    pub(super) async fn forget(&self) {
        let Some(place) = self.0.clone() else { return };
        let removed = tokio::task::spawn_blocking(move || {
            drop(write(&place.1, b""));
            drop(fs::remove_file(&place.1.path));
        });
        drop(removed.await);
    }
}

fn claim(folder: &Path, path: &Path) -> Option<Place> {
    if !folder.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(folder).ok()?;
    }
    // Who ended between our opening and locking has removed the file: a second look finds none.
    for _ in 0..2 {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .ok()?;
        file.try_lock().ok()?;
        if file.metadata().ok()?.nlink() > 0 {
            return Some(Place {
                file: Mutex::new(file),
                path: path.to_owned(),
            });
        }
    }
    None
}

fn read(place: &Place) -> std::io::Result<Vec<u8>> {
    let mut file = lock(&place.file);
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    (&mut *file).take(RECORD).read_to_end(&mut text)?;
    Ok(text)
}

fn write(place: &Place, text: &[u8]) -> std::io::Result<()> {
    let mut file = lock(&place.file);
    // A record that is cut short is none: it is no JSON then.
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text)
}

impl Drop for Place {
    fn drop(&mut self) {
        let file = lock(&self.file);
        // An upload that never was leaves no file.
        if file
            .metadata()
            .is_ok_and(|metadata| metadata.len() == 0 && metadata.nlink() > 0)
        {
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn blob() -> Descriptor {
        Descriptor::new("application/octet-stream", Digest::of(b"x"), WORTH)
    }

    fn session(location: &str) -> Session {
        Session {
            location: Url::parse(location).unwrap(),
            smallest: 7,
        }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    #[tokio::test]
    async fn d7_2_an_upload_is_remembered_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("partial");
        let sessions = Sessions::new(Some(folder.clone()));
        let memory = sessions.memory("r", "a", &blob()).await;
        assert!(memory.load().await.is_none());
        memory
            .save(&session("https://r/u/1?state=longer"), Some(5))
            .await;
        memory
            .save(&session("https://r/u/1?state=s"), Some(5))
            .await;
        // Another process at the same upload remembers nothing, and takes nothing away.
        let other = Sessions::new(Some(folder.clone()))
            .memory("r", "a", &blob())
            .await;
        assert!(other.load().await.is_none());
        other.forget().await;
        drop(memory);
        let mode = fs::metadata(&files(&folder)[0])
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        let memory = sessions.memory("r", "a", &blob()).await;
        let (found, chunk) = memory.load().await.unwrap();
        assert_eq!(found.location.as_str(), "https://r/u/1?state=s");
        assert_eq!((found.smallest, chunk), (7, Some(5)));
        assert!(
            sessions
                .memory("r", "b", &blob())
                .await
                .load()
                .await
                .is_none()
        );
        memory.forget().await;
        drop(memory);
        assert_eq!(files(&folder), [] as [PathBuf; 0]);
    }

    #[tokio::test]
    async fn d7_2_a_damaged_record_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Sessions::new(Some(folder.path().to_owned()));
        let memory = sessions.memory("r", "a", &blob()).await;
        memory.save(&session("https://r/u/1"), None).await;
        let path = files(folder.path()).remove(0);
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            good[..good.len() - 1].to_owned(),
            good.replace("https", "file"),
            good.replace("r\\na", "r\\nb"),
            "[".repeat(100_000),
        ] {
            fs::write(&path, bad).unwrap();
            assert!(memory.load().await.is_none());
        }
        fs::write(&path, good).unwrap();
        assert!(memory.load().await.is_some());
    }
}
