//! The typed Dockerfile as text that a reviewer can read: `"value"@line:column`.

use std::fmt::Write as _;

use kiln_grammar::ast::{
    Command, Dockerfile, Files, Healthcheck, Heredoc, Instruction, KeyValue, Kind, Source, Word,
};
use kiln_grammar::diagnostic::{Diagnostic, Severity};
use kiln_grammar::source::{Span, comments_above, position};

pub(crate) fn dockerfile(text: &str, dockerfile: &Dockerfile) -> String {
    let mut out = String::new();
    let directives = &dockerfile.directives;
    if directives.escape != '\\' {
        writeln!(out, "escape {}", directives.escape).unwrap();
    }
    for (name, value) in [("syntax", &directives.syntax), ("check", &directives.check)] {
        if let Some(value) = value {
            writeln!(out, "{name} {}", word(text, value)).unwrap();
        }
    }
    for arg in &dockerfile.global_args {
        let above = comments(text, arg.span);
        writeln!(out, "{}{above}", instruction(text, arg)).unwrap();
    }
    for stage in &dockerfile.stages {
        write!(
            out,
            "{} FROM {}",
            place(text, stage.span),
            word(text, &stage.base)
        )
        .unwrap();
        option(&mut out, text, "platform", stage.platform.as_ref());
        option(&mut out, text, "as", stage.name.as_ref());
        writeln!(out, "{}", comments(text, stage.span)).unwrap();
        for inner in &stage.instructions {
            let above = comments(text, inner.span);
            writeln!(out, "  {}{above}", instruction(text, inner)).unwrap();
        }
    }
    out + &diagnostics(text, &dockerfile.warnings)
}

pub(crate) fn diagnostics(text: &str, list: &[Diagnostic]) -> String {
    let mut out = String::new();
    for item in list {
        let severity = match item.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let rule = item
            .rule
            .map(|rule| format!("[{rule}]"))
            .unwrap_or_default();
        let place = place(text, item.span);
        writeln!(out, "{place} {severity}{rule}: {}", item.message).unwrap();
        if let Some(hint) = &item.hint {
            writeln!(out, "  hint: {hint}").unwrap();
        }
    }
    out
}

/// The comments above an instruction (A1.12).
fn comments(text: &str, span: Span) -> String {
    let above = comments_above(text, span.start);
    let above = above.iter();
    above
        .map(|comment| format!(" # {:?}", comment.value))
        .collect()
}

fn place(text: &str, span: Span) -> String {
    let (start, end) = (position(text, span.start), position(text, span.end));
    format!(
        "{}:{}-{}:{}",
        start.line, start.column, end.line, end.column
    )
}

fn word(text: &str, word: &Word) -> String {
    let start = position(text, word.span.start);
    let end = position(text, word.span.end);
    let lines = if start.line == end.line {
        String::new()
    } else {
        format!("-{}", end.line)
    };
    format!("{:?}@{}:{}{lines}", word.value, start.line, start.column)
}

fn words(text: &str, list: &[Word]) -> String {
    let list: Vec<String> = list.iter().map(|item| word(text, item)).collect();
    list.join(" ")
}

fn option(out: &mut String, text: &str, name: &str, value: Option<&Word>) {
    if let Some(value) = value {
        write!(out, " {name}={}", word(text, value)).unwrap();
    }
}

fn list(out: &mut String, text: &str, name: &str, values: &[Word]) {
    for value in values {
        option(out, text, name, Some(value));
    }
}

fn switch(out: &mut String, name: &str, on: bool) {
    if on {
        write!(out, " {name}").unwrap();
    }
}

fn command(command: &Command) -> String {
    match command {
        Command::Shell(line) => format!("shell {line:?}"),
        Command::Exec(args) => format!("exec {args:?}"),
    }
}

fn heredoc(text: &str, heredoc: &Heredoc) -> String {
    let start = position(text, heredoc.span.start);
    let mut out = format!("<<{:?}@{}:{}", heredoc.name, start.line, start.column);
    switch(&mut out, "literal", !heredoc.expand);
    switch(&mut out, "chomp", heredoc.chomp);
    if heredoc.fd != 0 {
        write!(out, " fd={}", heredoc.fd).unwrap();
    }
    write!(out, " {:?}", heredoc.content).unwrap();
    out
}

fn pairs(text: &str, pairs: &[KeyValue]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|pair| format!("{} = {}", word(text, &pair.key), word(text, &pair.value)))
        .collect();
    pairs.join(", ")
}

fn files(out: &mut String, text: &str, files: &Files) {
    option(out, text, "chown", files.chown.as_ref());
    option(out, text, "chmod", files.chmod.as_ref());
    switch(out, "link", files.link);
    list(out, text, "exclude", &files.exclude);
    for source in &files.sources {
        match source {
            Source::Path(path) => write!(out, " {}", word(text, path)).unwrap(),
            Source::Heredoc(inner) => write!(out, " {}", heredoc(text, inner)).unwrap(),
        }
    }
    write!(out, " -> {}", word(text, &files.destination)).unwrap();
}

fn instruction(text: &str, instruction: &Instruction) -> String {
    let mut out = format!(
        "{} {}",
        place(text, instruction.span),
        instruction.keyword.value
    );
    match &instruction.kind {
        Kind::Arg(args) => {
            for arg in args {
                write!(out, " {}", word(text, &arg.name)).unwrap();
                option(&mut out, text, "default", arg.default.as_ref());
            }
        }
        Kind::Env(list) | Kind::Label(list) => write!(out, " {}", pairs(text, list)).unwrap(),
        Kind::Run(run) => {
            list(&mut out, text, "mount", &run.mounts);
            option(&mut out, text, "network", run.network.as_ref());
            option(&mut out, text, "security", run.security.as_ref());
            list(&mut out, text, "device", &run.devices);
            write!(out, " {}", command(&run.command)).unwrap();
            for inner in &run.heredocs {
                write!(out, " {}", heredoc(text, inner)).unwrap();
            }
        }
        Kind::Cmd(inner) | Kind::Entrypoint(inner) => {
            write!(out, " {}", command(inner)).unwrap();
        }
        Kind::Shell(args) => write!(out, " {args:?}").unwrap(),
        Kind::Copy(copy) => {
            option(&mut out, text, "from", copy.from.as_ref());
            switch(&mut out, "parents", copy.parents);
            files(&mut out, text, &copy.files);
        }
        Kind::Add(add) => {
            option(&mut out, text, "checksum", add.checksum.as_ref());
            switch(&mut out, "keep-git-dir", add.keep_git_dir);
            if let Some(unpack) = add.unpack {
                write!(out, " unpack={unpack}").unwrap();
            }
            files(&mut out, text, &add.files);
        }
        Kind::Volume(list) | Kind::Expose(list) => write!(out, " {}", words(text, list)).unwrap(),
        Kind::Workdir(inner)
        | Kind::User(inner)
        | Kind::StopSignal(inner)
        | Kind::Maintainer(inner) => write!(out, " {}", word(text, inner)).unwrap(),
        Kind::Healthcheck(Healthcheck::None) => out.push_str(" none"),
        Kind::Healthcheck(Healthcheck::Check {
            command: inner,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        }) => write!(
            out,
            " {} {interval}ns {timeout}ns {start_period}ns {start_interval}ns {retries}",
            command(inner)
        )
        .unwrap(),
        Kind::Onbuild(onbuild) => {
            let inner = self::instruction(text, &onbuild.instruction);
            write!(out, " {:?}\n    {inner}", onbuild.trigger).unwrap();
        }
    }
    out
}
