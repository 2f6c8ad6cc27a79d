//! A build from beginning to end: the calls of all stages in order.

mod check;
mod contexts;
mod files;
mod record;
mod resolve;
mod rules;
mod run;
mod share;
mod shell;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::dockerignore::IgnoreError;
use kiln_grammar::lint;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::{Reference, ReferenceError};

use crate::cache::mounts::SavedMounts;
use crate::cache::remote::RemoteError;
use crate::cache::remote::options::{CacheFrom, CacheMounts, CacheTo};
use crate::context::ContextError;
use crate::event::{Event, Observer};
use crate::image::{self, ImageError};
use crate::lower::{self, BaseImages, LowerOptions, Plan};
use crate::runtime::{Cancel, RuntimeError};
use crate::schedule::{Failure, Forecast, Schedule};
use crate::snapshot::{Backend, Snapshots, now};
use crate::step::secrets::SecretSource;
use crate::step::{ResolveError, Settings, StepError, Worker};
use crate::store::{Store, StoreError};

use files::{ignore_file, open_folder, read_dockerfile, read_ignore_file};
use record::{Keep, Numbers};
use resolve::Resolver;
use share::{imports, saved_mounts, share, share_unfinished, sharing};

pub use check::{CheckRequest, Checked, check};
pub use rules::Wishes;
pub use run::{Invocation, RunError, Volume, run};
pub use share::Shared;
pub use shell::{Shell, ShellError, Which, image_shell};

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Request {
    /// Folder of the build context.
    pub context: PathBuf,
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileFrom,
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// What lowering is told.
    pub options: LowerOptions,
    /// Which steps are executed, and which must not be.
    pub wishes: Wishes,
    /// Whether base images are asked for in their registry even when they are here (`--pull`).
    pub pull: bool,
    /// What the machine gives to `RUN` steps.
    pub settings: Settings,
    /// Where the secrets among the settings came from, for a shell in a step later.
    pub secrets: Vec<SecretSource>,
    /// How stacks of layers become file systems.
    pub backend: Backend,
    /// Time that replaces all times of this build (C11.1), seconds since 1970.
    pub epoch: Option<i64>,
    /// Caches besides the store's (`--cache-from`).
    pub cache_from: Vec<CacheFrom>,
    /// Where the cache of this build goes (`--cache-to`).
    pub cache_to: Vec<CacheTo>,
    /// Where contents of cache mounts come from and go to (`--cache-mounts`).
    pub cache_mounts: Option<CacheMounts>,
}

/// Where a Dockerfile comes from.
#[derive(Clone, Debug)]
pub enum DockerfileFrom {
    /// `Dockerfile` or, where there is none, `dockerfile` in the context (A14.8).
    Context,
    /// A file, inside the context or not (A18.2).
    Path(PathBuf),
    /// Text that was given.
    Text(String),
}

/// A finished build.
#[derive(Debug)]
pub struct Outcome {
    /// The image's id.
    pub image: Digest,
    /// The Dockerfile that was read.
    pub source: Source,
    /// What is worth a word.
    pub warnings: Vec<Diagnostic>,
    /// The cache, where it is shared beyond the store.
    pub shared: Option<Shared>,
    /// The cache mounts, where they are.
    pub mounts: Option<Arc<SavedMounts>>,
}

/// A build that failed.
#[derive(Debug)]
pub struct Unfinished {
    /// Why.
    pub error: BuildError,
    /// The cache of the steps that were done before, where it is exported.
    pub shared: Option<Shared>,
}

impl From<BuildError> for Unfinished {
    fn from(error: BuildError) -> Self {
        Self {
            error,
            shared: None,
        }
    }
}

