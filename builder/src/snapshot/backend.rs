//! How stacks of layers become file systems on this machine.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::str::FromStr;

use rustix::mount::MountAttrFlags;

use super::fuse::Mount;
use crate::store::{Store, StoreError};
use crate::sys::mount;

/// How stacks become file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Mounted by the kernel's overlayfs.
    #[default]
    Overlay,
    /// Mounted by the program fuse-overlayfs; what kiln itself reads is plain directories. For an
    /// ordinary user only.
    Fuse,
    /// Put together as plain directories: hard links for reading, copies for writing. Needs no right
    /// to mount anything.
    Plain,
}

/// A way that this machine does not allow.
#[derive(Debug)]
pub struct Refused {
    /// The way.
    pub backend: Backend,
    /// Why not.
    pub reason: io::Error,
}

impl Backend {
    /// Tries what this machine allows with a store, the best way first, and says what was refused.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn probe(store: &Store) -> Result<(Self, Vec<Refused>), StoreError> {
        let mut refused = Vec::new();
        for backend in [Self::Overlay, Self::Fuse, Self::Plain] {
            match backend.attempt(store)? {
                Ok(()) => return Ok((backend, refused)),
                Err(reason) => refused.push(Refused { backend, reason }),
            }
        }
        Ok((Self::Plain, refused))
    }

    /// Whether this way works with a store: it is tried.
    ///
    /// # Errors
    /// When the store cannot be written; why it does not work is the inner result.
    pub fn attempt(self, store: &Store) -> Result<io::Result<()>, StoreError> {
        match self {
            Self::Overlay => {
                let folder = store.temporary()?;
                Ok(overlay(folder.path()))
            }
            Self::Fuse => {
                let folder = store.temporary()?;
                Ok(fuse(folder.path()))
            }
            Self::Plain => Ok(Ok(())),
        }
    }
}

/// Merges two layers and writes to the result.
fn overlay(folder: &Path) -> io::Result<()> {
    let path = |name: &str| folder.join(name);
    for name in ["one", "two", "upper", "work"] {
        fs::create_dir(path(name))?;
    }
    fs::write(path("one").join("file"), "")?;
    let (one, two, upper, work) = (path("one"), path("two"), path("upper"), path("work"));
    let writable = mount::Writable {
        upper: &upper,
        work: &work,
    };
    let lowers = [one.as_path(), two.as_path()];
    let mount = mount::overlay(&lowers, Some(writable), MountAttrFlags::empty())?;
    // Deleting makes a whiteout, and a directory in its place an opaque one: all that has to work.
    let place = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let file = Path::new(&place).join("file");
    fs::remove_file(&file)?;
    fs::create_dir(&file)
}

/// Merges a layer and writes to the result.
fn fuse(folder: &Path) -> io::Result<()> {
    let (layer, place) = (folder.join("layer"), folder.join("fs"));
    fs::create_dir(&layer)?;
    fs::create_dir(&place)?;
    fs::write(layer.join("file"), "")?;
    let mount = Mount::new(&[layer], folder)?;
    let file = place.join("file");
    fs::remove_file(&file)?;
    fs::create_dir(&file)?;
    drop(mount);
    Ok(())
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::Fuse => "fuse",
            Self::Plain => "plain",
        })
    }
}

/// The text is the name of no way.
#[derive(Debug, thiserror::Error)]
#[error("unknown snapshotter `{0}`: expected overlay, fuse or plain")]
pub struct UnknownBackend(String);

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(text: &str) -> Result<Self, UnknownBackend> {
        match text {
            "overlay" => Ok(Self::Overlay),
            "fuse" => Ok(Self::Fuse),
            "plain" => Ok(Self::Plain),
            _ => Err(UnknownBackend(text.to_owned())),
        }
    }
}
