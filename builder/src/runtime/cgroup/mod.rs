//! Control groups of a step (B4.5), of the first version, the second, or both.
//!
//! Only what a flag asks for makes groups: entering one takes the kernel several milliseconds, more
//! than all else of a step. Each step has a group of its own in each hierarchy that it needs, below
//! `--cgroup-parent`, or kiln's own group; in the unified hierarchy, where a group with processes may
//! have none below, beside kiln's. It goes with the step; where kiln was killed, with the next kiln.

mod group;
mod machine;
mod memory;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

pub use memory::MemoryKill;

use crate::graph::{Amount, Resources};
use group::Group;
use machine::{Hierarchy, Machine, Version};
use memory::Watch;

/// Why limits cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The list of hierarchies cannot be read.
    #[error("cannot find the control groups of this machine")]
    Machine(#[source] io::Error),
    /// No hierarchy has the controller.
    #[error(
        "--{flag} cannot be kept: this machine has no `{controller}` controller for control groups"
    )]
    NoController {
        /// The flag, without dashes.
        flag: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// A group cannot be made.
    #[error("--{flag} cannot be kept: no control group can be made in `{}`", place.display())]
    Group {
        /// The flag, without dashes.
        flag: &'static str,
        /// Where.
        place: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a limit.
    #[error("--{flag} cannot be kept: `{value}` is refused by `{file}`")]
    Limit {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was written.
        value: String,
        /// Where to.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// `--cgroup-parent` is no path below a root.
    #[error("invalid value `{0}` for --cgroup-parent: expected a path of control groups")]
    Parent(String),
}

impl CgroupError {
    /// What could be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let Self::Group { source, .. } = self else {
            return None;
        };
        let denied = matches!(
            source.raw_os_error(),
            Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::EBUSY | libc::ENOENT)
        );
        let hint = "control groups have to be delegated to kiln: as in \
                    `systemd-run --user --scope -p Delegate=yes kiln build …`, or, in a container, with \
                    a cgroup file system that can be written to";
        denied.then(|| hint.to_owned())
    }
}

/// What a step came to in its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The kernel killed a process of it for want of memory.
    pub memory: Option<MemoryKill>,
    /// How often it could not start a process because of `--pids-limit`, and the limit.
    pub processes: Option<(u64, u64)>,
}

/// The control groups of one step; dropped, they are gone, with all that is in them.
#[derive(Debug)]
pub struct Groups {
    groups: Vec<Group>,
    /// Index of the group with the memory controller.
    memory: Option<usize>,
    /// Index of the group with the pids controller.
    pids: Option<usize>,
    resources: Resources,
    watch: Option<Watch>,
}

/// One limit, as a hierarchy's version has it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    flag: &'static str,
    file: &'static str,
    value: String,
    /// Whether a kernel that does not have the file may do without.
    optional: bool,
}

impl Groups {
    /// Makes groups that keep these limits; none where nothing is asked for.
    ///
    /// # Errors
    /// [`CgroupError`], and no group is left.
    pub fn make(resources: &Resources, parent: Option<&str>) -> Result<Option<Self>, CgroupError> {
        if resources.is_empty() && parent.is_none() {
            return Ok(None);
        }
        let parent = parent.map(parent_path).transpose()?;
        let machine = Machine::read().map_err(CgroupError::Machine)?;
        let mut groups = Self {
            groups: Vec::new(),
            memory: None,
            pids: None,
            resources: resources.clone(),
            watch: None,
        };
        let needs = needs(resources);
        for (controller, flag) in &needs {
            if machine.with(controller).is_none() {
                return Err(CgroupError::NoController { flag, controller });
            }
        }
        for hierarchy in &machine.hierarchies {
            groups.add(hierarchy, parent.as_deref(), &needs)?;
        }
        if let (Some(index), Some(limit)) = (groups.memory, resources.memory) {
            let group = &groups.groups[index];
            // Without it a kill has one word less to say.
            groups.watch = Watch::start(&group.path, group.version, limit).ok();
        }
        Ok(Some(groups))
    }

    /// Makes the group of one hierarchy, if it is needed there.
    fn add(
        &mut self,
        hierarchy: &Hierarchy,
        parent: Option<&Path>,
        needs: &[(&'static str, &'static str)],
    ) -> Result<(), CgroupError> {
        let has = |name: &str| hierarchy.controllers.iter().any(|one| one == name);
        let needed: Vec<_> = needs.iter().filter(|(name, _)| has(name)).collect();
        let flag = match (needed.first(), parent) {
            (Some((_, flag)), _) => flag,
            (None, Some(_)) if !hierarchy.controllers.is_empty() => "cgroup-parent",
            _ => return Ok(()),
        };
        let wanted: Vec<_> = needed.iter().map(|(name, _)| *name).collect();
        let group = Group::make(hierarchy, parent, &wanted).map_err(|source| {
            let own = hierarchy.own.as_deref().unwrap_or(&hierarchy.root);
            let place = parent.map(|parent| hierarchy.root.join(parent));
            CgroupError::Group {
                flag,
                place: place.unwrap_or_else(|| own.to_owned()),
                source,
            }
        })?;
        let path = group.path.clone();
        let index = self.groups.len();
        self.groups.push(group);
        for name in wanted {
            match name {
                "memory" => self.memory = Some(index),
                "pids" => self.pids = Some(index),
                _ => {}
            }
            for setting in settings(&self.resources, name, hierarchy.version) {
                setting.write(&path)?;
            }
        }
        Ok(())
    }

