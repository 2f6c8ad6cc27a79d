//! One file per verb: each reads its arguments, calls the library, and prints the result.

mod build;
mod call;
mod check;
mod copy;
mod debug;
mod doctor;
mod explain;
mod fix;
mod foreground;
mod history;
mod images;
mod inspect;
mod load;
mod login;
mod logout;
mod manifest;
mod output;
mod plan;
mod prompt;
mod pull;
mod push;
mod referrers;
mod rm_remote;
mod rmi;
mod run;
mod save;
mod search;
mod security;
mod share;
mod shell;
mod tag;
mod tags;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use kiln_builder::runtime::isolation::{self, Level, Wanted};
use kiln_builder::runtime::{Cancel, Isolation};
use kiln_builder::snapshot::{Backend, Refused, SnapshotError};
use kiln_builder::store::Store;
use kiln_registry::client::{
    AwsEnvironment, Client, ClientOptions, Mirror, Notice, Observer, Quota,
};
use kiln_registry::credentials::Keychain;
use kiln_registry::reference::Reference;
use kiln_registry::settings::Settings;
use kiln_registry::spec::Platform;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Cli, Command, IsolationArg};
use crate::render::{self, text};
use crate::report::{Interrupted, UsageError};

/// How long abandoned threads may take to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What every command may need.
pub(crate) struct Setup {
    root: Option<PathBuf>,
    /// Whether root has called, and not somebody who is root in a user namespace only.
    as_root: bool,
    isolation: IsolationArg,
    /// The level that was entered; none where the command needs none.
    level: Option<Level>,
    mirrors: Vec<String>,
    insecure: Vec<String>,
    snapshotter: Option<Backend>,
    /// Clients that have something to tell at the end.
    clients: Mutex<Vec<Client>>,
}

impl Setup {
    /// What the command line says that holds for all commands.
    pub(crate) fn new(cli: &Cli) -> Self {
        Self {
            root: cli.root.clone(),
            as_root: rustix::process::geteuid().is_root(),
            isolation: cli.isolation,
            level: None,
            mirrors: cli.mirrors.clone(),
            insecure: cli.insecure.clone(),
            snapshotter: cli.snapshotter,
            clients: Mutex::default(),
        }
    }

    /// Where the store is.
    pub(crate) fn root(&self) -> anyhow::Result<PathBuf> {
        self.root
            .clone()
            .map_or_else(|| default_root(self.as_root), Ok)
    }

    /// The level of isolation that the command line asks for.
    pub(crate) fn wanted(&self) -> Wanted {
        match self.isolation {
            IsolationArg::Default => Wanted::Best,
            IsolationArg::Root => Wanted::Root,
            IsolationArg::Rootless => Wanted::Rootless,
            IsolationArg::Chroot => Wanted::Chroot,
        }
    }

    /// Brings this process to the level of isolation that the command line asks for. To be called
    /// before there are threads.
    ///
    /// # Errors
    /// What denies it. Commands that only move images go without a user namespace then.
    pub(crate) fn enter(&mut self, command: &Command) -> anyhow::Result<()> {
        let wanted = self.wanted();
        let need = need(command);
        if need == Need::Nothing {
            return Ok(());
        }
        self.level = match isolation::enter(wanted) {
            Ok(level) => Some(level),
            Err(_) if need == Need::Store && wanted == Wanted::Best => None,
            Err(error) => return Err(run::failure(command, error.into())),
        };
        Ok(())
    }

    /// The level of isolation that steps get.
    ///
    /// # Errors
    /// When none was entered, which is a bug.
    pub(crate) fn level(&self) -> anyhow::Result<&Level> {
        self.level
            .as_ref()
            .context("this command has entered no level of isolation")
    }

    /// How to call kiln with the same store, for a hint that can be copied.
    pub(crate) fn again(&self) -> String {
        match &self.root {
            Some(root) if std::env::var_os("KILN_ROOT").is_none() => {
                format!("kiln --root {}", root.display())
            }
            _ => "kiln".to_owned(),
        }
    }

    /// Opens the store.
    pub(crate) fn store(&self) -> anyhow::Result<Arc<Store>> {
        Ok(Arc::new(Store::open(&self.root()?)?))
    }

    /// How layers become file systems here: as asked for, else the first way that works. Unless told
    /// to be quiet, it says why that is not the best one.
    pub(crate) fn backend(&self, store: &Store, quiet: bool) -> anyhow::Result<Backend> {
        let chroot = self
            .level
            .as_ref()
            .is_some_and(|level| level.isolation == Isolation::Chroot);
        if chroot && self.snapshotter != Some(Backend::Overlay) {
            return Ok(Backend::Plain);
        }
        if let Some(wanted) = self.snapshotter {
            let attempt = wanted.attempt(store)?;
            attempt.map_err(|source| SnapshotError::Refused {
                backend: wanted,
                source,
            })?;
            return Ok(wanted);
        }
        let (backend, refused) = Backend::probe(store)?;
        if !quiet {
            for Refused {
                backend: other,
                reason,
            } in refused
            {
                render::err(&format!(
                    "note: layers become {backend} directories: {other} is refused: {reason}"
                ));
            }
        }
        Ok(backend)
    }

