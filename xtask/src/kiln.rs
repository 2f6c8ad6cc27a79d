//! The kiln binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{process, workspace};

/// Which of cargo's profiles to build with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// The one the tests use, so that it is compiled once.
    Dev,
    /// The one that users get.
    Release,
}

/// A kiln binary and the store it works on.
#[derive(Clone, Debug)]
pub(crate) struct Kiln {
    binary: PathBuf,
    root: PathBuf,
    mirror: Option<String>,
}

impl Kiln {
    /// Uses `binary` with the store in `root`.
    pub(crate) fn new(binary: &Path, root: PathBuf) -> Self {
        let binary = binary.to_owned();
        Self {
            binary,
            root,
            mirror: None,
        }
    }

    /// Takes images of Docker Hub from the registry at `address` instead.
    pub(crate) fn with_mirror(self, address: &str) -> Self {
        let mirror = Some(format!("docker.io=http://{address}"));
        Self { mirror, ..self }
    }

    /// Returns a command with the store and the mirror in its environment.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .current_dir(workspace::root())
            .env("KILN_ROOT", &self.root)
            .env_remove("KILN_MIRRORS");
        if let Some(mirror) = &self.mirror {
            command.env("KILN_MIRRORS", mirror);
        }
        command
    }

    /// Returns a command with arguments.
    pub(crate) fn with(&self, arguments: &[&str]) -> Command {
        let mut command = self.command();
        command.args(arguments);
        command
    }

    /// Returns the directory of the store.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

/// Builds the binary, or takes the one that `KILN` names, and returns its path.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KILN").filter(|path| !path.is_empty()) {
        let path = std::path::absolute(path)?;
        if !path.is_file() {
            bail!("`KILN` names `{}`, which is no file", path.display());
        }
        return Ok(path);
    }
    let mut cargo = cargo();
    cargo.args(["build", "--package", "kiln-builder", "--bin", "kiln"]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    process::run(&mut cargo)?;
    Ok(workspace::target().join(folder).join("kiln"))
}

/// Returns the cargo that runs us, at the root of the workspace.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    // ours, and wrong for the packages that the new cargo looks at
    command
        .env_remove("CARGO_MANIFEST_DIR")
        .current_dir(workspace::root());
    command
}
