//! From a parsed Dockerfile to a [`Plan`]: pure, text and image configs in, a graph out.
//!
//! [`wanted`] names the images that have to be resolved first; call it until it names none,
//! because an image may bring `ONBUILD` triggers that name others. Then [`lower`] makes the plan.
//! [`check`] goes the same way with what is known of the images, perhaps nothing, for the sake of
//! what there is to say about the file. Mistakes are gathered: one does not hide the next.
//!
//! - `globals` and `scope` know what variables are worth, `stages` what names stand for and which
//!   stages the target needs;
//! - `from` starts a stage, `stage` walks its instructions, `run`, `mounts`, `copy` and `meta`
//!   lower them, `history` words them;
//! - `onbuild` reads triggers, `frontend` judges `# syntax=`, `advice` holds lints of their own size;
//! - `outline` tells what a Dockerfile takes and offers, without lowering it;
//! - `contexts` are the named contexts of the command line, `git` the addresses of repositories;
//! - `expose`, `signal`, `chmod` and `path` are small languages of their own.

mod advice;
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
mod outline;
mod path;
mod plan;
mod run;
mod scope;
mod signal;
mod stage;
mod stages;

use std::collections::BTreeMap;

use kiln_grammar::ast::{Dockerfile, Instruction, Kind};
use kiln_grammar::diagnostic::{Diagnostic, Severity, suggest};
use kiln_grammar::source::Span;
use kiln_grammar::syntax::MAX_ERRORS;
use kiln_registry::spec::{ImageConfig, Platform};

pub use contexts::{ContextSource, LAYOUT, NamedContext, NamedContextError};
pub use mounts::unused_secrets;
pub use options::{BaseImage, BaseImages, LowerOptions};
pub use outline::{Argument, Need, Outline, Target, outline, targets};
pub use plan::{HistoryEntry, Plan, Wanted};

use crate::graph::Graph;
use scope::Scope;
use stage::{Shared, StageLowering, State};
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
    let mut errors = Vec::new();
    let images = images(file, options, bases, Mode::Build, &mut errors);
    if errors.is_empty() {
        Ok(images)
    } else {
        Err(tidy(errors))
    }
}

/// Names the images that [`check`] would like to know and that are not in `bases` yet, whatever is
/// wrong with the Dockerfile.
#[must_use]
pub fn wanted_to_check(
    file: &Dockerfile,
    options: &LowerOptions,
    bases: &BaseImages,
    whole: bool,
) -> Vec<Wanted> {
    images(
        file,
        options,
        bases,
        Mode::look(options, whole),
        &mut Vec::new(),
    )
}

fn images(
    file: &Dockerfile,
    options: &LowerOptions,
    bases: &BaseImages,
    mode: Mode,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Wanted> {
    let globals = globals(file, options, errors);
    let stages = Stages::resolve(file, options, &globals, &mut Vec::new(), errors);
    let mut images = stages.reach(mode.stages(&stages), bases, errors).images;
    images.retain(|image| bases.get(&image.reference, &image.platform).is_none());
    images
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
    let walk = walk(file, options, bases, Mode::Build);
    if !walk.errors.is_empty() {
        return Err(walk.errors);
    }
    let Some(state) = walk.target else {
        let message = "dockerfile contains no stages to build";
        return Err(vec![Diagnostic::error(message, Span::default())]);
    };
    let mut config = state.config;
    finish(&mut config, options);
    Ok(Plan {
        graph: walk.graph,
        root: state.vertex,
        config,
        base: state.base,
        history: state.history,
        warnings: walk.warnings,
    })
}

/// Finds what there is to say about a Dockerfile as far as its images are known: mistakes that no
/// image can mend, and warnings. Without a target all stages are looked at if `whole`, else those
/// that the last one needs.
#[must_use]
pub fn check(
    file: &Dockerfile,
    options: &LowerOptions,
    bases: &BaseImages,
    whole: bool,
) -> Findings {
    let walk = walk(file, options, bases, Mode::look(options, whole));
    Findings {
        errors: walk.errors,
        warnings: walk.warnings,
    }
}

/// What there is to say about a Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What keeps it from being built, in the order of the file, at most [`MAX_ERRORS`].
    pub errors: Vec<Diagnostic>,
    /// What is worth a word.
    pub warnings: Vec<Diagnostic>,
}

