//! A directory that goes away.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::hold::Hold;
use crate::{process, workspace};

/// Removes the directory `$1`; what other builders leave mounted below it is taken off first.
const REMOVE: &str = r#"
    grep -o " $1/[^ ]*" /proc/mounts | sort -r | xargs -r umount -l
    rm -rf --one-file-system -- "$1"
"#;

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
        // a builder that outlives us for a moment may still write
        let script = format!(
            "cat >/dev/null; for n in 1 2 3 4 5; do\n{REMOVE}\n[ -e \"$1\" ] || exit; sleep 1; done"
        );
        let hold = Hold::new(&script, &[&text])?;
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

/// Removes a directory in which a builder kept its store.
pub(crate) fn remove(path: &Path) -> Result<()> {
    process::quiet(Command::new("sh").args(["-c", REMOVE, "remove"]).arg(path))
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
