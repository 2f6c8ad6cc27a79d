//! Stacks as plain trees, for where overlayfs cannot be mounted.
//!
//! A *view* is read by kiln itself: its files are hard links to those of the snapshots. A *working
//! tree* is what processes write to: its files are copies, and it is carried from step to step, so
//! that a chain of steps copies its base once. Both lie in the store's `tmp` and are gone at the end.

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::changes::Changes;
use super::fuse::Mount;
use super::record::{self, Record};
use super::{SnapshotError, io_error};
use crate::layer::copy::parent_of;
use crate::layer::{self, Copier, How, TreeError};
use crate::store::{SnapshotId, Store, TempDir};
use crate::sys::root::Root;

/// Trees of either kind that are kept while nobody uses them. More chains of steps than that do not
/// make progress at once; the oldest goes.
const KEPT: usize = 4;

/// A tree made of layers.
#[derive(Debug)]
struct Tree {
    /// What it shows, lowest layer first.
    stack: Vec<SnapshotId>,
    /// Where it is a mount; ends before the folder does.
    mount: Option<Mount>,
    folder: TempDir,
}

impl Tree {
    fn new(store: &Store) -> Result<Self, SnapshotError> {
        let tree = Self {
            stack: Vec::new(),
            mount: None,
            folder: store.temporary()?,
        };
        let path = tree.path();
        fs::create_dir(&path).map_err(io_error("making the folder", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .map_err(io_error("setting the mode of", &path))?;
        Ok(tree)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("fs")
    }

    fn open(&self) -> Result<Root, SnapshotError> {
        let path = self.path();
        Root::open(&path).map_err(io_error("opening", &path))
    }

    /// Puts what is missing of a stack on top.
    fn extend(
        &mut self,
        store: &Store,
        stack: &[SnapshotId],
        how: How,
    ) -> Result<(), SnapshotError> {
        let missing = stack.get(self.stack.len()..).unwrap_or_default();
        let paths: Vec<PathBuf> = missing.iter().map(|id| store.snapshot_path(id)).collect();
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        layer::merge(&paths, &self.path(), how)?;
        self.stack = stack.to_vec();
        Ok(())
    }
}

/// The trees of one build.
#[derive(Debug, Default)]
pub(super) struct Trees {
    views: Mutex<Vec<Arc<Tree>>>,
    working: Mutex<Vec<WorkingTree>>,
}

impl Trees {
    /// The merged tree of a stack, for reading.
    pub(super) fn view(&self, store: &Store, stack: &[SnapshotId]) -> Result<Root, SnapshotError> {
        let (tree, root) = self.view_tree(store, stack)?;
        Ok(root.holding(tree as Arc<dyn Any + Send + Sync>))
    }

    /// The same as a folder, which stays as long as the second value does.
    pub(super) fn view_folder(
        &self,
        store: &Store,
        stack: &[SnapshotId],
    ) -> Result<(PathBuf, Arc<dyn Any + Send + Sync>), SnapshotError> {
        let (tree, _) = self.view_tree(store, stack)?;
        Ok((tree.path(), tree))
    }

    fn view_tree(
        &self,
        store: &Store,
        stack: &[SnapshotId],
    ) -> Result<(Arc<Tree>, Root), SnapshotError> {
        let below = {
            let mut views = lock(&self.views);
            if let Some(view) = views.iter().find(|view| view.stack == stack) {
                return Ok((Arc::clone(view), view.open()?));
            }
            // Nobody reads one that only this list holds.
            let idle = views.extract_if(.., |view| Arc::strong_count(view) == 1);
            let (below, others) = take_longest(idle.collect(), stack, |view| &view.stack);
            views.extend(others);
            below
        };
        let mut tree = match below.and_then(Arc::into_inner) {
            Some(tree) => tree,
            None => Tree::new(store)?,
        };
        tree.extend(store, stack, How::Link)?;
        let root = tree.open()?;
        let tree = Arc::new(tree);
        let mut views = lock(&self.views);
        views.push(Arc::clone(&tree));
        if views.len() > KEPT {
            views.remove(0);
        }
        Ok((tree, root))
    }

    /// The merged tree of a stack, for one process to write to.
    pub(super) fn take(
        &self,
        store: &Store,
        stack: &[SnapshotId],
    ) -> Result<WorkingTree, SnapshotError> {
        let below = {
            let mut working = lock(&self.working);
            let all = std::mem::take(&mut *working);
            let (below, others) = take_longest(all, stack, |working| &working.tree.stack);
            *working = others;
            below
        };
        let mut working = match below {
            Some(working) => working,
            None => WorkingTree {
                tree: Tree::new(store)?,
                record: Record::default(),
                tolerated: BTreeSet::new(),
            },
        };
        if working.tree.stack.len() < stack.len() {
            working.tree.extend(store, stack, How::Split)?;
            working.record = Record::of(&working.tree.open()?)?;
        }
        working.tolerated.clear();
        working.record.settle();
        Ok(working)
    }

    /// The same, mounted from these layers, topmost first, instead of being copied.
    pub(super) fn take_mounted(
        &self,
        store: &Store,
        stack: &[SnapshotId],
        lowers: &[PathBuf],
    ) -> Result<WorkingTree, SnapshotError> {
        let same = lock(&self.working)
            .extract_if(.., |working| working.tree.stack == stack)
            .next();
        let mut working = match same {
            Some(working) => working,
            None => {
                let mut tree = Tree::new(store)?;
                let mount = Mount::new(lowers, tree.folder.path());
                let mount = mount.map_err(io_error("mounting the layers on", &tree.path()))?;
                tree.mount = Some(mount);
                tree.stack = stack.to_vec();
                WorkingTree {
                    record: Record::of(&tree.open()?)?,
                    tree,
                    tolerated: BTreeSet::new(),
                }
            }
        };
        working.tolerated.clear();
        working.record.settle();
        Ok(working)
    }

    /// Writes what a process changed in its tree to the empty folder of a layer with this id.
    /// Keeps the tree, for the steps upon that one, if there are any that need it.
    pub(super) fn collect(
        &self,
        mut working: WorkingTree,
        layers: &[PathBuf],
        upper: &Path,
        id: SnapshotId,
        keep: bool,
    ) -> Result<(), SnapshotError> {
        let tree = working.tree.open()?;
        let after = Record::of(&tree)?;
        let written = working.tree.mount.as_ref().map(Mount::written);
        let written = written.transpose();
        let written = written.map_err(io_error("opening what was written to", &working.path()))?;
        let changes = Changes {
            tree: &tree,
            before: &working.record,
            after: &after,
            tolerated: &working.tolerated,
            layers,
            written: written.as_ref(),
        };
        let upper = Root::open(upper).map_err(io_error("opening", upper))?;
        changes.write(&upper, if keep { How::Copy } else { How::Take })?;
        if keep {
            // A mount breaks hard links by itself when one is written to.
            let split = working.tree.mount.is_none() && split_links(&working.tree, &after)?;
            working.record = if split { Record::of(&tree)? } else { after };
            working.tree.stack.push(id);
            let mut all = lock(&self.working);
            all.push(working);
            if all.len() > KEPT {
                all.remove(0);
            }
        }
        Ok(())
    }
}

/// A tree for one process.
#[derive(Debug)]
pub struct WorkingTree {
    tree: Tree,
    record: Record,
    tolerated: BTreeSet<Vec<u8>>,
}

impl WorkingTree {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.tree.path()
    }

    /// Says that the runtime will make something at a path of the tree for the time of the run, or
    /// move what is there away and back: that alone is no change.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn tolerate(&mut self, target: &str) -> Result<(), SnapshotError> {
        let root = self.tree.open()?;
        let top = self.path();
        let mut at = Path::new(target);
        loop {
            match located(&root, at) {
                Ok(found) => {
                    let found = found.strip_prefix(&top).unwrap_or(Path::new(""));
                    for path in [Some(found), found.parent()].into_iter().flatten() {
                        let path = path.as_os_str().as_bytes().to_vec();
                        self.tolerated.insert(path);
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A file or a circle of links on the way: the runtime will say so.
                Err(_) => return Ok(()),
            }
            let Some(parent) = at.parent() else {
                return Ok(());
            };
            at = parent;
        }
    }
}

/// Makes separate files of hard links, as they are for the next process: see [`How::Split`]. Says
/// whether there were any.
fn split_links(tree: &Tree, record: &Record) -> Result<bool, SnapshotError> {
    let root = tree.open()?;
    let folder = tree.folder.path();
    let beside = Root::open(folder).map_err(io_error("opening", folder))?;
    let mut split = false;
    let mut seen = BTreeSet::new();
    let mut copier = Copier::new(How::Split);
    for (path, entry) in record.iter() {
        if entry.is_directory() || entry.links < 2 || seen.insert(entry.inode) {
            continue;
        }
        split = true;
        let parent = record::open(&root, parent_of(path)).map_err(TreeError::new("open", path))?;
        copier.split(parent.as_fd(), beside.as_fd(), path)?;
    }
    Ok(split)
}

/// Where a path leads, on the host.
fn located(root: &Root, path: &Path) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd as _;
    let place = root.locate(path)?;
    fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// Takes the tree out of some that shows most of a stack and nothing else.
fn take_longest<T>(
    mut trees: Vec<T>,
    stack: &[SnapshotId],
    of: impl Fn(&T) -> &Vec<SnapshotId>,
) -> (Option<T>, Vec<T>) {
    let fitting = trees
        .iter()
        .enumerate()
        .filter(|(_, tree)| stack.starts_with(of(tree)));
    let longest = fitting.max_by_key(|(_, tree)| of(tree).len());
    let index = longest.map(|(index, _)| index);
    let taken = index.map(|index| trees.remove(index));
    (taken, trees)
}

/// A thread that panicked left the list as it was.
fn lock<T>(list: &Mutex<Vec<T>>) -> std::sync::MutexGuard<'_, Vec<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustix::fs::XattrFlags;

    use super::super::{Active, Backend, Snapshots, Writable};
    use super::*;

    fn snapshots() -> (tempfile::TempDir, Snapshots) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        (folder, Snapshots::with(store, Backend::Plain))
    }

