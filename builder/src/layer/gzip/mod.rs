//! gzip with bytes that depend on nothing but the content: not on the number of threads, not on
//! the sizes of the writes.
//!
//! One member. The content is cut into blocks of 2 MiB, each compressed on its own and ended as a sync
//! flush does, so that blocks can be compressed in any order by any thread. Header: no name, time 0,
//! unknown system.

mod splice;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libdeflater::{CompressionLvl, Compressor};

/// Names this way of compressing; another name means other bytes for the same layer.
pub const FRAMING: &str = "gzip-2m-2-libdeflate-1.26";

const BLOCK: usize = 2 << 20;
/// Of libdeflate's levels the one whose layers are at most 3 % larger than those of other tools, which use
/// zlib's 6: it needs a quarter of that time.
pub const LEVEL: i32 = 2;
/// The highest level, as of other tools.
pub const HIGHEST: i32 = 9;
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Compresses what is written to it. [`finish`](Self::finish) must be called at the end.
pub struct GzipWriter<W> {
    inner: W,
    level: i32,
    /// The block being filled.
    block: Vec<u8>,
    checksum: crc32fast::Hasher,
    size: u64,
    pool: Option<Pool>,
    /// Compresses in this thread, when there is no pool.
    encoder: Option<Encoder>,
    /// Buffers of blocks that were written, to be filled again.
    spare: Vec<Done>,
}

impl<W> std::fmt::Debug for GzipWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GzipWriter")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A block on its way to be compressed.
struct Job {
    block: Vec<u8>,
    last: bool,
    /// A buffer for what comes out.
    room: Vec<u8>,
    reply: SyncSender<io::Result<Done>>,
}

/// A compressed block, and what it was before.
struct Done {
    block: Vec<u8>,
    compressed: Vec<u8>,
    checksum: crc32fast::Hasher,
}

/// Threads that compress, and the blocks they work on in order of the content.
struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    pending: VecDeque<Receiver<io::Result<Done>>>,
    /// Blocks that may be under way; bounds the memory.
    most: usize,
}

impl<W: Write> GzipWriter<W> {
    /// Starts a member. With `threads` 0 the calling thread does all the work.
    ///
    /// # Errors
    /// When a thread cannot be started or the header cannot be written.
    pub fn new(inner: W, threads: usize) -> io::Result<Self> {
        Self::with_level(inner, LEVEL, threads)
    }

    /// The same at a level from 1 to [`HIGHEST`], each of which has bytes of its own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_level(mut inner: W, level: i32, threads: usize) -> io::Result<Self> {
        inner.write_all(&HEADER)?;
        Ok(Self {
            inner,
            level,
            block: Vec::new(),
            checksum: crc32fast::Hasher::new(),
            size: 0,
            pool: (threads > 0)
                .then(|| Pool::start(threads, level))
                .transpose()?,
            encoder: None,
            spare: Vec::new(),
        })
    }

    /// Ends the member and gives the underlying writer back.
    ///
    /// # Errors
    /// Those of the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.compress(true)?;
        while let Some(done) = self.pool.as_mut().and_then(Pool::next) {
            self.put(done?)?;
        }
        let checksum = self.checksum.clone().finalize();
        self.inner.write_all(&checksum.to_le_bytes())?;
        // The format has the size modulo 2^32.
        let size = self.size.to_le_bytes();
        self.inner.write_all(&size[..4])?;
        Ok(self.inner)
    }

    /// Hands the current block over and starts the next one.
    fn compress(&mut self, last: bool) -> io::Result<()> {
        let (mut next, room) = match self.spare.pop() {
            Some(done) => (done.block, done.compressed),
            None => (Vec::new(), Vec::new()),
        };
        next.clear();
        let block = std::mem::replace(&mut self.block, next);
        self.size += block.len() as u64;
        let Some(pool) = &mut self.pool else {
            let encoder = match &mut self.encoder {
                Some(encoder) => encoder,
                none => none.insert(Encoder::new(self.level)?),
            };
            let done = encoder.encode(block, room, last)?;
            return self.put(done);
        };
        pool.submit(block, room, last)?;
        while self.pool.as_ref().is_some_and(Pool::is_full) {
            match self.pool.as_mut().and_then(Pool::next) {
                Some(done) => self.put(done?)?,
                None => break,
            }
        }
        Ok(())
    }

    fn put(&mut self, done: Done) -> io::Result<()> {
        self.checksum.combine(&done.checksum);
        self.inner.write_all(&done.compressed)?;
        self.spare.push(done);
        Ok(())
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full block waits for the next byte: only then is it known not to be the last.
        if self.block.len() == BLOCK && !bytes.is_empty() {
            self.compress(false)?;
        }
        let count = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    /// Does nothing: where blocks end depends on the content alone.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Pool {
    fn start(count: usize, level: i32) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let queue = Arc::clone(&queue);
            let mut encoder = Encoder::new(level)?;
            let thread = std::thread::Builder::new().name("gzip".to_owned());
            threads.push(thread.spawn(move || work(&mut encoder, &queue))?);
        }
        Ok(Self {
            jobs: Some(jobs),
            threads,
            pending: VecDeque::new(),
            most: count + 2,
        })
    }

    fn submit(&mut self, block: Vec<u8>, room: Vec<u8>, last: bool) -> io::Result<()> {
        let (reply, done) = sync_channel(1);
        let job = Job {
            block,
            last,
            room,
            reply,
        };
        let jobs = self.jobs.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        jobs.send(job).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.pending.push_back(done);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= self.most
    }

    /// Waits for the oldest block.
    fn next(&mut self) -> Option<io::Result<Done>> {
        let done = self.pending.pop_front()?;
        Some(
            done.recv()
                .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())),
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Closing the queue ends the threads once they are done with their block.
        self.jobs = None;
        self.pending.clear();
        for thread in self.threads.drain(..) {
            // A thread that panicked has dropped its reply, which was an error already.
            drop(thread.join());
        }
    }
}

