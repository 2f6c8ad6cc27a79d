//! Fixes: cases that are files, `testdata/fix/<case>/{Dockerfile, fixed.Dockerfile}`, and what holds
//! for every text. `KILN_UPDATE=1` rewrites what is expected; read the difference before committing
//! it. Kiln's own rules are looked at in cases whose name begins with `kiln-`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_grammar::lint::{self, Looked, Settings, fix_all};
use kiln_grammar::parse;
use proptest::prelude::*;

/// What is wrong with a text, as far as the text shows it.
fn look(text: &str, practices: bool) -> Looked {
    let file = match parse(text) {
        Ok(file) => file,
        Err(errors) => {
            return Looked {
                errors: errors.len(),
                warnings: Vec::new(),
            };
        }
    };
    let settings = Settings::of(&file, None).unwrap_or_default();
    let mut warnings = lint::lint(text, &file);
    if practices {
        warnings.extend(lint::practices(text, &file));
    }
    Looked {
        errors: 0,
        warnings: settings.filter(text, &file, warnings),
    }
}

fn fixed(text: &str, practices: bool) -> String {
    fix_all(text, &mut |text| look(text, practices))
}

#[test]
fn files() {
    let update = std::env::var_os("KILN_UPDATE").is_some();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/fix");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() > 8, "the cases are not where they were");
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy();
        let practices = name.starts_with("kiln-");
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
        let actual = fixed(&text, practices);
        assert_eq!(fixed(&actual, practices), actual, "{name}: fixed twice");
        let file = case.join("fixed.Dockerfile");
        if update {
            fs::write(file, actual).unwrap();
        } else {
            assert_eq!(fs::read_to_string(file).unwrap(), actual, "{name}");
        }
    }
}

/// Lines that rules say something of, in files that mostly parse.
fn line() -> impl Strategy<Value = String> {
    let lines = [
        "from a as B",
        "FROM b AS c",
        "FROM B",
        "Run x \\\n\n  y",
        "run x \\\n# c\n\n\\\n\n z",
        "RUN <<E\nFROM\n\nE",
        "maintainer me \"you\" $x `y \\z",
        "MAINTAINER me \\\n  you",
        "ENV a b c",
        "env a 'b' \"c d\" $e ${f:-g h}",
        "LABEL \"a b\" \\\n c",
        "ONBUILD ENV x y\\ z",
        "COPY --from=B x y",
        "# check=skip=LegacyKeyValueFormat",
        "# text",
        "",
        "cmd x",
        "ARG a=b",
    ];
    let word = "[a$\"'`{}: \\\\#=é-]{1,12}";
    prop_oneof![
        6 => prop::sample::select(lines.to_vec()).prop_map(str::to_owned),
        1 => word.prop_map(|word| format!("ENV k {word}")),
        1 => word.prop_map(|word| format!("MAINTAINER {word}")),
    ]
}

fn text() -> impl Strategy<Value = String> {
    let top = prop::sample::select(vec!["", "# escape=`\n", "\u{feff}"]);
    let end = prop::sample::select(vec!["\n", "\r\n"]);
    let lines = prop::collection::vec(line(), 0..12);
    (top, lines, end).prop_map(|(top, lines, end)| {
        format!("{top}FROM a\n{}\n", lines.join("\n")).replace('\n', end)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_fixed_parses_and_stays_fixed(text in text()) {
        let once = fixed(&text, true);
        if parse(&text).is_ok() {
            prop_assert!(parse(&once).is_ok(), "{}", once);
            prop_assert_eq!(fixed(&once, true), once.clone());
        } else {
            prop_assert_eq!(&once, &text);
        }
        let crlf = |text: &str| text.matches("\r\n").count() == text.matches('\n').count();
        prop_assert!(!crlf(&text) || crlf(&once), "{:?}", once);
    }
}

/// Many warnings are fixed in a time that grows with the file, not with its square.
#[test]
fn a_long_file_is_fixed_quickly() {
    for line in [
        "ENV a b c\n",
        "FROM a AS B\n",
        "Run a \\\n\n b\n",
        "MAINTAINER x\n",
    ] {
        let text = format!("FROM a\n{}", line.repeat((1 << 16) / line.len()));
        let start = Instant::now();
        assert_ne!(fixed(&text, false), text);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{line:?} took {took:?}");
    }
}
