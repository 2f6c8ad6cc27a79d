//! The operations that make file systems.

use kiln_grammar::mount::Sharing;
use kiln_grammar::source::Span;
use kiln_registry::credentials::Secret;
use kiln_registry::digest::Digest;
use kiln_registry::spec::DiffId;
use serde::{Deserialize, Serialize};

use super::limits::Limits;

/// What a vertex does. A closed set: `ENV`, `LABEL`, `CMD` and the like make no vertex, they edit
/// the config that lowering carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Op {
    /// An empty root; no inputs.
    Scratch,
    /// The layers of an image; no inputs.
    Image(ImageOp),
    /// The files of a build context (no inputs); copies and mounts read it.
    Context(ContextOp),
    /// Runs a process. Input 0 is its root, the others are what its mounts show.
    Run(RunOp),
    /// Copies files. Input 0 is the root that is written to, the others are read from.
    Copy(CopyOp),
    /// Makes a working directory. Input 0 is the root.
    Mkdir(MkdirOp),
    /// Downloads one file (no inputs); the result is a directory that holds just it.
    Fetch(FetchOp),
    /// Checks out a git repository (no inputs); the result is a layer of its files.
    Git(GitOp),
}

/// A folder of the client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ContextOp {
    /// Which of the named contexts (C7); `None` for the build context itself.
    pub name: Option<String>,
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ImageOp {
    /// The full name as the user may read it; not part of the operation's identity.
    #[serde(skip)]
    pub name: String,
    /// Digest of the image's config; not part of the operation's identity, which is the layers.
    #[serde(skip)]
    pub config: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<DiffId>,
}

/// A process to run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunOp {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `(name, value)` in order; what the cache key holds. Proxy variables that no
    /// `ARG` declares are not here (A6.9), the step adds them.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `user[:group]`, empty for root.
    pub user: String,
    /// Network.
    pub network: Network,
    /// Rights; the usual ones are not in the encoding, so that keys are what they always were.
    #[serde(default, skip_serializing_if = "Security::is_sandbox")]
    pub security: Security,
    /// Host name, where it is not the usual one (A6.11).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Scripts of heredocs with a `#!` line (A13.5): file name under `/dev/pipes` and content.
    pub scripts: Vec<Script>,
    /// Mounts asked for by `--mount`.
    pub mounts: Vec<MountOp>,
    /// What it may use of the machine.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Box<Limits>,
    /// Names of `--add-host`, in alphabetical order; what they stand for is the machine's to say
    /// and in no key (A15.2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
}

/// A file that exists only while a process runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Script {
    /// Its name under `/dev/pipes`.
    pub name: String,
    /// Its content.
    pub content: String,
}

/// A mount of `RUN --mount` (B2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MountOp {
    /// A view of a directory or file of an input.
    Bind {
        /// Index into the vertex's inputs.
        input: usize,
        /// Path in that input.
        source: String,
        /// Where it appears, absolute.
        target: String,
        /// Whether writes succeed (they are thrown away).
        writable: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Where it appears, absolute.
        target: String,
        /// Its size limit in bytes.
        size: Option<u64>,
    },
    /// A directory that outlives the build.
    Cache {
        /// What it is known by, with the namespace; not part of the operation's identity (A15.2).
        #[serde(skip)]
        id: String,
        /// Where it appears, absolute.
        target: String,
        /// What several writers do; not part of the operation's identity either.
        #[serde(skip)]
        sharing: Sharing,
        /// Whether the process may write to it.
        writable: bool,
        /// Where its first content comes from: an index into the vertex's inputs and a directory of
        /// that input. `None` lets it begin empty.
        seed: Option<(usize, String)>,
        /// Permission bits when it is made; `None` for those of the seed, or 0755 without one.
        mode: Option<u32>,
        /// Owner when it is made; `None` for that of the seed, or 0 without one.
        uid: Option<u32>,
        /// Group when it is made, as `uid`.
        gid: Option<u32>,
    },
    /// A secret, as a file or in the environment or both.
    Secret {
        /// Which one.
        id: String,
        /// The file, absolute.
        target: Option<String>,
        /// The variable.
        env: Option<String>,
        /// Whether the step fails without it.
        required: bool,
        /// Permission bits of the file.
        mode: u32,
        /// User and group that own the file.
        owner: (u32, u32),
    },
    /// A socket that an ssh agent answers.
    Ssh {
        /// Which agent.
        id: String,
        /// Where it appears, absolute.
        target: String,
        /// Whether the step fails without it.
        required: bool,
        /// Permission bits.
        mode: u32,
        /// User and group that own it.
        owner: (u32, u32),
    },
}

