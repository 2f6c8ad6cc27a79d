//! Takes the digest of a layer while its directory is being written.
//!
//! A SHA-256 goes from the first byte to the last and cannot be shared by several threads, so that
//! of a large layer takes longer than its files take to be written. So it starts with the first file
//! that is there. What comes out is the same as from [`diff_id`](super::diff_id()) afterwards: the
//! files are read from the directory, and what was said of its directories is compared with what
//! they are once all is written.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kiln_registry::spec::DiffId;

use super::beside::HashingBeside;
use super::pack::{self, PackError, Packed, Promise};
use crate::sys::root::Root;

/// The end of who writes the directory. Dropped without [`Self::finish`], there is no digest.
#[derive(Debug)]
pub struct Writing(Arc<Promise>);

/// The digest that is being taken. Dropped, that ends.
#[derive(Debug)]
pub struct Following {
    promise: Arc<Promise>,
    thread: Option<JoinHandle<Option<(DiffId, Packed)>>>,
}

/// Begins to take the digest of the layer that a directory will be.
///
/// # Errors
/// When there is no thread to be had.
pub fn follow(root: Root, mut promise: Promise) -> io::Result<(Writing, Following)> {
    promise.begin();
    let promise = Arc::new(promise);
    let writing = Writing(Arc::clone(&promise));
    let (shared, thread) = (Arc::clone(&promise), thread::Builder::new());
    let thread = thread.name("follow".to_owned()).spawn(move || {
        // Who needs the digest all the same packs the directory, and gets to know the reason.
        packed(&root, &shared).ok().flatten()
    })?;
    let thread = Some(thread);
    Ok((writing, Following { promise, thread }))
}

fn packed(root: &Root, promise: &Promise) -> Result<Option<(DiffId, Packed)>, PackError> {
    let mut tar = HashingBeside::new(Wanted(promise));
    let packed = pack::promised(root, promise, &mut tar)?;
    let digest = tar.finish().map_err(|source| PackError::Write {
        source: source.into(),
    })?;
    let kept = promise.is_kept(root)?;
    Ok(kept.then_some((DiffId(digest), packed)))
}

impl Writing {
    /// Says that some files are written with all that belongs to them, by their number in the order
    /// of the tar.
    pub fn wrote(&self, files: Range<usize>) {
        self.0.wrote(files);
    }

    /// Says that all is written, directories too.
    pub fn finish(self) {
        self.0.end(true);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.end(false);
    }
}

impl Following {
    /// Waits for the digest; `None` when it has to be taken in the ordinary way.
    #[must_use]
    pub fn wait(mut self) -> Option<(DiffId, Packed)> {
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.promise.give_up();
    }
}

/// Takes bytes as long as somebody wants them.
#[derive(Debug)]
struct Wanted<'a>(&'a Promise);

impl Write for Wanted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.is_wanted() {
            true => Ok(bytes.len()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
