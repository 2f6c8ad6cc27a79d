//! `RUN --mount` (B1, B2).

use kiln_grammar::ast::{Dockerfile, Instruction, Kind, Run, Word};
use kiln_grammar::diagnostic::{Diagnostic, did_you_mean, suggest};
use kiln_grammar::mount::{self, Bind, Cache, Mount, MountError, Secret};
use kiln_grammar::source::Spanned;

use super::copy::input_index;
use super::path;
use super::stage::{StageLowering, Step};
use super::stages::{Source, Use};
use crate::graph::{CopyOp, CopySource, Graph, MountOp, Op, Origin, Vertex, VertexId};

/// The build argument that keeps cache mounts of different projects apart (B2).
pub(super) const NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// Where the files of a context lie in the layer that a mount shows.
const VIEW: &str = "/view";

/// The mounts of one step while they are gathered.
struct Mounts<'a> {
    step: &'a Step<'a>,
    /// What the step reads; input 0 is its root.
    inputs: &'a mut Vec<VertexId>,
    /// Sockets so far.
    sockets: usize,
}

impl StageLowering<'_, '_> {
    /// The mounts of a step; what they show is added to its inputs.
    pub(super) fn mounts(
        &mut self,
        run: &Run,
        step: &Step<'_>,
        inputs: &mut Vec<VertexId>,
    ) -> Result<Vec<MountOp>, Diagnostic> {
        let sockets = 0;
        let mut mounts = Mounts {
            step,
            inputs,
            sockets,
        };
        run.mounts
            .iter()
            .map(|record| self.mount(record, &mut mounts))
            .collect()
    }

    fn mount(&mut self, record: &Word, mounts: &mut Mounts<'_>) -> Result<MountOp, Diagnostic> {
        let mut undefined = Vec::new();
        let mut size = 0;
        let mount = mount::expand_mount(&record.value, &mut |value| {
            let expanded = self.state.scope.expand(value, self.shared.escape)?;
            undefined.extend(expanded.undefined);
            size += expanded.value.len();
            Ok(expanded.value)
        });
        let mount = mount.map_err(|error| mount_error(&error, record))?;
        self.undefined(undefined, record.span);
        self.shared.charge(size, record.span)?;
        match mount {
            Mount::Bind(bind) => self.bind(bind, record, mounts),
            Mount::Tmpfs(tmpfs) => Ok(MountOp::Tmpfs {
                target: self.mount_target(&tmpfs.target, record)?,
                size: tmpfs.size,
            }),
            Mount::Cache(cache) => self.cache(cache, record, mounts),
            Mount::Secret(secret) => self.secret(secret, record),
            Mount::Ssh(ssh) => {
                let number = mounts.sockets;
                mounts.sockets += 1;
                let default = || format!("/run/buildkit/ssh_agent.{number}");
                Ok(MountOp::Ssh {
                    target: self.mount_target(&ssh.target.unwrap_or_else(default), record)?,
                    id: ssh.id,
                    required: ssh.required,
                    mode: ssh.mode,
                    owner: (ssh.uid, ssh.gid),
                })
            }
        }
    }

    fn bind(
        &mut self,
        bind: Bind,
        record: &Word,
        mounts: &mut Mounts<'_>,
    ) -> Result<MountOp, Diagnostic> {
        let vertex = match bind.from {
            None => self.shared.context(),
            Some(name) => self.mounted(name, record, mounts)?,
        };
        let (input, source) = self.shown(vertex, bind.source.as_deref(), mounts);
        Ok(MountOp::Bind {
            input,
            source,
            target: self.mount_target(&bind.target, record)?,
            writable: bind.writable,
        })
    }

