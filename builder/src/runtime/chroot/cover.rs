//! What a step sees besides its image, put in place of what the image has there, and how the image
//! is afterwards as if nothing had been (B1.6, B6.3).
//!
//! What is in the way is moved aside and back. Directories keep their times: those that they had
//! before, or those that the step gave them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, makedev,
};
use rustix::io::Errno;

use super::super::filesystems::DEVICES;
use super::super::provide::FILES;
use super::super::{Mount, ProcessSpec, RuntimeError};
use crate::layer::copy::remove;
use crate::layer::{self, Copier, How};
use crate::sys::root::Root;

/// The directory in the runtime's own one for what was moved aside.
pub(in crate::runtime) const COVERED: &str = "covered";

/// All that was put into a root. Dropped, it is taken out again.
#[derive(Debug)]
pub(in crate::runtime) struct Covers {
    root: Root,
    tree: PathBuf,
    /// Where things rest that were in the way.
    rest: OwnedFd,
    rest_path: PathBuf,
    covers: Vec<Cover>,
    next: usize,
    /// What the step has to do without.
    pub(in crate::runtime) notes: Vec<String>,
}

/// One thing that was put into the root.
#[derive(Debug)]
struct Cover {
    directory: OwnedFd,
    name: OsString,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A directory that was missing above another one; it stays if the step put something there.
    Parent,
    /// Something that goes.
    Thing {
        /// What was there: its name where it rests, and its modification time.
        covered: Option<(String, (i64, i64))>,
        /// A secret, to be overwritten.
        secret: Option<(OwnedFd, usize)>,
        /// Where a directory came from that is kept.
        home: Option<PathBuf>,
    },
}

impl Covers {
    /// Puts everything into the root that a step is to see.
    pub(in crate::runtime) fn put(spec: &ProcessSpec) -> Result<Self, RuntimeError> {
        let tree = spec.root.files.writable();
        let rest_path = spec.root.work.join(COVERED);
        let open = || -> io::Result<(Root, OwnedFd)> {
            fs::create_dir(&rest_path)?;
            Ok((Root::open(tree)?, open_directory(&rest_path)?))
        };
        let (root, rest) = open().map_err(failed("open the root file system"))?;
        let mut covers = Self {
            root,
            tree: tree.to_owned(),
            rest,
            rest_path,
            covers: Vec::new(),
            next: 0,
            notes: Vec::new(),
        };
        covers.devices()?;
        let [hosts, resolv_conf, hostname] = FILES;
        let name = format!("{}\n", spec.hostname);
        for (target, content) in [
            (hosts, &spec.hosts),
            (resolv_conf, &spec.resolv_conf),
            (hostname, &name),
        ] {
            covers.file(target, content.as_bytes(), 0o644, (0, 0), false)?;
        }
        for mount in &spec.mounts {
            covers.mount(mount)?;
        }
        Ok(covers)
    }

