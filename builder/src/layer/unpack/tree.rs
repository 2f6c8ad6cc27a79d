//! Names of an archive to opened directories of the target, which no name and no link can leave.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{UnpackError, refused};
use crate::layer::whiteout::display;
use crate::sys::root::Root;

/// Links that may be followed for one name, as many as the kernel follows.
const MAX_LINKS: u32 = 40;
/// The longest path that the kernel takes, bytes.
const MAX_PATH: usize = 4095;

/// A directory that an entry lies in.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    /// Opened as a place only.
    pub(super) directory: Rc<OwnedFd>,
    /// Its path below the target, without links; empty for the target itself.
    pub(super) path: Vec<u8>,
}

impl Parent {
    /// The path of a name in it.
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path[..], b"/", name].concat()
        }
    }
}

/// Where looking for a directory ended.
pub(super) enum Step {
    /// It is there.
    Found(Parent),
    /// The name in this directory is missing, or deleted by a whiteout; the other names follow it.
    Missing {
        parent: Parent,
        name: Vec<u8>,
        whiteout: bool,
        rest: VecDeque<Vec<u8>>,
    },
}

/// The target and the directory that was used last.
pub(super) struct Tree<'a> {
    root: &'a Root,
    last: Option<(Vec<u8>, Parent)>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, last: None }
    }

    /// Drops what is remembered; to be called when something was removed.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The target itself.
    pub(super) fn top(&self, entry: &[u8]) -> Result<Parent, UnpackError> {
        self.parent(Vec::new(), entry)
    }

    /// Opens a path without links below the target.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    /// What a name in a directory is, links not followed.
    #[expect(clippy::unused_self, reason = "reads as a question to the tree")]
    pub(super) fn stat(
        &self,
        parent: &Parent,
        name: &[u8],
        entry: &[u8],
    ) -> Result<Option<Stat>, UnpackError> {
        match rustix::fs::statat(&parent.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(refused(entry, error)),
        }
    }

    /// The directory of these names if it is there without any link in it, which is the common
    /// case and one system call, or none for the directory of the entry before.
    pub(super) fn quick(&mut self, names: &[&[u8]]) -> Option<Parent> {
        let key = names.join(&b'/');
        if let Some((last, parent)) = &self.last
            && *last == key
        {
            return Some(parent.clone());
        }
        let directory = self.open(&key, OFlags::PATH | OFlags::DIRECTORY).ok()?;
        let parent = Parent {
            directory: Rc::new(directory),
            path: key.clone(),
        };
        self.last = Some((key, parent.clone()));
        Some(parent)
    }

    /// Walks from a directory along names, follows links inside the target, and stops at the
    /// first name that is missing. `links` counts down over the whole name.
    pub(super) fn walk(
        &self,
        from: Parent,
        mut names: VecDeque<Vec<u8>>,
        links: &mut u32,
        entry: &[u8],
    ) -> Result<Step, UnpackError> {
        let mut at = from;
        while let Some(name) = names.pop_front() {
            if matches!(&name[..], b"" | b".") {
                continue;
            }
            if name == b".." {
                // Only link texts have it; the root is its own parent.
                let up = at.path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                at = self.parent(at.path[..up].to_vec(), entry)?;
                continue;
            }
            let Some(stat) = self.stat(&at, &name, entry)? else {
                return Ok(Step::Missing {
                    parent: at,
                    name,
                    whiteout: false,
                    rest: names,
                });
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => at = self.child(&at, &name, entry)?,
                FileType::Symlink => {
                    let text = rustix::fs::readlinkat(&at.directory, &name[..], Vec::new());
                    let text = text.map_err(|error| refused(entry, error))?;
                    at = self.follow(at, text.as_bytes(), &mut names, links, entry)?;
                }
                _ if is_whiteout(&stat) => {
                    return Ok(Step::Missing {
                        parent: at,
                        name,
                        whiteout: true,
                        rest: names,
                    });
                }
                _ => {
                    return Err(UnpackError::NotDirectory {
                        path: display(entry).into_owned(),
                        place: display(&at.join(&name)).into_owned(),
                    });
                }
            }
        }
        Ok(Step::Found(at))
    }

    /// Puts the names of a link's text before the others; gives the directory to go on from.
    pub(super) fn follow(
        &self,
        at: Parent,
        text: &[u8],
        names: &mut VecDeque<Vec<u8>>,
        links: &mut u32,
        entry: &[u8],
    ) -> Result<Parent, UnpackError> {
        *links += 1;
        let length: usize = names.iter().map(Vec::len).sum();
        if *links > MAX_LINKS || length + text.len() > 2 * MAX_PATH {
            return Err(too_many_links(entry));
        }
        for name in text.split(|&b| b == b'/').rev() {
            names.push_front(name.to_vec());
        }
        if text.starts_with(b"/") {
            self.top(entry)
        } else {
            Ok(at)
        }
    }

    /// A directory in a directory; it must be there and be no link.
    pub(super) fn child(
        &self,
        at: &Parent,
        name: &[u8],
        entry: &[u8],
    ) -> Result<Parent, UnpackError> {
        let path = at.join(name);
        if path.len() > MAX_PATH {
            return Err(too_many_links(entry));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&at.directory, name, flags, Mode::empty())
            .map_err(|error| refused(entry, error))?;
        Ok(Parent {
            directory: Rc::new(directory),
            path,
        })
    }

    fn parent(&self, path: Vec<u8>, entry: &[u8]) -> Result<Parent, UnpackError> {
        let directory = self.open(&path, OFlags::PATH | OFlags::DIRECTORY);
        Ok(Parent {
            directory: Rc::new(directory.map_err(|error| refused(entry, error))?),
            path,
        })
    }
}

fn too_many_links(entry: &[u8]) -> UnpackError {
    UnpackError::Links {
        path: display(entry).into_owned(),
    }
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether overlayfs takes a file for a deletion.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A path for calls that want one.
pub(super) fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
