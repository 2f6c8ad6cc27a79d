//! Lists of the files that went into a key: what is kept of each is just enough to say later what
//! changed. A list of 20,000 files packs to about 300 KB.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

pub use crate::context::listed::FileEntry;

/// Version of the packed form.
const VERSION: u8 = 1;
/// Lists of more files are not kept.
pub const MOST_FILES: usize = 250_000;
/// Bytes that a list may unpack to.
const MOST_BYTES: usize = 128 << 20;
/// Names that a message holds before it says how many more there are.
const NAMES: usize = 3;
/// Changes that a report for programs holds.
const DETAILS: usize = 200;

/// The type bits of a mode, and those of a directory and a link.
const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// Packs a list; `None` for one that is too long to be kept.
#[must_use]
pub fn pack(files: &[FileEntry]) -> Option<Vec<u8>> {
    if files.len() > MOST_FILES {
        return None;
    }
    let mut sorted: Vec<&FileEntry> = files.iter().collect();
    sorted.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let mut bytes = Vec::with_capacity(files.len() * 24);
    let mut before: &[u8] = &[];
    for file in sorted {
        let shared = before.iter().zip(&file.path).take_while(|(a, b)| a == b);
        let shared = shared.count();
        number(&mut bytes, shared as u64);
        let rest = file.path.get(shared..).unwrap_or_default();
        number(&mut bytes, rest.len() as u64);
        bytes.extend_from_slice(rest);
        let more = file.owner != (0, 0) || file.attributes != [0; 8];
        number(&mut bytes, u64::from(file.mode) << 1 | u64::from(more));
        if more {
            number(&mut bytes, file.owner.0.into());
            number(&mut bytes, file.owner.1.into());
            bytes.extend_from_slice(&file.attributes);
        }
        bytes.extend_from_slice(&file.content);
        before = &file.path;
    }
    let mut packed = vec![VERSION];
    packed.extend(zstd::bulk::compress(&bytes, 1).ok()?);
    Some(packed)
}

/// Reads a packed list; `None` for what is none of this version.
#[must_use]
pub fn unpack(packed: &[u8]) -> Option<Vec<FileEntry>> {
    let (&VERSION, compressed) = packed.split_first()? else {
        return None;
    };
    // Nothing would unpack to nothing.
    if compressed.is_empty() {
        return None;
    }
    let bytes = zstd::bulk::decompress(compressed, MOST_BYTES).ok()?;
    let mut rest = bytes.as_slice();
    let mut files: Vec<FileEntry> = Vec::new();
    while !rest.is_empty() {
        let before = files.last().map_or(&[][..], |file| &file.path);
        let shared = usize::try_from(read_number(&mut rest)?).ok()?;
        let mut path = before.get(..shared)?.to_vec();
        let length = usize::try_from(read_number(&mut rest)?).ok()?;
        path.extend_from_slice(rest.split_off(..length)?);
        let mode = read_number(&mut rest)?;
        let mut file = FileEntry {
            path,
            mode: u32::try_from(mode >> 1).ok()?,
            owner: (0, 0),
            content: [0; 8],
            attributes: [0; 8],
        };
        if mode & 1 == 1 {
            let mut id = || u32::try_from(read_number(&mut rest)?).ok();
            file.owner = (id()?, id()?);
            file.attributes = *rest.split_off(..8)?.first_chunk()?;
        }
        file.content = *rest.split_off(..8)?.first_chunk()?;
        files.push(file);
    }
    Some(files)
}

/// A number in as few bytes as it needs, seven bits in each.
fn number(bytes: &mut Vec<u8>, mut number: u64) {
    while let Ok(low) = u8::try_from(number & 0x7f) {
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// What happened to one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileChange {
    /// Its content is another.
    Content,
    /// A link leads elsewhere.
    Target,
    /// It was not there.
    Added,
    /// It is not there any more.
    Removed,
    /// It was a file and is a link, or the like.
    Type,
    /// Its permissions.
    Mode,
    /// User or group.
    Owner,
    /// Its extended attributes.
    Attributes,
}

/// What happened to which file; ordered by that, then by path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangedFile {
    /// What happened.
    pub what: FileChange,
    /// Its path.
    pub path: Vec<u8>,
    /// Its permissions before and after, where they changed.
    pub modes: Option<(u32, u32)>,
}

/// What changed between two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileChanges {
    /// Files in the later list that are no directories.
    pub total: usize,
    /// The files with what happened to them, in order.
    pub changes: Vec<ChangedFile>,
}

