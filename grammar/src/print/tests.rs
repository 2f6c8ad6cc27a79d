use super::*;
use crate::parse;

fn printed(text: &str) -> String {
    print(&parse(text).unwrap())
}

/// What is canonical already stays as it is.
#[test]
fn keeps_what_is_canonical() {
    for line in [
        "ARG a b= c=1 d='1 2'",
        "ENV a=1 b='x y' c=\"\\\"\"",
        "ENV a b c",
        // A blank behind the escape character belongs to the word, two blanks end it.
        "ENV a\\  b=c d",
        "LABEL \"a b\"=c",
        "RUN a  b",
        "RUN [\"a b\", \"\\u0001\\\"\"]",
        "RUN --mount=type=tmpfs,target=/a --network=none a",
        "RUN --device=\"a b\\\"c'\\\\\" a",
        "RUN -- --a",
        "RUN -- -- --a",
        "CMD []",
        "SHELL [\"a\"]",
        "COPY --from=a --parents --chown=1:2 --link --exclude=*.c a b/",
        "COPY [\"[1]\", \"b\"]",
        "COPY [\"a b\", \"\", \"c\"]",
        "ADD --checksum=sha256:1 --keep-git-dir --unpack=false a b",
        "VOLUME a b",
        "EXPOSE 80 81/udp",
        "HEALTHCHECK NONE",
        "HEALTHCHECK --interval=1000000ns --retries=2 CMD a b",
        "HEALTHCHECK CMD [\"a\"]",
        "ONBUILD WORKDIR a b",
        // At the end of a line an escape character would continue it.
        "USER a\\\u{a0}",
        "USER a\\\\",
        "COPY <<E <<\"F\" 3<<-G /\n$a\nE\nF\nG",
        "COPY <<\\\\b <<\"\\$\" <<\\-a /\n\\b\n$\n-a",
        "ONBUILD RUN a <<E\nb\nE",
    ] {
        let text = format!("FROM a\n{line}\n");
        assert_eq!(printed(&text), text);
    }
    let top = "# syntax=a/b\n# check=skip=all\n# escape=`\nARG a\nFROM --platform=b $a AS c\n";
    assert_eq!(printed(top), top);
}

#[test]
fn makes_the_rest_canonical() {
    for (line, canonical) in [
        ("run \\\n  a \\\n# c\n b", "RUN a  b"),
        ("Env\ta \t1", "ENV a=1"),
        ("copy --link=TRUE --parents=false a  b", "COPY --link a b"),
        ("RUN --network='none' a", "RUN --network=none a"),
        ("RUN -- a", "RUN a"),
        ("volume [\"a\",\"b\"]", "VOLUME a b"),
        (
            "HEALTHCHECK --timeout=1.5s cmd a",
            "HEALTHCHECK --timeout=1500000000ns CMD a",
        ),
        (
            "onbuild  run  <<-'E'\n\t\ta\n\tE",
            "ONBUILD RUN <<-'E'\na\nE",
        ),
    ] {
        let text = format!("FROM a\n{line}\n");
        assert_eq!(printed(&text), format!("FROM a\n{canonical}\n"));
    }
}

/// No line of a file is longer than A1.2 allows; where one is cut, nothing is lost.
#[test]
fn cuts_long_lines() {
    for piece in ["a", "é", "a b ", "# a", "\\a", "a\\\\b"] {
        let part = piece.repeat(20_000 / piece.len());
        let text = format!("FROM a\nRUN x{part}\\\nx{part}\\\nx{part}\\\nx{part}\\\nx{part}x\n");
        let dockerfile = parse(&text).unwrap();
        let canonical = print(&dockerfile);
        assert_eq!(canonical.lines().count(), 3, "{piece:?}");
        let again = parse(&canonical).unwrap();
        let command = |dockerfile: &Dockerfile| dockerfile.stages[0].instructions[0].text.clone();
        assert!(command(&again) == command(&dockerfile), "{piece:?}");
    }
}
