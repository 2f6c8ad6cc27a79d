//! Layers on their way: they are read while their blobs still come.
//!
//! The bytes go one way. Who fetches an image says first which layers it brings ([`Store::expect`]).
//! Who writes one of their blobs to `partial` says how far it has come: what lies before that mark is
//! written and hashed. A [`Follower`] reads up to the mark, waits there for more, and comes to its end
//! only when all of the blob is there and size and digest are right. Until then nothing that it gave
//! may be believed.
//!
//! It fails when the blob does not come, and when the blob comes anew, because what an earlier process
//! had left of it was damaged. [`Coming::verdict`] says which it was, and waits for that: the reader of
//! a blob with a wrong digest may fail long before the digest is known.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use kiln_registry::digest::Digest;
use kiln_registry::spec::DiffId;

use super::{LayerBlob, Store};

/// What is expected in this process.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    blobs: HashMap<Digest, Weak<Arrival>>,
    layers: HashMap<DiffId, (LayerBlob, Weak<Arrival>)>,
}

/// A blob on its way.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many see to it that the blob comes.
    expected: usize,
    /// How often its first byte was written.
    attempt: u64,
    /// Where it is written.
    file: Option<Arc<File>>,
    /// Bytes that are written and hashed.
    written: u64,
    /// Whether it came; `None` as long as that is open.
    right: Option<bool>,
}

/// Layers that somebody fetches. Dropped, it says that what is not here by then does not come.
#[derive(Debug)]
pub struct Expected(Vec<Arc<Arrival>>);

/// A layer whose blob is on its way.
#[derive(Clone, Debug)]
pub struct Coming {
    /// What the blob will be.
    pub blob: LayerBlob,
    arrival: Arc<Arrival>,
}

/// What became of a blob that was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It came, and is what was announced: so were the bytes that were read.
    Right,
    /// The bytes that were read were not the blob's; it comes anew.
    Anew,
    /// It does not come, or nobody waits for it any more.
    Lost,
}

/// Reads a blob that is on its way, see the module.
#[derive(Debug)]
pub struct Follower {
    arrival: Arc<Arrival>,
    file: Arc<File>,
    attempt: u64,
    position: u64,
    stopped: Arc<AtomicBool>,
}

impl Store {
    /// Takes note of layers that will be fetched from now on.
    #[must_use]
    pub fn expect(&self, layers: impl IntoIterator<Item = (DiffId, LayerBlob)>) -> Expected {
        let mut entries = self.coming.entries();
        entries
            .blobs
            .retain(|_, arrival| arrival.strong_count() > 0);
        entries
            .layers
            .retain(|_, (_, arrival)| arrival.strong_count() > 0);
        let expected = layers.into_iter().map(|(diff_id, blob)| {
            let arrival = entries.arrival(&blob.digest);
            let known = (blob, Arc::downgrade(&arrival));
            entries.layers.insert(diff_id, known);
            arrival
        });
        Expected(expected.collect())
    }

    /// A layer that is expected.
    #[must_use]
    pub fn coming(&self, diff_id: DiffId) -> Option<Coming> {
        let entries = self.coming.entries();
        let (blob, arrival) = entries.layers.get(&diff_id)?;
        Some(Coming {
            blob: blob.clone(),
            arrival: arrival.upgrade()?,
        })
    }

    /// The blob that is to be written, where somebody expects it.
    pub(super) fn arrival(&self, digest: &Digest) -> Option<Arc<Arrival>> {
        self.coming.entries().blobs.get(digest)?.upgrade()
    }
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// One more that sees to it that a blob comes.
    fn arrival(&mut self, digest: &Digest) -> Arc<Arrival> {
        let known = self.blobs.get(digest).and_then(Weak::upgrade);
        if let Some(known) = known {
            let mut state = known.state();
            // One that was given up may still be in the hands of who followed it.
            if state.right != Some(false) {
                state.expected += 1;
                drop(state);
                return known;
            }
        }
        let new = Arc::new(Arrival::default());
        new.state().expected = 1;
        self.blobs.insert(*digest, Arc::downgrade(&new));
        new
    }
}

