//! `cargo xtask bases`: real base images without Docker Hub.
//!
//! ```text
//! target/bases/
//!   registry/       storage of a docker-registry: library/NAME for every name of the recipes
//!   stamps/NAME     fingerprint of the recipe as it was when its image was pushed
//!   lock            held while images are made
//! ```
//!
//! A stamp is written after the push, by rename: whoever is interrupted makes the image again.

mod archive;
mod recipe;
mod rootfs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::kiln::{self, Kiln, Profile};
use crate::registry::Registry;
use crate::scratch::Scratch;
use crate::{peers, process, workspace};
use recipe::{Fingerprints, Origin, RECIPES, Recipe};

/// Makes the base images that `names` lists, or all.
pub(crate) fn run(names: &[String]) -> Result<()> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let binary = kiln::build(Profile::Dev)?;
    let registry = serve(&binary, &names)?;
    for recipe in recipe::closure(&names)? {
        for tag in recipe.tags {
            println!("{}/library/{tag}", registry.address());
        }
    }
    Ok(())
}

/// Returns whether all images are there and no recipe has changed since.
pub(crate) fn are_made() -> Result<bool> {
    let fingerprints = Fingerprints::compute()?;
    Ok(RECIPES.iter().all(|recipe| is_fresh(recipe, &fingerprints)))
}

/// Makes what is missing of the images that `names` lists (all, when it is empty) and starts the
/// registry that has them.
pub(crate) fn serve(binary: &Path, names: &[&str]) -> Result<Registry> {
    let wanted = recipe::closure(names)?;
    peers::ensure(&[peers::REGISTRY, peers::BUSYBOX])?;
    let lock = lock().context("cannot lock the folder of the base images")?;

    let registry = Registry::start(&folder().join("registry"))?;
    let fingerprints = Fingerprints::compute()?;
    let mut stale = wanted;
    stale.retain(|recipe| !is_fresh(recipe, &fingerprints));
    while !stale.is_empty() {
        let (ready, rest) = recipe::ready(&stale);
        make_all(&ready, binary, &registry, &fingerprints)?;
        stale = rest;
    }
    drop(lock);
    Ok(registry)
}

fn lock() -> Result<File> {
    fs::create_dir_all(folder().join("stamps"))?;
    let file = File::create(folder().join("lock"))?;
    file.lock()?;
    Ok(file)
}

fn folder() -> PathBuf {
    workspace::target().join("bases")
}

fn stamp(recipe: &Recipe) -> PathBuf {
    folder().join("stamps").join(recipe.name)
}

fn is_fresh(recipe: &Recipe, fingerprints: &Fingerprints) -> bool {
    fs::read_to_string(stamp(recipe)).is_ok_and(|text| text == fingerprints.of(recipe))
}

fn write_stamp(recipe: &Recipe, fingerprint: &str) -> Result<()> {
    let draft = stamp(recipe).with_extension("new");
    fs::write(&draft, fingerprint)?;
    fs::rename(&draft, stamp(recipe))?;
    Ok(())
}

/// Makes images that do not stand on each other, at the same time: most of it is waiting for
/// packages. The first failure is returned when all have ended.
fn make_all(
    recipes: &[&Recipe],
    binary: &Path,
    registry: &Registry,
    fingerprints: &Fingerprints,
) -> Result<()> {
    let make = |recipe: &Recipe| {
        eprintln!("making base image: {}", recipe.name);
        make(recipe, binary, registry)
            .with_context(|| format!("cannot make the base image `{}`", recipe.name))?;
        write_stamp(recipe, fingerprints.of(recipe))
    };
    std::thread::scope(|scope| {
        let made: Vec<_> = recipes
            .iter()
            .map(|recipe| scope.spawn(|| make(recipe)))
            .collect();
        let results: Vec<Result<()>> = made
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
            .collect();
        results.into_iter().collect()
    })
}

/// Makes one image and pushes it under all its names.
fn make(recipe: &Recipe, binary: &Path, registry: &Registry) -> Result<()> {
    let scratch = Scratch::new(&format!("base-{}", recipe.name))?;
    let kiln = Kiln::new(binary, scratch.join("store")).with_mirror(registry.address());
    let name = recipe.tags[0];
    match recipe.origin {
        Origin::Busybox => {
            let rootfs = scratch.join("rootfs");
            rootfs::busybox(&rootfs)?;
            load(&kiln, &scratch, &rootfs, name, "sh")?;
        }
        Origin::Debian => {
            if !peers::is_root() {
                bail!("debootstrap needs root");
            }
            peers::ensure(&[peers::DEBOOTSTRAP])?;
            let rootfs = scratch.join("rootfs");
            rootfs::debian(&rootfs)?;
            load(&kiln, &scratch, &rootfs, name, "bash")?;
        }
        Origin::Dockerfile { .. } => {
            let context = recipe.context();
            let build = ["build", "--network", "host", "-t", name];
            process::quiet(kiln.with(&build).arg(context))?;
        }
    }
    for tag in recipe.tags {
        let remote = format!("{}/library/{tag}", registry.address());
        process::quiet(&mut kiln.with(&["tag", name, &remote]))?;
        process::quiet(&mut kiln.with(&["push", &remote]))?;
    }
    Ok(())
}

fn load(kiln: &Kiln, scratch: &Scratch, rootfs: &Path, name: &str, shell: &str) -> Result<()> {
    let archive = archive::docker_archive(rootfs, name, shell, scratch.path())?;
    process::quiet(kiln.with(&["load", "-i"]).arg(archive))
}
