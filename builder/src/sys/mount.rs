//! Mounts as descriptors: made detached, changed, and only then put at a place.
//!
//! A place is always a descriptor too, never a path, so that nothing can be swapped in between.
#![expect(unsafe_code, reason = "rustix lacks mount_setattr")]

use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};
use rustix::thread::UnshareFlags;

/// Overlayfs keeps the plain form that layers are packed from: no renamed directories by reference,
/// no files whose data stays below, no index.
const OVERLAY_OPTIONS: [(&str, &str); 3] = [
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// Overlayfs keeps its attributes as `user.overlay.*`, which it hides from who looks at the mount;
/// so layers have one form, whoever made them, and mounts need no privilege over the whole system.
const USER_ATTRIBUTES: &str = "userxattr";

/// The two directories that make an overlay writable.
#[derive(Clone, Copy, Debug)]
pub struct Writable<'a> {
    /// Receives changes.
    pub upper: &'a Path,
    /// An empty directory on the same file system.
    pub work: &'a Path,
}

/// Makes a file system, detached. An option with an empty value is one that has none.
///
/// # Errors
/// Those of `fsopen`, `fsconfig` and `fsmount`.
pub fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match *value {
            "" => rustix::mount::fsconfig_set_flag(&context, *key)?,
            value => rustix::mount::fsconfig_set_string(&context, *key, value)?,
        }
    }
    finish(context.as_fd(), attributes)
}

fn finish(context: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    rustix::mount::fsconfig_create(context)?;
    Ok(rustix::mount::fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Makes a second, detached mount of what a path in a directory shows, without mounts below it.
/// An empty path is the directory (or file) itself.
///
/// # Errors
/// Those of `open_tree`.
pub fn clone(dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(dir, path, flags)?)
}

/// Like [`clone`] of a path of the host, with the mounts below it.
///
/// # Errors
/// Those of `open_tree`.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(rustix::fs::CWD, path, flags)?)
}

/// Sets attributes of a mount, in addition to those it has.
///
/// # Errors
/// Those of `mount_setattr`.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    change(mount, attributes, 0)
}

/// Like [`set_attributes`], of the mounts below it too.
///
/// # Errors
/// Those of `mount_setattr`.
pub fn set_tree_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    change(mount, attributes, libc::AT_RECURSIVE)
}

fn change(mount: BorrowedFd<'_>, attributes: MountAttrFlags, flags: libc::c_int) -> io::Result<()> {
    let request = libc::mount_attr {
        attr_set: u64::from(attributes.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string; pointer and size are those of a `mount_attr` that
    // outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts a detached mount on a place.
///
/// # Errors
/// Those of `move_mount`, for one `ENOTDIR` when one is a directory and the other is not.
pub fn attach(mount: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", place, "", flags)?)
}

/// Merges layers, topmost first, as a detached mount; without `writable` it is read-only and needs
/// two layers at least.
///
/// # Errors
/// Those of opening the directories and of mounting.
pub fn overlay(
    lowers: &[&Path],
    writable: Option<Writable<'_>>,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    match overlay_by_descriptors(lowers, writable, attributes)? {
        Some(mount) => Ok(mount),
        None => overlay_by_options(lowers, writable, attributes),
    }
}

/// Opens a merged, read-only view of layers, topmost first, for reading in this process. Nothing
/// is attached anywhere: the view is gone with the descriptor. One layer is just its directory.
///
/// # Errors
/// `InvalidInput` without layers; those of opening the directories and of mounting.
pub fn overlay_view(lowers: &[&Path]) -> io::Result<OwnedFd> {
    match lowers {
        [] => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a view of no layers",
        )),
        [one] => open_directory(one, OFlags::RDONLY),
        _ => {
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            overlay(lowers, None, attributes)
        }
    }
}

fn open_directory(path: &Path, access: OFlags) -> io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The directories of an overlay, opened: numbers have no characters that its options could
/// misread, are short, and do not show paths of the host in the mount table of a step.
struct Opened {
    lowers: Vec<OwnedFd>,
    writable: Option<(OwnedFd, OwnedFd)>,
}

