//! A directory in overlayfs's form to a layer's tar, always the same bytes for the same tree.
//!
//! A directory stands before what is in it; names in one directory are in byte order; names have
//! no `./` before them. A directory's opaque mark comes right after it. The first of several hard
//! links in that order is the file.
//!
//! `walk` lists the directory in that order, batch by batch; `read` looks at the files of a batch and
//! reads the small ones, on several threads; the tar is written here, batches in order. `promise` lets
//! the walk go through a directory that is still being written, as far as it is.

mod promise;
mod read;
mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::Stat;

use super::tar::{Header, Kind, WriteError, Writer};
use super::whiteout::display;
use crate::sys::root::Root;
pub use promise::Promise;
use read::{Batch, Content, Item, Reader};
use walk::Walk;

/// What is to be chosen in packing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Times after this one, seconds since 1970, become this one (C11.2).
    pub clamp: Option<i64>,
    /// Whether the root directory has an entry, `./`, because its own metadata changed.
    pub root: bool,
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the tar.
    pub size: u64,
    /// Entries of the tar, whiteouts included.
    pub entries: u64,
    /// What the layer lacks or should perhaps not have.
    pub warnings: Vec<PackWarning>,
}

/// Something about a layer that its maker should know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackWarning {
    /// A socket, which the format does not have.
    #[error("`/{0}` is left out: layers cannot hold sockets")]
    Socket(String),
    /// A file whose name means something else in a layer.
    #[error("`/{0}` is left out: in a layer its name would delete another file")]
    ReservedName(String),
    /// An attribute whose name cannot be written.
    #[error("attribute `{attribute}` of `/{path}` is left out: layers cannot hold its name")]
    Attribute {
        /// The file.
        path: String,
        /// The attribute.
        attribute: String,
    },
    /// A file that is far larger than what it holds, and takes its full size in the layer.
    #[error("`/{path}` is sparse: {allocated} bytes on disk become {size} bytes in the layer")]
    Sparse {
        /// The file.
        path: String,
        /// Its size, bytes.
        size: u64,
        /// What it takes on disk, bytes.
        allocated: u64,
    },
}

/// Why a directory cannot be packed. Paths are within it.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The directory itself cannot be opened.
    #[error("cannot open `{path}`")]
    Open {
        /// Its path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read `/{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file changed while it was packed.
    #[error("`/{path}` changed while it was read")]
    Changed {
        /// The file.
        path: String,
    },
    /// The directory was not written to its end.
    #[error("the layer was given up")]
    Unfinished,
    /// Overlayfs left something out because the directory was mounted with a feature that kiln
    /// does not use.
    #[error("`/{path}` is incomplete: overlayfs keeps `{attribute}` for it")]
    Redirected {
        /// The file.
        path: String,
        /// The attribute that says so.
        attribute: String,
    },
    /// The layer cannot be written.
    #[error("cannot write the layer")]
    Write {
        /// Why.
        source: WriteError,
    },
}

impl From<WriteError> for PackError {
    fn from(source: WriteError) -> Self {
        Self::Write { source }
    }
}

/// A file of this size that takes less than a sixteenth of it on disk gets a warning.
const SPARSE_SIZE: u64 = 64 << 30;
/// Bytes of a large file that are read at once.
const BUFFER: usize = 256 << 10;
/// Batches that may be read before it is their turn; bounds the memory and the open directories.
const AHEAD: usize = 4;
/// More readers than this have nothing to do: one thread writes the tar.
const READERS: usize = 4;

/// Packs a directory (A8.3, A10.7). The caller flushes the writer.
///
/// # Errors
/// [`PackError`]; what was written is no layer then.
pub fn pack(upper: &Path, out: impl Write, options: &PackOptions) -> Result<Packed, PackError> {
    let root = Root::open(upper).map_err(|source| PackError::Open {
        path: upper.to_owned(),
        source,
    })?;
    pack_at(&root, out, options)
}

/// Packs a directory that is open already.
///
/// # Errors
/// [`PackError`]; what was written is no layer then.
pub fn pack_at(root: &Root, out: impl Write, options: &PackOptions) -> Result<Packed, PackError> {
    walked(Walk::new(root, None), out, options)
}

/// Packs a directory that is being written, as far as it is, up to its end.
pub(super) fn promised(
    root: &Root,
    promise: &Promise,
    out: impl Write,
) -> Result<Packed, PackError> {
    walked(Walk::new(root, Some(promise)), out, &PackOptions::default())
}

fn walked(mut walk: Walk<'_>, out: impl Write, options: &PackOptions) -> Result<Packed, PackError> {
    let mut packer = Packer {
        writer: Writer::new(out),
        links: HashMap::new(),
        buffer: Vec::new(),
        packed: Packed::default(),
    };
    // Most layers are small, and not worth a thread.
    if let Some(steps) = walk.next() {
        let mut reader = Reader::new(options);
        packer.put(&mut reader.read(steps, Batch::default()))?;
    }
    if !walk.is_done() {
        packer.rest(walk, options)?;
    }
    let Packer {
        writer, mut packed, ..
    } = packer;
    packed.size = writer.finish()?.1;
    Ok(packed)
}

struct Packer<W> {
    writer: Writer<W>,
    /// Names of files that have more than one, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    packed: Packed,
}

/// What is still to be listed, and where each batch is announced before it is read.
struct Queue<'a> {
    walk: Walk<'a>,
    announce: SyncSender<Receiver<Batch>>,
}

