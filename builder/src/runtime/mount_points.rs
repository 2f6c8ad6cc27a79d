//! Mount points that the image does not have, and how no trace of them enters the layer (B1.6).
//!
//! Nearly all of them come from a lowest layer of their own ([`lay_out`]), which lies below the
//! image: where the image has the path, it covers it; where not, the place is there and the
//! image's directories are not touched. Only where a layer of the image hides that one (a
//! whiteout, a directory behind a link) the place is made in the writable directory, and
//! [`clean`] removes it again, with whatever overlayfs copied up for it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use kiln_registry::digest::Hasher;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::sys::root::Root;

/// Name of a lowest layer that is being made.
pub(super) const NEW_LAYER: &str = "points";

/// What stands at a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A path that was made in the writable directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// The directory that it was made in, relative to the root, without links.
    directory: PathBuf,
    /// The names below that directory, each within the one before.
    names: Vec<PathBuf>,
    /// Whether a whiteout stood in its place.
    whiteout: bool,
    /// Modification time of the directory before and after.
    before: Time,
    after: Time,
    /// The directory and those above it that were not in the writable directory, lowest first.
    copied: Vec<Copied>,
}

/// The mount points of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Points {
    /// Those that had to be made in the writable directory.
    pub(super) made: Vec<Made>,
    /// The directories of the lowest layer, the inner ones first.
    pub(super) laid_out: Vec<PathBuf>,
}

/// Seconds and nanoseconds.
type Time = (i64, i64);

/// A directory that overlayfs copied up, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Copied {
    path: PathBuf,
    mode: u32,
    owner: (u32, u32),
    modified: Time,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Gives the lowest layer: an empty place for every mount. It is looked for in a directory where
/// earlier runs left theirs, else made in `work` and put there. What cannot be laid out (`..` in a
/// path, a file where a directory is wanted too) is left to [`MountPoints::find`].
pub(super) fn lay_out(kept: &Path, work: &Path, places: &[(String, Kind)]) -> io::Result<PathBuf> {
    let mut hasher = Hasher::new();
    for (target, kind) in places {
        hasher.update(format!("{kind:?} {target}\0").as_bytes());
    }
    let layer = kept.join(hasher.finish().hex());
    if layer.exists() {
        return Ok(layer);
    }
    let new = work.join(NEW_LAYER);
    make_layer(&new, places)?;
    match fs::rename(&new, &layer) {
        // Another run was faster. What is left in `work` goes with it.
        Err(_) if layer.exists() => {}
        result => result?,
    }
    Ok(layer)
}

/// The directories of the lowest layer, relative to the root, the inner ones first.
pub(super) fn directories(places: &[(String, Kind)]) -> Vec<PathBuf> {
    let mut directories = BTreeSet::new();
    for (target, kind) in places {
        if let Some(target) = laid_out(target) {
            let outer = usize::from(*kind == Kind::File);
            let within = target.ancestors().skip(outer);
            let within = within.filter(|path| !path.as_os_str().is_empty());
            directories.extend(within.map(Path::to_owned));
        }
    }
    directories.into_iter().rev().collect()
}

/// The place of a mount in the lowest layer, relative to its root.
fn laid_out(target: &str) -> Option<&Path> {
    let target = Path::new(target);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let target = Some(target).filter(|target| target.components().all(plain))?;
    Some(target.strip_prefix("/").unwrap_or(target))
}

