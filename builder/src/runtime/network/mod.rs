//! The default network of steps: a namespace of its own with a way out in user mode, through
//! `pasta`, where that is installed; the host's network otherwise (B3.1).
//!
//! A build has a [`Pool`] of such namespaces, one for each step that runs at the same time; later
//! steps use those of earlier ones, so that starting `pasta` is paid once, and mostly while other
//! things happen. A step cannot change them (it lacks the capability), and its connections end with
//! its processes; one that may is not given back ([`Lease::spoil`]).
//!
//! What a step reaches: all that the host reaches, from the host's addresses, and what listens on
//! these; not what listens on the host's loopback only. Nothing from outside reaches the step.

mod hosts;
mod keeper;
mod pasta;
mod resolver;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use hosts::{HostAddress, HostEntry, HostEntryError, hosts};
pub use keeper::network_main;
pub use resolver::resolv_conf;

use super::Network;
use crate::event::{Event, Observer};
use keeper::Namespace;

/// First argument of the kiln process that keeps a network namespace.
pub const NETWORK_ARGUMENT: &str = "__kiln-network";

/// The running program, as what becomes the keeper of a namespace.
pub const SELF: &str = "/proc/self/exe";

/// How a sandbox sees the machines around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// As the host does.
    Host,
    /// From a network of its own with a way out.
    Own,
    /// Not at all.
    None,
}

/// Why there is no network namespace with a way out.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The program is not there.
    #[error("`pasta` (package passt) is not installed")]
    Missing,
    /// The process that keeps the namespace cannot be started.
    #[error("cannot start the keeper of a network namespace")]
    Keeper(#[source] io::Error),
    /// The namespace cannot be made.
    #[error("cannot make a network namespace")]
    Namespace(#[source] io::Error),
    /// The program ended with an error.
    #[error("`pasta` refuses: {0}")]
    Refused(String),
    /// The level of isolation has none.
    #[error("{0}")]
    Denied(String),
    /// The program did not get ready.
    #[error("`pasta` is not ready after {0} seconds")]
    Slow(u64),
}

/// Whether the host's network will do where there is none with a way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// It will.
    #[default]
    Preferred,
    /// It will not: the user asked for `--network=pasta`.
    Required,
}

/// Network namespaces for the steps of one build.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    demand: Demand,
    /// The program that becomes the keeper of a namespace.
    executable: PathBuf,
    observer: Observer,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Namespace>,
    /// How many there are, or are being started.
    all: usize,
    /// How many are being started ahead of their use.
    starting: usize,
    /// Why steps have the host's network.
    fallback: Option<String>,
    told: bool,
}

