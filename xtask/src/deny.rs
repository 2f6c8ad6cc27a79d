//! `cargo xtask deny`: the dependencies' licences, bans and sources against `deny.toml`.
//!
//! The file is cargo-deny's. Where that is installed it is used, and looks for advisories besides;
//! else this does the part that needs no database, from `cargo metadata`.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{kiln, no_arguments, process, workspace};

/// Checks the dependencies and lists every offence.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    no_arguments("deny", arguments)?;
    if process::find("cargo-deny").is_some() {
        let mut command = Command::new("cargo-deny");
        return process::run(command.current_dir(workspace::root()).arg("check"));
    }
    let text = std::fs::read_to_string(workspace::root().join("deny.toml"))
        .context("cannot read `deny.toml`")?;
    let rules = Rules::parse(&text);
    if rules.targets.is_empty() || rules.licences.is_empty() || rules.bans.is_empty() {
        bail!("`deny.toml` lacks targets, licences or bans");
    }
    let packages = packages(&rules.targets)?;
    let offences = rules.check(&packages);
    if !offences.is_empty() {
        bail!(
            "{} against deny.toml:\n{}",
            offences.len(),
            offences.join("\n")
        );
    }
    println!(
        "{} packages: licences, bans and sources are as deny.toml wants them",
        packages.len()
    );
    Ok(())
}

/// A package of the dependency tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    /// `None` for the workspace's own.
    source: Option<String>,
}

/// Lists the packages that are used on the given targets, by identifier.
fn packages(targets: &[String]) -> Result<BTreeMap<String, Package>> {
    let mut found = BTreeMap::new();
    for target in targets {
        let arguments = [
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            target,
        ];
        let text = process::output(kiln::cargo().args(arguments))?;
        let metadata: Value =
            serde_json::from_str(&text).context("`cargo metadata` printed no JSON")?;
        // what is not in the resolved graph is for other platforms
        let used = metadata["resolve"]["nodes"]
            .as_array()
            .context("`cargo metadata` lists no nodes")?;
        let used: Vec<&str> = used.iter().filter_map(|node| node["id"].as_str()).collect();
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let text = |key: &str| package[key].as_str().map(str::to_owned);
            let id = text("id").unwrap_or_default();
            if used.contains(&id.as_str()) {
                let package = Package {
                    name: text("name").unwrap_or_default(),
                    version: text("version").unwrap_or_default(),
                    licence: text("license"),
                    source: text("source"),
                };
                found.insert(id, package);
            }
        }
    }
    Ok(found)
}

/// The part of `deny.toml` that is checked here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rules {
    targets: Vec<String>,
    licences: Vec<String>,
    bans: Vec<String>,
    /// Crates of which there may be only one version.
    once: Vec<String>,
}

impl Rules {
    /// Reads the lists out of the file; one item a line, as the file is written.
    fn parse(text: &str) -> Self {
        let mut rules = Self::default();
        let (mut section, mut list) = ("", "");
        for line in text.lines().map(str::trim) {
            if line.starts_with('#') {
                continue;
            }
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                (section, list) = (name, "");
            } else if let Some((key, value)) = line.split_once(" = ")
                && value == "["
            {
                list = key;
            } else if line == "]" {
                list = "";
            } else if let Some(item) = line.split('"').nth(1) {
                let item = item.to_owned();
                match (section, list) {
                    ("graph", "targets") => rules.targets.push(item),
                    ("licenses", "allow") => rules.licences.push(item),
                    ("bans", "deny") if line.contains("deny-multiple-versions = true") => {
                        rules.once.push(item);
                    }
                    ("bans", "deny") => rules.bans.push(item),
                    _ => {}
                }
            }
        }
        rules
    }

    fn check(&self, packages: &BTreeMap<String, Package>) -> Vec<String> {
        let mut offences = Vec::new();
        for package in packages.values() {
            let Package {
                name,
                version,
                licence,
                source,
            } = package;
            match licence {
                Some(licence) if allows(&self.licences, licence) => {}
                Some(licence) => offences.push(format!("{name} {version}: licence `{licence}`")),
                None => offences.push(format!("{name} {version}: states no licence")),
            }
            if self.bans.contains(name) {
                offences.push(format!("{name} {version}: is banned"));
            }
            if source
                .as_ref()
                .is_some_and(|source| !source.starts_with("registry+"))
            {
                offences.push(format!("{name} {version}: comes from outside the registry"));
            }
        }
        for name in &self.once {
            let count = packages
                .values()
                .filter(|package| package.name == *name)
                .count();
            if count > 1 {
                offences.push(format!("{name}: {count} versions, only one is wanted"));
            }
        }
        offences
    }
}

