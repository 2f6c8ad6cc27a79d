//! `kiln build`

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use kiln_builder::event::Observer;
use kiln_builder::lower::{LowerOptions, NamedContext};
use kiln_builder::pipeline::{
    self, BuildError, DockerfileFrom, Outcome, Request, Unfinished, Wishes, build_time,
};
use kiln_builder::runtime::isolation::Level;
use kiln_builder::runtime::{Cancel, Isolation};
use kiln_builder::snapshot::Backend;
use kiln_builder::step::Settings;
use kiln_builder::step::agent::{Agent, AgentError, AgentSource};
use kiln_builder::step::secrets::{SecretError, SecretSource};
use kiln_builder::store::Store;
use kiln_grammar::syntax::MAX_SIZE;
use kiln_registry::client::Client;
use kiln_registry::credentials::SecretBytes;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::explain::ExplainCache;
use super::output::{Made, Outputs};
use super::save::check_target;
use super::security::{Allowed, runtime, seccomp};
use super::{Setup, block_on, call, plan, platform, share, shell};
use crate::args::{self, BuildArgs, OnFail};
use crate::render;
use crate::render::excerpt::Excerpts;
use crate::report::UsageError;

/// Where systems keep the bundle of certificate authorities that they trust.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The proxy variables of A6.9, in upper case; each also exists in lower case.
const PROXIES: [&str; 5] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

pub(crate) fn run(setup: &Setup, args: &BuildArgs) -> anyhow::Result<()> {
    let mut request = request(args)?;
    let outputs = Outputs::of(args)?;
    if let Some(warning) = args.legacy.warning()? {
        render::err(&warning);
    }
    let secrets = args.secrets.iter().map(|text| SecretSource::parse(text));
    let secrets = secrets
        .collect::<Result<Vec<_>, _>>()
        .map_err(secret_error)?;
    if let Some(call) = call::of(args)? {
        return call::run(setup, &call, request, args);
    }
    let explain = ExplainCache::of(args)?;
    request.settings.secrets = read_secrets(&secrets)?;
    let absolute = |secret: SecretSource| secret.absolute(&|name| std::env::var_os(name));
    request.secrets = secrets.into_iter().map(absolute).collect();
    request.settings.agents = open_agents(&args.ssh)?;
    if let Some(file) = &args.iidfile {
        check_target(file)?;
        // An old id must not be taken for the new image's when the build fails.
        remove(file)?;
    }
    let level = setup.level()?;
    request.settings.isolation = level.isolation;
    let (store, client) = (setup.store()?, setup.client(args.quiet)?);
    let backend = setup.backend(&store, args.quiet)?;
    request.backend = backend;
    if let Some(line) = isolation(level, backend).filter(|_| !args.quiet) {
        render::err(&line);
    }
    let cancel = Cancel::new()?;
    let observer = render::build_observer(args.progress, args.quiet);
    if let Some(format) = args.plan {
        return plan::run(request, &store, &client, &cancel, format);
    }
    let tell_pushed = ExplainCache::tell_pushed(explain.as_ref());
    let (observer, explanation) = ExplainCache::watch(explain, observer);
    let tags = request.tags.clone();
    if !outputs.are_stored() {
        request.tags.clear();
    }
    let (stored, epoch) = (request.tags.clone(), request.epoch);
    let settings = request.settings.clone();
    let built = block_on(&cancel, async {
        let from = (&store, &client);
        let mut outcome = build(request, from, observer, &cancel, args.quiet).await?;
        if !args.quiet {
            say(&outcome, &stored);
        }
        let made = Made {
            store: &store,
            client: &client,
            cancel: &cancel,
            backend,
            settings: &settings,
            epoch,
            tags: &tags,
            image: outcome.image,
            quiet: args.quiet,
            tell_pushed,
        };
        deliver(args, &outputs, &made, &mut outcome).await
    });
    if let Some(explanation) = explanation {
        explanation.write()?;
    }
    if let Err(error) = &built
        && args.on_fail == OnFail::Shell
        && let Some(BuildError::Step {
            kept: true, source, ..
        }) = error.downcast_ref()
    {
        // Everything else has ended: what the shell shows is not mixed with anything.
        shell::in_failed(&store, backend, client.clone(), settings, source);
    }
    built
}

