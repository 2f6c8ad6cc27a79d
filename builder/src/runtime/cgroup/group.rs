//! One group: making it where kiln may, and taking it away again with all that is in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::machine::{Hierarchy, Version, words};

/// What names of groups begin with. Numbers and dashes follow: what else is named so and has no owner
/// is taken away.
const PREFIX: &str = "kiln.step-";
/// Where processes go that have to leave a group of the unified hierarchy.
const MAIN: &str = "kiln.main";
/// How often a group that is not empty yet is tried again, and how long after.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(2);

/// A group of kiln's; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) version: Version,
    pub(super) path: PathBuf,
    /// Groups above it that were made for it, uppermost first.
    made: Vec<PathBuf>,
    /// Locked for as long as the group is in use, so that another kiln can tell.
    _lock: OwnedFd,
}

impl Group {
    /// Makes a group in which these controllers work, below `parent` from the hierarchy's root, else
    /// where kiln may.
    pub(super) fn make(
        hierarchy: &Hierarchy,
        parent: Option<&Path>,
        wanted: &[&str],
    ) -> io::Result<Self> {
        match parent {
            Some(parent) => {
                let (place, made) = parents(hierarchy, parent, wanted)?;
                Self::at(hierarchy.version, &place, made)
            }
            None => Self::somewhere(hierarchy, wanted),
        }
    }

    fn somewhere(hierarchy: &Hierarchy, wanted: &[&str]) -> io::Result<Self> {
        let own = hierarchy.own.as_deref().unwrap_or(&hierarchy.root);
        let at = |place: &Path| Self::at(hierarchy.version, place, Vec::new());
        if hierarchy.version == Version::One {
            return at(own);
        }
        // Its own group may have groups only if no process is in it, unless it is the root.
        let refused = match enable(own, wanted).and_then(|()| at(own)) {
            Ok(group) => return Ok(group),
            Err(error) => error,
        };
        let above = own.ancestors().skip(1);
        for place in above.take_while(|place| place.starts_with(&hierarchy.root)) {
            // Those above are others' to arrange.
            let ready = missing(place, wanted).is_empty();
            if ready && let Ok(group) = at(place) {
                return Ok(group);
            }
        }
        if refused.raw_os_error() != Some(libc::EBUSY) || !evacuate(hierarchy, own)? {
            return Err(refused);
        }
        enable(own, wanted)?;
        at(own)
    }

    /// Makes it there, under a new name.
    fn at(version: Version, place: &Path, made: Vec<PathBuf>) -> io::Result<Self> {
        sweep(place);
        loop {
            let path = place.join(new_name());
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            // Who looks for leftovers may have been quicker: then there is nothing there now.
            match lock(&path) {
                Ok(Some(lock)) if path.exists() => {
                    inherit(&path)?;
                    return Ok(Self {
                        version,
                        path,
                        made,
                        _lock: lock,
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    drop(fs::remove_dir(&path));
                    return Err(error);
                }
            }
        }
    }

    /// The file that processes enter it by.
    pub(super) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.path);
        for path in self.made.iter().rev() {
            // Others may be using them.
            drop(fs::remove_dir(path));
        }
    }
}

fn new_name() -> OsString {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |time| time.subsec_nanos());
    format!("{PREFIX}{}-{nanoseconds:09}-{number}", std::process::id()).into()
}

/// Whether a name is one that [`new_name`] gives. Groups of users may be named after kiln, too.
fn is_ours(name: &OsStr) -> bool {
    let number = |byte: u8| byte.is_ascii_digit() || byte == b'-';
    let rest = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    rest.is_some_and(|rest| rest.bytes().all(number))
}

/// Locks a group; `None` when somebody else has.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group = rustix::fs::open(path, flags, Mode::empty())?;
    match rustix::fs::flock(&group, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(group)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A new group of the first version may use no processor and no memory until it is told.
fn inherit(path: &Path) -> io::Result<()> {
    let Some(above) = path.parent() else {
        return Ok(());
    };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (own, theirs) = (path.join(name), above.join(name));
        let empty = |path: &Path| fs::read_to_string(path).map(|text| text.trim().is_empty());
        if matches!(empty(&own), Ok(true)) && matches!(empty(&theirs), Ok(false)) {
            fs::write(own, fs::read(theirs)?)?;
        }
    }
    Ok(())
}

