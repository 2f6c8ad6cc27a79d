//! Packs, takes the digests and compresses in one pass.

use std::io::{self, Read, Write};
use std::path::Path;

use kiln_registry::digest::{Digest, Hasher};
use kiln_registry::spec::DiffId;
use kiln_registry::spec::media_type::Compression;

use super::beside::HashingBeside;
use super::encode::Encoder;
use super::pack::{PackError, PackOptions, Packed, pack};

/// Passes bytes on and takes their digest and number.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hasher: Hasher,
    size: u64,
}

impl<T> Hashing<T> {
    /// Wraps a reader or writer.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: Hasher::new(),
            size: 0,
        }
    }

    /// Digest and number of the bytes that passed, and what they passed to or came from.
    pub fn finish(self) -> (Digest, u64, T) {
        (self.hasher.finish(), self.size, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

/// A layer that was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// What was packed; `packed.size` is the size of the tar.
    pub packed: Packed,
    /// Digest of the bytes written, for the descriptor.
    pub digest: Digest,
    /// Number of the bytes written, for the descriptor.
    pub size: u64,
}

/// Packs a directory, compresses with so many threads besides the calling one, and writes the
/// layer's blob.
///
/// # Errors
/// [`PackError`]; what was written is no layer then.
pub fn seal(
    upper: &Path,
    compression: Compression,
    threads: usize,
    out: impl Write,
    options: &PackOptions,
) -> Result<Sealed, PackError> {
    let mut blob = Hashing::new(out);
    let mut writer = Encoder::new(&mut blob, compression, None, threads).map_err(write)?;
    let (diff_id, packed) = pack_digested(upper, &mut writer, options)?;
    writer.finish().map_err(write)?;
    blob.flush().map_err(write)?;
    let (digest, size, _) = blob.finish();
    Ok(Sealed {
        diff_id,
        packed,
        digest,
        size,
    })
}

/// The diff id of a directory, and what would be packed.
///
/// # Errors
/// [`PackError`]
pub fn diff_id(upper: &Path, options: &PackOptions) -> Result<(DiffId, Packed), PackError> {
    pack_digested(upper, io::sink(), options)
}

/// Packs a directory as it is, and gives its diff id with what was packed. The caller flushes the writer.
///
/// # Errors
/// [`PackError`]
pub fn pack_digested(
    upper: &Path,
    out: impl Write,
    options: &PackOptions,
) -> Result<(DiffId, Packed), PackError> {
    let mut tar = HashingBeside::new(out);
    let packed = pack(upper, &mut tar, options)?;
    Ok((DiffId(tar.finish().map_err(write)?), packed))
}

fn write(source: io::Error) -> PackError {
    PackError::Write {
        source: source.into(),
    }
}
