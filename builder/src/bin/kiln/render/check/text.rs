//! For people: errors as a build shows them, then the warnings.

use super::Report;

pub(super) fn render(report: &Report<'_>) -> String {
    let errors = report.excerpts.errors(report.errors);
    match (report.errors.is_empty(), report.warnings.is_empty()) {
        (true, _) => report.excerpts.warnings(report.warnings),
        // That no warnings were found says nothing of a file that could not be read.
        (false, true) => errors,
        (false, false) => format!("{errors}\n\n{}", report.excerpts.warnings(report.warnings)),
    }
}
