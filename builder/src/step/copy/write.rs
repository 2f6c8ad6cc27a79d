//! Writes regular files, several at a time.

use std::ffi::OsStr;
use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};

use super::attributes::{Flags, Owners};
use super::{CopyError, Note, destination, merge};
use crate::context::metadata::Metadata;
use crate::context::{Content, ContentHasher, Copied, Tree, threads, xattr};
use crate::layer::Writing;
use crate::sys::content::{FileCopier, Hear};
use crate::sys::root::Root;

/// Files that one thread takes at once: neighbours, mostly in one directory.
const CHUNK: usize = 32;
/// A file of so many bytes is worth a word by itself when it is written; small ones are told of together.
const LARGE: u64 = 128 << 10;

/// A regular file to be written; nothing is in its way.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// Its number among the files of its item.
    pub(super) number: usize,
    /// Path in the tree.
    pub(super) source: &'a Path,
    pub(super) metadata: &'a Metadata,
    /// Directory in the layer, which exists.
    pub(super) dir: Arc<Path>,
    pub(super) name: &'a OsStr,
}

impl Job<'_> {
    /// The order of a layer's tar: what is in a directory comes right after it.
    pub(super) fn in_order(&self, other: &Self) -> std::cmp::Ordering {
        if self.dir == other.dir {
            return self.name.cmp(other.name);
        }
        self.names().cmp(other.names())
    }

    fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.dir.iter().chain(iter::once(self.name))
    }
}

/// What is written, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order<'a> {
    pub(super) tree: &'a Tree,
    pub(super) upper: &'a Root,
    pub(super) flags: &'a Flags,
    pub(super) owners: &'a Owners,
    /// Whether what the files hold is to be found out.
    pub(super) learn: bool,
}

/// What is to be told of files that were written.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) notes: Vec<Note>,
    /// What they hold.
    pub(super) copied: Copied,
}

impl Told {
    fn add(&mut self, more: Self) {
        self.notes.extend(more.notes);
        self.copied.add(more.copied);
    }
}

/// Writes all files. `following` hears of those that are written.
pub(super) fn write_all(
    order: Order<'_>,
    jobs: &[Job<'_>],
    following: Option<&Writing>,
) -> Result<Told, CopyError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut writer = Writer::new(order);
        loop {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            let Some(rest) = jobs.get(start..).filter(|rest| !rest.is_empty()) else {
                return Ok(writer.told());
            };
            let chunk = &rest[..rest.len().min(CHUNK)];
            let mut untold = start;
            for (index, job) in (start..).zip(chunk) {
                if let Err(error) = writer.write(job) {
                    // The others need not go on.
                    next.store(jobs.len(), Ordering::Relaxed);
                    return Err(error);
                }
                if let Some(following) = following
                    && (job.metadata.size >= LARGE || index + 1 == start + chunk.len())
                {
                    following.wrote(untold..index + 1);
                    untold = index + 1;
                }
            }
        }
    };
    if jobs.len() <= CHUNK {
        return work();
    }
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads()).map(|_| scope.spawn(work)).collect();
        let mut told = work();
        for other in others {
            let more = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            told = told.and_then(|mut told| {
                told.add(more?);
                Ok(told)
            });
        }
        told
    })
}

/// Creates a file that is not there yet.
pub(super) fn create(dir: impl AsFd, name: &OsStr, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // The bits that mean more than permissions come last, with the owner known.
    let mode = Mode::from_raw_mode(mode & 0o777);
    Ok(rustix::fs::openat(dir, name, flags, mode)?)
}

struct Writer<'a> {
    order: Order<'a>,
    owners: Owners,
    opened: Option<(Arc<Path>, OwnedFd)>,
    copier: FileCopier,
    copied: Copied,
}

impl<'a> Writer<'a> {
    fn new(order: Order<'a>) -> Self {
        let mut owners = order.owners.clone();
        owners.notes.clear();
        Self {
            order,
            owners,
            opened: None,
            copier: FileCopier::default(),
            copied: Copied::default(),
        }
    }

    fn told(self) -> Told {
        Told {
            notes: self.owners.notes,
            copied: self.copied,
        }
    }

    fn write(&mut self, job: &Job<'_>) -> Result<(), CopyError> {
        let path = job.dir.join(job.name);
        let tree = self.order.tree;
        let (known, begun) = (tree.known(job.metadata), SystemTime::now());
        let source = tree.open(job.source)?;
        tree.check_unchanged(job.source, &source, job.metadata)?;
        // One that was found without attributes has none as long as its times are the same.
        let xattrs = match known {
            Some(known) if known.plain => Vec::new(),
            _ => xattr::read(&source).map_err(|error| tree.read_error(job.source, error))?,
        };
        let attributes = self.order.flags.of(job.metadata, xattrs.clone());
        let dir = self.directory(&job.dir)?;
        let target = create(dir, job.name, attributes.mode)
            .map_err(|error| CopyError::write("create", &path, error))?;
        let (size, holes) = (job.metadata.size, job.metadata.is_sparse());
        let unknown = self.order.learn && known.is_none();
        let mut hasher = unknown.then(|| ContentHasher::new(size));
        let mut hear = hasher
            .as_mut()
            .map(|hasher| |bytes: &[u8]| hasher.update(bytes));
        let hear = hear.as_mut().map(|hear| hear as &mut Hear<'_>);
        let copied = self.copier.copy(&source, &target, size, holes, hear);
        // A file that became shorter ends too early; that it changed is the better message.
        tree.check_unchanged(job.source, &source, job.metadata)?;
        copied.map_err(|error| CopyError::write("copy to", &path, error))?;
        if self.order.learn {
            let hashed = hasher.map(ContentHasher::finish);
            if let Some(digest) = hashed.or(known.map(|known| known.digest)) {
                let content = Content::new(digest, xattrs);
                tree.learn(job.metadata, &content, begun);
                self.copied.contents.push((job.number, content));
            }
        }
        attributes
            .apply(&target, &path, &mut self.owners)
            .map_err(|error| CopyError::write("set metadata of", &path, error))?;
        if let Some(note) = merge::sparse(job.metadata, path) {
            self.owners.note(note);
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Arc<Path>) -> Result<&OwnedFd, CopyError> {
        let handle = match self.opened.take() {
            Some((opened, handle)) if opened == *dir => handle,
            _ => destination::open_directory(self.order.upper, dir)?,
        };
        Ok(&self.opened.insert((Arc::clone(dir), handle)).1)
    }
}