/// Builds; of a build that fails, what was done before is shared all the same.
async fn build(
    request: Request,
    (store, client): (&Arc<Store>, &Client),
    observer: Observer,
    cancel: &Cancel,
    quiet: bool,
) -> anyhow::Result<Outcome> {
    let (store, client) = (Arc::clone(store), client.clone());
    // A step that fails stops the others, and not what follows upon it.
    let steps = cancel.child()?;
    match pipeline::build(request, store, client, observer, steps).await {
        Ok(outcome) => Ok(outcome),
        Err(Unfinished { error, shared }) => {
            if let Some(shared) = shared {
                share::unfinished(shared, cancel, quiet).await;
            }
            Err(error.into())
        }
    }
}

/// How steps are isolated, and their layers kept, where that is not what it is for root.
fn isolation(level: &Level, backend: Backend) -> Option<String> {
    match level.isolation {
        Isolation::Root => None,
        Isolation::Rootless(_) => Some(format!("isolation: {level}; layers: {backend}")),
        // There is one way only.
        Isolation::Chroot => Some(format!("isolation: {level}")),
    }
}

/// Says what was built, and what is wrong with its Dockerfile.
fn say(outcome: &Outcome, names: &[Reference]) {
    warnings(outcome);
    render::err(&format!("writing image {}", outcome.image));
    for name in names {
        let tag = name.tag_or_latest();
        render::err(&format!(
            "naming to {}/{}:{tag}",
            name.registry, name.repository
        ));
    }
}

/// Takes what was built, and what the cache has gained, to where it is to go.
async fn deliver(
    args: &BuildArgs,
    outputs: &Outputs,
    made: &Made<'_>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    if let Some(file) = &args.iidfile {
        fs::write(file, outcome.image.to_string())
            .with_context(|| format!("writing `{}`", file.display()))?;
    }
    let written = outputs.write(made).await;
    // What the cache gained is worth keeping when the image could not be pushed, too.
    let shared = match &mut outcome.shared {
        Some(shared) => share::finish(shared, made.cancel, args.quiet).await,
        None => Ok(()),
    };
    if let Some(mounts) = &outcome.mounts {
        share::save(mounts, made.cancel, args.quiet).await;
    }
    written?;
    shared?;
    if args.quiet && !outputs.take_stdout() {
        render::out(&outcome.image.to_string());
    }
    Ok(())
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the old `{}`", file.display()))
        }
        _ => Ok(()),
    }
}

fn warnings(outcome: &Outcome) {
    if !outcome.warnings.is_empty() {
        let excerpts = Excerpts::of(&outcome.source);
        render::err(&format!("{}\n", excerpts.warnings(&outcome.warnings)));
    }
}

