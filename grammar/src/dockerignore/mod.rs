//! Ignore files and `COPY --exclude` (A14): which paths of a tree are left out.
//!
//! The language looks like `.gitignore` and is another: patterns are anchored at the root, `**` is
//! any number of directories, and the last pattern that matches a path *or one of its parents*
//! decides. Paths are relative, with `/` between names and none at the end; they are bytes, since
//! a file need not have a name in UTF-8.

use std::sync::OnceLock;

use regex::{Regex, RegexBuilder};

use crate::diagnostic::shorten;
use crate::glob::{self, Class, Letter, Token};

/// Most patterns in one file.
pub const MAX_PATTERNS: usize = 10_000;

/// Longest pattern in bytes.
pub const MAX_PATTERN: usize = 4096;

/// What can be wrong with an ignore file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IgnoreError {
    /// A `!` with nothing behind it.
    #[error("illegal exclusion pattern: \"!\" (line {line})")]
    Empty {
        /// Line number, from 1.
        line: usize,
    },
    /// A pattern with a broken class or escape.
    #[error("syntax error in pattern `{pattern}` (line {line})")]
    Syntax {
        /// Line number, from 1.
        line: usize,
        /// The pattern as written.
        pattern: String,
    },
    /// A pattern longer than [`MAX_PATTERN`].
    #[error("the pattern in line {line} is longer than {MAX_PATTERN} bytes")]
    TooLong {
        /// Line number, from 1.
        line: usize,
    },
    /// More than [`MAX_PATTERNS`] patterns.
    #[error("more than {MAX_PATTERNS} patterns")]
    TooMany,
}

/// One pattern.
#[derive(Debug)]
pub struct Pattern {
    /// Line number in its file, or place in its list, from 1.
    pub line: usize,
    /// The pattern, cleaned, without its `!`.
    pub text: String,
    /// Whether it takes paths back: it was written with `!`.
    pub negated: bool,
    tokens: Vec<Token>,
    test: Test,
}

/// How a path is tested; the shapes that need no regular expression are the common ones.
#[derive(Debug)]
enum Test {
    Exact,
    /// `prefix**`
    Prefix(String),
    /// `**suffix`
    Suffix(String),
    /// Compiled when it is first asked.
    Regex(OnceLock<Option<Regex>>),
}

/// The patterns of an ignore file, or of `COPY --exclude`.
#[derive(Debug, Default)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
}

/// The patterns of `COPY --exclude`: the same language, one pattern for each flag (A11.11).
#[derive(Debug, Default)]
pub struct ExcludePatterns {
    list: IgnoreFile,
}

/// Which patterns match a directory or one of its parents: what its children inherit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchState {
    matched: Vec<u64>,
}

impl MatchState {
    fn has(&self, index: usize) -> bool {
        self.matched
            .get(index / 64)
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    fn set(&mut self, index: usize) {
        if let Some(word) = self.matched.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }
}

/// What the patterns say of one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the path is left out.
    pub excluded: bool,
    /// The pattern that decided, an index into [`IgnoreFile::patterns`]; `None` if none matches.
    pub decided_by: Option<usize>,
}