    /// Takes everything out again, the last first.
    pub(in crate::runtime) fn remove(&mut self) -> io::Result<()> {
        let mut done = Ok(());
        while let Some(cover) = self.covers.pop() {
            // One that cannot be taken out is no reason to leave the others.
            done = done.and(cover.remove(&self.rest));
        }
        done
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), RuntimeError> {
        let source_failed = |path: &str| {
            let path = path.to_owned();
            move |source| RuntimeError::MountSource { path, source }
        };
        match mount {
            Mount::File {
                content,
                target,
                mode,
                owner,
            } => self.file(target, content.expose(), *mode, *owner, true),
            Mount::Tmpfs { target, .. } => self.thing(target, |directory, name, _| {
                rustix::fs::mkdirat(directory, name, Mode::RWXU)?;
                let mode = Mode::from_raw_mode(0o1777);
                Ok(rustix::fs::chmodat(
                    directory,
                    name,
                    mode,
                    AtFlags::empty(),
                )?)
            }),
            Mount::Cache { source, target, .. } => self.thing(target, |directory, name, home| {
                rustix::fs::renameat(rustix::fs::CWD, source, directory, name)?;
                *home = Some(source.clone());
                Ok(())
            }),
            Mount::Bind { source, target, .. } => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let place = rustix::fs::open(source, flags, Mode::empty())
                    .map_err(io::Error::from)
                    .map_err(source_failed(&source.display().to_string()))?;
                self.copy(&place, Some(source), target)
            }
            Mount::Layers {
                lowers,
                source,
                target,
                ..
            } => {
                let root = self.merged(lowers)?;
                let place = root.locate(Path::new(source));
                let place = place.map_err(source_failed(source))?;
                self.copy(&place, None, target)
            }
        }
    }

    /// Layers as one tree, to copy from.
    fn merged(&mut self, lowers: &[PathBuf]) -> Result<Root, RuntimeError> {
        let merge = |into: &Path| -> io::Result<Root> {
            if let [one] = lowers {
                return Root::open(one);
            }
            fs::create_dir(into)?;
            let lowest_first: Vec<&Path> = lowers.iter().rev().map(PathBuf::as_path).collect();
            layer::merge(&lowest_first, into, How::Link).map_err(|error| error.source)?;
            Root::open(into)
        };
        let name = self.new_name();
        let into = self.rest_path.join(name);
        merge(&into).map_err(failed("merge layers"))
    }

    /// Shows a copy of a file or directory; what is written to it is thrown away. A socket is shown
    /// itself.
    fn copy(
        &mut self,
        place: &OwnedFd,
        path: Option<&Path>,
        target: &str,
    ) -> Result<(), RuntimeError> {
        self.thing(target, |directory, name, _| {
            let stat = rustix::fs::statat(place, "", AtFlags::EMPTY_PATH)?;
            let from = format!("/proc/self/fd/{}", place.as_raw_fd());
            match (FileType::from_raw_mode(stat.st_mode), path) {
                (FileType::Directory, _) => {
                    rustix::fs::mkdirat(directory, name, Mode::RWXU)?;
                    let into = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
                    layer::merge(&[Path::new(&from)], &into.join(name), How::Copy)
                        .map_err(|error| error.source)
                }
                (FileType::RegularFile, _) => {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    let source = rustix::fs::open(&from, flags, Mode::empty())?;
                    Copier::new(How::Copy).opened(&source, directory, name.as_bytes(), &stat)
                }
                (FileType::Socket, Some(path)) => {
                    let cwd = rustix::fs::CWD;
                    let follow = AtFlags::SYMLINK_FOLLOW;
                    Ok(rustix::fs::linkat(cwd, path, directory, name, follow)?)
                }
                _ => Err(io::ErrorKind::Unsupported.into()),
            }
        })
    }

    /// A directory for devices, with those that every step has. There is no /proc that the links
    /// of standard streams could lead to.
    fn devices(&mut self) -> Result<(), RuntimeError> {
        let mut refused = None;
        self.thing("/dev", |directory, name, _| {
            rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dev = rustix::fs::openat(directory, name, flags, Mode::empty())?;
            for (device, major, minor) in DEVICES {
                if let Err(error) = make_device(&dev, device, makedev(major, minor)) {
                    refused.get_or_insert(error);
                }
            }
            let shared = Mode::from_raw_mode(0o1777);
            rustix::fs::mkdirat(&dev, "shm", shared)?;
            Ok(rustix::fs::chmodat(&dev, "shm", shared, AtFlags::empty())?)
        })?;
        self.notes.extend(refused.map(|error| {
            format!("device nodes do not work here ({error}): /dev/null is an ordinary file")
        }));
        Ok(())
    }

    fn file(
        &mut self,
        target: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
        wipe: bool,
    ) -> Result<(), RuntimeError> {
        let mut written = None;
        self.thing(target, |directory, name, _| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            file.write_all(content)?;
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
            // A file that is open for writing cannot be executed, which scripts are.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            written = Some(rustix::fs::openat(directory, name, flags, Mode::empty())?);
            Ok(())
        })?;
        if let (
            true,
            Some(Cover {
                what: What::Thing { secret, .. },
                ..
            }),
        ) = (wipe, self.covers.last_mut())
        {
            *secret = written.map(|file| (file, content.len()));
        }
        Ok(())
    }

    /// Puts something at a path, after moving aside what is there.
    fn thing(
        &mut self,
        target: &str,
        make: impl FnOnce(BorrowedFd<'_>, &OsStr, &mut Option<PathBuf>) -> io::Result<()>,
    ) -> Result<(), RuntimeError> {
        let put = |covers: &mut Self| -> io::Result<()> {
            let (directory, name) = covers.place(Path::new(target))?;
            let time = modified(&rustix::fs::fstat(&directory)?);
            let covered = covers.set_aside(&directory, &name)?;
            let mut home = None;
            let made = make(directory.as_fd(), &name, &mut home);
            set_modified(&directory, time)?;
            // Also when it is only half made: then it is removed with the rest.
            covers.covers.push(Cover {
                directory,
                name,
                what: What::Thing {
                    covered,
                    secret: None,
                    home,
                },
            });
            made
        };
        put(self).map_err(|source| RuntimeError::MountPoint {
            target: target.to_owned(),
            source,
        })
    }

    fn set_aside(
        &mut self,
        directory: &OwnedFd,
        name: &OsStr,
    ) -> io::Result<Option<(String, (i64, i64))>> {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        let rests = self.new_name();
        rustix::fs::renameat(directory, name, &self.rest, &rests)?;
        Ok(Some((rests, modified(&stat))))
    }

    fn new_name(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }

    /// The directory and the name that a path means in the root; directories that are missing are
    /// made.
    fn place(&mut self, target: &Path) -> io::Result<(OwnedFd, OsString)> {
        let mut missing = Vec::new();
        let mut at = target;
        let mut directory = loop {
            match self.root.locate(at) {
                Ok(place) if missing.is_empty() => {
                    // What is there may have been found behind links.
                    let full = fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
                    let path = full.strip_prefix(&self.tree).map_err(io::Error::other)?;
                    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                    let parent = path.parent().unwrap_or(Path::new(""));
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                    return Ok((self.root.open_beneath(parent, flags)?, name.to_owned()));
                }
                Ok(_) => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                    break self.root.open_at(at, flags, Mode::empty())?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let Some(Component::Normal(name)) = at.components().next_back() else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            missing.push(name.to_owned());
            at = at.parent().ok_or(io::ErrorKind::InvalidInput)?;
        };
        while missing.len() > 1 {
            let Some(name) = missing.pop() else { break };
            let time = modified(&rustix::fs::fstat(&directory)?);
            rustix::fs::mkdirat(&directory, &name, Mode::from_raw_mode(0o755))?;
            set_modified(&directory, time)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(&directory, &name, flags, Mode::empty())?;
            self.covers.push(Cover {
                directory,
                name,
                what: What::Parent,
            });
            directory = below;
        }
        let name = missing.pop().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((directory, name))
    }
}

impl Drop for Covers {
    fn drop(&mut self) {
        // Who wants to know whether it worked has called it before.
        drop(self.remove());
    }
}

impl Cover {
    fn remove(self, rest: &OwnedFd) -> io::Result<()> {
        let Self {
            directory,
            name,
            what,
        } = self;
        let time = modified(&rustix::fs::fstat(&directory)?);
        match what {
            What::Parent => match rustix::fs::unlinkat(&directory, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            },
            What::Thing {
                covered,
                secret,
                home,
            } => {
                if let Some((file, length)) = secret {
                    wipe(&file, length)?;
                }
                if let Some(home) = home {
                    match rustix::fs::renameat(&directory, &name, rustix::fs::CWD, &home) {
                        // The step removed it: it is empty from now on, as far as others see.
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                remove(directory.as_fd(), name.as_bytes())?;
                if let Some((rests, changed)) = covered {
                    match rustix::fs::renameat(rest, &rests, &directory, &name) {
                        // The step removed the directory itself.
                        Err(Errno::NOENT) => return Ok(()),
                        result => result?,
                    }
                    let times = times(changed);
                    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(&directory, &name, &times, nofollow)?;
                }
            }
        }
        set_modified(&directory, time)
    }
}

/// Overwrites a secret where it lies on disk.
fn wipe(file: &OwnedFd, length: usize) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&vec![0; length], 0)?;
    file.sync_data()
}

/// Makes a device node. One that does not work is left out, and an empty file stands for the null
/// device.
fn make_device(dev: &OwnedFd, name: &str, device: u64) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    let make = || -> io::Result<()> {
        rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, device)?;
        rustix::fs::chmodat(dev, name, mode, AtFlags::empty())?;
        if name == "null" {
            // Not on a file system that is mounted without devices.
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
            rustix::fs::openat(dev, name, flags, Mode::empty())?;
        }
        Ok(())
    };
    let made = make();
    if made.is_err() {
        remove(dev.as_fd(), name.as_bytes())?;
        if name == "null" {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dev, name, flags, mode)?;
            rustix::fs::fchmod(&file, mode)?;
        }
    }
    made
}

fn failed(act: &str) -> impl FnOnce(io::Error) -> RuntimeError {
    let act = act.to_owned();
    move |source| RuntimeError::Setup { act, source }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn modified(stat: &Stat) -> (i64, i64) {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    (stat.st_mtime, nanoseconds)
}

fn times((tv_sec, tv_nsec): (i64, i64)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec { tv_sec, tv_nsec },
    }
}

fn set_modified(directory: &OwnedFd, time: (i64, i64)) -> io::Result<()> {
    Ok(rustix::fs::futimens(directory, &times(time))?)
}
