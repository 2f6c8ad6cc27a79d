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
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; BUFFER];
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((path, metadata)) = files.get(index) else {
                    return Ok(done);
                };
                match self.content(path, metadata, &mut buffer) {
                    Ok(content) => done.push((index, content)),
                    Err(error) => {
                        // The others need not go on.
                        next.store(files.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
        };
        let mut contents = if files.len() < 2 {
            work()?
        } else {
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
            })?
        };
        contents.sort_unstable_by_key(|(index, _)| *index);
        Ok(contents.into_iter().map(|(_, content)| content).collect())
    }

    fn content(
        &self,
        path: &Path,
        metadata: &Metadata,
        buffer: &mut [u8],
    ) -> Result<Content, ContextError> {
        let remembered = lock(&self.stats).get(metadata);
        if let Some(Remembered {
            digest,
            plain: true,
        }) = remembered
        {
            let xattrs = Vec::new();
            return Ok(Content { digest, xattrs });
        }
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
