//! Messages about a Dockerfile, as data.

use crate::source::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The Dockerfile cannot be built.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

/// One message with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Name of the rule, for example `NoEmptyContinuation`; `None` for errors that no rule names.
    pub rule: Option<&'static str>,
    /// What is wrong: lower case, no full stop, values in double quotes or backticks.
    pub message: String,
    /// Where; an empty span at 0 stands for the whole file.
    pub span: Span,
    /// What to do about it.
    pub hint: Option<String>,
    /// What `--fix` changes in the text; empty where it takes a person.
    pub fix: Vec<Edit>,
}

/// A change of the text of a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// What is replaced.
    pub span: Span,
    /// What comes in its place.
    pub text: String,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(message: impl Into<String>, span: Span) -> Self {
        Self {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            span,
            hint: None,
            fix: Vec::new(),
        }
    }

    /// A warning of a named rule at a place.
    pub fn warning(rule: &'static str, message: impl Into<String>, span: Span) -> Self {
        Self {
            severity: Severity::Warning,
            rule: Some(rule),
            message: message.into(),
            span,
            hint: None,
            fix: Vec::new(),
        }
    }

    /// The same with one more change that mends it.
    #[must_use]
    pub fn with_edit(mut self, span: Span, text: impl Into<String>) -> Self {
        let text = text.into();
        self.fix.push(Edit { span, text });
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// The longest word that is compared with others, bytes.
const LONGEST: usize = 200;

/// Finds the candidate that was probably meant, by edit distance without regard to case; `None`
/// if none is near.
#[must_use]
pub fn suggest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // Comparing costs the square of the length, and nobody types names of that length.
    if word.len() > LONGEST {
        return None;
    }
    let word: Vec<char> = word.chars().flat_map(char::to_lowercase).collect();
    let allowed = word.len().div_ceil(3).clamp(1, 3).min(word.len() / 2);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            if candidate.len() > LONGEST {
                return None;
            }
            let letters: Vec<char> = candidate.chars().flat_map(char::to_lowercase).collect();
            // Two words of one letter are always "near".
            if word.len() < 2 || word.len().abs_diff(letters.len()) > allowed {
                return None;
            }
            let distance = distance(&word, &letters);
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The end of a message that names what was probably meant, or nothing.
#[must_use]
pub fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!(", did you mean {near}?"))
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, &letter) in from.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, &other) in to.iter().enumerate() {
            let mut best = last[column] + usize::from(letter != other);
            best = best.min(last[column + 1] + 1).min(current[column] + 1);
            let swapped =
                row > 0 && column > 0 && letter == to[column - 1] && from[row - 1] == other;
            if swapped {
                best = best.min(before_last[column - 1] + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[to.len()]
}

/// Shortens foreign text for a message: at most 80 characters.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_near() {
        let names = ["FROM", "RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(suggest("FORM", names), Some("FROM"));
        assert_eq!(suggest("rnu", names), Some("RUN"));
        assert_eq!(suggest("ENTRYPIONT", names), Some("ENTRYPOINT"));
        assert_eq!(suggest("LET", names), None);
        assert_eq!(suggest("R", names), None);
        assert_eq!(suggest("", names), None);
    }
}
