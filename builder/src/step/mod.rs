//! Steps: the execution of one vertex, on top of the results of its inputs.

mod adopt;
pub mod agent;
pub mod copy;
mod fetch;
mod foreground;
pub mod git;
mod image;
mod layout;
mod mask;
mod mkdir;
mod mounts;
mod opaque;
mod run;
pub mod secrets;
mod select;
mod shown;
mod unpack;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use kiln_registry::blob::BlobError;
use kiln_registry::client::Client;
use kiln_registry::credentials::SecretBytes;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ChainId, DiffId};

use crate::cache::StackLayer;
use crate::cache::mounts::SavedMounts;
use crate::context::key::KeyError;
use crate::context::{ContextError, Contexts};
use crate::event::Observer;
use crate::graph::Op;
use crate::layer::{Following, PackError, UnpackError};
use crate::runtime::cgroup::{CgroupError, MemoryKill};
use crate::runtime::network::{Demand, HostEntry, NetworkError, Pool, SELF};
use crate::runtime::{Cancel, Exit, Isolation, Native, OciProgram, RuntimeError, Seccomp};
use crate::snapshot::{Active, SnapshotError, SnapshotId, Snapshots};
use crate::store::{Store, StoreError, TempDir};
use crate::sys::users::UserError;

pub use fetch::fetch;
pub use foreground::{Foreground, foreground};
pub use image::{
    RemoteImage, ResolveError, SourceImage, blob_event, open_layer, remove_altered, tree,
};
pub use layout::LayoutImage;
pub use select::Selections;
pub use shown::Inputs;

/// What steps need to do their work.
#[derive(Debug)]
pub struct Worker {
    /// Where everything lies.
    pub store: Arc<Store>,
    /// Its snapshots.
    pub snapshots: Snapshots,
    /// Runs processes.
    pub runtime: Native,
    /// The build context and the named ones.
    pub contexts: Contexts,
    /// Fetches images and URLs.
    pub client: Client,
    /// Images that were resolved but whose layers may not be here yet, by config digest.
    pub images: BTreeMap<Digest, SourceImage>,
    /// Who watches.
    pub observer: Observer,
    /// Ends everything early.
    pub cancel: Cancel,
    /// What the machine adds to each process.
    pub settings: Settings,
    /// What processes that failed have left, by the index of their vertex.
    pub failed: Mutex<BTreeMap<usize, Active>>,
    /// Networks for processes that want the default one.
    pub networks: Pool,
    /// Contents of cache mounts that are saved elsewhere.
    pub saved: Option<Arc<SavedMounts>>,
    /// Layers of mount points that the steps of this build share; made with the first of them.
    pub points: OnceLock<TempDir>,
}

