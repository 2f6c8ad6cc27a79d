//! Failures, as a person reads them, and the exit codes that tell them apart.

use std::path::Path;
use std::process::ExitCode;

use kiln_builder::pipeline::{BuildError, ShellError, Source};
use kiln_builder::runtime::RuntimeError;
use kiln_builder::runtime::cgroup::CgroupError;
use kiln_builder::runtime::isolation::IsolationError;
use kiln_builder::runtime::network::NetworkError;
use kiln_builder::snapshot::SnapshotError;
use kiln_builder::step::StepError;
use kiln_builder::step::git::GitError;
use kiln_builder::store::StoreError;
use kiln_grammar::diagnostic::{Diagnostic, Severity};
use kiln_grammar::source::Span;
use kiln_registry::blob::BlobError;
use kiln_registry::client::ClientError;
use kiln_registry::copy::CopyError;

use crate::hint;
use crate::render::excerpt::Excerpts;
use crate::render::{self, text};

/// The build failed, or an image is not there: what docker says 1 to.
const FAILED: u8 = 1;
/// The machine failed: disk, network, rights.
const ENVIRONMENT: u8 = 3;
/// The image was built and is kept, but could not be pushed.
const NOT_PUSHED: u8 = 4;
/// A bug of kiln's.
pub(crate) const BUG: u8 = 70;
/// The command line is wrong, as docker has it.
const USAGE: u8 = 125;

/// The command line cannot be obeyed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

impl UsageError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Several things failed, each already reported.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub(crate) struct Reported;

/// A signal ended the command.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted {
    pub(crate) signal: u8,
}

/// A process that kiln ran ended with another code than 0, which becomes kiln's own.
#[derive(Debug, thiserror::Error)]
#[error("exit code {code}")]
pub(crate) struct Exited {
    pub(crate) code: u8,
}

/// A process that kiln was to run did not run.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub(crate) struct NotRun {
    pub(crate) what: String,
    #[source]
    pub(crate) source: anyhow::Error,
}

/// A finished image could not be pushed.
#[derive(Debug, thiserror::Error)]
#[error("the image was built and is kept, but pushing `{}` failed", names.first().map_or("", String::as_str))]
pub(crate) struct NotPushed {
    /// The name that could not be pushed, and those after it, which were not tried.
    pub(crate) names: Vec<String>,
    #[source]
    pub(crate) source: anyhow::Error,
}

/// The image was built, and its cache could not be exported, which was to be an error (C5.2).
#[derive(Debug, thiserror::Error)]
#[error("the image was built and is kept, but {0}")]
pub(crate) struct NotExported(pub(crate) String);

/// Prints what clap found, on the right stream.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match requires(error) {
        Some(text) => render::err(text.trim_end()),
        // A closed stream is nobody's failure.
        None => drop(error.print()),
    }
    if error.use_stderr() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Missing arguments in the words that docker's users know (A18.1).
fn requires(error: &clap::Error) -> Option<String> {
    let text = error.render().to_string();
    let said = "the following required arguments were not provided:";
    let (start, rest) = text.split_once(said)?;
    let (missing, usage) = rest.split_once("\n\n")?;
    let missing: Vec<&str> = missing.split_whitespace().collect();
    let verb = usage.strip_prefix("Usage: ")?.split(' ');
    let verb: Vec<&str> = verb
        .take_while(|word| !word.starts_with(['-', '<', '[']))
        .collect();
    let (count, verb) = (missing.len(), verb.join(" "));
    let least = if text.contains("...") {
        "at least "
    } else {
        ""
    };
    let plural = if count == 1 { "" } else { "s" };
    let missing = missing.join(" ");
    Some(format!(
        "{start}\"{verb}\" requires {least}{count} argument{plural}: {missing}\n\n{usage}"
    ))
}

/// Says that kiln itself is at fault, and where; not what was being worked on, which may be secret.
pub(crate) fn panicked(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    render::err(&format!("error: kiln has a bug and gives up, at {place}"));
    render::err("hint: the store is as it was; please report this with the command and that place");
}

/// Prints an error and says how to exit; `store` is where the store is, `again` how to call kiln with
/// the same one.
pub(crate) fn failure(error: &anyhow::Error, store: Option<&Path>, again: &str) -> ExitCode {
    if error.is::<Reported>() {
        return ExitCode::from(FAILED);
    }
    if let Some(Exited { code }) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    if let Some(Interrupted { signal }) = error.downcast_ref() {
        render::err("cancelled");
        return ExitCode::from(128 + signal);
    }
    match error.downcast_ref::<BuildError>() {
        Some(BuildError::Dockerfile {
            source_file,
            diagnostics,
        }) => {
            let warning = |one: &Diagnostic| one.severity == Severity::Warning;
            let (warnings, errors): (Vec<_>, Vec<_>) =
                diagnostics.iter().cloned().partition(warning);
            let excerpts = Excerpts::of(source_file);
            if !warnings.is_empty() {
                render::err(&format!("{}\n", excerpts.warnings(&warnings)));
            }
            render::err(&excerpts.errors(&errors));
        }
        Some(BuildError::Step {
            name,
            place,
            source,
            ..
        }) => step(name, place, source),
        Some(BuildError::Resolve { place, .. }) => {
            at(place);
            say(&sources(error.as_ref()));
        }
        _ => say(&sources(error.as_ref())),
    }
    if let Some(hint) = hint::hint(error, store, again) {
        render::err(&format!("hint: {hint}"));
    }
    if let Some(BuildError::Step { kept: true, .. }) = error.downcast_ref() {
        render::err(&format!(
            "hint: look around in the failed step with: {again} shell --failed"
        ));
    }
    ExitCode::from(code(error))
}

