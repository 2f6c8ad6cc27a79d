//! Snapshots: layers as directories, and stacks of them as file systems.
//!
//! A snapshot holds one layer in overlayfs form (a whiteout is a character device 0:0, an opaque
//! directory carries `user.overlay.opaque`). A stack of snapshots is mounted as one overlay: by the
//! sandbox for a process, or as a detached, read-only view for kiln itself, which leaves nothing
//! behind even when kiln is killed. Where overlayfs cannot be mounted ([`Backend`]), `trees` makes
//! plain directories of stacks, `record` remembers what a tree looked like, and `changes` writes
//! what a process did to it as a snapshot in the same form.

mod backend;
mod changes;
mod fuse;
mod packed;
mod record;
mod same;
mod trees;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use kiln_registry::spec::DiffId;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::layer::{self, Following};
use crate::store::{Eviction, SnapshotFacts, Store, StoreError, TempDir};
use crate::sys::root::Root;

use trees::Trees;

pub use crate::store::SnapshotId;
pub use backend::{Backend, Refused, UnknownBackend};
pub use trees::WorkingTree;

/// Why a snapshot could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A directory could not be read, written or mounted.
    #[error("{action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The store lies on a file system that cannot keep snapshots.
    #[error(
        "the file system of the store `{0}` has no extended attributes of users (`user.*`), which snapshots need"
    )]
    Attributes(PathBuf),
    /// This machine does not allow the way that was asked for.
    #[error("--snapshotter={backend} does not work here")]
    Refused {
        /// The way.
        backend: Backend,
        /// Why not.
        source: io::Error,
    },
    /// A tree of files could not be read or made.
    #[error("{0}")]
    Tree(#[from] layer::TreeError),
    /// The layer could not be packed.
    #[error("packing a layer")]
    Pack(#[from] layer::PackError),
    /// The layer could not be unpacked.
    #[error("unpacking layer {0}")]
    Unpack(DiffId, #[source] layer::UnpackError),
    /// A layer is not what is recorded of it, or cannot be unpacked just as it is.
    #[error("layer {0} is not what it should be")]
    Altered(DiffId),
}

impl SnapshotError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Attributes(_) => Some(
                "choose a place on another file system with --root (ext4, xfs, btrfs; tmpfs since Linux 6.6)"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// How much a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Files, directories and whatever else there is below its root.
    pub entries: u64,
    /// Bytes of the contents of files, for each of their names.
    pub bytes: u64,
}

/// A snapshot being made. Dropped without [`Snapshots::commit`], it is gone.
#[derive(Debug)]
pub struct Active {
    id: SnapshotId,
    /// Holds its two directories, and those of others.
    folder: Arc<TempDir>,
}

impl Active {
    /// The directory that becomes the layer.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.folder.path().join(self.id.name())
    }

    /// An empty directory beside it, for overlayfs.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.folder.path().join(format!("{}-work", self.id.name()))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // What cannot be removed now goes with the folder.
        for path in [self.work(), self.upper()] {
            drop(fs::remove_dir_all(path));
        }
    }
}

/// What of a snapshot decides how it is mounted; it never changes.
#[derive(Clone, Copy, Debug)]
struct Shape {
    empty: bool,
    opaque: bool,
}

/// A stack that a process may write to.
#[derive(Debug)]
pub enum Writable {
    /// To be mounted: these layers, topmost first, below the new one.
    Layers(Vec<PathBuf>),
    /// As a tree that is complete.
    Tree(Box<WorkingTree>),
}

/// A folder, and what keeps it.
pub type Folder = (PathBuf, Arc<dyn Any + Send + Sync>);

/// The snapshots of a store.
#[derive(Clone, Debug)]
pub struct Snapshots {
    store: Arc<Store>,
    backend: Backend,
    trees: Arc<Trees>,
    /// Set once the file system was found to have the attributes that snapshots need.
    attributes: Arc<OnceLock<()>>,
    /// Where snapshots are made; gone with the last that uses it.
    nursery: Arc<OnceLock<Arc<TempDir>>>,
    shapes: Arc<Mutex<BTreeMap<SnapshotId, Shape>>>,
}

