//! Rules: every one has its page and its row in the index, the examples on the pages are true, and
//! cases that are files, `testdata/lint/<case>/{Dockerfile, warnings.txt}`, say what is found and
//! what is not. `KILN_UPDATE=1` rewrites what is expected; read the difference before committing it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its cases has failed"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::lint::{self, FoundBy, Looked, Rule, Set, Settings, fix_all};
use kiln_grammar::parse;
use kiln_grammar::source::position;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `kiln check` finds in a text without building it; `enable` names rules that are off.
fn findings(text: &str, enable: &str) -> Vec<Diagnostic> {
    let file = parse(text).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"));
    let mut found = lint::lint(text, &file);
    found.extend(lint::practices(text, &file));
    for finding in &found {
        let rule = finding.rule.unwrap();
        assert!(lint::rule(rule).is_some(), "{rule} is not in the table");
    }
    let mut settings = Settings::of(&file, None).unwrap();
    settings.enable.extend(
        lint::Settings::of(
            &parse(&format!("# check=experimental={enable}\nFROM scratch\n")).unwrap(),
            None,
        )
        .unwrap()
        .enable,
    );
    settings.filter(text, &file, found)
}

/// Findings as the cases hold them.
fn show(text: &str, found: &[Diagnostic]) -> String {
    let mut out = String::new();
    for finding in found {
        let at = position(text, finding.span.start);
        let rule = finding.rule.unwrap();
        writeln!(out, "{}:{} {rule}: {}", at.line, at.column, finding.message).unwrap();
        writeln!(out, "    at: {:?}", &text[finding.span.range()]).unwrap();
        if let Some(hint) = &finding.hint {
            writeln!(out, "    hint: {hint}").unwrap();
        }
    }
    if found.iter().any(|finding| !finding.fix.is_empty()) {
        let mended = fix_all(text, &mut |text| Looked {
            errors: 0,
            warnings: findings(text, ""),
        });
        let again = findings(&mended, "");
        let left = again.iter().find(|finding| !finding.fix.is_empty());
        assert!(left.is_none(), "{left:?} is not fixed:\n{mended}");
        write!(out, "--- fixed\n{mended}").unwrap();
    }
    out
}

