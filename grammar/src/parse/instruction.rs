//! One node to one typed instruction.

use super::flags::{self, Flags, Takes};
use super::{duration, unknown};
use crate::ast::{
    Add, ArgPair, Command, Copy, Files, Healthcheck, Heredoc, Instruction, KeyValue, Kind, Onbuild,
    Run, Source, Word,
};
use crate::diagnostic::{Diagnostic, shorten};
use crate::mount;
use crate::source::{Span, Spanned};
use crate::syntax::{Node, keyword, split_span};

/// Types an instruction that stands in a stage.
pub(super) fn parse(node: &Node) -> Result<Instruction, Diagnostic> {
    Ok(Instruction {
        keyword: node.keyword.clone(),
        text: node.text.clone(),
        span: node.span,
        kind: kind(node)?,
    })
}

/// Types an instruction that `ONBUILD` stores (A7.12).
pub(super) fn trigger(node: &Node) -> Result<Instruction, Diagnostic> {
    match keyword(node) {
        "onbuild" => {
            let message = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
            Err(Diagnostic::error(message, node.keyword.span))
        }
        name @ ("from" | "maintainer") => {
            let message = format!(
                "{} isn't allowed as an ONBUILD trigger",
                name.to_uppercase()
            );
            Err(Diagnostic::error(message, node.keyword.span))
        }
        _ => parse(node),
    }
}

fn kind(node: &Node) -> Result<Kind, Diagnostic> {
    match keyword(node) {
        "run" => return Ok(Kind::Run(run(node)?)),
        "copy" => return Ok(Kind::Copy(copy(node)?)),
        "add" => return Ok(Kind::Add(add(node)?)),
        "healthcheck" => return Ok(Kind::Healthcheck(healthcheck(node)?)),
        "" | "from" => return Err(unknown(node)),
        _ => flags::none(node)?,
    }
    Ok(match keyword(node) {
        "arg" => Kind::Arg(arg(node)?),
        "env" => Kind::Env(key_values(node)?),
        "label" => Kind::Label(key_values(node)?),
        "cmd" => Kind::Cmd(command(node)?),
        "entrypoint" => Kind::Entrypoint(command(node)?),
        "shell" => Kind::Shell(shell(node)?),
        "volume" => Kind::Volume(volume(node)?),
        "expose" => Kind::Expose(at_least_one(node)?.to_vec()),
        "workdir" => Kind::Workdir(exactly_one(node)?),
        "user" => Kind::User(exactly_one(node)?),
        "stopsignal" => Kind::StopSignal(exactly_one(node)?),
        "onbuild" => Kind::Onbuild(onbuild(node)?),
        "maintainer" => Kind::Maintainer(exactly_one(node)?),
        _ => return Err(unknown(node)),
    })
}

fn name(node: &Node) -> String {
    node.keyword.value.to_uppercase()
}

fn at_least_one(node: &Node) -> Result<&[Word], Diagnostic> {
    if node.args.is_empty() {
        let message = format!("{} requires at least one argument", name(node));
        return Err(Diagnostic::error(message, node.span));
    }
    Ok(&node.args)
}

fn exactly_one(node: &Node) -> Result<Word, Diagnostic> {
    match node.args.as_slice() {
        [word] => Ok(word.clone()),
        _ => {
            let message = format!("{} requires exactly one argument", name(node));
            Err(Diagnostic::error(message, node.span))
        }
    }
}

fn blank_name(node: &Node, span: Span) -> Diagnostic {
    Diagnostic::error(format!("{} names can not be blank", name(node)), span)
}

