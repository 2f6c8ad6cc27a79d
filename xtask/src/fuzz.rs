//! `cargo xtask fuzz`: the fuzz targets of the grammar, with first inputs from the test data.
//!
//! It needs what kiln itself does not: `cargo-fuzz` and a nightly compiler. Everything it makes
//! lies below `target/fuzz`, but for the inputs that failed: those are in `grammar/fuzz/artifacts`.

#[expect(unreachable_pub, reason = "public in the library of the fuzz targets")]
#[path = "../../grammar/fuzz/src/seeds.rs"]
mod seeds;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{process, workspace};
use seeds::TARGETS;

/// How long a target runs unless it is said.
const SECONDS: &str = "60";

/// What the language is made of: libFuzzer puts these words together.
const DICTIONARY: &str = "grammar/fuzz/words.dict";

/// Runs `arguments`: a target, or none for all of them, and a number of seconds for each.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (targets, seconds) = match arguments.as_slice() {
        [] => (TARGETS.to_vec(), SECONDS),
        [target] if TARGETS.contains(target) => (vec![*target], SECONDS),
        [seconds] => (TARGETS.to_vec(), *seconds),
        [target, seconds] => (vec![*target], *seconds),
        _ => bail!("`fuzz` takes a target and a number of seconds"),
    };
    for target in targets {
        if !TARGETS.contains(&target) {
            bail!(
                "no fuzz target `{target}`: there are {}",
                TARGETS.join(", ")
            );
        }
        if seconds.parse::<u32>().is_err() {
            bail!("`{seconds}` is neither a fuzz target nor a number of seconds");
        }
        fuzz(target, seconds)?;
    }
    Ok(())
}

/// Runs one target on one core; it fails when an input does, and names the file with it.
fn fuzz(target: &str, seconds: &str) -> Result<()> {
    if process::quiet(Command::new("cargo").args(["+nightly", "fuzz", "--version"])).is_err() {
        bail!(
            "fuzzing needs a nightly compiler and cargo-fuzz: \
             `rustup toolchain install nightly && cargo install cargo-fuzz`"
        );
    }
    let built = workspace::target().join("fuzz");
    let corpus = built.join("corpus").join(target);
    sow(target, &corpus)?;
    let dictionary = workspace::root().join(DICTIONARY);
    let mut command = Command::new("cargo");
    command
        .current_dir(workspace::root().join("grammar"))
        .args(["+nightly", "fuzz", "run", "--debug-assertions"])
        .arg("--target-dir")
        .arg(&built)
        .arg(target)
        .arg(&corpus)
        .args(["--", "-fork=0", "-rss_limit_mb=2048", "-timeout=20"])
        .args(["-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-dict={}", dictionary.display()))
        .arg(format!("-max_total_time={seconds}"))
        // set by the cargo that runs us, and meant for stable
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    process::run(&mut command)
}

/// Puts the first inputs of a target into its corpus.
fn sow(target: &str, corpus: &Path) -> Result<()> {
    fs::create_dir_all(corpus).with_context(|| format!("cannot create `{}`", corpus.display()))?;
    let testdata = workspace::testdata();
    let inputs = seeds::seeds(target, &testdata)
        .with_context(|| format!("cannot read the inputs in `{}`", testdata.display()))?;
    for (number, input) in inputs.iter().enumerate() {
        let file = corpus.join(format!("seed-{number:03}"));
        fs::write(&file, input).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    Ok(())
}