#[test]
fn cases() {
    let update = std::env::var_os("KILN_UPDATE").is_some();
    let mut cases: Vec<PathBuf> = fs::read_dir(root().join("testdata/lint"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(cases.len() > 50, "the cases are not where they were");
    let mut wrong = Vec::new();
    for case in &cases {
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
        let actual = show(&text, &findings(&text, ""));
        let name = case.join("warnings.txt");
        if update {
            fs::write(name, &actual).unwrap();
        } else if fs::read_to_string(name).ok().as_deref() != Some(actual.as_str()) {
            wrong.push(format!("== {}\n{actual}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A rule of which no case shows that it fires has no case.
#[test]
fn every_practice_has_a_case() {
    let rules: Vec<&Rule> = lint::rules()
        .filter(|rule| rule.set == Set::Kiln && rule.found_by == FoundBy::Text)
        .collect();
    let mut all = String::new();
    for entry in fs::read_dir(root().join("testdata/lint")).unwrap() {
        let path = entry.unwrap().path().join("warnings.txt");
        all.push_str(&fs::read_to_string(path).unwrap_or_default());
    }
    assert!(rules.len() > 20);
    for rule in rules {
        assert!(all.contains(&format!(" {}: ", rule.name)), "{}", rule.name);
    }
}

/// Files as people write them: what is found there is worth a look each.
#[test]
fn real_files() {
    let root = root();
    let mut actual = String::new();
    for name in [
        "testdata/builds/debian-nginx/Dockerfile",
        "testdata/builds/flask/Dockerfile",
        "testdata/builds/node-site/Dockerfile",
        "testdata/builds/service/Dockerfile",
        "testdata/builds/service/Dockerfile.child",
        "testdata/builds/static/Dockerfile",
        "testdata/builds/users/Dockerfile",
        "testdata/demo/Dockerfile",
        "testdata/dockerfiles/real-go/Dockerfile",
        "testdata/dockerfiles/real-node/Dockerfile",
        "testdata/dockerfiles/real-python/Dockerfile",
        "testdata/dockerfiles/real-windows/Dockerfile",
    ] {
        let text = fs::read_to_string(root.join(name)).unwrap();
        let found = findings(&text, "all");
        let found: Vec<Diagnostic> = found
            .into_iter()
            .map(|finding| Diagnostic {
                fix: Vec::new(),
                ..finding
            })
            .collect();
        write!(actual, "== {name}\n{}", show(&text, &found)).unwrap();
    }
    let path = root.join("testdata/lint/real.txt");
    if std::env::var_os("KILN_UPDATE").is_some() {
        fs::write(path, &actual).unwrap();
    } else {
        assert_eq!(fs::read_to_string(path).unwrap(), actual);
    }
}

/// The text of the code block behind a heading of a page.
fn block<'p>(page: &'p str, heading: &str) -> Option<&'p str> {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n\n```dockerfile\n"))?;
    Some(rest.split_once("```\n")?.0)
}

#[test]
fn every_rule_has_a_page() {
    for rule in lint::rules() {
        let (name, page) = (rule.name, rule.page);
        let says = page.strip_prefix(&format!("# {name}\n\n"));
        let says = says.unwrap_or_else(|| panic!("{name}: the page has another heading"));
        let first = says.split("\n\n").next().unwrap();
        assert!(
            first.ends_with('.') && first.len() > 40,
            "{name}: {first:?} says nothing"
        );
        for heading in ["Bad", "Good"] {
            assert!(
                block(page, heading).is_some(),
                "{name} has no block {heading:?}"
            );
        }
        let why = page.split_once("\n## Why\n\n").map(|(_, why)| why);
        assert!(
            why.is_some_and(|why| why.len() > 60),
            "{name} does not say why"
        );
        let headings: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("## "))
            .collect();
        let known = ["## Bad", "## Good", "## Why", "## Turn it off"];
        assert!(
            headings == known[..3] || headings == known,
            "{name}: {headings:?}"
        );
        assert!(page.ends_with('\n') && !page.contains("\n\n\n"), "{name}");
        for line in page.lines() {
            assert!(line.chars().count() <= 120, "{name}: {line:?} is long");
        }
    }
    let pages = fs::read_dir(root().join("docs/rules")).unwrap();
    assert_eq!(
        pages.count(),
        lint::rules().count() + 1,
        "a page of no rule"
    );
}

#[test]
fn examples_are_true() {
    for rule in lint::rules().filter(|rule| rule.found_by == FoundBy::Text) {
        let name = rule.name;
        let enable = if rule.on { "" } else { name };
        let raises = |text: &str| {
            let found = findings(text, enable);
            let rules: Vec<_> = found.iter().filter_map(|finding| finding.rule).collect();
            rules.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let bad = raises(block(rule.page, "Bad").unwrap());
        assert!(
            bad.iter().any(|other| other == name),
            "{name}: bad raises only {bad:?}"
        );
        let good = raises(block(rule.page, "Good").unwrap());
        assert_eq!(
            good,
            Vec::<String>::new(),
            "{name}: the good example raises rules"
        );
    }
}

#[test]
fn the_index_lists_all_rules() {
    let index = fs::read_to_string(root().join("docs/rules/README.md")).unwrap();
    let rows: Vec<&str> = index
        .lines()
        .filter(|line| line.starts_with("| ["))
        .collect();
    let expected: Vec<String> = lint::rules().map(row).collect();
    assert_eq!(rows, expected);
}

/// The row of a rule in the index.
fn row(rule: &Rule) -> String {
    let name = rule.name;
    let on = if rule.on { "on" } else { "off" };
    let set = match rule.set {
        Set::Docker => "docker",
        Set::Kiln => "kiln",
    };
    let bad = block(rule.page, "Bad").unwrap();
    // What is found while a build is planned is fixed there.
    let planned = [
        "WorkdirRelativePath",
        "JSONArgsRecommended",
        "ExposeProtoCasing",
    ];
    let found = match rule.found_by {
        FoundBy::Plan => Vec::new(),
        FoundBy::Text => findings(bad, name),
    };
    let fixes = found
        .iter()
        .any(|finding| finding.rule == Some(name) && !finding.fix.is_empty());
    let fixes = fixes || planned.contains(&name);
    let fixed = if fixes { "yes" } else { "" };
    let summary = rule.summary.replace('|', "\\|");
    format!("| [{name}]({name}.md) | {summary} | {on} | {set} | {fixed} |").replace("|  |", "| |")
}
