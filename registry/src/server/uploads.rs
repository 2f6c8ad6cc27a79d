//! Blobs into a registry: sessions that can be gone on with after a break, in one request or many
//! (D7.1, D7.2).

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, LOCATION, RANGE};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::folder::{Folder, missing_is_none};
use super::reply::{Refused, Reply};
use super::route::Query;
use super::{ServerOptions, Shared, on_disk};
use crate::digest::{Digest, Hasher};
use crate::reference::is_repository;

/// Sessions open at once.
const SESSIONS: usize = 10_000;

/// A session that nothing was sent to for this long is given up.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a request waits for the one before it on the same session to end.
const WAIT: Duration = Duration::from_secs(10);

/// Pieces of a body that may wait for the disk.
const PIECES: usize = 8;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

const UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The sessions that are open.
#[derive(Debug)]
pub(super) struct Uploads {
    folder: Arc<Folder>,
    options: ServerOptions,
    /// Each is used by one request at a time.
    sessions: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Session>>>>,
}

/// What is known of a session besides its files.
#[derive(Debug, Default)]
struct Session {
    /// The digest of what has come, and its length; none when this process has not seen all of it.
    hashed: Option<(Hasher, u64)>,
}

type Held = tokio::sync::OwnedMutexGuard<Session>;

impl Uploads {
    pub(super) fn new(folder: Arc<Folder>, options: ServerOptions) -> Self {
        Self {
            folder,
            options,
            sessions: Mutex::default(),
        }
    }

    /// Takes a session for one request; refused when it is not of that repository.
    async fn hold(&self, name: &str, id: &str) -> Result<Held, Refused> {
        let unknown = || Refused::new(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload");
        // Also what keeps an id from being a path.
        let valid = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let owner = valid.then(|| fs::read_to_string(self.folder.upload(id).join("name")).ok());
        if owner.flatten().as_deref() != Some(name) {
            self.forget(id);
            return Err(unknown());
        }
        let session = {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(sessions.entry(id.to_owned()).or_default())
        };
        let held = timeout(WAIT, session.lock_owned()).await;
        held.map_err(|_| Refused::busy())
    }

    fn forget(&self, id: &str) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(id);
    }
}

/// Opens a session; or mounts a blob, or takes one in at once, where that is asked for.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    name: String,
    query: Query,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from")) {
        let digest = super::route::digest(mount)?;
        let (from, to) = (from.to_owned(), name.clone());
        let mounted = on_disk(shared, move |folder| {
            let there = is_repository(&from) && folder.blob(&from, digest)?.is_some();
            if there {
                folder.link_blob(&to, digest)?;
            }
            Ok(there)
        });
        if mounted.await? {
            return Ok(created(&name, digest));
        }
    }
    let id = new_id();
    let (at, owner) = (id.clone(), name.clone());
    let opened = on_disk(shared, move |folder| open_session(folder, &at, &owner)).await?;
    if !opened {
        let message = "too many uploads are open";
        return Err(Refused::new(429, "TOOMANYREQUESTS", message));
    }
    let mut held = shared.uploads.hold(&name, &id).await?;
    held.hashed = Some((Hasher::new(), 0));
    match query.digest() {
        Some(digest) => {
            let digest = digest?;
            let (held, _) = take(shared, &id, held, request).await?;
            close(shared, name, &id, held, digest).await
        }
        None => Ok(accepted(202, &name, &id, 0)),
    }
}

/// Makes the folder of a session; false when there are too many.
fn open_session(folder: &Folder, id: &str, name: &str) -> io::Result<bool> {
    let path = folder.upload(id);
    if let Some(all) = path.parent() {
        let mut open = 0;
        for entry in fs::read_dir(all)?.flatten() {
            let touched = entry.path().join("data");
            let age = fs::metadata(touched).and_then(|metadata| metadata.modified());
            if age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED)) {
                missing_is_none(fs::remove_dir_all(entry.path()))?;
            } else {
                open += 1;
            }
        }
        if open >= SESSIONS {
            return Ok(false);
        }
    }
    fs::create_dir(&path)?;
    File::create(path.join("data"))?;
    fs::write(path.join("name"), name)?;
    Ok(true)
}

