//! Owners that the disk cannot hold.
//!
//! In a user namespace a file cannot belong to a user that the namespace does not have; with a
//! single id there is nobody but root. Such an owner is written down beside the file, and is then
//! the truth: what reads the metadata of files in snapshots corrects it by [`correct`], what gives
//! files away does so by [`set`], and nothing else in kiln knows how it is done:
//!
//! - regular files and directories carry the attribute `RECORD`, which overlayfs copies up with
//!   them: `UID:GID`, or `-` for "as on disk", and for a device ` c MAJOR:MINOR` or ` b …` after
//!   that, because only the host's root makes device nodes. What stands for one is an empty file;
//! - symbolic links and pipes cannot have such attributes. Layers keep times in whole seconds, so
//!   that the nanoseconds of their last change are free: these are `FIRST` plus the number of the
//!   line with their owner in a file of the store, which [`open_table`] names.
//!
//! With a single id every file has a record, root's too: one without was made by a step and belongs
//! to the user of that step ([`adopt`]). No record ever comes out of a layer or gets into one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, Dev, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::ids::{self, Map};
use super::xattr::{self, Place};

/// The attribute that says whose a file is.
const RECORD: &[u8] = b"user.kiln.owner";
/// Attributes of kiln's own begin so.
const PREFIX: &[u8] = b"user.kiln.";
/// Nanoseconds that stand for the first line of the table.
const FIRST: u32 = 999_900_000;
/// Lines that the table may have.
const LINES: usize = 100_000;

/// Nanoseconds that the time of a file's last change must have, so that its owner is known.
pub type Nanoseconds = u32;

/// Whether an attribute is kiln's own, which no layer brings or takes along.
#[must_use]
pub fn is_record(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// Which owners have to be written down.
#[derive(Debug)]
enum Keeping {
    /// None: the disk holds all.
    Nothing,
    /// Those that the namespace does not have.
    Unmapped(Map),
    /// All.
    All,
}

fn keeping() -> &'static Keeping {
    static KEEPING: OnceLock<Keeping> = OnceLock::new();
    KEEPING.get_or_init(|| {
        // Without /proc there is no user namespace that kiln has entered.
        if ids::in_initial_namespace().unwrap_or(true) {
            return Keeping::Nothing;
        }
        match Map::current() {
            Ok(map) if map.is_single() => Keeping::All,
            Ok(map) => Keeping::Unmapped(map),
            Err(_) => Keeping::Nothing,
        }
    })
}

/// Whether some owners are written down, so that what `stat` says has to be corrected.
#[must_use]
pub fn is_kept() -> bool {
    !matches!(keeping(), Keeping::Nothing)
}

/// Whether every file has a record of its owner.
#[must_use]
pub fn is_kept_for_all() -> bool {
    matches!(keeping(), Keeping::All)
}

/// Gives a file to a user and group. A link or pipe whose owner has to be written down needs the
/// nanoseconds that are handed back, as the time of its last change.
///
/// # Errors
/// Those of `chown`, or of writing the owner down.
pub fn set(place: Place<'_>, (uid, gid): (u32, u32)) -> rustix::io::Result<Option<Nanoseconds>> {
    match keeping() {
        Keeping::Nothing => chown(place, uid, gid).map(|()| None),
        Keeping::Unmapped(map) if map.has_user(uid) && map.has_group(gid) => {
            chown(place, uid, gid)?;
            forget(place)?;
            Ok(None)
        }
        Keeping::Unmapped(_) | Keeping::All => {
            // Takes setuid bits and capabilities away, as a change of the owner does.
            chown(place, 0, 0)?;
            note(place, (uid, gid))
        }
    }
}

