//! Digests of file contents, computed on several threads and remembered.
//!
//! They are BLAKE3, not SHA-256: nobody outside of the cache sees them, and a pass over a large context
//! takes a fifth of the time.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use super::key::KeyError;
use super::metadata::{Kind, Metadata};
use super::select::Picked;
use super::stat_cache::Remembered;
use super::xattr::{self, Xattr};
use super::{ContextError, Tree, lock, threads};
use crate::sys::content;

/// BLAKE3 of a file's content.
pub(crate) type ContentDigest = [u8; blake3::OUT_LEN];

/// What the content key holds of a regular file besides its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(super) digest: ContentDigest,
    pub(super) xattrs: Vec<Xattr>,
}

impl Content {
    /// What was found out of a file while it was copied.
    pub(crate) fn new(digest: ContentDigest, xattrs: Vec<Xattr>) -> Self {
        Self { digest, xattrs }
    }
}

/// What was found out of files while these were copied, so that a key of them is one of what was
/// copied: of each item of a selection, by its number.
#[derive(Debug, Default)]
pub struct Found(BTreeMap<usize, Copied>);

/// What was found out of the files of one item, by their numbers there.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// Contents of regular files, but for further names of one file; in no order.
    pub(crate) contents: Vec<(usize, Content)>,
    /// Targets of symbolic links.
    pub(crate) targets: BTreeMap<usize, PathBuf>,
}

impl Copied {
    /// Adds what was found out of other files.
    pub(crate) fn add(&mut self, mut more: Self) {
        self.contents.append(&mut more.contents);
        self.targets.append(&mut more.targets);
    }
}

impl Found {
    /// Nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds the files of an item.
    pub(crate) fn add(&mut self, item: usize, mut files: Copied) {
        files.contents.sort_unstable_by_key(|(number, _)| *number);
        self.0.insert(item, files);
    }

    /// What was found out of the files of an item.
    pub(super) fn of(&self, item: usize) -> Option<&Copied> {
        self.0.get(&item)
    }
}

/// A file of an item, with its number there.
type Numbered<'a> = (usize, &'a Picked);

/// Of each file of an item that is a further name of one before it, the number of that one.
pub(super) fn first_names(files: &[Picked]) -> Vec<Option<usize>> {
    let mut inodes = HashMap::new();
    let first = |(number, file): Numbered<'_>| {
        let inode = file.metadata.hard_link()?;
        let first = *inodes.entry(inode).or_insert(number);
        (first != number).then_some(first)
    };
    files.iter().enumerate().map(first).collect()
}

/// The regular files that have contents of their own.
fn regular<'a>(files: &'a [Picked], firsts: &[Option<usize>]) -> Vec<Numbered<'a>> {
    let numbered = files.iter().enumerate().zip(firsts);
    numbered
        .filter(|((_, file), first)| file.metadata.kind == Kind::File && first.is_none())
        .map(|(file, _)| file)
        .collect()
}

impl Tree {
    /// The contents of the regular files of an item, with their numbers and in their order, as far as
    /// they are known without opening any; the first that is not is the error. Further names, which
    /// [`first_names`] gives, are left out.
    pub(super) fn known_contents(
        &self,
        files: &[Picked],
        firsts: &[Option<usize>],
    ) -> Result<Vec<(usize, Content)>, KeyError> {
        let files = regular(files, firsts);
        let known = self.remembered(&files).into_iter().zip(files);
        let known = known.map(|(content, (number, file))| {
            let content = content.ok_or_else(|| KeyError::Unknown(file.path.clone()))?;
            Ok((number, content))
        });
        known.collect()
    }

