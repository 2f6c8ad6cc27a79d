//! Files and directories that a step sees besides its image: /etc/hosts and the like (B6), and
//! the mounts of its specification (B2).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::MountAttrFlags;

use super::init::Act;
use super::message::{Failure, errno};
use super::mount_points::{self, Kind, MountPoints};
use super::native::SCRATCH;
use super::{Mount, ProcessSpec, privileges};
use crate::layer::{self, How};
use crate::sys::mount;
use crate::sys::root::Root;

/// Files that every step is given.
pub(super) const FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];

/// A directory in [`Provider`]'s file system.
const EMPTY: &str = "empty";

/// Device nodes work in no mount of a step (see `mount_root`).
const BASE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;

/// A mount that is made and waits for its place.
#[derive(Debug)]
pub(super) struct Prepared {
    mount: OwnedFd,
    /// Where it goes: absolute path in the root.
    pub(super) target: String,
    /// What has to stand there.
    pub(super) kind: Kind,
    /// Whether nothing can be made in it.
    read_only: bool,
}

/// A file system in memory, outside of the root, from which single files are shown in it.
#[derive(Debug)]
pub(super) struct Provider {
    files: OwnedFd,
    next: usize,
}

impl Provider {
    /// Mounts it on a directory; it goes when the old root goes.
    pub(super) fn new(place: BorrowedFd<'_>) -> io::Result<Self> {
        // Secrets shall not reach a disk by way of swap. Linux can promise that since 6.4, to the
        // host's root only.
        let (unswapped, plain) = ([("mode", "700"), ("noswap", "")], [("mode", "700")]);
        let attributes = BASE | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let files = mount::filesystem("tmpfs", &unswapped, attributes)
            .or_else(|_| mount::filesystem("tmpfs", &plain, attributes))?;
        mount::attach(files.as_fd(), place)?;
        rustix::fs::mkdirat(&files, EMPTY, Mode::from_raw_mode(0o755))?;
        Ok(Self { files, next: 0 })
    }

    /// A read-only empty directory, detached.
    pub(super) fn empty_directory(&self) -> io::Result<OwnedFd> {
        let mount = mount::clone(self.files.as_fd(), Path::new(EMPTY))?;
        mount::set_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        Ok(mount)
    }

    /// Makes the mounts of a step: the files that every one is given, then those it asks for.
    pub(super) fn prepare_all(
        &mut self,
        spec: &ProcessSpec,
        work: &Path,
    ) -> Result<Vec<Prepared>, Failure> {
        let [hosts, resolv_conf, hostname] = FILES;
        let name = format!("{}\n", spec.hostname);
        let mut prepared = Vec::new();
        for (target, content) in [
            (hosts, &spec.hosts),
            (resolv_conf, &spec.resolv_conf),
            (hostname, &name),
        ] {
            let file = self.file(content.as_bytes(), 0o644, (0, 0));
            prepared.push(Prepared {
                mount: file.act(&format!("provide the file `{target}`"))?,
                target: target.to_owned(),
                kind: Kind::File,
                read_only: true,
            });
        }
        for mount in &spec.mounts {
            prepared.push(self.prepare(mount, work)?);
        }
        self.make_room(&mut prepared, &spec.root.work)?;
        Ok(prepared)
    }

    /// Puts a mount into this file system. Gives its name there, and whether it can be written to.
    pub(super) fn stage(&mut self, prepared: &Prepared) -> io::Result<(String, bool)> {
        let name = self.new_name();
        match prepared.kind {
            Kind::Directory => {
                rustix::fs::mkdirat(&self.files, &name, Mode::from_raw_mode(0o700))?;
            }
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                drop(rustix::fs::openat(&self.files, &name, flags, mode)?);
            }
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = rustix::fs::openat(&self.files, &name, flags, Mode::empty())?;
        mount::attach(prepared.mount.as_fd(), place.as_fd())?;
        let flags = rustix::fs::fstatvfs(&prepared.mount)?.f_flag;
        Ok((name, !flags.contains(StatVfsMountFlags::RDONLY)))
    }

