//! `cargo xtask test`: everything that the test suite needs, then the test suite.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::kiln::{self, Profile};
use crate::{bases, dist, peers, process};

/// What the largest test needs, bytes; it removes all of it.
const ROOM: u64 = 7 << 30;

/// Installs the peers, makes and serves the base images, and runs `cargo test` with `arguments`.
///
/// The tests find the registry with the base images at `KILN_TEST_BASES`, a `host:port`, and the
/// static binary at `KILN_TEST_STATIC`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    check_machine()?;
    peers::ensure(&peers::TESTS)?;
    let binary = kiln::build(Profile::Dev)?;
    let standalone = standalone()?;
    let registry = bases::serve(&binary, &[])?;
    eprintln!("base images: {}", registry.address());
    let mut tests = kiln::cargo();
    tests
        .args(["test", "--workspace"])
        .args(arguments)
        .env("KILN_TEST_BASES", registry.address());
    if let Some(standalone) = standalone {
        tests.env("KILN_TEST_STATIC", standalone);
    }
    process::run(&mut tests)?;
    if arguments.is_empty() {
        large()
    } else {
        Ok(())
    }
}

/// The tests that are ignored because they move gigabytes, after all others and where there is room.
fn large() -> Result<()> {
    let folder = std::env::temp_dir();
    let disk = rustix::fs::statvfs(&folder)
        .with_context(|| format!("cannot ask how full `{}` is", folder.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < ROOM {
        let told = format!(
            "the transfer of 2 GiB needs {} GiB in `{}`, which has {} (TMPDIR names another place)",
            ROOM >> 30,
            folder.display(),
            free >> 30
        );
        if std::env::var_os("CI").is_some() {
            bail!("{told}");
        }
        eprintln!("not tested: {told}");
        return Ok(());
    }
    let mut tests = kiln::cargo();
    tests.args(["test", "-p", "kiln-builder", "--test", "it", "--"]);
    process::run(tests.args(["--ignored", "of_2_gib"]))
}

/// The static binary. Where rustup cannot fetch its target, the test of it is skipped and says so;
/// a CI skips nothing.
fn standalone() -> Result<Option<PathBuf>> {
    match dist::own() {
        Ok(path) => Ok(Some(path)),
        Err(error) if std::env::var_os("CI").is_some() => Err(error),
        Err(error) => {
            eprintln!("the static binary is not built and not tested: {error:#}");
            Ok(None)
        }
    }
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