    /// The files that a process enters them by.
    #[must_use]
    pub fn procs(&self) -> Vec<PathBuf> {
        self.groups.iter().map(Group::procs).collect()
    }

    /// What became of the step, which has ended; the groups go.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let watched = self.watch.take().and_then(Watch::finish);
        let memory = self.memory.and_then(|index| self.groups.get(index));
        let memory = memory.and_then(|group| {
            memory::report(&group.path, group.version, self.resources.memory, watched)
        });
        let pids = self.pids.and_then(|index| self.groups.get(index));
        let hits = pids.map_or(0, |group| {
            memory::event(&group.path.join("pids.events"), "max")
        });
        let processes = self.resources.pids.filter(|_| hits > 0);
        Report {
            memory,
            processes: processes.map(|limit| (hits, limit)),
        }
    }
}

impl Setting {
    fn write(&self, group: &Path) -> Result<(), CgroupError> {
        // A file that is not there is not to be made.
        let file = File::options().write(true).open(group.join(self.file));
        match file.and_then(|mut file| file.write_all(self.value.as_bytes())) {
            Err(error) if self.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| CgroupError::Limit {
                flag: self.flag,
                value: self.value.clone(),
                file: self.file,
                source,
            }),
        }
    }
}

/// The controllers that limits need, and the flag to blame.
fn needs(resources: &Resources) -> Vec<(&'static str, &'static str)> {
    let Resources {
        memory,
        memory_swap: _,
        cpu_shares,
        cpu_period,
        cpu_quota,
        cpuset_cpus,
        cpuset_mems,
        pids,
    } = resources;
    let cpu = match (cpu_quota, cpu_period, cpu_shares) {
        (Some(_), ..) => Some("cpu-quota"),
        (_, Some(_), _) => Some("cpu-period"),
        (.., Some(_)) => Some("cpu-shares"),
        _ => None,
    };
    let cpuset = match (cpuset_cpus, cpuset_mems) {
        (Some(_), _) => Some("cpuset-cpus"),
        (_, Some(_)) => Some("cpuset-mems"),
        _ => None,
    };
    [
        ("memory", memory.map(|_| "memory")),
        ("cpu", cpu),
        ("cpuset", cpuset),
        ("pids", pids.map(|_| "pids-limit")),
    ]
    .into_iter()
    .filter_map(|(controller, flag)| Some((controller, flag?)))
    .collect()
}

/// What is to be written for the limits of one controller, in order.
fn settings(resources: &Resources, controller: &str, version: Version) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |flag, file, value: String, optional| {
        settings.push(Setting {
            flag,
            file,
            value,
            optional,
        });
    };
    match (controller, version) {
        ("memory", version) => {
            let memory = resources.memory.unwrap_or(u64::MAX);
            // As docker has it, there is as much swap as memory where nothing is said of it.
            let both = match resources.memory_swap {
                Some(Amount::AtMost(both)) => Some(both),
                Some(Amount::Unlimited) => None,
                None => Some(memory.saturating_mul(2)),
            };
            let silent = resources.memory_swap.is_none();
            match version {
                Version::One => {
                    add("memory", "memory.limit_in_bytes", memory.to_string(), false);
                    let both = both.map_or_else(|| "-1".to_owned(), |both| both.to_string());
                    add("memory-swap", "memory.memsw.limit_in_bytes", both, silent);
                }
                Version::Two => {
                    add("memory", "memory.max", memory.to_string(), false);
                    let swap = both.map(|both| both.saturating_sub(memory).to_string());
                    let swap = swap.unwrap_or_else(|| "max".to_owned());
                    add("memory-swap", "memory.swap.max", swap, silent);
                }
            }
        }
        ("cpu", Version::One) => {
            if let Some(period) = resources.cpu_period {
                add("cpu-period", "cpu.cfs_period_us", period.to_string(), false);
            }
            if let Some(quota) = resources.cpu_quota {
                add("cpu-quota", "cpu.cfs_quota_us", quota.to_string(), false);
            }
            if let Some(shares) = resources.cpu_shares {
                add("cpu-shares", "cpu.shares", shares.to_string(), false);
            }
        }
        ("cpu", Version::Two) => {
            let (quota, period) = (resources.cpu_quota, resources.cpu_period);
            if quota.is_some() || period.is_some() {
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                let value = format!("{quota} {}", period.unwrap_or(100_000));
                add("cpu-quota", "cpu.max", value, false);
            }
            if let Some(shares) = resources.cpu_shares {
                // From 2..=262144 to 1..=10000, as all runtimes have it.
                let weight = 1 + (shares - 2) * 9999 / 262_142;
                add("cpu-shares", "cpu.weight", weight.to_string(), false);
            }
        }
        ("cpuset", _) => {
            if let Some(list) = &resources.cpuset_cpus {
                add("cpuset-cpus", "cpuset.cpus", list.clone(), false);
            }
            if let Some(list) = &resources.cpuset_mems {
                add("cpuset-mems", "cpuset.mems", list.clone(), false);
            }
        }
        ("pids", _) => {
            if let Some(limit) = resources.pids {
                add("pids-limit", "pids.max", limit.to_string(), false);
            }
        }
        _ => {}
    }
    settings
}