/// Makes the groups of a path, and has the controllers work below it.
fn parents(
    hierarchy: &Hierarchy,
    parent: &Path,
    wanted: &[&str],
) -> io::Result<(PathBuf, Vec<PathBuf>)> {
    let mut place = hierarchy.root.clone();
    let mut made = Vec::new();
    for part in parent {
        if hierarchy.version == Version::Two {
            enable(&place, wanted)?;
        }
        place.push(part);
        match fs::create_dir(&place) {
            Ok(()) => made.push(place.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        inherit(&place)?;
    }
    if hierarchy.version == Version::Two {
        enable(&place, wanted)?;
    }
    Ok((place, made))
}

/// The controllers that do not work in groups below.
fn missing<'a>(place: &Path, wanted: &[&'a str]) -> Vec<&'a str> {
    let enabled = words(&place.join("cgroup.subtree_control"));
    let missing = wanted.iter().copied();
    missing
        .filter(|name| !enabled.iter().any(|one| one == name))
        .collect()
}

/// Has controllers work in groups below.
fn enable(place: &Path, wanted: &[&str]) -> io::Result<()> {
    let missing = missing(place, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let signed: Vec<_> = missing.iter().map(|name| format!("+{name}")).collect();
    fs::write(place.join("cgroup.subtree_control"), signed.join(" "))
}

/// Moves processes out of a group, so that it may have groups of its own: kiln where it is alone, and
/// all where the group is the uppermost one of a container, as its runtimes do. Tells whether it did.
fn evacuate(hierarchy: &Hierarchy, own: &Path) -> io::Result<bool> {
    let processes = words(&own.join("cgroup.procs"));
    let us = std::process::id().to_string();
    if own != hierarchy.root && processes.iter().any(|id| *id != us) {
        return Ok(false);
    }
    let main = own.join(MAIN);
    match fs::create_dir(&main) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for id in processes {
        match fs::write(main.join("cgroup.procs"), &id) {
            // It ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result?,
        }
    }
    Ok(true)
}

/// Takes away groups that a kiln left when it was killed.
fn sweep(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        if is_ours(&entry.file_name())
            && let Ok(Some(_lock)) = lock(&entry.path())
        {
            remove(&entry.path());
        }
    }
}

/// Ends what is in a group and removes it, and those below it. What cannot be removed is left to the
/// next who looks.
fn remove(path: &Path) {
    for attempt in 0..TRIES {
        let below = fs::read_dir(path).into_iter().flatten().flatten();
        for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove(&entry.path());
        }
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                // The processes of a sandbox have ended, the kernel may not be done with them.
                if attempt > 0 {
                    kill(path);
                }
                std::thread::sleep(PAUSE);
            }
            _ => return,
        }
    }
}

