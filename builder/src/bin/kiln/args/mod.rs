//! The command line, as clap reads it; nothing here does anything.
#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "the comments are help texts: `NAME[:TAG]` is no link"
)]

mod legacy;
mod login;
mod manifest;
mod output;
mod remote;
mod run;
mod sandbox;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use kiln_builder::snapshot::Backend;

pub(crate) use legacy::LegacyArgs;
pub(crate) use login::{LoginArgs, LogoutArgs};
pub(crate) use manifest::{
    AnnotateArgs, CreateArgs, InspectListArgs, ListCommand, PushListArgs, RmListArgs,
};
pub(crate) use output::OutputArgs;
pub(crate) use remote::{CopyArgs, ListFormat, ReferrersArgs, RmRemoteArgs, SearchArgs, TagsArgs};
pub(crate) use run::{OnFail, PullPolicy, RunArgs, ShellArgs};
pub(crate) use sandbox::{SandboxArgs, names};

/// Builds container images from Dockerfiles and moves them to and from registries, without a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Folder of the store [default: /var/lib/kiln as root, else $XDG_DATA_HOME/kiln]
    #[arg(long, global = true, env = "KILN_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,

    /// Mirror to pull from first, as HOST=URL; may be repeated (docker.io=http://127.0.0.1:5000)
    #[arg(
        long = "mirror",
        global = true,
        env = "KILN_MIRRORS",
        value_delimiter = ',',
        value_name = "HOST=URL"
    )]
    pub(crate) mirrors: Vec<String>,

    /// Registry, HOST[:PORT], that may speak plain HTTP and whose certificate is not checked; may be
    /// repeated (loopback addresses always may)
    #[arg(
        long = "insecure-registry",
        global = true,
        env = "KILN_INSECURE_REGISTRIES",
        value_delimiter = ',',
        value_name = "HOST"
    )]
    pub(crate) insecure: Vec<String>,

    /// How layers become file systems: overlay mounts them, fuse lets fuse-overlayfs do that (for who
    /// is not root), plain makes directories of hard links and copies, which needs no right to mount
    /// [default: the first that works]
    #[arg(
        long,
        global = true,
        env = "KILN_SNAPSHOTTER",
        hide_env_values = true,
        value_name = "WAY"
    )]
    pub(crate) snapshotter: Option<Backend>,

    /// How far steps are kept apart from this machine [default: the best that it allows; see `kiln
    /// doctor`]
    #[arg(
        long,
        global = true,
        env = "KILN_ISOLATION",
        value_enum,
        default_value_t = IsolationArg::Default,
        hide_default_value = true,
        value_name = "LEVEL"
    )]
    pub(crate) isolation: IsolationArg,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Levels of isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationArg {
    /// The best that this machine allows
    Default,
    /// Namespaces and mounts by this machine's root
    Root,
    /// The same in a user namespace
    Rootless,
    /// A changed root directory only, for root in a container: steps are not kept apart
    Chroot,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    Build(Box<BuildArgs>),
    /// Check a Dockerfile without building it
    Check(CheckArgs),
    /// Run an image in the foreground; what it changes is thrown away
    Run(Box<RunArgs>),
    /// Open a shell in an image, or in a step of the last build
    Shell(ShellArgs),
    /// List images
    Images(ImagesArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove names and images
    Rmi(RmiArgs),
    /// Show all that is known of images, as JSON
    Inspect(InspectArgs),
    /// Show how an image came about
    History(HistoryArgs),
    /// Send an image to its registry
    Push(PushArgs),
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// Keep the credentials for a registry, once it accepts them
    Login(LoginArgs),
    /// Forget the credentials for a registry
    Logout(LogoutArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Read images from an archive
    Load(LoadArgs),
    /// Copy images between registries, layouts and archives as they are, past the store
    Copy(CopyArgs),
    /// List the tags of a repository in its registry
    Tags(TagsArgs),
    /// Delete tags and manifests in a registry
    RmRemote(RmRemoteArgs),
    /// Show what refers to an image in its registry: signatures, attestations
    Referrers(ReferrersArgs),
    /// Put images for several platforms together under one name, as docker does
    #[command(subcommand)]
    Manifest(ListCommand),
    /// The same, always as an OCI index
    #[command(subcommand)]
    Index(ListCommand),
    /// Search Docker Hub for repositories
    Search(SearchArgs),
    /// Show what this machine allows, and what that means for builds
    Doctor(DoctorArgs),
    /// Answer questions about the languages that kiln reads, one JSON object a line
    #[command(subcommand, hide = true)]
    Debug(DebugCommand),
}

/// `kiln doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Form of the report
    #[arg(long, value_enum, default_value_t = DoctorFormat::Text)]
    pub(crate) format: DoctorFormat,
}

/// Forms of the report on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DoctorFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// `kiln debug`
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Expand variables, quotes and escapes
    Words,
    /// Parse Dockerfiles
    Parse,
    /// Read ignore files and match paths
    Ignore,
    /// Parse names of images
    Reference,
}

