//! Tells archives that `ADD` unpacks from other files, by content and never by name (A12.1).

use std::io::{self, Read};

use super::compression::{Compression, Limits, decompressor};
use super::tar::Reader;

/// What the first bytes of a file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// The mark of a compression; what is inside is not known.
    Compressed(Compression),
    /// The mark of a tar header.
    Tar,
    /// Neither; perhaps a tar of the oldest form, which has no mark.
    Unknown,
}

/// Bytes that [`sniff`] can make use of.
pub const SNIFF: usize = 265;

/// Looks at the first bytes of a file; [`SNIFF`] of them, or all there are.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let compression = match bytes {
        [0x1f, 0x8b, 8, ..] => Compression::Gzip,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A frame to be skipped, as some parallel compressors write first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => {
            return match bytes.get(257..262) {
                Some(b"ustar") => Sniffed::Tar,
                _ => Sniffed::Unknown,
            };
        }
    };
    Sniffed::Compressed(compression)
}

/// Whether a file is an archive to unpack, and how it is compressed: its content, decompressed,
/// starts with a valid tar entry. Reads no more than needed; the caller goes back to the start.
///
/// # Errors
/// When the file cannot be read. What only looks compressed is no error, it is no archive.
pub fn is_tar_archive(mut file: impl Read + Send) -> io::Result<Option<Compression>> {
    let mut first = Vec::with_capacity(SNIFF);
    file.by_ref().take(SNIFF as u64).read_to_end(&mut first)?;
    let compression = match sniff(&first) {
        Sniffed::Compressed(compression) => compression,
        Sniffed::Tar | Sniffed::Unknown => Compression::None,
    };
    let mut failed = None;
    let noted = Noted {
        inner: (&first[..]).chain(file),
        failed: &mut failed,
    };
    let reader = decompressor(compression, noted, Limits::default())?;
    let is_tar = matches!(Reader::new(reader).next_entry(), Ok(Some(_)));
    match failed {
        Some(error) => Err(error),
        None => Ok(is_tar.then_some(compression)),
    }
}

/// Keeps the error of reading, which decompressors would mix with their own.
struct Noted<'a, R> {
    inner: R,
    failed: &'a mut Option<io::Error>,
}

impl<R: Read> Read for Noted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                let kind = error.kind();
                let noted = error.raw_os_error().map(io::Error::from_raw_os_error);
                *self.failed = Some(noted.unwrap_or_else(|| kind.into()));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::layer::tar::{Header, Kind, Writer};

    fn tar() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        let mut header = Header::new("a", Kind::File);
        header.size = 2;
        writer.entry(&header).unwrap();
        writer.content(b"hi").unwrap();
        writer.finish().unwrap().0
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn content_decides() {
        let tar = tar();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&tar).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
        xz.write_all(&tar).unwrap();
        let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9];
        skippable.extend(zstd::encode_all(&tar[..], 1).unwrap());
        for (file, expected) in [
            (tar.clone(), Some(Compression::None)),
            (gzip(&tar), Some(Compression::Gzip)),
            (bzip2.finish().unwrap(), Some(Compression::Bzip2)),
            (xz.finish().unwrap(), Some(Compression::Xz)),
            (
                zstd::encode_all(&tar[..], 1).unwrap(),
                Some(Compression::Zstd),
            ),
            (skippable, Some(Compression::Zstd)),
            (gzip(b"no archive"), None),
            (gzip(b""), None),
            (gzip(&tar[..100]), None),
            (gzip(&tar)[..20].to_vec(), None),
            (b"\x1f\x8b\x08 by chance".to_vec(), None),
            (b"PK\x03\x04".to_vec(), None),
            (Vec::new(), None),
            (vec![0; 1024], None),
            (tar[..511].to_vec(), None),
        ] {
            let found = is_tar_archive(&file[..]).unwrap();
            assert_eq!(
                found,
                expected,
                "{}",
                file[..file.len().min(9)].escape_ascii()
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::from_raw_os_error(5));
                }
                let count = self.0.min(buffer.len());
                buffer[..count].fill(b'x');
                self.0 -= count;
                Ok(count)
            }
        }
        for size in [0, 300] {
            let error = is_tar_archive(Broken(size)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(5));
        }
    }
}
