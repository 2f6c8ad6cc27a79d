//! Every numbered item of the specification's language part has a case that carries its number:
//! a folder under `testdata` whose name begins with it (`a10.5-...`, `a10-5-...`), or a heading in
//! a list of cases (`# A10.5: ...`). So has every item about references and registries: a test whose
//! name has the number (`fn d7_2_...`), or a heading.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// How many items each section has: `A1` to `A16`, and `A18`.
const SECTIONS: &[(u32, u32)] = &[
    (1, 12),
    (2, 8),
    (3, 8),
    (4, 3),
    (5, 10),
    (6, 12),
    (7, 13),
    (8, 4),
    (9, 13),
    (10, 10),
    (11, 12),
    (12, 6),
    (13, 10),
    (14, 8),
    (15, 7),
    (16, 4),
    (18, 5),
];

/// Items without a case, and why. One that gets a case has to leave this list.
const WITHOUT: &[(&str, &str)] = &[
    (
        "A5.10",
        "says where tables of other projects are, not what happens",
    ),
    (
        "A12.6",
        "private repositories need a server: a test in Rust",
    ),
    (
        "A16.4",
        "media types are chosen where an image goes to: tests of push and save",
    ),
];

/// The same for references and registries, `D1` to `D9`.
const REGISTRY_SECTIONS: &[(u32, u32)] = &[
    (1, 8),
    (2, 7),
    (3, 7),
    (4, 5),
    (5, 8),
    (6, 5),
    (7, 8),
    (8, 6),
    (9, 5),
];

const REGISTRY_WITHOUT: &[(&str, &str)] = &[
    ("D2.7", "is about commands of other tools"),
    (
        "D7.7",
        "a newer way to push several tags; kiln pushes them one by one, as any registry takes them",
    ),
    ("D8.5", "policies of trust are not kiln's yet"),
    ("D8.6", "layers are not encrypted"),
    ("D9.4", "images are not edited in a registry"),
];

type Item = (u32, u32);

#[test]
fn every_item_has_a_case() {
    check('A', &cases(), SECTIONS, WITHOUT);
}

#[test]
fn every_item_about_registries_has_a_test() {
    let mut tests = headings('D');
    let names = functions(&[
        "registry/src",
        "registry/tests",
        "builder/src",
        "builder/tests",
    ]);
    tests.extend(names.iter().flat_map(|name| numbers_in_name('d', name)));
    check('D', &tests, REGISTRY_SECTIONS, REGISTRY_WITHOUT);
}

/// What must cause a rebuild and what must not is shown by real builds: a test for each item whose
/// name has its number. So have those of the silent killers that a cache can be.
#[test]
fn every_item_about_the_cache_has_a_test() {
    let names = functions(&["builder/src", "builder/tests/it"]);
    let tests: BTreeSet<Item> = names
        .iter()
        .flat_map(|name| numbers_in_name('a', name))
        .filter(|(section, _)| *section == 15)
        .collect();
    check('A', &tests, &[(15, 7)], &[]);
    for killer in [1, 2, 3, 14] {
        let prefix = format!("killer_{killer}_");
        let found = names.iter().any(|name| name.starts_with(&prefix));
        assert!(found, "no test {prefix}...");
    }
}

/// The names of all functions in some folders.
fn functions(folders: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for folder in folders {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(folder);
        for entry in walkdir::WalkDir::new(root) {
            let entry = entry.unwrap();
            if entry.path().extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(entry.path()).unwrap();
                found.extend(text.split("fn ").skip(1).map(|rest| {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    rest[..end.unwrap_or(rest.len())].to_owned()
                }));
            }
        }
    }
    found
}

/// Fails for items that have no case, and for exceptions that are none.
fn check(part: char, cases: &BTreeSet<Item>, sections: &[(u32, u32)], exceptions: &[(&str, &str)]) {
    let without: BTreeMap<Item, &str> = exceptions
        .iter()
        .map(|(item, why)| (numbers(part, item).unwrap(), *why))
        .collect();
    let mut missing = Vec::new();
    for &(section, count) in sections {
        for number in 1..=count {
            let item = (section, number);
            match (cases.contains(&item), without.get(&item)) {
                (false, None) => missing.push(format!("{part}{section}.{number} has no case")),
                (true, Some(why)) => missing.push(format!(
                    "{part}{section}.{number} has a case, so this is not so: {why}"
                )),
                _ => {}
            }
        }
    }
    let known: BTreeMap<u32, u32> = sections.iter().copied().collect();
    for (section, number) in cases.iter().chain(without.keys()) {
        if known.get(section).is_some_and(|count| number > count) {
            missing.push(format!("there is no {part}{section}.{number}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The items that the name of a function begins with: `d5_4_d7_6_all_tags`.
fn numbers_in_name(part: char, name: &str) -> Vec<Item> {
    let mut words = name.split('_');
    let mut found = Vec::new();
    while let (Some(section), Some(number)) = (words.next(), words.next()) {
        let section = section
            .strip_prefix(part)
            .and_then(|text| text.parse().ok());
        let (Some(section), Ok(number)) = (section, number.parse()) else {
            break;
        };
        found.push((section, number));
    }
    found
}

/// The items that cases carry.
fn cases() -> BTreeSet<Item> {
    let mut found = headings('A');
    for path in list(&testdata()) {
        if path.is_dir() {
            let cases = list(&path);
            let names = cases.iter().filter(|case| case.is_dir());
            found.extend(names.filter_map(|case| numbers('A', case.file_name()?.to_str()?)));
        }
    }
    found
}

/// The items that headings of lists name.
fn headings(part: char) -> BTreeSet<Item> {
    let mut found = BTreeSet::new();
    for path in list(&testdata()) {
        if !path.is_dir() {
            let text = fs::read_to_string(&path).unwrap();
            let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
            let words = headings.flat_map(|heading| heading.split([' ', ',', ':', ';', '(', ')']));
            let words = words.filter(|word| word.starts_with(part));
            found.extend(words.filter_map(|word| numbers(part, word)));
        }
    }
    found
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Section and number at the start of a name: `a10.5-...`, `a10-5-...`, `A10.5`.
fn numbers(part: char, name: &str) -> Option<Item> {
    let rest = name.strip_prefix([part, part.to_ascii_lowercase()])?;
    let mut parts = rest.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[test]
fn numbers_are_read_from_names() {
    assert_eq!(numbers('A', "a10.5-contents"), Some((10, 5)));
    assert_eq!(numbers('A', "a1-11-empty"), Some((1, 11)));
    assert_eq!(numbers('A', "A2.3"), Some((2, 3)));
    for other in ["b1.3-x", "a17-undefined", "real-go", "apart", "g9-x"] {
        assert_eq!(numbers('A', other), None, "{other}");
    }
}
