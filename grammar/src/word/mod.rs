//! Expansion of variables, quotes and escapes (A5.4 to A5.9).
//!
//! Pure over a lookup closure: what is set and what it is worth is the caller's business. Results
//! say which variables were asked for, so that a lint can name those that nobody sets.

use std::collections::BTreeSet;

use pest::unicode::{DECIMAL_NUMBER, LETTER};

use crate::pattern::{Pattern, PatternError};

/// How deep `${a:-${b:-...}}` may be nested.
pub const MAX_DEPTH: usize = 100;

/// The longest result of one expansion in bytes: many times what a process can be given as one
/// variable, and a stop to values that double themselves line by line.
pub const MAX_LENGTH: usize = 1 << 20;

/// The longest result for the body of a heredoc in bytes.
pub const MAX_HEREDOC: usize = 32 << 20;

/// How much one expansion may handle, in bytes of values and results and in comparisons of
/// patterns: a stop to many uses of a long value that leave no trace in the result.
pub const MAX_WORK: usize = 128 << 20;

/// Looks a variable up; `None` stands for unset.
pub type Lookup<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// What an expansion gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text.
    pub text: String,
    /// Variables that were looked up and are set, perhaps to an empty text; sorted.
    pub matched: Vec<String>,
    /// Variables that were looked up and are not set; sorted.
    pub unmatched: Vec<String>,
}

/// What an expansion into words gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpandedWords {
    /// The words; empty ones are dropped.
    pub words: Vec<String>,
    /// As in [`Expanded`].
    pub matched: Vec<String>,
    /// As in [`Expanded`].
    pub unmatched: Vec<String>,
}

/// What an expansion leaves as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Leave unset variables as they are written.
    pub skip_unset: bool,
    /// Take quotes for ordinary characters.
    pub plain_quotes: bool,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordError {
    /// A quote that is never closed; the text is `single` or `double`.
    #[error("unexpected end of statement while looking for matching {0}-quote")]
    OpenQuote(&'static str),
    /// `${}` and the like.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${name` without its end.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${name/pattern` without the second slash.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// A modifier that does not exist here.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// `${name:?message}` of a variable without a value.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message behind `?`, or a standard one.
        message: String,
    },
    /// A pattern behind `#`, `%` or `/` that is none.
    #[error("invalid pattern ({pattern}) in substitution")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        source: PatternError,
    },
    /// More than [`MAX_DEPTH`] substitutions inside each other.
    #[error("substitutions are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// The expansion handles more than [`MAX_WORK`].
    #[error("the expansion takes too much work: the values are too long for so many uses of them")]
    TooMuch,
    /// The result would be longer than allowed.
    #[error("the expanded text is longer than {0} bytes")]
    TooLong(usize),
}

/// Why the body of a heredoc cannot be expanded, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source}")]
pub struct HeredocError {
    /// What is wrong.
    pub source: WordError,
    /// Offset in the body, in bytes, of the `$` that the trouble starts with.
    pub at: usize,
}

/// Expands one word: variables, quotes and escapes.
///
/// # Errors
///
/// The word is malformed, asks for a variable with `${name:?}`, or grows too long.
pub fn expand(word: &str, escape: char, env: &Lookup<'_>) -> Result<Expanded, WordError> {
    expand_with(word, escape, Options::default(), env)
}

/// Expands one word with options.
///
/// # Errors
///
/// Those of [`expand`].
pub fn expand_with(
    word: &str,
    escape: char,
    options: Options,
    env: &Lookup<'_>,
) -> Result<Expanded, WordError> {
    let mut lexer = Lexer::new(word, escape, options, MAX_LENGTH, env);
    let text = lexer.until(None, options.raw_escapes)?.text;
    Ok(lexer.expanded(text))
}

/// Expands a text, then splits it at blanks that no quote or escape protects; blanks that come out
/// of a variable split too (A5.9).
///
/// # Errors
///
/// Those of [`expand`].
pub fn expand_words(
    text: &str,
    escape: char,
    env: &Lookup<'_>,
) -> Result<ExpandedWords, WordError> {
    expand_words_with(text, escape, Options::default(), env)
}

