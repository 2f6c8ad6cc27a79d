//! What base images there are, and when they have to be made anew.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::rootfs;
use crate::{process, workspace};

/// How one base image is made, and what it is called.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// Name of the recipe, and of its folder in `testdata/bases`.
    pub(crate) name: &'static str,
    /// Where the image comes from.
    pub(crate) origin: Origin,
    /// Names on Docker Hub, below `library/`; the first is the one it is built as.
    pub(crate) tags: &'static [&'static str],
}

/// Where a base image comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin {
    /// The host's static busybox.
    Busybox,
    /// A minimal installation by debootstrap.
    Debian,
    /// A Dockerfile that starts from another recipe's image.
    Dockerfile {
        /// The other recipe.
        from: &'static str,
    },
}

const ON_DEBIAN: Origin = Origin::Dockerfile { from: "debian" };

/// All base images; each stands behind the one it starts from.
pub(crate) static RECIPES: [Recipe; 7] = [
    Recipe {
        name: "busybox",
        origin: Origin::Busybox,
        tags: &["busybox:latest", "busybox:stable"],
    },
    Recipe {
        name: "alpine",
        origin: Origin::Dockerfile { from: "busybox" },
        tags: &["alpine:latest", "alpine:3"],
    },
    Recipe {
        name: "debian",
        origin: Origin::Debian,
        tags: &[
            "debian:bookworm",
            "debian:12",
            "debian:latest",
            "debian:bookworm-slim",
            "debian:12-slim",
            "ubuntu:22.04",
            "ubuntu:latest",
        ],
    },
    Recipe {
        name: "nginx",
        origin: ON_DEBIAN,
        tags: &["nginx:latest", "nginx:alpine"],
    },
    Recipe {
        name: "python",
        origin: ON_DEBIAN,
        tags: &["python:3.11-slim", "python:3.11"],
    },
    Recipe {
        name: "gcc",
        origin: ON_DEBIAN,
        tags: &["gcc:latest", "gcc:12"],
    },
    Recipe {
        name: "node",
        origin: ON_DEBIAN,
        tags: &["node:latest", "node:18"],
    },
];

impl Recipe {
    /// Returns the build context of a recipe with a Dockerfile.
    pub(crate) fn context(&self) -> PathBuf {
        workspace::testdata().join("bases").join(self.name)
    }

    /// Returns all that determines the image, as text; `base` is the fingerprint of the image it
    /// starts from.
    fn description(&self, base: &str) -> Result<String> {
        let content = match self.origin {
            Origin::Busybox => rootfs::busybox_description()?,
            Origin::Debian => rootfs::debian_description()?,
            Origin::Dockerfile { .. } => tree(&self.context(), Path::new(""))?,
        };
        Ok(format!(
            "{} {}\n{base}\n{content}",
            self.name,
            self.tags.join(" ")
        ))
    }
}

/// Returns the recipes that `names` lists (all, when it is empty) and those they stand on.
pub(crate) fn closure(names: &[&str]) -> Result<Vec<&'static Recipe>> {
    let known = |name: &str| RECIPES.iter().any(|recipe| recipe.name == name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        bail!("unknown base image `{name}`; there are {}", all.join(", "));
    }
    let mut wanted = names.to_vec();
    let mut found: Vec<&Recipe> = Vec::new();
    // from the end, so that what is wanted is known before it is looked at
    for recipe in RECIPES.iter().rev() {
        if names.is_empty() || wanted.contains(&recipe.name) {
            if let Origin::Dockerfile { from } = recipe.origin {
                wanted.push(from);
            }
            found.push(recipe);
        }
    }
    found.reverse();
    Ok(found)
}

