//! A step to run: a busybox root below, an empty writable directory above.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kiln_builder::runtime::{
    Cancel, Exit, Files, Isolation, Mount, Native, Network, Privileges, ProcessSpec, Root,
    RuntimeError, Seccomp, Stream, Streams,
};
use tempfile::TempDir;

/// Where the test has to run as root, says so and skips, unless a CI would take that for success.
macro_rules! needs_root {
    () => {
        if !$crate::env::is_root() {
            eprintln!("SKIPPED: {} needs root", module_path!());
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            return;
        }
    };
}
pub(crate) use needs_root;

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The runtime core with the kiln of this build as its sandbox.
pub(crate) fn native() -> Native {
    static NATIVE: OnceLock<Native> = OnceLock::new();
    let new = || Native::new(PathBuf::from(env!("CARGO_BIN_EXE_kiln")));
    NATIVE.get_or_init(new).clone()
}

/// A layer with busybox and the usual users, but without /proc, /dev, /sys and /etc/hosts.
pub(crate) fn busybox() -> &'static Path {
    static LAYER: OnceLock<TempDir> = OnceLock::new();
    LAYER
        .get_or_init(|| {
            let layer = TempDir::new().unwrap();
            make_busybox(layer.path());
            layer
        })
        .path()
}

fn make_busybox(layer: &Path) {
    for name in ["bin", "etc", "tmp", "home", "root"] {
        fs::create_dir(layer.join(name)).unwrap();
    }
    rustix::fs::chmod(layer.join("tmp"), rustix::fs::Mode::from_raw_mode(0o1777)).unwrap();
    rustix::fs::chmod(layer, rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
    fs::copy("/bin/busybox", layer.join("bin/busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n";
    fs::write(layer.join("etc/passwd"), passwd).unwrap();
    let group = "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nextra:x:77:app\n";
    fs::write(layer.join("etc/group"), group).unwrap();
}

pub(crate) struct Step {
    pub(crate) spec: ProcessSpec,
    pub(crate) directory: TempDir,
}

pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Step {
    /// A shell script.
    pub(crate) fn sh(script: &str) -> Self {
        Self::exec(&["/bin/sh", "-c", script])
    }

    /// A program with arguments.
    pub(crate) fn exec(args: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (upper, work) = (
            directory.path().join("upper"),
            directory.path().join("work"),
        );
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let points = directory.path().join("points");
        fs::create_dir(&points).unwrap();
        let spec = ProcessSpec {
            args: args.iter().map(ToString::to_string).collect(),
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            secret_env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            root: Root {
                files: Files::Overlay {
                    lowers: vec![busybox().to_owned()],
                    upper,
                },
                work,
                points,
                read_only: false,
            },
            hostname: "buildkitsandbox".to_owned(),
            network: Network::Host,
            hosts: "127.0.0.1 localhost buildkitsandbox\n".to_owned(),
            resolv_conf: "nameserver 192.0.2.1\n".to_owned(),
            mounts: Vec::new(),
            shm_size: 64 << 20,
            rlimits: Vec::new(),
            privileges: Privileges::Sandbox(Seccomp::Default),
            cgroups: Vec::new(),
            isolation: Isolation::Root,
            streams: Streams::Pipes,
        };
        Self { spec, directory }
    }

    pub(crate) fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.spec.user);
        self
    }

    pub(crate) fn cwd(mut self, cwd: &str) -> Self {
        cwd.clone_into(&mut self.spec.cwd);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.spec.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn mount(mut self, mount: Mount) -> Self {
        self.spec.mounts.push(mount);
        self
    }

    /// Puts a layer on top of the others, made by a function.
    pub(crate) fn layer(mut self, make: impl FnOnce(&Path)) -> Self {
        let Files::Overlay { lowers, .. } = &mut self.spec.root.files else {
            panic!("only an overlay has layers");
        };
        let layer = self.directory.path().join(format!("layer{}", lowers.len()));
        fs::create_dir(&layer).unwrap();
        make(&layer);
        lowers.insert(0, layer);
        self
    }

    pub(crate) fn run(&self) -> Outcome {
        self.try_run().unwrap()
    }

    pub(crate) fn try_run(&self) -> Result<Outcome, RuntimeError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut collect = |stream, bytes: &[u8]| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        };
        let exit = native().run(&self.spec, &mut collect, &Cancel::new().unwrap())?;
        assert!(
            fs::read_dir(&self.spec.root.work).unwrap().next().is_none(),
            "the work directory is empty again"
        );
        Ok(Outcome {
            exit,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Runs, expects success and gives what it printed, without the last line's end.
    pub(crate) fn output(&self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.exit, Exit::Code(0), "{}", outcome.stderr);
        outcome.stdout.trim_end().to_owned()
    }

    pub(crate) fn upper(&self) -> &Path {
        self.spec.root.files.writable()
    }

    /// All paths in the writable directory.
    pub(crate) fn changes(&self) -> BTreeSet<String> {
        let entries = walkdir::WalkDir::new(self.upper()).min_depth(1);
        let path = |entry: walkdir::Result<walkdir::DirEntry>| {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(self.upper()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        entries.into_iter().map(path).collect()
    }
}

pub(crate) fn bind(source: &Path, target: &str, writable: bool) -> Mount {
    Mount::Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        writable,
    }
}

pub(crate) fn tmpfs(target: &str) -> Mount {
    Mount::Tmpfs {
        target: target.to_owned(),
        size: None,
    }
}