    fn tree(snapshots: &Snapshots, stack: &[SnapshotId]) -> WorkingTree {
        match snapshots.writable(stack).unwrap() {
            Writable::Tree(tree) => *tree,
            Writable::Layers(_) => panic!("no tree"),
        }
    }

    /// Runs a change on a tree and gives the layer.
    fn step(
        snapshots: &Snapshots,
        stack: &[SnapshotId],
        keep: bool,
        change: impl FnOnce(&Path),
    ) -> (Active, PathBuf) {
        let active = snapshots.prepare().unwrap();
        let tree = tree(snapshots, stack);
        let path = tree.path();
        change(&path);
        snapshots.collect(tree, stack, &active, keep).unwrap();
        (active, path)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = walkdir::WalkDir::new(folder)
            .min_depth(1)
            .sort_by_file_name();
        let names = entries.into_iter().map(|entry| {
            let path = entry.unwrap().into_path();
            path.strip_prefix(folder).unwrap().display().to_string()
        });
        names.collect()
    }

    fn attribute(path: &Path, name: &str) -> bool {
        rustix::fs::lgetxattr(path, name, &mut [0; 9][..]).is_ok()
    }

    /// DEMAND 20
    #[test]
    fn a_tree_is_carried_from_step_to_step_and_never_shares_what_is_written() {
        let (_folder, snapshots) = snapshots();
        let (first, path) = step(&snapshots, &[], true, |tree| {
            fs::create_dir(tree.join("dir")).unwrap();
            fs::write(tree.join("dir/file"), "one").unwrap();
            fs::hard_link(tree.join("dir/file"), tree.join("dir/link")).unwrap();
        });
        assert_eq!(names(&first.upper()), ["dir", "dir/file", "dir/link"]);
        let stack = [snapshots.commit(first).unwrap()];
        let (second, same) = step(&snapshots, &stack, false, |tree| {
            fs::write(tree.join("dir/file"), "two").unwrap();
        });
        assert_eq!(path, same, "the tree of the step before");
        // As with overlayfs, the other name keeps what it had.
        assert_eq!(names(&second.upper()), ["dir", "dir/file"]);
        let view = snapshots.view(&stack).unwrap().unwrap();
        assert_eq!(view.read(Path::new("dir/file"), 9).unwrap(), b"one");
        assert!(!path.exists(), "nobody needs it any more");
    }

