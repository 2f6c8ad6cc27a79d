//! Lists a directory in the order of the tar.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::vec;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{PackError, Promise, unreadable};
use crate::layer::copy::join;
use crate::layer::tar::Header;
use crate::layer::whiteout;
use crate::sys::root::Root;

/// Directories that are held open at once; deeper ones are opened again when it is their turn.
const OPEN: usize = 64;
/// Files of a batch.
const FILES: usize = 64;
/// Directories that files of a batch may be in: all are open at the same time.
const DIRECTORIES: usize = 16;

/// What comes next in the tar.
pub(super) enum Step {
    /// A directory; the root of the layer has an empty path.
    Directory {
        directory: Arc<OwnedFd>,
        path: Vec<u8>,
        /// What will be said of it, where it is not yet like that.
        header: Option<Box<Header>>,
    },
    /// What is no directory, in an opened one.
    File { parent: Arc<OwnedFd>, path: Vec<u8> },
    /// Nothing more, for this reason.
    Failed(PackError),
}

/// The names in a directory and in those below it.
pub(super) struct Walk<'a> {
    root: &'a Root,
    /// What is still to come, if anything is.
    promise: Option<&'a Promise>,
    /// Promised files that it has come to.
    met: usize,
    stack: Vec<Frame>,
    begun: bool,
}

/// A directory whose content is being listed.
struct Frame {
    path: Vec<u8>,
    directory: Option<Arc<OwnedFd>>,
    names: vec::IntoIter<Name>,
}

/// A name in a directory.
pub(super) struct Name {
    name: Vec<u8>,
    kind: FileType,
    /// Whether it is that of a promised file.
    promised: bool,
}

impl<'a> Walk<'a> {
    /// Begins at the root.
    pub(super) fn new(root: &'a Root, promise: Option<&'a Promise>) -> Self {
        Self {
            root,
            promise,
            met: 0,
            stack: Vec::new(),
            begun: false,
        }
    }

    /// Whether all was listed.
    pub(super) fn is_done(&self) -> bool {
        self.begun && self.stack.is_empty()
    }

    /// The next batch; `None` at the end.
    pub(super) fn next(&mut self) -> Option<Vec<Step>> {
        if self.is_done() {
            return None;
        }
        let mut steps = Vec::new();
        if let Err(error) = self.list(&mut steps) {
            steps.push(Step::Failed(error));
            self.stack.clear();
        }
        Some(steps)
    }

    fn list(&mut self, steps: &mut Vec<Step>) -> Result<(), PackError> {
        if !self.begun {
            self.begun = true;
            let directory = Arc::new(open(self.root, b"")?);
            self.enter(Vec::new(), directory, steps)?;
        }
        let mut directories = 0;
        while steps.len() < FILES && directories < DIRECTORIES {
            if !self.is_next_there(steps.is_empty())? {
                return Ok(());
            }
            let Some(frame) = self.stack.last_mut() else {
                return Ok(());
            };
            let Some(next) = frame.names.next() else {
                self.stack.pop();
                directories += 1;
                continue;
            };
            self.met += usize::from(next.promised);
            let Name { name, kind, .. } = next;
            let path = join(&frame.path, &name);
            let directory = match frame.directory.take() {
                Some(directory) => directory,
                None => Arc::new(open(self.root, &frame.path)?),
            };
            let kind = match kind {
                FileType::Unknown => kind_of(&directory, &name).map_err(failed(&path))?,
                kind => kind,
            };
            if self.stack.len() < OPEN
                && let Some(frame) = self.stack.last_mut()
            {
                frame.directory = Some(Arc::clone(&directory));
            }
            // One whose name is reserved is left out with all that it holds.
            if kind == FileType::Directory && whiteout::classify(&name) == whiteout::Name::Plain {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = rustix::fs::openat(&*directory, name.as_slice(), flags, Mode::empty());
                let child = Arc::new(child.map_err(failed(&path))?);
                self.enter(path, child, steps)?;
                directories += 1;
            } else {
                let parent = directory;
                steps.push(Step::File { parent, path });
            }
        }
        Ok(())
    }

    /// Whether the next name can be looked at: that of a promised file once it is written, for which
    /// this may wait.
    fn is_next_there(&self, wait: bool) -> Result<bool, PackError> {
        let frame = self.stack.last();
        let next = frame.and_then(|frame| frame.names.as_slice().first());
        let promise = self
            .promise
            .filter(|_| next.is_some_and(|next| next.promised));
        match promise {
            None => Ok(true),
            Some(promise) if !wait => Ok(promise.is_written(self.met)),
            Some(promise) if promise.wait_for(self.met) => Ok(true),
            Some(_) => Err(PackError::Unfinished),
        }
    }

    /// Begins the content of a directory.
    fn enter(
        &mut self,
        path: Vec<u8>,
        directory: Arc<OwnedFd>,
        steps: &mut Vec<Step>,
    ) -> Result<(), PackError> {
        let mut names = names(&directory, &path)?;
        if let Some(promise) = self.promise {
            names.extend(promise.files(&path).map(|name| Name {
                name: name.to_vec(),
                kind: FileType::RegularFile,
                promised: true,
            }));
        }
        // A promised file that is there, perhaps in part, is still one that is promised.
        names.sort_unstable_by(|a, b| (&a.name, b.promised).cmp(&(&b.name, a.promised)));
        names.dedup_by(|later, first| later.name == first.name);
        let header = self
            .promise
            .and_then(|promise| promise.listed(&path, names.len()));
        steps.push(Step::Directory {
            directory: Arc::clone(&directory),
            path: path.clone(),
            header: header.cloned().map(Box::new),
        });
        self.stack.push(Frame {
            path,
            directory: Some(directory),
            names: names.into_iter(),
        });
        Ok(())
    }
}

/// What is in a directory, in no order.
pub(super) fn names(directory: &OwnedFd, path: &[u8]) -> Result<Vec<Name>, PackError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed(path))? {
        let entry = entry.map_err(failed(path))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(Name {
                name: name.to_vec(),
                kind: entry.file_type(),
                promised: false,
            });
        }
    }
    Ok(names)
}

pub(super) fn open(root: &Root, path: &[u8]) -> Result<OwnedFd, PackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    root.open_at(Path::new(OsStr::from_bytes(path)), flags, Mode::empty())
        .map_err(|source| unreadable(path, source))
}

/// For file systems whose directories do not say what is in them.
fn kind_of(directory: &OwnedFd, name: &[u8]) -> Result<FileType, Errno> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

fn failed(path: &[u8]) -> impl Fn(Errno) -> PackError {
    move |error| unreadable(path, error.into())
}
