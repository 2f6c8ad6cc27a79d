//! Text to nodes: words, flags, JSON forms and heredocs, before anything is known of what an
//! instruction means.
//!
//! This is the only file that sees the rules of `dockerfile.pest`. The line's joints and the
//! escape character are settled before ([`crate::source`]); the meaning comes after
//! ([`crate::parse()`]).

use pest::Parser as _;
use pest::iterators::Pair;
use serde::de::IgnoredAny;

use crate::ast::{Directives, Heredoc, Word};
use crate::diagnostic::{Diagnostic, shorten};
use crate::directive;
pub use crate::directive::Foreign;
use crate::source::{LogicalLine, Reader, Span, Spanned};

/// The largest Dockerfile in bytes.
pub const MAX_SIZE: usize = 16 << 20;

/// How many mistakes are reported before parsing ends.
pub const MAX_ERRORS: usize = 20;

/// How deep `ONBUILD ONBUILD ...` is followed; all of it is refused later.
const MAX_DEPTH: usize = 8;

/// What pest makes of the grammar; nothing of it is public.
mod grammar {
    #[derive(pest_derive::Parser)]
    #[grammar = "dockerfile.pest"]
    pub(super) struct Grammar;
}

use grammar::{Grammar, Rule};

/// A Dockerfile as nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// The parser directives (A2).
    pub directives: Directives,
    /// The instructions in the order of the file.
    pub nodes: Vec<Node>,
    /// Another frontend that the file asks for in a form that makes it no Dockerfile (A2.4).
    pub foreign: Option<Foreign>,
    /// Empty continuation lines (A1.7).
    pub warnings: Vec<Diagnostic>,
    /// What could not be read; nodes around it are still there.
    pub errors: Vec<Diagnostic>,
}

/// One instruction, known or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The keyword as written.
    pub keyword: Spanned<String>,
    /// Its flags.
    pub flags: Vec<Flag>,
    /// The arguments as written, quotes kept, cut as the instruction cuts them (A3): the items of a
    /// JSON array; one string for texts and shell forms; `name`, `value`, `=` for each pair of `ENV`
    /// and `LABEL` (the last one empty for the old form); the type, then the command, of
    /// `HEALTHCHECK`; nothing for `ONBUILD`.
    pub args: Vec<Word>,
    /// Whether the arguments are a JSON array.
    pub json: bool,
    /// The logical line.
    pub text: String,
    /// From the keyword to the end, heredoc bodies included.
    pub span: Span,
    /// The first and the last line it takes in the file, from 1, with the comments and blank lines
    /// that its continuations skip and the lines that end its heredocs; the instruction behind
    /// `ONBUILD` has those of the whole.
    pub lines: (u32, u32),
    /// Heredocs in order of appearance, their bodies as they stand in the file, tabs and all; those
    /// of an `ONBUILD` belong to the instruction behind it.
    pub heredocs: Vec<Heredoc>,
    /// The instruction behind `ONBUILD`.
    pub sub: Option<Box<Self>>,
}

/// A flag with its quotes and escapes resolved (A4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The name without its dashes.
    pub name: String,
    /// What stands behind `=`.
    pub value: Option<Word>,
    /// The whole flag.
    pub span: Span,
}

/// Parses a text into nodes.
///
/// # Errors
///
/// Mistakes in the directives or a text larger than [`MAX_SIZE`]; mistakes in single instructions
/// are in [`Syntax::errors`].
pub fn parse(text: &str) -> Result<Syntax, Diagnostic> {
    check_size(text)?;
    let directives = directive::parse(text)?;
    let escape = directives.escape;
    let foreign = match directives.syntax {
        Some(_) => None,
        None => directive::foreign(text),
    };
    let mut syntax = read_nodes(directives, Reader::new(text, escape));
    syntax.foreign = foreign;
    Ok(syntax)
}

/// Parses the text of a trigger into nodes; it has no directives.
pub(crate) fn parse_trigger(text: &str, escape: char) -> Result<Syntax, Diagnostic> {
    check_size(text)?;
    let directives = Directives {
        escape,
        syntax: None,
        check: None,
    };
    Ok(read_nodes(directives, Reader::new(text, escape)))
}

fn check_size(text: &str) -> Result<(), Diagnostic> {
    if text.len() > MAX_SIZE {
        let message = format!("the Dockerfile is larger than {MAX_SIZE} bytes");
        return Err(Diagnostic::error(message, Span::default()));
    }
    Ok(())
}

fn read_nodes(directives: Directives, mut reader: Reader<'_>) -> Syntax {
    let mut syntax = Syntax {
        directives,
        nodes: Vec::new(),
        foreign: None,
        warnings: Vec::new(),
        errors: Vec::new(),
    };
    while syntax.errors.len() < MAX_ERRORS {
        match reader.logical() {
            Ok(Some(line)) => read_node(&line, &mut reader, &mut syntax),
            Ok(None) => break,
            Err(error) => {
                syntax.errors.push(error);
                break;
            }
        }
    }
    syntax
}

