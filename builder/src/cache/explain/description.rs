//! What went into the key of a step, in the user's words: enough to say later what is different.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher as _};

use kiln_grammar::lint::is_secret;
use kiln_registry::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::cache::CacheKey;
use crate::event::masked;
use crate::graph::{CopyOp, CopySource, Graph, ImageOp, MkdirOp, MountOp, Op, RunOp, VertexId};

/// Version of the form; a description of another one is none.
const VERSION: u32 = 1;
/// Characters of a value that are kept.
const VALUE: usize = 200;

/// What went into the definition key of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    version: u32,
    /// What progress shows in brackets, for example `builder 2/5`.
    pub label: String,
    /// The instruction as progress shows it.
    pub text: String,
    /// Whether it is not an instruction, but a view of files that a mount shows.
    pub view: bool,
    /// What else the instruction says, flag by flag.
    pub parts: Vec<Part>,
    /// The environment of a process.
    pub variables: Vec<Variable>,
    /// What a process is shown, by target.
    pub mounts: Vec<(String, u64)>,
    /// What it stands on, then what it reads.
    pub inputs: Vec<Source>,
    /// The files that it copies, where they are part of the key.
    pub files: Option<Digest>,
}

/// One thing that an instruction says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is, in words.
    pub what: String,
    /// Its value where it may be shown.
    pub value: Option<String>,
    /// Tells the value from others.
    pub mark: u64,
}

/// A variable of the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Whether an `ARG` sets it, not an `ENV`.
    pub argument: bool,
    /// Its value; `None` where its name says that it is a secret.
    pub value: Option<String>,
    /// Tells the value from others. Of a secret it has 16 bits, from which nobody can tell the value.
    pub mark: u64,
}

/// Something that a step stands on or reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// The name of an image, the address of a download, the label of a step.
    pub name: String,
    /// The digest of an image as people know it.
    pub image: Option<Digest>,
    /// Its key; `None` where only the files that are copied from it count.
    pub key: Option<Digest>,
}

/// Kinds of [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// Nothing: `FROM scratch`.
    Scratch,
    /// An image.
    Image,
    /// A build context.
    Context,
    /// A step before.
    Step,
    /// A download.
    Url,
    /// A git repository.
    Git,
}

/// What a graph does not say of itself.
#[derive(Clone, Copy)]
pub struct Names<'a> {
    /// The variables that `ARG`s set, of each stage.
    pub arguments: &'a [BTreeSet<String>],
    /// The digest of an image as people know it.
    pub image: &'a dyn Fn(&ImageOp) -> Digest,
}

impl std::fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Description {
    /// Describes a vertex that makes a layer: `key` gives the keys of its inputs, `files` is the digest
    /// of what it copies from contexts and downloads, where it does that only.
    #[must_use]
    pub fn of(
        graph: &Graph,
        id: VertexId,
        names: &Names<'_>,
        key: &dyn Fn(VertexId) -> CacheKey,
        files: Option<Digest>,
    ) -> Self {
        let vertex = graph.vertex(id);
        let (label, text) = split_name(&vertex.name);
        let mut description = Self {
            version: VERSION,
            label: label.to_owned(),
            text: masked(text),
            view: is_view(graph, id),
            parts: Vec::new(),
            variables: Vec::new(),
            mounts: Vec::new(),
            inputs: Vec::new(),
            files,
        };
        for (index, input) in vertex.inputs.iter().enumerate() {
            let mut source = source(graph, *input, names, key(*input));
            if index > 0 && files.is_some() {
                source.key = None;
            }
            description.inputs.push(source);
        }
        let stage = vertex.origin.map_or(0, |origin| origin.stage);
        match &vertex.op {
            Op::Run(op) => description.run(op, names.arguments.get(stage)),
            Op::Copy(op) => description.copy(op),
            Op::Mkdir(op) => description.directory(op),
            Op::Scratch | Op::Image(_) | Op::Context(_) | Op::Fetch(_) | Op::Git(_) => {}
        }
        description
    }

