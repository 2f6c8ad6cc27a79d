//! What came of a build, as text: each line of the history that the image adds to its base, the
//! files of its layer below it, and what changed in the config.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kiln_registry::spec::Platform;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::env::Output;
use crate::saved::{Entry, Saved};

/// So much of a file is shown.
const CONTENT: usize = 160;
/// Times from here on are those of the build: what cases say lies before.
const NOW: u64 = 1_600_000_000;

/// Part of what is shown.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Show {
    /// The history with the files of the layers.
    Layers,
    /// The history alone, with all its members.
    History,
    /// What the config has that the base's has not.
    Changes,
    /// The whole config but history, layers and times.
    Config,
    /// Also the times of files.
    Times,
    /// Which steps were executed and which were cached.
    Steps,
    /// All that a build says, without numbers that change.
    Progress,
}

impl Show {
    /// Whether it needs what a build says when it is not quiet.
    pub(super) fn reads_progress(self) -> bool {
        matches!(self, Self::Steps | Self::Progress)
    }
}

/// An image that cases build on.
#[derive(Debug)]
pub(super) struct Base {
    config: Value,
    diff_ids: Vec<Value>,
    history: Vec<Value>,
}

impl Base {
    pub(super) fn of(saved: &Saved) -> Self {
        Self {
            config: saved.config["config"].clone(),
            diff_ids: list(&saved.config["rootfs"]["diff_ids"]),
            history: list(&saved.config["history"]),
        }
    }

