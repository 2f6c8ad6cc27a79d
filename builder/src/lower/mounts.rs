//! `RUN --mount` (B1, B2).

use kiln_grammar::ast::{Run, Word};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::mount::{self, Mount, MountError};
use kiln_grammar::source::Spanned;

use super::copy::input_index;
use super::path;
use super::stage::{StageLowering, Step};
use super::stages::{Source, Use};
use crate::graph::{MountOp, VertexId};

impl StageLowering<'_, '_> {
    /// The mounts of a step; what they show is added to its inputs.
    pub(super) fn mounts(
        &mut self,
        run: &Run,
        step: &Step<'_>,
        inputs: &mut Vec<VertexId>,
    ) -> Result<Vec<MountOp>, Diagnostic> {
        run.mounts
            .iter()
            .map(|record| self.mount(record, step, inputs))
            .collect()
    }

    fn mount(
        &mut self,
        record: &Word,
        step: &Step<'_>,
        inputs: &mut Vec<VertexId>,
    ) -> Result<MountOp, Diagnostic> {
        let mut undefined = Vec::new();
        let mut size = 0;
        let mount = mount::expand_mount(&record.value, &mut |value| {
            let expanded = self.state.scope.expand(value, self.shared.escape)?;
            undefined.extend(expanded.undefined);
            size += expanded.value.len();
            Ok(expanded.value)
        });
        let mount = mount.map_err(|error| mount_error(&error, record))?;
        self.undefined(undefined, record.span);
        self.shared.charge(size, record.span)?;
        match mount {
            Mount::Bind(bind) => {
                if self.shared.looking {
                    self.shared
                        .unsupported("RUN --mount=type=bind", record.span)?;
                }
                let vertex = match bind.from {
                    None => self.shared.context(),
                    Some(name) => {
                        let name = Spanned::new(name, record.span);
                        let by = Use::Mount;
                        let base = self
                            .shared
                            .stages
                            .lookup(&Source { name, by }, self.index)?;
                        let origin = self.origin(step);
                        self.shared.input(&base, record.span, origin)?
                    }
                };
                Ok(MountOp::Bind {
                    input: input_index(inputs, vertex),
                    source: path::join("/", bind.source.as_deref().unwrap_or_default()),
                    target: self.mount_target(&bind.target, record)?,
                    writable: bind.writable,
                })
            }
            Mount::Tmpfs(tmpfs) => Ok(MountOp::Tmpfs {
                target: self.mount_target(&tmpfs.target, record)?,
                size: tmpfs.size,
            }),
            Mount::Cache(_) => self.missing("cache", record),
            Mount::Secret(_) => self.missing("secret", record),
            Mount::Ssh(_) => self.missing("ssh", record),
        }
    }

    /// A kind of mount that steps cannot have yet.
    fn missing(&mut self, kind: &str, record: &Word) -> Result<MountOp, Diagnostic> {
        let what = format!("RUN --mount=type={kind}");
        self.shared.unsupported(&what, record.span)?;
        Ok(MountOp::Tmpfs {
            target: format!("/run/{kind}"),
            size: None,
        })
    }

    /// Where a mount appears: joined with the working directory, and never the root (B1.4).
    fn mount_target(&self, target: &str, record: &Word) -> Result<String, Diagnostic> {
        let path = path::join(self.directory(), target);
        // Where the working directory is not known yet, `.` need not be the root.
        if path == "/" && (self.state.known || self.state.workdir_set) {
            let message = format!("invalid mount target \"{target}\"");
            return Err(Diagnostic::error(message, record.span));
        }
        Ok(path)
    }
}

/// A mount error with its cause and hint.
fn mount_error(error: &MountError, record: &Word) -> Diagnostic {
    let message = match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let diagnostic = Diagnostic::error(message, record.span);
    match error.hint() {
        Some(hint) => diagnostic.with_hint(hint),
        None => diagnostic,
    }
}

/// The stage or image that a mount reads; only a view of files needs one.
pub(super) fn from(record: &Word) -> Option<Spanned<String>> {
    let fields = fields(&record.value);
    let value = |wanted: &str| {
        let pairs = fields
            .iter()
            .rev()
            .filter_map(|field| field.split_once('='));
        let mut values = pairs.filter(|(key, _)| key.eq_ignore_ascii_case(wanted));
        values.next().map(|(_, value)| value)
    };
    let kind = value("type").unwrap_or("bind").to_lowercase();
    let reads = matches!(kind.as_str(), "bind" | "cache") || kind.contains('$');
    let name = value("from").filter(|name| reads && !name.is_empty())?;
    Some(Spanned::new(name.to_owned(), record.span))
}

/// Splits a CSV record: commas separate, double quotes around a field protect them, and two in
/// such a field are one.
fn fields(record: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = record.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(field) = fields.last_mut() else {
            break;
        };
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use kiln_grammar::source::Span;

    use super::*;

    /// B1.1
    #[test]
    fn records_are_csv() {
        assert_eq!(fields("type=bind,target=/a"), ["type=bind", "target=/a"]);
        assert_eq!(fields(r#""target=/a,b",ro"#), ["target=/a,b", "ro"]);
        assert_eq!(fields(r#""a=""x""",b"#), [r#"a="x""#, "b"]);
        assert_eq!(fields(""), [""]);
    }

    /// B1.5
    #[test]
    fn only_views_of_files_read_a_stage() {
        let from = |text: &str| {
            from(&Spanned::new(text.to_owned(), Span::default())).map(|name| name.value)
        };
        assert_eq!(from("from=a,target=/x"), Some("a".to_owned()));
        assert_eq!(from("TYPE=bind,FROM=a"), Some("a".to_owned()));
        assert_eq!(from("type=cache,from=a,target=/x"), Some("a".to_owned()));
        assert_eq!(from("type=tmpfs,from=a,target=/x"), None);
        assert_eq!(from("type=bind,target=/x"), None);
        assert_eq!(from("from=,target=/x"), None);
    }
}
