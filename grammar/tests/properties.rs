//! What holds for every input: the claims of the fuzz targets (`grammar/fuzz`), over the test data
//! and over random texts, with an ordinary compiler.

#[expect(
    unreachable_pub,
    reason = "the library of the fuzz targets, in this test a module"
)]
#[path = "../fuzz/src/lib.rs"]
mod checks;

use std::path::Path;

use checks::seeds::{TARGETS, seeds};
use kiln_grammar::ast::Dockerfile;
use kiln_grammar::dockerignore::{self, IgnoreError, IgnoreFile};
use kiln_grammar::lint;
use kiln_grammar::source::Span;
use kiln_grammar::word::{self, WordError};
use kiln_grammar::{glob, parse, syntax};
use proptest::prelude::*;

#[test]
fn the_fuzz_targets_hold_for_the_test_data() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    for target in TARGETS {
        let check = match target {
            "dockerfile" => checks::dockerfile,
            "word" => checks::word,
            "dockerignore" => checks::dockerignore,
            "glob" => checks::glob,
            other => panic!("no test of the fuzz target {other}"),
        };
        let seeds = seeds(target, &testdata).unwrap();
        assert!(seeds.len() > 20, "{target} has hardly any seeds");
        for seed in seeds {
            check(&seed);
        }
    }
}

/// Pieces that mean something, so that random texts come near to Dockerfiles.
fn piece() -> impl Strategy<Value = String> {
    let pieces = [
        "FROM a",
        "RUN ",
        "COPY ",
        "ADD ",
        "ENV ",
        "LABEL ",
        "ARG ",
        "CMD ",
        "ONBUILD ",
        "SHELL ",
        "HEALTHCHECK ",
        "VOLUME ",
        "--mount=",
        "--from=",
        "--interval=",
        "--",
        "type=cache,target=/x",
        "<<EOF",
        "<<-'E'",
        "EOF",
        "E",
        "[\"a\"",
        ", 1]",
        "]",
        "\\",
        "`",
        "\n",
        "\n",
        "\r\n",
        " ",
        "\t",
        "#",
        "# escape=`\n",
        "\"",
        "'",
        "$A",
        "${A:-",
        "}",
        "=",
        "a",
        "é",
        "\u{a0}",
        "\u{feff}",
        "/",
        "{",
        "((",
        "-- ",
        "[\"[1]\", \"b c\"]",
        "--link",
        "--chown=",
        " AS x",
        "<<\"E\"",
        "3<<E",
        "CMD",
        "NONE",
        ":",
        "%%*",
        "))",
        "\\u00",
        "\0",
    ];
    prop_oneof![
        8 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat())
}

/// One instruction in a stage, perhaps with bodies of heredocs: of these, many are right.
fn instruction() -> impl Strategy<Value = String> {
    let top = prop::sample::select(vec!["", "", "# escape=`\n"]);
    let onbuild = prop::sample::select(vec!["", "", "", "ONBUILD "]);
    let keyword = prop::sample::select(syntax::KEYWORDS.to_vec());
    let rest = prop::collection::vec(piece(), 0..8);
    let end = prop::sample::select(vec!["", "", "", "E\n", "\t$A\nE\n", "EOF\n", "EOF\nE\n"]);
    (top, onbuild, keyword, rest, end).prop_map(|(top, onbuild, keyword, rest, end)| {
        let rest = rest.concat();
        format!("{top}FROM a\n{onbuild}{keyword} {rest}\n{end}")
    })
}

/// What a pattern of an ignore file says, word for word from its description (A14.3).
fn naive(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => {
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            let mut tails = (0..path.len()).filter(|at| path[*at] == b'/');
            rest.is_empty() || naive(rest, path) || tails.any(|at| naive(rest, &path[at + 1..]))
        }
        [b'*', rest @ ..] => {
            let name = path.iter().take_while(|byte| **byte != b'/').count();
            (0..=name).any(|at| naive(rest, &path[at..]))
        }
        [b'?', rest @ ..] => path
            .split_first()
            .is_some_and(|(first, after)| *first != b'/' && naive(rest, after)),
        [letter, rest @ ..] => path
            .split_first()
            .is_some_and(|(first, after)| first == letter && naive(rest, after)),
    }
}

