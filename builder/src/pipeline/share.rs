//! The cache of a build beyond its store: where it is taken from, and where it goes (C5).

use std::sync::Arc;

use kiln_registry::client::Client;

use super::{BuildError, Request};
use crate::cache::mounts::SavedMounts;
use crate::cache::remote::options::Target;
use crate::cache::remote::{Entry, Exporter, INLINE, Imports, Summary, inline};
use crate::event::Observer;
use crate::image::ImageError;
use crate::lower::Plan;
use crate::runtime::Cancel;
use crate::schedule::{Schedule, Sharing};
use crate::step::Worker;
use crate::store::Store;

/// The cache of a build that is shared beyond its store.
#[derive(Debug)]
pub struct Shared {
    /// Steps that were found in a cache.
    pub hits: usize,
    /// Steps that were executed.
    pub executed: usize,
    export: Option<(Exporter, Vec<Entry>)>,
    /// Whether all steps are done.
    complete: bool,
}

impl Shared {
    /// Waits until the cache is exported, if it is.
    pub async fn finish(&mut self, cancel: &Cancel) -> Option<Summary> {
        let (exporter, entries) = self.export.take()?;
        tokio::select! {
            summary = exporter.finish(&entries, self.complete) => Some(summary),
            () = cancel.cancelled() => None,
        }
    }
}

/// Begins to read the caches that the build may use.
pub(super) fn imports(
    request: &Request,
    client: &Client,
    observer: &Observer,
) -> Result<Option<Arc<Imports>>, BuildError> {
    let from = request.cache_from.as_slice();
    if from.is_empty() || request.wishes.no_cache {
        return Ok(None);
    }
    let imports = Imports::start(from, client, &request.options.platform, observer);
    Ok(Some(Arc::new(imports.map_err(BuildError::Cache)?)))
}

/// Begins to read what cache mounts are restored from.
pub(super) fn saved_mounts(
    request: &Request,
    client: &Client,
    store: &Arc<Store>,
    observer: &Observer,
) -> Result<Option<Arc<SavedMounts>>, BuildError> {
    let Some(mounts) = &request.cache_mounts else {
        return Ok(None);
    };
    let saved = SavedMounts::start(mounts, client, store, observer);
    Ok(Some(Arc::new(saved.map_err(BuildError::Cache)?)))
}

/// How the build shares its cache: where it takes from, and where its own goes.
pub(super) fn sharing(
    request: &Request,
    worker: &Worker,
    imports: Option<Arc<Imports>>,
) -> Result<Sharing, BuildError> {
    let exporter = Exporter::start(
        &request.cache_to,
        &worker.client,
        &request.options.platform,
        &worker.snapshots,
        &worker.store,
        imports.clone(),
    );
    let exporter = exporter.map_err(BuildError::Cache)?;
    Ok(Sharing { imports, exporter })
}

/// What is shared of a build whose steps are done; with `type=inline` the image's config says it.
pub(super) async fn share(
    request: &Request,
    schedule: &mut Schedule,
    store: &Store,
    plan: &mut Plan,
) -> Result<Option<Shared>, BuildError> {
    // That of the base image, if it has any, is not this one's.
    plan.config.extra.remove(INLINE);
    if request.cache_from.is_empty() && request.cache_to.is_empty() {
        return Ok(None);
    }
    let (hits, executed) = schedule.counts();
    let mut export = None;
    if !request.cache_to.is_empty() {
        let entries = schedule.entries().await.map_err(ImageError::from)?;
        if request
            .cache_to
            .iter()
            .any(|to| to.target == Target::Inline)
        {
            let cache = inline(store, &entries).map_err(BuildError::Cache)?;
            plan.config.extra.insert(INLINE.to_owned(), cache);
        }
        export = schedule.take_exporter().map(|exporter| (exporter, entries));
    }
    Ok(Some(Shared {
        hits,
        executed,
        export,
        complete: true,
    }))
}

/// What is shared of a build that failed: the steps that were done. Whoever stops a build waits for
/// nothing.
pub(super) async fn share_unfinished(
    error: &BuildError,
    schedule: &mut Schedule,
) -> Option<Shared> {
    let exporter = schedule.take_exporter()?;
    if matches!(error, BuildError::Cancelled) {
        return None;
    }
    // When the store cannot be read, the build failed for that: there is nothing to add.
    let entries = schedule.entries().await.ok()?;
    let (hits, executed) = schedule.counts();
    Some(Shared {
        hits,
        executed,
        export: Some((exporter, entries)),
        complete: false,
    })
}
