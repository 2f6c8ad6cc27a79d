//! Excerpts of a Dockerfile with what is to be said about a place in it.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use kiln_builder::pipeline::Source;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::lint;
use kiln_grammar::source::{Lines, Position, Span};

use super::text;

/// Lines of an instruction that are shown at most.
const LINES: usize = 12;

/// Warnings that are shown at most; the number of all is told.
const SHOWN: usize = 1000;

/// A Dockerfile whose lines are found once for all that is said about it.
pub(crate) struct Excerpts<'a> {
    source: &'a Source,
    lines: Lines<'a>,
}

impl<'a> Excerpts<'a> {
    pub(crate) fn of(source: &'a Source) -> Self {
        Self {
            source,
            lines: Lines::new(&source.text),
        }
    }

    /// Line and column of an offset.
    pub(crate) fn position(&self, at: u32) -> Position {
        self.lines.position(at)
    }

    /// Errors, one after the other; the last line tells how many they are.
    pub(crate) fn errors(&self, errors: &[Diagnostic]) -> String {
        let mut parts: Vec<_> = errors.iter().map(|error| self.error(error)).collect();
        if errors.len() > 1 {
            parts.push(format!("{} errors found", errors.len()));
        }
        parts.join("\n\n")
    }

    /// One error: `Dockerfile:12:8: ...`, the excerpt, and the hint.
    pub(crate) fn error(&self, error: &Diagnostic) -> String {
        let head = format!("{}: {}", self.name(error.span), message(&error.message));
        self.with_excerpt(head, error)
    }

    /// Warnings as docker prints them: how many, then each with its rule, its message, its place,
    /// the excerpt, and the hint.
    pub(crate) fn warnings(&self, warnings: &[Diagnostic]) -> String {
        let mut text = match warnings.len() {
            0 => return "no warnings found".to_owned(),
            1 => "1 warning found:".to_owned(),
            count => format!("{count} warnings found:"),
        };
        for warning in warnings.iter().take(SHOWN) {
            text.push_str("\n\n");
            text.push_str(&self.warning(warning));
        }
        if warnings.len() > SHOWN {
            text.push_str(&format!("\n\n... and {} more", warnings.len() - SHOWN));
        }
        text
    }

    fn warning(&self, warning: &Diagnostic) -> String {
        let rule = warning.rule.unwrap_or_default();
        let page = lint::rule(rule).and_then(lint::Rule::url);
        let page = page.unwrap_or_else(|| format!("kiln check --explain {rule}"));
        let (message, name) = (message(&warning.message), self.name(warning.span));
        self.with_excerpt(
            format!("WARNING: {rule} - {page}\n{message}\n{name}"),
            warning,
        )
    }

    fn with_excerpt(&self, mut text: String, diagnostic: &Diagnostic) -> String {
        if diagnostic.span != Span::default() {
            text.push('\n');
            text.push_str(&self.snippet(diagnostic.span));
        }
        if let Some(hint) = &diagnostic.hint {
            text.push_str("\nhint: ");
            text.push_str(&message(hint));
        }
        text
    }

    /// A place, with its excerpt.
    pub(crate) fn place(&self, span: Span) -> String {
        format!("{}\n{}", self.name(span), self.snippet(span))
    }

    /// `Dockerfile:12:8`; the file alone where something is said of the whole.
    fn name(&self, span: Span) -> String {
        let file = text::printable(self.source.name.as_bytes());
        if span == Span::default() {
            return file;
        }
        let Position { line, column } = self.position(span.start);
        format!("{file}:{line}:{column}")
    }

    fn snippet(&self, span: Span) -> String {
        // A long heredoc is shown by its beginning only.
        let (start, lines) = self.lines.around(span, LINES);
        let inside = |at: u32| (at as usize).saturating_sub(start).min(lines.len());
        let (shown, marked) = clean(lines, inside(span.start)..inside(span.end));
        let snippet = Snippet::source(shown)
            .line_start(self.position(span.start).line as usize)
            .fold(true)
            .annotation(AnnotationKind::Primary.span(marked));
        let group = Group::with_level(Level::ERROR).element(snippet);
        Renderer::plain().render(&[group])
    }
}

/// Foreign text on one line.
pub(crate) fn message(message: &str) -> String {
    text::printable(message.replace('\n', " ").as_bytes())
}

/// Lines as they may be shown, and where a part of them went. What stands there may be a secret, or
/// command the terminal.
fn clean(lines: &str, part: Range<usize>) -> (String, Range<usize>) {
    let masked = text::masked(lines);
    let mut shown = String::with_capacity(masked.len());
    let (mut start, mut end) = (None, None);
    for (at, letter) in masked.char_indices() {
        if at >= part.start {
            start.get_or_insert(shown.len());
        }
        if at >= part.end {
            end.get_or_insert(shown.len());
        }
        match letter {
            '\r' | '\u{feff}' => {}
            '\n' | '\t' => shown.push(letter),
            letter if letter.is_control() => shown.push('\u{fffd}'),
            letter => shown.push(letter),
        }
    }
    let (start, end) = (start.unwrap_or(shown.len()), end.unwrap_or(shown.len()));
    (shown, start..end.max(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source {
            name: "a/Dockerfile\u{1b}[2J".to_owned(),
            text: text.to_owned(),
        }
    }

    fn at(text: &str, part: &str) -> Span {
        let start = text.find(part).unwrap();
        Span {
            start: u32::try_from(start).unwrap(),
            end: u32::try_from(start + part.len()).unwrap(),
        }
    }

    #[test]
    fn foreign_text_is_harmless_and_marked_where_it_is() {
        let text = "\u{feff}FROM a\r\nADD http://u:geheim@h/ \u{1b}]0;\u{9b}b /x\r\n";
        let (source, span) = (source(text), at(text, "b /x"));
        let error = Diagnostic::error("no\u{7} \u{1b}[31mgood\n http://u:p@h", span);
        assert_eq!(
            Excerpts::of(&source).error(&error.with_hint("try \u{1b}c")),
            "a/Dockerfile:2:29: no good  http://u:*@h\n  \
             |\n\
             2 | ADD http://u:******@h/ \u{fffd}]0;\u{fffd}b /x\n  \
             |                             ^^^^\n\
             hint: try c"
        );
    }

    #[test]
    fn errors_and_warnings_are_counted() {
        let text = "FROM a\nENV x y\n";
        let source = source(text);
        let excerpts = Excerpts::of(&source);
        let errors = [
            Diagnostic::error("one", Span::default()),
            Diagnostic::error("two", at(text, "a")),
        ];
        assert_eq!(excerpts.errors(&errors[..1]), "a/Dockerfile: one");
        assert_eq!(
            excerpts.errors(&errors),
            "a/Dockerfile: one\n\na/Dockerfile:1:6: two\n  |\n1 | FROM a\n  |      ^\n\n2 errors found"
        );
        let warning = Diagnostic::warning("UnusedBuildArg", "text", Span::default());
        assert_eq!(excerpts.warnings(&[]), "no warnings found");
        assert_eq!(
            excerpts.warnings(std::slice::from_ref(&warning)),
            "1 warning found:\n\nWARNING: UnusedBuildArg - kiln check --explain UnusedBuildArg\n\
             text\na/Dockerfile"
        );
        let many = excerpts.warnings(&vec![warning; SHOWN + 2]);
        assert!(many.starts_with("1002 warnings found:\n\n"));
        assert!(many.ends_with("\n\n... and 2 more"));
    }
}
