//! `kiln shell`, and the shell of `kiln build --on-fail shell`.

use std::sync::Arc;

use kiln_builder::pipeline::{self, Invocation, Shell, Which, build_time, image_shell};
use kiln_builder::runtime::{Cancel, Streams};
use kiln_builder::snapshot::Backend;
use kiln_builder::step::secrets::SecretSource;
use kiln_builder::step::{Settings, StepError, Worker};
use kiln_builder::store::Store;
use kiln_registry::client::Client;

use super::build::{open_agents, read_secrets, secret_error};
use super::run::{Wanted, not_run, run_of};
use super::{Setup, foreground};
use crate::args::{PullPolicy, ShellArgs};
use crate::render::{self, text};
use crate::report::{self, Exited, UsageError};

/// How to leave.
const LEAVE: &str = "what you change is thrown away; leave with `exit` or Ctrl-D";

pub(crate) fn run(setup: &Setup, args: &ShellArgs) -> anyhow::Result<()> {
    let which = match (&args.step, args.failed) {
        (Some(step), _) => Some(Which::Named(step.clone())),
        (None, true) => Some(Which::Failed),
        (None, false) => None,
    };
    match which {
        Some(which) => step(setup, args, &which).map_err(|error| {
            let what = match &args.step {
                Some(step) => format!("open step {step}"),
                None => "open the failed step".to_owned(),
            };
            not_run(what, error)
        }),
        None => image(setup, args),
    }
}

/// A shell or a command in an image.
fn image(setup: &Setup, args: &ShellArgs) -> anyhow::Result<()> {
    let Some((name, command)) = args.words.split_first() else {
        let message = "\"kiln shell\" requires an image, --failed or --step";
        return Err(UsageError::new(message).into());
    };
    if args.before || !args.secrets.is_empty() || !args.ssh.is_empty() {
        let message = "--before, --secret and --ssh are for steps: give --failed or --step";
        return Err(UsageError::new(message).into());
    }
    let open = || {
        let (store, client) = (setup.store()?, setup.client(args.quiet)?);
        let cancel = Cancel::new()?;
        let wanted = Wanted {
            name,
            platform: None,
            pull: PullPolicy::Missing,
            quiet: args.quiet,
        };
        let backend = setup.backend(&store, args.quiet)?;
        let settings = settings(setup)?;
        let worker = Worker::for_processes(&store, backend, client, &cancel, settings);
        let worker = Arc::new(worker);
        let image = wanted.find(&worker)?;
        // As with the other forms, a command may stand behind dashes.
        let command = match command {
            [dashes, command @ ..] if dashes == "--" => command,
            command => command,
        };
        let streams = streams();
        let invocation = Invocation {
            command: match command {
                [] => vec![image_shell(&store, &image)?],
                command => command.to_vec(),
            },
            entrypoint: Some(String::new()),
            user: args.user.clone(),
            streams,
            ..Invocation::default()
        };
        if command.is_empty() && !args.quiet {
            tell(&format!("the image {name}"), streams);
        }
        foreground::run(&cancel, streams, true, |attached, output| {
            Ok(pipeline::run(
                &worker,
                &image,
                &invocation,
                attached,
                output,
            )?)
        })
    };
    open().map_err(|error| not_run(run_of(name), error))
}

/// A shell or a command in a step of the last build.
fn step(setup: &Setup, args: &ShellArgs, which: &Which) -> anyhow::Result<()> {
    let (store, client) = (setup.store()?, setup.client(true)?);
    let shell = Shell::open(&store, which, args.before)?;
    let mut settings = shell.settings(settings(setup)?);
    let given = args.secrets.iter().map(|text| SecretSource::parse(text));
    let given = given.collect::<Result<Vec<_>, _>>().map_err(secret_error)?;
    settings.secrets = read_secrets(&given)?;
    for source in shell.secrets() {
        // Where one is not any more, that is said below.
        if !settings.secrets.contains_key(&source.id)
            && let Ok((secret, None)) = source.read(&|name| std::env::var_os(name))
        {
            settings.secrets.insert(source.id.clone(), secret);
        }
    }
    for id in shell.absent(&settings) {
        render::err(&format!(
            "note: the secret `{id}` is not where it was in the build; --secret id={id},src=FILE gives it"
        ));
    }
    settings.agents = open_agents(&args.ssh)?;
    for id in shell.absent_agents(&settings) {
        render::err(&format!(
            "note: the agent of ssh `{id}` is not there; --ssh {id} gives it"
        ));
    }
    let say = args.words.is_empty() && !args.quiet;
    let backend = setup.backend(&store, args.quiet)?;
    open(&store, backend, client, settings, &shell, args, say)
}

/// Opens a shell in the step that has just failed, if there is a terminal for it. Whatever comes of
/// that, the build has failed for the reason that it has.
pub(super) fn in_failed(
    store: &Arc<Store>,
    backend: Backend,
    client: Client,
    settings: Settings,
    error: &StepError,
) {
    if !foreground::is_interactive() {
        return;
    }
    let work = || {
        let shell = Shell::open(store, &Which::Failed, false)?;
        // Another runtime gives no terminals.
        let settings = Settings {
            runtime: None,
            ..settings
        };
        report::last_output(&shell.describe(), error);
        render::err(&format!("error: {}", text::one_line(&error.to_string())));
        let none = ShellArgs {
            failed: true,
            step: None,
            before: false,
            secrets: Vec::new(),
            ssh: Vec::new(),
            user: None,
            quiet: false,
            words: Vec::new(),
        };
        open(store, backend, client, settings, &shell, &none, true)
    };
    match work() {
        Err(error) if !error.is::<Exited>() => {
            render::err(&text::one_line(&format!("no shell: {error:#}")));
        }
        _ => {}
    }
}

fn open(
    store: &Arc<Store>,
    backend: Backend,
    client: Client,
    settings: Settings,
    shell: &Shell,
    args: &ShellArgs,
    say: bool,
) -> anyhow::Result<()> {
    let cancel = Cancel::new()?;
    let worker = Worker::for_processes(store, backend, client, &cancel, settings);
    let streams = streams();
    if say {
        tell(&text::one_line(&shell.describe()), streams);
    }
    let user = args.user.as_deref();
    foreground::run(&cancel, streams, true, |attached, output| {
        Ok(shell.run(&worker, &args.words, user, streams, attached, output)?)
    })
}

/// Says what is opened, on a terminal: a script knows.
fn tell(what: &str, streams: Streams) {
    if matches!(streams, Streams::Terminal { .. }) {
        render::err(&format!("a shell in {what}; {LEAVE}"));
    }
}

/// A terminal where kiln has one, else what kiln itself reads.
fn streams() -> Streams {
    if foreground::is_interactive() {
        foreground::terminal()
    } else {
        Streams::Input
    }
}

fn settings(setup: &Setup) -> anyhow::Result<Settings> {
    Ok(Settings {
        time: build_time(None),
        isolation: setup.level()?.isolation,
        ..Settings::default()
    })
}
