//! The hierarchies of control groups that this machine has, and where kiln is in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Controllers that mean something to a step.
pub(super) const CONTROLLERS: [&str; 8] = [
    "cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices",
];

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy for each controller, or some of them.
    One,
    /// The unified one.
    Two,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Its uppermost group that is visible.
    pub(super) root: PathBuf,
    /// The group that kiln is in, if it is visible.
    pub(super) own: Option<PathBuf>,
    pub(super) controllers: Vec<String>,
}

/// All hierarchies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) hierarchies: Vec<Hierarchy>,
}

impl Machine {
    pub(super) fn read() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        Ok(Self::parse(&mounts, &groups, |root| {
            words(&root.join("cgroup.controllers"))
        }))
    }

    /// From the kernel's lists; `unified` tells the controllers of the unified hierarchy.
    fn parse(mounts: &str, groups: &str, unified: impl Fn(&Path) -> Vec<String>) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mounts.lines() {
            let Some((place, kind)) = line.split_once(" - ") else {
                continue;
            };
            let place: Vec<_> = place.split(' ').collect();
            let kind: Vec<_> = kind.split(' ').collect();
            let ([_, _, _, top, root, ..], [kind, _, options, ..]) =
                (place.as_slice(), kind.as_slice())
            else {
                continue;
            };
            let root = PathBuf::from(unescape(root));
            let (version, controllers) = match *kind {
                "cgroup2" => (Version::Two, unified(&root)),
                "cgroup" => {
                    let options = options.split(',');
                    let controllers = options.filter(|word| CONTROLLERS.contains(word));
                    (Version::One, controllers.map(ToOwned::to_owned).collect())
                }
                _ => continue,
            };
            let known = |one: &Hierarchy| one.version == version && one.controllers == controllers;
            // A named hierarchy controls nothing.
            if version == Version::One && controllers.is_empty() || hierarchies.iter().any(known) {
                continue;
            }
            let own = own_path(groups, version, &controllers)
                .and_then(|path| path.strip_prefix(unescape(top)).ok().map(Path::to_owned))
                .map(|rest| root.join(rest));
            hierarchies.push(Hierarchy {
                version,
                root,
                own,
                controllers,
            });
        }
        Self { hierarchies }
    }

    /// The hierarchy that a controller belongs to.
    pub(super) fn with(&self, controller: &str) -> Option<&Hierarchy> {
        let has = |one: &&Hierarchy| one.controllers.iter().any(|known| known == controller);
        self.hierarchies.iter().find(has)
    }
}

/// Where kiln is, as `/proc/self/cgroup` has it.
fn own_path(groups: &str, version: Version, controllers: &[String]) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match version {
            Version::One => names
                .split(',')
                .any(|name| controllers.iter().any(|one| one == name)),
            Version::Two => number == "0" && names.is_empty(),
        };
        fits.then(|| PathBuf::from(path))
    })?;
    // Outside of what this process may see.
    (!path.starts_with("/..")).then_some(path)
}

/// A path without the escapes that the kernel puts into its list of mounts.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (escape, plain)| {
        text.replace(escape, plain)
    })
}

/// The words in a file; none if it cannot be read.
pub(super) fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(mounts: &str, groups: &str) -> Machine {
        Machine::parse(mounts, groups, |_| {
            ["cpu", "memory", "pids"].map(ToOwned::to_owned).into()
        })
    }

    fn own(machine: &Machine, controller: &str) -> Option<String> {
        let own = machine.with(controller)?.own.as_ref()?;
        Some(own.display().to_string())
    }

    #[test]
    fn hierarchies_of_the_first_version() {
        let mounts = "\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw shared:7 - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let groups = "5:memory:/box/a\n4:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let machine = machine(mounts, groups);
        assert_eq!(machine.hierarchies.len(), 2);
        assert_eq!(own(&machine, "cpu").unwrap(), "/sys/fs/cgroup/cpu,cpuacct/");
        assert_eq!(
            own(&machine, "memory").unwrap(),
            "/sys/fs/cgroup/mem ory/box/a"
        );
        assert_eq!(machine.with("pids"), None);
    }

    #[test]
    fn the_unified_hierarchy_and_parts_of_it() {
        let whole = "31 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let groups = "0::/user.slice/kiln.scope\n";
        let found = machine(whole, groups);
        assert_eq!(
            own(&found, "pids").unwrap(),
            "/sys/fs/cgroup/user.slice/kiln.scope"
        );
        // A container that sees a part of the hierarchy.
        let part = "31 1 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        let found = machine(part, "0::/docker/abc/sub\n");
        assert_eq!(own(&found, "memory").unwrap(), "/sys/fs/cgroup/sub");
        // A process that was put there from outside.
        assert_eq!(own(&machine(whole, "0::/../other\n"), "memory"), None);
    }

    #[test]
    fn a_hybrid_machine_has_each_controller_once() {
        let mounts = "\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Machine::parse(mounts, "4:memory:/\n0::/\n", |_| vec!["hugetlb".to_owned()]);
        assert_eq!(found.with("memory").unwrap().version, Version::One);
        assert_eq!(found.with("hugetlb").unwrap().version, Version::Two);
        assert_eq!(found.with("pids"), None);
    }
}
