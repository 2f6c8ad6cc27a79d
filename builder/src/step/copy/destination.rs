//! The layer being written, seen above the layers below it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::CopyError;
use super::attributes::{Attributes, Owners};
use crate::context::metadata::{Kind, Metadata};
use crate::context::resolve::{self, Place, Seen};
use crate::context::{is_absent, read_link, xattr};
use crate::layer::Promise;
use crate::sys::owner;
use crate::sys::root::Root;
use crate::sys::xattr::Place as OnDisk;

/// Which layer a file was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// The one being written.
    Upper,
    /// One of those below.
    Lower,
}

/// The destination of a copy: an upper layer, which only we write, over a merged lower tree.
///
/// Paths given to its functions are relative to the root and free of links, unless said otherwise.
/// While files are written, directories have mode 0700 and whatever times; what they get in the
/// end is kept aside until [`Destination::finish`].
#[derive(Debug)]
pub(super) struct Destination<'a> {
    pub(super) upper: Root,
    upper_path: PathBuf,
    lower: Option<&'a Root>,
    /// For directories that are made because something below needs them (A11.4).
    created: Attributes,
    directories: BTreeMap<PathBuf, Attributes>,
    opened: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Whether something is in the layer otherwise than by one writing of one file, so that counting
    /// what was written does not tell what the layer holds.
    pub(super) uncounted: bool,
}

impl<'a> Destination<'a> {
    pub(super) fn open(
        upper_path: &Path,
        lower: Option<&'a Root>,
        created: Attributes,
    ) -> Result<Self, CopyError> {
        let upper = Root::open(upper_path)
            .map_err(|error| CopyError::write("open layer directory", upper_path, error))?;
        let mut destination = Self {
            upper,
            upper_path: upper_path.to_owned(),
            lower,
            created,
            directories: BTreeMap::new(),
            opened: None,
            uncounted: false,
        };
        // The root of a layer is the root of the image once it is the topmost layer.
        let top = Path::new("");
        let attributes = match lower {
            Some(lower) => destination.of_lower(lower, top)?,
            None => Attributes {
                mode: 0o755,
                owner: (0, 0),
                ..destination.created.clone()
            },
        };
        destination.directories.insert(top.to_owned(), attributes);
        Ok(destination)
    }