/// The network a process sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// What the machine has for it: best a network of its own with a way out, else the host's. It
    /// is the same for a cache key wherever it runs.
    #[default]
    Default,
    /// The host's.
    Host,
    /// Only a loopback of its own.
    None,
}

/// The rights of a process (B3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Security {
    /// Those of a sandbox.
    #[default]
    Sandbox,
    /// All.
    Insecure,
}

impl Security {
    fn is_sandbox(&self) -> bool {
        *self == Self::Sandbox
    }
}

/// A `COPY` or `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct CopyOp {
    /// What is copied, in order.
    pub sources: Vec<CopySource>,
    /// Destination: absolute; a slash at its end says that it is a directory (A11.1).
    pub destination: String,
    /// `--chown`, expanded.
    pub chown: Option<String>,
    /// `--chmod`, expanded.
    pub chmod: Option<String>,
    /// `--exclude` patterns.
    pub exclude: Vec<String>,
    /// `--parents`
    pub parents: bool,
    /// `--link`
    pub link: bool,
    /// Whether local archives are unpacked (`ADD`, A12.1).
    pub unpack: bool,
    /// Whether archives that a [`Op::Fetch`] input brings are unpacked too (`ADD --unpack`).
    pub unpack_fetched: bool,
    /// Whether the source keeps its owners (`--from`); context files belong to 0:0 (A10.7).
    pub keep_owner: bool,
    /// Whether paths are taken as they are: no character of them is a wildcard.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub literal: bool,
}

impl CopyOp {
    /// Whether the result depends on what is copied onto. With `--link` it does not (A11.9),
    /// unless names of users are looked up there.
    #[must_use]
    pub fn reads_root(&self) -> bool {
        let number = |id: &str| id.parse().is_ok_and(|id: u32| id < u32::MAX);
        let known = |id: &str| id == "root" || number(id);
        let names = |owner: &String| !owner.split(':').all(known);
        !self.link || self.chown.as_ref().is_some_and(names)
    }
}

/// One source of a [`CopyOp`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum CopySource {
    /// A path, perhaps with wildcards, in an input.
    Path {
        /// Index into the vertex's inputs.
        input: usize,
        /// The path as written, after expansion.
        path: String,
    },
    /// A file given in the Dockerfile itself (A13.8).
    Inline {
        /// Its name.
        name: String,
        /// Its content.
        content: String,
    },
}

/// A working directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MkdirOp {
    /// Absolute path.
    pub path: String,
    /// Owner, `user[:group]`, empty for root.
    pub user: String,
}

/// A download.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FetchOp {
    /// Where from.
    pub url: String,
    /// Name of the resulting file.
    pub name: String,
    /// Digest that it must have.
    pub checksum: Option<Digest>,
}

/// The files of a git repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct GitOp {
    /// Where the repository is, without credentials.
    pub url: String,
    /// User and password that the address had; not part of the operation's identity.
    #[serde(skip)]
    pub login: Option<(String, Secret)>,
    /// Branch, tag, whole reference or commit; `None` for what the repository offers first.
    pub reference: Option<String>,
    /// The commit that it must be, or the first digits of it.
    pub commit: Option<String>,
    /// The directory of the repository to take, relative and clean; empty for all.
    pub subdir: String,
    /// Whether the folder `.git` stays.
    pub keep_git_dir: bool,
    /// Whether submodules are checked out, too, and theirs.
    pub submodules: bool,
}

/// Where in the Dockerfile a vertex comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Index of the stage.
    pub stage: usize,
    /// The instruction; `None` where an `ONBUILD` of a base image asked for it.
    pub span: Option<Span>,
}
