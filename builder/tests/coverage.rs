//! Every numbered item of the specification's language part has a case that carries its number:
//! a folder under `testdata` whose name begins with it (`a10.5-...`, `a10-5-...`), or a heading in
//! a list of cases (`# A10.5: ...`).

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
        "A1.12",
        "kiln has no `--call outline`, which shows descriptions",
    ),
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

type Item = (u32, u32);

#[test]
fn every_item_has_a_case() {
    let cases = cases();
    let without: BTreeMap<Item, &str> = WITHOUT
        .iter()
        .map(|(item, why)| (numbers(item).unwrap(), *why))
        .collect();
    let mut missing = Vec::new();
    for &(section, count) in SECTIONS {
        for number in 1..=count {
            let item = (section, number);
            match (cases.contains(&item), without.get(&item)) {
                (false, None) => missing.push(format!("A{section}.{number} has no case")),
                (true, Some(why)) => missing.push(format!(
                    "A{section}.{number} has a case, so this is not so: {why}"
                )),
                _ => {}
            }
        }
    }
    let known: BTreeMap<u32, u32> = SECTIONS.iter().copied().collect();
    for (section, number) in cases.iter().chain(without.keys()) {
        if known.get(section).is_some_and(|count| number > count) {
            missing.push(format!("there is no A{section}.{number}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The items that cases carry.
fn cases() -> BTreeSet<Item> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    let mut found = BTreeSet::new();
    for path in list(&root) {
        if path.is_dir() {
            let cases = list(&path);
            let names = cases.iter().filter(|case| case.is_dir());
            found.extend(names.filter_map(|case| numbers(case.file_name()?.to_str()?)));
        } else {
            let text = fs::read_to_string(&path).unwrap();
            let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
            let words = headings.flat_map(|heading| heading.split([' ', ',', ':']));
            found.extend(
                words
                    .filter(|word| word.starts_with('A'))
                    .filter_map(numbers),
            );
        }
    }
    found
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Section and number at the start of a name: `a10.5-...`, `a10-5-...`, `A10.5`.
fn numbers(name: &str) -> Option<Item> {
    let rest = name.strip_prefix(['a', 'A'])?;
    let mut parts = rest.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[test]
fn numbers_are_read_from_names() {
    assert_eq!(numbers("a10.5-contents"), Some((10, 5)));
    assert_eq!(numbers("a1-11-empty"), Some((1, 11)));
    assert_eq!(numbers("A2.3"), Some((2, 3)));
    for other in ["b1.3-x", "a17-undefined", "real-go", "apart", "g9-x"] {
        assert_eq!(numbers(other), None, "{other}");
    }
}
