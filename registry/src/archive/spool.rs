//! From a pipe or a compressed file to a tar file that can be read at any offset.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Archive, ArchiveError};

/// Bytes moved at once.
const CHUNK: usize = 256 * 1024;
/// Bytes of memory that decompressing xz may take.
const XZ_MEMORY: u64 = 256 << 20;

/// A compression of whole archives (D10.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Format {
    /// The bytes that tell the formats apart.
    pub(super) const MAGIC: usize = 6;

    /// The format that content begins like; `None` for anything else, such as a plain tar.
    pub(super) fn sniff(start: &[u8]) -> Option<Self> {
        [
            (Self::Gzip, &b"\x1f\x8b"[..]),
            (Self::Zstd, b"\x28\xb5\x2f\xfd"),
            (Self::Bzip2, b"BZh"),
            (Self::Xz, b"\xfd7zXZ\0"),
        ]
        .into_iter()
        .find_map(|(format, magic)| start.starts_with(magic).then_some(format))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }

    fn decompress<'a>(self, reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(reader)?),
            Self::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(reader)),
            Self::Xz => {
                use liblzma::stream::{CONCATENATED, Stream};
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
                Box::new(liblzma::read::XzDecoder::new_stream(reader, stream))
            }
        })
    }
}

/// Opens an archive in a file: as it lies there when it can be read at any offset and is not
/// compressed, else by way of [`spool`].
///
/// # Errors
/// [`ArchiveError`] when it cannot be read, or is no archive of images.
pub fn open(file: File, directory: &Path) -> Result<Archive, ArchiveError> {
    let action = "cannot read the archive";
    let metadata = file.metadata().map_err(ArchiveError::io(action))?;
    if metadata.is_file() {
        let mut start = [0; Format::MAGIC];
        let count = file.read_at(&mut start, 0);
        let count = count.map_err(ArchiveError::io(action))?;
        if Format::sniff(&start[..count]).is_none() {
            return Archive::open(file);
        }
    }
    Archive::open(spool(file, directory)?)
}

/// Copies an archive, decompressed where it is compressed, to a file without a name in a
/// directory; the file is gone as soon as it is closed.
///
/// # Errors
/// [`ArchiveError::Empty`] when there is nothing to read, [`ArchiveError::Decompress`],
/// [`ArchiveError::NoSpace`] or [`ArchiveError::Io`] when that fails.
pub fn spool(mut reader: impl Read, directory: &Path) -> Result<File, ArchiveError> {
    let mut start = Vec::with_capacity(Format::MAGIC);
    reader
        .by_ref()
        .take(Format::MAGIC as u64)
        .read_to_end(&mut start)
        .map_err(ArchiveError::io("cannot read the archive"))?;
    if start.is_empty() {
        return Err(ArchiveError::Empty);
    }
    let file = anonymous(directory).map_err(full_or(directory, 0))?;
    let format = Format::sniff(&start);
    let whole = start.as_slice().chain(reader);
    match format {
        None => copy(whole, &file, directory, |source| ArchiveError::Io {
            action: "cannot read the archive".to_owned(),
            source,
        }),
        Some(format) => {
            let broken = |source| ArchiveError::Decompress {
                format: format.name(),
                source,
            };
            let plain = format.decompress(whole).map_err(broken)?;
            copy(plain, &file, directory, broken)
        }
    }?;
    Ok(file)
}

fn copy(
    mut reader: impl Read,
    mut file: &File,
    directory: &Path,
    read_error: impl Fn(io::Error) -> ArchiveError,
) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; CHUNK];
    let mut written = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_error(error)),
        };
        file.write_all(&buffer[..count])
            .map_err(full_or(directory, written))?;
        written += count as u64;
    }
}

/// Tells a full disk from other failures to write.
fn full_or(directory: &Path, written: u64) -> impl FnOnce(io::Error) -> ArchiveError {
    let directory = directory.display().to_string();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            ArchiveError::NoSpace {
                directory,
                written,
                source,
            }
        }
        _ => ArchiveError::Io {
            action: format!("cannot write a temporary file in `{directory}`"),
            source,
        },
    }
}

/// A new file that only its descriptor keeps.
fn anonymous(directory: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".kiln-spool-{}-{number}", std::process::id()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        match options.open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let directory = Path::new("/big");
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let error = full_or(directory, 42)(kind.into());
            let text = error.to_string();
            assert!(text.contains("`/big` after 42 bytes"), "{text}");
        }
        let error = full_or(directory, 42)(ErrorKind::PermissionDenied.into());
        assert!(matches!(error, ArchiveError::Io { .. }), "{error}");
        let nowhere = Path::new("/nonexistent/directory");
        let error = spool(&b"content"[..], nowhere).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/directory"),
            "{error}"
        );
    }
}
