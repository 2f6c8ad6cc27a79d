//! Rules about shell habits that do not fit a build.

use super::call::{Call, operands};
use super::script::Script;
use super::shell::End;
use super::stages::Step;
use crate::ast::{Files, Kind};
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// User ids from here on make the sparse log files of useradd large.
const LARGE_ID: u32 = 100_000;

/// Finds habits of an instruction.
pub(super) fn check(step: &Step<'_>, found: &mut Vec<Diagnostic>) {
    let mut scripts = step.scripts.iter();
    if let Some(script) = scripts.find(|script| !script.calls.is_empty()) {
        lost_state(script, found);
        workdir(script, found);
    }
    for call in step.calls() {
        sudo(call, found);
        chmod(call, found);
        useradd(call, found);
    }
    match &step.instruction.kind {
        Kind::Copy(copy) => copied_mode(&copy.files, found),
        Kind::Add(add) => copied_mode(&add.files, found),
        _ => {}
    }
}

/// `LostShellState`: the last command changes the shell, which ends with it.
fn lost_state(script: &Script, found: &mut Vec<Diagnostic>) {
    let outer: Vec<&Call> = script.calls.iter().filter(|call| call.level == 0).collect();
    let Some((last, before)) = outer.split_last() else {
        return;
    };
    let piped = before.last().is_some_and(|call| call.end == End::Pipe);
    if piped || last.depth > 0 || last.end != End::Sequence {
        return;
    }
    let first = last.args().first().map(|word| word.value.as_str());
    let (lost, instead) = match (last.name(), first) {
        // Back to where the script started is a habit that does no harm.
        ("cd", None | Some("-" | ".." | "/" | "~")) => return,
        ("cd", Some(_)) => ("directory", "set it with WORKDIR"),
        ("export", Some(pair)) if pair.contains('=') => ("variable", "set it with ENV"),
        ("alias", Some(_)) => ("alias", "write it to the start file of the shell"),
        ("umask" | "ulimit", Some(_)) => {
            ("limit", "put it in front of the commands that it is for")
        }
        ("." | "source", Some(file)) if is_environment(file) => (
            "environment",
            "set what it holds with ENV, or source it in every RUN that needs it",
        ),
        _ => return,
    };
    let name = last.name();
    let message =
        format!("`{name}` at the end of a RUN does nothing: the {lost} is gone when the step ends");
    let span = last.program().span;
    found.push(Diagnostic::warning("LostShellState", message, span).with_hint(instead));
}

/// Whether a file that is sourced only sets variables.
fn is_environment(file: &str) -> bool {
    let name = super::call::base_name(file);
    let ends = [
        "activate",
        ".env",
        "rc",
        "profile",
        "env.sh",
        "vars.sh",
        "setup.bash",
        "setvars.sh",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

/// `CdInsteadOfWorkdir`: all of the script runs in another directory.
fn workdir(script: &Script, found: &mut Vec<Diagnostic>) {
    let mut calls = script.calls.iter().skip_while(|call| call.name() == "set");
    let Some(cd) = calls.next().filter(|call| call.name() == "cd") else {
        return;
    };
    let Some(directory) = cd.args().first() else {
        return;
    };
    let more = calls.next().is_some_and(|call| call.level == 0);
    if !more || cd.depth > 0 || directory.expands || !directory.value.starts_with('/') {
        return;
    }
    let message = format!(
        "all of this RUN is in {:?}, which WORKDIR would set",
        directory.value
    );
    let span = cd.program().span.join(directory.span);
    let warning = Diagnostic::warning("CdInsteadOfWorkdir", message, span);
    found.push(warning.with_hint(format!("put WORKDIR {} before it", directory.value)));
}

/// `SudoInRun`
fn sudo(call: &Call, found: &mut Vec<Diagnostic>) {
    let sudo = call
        .sudo()
        .or_else(|| (call.name() == "sudo").then(|| call.program()));
    let Some(sudo) = sudo else {
        return;
    };
    let message = "sudo needs a terminal and a password, or an image in which everybody is root";
    let warning = Diagnostic::warning("SudoInRun", message, sudo.span);
    found.push(
        warning.with_hint("put USER root before the RUN, and USER with the other name behind it"),
    );
}

/// `WorldWritable`
fn chmod(call: &Call, found: &mut Vec<Diagnostic>) {
    if call.name() != "chmod" {
        return;
    }
    if let Some(mode) = operands(call.args(), &[]).next() {
        let what = format!("chmod {}", mode.value);
        found.extend(world_writable(&mode.value).then(|| writable(&what, mode.span)));
    }
}

fn writable(what: &str, span: Span) -> Diagnostic {
    let message = format!("`{what}` lets every user of the image write");
    Diagnostic::warning("WorldWritable", message, span)
        .with_hint("give the files to the user that writes: COPY --chown, or chown in a RUN")
}

/// Whether a mode lets everybody write. With the sticky bit it is that of /tmp.
fn world_writable(mode: &str) -> bool {
    if let Ok(bits) = u32::from_str_radix(mode, 8) {
        return bits & 0o002 != 0 && bits & 0o1000 == 0;
    }
    let clauses = || mode.split(',');
    let sticky = clauses().any(|clause| clause.starts_with('+') && clause.contains('t'));
    !sticky
        && clauses().any(|clause| {
            let Some(at) = clause.find(['+', '=']) else {
                return false;
            };
            let (who, what) = clause.split_at(at);
            who.contains(['o', 'a']) && what.contains('w') && !what.contains('t')
        })
}

fn copied_mode(files: &Files, found: &mut Vec<Diagnostic>) {
    if let Some(mode) = files
        .chmod
        .as_ref()
        .filter(|mode| world_writable(&mode.value))
    {
        found.push(writable(&format!("--chmod={}", mode.value), mode.span));
    }
}

/// `UseraddNoLogInit`
fn useradd(call: &Call, found: &mut Vec<Diagnostic>) {
    if call.name() != "useradd" || call.has(&["--no-log-init"]) {
        return;
    }
    let args = call.args();
    let mut large = None;
    for (at, word) in args.iter().enumerate() {
        let value = match word.value.as_str() {
            "--uid" => args.get(at + 1).map(|next| next.value.as_str()),
            long if long.starts_with("--") => long.strip_prefix("--uid="),
            short if short.starts_with('-') && short.contains('l') => return,
            short if short.starts_with('-') && short.ends_with('u') => {
                args.get(at + 1).map(|next| next.value.as_str())
            }
            short => short.strip_prefix("-u"),
        };
        let id = value.and_then(|value| value.parse::<u32>().ok());
        large = large.or(id.filter(|id| *id >= LARGE_ID));
    }
    let Some(id) = large else {
        return;
    };
    let message =
        format!("`useradd` with id {id} makes log files that are as long as the id is large");
    let program = call.program();
    let warning = Diagnostic::warning("UseraddNoLogInit", message, program.span)
        .with_hint("add --no-log-init");
    found.push(program.followed_by("--no-log-init", warning));
}
