//! The patterns of `${name#pattern}`, `${name%pattern}` and `${name/pattern/text}` (A5.5): `*` is
//! any run of characters, `?` is one, and there are no brackets.
//!
//! A pattern is cut at its runs into pieces of fixed length. If the pieces match at all, they match
//! when each stands as far left as it can, so nothing is ever tried twice; for the longest match
//! only the last piece moves to the right.

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
}

/// A parsed pattern.
#[derive(Debug)]
pub(crate) struct Pattern {
    /// What stands between the runs; one more than there are runs, some of them empty.
    pieces: Vec<Vec<Part>>,
}

/// One character of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Any,
    Letter(char),
}

impl Part {
    fn matches(self, letter: char) -> bool {
        self == Self::Any || self == Self::Letter(letter)
    }
}

impl Pattern {
    /// Parses a pattern in which escapes are still written.
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let mut pieces = Vec::new();
        let mut piece = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            piece.push(match letter {
                '*' => {
                    // Neighbouring runs are one.
                    if pieces.is_empty() || !piece.is_empty() {
                        pieces.push(std::mem::take(&mut piece));
                    }
                    continue;
                }
                '?' => Part::Any,
                '\\' => match letters.next() {
                    // `}` and `/` are escaped for the sake of `${}` only.
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => Part::Letter(escaped),
                    Some(other) => return Err(PatternError::Escape(other)),
                    None => return Err(PatternError::Incomplete),
                },
                letter => Part::Letter(letter),
            });
        }
        pieces.push(piece);
        Ok(Self { pieces })
    }

    /// What looking for the pattern in a value can cost at most, in comparisons.
    pub(crate) fn work(&self, value: &str) -> usize {
        let longest = self.pieces.iter().map(Vec::len).max().unwrap_or_default();
        value.len().saturating_mul(longest.max(1))
    }

    /// Removes the shortest or longest prefix that matches.
    pub(crate) fn without_prefix(&self, value: &str, longest: bool) -> String {
        let letters: Vec<char> = value.chars().collect();
        let end = self.end(&letters, longest).unwrap_or(0);
        letters[end..].iter().collect()
    }

    /// Removes the shortest or longest suffix that matches. Both are turned round: then it is a
    /// prefix.
    pub(crate) fn without_suffix(&self, value: &str, longest: bool) -> String {
        let turn = |piece: &Vec<Part>| piece.iter().copied().rev().collect();
        let turned = Self {
            pieces: self.pieces.iter().rev().map(turn).collect(),
        };
        let letters: Vec<char> = value.chars().rev().collect();
        let end = turned.end(&letters, longest).unwrap_or(0);
        letters[end..].iter().rev().collect()
    }

    /// Replaces the first or every match, each as long as can be; `None` if the result is longer
    /// than `limit` bytes.
    pub(crate) fn replace(
        &self,
        value: &str,
        replacement: &str,
        all: bool,
        limit: usize,
    ) -> Option<String> {
        let letters: Vec<char> = value.chars().collect();
        let mut replaced = String::new();
        let mut at = 0;
        let mut matched = None;
        while let Some((start, end)) = self.find(&letters, at) {
            // Nothing is not found right behind a match.
            let again = start == end && matched == Some(start);
            if !again {
                replaced.extend(&letters[at..start]);
                replaced.push_str(replacement);
            }
            at = end;
            matched = Some(end);
            if !all || replaced.len() > limit {
                break;
            }
            if start == end {
                let Some(letter) = letters.get(at) else {
                    break;
                };
                replaced.push(*letter);
                at += 1;
            }
        }
        replaced.extend(&letters[at..]);
        (replaced.len() <= limit).then_some(replaced)
    }

    /// The leftmost match from `at` on, as long as can be.
    fn find(&self, letters: &[char], at: usize) -> Option<(usize, usize)> {
        let first = self.pieces.first()?;
        let start = at + first_place(first, &letters[at..])?;
        Some((start, start + self.end(&letters[start..], true)?))
    }

    /// Where the shortest or longest match ends that starts at the first letter.
    fn end(&self, letters: &[char], longest: bool) -> Option<usize> {
        let (first, rest) = self.pieces.split_first()?;
        if !stands(first, letters) {
            return None;
        }
        let mut end = first.len();
        let Some((last, middle)) = rest.split_last() else {
            return Some(end);
        };
        for piece in middle {
            end += first_place(piece, &letters[end..])? + piece.len();
        }
        let place = if longest {
            last_place(last, &letters[end..])
        } else {
            first_place(last, &letters[end..])
        };
        Some(end + place? + last.len())
    }
}

fn stands(piece: &[Part], letters: &[char]) -> bool {
    let mut pairs = piece.iter().zip(letters);
    piece.len() <= letters.len() && pairs.all(|(part, letter)| part.matches(*letter))
}

fn first_place(piece: &[Part], letters: &[char]) -> Option<usize> {
    let last = letters.len().checked_sub(piece.len())?;
    (0..=last).find(|at| stands(piece, &letters[*at..]))
}

fn last_place(piece: &[Part], letters: &[char]) -> Option<usize> {
    let last = letters.len().checked_sub(piece.len())?;
    (0..=last).rev().find(|at| stands(piece, &letters[*at..]))
}

#[cfg(test)]
mod tests;
