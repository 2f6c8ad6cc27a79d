//! `--cache-from` and `--cache-to` of `kiln build`.

use std::sync::Arc;

use kiln_builder::cache::mounts::SavedMounts;
use kiln_builder::cache::remote::Summary;
use kiln_builder::cache::remote::options::{CacheFrom, CacheMounts, CacheTo};
use kiln_builder::pipeline::Shared;
use kiln_builder::runtime::Cancel;

use crate::render::{self, text};
use crate::report::{NotExported, UsageError};

pub(super) fn from(texts: &[String]) -> anyhow::Result<Vec<CacheFrom>> {
    let parsed = texts.iter().map(|text| CacheFrom::parse(text, &variable));
    let parsed = parsed.map(|one| one.map_err(|error| UsageError::new(error.to_string()).into()));
    parsed.collect()
}

pub(super) fn to(texts: &[String]) -> anyhow::Result<Vec<CacheTo>> {
    let parsed = texts.iter().map(|text| CacheTo::parse(text, &variable));
    let parsed = parsed.map(|one| one.map_err(|error| UsageError::new(error.to_string()).into()));
    parsed.collect()
}

pub(super) fn mounts(text: Option<&str>) -> anyhow::Result<Option<CacheMounts>> {
    let parsed = text
        .map(|text| CacheMounts::parse(text, &variable))
        .transpose();
    parsed.map_err(|error| UsageError::new(error.to_string()).into())
}

/// Saves cache mounts, and says what of them was restored and saved.
pub(super) async fn save(mounts: &Arc<SavedMounts>, cancel: &Cancel, quiet: bool) {
    let lines = tokio::select! {
        lines = mounts.save() => lines,
        () = cancel.cancelled() => return,
    };
    for line in lines.iter().filter(|_| !quiet) {
        render::err(&text::printable(line.as_bytes()));
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Waits for the export, and says what the cache was good for.
pub(super) async fn finish(
    shared: &mut Shared,
    cancel: &Cancel,
    quiet: bool,
) -> anyhow::Result<()> {
    match exported(shared, cancel, quiet).await {
        Some(message) => Err(NotExported(message).into()),
        None => Ok(()),
    }
}

/// The same for a build that failed: it ends with why, whatever becomes of its cache.
pub(super) async fn unfinished(mut shared: Shared, cancel: &Cancel, quiet: bool) {
    if let Some(message) = exported(&mut shared, cancel, quiet).await {
        render::err(&format!("warning: {message}"));
    }
}

/// Waits for the export and tells about it; gives what is an error (C5.2).
async fn exported(shared: &mut Shared, cancel: &Cancel, quiet: bool) -> Option<String> {
    let summary = shared.finish(cancel).await;
    if !quiet {
        render::err(&line(shared.hits, shared.executed, summary.as_ref()));
    }
    let mut fatal = None;
    for failed in summary.into_iter().flat_map(|summary| summary.failed) {
        let message = format!(
            "exporting the cache to {} failed: {}",
            failed.place, failed.reason
        );
        let message = text::printable(message.as_bytes());
        match failed.fatal {
            true => fatal = Some(message),
            false if quiet => {}
            false => render::err(&format!("warning: {message}")),
        }
    }
    fatal
}

fn line(hits: usize, executed: usize, summary: Option<&Summary>) -> String {
    let mut line = format!("cache: {hits} hit, {executed} new");
    if let Some(summary) = summary {
        let (sent, seconds) = (text::size(summary.sent), summary.seconds);
        line.push_str(&format!(", sent {sent} in {seconds:.1} s"));
        if let Some((held, max)) = summary.kept {
            let (held, max) = (text::size(held), text::size(max));
            line.push_str(&format!(", keeps {held} of {max}"));
        }
    }
    line
}
