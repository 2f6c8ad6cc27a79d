//! Listing of directories, several at a time.
//!
//! A directory is listed once and kept; what the ignore file hides is left out, and excluded
//! directories are not entered unless a `!` rule can match below (A14.4).

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::metadata::Metadata;
use super::rules::Verdict;
use super::{Tree, lock, threads};
use crate::sys::xattr::Place;

/// One file in a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What `lstat` says of it.
    pub metadata: Metadata,
    /// Whether this is an excluded directory that counts only if something below is included.
    pub passage: bool,
}

/// The content of a directory, sorted by name, or why it cannot be listed.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) entries: Result<Vec<Entry>, Errno>,
}

/// Directories still to be listed, and how many are being listed right now.
#[derive(Debug)]
struct Queue {
    waiting: Vec<PathBuf>,
    busy: usize,
}

impl Tree {
    /// The listing of a directory, made if it is not there yet.
    pub(super) fn list(&self, dir: &Path) -> Arc<Listing> {
        if let Some(listing) = lock(&self.listings).get(dir) {
            return Arc::clone(listing);
        }
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        self.list_anew(dir, &mut buffer)
    }

    /// Lists a directory and all below it on several threads.
    pub(super) fn prefetch(&self, dir: &Path) {
        if lock(&self.listings).contains_key(dir) && !self.has_unlisted_child(dir) {
            return;
        }
        let queue = Mutex::new(Queue {
            waiting: vec![dir.to_owned()],
            busy: 0,
        });
        let news = Condvar::new();
        thread::scope(|scope| {
            for _ in 1..threads() {
                scope.spawn(|| self.work(&queue, &news));
            }
            self.work(&queue, &news);
        });
    }

    fn has_unlisted_child(&self, dir: &Path) -> bool {
        let listing = self.list(dir);
        listing.entries.iter().flatten().any(|entry| {
            entry.metadata.is_dir() && {
                let child = dir.join(&entry.name);
                let known = lock(&self.listings).contains_key(&child);
                !known || self.has_unlisted_child(&child)
            }
        })
    }

    fn work(&self, queue: &Mutex<Queue>, news: &Condvar) {
        let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
        let mut state = lock(queue);
        loop {
            if let Some(dir) = state.waiting.pop() {
                state.busy += 1;
                drop(state);
                let known = lock(&self.listings).get(&dir).cloned();
                let listing = known.unwrap_or_else(|| self.list_anew(&dir, &mut buffer));
                let children: Vec<_> = listing
                    .entries
                    .iter()
                    .flatten()
                    .filter(|entry| entry.metadata.is_dir())
                    .map(|entry| dir.join(&entry.name))
                    .collect();
                state = lock(queue);
                state.busy -= 1;
                if !children.is_empty() || state.busy == 0 {
                    state.waiting.extend(children);
                    news.notify_all();
                }
            } else if state.busy == 0 {
                return;
            } else {
                state = news.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn list_anew(&self, dir: &Path, buffer: &mut [MaybeUninit<u8>]) -> Arc<Listing> {
        let listing = Arc::new(Listing {
            entries: self.read_directory(dir, buffer),
        });
        // The first listing stays, so that all steps see the same.
        let mut listings = lock(&self.listings);
        Arc::clone(listings.entry(dir.to_owned()).or_insert(listing))
    }

    fn read_directory(
        &self,
        dir: &Path,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<Vec<Entry>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let opened = loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => break result?,
            }
        };
        let rules = self.rules.within(dir);
        let mut entries = Vec::new();
        let mut names = RawDir::new(&opened, buffer);
        while let Some(found) = names.next() {
            let found = found?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let mut stat = match rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed since its name was read.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            self.correct(Place::In(opened.as_fd(), name.to_bytes()), &mut stat)?;
            let metadata = Metadata::from(&stat);
            let name = OsStr::from_bytes(name.to_bytes());
            let verdict = rules
                .as_ref()
                .map(|rules| rules.verdict(name, metadata.is_dir()));
            if verdict == Some(Verdict::Excluded) {
                continue;
            }
            entries.push(Entry {
                name: name.to_owned(),
                metadata,
                passage: verdict == Some(Verdict::Passage),
            });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}
