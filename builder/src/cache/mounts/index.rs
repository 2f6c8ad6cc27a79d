//! What is in a mount, file by file.

use std::io::{self, BufReader, Read as _};

use kiln_registry::digest::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use super::MountsError;
use crate::layer::tar::{Header, Kind};
use crate::layer::{Compression, Limits, decompressor};
use crate::store::Store;

/// The largest index that is read, bytes of its JSON.
const LARGEST: u64 = 256 << 20;

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its path in the mount, empty for the mount itself; bytes that are no text are escaped.
    #[serde(rename = "p")]
    pub(super) path: String,
    /// Its kind and, of a link, where it leads; of a device its numbers.
    #[serde(rename = "k")]
    pub(super) kind: String,
    #[serde(rename = "m")]
    pub(super) mode: u32,
    #[serde(rename = "o")]
    pub(super) owner: (u32, u32),
    /// Seconds since 1970 and nanoseconds.
    #[serde(rename = "t")]
    pub(super) time: (i64, u32),
    #[serde(rename = "s", default)]
    pub(super) size: u64,
    /// Digest of the content.
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    /// Digest of the extended attributes.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub(super) attributes: Option<Digest>,
    /// The pack that has it.
    #[serde(rename = "n")]
    pub(super) pack: usize,
}

impl Entry {
    /// What a tar says of a file; the fraction of its time stands elsewhere.
    pub(super) fn new(header: &Header, nanoseconds: u32) -> Self {
        let link = escaped(&header.link);
        let kind = match header.kind {
            Kind::File => "file".to_owned(),
            Kind::HardLink => format!("same {link}"),
            Kind::Symlink => format!("link {link}"),
            Kind::Directory => "folder".to_owned(),
            Kind::Fifo => "fifo".to_owned(),
            Kind::CharDevice => format!("char {}:{}", header.device.0, header.device.1),
            Kind::BlockDevice => format!("block {}:{}", header.device.0, header.device.1),
        };
        let mut attributes = None;
        for (name, value) in &header.xattrs {
            let hasher = attributes.get_or_insert_with(Hasher::new);
            for part in [name, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Self {
            path: escaped(path_of(header)),
            kind,
            mode: header.mode,
            owner: (header.uid, header.gid),
            time: (header.mtime.seconds, nanoseconds),
            size: header.size,
            digest: None,
            attributes: attributes.map(Hasher::finish),
            pack: 0,
        }
    }

    /// Whether it is the same as before, apart from where it lies; content is compared elsewhere.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let of = |entry: &Self| Self {
            pack: 0,
            digest: None,
            ..entry.clone()
        };
        of(self) == of(other)
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind == "file"
    }

    pub(super) fn is_folder(&self) -> bool {
        self.kind == "folder"
    }

    /// Of a hard link the file that it is another name of.
    pub(super) fn same_as(&self) -> Option<&str> {
        self.kind.strip_prefix("same ")
    }
}

/// The path of an entry without what stands before and behind it.
pub(super) fn path_of(header: &Header) -> &[u8] {
    let path = header.path.strip_prefix(b"./").unwrap_or(&header.path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path == b"." { b"" } else { path }
}

/// A name as text that stands for just this name.
pub(super) fn escaped(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '%' => text.push_str("%25"),
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The name that such a text stands for.
pub(super) fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        name.extend_from_slice(before.as_bytes());
        name.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = after.get(2..)?;
    }
    name.extend_from_slice(rest.as_bytes());
    Some(name)
}

/// Reads an index that lies in the store. Blocks.
pub(super) fn read(store: &Store, blob: &Digest) -> Result<Vec<Entry>, MountsError> {
    let failed = super::io("reading its index");
    let limits = Limits {
        size: LARGEST,
        ..Limits::default()
    };
    let file = store.open_blob(blob)?;
    let reader = decompressor(Compression::Zstd, file, limits).map_err(failed)?;
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let entries = serde_json::from_reader(&mut reader)?;
    let rest = reader
        .read(&mut [0])
        .map_err(super::io("reading its index"))?;
    match rest {
        0 => Ok(entries),
        _ => Err(MountsError::Wrong("something follows its index")),
    }
}

/// Writes an index to the store; gives its digest and size. Blocks.
pub(super) fn write(store: &Store, entries: &[Entry]) -> Result<(Digest, u64), MountsError> {
    let failed = |error: io::Error| super::io("writing its index")(error);
    let writer = store.new_blob()?;
    let mut encoder = zstd::Encoder::new(writer, 3).map_err(failed)?;
    serde_json::to_writer(&mut encoder, entries)?;
    Ok(encoder.finish().map_err(failed)?.commit(store)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_come_back() {
        for name in [
            &b"plain"[..],
            b"100%",
            b"a\xff\xfe/b",
            "\u{e9}\n".as_bytes(),
            b"%41",
        ] {
            let text = escaped(name);
            assert_eq!(unescaped(&text).as_deref(), Some(name), "{text}");
        }
        assert_eq!(unescaped("%"), None);
        assert_eq!(unescaped("%zz"), None);
    }
}
