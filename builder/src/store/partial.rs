//! Blobs that are not whole yet, in `partial`: the next process goes on with them (D5.3).
//!
//! A blob that comes in is written to `partial/HEX`, named by its digest and locked by who writes
//! it; others wait for that one. It moves to its name among the blobs when all of it is there and
//! size and digest are right. What a process left unfinished stays for [`KEPT`], and no more than
//! [`MOST`] bytes of it, the newest. The folder also holds the client's memory of unfinished
//! uploads, which stays as long.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_registry::blob::{BlobError, BlobSource, Progress, Put, Step};
use kiln_registry::digest::Verifier;
use kiln_registry::spec::Descriptor;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::blobs::{AT_ONCE, CHUNK, blob_error, io_error};
use super::coming::Arrival;
use super::lock::same_file;
use super::{Store, StoreError};
use crate::sys::writeback;

/// How long what is unfinished is kept after it was last written to.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The most bytes of it that are kept.
const MOST: u64 = 32 << 30;

/// How often is looked whether another process has finished a blob.
const LOOK: Duration = Duration::from_millis(50);

/// A blob that is being written, by this process alone.
#[derive(Debug)]
struct Partial {
    file: File,
    path: PathBuf,
    /// What the file holds has gone through it.
    verifier: Verifier,
    /// Who reads the file meanwhile is told how far it is.
    arrival: Option<Arc<Arrival>>,
}

/// What the network hands to the thread that writes.
enum Piece {
    Bytes(Vec<u8>),
    /// That was all, and not a break.
    End,
}

/// How writing ended.
enum Written {
    /// The blob has its name.
    Whole,
    /// It broke off; what is there stays.
    Part,
}

impl Store {
    /// Where unfinished transfers are kept.
    #[must_use]
    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Puts a blob, going on where an earlier process ended.
    pub(super) async fn receive(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        progress: &Progress,
    ) -> Result<Put, BlobError> {
        if self.has_blob(&blob.digest) {
            return self.arrived(blob);
        }
        let Some(partial) = self.claim_partial(blob).await? else {
            return self.arrived(blob);
        };
        let target = self.blob_path(&blob.digest);
        let resumed = partial.verifier.seen();
        if resumed > 0 {
            progress(blob, Step::Resumed(resumed));
        }
        match fill(partial, blob, source, progress, &target).await {
            // What had been kept may have been damaged, by a crash of the machine say.
            Err(BlobError::Mismatch(_)) if resumed > 0 => {
                let Some(partial) = self.claim_partial(blob).await? else {
                    return self.arrived(blob);
                };
                fill(partial, blob, source, progress, &target).await?;
            }
            result => result?,
        }
        Ok(Put::Sent)
    }

    /// Says of a blob that another process has brought that it is here.
    fn arrived(&self, blob: &Descriptor) -> Result<Put, BlobError> {
        if let Some(arrival) = self.arrival(&blob.digest) {
            let file = self.open_blob(&blob.digest).map_err(blob_error)?;
            arrival.begin(file, blob.size);
            arrival.right();
        }
        Ok(Put::Existed)
    }

