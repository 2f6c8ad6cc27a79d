//! The members of a tar file: where each lies, found once without reading their content.
//!
//! Headers are parsed one by one here instead of by an archive reader, so that no length that a
//! header announces is believed before it is checked, and what may be ambiguous is refused.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;

use tar::{EntryType, Header};

use super::ArchiveError;

const BLOCK: u64 = 512;
/// Members accepted; an image needs some three for each layer.
const MAX_MEMBERS: usize = 100_000;
/// Bytes of a name accepted.
const MAX_NAME: usize = 4096;
/// Bytes of all names together.
const MAX_NAMES: usize = 32 << 20;
/// Bytes of one extended header accepted.
const MAX_EXTENDED: u64 = 1 << 20;
/// Extended headers accepted before one member.
const MAX_PENDING: usize = 16;
/// Links followed to reach one file.
const MAX_LINKS: usize = 16;

/// Where a file's content lies in the archive, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
enum Member {
    File(Extent),
    /// A symbolic or hard link, with the name of the member it leads to.
    Link(String),
    /// A directory, device or pipe; nothing an image is made of.
    Other,
}

/// All members of an archive by name.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_name: HashMap<String, Member>,
    name_bytes: usize,
}

/// What extended headers say about the member after them.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    count: usize,
}

impl Members {
    /// Finds all members of a tar file.
    pub(super) fn index(file: &File) -> Result<Self, ArchiveError> {
        let metadata = file.metadata();
        let length = metadata
            .map_err(ArchiveError::io("cannot read the archive"))?
            .len();
        let mut members = Self::default();
        let mut extended = Extended::default();
        let mut offset = 0;
        while let Some(header) = next_header(file, offset, length)? {
            let extent = extent(&header, &extended, offset, length)?;
            if !extended.take(file, &header, extent)? {
                let extended = std::mem::take(&mut extended);
                members.add(&header, extended, extent)?;
            }
            // All of it is in the file, so this cannot overflow.
            offset = extent.offset + extent.size.next_multiple_of(BLOCK);
        }
        if extended.count > 0 {
            return Err(corrupt("an extended header without a member", offset));
        }
        Ok(members)
    }

    /// The content of the file of a name, through links; `None` when there is no such file.
    pub(super) fn find(&self, name: &str) -> Result<Option<Extent>, ArchiveError> {
        let mut current = resolve("", name.as_bytes(), Role::Member)?;
        for _ in 0..=MAX_LINKS {
            match self.by_name.get(&current) {
                Some(Member::File(extent)) => return Ok(Some(*extent)),
                Some(Member::Link(target)) => current.clone_from(target),
                Some(Member::Other) | None => return Ok(None),
            }
        }
        Err(ArchiveError::LinkLoop(name.to_owned()))
    }

    fn add(
        &mut self,
        header: &Header,
        extended: Extended,
        extent: Extent,
    ) -> Result<(), ArchiveError> {
        let path = extended
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let name = resolve("", &path, Role::Member)?;
        let kind = header.entry_type();
        let member = match kind {
            EntryType::Regular | EntryType::Continuous if !path.ends_with(b"/") => {
                Member::File(extent)
            }
            EntryType::Symlink | EntryType::Link => {
                let target = match extended.link {
                    Some(link) => link,
                    None => header.link_name_bytes().unwrap_or_default().into_owned(),
                };
                let parent = match name.rsplit_once('/') {
                    Some((parent, _)) if kind == EntryType::Symlink => parent,
                    _ => "",
                };
                Member::Link(resolve(parent, &target, Role::Link)?)
            }
            EntryType::GNUSparse => {
                return Err(corrupt("a sparse file", extent.offset - BLOCK));
            }
            _ => Member::Other,
        };
        self.name_bytes += name.len();
        if self.name_bytes > MAX_NAMES || self.by_name.len() >= MAX_MEMBERS {
            return Err(ArchiveError::Limit {
                what: "members of an image archive".to_owned(),
                limit: MAX_MEMBERS as u64,
            });
        }
        match self.by_name.entry(name) {
            Entry::Vacant(place) => {
                place.insert(member);
            }
            Entry::Occupied(place) => {
                // Directories are named again by whoever adds to them.
                if !matches!((place.get(), &member), (Member::Other, Member::Other)) {
                    return Err(ArchiveError::Duplicate(place.key().clone()));
                }
            }
        }
        Ok(())
    }
}

