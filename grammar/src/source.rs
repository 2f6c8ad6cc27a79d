//! Places in a Dockerfile, and its logical lines.
//!
//! The reader does what has to happen before any instruction can be parsed (A1): it drops the
//! byte-order mark, carriage returns, comments and blank lines, and joins continuation lines. Every
//! logical line knows the way back from its characters to the bytes of the file.

use std::ops::Range;

use crate::diagnostic::Diagnostic;

/// The longest physical line in bytes, its end not counted (A1.2).
pub const MAX_LINE: usize = 65_535;

/// A half-open range of byte offsets in the text of a Dockerfile, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// The span as a range of `usize`, for slicing the text.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The smallest span that holds both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    /// The span of a range of offsets. The parser refuses texts that offsets of 32 bits cannot
    /// reach, so nothing is lost there.
    pub(crate) fn from_range(range: Range<usize>) -> Self {
        Self {
            start: offset(range.start),
            end: offset(range.end),
        }
    }
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// A value and the place it was written at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// What was written.
    pub value: T,
    /// Where it was written.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Joins a value and its place.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// A line and a column, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line number, from 1.
    pub line: u32,
    /// Column number in characters, from 1.
    pub column: u32,
}

/// Gives line and column of a byte offset; an offset behind the text stands for its end.
#[must_use]
pub fn position(text: &str, at: u32) -> Position {
    let before = &text[..text.floor_char_boundary(at as usize)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = strip_bom(&before[line_start..]).chars().count() + 1;
    Position {
        line: offset(line),
        column: offset(column),
    }
}

/// Collects the comment lines directly above an instruction, without their `#` and blanks, first
/// to last (A1.12, A2.8). A blank line or an instruction ends the search.
#[must_use]
pub fn comments_above(text: &str, at: u32) -> Vec<Spanned<String>> {
    let mut end = text[..text.floor_char_boundary(at as usize)]
        .rfind('\n')
        .unwrap_or(0);
    let mut comments = Vec::new();
    while end > 0 {
        let start = text[..end].rfind('\n').map_or(0, |newline| newline + 1);
        let line = strip_bom(&text[start..end]).trim();
        let Some(comment) = line.strip_prefix('#') else {
            break;
        };
        let comment = comment.trim();
        let span = Span::from_range(start..end);
        comments.push(Spanned::new(comment.to_owned(), span));
        end = start.saturating_sub(1);
    }
    comments.reverse();
    comments
}

fn strip_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// A line of the file as it stands there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PhysicalLine<'t> {
    /// The line with its end.
    pub(crate) raw: &'t str,
    /// Offset of its first byte.
    pub(crate) start: usize,
}

impl<'t> PhysicalLine<'t> {
    /// The line without its end.
    pub(crate) fn content(&self) -> &'t str {
        self.raw.trim_end_matches(['\r', '\n'])
    }

    /// Where the line stands, without its end.
    pub(crate) fn span(&self) -> Span {
        Span::from_range(self.start..self.start + self.content().len())
    }
}

/// One instruction as one line.
#[derive(Clone, Debug)]
pub(crate) struct LogicalLine {
    /// The escape character, then the line: what the grammar reads.
    marked: String,
    /// Where pieces of `marked` come from: offset there, offset in the file; ascending.
    pieces: Vec<(usize, usize)>,
    /// Offset in the file where it starts; of interest where nothing else is in it.
    start: usize,
    /// Its first and last physical line, from 1; skipped comments and blank lines count.
    pub(crate) lines: (u32, u32),
    /// The blank line found inside, if any (A1.7).
    pub(crate) empty_continuation: Option<Span>,
}

impl LogicalLine {
    fn new(escape: char, start: usize, line: u32) -> Self {
        Self {
            marked: escape.to_string(),
            pieces: Vec::new(),
            start,
            lines: (line, line),
            empty_continuation: None,
        }
    }

    /// The line with the escape character before it.
    pub(crate) fn marked(&self) -> &str {
        &self.marked
    }

    /// The line itself.
    pub(crate) fn text(&self) -> &str {
        // Both escape characters are one byte.
        &self.marked[1..]
    }

