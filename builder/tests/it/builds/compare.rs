//! What may differ between two builders' images of one Dockerfile, and why. All else must be equal.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::image::{Image, Kind, Node, Tree, first_names};

/// A difference that says nothing about the builders.
pub(super) struct Allowed {
    /// Path, in which one `*` stands for anything.
    path: &'static str,
    what: What,
    /// Why it is no defect of either; for the reader.
    _why: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// The file's bytes, but not how many, nor its mode, owner and attributes.
    Bytes,
    /// The same and the size.
    Content,
    /// Whether there is anything at all.
    Presence,
}

const fn allowed(path: &'static str, what: What, why: &'static str) -> Allowed {
    Allowed {
        path,
        what,
        _why: why,
    }
}

const ALLOWED: [Allowed; 8] = [
    allowed("*.pyc", What::Bytes, "holds the source's time of change"),
    allowed("var/log/*", What::Content, "apt and dpkg log with the time"),
    allowed(
        "var/cache/ldconfig/aux-cache",
        What::Bytes,
        "holds inode numbers and times of libraries",
    ),
    allowed("etc/shadow*", What::Content, "passwords' days of change"),
    allowed("etc/hostname", What::Presence, MOUNT_POINT),
    allowed("etc/hosts", What::Presence, MOUNT_POINT),
    allowed("etc/resolv.conf", What::Presence, MOUNT_POINT),
    allowed("run/.containerenv", What::Presence, MOUNT_POINT),
];
/// kiln takes such files away after the step (B6.3).
const MOUNT_POINT: &str = "buildah leaves the file that it made to mount another over it";

/// Compares the two images; `since` is when the first of them was begun, in seconds since 1970.
pub(super) fn assert_same(kiln: &Image, buildah: &Image, since: u64) {
    let mut report = String::new();
    trees(&kiln.tree, &buildah.tree, since, &mut report);
    let (ours, theirs) = (config(&kiln.config), config(&buildah.config));
    if ours != theirs {
        writeln!(report, "config\n    kiln    {ours}\n    buildah {theirs}").unwrap();
    }
    let (ours, theirs) = (history(&kiln.config), history(&buildah.config));
    if ours != theirs {
        writeln!(
            report,
            "history\n    kiln    {ours:#?}\n    buildah {theirs:#?}"
        )
        .unwrap();
    }
    assert!(report.is_empty(), "kiln and buildah differ:\n{report}");
}

fn trees(kiln: &Tree, buildah: &Tree, since: u64, report: &mut String) {
    let (our_names, their_names) = (first_names(kiln), first_names(buildah));
    let paths: BTreeSet<&String> = kiln.keys().chain(buildah.keys()).collect();
    for path in paths {
        let may = |what| {
            let matches = |a: &&Allowed| a.what == what && fits(path, a.path);
            ALLOWED.iter().any(|a| matches(&a))
        };
        let same = match (kiln.get(path), buildah.get(path)) {
            (Some(ours), Some(theirs)) => {
                let content = match (&ours.kind, &theirs.kind) {
                    (Kind::File { size: a, .. }, Kind::File { size: b, .. }) => {
                        ours.kind == theirs.kind || may(What::Content) || a == b && may(What::Bytes)
                    }
                    (ours, theirs) => ours == theirs,
                };
                content
                    && ours.mode == theirs.mode
                    && (ours.owner, &ours.xattrs) == (theirs.owner, &theirs.xattrs)
                    && times(ours, theirs, since)
            }
            _ => may(What::Presence),
        };
        if !same {
            let (ours, theirs) = (kiln.get(path), buildah.get(path));
            writeln!(
                report,
                "/{path}\n    kiln    {ours:?}\n    buildah {theirs:?}"
            )
            .unwrap();
        }
        let (ours, theirs) = (our_names.get(&**path), their_names.get(&**path));
        if ours != theirs {
            writeln!(
                report,
                "/{path} is the same file as: kiln {ours:?}, buildah {theirs:?}"
            )
            .unwrap();
        }
    }
}

/// Times from before the build come from base images, packages and contexts, and are the same.
/// Folders get theirs from whatever is put into them. kiln cuts fractions of a second off, as
/// docker does; buildah rounds them.
fn times(ours: &Node, theirs: &Node, since: u64) -> bool {
    ours.kind == Kind::Folder
        || ours.time.min(theirs.time) >= since
        || ours.time == theirs.time
        || ours.time + 1 == theirs.time
}

fn fits(path: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            path.len() >= start.len() + end.len() && path.starts_with(start) && path.ends_with(end)
        }
        None => path == pattern,
    }
}

/// What of the config says how to run the image, and on what.
fn config(config: &Value) -> Value {
    let mut kept = Map::new();
    for name in ["architecture", "variant", "os", "author", "config"] {
        if let Some(value) = config.get(name) {
            kept.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(Value::Object(runtime)) = kept.get_mut("config") {
        // BuildKit, and so kiln, writes it with each CMD; engines on Linux ignore it (A16.1).
        runtime.remove("ArgsEscaped");
        // The name of buildah's working container.
        runtime.remove("Hostname");
        // BuildKit, and so kiln, names the root where no instruction names a directory (A16.1).
        if runtime.get("WorkingDir").is_some_and(|path| path == "/") {
            runtime.remove("WorkingDir");
        }
        // An empty list and none mean the same.
        runtime.retain(|_, value| !is_empty(value));
    }
    Value::Object(kept)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The history as instructions. Of `RUN` there is the command, of others the keyword alone: what
/// they say shows in the files and the config, and each builder has its own wording.
fn history(config: &Value) -> Vec<String> {
    let entries = config["history"].as_array().unwrap();
    let made = entries.iter().map(|entry| {
        let text = instruction(entry["created_by"].as_str().unwrap());
        // With BuildKit, and so with kiln, this is a layer even when the directory is there (A9.9).
        let layer = text == "WORKDIR" || entry["empty_layer"] != true;
        format!("{text}{}", if layer { "" } else { " (no layer)" })
    });
    // BuildKit, and so kiln, has none of these (A16.2).
    made.filter(|text| !text.starts_with("ONBUILD")).collect()
}

fn instruction(text: &str) -> String {
    let keyword = |text: &str| text.split(' ').next().unwrap().to_owned();
    if let Some((_, text)) = text.split_once("#(nop) ") {
        return keyword(text);
    }
    let text = text.strip_suffix(" # buildkit").unwrap_or(text);
    let text = match text.strip_prefix("RUN ") {
        Some(command) => command,
        None if text.starts_with(|c: char| c.is_ascii_uppercase()) => return keyword(text),
        None => text,
    };
    // `|2 B=2 A=1 /bin/sh -c text`: buildah sorts the build arguments, and names this shell even
    // where another one runs
    let (before, command) = text.split_once(" -c ").unwrap_or(("", text));
    let mut arguments: Vec<&str> = before
        .split(' ')
        .filter(|word| word.contains('='))
        .collect();
    arguments.sort_unstable();
    format!("RUN {command} with {arguments:?}")
}
