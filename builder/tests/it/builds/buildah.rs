//! buildah makes the same images, and podman runs kiln's.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::image::Image;
use crate::env::{Run, TestEnv};

/// Where both tools keep what they have. What they leave mounted there goes away with this value.
#[derive(Debug)]
pub(super) struct Storage {
    folder: PathBuf,
}

impl Storage {
    /// Prepares a folder; images of Docker Hub come from the registry at `mirror`.
    pub(super) fn new(folder: PathBuf, mirror: &str) -> Self {
        fs::create_dir(&folder).unwrap();
        // mounts are listed under the name without links
        let folder = fs::canonicalize(folder).unwrap();
        let registries = format!(
            "unqualified-search-registries = [\"docker.io\"]\n\
             [[registry]]\nlocation = \"docker.io\"\n\
             [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        );
        fs::write(folder.join("registries.conf"), registries).unwrap();
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(folder.join("policy.json"), policy).unwrap();
        Self { folder }
    }

    /// buildah's image of a Dockerfile in a context; `args` are more arguments.
    pub(super) fn build(&self, env: &TestEnv, name: &str, args: &[&str], context: &Path) -> Image {
        self.tool(env, "buildah", &["bud", "--signature-policy"])
            .arg(self.folder.join("policy.json"))
            .args(["--layers", "--format", "docker", "--identity-label=false"])
            .args(["--network", "host", "--runtime", "runc"])
            .args(["-t", name])
            .args(args.iter().copied())
            .arg(context)
            .inherit(&super::NETWORK)
            .success();
        let archive = env.path("buildah.tar");
        self.tool(env, "buildah", &["push", "--signature-policy"])
            .arg(self.folder.join("policy.json"))
            .arg(name)
            .arg(format!("docker-archive:{}:{name}:1", archive.display()))
            .success();
        Image::read(&archive, &env.path("buildah"))
    }

    /// A container of an image in a registry, without a network; its command is to be added.
    pub(super) fn run(&self, env: &TestEnv, options: &[&str], image: &str) -> Run {
        self.tool(env, "podman", &["--cgroup-manager", "cgroupfs"])
            .args(["--runtime", "runc", "run", "--rm", "--tls-verify=false"])
            .arg("--signature-policy")
            .arg(self.folder.join("policy.json"))
            .args(["--network", "none", "-i"])
            // podman's own are above what root in a container may ask for
            .args([
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
            ])
            .args(options.iter().copied())
            .arg(image)
    }

    fn tool(&self, env: &TestEnv, program: &str, args: &[&str]) -> Run {
        let run = env.program(program, []);
        run.env(
            "CONTAINERS_REGISTRIES_CONF",
            self.folder.join("registries.conf"),
        )
        .args(["--storage-driver", "overlay", "--root"])
        .arg(self.folder.join("root"))
        .arg("--runroot")
        .arg(self.folder.join("run"))
        .args(args.iter().copied())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(&self.folder)) {
            // what stays mounted stays behind, which is all that can be done here
            unmount(point, UnmountFlags::DETACH).ok();
        }
    }
}
