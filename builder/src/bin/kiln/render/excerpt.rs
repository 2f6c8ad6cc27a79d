//! Excerpts of a Dockerfile with what is to be said about a place in it.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use kiln_builder::pipeline::Source;
use kiln_grammar::diagnostic::{Diagnostic, Severity};
use kiln_grammar::source::{Span, position};

use super::text;

/// Lines of an instruction that are shown at most.
const LINES: usize = 12;

/// A message about a Dockerfile: `Dockerfile:12:8: ...`, the excerpt, and the hint.
pub(crate) fn render(source: &Source, diagnostic: &Diagnostic) -> String {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let rule = diagnostic
        .rule
        .map_or(String::new(), |rule| format!("{rule}: "));
    let message = text::masked(&diagnostic.message);
    let mut text = if diagnostic.span == Span::default() {
        format!("{}: {severity}: {rule}{message}", source.name)
    } else {
        let at = position(&source.text, diagnostic.span.start);
        let head = format!(
            "{}:{}:{}: {severity}: {rule}{message}",
            source.name, at.line, at.column
        );
        format!("{head}\n{}", snippet(source, diagnostic.span))
    };
    if let Some(hint) = &diagnostic.hint {
        text.push_str("\nhint: ");
        text.push_str(hint);
    }
    text
}

/// A place in a Dockerfile, with its excerpt.
pub(crate) fn place(source: &Source, span: Span) -> String {
    let at = position(&source.text, span.start);
    format!(
        "{}:{}:{}\n{}",
        source.name,
        at.line,
        at.column,
        snippet(source, span)
    )
}

fn snippet(source: &Source, span: Span) -> String {
    let text = source.text.as_str();
    let end = (span.end as usize).min(text.len());
    let start = (span.start as usize).min(end);
    // A long heredoc is shown by its beginning only.
    let limit = text[start..end]
        .match_indices('\n')
        .nth(LINES - 1)
        .map_or(end, |(offset, _)| start + offset);
    let shown = start..limit.max(start);
    // What stands there may be a secret; what hides it is as long.
    let text = text::masked(text);
    let snippet = Snippet::source(text)
        .fold(true)
        .annotation(AnnotationKind::Primary.span(shown));
    let group = Group::with_level(Level::ERROR).element(snippet);
    Renderer::plain().render(&[group])
}
