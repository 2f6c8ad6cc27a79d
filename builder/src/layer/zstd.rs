//! zstd with bytes that depend on nothing but the content: not on the number of threads, not on the
//! sizes of the writes.
//!
//! One frame. The library cuts the content into jobs of a fixed size, each of which sees a fixed part
//! of what stands before it, and hands them to its threads; with one thread it does the same. No
//! checksum: whoever reads a layer checks its digest.

use std::io::{self, Write};

use zstd::zstd_safe::CParameter;

/// The level when none is given: layers are as small as those of gzip at zlib's own level, and compressed in
/// two thirds of the time of zstd's own level, 3.
pub const LEVEL: i32 = 2;
/// The highest level.
pub const HIGHEST: i32 = 22;

/// Content of one job, bytes. Smaller than the library's choice, so that small layers occupy more than
/// one thread, and memory stays small.
const JOB: u32 = 2 << 20;
/// The part of the window that a job sees of the one before, as the library counts: 1/8.
const OVERLAP: u32 = 6;
/// A larger window would make readers refuse the frame, or take much memory.
const WINDOW: u32 = 23;
/// More threads take more memory than they are worth.
const THREADS: usize = 8;

/// Compresses what is written to it. [`finish`](Self::finish) must be called at the end.
pub struct ZstdWriter<W: Write> {
    inner: zstd::Encoder<'static, W>,
}

impl<W: Write> std::fmt::Debug for ZstdWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZstdWriter").finish_non_exhaustive()
    }
}

impl<W: Write> ZstdWriter<W> {
    /// Starts a frame at a level from 0, which means 3 as it does to zstd, to [`HIGHEST`], with so many threads
    /// besides the calling one, and at least one.
    ///
    /// # Errors
    /// When the compressor or a thread cannot be had.
    pub fn new(inner: W, level: i32, threads: usize) -> io::Result<Self> {
        let threads = u32::try_from(threads.clamp(1, THREADS)).unwrap_or(1);
        let mut inner = zstd::Encoder::new(inner, level)?;
        inner.set_parameter(CParameter::NbWorkers(threads))?;
        inner.set_parameter(CParameter::JobSize(JOB))?;
        inner.set_parameter(CParameter::OverlapSizeLog(OVERLAP))?;
        // Of the highest levels; the others have a smaller one of their own.
        if level > 19 {
            inner.set_parameter(CParameter::WindowLog(WINDOW))?;
        }
        Ok(Self { inner })
    }

    /// Ends the frame and gives the underlying writer back.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn finish(self) -> io::Result<W> {
        self.inner.finish()
    }
}

impl<W: Write> Write for ZstdWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    /// Does nothing: where blocks end depends on the content alone.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kiln_registry::digest::Digest;

    use super::*;

    /// Content that is neither constant nor random, always the same.
    fn sample(size: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut bytes = Vec::with_capacity(size + 16);
        while bytes.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(format!("{} ", (state >> 40) % 997).as_bytes());
        }
        bytes.truncate(size);
        bytes
    }

    fn compress(content: &[u8], level: i32, threads: usize, chunk: usize) -> Vec<u8> {
        let mut writer = ZstdWriter::new(Vec::new(), level, threads).unwrap();
        for piece in content.chunks(chunk) {
            writer.write_all(piece).unwrap();
            writer.flush().unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn one_frame_reads_back() {
        let job = JOB as usize;
        for size in [0, 1, job, job + 1, 2 * job + 77] {
            let content = sample(size);
            let compressed = compress(&content, LEVEL, 2, 100_000);
            let mut decoder = zstd::Decoder::new(&compressed[..]).unwrap().single_frame();
            let mut read = Vec::new();
            io::copy(&mut decoder, &mut read).unwrap();
            assert!(read == content, "{size}");
            let rest = decoder.finish();
            assert!(rest.buffer().is_empty(), "{size}: a second frame");
        }
    }

    #[test]
    fn bytes_depend_on_the_content_alone() {
        let content = sample(2 * JOB as usize + 12_345);
        for level in [1, LEVEL] {
            let expected = compress(&content, level, 0, usize::MAX);
            for (threads, chunk) in [(1, 777), (2, 65_536), (7, 1_000_003)] {
                let same = compress(&content, level, threads, chunk) == expected;
                assert!(same, "{level} {threads} {chunk}");
            }
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let digests: Vec<_> = [0, 1000, JOB as usize + 5]
            .map(|size| Digest::of(&compress(&sample(size), LEVEL, 2, 8192)).short())
            .into();
        assert_eq!(digests, ["6fb8543883da", "92da0824b317", "c74f63e3f237"]);
        let highest = compress(&sample(100_000), HIGHEST, 1, 8192);
        assert_eq!(Digest::of(&highest).short(), "0e2b0c14626c");
    }
}
