//! The folders of a build: the build context and the named ones (C7).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_grammar::dockerignore::IgnoreFile;
use kiln_registry::digest::Digest;

use super::BuildError;
use super::files::{open_folder, read_ignore_file};
use crate::context::{Contexts, Tree};
use crate::graph::{Op, Vertex};
use crate::lower::{ContextSource, LowerOptions, NamedContext, Plan};
use crate::store::Store;

/// The folders among the named contexts; those that the Dockerfile does not name are looked at, too.
pub(super) fn folders(
    contexts: &[NamedContext],
) -> Result<Vec<(&NamedContext, PathBuf)>, BuildError> {
    let mut folders = Vec::new();
    for context in contexts {
        if let ContextSource::Folder(path) = &context.source {
            let folder = open_folder(path).map_err(|error| in_context(context, error))?;
            folders.push((context, folder));
        }
    }
    Ok(folders)
}

fn in_context(context: &NamedContext, error: BuildError) -> BuildError {
    BuildError::NamedContext {
        label: context.label(),
        source: Box::new(error),
    }
}

/// What stands behind an image that a named context names.
pub(super) fn of(context: Option<&String>) -> String {
    context.map_or(String::new(), |label| format!(" of {label}"))
}

/// The build context.
pub(super) struct Main<'a> {
    pub(super) folder: &'a Path,
    pub(super) ignore: Option<Arc<IgnoreFile>>,
    /// Where the ignore file is.
    pub(super) ignore_file: Option<PathBuf>,
}

/// Opens the build context, seen through its ignore file, and the named ones that the plan reads:
/// what nothing reads need not be readable.
pub(super) fn open(
    store: &Store,
    plan: &Plan,
    main: Main<'_>,
    named: &[(&NamedContext, PathBuf)],
) -> Result<Contexts, BuildError> {
    let mut contexts = Contexts::default();
    let mut tree = open_tree(store, main.folder, main.ignore)?;
    if let Some(name) = main.ignore_file.as_deref().and_then(Path::file_name) {
        tree = tree.ignored_by(name.to_string_lossy());
    }
    contexts.insert(None, tree);
    for (context, folder) in named {
        if reads(plan, &context.name) {
            let tree = open_named(store, folder).map_err(|error| in_context(context, error))?;
            contexts.insert(Some(context.name.clone()), tree.named(context.label()));
        }
    }
    Ok(contexts)
}

fn reads(plan: &Plan, context: &str) -> bool {
    let is_it = |vertex: &Vertex| match &vertex.op {
        Op::Context(op) => op.name.as_deref() == Some(context),
        _ => false,
    };
    plan.graph.vertices().iter().any(is_it)
}

/// Opens a named context, which has an ignore file of its own (C7.4).
fn open_named(store: &Store, folder: &Path) -> Result<Tree, BuildError> {
    let ignore = read_ignore_file(None, folder)?;
    open_tree(store, folder, ignore.map(Arc::new))
}

/// Opens a folder with the digests that are remembered of its files.
fn open_tree(
    store: &Store,
    folder: &Path,
    ignore: Option<Arc<IgnoreFile>>,
) -> Result<Tree, BuildError> {
    let name = Digest::of(folder.as_os_str().as_encoded_bytes()).hex();
    let stat_cache = store.root().join("cache").join(name);
    Ok(Tree::context(folder, ignore, Some(&stat_cache))?)
}

/// The named context that an image comes from.
pub(super) fn of_image(options: &LowerOptions, image: &str) -> Option<String> {
    let is_it = |context: &&NamedContext| match &context.source {
        ContextSource::Image(reference) => reference == image,
        _ => false,
    };
    options.contexts.iter().find(is_it).map(NamedContext::label)
}
