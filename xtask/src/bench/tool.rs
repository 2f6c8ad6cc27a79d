//! How each builder is told to do a thing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::kiln::Kiln;
use crate::process;
use crate::scratch::{self, Scratch};

/// A builder with a store.
#[derive(Debug)]
pub(super) enum Tool {
    /// Ours.
    Kiln(Kiln),
    /// buildah with a store of its own, in this directory.
    Buildah(PathBuf),
    /// podman with a store of its own, in this directory.
    Podman(PathBuf),
    /// skopeo, which only copies: its store is this layout.
    Skopeo(PathBuf),
    /// The machine's docker daemon and its process; its store is not ours to empty.
    Docker(Option<u32>),
}

impl Tool {
    /// Returns kiln and those of the others that this machine has.
    pub(super) fn present(binary: &Path, scratch: &Scratch) -> Result<Vec<Self>> {
        let kiln = Kiln::new(binary, scratch.join("kiln"));
        let mut tools = vec![
            Self::Kiln(kiln),
            Self::Buildah(scratch.join("buildah")),
            Self::Podman(scratch.join("podman")),
            Self::Skopeo(scratch.join("skopeo")),
        ];
        // a docker program without a daemon is no docker
        if process::quiet(Command::new("docker").arg("version")).is_ok() {
            let pid = fs::read_to_string("/var/run/docker.pid").ok();
            tools.push(Self::Docker(pid.and_then(|text| text.trim().parse().ok())));
        }
        for tool in &tools {
            tool.reset()?;
        }
        Ok(tools)
    }

    /// The kiln that makes images for the others to move.
    pub(super) fn publisher(binary: &Path, scratch: &Scratch) -> Self {
        Self::Kiln(Kiln::new(binary, scratch.join("publisher")))
    }

    /// Whether a workload is for this tool: what podman builds with is buildah.
    pub(super) fn takes_part(&self, workload: &str) -> bool {
        match self {
            Self::Docker(_) if workload == "pushzstd" => false,
            Self::Kiln(_) | Self::Buildah(_) | Self::Docker(_) => true,
            Self::Podman(_) => ["pull", "repush", "unpack"].contains(&workload),
            Self::Skopeo(_) => ["pull", "repush"].contains(&workload),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Kiln(_) => "kiln",
            Self::Buildah(_) => "buildah",
            Self::Podman(_) => "podman",
            Self::Skopeo(_) => "skopeo",
            Self::Docker(_) => "docker",
        }
    }

    /// Returns what the tool calls its version.
    pub(super) fn version(&self) -> String {
        let text = process::output(self.command().arg("--version")).unwrap_or_default();
        text.lines().next().unwrap_or("unknown version").to_owned()
    }

    /// Returns the process that works on behalf of the commands.
    pub(super) fn daemon(&self) -> Option<u32> {
        match self {
            Self::Docker(pid) => *pid,
            Self::Kiln(_) | Self::Buildah(_) | Self::Podman(_) | Self::Skopeo(_) => None,
        }
    }

    /// Empties the store; docker's is left alone but for its build cache.
    pub(super) fn reset(&self) -> Result<()> {
        let folder = match self {
            Self::Kiln(kiln) => kiln.root(),
            Self::Buildah(folder) | Self::Podman(folder) | Self::Skopeo(folder) => folder,
            Self::Docker(_) => {
                return process::quiet(self.command().args(["builder", "prune", "-af"]));
            }
        };
        scratch::remove(folder)?;
        fs::create_dir_all(folder)?;
        Ok(())
    }

    /// Makes the store forget one image.
    pub(super) fn forget(&self, image: &str) -> Result<()> {
        match self {
            Self::Kiln(_) | Self::Buildah(_) | Self::Podman(_) | Self::Skopeo(_) => self.reset(),
            Self::Docker(_) => process::quiet(self.command().args(["rmi", "-f", image])),
        }
    }

    /// Gives an image another name.
    pub(super) fn tag(&self, image: &str, name: &str) -> Command {
        let mut command = self.command();
        match self {
            // Its layout has no names.
            Self::Skopeo(_) => command.arg("--version"),
            _ => command.args(["tag", image, name]),
        };
        command
    }

