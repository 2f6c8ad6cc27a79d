//! `WWW-Authenticate`: what a registry asks for (D3.1), and the scopes of a token (D3.3).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// A way to authenticate that a registry offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token from a token service.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// All challenges that kiln understands, in the order of the headers.
    pub(super) fn all(headers: &HeaderMap) -> Vec<Self> {
        headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .flat_map(|value| parse(&String::from_utf8_lossy(value.as_bytes())))
            .collect()
    }

    /// The challenge to answer: a token where it is offered, a password otherwise.
    pub(super) fn best(challenges: &[Self]) -> Option<&Self> {
        challenges
            .iter()
            .find(|challenge| matches!(challenge, Self::Bearer { .. }))
            .or(challenges.first())
    }
}

/// Parses one header, which may hold several challenges.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start_matches([',', ' ', '\t']);
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            // Not a token where one must be: the rest cannot be understood.
            break;
        }
        rest = after.trim_start();
        if let Some(value) = rest.strip_prefix('=') {
            let (value, after) = quoted_or_token(value.trim_start());
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.entry(word.to_ascii_lowercase()).or_insert(value);
            }
            rest = after;
        } else {
            challenges.push((word.to_ascii_lowercase(), BTreeMap::new()));
        }
        rest = rest.trim_start_matches([',', ' ', '\t']);
    }
    challenges.into_iter().filter_map(understand).collect()
}

fn understand((scheme, mut parameters): (String, BTreeMap<String, String>)) -> Option<Challenge> {
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service").filter(|text| !text.is_empty()),
            scope: parameters.remove("scope").filter(|text| !text.is_empty()),
        }),
        _ => None,
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"'))
        .unwrap_or(text.len());
    text.split_at(end)
}

fn quoted_or_token(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        // Unquoted addresses hold `=`; only a comma or blank ends them.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &inner[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// A set of scopes, `type:name:actions`, merged by type and name and always in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// Reading from a repository.
    pub(super) fn pull(repository: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{repository}:pull"));
        scopes
    }

    /// Writing to a repository.
    pub(super) fn push(repository: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{repository}:pull,push"));
        scopes
    }

    /// Deleting from a repository, and what that takes where tags cannot be deleted.
    pub(super) fn delete(repository: &str) -> Self {
        let mut scopes = Self::push(repository);
        scopes.add(&format!("repository:{repository}:delete"));
        scopes
    }

    /// Adds scopes separated by blanks, as challenges write them.
    pub(super) fn add(&mut self, text: &str) {
        for scope in text.split_whitespace() {
            // Names may hold colons (a host with a port), actions may not.
            if let Some((name, actions)) = scope.rsplit_once(':') {
                let known = self.0.entry(name.to_owned()).or_default();
                known.extend(
                    actions
                        .split(',')
                        .filter(|a| !a.is_empty())
                        .map(str::to_owned),
                );
            }
        }
    }

    /// Both sets together.
    pub(super) fn with(mut self, other: &Self) -> Self {
        for (name, actions) in &other.0 {
            let known = self.0.entry(name.clone()).or_default();
            known.extend(actions.iter().cloned());
        }
        self
    }

    /// Each scope as a text.
    pub(super) fn iter(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(name, actions)| {
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            format!("{name}:{}", actions.join(","))
        })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.iter().collect();
        f.write_str(&all.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_1_challenges_from_the_table() {
        let table = include_str!("../../../testdata/challenges.tsv");
        let mut cases = 0;
        for line in table
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            let (header, expected) = line.split_once('\t').unwrap();
            let found: Vec<String> = parse(header).iter().map(describe).collect();
            assert_eq!(found.join(" + "), expected, "{header}");
            cases += 1;
        }
        assert!(cases > 8);
    }

    fn describe(challenge: &Challenge) -> String {
        match challenge {
            Challenge::Basic => "basic".to_owned(),
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => format!(
                "bearer {realm} {} {}",
                service.as_deref().unwrap_or("-"),
                scope.as_deref().unwrap_or("-")
            ),
        }
    }

    #[test]
    fn d3_3_scopes_merge() {
        let mut scopes = Scopes::push("a/b");
        scopes.add("repository:a/b:pull,delete repository:host:5000/x:pull nonsense");
        assert_eq!(
            scopes.to_string(),
            "repository:a/b:delete,pull,push repository:host:5000/x:pull"
        );
        assert_eq!(
            Scopes::pull("a").with(&Scopes::push("a")),
            Scopes::push("a")
        );
    }
}
