//! What holds for every input: nothing panics, every place lies in the text, nothing takes long.

use std::time::{Duration, Instant};

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::dockerignore::IgnoreFile;
use kiln_grammar::lint::{self, Settings};
use kiln_grammar::source::Span;
use kiln_grammar::{glob, mount, parse, parse_trigger, syntax, word};
use proptest::prelude::*;

fn check_span(text: &str, span: Span) {
    assert!(text.get(span.range()).is_some(), "{span:?} of {text:?}");
}

fn check_all(text: &str, list: &[Diagnostic]) {
    for item in list {
        check_span(text, item.span);
        for edit in &item.fix {
            check_span(text, edit.span);
        }
    }
}

/// What all rules find, as `kiln check` looks for it.
fn lints(text: &str, dockerfile: &Dockerfile) -> Vec<Diagnostic> {
    let mut found = lint::lint(text, dockerfile);
    found.extend(lint::practices(text, dockerfile));
    check_all(text, &found);
    Settings::default().filter(text, dockerfile, found)
}

fn check_nodes(text: &str, nodes: &[syntax::Node]) {
    for node in nodes {
        check_span(text, node.span);
        check_span(text, node.keyword.span);
        for word in &node.args {
            check_span(text, word.span);
        }
        for flag in &node.flags {
            check_span(text, flag.span);
            flag.value
                .iter()
                .for_each(|value| check_span(text, value.span));
        }
        let (first, last) = node.lines;
        let lines = text.split('\n').count();
        assert!(1 <= first && first <= last && last as usize <= lines);
        for heredoc in &node.heredocs {
            check_span(text, heredoc.span);
            // A body stands in the file as it is, on the lines of its instruction.
            assert!(text.contains(&heredoc.content) && first < last);
        }
        if let Some(sub) = &node.sub {
            check_nodes(text, std::slice::from_ref(sub));
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

/// Pieces of shell, so that random scripts come near to what rules look for.
fn script() -> impl Strategy<Value = String> {
    let pieces = [
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
    fn parsing_ends_well(text in text()) {
        match parse(&text) {
            Ok(dockerfile) => {
                check_all(&text, &dockerfile.warnings);
                drop(lints(&text, &dockerfile));
                for stage in &dockerfile.stages {
                    check_span(&text, stage.span);
                }
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                check_all(&text, &errors);
            }
        }
        if let Ok(syntax) = syntax::parse(&text) {
            check_nodes(&text, &syntax.nodes);
        }
        if let Err(errors) = parse_trigger(&text, '`') {
            check_all(&text, &errors);
        }
    }

    #[test]
    fn scripts_are_looked_at(
        head in prop::sample::select(vec!["RUN ", "ONBUILD RUN ", "RUN <<E\n", "RUN sh <<-E\n", "RUN [\"sh\", \"-c\", \""]),
        body in script(),
    ) {
        let tail = if head.contains("<<") { "\nE\n" } else if head.contains('[') { "\"]\n" } else { "\n" };
        let text = format!("FROM a\n{head}{body}{tail}");
        let Ok(dockerfile) = parse(&text) else { return Ok(()) };
        drop(lints(&text, &dockerfile));
        let found = lint::practices(&text, &dockerfile);
        check_all(&text, &found);
        // What rules point at lies in the instruction that they are about.
        let known = |span: Span| dockerfile.stages[0].instructions.iter().any(|instruction| {
            instruction.span.start <= span.start && span.end <= instruction.span.end
        });
        for warning in found {
            let base = warning.span == dockerfile.stages[0].base.span;
            prop_assert!(base || known(warning.span), "{warning:?} of {text:?}");
        }
    }

    #[test]
    fn a_trigger_parses_again(body in text()) {
        let text = format!("FROM a\nONBUILD {body}");
        let Ok(dockerfile) = parse(&text) else { return Ok(()) };
        let escape = dockerfile.directives.escape;
        for instruction in &dockerfile.stages[0].instructions {
            if let kiln_grammar::ast::Kind::Onbuild(onbuild) = &instruction.kind {
                // Before a blank that is no ASCII an escape character continues nothing; at the
                // end of the stored line it would.
                if onbuild.instruction.text.ends_with(escape) {
                    continue;
                }
                let again = parse_trigger(&onbuild.trigger, escape).unwrap();
                prop_assert_eq!(&again.text, &onbuild.instruction.text);
            }
        }
    }

    #[test]
    fn expansion_ends_well(text in text(), value in any::<String>()) {
        let lookup = |name: &str| (name != "é").then(|| value.clone());
        for escape in ['\\', '`'] {
            drop(word::expand(&text, escape, &lookup));
            drop(word::expand_words(&text, escape, &lookup));
            drop(word::expand_heredoc(&text, escape, &lookup));
        }
    }

    #[test]
    fn mounts_and_globs_end_well(text in text(), name in any::<Vec<u8>>()) {
        drop(mount::parse_mount(&text));
        let _: Result<bool, _> = glob::matches(text.as_bytes(), &name);
    }

    #[test]
    fn a_walk_finds_what_a_question_finds(
        lines in prop::collection::vec("!?(\\*\\*/|/)?[ab*?]{1,3}(/[ab*]{1,2}){0,2}(/\\*\\*)?", 1..6),
        path in "[ab]{1,2}(/[ab]{1,2}){0,4}",
    ) {
        let Ok(file) = IgnoreFile::parse(&lines.join("\n")) else { return Ok(()) };
        let mut state = file.root_state();
        let mut pruned = false;
        for (at, _) in path.match_indices('/') {
            let directory = &path.as_bytes()[..at];
            let (children, verdict) = file.enter(&state, directory);
            pruned |= verdict.excluded && !file.may_include_below(directory);
            state = children;
        }
        let verdict = file.check(&state, path.as_bytes());
        prop_assert_eq!(verdict, file.verdict(path.as_bytes()));
        prop_assert_eq!(verdict.excluded, file.excludes_text(&path));
        prop_assert!(!pruned || verdict.excluded, "a walk would have missed {}", path);
    }
}

/// A mebibyte of anything parses or fails within a second of one core. The limit leaves room for
/// a busy machine; what grows with the square of the length takes minutes. Without optimisation the
/// texts are smaller.
const SIZE: usize = if cfg!(debug_assertions) {
    1 << 16
} else {
    1 << 20
};
const LIMIT: Duration = Duration::from_secs(10);

fn timed(name: &str, text: &str) {
    let start = Instant::now();
    if let Ok(dockerfile) = parse(text) {
        drop(lints(text, &dockerfile));
    }
    let took = start.elapsed();
    assert!(took < LIMIT, "{name:?} took {took:?}");
}

#[test]
fn a_mebibyte_of_anything_is_quick() {
    let fill = |piece: &str| piece.repeat(SIZE / piece.len());
    for piece in [
        "a",
        "\n",
        " ",
        "\\",
        "\\\n",
        "x \\\n",
        "x\\\n\n",
        "RUN a\n",
        "RUN <<A\n",
        "FROM a\n",
        "ENV a=b\n",
        "RUN --mount=target=/a b\n",
        "RUN <<A\nA\n",
        "ONBUILD ",
        "a\\\n",
        "# a\n",
        "RUN \"\\\n",
        "FROM A AS A\n",
        "FROM a AS A\n",
        "COPY --from=a a a\n",
        "RUN apt-get update\n",
        "ENV token=a\n",
        "RUN cd a;\n",
    ] {
        timed(piece, &fill(piece));
        timed(piece, &format!("FROM a\n{}", fill(piece)));
    }
    // One instruction over many lines: the limit of a line does not hold these short.
    let long = |piece: &str| {
        let line = piece.repeat(1000 / piece.len());
        (line + "\\\n").repeat(SIZE / 1000)
    };
    for keyword in [
        "RUN",
        "CMD",
        "COPY",
        "ENV",
        "LABEL",
        "ARG",
        "FROM",
        "VOLUME",
        "HEALTHCHECK",
        "EXPOSE",
        "ONBUILD RUN",
        "USER",
    ] {
        for piece in [
            "a ",
            "a=b ",
            "<<a ",
            "<< ",
            "\"",
            "'",
            "--a=b ",
            "--mount=target=/a ",
            "[",
            "[\"a\",",
            "(( ",
            " ",
            "\\a",
            "$",
            "\"a\" <<a ",
            "ONBUILD ",
        ] {
            timed(piece, &format!("FROM a\n{keyword} {}", long(piece)));
        }
    }
    for keyword in ["RUN", "RUN sh -c", "ONBUILD RUN bash -c '", "RUN <<E\n"] {
        for piece in [
            "$(",
            "${",
            "`",
            "(",
            "a;",
            "a|",
            "<(",
            "\"$(",
            "sh -c '",
            "sudo ",
            "curl -k ",
            "apk add a;",
            "pip install a;",
            "dnf install a;",
            "wget http://a.b;",
            "npm ci;",
            "apt-get update;",
            "useradd -u 100000 a;",
            "<<a ",
            "'",
            "\"",
            "\\",
        ] {
            timed(piece, &format!("FROM a\n{keyword} {}\nE\n", long(piece)));
        }
    }
}
