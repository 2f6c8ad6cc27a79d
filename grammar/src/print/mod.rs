//! A Dockerfile as text again.
//!
//! The text is canonical: one line for each instruction, keywords in upper case, flags in a fixed
//! order, one blank between words, no comments. Reading it gives the same Dockerfile up to places,
//! texts as written and warnings; printing that gives the same text.

use crate::ast::{
    Add, ArgPair, Command, Copy, Dockerfile, Files, Healthcheck, Heredoc, Instruction, KeyValue,
    Kind, Run, Source, Stage, Word,
};
use crate::source::MAX_LINE;

/// Prints a Dockerfile that the parser made.
///
/// An instruction too long for one line of the file is continued on the next.
#[must_use]
pub fn print(dockerfile: &Dockerfile) -> String {
    let directives = &dockerfile.directives;
    let mut text = String::new();
    let named = [("syntax", &directives.syntax), ("check", &directives.check)];
    for (name, value) in named {
        if let Some(value) = value {
            text.push_str(&format!("# {name}={}\n", value.value));
        }
    }
    if directives.escape != '\\' {
        text.push_str(&format!("# escape={}\n", directives.escape));
    }
    for arg in &dockerfile.global_args {
        instruction(&mut text, arg, directives.escape);
    }
    for part in &dockerfile.stages {
        stage(&mut text, part, directives.escape);
    }
    text
}

fn stage(text: &mut String, stage: &Stage, escape: char) {
    let mut line = Line::new("FROM", escape);
    line.flag_value("platform", stage.platform.as_ref());
    line.arguments(&stage.base.value);
    if let Some(name) = &stage.name {
        line.push(" AS ");
        line.push(&name.value);
    }
    line.finish(text);
    for inner in &stage.instructions {
        instruction(text, inner, escape);
    }
}

fn instruction(text: &mut String, instruction: &Instruction, escape: char) {
    let mut line = Line::new(keyword(&instruction.kind), escape);
    // The heredocs belong to the instruction behind `ONBUILD`.
    let kind = match &instruction.kind {
        Kind::Onbuild(onbuild) => {
            let kind = &onbuild.instruction.kind;
            line.push(" ");
            line.push(keyword(kind));
            kind
        }
        kind => kind,
    };
    line.kind(kind);
    line.finish(text);
    for heredoc in heredocs(kind) {
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
        text.push('\n');
    }
}

fn keyword(kind: &Kind) -> &'static str {
    match kind {
        Kind::Arg(_) => "ARG",
        Kind::Env(_) => "ENV",
        Kind::Label(_) => "LABEL",
        Kind::Run(_) => "RUN",
        Kind::Cmd(_) => "CMD",
        Kind::Entrypoint(_) => "ENTRYPOINT",
        Kind::Shell(_) => "SHELL",
        Kind::Copy(_) => "COPY",
        Kind::Add(_) => "ADD",
        Kind::Volume(_) => "VOLUME",
        Kind::Expose(_) => "EXPOSE",
        Kind::Workdir(_) => "WORKDIR",
        Kind::User(_) => "USER",
        Kind::StopSignal(_) => "STOPSIGNAL",
        Kind::Healthcheck(_) => "HEALTHCHECK",
        Kind::Onbuild(_) => "ONBUILD",
        Kind::Maintainer(_) => "MAINTAINER",
    }
}

fn heredocs(kind: &Kind) -> Vec<&Heredoc> {
    let files = match kind {
        Kind::Run(run) => return run.heredocs.iter().collect(),
        Kind::Copy(copy) => &copy.files,
        Kind::Add(add) => &add.files,
        _ => return Vec::new(),
    };
    let sources = files.sources.iter();
    sources
        .filter_map(|source| match source {
            Source::Heredoc(heredoc) => Some(heredoc),
            Source::Path(_) => None,
        })
        .collect()
}

/// One instruction while its line is put together.
struct Line {
    text: String,
    escape: char,
}

impl Line {
    fn new(keyword: &str, escape: char) -> Self {
        Self {
            text: keyword.to_owned(),
            escape,
        }
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds everything behind the flags. `--` keeps what looks like one more flag from being one.
    fn arguments(&mut self, text: &str) {
        self.push(if text.starts_with("--") { " -- " } else { " " });
        self.push(text);
    }

    fn words<'w>(&mut self, words: impl IntoIterator<Item = &'w str>) {
        let words: Vec<&str> = words.into_iter().collect();
        self.arguments(&words.join(" "));
    }

