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
    folder: TempDir,
}

impl Tree {
    fn new(store: &Store) -> Result<Self, SnapshotError> {
        let tree = Self {
            stack: Vec::new(),
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
        let changes = Changes {
            tree: &tree,
            before: &working.record,
            after: &after,
            tolerated: &working.tolerated,
            layers,
        };
        let upper = Root::open(upper).map_err(io_error("opening", upper))?;
        changes.write(&upper, if keep { How::Copy } else { How::Take })?;
        if keep {
            working.record = match split_links(&working.tree, &after)? {
                true => Record::of(&tree)?,
                false => after,
            };
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