impl Pool {
    /// A pool without namespaces. `executable` is a program whose `main` calls [`network_main`] when
    /// [`NETWORK_ARGUMENT`] is its first argument.
    #[must_use]
    pub fn new(demand: Demand, executable: PathBuf, observer: Observer) -> Self {
        Self(Arc::new(Shared {
            demand,
            executable,
            observer,
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Lets there be no namespaces, for this reason.
    #[must_use]
    pub fn without(self, reason: &str) -> Self {
        self.0.lock().fallback = Some(reason.to_owned());
        self
    }

    /// Starts a first namespace, if there is none, without waiting for it: a step will want it soon.
    pub fn warm(&self) {
        let mut state = self.0.lock();
        if state.all > 0 || state.fallback.is_some() {
            return;
        }
        state.all += 1;
        state.starting += 1;
        drop(state);
        let shared = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let started = shared.start();
            let mut state = shared.lock();
            state.starting -= 1;
            shared.settle(&mut state, started);
        });
    }

    /// Gives a network to a step, for as long as the lease lives. Blocks until it is there.
    ///
    /// # Errors
    /// [`NetworkError`] where a network of its own is required and cannot be had.
    pub fn take(&self) -> Result<Lease, NetworkError> {
        let shared = &self.0;
        let mut state = shared.lock();
        loop {
            if let Some(reason) = &state.fallback {
                if shared.demand == Demand::Required {
                    return Err(NetworkError::Denied(reason.clone()));
                }
                shared.tell(&mut state);
                return Ok(Lease::host());
            }
            if let Some(namespace) = state.idle.pop() {
                if namespace.is_alive() {
                    shared.tell(&mut state);
                    return Ok(Lease {
                        namespace: Some(namespace),
                        pool: Some(Arc::clone(shared)),
                        spoiled: false,
                    });
                }
                state.all -= 1;
            } else if state.starting > 0 {
                state = shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else {
                state.all += 1;
                drop(state);
                let started = shared.start();
                state = shared.lock();
                if let Some(error) = shared.settle(&mut state, started) {
                    if shared.demand == Demand::Required {
                        return Err(error);
                    }
                    if state.fallback.is_none() {
                        // Another step has one: better to wait for it than to open the host's.
                        state = shared
                            .changed
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> Result<Namespace, NetworkError> {
        let program = pasta::find().ok_or(NetworkError::Missing)?;
        Namespace::start(&self.executable, &program)
    }

    /// Takes in what [`Shared::start`] came to; gives the error back. The first one decides for the
    /// whole build, unless there is a namespace already.
    fn settle(
        &self,
        state: &mut State,
        started: Result<Namespace, NetworkError>,
    ) -> Option<NetworkError> {
        let error = match started {
            Ok(namespace) => {
                state.idle.push(namespace);
                None
            }
            Err(error) => {
                state.all -= 1;
                if state.all == 0 && self.demand == Demand::Preferred {
                    state.fallback = Some(text(&error));
                }
                Some(error)
            }
        };
        self.changed.notify_all();
        error
    }

    /// Says once what was chosen.
    fn tell(&self, state: &mut State) {
        if !std::mem::replace(&mut state.told, true) {
            let text = choice(state.fallback.as_deref());
            self.observer.tell(Event::Note { step: None, text });
        }
    }
}

/// What the default network is, in a sentence.
fn choice(fallback: Option<&str>) -> String {
    match fallback {
        None => "RUN has a network of its own, through pasta".to_owned(),
        Some(reason) => format!("RUN has the host's network: {reason}"),
    }
}

/// An error with its causes.
fn text(error: &NetworkError) -> String {
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        text.push_str(": ");
        text.push_str(&cause.to_string());
    }
    text
}

/// Makes a network namespace with a way out, once, and gives it up again: finds out whether steps have
/// one on this machine. `executable` is that of [`Pool::new`].
///
/// # Errors
/// Why they have the host's network.
pub fn attempt(executable: &Path) -> Result<(), String> {
    let started = match pasta::find() {
        Some(program) => Namespace::start(executable, &program),
        None => Err(NetworkError::Missing),
    };
    started.map(drop).map_err(|error| text(&error))
}

/// A network that a step has.
#[derive(Debug)]
pub struct Lease {
    namespace: Option<Namespace>,
    pool: Option<Arc<Shared>>,
    spoiled: bool,
}

impl Lease {
    fn host() -> Self {
        Self {
            namespace: None,
            pool: None,
            spoiled: false,
        }
    }

    /// The network, for the step's specification.
    #[must_use]
    pub fn network(&self) -> Network {
        match &self.namespace {
            Some(namespace) => Network::Namespace(namespace.path()),
            None => Network::Host,
        }
    }

    /// Keeps the namespace from later steps: this one may change it.
    pub fn spoil(&mut self) {
        self.spoiled = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(namespace), Some(pool)) = (self.namespace.take(), self.pool.take()) {
            if self.spoiled {
                drop(namespace);
                pool.lock().all -= 1;
            } else {
                pool.lock().idle.push(namespace);
            }
            pool.changed.notify_all();
        }
    }
}

impl Network {
    /// How a sandbox with this network sees the machines around it.
    #[must_use]
    pub fn view(&self) -> View {
        match self {
            Self::Host => View::Host,
            Self::Namespace(_) => View::Own,
            Self::None => View::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(demand: Demand) -> (Pool, Arc<Mutex<Vec<String>>>) {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notes);
        let observer = Observer::new(move |event| {
            if let Event::Note { text, .. } = event {
                told.lock().unwrap().push(text);
            }
        });
        // A keeper that ends before it says anything.
        (
            Pool::new(demand, PathBuf::from("/bin/true"), observer),
            notes,
        )
    }

    #[test]
    fn b3_1_without_a_way_out_steps_have_the_hosts_network_and_it_is_said_once() {
        let (pool, notes) = pool(Demand::Preferred);
        pool.warm();
        for _ in 0..2 {
            let lease = pool.take().unwrap();
            assert_eq!(lease.network(), Network::Host);
        }
        let notes = notes.lock().unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(
            notes[0].starts_with("RUN has the host's network: "),
            "{notes:?}"
        );
    }

    #[test]
    fn b3_1_a_level_without_namespaces_has_the_hosts_network() {
        let (preferred, notes) = pool(Demand::Preferred);
        let lease = preferred.without("of the level").take().unwrap();
        assert_eq!(lease.network(), Network::Host);
        let note = "RUN has the host's network: of the level";
        assert_eq!(*notes.lock().unwrap(), [note]);
        let (required, _) = pool(Demand::Required);
        let error = required.without("of the level").take().unwrap_err();
        assert_eq!(error.to_string(), "of the level");
    }

    #[test]
    fn b3_1_a_way_out_that_is_required_is_not_replaced() {
        let (pool, notes) = pool(Demand::Required);
        pool.warm();
        assert!(pool.take().is_err());
        assert!(pool.take().is_err());
        assert!(notes.lock().unwrap().is_empty());
    }
}