    fn cache(
        &mut self,
        cache: Cache,
        record: &Word,
        mounts: &mut Mounts<'_>,
    ) -> Result<MountOp, Diagnostic> {
        let (mode, uid, gid) = match (&cache.from, &cache.source) {
            // What the seed says counts then (B2).
            (Some(_), Some(_)) => (None, None, None),
            _ => (cache.mode, cache.uid, cache.gid),
        };
        let id = cache_id(&cache);
        let id = match self.shared.options.build_arg(NAMESPACE) {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{id}"),
            _ => id,
        };
        let seed = match (cache.from, cache.source) {
            (Some(name), source) => {
                let vertex = self.mounted(name, record, mounts)?;
                Some(self.shown(vertex, source.as_deref(), mounts))
            }
            (None, Some(source)) if path::join("/", &source) != "/" => {
                let message = format!("source \"{source}\" of a cache mount without from");
                return Err(Diagnostic::error(message, record.span)
                    .with_hint("name the stage, context or image that has it: from=NAME"));
            }
            (None, _) => None,
        };
        Ok(MountOp::Cache {
            id,
            target: self.mount_target(&cache.target, record)?,
            sharing: cache.sharing,
            writable: !cache.readonly,
            seed,
            mode,
            uid,
            gid,
        })
    }

    fn secret(&self, secret: Secret, record: &Word) -> Result<MountOp, Diagnostic> {
        if let Some(name) = secret
            .env
            .as_ref()
            .filter(|name| name.contains(['=', '\0']))
        {
            let message = format!("invalid value for env: {name}");
            return Err(Diagnostic::error(message, record.span));
        }
        let target = secret
            .target
            .map(|target| self.mount_target(&target, record));
        Ok(MountOp::Secret {
            id: secret.id,
            target: target.transpose()?,
            env: secret.env,
            required: secret.required,
            mode: secret.mode,
            owner: (secret.uid, secret.gid),
        })
    }

    /// The stage, named context or image that a mount reads (B1.5).
    fn mounted(
        &mut self,
        name: String,
        record: &Word,
        mounts: &Mounts<'_>,
    ) -> Result<VertexId, Diagnostic> {
        let name = Spanned::new(name, record.span);
        let by = Use::Mount;
        let source = Source { name, by };
        let base = self.shared.stages.lookup(&source, self.index)?;
        let origin = self.origin(mounts.step);
        self.shared.input(&base, record.span, origin)
    }

    /// Adds what a mount shows of a vertex to the step's inputs: which one it is, and the path there.
    fn shown(
        &mut self,
        vertex: VertexId,
        source: Option<&str>,
        mounts: &mut Mounts<'_>,
    ) -> (usize, String) {
        let source = path::join("/", source.unwrap_or_default());
        if !matches!(self.shared.graph.vertex(vertex).op, Op::Context(_)) {
            return (input_index(mounts.inputs, vertex), source);
        }
        let origin = self.origin(mounts.step);
        let view = self.view(vertex, &source, origin);
        (input_index(mounts.inputs, view), VIEW.to_owned())
    }

    /// Files of a context as a layer on nothing: root owns them, what the ignore file excludes is not
    /// among them, and nobody who sees them can reach those of the host (B2).
    fn view(&mut self, context: VertexId, source: &str, origin: Origin) -> VertexId {
        let path = match source.trim_start_matches('/') {
            "" => ".".to_owned(),
            path => path.to_owned(),
        };
        let graph = &mut self.shared.graph;
        let name = format!("{}: {path}", graph.vertex(context).name);
        let root = self.shared.scratch(origin);
        let op = Op::Copy(CopyOp {
            sources: vec![CopySource::Path { input: 1, path }],
            destination: VIEW.to_owned(),
            literal: true,
            ..CopyOp::default()
        });
        self.shared.graph.add(Vertex {
            op,
            inputs: vec![root, context],
            name,
            origin: Some(origin),
        })
    }

    /// Where a mount appears: joined with the working directory, and never the root (B1.4).
    fn mount_target(&self, target: &str, record: &Word) -> Result<String, Diagnostic> {
        let path = path::join(self.directory(), target);
        // Where the working directory is not known yet, `.` need not be the root.
        if path == "/" && (self.state.known || self.state.workdir_set) {
            let message = format!("invalid mount target \"{target}\"");
            return Err(Diagnostic::error(message, record.span));
        }
        Ok(path)
    }
}

/// What a cache mount is known by: its target as written where it says nothing else (B2).
pub(super) fn cache_id(cache: &Cache) -> String {
    let default = || path::clean(&cache.target);
    cache.id.clone().unwrap_or_else(default)
}

