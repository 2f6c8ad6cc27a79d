//! Annotations of GitHub Actions: one command a line.

use kiln_grammar::diagnostic::Diagnostic;

use super::Report;
use crate::render::excerpt::message;
use crate::render::text::printable;

pub(super) fn render(report: &Report<'_>) -> String {
    let errors = report
        .errors
        .iter()
        .map(|error| annotation(report, "error", error));
    let warnings = report.warnings.iter();
    let warnings = warnings.map(|warning| annotation(report, "warning", warning));
    errors.chain(warnings).collect::<Vec<_>>().join("\n")
}

fn annotation(report: &Report<'_>, command: &str, diagnostic: &Diagnostic) -> String {
    let file = printable(report.source.name.as_bytes());
    let mut properties = vec![format!("file={}", property(&file))];
    if let Some(region) = report.place(diagnostic.span) {
        properties.push(format!("line={}", region.start_line));
        // Over several lines columns are refused.
        let columns = region.start_line == region.end_line;
        if columns {
            properties.push(format!("col={}", region.start_column));
        }
        properties.push(format!("endLine={}", region.end_line));
        if columns {
            properties.push(format!("endColumn={}", region.end_column));
        }
    }
    if let Some(rule) = diagnostic.rule {
        properties.push(format!("title={}", property(rule)));
    }
    let mut text = message(&diagnostic.message);
    if let Some(hint) = &diagnostic.hint {
        text.push_str("\nhint: ");
        text.push_str(&message(hint));
    }
    format!("::{command} {}::{}", properties.join(","), data(&text))
}

fn data(text: &str) -> String {
    let text = text.replace('%', "%25");
    text.replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_command_is_escaped() {
        assert_eq!(data("50%\r\n::error::x"), "50%25%0D%0A::error::x");
        assert_eq!(property("a,b:c\n%"), "a%2Cb%3Ac%0A%25");
    }
}
