//! What a build or transfer tells whoever watches it.

mod mask;

use std::sync::Arc;

use kiln_registry::digest::Digest;

pub use mask::masked;

/// Which of a process's streams some output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Something that happened. Steps are numbered in the order in which they are first mentioned.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A step begins.
    Started {
        /// The step.
        step: usize,
        /// Its name, for example `[2/5] RUN make`.
        name: String,
    },
    /// The step's result was in the cache.
    Cached {
        /// The step.
        step: usize,
        /// Its name.
        name: String,
    },
    /// The step has to be executed, and this is why; told once, beside its begin.
    Miss {
        /// The step.
        step: usize,
        /// The reason, one line.
        reason: String,
    },
    /// What the cache knew of each step, at the end of the build: a JSON document.
    Explained(String),
    /// The step's process printed something.
    Output {
        /// The step.
        step: usize,
        /// Which stream.
        stream: Stream,
        /// What; not necessarily whole lines.
        bytes: Vec<u8>,
    },
    /// The step is done.
    Done {
        /// The step.
        step: usize,
        /// How long it took, seconds.
        seconds: f64,
    },
    /// The step failed; the error itself travels another way.
    Failed {
        /// The step.
        step: usize,
        /// How long it took, seconds.
        seconds: f64,
    },
    /// The step was ended because another one failed, or the whole build was cancelled.
    Cancelled {
        /// The step.
        step: usize,
    },
    /// A remark on a step or, without one, on the whole.
    Note {
        /// The step.
        step: Option<usize>,
        /// The remark, one line.
        text: String,
    },
    /// A blob is being moved.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Its size, bytes.
        size: u64,
        /// What happens to it.
        state: BlobState,
    },
}

/// What happens to a blob that is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// Its turn has come.
    Started,
    /// It goes on where an earlier process ended: so many bytes are there.
    Resumed(u64),
    /// So many bytes are there.
    Bytes(u64),
    /// Its bytes arrived, or were sent.
    Done,
    /// The other side had it already.
    Existed,
    /// The registry linked it from this repository.
    Mounted(String),
    /// It is tried again after a wait.
    Retry {
        /// The wait, milliseconds.
        wait: u64,
        /// Why.
        reason: String,
    },
}

/// Who watches.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(Event) + Send + Sync>);

impl Observer {
    /// An observer that calls a function.
    pub fn new(watch: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(watch))
    }

    /// An observer that does not look.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(|_| ())
    }

    /// Tells of an event.
    pub fn tell(&self, event: Event) {
        (self.0)(event);
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}
