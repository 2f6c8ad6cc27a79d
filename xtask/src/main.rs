//! Set-up and chores of kiln: `cargo xtask VERB`.
//!
//! One file per verb: [`demo`], [`mod@test`], [`bases`], [`mod@bench`], [`dist`], [`deny`],
//! [`fuzz`]. The rest are the things they hold: [`kiln`] (the binary under test), [`registry`] (a
//! docker-registry on loopback), [`scratch`] (a directory that goes away), [`peers`] (programs of
//! the host).
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people at a terminal"
)]

mod bases;
mod bench;
mod demo;
mod deny;
mod dist;
mod fuzz;
mod hold;
mod kiln;
mod peers;
mod process;
mod registry;
mod scratch;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
usage: cargo xtask VERB [ARGUMENT...]

  demo              builds, pushes, pulls, saves and loads a small image, on this machine alone
  test [ARGS]       installs what the tests need, makes the base images, runs `cargo test ARGS`
  bases [NAME...]   makes the base images (all of them, or those named) under target/bases
  bench [--runs N] [--write] [WORKLOAD...]
                    measures kiln against buildah, podman, skopeo and docker
  dist              builds the static binaries into target/dist
  deny              checks the dependencies' licences, bans and sources against deny.toml
  fuzz [TARGET] [SECONDS]
                    feeds the grammar with inputs that no person would write

environment: KILN=FILE uses that kiln instead of building one";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((verb, rest)) = arguments.split_first() else {
        bail!("no verb given\n\n{HELP}");
    };
    match verb.as_str() {
        "demo" => demo::run(rest),
        "test" => test::run(rest),
        "bases" => bases::run(rest),
        "bench" => bench::run(rest),
        "dist" => dist::run(rest),
        "deny" => deny::run(rest),
        "fuzz" => fuzz::run(rest),
        "help" | "-h" | "--help" => {
            println!("{HELP}");
            Ok(())
        }
        other => bail!("unknown verb `{other}`\n\n{HELP}"),
    }
}

/// Fails when a verb that takes no arguments was given some.
fn no_arguments(verb: &str, arguments: &[String]) -> Result<()> {
    match arguments.first() {
        None => Ok(()),
        Some(first) => bail!("`{verb}` takes no arguments, got `{first}`"),
    }
}
