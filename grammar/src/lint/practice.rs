//! kiln's own rules: what the field's linters and courses teach, as far as the text shows it.

use crate::ast::Dockerfile;
use crate::diagnostic::Diagnostic;

/// Finds what kiln's own rules advise against, in the order of the file.
#[must_use]
pub fn practices(_text: &str, _file: &Dockerfile) -> Vec<Diagnostic> {
    Vec::new()
}