/// Words for secrets of the command line that nothing in the file or the graph names, with what was
/// probably meant: a mount whose secret is missing is silently none.
#[must_use]
pub fn unused_secrets<'s>(
    file: &Dockerfile,
    graph: &Graph,
    given: impl Iterator<Item = &'s String>,
) -> Vec<String> {
    let instructions = file.stages.iter().flat_map(|stage| &stage.instructions);
    let mut known: Vec<String> = instructions.flat_map(secrets).collect();
    for vertex in graph.vertices() {
        let Op::Run(run) = &vertex.op else { continue };
        known.extend(run.mounts.iter().filter_map(|mount| match mount {
            MountOp::Secret { id, .. } => Some(id.clone()),
            _ => None,
        }));
    }
    // A variable may stand for any of them.
    if known.iter().any(|id| id.contains('$')) {
        return Vec::new();
    }
    // The builder's own, for git and the web (C6).
    let own = |id: &String| id.starts_with("GIT_AUTH_") || id.starts_with("HTTP_AUTH_");
    let unused = given.filter(|id| !known.contains(id) && !own(id));
    let word = |id: &String| {
        let near = suggest(id, known.iter().map(String::as_str));
        let near = did_you_mean(near);
        format!("no RUN --mount=type=secret names the secret `{id}`{near}")
    };
    unused.map(word).collect()
}

/// The ids of the secrets that an instruction mounts, also when it waits for a child image.
fn secrets(instruction: &Instruction) -> Vec<String> {
    let id = |record: &Word| match mount::parse_mount(&record.value) {
        Ok(Mount::Secret(secret)) => Some(secret.id),
        // What has variables may be no mount before they are expanded.
        Err(_) if record.value.contains('$') => Some(record.value.clone()),
        _ => None,
    };
    match &instruction.kind {
        Kind::Run(run) => run.mounts.iter().filter_map(id).collect(),
        Kind::Onbuild(onbuild) => secrets(&onbuild.instruction),
        _ => Vec::new(),
    }
}

/// A mount error with its cause and hint.
fn mount_error(error: &MountError, record: &Word) -> Diagnostic {
    let message = match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let diagnostic = Diagnostic::error(message, record.span);
    match error.hint() {
        Some(hint) => diagnostic.with_hint(hint),
        None => diagnostic,
    }
}

/// The stage or image that a mount reads; only a view of files needs one.
pub(super) fn from(record: &Word) -> Option<Spanned<String>> {
    let fields = fields(&record.value);
    let value = |wanted: &str| {
        let pairs = fields
            .iter()
            .rev()
            .filter_map(|field| field.split_once('='));
        let mut values = pairs.filter(|(key, _)| key.eq_ignore_ascii_case(wanted));
        values.next().map(|(_, value)| value)
    };
    let kind = value("type").unwrap_or("bind").to_lowercase();
    let reads = matches!(kind.as_str(), "bind" | "cache") || kind.contains('$');
    let name = value("from").filter(|name| reads && !name.is_empty())?;
    Some(Spanned::new(name.to_owned(), record.span))
}

/// Splits a CSV record: commas separate, double quotes around a field protect them, and two in
/// such a field are one.
fn fields(record: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = record.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(field) = fields.last_mut() else {
            break;
        };
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use kiln_grammar::source::Span;

    use super::*;

    /// B1.1
    #[test]
    fn records_are_csv() {
        assert_eq!(fields("type=bind,target=/a"), ["type=bind", "target=/a"]);
        assert_eq!(fields(r#""target=/a,b",ro"#), ["target=/a,b", "ro"]);
        assert_eq!(fields(r#""a=""x""",b"#), [r#"a="x""#, "b"]);
        assert_eq!(fields(""), [""]);
    }

    /// B1.5
    #[test]
    fn only_views_of_files_read_a_stage() {
        let from = |text: &str| {
            from(&Spanned::new(text.to_owned(), Span::default())).map(|name| name.value)
        };
        assert_eq!(from("from=a,target=/x"), Some("a".to_owned()));
        assert_eq!(from("TYPE=bind,FROM=a"), Some("a".to_owned()));
        assert_eq!(from("type=cache,from=a,target=/x"), Some("a".to_owned()));
        assert_eq!(from("type=tmpfs,from=a,target=/x"), None);
        assert_eq!(from("type=bind,target=/x"), None);
        assert_eq!(from("from=,target=/x"), None);
    }
}
