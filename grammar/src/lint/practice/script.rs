//! What a `RUN` runs: its scripts, read from the file once more so that every word has its place.

use super::call::{Call, Word, base_name};
use super::shell;
use crate::ast::{Command, Instruction, Run};
use crate::source::{LogicalLine, Reader, Span};
use crate::syntax;

/// How deep `sh -c "..."` is followed.
const MAX_DEPTH: u8 = 3;

/// What runs the text of a `RUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shell {
    /// A shell of POSIX kind.
    Posix {
        /// Whether a pipe fails with any of its commands.
        pipefail: bool,
    },
    /// PowerShell, cmd, or something else whose words mean other things.
    Other,
}

impl Shell {
    /// The shell that a program and its arguments are.
    pub(super) fn of<'w>(mut words: impl Iterator<Item = &'w str>) -> Self {
        let name = words.next().map(base_name).unwrap_or_default();
        if !matches!(
            name,
            "sh" | "bash" | "ash" | "dash" | "zsh" | "ksh" | "busybox"
        ) {
            return Self::Other;
        }
        let pipefail = words.any(|word| word == "pipefail");
        Self::Posix { pipefail }
    }
}

/// Commands that one shell runs.
#[derive(Debug)]
pub(super) struct Script {
    /// Its commands; those in `$(...)` come last.
    pub(super) calls: Vec<Call>,
    /// Whether a pipe fails with any of its commands from the start.
    pub(super) pipefail: bool,
}

/// Reads what the instruction runs, as far as it is shell.
pub(super) fn read(
    text: &str,
    escape: char,
    instruction: &Instruction,
    run: &Run,
    shell: Shell,
) -> Vec<Script> {
    let mut scripts = Scripts {
        text,
        found: Vec::new(),
    };
    match &run.command {
        Command::Exec(_) => scripts.exec(escape, instruction.span),
        Command::Shell(command) => scripts.shell(escape, instruction, run, command, shell),
    };
    scripts.found
}

struct Scripts<'t> {
    text: &'t str,
    found: Vec<Script>,
}