    #[test]
    fn what_speaks_to_overlayfs_never_comes_out_of_a_step() {
        for keep in [false, true] {
            let (_folder, snapshots) = snapshots();
            let (base, _) = step(&snapshots, &[], false, |tree| {
                fs::create_dir(tree.join("old")).unwrap();
                fs::write(tree.join("old/below"), "").unwrap();
            });
            let stack = [snapshots.commit(base).unwrap()];
            let (layer, _) = step(&snapshots, &stack, keep, |tree| {
                fs::create_dir(tree.join("new")).unwrap();
                fs::write(tree.join("new/file"), "").unwrap();
                for path in ["old", "new", "new/file"] {
                    for name in ["user.overlay.opaque", "user.overlay.redirect", "user.mine"] {
                        let path = tree.join(path);
                        rustix::fs::setxattr(path, name, b"y", XattrFlags::empty()).unwrap();
                    }
                }
            });
            let upper = layer.upper();
            assert_eq!(names(&upper), ["new", "new/file", "old"]);
            for path in ["old", "new", "new/file"].map(|path| upper.join(path)) {
                assert!(attribute(&path, "user.mine"), "{}", path.display());
                assert!(
                    !attribute(&path, "user.overlay.opaque"),
                    "{}",
                    path.display()
                );
                assert!(
                    !attribute(&path, "user.overlay.redirect"),
                    "{}",
                    path.display()
                );
            }
        }
    }

