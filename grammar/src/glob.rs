//! Wildcards of `COPY` and `ADD` sources: Go's `filepath.Match` (A10.3).
//!
//! Names are bytes: a file need not have a name in UTF-8. A byte that belongs to no character
//! counts as one character that no class holds.

/// Why a pattern is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct GlobError;

/// Says whether a text has a wildcard or an escape in it.
#[must_use]
pub fn is_pattern(text: &[u8]) -> bool {
    text.iter().any(|byte| b"*?[\\".contains(byte))
}

/// Says whether a name matches a pattern: `*` is any run of characters, `?` is one, `[a-z]` and
/// `[^a]` are classes, `\c` is `c`. Neither `*` nor `?` nor a class matches a slash.
///
/// # Errors
///
/// The pattern is malformed, even where the name would not reach the malformed part.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, GlobError> {
    Ok(matches_tokens(&parse(pattern)?, name))
}

/// One part of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// `*`
    Run,
    /// `?`
    One,
    /// A character, escaped or not.
    Letter {
        /// The character.
        letter: Letter,
        /// Whether an escape stands before it.
        escaped: bool,
    },
    /// `[...]`
    Class(Class),
}

/// `[...]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// Whether it begins with `^`.
    pub(crate) negated: bool,
    /// Its ranges, both ends included.
    pub(crate) ranges: Vec<(Letter, Letter)>,
}

/// A character, or a byte that belongs to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Letter {
    /// A character.
    Char(char),
    /// A byte that belongs to no character.
    Byte(u8),
}

/// Splits a pattern into its parts.
pub(crate) fn parse(pattern: &[u8]) -> Result<Vec<Token>, GlobError> {
    let letters = letters(pattern);
    let mut tokens = Vec::with_capacity(letters.len());
    let mut rest = letters.as_slice();
    while let [first, after @ ..] = rest {
        rest = after;
        tokens.push(match first {
            Letter::Char('*') => Token::Run,
            Letter::Char('?') => Token::One,
            Letter::Char('[') => Token::Class(class(&mut rest)?),
            Letter::Char('\\') => {
                let [letter, after @ ..] = rest else {
                    return Err(GlobError);
                };
                rest = after;
                Token::Letter {
                    letter: *letter,
                    escaped: true,
                }
            }
            letter => Token::Letter {
                letter: *letter,
                escaped: false,
            },
        });
    }
    Ok(tokens)
}

/// Takes a class up to its `]`. A `]` or `-` that stands for itself must be escaped.
fn class(rest: &mut &[Letter]) -> Result<Class, GlobError> {
    let mut class = Class {
        negated: false,
        ranges: Vec::new(),
    };
    if let [Letter::Char('^'), after @ ..] = rest {
        class.negated = true;
        *rest = after;
    }
    loop {
        if let ([Letter::Char(']'), after @ ..], false) = (*rest, class.ranges.is_empty()) {
            *rest = after;
            return Ok(class);
        }
        let low = class_letter(rest)?;
        let mut high = low;
        if let [Letter::Char('-'), after @ ..] = rest {
            *rest = after;
            high = class_letter(rest)?;
        }
        class.ranges.push((low, high));
    }
}

fn class_letter(rest: &mut &[Letter]) -> Result<Letter, GlobError> {
    let (letter, after) = match *rest {
        [] | [Letter::Char('-' | ']'), ..] | [Letter::Char('\\')] => return Err(GlobError),
        [Letter::Char('\\'), letter, after @ ..] | [letter, after @ ..] => (*letter, after),
    };
    *rest = after;
    Ok(letter)
}

/// The characters of a text, and its bytes where there are none.
pub(crate) fn letters(text: &[u8]) -> Vec<Letter> {
    let mut letters = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        letters.extend(chunk.valid().chars().map(Letter::Char));
        letters.extend(chunk.invalid().iter().copied().map(Letter::Byte));
    }
    letters
}

/// Matches with one step back: on a mismatch only the last `*` may take more, so the cost is at
/// most the length of the pattern times that of the name.
fn matches_tokens(tokens: &[Token], name: &[u8]) -> bool {
    let name = letters(name);
    let (mut token, mut at) = (0, 0);
    let mut last_run = None;
    loop {
        match tokens.get(token) {
            Some(Token::Run) => {
                token += 1;
                last_run = Some((token, at));
                continue;
            }
            Some(other)
                if name
                    .get(at)
                    .is_some_and(|letter| matches_one(other, *letter)) =>
            {
                token += 1;
                at += 1;
                continue;
            }
            None if at == name.len() => return true,
            _ => {}
        }
        match last_run {
            Some((after, from))
                if name
                    .get(from)
                    .is_some_and(|next| *next != Letter::Char('/')) =>
            {
                last_run = Some((after, from + 1));
                token = after;
                at = from + 1;
            }
            _ => return false,
        }
    }
}

fn matches_one(token: &Token, name: Letter) -> bool {
    match token {
        Token::Run => false,
        Token::One => name != Letter::Char('/'),
        Token::Letter { letter, .. } => *letter == name,
        Token::Class(class) => {
            let inside = class
                .ranges
                .iter()
                .any(|(low, high)| *low <= name && name <= *high);
            inside != class.negated && name != Letter::Char('/')
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_bytes_that_are_no_characters() {
        assert_eq!(matches(b"a?c", b"a\xffc"), Ok(true));
        assert_eq!(matches(b"*\xfe", b"x\xfe"), Ok(true));
        assert_eq!(matches(b"[a-z]", b"\xff"), Ok(false));
        assert_eq!(matches("?".as_bytes(), "é".as_bytes()), Ok(true));
    }

    #[test]
    fn costs_no_more_than_it_must() {
        let pattern = "*a".repeat(200);
        let name = "a".repeat(10_000) + "b";
        assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), Ok(false));
    }

    #[test]
    fn tells_patterns_from_names() {
        assert!(is_pattern(b"a*") && is_pattern(b"[a]") && is_pattern(b"a\\*"));
        assert!(!is_pattern(b"a]b{c}"));
    }
}
