//! `cargo xtask demo`: kiln's main job from end to end, on this machine alone.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::kiln::{self, Kiln, Profile};
use crate::registry::Registry;
use crate::scratch::Scratch;
use crate::{bases, no_arguments, peers, process, workspace};

/// Builds, rebuilds, pushes, pulls, saves and loads the image of `testdata/demo`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    no_arguments("demo", arguments)?;
    peers::ensure(&[peers::REGISTRY, peers::BUSYBOX])?;
    let binary = kiln::build(Profile::Release)?;
    // the registries must end before the directory goes that one of them writes to
    let scratch = Scratch::new("demo")?;
    let hub = bases::serve(&binary, &["busybox"])?;
    let registry = Registry::start(&scratch.join("registry"))?;

    let started = Instant::now();
    let here = Kiln::new(&binary, scratch.join("here")).with_mirror(hub.address());
    let there = Kiln::new(&binary, scratch.join("there"));
    let remote = format!("{}/demo:1", registry.address());
    let archive = scratch.join("demo.tar");
    let archive = archive
        .to_str()
        .context("the target directory's path is not UTF-8")?;
    let context = workspace::testdata().join("demo");
    let context = relative(&context);

    println!("$ export KILN_MIRRORS=docker.io=http://{}", hub.address());
    say("Build an image, then build it again: every step comes from the cache.");
    let build = [
        "build",
        "-t",
        "demo:1",
        "--build-arg",
        "VERSION=1",
        &context,
    ];
    step(&here, &build)?;
    step(&here, &build)?;
    step(&here, &["images"])?;
    step(&here, &["history", "demo:1"])?;

    say("Push it to a registry, pull it into an empty store.");
    step(&here, &["tag", "demo:1", &remote])?;
    step(&here, &["push", &remote])?;
    step(&there, &["pull", &remote])?;
    step(&there, &["images"])?;

    say("Carry it as a file.");
    step(&here, &["save", "-o", archive, "demo:1"])?;
    step(&there, &["load", "-i", archive])?;
    step(&there, &["images"])?;
    say(&format!(
        "All done in {:.1} s.",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn say(text: &str) {
    println!("\n# {text}");
}

/// Prints a command as a person would type it, and runs it.
fn step(kiln: &Kiln, arguments: &[&str]) -> Result<()> {
    let words: Vec<String> = arguments.iter().map(|word| process::quote(word)).collect();
    println!(
        "\n$ KILN_ROOT={} kiln {}",
        relative(kiln.root()),
        words.join(" ")
    );
    process::run(&mut kiln.with(arguments))
}

/// Returns a path as seen from the workspace's root, where the commands run.
fn relative(path: &Path) -> String {
    let root = workspace::root();
    path.strip_prefix(&root)
        .unwrap_or(path)
        .display()
        .to_string()
}
