//! What was found in a Dockerfile, in the forms that people and programs read.

mod github;
mod json;
mod sarif;
mod text;

use kiln_builder::pipeline::{Checked, Source};
use kiln_grammar::diagnostic::{Diagnostic, Edit};
use kiln_grammar::source::Span;
use serde::Serialize;

use super::excerpt::Excerpts;
use crate::args::CheckFormat;

pub(crate) use json::{Location, location, source_data};

/// Warnings that a report for programs holds at most; code hosts take no more.
pub(crate) const MOST: usize = 25_000;

/// Mistakes and warnings, and the Dockerfile that they are about.
struct Report<'a> {
    source: &'a Source,
    excerpts: Excerpts<'a>,
    errors: &'a [Diagnostic],
    warnings: &'a [Diagnostic],
}

/// The report in a form, without a line end behind it; nothing where there is nothing to say.
pub(crate) fn render(checked: &Checked, format: CheckFormat) -> String {
    // For people the number of all is told, too.
    let most = match format {
        CheckFormat::Text => usize::MAX,
        _ => MOST,
    };
    let report = Report {
        source: &checked.source,
        excerpts: Excerpts::of(&checked.source),
        errors: &checked.errors,
        warnings: &checked.warnings[..checked.warnings.len().min(most)],
    };
    match format {
        CheckFormat::Text => text::render(&report),
        CheckFormat::Json => json::render(&report),
        CheckFormat::Sarif => sarif::render(&report),
        CheckFormat::Github => github::render(&report),
    }
}

impl Report<'_> {
    /// Where something is said of a place; `None` where it is said of the whole file.
    fn place(&self, span: Span) -> Option<Region> {
        (span != Span::default()).then(|| self.region(span))
    }

    /// Lines and columns from 1, the end behind the last character.
    fn region(&self, span: Span) -> Region {
        let start = self.excerpts.position(span.start);
        let end = self.excerpts.position(span.end.max(span.start));
        Region {
            start_line: start.line,
            start_column: start.column,
            end_line: end.line,
            end_column: end.column,
        }
    }
}

/// A part of a file; columns count characters.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Region {
    start_line: u32,
    start_column: u32,
    end_line: u32,
    end_column: u32,
}

/// The edits of a warning, unless they hold a password: hidden it would break the file.
fn edits(warning: &Diagnostic) -> &[Edit] {
    let open = |edit: &Edit| super::text::masked(&edit.text) == edit.text;
    if warning.fix.iter().all(open) {
        &warning.fix
    } else {
        &[]
    }
}

/// A value as JSON. Control characters are escaped also where JSON allows them: a terminal may obey
/// them.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    // Only maps with keys that are no strings could fail.
    let json = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut clean = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '\n' => clean.push('\n'),
            letter if letter.is_control() => {
                clean.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            letter => clean.push(letter),
        }
    }
    clean
}
