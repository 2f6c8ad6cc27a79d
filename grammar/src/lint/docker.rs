//! Docker's rules, as far as the text alone decides them.

use std::collections::HashMap;

use crate::ast::{Dockerfile, Instruction, Kind, Stage};
use crate::diagnostic::Diagnostic;
use crate::source::{Span, Spanned, comments_above};
use crate::syntax::{self, Node, keyword};
use crate::word;

use super::pair;

/// The label that took the place of `MAINTAINER`.
const AUTHORS: &str = "org.opencontainers.image.authors";

/// Names that stand for something else where a stage can be named.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Words that make the name of a variable that of a secret, and words that take it back.
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
const NO_SECRET: [&str; 3] = ["public", "file", "version"];

/// How many warnings are kept: a file of 16 MiB can be wrong millions of times, which nobody reads.
pub const MAX_FOUND: usize = 100_000;

/// Finds what docker's rules say of a Dockerfile's text. What needs values or base images is found
/// when the build is planned.
#[must_use]
pub fn lint(text: &str, file: &Dockerfile) -> Vec<Diagnostic> {
    let mut found = Found(Vec::new());
    empty_continuations(file, &mut found);
    if let Ok(syntax) = syntax::parse(text) {
        casing(&syntax.nodes, &mut found);
        for node in &syntax.nodes {
            from_casing(node, &mut found);
            key_values(text, file.directives.escape, node, &mut found);
        }
    }
    stage_names(text, file, &mut found);
    descriptions(text, file, &mut found);
    for instruction in instructions(file) {
        maintainer(text, file.directives.escape, instruction, &mut found);
        secrets(instruction, &mut found);
    }
    for stage in &file.stages {
        repeated(stage, &mut found);
    }
    found.0
}

/// What is found, up to [`MAX_FOUND`].
struct Found(Vec<Diagnostic>);

impl Found {
    fn push(&mut self, warning: Diagnostic) {
        if self.0.len() < MAX_FOUND {
            self.0.push(warning);
        }
    }
}

fn instructions(file: &Dockerfile) -> impl Iterator<Item = &Instruction> {
    let stages = file.stages.iter().flat_map(|stage| &stage.instructions);
    file.global_args.iter().chain(stages)
}

fn empty_continuations(file: &Dockerfile, found: &mut Found) {
    for warning in file.warnings.iter().take(MAX_FOUND) {
        found.push(Diagnostic {
            message: "Empty continuation line".to_owned(),
            ..warning.clone()
        });
    }
}

/// `ConsistentInstructionCasing`: all upper or all lower, like most of the file.
fn casing(nodes: &[Node], found: &mut Found) {
    let words = || nodes.iter().map(|node| node.keyword.value.as_str());
    let lower = words().filter(|word| *word == word.to_lowercase()).count();
    let upper = words().filter(|word| *word == word.to_uppercase()).count();
    let (name, turn): (_, fn(&str) -> String) = if lower > upper {
        ("lowercase", str::to_lowercase)
    } else {
        ("uppercase", str::to_uppercase)
    };
    for node in nodes {
        let word = &node.keyword.value;
        if *word == turn(word) {
            continue;
        }
        let message =
            format!("Command '{word}' should match the case of the command majority ({name})");
        let span = node.keyword.span;
        let warning = Diagnostic::warning("ConsistentInstructionCasing", message, span);
        found.push(warning.with_edit(span, turn(word)));
    }
}

/// `FromAsCasing`: both words in upper, or both in lower case.
fn from_casing(node: &Node, found: &mut Found) {
    let ("from", [_, word, _]) = (keyword(node), node.args.as_slice()) else {
        return;
    };
    let (from, written) = (&node.keyword.value, &word.value);
    let wanted = if *from == from.to_lowercase() {
        "as"
    } else {
        "AS"
    };
    // A FROM in mixed case is wrong by itself.
    let mixed = *from != from.to_lowercase() && *from != from.to_uppercase();
    if written == wanted || mixed {
        return;
    }
    let message = format!("'{written}' and '{from}' keywords' casing do not match");
    let warning = Diagnostic::warning("FromAsCasing", message, word.span);
    found.push(warning.with_edit(word.span, wanted));
}