impl Findings {
    /// What a build would refuse: the errors, and what kiln cannot do yet.
    #[must_use]
    pub fn refusals(self) -> Vec<Diagnostic> {
        let unsupported = |warning: &Diagnostic| warning.rule == Some(stage::UNSUPPORTED);
        let unsupported = self.warnings.into_iter().filter(unsupported);
        let refusals = unsupported.map(|warning| Diagnostic::error(warning.message, warning.span));
        tidy(self.errors.into_iter().chain(refusals).collect())
    }
}

/// What a walk through the stages is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// To build: all images are known, and what kiln cannot do is an error.
    Build,
    /// To look: an unknown image may hold anything.
    Look {
        /// Whether stages are looked at that the target does not need.
        whole: bool,
    },
}

impl Mode {
    fn look(options: &LowerOptions, whole: bool) -> Self {
        let whole = whole && options.target.is_none();
        Self::Look { whole }
    }

    /// The stages that are gone through, besides those that they need.
    fn stages(self, stages: &Stages<'_>) -> Vec<usize> {
        match self {
            Self::Look { whole: true } => (0..stages.list.len()).collect(),
            _ => vec![stages.target],
        }
    }
}

/// What a walk comes to.
struct Walk {
    graph: Graph,
    /// The state of the target stage.
    target: Option<State>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

fn walk(file: &Dockerfile, options: &LowerOptions, bases: &BaseImages, mode: Mode) -> Walk {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    match frontend::check(file, options) {
        Some(error) if error.severity == Severity::Error => errors.push(error),
        warning => warnings.extend(warning),
    }
    let globals = globals(file, options, &mut errors);
    let stages = Stages::resolve(file, options, &globals, &mut warnings, &mut errors);
    let reached = stages.reach(mode.stages(&stages), bases, &mut errors);
    let mut shared = Shared {
        options,
        bases,
        stages: &stages,
        globals: &globals,
        escape: file.directives.escape,
        looking: mode != Mode::Build,
        graph: Graph::default(),
        errors,
        warnings,
        done: BTreeMap::new(),
        declared: Vec::new(),
        size: 0,
        guesses: 0,
    };
    let mut triggers = Vec::new();
    for index in reached.stages {
        // What is wrong with them was said when the stage was reached.
        let fired = stages.triggers(index, bases, &mut Vec::new());
        triggers.extend(fired.into_iter().map(|trigger| trigger.instruction));
        StageLowering::run(&mut shared, index);
    }
    let unknown = unconsumed(file, &shared);
    shared.warnings.extend(unknown);
    let unused = contexts::unused(file, &options.contexts, &stages, &triggers);
    shared.warnings.extend(unused);
    Walk {
        target: shared.done.remove(&stages.target),
        graph: shared.graph,
        errors: tidy(shared.errors),
        warnings: shared.warnings,
    }
}

/// Errors in the order of the file, each once.
fn tidy(mut errors: Vec<Diagnostic>) -> Vec<Diagnostic> {
    errors.sort_by(|one, other| (one.span, &one.message).cmp(&(other.span, &other.message)));
    errors.dedup();
    errors.truncate(MAX_ERRORS);
    errors
}

fn globals(file: &Dockerfile, options: &LowerOptions, errors: &mut Vec<Diagnostic>) -> Scope {
    let build_arg = |name: &str| options.build_arg(name).map(str::to_owned);
    globals::evaluate(file, options, &build_arg, errors)
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
        let message = if name.starts_with("BUILDKIT_") {
            format!("build argument `{name}` means nothing to kiln and has no effect")
        } else {
            format!("build argument `{name}` is not declared by any ARG and has no effect")
        };
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
        || matches!(
            name,
            "BUILDKIT_SYNTAX"
                | "BUILDKIT_DOCKERFILE_CHECK"
                | run::HOSTNAME
                | mounts::NAMESPACE
                | "BUILDKIT_BUILD_NAME"
                | "SOURCE_DATE_EPOCH"
                | "TARGETSTAGE"
        )
}
