//! The typed Dockerfile: what was written, before any variable is expanded.
//!
//! Every node keeps its [`Span`] so that a failed step, many stages later, still points at its
//! line. A [`Word`] is text as written (quotes and `$` kept); [`crate::word`] expands it.

use crate::diagnostic::Diagnostic;
use crate::source::{Span, Spanned};

/// Text that still has to be expanded, as written: quotes, escapes and `$name` are in it.
pub type Word = Spanned<String>;

/// A parsed Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The parser directives at its top (A2).
    pub directives: Directives,
    /// `ARG` instructions before the first `FROM` (A6.1).
    pub global_args: Vec<Instruction>,
    /// The build stages in the order of the file; never empty.
    pub stages: Vec<Stage>,
    /// What is legal and yet worth a word (for example an empty continuation line, A1.7).
    pub warnings: Vec<Diagnostic>,
}

/// The parser directives of A2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// The escape character, `\` or a backtick.
    pub escape: char,
    /// Value of `# syntax=`, up to the first blank.
    pub syntax: Option<Spanned<String>>,
    /// Value of `# check=`.
    pub check: Option<Spanned<String>>,
}

/// One build stage: a `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The base as written: an image reference, a stage name or `scratch`.
    pub base: Word,
    /// Value of `--platform`.
    pub platform: Option<Word>,
    /// Name behind `AS`, in lower case.
    pub name: Option<Spanned<String>>,
    /// The `FROM` instruction, from its keyword to its end.
    pub span: Span,
    /// The instructions of the stage.
    pub instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The keyword as written, for example `Run`.
    pub keyword: Spanned<String>,
    /// The instruction as one logical line: continuation lines joined, comments gone, heredoc
    /// bodies left out. It is what progress output shows.
    pub text: String,
    /// From the keyword to the end of the instruction, heredoc bodies included.
    pub span: Span,
    /// What it says.
    pub kind: Kind,
}

/// The instructions that can stand in a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `ARG name[=value] ...`
    Arg(Vec<ArgPair>),
    /// `ENV`, name and value; the old form `ENV name value` gives one pair.
    Env(Vec<KeyValue>),
    /// `LABEL`, like [`Kind::Env`].
    Label(Vec<KeyValue>),
    /// `RUN`
    Run(Run),
    /// `CMD`
    Cmd(Command),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `SHELL`
    Shell(Vec<String>),
    /// `COPY`
    Copy(Copy),
    /// `ADD`
    Add(Add),
    /// `VOLUME`
    Volume(Vec<Word>),
    /// `EXPOSE`
    Expose(Vec<Word>),
    /// `WORKDIR`
    Workdir(Word),
    /// `USER`
    User(Word),
    /// `STOPSIGNAL`
    StopSignal(Word),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD`, and the instruction that a child image will run.
    Onbuild(Onbuild),
    /// `MAINTAINER`
    Maintainer(Word),
}

/// One `name` or `name=value` of an `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgPair {
    /// The name; it is not expanded.
    pub name: Spanned<String>,
    /// The default; `None` for `ARG name`, an empty word for `ARG name=`.
    pub default: Option<Word>,
}

/// One pair of an `ENV` or `LABEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The name.
    pub key: Word,
    /// The value.
    pub value: Word,
}

/// A command in shell or exec form (A3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Text for the shell.
    Shell(String),
    /// A JSON array of strings.
    Exec(Vec<String>),
}

/// A `RUN` instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `--mount=` values as written: one CSV record each.
    pub mounts: Vec<Word>,
    /// `--network=`
    pub network: Option<Spanned<String>>,
    /// `--security=`
    pub security: Option<Spanned<String>>,
    /// `--device=` values.
    pub devices: Vec<Spanned<String>>,
    /// The command; for shell form with heredocs the line with its `<<NAME` words.
    pub command: Command,
    /// The heredocs in order of appearance; empty for the exec form.
    pub heredocs: Vec<Heredoc>,
}

/// A `COPY` instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// `--from=`: a stage name or index, a named context or an image. Never expanded (A5.2).
    pub from: Option<Spanned<String>>,
    /// What `COPY` and `ADD` share.
    pub files: Files,
    /// `--parents`
    pub parents: bool,
}

/// An `ADD` instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// What `COPY` and `ADD` share.
    pub files: Files,
    /// `--checksum=`
    pub checksum: Option<Word>,
    /// `--keep-git-dir`
    pub keep_git_dir: bool,
    /// `--unpack`; `None` leaves it to the kind of source (A12.1).
    pub unpack: Option<bool>,
}

/// Sources, destination and the flags that `COPY` and `ADD` share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `--chown=`
    pub chown: Option<Word>,
    /// `--chmod=`
    pub chmod: Option<Word>,
    /// `--link`
    pub link: bool,
    /// `--exclude=` values; never expanded.
    pub exclude: Vec<Spanned<String>>,
    /// The sources; never empty.
    pub sources: Vec<Source>,
    /// The destination.
    pub destination: Word,
}

/// A source of `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path, pattern, URL or git reference.
    Path(Word),
    /// A heredoc: a file named like its word.
    Heredoc(Heredoc),
}

/// A here-document (A13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The terminating word without its quotes.
    pub name: String,
    /// The body with its line ends. For `<<-` its leading tabs are gone here, and still there in
    /// [`crate::syntax::Node::heredocs`].
    pub content: String,
    /// Whether variables in the body are expanded: the word was not quoted.
    pub expand: bool,
    /// Whether it was written `<<-`.
    pub chomp: bool,
    /// File descriptor written before `<<`, 0 where there is none.
    pub fd: u32,
    /// Where the `<<NAME` word stands.
    pub span: Span,
    /// Where each line of the body starts in the file, behind the tabs that `<<-` takes off.
    pub lines: Vec<u32>,
}

impl Heredoc {
    /// The place in the file of an offset in [`Self::content`], in bytes: from there to the end of
    /// its line.
    #[must_use]
    pub fn place(&self, at: usize) -> Span {
        let before = &self.content[..self.content.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        let Some(start) = self.lines.get(line) else {
            return self.span;
        };
        let rest = self.content[before.len()..]
            .lines()
            .next()
            .unwrap_or_default();
        let start = *start as usize + before.len() - line_start;
        Span::from_range(start..start + rest.len())
    }
}

/// A `HEALTHCHECK` (A9.4). Durations are in nanoseconds, as the image config holds them; 0 means
/// that the engine's default is inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK [flags] CMD command`
    Check {
        /// The command.
        command: Command,
        /// `--interval`, nanoseconds.
        interval: i64,
        /// `--timeout`, nanoseconds.
        timeout: i64,
        /// `--start-period`, nanoseconds.
        start_period: i64,
        /// `--start-interval`, nanoseconds.
        start_interval: i64,
        /// `--retries`
        retries: i64,
    },
}

/// An `ONBUILD` trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The instruction as it is stored in the image config: its logical line, with heredoc bodies
    /// put behind it.
    pub trigger: String,
    /// The same, parsed.
    pub instruction: Box<Instruction>,
}