/// `kiln build`
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Name for the image, NAME[:TAG]; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,

    /// Dockerfile [default: CONTEXT/Dockerfile]; `-` reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Value of an ARG; a name alone takes it from the environment; may be repeated
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,

    /// Context besides the build context, that FROM, COPY --from and RUN --mount may name: a folder,
    /// a git repository, docker-image://IMAGE or oci-layout://FOLDER[:TAG]; NAME::PLATFORM is for one
    /// platform; may be repeated
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    pub(crate) build_contexts: Vec<String>,

    /// Label for the image; may be repeated
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    pub(crate) labels: Vec<String>,

    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Platform to build for, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,

    /// Run every step, whatever is remembered
    #[arg(long)]
    pub(crate) no_cache: bool,

    /// Cache to use besides the store's: IMAGE, or type=registry,ref=IMAGE, type=local,src=FOLDER or
    /// type=s3,bucket=NAME,region=REGION; may be repeated
    #[arg(long = "cache-from", value_name = "type=TYPE,...")]
    pub(crate) cache_from: Vec<String>,

    /// Where to put the cache of this build: IMAGE, or type=registry,ref=IMAGE, type=local,dest=FOLDER
    /// (with max=SIZE the oldest entries go), type=s3,bucket=NAME,region=REGION or type=inline;
    /// mode=max has the steps of all stages; may be repeated
    #[arg(long = "cache-to", value_name = "type=TYPE,...")]
    pub(crate) cache_to: Vec<String>,

    /// Run every step of these stages, by name or number, whatever is remembered; a list with commas,
    /// may be repeated
    #[arg(
        long,
        value_name = "STAGE",
        value_delimiter = ',',
        conflicts_with = "no_cache"
    )]
    pub(crate) no_cache_filter: Vec<String>,

    /// Fail before a step of this stage is executed; without a name, before any step is; may be
    /// repeated
    #[arg(
        long,
        value_name = "STAGE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        value_delimiter = ',',
        conflicts_with_all = ["no_cache", "no_cache_filter"]
    )]
    pub(crate) require_cached: Option<Vec<String>>,

    /// Say which steps were in the cache, and why the others were not: json, on standard output;
    /// json,dest=FILE writes it to a file
    #[arg(long, value_name = "FORM")]
    pub(crate) explain_cache: Option<String>,

    /// Say what would be executed and fetched, as text or json, and do nothing; ends with 0 when there
    /// is nothing to do, else with 2
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text",
        conflicts_with_all = ["push", "outputs", "load", "metadata_file", "explain_cache", "require_cached", "iidfile"]
    )]
    pub(crate) plan: Option<PlanFormat>,

    /// Steps to execute at once; 0 for as many as there are [default: by the number of processors]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<u32>,

    /// Where contents of RUN --mount=type=cache are restored from before they are used, and saved to
    /// after the build: dir:FOLDER, type=registry,ref=IMAGE or type=s3,...; with max=SIZE no more
    /// than that
    #[arg(long, value_name = "dir:FOLDER|type=TYPE,...")]
    pub(crate) cache_mounts: Option<String>,

    /// Ask the registry for base images even when they are here
    #[arg(long)]
    pub(crate) pull: bool,

    /// Push the image under all its names when it is built
    #[arg(long, requires = "tags")]
    pub(crate) push: bool,

    #[command(flatten)]
    pub(crate) output: OutputArgs,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,

    /// Secret for RUN --mount=type=secret: id=ID[,src=FILE][,env=VARIABLE][,type=file|env]; may be
    /// repeated
    #[arg(long = "secret", value_name = "id=ID[,src=FILE]")]
    pub(crate) secrets: Vec<String>,

    /// Agent for RUN --mount=type=ssh: its socket [default: $SSH_AUTH_SOCK], or files with private keys;
    /// may be repeated
    #[arg(long, value_name = "default|ID[=SOCKET|KEY[,KEY]...]")]
    pub(crate) ssh: Vec<String>,

    /// Allow what the Dockerfile asks for: network.host, security.insecure; a list with commas, may
    /// be repeated
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub(crate) allow: Vec<String>,

    /// Rights of RUN steps: seccomp=FILE is a profile of system calls in docker's JSON,
    /// seccomp=unconfined allows all of them, seccomp=builtin is the default; may be repeated
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,

    /// Runtime of RUN steps instead of kiln's own: crun, runc, youki, or the path of another that
    /// takes OCI bundles
    #[arg(long, value_name = "RUNTIME")]
    pub(crate) runtime: Option<String>,

    /// Show this machine's certificate authorities, and its proxy settings, to RUN steps; nothing
    /// of them reaches the image
    #[arg(long)]
    pub(crate) host_ca: bool,

    /// What to do when a RUN step fails, besides saying so: open a shell in it, where there is a
    /// terminal
    #[arg(long, value_enum, default_value_t = OnFail::None, value_name = "WHAT")]
    pub(crate) on_fail: OnFail,

    /// Print nothing but the image's id
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,

    /// How to show what happens
    #[arg(long, value_enum, env = "BUILDKIT_PROGRESS", default_value_t = ProgressArg::Auto)]
    pub(crate) progress: ProgressArg,

    /// Ask instead of building: METHOD[,format=json][,ignorestatus=true], where METHOD is build, check,
    /// outline, targets or subrequests.describe
    #[arg(
        long,
        value_name = "METHOD",
        alias = "print",
        default_value = "build",
        hide_default_value = true
    )]
    pub(crate) call: String,

    /// Check the Dockerfile by docker's rules instead of building, as --call=check
    #[arg(long, conflicts_with = "call")]
    pub(crate) check: bool,

    #[command(flatten)]
    pub(crate) legacy: LegacyArgs,

    /// Folder of the build context
    #[arg(value_name = "CONTEXT")]
    pub(crate) context: PathBuf,
}

