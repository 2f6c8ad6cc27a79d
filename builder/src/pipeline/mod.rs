//! A build from beginning to end: the calls of all stages in order.

mod check;
mod contexts;
mod record;
mod run;
mod shell;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::dockerignore::{IgnoreError, IgnoreFile};
use kiln_grammar::lint;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::{Reference, ReferenceError};
use kiln_registry::spec::Platform;

use crate::context::ContextError;
use crate::event::{Event, Observer};
use crate::image::{self, ImageError};
use crate::lower::{self, BaseImage, BaseImages, LAYOUT, LowerOptions, Plan, Wanted};
use crate::runtime::{Cancel, RuntimeError};
use crate::schedule::{CachePolicy, Failure, Schedule};
use crate::snapshot::{Active, Backend, Snapshots, now};
use crate::step::secrets::SecretSource;
use crate::step::{
    LayoutImage, RemoteImage, ResolveError, Settings, SourceImage, StepError, Worker,
};
use crate::store::{Store, StoreError};

use record::{Failed, Numbers, Record};

pub use check::{CheckRequest, Checked, check};
pub use run::{Invocation, RunError, Volume, run};
pub use shell::{Shell, ShellError, Which, image_shell};

/// Longest Dockerfile that is read, bytes.
const DOCKERFILE_LIMIT: u64 = 64 << 20;

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
    /// Whether remembered results are used.
    pub cache: CachePolicy,
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

/// Builds an image, stores it and gives it its names.
///
/// # Errors
/// [`BuildError`]; what was finished before stays in the cache, everything else is gone.
pub async fn build(
    mut request: Request,
    store: Arc<Store>,
    client: Client,
    observer: Observer,
    cancel: Cancel,
) -> Result<Outcome, BuildError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BuildError::NeedsRoot);
    }
    let context = open_folder(&request.context)?;
    let named = contexts::folders(&request.options.contexts)?;
    let (path, source) = read_dockerfile(&request.dockerfile, &request.context)?;
    let wrong = |diagnostics| BuildError::Dockerfile {
        source_file: source.clone(),
        diagnostics,
    };
    let file = kiln_grammar::parse(&source.text).map_err(wrong)?;
    let settings = lint_settings(&file, &request.options).map_err(|error| wrong(vec![error]))?;
    let ignore = read_ignore_file(path.as_deref(), &request.context)?.map(Arc::new);
    request.options.ignore.clone_from(&ignore);
    // Most mistakes show without the base images: no reason to fetch anything first.
    let early = lower::check(&file, &request.options, &BaseImages::default(), false).refusals();
    if !early.is_empty() {
        return Err(wrong(early));
    }

    let mut resolver = Resolver {
        client: &client,
        store: &store,
        cancel: &cancel,
        pull: request.pull,
        images: BTreeMap::new(),
    };
    let bases = resolver
        .resolve_all(&file, &source, &request.options)
        .await?;
    let images = resolver.images;
    let plan = lower::lower(&file, &request.options, &bases).map_err(wrong)?;
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

    let main = contexts::Main {
        folder: &context,
        ignore,
        ignore_file: ignore_file(path.as_deref(), &context),
    };
    let contexts = contexts::open(&store, &plan, main, &named)?;
    let (observer, numbers) = Numbers::of(observer);
    let networks = request.settings.networks(observer.clone());
    let worker = Arc::new(Worker {
        snapshots: Snapshots::with(Arc::clone(&store), request.backend),
        store: Arc::clone(&store),
        runtime: request.settings.core(),
        networks,
        contexts,
        client,
        images,
        observer: observer.clone(),
        cancel: cancel.clone(),
        settings: request.settings.clone(),
        failed: Mutex::default(),
        points: OnceLock::new(),
    });
    let exported = plan.layers().collect();
    let mut schedule = Schedule::new(
        plan.graph.clone(),
        Arc::clone(&worker),
        request.cache,
        exported,
    );
    let finished = schedule.run(plan.root).await;
    let keep = Keep {
        worker: &worker,
        plan: &plan,
        schedule: &schedule,
        numbers: &numbers,
        secrets: &request.secrets,
    };
    let kept = keep.record(finished.as_ref().err());
    let finished = finished.map_err(|failure| step_error(failure, &plan, &source, kept))?;
    // A stat cache that cannot be written costs time in the next build, no more.
    if let Err(error) = worker.contexts.save_stat_caches() {
        observer.tell(Event::Note {
            step: None,
            text: error.to_string(),
        });
    }

    let image = image::assemble(&store, &plan, &finished.layers, request.epoch)?;
    for tag in &request.tags {
        store.tag(tag, &image)?;
    }
    Ok(Outcome {
        image,
        source,
        warnings,
    })
}