    fn kind(&mut self, kind: &Kind) {
        match kind {
            Kind::Arg(pairs) => self.arg(pairs),
            Kind::Env(pairs) | Kind::Label(pairs) => self.key_values(pairs),
            Kind::Run(run) => self.run(run),
            Kind::Cmd(command) | Kind::Entrypoint(command) => self.command(command),
            Kind::Shell(words) => self.array(words.iter().map(String::as_str)),
            Kind::Copy(copy) => self.copy(copy),
            Kind::Add(add) => self.add(add),
            Kind::Volume(words) => self.list(&values(words)),
            Kind::Expose(words) => self.words(values(words)),
            Kind::Workdir(word)
            | Kind::User(word)
            | Kind::StopSignal(word)
            | Kind::Maintainer(word) => self.arguments(&word.value),
            Kind::Healthcheck(check) => self.healthcheck(check),
            // The parser makes no ONBUILD inside another.
            Kind::Onbuild(onbuild) => self.arguments(&onbuild.trigger),
        }
    }

    fn flag(&mut self, name: &str) {
        self.push(" --");
        self.push(name);
    }

    fn flag_value(&mut self, name: &str, value: Option<&Word>) {
        let Some(value) = value else {
            return;
        };
        self.flag(name);
        self.push("=");
        let special = |letter: char| {
            letter.is_whitespace() || matches!(letter, '"' | '\'') || letter == self.escape
        };
        if !value.value.contains(special) {
            return self.push(&value.value);
        }
        self.push("\"");
        for letter in value.value.chars() {
            if letter == '"' || letter == self.escape {
                self.text.push(self.escape);
            }
            self.text.push(letter);
        }
        self.push("\"");
    }

    fn flag_values(&mut self, name: &str, values: &[Word]) {
        for value in values {
            self.flag_value(name, Some(value));
        }
    }

    fn flag_switch(&mut self, name: &str, on: bool) {
        if on {
            self.flag(name);
        }
    }

    fn arg(&mut self, pairs: &[ArgPair]) {
        let pairs = pairs.iter().map(|pair| match &pair.default {
            Some(default) => format!("{}={}", pair.name.value, default.value),
            None => pair.name.value.clone(),
        });
        let pairs: Vec<String> = pairs.collect();
        self.words(pairs.iter().map(String::as_str));
    }

    fn key_values(&mut self, pairs: &[KeyValue]) {
        let join = |pair: &KeyValue| format!("{}={}", pair.key.value, pair.value.value);
        let joined: Vec<String> = pairs.iter().map(join).collect();
        match (pairs, joined.as_slice()) {
            ([pair], [joined]) if !is_token(joined, self.escape) => {
                self.arguments(&pair.key.value);
                // A blank behind the escape character is part of the word.
                self.push(if pair.key.value.ends_with(self.escape) {
                    "  "
                } else {
                    " "
                });
                self.push(&pair.value.value);
            }
            _ => self.words(joined.iter().map(String::as_str)),
        }
    }