    #[test]
    fn a_directory_that_was_replaced_is_opaque_and_a_touched_one_is_not() {
        let (_folder, snapshots) = snapshots();
        let (base, _) = step(&snapshots, &[], true, |tree| {
            for name in ["kept", "replaced", "gone"] {
                fs::create_dir(tree.join(name)).unwrap();
                fs::write(tree.join(name).join("file"), "").unwrap();
            }
        });
        let stack = [snapshots.commit(base).unwrap()];
        let (layer, _) = step(&snapshots, &stack, false, |tree| {
            for name in ["replaced", "gone"] {
                fs::remove_dir_all(tree.join(name)).unwrap();
            }
            fs::create_dir(tree.join("replaced")).unwrap();
            fs::remove_file(tree.join("kept/file")).unwrap();
        });
        let upper = layer.upper();
        assert_eq!(names(&upper), ["gone", "kept", "kept/file", "replaced"]);
        assert!(attribute(&upper.join("replaced"), "user.overlay.opaque"));
        assert!(!attribute(&upper.join("kept"), "user.overlay.opaque"));
        for path in ["gone", "kept/file"] {
            let stat = rustix::fs::lstat(upper.join(path)).unwrap();
            assert!(layer::merge::is_whiteout(&stat), "{path}");
        }
    }

    /// What the runtime does in a tree is no change by the step.
    #[test]
    fn what_was_moved_away_and_back_is_unchanged() {
        let (_folder, snapshots) = snapshots();
        let (base, _) = step(&snapshots, &[], true, |tree| {
            fs::create_dir(tree.join("etc")).unwrap();
            fs::write(tree.join("etc/hosts"), "own").unwrap();
        });
        let stack = [snapshots.commit(base).unwrap()];
        let active = snapshots.prepare().unwrap();
        let mut tree = tree(&snapshots, &stack);
        tree.tolerate("/etc/hosts").unwrap();
        let etc = tree.path().join("etc");
        let time = fs::metadata(&etc).unwrap().modified().unwrap();
        fs::rename(etc.join("hosts"), etc.join("aside")).unwrap();
        fs::rename(etc.join("aside"), etc.join("hosts")).unwrap();
        fs::File::open(&etc).unwrap().set_modified(time).unwrap();
        snapshots.collect(tree, &stack, &active, false).unwrap();
        assert!(names(&active.upper()).is_empty());
    }
}