pub(super) async fn status(shared: &Arc<Shared>, name: String, id: &str) -> Result<Reply, Refused> {
    let held = shared.uploads.hold(&name, id).await?;
    let size = size(shared, id).await?;
    drop(held);
    Ok(accepted(204, &name, id, size))
}

/// Takes in a part of a blob, at the place where the last one ended.
pub(super) async fn patch(
    shared: &Arc<Shared>,
    name: String,
    id: &str,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    let held = shared.uploads.hold(&name, id).await?;
    let before = size(shared, id).await?;
    in_place(&request, &name, id, before)?;
    let (held, size) = take(shared, id, held, request).await?;
    drop(held);
    Ok(accepted(202, &name, id, size))
}

/// Takes in the last part, if there is one, and makes a blob of it all.
pub(super) async fn finish(
    shared: &Arc<Shared>,
    name: String,
    id: &str,
    query: Query,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    let missing = || Refused::digest_invalid("the parameter `digest` is missing");
    let digest = query.digest().ok_or_else(missing)??;
    let held = shared.uploads.hold(&name, id).await?;
    let before = size(shared, id).await?;
    in_place(&request, &name, id, before)?;
    let (held, _) = take(shared, id, held, request).await?;
    close(shared, name, id, held, digest).await
}

pub(super) async fn cancel(shared: &Arc<Shared>, name: String, id: &str) -> Result<Reply, Refused> {
    let held = shared.uploads.hold(&name, id).await?;
    remove(shared, id).await?;
    drop(held);
    Ok(Reply::empty(204))
}

async fn remove(shared: &Arc<Shared>, id: &str) -> Result<(), Refused> {
    shared.uploads.forget(id);
    let path = shared.folder.upload(id);
    on_disk(shared, move |_| {
        missing_is_none(fs::remove_dir_all(path)).map(drop)
    })
    .await
}

async fn size(shared: &Arc<Shared>, id: &str) -> Result<u64, Refused> {
    let path = shared.folder.upload(id).join("data");
    on_disk(shared, move |_| {
        fs::metadata(path).map(|metadata| metadata.len())
    })
    .await
}

/// Refuses a part that does not begin where the last one ended (D7.2).
fn in_place(request: &Request<Incoming>, name: &str, id: &str, size: u64) -> Result<(), Refused> {
    let Some(range) = request.headers().get(CONTENT_RANGE) else {
        return Ok(());
    };
    let text = range.to_str().unwrap_or_default();
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let first = text
        .split_once('-')
        .and_then(|(first, _)| first.parse::<u64>().ok());
    if first == Some(size) {
        return Ok(());
    }
    let message = format!("the next byte is {size}");
    let refused = Refused::new(416, "BLOB_UPLOAD_INVALID", message);
    Err(refused
        .header(LOCATION, place(name, id))
        .header(RANGE, received(size)))
}

/// Appends a request's body to a session and gives the size of all that came. What arrived before
/// a break is kept: the client asks how much that is, and goes on from there. The session is free
/// again only when the last byte is written, also when nobody waits for that any more.
async fn take(
    shared: &Arc<Shared>,
    id: &str,
    mut held: Held,
    request: Request<Incoming>,
) -> Result<(Held, u64), Refused> {
    let limit = shared.uploads.options.largest_blob;
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let path = shared.folder.upload(id).join("data");
    let (sender, pieces) = mpsc::channel(PIECES);
    let writer = tokio::task::spawn_blocking(move || {
        let appended = append(path, &mut held.hashed, limit, pieces);
        (held, appended)
    });
    let mut body = request.into_body();
    let stall = shared.options.stall;
    let read = loop {
        match timeout(stall, body.frame()).await {
            Ok(None) => break Ok(()),
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                if sender.send(data).await.is_err() {
                    break Ok(());
                }
            }
            Ok(Some(Err(_))) | Err(_) => break Err(broken()),
        }
    };
    drop(sender);
    let (held, written) = writer.await.map_err(|_| Refused::failed())?;
    let size = written.map_err(|error| Refused::disk(&error))?;
    let size = size.ok_or_else(|| too_large(limit))?;
    read.map(|()| (held, size))
}

