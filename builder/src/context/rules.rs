//! Ignore patterns as the walk and `--exclude` ask them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use kiln_grammar::dockerignore::{IgnoreError, IgnoreFile, MatchState, Verdict as Judgement};

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
pub(super) struct Rules(Arc<IgnoreFile>);

/// The rules as they apply in one directory.
#[derive(Debug)]
pub(super) struct RulesIn<'a> {
    rules: &'a IgnoreFile,
    dir: &'a Path,
    state: MatchState,
}

/// The rule of an ignore file that hides a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExcludedBy {
    /// Number of its line, from 1.
    pub line: usize,
    /// The pattern, cleaned.
    pub pattern: String,
}

impl Rules {
    pub(super) fn new(file: Option<Arc<IgnoreFile>>) -> Self {
        Self(file.unwrap_or_default())
    }

    /// The rules of `--exclude` flags, in order.
    pub(super) fn from_patterns(patterns: &[String]) -> Result<Self, IgnoreError> {
        Ok(Self(Arc::new(IgnoreFile::from_patterns(patterns)?)))
    }

    /// Judges a path relative to the root; the root itself cannot be excluded (A14.3).
    pub(super) fn verdict(&self, path: &Path, is_dir: bool) -> Verdict {
        if self.0.is_empty() {
            return Verdict::Included;
        }
        let bytes = path.as_os_str().as_bytes();
        visibility(&self.0, self.0.verdict(bytes), bytes, is_dir)
    }

    /// The rules for the files in a directory; `None` when there are no rules.
    pub(super) fn within<'a>(&'a self, dir: &'a Path) -> Option<RulesIn<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let mut ancestors: Vec<&Path> = dir.ancestors().collect();
        // The last is the root, which no rule matches.
        ancestors.pop();
        let state = ancestors
            .iter()
            .rev()
            .fold(self.0.root_state(), |state, ancestor| {
                self.0.enter(&state, ancestor.as_os_str().as_bytes()).0
            });
        Some(RulesIn {
            rules: &self.0,
            dir,
            state,
        })
    }

    /// The rule that excludes a path, if it is excluded.
    pub(super) fn excluded_by(&self, path: &Path) -> Option<ExcludedBy> {
        let judgement = self.0.verdict(path.as_os_str().as_bytes());
        let rule = self.0.patterns().get(judgement.decided_by?)?;
        judgement.excluded.then(|| ExcludedBy {
            line: rule.line,
            pattern: rule.text.clone(),
        })
    }
}

impl RulesIn<'_> {
    pub(super) fn verdict(&self, name: &OsStr, is_dir: bool) -> Verdict {
        let path = self.dir.join(name);
        let bytes = path.as_os_str().as_bytes();
        let judgement = self.rules.check(&self.state, bytes);
        visibility(self.rules, judgement, bytes, is_dir)
    }
}

fn visibility(rules: &IgnoreFile, judgement: Judgement, path: &[u8], is_dir: bool) -> Verdict {
    if !judgement.excluded {
        Verdict::Included
    } else if is_dir && rules.may_include_below(path) {
        Verdict::Passage
    } else {
        Verdict::Excluded
    }
}