impl IgnoreFile {
    /// Parses the text of an ignore file (A14.2).
    ///
    /// # Errors
    ///
    /// A pattern is malformed.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        Self::collect(lines(text))
    }

    /// Cleans the lines of an ignore file (A14.2) and checks nothing: a `!` with nothing behind it
    /// stays one.
    #[must_use]
    pub fn clean_lines(text: &str) -> Vec<String> {
        let lines = lines(text).map(|(_, line)| line.trim());
        lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (negated, text) = normal_form(line);
                format!("{}{text}", if negated { "!" } else { "" })
            })
            .collect()
    }

    /// Takes patterns one by one, as lines of a file are after trimming. There are no comments.
    ///
    /// # Errors
    ///
    /// A pattern is malformed.
    pub fn from_patterns<S: AsRef<str>>(patterns: &[S]) -> Result<Self, IgnoreError> {
        let lines = patterns.iter().enumerate();
        Self::collect(lines.map(|(index, pattern)| (index + 1, pattern.as_ref())))
    }

    fn collect<'t>(lines: impl Iterator<Item = (usize, &'t str)>) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        for (line, text) in lines {
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            if patterns.len() == MAX_PATTERNS {
                return Err(IgnoreError::TooMany);
            }
            patterns.push(Pattern::parse(line, text)?);
        }
        Ok(Self { patterns })
    }

    /// The patterns in the order of the file.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a path is excluded: the last pattern that matches it or one of its parents decides
    /// (A14.4). A walk asks [`Self::enter`] instead, which remembers the parents.
    #[must_use]
    pub fn excludes(&self, path: &str) -> bool {
        self.verdict(path.as_bytes()).excluded
    }

    /// The same with the pattern that decided.
    #[must_use]
    pub fn verdict(&self, path: &[u8]) -> Verdict {
        if path.is_empty() || path == b"." {
            return Verdict::default();
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let parents = slashes.map(|(at, _)| &path[..at]);
        let paths: Vec<String> = parents.chain([path]).map(readable).collect();
        self.decide(|pattern| paths.iter().any(|path| pattern.matches(path)))
    }

    /// Whether the patterns exclude a text that need not be a path of a tree: it may end in a slash,
    /// begin with one, be `.` or empty. The text itself is asked for as it is, then the cleaned
    /// parents.
    #[must_use]
    pub fn excludes_text(&self, text: &str) -> bool {
        let folder = clean(
            text.rsplit_once('/')
                .map_or("", |(_, name)| text.strip_suffix(name).unwrap_or_default()),
        );
        let parents = match folder.as_str() {
            "." => Vec::new(),
            folder => {
                let ends = folder.match_indices('/').map(|(at, _)| at);
                ends.chain([folder.len()])
                    .map(|end| &folder[..end])
                    .collect()
            }
        };
        let matches = |pattern: &Pattern| {
            pattern.matches(text) || parents.iter().any(|parent| pattern.matches(parent))
        };
        self.decide(matches).excluded
    }

    /// What holds for the root of a walk: nothing matches it.
    #[must_use]
    pub fn root_state(&self) -> MatchState {
        MatchState {
            matched: vec![0; self.patterns.len().div_ceil(64)],
        }
    }

    /// Judges a directory in a walk: what its children inherit, and whether it is excluded itself.
    /// An excluded directory is still entered if [`Self::may_include_below`] says so.
    #[must_use]
    pub fn enter(&self, parent: &MatchState, path: &[u8]) -> (MatchState, Verdict) {
        let mut state = parent.clone();
        let path = readable(path);
        for (index, pattern) in self.patterns.iter().enumerate() {
            if !parent.has(index) && pattern.matches(&path) {
                state.set(index);
            }
        }
        let index = (0..self.patterns.len())
            .rev()
            .find(|index| state.has(*index));
        let verdict = self.verdict_of(index);
        (state, verdict)
    }

    /// Judges what is no directory in a walk: it asks no more patterns than it needs.
    #[must_use]
    pub fn check(&self, parent: &MatchState, path: &[u8]) -> Verdict {
        let path = readable(path);
        let mut indexes = (0..self.patterns.len()).rev();
        let index =
            indexes.find(|index| parent.has(*index) || self.patterns[*index].matches(&path));
        self.verdict_of(index)
    }

    fn decide(&self, matches: impl Fn(&Pattern) -> bool) -> Verdict {
        self.verdict_of(self.patterns.iter().rposition(matches))
    }

    fn verdict_of(&self, index: Option<usize>) -> Verdict {
        let pattern = index.and_then(|index| self.patterns.get(index));
        Verdict {
            excluded: pattern.is_some_and(|pattern| !pattern.negated),
            decided_by: index,
        }
    }

    /// Whether a pattern with `!` could take back something below an excluded directory. It may
    /// say yes in vain, never no in vain.
    #[must_use]
    pub fn may_include_below(&self, path: &[u8]) -> bool {
        let negated = self.patterns.iter().filter(|pattern| pattern.negated);
        negated
            .into_iter()
            .any(|pattern| pattern.may_match_below(path))
    }
}