/// Makes a layer of empty places.
pub(super) fn make_layer(layer: &Path, places: &[(String, Kind)]) -> io::Result<()> {
    let make_directories = |path: &Path| {
        // What a step writes below them takes them along, so they look as docker's do.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(path)
    };
    make_directories(layer)?;
    for (target, kind) in places {
        let Some(target) = laid_out(target) else {
            continue;
        };
        let place = layer.join(target);
        let made = match (kind, place.parent()) {
            (Kind::File, Some(parent)) => make_directories(parent)
                .and_then(|()| {
                    let mut options = fs::OpenOptions::new();
                    options.append(true).create(true).mode(0o644).open(&place)
                })
                .map(drop),
            _ => make_directories(&place),
        };
        match made {
            Err(error) if !is_conflict(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_conflict(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory};
    matches!(error.kind(), AlreadyExists | IsADirectory | NotADirectory)
}

/// Finds or makes mount points in a root that is mounted but not entered yet.
#[derive(Debug)]
pub(super) struct MountPoints<'a> {
    root: &'a Root,
    upper: OwnedFd,
    /// What was made on the way.
    pub(super) made: Vec<Made>,
}

impl<'a> MountPoints<'a> {
    /// `upper` is the writable directory of the root.
    pub(super) fn new(root: &'a Root, upper: OwnedFd) -> Self {
        Self {
            root,
            upper,
            made: Vec::new(),
        }
    }

    /// Opens a place, after making it when it is missing.
    pub(super) fn find(&mut self, target: &str, kind: Kind) -> io::Result<OwnedFd> {
        let target = Path::new(target);
        match self.root.locate(target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let (directory, names) = self.existing(target)?;
        let mut made = self.describe(&directory, &names)?;
        make(&directory, &names, kind)?;
        if let Some(made) = &mut made {
            made.after = modified(&stat(directory.as_fd())?);
        }
        self.made.extend(made);
        self.root.locate(target)
    }

    /// Splits a path into the deepest directory that exists and the names that do not.
    fn existing(&self, target: &Path) -> io::Result<(OwnedFd, Vec<PathBuf>)> {
        let mut names = Vec::new();
        let mut at = target;
        loop {
            let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            names.insert(0, PathBuf::from(name));
            match self.root.locate(parent) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => at = parent,
                found => return Ok((found?, names)),
            }
        }
    }

    /// Records what [`clean`] has to know; `None` below another mount, which is no part of the layer.
    fn describe(&self, directory: &OwnedFd, names: &[PathBuf]) -> io::Result<Option<Made>> {
        let status = stat(directory.as_fd())?;
        if status.st_dev != stat(self.root.as_fd())?.st_dev {
            return Ok(None);
        }
        let top = descriptor_path(self.root.as_fd())?;
        let full = descriptor_path(directory.as_fd())?;
        let Ok(path) = full.strip_prefix(&top) else {
            return Ok(None);
        };
        let first = names
            .first()
            .map_or(path.to_owned(), |name| path.join(name));
        let whiteout = beneath(self.upper.as_fd(), &first, OFlags::PATH | OFlags::NOFOLLOW)
            .is_ok_and(|place| stat(place.as_fd()).is_ok_and(|found| is_whiteout(&found)));
        let mut copied = Vec::new();
        for ancestor in path.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if beneath(self.upper.as_fd(), ancestor, OFlags::PATH).is_ok() {
                break;
            }
            copied.push(Copied::of(self.root, ancestor)?);
        }
        Ok(Some(Made {
            directory: path.to_owned(),
            names: names.to_vec(),
            whiteout,
            before: modified(&status),
            after: modified(&status),
            copied,
        }))
    }
}

impl Copied {
    fn of(root: &Root, path: &Path) -> io::Result<Self> {
        let dir = root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Self::describe(dir.as_fd(), path)
    }

    fn describe(dir: BorrowedFd<'_>, path: &Path) -> io::Result<Self> {
        let status = stat(dir)?;
        Ok(Self {
            path: path.to_owned(),
            mode: status.st_mode,
            owner: (status.st_uid, status.st_gid),
            modified: modified(&status),
            attributes: attributes(dir)?,
        })
    }
}

fn make(directory: &OwnedFd, names: &[PathBuf], kind: Kind) -> io::Result<()> {
    let Some((last, parents)) = names.split_last() else {
        return Ok(());
    };
    let mode = Mode::from_raw_mode(0o755);
    let mut at = rustix::io::fcntl_dupfd_cloexec(directory, 0)?;
    for name in parents {
        rustix::fs::mkdirat(&at, name, mode)?;
        at = beneath(at.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    match kind {
        Kind::Directory => rustix::fs::mkdirat(&at, last, mode)?,
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::openat(
                &at,
                last,
                flags,
                Mode::from_raw_mode(0o644),
            )?);
        }
    }
    Ok(())
}

/// Removes from a writable directory what mount points left there: directories of the lowest layer
/// that were copied up without content of their own, and what was made.
pub(super) fn clean(upper: &Path, lowers: &[PathBuf], points: &Points) -> io::Result<()> {
    let upper = open_directory(upper)?;
    let upper = upper.as_fd();
    for made in points.made.iter().rev() {
        made.remove(upper)?;
    }
    for path in &points.laid_out {
        let copied = present(beneath(upper, path, OFlags::PATH | OFlags::DIRECTORY))?;
        if copied.is_some() && !in_image(lowers, path)? {
            remove_empty(upper, path)?;
        }
    }
    Ok(())
}

/// Whether a layer of the image has something at a path.
fn in_image(lowers: &[PathBuf], path: &Path) -> io::Result<bool> {
    for lower in lowers {
        let lower = open_directory(lower)?;
        match beneath(lower.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(place) => return Ok(!is_whiteout(&stat(place.as_fd())?)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

impl Made {
    fn remove(&self, upper: BorrowedFd<'_>) -> io::Result<()> {
        let Some(directory) = present(beneath(upper, &self.directory, OFlags::PATH))? else {
            return Ok(());
        };
        // Nothing but the stub's making and removing changed the directory since.
        let untouched = modified(&stat(directory.as_fd())?) == self.after;
        let mut path = self.names.iter().collect::<PathBuf>();
        while let Some(name) = path.file_name() {
            if !remove_stub(directory.as_fd(), path.parent(), name)? {
                break;
            }
            path.pop();
        }
        if let (true, Some(first)) = (
            self.whiteout && path.as_os_str().is_empty(),
            self.names.first(),
        ) {
            let kind = FileType::CharacterDevice;
            match rustix::fs::mknodat(&directory, first, kind, Mode::empty(), 0) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if untouched {
            set_modified(directory.as_fd(), self.before)?;
        }
        for copied in &self.copied {
            let Some(dir) = present(beneath(
                upper,
                &copied.path,
                OFlags::RDONLY | OFlags::DIRECTORY,
            ))?
            else {
                break;
            };
            if Copied::describe(dir.as_fd(), &copied.path)? != *copied
                || !remove_empty(upper, &copied.path)?
            {
                break;
            }
        }
        Ok(())
    }
}

/// Removes one stub below a directory: an empty directory or an empty file. Tells whether it is gone.
fn remove_stub(directory: BorrowedFd<'_>, parent: Option<&Path>, name: &OsStr) -> io::Result<bool> {
    let parent = parent.unwrap_or(Path::new(""));
    let Some(parent) = present(beneath(directory, parent, OFlags::PATH))? else {
        return Ok(false);
    };
    let Some(place) = present(beneath(parent.as_fd(), Path::new(name), OFlags::PATH))? else {
        return Ok(false);
    };
    let status = stat(place.as_fd())?;
    let flags = match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        FileType::RegularFile if status.st_size == 0 => AtFlags::empty(),
        _ => return Ok(false),
    };
    let before = modified(&stat(parent.as_fd())?);
    match rustix::fs::unlinkat(&parent, name, flags) {
        Err(Errno::NOTEMPTY) => Ok(false),
        result => {
            result?;
            set_modified(parent.as_fd(), before)?;
            Ok(true)
        }
    }
}

/// Removes a directory of the writable directory if it is there and empty, and keeps its parent's
/// modification time. Tells whether it is gone.
fn remove_empty(upper: BorrowedFd<'_>, path: &Path) -> io::Result<bool> {
    let Some(name) = path.file_name() else {
        return Ok(false);
    };
    let Some(dir) = present(beneath(upper, path, OFlags::RDONLY | OFlags::DIRECTORY))? else {
        return Ok(false);
    };
    let mut entries = Dir::read_from(&dir)?;
    let full = entries.any(|entry| entry.is_ok_and(|entry| !is_dot(entry.file_name().to_bytes())));
    if full {
        return Ok(false);
    }
    remove_stub(upper, path.parent(), name)
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// Missing things, and links or files where directories were, are nothing to clean.
fn present(result: rustix::io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match result {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens a path below a directory; no link is followed, wherever it points.
fn beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Where the kernel says that a descriptor is.
fn descriptor_path(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    Ok(rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?)
}

fn is_whiteout(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == 0
}

fn modified(status: &Stat) -> Time {
    let nanoseconds = i64::try_from(status.st_mtime_nsec).unwrap_or_default();
    (status.st_mtime, nanoseconds)
}

fn set_modified(dir: BorrowedFd<'_>, (tv_sec, tv_nsec): Time) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec { tv_sec, tv_nsec },
    };
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    Ok(rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        AtFlags::empty(),
    )?)
}

/// Extended attributes but for overlayfs's own, in order.
fn attributes(dir: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(dir, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        result => result?,
    };
    names.truncate(length);
    let mut attributes = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        if name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(dir, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        attributes.push((name.to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}