    /// A registry client with this user's credentials. Unless told to be quiet, it says when it
    /// tries again or passes a mirror over: without a word, waiting looks like hanging.
    pub(crate) fn client(&self, quiet: bool) -> anyhow::Result<Client> {
        self.client_with(quiet, Vec::new())
    }

    /// The same, which trusts some more registries as `--insecure-registry` does.
    pub(crate) fn client_with(&self, quiet: bool, insecure: Vec<String>) -> anyhow::Result<Client> {
        let mut options = self.client_options(quiet, Keychain::load()?)?;
        options.settings.insecure.extend(insecure);
        let client = Client::new(options);
        if !quiet {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.push(client.clone());
        }
        Ok(client)
    }

    /// What such a client is made of.
    pub(crate) fn client_options(
        &self,
        quiet: bool,
        keychain: Keychain,
    ) -> anyhow::Result<ClientOptions> {
        let mirrors = self
            .mirrors
            .iter()
            .map(|text| mirror(text))
            .collect::<anyhow::Result<_>>()?;
        let mut settings = Settings::load()?;
        settings.insecure.extend(self.insecure.iter().cloned());
        Ok(ClientOptions {
            keychain,
            aws: Some(AwsEnvironment::current()),
            mirrors,
            settings,
            uploads: self.root().ok().map(|root| root.join("partial")),
            observer: if quiet {
                Observer::default()
            } else {
                notices()
            },
            ..ClientOptions::default()
        })
    }
}

/// What a command needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing that isolation has to do with.
    Nothing,
    /// The store, as its owner sees it.
    Store,
    /// To run steps.
    Steps,
}

fn need(command: &Command) -> Need {
    match command {
        Command::Build(args) if matches!(call::of(args), Ok(None)) => Need::Steps,
        Command::Run(_) | Command::Shell(_) => Need::Steps,
        // The doctor enters by itself, to say what it finds on the way.
        Command::Build(_)
        | Command::Check(_)
        | Command::Doctor(_)
        | Command::Debug(_)
        | Command::Copy(_)
        | Command::Tags(_)
        | Command::RmRemote(_)
        | Command::Referrers(_)
        | Command::Search(_)
        | Command::Login(_)
        | Command::Logout(_) => Need::Nothing,
        Command::Images(_)
        | Command::Tag(_)
        | Command::Rmi(_)
        | Command::Inspect(_)
        | Command::History(_)
        | Command::Push(_)
        | Command::Pull(_)
        | Command::Manifest(_)
        | Command::Index(_)
        | Command::Save(_)
        | Command::Load(_) => Need::Store,
    }
}

/// Runs a command, and tells at its end what the registries have said.
pub(crate) fn run(setup: &Setup, command: Command) -> anyhow::Result<()> {
    let result = run_one(setup, command);
    let clients = setup.clients.lock().unwrap_or_else(PoisonError::into_inner);
    for client in clients.iter() {
        said(client);
    }
    result
}

/// Warnings of registries (D6.2), and what is left of their limits (D6.3).
fn said(client: &Client) {
    let quotas = client.quotas().into_iter().filter(Quota::is_limited);
    let quotas = quotas.flat_map(|quota| {
        let warning = quota.warning().map(|text| format!("warning: {text}"));
        [Some(quota.to_string()), warning]
    });
    let warnings = client.warnings().into_iter();
    let warnings = warnings.map(|warning| Some(format!("warning: {warning}")));
    for line in warnings.chain(quotas).flatten() {
        render::err(&text::printable(line.as_bytes()));
    }
}

/// Refuses to fetch or send images that somebody wants to be signed as docker did it once: kiln would
/// do it unsigned and unchecked (D8.4).
fn refuse_content_trust(command: &Command) -> anyhow::Result<()> {
    let disabled = match command {
        Command::Build(args) => args.legacy.disables_content_trust(),
        Command::Run(_)
        | Command::Shell(_)
        | Command::Push(_)
        | Command::Pull(_)
        | Command::Copy(_) => false,
        _ => return Ok(()),
    };
    let value = std::env::var_os("DOCKER_CONTENT_TRUST").unwrap_or_default();
    let off = ["", "0", "f", "F", "false", "False", "FALSE"];
    if disabled || off.iter().any(|off| value == *off) {
        return Ok(());
    }
    let message = "DOCKER_CONTENT_TRUST is set, and kiln neither signs nor checks signatures of that kind: \
                   unset it to go on without";
    Err(UsageError::new(message).into())
}