impl ExcludePatterns {
    /// Takes the values of the `--exclude` flags.
    ///
    /// # Errors
    ///
    /// A pattern is malformed.
    pub fn parse(patterns: &[String]) -> Result<Self, IgnoreError> {
        let list = IgnoreFile::from_patterns(patterns)?;
        Ok(Self { list })
    }

    /// The patterns as a list to ask.
    #[must_use]
    pub fn list(&self) -> &IgnoreFile {
        &self.list
    }
}

/// A path as characters; a byte that belongs to none becomes the replacement character, which
/// only wildcards match.
fn readable(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(path) => path.to_owned(),
        Err(_) => glob::letters(path)
            .into_iter()
            .map(|letter| match letter {
                Letter::Char(letter) => letter,
                Letter::Byte(_) => char::REPLACEMENT_CHARACTER,
            })
            .collect(),
    }
}

/// Shortens a path as Go's `path.Clean` does: no empty names, no `.`, and `..` takes the name
/// before it away. At the root there is nothing to take.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => {
                names.pop();
            }
            ".." if rooted => {}
            name => names.push(name),
        }
    }
    let joined = names.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The lines of an ignore file that are no comments, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.starts_with('#'));
    lines.map(|(index, line)| (index + 1, line))
}

/// Whether a trimmed line begins with `!`, and what is left of it, cleaned.
fn normal_form(line: &str) -> (bool, String) {
    let (negated, rest) = match line.strip_prefix('!') {
        Some(rest) => (true, rest.trim()),
        None => (false, line),
    };
    if rest.is_empty() {
        return (negated, String::new());
    }
    let cleaned = clean(rest);
    match cleaned.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => (negated, relative.to_owned()),
        _ => (negated, cleaned),
    }
}

impl Pattern {
    fn parse(line: usize, written: &str) -> Result<Self, IgnoreError> {
        if written.len() > MAX_PATTERN {
            return Err(IgnoreError::TooLong { line });
        }
        let (negated, text) = normal_form(written);
        if text.is_empty() {
            return Err(IgnoreError::Empty { line });
        }
        let malformed = || IgnoreError::Syntax {
            line,
            pattern: shorten(written),
        };
        let tokens = glob::parse(text.as_bytes()).map_err(|_| malformed())?;
        let readable = tokens.iter().all(|token| match token {
            Token::Letter {
                letter: Letter::Char(letter),
                escaped: true,
            } => escape_means(*letter).is_some(),
            Token::Class(class) => class.ranges.iter().all(|(low, high)| low <= high),
            _ => true,
        });
        if !readable {
            return Err(malformed());
        }
        Ok(Self {
            line,
            test: Test::new(&text, &tokens),
            text,
            negated,
            tokens,
        })
    }

    fn matches(&self, path: &str) -> bool {
        match &self.test {
            Test::Exact => path == self.text,
            Test::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Test::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path)
            }
            Test::Regex(cell) => cell
                .get_or_init(|| {
                    RegexBuilder::new(&regex_source(&self.tokens))
                        .dot_matches_new_line(true)
                        .size_limit(4 << 20)
                        .build()
                        .ok()
                })
                .as_ref()
                .is_some_and(|regex| regex.is_match(path)),
        }
    }

    /// Compares the names of a directory with those of the pattern, up to the first `**`.
    fn may_match_below(&self, path: &[u8]) -> bool {
        let mut names = path.split(|byte| *byte == b'/');
        for part in self.text.split('/') {
            let Some(name) = names.next() else {
                return true;
            };
            // `**` crosses directories, a class can match a slash.
            if part.contains("**") || part.contains(['[', '\\']) {
                return true;
            }
            if !glob::matches(part.as_bytes(), name).unwrap_or(true) {
                return false;
            }
        }
        false
    }
}