/// `ARG name[=value] ...` (A3.7).
fn arg(node: &Node) -> Result<Vec<ArgPair>, Diagnostic> {
    let pair = |word: &Word| {
        let Some((name, value)) = word.value.split_once('=') else {
            return Ok(ArgPair {
                name: word.clone(),
                default: None,
            });
        };
        if name.is_empty() {
            return Err(blank_name(node, word.span));
        }
        let [name_span, value_span] = split_span(word, name.len());
        Ok(ArgPair {
            name: Spanned::new(name.to_owned(), name_span),
            default: Some(Spanned::new(value.to_owned(), value_span)),
        })
    };
    at_least_one(node)?.iter().map(pair).collect()
}

/// The pairs of `ENV` and `LABEL` (A3.5).
fn key_values(node: &Node) -> Result<Vec<KeyValue>, Diagnostic> {
    let pair = |parts: &[Word]| match parts {
        [key, value, ..] if key.value.is_empty() => {
            Err(blank_name(node, key.span.join(value.span)))
        }
        [key, value, ..] => Ok(KeyValue {
            key: key.clone(),
            value: value.clone(),
        }),
        _ => Err(blank_name(node, node.span)),
    };
    at_least_one(node)?.chunks(3).map(pair).collect()
}

/// The command of a node whose arguments from `skip` on are one.
fn command_from(node: &Node, skip: usize) -> Command {
    let args = node.args.get(skip..).unwrap_or_default();
    if node.json {
        return Command::Exec(args.iter().map(|word| word.value.clone()).collect());
    }
    Command::Shell(
        args.first()
            .map_or_else(String::new, |word| word.value.clone()),
    )
}

/// `CMD` and `ENTRYPOINT`; an empty array is legal and clears the value (A3.2).
fn command(node: &Node) -> Result<Command, Diagnostic> {
    if !node.json {
        at_least_one(node)?;
    }
    Ok(command_from(node, 0))
}

fn shell(node: &Node) -> Result<Vec<String>, Diagnostic> {
    if !node.json && !node.args.is_empty() {
        let message = "SHELL requires the arguments to be in JSON form";
        let hint = r#"for example SHELL ["/bin/bash", "-c"]"#;
        return Err(Diagnostic::error(message, node.span).with_hint(hint));
    }
    let words = at_least_one(node)?;
    Ok(words.iter().map(|word| word.value.clone()).collect())
}

/// `VOLUME`; blanks around an item of a JSON array are no part of the path (A9.7).
fn volume(node: &Node) -> Result<Vec<Word>, Diagnostic> {
    let trimmed = |word: &Word| match word.value.trim() {
        "" => {
            let message = "VOLUME specified can not be an empty string";
            Err(Diagnostic::error(message, word.span))
        }
        path => Ok(Spanned::new(path.to_owned(), word.span)),
    };
    at_least_one(node)?.iter().map(trimmed).collect()
}

/// `RUN [flags] command` (A8.1, B1 to B3).
fn run(node: &Node) -> Result<Run, Diagnostic> {
    let known = [
        ("mount", Takes::Values),
        ("network", Takes::Value),
        ("security", Takes::Value),
        ("device", Takes::Values),
    ];
    let flags = Flags::check(node, &known)?;
    let mounts = flags.values("mount");
    for record in &mounts {
        mount::check(&record.value).map_err(|error| {
            let diagnostic = Diagnostic::error(error.to_string(), record.span);
            match error.hint() {
                Some(hint) => diagnostic.with_hint(hint),
                None => diagnostic,
            }
        })?;
    }
    at_least_one(node)?;
    Ok(Run {
        mounts,
        network: flags.value("network"),
        security: flags.value("security"),
        devices: flags.values("device"),
        command: command_from(node, 0),
        heredocs: node.heredocs.iter().map(chomped).collect(),
    })
}

/// A heredoc as it counts: the body of `<<-` without the tabs that begin its lines (A13.3).
fn chomped(heredoc: &Heredoc) -> Heredoc {
    let mut heredoc = heredoc.clone();
    if heredoc.chomp {
        let lines = heredoc.content.split_inclusive('\n');
        heredoc.content = lines.map(|line| line.trim_start_matches('\t')).collect();
    }
    heredoc
}

