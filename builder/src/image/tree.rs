//! The files of an image, out of the store: as a folder or as a tar (C4).
//!
//! The folder may be anybody's, and the image's files are not trusted: both trees are only reached
//! through descriptors of their directories, and no link in either is followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use kiln_registry::digest::Digest;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::ImageError;
use crate::layer::copy::{join, name_of, names, parent_of, remove};
use crate::layer::{self, PackOptions, TreeError};
use crate::step::{self, StepError, Worker};
use crate::sys::content;
use crate::sys::root::Root;

/// Directories in each other, at most; each holds two files open.
const DEPTH: usize = 400;

/// Writes the files of an image as a tar, owners as numbers; times after `clamp`, seconds since 1970,
/// become that one (C11.2). Blocks.
///
/// # Errors
/// [`ImageError`]; what was written is no whole tar then.
pub fn tar<W: Write>(
    worker: &Worker,
    image: &Digest,
    clamp: Option<i64>,
    mut out: W,
) -> Result<W, ImageError> {
    let options = PackOptions { clamp, root: false };
    match open(worker, image)? {
        Some(root) => drop(layer::pack_at(&root, &mut out, &options)?),
        // The end of an archive.
        None => out.write_all(&[0; 1024]).map_err(|source| StepError::Io {
            action: "writing",
            path: "the archive".into(),
            source,
        })?,
    }
    Ok(out)
}

/// How the files of an image are written to a folder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Folder {
    /// Whether what the image does not have is removed from the folder.
    pub delete: bool,
    /// Times after this one, seconds since 1970, become this one.
    pub clamp: Option<i64>,
}

/// Writes the files of an image to a folder, which is made where there is none: modes and times are
/// kept, the owner is who calls. Blocks. Gives the files that a folder cannot have, or not from this
/// user.
///
/// # Errors
/// [`ImageError`]; the folder may hold some of the files then.
pub fn folder(
    worker: &Worker,
    image: &Digest,
    into: &Path,
    how: Folder,
) -> Result<Vec<String>, ImageError> {
    let root = open(worker, image)?;
    let failed = |source| StepError::Io {
        action: "making the folder",
        path: into.to_owned(),
        source,
    };
    std::fs::create_dir_all(into).map_err(failed)?;
    let target = Root::open(into).map_err(failed)?;
    let mut export = Export {
        how,
        target: Arc::new(target),
        links: HashMap::new(),
        buffer: vec![0; content::BUFFER],
        left_out: Vec::new(),
        cancelled: &|| worker.cancel.is_cancelled(),
    };
    let to = export
        .target
        .open_beneath(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(failed)?;
    match root {
        Some(root) => {
            let from = root
                .open_beneath(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(TreeError::new("open", b""))?;
            export.directory(from.as_fd(), to.as_fd(), b"", 0)?;
        }
        None if how.delete => {
            for name in names(to.as_fd()).map_err(failed)? {
                remove(to.as_fd(), &name).map_err(TreeError::new("remove", &name))?;
            }
        }
        None => {}
    }
    match worker.cancel.is_cancelled() {
        true => Err(StepError::Cancelled.into()),
        false => Ok(export.left_out),
    }
}

/// Unpacks the layers of an image. Blocks.
///
/// # Errors
/// [`ImageError`] when a layer is missing or damaged.
pub fn unpack(worker: &Worker, image: &Digest) -> Result<(), ImageError> {
    open(worker, image).map(drop)
}

fn open(worker: &Worker, image: &Digest) -> Result<Option<Root>, ImageError> {
    let config = worker.store.config(image)?;
    Ok(step::tree(worker, &config.rootfs.diff_ids)?)
}

/// The files that are being written.
struct Export<'a> {
    how: Folder,
    target: Arc<Root>,
    /// Where the first of several hard links went, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    left_out: Vec<String>,
    cancelled: &'a dyn Fn() -> bool,
}

impl Export<'_> {
    /// Writes what is in a directory to another one.
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &[u8],
        depth: usize,
    ) -> Result<(), TreeError> {
        if depth > DEPTH {
            let source = io::Error::from(Errno::NAMETOOLONG);
            return Err(TreeError::new("go deeper than", path)(source));
        }
        let wanted = names(from).map_err(TreeError::new("list", path))?;
        if self.how.delete {
            let wanted: std::collections::HashSet<&Vec<u8>> = wanted.iter().collect();
            for name in names(to).map_err(TreeError::new("list", path))? {
                if !wanted.contains(&name) {
                    let below = join(path, &name);
                    remove(to, &name).map_err(TreeError::new("remove", &below))?;
                }
            }
        }
        for name in wanted {
            if (self.cancelled)() {
                return Ok(());
            }
            self.entry(from, to, &join(path, &name), depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &[u8],
        depth: usize,
    ) -> Result<(), TreeError> {
        let name = name_of(path);
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(TreeError::new("look at", path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory {
            let written = self.file(from, to, path, &stat, kind);
            return written.map_err(TreeError::new("write", path));
        }
        let (inner, outer) = self
            .enter(from, to, name)
            .map_err(TreeError::new("make", path))?;
        self.directory(inner.as_fd(), outer.as_fd(), path, depth + 1)?;
        let finish = || {
            rustix::fs::fchmod(&outer, Mode::from_raw_mode(stat.st_mode))?;
            rustix::fs::futimens(&outer, &self.times(&stat))
        };
        finish().map_err(TreeError::new("set mode and time of", path))
    }

    /// Opens a directory and the one that it is written to, which is made where none is.
    fn enter(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &[u8],
    ) -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let there = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_directory =
            |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !there.is_ok_and(is_directory) {
            remove(to, name)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
        }
        let inner = rustix::fs::openat(from, name, flags, Mode::empty())?;
        Ok((inner, rustix::fs::openat(to, name, flags, Mode::empty())?))
    }

    /// Writes what is no directory.
    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &[u8],
        stat: &Stat,
        kind: FileType,
    ) -> io::Result<()> {
        let name = name_of(path);
        remove(to, name)?;
        let inode = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&inode)
        {
            let parent = Path::new(OsStr::from_bytes(parent_of(first)));
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            let parent = self.target.open_beneath(parent, OFlags::PATH)?;
            let first = name_of(first);
            return Ok(rustix::fs::linkat(
                &parent,
                first,
                to,
                name,
                AtFlags::empty(),
            )?);
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(from, name, read, Mode::empty())?;
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let holes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512 < size;
                content::copy(&source, &target, size, holes, &mut self.buffer)?;
                rustix::fs::fchmod(&target, mode)?;
                rustix::fs::futimens(&target, &self.times(stat))?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&link, to, name)?;
                let times = self.times(stat);
                rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                match rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev) {
                    Err(Errno::PERM | Errno::ACCESS) => {
                        self.leave_out(path);
                        return Ok(());
                    }
                    made => made?,
                }
                rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
            }
            _ => {
                self.leave_out(path);
                return Ok(());
            }
        }
        if stat.st_nlink > 1 {
            self.links.insert(inode, path.to_vec());
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &[u8]) {
        let path = String::from_utf8_lossy(path);
        self.left_out.push(format!("/{path}"));
    }

    fn times(&self, stat: &Stat) -> Timestamps {
        let seconds = self
            .how
            .clamp
            .map_or(stat.st_mtime, |most| stat.st_mtime.min(most));
        let kept = seconds == stat.st_mtime;
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: if kept {
                i64::try_from(stat.st_mtime_nsec).unwrap_or(0)
            } else {
                0
            },
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}