    /// The rest of the line from an offset into [`Self::marked`], as a line of its own.
    pub(crate) fn tail(&self, from: usize) -> Self {
        let mut tail = Self {
            marked: self.marked[..1].to_owned(),
            pieces: Vec::new(),
            start: self.origin(from),
            lines: self.lines,
            empty_continuation: None,
        };
        tail.marked.push_str(&self.marked[from..]);
        tail.pieces.push((1, self.origin(from)));
        for &(logical, original) in self.pieces.iter().filter(|(logical, _)| *logical > from) {
            tail.pieces.push((logical - from + 1, original));
        }
        tail
    }

    fn push(&mut self, piece: &str, start: usize) {
        let kept = if self.marked.len() == 1 {
            piece.trim_start()
        } else {
            piece
        };
        if kept.is_empty() {
            return;
        }
        let start = start + piece.len() - kept.len();
        self.pieces.push((self.marked.len(), start));
        self.marked.push_str(kept);
    }

    /// Where a byte of [`Self::marked`] stands in the file.
    fn origin(&self, at: usize) -> usize {
        let piece = self.pieces.partition_point(|(logical, _)| *logical <= at);
        match piece
            .checked_sub(1)
            .and_then(|piece| self.pieces.get(piece))
        {
            Some((logical, original)) => original + (at - logical),
            None => self
                .pieces
                .first()
                .map_or(self.start, |(_, original)| *original),
        }
    }

    /// Where a range of [`Self::marked`] stands in the file.
    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        let start = self.origin(range.start);
        // The end belongs to the last byte: what follows may be on another line.
        let end = if range.is_empty() {
            start
        } else {
            self.origin(range.end - 1) + 1
        };
        Span::from_range(start..end.max(start))
    }

    /// Where the whole line stands in the file.
    pub(crate) fn whole(&self) -> Span {
        self.span(1..self.marked.len())
    }
}

/// Reads a Dockerfile line by line.
#[derive(Debug)]
pub(crate) struct Reader<'t> {
    text: &'t str,
    offset: usize,
    escape: char,
    /// Number of the last line read, from 1.
    line: u32,
}

impl<'t> Reader<'t> {
    /// Starts at the top of a text.
    pub(crate) fn new(text: &'t str, escape: char) -> Self {
        let offset = text.len() - strip_bom(text).len();
        Self {
            text,
            offset,
            escape,
            line: 0,
        }
    }

    /// Number of the last physical line read, from 1.
    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    /// Offset behind the last line read, its end not counted.
    pub(crate) fn end(&self) -> usize {
        self.text[..self.offset]
            .trim_end_matches(['\r', '\n'])
            .len()
    }