/// `COPY [flags] source ... destination` (A10, A11).
fn copy(node: &Node) -> Result<Copy, Diagnostic> {
    let known = [
        ("from", Takes::Value),
        ("chown", Takes::Value),
        ("chmod", Takes::Value),
        ("link", Takes::Switch),
        ("parents", Takes::Switch),
        ("exclude", Takes::Values),
    ];
    let flags = Flags::check(node, &known)?;
    let from = flags.value("from");
    if let Some(from) = from.as_ref().filter(|from| from.value.contains('$')) {
        let message = "variable expansion is not supported for --from, define a new stage with \
                       FROM using ARG from global scope as a workaround";
        return Err(Diagnostic::error(message, from.span));
    }
    Ok(Copy {
        from,
        files: files(node, &flags)?,
        parents: flags.switch("parents")?.unwrap_or_default(),
    })
}

/// `ADD [flags] source ... destination` (A12).
fn add(node: &Node) -> Result<Add, Diagnostic> {
    let known = [
        ("chown", Takes::Value),
        ("chmod", Takes::Value),
        ("link", Takes::Switch),
        ("exclude", Takes::Values),
        ("checksum", Takes::Value),
        ("keep-git-dir", Takes::Switch),
        ("unpack", Takes::Switch),
    ];
    let flags = Flags::check(node, &known)?;
    Ok(Add {
        files: files(node, &flags)?,
        checksum: flags.value("checksum"),
        keep_git_dir: flags.switch("keep-git-dir")?.unwrap_or_default(),
        unpack: flags.switch("unpack")?,
    })
}

fn files(node: &Node, flags: &Flags<'_>) -> Result<Files, Diagnostic> {
    let (sources, destination) = match node.args.as_slice() {
        [sources @ .., destination] if !sources.is_empty() => (sources, destination),
        [_] => {
            let message = format!(
                "{} requires at least two arguments, but only one was provided. Destination could \
                 not be determined",
                name(node)
            );
            return Err(Diagnostic::error(message, node.span));
        }
        _ => {
            let message = format!(
                "{} requires at least two arguments: sources and a destination",
                name(node)
            );
            return Err(Diagnostic::error(message, node.span));
        }
    };
    Ok(Files {
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link")?.unwrap_or_default(),
        exclude: flags.values("exclude"),
        sources: self::sources(node, sources, destination)?,
        destination: destination.clone(),
    })
}

/// Tells heredocs and paths apart by their place in the line (A13.1).
fn sources(node: &Node, words: &[Word], destination: &Word) -> Result<Vec<Source>, Diagnostic> {
    let mut heredocs = node.heredocs.iter().peekable();
    let mut sources = Vec::with_capacity(words.len());
    for word in words.iter().chain([destination]) {
        let Some(heredoc) = heredocs.next_if(|heredoc| heredoc.span.start <= word.span.start)
        else {
            sources.push(Source::Path(word.clone()));
            continue;
        };
        if std::ptr::eq(word, destination) {
            let message = format!("{} cannot accept a heredoc as a destination", name(node));
            return Err(Diagnostic::error(message, heredoc.span));
        }
        // `<< EOF` is two words, a quoted name with blanks is several.
        if heredoc.span.end > word.span.end {
            let message = format!("a heredoc of {} is written without blanks", name(node));
            return Err(Diagnostic::error(message, heredoc.span));
        }
        check_file_name(node, heredoc)?;
        sources.push(Source::Heredoc(chomped(heredoc)));
    }
    sources.pop();
    Ok(sources)
}

/// A heredoc of `COPY` becomes a file of that name, so it must be one.
fn check_file_name(node: &Node, heredoc: &Heredoc) -> Result<(), Diagnostic> {
    if heredoc.name.contains(['/', '\0']) || matches!(heredoc.name.as_str(), "." | "..") {
        let message = format!(
            "{} cannot make a file of the heredoc `{}`: its name is no file name",
            name(node),
            shorten(&heredoc.name)
        );
        return Err(Diagnostic::error(message, heredoc.span));
    }
    Ok(())
}