impl Opened {
    fn open(lowers: &[&Path], writable: Option<Writable<'_>>) -> io::Result<Self> {
        let open = |path: &Path| open_directory(path, OFlags::PATH);
        Ok(Self {
            lowers: lowers
                .iter()
                .map(|path| open(path))
                .collect::<Result<_, _>>()?,
            writable: match writable {
                Some(writable) => Some((open(writable.upper)?, open(writable.work)?)),
                None => None,
            },
        })
    }
}

/// Layer by layer, which has no limit but the kernel's 500; `None` before Linux 6.7.
fn overlay_by_descriptors(
    lowers: &[&Path],
    writable: Option<Writable<'_>>,
    attributes: MountAttrFlags,
) -> io::Result<Option<OwnedFd>> {
    let opened = Opened::open(lowers, writable)?;
    let context = match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NOSYS) => return Ok(None),
        result => result?,
    };
    let set = |key: &str, dir: &OwnedFd| {
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        rustix::mount::fsconfig_set_string(&context, key, path)
    };
    for (index, layer) in opened.lowers.iter().enumerate() {
        match set("lowerdir+", layer) {
            Err(Errno::INVAL) if index == 0 => return Ok(None),
            result => result?,
        }
    }
    for (key, value) in OVERLAY_OPTIONS {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_set_flag(&context, USER_ATTRIBUTES)?;
    if let Some((upper, work)) = &opened.writable {
        set("upperdir", upper)?;
        set("workdir", work)?;
        // What is not committed is thrown away, so that syncing at every unmount buys nothing.
        rustix::mount::fsconfig_set_flag(&context, "volatile")?;
    }
    finish(context.as_fd(), attributes).map(Some)
}