fn read_node(line: &LogicalLine, reader: &mut Reader<'_>, syntax: &mut Syntax) {
    syntax.warnings.extend(empty_continuation(line));
    let mut node = match node(line, 0) {
        Ok(node) => node,
        Err(error) => return syntax.errors.push(error),
    };
    if let Err(error) = read_heredocs(reader, &mut node) {
        return syntax.errors.push(error);
    }
    syntax.nodes.push(node);
}

/// Warns once of all blank lines in an instruction (A1.7).
fn empty_continuation(line: &LogicalLine) -> Option<Diagnostic> {
    let first = line.empty_continuations.first()?;
    let joined = line.joined.as_deref().unwrap_or_default();
    let message = format!("Empty continuation line found in: {joined}");
    let place = Span {
        end: first.start,
        ..*first
    };
    let warning = Diagnostic::warning("NoEmptyContinuation", message, place)
        .with_hint("remove the blank line, or the continuation before it");
    let blanks = line.empty_continuations.iter();
    Some(blanks.fold(warning, |warning, blank| warning.with_edit(*blank, "")))
}

/// Parses one line.
fn node(line: &LogicalLine, depth: usize) -> Result<Node, Diagnostic> {
    let mut node = Node {
        keyword: Spanned::new(String::new(), line.whole()),
        flags: Vec::new(),
        args: Vec::new(),
        json: false,
        text: line.text().to_owned(),
        span: line.whole(),
        lines: line.lines,
        heredocs: Vec::new(),
        sub: None,
    };
    if line.text().is_empty() {
        return Ok(node);
    }
    let pairs = Grammar::parse(Rule::instruction, line.marked())
        .map_err(|_| Diagnostic::error("cannot parse this line", line.whole()))?;
    // Where the arguments start.
    let mut start = line.marked().len();
    for pair in pairs.flat_map(Pair::into_inner) {
        if !matches!(pair.as_rule(), Rule::keyword | Rule::flag | Rule::EOI) {
            start = start.min(pair.as_span().start());
        }
        match pair.as_rule() {
            Rule::keyword => node.keyword = word(line, &pair),
            Rule::flag => node.flags.push(flag(line, &pair)),
            Rule::exec => exec(line, pair, &mut node),
            Rule::text => text(line, &pair, &mut node, depth)?,
            Rule::check_type | Rule::word | Rule::token => node.args.push(word(line, &pair)),
            _ => {}
        }
    }
    match keyword(&node) {
        "env" | "label" => node.args = key_values(line, &node, start)?,
        "copy" | "add" | "volume" if !node.json => {
            let rest = start..line.marked().len();
            refuse_array(&line.marked()[rest.clone()], line.span(rest))?;
        }
        _ => {}
    }
    // What `ONBUILD ONBUILD` holds is refused anyhow.
    if depth <= 1 && matches!(keyword(&node), "run" | "copy" | "add") && !node.json {
        node.heredocs = redirections(line, start);
    }
    Ok(node)
}

/// The keyword in lower case, if it is one.
pub(crate) fn keyword(node: &Node) -> &'static str {
    KEYWORDS
        .iter()
        .copied()
        .find(|known| known.eq_ignore_ascii_case(&node.keyword.value))
        .unwrap_or_default()
}