impl Scripts<'_> {
    fn shell(
        &mut self,
        escape: char,
        instruction: &Instruction,
        run: &Run,
        command: &str,
        shell: Shell,
    ) -> Option<()> {
        let Shell::Posix { pipefail } = shell else {
            return None;
        };
        let start = instruction.span.start as usize;
        let mut reader = Reader::at(self.text, escape, start);
        let line = reader.logical().ok()??;
        let end = line.marked().len();
        let start = end.checked_sub(command.len())?;
        let before = self.found.len();
        self.add(&line, start..end, pipefail, 0);
        let [heredoc] = run.heredocs.as_slice() else {
            return None;
        };
        let lines = heredoc.content.split_inclusive('\n');
        let lines = lines.zip(heredoc.lines.iter().map(|start| *start as usize));
        let body = LogicalLine::of(escape, lines);
        let first = body.text().lines().next().unwrap_or_default();
        let calls = self.found.get(before).map(|script| script.calls.as_slice());
        let shell = match (calls.unwrap_or_default(), first.strip_prefix("#!")) {
            ([], Some(shebang)) => {
                let words = shebang.split_whitespace();
                Shell::of(words.skip_while(|word| base_name(word) == "env"))
            }
            ([], None) => shell,
            ([call], _) if !call.args().iter().any(|word| is_script(&word.value)) => {
                let words = call.args().iter().map(|word| word.value.as_str());
                Shell::of(std::iter::once(call.name()).chain(words))
            }
            _ => return None,
        };
        if let Shell::Posix { pipefail } = shell {
            self.add(&body, 1..body.marked().len(), pipefail, 0);
        }
        Some(())
    }

    /// Reads a part of a line as a script, and the scripts that it gives to shells.
    fn add(
        &mut self,
        line: &LogicalLine,
        range: std::ops::Range<usize>,
        pipefail: bool,
        depth: u8,
    ) {
        let marked = line.marked();
        let commands = shell::split(marked, range);
        let mut inner = Vec::new();
        let mut calls = Vec::new();
        for mut command in commands {
            let ranges: Vec<_> = command
                .words
                .iter()
                .map(|word| word.range.clone())
                .collect();
            let words = std::mem::take(&mut command.words);
            let words: Vec<Word> = words
                .into_iter()
                .map(|word| self.word(line, word))
                .collect();
            let count = words.len();
            let Some(call) = Call::new(words, &command) else {
                continue;
            };
            let script = script_argument(&call).and_then(|at| {
                let range = ranges.get(count - call.args().len() + at)?;
                let inside = range.start + 1..range.end.checked_sub(1)?;
                let value = &call.args().get(at)?.value;
                (marked.get(inside.clone()) == Some(value)).then_some(inside)
            });
            if let (Some(script), Shell::Posix { pipefail }) = (script, shell_of(&call)) {
                inner.push((script, pipefail));
            }
            calls.push(call);
        }
        self.found.push(Script { calls, pipefail });
        if depth < MAX_DEPTH {
            for (range, pipefail) in inner {
                self.add(line, range, pipefail, depth + 1);
            }
        }
    }

    fn word(&self, line: &LogicalLine, word: shell::Word) -> Word {
        let span = line.span(word.range);
        Word {
            plain: self.text.get(span.range()) == Some(&word.value),
            value: word.value,
            span,
            expands: word.expands,
            item: false,
        }
    }

    /// Reads the exec form: one command, and the script that it may give to a shell.
    fn exec(&mut self, escape: char, place: Span) -> Option<()> {
        let slice = self.text.get(place.range())?;
        let syntax = syntax::parse_trigger(slice, escape).ok()?;
        let shift = |span: Span| Span {
            start: place.start + span.start,
            end: place.start + span.end,
        };
        let node = syntax.nodes.first().filter(|node| node.json)?;
        let words = node.args.iter().map(|word| Word {
            value: word.value.clone(),
            span: shift(word.span),
            plain: false,
            expands: false,
            item: true,
        });
        let command = shell::Command {
            words: Vec::new(),
            end: shell::End::Sequence,
            depth: 0,
            level: 0,
        };
        let call = Call::new(words.collect(), &command)?;
        let script = script_argument(&call).and_then(|at| call.args().get(at));
        let inside = script.and_then(|word| {
            let Span { start, end } = word.span;
            let inside = start as usize + 1..(end as usize).checked_sub(1)?;
            (self.text.get(inside.clone()) == Some(&word.value)).then_some(inside)
        });
        let shell = shell_of(&call);
        self.found.push(Script {
            calls: vec![call],
            pipefail: false,
        });
        if let (Some(inside), Shell::Posix { pipefail }) = (inside, shell) {
            let piece = (self.text.get(inside.clone())?, inside.start);
            let line = LogicalLine::of(escape, std::iter::once(piece));
            self.add(&line, 1..line.marked().len(), pipefail, 1);
        }
        Some(())
    }
}

fn shell_of(call: &Call) -> Shell {
    let words = call.args().iter().map(|word| word.value.as_str());
    Shell::of(std::iter::once(call.name()).chain(words))
}

/// The index of the argument behind `-c`, `-ec` and the like.
fn script_argument(call: &Call) -> Option<usize> {
    if shell_of(call) == Shell::Other {
        return None;
    }
    let is_command = |word: &Word| {
        let letters = word.value.strip_prefix('-').unwrap_or_default();
        !letters.starts_with('-') && letters.ends_with('c')
    };
    let option = call.args().iter().position(is_command)?;
    Some(option + 1)
}

/// Whether an argument of a shell is what it runs, so that it reads no script from a heredoc.
fn is_script(argument: &str) -> bool {
    let option = argument.starts_with(['-', '+']);
    let value = matches!(argument, "pipefail" | "errexit" | "nounset" | "xtrace");
    !(option || value) || (!argument.starts_with("--") && argument.ends_with('c'))
}