/// `HEALTHCHECK NONE` and `HEALTHCHECK [flags] CMD command` (A9.4).
fn healthcheck(node: &Node) -> Result<Healthcheck, Diagnostic> {
    let known = [
        ("interval", Takes::Value),
        ("timeout", Takes::Value),
        ("start-period", Takes::Value),
        ("start-interval", Takes::Value),
        ("retries", Takes::Value),
    ];
    let flags = Flags::check(node, &known)?;
    let [kind, rest @ ..] = at_least_one(node)? else {
        return Err(Diagnostic::error("HEALTHCHECK without a type", node.span));
    };
    match kind.value.to_ascii_uppercase().as_str() {
        "NONE" => {
            if !rest.is_empty() || node.json {
                let message = "HEALTHCHECK NONE takes no arguments";
                return Err(Diagnostic::error(message, node.span));
            }
            Ok(Healthcheck::None)
        }
        "CMD" if rest.is_empty() => {
            let message = "Missing command after HEALTHCHECK CMD";
            Err(Diagnostic::error(message, node.span))
        }
        "CMD" => Ok(Healthcheck::Check {
            command: command_from(node, 1),
            interval: interval(&flags, "interval")?,
            timeout: interval(&flags, "timeout")?,
            start_period: interval(&flags, "start-period")?,
            start_interval: interval(&flags, "start-interval")?,
            retries: retries(&flags)?,
        }),
        other => {
            let other = shorten(other);
            let message = format!("Unknown type {other:?} in HEALTHCHECK (try CMD)");
            Err(Diagnostic::error(message, kind.span))
        }
    }
}

/// A duration in nanoseconds, 0 if it is not given.
fn interval(flags: &Flags<'_>, name: &'static str) -> Result<i64, Diagnostic> {
    const LEAST: i64 = 1_000_000;
    let Some(word) = flags.value(name).filter(|word| !word.value.is_empty()) else {
        return Ok(0);
    };
    match duration::parse(&word.value) {
        Some(0) => Ok(0),
        Some(nanoseconds) if nanoseconds >= LEAST => Ok(nanoseconds),
        Some(_) => {
            let message = format!("Interval {name:?} cannot be less than 1ms");
            Err(Diagnostic::error(message, word.span))
        }
        None => {
            let message = format!("invalid duration {:?} for --{name}", shorten(&word.value));
            let hint = "write a number and a unit, for example 30s or 1m30s";
            Err(Diagnostic::error(message, word.span).with_hint(hint))
        }
    }
}

fn retries(flags: &Flags<'_>) -> Result<i64, Diagnostic> {
    let Some(word) = flags.value("retries").filter(|word| !word.value.is_empty()) else {
        return Ok(0);
    };
    match word.value.parse::<i32>() {
        Ok(retries) if retries >= 0 => Ok(i64::from(retries)),
        Ok(retries) => {
            let message = format!("--retries cannot be negative ({retries})");
            Err(Diagnostic::error(message, word.span))
        }
        Err(_) => {
            let message = format!("--retries is no number: {:?}", shorten(&word.value));
            Err(Diagnostic::error(message, word.span))
        }
    }
}

/// `ONBUILD instruction` (A7.12).
fn onbuild(node: &Node) -> Result<Onbuild, Diagnostic> {
    let Some(sub) = node.sub.as_deref() else {
        at_least_one(node)?;
        return Err(unknown(node));
    };
    let instruction = trigger(sub)?;
    let mut stored = sub.text.clone();
    for heredoc in &sub.heredocs {
        stored.push('\n');
        stored.push_str(&heredoc.content);
        stored.push_str(&heredoc.name);
    }
    Ok(Onbuild {
        trigger: stored,
        instruction: Box::new(instruction),
    })
}
