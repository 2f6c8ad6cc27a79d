//! Another runtime in kiln's place: crun, runc, youki, or what else takes an OCI bundle.
//!
//! The same process specification is run, and the same sandbox process keeps it: kiln mounts the
//! root and all that a step asks for, so that nothing of a mount point enters a layer (B1.6), and
//! then starts the runtime where it would else become the step's program. What the runtime starts is
//! below the sandbox, which ends it whatever happens.
//!
//! `config` is what the runtime is told, `bundle` how it is run.

mod bundle;
mod config;

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::filesystems::DevBy;
use super::{Isolation, ProcessSpec, RuntimeError, Streams};

pub(super) use bundle::run;

/// A runtime of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Absolute path.
    path: PathBuf,
}

impl Program {
    /// Finds a runtime: a name is looked for in a `PATH` and where administrators' programs are, a
    /// path is taken as it is.
    ///
    /// # Errors
    /// `NotFound` when there is none, `PermissionDenied` for a file that is no program.
    pub fn find(name: &str, path: Option<&OsStr>) -> io::Result<Self> {
        if name.contains('/') {
            let path = std::path::absolute(name)?;
            return match is_program(&path)? {
                true => Ok(Self { path }),
                false => Err(io::ErrorKind::PermissionDenied.into()),
            };
        }
        let listed = path.map(std::env::split_paths).into_iter().flatten();
        let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let mut paths = listed
            .chain(usual)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(name));
        let found = paths.find(|path| is_program(path).unwrap_or(false));
        match found {
            Some(path) if !name.is_empty() => Ok(Self { path }),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// How it is called in messages.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What of a specification it cannot do.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`]
    pub(super) fn check(&self, spec: &ProcessSpec) -> Result<(), RuntimeError> {
        let mut secrets = spec.secret_env.iter();
        let what = match (spec.isolation, spec.streams) {
            _ if secrets.any(|(_, value)| std::str::from_utf8(value.expose()).is_err()) => {
                "a secret in a variable that is no text"
            }
            (Isolation::Root, Streams::Terminal { .. }) => "a terminal",
            (Isolation::Root, _) => return Ok(()),
            (Isolation::Rootless(_), _) => "a step without the host's root",
            (Isolation::Chroot, _) => "a step without the right to mount",
        };
        Err(RuntimeError::Unsupported {
            runtime: self.name(),
            what,
        })
    }
}

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// One run by a runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Container {
    program: Program,
    /// Its name, and that of its control group.
    id: String,
}

impl Container {
    /// With a name that nobody else has.
    pub(super) fn new(program: Program) -> io::Result<Self> {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(Self {
            program,
            id: format!("kiln-{}", uuid.trim()),
        })
    }

    /// Where its control group is to be, in the words of the specification: in the unified hierarchy
    /// from its top, below the group that the process is to run in; in the old ones below the group
    /// of the sandbox, which another one is for each of them. None where [`Self::joins`] holds.
    fn cgroup(&self, spec: &ProcessSpec) -> Option<String> {
        if self.joins() {
            return None;
        }
        if !is_unified() {
            return Some(self.id.clone());
        }
        let group = spec.cgroups.first().and_then(|file| file.parent());
        let below = group.and_then(|group| group.strip_prefix(CGROUPS).ok());
        let path = Path::new("/")
            .join(below.unwrap_or(Path::new("")))
            .join(&self.id);
        path.to_str().map(str::to_owned)
    }

    /// Whether the process runs in the control groups of the sandbox, and the runtime makes none: on
    /// hosts that mix both kinds of hierarchies crun cannot make one.
    fn joins(&self) -> bool {
        let controllers = Path::new(CGROUPS).join("unified/cgroup.controllers");
        let hybrid = std::fs::read(controllers).is_ok_and(|names| !names.is_empty());
        hybrid && self.program.name().starts_with("crun")
    }

    /// Who fills /dev. youki makes what it has by default whatever there is.
    fn dev_by(&self) -> DevBy {
        match self.program.name().starts_with("youki") {
            true => DevBy::Runtime,
            false => DevBy::Us,
        }
    }

    /// The group of its own that says which devices it may open.
    fn devices(&self) -> PathBuf {
        Path::new(CGROUPS).join("devices").join(&self.id)
    }

    /// Removes its control groups, which a runtime that was killed leaves.
    pub(super) fn clean(&self, spec: &ProcessSpec) {
        let wanted = spec.cgroups.iter().filter_map(|file| file.parent());
        let mut places: Vec<_> = wanted.map(Path::to_owned).collect();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let names = fields.next().unwrap_or_default();
            let hierarchy = match names.trim_start_matches("name=") {
                "" if is_unified() => "",
                "" => "unified",
                names => names,
            };
            let top = Path::new(CGROUPS).join(hierarchy);
            let group = fields.next().unwrap_or_default();
            places.push(top.join(group.trim_start_matches('/')));
            places.push(top);
        }
        for place in places {
            // Most are not there, or gone already.
            drop(std::fs::remove_dir(place.join(&self.id)));
        }
    }
}

/// Whether the host has the unified hierarchy only.
fn is_unified() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}

fn is_program(path: &Path) -> io::Result<bool> {
    let metadata = std::fs::metadata(path)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_found_by_name_and_by_path() {
        let directory = tempfile::TempDir::new().unwrap();
        let program = directory.path().join("some-runtime");
        std::fs::write(&program, "").unwrap();
        let find = |name: &str| Program::find(name, Some(directory.path().as_os_str()));
        let kind = |name: &str| find(name).unwrap_err().kind();
        let path = program.to_str().unwrap();
        assert_eq!(kind("some-runtime"), io::ErrorKind::NotFound);
        assert_eq!(kind(path), io::ErrorKind::PermissionDenied);
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("some-runtime").unwrap().path, program);
        assert_eq!(find(path).unwrap().name(), "some-runtime");
        for name in ["", "other-runtime", "/absent/runtime"] {
            assert_eq!(kind(name), io::ErrorKind::NotFound);
        }
    }
}