/// A Dockerfile as it was read.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// How to name it in messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// This user may not do what a build needs.
    #[error(
        "building needs root: without it neither owners of files nor sandboxes can be made yet"
    )]
    NeedsRoot,
    /// The build context is not there.
    #[error("path \"{}\" not found", .0.display())]
    NoContext(PathBuf),
    /// The build context is not a folder.
    #[error("unable to prepare context: \"{}\" is not a directory", .0.display())]
    ContextNotFolder(PathBuf),
    /// A named context cannot be used.
    #[error("in {label}")]
    NamedContext {
        /// Which one, and what it is.
        label: String,
        /// Why.
        source: Box<Self>,
    },
    /// The Dockerfile cannot be read (A18.1).
    #[error("failed to read dockerfile: open {}", path.display())]
    NoDockerfile {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ignore file cannot be read.
    #[error("cannot read ignore file `{}`", path.display())]
    NoIgnoreFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ignore file is wrong (A14.2).
    #[error("invalid ignore file `{}`", path.display())]
    IgnoreFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: IgnoreError,
    },
    /// The Dockerfile is wrong.
    #[error("the Dockerfile has errors")]
    Dockerfile {
        /// The Dockerfile.
        source_file: Source,
        /// What is wrong with it.
        diagnostics: Vec<Diagnostic>,
    },
    /// A base image could not be resolved.
    #[error("failed to resolve source metadata for `{name}`{}", contexts::of(context.as_ref()))]
    Resolve {
        /// The image.
        name: String,
        /// The named context that says so.
        context: Option<String>,
        /// The Dockerfile, and the instruction that names the image.
        place: Box<(Source, Option<kiln_grammar::source::Span>)>,
        /// A stage that may have been meant.
        near: Option<String>,
        /// Why.
        source: BaseError,
    },
    /// A step failed.
    #[error("{name}")]
    Step {
        /// The step's name.
        name: String,
        /// The Dockerfile, and the instruction of the step.
        place: Box<(Source, Option<kiln_grammar::source::Span>)>,
        /// Whether the store has kept its files, for [`Shell`].
        kept: bool,
        /// Why.
        source: StepError,
    },
    /// A flag names a stage that there is not.
    #[error("{flag} names the stage `{stage}`, which the Dockerfile does not have")]
    NoStage {
        /// The flag.
        flag: &'static str,
        /// The stage.
        stage: String,
    },
    /// The build context could not be opened.
    #[error("{0}")]
    Context(#[from] ContextError),
    /// The image could not be assembled.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The sandbox is not available.
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The cache cannot be shared: an address is none, or the store refused.
    #[error("sharing the cache of this build")]
    Cache(#[source] RemoteError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Why a base image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// It is no valid name.
    #[error("{0}")]
    Reference(#[from] ReferenceError),
    /// Its registry refused, or it is no image.
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Builds an image, stores it and gives it its names. `cancel` is cancelled when a step fails, too.
///
/// # Errors
/// [`Unfinished`]; what was finished before stays in the cache, everything else is gone.
pub async fn build(
    request: Request,
    store: Arc<Store>,
    client: Client,
    observer: Observer,
    cancel: Cancel,
) -> Result<Outcome, Unfinished> {
    let Prepared {
        source,
        mut plan,
        warnings,
        worker,
        numbers,
        mut schedule,
    } = prepare(&request, &store, client, observer, &cancel).await?;
    let observer = worker.observer.clone();
    let finished = schedule.run(plan.root).await;
    let keep = Keep {
        worker: &worker,
        plan: &plan,
        schedule: &schedule,
        numbers: &numbers,
        secrets: &request.secrets,
    };
    let kept = keep.record(finished.as_ref().err());
    if !cancel.is_cancelled() || finished.is_err() {
        rules::record(&schedule, &observer, finished.as_ref().err()).await;
    }
    let finished = match finished {
        Ok(finished) => finished,
        Err(failure) => {
            let error = step_error(failure, &plan, &source, kept);
            let shared = share_unfinished(&error, &mut schedule).await;
            return Err(Unfinished { error, shared });
        }
    };
    save_stat_caches(&worker);

    let shared = share(&request, &mut schedule, &store, &mut plan).await?;
    let image = image::assemble(&store, &plan, &finished.layers, request.epoch);
    let image = image.map_err(BuildError::from)?;
    for tag in &request.tags {
        store.tag(tag, &image).map_err(BuildError::from)?;
    }
    Ok(Outcome {
        image,
        source,
        warnings,
        shared,
        mounts: worker.saved.clone(),
    })
}

/// Says what a build would do: which steps it would execute and why, and what it would fetch.
///
/// # Errors
/// As [`build`], for what shows before a step is executed.
pub async fn forecast(
    request: Request,
    store: Arc<Store>,
    client: Client,
    observer: Observer,
    cancel: Cancel,
) -> Result<Forecast, BuildError> {
    let Prepared {
        source,
        plan,
        worker,
        mut schedule,
        ..
    } = prepare(&request, &store, client, observer, &cancel).await?;
    let forecast = schedule.forecast(plan.root).await;
    schedule.forget_downloads();
    save_stat_caches(&worker);
    forecast.map_err(|failure| step_error(failure, &plan, &source, false))
}

/// Everything that is there before the first step.
struct Prepared {
    source: Source,
    plan: Plan,
    warnings: Vec<Diagnostic>,
    worker: Arc<Worker>,
    numbers: Arc<Numbers>,
    schedule: Schedule,
}

/// Reads and lowers the Dockerfile, resolves its images and opens its contexts.
async fn prepare(
    request: &Request,
    store: &Arc<Store>,
    client: Client,
    observer: Observer,
    cancel: &Cancel,
) -> Result<Prepared, BuildError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BuildError::NeedsRoot);
    }
    let mut options = request.options.clone();
    let context = open_folder(&request.context)?;
    let named = contexts::folders(&request.options.contexts)?;
    let (path, source) = read_dockerfile(&request.dockerfile, &request.context)?;
    let wrong = |diagnostics| BuildError::Dockerfile {
        source_file: source.clone(),
        diagnostics,
    };
    let file = kiln_grammar::parse(&source.text).map_err(wrong)?;
    let settings = lint_settings(&file, &options).map_err(|error| wrong(vec![error]))?;
    let ignore = read_ignore_file(path.as_deref(), &request.context)?.map(Arc::new);
    options.ignore.clone_from(&ignore);
    // Most mistakes show without the base images: no reason to fetch anything first.
    let early = lower::check(&file, &options, &BaseImages::default(), false).refusals();
    if !early.is_empty() {
        return Err(wrong(early));
    }

    // Read while base images are looked up.
    let imports = imports(request, &client, &observer)?;
    let mounts = saved_mounts(request, &client, store, &observer)?;
    let mut resolver = Resolver {
        client: &client,
        store,
        cancel,
        pull: request.pull,
        images: BTreeMap::new(),
    };
    let bases = resolver.resolve_all(&file, &source, &options).await?;
    let images = resolver.images;
    let plan = lower::lower(&file, &options, &bases).map_err(wrong)?;
    let secrets = request.settings.secrets.keys();
    for text in lower::unused_secrets(&file, &plan.graph, secrets) {
        observer.tell(Event::Note { step: None, text });
    }
    let mut warnings = lint::lint(&source.text, &file);
    warnings.extend(plan.warnings.iter().cloned());
    let warnings = settings.filter(&source.text, &file, warnings);
    if let Some(violation) = settings.violation(&file, &warnings) {
        return Err(wrong(warnings.into_iter().chain([violation]).collect()));
    }

    let rules = rules::rules(&request.wishes, &file, &plan.graph, &observer)?;
    let about = rules::about(request, &context, path.as_deref(), &file);
    let main = contexts::Main {
        folder: &context,
        ignore,
        ignore_file: ignore_file(path.as_deref(), &context),
    };
    let contexts = contexts::open(store, &plan, main, &named)?;
    let (observer, numbers) = Numbers::of(observer);
    let networks = request.settings.networks(observer.clone());
    let worker = Arc::new(Worker {
        snapshots: Snapshots::with(Arc::clone(store), request.backend),
        store: Arc::clone(store),
        runtime: request.settings.core(),
        networks,
        contexts,
        client,
        images,
        observer,
        cancel: cancel.clone(),
        settings: request.settings.clone(),
        failed: Mutex::default(),
        saved: mounts,
        points: OnceLock::new(),
    });
    let sharing = sharing(request, &worker, imports)?;
    let (graph, exported) = (plan.graph.clone(), plan.layers().collect());
    let schedule = Schedule::new(graph, Arc::clone(&worker), rules, about, exported);
    let schedule = schedule.sharing(sharing);
    Ok(Prepared {
        source,
        plan,
        warnings,
        worker,
        numbers,
        schedule,
    })
}