/// All instructions, in lower case.
pub const KEYWORDS: [&str; 18] = [
    "add",
    "arg",
    "cmd",
    "copy",
    "entrypoint",
    "env",
    "expose",
    "from",
    "healthcheck",
    "label",
    "maintainer",
    "onbuild",
    "run",
    "shell",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

fn word(line: &LogicalLine, pair: &Pair<'_, Rule>) -> Word {
    let span = pair.as_span();
    Spanned::new(
        pair.as_str().to_owned(),
        line.span(span.start()..span.end()),
    )
}

/// Resolves the quotes and escapes of a flag and splits it at its `=`.
fn flag(line: &LogicalLine, pair: &Pair<'_, Rule>) -> Flag {
    let start = pair.as_span().start();
    let escape = line.marked().chars().next();
    let mut name = String::new();
    let mut value: Option<(usize, String)> = None;
    let mut quote = None;
    let mut letters = pair.as_str().char_indices().skip(2);
    while let Some((at, letter)) = letters.next() {
        let mut literal = letter;
        if quote == Some(letter) {
            quote = None;
            continue;
        } else if quote.is_none() && matches!(letter, '\'' | '"') {
            quote = Some(letter);
            continue;
        } else if Some(letter) == escape {
            match letters.next() {
                Some((_, escaped)) => literal = escaped,
                None => continue,
            }
        }
        match &mut value {
            Some((_, value)) => value.push(literal),
            None if literal == '=' => value = Some((start + at + 1, String::new())),
            None => name.push(literal),
        }
    }
    let end = pair.as_span().end();
    Flag {
        name,
        value: value.map(|(from, value)| Spanned::new(value, line.span(from..end))),
        span: line.span(start..end),
    }
}

/// Takes the items of a JSON array of strings.
fn exec(line: &LogicalLine, pair: Pair<'_, Rule>, node: &mut Node) {
    node.json = true;
    for item in pair.into_inner() {
        let span = item.as_span();
        let inside = item.as_str();
        let inside = inside.get(1..inside.len() - 1).unwrap_or_default();
        let value = unescape(inside);
        node.args
            .push(Spanned::new(value, line.span(span.start()..span.end())));
    }
}

/// Resolves the escapes of a JSON string whose form the grammar has checked. Half a surrogate pair
/// becomes the replacement character.
fn unescape(text: &str) -> String {
    let mut units: Vec<u16> = Vec::new();
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let unit = rest
            .strip_prefix("\\u")
            .and_then(|hex| u16::from_str_radix(hex.get(..4)?, 16).ok());
        if let Some(unit) = unit {
            units.push(unit);
            rest = rest.get(6..).unwrap_or_default();
            continue;
        }
        value.extend(char::decode_utf16(units.drain(..)).map(|unit| unit.unwrap_or('\u{fffd}')));
        rest = &rest[letter.len_utf8()..];
        if letter != '\\' {
            value.push(letter);
            continue;
        }
        let Some(escaped) = rest.chars().next() else {
            break;
        };
        rest = &rest[escaped.len_utf8()..];
        value.push(match escaped {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            other => other,
        });
    }
    value.extend(char::decode_utf16(units).map(|unit| unit.unwrap_or('\u{fffd}')));
    value
}

/// Takes an argument that is the whole rest of the line: a text, or the instruction behind
/// `ONBUILD`.
fn text(
    line: &LogicalLine,
    pair: &Pair<'_, Rule>,
    node: &mut Node,
    depth: usize,
) -> Result<(), Diagnostic> {
    match keyword(node) {
        "onbuild" if depth < MAX_DEPTH => {
            let tail = line.tail(pair.as_span().start());
            node.sub = Some(Box::new(self::node(&tail, depth + 1)?));
            return Ok(());
        }
        "run" | "cmd" | "entrypoint" | "shell" | "healthcheck" => {
            refuse_array(pair.as_str(), word(line, pair).span)?;
        }
        // An unknown instruction has no arguments.
        "" => return Ok(()),
        _ => {}
    }
    node.args.push(word(line, pair));
    Ok(())
}

/// Refuses a JSON array that holds other things than strings; what is no JSON at all is the shell
/// form, without a word (A3.1).
fn refuse_array(text: &str, span: Span) -> Result<(), Diagnostic> {
    if text.starts_with('[') && serde_json::from_str::<Vec<IgnoredAny>>(text).is_ok() {
        let message = "when using JSON array syntax, arrays must be comprised of strings only";
        return Err(Diagnostic::error(message, span).with_hint("put every item in double quotes"));
    }
    Ok(())
}

/// Splits the words of an `ENV` or `LABEL` into name, value and `=` (A3.5). Without a `=` in its
/// first word it is the old form: a name, and the rest of the line.
fn key_values(line: &LogicalLine, node: &Node, start: usize) -> Result<Vec<Word>, Diagnostic> {
    let Some(first) = node.args.first() else {
        return Ok(Vec::new());
    };
    if !first.value.contains('=') {
        return old_key_value(line, node, start);
    }
    let mut parts = Vec::with_capacity(3 * node.args.len());
    for word in &node.args {
        let Some((key, value)) = word.value.split_once('=') else {
            let message = format!(
                "Syntax error - can't find = in {:?}. Must be of the form: name=value",
                shorten(&word.value)
            );
            return Err(Diagnostic::error(message, word.span));
        };
        let [key_span, value_span] = split_span(word, key.len());
        parts.push(Spanned::new(key.to_owned(), key_span));
        parts.push(Spanned::new(value.to_owned(), value_span));
        parts.push(Spanned::new("=".to_owned(), value_span));
    }
    Ok(parts)
}

/// The places of both sides of a `=`; where a word goes over several lines they overlap.
pub(crate) fn split_span(word: &Word, at: usize) -> [Span; 2] {
    let Span { start, end } = word.span;
    let middle = Span::from_range(0..at).end;
    if (end - start) as usize == word.value.len() {
        return [
            Span {
                start,
                end: start + middle,
            },
            Span {
                start: start + middle + 1,
                end,
            },
        ];
    }
    [word.span, word.span]
}