    /// Gives read-only directories the mount points that they lack: from a layer below them, as it
    /// is done for the root (B1.6).
    fn make_room(&mut self, prepared: &mut [Prepared], work: &Path) -> Result<(), Failure> {
        for index in 0..prepared.len() {
            let (before, later) = prepared.split_at_mut(index + 1);
            let Some(mount) = before.last_mut() else {
                continue;
            };
            let act = format!("make mount points below `{}`", mount.target);
            let places = mount.lacks(later).act(&act)?;
            if !places.is_empty() {
                let layer = work.join(SCRATCH).join(format!("places{index}"));
                mount.mount = self.above(&mount.mount, &layer, &places).act(&act)?;
            }
        }
        Ok(())
    }

    /// A read-only view of a directory above a layer of empty places, detached.
    fn above(
        &mut self,
        directory: &OwnedFd,
        layer: &Path,
        places: &[(String, Kind)],
    ) -> io::Result<OwnedFd> {
        mount_points::make_layer(layer, places)?;
        self.stand(directory)?;
        let top = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let attributes = BASE | MountAttrFlags::MOUNT_ATTR_RDONLY;
        mount::overlay(&[Path::new(&top), layer], None, attributes)
    }

    /// Puts a mount somewhere: only of one that stands somewhere can a part be had.
    fn stand(&mut self, mount: &OwnedFd) -> io::Result<()> {
        let name = self.new_name();
        rustix::fs::mkdirat(&self.files, &name, Mode::from_raw_mode(0o700))?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = rustix::fs::openat(&self.files, &name, flags, Mode::empty())?;
        mount::attach(mount.as_fd(), place.as_fd())
    }

    fn prepare(&mut self, wanted: &Mount, work: &Path) -> Result<Prepared, Failure> {
        let source_failed = |path: String| {
            move |error: io::Error| Failure::MountSource {
                path,
                errno: errno(&error),
            }
        };
        let (mount, target) = match wanted {
            Mount::File {
                content,
                target,
                mode,
                owner,
            } => {
                let file = self.file(content.expose(), *mode, *owner);
                (file.act(&format!("provide the file `{target}`"))?, target)
            }
            Mount::Tmpfs { target, size } => {
                let mount = tmpfs(*size);
                let act = format!("make a file system in memory for `{target}`");
                (mount.act(&act)?, target)
            }
            Mount::Bind {
                source,
                target,
                writable,
            }
            | Mount::Cache {
                source,
                target,
                writable,
            } => {
                let mount = bind(source, *writable);
                let failed = source_failed(source.display().to_string());
                (mount.map_err(failed)?, target)
            }
            Mount::Layers {
                lowers,
                source,
                target,
                writable,
            } => {
                let root = self.merged(lowers, &work.join(SCRATCH), *writable);
                let root = root.act(&format!("merge the layers for `{target}`"))?;
                let mount = view(&root, source, *writable);
                (mount.map_err(source_failed(source.clone()))?, target)
            }
        };
        let status = rustix::fs::statat(&mount, "", AtFlags::EMPTY_PATH);
        let status = status.act(&format!("look at the mount for `{target}`"))?;
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => Kind::Directory,
            _ => Kind::File,
        };
        Ok(Prepared {
            mount,
            target: target.clone(),
            kind,
            read_only: match wanted {
                Mount::Bind { writable, .. }
                | Mount::Cache { writable, .. }
                | Mount::Layers { writable, .. } => !writable,
                Mount::File { .. } => true,
                Mount::Tmpfs { .. } => false,
            },
        })
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }

    /// Merges layers, in this file system or, where overlayfs cannot, in the folder `scratch`.
    fn merged(&mut self, lowers: &[PathBuf], scratch: &Path, writable: bool) -> io::Result<Root> {
        let name = self.new_name();
        let lowers = lowers.iter().map(PathBuf::as_path).collect::<Vec<_>>();
        let mount = match (writable, lowers.as_slice()) {
            (false, [one]) => mount::clone(rustix::fs::CWD, one)?,
            (false, _) => mount::overlay(&lowers, None, BASE)
                .or_else(|_| merged_tree(&lowers, &scratch.join(&name), How::Link))?,
            (true, _) => {
                let (upper, work) = (scratch.join(&name), scratch.join(format!("{name}-work")));
                std::fs::create_dir_all(&upper)?;
                std::fs::create_dir(&work)?;
                copy_owner(lowers.first().copied(), &upper)?;
                let writable = mount::Writable {
                    upper: &upper,
                    work: &work,
                };
                mount::overlay(&lowers, Some(writable), BASE)
                    .or_else(|_| merged_tree(&lowers, &upper, How::Copy))?
            }
        };
        self.stand(&mount)?;
        Ok(Root::from_fd(mount))
    }

    /// A read-only file with some content, detached.
    fn file(&mut self, content: &[u8], mode: u32, owner: (u32, u32)) -> io::Result<OwnedFd> {
        let name = self.new_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let file = rustix::fs::openat(&self.files, &name, flags, mode)?;
        let mut file = File::from(file);
        file.write_all(content)?;
        privileges::give(&file, owner)?;
        let mount = mount::clone(self.files.as_fd(), Path::new(&name))?;
        mount::set_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        Ok(mount)
    }
}

