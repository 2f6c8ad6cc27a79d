//! What a command may leave behind: in the store, among the mounts, among the processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln_registry::digest::Digest;

use crate::env::TestEnv;

/// How long a condition is waited for before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition that something else brings about.
pub(crate) fn wait_until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl TestEnv {
    /// What the store holds: its files with their sizes, and the rows of its database. Locks and
    /// the remembered digests of contexts are no content.
    pub(crate) fn content(&self) -> BTreeSet<String> {
        let store = self.store();
        let mut content = BTreeSet::new();
        for folder in ["blobs", "snapshots", "tmp"] {
            for entry in walkdir::WalkDir::new(store.join(folder)) {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                let size = if metadata.is_dir() { 0 } else { metadata.len() };
                content.insert(format!("{} {size}", entry.path().display()));
            }
        }
        let database = rusqlite::Connection::open(store.join("kiln.db")).unwrap();
        for table in [
            "images",
            "names",
            "repo_digests",
            "layer_blobs",
            "snapshots",
            "chains",
            "cache",
        ] {
            let mut statement = database.prepare(&format!("SELECT * FROM {table}")).unwrap();
            let width = statement.column_count();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let columns: Vec<_> = (0..width)
                    .map(|column| row.get::<_, rusqlite::types::Value>(column).unwrap())
                    .collect();
                content.insert(format!("{table} {columns:?}"));
            }
        }
        content
    }

    /// Fails if the store holds anything else than before; blobs that arrived whole may be kept
    /// for the next try.
    pub(crate) fn same_content(&self, before: &BTreeSet<String>) {
        let after = self.content();
        let lost: Vec<_> = before.difference(&after).collect();
        assert!(lost.is_empty(), "lost from the store: {lost:?}");
        for entry in after.difference(before) {
            let (path, _) = entry.rsplit_once(' ').unwrap();
            let path = Path::new(path);
            let blob = path.starts_with(self.store().join("blobs/sha256"))
                && Digest::of(&fs::read(path).unwrap()).hex()
                    == path.file_name().unwrap().to_str().unwrap();
            assert!(blob, "new in the store: {entry}");
        }
    }

    /// Fails if something unfinished lies in the store, or a mount shows anything of this
    /// environment.
    pub(crate) fn no_traces(&self) {
        self.no_mounts();
        let unfinished = files(&self.store().join("tmp"));
        assert!(unfinished.is_empty(), "left in the store: {unfinished:?}");
    }

    /// Fails if a mount shows anything of this environment.
    pub(crate) fn no_mounts(&self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.path("").display().to_string();
        let ours: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains(&folder))
            .collect();
        assert!(ours.is_empty(), "left mounted: {ours:?}");
    }
}

/// The names in a folder.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) id: u32,
    started: u64,
}

impl Process {
    pub(crate) fn is_alive(self) -> bool {
        stat(self.id).is_some_and(|stat| stat.started == self.started && !stat.dead)
    }

    /// Whether it runs, and what is typed in its terminal is for it.
    pub(crate) fn is_in_foreground(self) -> bool {
        stat(self.id).is_some_and(|stat| stat.foreground && !stat.stopped && !stat.dead)
    }

    pub(crate) fn kill(self) {
        let id = rustix::process::Pid::from_raw(self.id.try_into().unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    }

    /// Whether one of its arguments is this one.
    pub(crate) fn has_argument(self, argument: &str) -> bool {
        let line = fs::read(format!("/proc/{}/cmdline", self.id)).unwrap_or_default();
        line.split(|&byte| byte == 0)
            .any(|part| part == argument.as_bytes())
    }
}

/// All processes that a process has started, and those that these have started.
pub(crate) fn descendants(ancestor: u32) -> Vec<Process> {
    let ids = files(Path::new("/proc"));
    let all: BTreeMap<u32, Stat> = ids
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter_map(|id| Some((id, stat(id)?)))
        .collect();
    let below = |mut id: u32| {
        while let Some(stat) = all.get(&id) {
            if stat.parent == ancestor {
                return true;
            }
            id = stat.parent;
        }
        false
    };
    let found = all.iter().filter(|(id, _)| below(**id));
    found
        .map(|(&id, stat)| Process {
            id,
            started: stat.started,
        })
        .collect()
}

/// What `/proc/ID/stat` tells of a process.
struct Stat {
    parent: u32,
    started: u64,
    /// Its group is the one in the foreground of its terminal.
    foreground: bool,
    stopped: bool,
    /// It only waits to be reaped.
    dead: bool,
}

fn stat(id: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // the name, in parentheses, may hold anything
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = *fields.first()?;
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        foreground: fields.get(2)? == fields.get(5)?,
        stopped: state == "T",
        dead: matches!(state, "Z" | "X"),
    })
}
