//! Cases that are files: `testdata/dockerfiles/<case>/{Dockerfile, ast.txt | error.txt}` and the
//! tables beside them. `KILN_UPDATE=1` rewrites what is expected of the Dockerfiles; read the
//! difference before committing it. Names of cases begin with the number of the rule they test.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its cases has failed"
)]

mod dump;

use std::fs;
use std::path::{Path, PathBuf};

use kiln_grammar::dockerignore::IgnoreFile;
use kiln_grammar::word::{self, Options};
use kiln_grammar::{glob, parse};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

#[test]
fn dockerfiles() {
    let update = std::env::var_os("KILN_UPDATE").is_some();
    let mut cases: Vec<PathBuf> = fs::read_dir(testdata().join("dockerfiles"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() > 50, "the corpus is not where it was");
    let mut wrong = Vec::new();
    for case in &cases {
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
        let (name, other, actual) = match parse(&text) {
            Ok(dockerfile) => ("ast.txt", "error.txt", dump::dockerfile(&text, &dockerfile)),
            Err(errors) => ("error.txt", "ast.txt", dump::diagnostics(&text, &errors)),
        };
        if update {
            fs::write(case.join(name), &actual).unwrap();
            if case.join(other).exists() {
                fs::remove_file(case.join(other)).unwrap();
            }
        } else if fs::read_to_string(case.join(name)).ok().as_deref() != Some(actual.as_str()) {
            wrong.push(format!("== {}\n{actual}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The lines of a table, cut into exactly `columns`; `#` starts a comment line.
fn table(name: &str, columns: usize) -> Vec<Vec<String>> {
    let text = fs::read_to_string(testdata().join(name)).unwrap();
    let rows: Vec<Vec<String>> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect();
    for row in &rows {
        assert_eq!(row.len(), columns, "{name}: {row:?}");
    }
    assert!(rows.len() > 20, "{name} is nearly empty");
    rows
}

#[test]
fn words() {
    for row in table("words.tsv", 4) {
        let [how, text, env, expected] = &row[..] else {
            unreachable!()
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
            plain_quotes: false,
        };
        let escape = if how.contains("+backtick") { '`' } else { '\\' };
        let actual = match how.split('+').next().unwrap() {
            "word" => word::expand_with(text, escape, options, &lookup)
                .map(|expanded| format!("[{}]", expanded.text)),
            "words" => word::expand_words_with(text, escape, options, &lookup)
                .map(|expanded| format!("{:?}", expanded.words)),
            "heredoc" => word::expand_heredoc(text, escape, &lookup)
                .map_err(|error| error.source)
                .map(|expanded| format!("[{}]", expanded.text)),
            "names" => word::expand_with(text, escape, options, &lookup)
                .map(|expanded| format!("{:?} {:?}", expanded.matched, expanded.unmatched)),
            other => panic!("{other}: what is that?"),
        };
        let actual = actual.unwrap_or_else(|error| format!("error: {error}"));
        assert_eq!(&actual, expected, "{row:?}");
    }
}

#[test]
fn dockerignore() {
    for row in table("dockerignore.tsv", 3) {
        let [patterns, path, expected] = &row[..] else {
            unreachable!()
        };
        let list: Vec<&str> = patterns.split(" | ").collect();
        let actual = match IgnoreFile::from_patterns(&list) {
            Ok(file) => {
                let verdict = file.verdict(path.as_bytes());
                assert_eq!(
                    walk(&file, path),
                    verdict.excluded,
                    "a walk differs: {row:?}"
                );
                if verdict.excluded { "excluded" } else { "kept" }.to_owned()
            }
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(&actual, expected, "{row:?}");
    }
}

/// Asks for a path as a walk does: directory by directory, entering an excluded one only if
/// something below may be taken back.
fn walk(file: &IgnoreFile, path: &str) -> bool {
    let mut state = file.root_state();
    for (at, _) in path.match_indices('/') {
        let directory = &path.as_bytes()[..at];
        let (children, verdict) = file.enter(&state, directory);
        if verdict.excluded && !file.may_include_below(directory) {
            return true;
        }
        state = children;
    }
    let verdict = file.check(&state, path.as_bytes());
    assert_eq!(file.enter(&state, path.as_bytes()).1, verdict);
    verdict.excluded
}

#[test]
fn globs() {
    for row in table("globs.tsv", 3) {
        let [pattern, name, expected] = &row[..] else {
            unreachable!()
        };
        let actual = match glob::matches(pattern.as_bytes(), name.as_bytes()) {
            Ok(true) => "yes",
            Ok(false) => "no",
            Err(_) => "error",
        };
        assert_eq!(actual, expected, "{row:?}");
    }
}
