//! What layers and archives are compressed with, and reading them without trusting them.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_registry::spec::media_type;

/// A way of compressing. Layers use the first three, `ADD` also reads the others (A12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not compressed.
    None,
    /// gzip, one member or several.
    Gzip,
    /// Zstandard, one frame or several.
    Zstd,
    /// bzip2, one stream or several.
    Bzip2,
    /// xz, one stream or several.
    Xz,
}

impl From<media_type::Compression> for Compression {
    fn from(compression: media_type::Compression) -> Self {
        match compression {
            media_type::Compression::None => Self::None,
            media_type::Compression::Gzip => Self::Gzip,
            media_type::Compression::Zstd => Self::Zstd,
        }
    }
}

/// How much may come out of a compressed stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in all.
    pub size: u64,
    /// Bytes out for each byte in; judged once `grace` bytes are out.
    pub ratio: u64,
    /// Bytes that may come out of however few.
    pub grace: u64,
}

impl Default for Limits {
    /// 1 TiB, and beyond 1 GiB twice the ratio that gzip can reach.
    fn default() -> Self {
        Self {
            size: 1 << 40,
            ratio: 2048,
            grace: 1 << 30,
        }
    }
}

/// What a decompressor refused; it travels as the source of an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// More bytes than allowed.
    #[error("decompressed content exceeds the limit of {0} bytes")]
    Size(u64),
    /// More bytes for each compressed byte than allowed.
    #[error("compressed content expands more than {0} times")]
    Ratio(u64),
}

/// Memory that a stream may make its decoder use, bytes.
const MEMORY: u64 = 256 << 20;
/// The largest window of zstd without its `--ultra` and `--long` options, as a power of two.
const ZSTD_WINDOW: u32 = 27;

/// Decompresses a stream as it is read.
///
/// # Errors
/// When the decoder cannot be set up. Its reader fails with [`Exceeded`] beyond the limits.
pub fn decompressor<'a>(
    compression: Compression,
    reader: impl Read + Send + 'a,
    limits: Limits,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let taken = Arc::new(AtomicU64::new(0));
    let reader = BufReader::with_capacity(
        128 << 10,
        Counted {
            inner: reader,
            count: Arc::clone(&taken),
        },
    );
    let inner: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(MEMORY, flags)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(reader, stream))
        }
    };
    Ok(Box::new(Limited {
        inner,
        taken,
        given: 0,
        limits,
    }))
}

/// Counts the bytes that are read through it.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Ends with an error where the limits are exceeded.
struct Limited<R> {
    inner: R,
    taken: Arc<AtomicU64>,
    given: u64,
    limits: Limits,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.given += count as u64;
        let exceeded = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if self.given > self.limits.size {
            return exceeded(Exceeded::Size(self.limits.size));
        }
        let taken = self.taken.load(Ordering::Relaxed);
        if self.given > self.limits.grace && self.given / self.limits.ratio.max(1) > taken {
            return exceeded(Exceeded::Ratio(self.limits.ratio));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(compression: Compression, bytes: &[u8], limits: Limits) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decompressor(compression, bytes, limits)?.read_to_end(&mut content)?;
        Ok(content)
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn compress(compression: Compression, content: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => content.to_vec(),
            Compression::Gzip => gzip(content),
            Compression::Zstd => zstd::encode_all(content, 3).unwrap(),
            Compression::Bzip2 => {
                let mut writer =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                writer.write_all(content).unwrap();
                writer.finish().unwrap()
            }
            Compression::Xz => {
                let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 1);
                writer.write_all(content).unwrap();
                writer.finish().unwrap()
            }
        }
    }

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Bzip2,
        Compression::Xz,
    ];

    #[test]
    fn several_members_are_one_content() {
        for compression in ALL {
            let mut bytes = compress(compression, b"one ");
            bytes.extend(compress(compression, b"two"));
            let content = read(compression, &bytes, Limits::default()).unwrap();
            assert_eq!(content, b"one two", "{compression:?}");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        for compression in &ALL[1..] {
            let bytes = compress(*compression, &[7; 100_000]);
            let result = read(*compression, &bytes[..bytes.len() - 3], Limits::default());
            assert!(result.is_err(), "{compression:?}");
        }
    }

    #[test]
    fn the_size_is_limited() {
        for compression in ALL {
            let bytes = compress(compression, &[0; 200_000]);
            let limits = Limits {
                size: 199_999,
                ..Limits::default()
            };
            let error = read(compression, &bytes, limits).unwrap_err();
            let why = error.get_ref().and_then(|why| why.downcast_ref());
            assert_eq!(why, Some(&Exceeded::Size(199_999)), "{compression:?}");
        }
    }

    #[test]
    fn the_ratio_is_limited() {
        let bytes = zstd::encode_all(io::repeat(0).take(32 << 20), 1).unwrap();
        let limits = Limits {
            grace: 16 << 20,
            ..Limits::default()
        };
        assert_eq!(
            read(Compression::Zstd, &bytes, Limits::default())
                .unwrap()
                .len(),
            32 << 20
        );
        let mut reader = decompressor(Compression::Zstd, &bytes[..], limits).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        let why = error.get_ref().and_then(|why| why.downcast_ref());
        assert_eq!(why, Some(&Exceeded::Ratio(2048)));
    }
}
