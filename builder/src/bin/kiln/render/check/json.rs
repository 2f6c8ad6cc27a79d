//! Docker's JSON of a check (`docs/CHECK.md`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_builder::pipeline::Source;
use kiln_grammar::diagnostic::{Diagnostic, Edit};
use kiln_grammar::lint;
use kiln_grammar::source::Span;
use serde::Serialize;

use super::{Report, edits, to_json};
use crate::render::excerpt::{Excerpts, message};
use crate::render::text::masked;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    warnings: Vec<Warning>,
    sources: Vec<SourceInfo>,
    /// The first error, where docker has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    build_error: Option<Error>,
    /// All errors, where they are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Error>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    rule_name: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fix: Vec<Change>,
}

#[derive(Clone, Serialize)]
struct Error {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Serialize)]
struct SourceInfo {
    filename: String,
    language: &'static str,
    data: String,
}

/// Where something stands.
#[derive(Clone, Serialize)]
pub(crate) struct Location {
    ranges: Vec<Range>,
}

#[derive(Clone, Serialize)]
struct Range {
    start: Point,
    end: Point,
}

/// A line from 1, a character from 0.
#[derive(Clone, Serialize)]
struct Point {
    line: u32,
    character: u32,
}

#[derive(Serialize)]
struct Change {
    range: Range,
    text: String,
}

pub(super) fn render(report: &Report<'_>) -> String {
    let mut errors: Vec<_> = report.errors.iter().map(|one| error(report, one)).collect();
    let build_error = errors.first().cloned();
    if errors.len() == 1 {
        errors.clear();
    }
    to_json(&Results {
        warnings: report
            .warnings
            .iter()
            .map(|one| warning(report, one))
            .collect(),
        sources: vec![SourceInfo {
            filename: report.source.name.clone(),
            language: "Dockerfile",
            data: source_data(report.source),
        }],
        build_error,
        errors,
    })
}

/// The Dockerfile in base64, with passwords in addresses hidden; what hides them is as long.
pub(crate) fn source_data(source: &Source) -> String {
    STANDARD.encode(masked(&source.text))
}

/// Where a span is; `None` for the whole file.
pub(crate) fn location(excerpts: &Excerpts<'_>, span: Span) -> Option<Location> {
    (span != Span::default()).then(|| Location {
        ranges: vec![range(excerpts, span)],
    })
}

fn range(excerpts: &Excerpts<'_>, span: Span) -> Range {
    let point = |at| {
        let position = excerpts.position(at);
        Point {
            line: position.line,
            character: position.column - 1,
        }
    };
    Range {
        start: point(span.start),
        end: point(span.end),
    }
}

fn error(report: &Report<'_>, error: &Diagnostic) -> Error {
    Error {
        message: message(&error.message),
        location: location(&report.excerpts, error.span),
        hint: error.hint.as_deref().map(message),
    }
}

fn warning(report: &Report<'_>, warning: &Diagnostic) -> Warning {
    let name = warning.rule.unwrap_or_default();
    let rule = lint::rule(name);
    let change = |edit: &Edit| Change {
        range: range(&report.excerpts, edit.span),
        text: edit.text.clone(),
    };
    Warning {
        rule_name: name,
        description: rule.map_or("", |rule| rule.summary),
        url: rule.and_then(lint::Rule::url),
        detail: message(&warning.message),
        location: location(&report.excerpts, warning.span),
        hint: warning.hint.as_deref().map(message),
        fix: edits(warning).iter().map(change).collect(),
    }
}
