//! `FROM`: the state that a stage starts with (A7.3 to A7.8).

use std::collections::HashMap;

use kiln_grammar::diagnostic::Diagnostic;
use kiln_registry::spec::{ImageConfig, Platform};

use super::advice;
use super::contexts::ContextSource;
use super::path;
use super::plan::HistoryEntry;
use super::scope::Scope;
use super::stage::{Shared, State, prefix};
use super::stages::Base;
use crate::graph::{CopyOp, CopySource, Op, Origin, Vertex, VertexId};

/// Members of a config that speak of the container or the tool that made the base image.
const STALE: &[&str] = &[
    "container",
    "container_config",
    "docker_version",
    "id",
    "parent",
    "throwaway",
    "moby.buildkit.buildinfo.v1",
    "moby.buildkit.cache.v0",
];

/// The same in the inner `config` object.
const STALE_INNER: &[&str] = &[
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Domainname",
    "Hostname",
    "Image",
    "MacAddress",
    "NetworkDisabled",
    "OpenStdin",
    "StdinOnce",
    "Tty",
];

/// The state of a stage before its first instruction; `total` is the number of its steps. One whose
/// base cannot be had starts with nothing, and says so.
pub(super) fn initial(shared: &mut Shared<'_>, index: usize, total: usize) -> State {
    let stage = &shared.stages.list[index];
    let origin = Origin {
        stage: index,
        span: Some(stage.ast.span),
    };
    let span = stage.ast.base.span;
    let mut state = match &stage.base {
        Base::Scratch => {
            let vertex = shared.scratch(origin);
            start(vertex, empty())
        }
        Base::Context(context) => {
            let prefix = prefix(shared, index, 1, total);
            let (vertex, created_by) = tree(shared, *context, origin, &prefix);
            let mut state = start(vertex, empty());
            state.history = vec![HistoryEntry::exported(created_by, vertex)];
            state
        }
        Base::Unknown => unknown(shared.scratch(origin), false),
        Base::Image(reference) => {
            let prefix = prefix(shared, index, 1, total);
            match shared.image(reference, &stage.platform, span, origin, &prefix) {
                Ok(Some((vertex, config))) => {
                    warn_about_platform(shared, index, reference, &config);
                    let mut state = start(vertex, config);
                    state.base = Some(vertex);
                    state
                }
                Ok(None) => unknown(shared.scratch(origin), advice::is_plain(reference)),
                Err(error) => {
                    shared.errors.push(error);
                    unknown(shared.scratch(origin), false)
                }
            }
        }
        Base::Stage(base) => match shared.done.get(base) {
            Some(state) => State {
                has_cmd: false,
                ..state.clone()
            },
            None => unknown(shared.scratch(origin), false),
        },
    };
    inherit(&mut state.config, &stage.platform);
    // Arguments of the stage below stay declared, its environment is what its image says (A6.4).
    let env = state.config.config.env.iter().flatten();
    for (index, pair) in env.enumerate() {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        state.scope.set(name, value);
        state.env_at.insert(name.to_owned(), index);
    }
    state
}

/// The config of an image from scratch (A7.3).
fn empty() -> ImageConfig {
    let mut config = ImageConfig::default();
    config.config.working_dir = "/".to_owned();
    config
}

/// The files of a named context as a layer on nothing, and what history says of it.
fn tree(
    shared: &mut Shared<'_>,
    context: usize,
    origin: Origin,
    prefix: &str,
) -> (VertexId, String) {
    let files = shared.named_context(context, origin);
    let named = &shared.options.contexts[context];
    if let ContextSource::Git(git) = &named.source {
        return (files, format!("git snapshot for {}", git.url));
    }
    let (name, created_by) = (
        format!("{prefix}FROM {}", named.name),
        format!("local source for {}", named.name),
    );
    let root = shared.scratch(origin);
    let path = ".".to_owned();
    let copy = CopyOp {
        sources: vec![CopySource::Path { input: 1, path }],
        destination: "/".to_owned(),
        ..CopyOp::default()
    };
    let vertex = shared.graph.add(Vertex {
        op: Op::Copy(copy),
        inputs: vec![root, files],
        name,
        origin: Some(origin),
    });
    (vertex, created_by)
}

/// The start of a stage whose base image is not known, though perhaps what such images say.
fn unknown(vertex: VertexId, known: bool) -> State {
    State {
        known,
        ..start(vertex, ImageConfig::default())
    }
}

fn start(vertex: VertexId, config: ImageConfig) -> State {
    State {
        vertex,
        config,
        base: None,
        history: Vec::new(),
        scope: Scope::default(),
        env_at: HashMap::new(),
        has_cmd: false,
        workdir_set: false,
        known: true,
        doubtful: false,
    }
}

/// Makes the config of a base that of a new image (A7.4, A7.5, A7.12).
fn inherit(config: &mut ImageConfig, platform: &Platform) {
    config.created = None;
    for member in STALE {
        config.extra.remove(*member);
    }
    for member in STALE_INNER {
        config.config.extra.remove(*member);
    }
    config.config.on_build = None;
    if config.os.is_empty() && config.architecture.is_empty() {
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
        config.variant.clone_from(&platform.variant);
        config.os_version.clone_from(&platform.os_version);
        config.os_features.clone_from(&platform.os_features);
    }
    let path = match config.os.as_str() {
        "windows" => "c:\\Windows\\System32;c:\\Windows",
        _ => "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    };
    let env = config.config.env.get_or_insert_default();
    if !env.iter().any(|pair| pair.starts_with("PATH=")) {
        env.push(format!("PATH={path}"));
    }
    if !config.config.working_dir.is_empty() && config.os != "windows" {
        config.config.working_dir = path::join("/", &config.config.working_dir);
    }
}

/// Warns of a base image of another platform (A7.8).
fn warn_about_platform(shared: &mut Shared<'_>, index: usize, name: &str, config: &ImageConfig) {
    let stage = &shared.stages.list[index];
    let actual = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
        ..Platform::default()
    }
    .normalized();
    let wanted = &stage.platform;
    let unknown = actual.os.is_empty() || actual.architecture.is_empty();
    if unknown || (actual.os == wanted.os && actual.architecture == wanted.architecture) {
        return;
    }
    let message = format!(
        "Base image {name} was pulled with platform \"{actual}\", expected \"{wanted}\" for current build"
    );
    let warning = Diagnostic::warning("InvalidBaseImagePlatform", message, stage.ast.base.span);
    shared.warn(warning);
}