/// What the Dockerfile, or the build argument that replaces its word, wants to hear of (A2.7).
fn lint_settings(file: &Dockerfile, options: &LowerOptions) -> Result<lint::Settings, Diagnostic> {
    lint::Settings::of(file, options.build_arg("BUILDKIT_DOCKERFILE_CHECK"))
}

fn open_folder(path: &Path) -> Result<PathBuf, BuildError> {
    let context = fs::canonicalize(path).map_err(|_| BuildError::NoContext(path.to_owned()))?;
    if context.is_dir() {
        Ok(context)
    } else {
        Err(BuildError::ContextNotFolder(path.to_owned()))
    }
}

/// The Dockerfile's path, where it has one, and its text.
fn read_dockerfile(
    dockerfile: &DockerfileFrom,
    context: &Path,
) -> Result<(Option<PathBuf>, Source), BuildError> {
    let path = match dockerfile {
        DockerfileFrom::Text(text) => {
            return Ok((
                None,
                Source {
                    name: "Dockerfile".to_owned(),
                    text: text.clone(),
                },
            ));
        }
        DockerfileFrom::Path(path) => path.clone(),
        DockerfileFrom::Context => {
            // What users know is `open Dockerfile`, without `./` (A18.1).
            let context = context.strip_prefix(".").unwrap_or(context);
            let usual = context.join("Dockerfile");
            let fallback = context.join("dockerfile");
            if !usual.exists() && fallback.exists() {
                fallback
            } else {
                usual
            }
        }
    };
    let text = read_text(&path).map_err(|source| BuildError::NoDockerfile {
        path: path.clone(),
        source,
    })?;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok((Some(path), Source { name, text }))
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|_| {
        let message = "the file is not UTF-8";
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, DOCKERFILE_LIMIT), &mut bytes)?;
    if bytes.len() as u64 == DOCKERFILE_LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The ignore file beside the Dockerfile, else that of the context (A14.1).
fn ignore_file(dockerfile: Option<&Path>, context: &Path) -> Option<PathBuf> {
    let specific = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    let mut files = specific.into_iter().chain([context.join(".dockerignore")]);
    files.find(|path| path.exists())
}

fn read_ignore_file(
    dockerfile: Option<&Path>,
    context: &Path,
) -> Result<Option<IgnoreFile>, BuildError> {
    let Some(path) = ignore_file(dockerfile, context) else {
        return Ok(None);
    };
    let bytes = match read_bytes(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(BuildError::NoIgnoreFile { path, source }),
    };
    // A name that is no text is matched as if its odd bytes were the replacement character, so the
    // pattern for it may be read like that too.
    let parsed = IgnoreFile::parse(&String::from_utf8_lossy(&bytes));
    let parsed = parsed.map_err(|source| BuildError::IgnoreFile { path, source })?;
    Ok(Some(parsed))
}

/// Keeps what a shell in a step needs later.
struct Keep<'a> {
    worker: &'a Worker,
    plan: &'a Plan,
    schedule: &'a Schedule,
    numbers: &'a Numbers,
    secrets: &'a [SecretSource],
}

impl Keep<'_> {
    /// Records how a build ended; one that was cancelled leaves the record of the build before. Says
    /// whether what a failed process had changed is kept: that costs a rename. Nothing of it makes a
    /// build fail.
    fn record(&self, failure: Option<&Failure>) -> bool {
        if matches!(failure, Some(failure) if matches!(failure.error, StepError::Cancelled)) {
            return false;
        }
        let left = failure.and_then(|failure| {
            let failed = self.worker.failed.lock();
            let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
            failed.remove(&failure.vertex.index())
        });
        let files = left.as_ref().map(Active::upper);
        let name = files.as_deref().and_then(Path::file_name);
        let failed = failure.map(|failure| Failed {
            step: failure.vertex.index(),
            changes: name.map(|name| name.to_string_lossy().into_owned()),
        });
        let kept = files.is_some();
        let record = Record::new(
            &self.plan.graph,
            self.schedule,
            self.numbers,
            self.secrets,
            &self.worker.settings,
            failed,
        );
        match self
            .worker
            .store
            .set_last(&record.encode(), files.as_deref())
        {
            Ok(()) => kept,
            Err(error) => {
                self.worker.observer.tell(Event::Note {
                    step: None,
                    text: format!("no shell can be opened in the steps of this build: {error}"),
                });
                false
            }
        }
    }
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

