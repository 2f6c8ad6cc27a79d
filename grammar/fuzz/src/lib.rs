//! What holds for every input, however malformed: the bodies of the fuzz targets.
//!
//! A target takes bytes and panics if something does not hold. Inputs that are no text are passed
//! over, as the callers of the grammar refuse them. `grammar/tests/properties.rs` runs the same functions
//! over the test data with an ordinary compiler, so that they cannot rot.

pub mod seeds;
pub mod tree;

use kiln_grammar::ast::{Command, Dockerfile, Instruction, Kind};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::dockerignore::{IgnoreFile, Pattern};
use kiln_grammar::print::print;
use kiln_grammar::source::{Span, comments_above, position};
use kiln_grammar::word::{self, Options};
use kiln_grammar::{glob, lint, mount, parse, parse_trigger, syntax};

/// A Dockerfile: the input is its text.
pub fn dockerfile(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(syntax) = syntax::parse(text) {
        nodes(text, &syntax.nodes, whole(text));
        diagnostics(text, &syntax.errors);
    }
    match parse(text) {
        Ok(dockerfile) => {
            diagnostics(text, &dockerfile.warnings);
            tree::check_spans(text, &dockerfile);
            expand_all(&dockerfile);
            triggers(&dockerfile);
            prints(&dockerfile);
            lints(text, &dockerfile);
        }
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= syntax::MAX_ERRORS);
            diagnostics(text, &errors);
        }
    }
    for escape in ['\\', '`'] {
        match parse_trigger(text, escape) {
            Ok(instruction) => tree::check_instruction(text, &instruction, whole(text)),
            Err(errors) => diagnostics(text, &errors),
        }
    }
    drop(mount::parse_mount(text));
}

/// What rules find lies in the text, and what they mend can still be read.
fn lints(text: &str, dockerfile: &Dockerfile) {
    let mut found = lint::lint(text, dockerfile);
    found.extend(lint::practices(text, dockerfile));
    diagnostics(text, &found);
    for edit in found.iter().flat_map(|warning| &warning.fix) {
        tree::check_span(text, edit.span, whole(text));
    }
    let left = lint::Settings::default().filter(text, dockerfile, found);
    assert!(left.iter().all(|warning| warning.rule.is_some()));
}

fn whole(text: &str) -> Span {
    let end = u32::try_from(text.len()).unwrap_or(u32::MAX);
    Span { start: 0, end }
}

fn diagnostics(text: &str, list: &[Diagnostic]) {
    for item in list {
        tree::check_span(text, item.span, whole(text));
        assert!(!item.message.is_empty());
        let (start, end) = (
            position(text, item.span.start),
            position(text, item.span.end),
        );
        assert!(start <= end, "{item:?}");
    }
}

fn nodes(text: &str, list: &[syntax::Node], outer: Span) {
    let mut from = 0;
    for node in list {
        tree::check_span(text, node.span, outer);
        assert!(from <= node.span.start, "nodes overlap: {node:?}");
        from = node.span.end;
        for word in node.args.iter().chain([&node.keyword]) {
            tree::check_span(text, word.span, node.span);
        }
        for flag in &node.flags {
            tree::check_span(text, flag.span, node.span);
            if let Some(value) = &flag.value {
                tree::check_span(text, value.span, flag.span);
            }
        }
        let (first, last) = node.lines;
        let lines = text.split('\n').count();
        assert!(1 <= first && first <= last && last as usize <= lines);
        for heredoc in &node.heredocs {
            tree::check_span(text, heredoc.span, node.span);
            // A body stands in the file as it is, on the lines of its instruction.
            assert!(text.contains(&heredoc.content) && first < last);
        }
        if let Some(sub) = &node.sub {
            nodes(text, std::slice::from_ref(sub), node.span);
        }
        drop(comments_above(text, node.span.start));
    }
}

/// A few variables: one with a value, an empty one, one that patterns cut.
fn lookup(name: &str) -> Option<String> {
    match name {
        "A" => Some("x".to_owned()),
        "E" => Some(String::new()),
        "P" | "PATH" => Some("a/b/c.tar.gz".to_owned()),
        _ => None,
    }
}

fn expand_all(dockerfile: &Dockerfile) {
    let escape = dockerfile.directives.escape;
    tree::each_word(dockerfile, &mut |text| check_expansion(text, escape));
    tree::each_instruction(dockerfile, &mut |instruction| match &instruction.kind {
        Kind::Run(run) => {
            for record in &run.mounts {
                let expand = &mut |value: &str| {
                    word::expand(value, escape, &lookup).map(|expanded| expanded.text)
                };
                drop(mount::expand_mount(&record.value, expand));
            }
            assert!(run.heredocs.is_empty() || matches!(run.command, Command::Shell(_)));
        }
        Kind::Copy(copy) => {
            let patterns: Vec<&str> = copy.files.exclude.iter().map(|p| &*p.value).collect();
            drop(IgnoreFile::from_patterns(&patterns));
        }
        _ => {}
    });
}

/// A stored trigger is read again when a child image is built, and says the same then.
fn triggers(dockerfile: &Dockerfile) {
    let escape = dockerfile.directives.escape;
    tree::each_instruction(dockerfile, &mut |instruction| {
        let Kind::Onbuild(onbuild) = &instruction.kind else {
            return;
        };
        // Before a blank that is no ASCII an escape character continues nothing; at the end of
        // the stored line, where docker has the same line, it would.
        if onbuild.instruction.text.ends_with(escape) {
            return;
        }
        let again = parse_trigger(&onbuild.trigger, escape);
        let again = again.unwrap_or_else(|errors| panic!("{onbuild:?}: {errors:?}"));
        assert_eq!(
            tree::normal_instruction(&again),
            tree::normal_instruction(&onbuild.instruction),
        );
    });
}