fn chown(place: Place<'_>, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match place {
        Place::Open(file) => rustix::fs::fchown(file, uid, gid),
        Place::At(file) => rustix::fs::chownat(file, "", uid, gid, AtFlags::EMPTY_PATH),
        Place::In(directory, name) => {
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

/// Writes an owner down.
fn note(place: Place<'_>, owner: (u32, u32)) -> rustix::io::Result<Option<Nanoseconds>> {
    let device = match read(place) {
        Ok(record) => record.and_then(|record| record.device),
        // What has no such attributes.
        Err(Errno::PERM) => return nanoseconds(owner).map(Some),
        Err(error) => return Err(error),
    };
    let record = Record {
        owner: Some(owner),
        device,
    };
    match xattr::set(place, RECORD, record.to_string().as_bytes()) {
        Err(Errno::PERM) => nanoseconds(owner).map(Some),
        set => set.map(|()| None),
    }
}

/// Takes an owner out of a record, because the disk has it.
fn forget(place: Place<'_>) -> rustix::io::Result<()> {
    match read(place) {
        Ok(Some(Record {
            device: Some(device),
            ..
        })) => {
            let record = Record {
                owner: None,
                device: Some(device),
            };
            xattr::set(place, RECORD, record.to_string().as_bytes())
        }
        Ok(Some(_)) => xattr::remove(place, RECORD),
        Ok(None) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Corrects what `stat` said of a file of a snapshot by what is written down of it.
///
/// # Errors
/// When the record cannot be read.
pub fn correct(place: Place<'_>, stat: &mut Stat) -> rustix::io::Result<()> {
    if !is_kept() {
        return Ok(());
    }
    let record = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => read(place)?,
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => None,
        _ => owner_of_link(stat).map(|owner| Record {
            owner: Some(owner),
            device: None,
        }),
    };
    if let Some(record) = record {
        record.apply(stat);
    }
    Ok(())
}

/// Makes a device node; where only the host's root may, something that stands for it.
///
/// # Errors
/// Those of `mknod`; `PERM` where nothing may stand for it.
pub fn make_device(
    directory: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    device: Dev,
) -> rustix::io::Result<()> {
    match rustix::fs::mknodat(directory, name, kind, Mode::RUSR, device) {
        Err(Errno::PERM) if is_kept() => {}
        made => return made,
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::RUSR)?;
    let record = Record {
        owner: None,
        device: Some((
            kind == FileType::BlockDevice,
            rustix::fs::major(device),
            rustix::fs::minor(device),
        )),
    };
    let place = Place::Open(file.as_fd());
    xattr::set(place, RECORD, record.to_string().as_bytes())
}

/// Writes down whom a file belongs to that has no record: its maker. Hands back what [`set`] does.
///
/// # Errors
/// When the record cannot be read or written.
pub fn adopt(
    place: Place<'_>,
    stat: &Stat,
    owner: (u32, u32),
) -> rustix::io::Result<Option<Nanoseconds>> {
    let known = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => {
            matches!(read(place)?, Some(Record { owner: Some(_), .. }))
        }
        FileType::CharacterDevice | FileType::BlockDevice => true,
        _ => owner_of_link(stat).is_some(),
    };
    if known { Ok(None) } else { note(place, owner) }
}

/// What is written down of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    owner: Option<(u32, u32)>,
    /// Whether it is a block device, and its numbers.
    device: Option<(bool, u32, u32)>,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.owner {
            Some((uid, gid)) => write!(f, "{uid}:{gid}")?,
            None => f.write_str("-")?,
        }
        if let Some((block, major, minor)) = self.device {
            write!(f, " {} {major}:{minor}", if block { 'b' } else { 'c' })?;
        }
        Ok(())
    }
}

impl Record {
    /// Reads what a step may have written: what is no record is none.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let pair = |text: &str| {
            let (first, second) = text.split_once(':')?;
            Some((first.parse::<u32>().ok()?, second.parse::<u32>().ok()?))
        };
        let owner = match words.next()? {
            "-" => None,
            text => Some(pair(text)?),
        };
        let device = match (words.next(), words.next()) {
            (None, _) => None,
            (Some(kind @ ("b" | "c")), Some(numbers)) => {
                let (major, minor) = pair(numbers)?;
                Some((kind == "b", major, minor))
            }
            _ => return None,
        };
        Some(Self { owner, device })
    }

    fn apply(self, stat: &mut Stat) {
        if let Some((uid, gid)) = self.owner {
            (stat.st_uid, stat.st_gid) = (uid, gid);
        }
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if let (Some((block, major, minor)), true) = (self.device, regular) {
            let kind = if block {
                FileType::BlockDevice
            } else {
                FileType::CharacterDevice
            };
            stat.st_mode = kind.as_raw_mode() | stat.st_mode & 0o7777;
            stat.st_rdev = rustix::fs::makedev(major, minor);
            stat.st_size = 0;
        }
    }
}

