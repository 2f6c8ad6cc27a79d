//! `cargo xtask dist`: the static binaries, in `target/dist`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::peers::{self, Peer};
use crate::{kiln, no_arguments, process, workspace};

/// A platform that binaries are made for.
struct Platform {
    /// Name in the file's name.
    name: &'static str,
    target: &'static str,
    /// A cross compiler that is better than the peer, where somebody has it.
    compiler: &'static str,
    /// The C compiler that other machines can install.
    cross: Option<Peer>,
}

const PLATFORMS: [Platform; 2] = [
    Platform {
        name: "x86_64",
        target: "x86_64-unknown-linux-musl",
        compiler: "x86_64-linux-musl-gcc",
        cross: None,
    },
    // musl has those functions of the GNU library that its headers ask for
    Platform {
        name: "aarch64",
        target: "aarch64-unknown-linux-musl",
        compiler: "aarch64-linux-musl-gcc",
        cross: Some(peers::AARCH64),
    },
];

/// Builds the binary for this machine's architecture, and for the other one where that can be done.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    no_arguments("dist", arguments)?;
    for platform in &PLATFORMS {
        let own = platform.name == std::env::consts::ARCH;
        match platform.build() {
            Ok(_) => {}
            Err(error) if own => return Err(error),
            Err(error) => println!("kiln-{}: not built: {error:#}", platform.name),
        }
    }
    Ok(())
}

/// Builds the binary for this machine's architecture, and says where it is.
pub(crate) fn own() -> Result<PathBuf> {
    let own = PLATFORMS
        .iter()
        .find(|platform| platform.name == std::env::consts::ARCH);
    own.context("no static binary can be made on this architecture")?
        .build()
}

impl Platform {
    fn build(&self) -> Result<PathBuf> {
        let compiler = self.compiler()?;
        self.add_target()?;
        let upper = self.target.to_uppercase().replace('-', "_");
        let lower = self.target.replace('-', "_");
        let mut cargo = kiln::cargo();
        cargo
            .args([
                "build",
                "--release",
                "--package",
                "kiln-builder",
                "--bin",
                "kiln",
            ])
            .args(["--target", self.target])
            .env(format!("CC_{lower}"), compiler);
        // Debian's wrapper of musl knows nothing of `-static-pie` and names an interpreter; rustc
        // brings what else the host's own linker needs
        if !self.is_own() {
            cargo.env(format!("CARGO_TARGET_{upper}_LINKER"), compiler);
        }
        process::run(&mut cargo)?;
        let built = workspace::target().join(self.target).join("release/kiln");
        let folder = workspace::target().join("dist");
        fs::create_dir_all(&folder)?;
        let file = folder.join(format!("kiln-{}", self.name));
        fs::copy(&built, &file).with_context(|| format!("cannot copy `{}`", built.display()))?;
        check_static(&file)?;
        let size = fs::metadata(&file)?.len();
        println!("{} ({:.1} MB)", file.display(), size as f64 / 1e6);
        Ok(file)
    }

    /// Whether it is the machine's own.
    fn is_own(&self) -> bool {
        self.name == std::env::consts::ARCH
    }

    fn compiler(&self) -> Result<&'static str> {
        if process::find(self.compiler).is_some() {
            return Ok(self.compiler);
        }
        let own = self.is_own();
        let Some(peer) = self.cross.filter(|_| !own).or(own.then_some(peers::MUSL)) else {
            bail!("no C compiler for it: install `{}`", self.compiler);
        };
        peers::ensure(&[peer])?;
        Ok(peer.program())
    }

    fn add_target(&self) -> Result<()> {
        let library = process::output(Command::new("rustc").args([
            "--print",
            "target-libdir",
            "--target",
            self.target,
        ]))?;
        if Path::new(library.trim()).is_dir() {
            return Ok(());
        }
        if process::find("rustup").is_none() {
            bail!(
                "no standard library for `{}`, and no rustup to install it",
                self.target
            );
        }
        process::quiet(Command::new("rustup").args(["target", "add", self.target]))
    }
}

/// Program header types of ELF that say what a binary needs at run time.
const PT_INTERP: u32 = 3;

/// Fails when a binary (64 bits, little endian) needs an interpreter to load libraries.
fn check_static(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let number = |at: usize, size: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(size)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        )
    };
    let headers = || -> Option<Vec<u64>> {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|n| number(usize::try_from(start + n * size).ok()?, 4))
            .collect()
    };
    let Some(types) = headers().filter(|_| bytes.starts_with(b"\x7fELF")) else {
        bail!("`{}` is not an ELF binary", path.display());
    };
    if types.contains(&u64::from(PT_INTERP)) {
        bail!("`{}` is not static", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn tells_static_from_dynamic() {
        let own = std::env::current_exe().unwrap();
        assert!(
            check_static(&own)
                .unwrap_err()
                .to_string()
                .contains("is not static")
        );
        let error = check_static(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("not an ELF"));
        let scratch = Scratch::new("test-static").unwrap();
        let mut header = b"\x7fELF".to_vec();
        header.resize(64, 0);
        fs::write(scratch.join("none"), &header).unwrap();
        check_static(&scratch.join("none")).unwrap();
        header[32] = 64;
        header[54] = 56;
        header[56] = 1;
        fs::write(scratch.join("cut"), &header).unwrap();
        assert!(check_static(&scratch.join("cut")).is_err());
    }
}