fn request(args: &BuildArgs) -> anyhow::Result<Request> {
    let (platform, platform_given) = platform(args.platform.as_deref())?;
    let build_args = args
        .build_args
        .iter()
        .map(|text| build_arg(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let epoch = epoch(&build_args)?;
    let hosts = args.sandbox.hosts()?;
    let allowed = Allowed::parse(&args.allow)?;
    let options = LowerOptions {
        build_args,
        target: args.target.clone(),
        platform,
        platform_given,
        build_platform: Platform::host(),
        name_platform: false,
        labels: args.labels.iter().map(|text| pair(text)).collect(),
        network: args.sandbox.network.network,
        limits: args.sandbox.limits.limits()?,
        extra_hosts: args::names(&hosts),
        allow_host_network: allowed.host_network,
        allow_insecure: allowed.insecure,
        contexts: args
            .build_contexts
            .iter()
            .map(|text| build_context(text))
            .collect::<anyhow::Result<_>>()?,
        ignore: None,
    };
    let settings = Settings {
        host_ca: if args.host_ca { Some(host_ca()?) } else { None },
        proxies: proxies(&options, args.host_ca),
        hosts,
        network: args.sandbox.network.demand,
        cgroup_parent: args.sandbox.limits.cgroup_parent.clone(),
        seccomp: seccomp(&args.security_opt)?,
        runtime: runtime(args.runtime.as_deref())?,
        time: build_time(epoch),
        ..Settings::default()
    };
    Ok(Request {
        context: context(&args.context)?,
        dockerfile: dockerfile(args.file.as_deref())?,
        tags: args
            .tags
            .iter()
            .map(|text| tag(text))
            .collect::<anyhow::Result<_>>()?,
        options,
        wishes: wishes(args),
        pull: args.pull,
        settings,
        secrets: Vec::new(),
        backend: Backend::default(),
        epoch,
        cache_from: share::from(&args.cache_from)?,
        cache_to: share::to(&args.cache_to)?,
        cache_mounts: share::mounts(args.cache_mounts.as_deref())?,
    })
}

/// What is said of the cache (A15.6).
fn wishes(args: &BuildArgs) -> Wishes {
    let named = |names: &Vec<String>| -> Vec<String> {
        let names = names.iter().filter(|name| !name.is_empty());
        names.cloned().collect()
    };
    let all = |names: &Vec<String>| names.iter().any(String::is_empty);
    Wishes {
        no_cache: args.no_cache,
        no_cache_filter: named(&args.no_cache_filter),
        require_cached: args.require_cached.as_ref().map(|names| {
            // Once without a name means all.
            if all(names) { Vec::new() } else { named(names) }
        }),
        jobs: args
            .jobs
            .map(|jobs| NonZeroU32::new(jobs).unwrap_or(NonZeroU32::MAX)),
    }
}

/// Reads secrets into memory, once (B7.1).
pub(super) fn read_secrets(
    sources: &[SecretSource],
) -> anyhow::Result<BTreeMap<String, SecretBytes>> {
    let mut secrets = BTreeMap::new();
    for source in sources {
        let (secret, unset) = source
            .read(&|name| std::env::var_os(name))
            .map_err(secret_error)?;
        if let Some(variable) = unset {
            let id = &source.id;
            render::err(&format!(
                "warning: the variable `{variable}` of the secret `{id}` is not set: the secret is empty"
            ));
        }
        secrets.insert(source.id.clone(), secret);
    }
    Ok(secrets)
}

/// Opens the agents of ssh (B7.2).
pub(super) fn open_agents(texts: &[String]) -> anyhow::Result<BTreeMap<String, Agent>> {
    let mut agents = BTreeMap::new();
    for source in texts.iter().map(|text| AgentSource::parse(text)) {
        if agents.contains_key(&source.id) {
            return Err(agent_error(AgentError::Twice(source.id)));
        }
        let own = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
        let agent = source.open(own).map_err(agent_error)?;
        agents.insert(source.id, agent);
    }
    Ok(agents)
}

fn agent_error(error: AgentError) -> anyhow::Error {
    match error.is_usage() {
        true => UsageError::new(error.to_string()).into(),
        false => error.into(),
    }
}

pub(super) fn secret_error(error: SecretError) -> anyhow::Error {
    match error.is_usage() {
        true => UsageError::new(error.to_string()).into(),
        false => error.into(),
    }
}

/// The context's folder; other kinds of contexts are named in the refusal.
pub(super) fn context(path: &Path) -> anyhow::Result<PathBuf> {
    let text = path.to_string_lossy();
    if text == "-" {
        return Err(UsageError::new(
            "a build context on standard input is not supported yet: give a folder",
        )
        .into());
    }
    let remote = ["http://", "https://", "git://", "ssh://", "git@"];
    if remote.iter().any(|prefix| text.starts_with(prefix)) {
        return Err(UsageError::new(format!(
            "the build context `{text}` is remote, which is not supported yet: give a folder"
        ))
        .into());
    }
    Ok(path.to_owned())
}

pub(super) fn dockerfile(file: Option<&Path>) -> anyhow::Result<DockerfileFrom> {
    match file {
        None => Ok(DockerfileFrom::Context),
        Some(path) if path == "-" => {
            // One byte more than a Dockerfile may have: then it is refused as too large.
            let mut bytes = Vec::new();
            let mut stdin = std::io::stdin().take(MAX_SIZE as u64 + 1);
            let read = stdin.read_to_end(&mut bytes).map(drop);
            let text = read.and_then(|()| match String::from_utf8(bytes) {
                Ok(text) => Ok(text),
                Err(error) if error.as_bytes().len() > MAX_SIZE => {
                    Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())
                }
                Err(error) => Err(std::io::Error::new(ErrorKind::InvalidData, error)),
            });
            let text = text.context("reading the Dockerfile from standard input")?;
            Ok(DockerfileFrom::Text(text))
        }
        Some(path) => Ok(DockerfileFrom::Path(path.to_owned())),
    }
}

/// A name for the image; checked before anything is built (C1).
fn tag(text: &str) -> anyhow::Result<Reference> {
    let reference = Reference::parse(text)
        .map_err(|error| UsageError::new(format!("invalid tag \"{text}\": {error}")))?;
    if reference.digest.is_some() {
        return Err(UsageError::new(format!(
            "invalid tag \"{text}\": a name for an image cannot hold a digest"
        ))
        .into());
    }
    Ok(Reference {
        tag: Some(reference.tag_or_latest().to_owned()),
        ..reference
    })
}

/// `NAME=VALUE`, or `NAME` for the environment's value (A6.8).
pub(super) fn build_arg(text: &str) -> anyhow::Result<(String, Option<String>)> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    if name.is_empty() {
        return Err(UsageError::new(format!(
            "invalid build argument `{text}`: expected NAME or NAME=VALUE"
        ))
        .into());
    }
    Ok((name.to_owned(), value))
}