/// The same for a list, of which the last pattern that matches a path or a parent decides (A14.4).
fn naive_excludes(lines: &[String], path: &str) -> bool {
    let path = path.as_bytes();
    let parents = (0..path.len()).filter(|at| path[*at] == b'/');
    let paths: Vec<&[u8]> = parents.map(|at| &path[..at]).chain([path]).collect();
    let mut excluded = false;
    for line in lines {
        let pattern = line.trim_start_matches('!').trim_start_matches('/');
        let plain = |text: &&str| !text.contains(['*', '?']);
        // Docker's shortcut: plain text behind `**` is a suffix, in the middle of a name too.
        let suffix = pattern.strip_prefix("**").filter(plain);
        let matches = |path: &&[u8]| {
            naive(pattern.as_bytes(), path)
                || suffix.is_some_and(|suffix| path.ends_with(suffix.as_bytes()))
        };
        if paths.iter().any(matches) {
            excluded = !line.starts_with('!');
        }
    }
    excluded
}

/// Pieces of shell, so that random scripts come near to what rules look for.
fn script() -> impl Strategy<Value = String> {
    let pieces = [
        "apt-get install ",
        "apt-get ",
        "apt ",
        "install ",
        "update ",
        "apk add ",
        "pip install ",
        "-y ",
        "-o ",
        "curl -k ",
        "wget http://a.b ",
        "https://a:b@c ",
        "| sh",
        "|",
        "||",
        "&&",
        ";",
        "&",
        "(",
        ")",
        "$(",
        "`",
        "\"",
        "'",
        "$((",
        "${A",
        "}",
        "<<X",
        "<<-X",
        "X",
        "\nX\n",
        "\n",
        "\\\n",
        " \\\n# c\n",
        "\\",
        " #",
        ">",
        "2>&1",
        "<(",
        "sudo ",
        "env A=b ",
        "xargs -n 1 ",
        "sh -c ",
        "sh -c 'cd /a'",
        "bash -c \"a\"",
        "cd /a",
        "export A=b",
        "chmod 777 ",
        "useradd -u 1000000 ",
        "if ",
        "! ",
        "{ ",
        "a",
        "é",
        "\t",
        "#!/bin/sh\n",
        "set -o pipefail",
        "--mount=type=cache,target=/var/lib/apt ",
    ];
    let piece = prop::sample::select(pieces.to_vec());
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_texts(text in text()) {
        checks::dockerfile(text.as_bytes());
    }

    #[test]
    fn random_scripts(
        head in prop::sample::select(vec!["RUN ", "ONBUILD RUN ", "RUN <<E\n", "RUN sh <<-E\n", "RUN [\"sh\", \"-c\", \""]),
        body in script(),
    ) {
        let tail = if head.contains("<<") { "\nE\n" } else if head.contains('[') { "\"]\n" } else { "\n" };
        let text = format!("FROM a\n{head}{body}{tail}");
        checks::dockerfile(text.as_bytes());
        let Ok(dockerfile) = parse(&text) else { return Ok(()) };
        // What rules point at lies in the instruction that they are about.
        let known = |span: Span| dockerfile.stages[0].instructions.iter().any(|instruction| {
            instruction.span.start <= span.start && span.end <= instruction.span.end
        });
        for warning in lint::practices(&text, &dockerfile) {
            for edit in &warning.fix {
                let mut fixed = text.clone();
                fixed.replace_range(edit.span.range(), &edit.text);
                let again = parse(&fixed);
                prop_assert!(again.is_ok(), "{edit:?} of {text:?}: {again:?}");
                let count = |file: &Dockerfile| file.stages[0].instructions.len();
                prop_assert_eq!(count(&again.unwrap()), count(&dockerfile));
            }
            let base = warning.span == dockerfile.stages[0].base.span;
            prop_assert!(base || known(warning.span), "{warning:?} of {text:?}");
        }
    }

    #[test]
    fn random_instructions(text in instruction()) {
        checks::dockerfile(text.as_bytes());
    }

    #[test]
    fn random_words(text in text(), how in "([+](quotes|escapes|skip|plain|backtick)){0,3}", value in "[^;\n]*") {
        checks::word(format!("{how}\nA={value}\n{text}").as_bytes());
    }

    #[test]
    fn random_globs(name in any::<Vec<u8>>(), pattern in any::<Vec<u8>>(), text in "[ab*?\\[\\]^\\\\/-]*") {
        checks::glob(&[&name, b"\n".as_slice(), &pattern].concat());
        checks::glob(format!("ab/-\n{text}").as_bytes());
        let _: Result<bool, _> = glob::matches(text.as_bytes(), &name);
    }

    #[test]
    fn random_ignore_files(text in "([!#]?[ab./*?\\[\\]\\\\ -]{0,8}\n){0,6}", path in "[ab]{1,2}(/[ab]{1,2}){0,4}") {
        checks::dockerignore(format!("{path}\n{text}").as_bytes());
    }

    #[test]
    fn patterns_mean_what_they_say(
        lines in prop::collection::vec("!?(\\*\\*/|/)?[ab*?]{1,3}(/[ab*]{1,2}){0,2}(/\\*\\*)?", 1..6),
        path in "[ab]{1,2}(/[ab]{1,2}){0,4}",
    ) {
        checks::dockerignore(format!("{path}\n{}", lines.join("\n")).as_bytes());
        let file = IgnoreFile::from_patterns(&lines).unwrap();
        prop_assert_eq!(file.excludes(&path), naive_excludes(&lines, &path));
    }
}

