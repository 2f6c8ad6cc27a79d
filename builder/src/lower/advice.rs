//! Lints that need to know where the build stands (A17): the values of variables, the working
//! directory, the shell, the ignore file.

use kiln_grammar::ast::{Command, Word};
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::glob;
use kiln_grammar::source::Span;

use super::path;
use super::stage::{GUESSES, Shared, StageLowering, Step};

/// Images of Docker Hub's library that set `PATH` at most and no working directory, so that a
/// Dockerfile on them can be judged without having them.
const PLAIN: [&str; 12] = [
    "almalinux",
    "alpine",
    "amazonlinux",
    "buildpack-deps",
    "busybox",
    "centos",
    "debian",
    "opensuse",
    "oraclelinux",
    "photon",
    "rockylinux",
    "ubuntu",
];

/// Whether an image that nobody has looked at is known to bring no variables of its own.
pub(super) fn is_plain(reference: &str) -> bool {
    let name = reference.split('@').next().unwrap_or_default();
    let name = name
        .strip_prefix("docker.io/")
        .unwrap_or(name)
        .trim_start_matches("library/");
    let name = name.split(':').next().unwrap_or_default();
    PLAIN.contains(&name)
}

impl Shared<'_> {
    /// `MisspeltStage`: an image that nobody has looked at and whose name is nearly that of a
    /// stage, unless the stage is built on just that image.
    pub(super) fn advise_stage(&mut self, image: &str, span: Span) {
        self.guesses += 1;
        if image.contains(['/', ':', '@']) || is_plain(image) || self.guesses > GUESSES {
            return;
        }
        let stages = self.stages.list.iter().map(|stage| stage.ast);
        let names = stages
            .filter(|stage| stage.base.value != image)
            .filter_map(|stage| stage.name.as_ref());
        let Some(near) = suggest(image, names.map(|name| name.value.as_str())) else {
            return;
        };
        let message =
            format!("no stage is named {image:?}, so it is an image (did you mean {near}?)");
        self.warn(Diagnostic::warning("MisspeltStage", message, span));
    }
}

impl StageLowering<'_, '_> {
    /// `JSONArgsRecommended`: a shell between the engine and the process keeps signals from it.
    pub(super) fn advise_exec_form(&mut self, name: &str, command: &Command, step: &Step<'_>) {
        let shell = &self.state.config.config.shell;
        let Command::Shell(text) = command else {
            return;
        };
        if step.onbuild || shell.as_ref().is_some_and(|shell| !shell.is_empty()) {
            return;
        }
        let message = format!(
            "JSON arguments recommended for {name} to prevent unintended behavior related to OS \
             signals"
        );
        let instruction = step.instruction;
        let span = instruction.keyword.span;
        let warning = Diagnostic::warning("JSONArgsRecommended", message, span);
        let place = tail(instruction.span, text);
        self.shared.warn(match exec_form(text) {
            Some(array) if is_one_line(instruction.span, span, &instruction.text) => {
                warning.with_edit(place, array)
            }
            _ => warning,
        });
    }

    /// `WorkdirRelativePath`: where it leads depends on the base image.
    pub(super) fn advise_absolute(
        &mut self,
        written: &str,
        path: &str,
        word: &Word,
        step: &Step<'_>,
    ) {
        if step.onbuild || std::mem::replace(&mut self.state.workdir_set, true) {
            return;
        }
        let may_be_windows = self.state.config.os == "windows" || !self.state.known;
        let windows = may_be_windows && written.get(1..2) == Some(":");
        if written.starts_with('/') || windows {
            return;
        }
        let message = format!(
            "Relative workdir {written:?} can have unexpected results if the base image changes"
        );
        let warning = Diagnostic::warning("WorkdirRelativePath", message, word.span);
        // Neither variables nor quotes and escapes are in it.
        let sure = self.state.known && word.value == written;
        self.shared.warn(if sure {
            warning.with_edit(word.span, path)
        } else {
            warning
        });
    }

    /// `ExposeProtoCasing`
    pub(super) fn advise_protocol(&mut self, text: &str, word: &Word) {
        let message =
            format!("Defined protocol '{text}' in EXPOSE instruction should be lowercase");
        let warning = Diagnostic::warning("ExposeProtoCasing", message, word.span);
        self.shared.warn(if text == word.value {
            warning.with_edit(word.span, text.to_lowercase())
        } else {
            warning
        });
    }

    /// `CopyIgnoredFile`: a source of the build context that the ignore file hides. Where patterns
    /// take something back it takes a walk to know, so nothing is said.
    pub(super) fn advise_ignored(&mut self, keyword: &str, source: &str, word: &Word) {
        let Some(ignore) = &self.shared.options.ignore else {
            return;
        };
        let clean = path::join("/", source);
        let clean = clean.trim_start_matches('/');
        let takes_back = ignore.patterns().iter().any(|pattern| pattern.negated);
        if clean.is_empty() || takes_back || glob::is_pattern(source.as_bytes()) {
            return;
        }
        if ignore.excludes(clean) {
            let message = format!(
                "Attempting to {keyword} file {source:?} that is excluded by .dockerignore"
            );
            let warning = Diagnostic::warning("CopyIgnoredFile", message, word.span);
            self.shared.warn(warning);
        }
    }
}

/// The last part of an instruction, which holds its text.
fn tail(span: Span, text: &str) -> Span {
    let length = u32::try_from(text.len()).unwrap_or_default();
    Span {
        start: span.end.saturating_sub(length),
        end: span.end,
    }
}

/// Whether an instruction stands in the file as it was joined.
fn is_one_line(whole: Span, keyword: Span, text: &str) -> bool {
    (whole.end - keyword.start) as usize == text.len()
}

/// A command without anything that takes a shell, as a JSON array.
fn exec_form(text: &str) -> Option<String> {
    // What only exists inside a shell.
    const BUILTINS: [&str; 16] = [
        ".", ":", "cd", "eval", "exec", "exit", "export", "if", "for", "read", "set", "shift",
        "trap", "ulimit", "umask", "while",
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || " \t-_./:,@%+=".contains(c);
    let words: Vec<&str> = text.split_whitespace().collect();
    let first = words.first()?;
    if !text.chars().all(plain) || first.contains('=') || BUILTINS.contains(first) {
        return None;
    }
    serde_json::to_string(&words)
        .ok()
        .map(|array| array.replace("\",\"", "\", \""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_commands_get_the_exec_form() {
        let array = exec_form("nginx -g daemon").unwrap_or_default();
        assert_eq!(array, r#"["nginx", "-g", "daemon"]"#);
        for text in [
            "a && b", "echo $X", "A=1 b", "exec a", "a 'b c'", "ls *", "",
        ] {
            assert_eq!(exec_form(text), None, "{text}");
        }
    }

    #[test]
    fn plain_images_are_known_by_name() {
        for name in [
            "alpine",
            "alpine:3.20",
            "docker.io/library/debian@sha256:12",
        ] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["golang", "example.com/alpine", "me/alpine", "alpine-glibc"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
