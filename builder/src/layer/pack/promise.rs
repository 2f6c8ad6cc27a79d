//! What a directory that is still being written will hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::read::{Batch, Item, Reader};
use super::walk::{self, Step};
use super::{PackError, PackOptions, lock};
use crate::layer::tar::Header;
use crate::layer::whiteout;
use crate::sys::root::Root;

/// Says of a directory that is being written what the end will be: what its directories will be
/// like, and which files are still to come. All else is there already, and does not change.
#[derive(Debug, Default)]
pub struct Promise {
    directories: BTreeMap<Vec<u8>, Promised>,
    files: usize,
    state: Mutex<State>,
    news: Condvar,
}

/// A directory as it will be.
#[derive(Debug)]
struct Promised {
    header: Header,
    /// The names of files to come, each ended by a zero byte: there may be very many.
    files: Vec<u8>,
    /// How many names the walk found in it, those of files to come included.
    names: AtomicUsize,
}

/// How far the writing is.
#[derive(Debug, Default)]
struct State {
    /// Whether each file is written, in the order of the tar.
    written: Vec<bool>,
    /// Whether all is written and as it should be; `None` as long as it is being written.
    ended: Option<bool>,
    /// Whether nobody wants the tar any more.
    unwanted: bool,
}

impl Promise {
    /// Adds a directory by the header that it will have; that of the root has an empty path. One that
    /// no layer can hold is left out.
    pub fn directory(&mut self, header: Header) {
        let mut names = header.path.split(|&byte| byte == b'/');
        if names.any(|name| whiteout::classify(name) != whiteout::Name::Plain) {
            return;
        }
        let path = header.path.clone();
        let promised = Promised {
            header,
            files: Vec::new(),
            names: AtomicUsize::new(0),
        };
        self.directories.insert(path, promised);
    }

    /// Adds a file to come, in the order of the tar, and says whether its directory was added before.
    #[must_use]
    pub fn file(&mut self, directory: &[u8], name: &[u8]) -> bool {
        let Some(directory) = self.directories.get_mut(directory) else {
            return false;
        };
        directory.files.extend_from_slice(name);
        directory.files.push(0);
        self.files += 1;
        true
    }

    /// From now on files are written.
    pub(in crate::layer) fn begin(&mut self) {
        lock(&self.state).written = vec![false; self.files];
    }

    /// Some files, by their number in the order of the tar, are written, with all that belongs to them.
    pub(in crate::layer) fn wrote(&self, files: Range<usize>) {
        if let Some(written) = lock(&self.state).written.get_mut(files) {
            written.fill(true);
        }
        self.news.notify_all();
    }

    /// Nothing is written any more.
    pub(in crate::layer) fn end(&self, well: bool) {
        lock(&self.state).ended.get_or_insert(well);
        self.news.notify_all();
    }

    /// The tar need not be finished.
    pub(in crate::layer) fn give_up(&self) {
        lock(&self.state).unwanted = true;
        self.news.notify_all();
    }

    pub(in crate::layer) fn is_wanted(&self) -> bool {
        !lock(&self.state).unwanted
    }

    /// Waits until all is written; says whether the root holds what was promised.
    pub(in crate::layer) fn is_kept(&self, root: &Root) -> Result<bool, PackError> {
        Ok(self.wait(|state| state.ended) && self.are_directories_kept(root)?)
    }

    /// The names of files to come into a directory.
    pub(super) fn files(&self, directory: &[u8]) -> impl Iterator<Item = &[u8]> {
        let promised = self.directories.get(directory);
        let files = promised.map_or(&[][..], |promised| &promised.files);
        files
            .split_inclusive(|&byte| byte == 0)
            .filter_map(|name| name.strip_suffix(&[0]))
    }

    /// The header that a directory will have, where that is known; so many names were found in it.
    pub(super) fn listed(&self, directory: &[u8], names: usize) -> Option<&Header> {
        let promised = self.directories.get(directory)?;
        promised.names.store(names, Ordering::Relaxed);
        Some(&promised.header)
    }

    pub(super) fn is_written(&self, file: usize) -> bool {
        lock(&self.state).written.get(file) == Some(&true)
    }

    /// Waits until a file is written; `false` when it will not be.
    pub(super) fn wait_for(&self, file: usize) -> bool {
        self.wait(|state| match state.written.get(file) {
            Some(true) => Some(true),
            Some(false) if state.ended.is_none() => None,
            _ => Some(false),
        })
    }

    fn wait(&self, known: impl Fn(&State) -> Option<bool>) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.unwanted {
                return false;
            }
            if let Some(known) = known(&state) {
                return known;
            }
            state = self
                .news
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether all directories are what was said of them, and hold no more than what was packed. A
    /// file system may lack attributes, and not every owner can be given.
    fn are_directories_kept(&self, root: &Root) -> Result<bool, PackError> {
        let options = PackOptions::default();
        let mut reader = Reader::new(&options);
        for (path, promised) in &self.directories {
            let directory = Arc::new(walk::open(root, path)?);
            let names = walk::names(&directory, path)?.len();
            let step = Step::Directory {
                directory,
                path: path.clone(),
                header: None,
            };
            let found = reader.read(vec![step], Batch::default());
            let kept = match &found.items[..] {
                [] => path.is_empty(),
                [Item::Entry { header, .. }] => *header == promised.header,
                _ => false,
            };
            if !kept || names != promised.names.load(Ordering::Relaxed) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
