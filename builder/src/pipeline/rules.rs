//! What the command line says of the cache, for one Dockerfile; and what is kept of a build for the
//! next one.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;

use kiln_grammar::ast::{Dockerfile, Kind, Stage};
use kiln_registry::digest::Digest;
use serde_json::json;

use super::{BuildError, DockerfileFrom, Request};
use crate::event::{Event, Observer};
use crate::graph::{Graph, Op, VertexId};
use crate::schedule::{About, CachePolicy, Failure, Rules, Schedule};
use crate::step::StepError;
use crate::store::Project;

/// Version of the report on the cache.
const REPORT: u32 = 1;

/// Which steps the user wants executed, which not, and how many at once.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Whether all steps are executed (`--no-cache`).
    pub no_cache: bool,
    /// Stages whose steps are executed (`--no-cache-filter`), by name or number.
    pub no_cache_filter: Vec<String>,
    /// Stages none of whose steps may be executed (`--require-cached`); an empty list is for all.
    pub require_cached: Option<Vec<String>>,
    /// How many steps are executed at once (`--jobs`).
    pub jobs: Option<NonZeroU32>,
}

/// What the wishes mean for the steps of a graph.
pub(super) fn rules(
    wishes: &Wishes,
    file: &Dockerfile,
    graph: &Graph,
    observer: &Observer,
) -> Result<Rules, BuildError> {
    let mut executed = BTreeSet::new();
    for name in &wishes.no_cache_filter {
        match stage_index(file, name) {
            Some(stage) => executed.extend(steps(graph, |at| at == stage)),
            // docker says nothing, but a stage that is misspelt is not executed.
            None => observer.tell(Event::Note {
                step: None,
                text: format!("--no-cache-filter: no stage is called `{name}`"),
            }),
        }
    }
    let mut required = BTreeSet::new();
    match wishes.require_cached.as_deref() {
        None => {}
        Some([]) => required.extend(steps(graph, |_| true)),
        Some(names) => {
            for name in names {
                let stage = stage_index(file, name).ok_or_else(|| BuildError::NoStage {
                    flag: "--require-cached",
                    stage: name.clone(),
                })?;
                required.extend(steps(graph, |at| at == stage));
            }
        }
    }
    Ok(Rules {
        cache: if wishes.no_cache {
            CachePolicy::Ignore
        } else {
            CachePolicy::Use
        },
        executed,
        required,
        jobs: wishes.jobs,
    })
}

/// The stage of a name, whose case does not matter, or of a number.
fn stage_index(file: &Dockerfile, name: &str) -> Option<usize> {
    let named = |stage: &Stage| {
        let known = stage.name.as_ref();
        known.is_some_and(|known| known.value.eq_ignore_ascii_case(name))
    };
    // Of several stages of a name the last one has it.
    let named = file.stages.iter().rposition(named);
    let numbered = || name.parse().ok().filter(|at| *at < file.stages.len());
    named.or_else(numbered)
}

/// The steps of some stages that make layers.
fn steps(graph: &Graph, of: impl Fn(usize) -> bool) -> impl Iterator<Item = VertexId> {
    graph.ids().filter(move |id| {
        let vertex = graph.vertex(*id);
        let makes_layer = matches!(vertex.op, Op::Run(_) | Op::Copy(_) | Op::Mkdir(_));
        makes_layer && vertex.origin.is_some_and(|origin| of(origin.stage))
    })
}

/// What is built, by which it is found again.
pub(super) fn about(
    request: &Request,
    context: &Path,
    dockerfile: Option<&Path>,
    file: &Dockerfile,
) -> About {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dockerfile = match (&request.dockerfile, dockerfile) {
        (DockerfileFrom::Text(_), _) | (_, None) => "-".into(),
        (_, Some(path)) => real(path),
    };
    let mut place = real(context).into_os_string().into_encoded_bytes();
    for part in [
        dockerfile.into_os_string().into_encoded_bytes(),
        request.options.target.clone().unwrap_or_default().into(),
        request.options.platform.to_string().into(),
    ] {
        place.push(0);
        place.extend(part);
    }
    let name = request.tags.first();
    About {
        project: Project {
            place: Digest::of(&place),
            name: name.map(|tag| format!("{}/{}", tag.registry, tag.repository)),
        },
        arguments: file.stages.iter().map(arguments).collect(),
    }
}

/// The variables of a stage that an `ARG` sets, and no `ENV`.
fn arguments(stage: &Stage) -> BTreeSet<String> {
    let (mut arguments, mut variables) = (BTreeSet::new(), BTreeSet::new());
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Arg(pairs) => arguments.extend(pairs.iter().map(|pair| pair.name.value.clone())),
            Kind::Env(pairs) => variables.extend(pairs.iter().map(|pair| pair.key.value.clone())),
            _ => {}
        }
    }
    &arguments - &variables
}

/// Keeps what the next build is compared with, and tells what the cache knew of each step. A build
/// that was cancelled leaves the record of the one before.
pub(super) async fn record(schedule: &Schedule, observer: &Observer, failure: Option<&Failure>) {
    let cancelled = failure.is_some_and(|failure| matches!(failure.error, StepError::Cancelled));
    if !cancelled && let Err(error) = schedule.record_build().await {
        observer.tell(Event::Note {
            step: None,
            text: format!("the next build cannot be compared with this one: {error}"),
        });
    }
    let report = json!({
        "version": REPORT,
        "failed": failure.is_some(),
        "steps": schedule.report(),
    });
    observer.tell(Event::Explained(report.to_string()));
}