    /// The same, with those read that are not known.
    pub(super) fn contents(
        &self,
        files: &[Picked],
        firsts: &[Option<usize>],
    ) -> Result<Vec<(usize, Content)>, ContextError> {
        let files = regular(files, firsts);
        let mut contents = self.remembered(&files);
        let unknown: Vec<usize> = (0..files.len())
            .filter(|&index| contents[index].is_none())
            .collect();
        for (index, content) in self.read_all(&files, &unknown)? {
            contents[index] = Some(content);
        }
        let numbered = files.iter().zip(contents);
        Ok(numbered
            .filter_map(|((number, _), content)| Some((*number, content?)))
            .collect())
    }

    /// What is known of a file whose times say that it is unchanged.
    pub(crate) fn known(&self, metadata: &Metadata) -> Option<Remembered> {
        lock(&self.stats).get(metadata)
    }

    /// Remembers what was found out of a file, which was opened at `begun` or later.
    pub(crate) fn learn(&self, metadata: &Metadata, content: &Content, begun: SystemTime) {
        let remembered = Remembered {
            digest: content.digest,
            plain: content.xattrs.is_empty(),
        };
        lock(&self.stats).put(metadata, remembered, begun.into());
    }

    /// What is known without opening a file: most, in a build that was done before.
    fn remembered(&self, files: &[Numbered<'_>]) -> Vec<Option<Content>> {
        let mut stats = lock(&self.stats);
        let known = files.iter().map(|(_, file)| {
            let Remembered { digest, plain } = stats.get(&file.metadata)?;
            let xattrs = Vec::new();
            plain.then_some(Content { digest, xattrs })
        });
        known.collect()
    }

    /// Reads those of the files on several threads; gives their indices with the contents.
    fn read_all(
        &self,
        files: &[Numbered<'_>],
        wanted: &[usize],
    ) -> Result<Vec<(usize, Content)>, ContextError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; content::BUFFER];
            let mut done = Vec::new();
            while let Some(&index) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (_, file) = files[index];
                match self.content(file, &mut buffer) {
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

    fn content(&self, file: &Picked, buffer: &mut [u8]) -> Result<Content, ContextError> {
        let (path, metadata) = (file.path.as_path(), &file.metadata);
        let remembered = self.known(metadata);
        let begun = SystemTime::now();
        let failed = |error| self.read_error(path, error);
        let file = self.open(path)?;
        self.check_unchanged(path, &file, metadata)?;
        let xattrs = xattr::read(&file).map_err(failed)?;
        let digest = match remembered {
            Some(remembered) => remembered.digest,
            None => {
                let (size, holes) = (metadata.size, metadata.is_sparse());
                let mut hasher = ContentHasher::new(size);
                let mut hear = |bytes: &[u8]| hasher.update(bytes);
                let read = content::read(&file, size, holes, buffer, &mut hear);
                // A file that became shorter ends too early; that it changed is the better message.
                self.check_unchanged(path, &file, metadata)?;
                read.map_err(failed)?;
                hasher.finish()
            }
        };
        let content = Content { digest, xattrs };
        self.learn(metadata, &content, begun);
        Ok(content)
    }
}

/// Takes the digest of a file from its bytes as they come.
#[derive(Debug)]
pub(crate) struct ContentHasher {
    size: u64,
    hasher: Option<blake3::Hasher>,
    whole: Option<ContentDigest>,
}

impl ContentHasher {
    /// For a file of so many bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            hasher: None,
            whole: None,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        // Most files are small, and the state of a hasher is larger than these.
        if bytes.len() as u64 == self.size && self.hasher.is_none() {
            self.whole = Some(*blake3::hash(bytes).as_bytes());
        } else {
            let hasher = self.hasher.get_or_insert_with(blake3::Hasher::new);
            hasher.update(bytes);
        }
    }

    /// The digest of all.
    pub(crate) fn finish(self) -> ContentDigest {
        match (self.hasher, self.whole) {
            (Some(hasher), _) => *hasher.finalize().as_bytes(),
            (None, Some(whole)) => whole,
            (None, None) => *blake3::hash(&[]).as_bytes(),
        }
    }
}
