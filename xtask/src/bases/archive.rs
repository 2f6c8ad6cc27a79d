//! A root file system as an archive that `kiln load` and `docker load` read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{peers, process};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TO_ROOT: [&str; 2] = ["--owner=0", "--group=0"];
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Writes a docker-archive of one layer into `work` and returns its path.
pub(super) fn docker_archive(
    rootfs: &Path,
    name: &str,
    shell: &str,
    work: &Path,
) -> Result<PathBuf> {
    let folder = work.join("archive");
    fs::create_dir_all(&folder)?;
    let layer = folder.join("layer.tar");
    // what the kernel shows in these folders is not the image's
    let hidden = [
        "--exclude=./dev/*",
        "--exclude=./proc/*",
        "--exclude=./sys/*",
    ];
    let mut pack = tar(&layer);
    if !peers::is_root() {
        // who made the files cannot give them to anybody else
        pack.args(TO_ROOT);
    }
    process::quiet(pack.args(hidden).arg("-C").arg(rootfs).arg("."))?;

    let config = config(&process::sha256_file(&layer)?, shell)?;
    let config_name = format!("{}.json", process::sha256(config.as_bytes())?);
    fs::write(folder.join(&config_name), &config)?;
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("manifest.json"), manifest.to_string())?;

    let archive = work.join("archive.tar");
    let members = ["manifest.json", &config_name, "layer.tar"];
    process::quiet(
        tar(&archive)
            .args(TO_ROOT)
            .arg("-C")
            .arg(&folder)
            .args(members),
    )?;
    fs::remove_dir_all(&folder).context("cannot remove the unpacked archive")?;
    Ok(archive)
}

fn tar(archive: &Path) -> Command {
    let mut command = Command::new("tar");
    command
        .args(["--create", "--sort=name", "--numeric-owner"])
        .arg("--file")
        .arg(archive);
    command
}

/// Returns the image configuration for one layer.
fn config(diff_id: &str, shell: &str) -> Result<String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no base images for the architecture `{other}`"),
    };
    let config = json!({
        "created": EPOCH,
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [format!("PATH={PATH}")], "Cmd": [shell]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created": EPOCH, "created_by": "cargo xtask bases"}],
    });
    Ok(config.to_string())
}
