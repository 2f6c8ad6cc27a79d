//! What the names of a repository stand for.

use super::GitError;
use super::program::Program;
use crate::graph::GitOp;

/// A commit, and under which whole name the repository offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) commit: String,
    pub(super) name: Option<String>,
}

/// Finds out which commit is meant; a whole commit stands for itself and is not asked for.
pub(super) fn resolve(git: &Program<'_>, op: &GitOp) -> Result<Found, GitError> {
    if let Some(commit) = op.reference.as_ref().filter(|text| is_commit(text)) {
        return Ok(Found {
            commit: commit.to_ascii_lowercase(),
            name: None,
        });
    }
    let names = candidates(op.reference.as_deref());
    // A tag with a message is an object of its own; `^{}` is the commit that it means.
    let patterns = names.iter().flat_map(|name| [name.clone(), peeled(name)]);
    let patterns: Vec<String> = patterns.collect();
    let mut arguments = vec!["ls-remote", "--", &op.url];
    arguments.extend(patterns.iter().map(String::as_str));
    choose(&git.run(&arguments)?, &names)?.ok_or_else(|| match &op.reference {
        Some(name) => GitError::NoReference(name.clone()),
        None => GitError::Empty,
    })
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The whole names that a name may mean, the first that exists counts: branches go before tags, as
/// for `git checkout`.
fn candidates(name: Option<&str>) -> Vec<String> {
    let Some(name) = name else {
        return vec!["HEAD".to_owned()];
    };
    if name == "HEAD" || name.starts_with("refs/") {
        return vec![name.to_owned()];
    }
    let short = name.strip_prefix("heads/").unwrap_or(name);
    let tag = name.strip_prefix("tags/").unwrap_or(name);
    vec![
        format!("refs/heads/{short}"),
        format!("refs/tags/{tag}"),
        format!("refs/{name}"),
    ]
}

fn peeled(name: &str) -> String {
    format!("{name}^{{}}")
}

/// Reads what `git ls-remote` printed: lines of object and name.
fn choose(text: &str, names: &[String]) -> Result<Option<Found>, GitError> {
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let object = |wanted: &str| {
        let found = lines.iter().find(|(_, name)| *name == wanted);
        found.map(|(object, _)| *object)
    };
    let found = names.iter().find_map(|name| {
        let commit = object(&peeled(name)).or_else(|| object(name))?;
        Some((commit, name))
    });
    match found {
        None => Ok(None),
        Some((commit, _)) if !is_commit(commit) => Err(GitError::Answer("ls-remote")),
        Some((commit, name)) => Ok(Some(Found {
            commit: commit.to_ascii_lowercase(),
            name: Some(name.clone()),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A12.4
    #[test]
    fn branches_go_before_tags_and_tags_are_peeled() {
        let [a, b, c] = ["a", "b", "c"].map(|digit| digit.repeat(40));
        let text = format!(
            "{a}\tHEAD\n{a}\trefs/heads/both\n{b}\trefs/tags/both\n{b}\trefs/tags/v1\n\
             {c}\trefs/tags/v1^{{}}\n{b}\trefs/pull/7/head\n"
        );
        let chosen = |name: Option<&str>| {
            let found = choose(&text, &candidates(name)).unwrap();
            found.map(|found| (found.commit, found.name.unwrap()))
        };
        let is = |commit: &str, name: &str| Some((commit.to_owned(), name.to_owned()));
        assert_eq!(chosen(None), is(&a, "HEAD"));
        assert_eq!(chosen(Some("both")), is(&a, "refs/heads/both"));
        assert_eq!(chosen(Some("refs/tags/both")), is(&b, "refs/tags/both"));
        assert_eq!(chosen(Some("v1")), is(&c, "refs/tags/v1"));
        assert_eq!(chosen(Some("tags/v1")), is(&c, "refs/tags/v1"));
        assert_eq!(chosen(Some("pull/7/head")), is(&b, "refs/pull/7/head"));
        assert_eq!(chosen(Some("none")), None);
        let names = candidates(None);
        assert!(choose("--upload-pack=x\tHEAD\n", &names).is_err());
    }
}