/// Splits recipes in those that stand on none of the others, and the rest.
pub(crate) fn ready(recipes: &[&'static Recipe]) -> (Vec<&'static Recipe>, Vec<&'static Recipe>) {
    let stands_on = |recipe: &Recipe, base: &Recipe| match recipe.origin {
        Origin::Dockerfile { from } => from == base.name,
        Origin::Busybox | Origin::Debian => false,
    };
    recipes
        .iter()
        .partition(|recipe| !recipes.iter().any(|base| stands_on(recipe, base)))
}

/// The fingerprint of every recipe.
#[derive(Debug)]
pub(crate) struct Fingerprints(Vec<(&'static str, String)>);

impl Fingerprints {
    /// Computes the fingerprints of all recipes as they are now.
    pub(crate) fn compute() -> Result<Self> {
        let mut all = Self(Vec::new());
        for recipe in &RECIPES {
            let base = match recipe.origin {
                Origin::Dockerfile { from } => all.named(from),
                Origin::Busybox | Origin::Debian => "",
            };
            let description = recipe.description(base)?;
            all.0
                .push((recipe.name, process::sha256(description.as_bytes())?));
        }
        Ok(all)
    }

    /// Returns the fingerprint of a recipe.
    pub(crate) fn of(&self, recipe: &Recipe) -> &str {
        self.named(recipe.name)
    }

    fn named(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| *key == name);
        found.map_or("", |(_, fingerprint)| fingerprint)
    }
}

/// Lists the files of a folder with their modes and digests, in order.
fn tree(root: &Path, below: &Path) -> Result<String> {
    let folder = root.join(below);
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    let mut text = String::new();
    for name in names {
        let path = below.join(name);
        let file = root.join(&path);
        if file.is_dir() {
            text.push_str(&tree(root, &path)?);
        } else {
            let executable = fs::metadata(&file)?.permissions().mode() & 0o111;
            let digest = process::sha256_file(&file)?;
            text.push_str(&format!("{digest} {executable:o} {}\n", path.display()));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_recipe_stands_behind_the_one_it_starts_from() {
        for (position, recipe) in RECIPES.iter().enumerate() {
            if let Origin::Dockerfile { from } = recipe.origin {
                let base = RECIPES.iter().position(|other| other.name == from).unwrap();
                assert!(base < position, "{} stands before {from}", recipe.name);
                let text = fs::read_to_string(recipe.context().join("Dockerfile")).unwrap();
                let line = text.lines().find(|line| line.starts_with("FROM ")).unwrap();
                let name = line.split(' ').nth(1).unwrap();
                let tags = RECIPES[base].tags;
                assert!(
                    tags.contains(&name) || tags.contains(&format!("{name}:latest").as_str()),
                    "{line}"
                );
            }
        }
    }

    #[test]
    fn names_bring_their_bases() {
        let names = |wanted: &[&str]| -> Vec<&str> {
            closure(wanted)
                .unwrap()
                .iter()
                .map(|recipe| recipe.name)
                .collect()
        };
        assert_eq!(names(&["node"]), ["debian", "node"]);
        assert_eq!(names(&["alpine", "busybox"]), ["busybox", "alpine"]);
        assert_eq!(names(&[]).len(), RECIPES.len());
        assert!(
            closure(&["fedora"])
                .unwrap_err()
                .to_string()
                .contains("`fedora`")
        );
    }

    #[test]
    fn bases_are_made_before_what_stands_on_them() {
        let all: Vec<&Recipe> = RECIPES.iter().collect();
        let names = |recipes: &[&Recipe]| -> Vec<&str> {
            recipes.iter().map(|recipe| recipe.name).collect()
        };
        let (first, rest) = ready(&all);
        assert_eq!(names(&first), ["busybox", "debian"]);
        let (second, rest) = ready(&rest);
        assert_eq!(names(&second), ["alpine", "nginx", "python", "gcc", "node"]);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_changed_file_changes_the_description() {
        let scratch = Scratch::new("test-tree").unwrap();
        fs::create_dir(scratch.join("sub")).unwrap();
        fs::write(scratch.join("sub/file"), "one").unwrap();
        let before = tree(scratch.path(), Path::new("")).unwrap();
        assert_eq!(before, tree(scratch.path(), Path::new("")).unwrap());
        assert!(before.ends_with(" 0 sub/file\n"), "{before}");
        fs::write(scratch.join("sub/file"), "two").unwrap();
        assert_ne!(before, tree(scratch.path(), Path::new("")).unwrap());
    }
}