/// The same as [`expand_words`] with options.
///
/// # Errors
///
/// Those of [`expand`].
pub fn expand_words_with(
    text: &str,
    escape: char,
    options: Options,
    env: &Lookup<'_>,
) -> Result<ExpandedWords, WordError> {
    let mut lexer = Lexer::new(text, escape, options, MAX_LENGTH, env);
    let words = lexer.until(None, options.raw_escapes)?.words();
    let Expanded {
        matched, unmatched, ..
    } = lexer.expanded(String::new());
    Ok(ExpandedWords {
        words,
        matched,
        unmatched,
    })
}

/// Expands the body of an unquoted heredoc: variables and escapes; quotes are part of the text
/// (A13.8).
///
/// # Errors
///
/// Those of [`expand`].
pub fn expand_heredoc(
    body: &str,
    escape: char,
    env: &Lookup<'_>,
) -> Result<Expanded, HeredocError> {
    let options = Options {
        plain_quotes: true,
        ..Options::default()
    };
    let mut lexer = Lexer::new(body, escape, options, MAX_HEREDOC, env);
    match lexer.until(None, false) {
        Ok(output) => Ok(lexer.expanded(output.text)),
        Err(source) => Err(HeredocError {
            source,
            at: lexer.dollar,
        }),
    }
}

/// A result that grows, as text and cut into words.
#[derive(Debug, Default)]
struct Output {
    text: String,
    words: Vec<String>,
    /// Where the current word starts in `word`.
    word: String,
}

impl Output {
    /// Adds text that blanks cut.
    fn push_loose(&mut self, text: &str) {
        self.text.push_str(text);
        for letter in text.chars() {
            if !letter.is_whitespace() {
                self.word.push(letter);
            } else if !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
            }
        }
    }

    /// Adds text that stays in one word.
    fn push_tight(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    fn words(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

struct Lexer<'t, 'e> {
    letters: Letters<'t>,
    escape: char,
    options: Options,
    limit: usize,
    env: &'e Lookup<'e>,
    depth: usize,
    /// Offset of the last `$` that stands in no other substitution.
    dollar: usize,
    /// What is left of [`MAX_WORK`].
    work: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

/// The characters of a text, one after the other.
struct Letters<'t> {
    text: &'t str,
    /// Offset of the next one in bytes.
    at: usize,
}

impl Letters<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, wanted: impl FnOnce(char) -> bool) -> Option<char> {
        let letter = self.peek().filter(|letter| wanted(*letter))?;
        self.at += letter.len_utf8();
        Some(letter)
    }

    fn next_if_eq(&mut self, wanted: char) -> Option<char> {
        self.next_if(|letter| letter == wanted)
    }
}

impl<'t, 'e> Lexer<'t, 'e> {
    fn new(
        text: &'t str,
        escape: char,
        options: Options,
        limit: usize,
        env: &'e Lookup<'e>,
    ) -> Self {
        Self {
            letters: Letters { text, at: 0 },
            escape,
            options,
            limit,
            env,
            depth: 0,
            dollar: 0,
            work: MAX_WORK,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        }
    }

    fn expanded(self, text: String) -> Expanded {
        Expanded {
            text,
            matched: self.matched.into_iter().collect(),
            unmatched: self.unmatched.into_iter().collect(),
        }
    }

    fn within_limit(&self, length: usize) -> Result<(), WordError> {
        if length > self.limit {
            return Err(WordError::TooLong(self.limit));
        }
        Ok(())
    }