/// What is printed is the same Dockerfile, and is printed the same.
fn prints(dockerfile: &Dockerfile) {
    let text = print(dockerfile);
    let again = parse(&text).unwrap_or_else(|errors| panic!("{text:?}: {errors:?}"));
    assert_eq!(
        tree::normal(&again),
        tree::normal(dockerfile),
        "printed as {text:?}"
    );
    assert_eq!(print(&again), text);
}

fn check_expansion(text: &str, escape: char) {
    let plain = !text.contains(['$', '\'', '"', escape]);
    if let Ok(expanded) = word::expand(text, escape, &lookup) {
        assert!(expanded.text.len() <= word::MAX_LENGTH);
        assert!(!plain || expanded.text == text, "{text:?}: {expanded:?}");
        for names in [&expanded.matched, &expanded.unmatched] {
            assert!(names.is_sorted_by(|one, next| one < next), "{names:?}");
        }
        assert!(
            !expanded
                .matched
                .iter()
                .any(|name| expanded.unmatched.contains(name)),
            "{expanded:?}",
        );
    }
    if let Ok(expanded) = word::expand_words(text, escape, &lookup) {
        assert!(expanded.words.iter().all(|word| !word.is_empty()));
        if plain {
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(expanded.words, words);
        }
    }
    if let Ok(expanded) = word::expand_heredoc(text, escape, &lookup) {
        assert!(expanded.text.len() <= word::MAX_HEREDOC);
        assert!(text.contains(['$', escape]) || expanded.text == text);
    }
    // With everything kept and nothing set, nothing changes.
    let options = Options {
        raw_quotes: true,
        raw_escapes: true,
        skip_unset: true,
        plain_quotes: false,
    };
    if let Ok(expanded) = word::expand_with(text, escape, options, &|_| None) {
        assert_eq!(expanded.text, text);
    }
}

/// A word: a line of options as in `testdata/words.tsv`, a line `name=value;...`, then the word.
pub fn word(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut parts = text.splitn(3, '\n');
    let (Some(how), Some(env), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
        return;
    };
    let lookup = |name: &str| {
        env.split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let options = Options {
        raw_quotes: how.contains("+quotes"),
        raw_escapes: how.contains("+escapes"),
        skip_unset: how.contains("+skip"),
        plain_quotes: how.contains("+plain"),
    };
    let escape = if how.contains("+backtick") { '`' } else { '\\' };
    drop(word::expand_with(text, escape, options, &lookup));
    drop(word::expand_words_with(text, escape, options, &lookup));
    drop(word::expand_heredoc(text, escape, &lookup));
    check_expansion(text, escape);
}

/// An ignore file: a line with a path, then the file.
pub fn dockerignore(input: &[u8]) {
    let (path, text) = split_line(input);
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(file) = IgnoreFile::parse(text) else {
        return;
    };
    // What a pattern has become is a pattern, and the same; a blank at an end, beside which
    // something was cleaned away, cannot be written so again.
    let trimmed = |pattern: &Pattern| pattern.text.trim() == pattern.text;
    if file.patterns().iter().all(trimmed) {
        let patterns: Vec<String> = file.patterns().iter().map(written).collect();
        let again = IgnoreFile::from_patterns(&patterns)
            .unwrap_or_else(|error| panic!("{patterns:?}: {error}"));
        let again: Vec<String> = again.patterns().iter().map(written).collect();
        assert_eq!(again, patterns);
    }

    let verdict = file.verdict(path);
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    if names.iter().any(|name| matches!(*name, b"" | b"." | b"..")) {
        // No path that a walk comes to.
        return;
    }
    let mut state = file.root_state();
    let mut pruned = false;
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let (children, verdict) = file.enter(&state, &path[..at]);
        pruned |= verdict.excluded && !file.may_include_below(&path[..at]);
        state = children;
    }
    assert_eq!(file.check(&state, path), verdict);
    assert_eq!(file.enter(&state, path).1, verdict);
    assert!(!pruned || verdict.excluded, "a walk would have missed it");
}

fn written(pattern: &Pattern) -> String {
    let not = if pattern.negated { "!" } else { "" };
    format!("{not}{}", pattern.text)
}

/// A wildcard: a line with a name, then the pattern.
pub fn glob(input: &[u8]) {
    let (name, pattern) = split_line(input);
    let verdict = glob::matches(pattern, name);
    if !glob::is_pattern(pattern) {
        assert_eq!(verdict, Ok(pattern == name));
    }
    // Whether a pattern is one does not depend on the name.
    assert_eq!(glob::matches(pattern, b"").is_ok(), verdict.is_ok());
    // A name with its special characters escaped matches itself and nothing else.
    let mut escaped = Vec::with_capacity(2 * name.len());
    for byte in name {
        if b"*?[\\".contains(byte) {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    assert_eq!(glob::matches(&escaped, name), Ok(true));
    assert_eq!(glob::matches(&escaped, pattern), Ok(pattern == name));
}

fn split_line(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, b""),
    }
}

/// All instructions of a Dockerfile, triggers behind their `ONBUILD`.
fn instructions(dockerfile: &Dockerfile) -> impl Iterator<Item = &Instruction> {
    let stages = dockerfile.stages.iter();
    dockerfile
        .global_args
        .iter()
        .chain(stages.flat_map(|stage| &stage.instructions))
}
