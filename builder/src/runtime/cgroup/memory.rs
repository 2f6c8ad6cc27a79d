//! What became of the memory limit of a group: whether it killed, how much was used, and by whom.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::machine::{Version, words};

/// How often the processes of a group are looked at.
const INTERVAL: Duration = Duration::from_millis(20);
/// Records of the kernel's log that are read at most.
const RECORDS: usize = 1 << 17;

/// The kernel killed a process because there was no memory for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryKill {
    /// The limit that was reached, bytes; `None` when it was not the step's own.
    pub limit: Option<u64>,
    /// The most that was used at a time, bytes.
    pub peak: Option<u64>,
    /// Name of the process.
    pub process: Option<String>,
}

/// `memory limit 512 MiB reached, peak 511.9 MiB, process node`
impl fmt::Display for MemoryKill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => write!(f, "memory limit {} reached", Bytes(limit))?,
            None => f.write_str("the machine, or a group around kiln's, is out of memory")?,
        }
        if let Some(peak) = self.peak {
            write!(f, ", peak {}", Bytes(peak))?;
        }
        match &self.process {
            Some(process) => write!(f, ", process {process}"),
            None => Ok(()),
        }
    }
}

/// A size in the unit that fits, cut to one digit behind the point.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            bytes if bytes >= 1 << 30 => (30, "GiB"),
            bytes if bytes >= 1 << 20 => (20, "MiB"),
            _ => (10, "KiB"),
        };
        let whole = self.0 >> shift;
        let tenths = ((self.0 - (whole << shift)) * 10) >> shift;
        match tenths {
            0 => write!(f, "{whole} {unit}"),
            _ => write!(f, "{whole}.{tenths} {unit}"),
        }
    }
}

/// Looks at a group while it works, to know who used the memory.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<Option<String>>,
}

impl Watch {
    pub(super) fn start(group: &Path, version: Version, limit: u64) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let group = group.to_owned();
        let watch = move || {
            let mut largest: Option<(u64, String)> = None;
            loop {
                let usage = number(&group.join(files(version).usage)).unwrap_or(0);
                if usage > limit / 4 * 3
                    && let Some(found) = largest_process(&group)
                    && largest.as_ref().is_none_or(|known| found.0 >= known.0)
                {
                    largest = Some(found);
                }
                match stopped.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return largest.map(|(_, name)| name),
                }
            }
        };
        let thread = std::thread::Builder::new().spawn(watch)?;
        Ok(Self { stop, thread })
    }

    /// Ends it; gives the name of the largest process that was there when memory was short.
    pub(super) fn finish(self) -> Option<String> {
        drop(self.stop);
        self.thread.join().ok().flatten()
    }
}

/// The process of a group that has most memory, pages, and its name.
fn largest_process(group: &Path) -> Option<(u64, String)> {
    let ids = words(&group.join("cgroup.procs")).into_iter();
    ids.filter_map(|id| {
        let folder = PathBuf::from("/proc").join(id);
        let pages = words(&folder.join("statm")).get(1)?.parse().ok()?;
        let name = fs::read_to_string(folder.join("comm")).ok()?;
        Some((pages, name.trim_end().to_owned()))
    })
    .max()
}

/// The files of a version that tell what there is to know.
struct Files {
    usage: &'static str,
    peak: &'static str,
    events: &'static str,
}

fn files(version: Version) -> Files {
    match version {
        Version::One => Files {
            usage: "memory.usage_in_bytes",
            peak: "memory.max_usage_in_bytes",
            events: "memory.oom_control",
        },
        Version::Two => Files {
            usage: "memory.current",
            peak: "memory.peak",
            events: "memory.events",
        },
    }
}

/// What became of a group with this limit; `watched` is who used most of it.
pub(super) fn report(
    group: &Path,
    version: Version,
    limit: Option<u64>,
    watched: Option<String>,
) -> Option<MemoryKill> {
    let files = files(version);
    if event(&group.join(files.events), "oom_kill") == 0 {
        return None;
    }
    let peak = number(&group.join(files.peak));
    // The kernel counts processes here that any group above has had killed.
    let reached = |limit: &u64| peak.is_none_or(|peak| peak >= limit / 10 * 9);
    Some(MemoryKill {
        limit: limit.filter(reached),
        peak,
        process: logged(group).or(watched),
    })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A number from a file of names and numbers.
pub(super) fn event(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| {
        let (known, value) = line.split_once(' ')?;
        (known == name).then(|| value.trim().parse().ok())
    });
    line.flatten().unwrap_or(0)
}

/// The name of the process that the kernel's log says it killed last in a group.
fn logged(group: &Path) -> Option<String> {
    let name = group.file_name()?.to_str()?;
    let nonblock = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut log = File::options()
        .read(true)
        .custom_flags(nonblock)
        .open("/dev/kmsg")
        .ok()?;
    let mut record = vec![0; 8192];
    let mut found = None;
    // One record at a time; where some were overwritten meanwhile the kernel says so, once.
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                found = victim(&text, name).or(found);
            }
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => break,
        }
    }
    found
}

/// The process that a record of the kernel's log names as killed in a group of that name.
fn victim(record: &str, group: &str) -> Option<String> {
    let (_, facts) = record.split_once("oom-kill:")?;
    let facts = facts.lines().next()?;
    let fact = |name: &str| {
        let start = facts.find(&format!(",{name}="))? + name.len() + 2;
        facts.get(start..)
    };
    let inside = fact("task_memcg")?.split(',').next()?;
    if inside.rsplit('/').next() != Some(group) {
        return None;
    }
    // A process may have any name, commas included: it ends where the next fact begins.
    let task = fact("task")?;
    Some(
        task.rsplit_once(",pid=")
            .map_or(task, |(task, _)| task)
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_told_in_words() {
        let mut kill = MemoryKill {
            limit: Some(512 << 20),
            peak: Some((512 << 20) - 5),
            process: Some("node".to_owned()),
        };
        let text = "memory limit 512 MiB reached, peak 511.9 MiB, process node";
        assert_eq!(kill.to_string(), text);
        kill.limit = Some(3 << 29);
        (kill.peak, kill.process) = (None, None);
        assert_eq!(kill.to_string(), "memory limit 1.5 GiB reached");
    }

    #[test]
    fn both_versions_are_read() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        let report = |version| report(group.path(), version, Some(1 << 20), Some("x".to_owned()));
        write(
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        );
        write("memory.events", "low 0\nmax 9\noom 1\noom_kill 0\n");
        assert_eq!(report(Version::One), None);
        assert_eq!(report(Version::Two), None);
        write(
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
        write("memory.max_usage_in_bytes", "1048576\n");
        write(
            "memory.events",
            "low 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 0\n",
        );
        write("memory.peak", "4096\n");
        let one = report(Version::One).unwrap();
        assert_eq!(
            one.to_string(),
            "memory limit 1 MiB reached, peak 1 MiB, process x"
        );
        let two = report(Version::Two).unwrap();
        assert_eq!(two.limit, None, "far from its own limit: another one's");
    }

    #[test]
    fn the_kernels_log_names_the_process() {
        let record = "4,1234,99,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
                      mems_allowed=0,oom_memcg=/box/kiln-7-1-0,task_memcg=/box/kiln-7-1-0,\
                      task=a,pid=b,pid=88,uid=0\n";
        assert_eq!(victim(record, "kiln-7-1-0").unwrap(), "a,pid=b");
        assert_eq!(victim(record, "kiln-7-1-1"), None);
        assert_eq!(victim("6,1,2,-;something else", "kiln-7-1-0"), None);
    }
}