/// The path of `--cgroup-parent` below the root of a hierarchy; systemd's names of slices stand for
/// paths (`a-b.slice` is `a.slice/a-b.slice`).
fn parent_path(text: &str) -> Result<PathBuf, CgroupError> {
    let invalid = || CgroupError::Parent(text.to_owned());
    let relative = Path::new(text.trim_start_matches('/'));
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if relative.as_os_str().is_empty() || !relative.components().all(plain) {
        return Err(invalid());
    }
    let Some(slice) = text
        .strip_suffix(".slice")
        .filter(|name| !name.contains('/'))
    else {
        return Ok(relative.to_owned());
    };
    let mut path = PathBuf::new();
    let ends = slice
        .match_indices('-')
        .map(|(end, _)| end)
        .chain([slice.len()]);
    for end in ends {
        let name = slice
            .get(..end)
            .filter(|name| !name.is_empty() && !name.ends_with('-'));
        path.push(format!("{}.slice", name.ok_or_else(invalid)?));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(pairs: &[(&str, &str)], controller: &str, version: Version) -> Vec<String> {
        let resources = Resources::parse(pairs.iter().copied()).unwrap();
        settings(&resources, controller, version)
            .iter()
            .map(|setting| format!("{}={}", setting.file, setting.value))
            .collect()
    }

    /// B4.5
    #[test]
    fn limits_in_the_words_of_both_versions() {
        use Version::{One, Two};
        let memory = [("memory", "64m")];
        let swap = [("memory", "64m"), ("memory-swap", "80m")];
        let endless = [("memory", "64m"), ("memory-swap", "-1")];
        let cpu = [("cpus", "1.5"), ("cpu-shares", "1024")];
        for (pairs, controller, one, two) in [
            (
                &memory[..],
                "memory",
                &[
                    "memory.limit_in_bytes=67108864",
                    "memory.memsw.limit_in_bytes=134217728",
                ][..],
                &["memory.max=67108864", "memory.swap.max=67108864"][..],
            ),
            (
                &swap,
                "memory",
                &[
                    "memory.limit_in_bytes=67108864",
                    "memory.memsw.limit_in_bytes=83886080",
                ],
                &["memory.max=67108864", "memory.swap.max=16777216"],
            ),
            (
                &endless,
                "memory",
                &[
                    "memory.limit_in_bytes=67108864",
                    "memory.memsw.limit_in_bytes=-1",
                ],
                &["memory.max=67108864", "memory.swap.max=max"],
            ),
            (
                &cpu,
                "cpu",
                &[
                    "cpu.cfs_period_us=100000",
                    "cpu.cfs_quota_us=150000",
                    "cpu.shares=1024",
                ],
                &["cpu.max=150000 100000", "cpu.weight=39"],
            ),
            (
                &[("pids-limit", "7")],
                "pids",
                &["pids.max=7"],
                &["pids.max=7"],
            ),
            (
                &[("cpuset-cpus", "0"), ("cpuset-mems", "0")],
                "cpuset",
                &["cpuset.cpus=0", "cpuset.mems=0"],
                &["cpuset.cpus=0", "cpuset.mems=0"],
            ),
        ] {
            assert_eq!(written(pairs, controller, One), one);
            assert_eq!(written(pairs, controller, Two), two);
        }
    }

    #[test]
    fn parents_are_paths_or_slices() {
        let path = |text| {
            parent_path(text)
                .map(|path| path.display().to_string())
                .ok()
        };
        assert_eq!(path("/ci/builds").unwrap(), "ci/builds");
        assert_eq!(path("ci").unwrap(), "ci");
        assert_eq!(path("ci-big.slice").unwrap(), "ci.slice/ci-big.slice");
        assert_eq!(path("/ci-big.slice").as_deref(), Some("ci-big.slice"));
        for text in ["", "/", "../up", "a/../b", "-.slice", "a--b.slice"] {
            assert_eq!(path(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_asked_for_makes_nothing() {
        assert!(Groups::make(&Resources::default(), None).unwrap().is_none());
    }
}
