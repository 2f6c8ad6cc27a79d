//! The patterns of `${name#pattern}`, `${name%pattern}` and `${name/pattern/text}` (A5.5): `*` is
//! any run of characters, `?` is one, and there are no brackets.

use regex::{NoExpand, Regex, RegexBuilder};

/// Why a pattern is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// An escape before a character that needs none.
    #[error("invalid escape '\\{0}'")]
    Escape(char),
    /// An escape with nothing behind it.
    #[error("the pattern ends in an escape")]
    Incomplete,
    /// The pattern is longer than can be compiled.
    #[error("the pattern is too long")]
    TooLong,
}

/// A parsed pattern.
#[derive(Debug)]
pub(crate) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Run,
    One,
    Letter(char),
}

/// Longest pattern in characters.
const MAX_PARTS: usize = 16 << 10;

/// Most characters of a pattern times bytes of a value: what a search can cost.
const MAX_WORK: usize = 256 << 20;

impl Pattern {
    /// Parses a pattern in which escapes are still written.
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let mut parts = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            parts.push(match letter {
                '*' => Part::Run,
                '?' => Part::One,
                '\\' => match letters.next() {
                    // `}` and `/` are escaped for the sake of `${}` only.
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => Part::Letter(escaped),
                    Some(other) => return Err(PatternError::Escape(other)),
                    None => return Err(PatternError::Incomplete),
                },
                letter => Part::Letter(letter),
            });
        }
        // Neighbouring runs are one.
        parts.dedup_by(|part, before| *part == Part::Run && *before == Part::Run);
        if parts.len() > MAX_PARTS {
            return Err(PatternError::TooLong);
        }
        Ok(Self { parts })
    }

    /// What a search in a value can cost.
    pub(crate) fn work(&self, value: &str) -> usize {
        self.parts.len().saturating_mul(value.len())
    }

    fn check_work(&self, value: &str) -> Result<(), PatternError> {
        if self.work(value) > MAX_WORK {
            return Err(PatternError::TooLong);
        }
        Ok(())
    }

    /// Removes the shortest or longest prefix that matches.
    pub(crate) fn without_prefix(
        &self,
        value: &str,
        longest: bool,
    ) -> Result<String, PatternError> {
        self.check_work(value)?;
        let regex = compile("^", self.parts.iter(), longest)?;
        let end = regex.find(value).map_or(0, |found| found.end());
        Ok(value[end..].to_owned())
    }

    /// Removes the shortest or longest suffix that matches. Both are turned round, because a
    /// search from the left cannot find the shortest suffix.
    pub(crate) fn without_suffix(
        &self,
        value: &str,
        longest: bool,
    ) -> Result<String, PatternError> {
        self.check_work(value)?;
        let regex = compile("^", self.parts.iter().rev(), longest)?;
        let turned: String = value.chars().rev().collect();
        let end = regex.find(&turned).map_or(0, |found| found.end());
        Ok(value[..value.len() - end].to_owned())
    }

    /// Replaces the first or every match, each as long as can be; `None` if the result is longer
    /// than `limit` bytes.
    pub(crate) fn replace(
        &self,
        value: &str,
        replacement: &str,
        all: bool,
        limit: usize,
    ) -> Result<Option<String>, PatternError> {
        self.check_work(value)?;
        let regex = compile("", self.parts.iter(), true)?;
        if !all {
            let replaced = regex.replace(value, NoExpand(replacement)).into_owned();
            return Ok(Some(replaced).filter(|replaced| replaced.len() <= limit));
        }
        let mut replaced = String::new();
        let mut copied = 0;
        for found in regex.find_iter(value) {
            replaced.push_str(&value[copied..found.start()]);
            replaced.push_str(replacement);
            copied = found.end();
            if replaced.len() > limit {
                return Ok(None);
            }
        }
        replaced.push_str(&value[copied..]);
        Ok(Some(replaced).filter(|replaced| replaced.len() <= limit))
    }
}

fn compile<'p>(
    anchor: &str,
    parts: impl Iterator<Item = &'p Part>,
    longest: bool,
) -> Result<Regex, PatternError> {
    let mut source = anchor.to_owned();
    for part in parts {
        match part {
            Part::Run if longest => source.push_str(".*"),
            Part::Run => source.push_str(".*?"),
            Part::One => source.push('.'),
            Part::Letter(letter) => {
                source.push_str(&regex::escape(letter.encode_utf8(&mut [0; 4])));
            }
        }
    }
    RegexBuilder::new(&source)
        .dot_matches_new_line(true)
        .build()
        .map_err(|_| PatternError::TooLong)
}
