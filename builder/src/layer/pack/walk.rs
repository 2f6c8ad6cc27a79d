//! Lists a directory in the order of the tar.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::vec;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{PackError, unreadable};
use crate::layer::copy::join;
use crate::layer::whiteout::{self, Name};
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
    },
    /// What is no directory, in an opened one.
    File { parent: Arc<OwnedFd>, path: Vec<u8> },
    /// Nothing more, for this reason.
    Failed(PackError),
}

/// The names in a directory and in those below it.
pub(super) struct Walk<'a> {
    root: &'a Root,
    stack: Vec<Frame>,
    begun: bool,
}

/// A directory whose content is being listed.
struct Frame {
    path: Vec<u8>,
    directory: Option<Arc<OwnedFd>>,
    names: vec::IntoIter<(Vec<u8>, FileType)>,
}

impl<'a> Walk<'a> {
    /// Begins at the root.
    pub(super) fn new(root: &'a Root) -> Self {
        Self {
            root,
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
            let Some(frame) = self.stack.last_mut() else {
                return Ok(());
            };
            let Some((name, kind)) = frame.names.next() else {
                self.stack.pop();
                directories += 1;
                continue;
            };
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
            if kind == FileType::Directory && whiteout::classify(&name) == Name::Plain {
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

    /// Begins the content of a directory.
    fn enter(
        &mut self,
        path: Vec<u8>,
        directory: Arc<OwnedFd>,
        steps: &mut Vec<Step>,
    ) -> Result<(), PackError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&*directory).map_err(failed(&path))? {
            let entry = entry.map_err(failed(&path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push((name.to_vec(), entry.file_type()));
            }
        }
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        steps.push(Step::Directory {
            directory: Arc::clone(&directory),
            path: path.clone(),
        });
        self.stack.push(Frame {
            path,
            directory: Some(directory),
            names: names.into_iter(),
        });
        Ok(())
    }
}

fn open(root: &Root, path: &[u8]) -> Result<OwnedFd, PackError> {
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