/// `StageNameCasing`, `ReservedStageName`, `DuplicateStageName`.
fn stage_names(text: &str, file: &Dockerfile, found: &mut Found) {
    let mut seen: HashMap<&str, Span> = HashMap::new();
    let mut bases: HashMap<String, Vec<&Spanned<String>>> = HashMap::new();
    for base in file.stages.iter().map(|stage| &stage.base) {
        let named = bases.entry(base.value.to_lowercase());
        named.or_default().push(base);
    }
    for stage in &file.stages {
        let Some(name) = &stage.name else {
            continue;
        };
        let written = text.get(name.span.range()).unwrap_or(&name.value);
        if written != name.value {
            let message = format!("Stage name '{written}' should be lowercase");
            let warning = Diagnostic::warning("StageNameCasing", message, name.span)
                .with_edit(name.span, &name.value);
            // Docker does not find the stage otherwise where others are built on it (A7.2).
            let later = bases.remove(&name.value).into_iter().flatten();
            let wrong =
                later.filter(|base| base.span.start > name.span.start && base.value != name.value);
            found.push(wrong.fold(warning, |warning, base| {
                warning.with_edit(base.span, &name.value)
            }));
        }
        if RESERVED.contains(&name.value.as_str()) {
            let message = format!(
                "Stage name should not use the same name as reserved stage {:?}",
                name.value
            );
            found.push(Diagnostic::warning("ReservedStageName", message, name.span));
        }
        if seen.insert(&name.value, name.span).is_some() {
            let message = format!(
                "Duplicate stage name {:?}, stage names should be unique",
                name.value
            );
            found.push(Diagnostic::warning(
                "DuplicateStageName",
                message,
                name.span,
            ));
        }
    }
}

/// `MaintainerDeprecated`.
fn maintainer(text: &str, escape: char, instruction: &Instruction, found: &mut Found) {
    if let Kind::Maintainer(author) = &instruction.kind {
        let message = "Maintainer instruction is deprecated in favor of using label";
        let span = instruction.keyword.span;
        let warning = Diagnostic::warning("MaintainerDeprecated", message, span);
        found.push(match label(text, escape, instruction, &author.value) {
            Some(label) => warning.with_edit(instruction.span, label),
            None => warning,
        });
    }
}

/// The label that says what a `MAINTAINER` did. One that goes over several lines takes a person,
/// since there may be comments between them.
fn label(text: &str, escape: char, instruction: &Instruction, author: &str) -> Option<String> {
    let whole = text.get(instruction.span.range())?;
    let value = quote(author, escape);
    let expanded = word::expand(&value, escape, &|_| None).ok()?;
    if whole.contains('\n') || expanded.text != author {
        return None;
    }
    let upper = instruction.keyword.value != instruction.keyword.value.to_lowercase();
    let keyword = if upper { "LABEL" } else { "label" };
    Some(format!("{keyword} {AUTHORS}={value}"))
}

/// A text in double quotes, so that expansion gives it back.
fn quote(text: &str, escape: char) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        if matches!(letter, '"' | '$') || letter == escape {
            quoted.push(escape);
        }
        quoted.push(letter);
    }
    quoted.push('"');
    quoted
}

/// `LegacyKeyValueFormat`.
fn key_values(text: &str, escape: char, node: &Node, found: &mut Found) {
    if let Some(sub) = &node.sub {
        let known = found.0.len();
        key_values(text, escape, sub, found);
        // The image that keeps the trigger does not say which escape character it was written with.
        for warning in found.0.iter_mut().skip(known).filter(|_| escape != '\\') {
            warning.fix.clear();
        }
        return;
    }
    let ("env" | "label", [key, value, sign]) = (keyword(node), node.args.as_slice()) else {
        return;
    };
    if !sign.value.is_empty() {
        return;
    }
    let name = node.keyword.value.to_uppercase();
    let message = format!(
        "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
    );
    let span = key.span.join(value.span);
    let mut warning = Diagnostic::warning("LegacyKeyValueFormat", message, span);
    if let Some(edits) = pair::edits(text, escape, key, value) {
        warning.fix = edits;
    }
    found.push(warning);
}

