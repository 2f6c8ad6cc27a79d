//! Ignore patterns as the walk and `--exclude` ask them.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kiln_grammar::dockerignore::IgnoreFile;

/// What the rules say of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is visible.
    Included,
    /// It is not, nor is anything below.
    Excluded,
    /// It is an excluded directory below which something may be included again (A14.4).
    Passage,
}

/// The rules of one ignore file or of the `--exclude` flags of one instruction.
#[derive(Debug, Default)]
pub(super) struct Rules(pub(super) Option<IgnoreFile>);

/// The rule that hides a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HiddenBy {
    /// Number of its line, from 1.
    pub(super) line: usize,
    /// The pattern as written.
    pub(super) pattern: String,
}

impl Rules {
    /// The rules of `--exclude` flags, in order; an error is the pattern that is malformed.
    pub(super) fn from_patterns(patterns: &[String]) -> Result<Self, String> {
        IgnoreFile::parse(&patterns.join("\n"))
            .map(|file| Self(Some(file)))
            .map_err(|_| patterns.join("` `"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Judges a path relative to the root; the root itself cannot be excluded (A14.3).
    pub(super) fn verdict(&self, path: &Path, is_dir: bool) -> Verdict {
        let path = path.as_os_str().as_bytes();
        let Some(file) = self.0.as_ref().filter(|_| !path.is_empty()) else {
            return Verdict::Included;
        };
        if file.excluded_by(path).is_none() {
            Verdict::Included
        } else if is_dir && file.may_include_below(path) {
            Verdict::Passage
        } else {
            Verdict::Excluded
        }
    }

    /// The rule that excludes a path.
    pub(super) fn hidden_by(&self, path: &Path) -> Option<HiddenBy> {
        let rule = self.0.as_ref()?.excluded_by(path.as_os_str().as_bytes())?;
        Some(HiddenBy {
            line: rule.line,
            pattern: rule.pattern.clone(),
        })
    }
}