    /// Takes one line as it stands.
    ///
    /// # Errors
    ///
    /// The line is longer than [`MAX_LINE`].
    pub(crate) fn physical(&mut self) -> Result<Option<PhysicalLine<'t>>, Diagnostic> {
        let rest = &self.text[self.offset..];
        if rest.is_empty() {
            return Ok(None);
        }
        let length = rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        let line = PhysicalLine {
            raw: &rest[..length],
            start: self.offset,
        };
        self.offset += length;
        self.line += 1;
        if line.content().len() > MAX_LINE {
            let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
            return Err(Diagnostic::error(message, line.span()));
        }
        Ok(Some(line))
    }

    /// Takes one instruction: the next line that is neither blank nor a comment, and the lines
    /// that continue it (A1.3 to A1.8). A continuation at the end of the file that nothing came
    /// before is an instruction without a word.
    ///
    /// # Errors
    ///
    /// A line is longer than [`MAX_LINE`].
    pub(crate) fn logical(&mut self) -> Result<Option<LogicalLine>, Diagnostic> {
        while let Some(first) = self.physical()? {
            if is_comment(first.content()) {
                continue;
            }
            let (piece, mut continued) = self.split_continuation(first.content());
            let mut line = LogicalLine::new(self.escape, first.start, self.line);
            line.push(piece, first.start);
            let was_continued = continued;
            while continued {
                let Some(next) = self.physical()? else {
                    break;
                };
                let content = next.content();
                if is_comment(content) {
                    continue;
                }
                if content.trim().is_empty() {
                    line.empty_continuation.get_or_insert(next.span());
                    continue;
                }
                let piece;
                (piece, continued) = self.split_continuation(content);
                line.push(piece, next.start);
            }
            line.marked.truncate(line.marked.trim_end().len());
            line.lines.1 = self.line;
            if was_continued || !line.text().is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Cuts the continuation off a line: the escape character and the blanks behind it, unless the
    /// character before is the escape character too (A1.6).
    fn split_continuation<'l>(&self, line: &'l str) -> (&'l str, bool) {
        match line.trim_end_matches([' ', '\t']).strip_suffix(self.escape) {
            Some(before) if !before.ends_with(self.escape) => (before, true),
            _ => (line, false),
        }
    }

    /// Takes the body of a heredoc as it stands, and the line that ends it; `None` if no line does
    /// (A13.3). With the body comes where each of its lines starts, behind the tabs that `chomp`
    /// does not count.
    ///
    /// # Errors
    ///
    /// A line is longer than [`MAX_LINE`].
    pub(crate) fn heredoc(
        &mut self,
        name: &str,
        chomp: bool,
    ) -> Result<Option<(String, Vec<u32>)>, Diagnostic> {
        let mut body = String::new();
        let mut starts = Vec::new();
        while let Some(line) = self.physical()? {
            let content = if chomp {
                line.content().trim_start_matches('\t')
            } else {
                line.content()
            };
            if content == name {
                return Ok(Some((body, starts)));
            }
            let tabs = line.content().len() - content.len();
            starts.push(offset(line.start + tabs));
            body.push_str(line.raw);
        }
        Ok(None)
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, escape: char) -> Vec<String> {
        let mut reader = Reader::new(text, escape);
        let mut lines = Vec::new();
        while let Some(line) = reader.logical().unwrap() {
            lines.push(line.text().to_owned());
        }
        lines
    }

    #[test]
    fn joins_lines_as_a1_says() {
        assert_eq!(lines("RUN a \\\n  b\n", '\\'), ["RUN a   b"]);
        assert_eq!(lines("RUN a\\ \t\r\nb\r\n", '\\'), ["RUN ab"]);
        assert_eq!(lines("RUN a \\\n# no\n\n  # no\nb", '\\'), ["RUN a b"]);
        assert_eq!(lines("RUN a \\\\\nRUN b", '\\'), ["RUN a \\\\", "RUN b"]);
        assert_eq!(
            lines("RUN a \\\\\\\nRUN b", '\\'),
            ["RUN a \\\\\\", "RUN b"]
        );
        assert_eq!(lines("\\\n  RUN a \\", '\\'), ["RUN a"]);
        assert_eq!(lines("RUN a \\\nRUN b`\n c", '`'), ["RUN a \\", "RUN b c"]);
        assert_eq!(
            lines("\u{feff}FROM a\n\n\t FROM b\n", '\\'),
            ["FROM a", "FROM b"]
        );
        assert_eq!(lines("FROM a\n\\\n\\\n", '\\'), ["FROM a", ""]);
        assert_eq!(lines("\\\n# c\n\nFROM a\n", '\\'), ["FROM a"]);
    }

    #[test]
    fn leads_back_to_the_file() {
        let text = "# x\nRUN one \\\n# c\n  two\n";
        let line = Reader::new(text, '\\').logical().unwrap().unwrap();
        let at = line.marked().find("two").unwrap();
        assert_eq!(&text[line.span(at..at + 3).range()], "two");
        assert_eq!(&text[line.span(1..4).range()], "RUN");
        assert_eq!(&text[line.whole().range()], "RUN one \\\n# c\n  two");
        let tail = line.tail(5);
        let at = tail.marked().find("two").unwrap();
        assert_eq!(&text[tail.span(at..at + 3).range()], "two");
        assert_eq!(&text[tail.span(1..4).range()], "one");
    }

    #[test]
    fn counts_lines_and_characters() {
        let text = "\u{feff}aé\nbüc\n";
        let at = |needle| position(text, offset(text.find(needle).unwrap()));
        assert_eq!(at("é"), Position { line: 1, column: 2 });
        assert_eq!(at("c"), Position { line: 2, column: 3 });
        assert_eq!(position(text, 999), Position { line: 3, column: 1 });
    }

    #[test]
    fn finds_comments_above() {
        let text = "# gone\n\n# one\n  #two \nFROM a\n";
        let at = offset(text.find("FROM").unwrap());
        let comments: Vec<_> = comments_above(text, at)
            .into_iter()
            .map(|comment| comment.value)
            .collect();
        assert_eq!(comments, ["one", "two"]);
        assert!(comments_above(text, 0).is_empty());
    }

    #[test]
    fn refuses_a_line_that_is_too_long() {
        let text = format!("RUN {}\n", "x".repeat(MAX_LINE));
        let refused = Reader::new(&text, '\\').logical().unwrap_err();
        assert!(refused.message.contains("65535"), "A1.2");
    }
}