impl Extended {
    /// Takes in an extended header; `false` when it is none.
    fn take(&mut self, file: &File, header: &Header, at: Extent) -> Result<bool, ArchiveError> {
        let kind = header.entry_type();
        match kind {
            EntryType::GNULongName => self.path = Some(long_name(file, at)?),
            EntryType::GNULongLink => self.link = Some(long_name(file, at)?),
            EntryType::XHeader => self.records(&content(file, at)?, at.offset)?,
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        if kind != EntryType::XGlobalHeader {
            self.count += 1;
        }
        if self.count > MAX_PENDING {
            return Err(corrupt("too many extended headers", at.offset));
        }
        Ok(true)
    }

    /// Takes in the records `length key=value\n` of a PAX header, the last of a key counting.
    fn records(&mut self, mut bytes: &[u8], offset: u64) -> Result<(), ArchiveError> {
        let malformed = || corrupt("a malformed extended header", offset);
        while !bytes.is_empty() {
            let blank = bytes
                .iter()
                .position(|&b| b == b' ')
                .ok_or_else(malformed)?;
            let length: usize = number(&bytes[..blank]).ok_or_else(malformed)?;
            let record = bytes.get(blank + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record
                .iter()
                .position(|&b| b == b'=')
                .ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value).ok_or_else(malformed)?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(corrupt("a sparse file", offset));
                }
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

fn corrupt(reason: &'static str, offset: u64) -> ArchiveError {
    ArchiveError::Corrupt { reason, offset }
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok()?;
    all_digits.then(|| text.parse().ok()).flatten()
}

/// The header at an offset; `None` at the end of the archive.
fn next_header(file: &File, offset: u64, length: u64) -> Result<Option<Header>, ArchiveError> {
    let Some(header) = read_block(file, offset, length)? else {
        return if offset == 0 {
            Err(ArchiveError::Empty)
        } else {
            Ok(None)
        };
    };
    if header.as_bytes().iter().all(|&b| b == 0) {
        // Two blocks of zeros end an archive, so does one as the last.
        return match read_block(file, offset + BLOCK, length)? {
            Some(second) if second.as_bytes().iter().any(|&b| b != 0) => {
                Err(corrupt("a lone block of zeros", offset))
            }
            _ => Ok(None),
        };
    }
    let bytes = header.as_bytes();
    let sum = |byte: &u8| u32::from(*byte);
    let actual: u32 = bytes[..148].iter().chain(&bytes[156..]).map(sum).sum();
    match header.cksum() {
        Ok(announced) if announced == actual + 8 * u32::from(b' ') => Ok(Some(header)),
        _ if offset == 0 => Err(ArchiveError::NotTar),
        _ => Err(corrupt("a damaged header", offset)),
    }
}

/// The block at an offset; `None` when the file ends right there.
fn read_block(file: &File, offset: u64, length: u64) -> Result<Option<Header>, ArchiveError> {
    if offset >= length {
        return Ok(None);
    }
    if length - offset < BLOCK {
        return Err(if offset == 0 {
            ArchiveError::NotTar
        } else {
            ArchiveError::Truncated {
                member: "a header".to_owned(),
                expected: offset + BLOCK,
                actual: length,
            }
        });
    }
    let mut header = Header::new_old();
    file.read_exact_at(header.as_mut_bytes(), offset)
        .map_err(ArchiveError::io("cannot read the archive"))?;
    Ok(Some(header))
}

/// Where the content of the member of a header lies; all of it is in the file.
fn extent(
    header: &Header,
    extended: &Extended,
    offset: u64,
    length: u64,
) -> Result<Extent, ArchiveError> {
    use EntryType as Type;
    let announced = match header.entry_type() {
        // Types that are a header only; other readers too skip no content for them.
        Type::Link | Type::Symlink | Type::Char | Type::Block | Type::Directory | Type::Fifo => 0,
        Type::XHeader | Type::XGlobalHeader | Type::GNULongName | Type::GNULongLink => {
            size_field(header, offset)?
        }
        _ => match extended.size {
            Some(size) => size,
            None => size_field(header, offset)?,
        },
    };
    let start = offset + BLOCK;
    let padded = announced.checked_next_multiple_of(BLOCK);
    let end = start.saturating_add(padded.unwrap_or(u64::MAX));
    if end > length {
        return Err(ArchiveError::Truncated {
            member: String::from_utf8_lossy(&header.path_bytes()).into_owned(),
            expected: end,
            actual: length,
        });
    }
    Ok(Extent {
        offset: start,
        size: announced,
    })
}

fn size_field(header: &Header, offset: u64) -> Result<u64, ArchiveError> {
    header
        .entry_size()
        .map_err(|_| corrupt("a malformed size", offset))
}

/// The content of an extended header.
fn content(file: &File, at: Extent) -> Result<Vec<u8>, ArchiveError> {
    let size = usize::try_from(at.size).ok();
    let Some(size) = size.filter(|_| at.size <= MAX_EXTENDED) else {
        return Err(ArchiveError::Limit {
            what: "an extended header".to_owned(),
            limit: MAX_EXTENDED,
        });
    };
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, at.offset)
        .map_err(ArchiveError::io("cannot read the archive"))?;
    Ok(bytes)
}

/// A GNU long name: up to the first zero byte.
fn long_name(file: &File, at: Extent) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = content(file, at)?;
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    Ok(bytes)
}

/// What a name is of. A member's never needs `..`; a link's may go up, not out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Member,
    Link,
}

/// The normal form of a name seen from a directory: no `.`, no `..`, no slash at the ends.
fn resolve(directory: &str, name: &[u8], role: Role) -> Result<String, ArchiveError> {
    let unsafe_path = || ArchiveError::UnsafePath {
        what: match role {
            Role::Member => "member",
            Role::Link => "link",
        },
        name: String::from_utf8_lossy(name).into_owned(),
    };
    if name.len() > MAX_NAME {
        return Err(ArchiveError::Limit {
            what: "the name of a member".to_owned(),
            limit: MAX_NAME as u64,
        });
    }
    // What is no text cannot be named by a document of the archive.
    let name = String::from_utf8_lossy(name);
    if name.starts_with('/') || name.contains('\0') {
        return Err(unsafe_path());
    }
    let mut parts: Vec<&str> = directory.split('/').filter(|p| !p.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if role == Role::Link => {
                parts.pop().ok_or_else(unsafe_path)?;
            }
            ".." => return Err(unsafe_path()),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}