impl Snapshots {
    /// The snapshots of this store, mounted by overlayfs.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self::with(store, Backend::Overlay)
    }

    /// The snapshots of this store, and how stacks of them become file systems.
    #[must_use]
    pub fn with(store: Arc<Store>, backend: Backend) -> Self {
        Self {
            store,
            backend,
            trees: Arc::default(),
            attributes: Arc::default(),
            nursery: Arc::default(),
            shapes: Arc::default(),
        }
    }

    /// Starts a snapshot: an empty layer.
    ///
    /// # Errors
    /// When its folders cannot be made.
    pub fn prepare(&self) -> Result<Active, SnapshotError> {
        self.store.claim_ids()?;
        let folder = match self.nursery.get() {
            Some(folder) => folder,
            None => {
                // Of two that come here at once, the slower one's folder goes again.
                let new = Arc::new(self.store.temporary()?);
                self.nursery.get_or_init(|| new)
            }
        };
        let active = Active {
            id: SnapshotId::random(),
            folder: Arc::clone(folder),
        };
        for path in [active.upper(), active.work()] {
            fs::create_dir(&path).map_err(io_error("making the folder", &path))?;
            // Not what the umask says: the upper directory is the root of what a step sees.
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .map_err(io_error("setting the mode of", &path))?;
        }
        self.check_attributes(&active)?;
        Ok(active)
    }

    /// Makes sure, once, that marks of directories can be kept: what is deleted would come back
    /// without them.
    fn check_attributes(&self, active: &Active) -> Result<(), SnapshotError> {
        if self.attributes.get().is_some() {
            return Ok(());
        }
        let work = active.work();
        match rustix::fs::setxattr(&work, "user.kiln.probe", b"1", XattrFlags::empty()) {
            Err(Errno::NOTSUP) => {
                return Err(SnapshotError::Attributes(self.store.root().to_owned()));
            }
            result => result.map_err(|error| io_error("marking", &work)(error.into()))?,
        }
        rustix::fs::removexattr(&work, "user.kiln.probe")
            .map_err(|error| io_error("marking", &work)(error.into()))?;
        // Somebody else has found the same out meanwhile.
        _ = self.attributes.set(());
        Ok(())
    }

    /// Opens what is in a snapshot that is being made.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(&self, active: &Active) -> Result<Root, SnapshotError> {
        let upper = active.upper();
        Root::open(&upper).map_err(io_error("opening", &upper))
    }

    /// Ends the making of a snapshot; from now on it does not change. Consumes it, so that nobody
    /// can go on writing.
    ///
    /// # Errors
    /// When it cannot be named or recorded.
    pub fn commit(&self, active: Active) -> Result<SnapshotId, SnapshotError> {
        let upper = active.upper();
        let measured = measure(&upper).map_err(io_error("measuring", &upper))?;
        self.commit_measured(active, measured)
    }

    /// Like [`Self::commit`], for who knows how much the snapshot holds: that saves a walk through it.
    ///
    /// # Errors
    /// When it cannot be named or recorded.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a committed snapshot must not be used again"
    )]
    pub fn commit_measured(
        &self,
        active: Active,
        measured: Measured,
    ) -> Result<SnapshotId, SnapshotError> {
        let upper = active.upper();
        let id = active.id.clone();
        let target = self.store.snapshot_path(&id);
        fs::rename(&upper, &target).map_err(io_error("naming the snapshot", &target))?;
        let facts = SnapshotFacts {
            layer: None,
            bytes: measured.bytes,
            entries: measured.entries,
            created: now(),
            settled: true,
        };
        self.store.add_snapshot(&id, &facts)?;
        Ok(id)
    }

    /// The directories of a stack, lowest first, as overlayfs wants them: topmost first, without
    /// layers that hold nothing, and each once. Of a layer that is there twice, as a repeated
    /// `COPY --link` makes it, the lower one shows nothing that the upper one does not.
    ///
    /// # Errors
    /// When a snapshot is missing.
    pub fn lowers(&self, stack: &[SnapshotId]) -> Result<Vec<PathBuf>, SnapshotError> {
        self.store.claim_ids()?;
        let mut lowers = Vec::with_capacity(stack.len());
        let mut seen = BTreeSet::new();
        for id in stack.iter().rev() {
            let shape = self.shape(id)?;
            if seen.insert(id.name()) && !shape.empty {
                lowers.push(self.store.snapshot_path(id));
            }
            // overlayfs takes no notice of the mark on a layer's own root (D5.8).
            if shape.opaque {
                break;
            }
        }
        Ok(lowers)
    }

    /// A chain of steps asks for each of its layers again and again, so that it is remembered.
    fn shape(&self, id: &SnapshotId) -> Result<Shape, SnapshotError> {
        let shapes = || self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shape) = shapes().get(id) {
            return Ok(*shape);
        }
        let shape = Shape {
            empty: self.store.snapshot(id)?.entries == 0,
            opaque: is_opaque(&self.store.snapshot_path(id)),
        };
        shapes().insert(id.clone(), shape);
        Ok(shape)
    }

    /// The merged tree of a stack, read-only; `None` for a stack that holds nothing.
    ///
    /// # Errors
    /// When a snapshot is missing or the view cannot be mounted.
    pub fn view(&self, stack: &[SnapshotId]) -> Result<Option<Root>, SnapshotError> {
        let lowers = self.lowers(stack)?;
        let Some(first) = lowers.first() else {
            return Ok(None);
        };
        if self.backend != Backend::Overlay {
            return self.trees.view(&self.store, stack).map(Some);
        }
        let paths: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
        let view = crate::sys::mount::overlay_view(&paths)
            .map_err(io_error("mounting a view of", first))?;
        Ok(Some(Root::from_fd(view)))
    }

    /// The merged tree of a stack as a folder, which stays as long as the second value does; `None`
    /// where stacks are mounted instead, from [`Self::lowers`].
    ///
    /// # Errors
    /// When a snapshot is missing or the tree cannot be made.
    pub fn view_folder(&self, stack: &[SnapshotId]) -> Result<Option<Folder>, SnapshotError> {
        match self.backend {
            Backend::Overlay => Ok(None),
            Backend::Fuse | Backend::Plain => self.trees.view_folder(&self.store, stack).map(Some),
        }
    }

    /// A stack for a process to write to; what it changes becomes the layer that is being made.
    ///
    /// # Errors
    /// When a snapshot is missing or its tree cannot be made.
    pub fn writable(&self, stack: &[SnapshotId]) -> Result<Writable, SnapshotError> {
        match self.backend {
            Backend::Overlay => Ok(Writable::Layers(self.lowers(stack)?)),
            Backend::Fuse => {
                let lowers = self.lowers(stack)?;
                let tree = self.trees.take_mounted(&self.store, stack, &lowers)?;
                Ok(Writable::Tree(Box::new(tree)))
            }
            Backend::Plain => {
                let tree = self.trees.take(&self.store, stack)?;
                Ok(Writable::Tree(Box::new(tree)))
            }
        }
    }

    /// Writes what a process changed in the tree of a stack to the layer that is being made. `keep`
    /// says whether other processes will run upon that layer.
    ///
    /// # Errors
    /// When the tree cannot be read or the layer not be written.
    pub fn collect(
        &self,
        tree: WorkingTree,
        stack: &[SnapshotId],
        active: &Active,
        keep: bool,
    ) -> Result<(), SnapshotError> {
        let layers = self.lowers(stack)?;
        self.trees
            .collect(tree, &layers, &active.upper(), active.id.clone(), keep)
    }

    /// The layer's digest and the size of its tar in bytes, computed when not known yet.
    ///
    /// # Errors
    /// When the layer cannot be packed or recorded.
    pub fn seal(&self, id: &SnapshotId) -> Result<(DiffId, u64), SnapshotError> {
        self.seal_telling(id, None, drop)
    }

    /// Like [`Self::seal`], from a digest that was begun while the snapshot was written if that can be
    /// had; and tells what of the snapshot the layer cannot hold, where it is packed.
    ///
    /// # Errors
    /// When the layer cannot be packed or recorded.
    pub fn seal_telling(
        &self,
        id: &SnapshotId,
        begun: Option<Following>,
        tell: impl FnMut(String),
    ) -> Result<(DiffId, u64), SnapshotError> {
        if let Some(known) = self.store.snapshot(id)?.layer {
            return Ok(known);
        }
        let (diff_id, packed) = match begun.and_then(Following::wait) {
            Some(packed) => packed,
            None => self.pack(id)?,
        };
        let warnings = packed.warnings.iter().map(ToString::to_string);
        warnings.for_each(tell);
        self.store.seal_snapshot(id, diff_id, packed.size)?;
        Ok((diff_id, packed.size))
    }

    /// Whether a snapshot can be used. One that an earlier boot may have left half written is
    /// compared with the digest of its layer first, and forgotten when it differs.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn check(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        if self.store.snapshot(id)?.settled {
            return Ok(true);
        }
        self.verify(id)
    }

    /// Compares a snapshot with the digest of its layer, and forgets it when it differs or there is
    /// none. Says whether it is still there.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn verify(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        let facts = self.store.snapshot(id)?;
        let whole = matches!((facts.layer, self.pack(id)), (Some(known), Ok((diff_id, packed))) if known == (diff_id, packed.size));
        if whole {
            self.store.settle_snapshot(id)?;
        } else {
            self.store.forget_snapshot(id, Eviction::Damaged)?;
        }
        Ok(whole)
    }

    /// Whether two snapshots hold the same but for times. Files are read only where as many entries
    /// and bytes are recorded for both.
    ///
    /// # Errors
    /// When the store or a file cannot be read.
    pub fn same(&self, one: &SnapshotId, other: &SnapshotId) -> Result<bool, SnapshotError> {
        let (a, b) = (self.store.snapshot(one)?, self.store.snapshot(other)?);
        if (a.entries, a.bytes) != (b.entries, b.bytes) {
            return Ok(false);
        }
        let path = self.store.snapshot_path(one);
        same::same(&path, &self.store.snapshot_path(other))
            .map_err(io_error("comparing the layer", &path))
    }

    /// Forgets a snapshot that nothing was made upon yet.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn forget(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        Ok(self.store.forget_snapshot(id, Eviction::Removed)?)
    }

    fn pack(&self, id: &SnapshotId) -> Result<(DiffId, layer::Packed), SnapshotError> {
        self.store.claim_ids()?;
        let path = self.store.snapshot_path(id);
        Ok(layer::diff_id(&path, &layer::PackOptions::default())?)
    }
}

