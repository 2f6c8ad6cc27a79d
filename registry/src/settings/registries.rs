//! The containers tools' `registries.conf`: where names really lead, mirrors, and what is blocked
//! (D4.3).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::SettingsError;

/// What holds for the names that begin with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `host[:port]`, with as much of the path as is meant; or `*.domain`.
    prefix: String,
    /// What stands in the prefix's place when images are pulled.
    location: Option<String>,
    /// Whether the location may speak plain http and its certificate is not checked.
    pub(super) insecure: bool,
    /// Whether nothing may be pulled or pushed.
    pub(super) blocked: bool,
    pub(super) mirrors: Vec<MirrorRule>,
    /// The file that says so.
    pub(super) file: PathBuf,
}

/// Another place of the same images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MirrorRule {
    /// What stands in the prefix's place there.
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) pulls: Pulls,
}

/// Which names a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Pulls {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
    /// The first version of the format.
    registries: Option<Old>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct Entry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<MirrorEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorEntry {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: Option<Pulls>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Old {
    insecure: OldList,
    block: OldList,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OldList {
    registries: Vec<String>,
}

/// Puts the rules of another file after those there are; of two for one prefix the last one counts.
pub(super) fn merge(rules: &mut Vec<Rule>, more: Vec<Rule>) {
    for rule in more {
        rules.retain(|one| one.prefix != rule.prefix);
        rules.push(rule);
    }
}

impl Entry {
    fn rule(self, file: &Path) -> Result<Rule, String> {
        let location = place(&self.location)?;
        let prefix = match place(&self.prefix)? {
            Some(prefix) => prefix,
            None => location
                .clone()
                .ok_or("a `[[registry]]` has neither `prefix` nor `location`")?,
        };
        if prefix.contains('*') && prefix.strip_prefix("*.").is_none_or(|d| d.contains('*')) {
            return Err(format!(
                "the prefix `{prefix}` has a `*` where none can be: it stands for subdomains, as in `*.example.com`"
            ));
        }
        let mirrors = self.mirror.into_iter().map(|mirror| {
            Ok(MirrorRule {
                location: place(&mirror.location)?
                    .ok_or_else(|| format!("a mirror of `{prefix}` has no `location`"))?,
                insecure: mirror.insecure,
                pulls: match mirror.pull_from_mirror {
                    Some(pulls) => pulls,
                    None if self.mirror_by_digest_only => Pulls::DigestOnly,
                    None => Pulls::All,
                },
            })
        });
        Ok(Rule {
            mirrors: mirrors.collect::<Result<_, String>>()?,
            prefix,
            location,
            insecure: self.insecure,
            blocked: self.blocked,
            file: file.to_owned(),
        })
    }
}

/// A `host[:port][/path]`; `None` when nothing is given.
fn place(text: &str) -> Result<Option<String>, String> {
    let text = text.trim_end_matches('/');
    if text.contains("://") {
        return Err(format!(
            "`{text}` must be a host with or without a path, and no scheme"
        ));
    }
    if text.contains(char::is_whitespace) || text.starts_with('/') {
        return Err(format!("`{text}` is no host"));
    }
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

impl Rule {
    /// Parses a `registries.conf`; `file` is its name for messages.
    ///
    /// # Errors
    /// [`SettingsError::Syntax`] when it is none.
    pub fn parse_all(file: &Path, bytes: &[u8]) -> Result<Vec<Self>, SettingsError> {
        let syntax = |problem: String| SettingsError::Syntax {
            file: file.to_owned(),
            problem,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| syntax("it is not UTF-8".to_owned()))?;
        let content: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text.as_bytes()[..span.start.min(text.len())]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count()
            });
            syntax(format!("line {line}: {}", error.message()))
        })?;
        let old = content.registries.unwrap_or_default();
        let entry = |prefix: String| Entry {
            prefix,
            ..Entry::default()
        };
        let insecure = old.insecure.registries.into_iter().map(|name| Entry {
            insecure: true,
            ..entry(name)
        });
        let blocked = old.block.registries.into_iter().map(|name| Entry {
            blocked: true,
            ..entry(name)
        });
        let entries = content.registry.into_iter().chain(insecure).chain(blocked);
        entries
            .map(|entry| entry.rule(file).map_err(syntax))
            .collect()
    }

    /// How many characters of a full name the prefix stands for, where it fits.
    pub(super) fn fit(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let host = name.split(['/', '@']).next().unwrap_or_default();
            let bare = host.split(':').next().unwrap_or_default();
            return (bare.len() > domain.len() && bare.ends_with(domain)).then_some(bare.len());
        }
        let rest = name.strip_prefix(&self.prefix)?;
        let ends = match rest.chars().next() {
            None | Some('/' | '@') => true,
            // After a host it is another port, after a path it is a tag.
            Some(':') => self.prefix.contains('/'),
            Some(_) => false,
        };
        ends.then_some(self.prefix.len())
    }

    /// How well the rule fits: longer prefixes go before shorter ones, and before subdomains.
    pub(super) fn rank(&self) -> (bool, usize) {
        (!self.prefix.starts_with('*'), self.prefix.len())
    }

    /// Where a name of `registry/repository` is pulled from: host and repository.
    pub(super) fn source(&self, name: &str) -> Option<(String, String)> {
        match &self.location {
            Some(location) => self.moved(name, location),
            None => split(name),
        }
    }

    /// The same at another location.
    pub(super) fn moved(&self, name: &str, location: &str) -> Option<(String, String)> {
        let at = self.fit(name)?;
        split(&format!("{location}{}", name.get(at..)?))
    }

    /// The host that `insecure` speaks of.
    pub(super) fn host(&self) -> &str {
        host_of(self.location.as_deref().unwrap_or(&self.prefix))
    }
}