/// The old way, options in one page. A thread with a mount namespace of its own does it, because
/// the mount has to stand somewhere before it can be had detached.
fn overlay_by_options(
    lowers: &[&Path],
    writable: Option<Writable<'_>>,
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let mount = || -> io::Result<OwnedFd> {
        // SAFETY: only this thread is meant, and it ends with this closure; it uses no relative
        // path that another thread could have chosen.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
        let opened = Opened::open(lowers, writable)?;
        let options = mount_options(&opened)?;
        // Relative names of descriptors leave room for the 500 layers that the kernel takes.
        rustix::process::chdir("/proc/self/fd")?;
        // The mount hides /proc from this thread, which has what it needs from there.
        rustix::mount::mount(
            "overlay",
            "/proc",
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )?;
        let mount = clone(rustix::fs::CWD, Path::new("/proc"))?;
        set_attributes(mount.as_fd(), attributes)?;
        Ok(mount)
    };
    std::thread::scope(|scope| scope.spawn(mount).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
}

fn mount_options(opened: &Opened) -> io::Result<CString> {
    let mut options = String::from("lowerdir=");
    for (index, layer) in opened.lowers.iter().enumerate() {
        let colon = if index == 0 { "" } else { ":" };
        // Writing to a string cannot fail.
        _ = write!(options, "{colon}{}", layer.as_raw_fd());
    }
    for (key, value) in OVERLAY_OPTIONS {
        _ = write!(options, ",{key}={value}");
    }
    _ = write!(options, ",{USER_ATTRIBUTES}");
    if let Some((upper, work)) = &opened.writable {
        let (upper, work) = (upper.as_raw_fd(), work.as_raw_fd());
        _ = write!(options, ",upperdir={upper},workdir={work},volatile");
    }
    CString::new(options).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::super::root::Root;
    use super::*;

    /// Three layers, topmost first: a file changed, one removed, a directory merged.
    fn layers(dir: &Path) -> [std::path::PathBuf; 3] {
        let layers = ["top:1", "middle,2", "bottom\\3"].map(|name| dir.join(name));
        for layer in &layers {
            fs::create_dir_all(layer.join("dir")).unwrap();
        }
        let [top, middle, bottom] = &layers;
        fs::write(bottom.join("changed"), "old").unwrap();
        fs::write(top.join("changed"), "new").unwrap();
        fs::write(bottom.join("removed"), "").unwrap();
        let kind = rustix::fs::FileType::CharacterDevice;
        let whiteout = middle.join("removed");
        rustix::fs::mknodat(rustix::fs::CWD, &whiteout, kind, Mode::empty(), 0).unwrap();
        fs::write(bottom.join("dir/below"), "").unwrap();
        fs::write(top.join("dir/above"), "").unwrap();
        layers
    }

    fn check(view: OwnedFd) {
        let path = format!("/proc/self/fd/{}", view.as_raw_fd());
        let names = |path: &str| -> BTreeSet<_> {
            let entries = fs::read_dir(path).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        assert_eq!(names(&path), ["changed", "dir"].map(str::to_owned).into());
        let below = names(&format!("{path}/dir"));
        assert_eq!(below, ["above", "below"].map(str::to_owned).into());
        let root = Root::from_fd(view);
        assert_eq!(root.read(Path::new("/changed"), 9).unwrap(), b"new");
        assert!(fs::write(format!("{path}/new"), "").is_err());
    }

    fn skip() -> bool {
        let skip = !rustix::process::geteuid().is_root();
        if skip {
            eprintln!("SKIPPED: {} needs root", module_path!());
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
        }
        skip
    }

    #[test]
    fn a_view_merges_layers_and_leaves_no_mount() {
        if skip() {
            return;
        }
        let dir = tempfile::TempDir::new().unwrap();
        let layers = layers(dir.path());
        let lowers = layers.each_ref().map(|layer| layer.as_path());
        check(overlay_view(&lowers).unwrap());
        check(overlay_by_options(&lowers, None, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("lowerdir=/proc/self/fd"), "{mounts}");
        dir.close().unwrap();
    }

    #[test]
    fn the_smallest_views() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let root = Root::from_fd(overlay_view(&[dir.path()]).unwrap());
        assert_eq!(root.read(Path::new("file"), 9).unwrap(), b"x");
        let none = overlay_view(&[]).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::InvalidInput);
        assert!(overlay_view(&[&dir.path().join("absent")]).is_err());
    }

    #[test]
    fn both_ways_give_a_writable_overlay_in_plain_form() {
        if skip() {
            return;
        }
        for by_options in [false, true] {
            let dir = tempfile::TempDir::new().unwrap();
            let layers = layers(dir.path());
            let lowers = layers.each_ref().map(|layer| layer.as_path());
            let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            let writable = Some(Writable {
                upper: &upper,
                work: &work,
            });
            let attributes = MountAttrFlags::empty();
            let mount = match by_options {
                true => overlay_by_options(&lowers, writable, attributes).unwrap(),
                false => overlay(&lowers, writable, attributes).unwrap(),
            };
            let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
            fs::write(format!("{path}/dir/new"), "x").unwrap();
            // Not a rename by reference: the caller has to copy.
            let renamed = fs::rename(format!("{path}/dir"), format!("{path}/moved"));
            assert_eq!(renamed.unwrap_err().raw_os_error(), Some(libc::EXDEV));
            assert_eq!(fs::read(upper.join("dir/new")).unwrap(), b"x");
        }
    }

    #[test]
    fn three_hundred_layers_fit() {
        if skip() {
            return;
        }
        let dir = tempfile::TempDir::new().unwrap();
        let layers = (0..300).map(|number| dir.path().join(number.to_string()));
        let layers = layers.collect::<Vec<_>>();
        for layer in &layers {
            fs::create_dir(layer).unwrap();
        }
        let lowers = layers.iter().map(|layer| layer.as_path());
        let lowers = lowers.collect::<Vec<_>>();
        overlay_view(&lowers).unwrap();
        overlay_by_options(&lowers, None, MountAttrFlags::empty()).unwrap();
    }
}
