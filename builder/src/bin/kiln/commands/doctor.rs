//! `kiln doctor`: what this machine allows, and what that means for builds.

use std::path::Path;

use kiln_builder::runtime::isolation::survey::{self, Mechanism};
use kiln_builder::runtime::isolation::{self, IsolationError, Level};
use kiln_builder::runtime::network;
use kiln_builder::snapshot::Backend;
use kiln_builder::store::Store;
use serde::Serialize;

use super::Setup;
use crate::args::{DoctorArgs, DoctorFormat};
use crate::render::{self, text};
use crate::report::Reported;

/// The ways to make file systems of layers, best first; and what it costs when one is denied.
const BACKENDS: [(Backend, &str, &str); 3] = [
    (
        Backend::Overlay,
        "overlayfs",
        "layers are mounted by fuse-overlayfs, or become plain directories",
    ),
    (
        Backend::Fuse,
        "fuse-overlayfs",
        "without overlayfs layers become plain directories, which are copied for each chain of steps",
    ),
    (Backend::Plain, "plain copies", "nothing can be built"),
];

/// What was found out.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether builds work.
    works: bool,
    /// The level that steps get, as text; `null` where there is none.
    isolation: Option<String>,
    /// How layers become file systems; `null` where they cannot.
    snapshots: Option<String>,
    /// Why builds do not work.
    error: Option<String>,
    mechanisms: Vec<Mechanism>,
}

pub(crate) fn run(setup: &Setup, args: &DoctorArgs) -> anyhow::Result<()> {
    // Before anything is entered: afterwards there is root everywhere.
    let mut mechanisms = survey::levels();
    let report = match isolation::enter(setup.wanted()) {
        Ok(level) => inside(setup, &level, mechanisms),
        Err(error) => {
            mechanisms.extend(survey::steps());
            Report {
                works: false,
                isolation: None,
                snapshots: None,
                error: Some(said(&error)),
                mechanisms,
            }
        }
    };
    match args.format {
        DoctorFormat::Json => render::out(&serde_json::to_string_pretty(&report)?),
        DoctorFormat::Text => show(&report),
    }
    if report.works {
        Ok(())
    } else {
        Err(Reported.into())
    }
}

/// What there is at the level that was entered.
fn inside(setup: &Setup, level: &Level, mut mechanisms: Vec<Mechanism>) -> Report {
    let mut error = None;
    let mut snapshots = None;
    match setup.store() {
        Ok(store) => match backends(&store) {
            Ok((best, found)) => {
                mechanisms.extend(found);
                snapshots = best.map(|backend| backend.to_string());
                mechanisms.extend(files(&store));
            }
            Err(reason) => error = Some(format!("{reason:#}")),
        },
        Err(reason) => error = Some(format!("{reason:#}")),
    }
    let steps = survey::steps();
    let filtered = steps.iter().all(|one| one.allowed || one.name != "seccomp");
    mechanisms.extend(steps);
    mechanisms.push(Mechanism::of(
        "pasta",
        network::attempt(Path::new(network::SELF)).map(|()| String::new()),
        "RUN has the host's network, its loopback included",
    ));
    mechanisms.push(Mechanism::of(
        "store",
        match (&error, setup.root()) {
            (None, Ok(root)) => Ok(root.display().to_string()),
            (Some(reason), _) => Err(reason.clone()),
            (None, Err(reason)) => Err(format!("{reason:#}")),
        },
        "nothing can be built or kept",
    ));
    Report {
        works: error.is_none() && snapshots.is_some() && filtered,
        isolation: Some(level.to_string()),
        snapshots,
        error,
        mechanisms,
    }
}

/// The ways to make file systems of layers, and the best of them.
fn backends(store: &Store) -> anyhow::Result<(Option<Backend>, Vec<Mechanism>)> {
    store.claim_ids()?;
    let mut found = Vec::new();
    let mut best = None;
    for (backend, name, cost) in BACKENDS {
        let result = backend.attempt(store)?;
        if result.is_ok() {
            best = best.or(Some(backend));
        }
        let result = result
            .map(|()| String::new())
            .map_err(|error| error.to_string());
        found.push(Mechanism::of(name, result, cost));
    }
    Ok((best, found))
}

fn files(store: &Store) -> Vec<Mechanism> {
    match store.temporary() {
        Ok(folder) => survey::files(folder.path()),
        Err(error) => vec![Mechanism::of("user attributes", Err(error.to_string()), "")],
    }
}

fn said(error: &IsolationError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

fn show(report: &Report) {
    let width = report.mechanisms.iter().map(|one| one.name.len()).max();
    let width = width.unwrap_or(0);
    for one in &report.mechanisms {
        let mark = if one.allowed { "yes" } else { "no " };
        let detail = match (one.detail.as_str(), one.cost) {
            ("", "") => String::new(),
            (detail, "") => format!("  {detail}"),
            ("", cost) => format!("  ({cost})"),
            (detail, cost) => format!("  {detail} ({cost})"),
        };
        let line = format!("{:width$}  {mark}{detail}", one.name);
        render::out(&text::printable(line.trim_end().as_bytes()));
    }
    render::out("");
    let line = match (&report.isolation, &report.snapshots, &report.error) {
        (_, _, Some(error)) => format!("builds do not work: {error}"),
        (Some(isolation), Some(snapshots), None) => {
            format!("isolation: {isolation}; layers: {snapshots}")
        }
        _ => "builds do not work: see above".to_owned(),
    };
    render::out(&text::printable(line.as_bytes()));
}