    /// Expands up to a character, which is taken too, or up to the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<Output, WordError> {
        let mut output = Output::default();
        let mut buffer = [0; 4];
        while let Some(letter) = self.letters.next() {
            if Some(letter) == stop {
                return Ok(output);
            }
            match letter {
                '$' => output.push_loose(&self.dollar(raw_escapes)?),
                '\'' if !self.options.plain_quotes => output.push_tight(&self.single_quoted()?),
                '"' if !self.options.plain_quotes => {
                    output.push_tight(&self.double_quoted(raw_escapes)?);
                }
                letter if letter == self.escape => {
                    if raw_escapes {
                        output.push_tight(letter.encode_utf8(&mut buffer));
                    }
                    if let Some(escaped) = self.letters.next() {
                        output.push_tight(escaped.encode_utf8(&mut buffer));
                    }
                }
                letter => output.push_loose(letter.encode_utf8(&mut buffer)),
            }
            self.within_limit(output.text.len())?;
        }
        match stop {
            None => Ok(output),
            Some('/') => Err(WordError::MissingSlash),
            Some(_) => Err(WordError::MissingBrace),
        }
    }

    fn single_quoted(&mut self) -> Result<String, WordError> {
        let mut text = String::new();
        while let Some(letter) = self.letters.next() {
            if letter == '\'' {
                return Ok(self.quoted(text, '\''));
            }
            text.push(letter);
        }
        Err(WordError::OpenQuote("single"))
    }

    fn double_quoted(&mut self, raw_escapes: bool) -> Result<String, WordError> {
        let mut text = String::new();
        while let Some(letter) = self.letters.next() {
            match letter {
                '"' => return Ok(self.quoted(text, '"')),
                '$' => text.push_str(&self.dollar(raw_escapes)?),
                letter if letter == self.escape => {
                    let escape = self.escape;
                    let special = |next: char| matches!(next, '"' | '$') || next == escape;
                    let escaped = self.letters.next_if(special);
                    if raw_escapes || escaped.is_none() {
                        text.push(letter);
                    }
                    text.extend(escaped);
                }
                letter => text.push(letter),
            }
            self.within_limit(text.len())?;
        }
        Err(WordError::OpenQuote("double"))
    }

    fn quoted(&self, text: String, quote: char) -> String {
        if self.options.raw_quotes {
            return format!("{quote}{text}{quote}");
        }
        text
    }

    /// Expands what stands behind a `$`.
    fn dollar(&mut self, raw_escapes: bool) -> Result<String, WordError> {
        if self.depth == 0 {
            self.dollar = self.letters.at.saturating_sub(1);
        }
        if self.letters.next_if_eq('{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name)? {
                None if self.options.skip_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        if self.depth == MAX_DEPTH {
            return Err(WordError::TooDeep);
        }
        self.depth += 1;
        let value = self.braces(raw_escapes)?;
        self.depth -= 1;
        self.spend(value.len())?;
        Ok(value)
    }

    /// Expands what stands behind `${`.
    fn braces(&mut self, raw_escapes: bool) -> Result<String, WordError> {
        match self.letters.peek() {
            None => return Err(WordError::MissingBrace),
            Some('{' | '}' | ':') => return Err(WordError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        if name.is_empty() {
            return Err(WordError::BadSubstitution);
        }
        let modifier = self.letters.next().ok_or(WordError::MissingBrace)?;
        match modifier {
            '}' => Ok(match self.value(&name)? {
                None if self.options.skip_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            ':' => {
                let modifier = self.letters.next().ok_or(WordError::MissingBrace)?;
                if !matches!(modifier, '-' | '+' | '?') {
                    return Err(WordError::Modifier(format!(":{}", shown(modifier))));
                }
                self.conditional(&name, modifier, true, raw_escapes)
            }
            '-' | '+' | '?' => self.conditional(&name, modifier, false, raw_escapes),
            '#' | '%' => self.trimmed(&name, modifier),
            '/' => self.replaced(&name),
            other => Err(WordError::Modifier(shown(other))),
        }
    }

    /// `${name-word}`, `${name+word}`, `${name?word}`, and the same with a colon, for which empty
    /// is as good as unset.
    fn conditional(
        &mut self,
        name: &str,
        modifier: char,
        colon: bool,
        raw_escapes: bool,
    ) -> Result<String, WordError> {
        let word = self.until(Some('}'), raw_escapes)?.text;
        let value = self.value(name)?;
        if value.is_none() && self.options.skip_unset {
            let colon = if colon { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let set = value.is_some();
        let value = value.filter(|value| !(colon && value.is_empty()));
        match (modifier, value) {
            ('-', value) => Ok(value.unwrap_or(word)),
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            (_, None) => {
                let message = match (word.is_empty(), set) {
                    (false, _) => word,
                    (true, true) => "is not allowed to be empty".to_owned(),
                    (true, false) => "is not allowed to be unset".to_owned(),
                };
                let name = name.to_owned();
                Err(WordError::Required { name, message })
            }
        }
    }

    /// `${name#pattern}`, `${name##pattern}`, `${name%pattern}`, `${name%%pattern}`.
    fn trimmed(&mut self, name: &str, modifier: char) -> Result<String, WordError> {
        let longest = self.letters.next_if_eq(modifier).is_some();
        let written = self.until(Some('}'), true)?.text;
        let Some(value) = self.value(name)? else {
            if self.options.skip_unset {
                let twice = if longest { 2 } else { 1 };
                let modifier = modifier.to_string().repeat(twice);
                return Ok(format!("${{{name}{modifier}{written}}}"));
            }
            pattern(&written)?;
            return Ok(String::new());
        };
        let pattern = pattern(&written)?;
        self.spend(pattern.work(&value))?;
        Ok(if modifier == '#' {
            pattern.without_prefix(&value, longest)
        } else {
            pattern.without_suffix(&value, longest)
        })
    }

    /// `${name/pattern/replacement}` and `${name//pattern/replacement}`.
    fn replaced(&mut self, name: &str) -> Result<String, WordError> {
        let all = self.letters.next_if_eq('/').is_some();
        let written = self.until(Some('/'), true)?.text;
        let replacement = self.until(Some('}'), true)?.text;
        let Some(value) = self.value(name)? else {
            if self.options.skip_unset {
                let slash = if all { "//" } else { "/" };
                return Ok(format!("${{{name}{slash}{written}/{replacement}}}"));
            }
            pattern(&written)?;
            return Ok(String::new());
        };
        let pattern = pattern(&written)?;
        self.spend(pattern.work(&value))?;
        pattern
            .replace(&value, &replacement, all, self.limit)
            .ok_or(WordError::TooLong(self.limit))
    }

    /// Takes the name of a variable: letters, digits and `_`; or digits alone; or one of the
    /// shell's special parameters (A5.7).
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.letters.peek() {
            Some(first) if first.is_ascii_digit() => {
                while let Some(digit) = self.letters.next_if(|c| c.is_ascii_digit()) {
                    name.push(digit);
                }
                return name;
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                name.extend(self.letters.next());
                return name;
            }
            _ => {}
        }
        while let Some(letter) = self
            .letters
            .next_if(|letter| LETTER(letter) || DECIMAL_NUMBER(letter) || letter == '_')
        {
            name.push(letter);
        }
        name
    }

    fn value(&mut self, name: &str) -> Result<Option<String>, WordError> {
        let value = (self.env)(name);
        self.spend(value.as_ref().map_or(0, String::len))?;
        let looked_up = match value {
            Some(_) => &mut self.matched,
            None => &mut self.unmatched,
        };
        if !looked_up.contains(name) {
            looked_up.insert(name.to_owned());
        }
        Ok(value)
    }

    fn spend(&mut self, work: usize) -> Result<(), WordError> {
        self.work = self.work.checked_sub(work).ok_or(WordError::TooMuch)?;
        Ok(())
    }
}

/// A character for a message: one that would break the line is spelt out.
fn shown(letter: char) -> String {
    if letter.is_control() {
        letter.escape_default().to_string()
    } else {
        letter.to_string()
    }
}

fn pattern(written: &str) -> Result<Pattern, WordError> {
    Pattern::parse(written).map_err(|source| WordError::Pattern {
        pattern: written.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