/// What an escaped character stands for in a regular expression. Letters and digits that mean
/// nothing there make the pattern malformed.
fn escape_means(letter: char) -> Option<String> {
    Some(match letter {
        'd' => "[0-9]".to_owned(),
        'D' => "[^0-9]".to_owned(),
        's' => r"[\t\n\x0C\r ]".to_owned(),
        'S' => r"[^\t\n\x0C\r ]".to_owned(),
        'w' => "[0-9A-Za-z_]".to_owned(),
        'W' => "[^0-9A-Za-z_]".to_owned(),
        'a' => r"\x07".to_owned(),
        'f' => r"\x0C".to_owned(),
        'n' => r"\n".to_owned(),
        'r' => r"\r".to_owned(),
        't' => r"\t".to_owned(),
        'v' => r"\x0B".to_owned(),
        letter if letter.is_ascii_alphanumeric() => return None,
        letter => regex::escape(letter.encode_utf8(&mut [0; 4])),
    })
}

impl Test {
    /// Finds the cheapest test. The shapes follow the matcher that docker uses, oddities kept: a
    /// leading `**` with plain text behind it is a suffix even without a slash (`**foo` matches
    /// `afoo`), and `a**` is the prefix `a`.
    fn new(text: &str, tokens: &[Token]) -> Self {
        let plain = |tokens: &[Token]| {
            tokens
                .iter()
                .all(|token| matches!(token, Token::Letter { letter, escaped: false } if *letter != Letter::Char(']')))
        };
        if plain(tokens) {
            return Self::Exact;
        }
        if let [Token::Run, Token::Run, rest @ ..] = tokens {
            if plain(rest) {
                return Self::Suffix(text[2..].to_owned());
            }
        } else if let [rest @ .., Token::Run, Token::Run] = tokens
            && plain(rest)
        {
            return Self::Prefix(text[..text.len() - 2].to_owned());
        }
        Self::Regex(OnceLock::new())
    }
}

fn regex_source(tokens: &[Token]) -> String {
    let mut source = "^".to_owned();
    let mut rest = tokens;
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            Token::Run => {
                let [Token::Run, after @ ..] = rest else {
                    source.push_str("[^/]*");
                    continue;
                };
                rest = after;
                // `**/` is as good as `**`.
                if let [
                    Token::Letter {
                        letter: Letter::Char('/'),
                        escaped: false,
                    },
                    after @ ..,
                ] = rest
                {
                    rest = after;
                }
                source.push_str(if rest.is_empty() { ".*" } else { "(?:.*/)?" });
            }
            Token::One => source.push_str("[^/]"),
            Token::Class(class) => push_class(&mut source, class),
            Token::Letter {
                letter: Letter::Char(letter),
                escaped: true,
            } => {
                source.extend(escape_means(*letter));
            }
            Token::Letter { letter, .. } => push_letter(&mut source, *letter),
        }
    }
    source.push('$');
    source
}

fn push_letter(source: &mut String, letter: Letter) {
    let letter = match letter {
        Letter::Char(letter) => letter,
        Letter::Byte(_) => char::REPLACEMENT_CHARACTER,
    };
    source.push_str(&format!("\\x{{{:X}}}", u32::from(letter)));
}

fn push_class(source: &mut String, class: &Class) {
    source.push_str(if class.negated { "[^" } else { "[" });
    for (low, high) in &class.ranges {
        push_letter(source, *low);
        source.push('-');
        push_letter(source, *high);
    }
    source.push(']');
}

#[cfg(test)]
mod tests;