fn work(encoder: &mut Encoder, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let done = encoder.encode(job.block, job.room, job.last);
        // Nobody waits any more when the writer was dropped.
        drop(job.reply.send(done));
    }
}

/// Compresses one block after the other.
struct Encoder(Compressor);

impl Encoder {
    fn new(level: i32) -> io::Result<Self> {
        let level = CompressionLvl::new(level)
            .map_err(|_| io::Error::other("the compressor does not know its level"))?;
        Ok(Self(Compressor::new(level)))
    }

    /// Compresses a block; `room` is memory for the result.
    fn encode(&mut self, block: Vec<u8>, room: Vec<u8>, last: bool) -> io::Result<Done> {
        let mut compressed = room;
        compressed.resize(self.0.deflate_compress_bound(block.len()), 0);
        let size = self
            .0
            .deflate_compress(&block, &mut compressed)
            .map_err(io::Error::other)?;
        compressed.truncate(size);
        if !last {
            splice::open_end(&mut compressed, block.len()).map_err(io::Error::other)?;
        }
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&block);
        Ok(Done {
            block,
            compressed,
            checksum,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

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
            let word = (state >> 40) % 997;
            bytes.extend_from_slice(format!("{word} ").as_bytes());
        }
        bytes.truncate(size);
        bytes
    }

    fn compress(content: &[u8], threads: usize, chunk: usize) -> Vec<u8> {
        let mut writer = GzipWriter::new(Vec::new(), threads).unwrap();
        for piece in content.chunks(chunk) {
            writer.write_all(piece).unwrap();
            writer.flush().unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn one_member_reads_back() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 77] {
            let content = sample(size);
            let compressed = compress(&content, 2, 100_000);
            let mut read = Vec::new();
            // The decoder of a single member: a second one would be missed.
            let mut decoder = flate2::bufread::GzDecoder::new(&compressed[..]);
            decoder.read_to_end(&mut read).unwrap();
            assert!(read == content, "{size}");
            assert!(decoder.into_inner().is_empty(), "{size}");
        }
    }

    #[test]
    fn bytes_depend_on_the_content_alone() {
        let content = sample(5 * BLOCK + 12_345);
        let expected = compress(&content, 0, usize::MAX);
        for (threads, chunk) in [(0, 777), (1, 4096), (2, 65_536), (3, BLOCK), (7, 1_000_003)] {
            assert!(
                compress(&content, threads, chunk) == expected,
                "{threads} {chunk}"
            );
        }
    }

    #[test]
    fn c4_1_every_level_reads_back() {
        let content = sample(2 * BLOCK + 77);
        for level in 1..=HIGHEST {
            let mut writer = GzipWriter::with_level(Vec::new(), level, 1).unwrap();
            writer.write_all(&content).unwrap();
            let compressed = writer.finish().unwrap();
            let mut read = Vec::new();
            let mut decoder = flate2::bufread::GzDecoder::new(&compressed[..]);
            decoder.read_to_end(&mut read).unwrap();
            assert!(read == content, "{level}");
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let digests: Vec<_> = [0, 1000, 3 * BLOCK + 5]
            .map(|size| Digest::of(&compress(&sample(size), 2, 8192)).short())
            .into();
        assert_eq!(digests, ["30e6fa98fb48", "ff78a7d339a7", "fb1f1d5f8e54"]);
    }

    #[test]
    fn incompressible_content_fits() {
        let mut state = 1u64;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (state >> 56) as u8
        })
        .take(2 * BLOCK)
        .collect();
        let compressed = compress(&content, 1, 10_000);
        assert!(compressed.len() < content.len() + content.len() / 100);
    }

    #[test]
    fn a_failing_writer_ends_the_threads() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if bytes.len() > 10 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = GzipWriter::new(Full, 2).unwrap();
        let result = writer.write_all(&sample(20 * BLOCK));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
