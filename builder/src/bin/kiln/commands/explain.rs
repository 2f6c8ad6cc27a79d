//! `kiln build --explain-cache`

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use kiln_builder::event::{Event, Observer};

use super::save::check_target;
use crate::args::BuildArgs;
use crate::render;
use crate::report::UsageError;

/// Where the report on the cache goes.
#[derive(Debug)]
pub(super) enum ExplainCache {
    /// Standard output.
    Out,
    /// A file.
    File(PathBuf),
}

/// A report that is still to come.
#[derive(Debug)]
pub(super) struct Explanation {
    to: ExplainCache,
    report: Arc<Mutex<Option<String>>>,
}

impl ExplainCache {
    /// What the flag says.
    pub(super) fn of(args: &BuildArgs) -> anyhow::Result<Option<Self>> {
        let Some(text) = &args.explain_cache else {
            return Ok(None);
        };
        match text.split_once(',') {
            None if text == "json" && args.quiet => Err(UsageError::new(
                "--explain-cache=json and --quiet both write to standard output: add dest=FILE",
            )
            .into()),
            None if text == "json" => Ok(Some(Self::Out)),
            Some(("json", rest)) if rest.len() > 5 && rest.starts_with("dest=") => {
                let path = PathBuf::from(&rest["dest=".len()..]);
                check_target(&path)?;
                Ok(Some(Self::File(path)))
            }
            _ => Err(UsageError::new(format!(
                "invalid value `{text}` of --explain-cache: expected json or json,dest=FILE"
            ))
            .into()),
        }
    }

    /// How what was pushed is told: not on a standard output that is to be one JSON document.
    pub(super) fn tell_pushed(explain: Option<&Self>) -> fn(&str) {
        match explain {
            Some(Self::Out) => render::err,
            _ => render::out,
        }
    }

    /// An observer that keeps the report, besides showing everything else.
    pub(super) fn watch(to: Option<Self>, shown: Observer) -> (Observer, Option<Explanation>) {
        let Some(to) = to else {
            return (shown, None);
        };
        let report = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&report);
        let observer = Observer::new(move |event| match event {
            Event::Explained(text) => {
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            }
            event => shown.tell(event),
        });
        (observer, Some(Explanation { to, report }))
    }
}

impl Explanation {
    /// Writes the report; there is none where the build ended before its first step.
    pub(super) fn write(self) -> anyhow::Result<()> {
        let report = self.report.lock();
        let report = report.unwrap_or_else(PoisonError::into_inner).take();
        match (report, self.to) {
            (None, _) => Ok(()),
            (Some(report), ExplainCache::Out) => {
                render::out(&report);
                Ok(())
            }
            (Some(report), ExplainCache::File(path)) => fs::write(&path, report + "\n")
                .with_context(|| format!("writing `{}`", path.display())),
        }
    }
}
