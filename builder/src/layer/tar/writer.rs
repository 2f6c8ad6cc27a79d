//! Writes an archive in the one form that kiln uses.
//!
//! Every entry is a ustar header; an extended header stands before it only when something does not
//! fit. No user names, no long names of GNU's, no sparse files, whole seconds, two blocks of zeros
//! at the end and nothing after them. Layers are named by the digest of these bytes, so a change
//! here is a change of every layer.

use std::io::{self, Write};

use super::field::{self, Block};
use super::pax;
use super::{BLOCK, Header, Kind};

/// Why an entry cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes could not be put out.
    #[error("cannot write the archive")]
    Write(#[from] io::Error),
    /// The content does not have the size that the header announced.
    #[error("content has another size than announced: {expected} bytes expected, {actual} written")]
    Size {
        /// Bytes announced.
        expected: u64,
        /// Bytes that came, or would have come.
        actual: u64,
    },
    /// A name has a NUL or an attribute's name a `=`, which the format cannot hold.
    #[error("the tar format cannot hold the name `{}`", .0.escape_ascii())]
    Name(Vec<u8>),
}

/// Writes entries one after the other.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    size: u64,
    /// Size of the current entry's content, and how much of it is written.
    announced: u64,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            size: 0,
            announced: 0,
            written: 0,
        }
    }

    /// Starts an entry. The content of a file follows by [`content`](Self::content). Fractions of
    /// a second are left out, a directory gets its slash.
    ///
    /// # Errors
    /// [`WriteError`], also when the entry before lacks content.
    pub fn entry(&mut self, header: &Header) -> Result<(), WriteError> {
        self.end_content()?;
        let mut path = header.path.clone();
        if header.kind == Kind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        for name in [&path, &header.link] {
            if name.contains(&0) {
                return Err(WriteError::Name(name.clone()));
            }
        }
        let mut records = Vec::new();
        let block = block(header, &path, &mut records);
        for (name, value) in &header.xattrs {
            if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
                return Err(WriteError::Name(name.clone()));
            }
            records.push(([pax::XATTR, name].concat(), value.clone()));
        }
        if !records.is_empty() {
            self.extended(&path, records)?;
        }
        self.put(&block)?;
        self.announced = content_size(header);
        self.written = 0;
        Ok(())
    }

    /// Writes some of the current entry's content.
    ///
    /// # Errors
    /// [`WriteError`], also when it is more than announced.
    pub fn content(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let actual = self.written + bytes.len() as u64;
        if actual > self.announced {
            return Err(WriteError::Size {
                expected: self.announced,
                actual,
            });
        }
        self.put(bytes)?;
        self.written = actual;
        Ok(())
    }

    /// Ends the archive; gives the underlying writer back, and the size of the archive in bytes.
    ///
    /// # Errors
    /// [`WriteError`], also when the last entry lacks content.
    pub fn finish(mut self) -> Result<(W, u64), WriteError> {
        self.end_content()?;
        self.put(&[0; 2 * BLOCK])?;
        Ok((self.inner, self.size))
    }

    fn end_content(&mut self) -> Result<(), WriteError> {
        if self.written != self.announced {
            return Err(WriteError::Size {
                expected: self.announced,
                actual: self.written,
            });
        }
        self.pad(self.written)?;
        self.announced = 0;
        self.written = 0;
        Ok(())
    }

    fn pad(&mut self, size: u64) -> Result<(), WriteError> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.put(&[0; BLOCK][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.inner.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Writes an extended header. Everything in it that is not a record is the same for all
    /// entries but for the name, which tools that know no extended headers make a file of.
    fn extended(
        &mut self,
        path: &[u8],
        mut records: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), WriteError> {
        records.sort();
        let mut bytes = Vec::new();
        for (key, value) in &records {
            pax::put(&mut bytes, key, value);
        }
        let base = path.strip_suffix(b"/").unwrap_or(path);
        let base = base.rsplit(|&b| b == b'/').next().unwrap_or(base);
        let name = [b"PaxHeaders.0/", base].concat();
        let mut block = [0; BLOCK];
        put_text(&mut block[field::NAME], &name);
        put_numbers(&mut block, 0o644, 0, 0, bytes.len() as u64, 0);
        seal(&mut block, b'x');
        self.put(&block)?;
        self.put(&bytes)?;
        self.pad(bytes.len() as u64)
    }
}

/// Only files have content.
fn content_size(header: &Header) -> u64 {
    if header.kind == Kind::File {
        header.size
    } else {
        0
    }
}

/// The header block of an entry; what does not fit goes to the records.
fn block(header: &Header, path: &[u8], records: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Block {
    let mut block = [0; BLOCK];
    let mut record = |key: &[u8], value: Vec<u8>| records.push((key.to_vec(), value));
    match split(path) {
        Some((prefix, name)) => {
            put_text(&mut block[field::PREFIX], prefix);
            put_text(&mut block[field::NAME], name);
        }
        None => {
            put_text(&mut block[field::NAME], path);
            record(b"path", path.to_vec());
        }
    }
    if !put_text(&mut block[field::LINK], &header.link) {
        record(b"linkpath", header.link.clone());
    }
    let mut fits = |key: &[u8], range: std::ops::Range<usize>, value: u64| {
        if field::put_octal(&mut block[range.clone()], value) {
            return;
        }
        // As Go does it: readers that know no extended headers see 0.
        field::put_octal(&mut block[range], 0);
        record(key, value.to_string().into_bytes());
    };
    fits(b"uid", field::UID, header.uid.into());
    fits(b"gid", field::GID, header.gid.into());
    fits(b"size", field::SIZE, content_size(header));
    if let Ok(seconds) = u64::try_from(header.mtime.seconds) {
        fits(b"mtime", field::MTIME, seconds);
    } else {
        field::put_octal(&mut block[field::MTIME], 0);
        record(b"mtime", header.mtime.seconds.to_string().into_bytes());
    }
    field::put_octal(&mut block[field::MODE], (header.mode & 0o7777).into());
    let flag = flag(header.kind);
    if matches!(header.kind, Kind::CharDevice | Kind::BlockDevice) {
        // Linux has 12 and 20 bits, the fields hold 21.
        field::put_octal(&mut block[field::MAJOR], header.device.0.into());
        field::put_octal(&mut block[field::MINOR], header.device.1.into());
    }
    seal(&mut block, flag);
    block
}

fn flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// Splits a path into prefix and name where the two fields can hold it: ASCII, at a slash that is
/// not the last character, the name as long as possible.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= field::NAME.len() {
        return Some((b"", path));
    }
    let inner = path.len() - 1;
    let start = path.len() - field::NAME.len() - 1;
    let slash = start + path.get(start..inner)?.iter().position(|&b| b == b'/')?;
    (slash > 0 && slash <= field::PREFIX.len()).then(|| (&path[..slash], &path[slash + 1..]))
}

/// Writes as much of a text as fits, without what is not ASCII; says whether it is all.
fn put_text(field: &mut [u8], text: &[u8]) -> bool {
    let ascii = text.iter().filter(|byte| byte.is_ascii());
    for (to, from) in field.iter_mut().zip(ascii) {
        *to = *from;
    }
    text.is_ascii() && text.len() <= field.len()
}

fn put_numbers(block: &mut Block, mode: u64, uid: u64, gid: u64, size: u64, mtime: u64) {
    field::put_octal(&mut block[field::MODE], mode);
    field::put_octal(&mut block[field::UID], uid);
    field::put_octal(&mut block[field::GID], gid);
    field::put_octal(&mut block[field::SIZE], size);
    field::put_octal(&mut block[field::MTIME], mtime);
}

/// Adds type, magic and checksum.
fn seal(block: &mut Block, flag: u8) {
    block[field::FLAG] = flag;
    block[field::MAGIC].copy_from_slice(field::USTAR_MAGIC);
    let (sum, _) = field::checksums(block);
    let checksum = &mut block[field::CHECKSUM];
    checksum[7] = b' ';
    field::put_octal(&mut checksum[..7], u64::try_from(sum).unwrap_or(0));
}
