//! What lowering a Dockerfile costs grows with its length and no faster, whatever is in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::time::Duration;

use kiln_builder::lower::{self, BaseImages, LowerOptions};
use kiln_grammar::lint;

/// Lines of the shorter file; the longer one has [`FACTOR`] times as many.
const LINES: usize = 600;
const FACTOR: usize = 4;
/// Four times the lines may take this many times as long; what is quadratic takes sixteen times.
const ALLOWED: u32 = 9;
/// Noise that does not count.
const NOISE: Duration = Duration::from_millis(100);

/// A file of one header and many lines.
fn file(header: &str, line: impl Fn(usize) -> String, lines: usize) -> String {
    let mut text = header.to_owned();
    for index in 0..lines {
        writeln!(text, "{}", line(index)).unwrap();
    }
    text
}

/// Processor time of this thread: what else runs on the machine does not count.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

/// How long it takes to look at a file, lints included; the best of three.
fn cost(text: &str) -> Duration {
    let look = || {
        let start = now();
        let file = kiln_grammar::parse(text).unwrap();
        let options = LowerOptions::default();
        let found = lower::check(&file, &options, &BaseImages::default(), true);
        let mut warnings = lint::lint(text, &file);
        warnings.extend(found.warnings);
        let settings = lint::Settings::of(&file, None).unwrap();
        drop(settings.filter(text, &file, warnings));
        now() - start
    };
    (0..3).map(|_| look()).min().unwrap()
}

#[test]
fn cost_grows_with_length() {
    type Case = (&'static str, &'static str, fn(usize) -> String);
    let cases: [Case; 12] = [
        ("variables", "FROM scratch\n", |n| format!("ENV A{n}={n}")),
        ("one variable again", "FROM scratch\n", |n| {
            format!("ENV A={n}")
        }),
        ("undefined variables", "FROM scratch\n", |n| {
            format!("ENV A{n}=$B{n}")
        }),
        ("arguments", "FROM scratch\n", |n| format!("ARG A{n}={n}")),
        ("global arguments", "", |n| match n {
            0 => "ARG X\nARG Y".to_owned(),
            n => format!("ARG A{n}=$A{}", n - 1),
        }),
        ("stages", "", |n| format!("FROM image{n} AS Stage{n}")),
        ("stages on stages", "FROM scratch AS s0\n", |n| {
            format!("FROM s{n} AS s{}", n + 1)
        }),
        ("copies between stages", "FROM scratch AS s0\n", |n| {
            format!("FROM scratch AS s{}\nCOPY --from=s{n} /a /b", n + 1)
        }),
        ("copies from later stages", "FROM scratch AS s0\n", |n| {
            format!("COPY --from=s{} /a /b\nFROM scratch AS s{}", n + 1, n + 1)
        }),
        ("labels", "FROM scratch\n", |n| format!("LABEL a{n}={n}")),
        ("copies", "FROM scratch\n", |n| format!("COPY a{n} /b{n}")),
        ("old instructions", "FROM scratch\n", |n| {
            format!("MAINTAINER x{n}")
        }),
    ];
    for (name, header, line) in cases {
        // Arguments of no stage stand before one.
        let last = if name.starts_with("global") {
            "FROM scratch\n"
        } else {
            ""
        };
        let text = |lines| file(header, line, lines) + last;
        let (short, long) = (cost(&text(LINES)), cost(&text(LINES * FACTOR)));
        println!("{name}: {short:?}, {long:?}");
        assert!(
            long <= short * ALLOWED + NOISE,
            "{name}: {LINES} lines took {short:?}, {} lines {long:?}",
            LINES * FACTOR
        );
    }
}