impl Prepared {
    /// The mount points that mounts behind this one want in it and that it does not have, absolute in
    /// it.
    fn lacks(&self, later: &[Self]) -> io::Result<Vec<(String, Kind)>> {
        if !self.read_only || self.kind != Kind::Directory {
            return Ok(Vec::new());
        }
        let root = Root::from_fd(rustix::io::fcntl_dupfd_cloexec(&self.mount, 0)?);
        let missing = |mount: &Self| {
            let below = Path::new(&mount.target).strip_prefix(&self.target).ok()?;
            let found = root.locate(below);
            let missing = found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            missing.then(|| (format!("/{}", below.display()), mount.kind))
        };
        Ok(later.iter().filter_map(missing).collect())
    }

    /// Shows it in the root.
    pub(super) fn put(self, points: &mut MountPoints<'_>) -> Result<(), Failure> {
        points
            .find(&self.target, self.kind)
            .and_then(|place| mount::attach(self.mount.as_fd(), place.as_fd()))
            .map_err(|error| Failure::MountPoint {
                target: self.target,
                errno: errno(&error),
            })
    }
}

/// Layers as a plain tree, for where overlayfs cannot be mounted.
fn merged_tree(lowers: &[&Path], into: &Path, how: How) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(into)?;
    let lowest_first: Vec<&Path> = lowers.iter().rev().copied().collect();
    layer::merge(&lowest_first, into, how).map_err(|error| error.source)?;
    mount::clone(rustix::fs::CWD, into)
}

/// The top of an overlay is its upper directory, which therefore looks like the topmost layer's.
fn copy_owner(layer: Option<&Path>, upper: &Path) -> io::Result<()> {
    let layer = layer.ok_or(io::ErrorKind::InvalidInput)?;
    let status = std::fs::metadata(layer)?;
    std::os::unix::fs::chown(upper, Some(status.uid()), Some(status.gid()))?;
    std::fs::set_permissions(upper, status.permissions())
}

/// A part of a merged tree, detached.
fn view(root: &Root, source: &str, writable: bool) -> io::Result<OwnedFd> {
    let place = root.locate(Path::new(source))?;
    let mount = mount::clone(place.as_fd(), Path::new(""))?;
    restrict(&mount, writable)?;
    Ok(mount)
}

fn tmpfs(size: Option<u64>) -> io::Result<OwnedFd> {
    let size = size.map(|size| size.to_string());
    let mut options = vec![("mode", "1777")];
    options.extend(size.as_deref().map(|size| ("size", size)));
    mount::filesystem("tmpfs", &options, BASE | MountAttrFlags::MOUNT_ATTR_NOSUID)
}

/// The caller answers for the path: it is resolved on the host.
fn bind(source: &Path, writable: bool) -> io::Result<OwnedFd> {
    let mount = mount::clone(rustix::fs::CWD, source)?;
    restrict(&mount, writable)?;
    Ok(mount)
}

fn restrict(mount: &OwnedFd, writable: bool) -> io::Result<()> {
    let read_only = match writable {
        true => MountAttrFlags::empty(),
        false => MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    mount::set_attributes(mount.as_fd(), BASE | read_only)
}
