//! Shell text to commands and words, as far as rules need it: a POSIX shell's quotes, operators,
//! comments, substitutions and heredocs, without any expansion. Every input is read in one pass;
//! what is no valid script gives some commands or other and never an error.

use std::ops::Range;

/// How deep `$(...)` is followed.
const MAX_DEPTH: u8 = 4;

/// A word of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// The word without its quotes; `$name` and `$(...)` stay as written.
    pub(super) value: String,
    /// Where it stands in the script, quotes included.
    pub(super) range: Range<usize>,
    /// Whether the shell expands something in it.
    pub(super) expands: bool,
}

/// What stands behind a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// `;`, `&`, the end of a line, or the end of the script.
    Sequence,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `|`
    Pipe,
    /// A parenthesis.
    Group,
}

/// A simple command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Its words; redirections are left out.
    pub(super) words: Vec<Word>,
    /// What stands behind it.
    pub(super) end: End,
    /// How many parentheses are open around it.
    pub(super) depth: usize,
    /// How many `$(...)` it stands in.
    pub(super) level: u8,
}

/// Cuts a part of a text into its commands. Those in `$(...)` come behind all others.
pub(super) fn split(text: &str, range: Range<usize>) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut waiting = vec![(range, 0)];
    while let Some((range, level)) = waiting.pop() {
        let mut splitter = Splitter::new(text, range, level);
        splitter.run();
        commands.append(&mut splitter.commands);
        if level < MAX_DEPTH {
            let inner = splitter.substitutions.into_iter().rev();
            waiting.extend(inner.map(|range| (range, level + 1)));
        }
    }
    commands
}

struct Splitter<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    level: u8,
    depth: usize,
    words: Vec<Word>,
    commands: Vec<Command>,
    substitutions: Vec<Range<usize>>,
    /// Heredocs whose bodies start on the next line: terminator, and whether tabs are cut.
    heredocs: Vec<(String, bool)>,
}