#[test]
fn limits_hold() {
    let errors = |text: &str| parse(text).unwrap_err();
    let large = " ".repeat(syntax::MAX_SIZE + 1);
    assert!(errors(&large)[0].message.contains("larger than"));
    let wrong = "FROM a\n".to_owned() + &"NOPE\n".repeat(1000);
    assert_eq!(errors(&wrong).len(), syntax::MAX_ERRORS);
    let chain = "FROM a\n".to_owned() + &"ONBUILD ".repeat(5000) + "RUN b";
    assert!(errors(&chain)[0].message.contains("isn't allowed"), "A7.12");

    let unset = |_: &str| None;
    let nested = |depth: usize| "${a:-".repeat(depth) + "x" + &"}".repeat(depth);
    let expand = |depth| word::expand(&nested(depth), '\\', &unset);
    assert_eq!(expand(word::MAX_DEPTH).unwrap().text, "x");
    assert_eq!(expand(word::MAX_DEPTH + 1), Err(WordError::TooDeep));
    assert_eq!(expand(1_000_000), Err(WordError::TooDeep));
    let half = "x".repeat(word::MAX_LENGTH / 2);
    let half = |_: &str| Some(half.clone());
    assert!(word::expand("$a$a", '\\', &half).is_ok());
    let long = word::expand("$a$a.", '\\', &half);
    assert_eq!(long, Err(WordError::TooLong(word::MAX_LENGTH)));

    let many = "a\n".repeat(dockerignore::MAX_PATTERNS + 1);
    assert!(matches!(
        IgnoreFile::parse(&many),
        Err(IgnoreError::TooMany)
    ));
    let long = "a".repeat(dockerignore::MAX_PATTERN + 1);
    assert!(matches!(
        IgnoreFile::parse(&long),
        Err(IgnoreError::TooLong { line: 1 })
    ));
}
