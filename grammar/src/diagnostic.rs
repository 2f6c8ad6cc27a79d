//! Messages about a Dockerfile, as data.

use crate::source::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The Dockerfile cannot be built.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

/// One message with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Name of the rule, for example `NoEmptyContinuation`; `None` for errors that no rule names.
    pub rule: Option<&'static str>,
    /// What is wrong: lower case, no full stop, values in double quotes or backticks.
    pub message: String,
    /// Where; an empty span at 0 stands for the whole file.
    pub span: Span,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(message: impl Into<String>, span: Span) -> Self {
        Self {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            span,
            hint: None,
        }
    }

    /// A warning of a named rule at a place.
    pub fn warning(rule: &'static str, message: impl Into<String>, span: Span) -> Self {
        Self {
            severity: Severity::Warning,
            rule: Some(rule),
            message: message.into(),
            span,
            hint: None,
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}
