//! Files and directories that a step sees besides its image: /etc/hosts and the like (B6), and
//! the mounts of its specification (B2).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::message::{Failure, errno};
use super::mount_points::{Kind, MountPoints};
use super::native::FILES as STAGING;
use super::{Mount, ProcessSpec};
use crate::sys::mount;

/// Files that every step is given.
pub(super) const FILES: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];

/// A directory in [`Provider`]'s file system.
const EMPTY: &str = "empty";

/// Device nodes work in no mount of a step (see `mount_root`).
const BASE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;

/// The files of every step, then the mounts that it asks for.
pub(super) fn all_mounts(spec: &ProcessSpec) -> impl Iterator<Item = Mount> {
    let [hosts, resolv_conf, hostname] = FILES;
    let file = |target: &str, content: String| Mount::File {
        content: content.into_bytes(),
        target: target.to_owned(),
        mode: 0o644,
    };
    [
        file(hosts, spec.hosts.clone()),
        file(resolv_conf, spec.resolv_conf.clone()),
        file(hostname, format!("{}\n", spec.hostname)),
    ]
    .into_iter()
    .chain(spec.mounts.iter().cloned())
}

/// A file system in memory, outside of the root, from which single files are shown in it.
#[derive(Debug)]
pub(super) struct Provider {
    files: OwnedFd,
    next: usize,
}

impl Provider {
    /// Mounts it in the working directory of the run; it goes when the old root goes.
    pub(super) fn new(work: &Path) -> io::Result<Self> {
        let options = [("mode", "700")];
        let attributes = BASE | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let files = mount::filesystem("tmpfs", &options, attributes)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open(work.join(STAGING), flags, Mode::empty())?;
        mount::attach(files.as_fd(), place.as_fd())?;
        rustix::fs::mkdirat(&files, EMPTY, Mode::from_raw_mode(0o755))?;
        Ok(Self { files, next: 0 })
    }

    /// A read-only empty directory, detached.
    pub(super) fn empty_directory(&self) -> io::Result<OwnedFd> {
        let mount = mount::clone(self.files.as_fd(), Path::new(EMPTY))?;
        mount::set_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        Ok(mount)
    }

    /// Shows one mount in the root.
    pub(super) fn provide(
        &mut self,
        points: &mut MountPoints<'_>,
        wanted: &Mount,
    ) -> Result<(), Failure> {
        let (mount, target, kind) = match wanted {
            Mount::File {
                content,
                target,
                mode,
            } => {
                let mount = self.file(content, *mode).map_err(|error| Failure::Setup {
                    act: format!("provide the file `{target}`"),
                    errno: errno(&error),
                })?;
                (mount, target, Kind::File)
            }
            Mount::Tmpfs { target, size } => {
                let mount = tmpfs(*size).map_err(|error| Failure::Setup {
                    act: format!("make a file system in memory for `{target}`"),
                    errno: errno(&error),
                })?;
                (mount, target, Kind::Directory)
            }
            Mount::Bind {
                source,
                target,
                writable,
            } => {
                let mount = bind(source, *writable).map_err(|error| Failure::MountSource {
                    path: source.display().to_string(),
                    errno: errno(&error),
                })?;
                let kind = if source.is_dir() {
                    Kind::Directory
                } else {
                    Kind::File
                };
                (mount, target, kind)
            }
        };
        points
            .find(target, kind)
            .and_then(|place| mount::attach(mount.as_fd(), place.as_fd()))
            .map_err(|error| Failure::MountPoint {
                target: target.clone(),
                errno: errno(&error),
            })
    }

    /// A read-only file with some content, detached.
    fn file(&mut self, content: &[u8], mode: u32) -> io::Result<OwnedFd> {
        let name = self.next.to_string();
        self.next += 1;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let file = rustix::fs::openat(&self.files, &name, flags, mode)?;
        File::from(file).write_all(content)?;
        let mount = mount::clone(self.files.as_fd(), Path::new(&name))?;
        mount::set_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        Ok(mount)
    }
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
    let mut attributes = BASE;
    if !writable {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    mount::set_attributes(mount.as_fd(), attributes)?;
    Ok(mount)
}
