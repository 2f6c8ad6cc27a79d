//! Things that go away with us, however we end.
//!
//! A destructor does not run when a signal ends a process. So a shell in a process group of its
//! own waits at the other end of a pipe: when the pipe closes, because the [`Hold`] was dropped or
//! because we are gone, the shell cleans up.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A shell script that is cleaning up as soon as its standard input ends.
#[derive(Debug)]
pub(crate) struct Hold {
    shell: Child,
}

impl Hold {
    /// Starts `script`, which must read its standard input to the end (`cat >/dev/null`) before it
    /// cleans up; `arguments` are its `$1` and so on.
    pub(crate) fn new(script: &str, arguments: &[&str]) -> Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", script, "hold"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start `sh`")?;
        Ok(Self { shell })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // nothing can be done about a shell that cannot be waited for
        self.shell.wait().ok();
    }
}
