//! Archives of `ADD`: unpacked aside, then moved into the layer (A12.1).
//!
//! What an archive may do to a layer depends on the layers below, of which an unpacker knows
//! nothing: directories of the same name are merged, other files replaced. So the unpacker gets an
//! empty directory of its own on the same file system, and the files are moved from there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::attributes::{Flags, times};
use super::destination::Layer;
use super::{CopyError, Step, Unpack};
use crate::context::Tree;
use crate::context::metadata::{Kind, Metadata};
use crate::context::resolve::{End, Seen, clean};
use crate::context::select::Picked;
use crate::context::xattr;
use crate::sys::root::Root;
use crate::sys::xattr::Place;

/// A file that may be an archive.
#[derive(Debug)]
pub struct Archive<'a> {
    /// The file, at its start.
    pub file: &'a File,
    /// Its path in its tree, for messages.
    pub path: &'a Path,
    /// Empty directory to unpack into, with owners and modes of the archive.
    pub into: &'a Path,
    /// What the layers below have at the destination. A directory that the archive does not hold
    /// itself, but something in it, takes its metadata from there.
    pub existing: Option<&'a Root>,
}

impl Step<'_> {
    /// Unpacks a file into the destination if it is an archive, and says whether it was.
    pub(super) fn unpack(
        &mut self,
        tree: &Tree,
        file: &Picked,
        unpack: &mut Unpack<'_>,
    ) -> Result<bool, CopyError> {
        let source = tree.open(&file.path)?;
        tree.check_unchanged(&file.path, &source, &file.metadata)?;
        let source = File::from(source);
        let scratch = Scratch::create(self.inputs.scratch)?;
        let unpacked = unpack(&Archive {
            file: &source,
            path: &file.path,
            into: &scratch.path,
            existing: self.existing().as_ref(),
        });
        tree.check_unchanged(&file.path, &source, &file.metadata)?;
        let unpacked = unpacked.map_err(|source| CopyError::Unpack {
            path: file.path.clone(),
            source,
        })?;
        if unpacked {
            self.destination.uncounted = true;
            let base = self.directory_target()?;
            self.move_in(&scratch, &base)?;
        }
        Ok(unpacked)
    }

    /// The destination in the layers below, if it is a directory there.
    fn existing(&self) -> Option<Root> {
        let (path, true) = self.locate(&clean(Path::new(&self.op.destination))).ok()? else {
            return None;
        };
        self.destination.root_below(&path)
    }

    fn move_in(&mut self, scratch: &Scratch, base: &Path) -> Result<(), CopyError> {
        let failed = |error| CopyError::write("move unpacked files to", base, error);
        let tree = Tree::merged(Root::open(&scratch.path).map_err(failed)?);
        let mut stack = vec![(PathBuf::new(), base.to_owned())];
        for (name, metadata) in tree.entries() {
            let parent = name.parent().unwrap_or(Path::new(""));
            while stack.len() > 1 && stack.last().is_some_and(|(level, _)| level != parent) {
                stack.pop();
            }
            let Some((_, dir)) = stack.last() else { break };
            let target = dir.join(name.file_name().unwrap_or_default());
            if metadata.is_dir() {
                let target = self.move_directory(&tree, &name, &metadata, target)?;
                stack.push((name, target));
            } else {
                let dir = dir.clone();
                self.move_file(&tree, &name, &metadata, &dir, &target)?;
            }
        }
        Ok(())
    }

    fn move_directory(
        &mut self,
        tree: &Tree,
        name: &Path,
        metadata: &Metadata,
        target: PathBuf,
    ) -> Result<PathBuf, CopyError> {
        let xattrs = super::merge::directory_xattrs(tree, name)?;
        let attributes = self.archive_flags().of(metadata, xattrs);
        match self.destination.look(&target)? {
            None => self.destination.create(&target, attributes)?,
            Some((found, _)) if found.is_dir() => {
                self.destination.directory(&target)?;
                if let Some(kept) = self.destination.attributes(&target) {
                    *kept = attributes;
                }
            }
            Some((found, layer)) => {
                // A link to a directory stays, as that of `/lib`: in its place, a directory
                // would hide what the image has there.
                if found.kind == Kind::Symlink {
                    let place = self.destination.follow(&target)?;
                    if place.end == End::Found(Seen::Directory) {
                        self.destination.directory(&place.path)?;
                        return Ok(place.path);
                    }
                }
                self.replace_by_directory(&target, layer)?;
                self.destination.create(&target, attributes)?;
            }
        }
        Ok(target)
    }

    /// A directory of an archive takes the place of any other file.
    fn replace_by_directory(&mut self, target: &Path, layer: Layer) -> Result<(), CopyError> {
        if layer == Layer::Lower {
            return Ok(());
        }
        let below = self
            .destination
            .look_below(target)
            .map_err(|error| CopyError::write("look up", target, error))?;
        // The directory below, removed by an archive before, would shine through again.
        if below.is_some_and(|below| below.is_dir()) {
            return Err(CopyError::NotDirectory(target.to_owned()));
        }
        let (dir, name) = split(target);
        self.destination.unlink(dir, name)
    }

    /// A file of an archive takes the place of whatever has its name.
    fn move_file(
        &mut self,
        tree: &Tree,
        name: &Path,
        metadata: &Metadata,
        dir: &Path,
        target: &Path,
    ) -> Result<(), CopyError> {
        if let Some((found, Layer::Upper)) = self.destination.look(target)?
            && found.is_dir()
        {
            self.destination.remove_tree(target)?;
        }
        let failed = |error| CopyError::write("move unpacked file to", target, error);
        let (from_dir, from) = split(name);
        let source = tree
            .root()
            .open_at(from_dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .map_err(failed)?;
        self.change(&source, from, metadata, target)
            .map_err(failed)?;
        let handle = self.destination.handle(dir)?;
        let (_, to) = split(target);
        rustix::fs::renameat(&source, from, &*handle, to).map_err(|e| failed(e.into()))?;
        self.report.files += 1;
        if metadata.kind == Kind::File {
            self.report.bytes += metadata.size;
        }
        Ok(())
    }

    /// Applies `--chown` and `--chmod` to an unpacked file.
    fn change(
        &mut self,
        dir: impl AsFd,
        name: &OsStr,
        metadata: &Metadata,
        target: &Path,
    ) -> io::Result<()> {
        if self.op.chown.is_none() && self.op.chmod.is_none() {
            return Ok(());
        }
        let flags = self.archive_flags();
        if metadata.kind == Kind::File {
            let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, open, Mode::empty())?;
            let attributes = flags.of(metadata, xattr::read(&file)?);
            return attributes.apply(&file, target, &mut self.owners);
        }
        let owner = flags.owner(metadata);
        let place = Place::In(dir.as_fd(), name.as_bytes());
        let given = self.owners.give(place, target, owner)?;
        if given.is_some() {
            let times = times(metadata.mtime, given);
            rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if metadata.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(flags.mode(metadata.mode, false));
            rustix::fs::chmodat(&dir, name, mode, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Owners and modes come from the archive unless flags say otherwise.
    fn archive_flags(&self) -> Flags {
        Flags {
            owner: self.op.chown.as_ref().and(self.flags.owner),
            chmod: self.flags.chmod.clone(),
        }
    }
}

/// A directory that is removed with all it holds when nobody needs it any more.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(path: &Path) -> Result<Self, CopyError> {
        let path = path.join("unpack");
        fs::create_dir_all(&path)
            .map_err(|error| CopyError::write("create scratch directory for", &path, error))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is removed with the store's other leftovers.
        drop(fs::remove_dir_all(&self.path));
        drop(fs::remove_dir(self.path.parent().unwrap_or(&self.path)));
    }
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (
        path.parent().unwrap_or(Path::new("")),
        path.file_name().unwrap_or_default(),
    )
}