/// What the machine, not the Dockerfile, gives to steps. Nothing of it is in a cache key.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The host's certificate authorities (PEM bundle), shown to `RUN` steps.
    pub host_ca: Option<PathBuf>,
    /// Proxy variables that no `ARG` declares (A6.9).
    pub proxies: Vec<(String, String)>,
    /// What the names of extra hosts stand for (`--add-host`).
    pub hosts: Vec<HostEntry>,
    /// The control group that those of steps are made in (`--cgroup-parent`).
    pub cgroup_parent: Option<String>,
    /// Whether the default network has to be one of its own (`--network=pasta`).
    pub network: Demand,
    /// Secrets by their ids (`--secret`).
    pub secrets: BTreeMap<String, SecretBytes>,
    /// Agents of ssh by their ids (`--ssh`).
    pub agents: BTreeMap<String, agent::Agent>,
    /// The system calls that `RUN` steps may make (`--security-opt seccomp=`).
    pub seccomp: Seccomp,
    /// The runtime that `RUN` steps run in, where it is not kiln's own (`--runtime`).
    pub runtime: Option<OciProgram>,
    /// Time that files made by the builder itself get, seconds since 1970.
    pub time: i64,
    /// How far steps are kept apart from the host.
    pub isolation: Isolation,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The process ended with another code than 0.
    #[error("process \"{command}\" did not complete successfully: exit code: {code}")]
    Exit {
        /// The command.
        command: String,
        /// Its exit code.
        code: i32,
        /// Its last lines of output.
        log: Vec<String>,
    },
    /// The process was killed.
    #[error("process \"{command}\" was killed by signal {signal}{}", if *.signal == 9 { " (out of memory?)" } else { "" })]
    Signal {
        /// The command.
        command: String,
        /// The signal.
        signal: i32,
        /// Its last lines of output.
        log: Vec<String>,
    },
    /// A secret that the step cannot do without was not given (B2).
    #[error("secret {0}: not found")]
    NoSecret(String),
    /// An ssh agent that the step cannot do without was not given (B2).
    #[error("no SSH key {0:?} forwarded from the client")]
    NoAgent(String),
    /// The value of a secret cannot be that of a variable.
    #[error("secret {0}: a value with a zero byte cannot be in the environment")]
    SecretInEnvironment(String),
    /// What a cache mount is to begin with is no directory.
    #[error("a cache mount begins with a directory, and `{0}` is none")]
    CacheSeed(String),
    /// The kernel killed a process of the step for want of memory, and the step failed.
    #[error("process \"{command}\" {}killed: {kill}", Ended(*.exit))]
    Memory {
        /// The command.
        command: String,
        /// How it ended.
        exit: Exit,
        /// What the kernel did.
        kill: MemoryKill,
        /// Its last lines of output.
        log: Vec<String>,
    },
    /// Its limits cannot be kept.
    #[error("{0}")]
    Cgroup(#[from] CgroupError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The step would have to be executed, and the user forbids it (`--require-cached`).
    #[error("not in the cache, as --require-cached demands: {0}")]
    NotCached(String),
    /// The process could not be started.
    #[error("{0}")]
    Runtime(#[source] RuntimeError),
    /// There is no network of its own for the process, and the user demands one.
    #[error("--network=pasta cannot be had")]
    Network(#[from] NetworkError),
    /// Files could not be selected or copied.
    #[error("{0}")]
    Copy(#[from] copy::CopyError),
    /// What is copied has no content key.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The build context could not be read.
    #[error("{0}")]
    Context(#[from] ContextError),
    /// A user or group is not known in the image.
    #[error("{0}")]
    User(#[from] UserError),
    /// A layer could not be unpacked.
    #[error("unpacking layer {0}")]
    Unpack(DiffId, #[source] UnpackError),
    /// An unpacked layer is not what the image's config says.
    #[error("layer {expected} of the image unpacks to {actual}: the image is damaged")]
    DiffId {
        /// What the config says.
        expected: DiffId,
        /// What the layer's bytes are.
        actual: DiffId,
    },
    /// A layer cannot be unpacked because it does not come; why, is for whoever fetches it to say.
    #[error("layer {0} was not fetched")]
    NotFetched(DiffId),
    /// A layer could not be packed.
    #[error("{0}")]
    Pack(#[from] PackError),
    /// A URL could not be fetched.
    #[error("failed to fetch `{url}`")]
    Fetch {
        /// The URL, without credentials.
        url: String,
        /// Why.
        source: fetch::FetchError,
    },
    /// The files of a git repository could not be had.
    #[error("failed to fetch git repository `{url}`")]
    Git {
        /// The repository, without credentials.
        url: String,
        /// Why.
        source: git::GitError,
    },
    /// An image could not be resolved.
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    /// A layer of an image could not be fetched.
    #[error("fetching the layers of `{0}`")]
    Blob(String, #[source] BlobError),
    /// A directory could not be made or read.
    #[error("{action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The snapshot could not be made or read.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A thread of kiln died; a bug.
    #[error("a worker thread ended without a result")]
    Thread,
}

impl StepError {
    /// What may help the user, apart from the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSecret(id) => Some(format!(
                "give it with `--secret id={id},src=FILE` or `--secret id={id},env=VARIABLE`"
            )),
            Self::NoAgent(id) => Some(format!("give it with `--ssh {id}`")),
            Self::NotCached(_) => Some(
                "build it once without --require-cached, or import a cache that has it".to_owned(),
            ),
            Self::SecretInEnvironment(_) => {
                Some("mount it as a file: target= in the place of env=".to_owned())
            }
            _ => None,
        }
    }
}

/// How a process ended one of whose processes was killed: by that itself, which a shell says with
/// 137, or because it could not do without.
struct Ended(Exit);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Exit::Signal(_) | Exit::Code(137) => f.write_str("was "),
            Exit::Code(code) => write!(
                f,
                "did not complete successfully: exit code: {code}: one of its processes was "
            ),
        }
    }
}

impl StepError {
    /// Whether the step's process has run, and failed.
    #[must_use]
    pub fn has_run(&self) -> bool {
        matches!(
            self,
            Self::Exit { .. } | Self::Signal { .. } | Self::Memory { .. }
        )
    }
}

impl From<RuntimeError> for StepError {
    fn from(error: RuntimeError) -> Self {
        if matches!(error, RuntimeError::Cancelled) {
            Self::Cancelled
        } else {
            Self::Runtime(error)
        }
    }
}

impl Settings {
    /// Networks for steps with these settings, whose keeper is kiln itself.
    #[must_use]
    pub fn networks(&self, observer: Observer) -> Pool {
        let pool = Pool::new(self.network, PathBuf::from(SELF), observer);
        match self.isolation {
            Isolation::Chroot => pool.without("the isolation `chroot` has no other"),
            Isolation::Root | Isolation::Rootless(_) => pool,
        }
    }

    /// The runtime core that is asked for.
    #[must_use]
    pub fn core(&self) -> Native {
        match &self.runtime {
            None => Native::default(),
            Some(runtime) => Native::default().with_runtime(runtime.clone()),
        }
    }

    fn time(&self) -> SystemTime {
        fetch::system_time(self.time)
    }
}

/// A layer that a step has made.
#[derive(Debug)]
pub struct Made {
    /// The layer.
    pub layer: SnapshotId,
    /// Its digest, where that is being taken already.
    pub following: Option<Following>,
}

impl From<SnapshotId> for Made {
    fn from(layer: SnapshotId) -> Self {
        Self {
            layer,
            following: None,
        }
    }
}

/// Executes a vertex that puts a layer on a stack; `follow` says that its digest will be wanted. Blocks.
///
/// # Errors
/// [`StepError`]; nothing is left of the layer then.
pub fn execute(
    worker: &Worker,
    inputs: &Inputs<'_>,
    root: &Stack,
    selections: Option<&Selections>,
    follow: bool,
) -> Result<Made, StepError> {
    let stack = worker.unpacked(root)?;
    let active = worker.snapshots.prepare()?;
    let step = inputs.id.index();
    let (measured, following) = match (&inputs.graph.vertex(inputs.id).op, selections) {
        (Op::Run(op), _) => {
            if let Err(error) = run::execute(worker, op, inputs, &stack, &active) {
                worker.keep_failed(step, active, &error);
                return Err(error);
            }
            (None, None)
        }
        (Op::Mkdir(op), _) => {
            mkdir::execute(worker, op, &stack, &active.upper())?;
            (None, None)
        }
        (Op::Copy(_), Some(selections)) => {
            selections.copy(worker, &stack, step, &active, follow)?
        }
        // The scheduler selects before it copies, and has its own ways for all other operations.
        (op, _) => unreachable!("{op:?} makes no layer on a stack"),
    };
    let layer = match measured {
        Some(measured) => worker.snapshots.commit_measured(active, measured)?,
        None => worker.snapshots.commit(active)?,
    };
    Ok(Made { layer, following })
}

impl Worker {
    /// Keeps what a process that failed has left until the end of the build, for whoever wants to know why.
    fn keep_failed(&self, step: usize, left: Active, error: &StepError) {
        if error.has_run() {
            let failed = self.failed.lock();
            let mut failed = failed.unwrap_or_else(PoisonError::into_inner);
            failed.insert(step, left);
        }
    }

    /// Where the runtime keeps layers of mount points.
    fn mount_points(&self) -> Result<PathBuf, StepError> {
        let points = match self.points.get() {
            Some(points) => points,
            None => {
                // Of two steps that come here at once, the slower one's folder goes again.
                let new = self.store.temporary()?;
                self.points.get_or_init(|| new)
            }
        };
        Ok(points.path().to_owned())
    }

    /// The snapshots of a stack, with layers of images unpacked where they are not yet. Blocks.
    ///
    /// # Errors
    /// When a layer is missing or damaged.
    pub fn unpacked(&self, stack: &Stack) -> Result<Vec<SnapshotId>, StepError> {
        image::unpacked(self, stack)
    }

    /// Whether a layer of a stack's image is being fetched.
    #[must_use]
    pub fn is_coming(&self, stack: &Stack) -> bool {
        unpack::are_coming(self, &stack.image)
    }
}

/// The result of a vertex: layers, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Diff ids of the layers that are an image's; they are the lowest.
    pub image: Vec<DiffId>,
    /// The layers made by steps, on top of those.
    pub built: Vec<SnapshotId>,
}

impl Stack {
    /// The stack as the cache identifies it.
    #[must_use]
    pub fn identity(&self) -> Vec<StackLayer> {
        let image = ChainId::of(&self.image)
            .last()
            .copied()
            .map(StackLayer::Image);
        image
            .into_iter()
            .chain(self.built.iter().cloned().map(StackLayer::Built))
            .collect()
    }

    /// The stack with one more layer.
    #[must_use]
    pub fn with(mut self, layer: SnapshotId) -> Self {
        self.built.push(layer);
        self
    }
}
