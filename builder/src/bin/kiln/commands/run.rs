//! `kiln run`: an image's program in the foreground.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use kiln_builder::image::pull::pull_unpacked;
use kiln_builder::pipeline::{self, Invocation, Volume, build_time};
use kiln_builder::runtime::{Cancel, Isolation, Streams};
use kiln_builder::step::{Settings, Worker};
use kiln_builder::store::{Store, StoreError};
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::security::{runtime, seccomp};
use super::{Setup, block_on, foreground, platform};
use crate::args::{Command, PullPolicy, RunArgs};
use crate::render::{self, transfer};
use crate::report::{Exited, Interrupted, NotRun, UsageError};

pub(crate) fn run(setup: &Setup, args: &RunArgs) -> anyhow::Result<()> {
    // The first word is required.
    let (image, command) = args.image_and_command.split_first().unzip();
    let image = image.map(String::as_str).unwrap_or_default();
    start(setup, args, image, command.unwrap_or_default())
        .map_err(|error| not_run(run_of(image), error))
}

/// Whatever keeps a program from running exits as docker has it (125 to 127); how the program itself
/// ended is no such thing.
pub(super) fn not_run(what: String, error: anyhow::Error) -> anyhow::Error {
    if error.is::<Exited>() || error.is::<Interrupted>() || error.is::<UsageError>() {
        return error;
    }
    NotRun {
        what,
        source: error,
    }
    .into()
}

/// What was to be done with an image.
pub(super) fn run_of(image: &str) -> String {
    format!("run `{image}`")
}

/// What an error means to a command: see [`not_run`].
pub(super) fn failure(command: &Command, error: anyhow::Error) -> anyhow::Error {
    match command {
        Command::Run(args) => {
            let image = args.image_and_command.first();
            not_run(run_of(image.map_or("", String::as_str)), error)
        }
        Command::Shell(_) => not_run("open a shell".to_owned(), error),
        _ => error,
    }
}

fn start(setup: &Setup, args: &RunArgs, name: &str, command: &[String]) -> anyhow::Result<()> {
    let invocation = invocation(args, command)?;
    let (store, client) = (setup.store()?, setup.client(args.quiet)?);
    let cancel = Cancel::new()?;
    let wanted = Wanted {
        name,
        platform: args.platform.as_deref(),
        pull: args.pull,
        quiet: args.quiet,
    };
    let level = setup.level()?;
    if level.isolation == Isolation::Chroot {
        if args.read_only {
            let message = "--read-only needs the right to mount, which this machine does not give";
            return Err(UsageError::new(message).into());
        }
        if !args.quiet {
            render::err(&format!("isolation: {level}"));
        }
    }
    let settings = Settings {
        time: build_time(None),
        isolation: level.isolation,
        seccomp: seccomp(&args.security_opt)?,
        runtime: runtime(args.runtime.as_deref())?,
        hosts: args.sandbox.hosts()?,
        network: args.sandbox.network.demand,
        cgroup_parent: args.sandbox.limits.cgroup_parent.clone(),
        ..Settings::default()
    };
    let backend = setup.backend(&store, args.quiet)?;
    let worker = Worker::for_processes(&store, backend, client, &cancel, settings);
    let worker = Arc::new(worker);
    let image = wanted.find(&worker)?;
    let streams = invocation.streams;
    foreground::run(&cancel, streams, args.interactive, |attached, output| {
        Ok(pipeline::run(
            &worker,
            &image,
            &invocation,
            attached,
            output,
        )?)
    })
}

fn invocation(args: &RunArgs, command: &[String]) -> anyhow::Result<Invocation> {
    let streams = match (args.tty, args.interactive) {
        (true, true) if !std::io::stdin().is_terminal() => {
            return Err(UsageError::new("the input device is not a TTY").into());
        }
        (true, _) => foreground::terminal(),
        (false, true) => Streams::Input,
        (false, false) => Streams::Pipes,
    };
    let mut env = Vec::new();
    for file in &args.env_files {
        env.extend(env_file(file)?);
    }
    for text in &args.env {
        env.extend(variable(text)?);
    }
    let tmpfs = args.tmpfs.iter().map(|text| tmpfs(text));
    let volumes = args.volumes.iter().map(|text| volume(text));
    Ok(Invocation {
        command: command.to_vec(),
        entrypoint: args.entrypoint.clone(),
        env,
        cwd: args.workdir.as_deref().map(absolute).transpose()?,
        user: args.user.clone(),
        hostname: args.hostname.as_deref().map(hostname).transpose()?,
        network: args.sandbox.network.network,
        limits: args.sandbox.limits.limits()?,
        volumes: volumes.collect::<anyhow::Result<_>>()?,
        tmpfs: tmpfs.collect::<anyhow::Result<_>>()?,
        read_only: args.read_only,
        streams,
    })
}

/// An image that the command line names.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    pub(super) platform: Option<&'a str>,
    pub(super) pull: PullPolicy,
    pub(super) quiet: bool,
}

