//! No text takes long: a mebibyte of anything is read or refused within a second of one core, and
//! twice as much takes about twice as long.
//!
//! Without optimisation the texts are smaller. What is asserted is growth, with several tries, and a
//! generous limit on the time of the processor: work that grows with the square of the length misses
//! both by far. `KILN_TIMES=1` with `--nocapture` prints a table.

#![expect(clippy::print_stderr, reason = "the table of times")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};
use std::{env, fs};

use kiln_grammar::dockerignore::IgnoreFile;
use kiln_grammar::print::print;
use kiln_grammar::source::position;
use kiln_grammar::{mount, parse, parse_trigger, word};

const SIZE: usize = if cfg!(debug_assertions) {
    1 << 14
} else {
    1 << 20
};

/// A few times what a mebibyte may take, for the sake of slow machines and of code that is not
/// optimised.
const LIMIT: Duration = Duration::from_secs(4);

/// Below this, growth is noise: the kernel counts in steps of up to 10 ms.
const NOISE: Duration = Duration::from_millis(50);

/// Four times the text in at most this many times the time: a square would be 16.
const GROWTH: u32 = 9;

/// The time that the processor has worked for this thread: what others do on a busy machine does
/// not count. Where the kernel does not say, it is the time of the clock.
fn now(start: Instant) -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let field = stat.split(' ').next().and_then(|field| field.parse().ok());
    field.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

fn time(work: &dyn Fn()) -> Duration {
    let start = Instant::now();
    let before = now(start);
    work();
    now(start).saturating_sub(before)
}

/// Fails if `work` on a text takes too long, or much longer than on a quarter of it.
fn check(name: &str, make: &dyn Fn(usize) -> String, work: &dyn Fn(&str)) {
    let (quarter, whole) = (make(SIZE / 4), make(SIZE));
    let mut tries = Vec::new();
    for _ in 0..5 {
        let small = time(&|| work(&quarter));
        let large = time(&|| work(&whole));
        tries.push((small, large));
        if large < LIMIT && (large < NOISE || large < small * GROWTH) {
            if env::var_os("KILN_TIMES").is_some() {
                eprintln!("{:9.1} ms  {name}", large.as_secs_f64() * 1000.0);
            }
            return;
        }
    }
    panic!("{name}: a quarter and the whole of {SIZE} bytes took {tries:?}");
}

/// A line as it appears in the names of cases.
fn shown(piece: &str) -> String {
    let mut shown = format!("{piece:?}");
    shown.truncate(shown.floor_char_boundary(60));
    shown
}

/// Everything that `kiln build` does with a text before it plans.
fn read(text: &str) {
    match parse(text) {
        Ok(dockerfile) => drop(print(&dockerfile)),
        Err(errors) => {
            for error in &errors {
                std::hint::black_box(position(text, error.span.start));
            }
        }
    }
}

fn fill(piece: &str, size: usize) -> String {
    piece.repeat(size / piece.len())
}

/// One instruction over many lines: the limit of a line does not hold it short.
fn long(piece: &str, size: usize) -> String {
    let line = fill(piece, 1000);
    let mut text = String::with_capacity(size + 1000);
    while text.len() < size {
        text.push_str(&line);
        text.push_str("\\\n");
    }
    text
}

#[test]
fn many_lines() {
    for piece in [
        "a",
        "\n",
        " ",
        "\\",
        "\\\n",
        "\\\n\\\n\n",
        "x \\\n",
        "x\\\n\n",
        "x\\\n# c\n",
        "# a\n",
        "#a=b\n",
        "RUN a\n",
        "RUN \"\\\n",
        "RUN <<A\n",
        "RUN <<A\nA\n",
        "RUN <<A <<B <<C\nA\nB\nC\n",
        "COPY <<A /\nA\n",
        "RUN --mount=target=/a b\n",
        "FROM a\n",
        "FROM a AS b\n",
        "FROM a AS b\nCOPY --from=b a b\n",
        "ENV a=b\n",
        "ENV a $a$a\n",
        "ARG a\n",
        "LABEL a=b\n",
        "HEALTHCHECK CMD a\n",
        "ONBUILD RUN a\n",
        "ONBUILD ",
        "ONBUILD COPY <<A b\nA\n",
        "WORKIDR a\n",
        "RUN --monut=a b\n",
        "\u{feff}",
        "é",
    ] {
        check(
            &shown(piece),
            &|size| format!("FROM a\n{}", fill(piece, size)),
            &read,
        );
        check(
            &format!("only {}", shown(piece)),
            &|size| fill(piece, size),
            &read,
        );
    }
}