/// A failed step: its last output, where it was written, and what went wrong.
fn step(name: &str, place: &(Source, Option<Span>), error: &StepError) {
    last_output(name, error);
    at(place);
    // Where the Dockerfile cannot be shown (triggers of a base image), the name says what it was.
    let what = match place.1 {
        Some(_) => String::new(),
        None => format!("{}: ", text::one_line(name)),
    };
    say(&format!("failed to solve: {what}{}", sources(error)));
}

/// What a failed step printed last.
pub(crate) fn last_output(name: &str, error: &StepError) {
    if let StepError::Exit { log, .. }
    | StepError::Signal { log, .. }
    | StepError::Memory { log, .. } = error
        && !log.is_empty()
    {
        render::err(&format!("------\n > {}:", text::one_line(name)));
        for line in log {
            render::err(&text::printable(line.as_bytes()));
        }
        render::err("------");
    }
}

/// Shows the place in the Dockerfile.
fn at((source, span): &(Source, Option<Span>)) {
    if let Some(span) = span {
        render::err(&Excerpts::of(source).place(*span));
    }
}

fn say(message: &str) {
    let lines: Vec<_> = message
        .lines()
        .map(|line| text::printable(line.as_bytes()))
        .collect();
    render::err(&format!("error: {}", lines.join("\n")));
}

/// An error and its causes on one line. A cause that repeats what was said before is left out, and of the HTTP library's many causes all but the last, which alone says something.
fn sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = plain(error);
    let mut said = text.clone();
    let mut next = error.source();
    while let Some(mut cause) = next {
        if kiln_registry::client::is_library_error(cause) {
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
        }
        let cause_text = plain(cause);
        if !text.ends_with(&cause_text) && !cause_text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        said = cause_text;
        next = cause.source();
    }
    text
}

/// An error's text without the number that Rust puts behind the system's messages, and those in
/// lower case as docker's users know them (A18.1).
fn plain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.rfind(" (os error ").filter(|_| text.ends_with(')')) {
        text.truncate(end);
        let start = text.rfind(": ").map_or(0, |colon| colon + 2);
        if let Some(first) = text.get_mut(start..=start) {
            first.make_ascii_lowercase();
        }
    }
    text
}

/// The exit code of an error.
fn code(error: &anyhow::Error) -> u8 {
    if error.is::<UsageError>() {
        return USAGE;
    }
    if error.is::<NotRun>() {
        return not_run(error);
    }
    if error.is::<NotPushed>() {
        return NOT_PUSHED;
    }
    if error.is::<NotExported>() {
        return ENVIRONMENT;
    }
    if let Some(StepError::Thread) = find(error) {
        return BUG;
    }
    if hint::is_disk_full(error) {
        return ENVIRONMENT;
    }
    // A stage that is misspelt looks like an image in a registry that may be out of reach.
    if let Some(BuildError::Resolve { near: Some(_), .. }) = error.downcast_ref() {
        return FAILED;
    }
    match find::<StoreError>(error) {
        Some(StoreError::NoImage(_) | StoreError::Ambiguous(_)) => return FAILED,
        Some(_) => return ENVIRONMENT,
        None => {}
    }
    if error.is::<IsolationError>()
        || find::<ClientError>(error).is_some_and(is_environment)
        || find::<RuntimeError>(error).is_some_and(is_sandbox)
        || find::<NetworkError>(error).is_some()
        || find::<CgroupError>(error).is_some()
        || find::<GitError>(error).is_some_and(GitError::is_environment)
        || matches!(
            find(error),
            Some(SnapshotError::Refused { .. } | SnapshotError::Attributes(_))
        )
    {
        return ENVIRONMENT;
    }
    if let Some(CopyError::File { .. }) = find(error) {
        return ENVIRONMENT;
    }
    match find::<BlobError>(error) {
        Some(BlobError::Io { .. } | BlobError::Mismatch(_)) => ENVIRONMENT,
        _ => FAILED,
    }
}

/// The exit code of what could not run, as docker has it: whether there was no such program, or one
/// that cannot be started, or something else failed.
fn not_run(error: &anyhow::Error) -> u8 {
    if let Some(ShellError::NoShell { .. }) = find(error) {
        return 127;
    }
    match find(error) {
        Some(
            RuntimeError::NotFound { .. }
            | RuntimeError::NotInPath { .. }
            | RuntimeError::NoInterpreter { .. },
        ) => 127,
        Some(
            RuntimeError::Denied { .. } | RuntimeError::Format { .. } | RuntimeError::Exec { .. },
        ) => 126,
        _ => USAGE,
    }
}

/// The first error of a type in the chain.
pub(crate) fn find<T: std::error::Error + 'static>(error: &anyhow::Error) -> Option<&T> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// Whether the network, this machine, or a registry that damages what it holds failed, rather than a
/// registry refusing what was asked.
fn is_environment(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Connect { .. }
            | ClientError::Network { .. }
            | ClientError::Stalled { .. }
            | ClientError::CutShort { .. }
            | ClientError::Mismatch { .. }
            | ClientError::WebPage { .. }
            | ClientError::CaFile { .. }
            | ClientError::CaContent { .. }
            | ClientError::Setup(_)
    )
}

/// Whether the machine does not let the sandbox be built.
fn is_sandbox(error: &RuntimeError) -> bool {
    matches!(
        error,
        RuntimeError::Start(_)
            | RuntimeError::Setup { .. }
            | RuntimeError::LimitRefused { .. }
            | RuntimeError::Lost
            | RuntimeError::Level { .. }
            | RuntimeError::Oci { .. }
            | RuntimeError::Unsupported { .. }
            | RuntimeError::Clean { .. }
    )
}
