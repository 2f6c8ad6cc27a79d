//! The subordinate ids of a user: /etc/subuid and /etc/subgid.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::ids::{Map, Span};

/// Where the programs are that may give subordinate ids to a namespace, besides `PATH`.
const FOLDERS: [&str; 3] = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];

/// What a namespace with subordinate ids is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subordinate {
    /// Id 0 is the user, the others are its subordinate ones.
    pub map: Map,
    /// `newuidmap`
    pub users: PathBuf,
    /// `newgidmap`
    pub groups: PathBuf,
}

/// Finds the subordinate ids of a user, or says what is missing.
///
/// # Errors
/// The reason, for a person.
pub fn find(uid: u32, gid: u32) -> Result<Subordinate, String> {
    let name = name_of(uid, &fs::read_to_string("/etc/passwd").unwrap_or_default());
    let ranges = |file: &str| {
        let text = match fs::read_to_string(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("cannot read {file}: {error}"));
            }
            text => text.unwrap_or_default(),
        };
        let ranges = ranges(&text, uid, name.as_deref());
        if ranges.is_empty() {
            let who = name.clone().unwrap_or_else(|| uid.to_string());
            return Err(format!("{file} has no range for `{who}`"));
        }
        Ok(ranges)
    };
    Ok(Subordinate {
        map: Map {
            users: spans(uid, &ranges("/etc/subuid")?),
            groups: spans(gid, &ranges("/etc/subgid")?),
        },
        users: program("newuidmap")?,
        groups: program("newgidmap")?,
    })
}

/// The name of a user in a passwd file.
fn name_of(uid: u32, passwd: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The ranges of a user, by name or id: first and count. Empty and overflowing ones are none.
fn ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        if Some(who) != name && who.parse() != Ok(uid) {
            return None;
        }
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        (count > 0 && first.checked_add(count).is_some()).then_some((first, count))
    };
    let mut ranges: Vec<_> = text.lines().filter_map(line).collect();
    ranges.dedup();
    ranges
}

/// The map of a namespace: the user is root, its ranges come after that.
fn spans(own: u32, ranges: &[(u32, u32)]) -> Vec<Span> {
    let mut spans = vec![Span {
        inside: 0,
        outside: own,
        count: 1,
    }];
    let mut inside = 1_u32;
    for (outside, count) in ranges {
        let Some(next) = inside.checked_add(*count) else {
            break;
        };
        spans.push(Span {
            inside,
            outside: *outside,
            count: *count,
        });
        inside = next;
    }
    spans
}

fn program(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| Path::new(path).is_file())
        .ok_or_else(|| format!("`{name}` is not installed (package uidmap or shadow-utils)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBUID: &str = "root:1:2\n# x\napp:100000:65536\n1000:300000:10\nother:1:5\nbroken:1\n\
        app:4294967295:5\napp:9:0\n";

    #[test]
    fn ranges_are_found_by_name_and_by_id() {
        let passwd = "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(1000, passwd).as_deref(), Some("app"));
        assert_eq!(name_of(7, passwd), None);
        assert_eq!(
            ranges(SUBUID, 1000, Some("app")),
            [(100_000, 65_536), (300_000, 10)]
        );
        assert_eq!(ranges(SUBUID, 1000, None), [(300_000, 10)]);
        assert!(ranges(SUBUID, 5, Some("nobody")).is_empty());
    }

    #[test]
    fn the_user_is_root_and_the_ranges_follow() {
        let spans = spans(1000, &[(100_000, 65_536), (300_000, 10)]);
        let text: Vec<_> = spans.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0:1000:1", "1:100000:65536", "65537:300000:10"]);
    }
}
