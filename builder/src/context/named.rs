//! The build context and the named ones (C7).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ContextError, Tree};

/// The trees of the folders that a build was given, by name.
#[derive(Debug, Default)]
pub struct Contexts {
    trees: BTreeMap<Option<String>, Arc<Tree>>,
}

impl Contexts {
    /// Adds a tree; without a name it is the build context itself.
    pub fn insert(&mut self, name: Option<String>, tree: Tree) {
        self.trees.insert(name, Arc::new(tree));
    }

    /// A tree by its name.
    ///
    /// # Errors
    /// [`ContextError::Unknown`] when there is none of that name, which is a bug of the caller.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<Tree>, ContextError> {
        let found = self.trees.get(&name.map(str::to_owned)).map(Arc::clone);
        found.ok_or_else(|| ContextError::Unknown(name.unwrap_or_default().to_owned()))
    }

    /// Writes the digests found out to the stat caches, for the next build.
    ///
    /// # Errors
    /// The first [`ContextError::StatCache`]; the others are written all the same.
    pub fn save_stat_caches(&self) -> Result<(), ContextError> {
        let saved: Vec<_> = self
            .trees
            .values()
            .map(|tree| tree.save_stat_cache())
            .collect();
        saved.into_iter().collect()
    }
}