/// Whether a layer hides everything below it.
fn is_opaque(layer: &Path) -> bool {
    let mut value = [0; 1];
    let attribute = layer::whiteout::OPAQUE_ATTRIBUTE;
    matches!(
        rustix::fs::lgetxattr(layer, attribute, &mut value[..]),
        Ok(1)
    ) && value == *b"y"
}

fn measure(directory: &Path) -> io::Result<Measured> {
    let mut measured = Measured::default();
    for entry in walkdir::WalkDir::new(directory).min_depth(1) {
        let entry = entry?;
        measured.entries += 1;
        if entry.file_type().is_file() {
            measured.bytes += entry.metadata()?.size();
        }
    }
    Ok(measured)
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot with one file, opaque or not.
    fn layer(snapshots: &Snapshots, file: &str, opaque: bool) -> SnapshotId {
        let active = snapshots.prepare().unwrap();
        fs::write(active.upper().join(file), file).unwrap();
        if opaque {
            let attribute = layer::whiteout::OPAQUE_ATTRIBUTE;
            rustix::fs::setxattr(active.upper(), attribute, b"y", XattrFlags::empty()).unwrap();
        }
        snapshots.commit(active).unwrap()
    }

    #[test]
    fn d5_8_an_opaque_root_hides_the_layers_below() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let snapshots = Snapshots::new(Arc::clone(&store));
        let stack = [
            layer(&snapshots, "low", false),
            layer(&snapshots, "middle", true),
            layer(&snapshots, "top", false),
        ];
        let empty = snapshots.commit(snapshots.prepare().unwrap()).unwrap();
        let names = |stack: &[SnapshotId]| snapshots.lowers(stack).unwrap().len();
        assert_eq!(names(&stack[..1]), 1);
        assert_eq!(names(&stack), 2);
        assert_eq!(
            names(&[stack[0].clone(), empty.clone()]),
            1,
            "an empty layer is left out"
        );
        let twice = [stack[0].clone(), stack[2].clone(), stack[0].clone()];
        assert_eq!(names(&twice), 2, "a layer is mounted once");
        assert!(snapshots.view(&twice).unwrap().is_some());
        assert!(snapshots.view(&[empty]).unwrap().is_none());
        let view = snapshots.view(&stack).unwrap().unwrap();
        assert!(
            view.read(Path::new("top"), 10).is_ok() && view.read(Path::new("middle"), 10).is_ok()
        );
        assert!(view.read(Path::new("low"), 10).is_err());
    }

    #[test]
    fn a_sealed_snapshot_of_an_unclean_boot_is_compared_with_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let snapshots = Snapshots::new(Arc::clone(&store));
        let (good, bad) = (
            layer(&snapshots, "good", false),
            layer(&snapshots, "bad", false),
        );
        for id in [&good, &bad] {
            snapshots.seal(id).unwrap();
            store.unsettle_snapshot(id).unwrap();
        }
        fs::write(store.snapshot_path(&bad).join("bad"), "").unwrap();
        assert!(snapshots.check(&good).unwrap());
        assert!(store.snapshot(&good).unwrap().settled);
        assert!(!snapshots.check(&bad).unwrap());
        assert!(!store.snapshot_path(&bad).exists());
    }
}