    /// Waits for the right to write a blob, and reads what is there of it; `None` when another
    /// process has finished it meanwhile.
    async fn claim_partial(&self, blob: &Descriptor) -> Result<Option<Partial>, BlobError> {
        let path = self.partial().join(blob.digest.hex());
        loop {
            let (open, digest, size) = (path.clone(), blob.digest, blob.size);
            let arrival = self.arrival(&digest);
            let verifier = Verifier::new(digest, size);
            let claimed = blocking(move || claim(open, verifier, size, arrival)).await?;
            // Only now: it may have been finished between a look before and the lock.
            if self.has_blob(&blob.digest) {
                if let Some(partial) = claimed {
                    partial.remove();
                }
                return Ok(None);
            }
            if claimed.is_some() {
                return Ok(claimed);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Fetches what is missing of a blob and gives it its name.
async fn fill(
    partial: Partial,
    blob: &Descriptor,
    source: &dyn BlobSource,
    progress: &Progress,
    target: &Path,
) -> Result<(), BlobError> {
    let mut seen = partial.verifier.seen();
    // What is written is verified, whoever it comes from.
    let mut reader = match source.open_unverified(blob, seen).await {
        Ok(reader) => reader,
        Err(error) => {
            partial.leave();
            return Err(error);
        }
    };
    // Hashing and writing run beside the network, on a thread that may block.
    let (sender, receiver) = mpsc::channel(4);
    let target = target.to_owned();
    let writer = tokio::spawn(blocking(move || partial.write(receiver, &target)));
    let broken = loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        match reader.read_buf(&mut bytes).await {
            Ok(0) => {
                drop(sender.send(Piece::End).await);
                break None;
            }
            Ok(count) => seen += count as u64,
            Err(error) => break Some(io_error(format!("reading {}", blob.digest))(error)),
        }
        progress(blob, Step::Bytes(seen));
        if sender.send(Piece::Bytes(bytes)).await.is_err() {
            break None; // The writer stopped; its own error says why.
        }
    };
    drop(sender);
    let failed = |error| io_error("writing a blob".to_owned())(io::Error::other(error));
    let written = writer.await.map_err(failed)?;
    match (broken, written) {
        (Some(error), _) | (None, Err(error)) => Err(error),
        (None, Ok(Written::Whole)) => Ok(()),
        (None, Ok(Written::Part)) => {
            let error = io::Error::from(io::ErrorKind::UnexpectedEof);
            Err(io_error(format!("reading {}", blob.digest))(error))
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, BlobError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| io_error("using the store".to_owned())(io::Error::other(error)))?
        .map_err(blob_error)
}

/// Opens and locks an unfinished blob and reads it; `None` while another process has it.
fn claim(
    path: PathBuf,
    mut verifier: Verifier,
    size: u64,
    arrival: Option<Arc<Arrival>>,
) -> Result<Option<Partial>, StoreError> {
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(StoreError::io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("locking", &path)(error)),
    }
    // Who had it before may have given it its name, or removed it.
    let failed = StoreError::io("reading", &path);
    if !same_file(&file, &path).map_err(failed)? {
        return Ok(None);
    }
    let failed = |error| StoreError::io("reading", &path)(error);
    if file.metadata().map_err(failed)?.len() > size {
        file.set_len(0).map_err(failed)?;
    }
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => break,
            count => verifier.update(&buffer[..count])?,
        }
    }
    if let Some(arrival) = &arrival {
        // Not the same one: that would keep the lock as long as somebody reads.
        arrival.begin(File::open(&path).map_err(failed)?, verifier.seen());
    }
    Ok(Some(Partial {
        file,
        path,
        verifier,
        arrival,
    }))
}

impl Partial {
    /// Writes what comes, and gives the blob its name if, at the end, it is what was announced.
    /// What cannot become right is removed.
    fn write(
        mut self,
        mut pieces: mpsc::Receiver<Piece>,
        target: &Path,
    ) -> Result<Written, StoreError> {
        let mut begun = self.verifier.seen();
        let mut take = || {
            while let Some(piece) = pieces.blocking_recv() {
                let Piece::Bytes(bytes) = piece else {
                    self.verifier.clone().finish()?;
                    if let Some(arrival) = &self.arrival {
                        arrival.right();
                    }
                    self.file
                        .sync_data()
                        .map_err(StoreError::io("syncing", &self.path))?;
                    fs::rename(&self.path, target)
                        .map_err(StoreError::io("naming the blob", target))?;
                    return Ok(Written::Whole);
                };
                self.verifier.update(&bytes)?;
                self.file
                    .write_all(&bytes)
                    .map_err(StoreError::io("writing", &self.path))?;
                let written = self.verifier.seen();
                if let Some(arrival) = &self.arrival {
                    arrival.grew(written);
                }
                if written - begun >= AT_ONCE {
                    writeback::begin(&self.file, begun, written - begun);
                    begun = written;
                }
            }
            Ok(Written::Part)
        };
        let written = take();
        match written {
            Ok(Written::Whole) => {}
            Ok(Written::Part) => self.leave(),
            Err(_) => self.remove(),
        }
        written
    }

    /// Leaves what there is to the next process.
    fn leave(self) {
        if self.verifier.seen() == 0 {
            self.remove();
        }
    }

