//! `cargo xtask test`: everything that the test suite needs, then the test suite.

use std::process::Command;

use anyhow::{Result, bail};

use crate::kiln::{self, Profile};
use crate::{bases, dist, peers, process};

/// Installs the peers, makes and serves the base images, and runs `cargo test` with `arguments`.
///
/// The tests find the registry with the base images at `KILN_TEST_BASES`, a `host:port`, and the
/// static binary at `KILN_TEST_STATIC`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    check_machine()?;
    peers::ensure(&peers::TESTS)?;
    let binary = kiln::build(Profile::Dev)?;
    let standalone = dist::own()?;
    let registry = bases::serve(&binary, &[])?;
    eprintln!("base images: {}", registry.address());
    process::run(
        kiln::cargo()
            .args(["test", "--workspace"])
            .args(arguments)
            .env("KILN_TEST_BASES", registry.address())
            .env("KILN_TEST_STATIC", standalone),
    )
}

/// Fails with one line where the suite cannot work.
fn check_machine() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("the test suite needs Linux: kiln builds images with its namespaces");
    }
    if peers::is_root() {
        return Ok(());
    }
    let probe = ["--user", "--map-root-user", "--mount", "true"];
    if process::quiet(Command::new("unshare").args(probe)).is_err() {
        bail!(
            "the test suite needs root or unprivileged user namespaces; this machine gives neither"
        );
    }
    if !bases::are_made()? {
        bail!("making the base images needs root once: run `cargo xtask bases` as root first");
    }
    Ok(())
}