impl<'t> Splitter<'t> {
    fn new(text: &'t str, range: Range<usize>, level: u8) -> Self {
        let text = text.get(..range.end).unwrap_or_default();
        Self {
            text,
            bytes: text.as_bytes(),
            at: range.start,
            level,
            depth: 0,
            words: Vec::new(),
            commands: Vec::new(),
            substitutions: Vec::new(),
            heredocs: Vec::new(),
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn run(&mut self) {
        while let Some(byte) = self.peek(0) {
            match (byte, self.peek(1)) {
                (b'\\', Some(b'\n')) => self.at += 2,
                (b'\\', Some(b'\r')) if self.peek(2) == Some(b'\n') => self.at += 3,
                (b'\n', _) => {
                    self.finish(End::Sequence, 1);
                    self.skip_bodies();
                }
                (b'#', _) => self.at = find(self.bytes, self.at, b'\n'),
                (b'&', Some(b'&')) => self.finish(End::And, 2),
                (b'&', Some(b'>')) => self.at += 1,
                (b'&' | b';', _) => self.finish(End::Sequence, 1),
                (b'|', Some(b'|')) => self.finish(End::Or, 2),
                (b'|', Some(b'&')) => self.finish(End::Pipe, 2),
                (b'|', _) => self.finish(End::Pipe, 1),
                (b'(', _) => {
                    self.finish(End::Group, 1);
                    self.depth += 1;
                }
                (b')', _) => {
                    self.finish(End::Group, 1);
                    self.depth = self.depth.saturating_sub(1);
                }
                (b'<' | b'>', Some(b'(')) => {
                    let start = self.at + 2;
                    self.at = self.substitution(start);
                }
                (b'<' | b'>', _) => self.redirection(),
                (byte, _) if blank(byte) => self.at += 1,
                _ => {
                    let word = self.word();
                    let number = word.value.bytes().all(|byte| byte.is_ascii_digit());
                    let redirected = matches!(self.peek(0), Some(b'<' | b'>'));
                    if !(number && redirected) {
                        self.words.push(word);
                    }
                }
            }
        }
        self.finish(End::Sequence, 0);
    }

    /// Ends the current command at an operator of some bytes.
    fn finish(&mut self, end: End, length: usize) {
        self.at += length;
        if !self.words.is_empty() {
            self.commands.push(Command {
                words: std::mem::take(&mut self.words),
                end,
                depth: self.depth,
                level: self.level,
            });
        } else if let Some(last) = self.commands.last_mut()
            && last.end == End::Group
        {
            // An operator behind a parenthesis counts for what stands in it.
            last.end = end;
        }
    }

    /// Skips a redirection and the word it goes to; remembers a heredoc.
    fn redirection(&mut self) {
        let here = self.peek(0) == Some(b'<') && self.peek(1) == Some(b'<');
        let string = here && self.peek(2) == Some(b'<');
        let chomp = here && self.peek(2) == Some(b'-');
        while matches!(self.peek(0), Some(b'<' | b'>' | b'&' | b'|')) {
            self.at += 1;
        }
        self.at += usize::from(chomp);
        while matches!(self.peek(0), Some(b' ' | b'\t')) {
            self.at += 1;
        }
        let target = self.peek(0).is_some_and(|byte| !ends_word(byte));
        if target {
            let word = self.word();
            if here && !string {
                self.heredocs.push((word.value, chomp));
            }
        }
    }

    /// Skips the bodies of the heredocs that the line before opened.
    fn skip_bodies(&mut self) {
        for (name, chomp) in std::mem::take(&mut self.heredocs) {
            while self.at < self.bytes.len() {
                let end = find(self.bytes, self.at, b'\n');
                let line = self.text.get(self.at..end).unwrap_or_default();
                self.at = (end + 1).min(self.bytes.len());
                let line = line.trim_end_matches('\r');
                let line = if chomp {
                    line.trim_start_matches('\t')
                } else {
                    line
                };
                if line == name {
                    break;
                }
            }
        }
    }

    /// Reads a word up to the next blank or operator.
    fn word(&mut self) -> Word {
        let start = self.at;
        let mut value = Vec::new();
        let mut expands = false;
        let mut quoted = false;
        while let Some(byte) = self.peek(0) {
            match byte {
                b'\'' if !quoted => {
                    let end = find(self.bytes, self.at + 1, b'\'');
                    value.extend(self.bytes.get(self.at + 1..end).unwrap_or_default());
                    self.at = (end + 1).min(self.bytes.len());
                    continue;
                }
                b'"' => quoted = !quoted,
                b'\\' => {
                    let length = self.escape(quoted, &mut value);
                    self.at += length;
                    continue;
                }
                b'$' | b'`' => {
                    expands = true;
                    let from = self.at;
                    self.expansion();
                    value.extend(self.bytes.get(from..self.at).unwrap_or_default());
                    continue;
                }
                _ if !quoted && ends_word(byte) => break,
                _ => value.push(byte),
            }
            self.at += 1;
        }
        Word {
            // Whole characters were copied, so nothing is lost here.
            value: String::from_utf8_lossy(&value).into_owned(),
            range: start..self.at,
            expands,
        }
    }

    /// Copies what a backslash protects; gives the length of both.
    fn escape(&self, quoted: bool, value: &mut Vec<u8>) -> usize {
        match (self.peek(1), self.peek(2)) {
            (None, _) => 1,
            (Some(b'\n'), _) => 2,
            (Some(b'\r'), Some(b'\n')) => 3,
            (Some(next), _) => {
                if quoted && !matches!(next, b'"' | b'$' | b'`' | b'\\') {
                    value.push(b'\\');
                }
                let after = self.text.get(self.at + 1..).unwrap_or_default();
                let length = after.chars().next().map_or(1, char::len_utf8);
                let end = self.at + 1 + length;
                value.extend(self.bytes.get(self.at + 1..end).unwrap_or_default());
                1 + length
            }
        }
    }

    /// Moves behind the expansion that starts here.
    fn expansion(&mut self) {
        match (self.peek(0), self.peek(1)) {
            (Some(b'`'), _) => {
                let start = self.at + 1;
                let end = find(self.bytes, start, b'`');
                self.substitutions.push(start..end);
                self.at = (end + 1).min(self.bytes.len());
            }
            (_, Some(b'(')) => {
                let arithmetic = self.peek(2) == Some(b'(');
                let start = self.at + 2;
                self.at = self.substitution(start);
                if arithmetic {
                    self.substitutions.pop();
                }
            }
            (_, Some(b'{')) => {
                let end = self.closing(self.at + 2, b'}');
                self.at = end;
            }
            _ => self.at += 1,
        }
    }

    /// Remembers the commands of a `$(` that opened just before; gives the place behind it.
    fn substitution(&mut self, start: usize) -> usize {
        let end = self.closing(start, b')');
        let closed = self.bytes.get(end - 1) == Some(&b')') && end > start;
        self.substitutions.push(start..end - usize::from(closed));
        end
    }

    /// The place behind the bracket that closes one opened just before; the end, if none does.
    fn closing(&self, start: usize, bracket: u8) -> usize {
        let mut open = vec![bracket];
        let mut at = start;
        while let (Some(byte), Some(top)) = (self.bytes.get(at), open.last().copied()) {
            let next = self.bytes.get(at + 1);
            at += 1;
            match (*byte, next) {
                (b'\\', Some(_)) => at += 1,
                (b'"', _) if top == b'"' => drop(open.pop()),
                (b'"', _) => open.push(b'"'),
                (b'$', Some(b'(')) => {
                    open.push(b')');
                    at += 1;
                }
                (b'$', Some(b'{')) => {
                    open.push(b'}');
                    at += 1;
                }
                (b'\'', _) if top == b')' => at = find(self.bytes, at, b'\'') + 1,
                (b'(', _) if top == b')' => open.push(b')'),
                (byte, _) if byte == top => drop(open.pop()),
                _ => {}
            }
        }
        at.min(self.bytes.len())
    }
}

/// Where a byte stands from a place on; the end, if nowhere.
fn find(bytes: &[u8], from: usize, byte: u8) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let found = rest.iter().position(|other| *other == byte);
    found.map_or(bytes.len(), |at| from + at)
}

fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

fn ends_word(byte: u8) -> bool {
    blank(byte) || matches!(byte, b'\n' | b';' | b'&' | b'|' | b'(' | b')' | b'<' | b'>')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands of a script: words joined by blanks, then what stands behind.
    fn commands(text: &str) -> Vec<String> {
        let commands = split(text, 0..text.len());
        let show = |command: &Command| {
            let words: Vec<_> = command
                .words
                .iter()
                .map(|word| word.value.as_str())
                .collect();
            format!("{} {:?}", words.join(" "), command.end)
        };
        commands.iter().map(show).collect()
    }

    #[test]
    fn scripts_are_cut_at_operators() {
        for (text, expected) in [
            ("a b && c || d", &["a b And", "c Or", "d Sequence"][..]),
            (
                "a; b & c\nd |& e",
                &[
                    "a Sequence",
                    "b Sequence",
                    "c Sequence",
                    "d Pipe",
                    "e Sequence",
                ],
            ),
            ("a 'b; c' \"d && e\" f\\;g", &["a b; c d && e f;g Sequence"]),
            ("a # b; c\nd#e", &["a Sequence", "d#e Sequence"]),
            ("a >/dev/null 2>&1 <in && b", &["a And", "b Sequence"]),
            (
                "(cd x && make) | tee",
                &["cd x And", "make Pipe", "tee Sequence"],
            ),
            ("a \\\n  b\\\nc", &["a bc Sequence"]),
            (
                "a $(b \")\" | c) d",
                &["a $(b \")\" | c) d Sequence", "b ) Pipe", "c Sequence"],
            ),
            (
                "a \"$(b \"$(c \"d\")\")\"",
                &[
                    "a $(b \"$(c \"d\")\") Sequence",
                    "b $(c \"d\") Sequence",
                    "c d Sequence",
                ],
            ),
            ("a `b c`", &["a `b c` Sequence", "b c Sequence"]),
            (
                "a $((1 + 2)) ${b:-\"}\"}; c",
                &["a $((1 + 2)) ${b:-\"}\"} Sequence", "c Sequence"],
            ),
            (
                "cat <<X >f\nin; side\nX\nb",
                &["cat Sequence", "b Sequence"],
            ),
            ("cat <<-'X'\n\tin\n\tX\nb", &["cat Sequence", "b Sequence"]),
            ("cat <<< a; b", &["cat Sequence", "b Sequence"]),
            ("a 'b", &["a b Sequence"]),
            ("a $(b", &["a $(b Sequence", "b Sequence"]),
            ("", &[]),
        ] {
            assert_eq!(commands(text), expected, "{text:?}");
        }
    }
}
