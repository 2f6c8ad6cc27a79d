//! Images and steps in the foreground: `kiln run` and `kiln shell`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};

use super::SandboxArgs;

/// `kiln run`
#[derive(Debug, Args)]
#[command(
    override_usage = "kiln run [OPTIONS] IMAGE [COMMAND] [ARG]...",
    disable_help_flag = true
)]
pub(crate) struct RunArgs {
    /// Remove everything afterwards; kiln always does
    #[arg(long)]
    pub(crate) rm: bool,

    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// Variable for the program; a name alone takes it from the environment; may be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,

    /// File with variables, one a line; may be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    pub(crate) env_files: Vec<PathBuf>,

    /// File or folder of this machine to show, made where it is missing; may be repeated
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    pub(crate) volumes: Vec<String>,

    /// Empty file system in memory; may be repeated
    #[arg(long, value_name = "PATH[:size=BYTES]")]
    pub(crate) tmpfs: Vec<String>,

    /// Working directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// User, NAME|UID[:GROUP|GID] [default: the image's]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// Program instead of the image's ENTRYPOINT and CMD
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,

    /// Rights of the program: seccomp=FILE|unconfined|builtin; may be repeated
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,

    /// Runtime instead of kiln's own: crun, runc, youki, or the path of another that
    /// takes OCI bundles
    #[arg(long, value_name = "RUNTIME")]
    pub(crate) runtime: Option<String>,

    /// Host name [default: kiln]
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Do not let the program write to its root
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Platform, OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM", value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,

    /// When to fetch the image from its registry
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pub(crate) pull: PullPolicy,

    /// Say nothing about fetching the image
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub(crate) help: Option<bool>,

    /// The image, and what to run instead of its CMD
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE")]
    pub(crate) image_and_command: Vec<String>,
}

/// `kiln shell`
#[derive(Debug, Args)]
#[command(
    override_usage = "kiln shell [OPTIONS] IMAGE [COMMAND] [ARG]...\n       \
                      kiln shell [OPTIONS] <--failed|--step STEP> [COMMAND] [ARG]..."
)]
pub(crate) struct ShellArgs {
    /// Open the step that failed in the last build on this store, as far as it got
    #[arg(long, conflicts_with = "step")]
    pub(crate) failed: bool,

    /// Open a step of the last build as it left its files: its number, as `5` for what plain
    /// progress calls #5, or its place, as `2/7` or `builder 2/7`
    #[arg(long, value_name = "STEP")]
    pub(crate) step: Option<String>,

    /// Open the step as it was before it ran
    #[arg(long)]
    pub(crate) before: bool,

    /// Secret of the step, where it does not come from the same place as in the build:
    /// id=ID[,src=FILE][,env=VARIABLE]; may be repeated
    #[arg(long = "secret", value_name = "id=ID[,src=FILE]")]
    pub(crate) secrets: Vec<String>,

    /// Agent of ssh for the step: default or ID[=SOCKET|KEY,...]; may be repeated
    #[arg(long, value_name = "ID[=SOCKET|KEY]")]
    pub(crate) ssh: Vec<String>,

    /// User, NAME|UID[:GROUP|GID] [default: that of the step or the image]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// Say nothing about fetching the image, or about what is opened
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// The image, unless a step is opened; and what to run instead of a shell
    #[arg(trailing_var_arg = true, value_name = "IMAGE|COMMAND")]
    pub(crate) words: Vec<String>,
}

/// What happens when a step fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFail {
    /// Nothing more
    None,
    /// A shell in the step
    Shell,
}

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// When it is not here
    Missing,
    /// Always
    Always,
    /// Not at all
    Never,
}