/// Returns whether a licence expression (SPDX, or the older `A/B`) can be met with these licences.
fn allows(licences: &[String], expression: &str) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = either(licences, &mut words);
    met == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(licences: &[String], words: &mut Words<'_>) -> Option<bool> {
    let mut met = both(licences, words)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= both(licences, words)?;
    }
    Some(met)
}

fn both(licences: &[String], words: &mut Words<'_>) -> Option<bool> {
    let mut met = single(licences, words)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= single(licences, words)?;
    }
    Some(met)
}

fn single(licences: &[String], words: &mut Words<'_>) -> Option<bool> {
    if words.next_if_eq(&"(").is_some() {
        let met = either(licences, words)?;
        words.next_if_eq(&")")?;
        return Some(met);
    }
    let mut licence = words.next()?.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next()?);
    }
    Some(licences.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    #[test]
    fn licence_expressions() {
        let licences = list(&["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "ISC"]);
        for met in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "ISC AND (GPL-2.0 OR Apache-2.0)",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "(MIT)",
        ] {
            assert!(allows(&licences, met), "{met}");
        }
        for unmet in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT WITH other-exception",
            "(MIT",
            "MIT)",
            "MIT ISC",
            "OR",
            "ISC AND (GPL-2.0 OR LGPL-2.1)",
        ] {
            assert!(!allows(&licences, unmet), "{unmet}");
        }
    }

    #[test]
    fn the_file_is_understood() {
        let text = std::fs::read_to_string(workspace::root().join("deny.toml")).unwrap();
        let rules = Rules::parse(&text);
        assert!(rules.licences.contains(&"MIT".to_owned()));
        assert!(rules.bans.contains(&"libz-sys".to_owned()), "{rules:?}");
        assert!(rules.once.contains(&"rustls".to_owned()), "{rules:?}");
        assert!(!rules.targets.is_empty());
        assert_eq!(
            text.matches("crate = ").count(),
            rules.bans.len() + rules.once.len()
        );
    }

    #[test]
    fn offences_are_found() {
        let rules = Rules {
            licences: list(&["MIT"]),
            bans: list(&["bad"]),
            once: list(&["twice"]),
            ..Rules::default()
        };
        let package = |name: &str, licence: Option<&str>, source: Option<&str>| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: licence.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        let packages = [
            package("fine", Some("MIT"), Some("registry+x")),
            package("own", Some("MIT"), None),
            package("bad", Some("MIT"), Some("registry+x")),
            package("copyleft", Some("GPL-3.0"), Some("registry+x")),
            package("silent", None, Some("registry+x")),
            package("fork", Some("MIT"), Some("git+x")),
            package("twice", Some("MIT"), Some("registry+x")),
            package("twice", Some("MIT"), Some("registry+x")),
        ];
        let numbered = packages.into_iter().enumerate();
        let packages = numbered
            .map(|(n, package)| (n.to_string(), package))
            .collect();
        let expected = [
            "bad 1.0.0: is banned",
            "copyleft 1.0.0: licence `GPL-3.0`",
            "silent 1.0.0: states no licence",
            "fork 1.0.0: comes from outside the registry",
            "twice: 2 versions, only one is wanted",
        ];
        assert_eq!(rules.check(&packages), expected);
    }
}
