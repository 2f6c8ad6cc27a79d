//! Compressing layers in any of the ways that they may have.

use std::io::{self, Write};

use kiln_registry::spec::media_type::Compression;

use super::gzip::{self, GzipWriter};
use super::zstd::{self, ZstdWriter};

/// Compresses what is written to it. [`finish`](Self::finish) must be called at the end.
#[derive(Debug)]
pub enum Encoder<W: Write> {
    /// Passes everything on.
    Plain(W),
    /// One member of gzip.
    Gzip(GzipWriter<W>),
    /// One frame of zstd.
    Zstd(ZstdWriter<W>),
}

impl<W: Write> Encoder<W> {
    /// Compresses with so many threads besides the calling one, at a level of that way or its usual one.
    ///
    /// # Errors
    /// When a compressor or a thread cannot be had.
    pub fn new(
        inner: W,
        compression: Compression,
        level: Option<i32>,
        threads: usize,
    ) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(inner),
            Compression::Gzip => {
                let level = level.unwrap_or(gzip::LEVEL);
                Self::Gzip(GzipWriter::with_level(inner, level, threads)?)
            }
            Compression::Zstd => {
                let level = level.unwrap_or(zstd::LEVEL);
                Self::Zstd(ZstdWriter::new(inner, level, threads)?)
            }
        })
    }

    /// Ends the stream and gives the underlying writer back.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(inner) => Ok(inner),
            Self::Gzip(writer) => writer.finish(),
            Self::Zstd(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.write(bytes),
            Self::Gzip(writer) => writer.write(bytes),
            Self::Zstd(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(inner) => inner.flush(),
            Self::Gzip(writer) => writer.flush(),
            Self::Zstd(writer) => writer.flush(),
        }
    }
}