/// What the packer and its readers share.
struct Shared<'a> {
    /// `None` once all is listed, or there was an error.
    queue: Mutex<Option<Queue<'a>>>,
    /// Batches that were written, to be filled again: their memory need not be made anew.
    empty: Mutex<Vec<Batch>>,
}

impl<W: Write> Packer<W> {
    /// Packs what the walk has not given yet, read by other threads.
    fn rest(&mut self, walk: Walk<'_>, options: &PackOptions) -> Result<(), PackError> {
        let (announce, announced) = sync_channel(AHEAD);
        let shared = Shared {
            queue: Mutex::new(Some(Queue { walk, announce })),
            empty: Mutex::default(),
        };
        let readers = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            let mut started = false;
            for _ in 0..readers.min(READERS) {
                let thread = thread::Builder::new().name("pack".to_owned());
                let thread = thread.spawn_scoped(scope, || read_ahead(&shared, options));
                started |= thread.is_ok();
            }
            if !started {
                // No more threads to be had: then without.
                return self.alone(&shared, options);
            }
            // Dropped in the end, so that the readers stop when the tar cannot be written.
            let announced = announced;
            for batch in &announced {
                // A reader that panicked sends nothing; the scope passes its panic on.
                let Ok(mut batch) = batch.recv() else { break };
                self.put(&mut batch)?;
                batch.bytes.clear();
                lock(&shared.empty).push(batch);
            }
            Ok(())
        })
    }

    /// Packs what is left, read by this thread.
    fn alone(&mut self, shared: &Shared<'_>, options: &PackOptions) -> Result<(), PackError> {
        let mut reader = Reader::new(options);
        let mut batch = Batch::default();
        let mut queue = lock(&shared.queue);
        while let Some(steps) = queue.as_mut().and_then(|queue| queue.walk.next()) {
            batch = reader.read(steps, batch);
            self.put(&mut batch)?;
            batch.bytes.clear();
        }
        Ok(())
    }

    /// Writes the entries of a batch.
    fn put(&mut self, batch: &mut Batch) -> Result<(), PackError> {
        for item in batch.items.drain(..) {
            match item {
                Item::Entry {
                    header,
                    inode,
                    content,
                } => self.entry(header, inode, content, &batch.bytes)?,
                Item::Warning(warning) => self.packed.warnings.push(warning),
                Item::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        mut header: Header,
        inode: Option<(u64, u64)>,
        content: Content,
        bytes: &[u8],
    ) -> Result<(), PackError> {
        self.packed.entries += 1;
        if let Some(inode) = inode {
            if let Some(first) = self.links.get(&inode) {
                header.kind = Kind::HardLink;
                header.link.clone_from(first);
                header.size = 0;
                header.device = (0, 0);
                header.xattrs.clear();
                return Ok(self.writer.entry(&header)?);
            }
            self.links.insert(inode, header.path.clone());
        }
        match content {
            Content::None => self.writer.entry(&header)?,
            Content::Read(range) => {
                self.writer.entry(&header)?;
                self.writer.content(&bytes[range])?;
            }
            Content::Later(directory, seen) => {
                self.warn_sparse(&header, &seen);
                self.writer.entry(&header)?;
                let file = read::open(&directory, &header.path)?;
                self.large(&header, file, &seen)?;
            }
        }
        Ok(())
    }

    /// Writes the content of a file that was not read ahead.
    fn large(&mut self, header: &Header, mut file: File, seen: &Stat) -> Result<(), PackError> {
        self.buffer.resize(BUFFER, 0);
        let mut left = header.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let count = match file.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(changed(&header.path)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(&header.path, error)),
            };
            self.writer.content(&self.buffer[..count])?;
            left -= count as u64;
        }
        read::check_unchanged(&file, seen, &header.path)
    }

    fn warn_sparse(&mut self, header: &Header, stat: &Stat) {
        // The unit is 512 bytes whatever the file system's block size is.
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if header.size > SPARSE_SIZE && allocated < header.size / 16 {
            self.packed.warnings.push(PackWarning::Sparse {
                path: display(&header.path).into_owned(),
                size: header.size,
                allocated,
            });
        }
    }
}

/// Reads batches until there are no more, or nobody wants them.
fn read_ahead(shared: &Shared<'_>, options: &PackOptions) {
    let mut reader = Reader::new(options);
    loop {
        let (send, announcement) = sync_channel(1);
        let steps = {
            let mut next = lock(&shared.queue);
            let steps = next.as_mut().and_then(|queue| queue.walk.next());
            // Announced while nobody else can list, so that the order is that of the tar. Where too
            // much is read already, all wait here.
            match (steps, &*next) {
                (Some(steps), Some(queue)) if queue.announce.send(announcement).is_ok() => steps,
                _ => {
                    // With the last sender gone the packer sees the end.
                    *next = None;
                    return;
                }
            }
        };
        let batch = lock(&shared.empty).pop().unwrap_or_default();
        // Nobody waits for it any more when the tar cannot be written.
        drop(send.send(reader.read(steps, batch)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreadable(path: &[u8], source: io::Error) -> PackError {
    PackError::Read {
        path: display(path).into_owned(),
        source,
    }
}

fn changed(path: &[u8]) -> PackError {
    PackError::Changed {
        path: display(path).into_owned(),
    }
}