    /// Removes the file while it is locked, so that nobody goes on with it.
    fn remove(self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Removes what is too old or too much; what is being written stays.
pub(super) fn clean(root: &Path) {
    let entries = fs::read_dir(root.join("partial")).into_iter().flatten();
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    files.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let (now, mut total) = (SystemTime::now(), 0_u64);
    for (modified, size, path) in files {
        total = total.saturating_add(size);
        let old = now.duration_since(modified).is_ok_and(|age| age > KEPT);
        if (old || total > MOST)
            && let Ok(file) = File::open(&path)
            && file.try_lock().is_ok()
        {
            drop(fs::remove_file(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kiln_registry::blob::{BlobReader, BlobSink as _, BoxFuture};
    use kiln_registry::digest::Digest;
    use kiln_registry::spec::DiffId;

    use super::*;
    use crate::store::LayerBlob;

    /// A blob in memory, of which every reader hands out so many bytes and then breaks.
    #[derive(Debug)]
    struct Source {
        bytes: Vec<u8>,
        each: usize,
        opened: Mutex<Vec<u64>>,
    }

    impl Source {
        fn new(each: usize) -> (Self, Descriptor) {
            let bytes: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
            let blob = Descriptor::new("x", Digest::of(&bytes), bytes.len() as u64);
            let opened = Mutex::default();
            let source = Self {
                bytes,
                each,
                opened,
            };
            (source, blob)
        }
    }

    struct Breaks(io::Cursor<Vec<u8>>, bool);

    impl tokio::io::AsyncRead for Breaks {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let mut bytes = [0; 64];
            let count = io::Read::read(&mut self.0, &mut bytes)?;
            buffer.put_slice(&bytes[..count]);
            std::task::Poll::Ready(match count == 0 && self.1 {
                true => Err(io::ErrorKind::ConnectionReset.into()),
                false => Ok(()),
            })
        }
    }

    impl BlobSource for Source {
        fn open<'a>(
            &'a self,
            _: &'a Descriptor,
            offset: u64,
        ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
            Box::pin(async move {
                self.opened.lock().unwrap().push(offset);
                let start = usize::try_from(offset).unwrap();
                let end = (start + self.each).min(self.bytes.len());
                let breaks = end < self.bytes.len();
                let bytes = io::Cursor::new(self.bytes[start..end].to_vec());
                Ok(Box::new(Breaks(bytes, breaks)) as BlobReader)
            })
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        (folder, store)
    }

    fn left(store: &Store) -> usize {
        fs::read_dir(store.partial()).unwrap().count()
    }

    #[tokio::test]
    async fn d5_3_a_broken_download_goes_on_where_it_ended() {
        let (_folder, store) = store();
        let (source, blob) = Source::new(1500);
        for _ in 0..2 {
            let error = store.put(&blob, &source, &|_, _| ()).await.unwrap_err();
            assert!(matches!(error, BlobError::Io { .. }), "{error:?}");
            assert!(!store.has_blob(&blob.digest));
        }
        let steps = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&steps);
        let note = move |_: &Descriptor, step| noted.lock().unwrap().push(step);
        store.put(&blob, &source, &note).await.unwrap();
        assert_eq!(*source.opened.lock().unwrap(), [0, 1500, 3000]);
        assert_eq!(steps.lock().unwrap()[0], Step::Resumed(3000));
        assert_eq!(store.read_blob(&blob.digest).unwrap(), source.bytes);
        assert_eq!(left(&store), 0);
    }

    #[tokio::test]
    async fn d5_3_what_is_damaged_is_fetched_anew() {
        let (_folder, store) = store();
        let (source, blob) = Source::new(usize::MAX / 2);
        let path = store.partial().join(blob.digest.hex());
        for kept in [vec![7; 2000], vec![7; 4000], vec![7; 5000]] {
            fs::write(&path, &kept).unwrap();
            store.put(&blob, &source, &|_, _| ()).await.unwrap();
            assert_eq!(store.read_blob(&blob.digest).unwrap(), source.bytes);
            assert_eq!(left(&store), 0);
            fs::remove_file(store.blob_path(&blob.digest)).unwrap();
        }
        // What never is right is not kept.
        let wrong = Descriptor::new("x", Digest::of(b"other"), blob.size);
        let error = store.put(&wrong, &source, &|_, _| ()).await.unwrap_err();
        assert!(matches!(error, BlobError::Mismatch(_)), "{error:?}");
        assert_eq!(left(&store), 0);
    }

    #[tokio::test]
    async fn several_that_want_a_blob_fetch_it_once() {
        let (_folder, store) = store();
        let (source, blob) = Source::new(usize::MAX / 2);
        let puts = (0..4).map(|_| store.put(&blob, &source, &|_, _| ()));
        let mut done: Vec<Put> = Vec::new();
        for put in futures_util::future::join_all(puts).await {
            done.push(put.unwrap());
        }
        assert_eq!(done.iter().filter(|put| **put == Put::Sent).count(), 1);
        assert_eq!(*source.opened.lock().unwrap(), [0]);
    }

    /// Puts the blob while it is followed, and gives what was read and what the put said.
    async fn followed(
        store: &Arc<Store>,
        source: &Source,
        blob: &Descriptor,
    ) -> (io::Result<Vec<u8>>, Result<Put, BlobError>) {
        let diff_id = DiffId(blob.digest);
        let layer = LayerBlob {
            digest: blob.digest,
            media_type: blob.media_type.clone(),
            size: blob.size,
        };
        let expected = store.expect([(diff_id, layer)]);
        let coming = store.coming(diff_id).unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            // It may be lost before anybody has looked.
            let Some(mut follower) = coming.follow(&Arc::default()) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let mut read = Vec::new();
            let result = follower.read_to_end(&mut read);
            result.map(|_| read)
        });
        let put = store.put(blob, source, &|_, _| ()).await;
        drop(expected);
        let read = reading.await.unwrap();
        (read, put)
    }

    #[tokio::test]
    async fn what_comes_is_read_meanwhile() {
        let (_folder, store) = store();
        let store = Arc::new(store);
        let (source, blob) = Source::new(usize::MAX / 2);
        // What an earlier process has left is read first.
        let path = store.partial().join(blob.digest.hex());
        for kept in [0, 1500, 4000] {
            fs::write(&path, &source.bytes[..kept]).unwrap();
            let (read, put) = followed(&store, &source, &blob).await;
            assert_eq!(put.unwrap(), Put::Sent);
            assert!(read.unwrap() == source.bytes);
            fs::remove_file(store.blob_path(&blob.digest)).unwrap();
        }
        // One that breaks off never ends, nor does one that is not what was announced.
        let (breaks, _) = Source::new(1500);
        let (read, put) = followed(&store, &breaks, &blob).await;
        assert!(read.is_err() && put.is_err());
        let wrong = Descriptor::new("x", Digest::of(b"other"), blob.size);
        let (read, put) = followed(&store, &source, &wrong).await;
        assert!(read.is_err());
        assert!(matches!(put, Err(BlobError::Mismatch(_))), "{put:?}");
        // Another process may bring it.
        store.put(&blob, &source, &|_, _| ()).await.unwrap();
        let (read, put) = followed(&store, &source, &blob).await;
        assert_eq!(put.unwrap(), Put::Existed);
        assert!(read.unwrap() == source.bytes);
    }

    #[test]
    fn what_is_old_is_removed_unless_it_is_being_written() {
        let (_folder, store) = store();
        let old = SystemTime::now() - 2 * KEPT;
        let make = |name: &str, time| {
            let file = File::create(store.partial().join(name)).unwrap();
            file.set_modified(time).unwrap();
            file
        };
        make("old", old);
        make("new", SystemTime::now());
        let busy = make("busy", old);
        busy.lock().unwrap();
        let large = make("large", SystemTime::now() - KEPT / 2);
        large.set_len(MOST + 1).unwrap();
        large.set_modified(SystemTime::now() - KEPT / 2).unwrap();
        drop(large);
        let root = store.root().to_owned();
        drop(store);
        let store = Store::open(&root).unwrap();
        let mut names: Vec<_> = fs::read_dir(store.partial())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["busy", "new"]);
    }
}