    /// What is there before anything is (A7.3, A7.5).
    fn scratch() -> Self {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        Self {
            config: json!({"Env": [path], "WorkingDir": "/"}),
            diff_ids: Vec::new(),
            history: Vec::new(),
        }
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// A failed build: its exit code and all it said.
pub(super) fn failure(output: &Output) -> String {
    assert_eq!(output.stdout, "", "{output}");
    let code = output.code.unwrap_or(-1);
    format!("exit {code}\n{}", steady(&output.stderr))
}

/// The image in an archive, and the build that made it.
pub(super) fn image(archive: &[u8], output: &Output, show: &[Show], bases: &[Base]) -> String {
    let saved = Saved::read(archive);
    let diff_ids = list(&saved.config["rootfs"]["diff_ids"]);
    let scratch = Base::scratch();
    let base = bases
        .iter()
        .filter(|base| diff_ids.starts_with(&base.diff_ids))
        .max_by_key(|base| base.diff_ids.len())
        .unwrap_or(&scratch);
    let mut text = String::new();
    let shows = |wanted| show.contains(&wanted);
    if shows(Show::Progress) {
        text += &steady(&output.stderr);
    }
    if shows(Show::Steps) {
        text += &steps(output);
    }
    if shows(Show::Layers) || shows(Show::History) {
        history(&mut text, &saved, base, show);
    }
    if shows(Show::Changes) {
        members(
            &mut text,
            "config",
            &changes(&saved.config["config"], &base.config),
        );
    }
    if shows(Show::Config) {
        let mut config = saved.config.clone();
        let image = config.as_object_mut().unwrap();
        for name in ["created", "rootfs", "history"] {
            image.remove(name);
        }
        if image["architecture"] == Platform::host().architecture {
            image["architecture"] = json!("(this machine's)");
        }
        members(&mut text, "image", &config);
    }
    text
}

fn members(text: &mut String, title: &str, value: &Value) {
    let members = value.as_object().unwrap();
    if !members.is_empty() {
        writeln!(text, "{title}").unwrap();
    }
    for (name, value) in members {
        match value {
            Value::Object(map) if name == "config" => {
                writeln!(text, "  {name}").unwrap();
                for (name, value) in map {
                    writeln!(text, "    {name} {value}").unwrap();
                }
            }
            value => writeln!(text, "  {name} {value}").unwrap(),
        }
    }
}

/// What differs, with `null` for what is gone.
fn changes(config: &Value, base: &Value) -> Value {
    let mut changed = serde_json::Map::new();
    let empty = serde_json::Map::new();
    let (config, base) = (
        config.as_object().unwrap(),
        base.as_object().unwrap_or(&empty),
    );
    for (name, value) in config {
        if base.get(name) != Some(value) {
            changed.insert(name.clone(), value.clone());
        }
    }
    for name in base.keys().filter(|name| !config.contains_key(*name)) {
        changed.insert(name.clone(), Value::Null);
    }
    Value::Object(changed)
}

fn history(text: &mut String, saved: &Saved, base: &Base, show: &[Show]) {
    let entries = list(&saved.config["history"]);
    let filled = entries
        .iter()
        .filter(|entry| entry["empty_layer"] != true)
        .count();
    // A16.2: whatever a case is about
    assert_eq!(filled, saved.layers.len(), "{entries:?}");
    // A7.4
    assert!(entries.starts_with(&base.history), "{entries:?}");
    let mut layers = saved.layers.iter().skip(base.diff_ids.len());
    for entry in &entries[base.history.len()..] {
        let created_by = entry["created_by"].as_str().unwrap_or("-");
        writeln!(text, "{}", created_by.replace('\n', "\\n")).unwrap();
        if show.contains(&Show::History) {
            for name in ["author", "comment", "empty_layer"] {
                if !entry[name].is_null() {
                    writeln!(text, "  {name} {}", entry[name]).unwrap();
                }
            }
            if show.contains(&Show::Times) {
                let created = entry["created"].as_str().unwrap();
                let recent = created >= "2020";
                writeln!(text, "  created {}", if recent { "now" } else { created }).unwrap();
            }
        }
        if entry["empty_layer"] == true {
            continue;
        }
        let layer = layers.next().unwrap();
        if show.contains(&Show::Layers) {
            for (path, entry) in layer {
                writeln!(text, "  {}", line(path, entry, show.contains(&Show::Times))).unwrap();
            }
            if layer.is_empty() {
                text.push_str("  (nothing)\n");
            }
        }
    }
}

/// One entry of a layer.
fn line(path: &str, entry: &Entry, times: bool) -> String {
    let target = entry.target.as_deref().unwrap_or_default();
    let (kind, rest) = match entry.kind {
        tar::EntryType::Regular => ("file", format!(" {}", content(&entry.content))),
        tar::EntryType::Directory => ("dir ", String::new()),
        tar::EntryType::Symlink => ("link", format!(" -> {target}")),
        tar::EntryType::Link => ("hard", format!(" -> {target}")),
        tar::EntryType::Fifo => ("fifo", String::new()),
        tar::EntryType::Char => ("char", format!(" {:?}", entry.device.unwrap_or_default())),
        tar::EntryType::Block => ("block", format!(" {:?}", entry.device.unwrap_or_default())),
        kind => panic!("{kind:?} in a layer"),
    };
    let mode = match entry.kind {
        tar::EntryType::Symlink => String::new(),
        _ => format!(" {:04o}", entry.mode),
    };
    let mut line = format!("{kind} {path}{mode} {}:{}", entry.owner.0, entry.owner.1);
    for (name, value) in &entry.xattrs {
        write!(line, " {name}={}", value.escape_ascii()).unwrap();
    }
    if times {
        match entry.mtime {
            NOW.. => line.push_str(" @now"),
            time => write!(line, " @{time}").unwrap(),
        }
    }
    line + &rest
}

fn content(bytes: &[u8]) -> String {
    if bytes.contains(&0) {
        return format!("({} bytes)", bytes.len());
    }
    let shown = bytes[..bytes.len().min(CONTENT)].escape_ascii();
    let shown = shown.to_string().replace("\\'", "'");
    let more = if bytes.len() > CONTENT {
        format!("... {} bytes", bytes.len())
    } else {
        String::new()
    };
    format!("\"{shown}\"{more}")
}

/// Which steps were executed and which were cached, by name.
fn steps(output: &Output) -> String {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut ends: BTreeMap<&str, &str> = BTreeMap::new();
    for line in output.stderr.lines() {
        let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let name = *names.entry(number).or_insert(rest);
        let end = rest.split(' ').next().unwrap_or_default();
        if matches!(end, "CACHED" | "DONE" | "ERROR" | "CANCELED") {
            ends.insert(name, end);
        }
    }
    let lines = ends.iter().map(|(name, end)| format!("{end:6} {name}\n"));
    lines.collect()
}

/// What a build says, without what changes: times, digests, and what network this machine has.
fn steady(text: &str) -> String {
    let mut steady = String::new();
    // The usage names what a variable of the test sets.
    let text = text.replace(" --snapshotter <WAY>", "");
    // What depends on the machine and on who builds.
    let notes = ["note: RUN has ", "isolation: "];
    // What depends on the cases that were built before in the same store.
    let is_reason = |line: &str| line.starts_with('#') && line.contains(" miss: ");
    let lines = text
        .lines()
        .filter(|line| !notes.iter().any(|note| line.starts_with(note)) && !is_reason(line));
    for line in lines {
        let mut words: Vec<String> = Vec::new();
        for word in line.split(' ') {
            let seconds = word.trim_end_matches('s');
            let number = seconds.contains('.') && seconds.parse::<f64>().is_ok();
            words.push(match word.find("sha256:") {
                Some(start) => format!("{}sha256:...", &word[..start]),
                None if number && line.starts_with('#') => "0.0s".to_owned(),
                None => word.to_owned(),
            });
        }
        steady += &words.join(" ");
        steady.push('\n');
    }
    steady
}