/// Finds out what base images are.
struct Resolver<'a> {
    client: &'a Client,
    store: &'a Store,
    cancel: &'a Cancel,
    pull: bool,
    images: BTreeMap<Digest, SourceImage>,
}

impl Resolver<'_> {
    /// Resolves until the Dockerfile, and the triggers of its base images, want no more.
    async fn resolve_all(
        &mut self,
        file: &Dockerfile,
        source: &Source,
        options: &LowerOptions,
    ) -> Result<BaseImages, BuildError> {
        let mut bases = BaseImages::default();
        loop {
            let wanted = lower::wanted(file, options, &bases).map_err(|diagnostics| {
                BuildError::Dockerfile {
                    source_file: source.clone(),
                    diagnostics,
                }
            })?;
            if wanted.is_empty() {
                return Ok(bases);
            }
            for want in wanted {
                let base = self.resolve(&want).await.map_err(|error| match error {
                    BaseError::Cancelled => BuildError::Cancelled,
                    error => BuildError::Resolve {
                        name: want.reference.clone(),
                        context: contexts::of_image(options, &want.reference),
                        place: Box::new((source.clone(), want.span)),
                        near: near_stage(file, &want.reference),
                        source: error,
                    },
                })?;
                bases.insert(want.reference, want.platform, base);
            }
        }
    }

    /// Resolves one image: in the store, unless it has to be asked for, else in its registry.
    async fn resolve(&mut self, want: &Wanted) -> Result<BaseImage, BaseError> {
        if let Some(place) = want.reference.strip_prefix(LAYOUT) {
            let image = LayoutImage::resolve(place, &want.platform)?;
            let base = BaseImage {
                name: want.reference.clone(),
                config_digest: image.manifest.value.config.digest,
                config: image.config.clone(),
            };
            let image = SourceImage::Layout(Box::new(image));
            self.images.insert(base.config_digest, image);
            return Ok(base);
        }
        let reference = Reference::parse(&want.reference)?;
        if !self.pull
            && let Some(base) = stored(self.store, &reference, &want.platform)?
        {
            return Ok(base);
        }
        let remote = tokio::select! {
            remote = RemoteImage::resolve(self.client, self.store, &reference, &want.platform) => remote?,
            () = self.cancel.cancelled() => return Err(BaseError::Cancelled),
        };
        let base = BaseImage {
            name: reference.to_string(),
            config_digest: remote.resolved.manifest.value.config.digest,
            config: remote.config.clone(),
        };
        let image = SourceImage::Registry(Box::new(remote));
        self.images.insert(base.config_digest, image);
        Ok(base)
    }
}

/// An image of that name and platform in the store. A built image may lie here as snapshots only, a
/// pulled one as blobs; both will do.
fn stored(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Result<Option<BaseImage>, StoreError> {
    let Some(id) = store.named(reference)? else {
        return Ok(None);
    };
    let config = store.config(&id)?;
    let fits = config.os == platform.os && config.architecture == platform.architecture;
    Ok(fits.then(|| BaseImage {
        name: reference.to_string(),
        config_digest: id,
        config,
    }))
}

/// A stage whose name is like that of an image.
fn near_stage(file: &Dockerfile, image: &str) -> Option<String> {
    let names = file.stages.iter().filter_map(|stage| stage.name.as_ref());
    suggest(image, names.map(|name| name.value.as_str())).map(ToOwned::to_owned)
}

/// Time of a build: SOURCE_DATE_EPOCH where it is set, else now, seconds since 1970.
#[must_use]
pub fn build_time(epoch: Option<i64>) -> i64 {
    epoch.unwrap_or_else(now)
}