/// Kills all processes of a group.
fn kill(path: &Path) {
    // One write for all, since Linux 5.14.
    let at_once = path.join("cgroup.kill");
    if at_once.exists() && fs::write(at_once, "1").is_ok() {
        return;
    }
    for id in words(&path.join("cgroup.procs")) {
        let id = id.parse().ok().and_then(Pid::from_raw);
        if let Some(id) = id.filter(|id| *id != rustix::process::getpid()) {
            _ = kill_process(id, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn unified(folder: &tempfile::TempDir, own: &str) -> Hierarchy {
        Hierarchy {
            version: Version::Two,
            root: folder.path().to_owned(),
            own: Some(folder.path().join(own)),
            controllers: vec!["memory".to_owned(), "pids".to_owned()],
        }
    }

    #[test]
    fn a_group_is_made_beside_kilns_where_its_own_is_not_arranged_for_it() {
        let all = "memory pids\n";
        let tree = folder(&[
            ("cgroup.subtree_control", all),
            ("user/cgroup.subtree_control", all),
            ("user/scope/cgroup.procs", "1\n2\n"),
        ]);
        // As of a group that has processes: nothing can be written there.
        fs::create_dir(tree.path().join("user/scope/cgroup.subtree_control")).unwrap();
        let group = Group::make(&unified(&tree, "user/scope"), None, &["memory"]).unwrap();
        assert_eq!(group.path.parent().unwrap(), tree.path().join("user"));
        let path = group.path.clone();
        assert!(path.is_dir());
        drop(group);
        assert!(!path.exists());
    }

    #[test]
    fn controllers_are_enabled_on_the_way_to_a_parent_that_is_named() {
        let tree = folder(&[("cgroup.subtree_control", "pids\n")]);
        let parent = Path::new("a/b");
        // The files are made by writing to them, which the kernel has done before.
        let group = Group::make(&unified(&tree, ""), Some(parent), &["memory"]).unwrap();
        assert_eq!(group.path.parent().unwrap(), tree.path().join("a/b"));
        for place in ["", "a", "a/b"] {
            let control = tree.path().join(place).join("cgroup.subtree_control");
            assert_eq!(fs::read_to_string(control).unwrap(), "+memory", "{place}");
        }
    }

    #[test]
    fn a_group_that_lost_its_kiln_is_taken_away_by_the_next() {
        let tree = folder(&[("cgroup.subtree_control", "memory\n")]);
        let lost = tree.path().join("kiln.step-1-1-1");
        let theirs = tree.path().join("kiln.step-by-step");
        fs::create_dir(&lost).unwrap();
        fs::create_dir(&theirs).unwrap();
        let hierarchy = unified(&tree, "");
        let used = Group::make(&hierarchy, None, &["memory"]).unwrap();
        assert!(!lost.exists() && theirs.exists());
        let other = Group::make(&hierarchy, None, &["memory"]).unwrap();
        assert!(used.path.exists() && other.path.exists() && used.path != other.path);
    }

    /// Where this machine has the unified hierarchy, with a controller of it that is in no other.
    #[test]
    fn a_real_group_of_the_second_version_ends_what_is_in_it() {
        let machine = super::super::machine::Machine::read().unwrap();
        let mut hierarchies = machine.hierarchies.iter();
        let unified = hierarchies.find(|one| one.version == Version::Two);
        let root = rustix::process::geteuid().is_root();
        let Some(hierarchy) = unified.filter(|_| root) else {
            eprintln!("SKIPPED: it needs root, and the unified hierarchy");
            assert!(
                std::env::var_os("CI").is_none(),
                "root and cgroup2 are missing"
            );
            return;
        };
        // Any that exists does; not all can be enabled everywhere.
        let exists = |name: &&&str| hierarchy.controllers.iter().any(|one| one == **name);
        let wanted: Vec<_> = ["hugetlb", "pids"]
            .iter()
            .find(exists)
            .copied()
            .into_iter()
            .collect();
        let before = missing(&hierarchy.root, &wanted);
        let parent = PathBuf::from(format!("kiln-test-{}", std::process::id()));
        let group = Group::make(hierarchy, Some(&parent), &wanted).unwrap();
        let mut command = std::process::Command::new("sleep");
        let mut sleeper = command.arg("600").spawn().unwrap();
        fs::write(group.procs(), sleeper.id().to_string()).unwrap();
        let place = fs::read_to_string(format!("/proc/{}/cgroup", sleeper.id())).unwrap();
        let expected = format!("0::/{}/{PREFIX}", parent.display());
        assert!(place.contains(&expected), "{place}");
        let works = words(&group.path.join("cgroup.controllers"));
        assert!(
            wanted
                .iter()
                .all(|name| works.iter().any(|one| one == name))
        );
        // Its end is this process's to see, while the group waits for it.
        let reaper = std::thread::spawn(move || sleeper.wait().unwrap());
        drop(group);
        assert!(!reaper.join().unwrap().success());
        assert!(!hierarchy.root.join(&parent).exists());
        for name in before {
            let control = hierarchy.root.join("cgroup.subtree_control");
            fs::write(control, format!("-{name}")).unwrap();
        }
    }

    #[test]
    fn a_container_moves_its_processes_out_of_its_uppermost_group() {
        let tree = folder(&[("cgroup.procs", "1\n7\n")]);
        let hierarchy = unified(&tree, "");
        assert!(evacuate(&hierarchy, tree.path()).unwrap());
        let moved = fs::read_to_string(tree.path().join("kiln.main/cgroup.procs")).unwrap();
        assert_eq!(moved, "7");
        // Those of a group further down are not kiln's to move.
        let tree = folder(&[("scope/cgroup.procs", "1\n7\n")]);
        let hierarchy = unified(&tree, "scope");
        assert!(!evacuate(&hierarchy, &tree.path().join("scope")).unwrap());
    }
}
