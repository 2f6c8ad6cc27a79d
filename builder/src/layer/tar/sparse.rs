//! Sparse files: the maps of GNU tar's four ways to say where the data of a file lies.

use super::Header;
use super::field::{self, Block};
use super::pax::{self, Records};

/// Pieces of data that a sparse file may have.
pub const MAX_SEGMENTS: usize = 10_000;

/// A piece of data of a sparse file; what lies between two is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What the records of an extended header say about sparseness.
pub(super) enum Declared {
    /// Not sparse.
    No,
    /// Formats 0.0 and 0.1: the map is in the records.
    Map(Vec<Segment>),
    /// Format 1.0: the map is at the start of the content.
    InContent,
}

pub(super) const TOO_MANY: &str = "too many sparse segments";

/// Finds out which format the records declare.
pub(super) fn declared(records: &Records) -> Result<Declared, &'static str> {
    let get = |key: &[u8]| records.get(key).filter(|value| !value.is_empty());
    let version = (
        get(b"GNU.sparse.major").map(Vec::as_slice),
        get(b"GNU.sparse.minor").map(Vec::as_slice),
    );
    match version {
        (Some(b"1"), Some(b"0")) => Ok(Declared::InContent),
        (Some(b"0"), Some(b"0" | b"1")) | (None, None) => match records.get(pax::SPARSE_MAP) {
            Some(map) => Ok(Declared::Map(parse_map(map, records)?)),
            None if version == (None, None) && get(b"GNU.sparse.numblocks").is_none() => {
                Ok(Declared::No)
            }
            None => Err("sparse file without a map"),
        },
        _ => Err("unknown version of the sparse format"),
    }
}

fn parse_map(map: &[u8], records: &Records) -> Result<Vec<Segment>, &'static str> {
    const WRONG: &str = "malformed sparse map";
    let mut numbers = Vec::new();
    if !map.is_empty() {
        for number in map.split(|&b| b == b',') {
            if numbers.len() >= 2 * MAX_SEGMENTS {
                return Err(TOO_MANY);
            }
            numbers.push(pax::decimal(number).ok_or(WRONG)?);
        }
    }
    if numbers.len() % 2 != 0 {
        return Err(WRONG);
    }
    let count = records
        .get(&b"GNU.sparse.numblocks"[..])
        .and_then(|count| pax::decimal(count))
        .ok_or(WRONG)?;
    if count != numbers.len() as u64 / 2 {
        return Err(WRONG);
    }
    Ok(segments(&numbers))
}

/// Takes the real name and size, for which the header has substitutes.
pub(super) fn rename(records: &Records, header: &mut Header) -> Result<(), &'static str> {
    let get = |key: &[u8]| records.get(key).filter(|value| !value.is_empty());
    if let Some(name) = get(b"GNU.sparse.name") {
        if name.contains(&0) {
            return Err("a NUL in a name");
        }
        header.path.clone_from(name);
    }
    if let Some(size) = get(b"GNU.sparse.size").or_else(|| get(b"GNU.sparse.realsize")) {
        header.size = pax::decimal(size).ok_or("invalid size")?;
    }
    Ok(())
}

/// Pairs of numbers as segments.
pub(super) fn segments(numbers: &[u64]) -> Vec<Segment> {
    numbers
        .chunks_exact(2)
        .map(|pair| Segment {
            offset: pair[0],
            length: pair[1],
        })
        .collect()
}

/// Appends the entries of an old GNU header or of a block that continues it; says whether another
/// block follows.
pub(super) fn gnu_entries(
    block: &Block,
    is_header: bool,
    into: &mut Vec<Segment>,
) -> Result<bool, &'static str> {
    let (entries, extended) = if is_header {
        (field::GNU_SPARSE, field::GNU_EXTENDED)
    } else {
        (field::EXTENSION_SPARSE, field::EXTENSION_EXTENDED)
    };
    for entry in block[entries].chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        if into.len() >= MAX_SEGMENTS {
            return Err(TOO_MANY);
        }
        let number = |field| field::number(field).and_then(|n| u64::try_from(n).ok());
        let (Some(offset), Some(length)) = (number(&entry[..12]), number(&entry[12..])) else {
            return Err("malformed sparse map");
        };
        into.push(Segment { offset, length });
    }
    Ok(block[extended] != 0)
}

/// Checks that segments are in order, lie within the file and hold exactly the stored bytes.
pub(super) fn validate(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    const WRONG: &str = "sparse map does not fit the file";
    let mut end = 0;
    let mut sum = 0u64;
    for segment in segments {
        let next = segment.offset.checked_add(segment.length).ok_or(WRONG)?;
        if segment.offset < end || next > size {
            return Err(WRONG);
        }
        end = next;
        sum += segment.length;
    }
    if sum == stored { Ok(()) } else { Err(WRONG) }
}