/// Compares two lists; the order of files does not matter.
#[must_use]
pub fn compare(before: &[FileEntry], after: &[FileEntry]) -> FileChanges {
    fn sorted(files: &[FileEntry]) -> Vec<&FileEntry> {
        let mut files: Vec<_> = files.iter().collect();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        files
    }
    let (before, after) = (sorted(before), sorted(after));
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut changes = Vec::new();
    let one = |what: FileChange, file: &FileEntry| ChangedFile {
        what,
        path: file.path.clone(),
        modes: None,
    };
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.path.cmp(&new.path),
        };
        match order {
            Ordering::Less => changes.extend(old.next().map(|file| one(FileChange::Removed, file))),
            Ordering::Greater => {
                changes.extend(new.next().map(|file| one(FileChange::Added, file)));
            }
            Ordering::Equal => {
                if let (Some(old), Some(new)) = (old.next(), new.next()) {
                    changes.extend(change(old, new));
                }
            }
        }
    }
    changes.sort_unstable();
    let total = after
        .iter()
        .filter(|file| file.mode & TYPE != DIRECTORY)
        .count();
    FileChanges { total, changes }
}

/// The most telling difference of a file.
fn change(old: &FileEntry, new: &FileEntry) -> Option<ChangedFile> {
    let modes = (old.mode, new.mode);
    let what = if old == new {
        return None;
    } else if modes.0 & TYPE != modes.1 & TYPE {
        FileChange::Type
    } else if old.content != new.content {
        if modes.1 & TYPE == LINK {
            FileChange::Target
        } else {
            FileChange::Content
        }
    } else if modes.0 != modes.1 {
        FileChange::Mode
    } else if old.owner != new.owner {
        FileChange::Owner
    } else {
        FileChange::Attributes
    };
    let modes = (what == FileChange::Mode).then_some((modes.0 & !TYPE, modes.1 & !TYPE));
    let path = new.path.clone();
    Some(ChangedFile { what, path, modes })
}

impl FileChanges {
    /// What changed, in the fewest words that say it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        for (what, word) in [
            (FileChange::Content, "content"),
            (FileChange::Target, "link target"),
            (FileChange::Type, "type"),
        ] {
            let paths = self.paths(what);
            match paths.as_slice() {
                [] => {}
                [one] => parts.push(format!(
                    "{} {word} changed (1 of {})",
                    shown(one),
                    plural(self.total, "file")
                )),
                many => parts.push(format!(
                    "{word} of {} of {} changed: {}",
                    many.len(),
                    plural(self.total, "file"),
                    names(many)
                )),
            }
        }
        for (what, word) in [
            (FileChange::Added, "added"),
            (FileChange::Removed, "removed"),
        ] {
            let paths = self.paths(what);
            match paths.as_slice() {
                [] => {}
                [one] => parts.push(format!("{} {word}", shown(one))),
                many => parts.push(format!(
                    "{} {word}: {}",
                    plural(many.len(), "file"),
                    names(many)
                )),
            }
        }
        parts.extend(self.modes());
        for (what, word) in [
            (FileChange::Owner, "owner"),
            (FileChange::Attributes, "extended attributes"),
        ] {
            let paths = self.paths(what);
            if !paths.is_empty() {
                parts.push(format!("{word} of {} changed", names(&paths)));
            }
        }
        parts.join("; ")
    }

    /// The changes for programs, as far as a report holds them: path, what happened, and modes.
    pub fn details(&self) -> impl Iterator<Item = FileDetail> {
        let detail = |file: &ChangedFile| {
            let octal = |mode: u32| format!("{mode:04o}");
            FileDetail {
                path: String::from_utf8_lossy(&file.path).into_owned(),
                change: file.what,
                from: file.modes.map(|(from, _)| octal(from)),
                to: file.modes.map(|(_, to)| octal(to)),
            }
        };
        self.changes.iter().take(DETAILS).map(detail)
    }

    fn paths(&self, what: FileChange) -> Vec<&[u8]> {
        let of = self.changes.iter().filter(|file| file.what == what);
        of.map(|file| file.path.as_slice()).collect()
    }

    /// Changes of modes, those from one mode to the same other together.
    fn modes(&self) -> Vec<String> {
        let mut groups: BTreeMap<(u32, u32), Vec<&[u8]>> = BTreeMap::new();
        for file in &self.changes {
            if let Some(modes) = file.modes {
                groups.entry(modes).or_default().push(&file.path);
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, paths)| usize::MAX - paths.len());
        let more = groups.len().saturating_sub(NAMES);
        let mut texts = Vec::new();
        for ((from, to), paths) in groups.into_iter().take(NAMES) {
            let of = match paths.as_slice() {
                [one] => shown(one),
                many => plural(many.len(), "file"),
            };
            texts.push(format!("mode {from:04o} -> {to:04o} on {of}"));
        }
        if more > 0 {
            texts.push(format!("{more} other changes of modes"));
        }
        texts
    }
}

