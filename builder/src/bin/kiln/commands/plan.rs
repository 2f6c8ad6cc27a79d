//! `kiln build --plan`

use std::sync::Arc;

use anyhow::Context as _;
use kiln_builder::event::Observer;
use kiln_builder::pipeline::{self, Request};
use kiln_builder::runtime::Cancel;
use kiln_builder::schedule::{Forecast, StepReport};
use kiln_builder::store::Store;
use kiln_registry::client::Client;

use super::block_on;
use crate::args::PlanFormat;
use crate::render::{self, text};
use crate::report::Exited;

/// How a plan ends when there is something to do.
const SOMETHING: u8 = 2;

/// Shows what a build would do.
pub(super) fn run(
    request: Request,
    store: &Arc<Store>,
    client: &Client,
    cancel: &Cancel,
    format: PlanFormat,
) -> anyhow::Result<()> {
    let forecast = block_on(cancel, async {
        // What is asked for meanwhile is not worth a line: the plan is what is wanted.
        let observer = Observer::silent();
        let (store, client) = (Arc::clone(store), client.clone());
        Ok(pipeline::forecast(request, store, client, observer, cancel.clone()).await?)
    })?;
    match format {
        PlanFormat::Text => show(&forecast),
        PlanFormat::Json => {
            let json = serde_json::to_string(&forecast).context("writing the plan")?;
            render::out(&json);
        }
    }
    match forecast.is_done() {
        true => Ok(()),
        false => Err(Exited { code: SOMETHING }.into()),
    }
}

fn show(forecast: &Forecast) {
    for step in &forecast.steps {
        render::out(&line(step));
    }
    for fetch in &forecast.fetches {
        let bytes = text::size(fetch.bytes);
        render::out(&format!("fetch {bytes}: {}", text::one_line(&fetch.what)));
    }
    render::out(&summary(forecast));
}

fn line(step: &StepReport) -> String {
    let name = text::one_line(&format!("[{}] {}", step.step, step.instruction));
    let Some(reason) = &step.reason else {
        return format!("{:<5}{name}", step.result);
    };
    let reason = reason["text"].as_str().unwrap_or_default();
    let seconds = match step.seconds {
        Some(seconds) => format!(" ({seconds:.1}s the last time)"),
        None => String::new(),
    };
    let reason = text::one_line(reason);
    format!("{:<5}{name}: {reason}{seconds}", step.result)
}

fn summary(forecast: &Forecast) -> String {
    if forecast.is_done() {
        return "nothing to do".to_owned();
    }
    let steps = |count: usize| format!("{count} step{}", if count == 1 { "" } else { "s" });
    let mut parts = Vec::new();
    if forecast.misses > 0 {
        let known = forecast.misses - forecast.unknown;
        parts.push(format!("{} to execute", steps(forecast.misses)));
        if known > 0 {
            parts.push(format!("{:.1}s the last time", forecast.seconds));
        }
        if known > 0 && forecast.unknown > 0 {
            parts.push(format!("{} not timed yet", steps(forecast.unknown)));
        }
    }
    if forecast.fetch_bytes > 0 {
        parts.push(format!("{} to fetch", text::size(forecast.fetch_bytes)));
    }
    parts.join(", ")
}