fn read(place: Place<'_>) -> rustix::io::Result<Option<Record>> {
    let mut value = [0; 64];
    match xattr::get(place, RECORD, &mut value) {
        Ok(length) => {
            let text = std::str::from_utf8(value.get(..length).unwrap_or_default());
            Ok(text.ok().and_then(Record::parse))
        }
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The owners of links, by line.
#[derive(Debug, Default)]
struct Table {
    path: PathBuf,
    lines: Vec<(u32, u32)>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Names the file with the owners of links and pipes; it need not exist.
pub fn open_table(path: &Path) {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    *table = Some(Table {
        path: path.to_owned(),
        lines: Vec::new(),
    });
}

/// The file that [`open_table`] has named.
#[must_use]
pub fn table() -> Option<PathBuf> {
    let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    table.as_ref().map(|table| table.path.clone())
}

/// The nanoseconds that stand for an owner.
///
/// # Errors
/// `PERM` without a table, and the errors of writing it.
pub fn nanoseconds(owner: (u32, u32)) -> rustix::io::Result<Nanoseconds> {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.as_mut().ok_or(Errno::PERM)?;
    let line = table.line(owner);
    let line = line.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    u32::try_from(line)
        .ok()
        .filter(|_| line < LINES)
        .map(|line| FIRST + line)
        .ok_or(Errno::NOSPC)
}

/// Whether nanoseconds may say something of an owner.
#[must_use]
pub fn is_meaningful(nanoseconds: u32) -> bool {
    nanoseconds >= FIRST && is_kept()
}

/// The owner that the time of a link or pipe stands for.
fn owner_of_link(stat: &Stat) -> Option<(u32, u32)> {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).ok()?;
    let line = usize::try_from(nanoseconds.checked_sub(FIRST)?).ok()?;
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = table.as_mut()?;
    if line >= table.lines.len() {
        // Another process may have added it. A table that cannot be read has no owners.
        drop(table.read());
    }
    table.lines.get(line).copied()
}

impl Table {
    fn read(&mut self) -> io::Result<()> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => self.lines = lines(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The line of an owner, which is added if it is not there.
    fn line(&mut self, owner: (u32, u32)) -> io::Result<usize> {
        let find = |lines: &[(u32, u32)]| lines.iter().position(|line| *line == owner);
        if let Some(line) = find(&self.lines) {
            return Ok(line);
        }
        let mut file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(&self.path)?;
        // Freed when the file is closed.
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        self.lines = lines(&text);
        if let Some(line) = find(&self.lines) {
            return Ok(line);
        }
        if !text.is_empty() && !text.ends_with('\n') {
            // A process was killed over its line.
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            file.set_len(whole as u64)?;
            file.seek(io::SeekFrom::End(0))?;
        }
        file.write_all(format!("{}:{}\n", owner.0, owner.1).as_bytes())?;
        self.lines.push(owner);
        Ok(self.lines.len() - 1)
    }
}

/// The owners of a table; a line that is not whole ends it.
fn lines(text: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let (uid, gid) = line.strip_suffix('\n')?.split_once(':')?;
        Some((uid.parse().ok()?, gid.parse().ok()?))
    };
    text.split_inclusive('\n').map_while(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_what_they_mean() {
        for (text, owner, device) in [
            ("0:0", Some((0, 0)), None),
            ("1000:100", Some((1000, 100)), None),
            ("- c 1:3", None, Some((false, 1, 3))),
            ("0:6 b 8:0", Some((0, 6)), Some((true, 8, 0))),
        ] {
            let record = Record { owner, device };
            assert_eq!(Record::parse(text), Some(record), "{text}");
            assert_eq!(record.to_string(), text);
        }
        for text in [
            "",
            "x",
            "1",
            "1:",
            "-1:0",
            "1:2 d 1:1",
            "1:2 c",
            "1:4294967296",
        ] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_is_what_its_record_says() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = File::create(dir.path().join("null")).unwrap();
        let mut stat = rustix::fs::fstat(&file).unwrap();
        Record::parse("7:8 c 1:3").unwrap().apply(&mut stat);
        assert_eq!((stat.st_uid, stat.st_gid), (7, 8));
        assert_eq!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::CharacterDevice
        );
        assert_eq!(stat.st_rdev, rustix::fs::makedev(1, 3));
    }

    #[test]
    fn owners_of_links_have_lines_that_stay() {
        let dir = tempfile::TempDir::new().unwrap();
        let table = || Table {
            path: dir.path().join("owners"),
            lines: Vec::new(),
        };
        let mut one = table();
        assert_eq!(one.line((0, 0)).unwrap(), 0);
        assert_eq!(one.line((5, 6)).unwrap(), 1);
        assert_eq!(table().line((7, 7)).unwrap(), 2);
        assert_eq!(one.line((7, 7)).unwrap(), 2);
        // A line that was being written when its process was killed.
        let mut file = File::options()
            .append(true)
            .open(dir.path().join("owners"))
            .unwrap();
        file.write_all(b"8:").unwrap();
        assert_eq!(table().line((9, 9)).unwrap(), 3);
        assert_eq!(table().line((5, 6)).unwrap(), 1);
    }

    #[test]
    fn records_are_kilns_own() {
        assert!(is_record(RECORD) && !is_record(b"user.overlay.opaque"));
    }
}
