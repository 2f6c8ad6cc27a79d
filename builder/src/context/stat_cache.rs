//! Digests of files remembered between builds.
//!
//! A record says: when the inode had this size, mtime and ctime, its content had this digest.
//! On disk it is one file of fixed-size records sorted by device and inode, with a checksum at its
//! end; it is read whole, merged with what other processes wrote meanwhile, written to a temporary
//! file and renamed. Whatever is wrong with it makes it an empty cache, never a failed build.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::digests::ContentDigest;
use super::metadata::{Metadata, Timestamp};

const MAGIC: &[u8; 16] = b"kiln stat v2\n\0\0\0";
const RECORD: usize = 84;
/// Records that no build has asked for in so many days are dropped.
const KEEP_DAYS: u32 = 60;
/// A record's day of last use is brought up to date when it is older than this.
const REFRESH_DAYS: u32 = 7;
/// How far the last change must lie back before the times of a file can be trusted to tell the
/// next change: more than a tick of the kernel's clock.
const TICK: i128 = 20_000_000;
/// Times that are multiples of so many nanoseconds come from a file system that keeps no finer ones.
/// Nothing is remembered of its files: two changes may have one time, and such file systems (FAT and
/// exFAT, many that speak to another machine) number their files anew with every mount.
const COARSE: u32 = 10_000_000;

/// What is remembered of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// Digest of its content.
    pub(crate) digest: ContentDigest,
    /// Whether it has no attributes that a copy would carry.
    pub(crate) plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
    remembered: Remembered,
    /// Day of last use, counted since 1970.
    day: u32,
}

/// Device and inode.
type Key = (u64, u64);

/// Digests by inode, with the file they are kept in.
#[derive(Debug, Default)]
pub(super) struct StatCache {
    path: Option<PathBuf>,
    /// The file without its checksum; nothing where there is none.
    known: Vec<u8>,
    /// Found out, or used again after a while, by this process.
    fresh: BTreeMap<Key, Record>,
    /// When it was opened.
    opened: Timestamp,
}

impl StatCache {
    /// Reads the cache kept in a file; without a file it lives in memory only.
    pub(super) fn open(path: Option<&Path>) -> Self {
        Self {
            path: path.map(Path::to_owned),
            known: path.map(read).unwrap_or_default(),
            fresh: BTreeMap::new(),
            opened: SystemTime::now().into(),
        }
    }

    /// The digest of a file, if it is known and the file's times say that it is unchanged.
    pub(super) fn get(&mut self, metadata: &Metadata) -> Option<Remembered> {
        let key = (metadata.device, metadata.inode);
        let matches = |record: &Record| {
            record.size == metadata.size
                && record.mtime == metadata.mtime
                && record.ctime == metadata.ctime
        };
        if let Some(record) = self.fresh.get(&key) {
            return matches(record).then_some(record.remembered);
        }
        let known = records(&self.known);
        let index = known.binary_search_by_key(&Some(key), key_of).ok()?;
        let mut record = decode(known.get(index)?)?;
        // A clock that went back since may give the same times to another content.
        if !matches(&record) || !is_settled(metadata, self.opened) {
            return None;
        }
        let today = today();
        if record.day.saturating_add(REFRESH_DAYS) < today {
            record.day = today;
            self.fresh.insert(key, record);
        }
        Some(record.remembered)
    }

    /// Remembers the digest of a file whose hashing began at `begun`, unless the file had changed
    /// so shortly before that another change might leave its times as they are.
    pub(super) fn put(&mut self, metadata: &Metadata, remembered: Remembered, begun: Timestamp) {
        if !is_settled(metadata, begun) {
            return;
        }
        let record = Record {
            size: metadata.size,
            mtime: metadata.mtime,
            ctime: metadata.ctime,
            remembered,
            day: today(),
        };
        self.fresh.insert((metadata.device, metadata.inode), record);
    }

    /// Writes what is new, merged with what the file holds by now.
    pub(super) fn save(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if self.fresh.is_empty() {
            return Ok(());
        }
        // Of a large context this is much: it is not held twice.
        self.known = Vec::new();
        let oldest = today().saturating_sub(KEEP_DAYS);
        self.known = merged(&read(path), &std::mem::take(&mut self.fresh), oldest);
        write(path, &mut self.known)
    }
}

/// Whether the times of a file are fine and old enough, at `now`, to tell its next change.
fn is_settled(metadata: &Metadata, now: Timestamp) -> bool {
    let coarse = |time: Timestamp| time.nanoseconds.is_multiple_of(COARSE);
    let is_coarse = coarse(metadata.mtime) && coarse(metadata.ctime);
    !is_coarse && metadata.mtime.until(now) >= TICK && metadata.ctime.until(now) >= TICK
}

