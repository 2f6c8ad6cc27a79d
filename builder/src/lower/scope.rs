//! What variables are worth: `ENV` and `ARG` as one build-time environment (A5.3, A6).

use indexmap::IndexMap;
use kiln_grammar::word::{self, HeredocError, WordError};

/// The variables that instructions see at one place of a stage, or before the first stage.
///
/// Whatever was set last wins: an `ENV` over an earlier `ARG`, and a later `ARG` with a value over
/// an `ENV`, though the latter only at build time (A6.6).
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    env: IndexMap<String, String>,
    args: IndexMap<String, Option<String>>,
    /// Bytes that the environment takes.
    size: usize,
}

/// A word after expansion.
#[derive(Debug)]
pub(super) struct Expansion<T> {
    /// What it became.
    pub(super) value: T,
    /// The variables in it that have a value.
    pub(super) used: Vec<String>,
    /// The variables in it that nothing defines.
    pub(super) undefined: Vec<String>,
}

impl Scope {
    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    /// Sets a variable; one that is known keeps its place (A9.12).
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.size += value.len();
        match self.env.insert(name.to_owned(), value.to_owned()) {
            Some(old) => self.size -= old.len(),
            None => self.size += name.len(),
        }
    }

    /// Declares a build argument; without a value it is not in the environment (A6.3).
    pub(super) fn declare(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value
            && !is_reserved(name)
        {
            self.set(name, value);
        }
        self.args.insert(name.to_owned(), value.map(str::to_owned));
    }

    /// Whether an `ARG` declares this name.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.args.contains_key(name)
    }

    /// The environment in order of definition.
    pub(super) fn env(&self) -> Vec<(String, String)> {
        let pairs = self.env.iter();
        pairs
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// All names that mean something here.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.env.keys().chain(self.args.keys()).map(String::as_str)
    }

    /// The declared arguments with what they are worth here, as the history of `RUN` shows them:
    /// `|2 A=1 B=2 `, or nothing (A6.5).
    pub(super) fn history_prefix(&self) -> String {
        if self.args.is_empty() {
            return String::new();
        }
        let mut text = format!("|{} ", self.args.len());
        for (name, value) in &self.args {
            let value = self.get(name).or(value.as_deref()).unwrap_or_default();
            text.push_str(&format!("{name}={value} "));
        }
        text
    }

    /// Expands a word to one word.
    pub(super) fn expand(&self, text: &str, escape: char) -> Result<Expansion<String>, WordError> {
        let expanded = word::expand(text, escape, &|name| self.value(name))?;
        Ok(self.checked(expanded.text, expanded.matched, expanded.unmatched))
    }

    /// Expands a word and splits the result at blanks, as only `EXPOSE` does (A5.9).
    pub(super) fn expand_words(
        &self,
        text: &str,
        escape: char,
    ) -> Result<Expansion<Vec<String>>, WordError> {
        let expanded = word::expand_words(text, escape, &|name| self.value(name))?;
        Ok(self.checked(expanded.words, expanded.matched, expanded.unmatched))
    }

    /// Expands the body of a heredoc (A13.8).
    pub(super) fn expand_heredoc(
        &self,
        text: &str,
        escape: char,
    ) -> Result<Expansion<String>, HeredocError> {
        let expanded = word::expand_heredoc(text, escape, &|name| self.value(name))?;
        Ok(self.checked(expanded.text, expanded.matched, expanded.unmatched))
    }

    fn value(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// Bytes that the environment takes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    fn checked<T>(&self, value: T, used: Vec<String>, unmatched: Vec<String>) -> Expansion<T> {
        let undefined = unmatched
            .into_iter()
            .filter(|name| !self.is_declared(name) && !is_reserved(name))
            .collect();
        Expansion {
            value,
            used,
            undefined,
        }
    }
}

/// Arguments that steer the build and never become environment (A6.11).
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A6.3, A6.5, A6.6
    #[test]
    fn the_last_one_wins_and_history_shows_it() {
        let mut scope = Scope::default();
        assert_eq!(scope.history_prefix(), "");
        scope.declare("A", None);
        assert_eq!(scope.get("A"), None);
        assert_eq!(scope.history_prefix(), "|1 A= ");
        scope.declare("B", Some("1"));
        scope.set("B", "env");
        scope.declare("A", Some(""));
        assert_eq!(scope.get("A"), Some(""));
        assert_eq!(scope.history_prefix(), "|2 A= B=env ");
        scope.declare("B", Some("2"));
        assert_eq!(scope.get("B"), Some("2"));
    }

    /// A6.11
    #[test]
    fn reserved_arguments_stay_out_of_the_environment() {
        let mut scope = Scope::default();
        scope.declare("BUILDKIT_SBOM_SCAN_STAGE", Some("true"));
        assert_eq!(scope.env(), []);
        assert_eq!(scope.history_prefix(), "|1 BUILDKIT_SBOM_SCAN_STAGE=true ");
    }
}
