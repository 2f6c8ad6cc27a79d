//! What is known about where blobs lie, for mounting them across repositories (D7.4).

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use super::transport::lock;
use crate::digest::Digest;

/// The most repositories that are tried for one blob: each costs a request.
const CANDIDATES: usize = 3;

/// The repositories in which each blob of a registry has been seen.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<(String, Digest), BTreeSet<String>>>);

impl Seen {
    pub(super) fn add(&self, registry: &str, repository: &str, blob: Digest) {
        lock(&self.0)
            .entry((registry.to_owned(), blob))
            .or_default()
            .insert(repository.to_owned());
    }

    /// A few other repositories of the registry that hold the blob.
    pub(super) fn candidates(&self, registry: &str, repository: &str, blob: Digest) -> Vec<String> {
        let seen = lock(&self.0);
        let names = seen.get(&(registry.to_owned(), blob)).into_iter().flatten();
        names
            .filter(|name| *name != repository)
            .take(CANDIDATES)
            .cloned()
            .collect()
    }
}