/// Reads `name rest of the line`; blanks and quotes in the rest are part of the value.
fn old_key_value(line: &LogicalLine, node: &Node, start: usize) -> Result<Vec<Word>, Diagnostic> {
    let blanks = [' ', '\t', '\r', '\u{b}', '\u{c}'];
    let marked = line.marked();
    let Some((key, value)) = marked[start..].split_once(blanks) else {
        let name = node.keyword.value.to_uppercase();
        let span = line.span(start..marked.len());
        let message = format!("{name} must have two arguments");
        return Err(Diagnostic::error(message, span).with_hint(format!("write {name} name=value")));
    };
    let value = value.trim_start_matches(blanks);
    let value_span = line.span(marked.len() - value.len()..marked.len());
    Ok(vec![
        Spanned::new(key.to_owned(), line.span(start..start + key.len())),
        Spanned::new(value.to_owned(), value_span),
        Spanned::new(String::new(), value_span),
    ])
}

/// Reads the bodies of the heredocs that a line opens.
fn read_heredocs(reader: &mut Reader<'_>, node: &mut Node) -> Result<(), Diagnostic> {
    if let Some(sub) = &mut node.sub {
        read_heredocs(reader, sub)?;
        node.span = node.span.join(sub.span);
        node.lines.1 = sub.lines.1;
        return Ok(());
    }
    for heredoc in &mut node.heredocs {
        let Some(body) = reader.heredoc(&heredoc.name, heredoc.chomp)? else {
            let message = format!("unterminated heredoc `{}`", shorten(&heredoc.name));
            let hint = format!("end it with a line that is exactly {:?}", heredoc.name);
            return Err(Diagnostic::error(message, heredoc.span).with_hint(shorten(&hint)));
        };
        (heredoc.content, heredoc.lines) = body;
    }
    if !node.heredocs.is_empty() {
        let end = reader.end();
        node.span = node.span.join(Span::from_range(end..end));
        node.lines.1 = reader.line();
    }
    Ok(())
}

/// Finds the `<<NAME` words in the arguments of an instruction; the bodies are still empty.
fn redirections(line: &LogicalLine, start: usize) -> Vec<Heredoc> {
    let arguments = &line.marked()[start..];
    if !arguments.contains("<<") {
        return Vec::new();
    }
    let Ok(pairs) = Grammar::parse(Rule::redirections, arguments) else {
        return Vec::new();
    };
    let mut heredocs = Vec::new();
    let mut seen = 0;
    let mut open = 0_usize;
    for pair in pairs.flat_map(Pair::into_inner) {
        if pair.as_rule() != Rule::heredoc {
            continue;
        }
        let span = pair.as_span();
        // `<<` in an arithmetic expression shifts.
        let before = &arguments[seen..span.start()];
        open += before.matches("((").count();
        open = open.saturating_sub(before.matches("))").count());
        seen = span.start();
        if open == 0 {
            // Parentheses in the name of a heredoc open nothing.
            seen = span.end();
            let place = line.span(start + span.start()..start + span.end());
            heredocs.extend(heredoc(pair, place));
        }
    }
    heredocs
}

fn heredoc(pair: Pair<'_, Rule>, span: Span) -> Option<Heredoc> {
    let mut heredoc = Heredoc {
        name: String::new(),
        content: String::new(),
        expand: true,
        chomp: false,
        fd: 0,
        span,
        lines: Vec::new(),
    };
    // Not even quotes make it part of a word.
    let mut has_angle = false;
    for part in pair.into_inner() {
        match part.as_rule() {
            Rule::fd if !part.as_str().is_empty() => {
                heredoc.fd = part.as_str().parse().unwrap_or(u32::MAX);
            }
            Rule::chomp => heredoc.chomp = !part.as_str().is_empty(),
            Rule::delimiter => {
                has_angle = part.as_str().contains('<');
                (heredoc.name, heredoc.expand) = unquote(part.as_str());
            }
            _ => {}
        }
    }
    (!heredoc.name.is_empty() && !has_angle).then_some(heredoc)
}

/// Takes the quotes off the word of a heredoc, and says whether there were none (A13.2).
fn unquote(word: &str) -> (String, bool) {
    let mut name = String::with_capacity(word.len());
    let mut quote = None;
    let mut expand = true;
    let mut letters = word.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\'' | '"', None) => {
                quote = Some(letter);
                expand = false;
            }
            (_, Some(open)) if letter == open => quote = None,
            ('\\', None) => name.extend(letters.next()),
            ('\\', Some('"')) => match letters.next_if(|next| matches!(next, '"' | '$' | '\\')) {
                Some(escaped) => name.push(escaped),
                None => name.push('\\'),
            },
            _ => name.push(letter),
        }
    }
    (name, expand)
}
