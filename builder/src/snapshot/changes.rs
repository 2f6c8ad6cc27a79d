//! What a process changed in a tree, written as a layer in overlayfs's form.
//!
//! The layer is the one that overlayfs would have written: a file that was touched in any way is in
//! it, with the directories above it; what is gone is a whiteout; a directory that took the place of
//! another one is opaque. One difference cannot be seen from outside: a file that was opened for
//! writing and left as it was is not in the layer.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::record::{Entry, Record, open};
use crate::layer::copy::{attributes_of, name_of, parent_of, set_opaque};
use crate::layer::merge::is_whiteout;
use crate::layer::{Copier, How, TreeError};
use crate::sys::root::Root;

/// A tree before and after a process ran in it.
pub(super) struct Changes<'a> {
    pub(super) tree: &'a Root,
    pub(super) before: &'a Record,
    pub(super) after: &'a Record,
    /// Paths that the runtime itself moved away and back, or made something in: that alone is no
    /// change.
    pub(super) tolerated: &'a BTreeSet<Vec<u8>>,
    /// The layers that the tree was made of, topmost first.
    pub(super) layers: &'a [PathBuf],
    /// Where the tree is a mount: what it received. All else is as it was, even if it looks otherwise:
    /// a view of the same layers may give their files one more name meanwhile.
    pub(super) written: Option<&'a Root>,
}

impl Changes<'_> {
    /// Writes the layer to an empty directory.
    pub(super) fn write(&self, upper: &Root, how: How) -> Result<(), TreeError> {
        let mut layer = Layer {
            tree: self.tree,
            upper,
            copier: Copier::new(how),
            made: BTreeSet::new(),
        };
        let mut fresh = HashSet::new();
        for (path, new) in self.after.iter() {
            let old = self.before.get(path);
            let in_fresh = fresh.contains(parent_of(path));
            if !new.is_directory() {
                if in_fresh || !self.is_unchanged(path, old, new)? {
                    layer.file(path)?;
                }
                continue;
            }
            let replaced = old.filter(|old| old.is_directory());
            match replaced {
                Some(old) if !in_fresh && is_same(old, new) => {
                    if !self.is_unchanged(path, Some(old), new)? {
                        layer.directory(path)?;
                    }
                }
                _ => {
                    fresh.insert(path);
                    layer.directory(path)?;
                    if replaced.is_some() && !in_fresh {
                        layer.opaque(path)?;
                    }
                }
            }
        }
        for (path, _) in self.before.iter() {
            let parent = parent_of(path);
            let kept = parent.is_empty()
                || self.after.get(parent).is_some_and(Entry::is_directory)
                    && !fresh.contains(parent);
            if kept && self.after.get(path).is_none() {
                layer.whiteout(path)?;
            }
        }
        layer.finish()
    }

    fn is_unchanged(
        &self,
        path: &[u8],
        old: Option<&Entry>,
        new: &Entry,
    ) -> Result<bool, TreeError> {
        let Some(old) = old else { return Ok(false) };
        if old == new || self.is_beyond(path)? {
            return Ok(true);
        }
        // What a directory holds shows in its time, and otherwise only in its size.
        let (links, size) = match new.is_directory() {
            true => (old.links, old.size),
            false => (new.links, new.size),
        };
        let but_for_the_change = Entry {
            changed: old.changed,
            links: old.links,
            size,
            ..new.clone()
        };
        if but_for_the_change != *old {
            return Ok(false);
        }
        if new.is_directory() && new.changed == old.changed {
            return Ok(true);
        }
        // Another name of the file was removed; or the runtime did it.
        if links < old.links || self.tolerated.contains(path) {
            let same = self.has_attributes_of_layers(path);
            return same.map_err(TreeError::new("compare", path));
        }
        Ok(false)
    }

    /// Whether a mount has received nothing at a path.
    fn is_beyond(&self, path: &[u8]) -> Result<bool, TreeError> {
        let Some(written) = self.written else {
            return Ok(false);
        };
        match written.stat(Path::new(OsStr::from_bytes(path)), false) {
            Ok(_) => Ok(false),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(true),
                _ => Err(TreeError::new("compare", path)(error)),
            },
        }
    }

    /// Whether the extended attributes of a file are those that it has in the layers.
    fn has_attributes_of_layers(&self, path: &[u8]) -> io::Result<bool> {
        let parent = open(self.tree, parent_of(path))?;
        let now = attributes_of(parent.as_fd(), name_of(path))?;
        for layer in self.layers {
            if let Some(attributes) = attributes_in(&Root::open(layer)?, path)? {
                return Ok(attributes == now);
            }
        }
        Ok(false)
    }
}

/// The extended attributes of a file of one layer, if that has it.
fn attributes_in(layer: &Root, path: &[u8]) -> io::Result<Option<BTreeMap<Vec<u8>, Vec<u8>>>> {
    let parent = match open(layer, parent_of(path)) {
        Ok(parent) => parent,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(error),
            };
        }
    };
    match rustix::fs::statat(&parent, name_of(path), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if !is_whiteout(&stat) => attributes_of(parent.as_fd(), name_of(path)).map(Some),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a directory is the one that was there before.
fn is_same(old: &Entry, new: &Entry) -> bool {
    old.inode == new.inode && old.born == new.born
}

/// A layer being written.
struct Layer<'a> {
    tree: &'a Root,
    upper: &'a Root,
    copier: Copier,
    /// Directories that were made.
    made: BTreeSet<Vec<u8>>,
}

impl Layer<'_> {
    fn open_upper(&self, path: &[u8]) -> Result<OwnedFd, TreeError> {
        open(self.upper, path).map_err(TreeError::new("open", path))
    }

    fn open_tree(&self, path: &[u8]) -> Result<OwnedFd, TreeError> {
        open(self.tree, path).map_err(TreeError::new("open", path))
    }

    /// Makes a directory, with those above it, unless it is there already.
    fn directory(&mut self, path: &[u8]) -> Result<(), TreeError> {
        if path.is_empty() || self.made.contains(path) {
            return Ok(());
        }
        self.directory(parent_of(path))?;
        let parent = self.open_upper(parent_of(path))?;
        rustix::fs::mkdirat(&parent, name_of(path), Mode::RWXU)
            .map_err(TreeError::new("make", path))?;
        self.made.insert(path.to_vec());
        Ok(())
    }

    fn opaque(&self, path: &[u8]) -> Result<(), TreeError> {
        let directory = self.open_upper(path)?;
        set_opaque(directory.as_fd()).map_err(TreeError::new("mark", path))
    }

    fn file(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.directory(parent_of(path))?;
        let from = self.open_tree(parent_of(path))?;
        let to = self.open_upper(parent_of(path))?;
        let stat = rustix::fs::statat(&from, name_of(path), AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(TreeError::new("look at", path))?;
        self.copier
            .file(from.as_fd(), self.upper, to.as_fd(), path, &stat)
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        self.directory(parent_of(path))?;
        let parent = self.open_upper(parent_of(path))?;
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(&parent, name_of(path), kind, Mode::empty(), 0)
            .map_err(TreeError::new("record the removal of", path))
    }

    /// Gives directories what is theirs, when nothing is made in them any more.
    fn finish(&mut self) -> Result<(), TreeError> {
        let made = std::mem::take(&mut self.made);
        for path in made.iter().map(Vec::as_slice).chain([&[][..]]) {
            let (from, to) = (self.open_tree(path)?, self.open_upper(path)?);
            self.copier.directory(from.as_fd(), to.as_fd(), path)?;
        }
        Ok(())
    }
}