/// `SecretsUsedInArgOrEnv`.
fn secrets(instruction: &Instruction, found: &mut Found) {
    let (name, keys): (_, Vec<&Spanned<String>>) = match &instruction.kind {
        Kind::Arg(pairs) => ("ARG", pairs.iter().map(|pair| &pair.name).collect()),
        Kind::Env(pairs) => ("ENV", pairs.iter().map(|pair| &pair.key).collect()),
        _ => return,
    };
    for key in keys.into_iter().filter(|key| is_secret(&key.value)) {
        let message = format!(
            "Do not use ARG or ENV instructions for sensitive data ({name} {:?})",
            key.value
        );
        let warning = Diagnostic::warning("SecretsUsedInArgOrEnv", message, key.span);
        found.push(warning.with_hint("give it to the step that needs it: RUN --mount=type=secret"));
    }
}

/// Whether the name of a variable says that its value is a secret, by the words of docker's rule.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    let has = |words: &[&str]| name.split('_').any(|word| words.contains(&word));
    has(&SECRET) && !has(&NO_SECRET)
}

/// `MultipleInstructionsDisallowed`: only the last one counts, so the others are pointed at.
fn repeated(stage: &Stage, found: &mut Found) {
    let mut last: HashMap<&str, Span> = HashMap::new();
    for instruction in &stage.instructions {
        let name = match instruction.kind {
            Kind::Cmd(_) => "CMD",
            Kind::Entrypoint(_) => "ENTRYPOINT",
            Kind::Healthcheck(_) => "HEALTHCHECK",
            _ => continue,
        };
        if let Some(earlier) = last.insert(name, instruction.keyword.span) {
            let message = format!(
                "Multiple {name} instructions should not be used in the same stage because only \
                 the last one will be used"
            );
            found.push(Diagnostic::warning(
                "MultipleInstructionsDisallowed",
                message,
                earlier,
            ));
        }
    }
}

/// `InvalidDefinitionDescription`: a comment right above a named stage or an argument describes
/// it, name first (A1.12).
fn descriptions(text: &str, file: &Dockerfile, found: &mut Found) {
    let stages = file.stages.iter().filter_map(|stage| {
        let name = stage.name.as_ref()?;
        Some(("FROM", stage.span, name.value.as_str()))
    });
    let args = instructions(file).filter_map(|instruction| match &instruction.kind {
        Kind::Arg(pairs) => match pairs.as_slice() {
            [pair] => Some(("ARG", instruction.span, pair.name.value.as_str())),
            _ => None,
        },
        _ => None,
    });
    for (keyword, span, name) in stages.chain(args) {
        let Some(comment) = comments_above(text, span.start).pop() else {
            continue;
        };
        let first = comment.value.split_whitespace().next().unwrap_or_default();
        let directive = ["check=", "syntax=", "escape="];
        let directive = directive.iter().any(|name| comment.value.starts_with(name));
        if first.eq_ignore_ascii_case(name) || directive {
            continue;
        }
        let message =
            format!("Comment for {keyword} should follow the format: `# {name} <description>`");
        let warning = Diagnostic::warning("InvalidDefinitionDescription", message, comment.span);
        found.push(warning.with_hint("put a blank line behind a comment that describes nothing"));
    }
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    /// A17: words, not parts of words.
    #[test]
    fn names_of_secrets_are_told_from_others() {
        for name in [
            "TOKEN",
            "api_token",
            "AWS_SECRET_ACCESS_KEY",
            "DB_PASSWD",
            "apikey",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "TOKENIZER",
            "PUBLIC_KEY",
            "PASSWORD_FILE",
            "SECRET_VERSION",
            "MONKEY",
            "AUTHOR",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