    /// Reads what [`Self::encode`] wrote; `None` for what is none of this version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let description: Self = serde_json::from_str(text).ok()?;
        (description.version == VERSION).then_some(description)
    }

    /// The description as text.
    #[must_use]
    pub fn encode(&self) -> String {
        // Serialising plain structs, strings and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How messages name the step.
    #[must_use]
    pub fn name(&self) -> String {
        if self.label.contains('/') {
            format!("step {}", self.label)
        } else {
            format!("`{}`", self.text)
        }
    }

    /// The keyword of the instruction.
    pub(super) fn keyword(&self) -> &str {
        self.text.split(' ').next().unwrap_or_default()
    }

    /// The stage's part of the label.
    pub(super) fn stage(&self) -> &str {
        let at = self.label.rfind(' ');
        at.map_or("", |at| self.label.get(..at).unwrap_or_default())
            .trim_end()
    }

    /// The number's part of the label.
    pub(super) fn number(&self) -> &str {
        let number = self.label.rsplit(' ').next().unwrap_or_default();
        number.split('/').next().unwrap_or_default()
    }

    fn run(&mut self, op: &RunOp, arguments: Option<&BTreeSet<String>>) {
        self.hidden("the command", &(&op.args, &op.scripts));
        self.shown("the directory", &op.cwd);
        self.shown("the user", &op.user);
        self.shown("--network", &format!("{:?}", op.network).to_lowercase());
        self.shown("--security", &format!("{:?}", op.security).to_lowercase());
        self.shown("the host name", op.hostname.as_deref().unwrap_or_default());
        self.hidden("the limits of the process", &op.limits);
        self.shown("--add-host", &op.extra_hosts.join(","));
        for (name, value) in &op.env {
            let argument = arguments.is_some_and(|names| names.contains(name));
            self.variables.push(variable(name, value, argument));
        }
        for mount in &op.mounts {
            let encoded = serde_json::to_string(mount).unwrap_or_default();
            self.mounts.push((target(mount), mark(&encoded)));
        }
    }

    fn copy(&mut self, op: &CopyOp) {
        let paths: Vec<_> = op
            .sources
            .iter()
            .filter_map(|source| match source {
                CopySource::Path { path, .. } => Some(path),
                CopySource::Inline { .. } => None,
            })
            .collect();
        let inline: Vec<_> = op
            .sources
            .iter()
            .filter(|source| matches!(source, CopySource::Inline { .. }))
            .collect();
        self.hidden("the sources", &paths);
        self.hidden("the content of a heredoc", &inline);
        self.hidden("the destination", &op.destination);
        self.shown("--chown", op.chown.as_deref().unwrap_or_default());
        self.shown("--chmod", op.chmod.as_deref().unwrap_or_default());
        self.shown("--exclude", &op.exclude.join(","));
        let flags = (
            (op.parents, op.link, op.literal),
            (op.unpack, op.unpack_fetched, op.keep_owner),
        );
        self.hidden("the flags", &flags);
    }

    fn directory(&mut self, op: &MkdirOp) {
        self.shown("the directory", &op.path);
        self.shown("the user", &op.user);
    }

    fn shown(&mut self, what: &str, value: &str) {
        self.parts.push(Part {
            what: what.to_owned(),
            value: Some(cut(&masked(value))),
            mark: mark(value),
        });
    }

    fn hidden(&mut self, what: &str, value: &impl std::hash::Hash) {
        self.parts.push(Part {
            what: what.to_owned(),
            value: None,
            mark: mark(value),
        });
    }
}

/// Whether a vertex is what a mount shows of a context.
pub(super) fn is_view(graph: &Graph, id: VertexId) -> bool {
    let vertex = graph.vertex(id);
    let on_nothing = vertex
        .inputs
        .first()
        .is_some_and(|root| matches!(graph.vertex(*root).op, Op::Scratch));
    on_nothing && matches!(&vertex.op, Op::Copy(op) if op.literal)
}

/// The label of a step's name, and what comes behind it.
fn split_name(name: &str) -> (&str, &str) {
    let split = name
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    split.unwrap_or(("", name))
}

fn source(graph: &Graph, id: VertexId, names: &Names<'_>, key: CacheKey) -> Source {
    let vertex = graph.vertex(id);
    let (label, text) = split_name(&vertex.name);
    let (kind, name, image) = match &vertex.op {
        Op::Scratch => (SourceKind::Scratch, "scratch".to_owned(), None),
        Op::Image(image) => (
            SourceKind::Image,
            image.name.clone(),
            Some((names.image)(image)),
        ),
        Op::Context(_) => (SourceKind::Context, vertex.name.clone(), None),
        Op::Fetch(fetch) => (SourceKind::Url, masked(&fetch.url), None),
        Op::Git(git) => (SourceKind::Git, masked(&git.url), None),
        Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) if label.contains('/') => {
            (SourceKind::Step, format!("step {label}"), None)
        }
        Op::Run(_) | Op::Copy(_) | Op::Mkdir(_) => {
            (SourceKind::Step, format!("`{}`", masked(text)), None)
        }
    };
    Source {
        kind,
        name,
        image,
        key: Some(*key.digest()),
    }
}

fn variable(name: &str, value: &str, argument: bool) -> Variable {
    let secret = is_secret(name);
    let full = mark(&(name, value));
    Variable {
        name: name.to_owned(),
        argument,
        value: (!secret).then(|| cut(&masked(value))),
        mark: if secret { full & 0xffff } else { full },
    }
}

/// What a mount is known by: where it appears.
fn target(mount: &MountOp) -> String {
    match mount {
        MountOp::Bind { target, .. }
        | MountOp::Tmpfs { target, .. }
        | MountOp::Cache { target, .. }
        | MountOp::Ssh { target, .. } => target.clone(),
        MountOp::Secret {
            id, target, env, ..
        } => {
            let name = target.as_ref().or(env.as_ref());
            name.unwrap_or(id).clone()
        }
    }
}

/// Tells a value from others. Not a key: a change of it between versions of kiln costs a word in a
/// message.
fn mark(value: &(impl std::hash::Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(VALUE).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