fn today() -> u32 {
    let days = Timestamp::from(SystemTime::now()).seconds / 86_400;
    u32::try_from(days).unwrap_or(0)
}

/// What a file holds but for its checksum; nothing where it is damaged.
fn read(path: &Path) -> Vec<u8> {
    let intact = |bytes: &[u8]| {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        let (records, []) = body.strip_prefix(MAGIC)?.as_chunks::<RECORD>() else {
            return None;
        };
        let intact = crc32fast::hash(body) == u32::from_le_bytes(*checksum);
        (intact && records.is_sorted_by_key(key_of)).then_some(body.len())
    };
    let mut bytes = fs::read(path).unwrap_or_default();
    bytes.truncate(intact(&bytes).unwrap_or(0));
    bytes
}

/// The records of what [`read`] gives.
fn records(bytes: &[u8]) -> &[[u8; RECORD]] {
    let records = bytes.strip_prefix(MAGIC).unwrap_or_default();
    records.as_chunks().0
}

/// What is known, less what was last used before the day `oldest`, with what is new instead.
fn merged(known: &[u8], fresh: &BTreeMap<Key, Record>, oldest: u32) -> Vec<u8> {
    let length = known.len() + MAGIC.len() + fresh.len() * RECORD + size_of::<u32>();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(MAGIC);
    let mut fresh = fresh.iter().peekable();
    for known in records(known) {
        let key = key_of(known);
        let mut replaced = false;
        while let Some((new, record)) = fresh.next_if(|(new, _)| Some(**new) <= key) {
            encode(*new, record, &mut bytes);
            replaced = Some(*new) == key;
        }
        if !replaced && decode(known).is_some_and(|record| record.day >= oldest) {
            bytes.extend_from_slice(known);
        }
    }
    for (key, record) in fresh {
        encode(*key, record, &mut bytes);
    }
    bytes
}