/// `kiln check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Dockerfile [default: CONTEXT/Dockerfile]; `-` reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Form of the report
    #[arg(long, value_enum, default_value_t = CheckFormat::Text)]
    pub(crate) format: CheckFormat,

    /// Fix what can be fixed without a person, in the file; with `-f -` on standard output
    #[arg(long)]
    pub(crate) fix: bool,

    /// Show what --fix would change, as a unified diff
    #[arg(long, requires = "fix")]
    pub(crate) dry_run: bool,

    /// Rules to leave out, RULE[,RULE], or all; may be repeated
    #[arg(long, value_name = "RULES")]
    pub(crate) skip: Vec<String>,

    /// Rules to look at that are off by default, RULE[,RULE], or all; may be repeated
    #[arg(long, value_name = "RULES")]
    pub(crate) enable: Vec<String>,

    /// Fail when there are warnings
    #[arg(long)]
    pub(crate) error: bool,

    /// Look at what this stage needs [default: all stages]
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,

    /// Value of an ARG; a name alone takes it from the environment; may be repeated
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,

    /// Platform to look at it for, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,

    /// Show the page of a rule: what is bad, what is good, and why
    #[arg(long, value_name = "RULE", conflicts_with_all = ["list", "fix"])]
    pub(crate) explain: Option<String>,

    /// List all rules
    #[arg(long, conflicts_with = "fix")]
    pub(crate) list: bool,

    /// Folder of the build context
    #[arg(value_name = "CONTEXT", default_value = ".")]
    pub(crate) context: PathBuf,
}

/// Forms of the report of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CheckFormat {
    /// For people
    Text,
    /// docker's JSON
    Json,
    /// SARIF 2.1.0, for code hosts and editors
    Sarif,
    /// Annotations of GitHub Actions
    Github,
}

/// Forms of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Ways to show progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressArg {
    /// Live on a terminal, else plain
    Auto,
    /// Line by line
    Plain,
}

/// `kiln images`
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Only images of this name, NAME[:TAG]
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// `kiln tag`
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Name or id of an image
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// The new name, NAME[:TAG]
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
}

/// `kiln rmi`
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Remove an image although it has several names
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids of images
    #[arg(required = true, value_name = "IMAGE", action = ArgAction::Append)]
    pub(crate) images: Vec<String>,
}

/// `kiln inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Names or ids of images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// `kiln history`
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Do not shorten anything
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Sizes and dates for people (`false`: bytes and RFC 3339)
    #[arg(short = 'H', long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) human: bool,
    /// Name or id of an image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

/// `kiln push`
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Print nothing but the name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Push all tags that the repository has here
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// What layers that were built here are compressed with: gzip, zstd or uncompressed
    #[arg(long, value_name = "COMPRESSION")]
    pub(crate) compression: Option<String>,
    /// How hard: 1 to 9 for gzip, 0 to 22 for zstd
    #[arg(long, value_name = "LEVEL", requires = "compression")]
    pub(crate) compression_level: Option<String>,
    /// Compress the layers of base images so, too
    #[arg(long)]
    pub(crate) force_compression: bool,
    /// Push the image for this platform, OS/ARCH[/VARIANT], and fail if it is for another
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// The image, NAME[:TAG]
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `kiln pull`
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Print nothing but the name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Pull all tags of the repository
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// Platform to fetch, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// The image, NAME[:TAG][@DIGEST]
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `kiln save`
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Names or ids of images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

/// `kiln load`
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// File to read [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Print nothing but the names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