/// The host of a `host/path`.
pub(super) fn host_of(location: &str) -> &str {
    location.split('/').next().unwrap_or_default()
}

fn split(name: &str) -> Option<(String, String)> {
    let (host, repository) = name.split_once('/')?;
    Some((host.to_owned(), repository.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Vec<Rule>, SettingsError> {
        Rule::parse_all(Path::new("registries.conf"), text.as_bytes())
    }

    fn one(text: &str) -> Rule {
        rules(&format!("[[registry]]\n{text}")).unwrap().remove(0)
    }

    #[test]
    fn d4_3_prefixes_and_locations() {
        let moved = |rule: &Rule, name: &str| {
            let (host, repository) = rule.source(name)?;
            rule.fit(name).map(|_| format!("{host} {repository}"))
        };
        let hub = one("prefix = 'docker.io'\nlocation = 'cache.example:5000/hub/'");
        assert_eq!(
            moved(&hub, "docker.io/library/x").unwrap(),
            "cache.example:5000 hub/library/x"
        );
        let team = one("prefix = 'r.example/team'\nlocation = 's.example/other'");
        for (name, expected) in [
            ("r.example/team/app", Some("s.example other/app")),
            ("r.example/team", Some("s.example other")),
            ("r.example/teams/app", None),
            ("r.example/x/team", None),
        ] {
            assert_eq!(moved(&team, name).as_deref(), expected, "{name}");
        }
        let host = one("location = 'r.example'");
        assert_eq!(host.fit("r.example:5000/x"), None);
        assert_eq!(host.fit("r.example/x:1"), Some(9));
        let all = one("prefix = '*.example'\nlocation = 'm.test'");
        assert_eq!(moved(&all, "a.b.example/x/y").unwrap(), "m.test x/y");
        assert_eq!(moved(&all, "example/x"), None);
        assert_eq!(moved(&all, "a.example.org/x"), None);
        let same = one("prefix = '*.example'\ninsecure = true");
        assert_eq!(moved(&same, "a.example/x").unwrap(), "a.example x");
    }

    #[test]
    fn d4_3_mirrors_of_a_registry() {
        let rule = one("location = 'r.example'\nmirror-by-digest-only = true\n\
             [[registry.mirror]]\nlocation = 'm1.example/r'\ninsecure = true\n\
             [[registry.mirror]]\nlocation = 'm2.example'\npull-from-mirror = 'tag-only'\n");
        let [first, second] = &rule.mirrors[..] else {
            panic!("{rule:?}")
        };
        assert!(first.insecure && !second.insecure);
        assert_eq!(
            (first.pulls, second.pulls),
            (Pulls::DigestOnly, Pulls::TagOnly)
        );
        assert_eq!(
            rule.moved("r.example/a/b", &first.location).unwrap(),
            ("m1.example".to_owned(), "r/a/b".to_owned())
        );
    }

    #[test]
    fn d4_3_the_first_version_of_the_format() {
        let found = rules(
            "[registries.search]\nregistries = ['docker.io']\n\
             [registries.insecure]\nregistries = ['i.example']\n\
             [registries.block]\nregistries = ['b.example']\n",
        )
        .unwrap();
        assert!(found[0].insecure && found[0].prefix == "i.example");
        assert!(found[1].blocked && found[1].prefix == "b.example");
    }

    #[test]
    fn d4_3_later_files_replace_rules_for_the_same_prefix() {
        let mut all = rules("[[registry]]\nlocation = 'a'\n[[registry]]\nlocation = 'b'").unwrap();
        merge(
            &mut all,
            rules("[[registry]]\nprefix = 'a'\nlocation = 'c'").unwrap(),
        );
        let shown: Vec<_> = all.iter().map(|rule| rule.host().to_owned()).collect();
        assert_eq!(shown, ["b", "c"]);
    }

    #[test]
    fn d4_3_wrong_files_are_named_with_the_place() {
        for (text, part) in [
            ("\n[[registry]\n", "line 2"),
            ("[[registry]]\ninsecure = true", "neither"),
            ("[[registry]]\nlocation = 'https://r'", "no scheme"),
            ("[[registry]]\nprefix = 'a.*.b'", "`*`"),
            ("[[registry]]\nprefix = '*'", "`*`"),
            (
                "[[registry]]\nlocation = 'r'\n[[registry.mirror]]",
                "location",
            ),
            (
                "[[registry]]\nlocation = 'r'\n[[registry.mirror]]\nlocation=''",
                "no `location`",
            ),
            (
                "[[registry]]\nlocation = 'r'\n[[registry.mirror]]\nlocation='m'\npull-from-mirror='x'",
                "line 5",
            ),
            ("[[registry]]\nlocation = 'a b'", "no host"),
            ("registry = 1", "line 1"),
        ] {
            let error = rules(text).unwrap_err().to_string();
            assert!(error.contains("registries.conf"), "{error}");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