    fn run(&mut self, run: &Run) {
        self.flag_values("mount", &run.mounts);
        self.flag_value("network", run.network.as_ref());
        self.flag_value("security", run.security.as_ref());
        self.flag_values("device", &run.devices);
        self.command(&run.command);
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Shell(text) => self.arguments(text),
            Command::Exec(words) => self.array(words.iter().map(String::as_str)),
        }
    }

    fn copy(&mut self, copy: &Copy) {
        self.flag_value("from", copy.from.as_ref());
        self.flag_switch("parents", copy.parents);
        self.files(&copy.files);
    }

    fn add(&mut self, add: &Add) {
        self.flag_value("checksum", add.checksum.as_ref());
        self.flag_switch("keep-git-dir", add.keep_git_dir);
        if let Some(unpack) = add.unpack {
            self.flag(&format!("unpack={unpack}"));
        }
        self.files(&add.files);
    }

    fn files(&mut self, files: &Files) {
        self.flag_value("chown", files.chown.as_ref());
        self.flag_value("chmod", files.chmod.as_ref());
        self.flag_switch("link", files.link);
        self.flag_values("exclude", &files.exclude);
        let mut heredocs = false;
        let mut words: Vec<String> = Vec::with_capacity(files.sources.len() + 1);
        for source in &files.sources {
            words.push(match source {
                Source::Path(word) => word.value.clone(),
                Source::Heredoc(heredoc) => {
                    heredocs = true;
                    redirection(heredoc)
                }
            });
        }
        words.push(files.destination.value.clone());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // An array has no heredocs, so words beside one were written as words.
        if heredocs {
            self.words(words);
        } else {
            self.list(&words);
        }
    }

    fn healthcheck(&mut self, check: &Healthcheck) {
        let Healthcheck::Check {
            command,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        } = check
        else {
            return self.push(" NONE");
        };
        let durations = [
            ("interval", interval),
            ("timeout", timeout),
            ("start-period", start_period),
            ("start-interval", start_interval),
        ];
        for (name, nanoseconds) in durations {
            if *nanoseconds != 0 {
                self.flag(&format!("{name}={nanoseconds}ns"));
            }
        }
        if *retries != 0 {
            self.flag(&format!("retries={retries}"));
        }
        self.push(" CMD ");
        match command {
            Command::Shell(text) => self.push(text),
            Command::Exec(words) => self.push(&json(words.iter().map(String::as_str))),
        }
    }

    /// Adds words as words where they can be, as an array where not.
    fn list(&mut self, words: &[&str]) {
        let plain = |word: &&str| {
            !word.is_empty() && !word.contains(char::is_whitespace) && !word.contains("<<")
        };
        let array = words.first().is_some_and(|first| first.starts_with('['));
        if words.iter().all(plain) && !array {
            self.words(words.iter().copied());
        } else {
            self.array(words.iter().copied());
        }
    }

    fn array<'w>(&mut self, words: impl IntoIterator<Item = &'w str>) {
        self.push(" ");
        self.push(&json(words));
    }

    /// Adds the line to a text, cut where a line of a file must end.
    fn finish(mut self, text: &mut String) {
        // At the end of a line the escape character joins the next, unless a blank that is no
        // ASCII stands behind it; two of them join nothing.
        let last = self.text.strip_suffix(self.escape);
        if last.is_some_and(|before| !before.ends_with(self.escape)) {
            self.push("\u{a0}");
        }
        let mut rest = self.text.as_str();
        while rest.len() > MAX_LINE {
            let Some(at) = self.joint(rest) else {
                break;
            };
            text.push_str(&rest[..at]);
            text.push(self.escape);
            text.push('\n');
            rest = &rest[at..];
        }
        text.push_str(rest);
        text.push('\n');
    }

    /// The last place where a line can be cut in two: not behind an escape character, and not
    /// before what makes the next line a comment or a blank one.
    fn joint(&self, line: &str) -> Option<usize> {
        let start = line.floor_char_boundary(MAX_LINE - 1);
        let cuts = line[..start].char_indices().rev().map(|(at, _)| at);
        cuts.take_while(|at| *at > 0).find(|at| {
            let bad = |letter: char| letter == '#' || letter.is_whitespace();
            !line[..*at].ends_with(self.escape) && !line[*at..].starts_with(bad)
        })
    }
}

fn values(words: &[Word]) -> Vec<&str> {
    words.iter().map(|word| word.value.as_str()).collect()
}

fn json<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let words = words
        .into_iter()
        .map(|word| serde_json::Value::from(word).to_string());
    format!("[{}]", words.collect::<Vec<_>>().join(", "))
}

/// Says whether a text is one word of `ENV`: quotes and escapes hold its blanks together (A3.5).
fn is_token(text: &str, escape: char) -> bool {
    let mut letters = text.chars();
    let mut quote = None;
    while let Some(letter) = letters.next() {
        if letter == escape && quote != Some('\'') {
            letters.next();
        } else if quote == Some(letter) {
            quote = None;
        } else if quote.is_none() {
            match letter {
                '\'' | '"' => quote = Some(letter),
                letter if letter.is_whitespace() => return false,
                _ => {}
            }
        }
    }
    true
}

/// The `<<NAME` of a heredoc of `COPY` (A13.2): quoted where its body is not expanded.
fn redirection(heredoc: &Heredoc) -> String {
    let mut word = String::new();
    if heredoc.fd != 0 {
        word.push_str(&heredoc.fd.to_string());
    }
    word.push_str("<<");
    if heredoc.chomp {
        word.push('-');
    }
    if !heredoc.expand {
        word.push('"');
    }
    for (at, letter) in heredoc.name.char_indices() {
        let special = if heredoc.expand {
            letter.is_whitespace()
                || matches!(letter, '\\' | '\'' | '"' | '<')
                || (at, letter) == (0, '-')
        } else {
            matches!(letter, '\\' | '"' | '$')
        };
        if special {
            word.push('\\');
        }
        word.push(letter);
    }
    if !heredoc.expand {
        word.push('"');
    }
    word
}

#[cfg(test)]
mod tests;