impl Arrival {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.news.notify_all();
    }

    /// Waits until something of the state is known.
    fn wait<T>(&self, mut known: impl FnMut(&State) -> Option<T>) -> T {
        let mut state = self.state();
        loop {
            if let Some(known) = known(&state) {
                return known;
            }
            let news = self.news.wait(state);
            state = news.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The blob is written to this file from now on, or from its beginning again; so many bytes of
    /// it are there.
    pub(super) fn begin(&self, file: File, written: u64) {
        self.tell(|state| {
            state.attempt += 1;
            state.file = Some(Arc::new(file));
            state.written = written;
        });
    }

    /// So many bytes are written and hashed.
    pub(super) fn grew(&self, written: u64) {
        self.tell(|state| state.written = written);
    }

    /// All of it is there, with the right size and digest.
    pub(super) fn right(&self) {
        self.tell(|state| state.right = Some(true));
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        for arrival in &self.0 {
            arrival.tell(|state| {
                state.expected -= 1;
                if state.expected == 0 {
                    state.right = state.right.or(Some(false));
                }
            });
        }
    }
}

impl Coming {
    /// Waits for the first bytes and reads from there; `None` when they do not come, or nobody wants
    /// them any more: once `stopped` is set and [`Self::wake`] called.
    #[must_use]
    pub fn follow(&self, stopped: &Arc<AtomicBool>) -> Option<Follower> {
        self.arrival.wait(|state| match &state.file {
            _ if state.right == Some(false) || stopped.load(Ordering::SeqCst) => Some(None),
            Some(file) => Some(Some(Follower {
                arrival: Arc::clone(&self.arrival),
                file: Arc::clone(file),
                attempt: state.attempt,
                position: 0,
                stopped: Arc::clone(stopped),
            })),
            None => None,
        })
    }

    /// Waits until it is known what was read by a follower of this attempt.
    #[must_use]
    pub fn verdict(&self, attempt: u64, stopped: &AtomicBool) -> Verdict {
        self.arrival.wait(|state| match state.right {
            Some(false) => Some(Verdict::Lost),
            _ if stopped.load(Ordering::SeqCst) => Some(Verdict::Lost),
            _ if state.attempt != attempt => Some(Verdict::Anew),
            Some(true) => Some(Verdict::Right),
            None => None,
        })
    }

    /// Has those who wait look whether they are to stop.
    pub fn wake(&self) {
        self.arrival.tell(|_| ());
    }
}

impl Follower {
    /// Which attempt to write the blob this one reads.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// Waits for bytes beyond the position, and gives their number; 0 at the end.
    fn more(&self) -> io::Result<u64> {
        let failed = |why| Some(Err(io::Error::other(why)));
        self.arrival.wait(|state| match state.right {
            _ if state.attempt != self.attempt => failed("the blob comes anew"),
            _ if self.stopped.load(Ordering::SeqCst) => failed("it is not wanted any more"),
            _ if state.written > self.position => Some(Ok(state.written - self.position)),
            Some(true) => Some(Ok(0)),
            Some(false) => failed("the blob does not come"),
            None => None,
        })
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let more = usize::try_from(self.more()?).unwrap_or(usize::MAX);
        if more == 0 {
            return Ok(0);
        }
        let wanted = more.min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.position)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        (folder, store)
    }

    fn layer(content: &[u8]) -> (DiffId, LayerBlob) {
        let digest = Digest::of(content);
        let blob = LayerBlob {
            digest,
            media_type: "x".to_owned(),
            size: content.len() as u64,
        };
        (DiffId(digest), blob)
    }

    fn content(size: usize) -> Vec<u8> {
        (0..size)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect()
    }

    /// A file that is written piece by piece.
    struct Writer<'a> {
        file: tempfile::NamedTempFile,
        arrival: &'a Arrival,
        written: u64,
    }

    impl<'a> Writer<'a> {
        fn begin(arrival: &'a Arrival, kept: &[u8]) -> Self {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(kept).unwrap();
            let written = kept.len() as u64;
            arrival.begin(file.reopen().unwrap(), written);
            Self {
                file,
                arrival,
                written,
            }
        }

        fn write(&mut self, piece: &[u8]) {
            self.file.write_all(piece).unwrap();
            self.written += piece.len() as u64;
            self.arrival.grew(self.written);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// However writing and reading take turns, what is read is the blob.
        #[test]
        fn any_interleaving_gives_the_stream(
            size in 0_usize..5000,
            kept in 0_usize..5000,
            pieces in prop::collection::vec((1_usize..700, 0_u64..3), 1..12),
            reads in prop::collection::vec((0_usize..900, 0_u64..3), 1..12),
        ) {
            let (_folder, store) = store();
            let content = content(size);
            let (diff_id, blob) = layer(&content);
            let expected = store.expect([(diff_id, blob.clone())]);
            let coming = store.coming(diff_id).unwrap();
            let pause = |turns| (0..turns).for_each(|_| thread::yield_now());
            let read = thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut follower = coming.follow(&Arc::default()).unwrap();
                    let mut read = Vec::new();
                    for (size, turns) in reads.iter().cycle() {
                        let mut buffer = vec![0; *size];
                        let count = follower.read(&mut buffer).unwrap();
                        read.extend_from_slice(&buffer[..count]);
                        if count == 0 && *size > 0 {
                            break;
                        }
                        if *size == 0 && reads.iter().all(|(size, _)| *size == 0) {
                            follower.read_to_end(&mut read).unwrap();
                            break;
                        }
                        pause(*turns);
                    }
                    read
                });
                let arrival = store.arrival(&blob.digest).unwrap();
                let (kept, mut rest) = content.split_at(kept.min(size));
                let mut writer = Writer::begin(&arrival, kept);
                for (size, turns) in pieces.iter().cycle() {
                    let (piece, after) = rest.split_at((*size).min(rest.len()));
                    writer.write(piece);
                    rest = after;
                    pause(*turns);
                    if rest.is_empty() {
                        break;
                    }
                }
                arrival.right();
                drop(expected);
                reader.join().unwrap()
            });
            prop_assert!(read == content);
            prop_assert_eq!(coming.verdict(1, &AtomicBool::new(false)), Verdict::Right);
        }
    }

    /// A follower that has read the first half, and what it reads next.
    fn second_half(end: impl FnOnce(&Arrival, Expected) + Send) -> (io::Result<usize>, Verdict) {
        let (_folder, store) = store();
        let content = content(2000);
        let (diff_id, blob) = layer(&content);
        let expected = store.expect([(diff_id, blob.clone())]);
        let coming = store.coming(diff_id).unwrap();
        let arrival = store.arrival(&blob.digest).unwrap();
        let _writer = Writer::begin(&arrival, &content[..1000]);
        let mut follower = coming.follow(&Arc::default()).unwrap();
        follower.read_exact(&mut [0; 1000]).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(5));
                end(&arrival, expected);
            });
            let read = follower.read(&mut [0; 10]);
            let attempt = follower.attempt();
            (read, coming.verdict(attempt, &AtomicBool::new(false)))
        })
    }

    #[test]
    fn what_is_whole_but_not_right_has_no_end() {
        let (read, verdict) = second_half(|arrival, expected| {
            arrival.grew(1000);
            drop(expected);
        });
        assert!(read.is_err());
        assert_eq!(verdict, Verdict::Lost);
    }

    #[test]
    fn what_comes_anew_is_not_gone_on_with() {
        let (read, verdict) = second_half(|arrival, _expected| {
            Writer::begin(arrival, &content(2000));
            arrival.right();
        });
        assert!(read.is_err());
        assert_eq!(verdict, Verdict::Anew);
    }

    #[test]
    fn what_another_image_still_fetches_is_not_lost() {
        let (_folder, store) = store();
        let (diff_id, blob) = layer(b"x");
        let first = store.expect([(diff_id, blob.clone())]);
        let second = store.expect([(diff_id, blob.clone())]);
        let coming = store.coming(diff_id).unwrap();
        drop(first);
        let arrival = store.arrival(&blob.digest).unwrap();
        let _writer = Writer::begin(&arrival, b"x");
        assert!(coming.follow(&Arc::default()).is_some());
        drop(second);
        assert!(coming.follow(&Arc::default()).is_none());
        // Somebody may try it once more while the old hope is still in use.
        let third = store.expect([(diff_id, blob.clone())]);
        let arrival = store.arrival(&blob.digest).unwrap();
        let _writer = Writer::begin(&arrival, b"x");
        let again = store.coming(diff_id).unwrap();
        assert!(again.follow(&Arc::default()).is_some());
        drop((third, arrival, again));
        assert!(store.coming(diff_id).is_none());
    }

    #[test]
    fn who_is_told_to_stop_does_not_wait() {
        let (_folder, store) = store();
        let (diff_id, blob) = layer(b"x");
        let _expected = store.expect([(diff_id, blob)]);
        let (coming, stopped) = (store.coming(diff_id).unwrap(), Arc::default());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| coming.follow(&stopped).is_none());
            stopped.store(true, Ordering::SeqCst);
            coming.wake();
            assert!(waiting.join().unwrap());
        });
    }
}