/// A named context (C7).
fn build_context(text: &str) -> anyhow::Result<NamedContext> {
    NamedContext::parse(text).map_err(|error| UsageError::new(error.to_string()).into())
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// SOURCE_DATE_EPOCH as build argument, else from the environment (C11.1).
fn epoch(build_args: &[(String, Option<String>)]) -> anyhow::Result<Option<i64>> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let given = build_args
        .iter()
        .rev()
        .find(|(name, _)| name == NAME)
        .and_then(|(_, value)| value.clone());
    let Some(text) = given
        .or_else(|| std::env::var(NAME).ok())
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let seconds = text.parse().map_err(|_| {
        UsageError::new(format!(
            "invalid {NAME} `{text}`: expected seconds since 1970"
        ))
    })?;
    Ok(Some(seconds))
}

/// The file with the certificate authorities that this machine trusts.
fn host_ca() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = named
        .into_iter()
        .chain(CA_BUNDLES.map(PathBuf::from))
        .find(|path| path.is_file());
    bundle.ok_or_else(|| UsageError::new("--host-ca: this machine has no bundle of certificate authorities; name it in SSL_CERT_FILE").into())
}

/// Proxy variables for `RUN` steps: those given as build arguments and, with `host`, the machine's.
fn proxies(options: &LowerOptions, host: bool) -> Vec<(String, String)> {
    let mut proxies = options.proxies();
    let names = PROXIES
        .iter()
        .flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
    for name in names.filter(|_| host) {
        if !proxies.iter().any(|(known, _)| *known == name) {
            proxies.extend(std::env::var(&name).ok().map(|value| (name, value)));
        }
    }
    proxies
}
