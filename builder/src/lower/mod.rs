//! From a parsed Dockerfile to a [`Plan`]: pure, text and image configs in, a graph out.
//!
//! [`wanted`] names the images that have to be resolved first; call it until it names none,
//! because an image may bring `ONBUILD` triggers that name others. Then [`lower`] makes the plan.
//!
//! - `globals` and `scope` know what variables are worth, `stages` what names stand for and which
//!   stages the target needs;
//! - `from` starts a stage, `stage` walks its instructions, `run`, `mounts`, `copy` and `meta`
//!   lower them, `history` words them;
//! - `check` filters the warnings;
//! - `onbuild` reads triggers, `frontend` judges `# syntax=`;
//! - `contexts` are the named contexts of the command line, `git` the addresses of repositories;
//! - `expose`, `signal`, `chmod` and `path` are small languages of their own.

mod check;
mod chmod;
mod contexts;
mod copy;
mod expose;
mod from;
mod frontend;
mod git;
mod globals;
mod history;
mod meta;
mod mounts;
mod onbuild;
mod options;
mod path;
mod plan;
mod run;
mod scope;
mod signal;
mod stage;
mod stages;

use std::collections::BTreeMap;

use kiln_grammar::ast::{Dockerfile, Instruction, Kind};
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::source::Span;
use kiln_registry::spec::{ImageConfig, Platform};

pub use check::check;
pub use contexts::{ContextSource, LAYOUT, NamedContext, NamedContextError};
pub use options::{BaseImage, BaseImages, LowerOptions};
pub use plan::{HistoryEntry, Plan, Wanted};

use crate::graph::Graph;
use scope::Scope;
use stage::{Shared, StageLowering};
use stages::Stages;

/// Names the images that the target needs and that are not in `bases` yet (A7.9).
///
/// # Errors
/// The mistakes of the Dockerfile that stand in the way.
pub fn wanted(
    file: &Dockerfile,
    options: &LowerOptions,
    bases: &BaseImages,
) -> Result<Vec<Wanted>, Vec<Diagnostic>> {
    let find = || {
        let globals = globals(file, options)?;
        let stages = Stages::resolve(file, options, &globals, &mut Vec::new())?;
        stages.reach(bases)
    };
    let mut images = find().map_err(|error| vec![error])?.images;
    images.retain(|image| bases.get(&image.reference, &image.platform).is_none());
    Ok(images)
}

/// Lowers a Dockerfile whose images are resolved.
///
/// # Errors
/// The mistakes of the Dockerfile; also an image that `bases` lacks.
pub fn lower(
    file: &Dockerfile,
    options: &LowerOptions,
    bases: &BaseImages,
) -> Result<Plan, Vec<Diagnostic>> {
    plan(file, options, bases).map_err(|error| vec![error])
}

fn plan(file: &Dockerfile, options: &LowerOptions, bases: &BaseImages) -> Result<Plan, Diagnostic> {
    let mut warnings: Vec<Diagnostic> = frontend::check(file, options).into_iter().collect();
    let globals = globals(file, options)?;
    let stages = Stages::resolve(file, options, &globals, &mut warnings)?;
    let reached = stages.reach(bases)?;
    let mut shared = Shared {
        options,
        bases,
        stages: &stages,
        globals: &globals,
        escape: file.directives.escape,
        graph: Graph::default(),
        warnings,
        done: BTreeMap::new(),
        declared: Vec::new(),
        size: 0,
    };
    let mut triggers = Vec::new();
    for index in reached.stages {
        let fired = stages.triggers(index, bases)?;
        triggers.extend(fired.into_iter().map(|trigger| trigger.instruction));
        StageLowering::run(&mut shared, index)?;
    }
    let unknown = unconsumed(file, &shared);
    shared.warnings.extend(unknown);
    let unused = contexts::unused(file, &options.contexts, &stages, &triggers);
    shared.warnings.extend(unused);
    let Some(state) = shared.done.remove(&stages.target) else {
        let message = "dockerfile contains no stages to build";
        return Err(Diagnostic::error(message, Span::default()));
    };
    let mut config = state.config;
    finish(&mut config, options);
    Ok(Plan {
        graph: shared.graph,
        root: state.vertex,
        config,
        base: state.base,
        history: state.history,
        warnings: shared.warnings,
    })
}

fn globals(file: &Dockerfile, options: &LowerOptions) -> Result<Scope, Diagnostic> {
    globals::evaluate(file, options, &|name| {
        options.build_arg(name).map(str::to_owned)
    })
}

/// Gives the config of the final image its platform and the labels of the command line (A9.10).
fn finish(config: &mut ImageConfig, options: &LowerOptions) {
    let mut platform = Platform {
        os: std::mem::take(&mut config.os),
        architecture: std::mem::take(&mut config.architecture),
        variant: config.variant.take(),
        ..Platform::default()
    };
    let target = &options.platform;
    if options.platform_given {
        let same = platform.os == target.os && platform.architecture == target.architecture;
        if target.variant.is_some() || !same {
            platform.variant.clone_from(&target.variant);
        }
        if target.os_version.is_some() || !same {
            config.os_version.clone_from(&target.os_version);
        }
        platform.os.clone_from(&target.os);
        platform.architecture.clone_from(&target.architecture);
    }
    let platform = platform.normalized();
    config.os = platform.os;
    config.architecture = platform.architecture;
    config.variant = platform.variant;
    if !options.labels.is_empty() {
        let labels = config.config.labels.get_or_insert_default();
        labels.extend(options.labels.iter().cloned());
    }
}

/// Warns of build arguments that nothing declares (A6.7).
fn unconsumed(file: &Dockerfile, shared: &Shared<'_>) -> Vec<Diagnostic> {
    let all = file.stages.iter().flat_map(|stage| &stage.instructions);
    let mut declared: Vec<&str> = file.global_args.iter().chain(all).flat_map(names).collect();
    declared.extend(shared.declared.iter().map(String::as_str));
    let mut told: Vec<&str> = Vec::new();
    for (name, _) in &shared.options.build_args {
        let name = name.as_str();
        if !declared.contains(&name) && !told.contains(&name) && !is_predefined(name) {
            told.push(name);
        }
    }
    let warning = |name: &str| {
        let message =
            format!("build argument `{name}` is not declared by any ARG and has no effect");
        let warning = Diagnostic::warning("UnusedBuildArg", message, Span::default());
        match suggest(name, declared.iter().copied()) {
            Some(near) => warning.with_hint(format!("did you mean `{near}`?")),
            None => warning,
        }
    };
    told.into_iter().map(warning).collect()
}

/// The names that an instruction declares, also when it waits for a child image.
fn names(instruction: &Instruction) -> Vec<&str> {
    match &instruction.kind {
        Kind::Arg(pairs) => pairs.iter().map(|pair| pair.name.value.as_str()).collect(),
        Kind::Onbuild(onbuild) => names(&onbuild.instruction),
        _ => Vec::new(),
    }
}

/// Arguments that mean something without being declared (A6.9 to A6.11).
fn is_predefined(name: &str) -> bool {
    const PLATFORM: &[&str] = &["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT"];
    let platform = name.strip_prefix("BUILD").or(name.strip_prefix("TARGET"));
    options::PROXIES.contains(&name.to_lowercase().as_str())
        || platform.is_some_and(|rest| PLATFORM.contains(&rest))
        || name.starts_with("BUILDKIT_")
        || matches!(name, "SOURCE_DATE_EPOCH" | "TARGETSTAGE")
}