fn run_one(setup: &Setup, command: Command) -> anyhow::Result<()> {
    refuse_content_trust(&command)?;
    match command {
        Command::Build(args) => build::run(setup, &args),
        Command::Check(args) => check::run(setup, &args),
        Command::Images(args) => images::run(setup, &args),
        Command::Run(args) => run::run(setup, &args),
        Command::Shell(args) => shell::run(setup, &args),
        Command::Tag(args) => tag::run(setup, &args),
        Command::Rmi(args) => rmi::run(setup, &args),
        Command::Inspect(args) => inspect::run(setup, &args),
        Command::History(args) => history::run(setup, &args),
        Command::Push(args) => push::run(setup, &args),
        Command::Pull(args) => pull::run(setup, &args),
        Command::Login(args) => login::run(setup, &args),
        Command::Logout(args) => logout::run(&args),
        Command::Save(args) => save::run(setup, &args),
        Command::Load(args) => load::run(setup, &args),
        Command::Copy(args) => copy::run(setup, &args),
        Command::Tags(args) => tags::run(setup, &args),
        Command::RmRemote(args) => rm_remote::run(setup, &args),
        Command::Referrers(args) => referrers::run(setup, &args),
        Command::Manifest(command) => manifest::run(setup, &command, true),
        Command::Index(command) => manifest::run(setup, &command, false),
        Command::Search(args) => search::run(setup, &args),
        Command::Doctor(args) => doctor::run(setup, &args),
        Command::Debug(command) => debug::run(&command),
    }
}

/// Prints what a client does unasked; a mirror that fails is named once.
fn notices() -> Observer {
    let mirrors = Mutex::new(BTreeSet::new());
    Observer::new(move |notice| {
        let line = match notice {
            Notice::Retry { wait, reason } => {
                format!("{reason}, retrying in {} ms", wait.as_millis())
            }
            Notice::Mirror { address, reason } => {
                let mut named = mirrors.lock().unwrap_or_else(PoisonError::into_inner);
                if !named.insert(address.clone()) {
                    return;
                }
                format!("note: passed over the mirror `{address}`: {reason}")
            }
            // These the commands show at their end.
            Notice::Warning(_) => return,
        };
        render::err(&text::printable(line.as_bytes()));
    })
}

fn default_root(as_root: bool) -> anyhow::Result<PathBuf> {
    if as_root {
        return Ok(PathBuf::from("/var/lib/kiln"));
    }
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    data.map(|data| data.join("kiln"))
        .ok_or_else(|| UsageError::new("no HOME is set: say with --root where the store is").into())
}

fn mirror(text: &str) -> anyhow::Result<Mirror> {
    let parts = text.split_once('=');
    match parts.filter(|(registry, url)| !registry.is_empty() && url.contains("://")) {
        Some((registry, url)) => Ok(Mirror {
            registry: registry.to_owned(),
            url: url.to_owned(),
        }),
        None => {
            let message = format!(
                "invalid mirror `{text}`: expected HOST=URL, as in docker.io=http://127.0.0.1:5000"
            );
            Err(UsageError::new(message).into())
        }
    }
}

/// The repository of which all tags are meant.
fn all_tags_of(name: &str) -> anyhow::Result<Reference> {
    let reference = Reference::parse(name)?;
    if reference.tag.is_some() || reference.digest.is_some() {
        let message = format!("tag can't be used with --all-tags/-a: `{name}`");
        return Err(UsageError::new(message).into());
    }
    Ok(reference)
}

/// The platform of a flag, else this machine's; and whether it was given.
pub(crate) fn platform(text: Option<&str>) -> anyhow::Result<(Platform, bool)> {
    match text.filter(|text| !text.is_empty()) {
        None | Some("local") => Ok((Platform::host(), false)),
        Some(text) if text.contains(',') => Err(UsageError::new(format!(
            "invalid platform `{text}`: building for several platforms at once is not supported yet"
        ))
        .into()),
        Some(text) => Ok((
            Platform::parse(text).map_err(|error| UsageError::new(error.to_string()))?,
            true,
        )),
    }
}

/// Runs async work to its end. An interrupt cancels it; the work then ends by itself, having put
/// away what it had begun.
pub(crate) fn block_on<T>(
    cancel: &Cancel,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("watching for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("watching for signals")?;
        let mut work = std::pin::pin!(work);
        let signal = tokio::select! {
            result = &mut work => return result,
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        };
        cancel.cancel();
        drop(work.await);
        Err(Interrupted { signal }.into())
    });
    // Threads that were abandoned put away what they had begun, such as the file of a blob; one
    // that hangs (in a name server, say) must not hold up the exit for long.
    runtime.shutdown_timeout(LAST_WORDS);
    result
}