    /// Takes a name away.
    pub(super) fn untag(&self, name: &str) -> Result<()> {
        match self {
            Self::Skopeo(_) => Ok(()),
            _ => process::quiet(self.command().args(["rmi", name])),
        }
    }

    /// Pulls an image and has it unpacked, so that it can be used.
    pub(super) fn unpack(&self, image: &str) -> Command {
        match self {
            Self::Kiln(_) => {
                let mut command = self.command();
                command.args(["run", "--rm", "--network", "host", image, "true"]);
                command
            }
            _ => self.pull(image),
        }
    }

    pub(super) fn build(&self, context: &Path, dockerfile: &Path, image: &str) -> Command {
        let mut command = self.command();
        match self {
            Self::Kiln(_) | Self::Docker(_) => command.arg("build"),
            Self::Buildah(_) | Self::Podman(_) | Self::Skopeo(_) => {
                command.args(["bud", "--layers", "--tls-verify=false", "--runtime", "runc"])
            }
        };
        command
            .args(["--network", "host", "-t", image, "-f"])
            .arg(dockerfile)
            .arg(context);
        command
    }

    pub(super) fn push(&self, image: &str) -> Command {
        let mut command = self.command();
        match self {
            Self::Kiln(_) | Self::Docker(_) => command.args(["push", image]),
            Self::Buildah(_) | Self::Podman(_) => command
                .args(["push", "--tls-verify=false", image])
                .arg(format!("docker://{image}")),
            Self::Skopeo(folder) => command
                .args(["copy", "--dest-tls-verify=false"])
                .arg(layout(folder))
                .arg(format!("docker://{image}")),
        };
        command
    }

    /// Pushes with layers that are compressed by zstd.
    pub(super) fn push_zstd(&self, image: &str) -> Command {
        let mut command = self.command();
        match self {
            Self::Kiln(_) => command.args(["push", "--compression", "zstd", image]),
            _ => command
                .args(["push", "--tls-verify=false", "--compression-format", "zstd"])
                .arg(image)
                .arg(format!("docker://{image}")),
        };
        command
    }

    pub(super) fn pull(&self, image: &str) -> Command {
        let mut command = self.command();
        match self {
            Self::Kiln(_) | Self::Docker(_) => command.args(["pull", image]),
            Self::Buildah(_) | Self::Podman(_) => {
                command.args(["pull", "--tls-verify=false", image])
            }
            Self::Skopeo(folder) => command
                .args(["copy", "--src-tls-verify=false"])
                .arg(format!("docker://{image}"))
                .arg(layout(folder)),
        };
        command
    }

    pub(super) fn save(&self, image: &str, archive: &Path) -> Command {
        let mut command = self.command();
        match self {
            Self::Kiln(_) | Self::Docker(_) => command.args(["save", "-o"]).arg(archive).arg(image),
            Self::Buildah(_) | Self::Podman(_) | Self::Skopeo(_) => command
                .args(["push", image])
                .arg(format!("docker-archive:{}:{image}", archive.display())),
        };
        command
    }

    pub(super) fn load(&self, archive: &Path) -> Command {
        let mut command = self.command();
        match self {
            Self::Kiln(_) | Self::Docker(_) => command.args(["load", "-i"]).arg(archive),
            Self::Buildah(_) | Self::Podman(_) | Self::Skopeo(_) => command
                .arg("pull")
                .arg(format!("docker-archive:{}", archive.display())),
        };
        command
    }

    fn command(&self) -> Command {
        match self {
            Self::Kiln(kiln) => kiln.command(),
            Self::Skopeo(_) => Command::new("skopeo"),
            Self::Buildah(folder) | Self::Podman(folder) => {
                let mut command = Command::new(self.name());
                command.arg("--root").arg(folder.join("root"));
                command.arg("--runroot").arg(folder.join("run"));
                command.args(["--storage-driver", "overlay"]);
                command
            }
            Self::Docker(_) => {
                let mut command = Command::new("docker");
                // Older ones have the classic builder by default.
                command.env("DOCKER_BUILDKIT", "1");
                command
            }
        }
    }
}

/// What skopeo calls a layout.
fn layout(folder: &Path) -> String {
    format!("oci:{}:latest", folder.display())
}