/// Keeps the digests of files for the next build.
fn save_stat_caches(worker: &Worker) {
    // A stat cache that cannot be written costs time in the next build, no more.
    if let Err(error) = worker.contexts.save_stat_caches() {
        worker.observer.tell(Event::Note {
            step: None,
            text: error.to_string(),
        });
    }
}

/// What the Dockerfile, or the build argument that replaces its word, wants to hear of (A2.7).
fn lint_settings(file: &Dockerfile, options: &LowerOptions) -> Result<lint::Settings, Diagnostic> {
    lint::Settings::of(file, options.build_arg("BUILDKIT_DOCKERFILE_CHECK"))
}

fn step_error(failure: Failure, plan: &Plan, source: &Source, kept: bool) -> BuildError {
    let vertex = plan.graph.vertex(failure.vertex);
    if matches!(failure.error, StepError::Cancelled) {
        return BuildError::Cancelled;
    }
    let span = vertex.origin.and_then(|origin| origin.span);
    BuildError::Step {
        name: vertex.name.clone(),
        place: Box::new((source.clone(), span)),
        kept,
        source: failure.error,
    }
}

/// Time of a build: SOURCE_DATE_EPOCH where it is set, else now, seconds since 1970.
#[must_use]
pub fn build_time(epoch: Option<i64>) -> i64 {
    epoch.unwrap_or_else(now)
}