/// One change, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileDetail {
    /// The file's path.
    pub path: String,
    /// What happened.
    pub change: FileChange,
    /// The mode before, octal, where it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The mode after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A count with its noun.
pub(super) fn plural(count: usize, noun: &str) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{end}")
}

fn names(paths: &[&[u8]]) -> String {
    let mut text = String::new();
    for (index, path) in paths.iter().take(NAMES).enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{}", shown(path));
    }
    match paths.len().saturating_sub(NAMES) {
        0 => {}
        more => {
            let _ = write!(text, " and {more} more");
        }
    }
    text
}

/// A path as one word of a message.
fn shown(path: &[u8]) -> String {
    if path.is_empty() {
        return "its directory".to_owned();
    }
    let text = String::from_utf8_lossy(path);
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGULAR: u32 = 0o100_000;

    fn file(path: &str, mode: u32, content: u8) -> FileEntry {
        FileEntry {
            path: path.as_bytes().to_vec(),
            mode: REGULAR | mode,
            owner: (0, 0),
            content: [content; 8],
            attributes: [0; 8],
        }
    }

    #[test]
    fn lists_are_read_as_they_were_written() {
        let mut files = vec![
            file("", 0o755, 0),
            file("src/lib.rs", 0o644, 1),
            file("src/main.rs", 0o644, 2),
            file("src/main", 0o4755, 3),
        ];
        files.push(FileEntry {
            owner: (1000, u32::MAX),
            attributes: [7; 8],
            path: b"not utf-8 \xff".to_vec(),
            ..file("", 0o600, 4)
        });
        let packed = pack(&files).unwrap();
        let mut read = unpack(&packed).unwrap();
        assert!(read.is_sorted_by_key(|file| file.path.clone()));
        read.sort();
        files.sort();
        assert_eq!(read, files);
        assert_eq!(unpack(&pack(&[]).unwrap()), Some(Vec::new()));
        assert_eq!(unpack(b""), None);
        assert_eq!(unpack(b"\x02rest"), None);
        for end in 1..packed.len() {
            assert_eq!(unpack(&packed[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_is_no_list_is_not_believed() {
        for bytes in [
            &[5, 1, b'a'][..],
            &[0, 200, b'a'],
            &[0xff; 20],
            &[0, 1, b'a', 0],
        ] {
            let mut packed = vec![VERSION];
            packed.extend(zstd::bulk::compress(bytes, 1).unwrap());
            assert_eq!(unpack(&packed), None, "{bytes:?}");
        }
    }

    #[test]
    fn many_files_pack_to_little() {
        let files: Vec<_> = (0..20_000_u64)
            .map(|number| FileEntry {
                content: number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes(),
                ..file(&format!("dir{}/file{number}.txt", number % 100), 0o644, 0)
            })
            .collect();
        let size = pack(&files).unwrap().len();
        assert!(size < 300_000, "{size}");
    }

    #[test]
    fn changes_are_told_in_few_words() {
        let base = [
            file("a", 0o644, 1),
            file("b", 0o644, 2),
            file("c", 0o600, 3),
            file("d", 0o644, 4),
        ];
        type Change<'a> = &'a dyn Fn(&mut Vec<FileEntry>);
        let told = |change: Change<'_>| {
            let mut after = base.to_vec();
            change(&mut after);
            compare(&base, &after).text()
        };
        let table: [(&str, Change<'_>); 9] = [
            ("", &|_| ()),
            ("a content changed (1 of 4 files)", &|files| {
                files[0].content = [9; 8];
            }),
            (
                "content of 4 of 4 files changed: a, b, c and 1 more",
                &|files| {
                    files.iter_mut().for_each(|file| file.content = [9; 8]);
                },
            ),
            (
                "mode 0644 -> 0664 on 3 files; mode 0600 -> 0664 on c",
                &|files| {
                    files
                        .iter_mut()
                        .for_each(|file| file.mode = REGULAR | 0o664);
                },
            ),
            ("e added; a removed", &|files| files[0].path = b"e".to_vec()),
            ("2 files removed: a, b", &|files| drop(files.drain(..2))),
            ("b type changed (1 of 4 files)", &|files| {
                files[1].mode = LINK | 0o777;
            }),
            ("owner of a, b changed", &|files| {
                files[..2].iter_mut().for_each(|file| file.owner = (1, 1));
            }),
            ("extended attributes of d changed", &|files| {
                files[3].attributes = [1; 8];
            }),
        ];
        for (text, change) in table {
            assert_eq!(told(change), text);
        }
        let control = [file("x\u{1b}[2J", 0o644, 1)];
        assert_eq!(compare(&[], &control).text(), "x\u{fffd}[2J added");
    }
}