#[test]
fn one_long_instruction() {
    for keyword in [
        "RUN",
        "CMD",
        "SHELL",
        "COPY",
        "ENV",
        "LABEL",
        "ARG",
        "FROM",
        "VOLUME",
        "HEALTHCHECK",
        "HEALTHCHECK CMD",
        "EXPOSE",
        "ONBUILD RUN",
        "ONBUILD COPY",
        "ONBUILD",
        "USER",
        "NOPE",
    ] {
        for piece in [
            "a",
            "a ",
            "a=b ",
            "$",
            "${",
            "${a:-",
            "<",
            "<<",
            "<<a ",
            "<<a <<a ",
            "<< ",
            "<<-'a'",
            "\"",
            "'",
            "\" ",
            "\"' ",
            "\\a",
            "\\\\a",
            "[",
            "[\"",
            "[\"a\",",
            "\"a\",",
            ",",
            "],",
            "{",
            "(( ",
            ")) ((",
            "--",
            "-- ",
            "--a=b ",
            "--link ",
            "--mount=target=/a ",
            "--mount=type=bind,target=/a,",
            "--exclude=a ",
            "ONBUILD ",
            "\u{a0}",
            "é",
            "\"a\" <<a ",
        ] {
            check(
                &format!("{keyword} {}", shown(piece)),
                &|size| format!("FROM a\n{keyword} {}", long(piece, size)),
                &read,
            );
        }
    }
    check(
        "COPY and an array",
        &|size| format!("FROM a\nCOPY [\"a\", {}\"b\"]", long("\"a\", ", size)),
        &read,
    );
    check("one keyword", &|size| long("FROM", size), &read);
}

/// The words of a heredoc are found again in the order of their bodies, each with its own name.
#[test]
fn heredocs_of_thousands_of_words() {
    for keyword in ["RUN a", "COPY", "ONBUILD ADD"] {
        check(
            keyword,
            &|size| {
                let (mut line, mut bodies) = (String::new(), String::new());
                for number in 0..size / 24 {
                    write!(line, " <<E{number}").unwrap();
                    if number % 100 == 0 {
                        line.push_str("\\\n");
                    }
                    writeln!(bodies, "b\nE{number}").unwrap();
                }
                format!("FROM a\n{keyword}{line} /\n{bodies}")
            },
            &read,
        );
        check(
            &format!("{keyword}, nearly the end"),
            &|size| {
                format!(
                    "FROM a\n{keyword} <<AAAAAAAA /\n{}",
                    fill("AAAAAAA\n", size)
                )
            },
            &read,
        );
    }
}

#[test]
fn triggers_and_mounts() {
    for piece in ["ONBUILD ", "RUN a ", "RUN a\n", "<<a ", "\\\n"] {
        check(
            &format!("trigger {}", shown(piece)),
            &|size| fill(piece, size),
            &|text| drop(parse_trigger(text, '\\')),
        );
    }
    for piece in [
        ",",
        "\"",
        "\"\",",
        "id=a,",
        "target=/a,",
        "a",
        "type=cache,",
        "\"a\"\"b\",",
    ] {
        check(
            &format!("mount {}", shown(piece)),
            &|size| fill(piece, size),
            &|text| drop(mount::parse_mount(text)),
        );
    }
}

/// Words are expanded with a large value, too: its size times the number of its uses is no work.
#[test]
fn expansion() {
    let long = if cfg!(debug_assertions) {
        1 << 9
    } else {
        SIZE / 2
    };
    let value = "ab".repeat(long / 2);
    let lookup = |name: &str| match name {
        "L" => Some(value.clone()),
        "A" => Some("a".to_owned()),
        _ => None,
    };
    for piece in [
        "a",
        " ",
        "$",
        "$A",
        "$B",
        "${A}",
        "${",
        "${A:-",
        "${A:+",
        "${A:-}",
        "${A#",
        "${A#*}",
        "${A%%*a}",
        "${A/",
        "${A/a/b}",
        "${A//*/}",
        "\"",
        "'",
        "\"'",
        "\\",
        "\\$",
        "\"$A\"",
        "'$A'",
        "\"${A:-\"",
        "${L:+}",
        "${L#*}",
        "${L%%*}",
        "${L##*b}",
        "${L//?/}",
        "${L#*c}",
    ] {
        check(
            &format!("word {}", shown(piece)),
            &|size| fill(piece, size),
            &|text| {
                drop(word::expand(text, '\\', &lookup));
                drop(word::expand_words(text, '\\', &lookup));
                drop(word::expand_heredoc(text, '\\', &lookup));
            },
        );
    }
    check(
        "word of many names",
        &|size| {
            let mut text = String::new();
            for number in 0..size / 8 {
                write!(text, "$N{number} ").unwrap();
            }
            text
        },
        &|text| drop(word::expand(text, '\\', &lookup)),
    );
}

#[test]
fn ignore_files() {
    for piece in [
        "a\n",
        "*\n",
        "!**/a*b\n",
        "#\n",
        "**",
        "*a",
        "[a-z]",
        "a/../",
        "/",
        "!",
        "\\a",
    ] {
        check(
            &format!("ignore {}", shown(piece)),
            &|size| fill(piece, size),
            &|text| {
                if let Ok(file) = IgnoreFile::parse(text) {
                    std::hint::black_box(file.excludes("aaaaaaaaaa/bbbbbbbb/ab"));
                }
            },
        );
    }
}
