//! Digests of file contents, computed on several threads and remembered.
//!
//! They are BLAKE3, not SHA-256: nobody outside of the cache sees them, and a pass over a large context
//! takes a fifth of the time.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use super::metadata::Metadata;
use super::stat_cache::Remembered;
use super::xattr::{self, Xattr};
use super::{ContextError, Tree, lock, threads};

/// Bytes read at once.
const BUFFER: usize = 128 << 10;

/// BLAKE3 of a file's content.
pub(super) type ContentDigest = [u8; blake3::OUT_LEN];

/// What the content key holds of a regular file besides its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) digest: ContentDigest,
    pub(super) xattrs: Vec<Xattr>,
}

impl Tree {
    /// The contents of regular files, in the order of `files`.
    pub(super) fn contents(
        &self,
        files: &[(&Path, &Metadata)],
    ) -> Result<Vec<Content>, ContextError> {
        let mut contents = self.remembered(files);
        let unknown: Vec<usize> = (0..files.len())
            .filter(|&index| contents[index].is_none())
            .collect();
        for (index, content) in self.read_all(files, &unknown)? {
            contents[index] = Some(content);
        }
        Ok(contents.into_iter().flatten().collect())
    }

    /// Whether it is known that a file has no attributes that a copy would carry.
    pub(crate) fn is_plain(&self, metadata: &Metadata) -> bool {
        lock(&self.stats)
            .get(metadata)
            .is_some_and(|known| known.plain)
    }

    /// What is known without opening a file: most, in a build that was done before.
    fn remembered(&self, files: &[(&Path, &Metadata)]) -> Vec<Option<Content>> {
        let mut stats = lock(&self.stats);
        let known = files.iter().map(|(_, metadata)| {
            let Remembered { digest, plain } = stats.get(metadata)?;
            let xattrs = Vec::new();
            plain.then_some(Content { digest, xattrs })
        });
        known.collect()
    }

    /// Reads those of the files on several threads; gives their indices with the contents.
    fn read_all(
        &self,
        files: &[(&Path, &Metadata)],
        wanted: &[usize],
    ) -> Result<Vec<(usize, Content)>, ContextError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; BUFFER];
            let mut done = Vec::new();
            while let Some(&index) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (path, metadata) = files[index];
                match self.content(path, metadata, &mut buffer) {
                    Ok(content) => done.push((index, content)),
                    Err(error) => {
                        // The others need not go on.
                        next.store(wanted.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok(done)
        };
        if wanted.len() < 2 {
            return work();
        }
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads()).map(|_| scope.spawn(work)).collect();
            let mut all = work();
            for other in others {
                let more = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all = all.and_then(|mut all| {
                    all.extend(more?);
                    Ok(all)
                });
            }
            all
        })
    }

    fn content(
        &self,
        path: &Path,
        metadata: &Metadata,
        buffer: &mut [u8],
    ) -> Result<Content, ContextError> {
        let remembered = lock(&self.stats).get(metadata);
        let begun = SystemTime::now().into();
        let failed = |error| self.read_error(path, error);
        let file = self.open(path)?;
        self.check_unchanged(path, &file, metadata)?;
        let xattrs = xattr::read(&file).map_err(failed)?;
        let digest = match remembered {
            Some(remembered) => remembered.digest,
            None => {
                let digest = hash(&file, metadata.size, buffer).map_err(failed)?;
                self.check_unchanged(path, &file, metadata)?;
                digest
            }
        };
        let plain = xattrs.is_empty();
        lock(&self.stats).put(metadata, Remembered { digest, plain }, begun);
        Ok(Content { digest, xattrs })
    }
}

/// Hashes a file, of which no more than `size` bytes are read however it grows.
fn hash(file: impl std::os::fd::AsFd, size: u64, buffer: &mut [u8]) -> io::Result<ContentDigest> {
    let mut hasher = blake3::Hasher::new();
    let mut left = size;
    while left > 0 {
        let count = match rustix::io::read(&file, &mut *buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let used = usize::try_from(left).map_or(count, |left| left.min(count));
        hasher.update(buffer.get(..used).unwrap_or_default());
        left -= used as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}
