//! A directory that goes away.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hold::Hold;
use crate::workspace;

/// A directory below `target/xtask` that is removed at the end, also when a signal ends us.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _hold: Hold,
}

impl Scratch {
    /// Makes an empty directory whose name begins with `name`.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = workspace::target()
            .join("xtask")
            .join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make `{}`", path.display()))?;
        let text = path.to_string_lossy().into_owned();
        let hold = Hold::new("cat >/dev/null; rm -rf -- \"$1\"", &[&text])?;
        Ok(Self { path, _hold: hold })
    }

    /// Returns the path of something in the directory.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns the directory's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_gone_when_dropped() {
        let scratch = Scratch::new("test-scratch").unwrap();
        std::fs::write(scratch.join("file"), "x").unwrap();
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }
}