/// Writes what [`merged`] gives, with a checksum.
fn write(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    // Several trees of one process may save at once.
    let thread = rustix::thread::gettid().as_raw_pid();
    name.push(format!(".{}.{thread}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let length = bytes.len();
    bytes.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    let written = fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path));
    bytes.truncate(length);
    if written.is_err() {
        // The first error is the one to tell.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn encode(key: Key, record: &Record, bytes: &mut Vec<u8>) {
    for number in [key.0, key.1, record.size] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for time in [record.mtime, record.ctime] {
        bytes.extend_from_slice(&time.seconds.to_le_bytes());
        bytes.extend_from_slice(&time.nanoseconds.to_le_bytes());
    }
    bytes.extend_from_slice(&record.remembered.digest);
    let plain = u32::from(record.remembered.plain) << 31;
    bytes.extend_from_slice(&(record.day | plain).to_le_bytes());
}

fn u64_at(bytes: &[u8; RECORD], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8; RECORD], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The key of a record; there always is one.
fn key_of(bytes: &[u8; RECORD]) -> Option<Key> {
    Some((u64_at(bytes, 0)?, u64_at(bytes, 8)?))
}

fn decode(bytes: &[u8; RECORD]) -> Option<Record> {
    let time_at = |at: usize| {
        Some(Timestamp {
            seconds: u64_at(bytes, at)?.cast_signed(),
            nanoseconds: u32_at(bytes, at + 8)?,
        })
    };
    let digest: ContentDigest = *bytes.get(48..)?.first_chunk()?;
    let day = u32_at(bytes, 80)?;
    Some(Record {
        size: u64_at(bytes, 16)?,
        mtime: time_at(24)?,
        ctime: time_at(36)?,
        remembered: Remembered {
            digest,
            plain: day >> 31 == 1,
        },
        day: day & !(1 << 31),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::metadata::Kind;

    fn metadata(inode: u64) -> Metadata {
        let time = |seconds| Timestamp {
            seconds,
            nanoseconds: 5,
        };
        Metadata {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 7,
            blocks: 8,
            mtime: time(100),
            ctime: time(200),
            device: 1,
            inode,
            links: 1,
            rdev: 0,
        }
    }

    fn remembered(text: &[u8]) -> Remembered {
        Remembered {
            digest: *blake3::hash(text).as_bytes(),
            plain: text.len().is_multiple_of(2),
        }
    }

    fn now() -> Timestamp {
        SystemTime::now().into()
    }

    #[test]
    fn records_of_several_processes_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/stat");
        let (mut one, mut two) = (StatCache::open(Some(&path)), StatCache::open(Some(&path)));
        one.put(&metadata(1), remembered(b"one"), now());
        two.put(&metadata(2), remembered(b"twos"), now());
        one.save().unwrap();
        two.save().unwrap();
        let mut read = StatCache::open(Some(&path));
        assert_eq!(read.get(&metadata(1)), Some(remembered(b"one")));
        assert_eq!(read.get(&metadata(2)), Some(remembered(b"twos")));
        assert_eq!(read.get(&metadata(3)), None);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn new_records_go_between_and_instead_of_those_that_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let save = |inodes: &[u64], text: &[u8]| {
            let mut cache = StatCache::open(Some(&path));
            for inode in inodes {
                cache.put(&metadata(*inode), remembered(text), now());
            }
            cache.save().unwrap();
            // What is kept in memory is what is in the file.
            assert_eq!(cache.known, read(&path));
        };
        save(&[2, 4, 6], b"old");
        save(&[1, 4, 5, 7, 8], b"news");
        let mut cache = StatCache::open(Some(&path));
        let found = (0..10).map(|inode| cache.get(&metadata(inode)));
        let (old, new) = (Some(remembered(b"old")), Some(remembered(b"news")));
        let expected = [None, new, old, None, new, new, old, new, new, None];
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn any_difference_in_the_metadata_is_a_miss() {
        let mut cache = StatCache::open(None);
        let file = metadata(1);
        cache.put(&file, remembered(b"x"), now());
        assert!(cache.get(&file).is_some());
        let ctime = Timestamp {
            nanoseconds: 6,
            ..file.ctime
        };
        for other in [
            Metadata { size: 8, ..file },
            Metadata { device: 2, ..file },
            Metadata { ctime, ..file },
            Metadata {
                mtime: ctime,
                ..file
            },
        ] {
            assert_eq!(cache.get(&other), None);
        }
    }

    /// A file of the same size written twice within a tick has the same times.
    #[test]
    fn a_file_changed_just_now_is_not_remembered() {
        let file = metadata(1);
        let later = |nanoseconds: u32| Timestamp {
            seconds: 200,
            nanoseconds: 5 + nanoseconds,
        };
        assert!(!is_settled(&file, later(0)));
        assert!(!is_settled(&file, later(19_999_999)));
        assert!(is_settled(&file, later(20_000_000)));
        // A clock that went back says nothing.
        assert!(!is_settled(
            &file,
            Timestamp {
                seconds: 199,
                ..file.ctime
            }
        ));
        // Times without fractions are those of a file system that has no finer ones.
        for nanoseconds in [0, 10_000_000, 990_000_000] {
            let time = |seconds| Timestamp {
                seconds,
                nanoseconds,
            };
            let coarse = Metadata {
                mtime: time(100),
                ctime: time(200),
                ..file
            };
            assert!(!is_settled(&coarse, time(100_000)), "{nanoseconds}");
        }
        let mut cache = StatCache::open(None);
        cache.put(&file, remembered(b"x"), later(1));
        assert_eq!(cache.get(&file), None);
    }

    #[test]
    fn nothing_is_believed_of_files_from_the_future() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let mut cache = StatCache::open(Some(&path));
        cache.put(&metadata(1), remembered(b"one"), now());
        cache.save().unwrap();
        let mut later = StatCache::open(Some(&path));
        assert!(later.get(&metadata(1)).is_some());
        let mut earlier = StatCache::open(Some(&path));
        earlier.opened = metadata(1).mtime;
        assert_eq!(earlier.get(&metadata(1)), None, "the clock went back");
    }

    #[test]
    fn a_damaged_file_is_an_empty_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let mut cache = StatCache::open(Some(&path));
        cache.put(&metadata(1), remembered(b"one"), now());
        cache.save().unwrap();
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len(), MAGIC.len() + RECORD + 4);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(StatCache::open(Some(&path)).get(&metadata(1)), None, "{at}");
            fs::write(&path, &good[..at]).unwrap();
            assert_eq!(StatCache::open(Some(&path)).get(&metadata(1)), None, "{at}");
        }
    }

    #[test]
    fn records_not_used_for_long_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let mut cache = StatCache::open(Some(&path));
        cache.put(&metadata(1), remembered(b"old"), now());
        cache.put(&metadata(2), remembered(b"used"), now());
        for (key, days) in [(1, KEEP_DAYS + 1), (2, REFRESH_DAYS + 1)] {
            cache.fresh.get_mut(&(1, key)).unwrap().day -= days;
        }
        // Written as they are, without the filter, as an earlier build would have.
        write(&path, &mut merged(&[], &cache.fresh, 0)).unwrap();
        let mut cache = StatCache::open(Some(&path));
        assert!(cache.get(&metadata(2)).is_some());
        cache.save().unwrap();
        let mut cache = StatCache::open(Some(&path));
        assert_eq!(cache.get(&metadata(1)), None);
        assert!(cache.get(&metadata(2)).is_some());
        assert!(cache.fresh.is_empty(), "its day is that of today");
    }
}