/// Writes pieces behind a session's data; the size that it has then, or nothing when it grew too
/// large.
fn append(
    path: PathBuf,
    hashed: &mut Option<(Hasher, u64)>,
    limit: u64,
    mut pieces: mpsc::Receiver<Bytes>,
) -> io::Result<Option<u64>> {
    let mut file = File::options().append(true).open(path)?;
    let mut size = file.metadata()?.len();
    if hashed.as_ref().is_some_and(|(_, length)| *length != size) {
        *hashed = None;
    }
    while let Some(piece) = pieces.blocking_recv() {
        let length = piece.len() as u64;
        if size + length > limit {
            return Ok(None);
        }
        file.write_all(&piece)?;
        size += length;
        if let Some((hasher, seen)) = hashed {
            hasher.update(&piece);
            *seen = size;
        }
    }
    Ok(Some(size))
}

/// Makes a blob of what came, when it is what was announced; otherwise it is thrown away.
async fn close(
    shared: &Arc<Shared>,
    name: String,
    id: &str,
    mut held: Held,
    digest: Digest,
) -> Result<Reply, Refused> {
    let path = shared.folder.upload(id).join("data");
    let (hashed, repository) = (held.hashed.take(), name.clone());
    let stored = on_disk(shared, move |folder| {
        let size = fs::metadata(&path)?.len();
        let actual = match hashed {
            Some((hasher, length)) if length == size => hasher.finish(),
            _ => hash(&path)?,
        };
        if actual == digest {
            folder.adopt(&path, digest)?;
            folder.link_blob(&repository, digest)?;
        }
        Ok(actual)
    });
    let actual = stored.await?;
    remove(shared, id).await?;
    drop(held);
    if actual != digest {
        let message = format!("what was uploaded is {actual}");
        return Err(Refused::digest_invalid(message).about(&[digest]));
    }
    Ok(created(&name, digest))
}

fn hash(path: &PathBuf) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// The whole of a body that is to be small.
pub(super) async fn whole_body(
    mut body: Incoming,
    limit: usize,
    stall: Duration,
) -> Result<Vec<u8>, Refused> {
    let mut bytes = Vec::new();
    loop {
        match timeout(stall, body.frame()).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                if bytes.len() + data.len() > limit {
                    return Err(too_large(limit as u64));
                }
                bytes.extend_from_slice(&data);
            }
            Ok(Some(Err(_))) | Err(_) => return Err(broken()),
        }
    }
}

fn too_large(limit: u64) -> Refused {
    Refused::new(
        413,
        "SIZE_INVALID",
        format!("more than {limit} bytes are not taken"),
    )
}

fn broken() -> Refused {
    Refused::new(400, "BLOB_UPLOAD_INVALID", "the request broke off")
}

fn place(name: &str, id: &str) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

/// `0-99` for 100 bytes; `0-0` is how registries say that there is none.
fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn accepted(status: u16, name: &str, id: &str, size: u64) -> Reply {
    Reply::empty(status)
        .header(LOCATION, place(name, id))
        .header(RANGE, received(size))
        .header(UUID, id)
}

fn created(name: &str, digest: Digest) -> Reply {
    Reply::empty(201)
        .header(LOCATION, format!("/v2/{name}/blobs/{digest}"))
        .digest(digest)
}

/// A session's name, which nobody can guess: the standard library seeds its hashers at random.
fn new_id() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