impl Wanted<'_> {
    /// The image: from the store, or from its registry where the policy says so.
    pub(super) fn find(&self, worker: &Arc<Worker>) -> anyhow::Result<Digest> {
        let (name, store) = (self.name, &worker.store);
        let (platform, given) = platform(self.platform)?;
        if self.pull != PullPolicy::Always {
            match store.find(name) {
                Ok(image) if !given || fits(store, &image, &platform)? => return Ok(image),
                Ok(_) if self.pull == PullPolicy::Never => {
                    let message = format!("the image `{name}` in the store is not for {platform}");
                    return Err(UsageError::new(message).into());
                }
                Ok(_) => {}
                Err(StoreError::NoImage(_)) if self.pull == PullPolicy::Missing => {
                    if !self.quiet {
                        render::err(&format!("Unable to find image '{name}' locally"));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut reference = Reference::parse(name)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        let observer = transfer::observer(transfer::PULL, self.quiet);
        let pulled = block_on(&worker.cancel, async {
            Ok(pull_unpacked(worker, &reference, &platform, &observer).await?)
        })?;
        Ok(pulled.image)
    }
}

pub(super) fn fits(store: &Store, image: &Digest, platform: &Platform) -> anyhow::Result<bool> {
    let config = store.config(image)?;
    Ok(config.os == platform.os && config.architecture == platform.architecture)
}

/// `NAME=VALUE`, or `NAME` for kiln's own value, if there is one.
fn variable(text: &str) -> anyhow::Result<Option<(String, String)>> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    if name.is_empty() {
        return Err(UsageError::new(format!("invalid environment variable: {text}")).into());
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

/// The variables of a file: one a line as for `-e`, `#` begins a comment.
fn env_file(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("reading the environment file `{}`", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut env = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.contains(char::is_whitespace) {
            let message = format!("variable '{name}' contains whitespaces");
            let message = format!("invalid env file ({}): {message}", path.display());
            return Err(UsageError::new(message).into());
        }
        env.extend(variable(line)?);
    }
    Ok(env)
}

/// A path in the image.
fn absolute(text: &str) -> anyhow::Result<String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    let message =
        format!("the working directory '{text}' is invalid, it needs to be an absolute path");
    Err(UsageError::new(message).into())
}

fn hostname(text: &str) -> anyhow::Result<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if text.is_empty() || text.len() > 64 || !text.bytes().all(good) {
        let message =
            format!("invalid host name `{text}`: up to 64 letters, digits, dashes and dots");
        return Err(UsageError::new(message).into());
    }
    Ok(text.to_owned())
}

/// `HOST:CONTAINER[:ro|rw]`. A folder of the host that is not there is made, as docker does it.
fn volume(text: &str) -> anyhow::Result<Volume> {
    let invalid = |why: &str| UsageError::new(format!("invalid volume `{text}`: {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(invalid("expected HOST:CONTAINER[:ro]").into()),
    };
    if !target.starts_with('/') || Path::new(target) == "/" {
        return Err(invalid("the path in the image must be absolute, and not `/`").into());
    }
    let is_path = source.starts_with(['/', '.']);
    if !is_path {
        let why = "kiln keeps no volumes: name a path of the host, absolute or with `./`";
        return Err(invalid(why).into());
    }
    let writable = match options {
        "" | "rw" => true,
        "ro" => false,
        _ => return Err(invalid("the options are `ro` and `rw`").into()),
    };
    let source = PathBuf::from(source);
    if !source.exists() {
        fs::create_dir_all(&source)
            .with_context(|| format!("making the folder `{}`", source.display()))?;
    }
    let source =
        fs::canonicalize(&source).with_context(|| format!("finding `{}`", source.display()))?;
    Ok(Volume {
        source,
        target: target.to_owned(),
        writable,
    })
}

/// `PATH[:size=BYTES]`
fn tmpfs(text: &str) -> anyhow::Result<(String, Option<u64>)> {
    let invalid = |why: String| UsageError::new(format!("invalid tmpfs `{text}`: {why}"));
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !path.starts_with('/') || Path::new(path) == "/" {
        let why = "the path in the image must be absolute, and not `/`";
        return Err(invalid(why.to_owned()).into());
    }
    let mut limit = None;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", text)) => {
                let size = size(text);
                limit = Some(size.ok_or_else(|| invalid(format!("`{text}` is no size")))?);
            }
            _ => return Err(invalid(format!("`{option}` is not supported, only size=")).into()),
        }
    }
    Ok((path.to_owned(), limit))
}

/// Bytes, or a number with k, m or g.
fn size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let (number, shift) = match text.strip_suffix(['k', 'm', 'g']) {
        Some(number) if text.ends_with('k') => (number, 10),
        Some(number) if text.ends_with('m') => (number, 20),
        Some(number) => (number, 30),
        None => (text.as_str(), 0),
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(1 << shift)
}