    /// What is at a path, a link itself if it is one.
    pub(super) fn look(&self, path: &Path) -> Result<Option<(Metadata, Layer)>, CopyError> {
        let failed = |error| CopyError::write("look up", path, error);
        match corrected(&self.upper, path) {
            Ok(stat) => return Ok(Some((Metadata::from(&stat), Layer::Upper))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        self.look_below(path)
            .map(|found| found.map(|metadata| (metadata, Layer::Lower)))
            .map_err(failed)
    }

    /// What the lower layers have at a path.
    pub(super) fn look_below(&self, path: &Path) -> io::Result<Option<Metadata>> {
        let Some(lower) = self.lower else {
            return Ok(None);
        };
        // A link on the way is one that the upper layer has replaced by a directory.
        let resolve =
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = loop {
            match rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                result => break result?,
            }
        };
        let mut stat = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?;
        owner::correct(OnDisk::At(place.as_fd()), &mut stat)?;
        Ok(Some(Metadata::from(&stat)))
    }

    /// A directory of the lower layers as a root of its own.
    pub(super) fn root_below(&self, path: &Path) -> Option<Root> {
        let found = self.look_below(path).ok()??;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let handle = self.lower?.open_at(path, flags, Mode::empty()).ok()?;
        found.is_dir().then(|| Root::from_fd(handle))
    }

    /// Follows any path, with links, inside the root (A11.5).
    pub(super) fn follow(&self, path: &Path) -> Result<Place, CopyError> {
        resolve::follow(path, true, |path| {
            let Some((metadata, layer)) = self.look(path)? else {
                return Ok(None);
            };
            Ok(Some(match (metadata.kind, layer, self.lower) {
                (Kind::Directory, ..) => Seen::Directory,
                (Kind::Symlink, Layer::Lower, Some(lower)) => Seen::Link(target(lower, path)?),
                (Kind::Symlink, ..) => Seen::Link(target(&self.upper, path)?),
                _ => Seen::Other,
            }))
        })
    }

    /// Makes sure that a directory is in the upper layer: one of the lower layers is re-created
    /// with all its metadata, one that is nowhere is created with its parents (A11.4).
    pub(super) fn directory(&mut self, path: &Path) -> Result<(), CopyError> {
        if self.directories.contains_key(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let attributes = match self.look(path)? {
            None => {
                self.make(path)?;
                self.created.clone()
            }
            Some((metadata, layer)) if metadata.is_dir() => match (layer, self.lower) {
                (Layer::Lower, Some(lower)) => {
                    let attributes = self.of_lower(lower, path)?;
                    self.make(path)?;
                    attributes
                }
                // An unpacked archive brought it.
                _ => Attributes::of(&metadata, Vec::new()),
            },
            Some(_) => return Err(CopyError::NotDirectory(path.to_owned())),
        };
        self.directories.insert(path.to_owned(), attributes);
        Ok(())
    }

    /// Creates a directory that is in no layer; its parent is in the upper one.
    pub(super) fn create(&mut self, path: &Path, attributes: Attributes) -> Result<(), CopyError> {
        self.make(path)?;
        self.directories.insert(path.to_owned(), attributes);
        Ok(())
    }

    /// What a directory of the upper layer will get in the end.
    pub(super) fn attributes(&mut self, path: &Path) -> Option<&mut Attributes> {
        self.directories.get_mut(path)
    }

    /// A directory of the upper layer, opened.
    pub(super) fn handle(&mut self, path: &Path) -> Result<Rc<OwnedFd>, CopyError> {
        if let Some((opened, handle)) = &self.opened
            && opened == path
        {
            return Ok(Rc::clone(handle));
        }
        let handle = open_directory(&self.upper, path)?;
        let handle = Rc::new(handle);
        self.opened = Some((path.to_owned(), Rc::clone(&handle)));
        Ok(handle)
    }

    /// Removes a file that is no directory from the upper layer.
    pub(super) fn unlink(&mut self, dir: &Path, name: &OsStr) -> Result<(), CopyError> {
        self.uncounted = true;
        let handle = self.handle(dir)?;
        rustix::fs::unlinkat(&*handle, name, AtFlags::empty())
            .map_err(|error| CopyError::write("replace", &dir.join(name), error.into()))
    }

    /// Removes a directory of the upper layer with all below.
    pub(super) fn remove_tree(&mut self, path: &Path) -> Result<(), CopyError> {
        self.directories.retain(|dir, _| !dir.starts_with(path));
        self.opened = None;
        self.uncounted = true;
        std::fs::remove_dir_all(self.upper_path.join(path))
            .map_err(|error| CopyError::write("replace", path, error))
    }

    /// Directories of the layer, without its root.
    pub(super) fn directories(&self) -> u64 {
        self.directories.len() as u64 - 1
    }

    /// What the layer will be like in the end, but for the files that are still to be written.
    pub(super) fn promise(&self) -> Promise {
        let mut promise = Promise::default();
        for (path, attributes) in &self.directories {
            promise.directory(attributes.header(path));
        }
        promise
    }

    /// Opens the layer once more, for who reads it meanwhile.
    pub(super) fn open_again(&self) -> io::Result<Root> {
        Root::open(&self.upper_path)
    }

    /// Gives all directories what is theirs, the deepest first: writing into a directory changes
    /// its time, and its mode may forbid to go below.
    pub(super) fn finish(&mut self, owners: &mut Owners) -> Result<(), CopyError> {
        self.opened = None;
        while let Some((path, attributes)) = self.directories.pop_last() {
            let handle = open_directory(&self.upper, &path)?;
            attributes
                .apply(&handle, &path, owners)
                .map_err(|error| CopyError::write("set metadata of", &path, error))?;
        }
        Ok(())
    }

    fn make(&mut self, path: &Path) -> Result<(), CopyError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let handle = self.handle(parent)?;
        rustix::fs::mkdirat(&*handle, name, Mode::RWXU)
            .map_err(|error| CopyError::write("create directory", path, error.into()))
    }

    fn of_lower(&self, lower: &Root, path: &Path) -> Result<Attributes, CopyError> {
        let read = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let handle = lower.open_at(path, flags, Mode::empty())?;
            let mut stat = rustix::fs::fstat(&handle)?;
            owner::correct(OnDisk::Open(handle.as_fd()), &mut stat)?;
            let metadata = Metadata::from(&stat);
            Ok(Attributes::of(&metadata, xattr::read(&handle)?))
        };
        read().map_err(|error| CopyError::write("read metadata of", path, error))
    }
}

/// What a path is, a link not followed, with what is written down of it.
fn corrected(root: &Root, path: &Path) -> io::Result<Stat> {
    let place = root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let mut stat = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?;
    owner::correct(OnDisk::At(place.as_fd()), &mut stat)?;
    Ok(stat)
}

/// Opens a directory of the layer that is written.
pub(super) fn open_directory(upper: &Root, path: &Path) -> Result<OwnedFd, CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    upper
        .open_at(path, flags, Mode::empty())
        .map_err(|error| CopyError::write("open", path, error))
}

fn target(root: &Root, path: &Path) -> Result<PathBuf, CopyError> {
    read_link(root, path).map_err(|error| CopyError::write("read link", path, error))
}
