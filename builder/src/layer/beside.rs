//! Takes the digest of a stream on a thread beside the one that makes it.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use kiln_registry::digest::{Digest, Hasher};

/// Bytes that are gathered before they are passed on: headers are small, and cost the hasher and the
/// compressor less together.
const BUFFER: usize = 256 << 10;
/// Buffers that go around.
const BUFFERS: usize = 4;
/// A stream is worth a thread once it is longer than so many buffers.
const SHORT: usize = 2;

/// Passes bytes on, and has their digest taken.
#[derive(Debug)]
pub(super) struct HashingBeside<W> {
    inner: W,
    buffer: Vec<u8>,
    passed: usize,
    side: Side,
}

#[derive(Debug)]
enum Side {
    Here(Hasher),
    Thread {
        full: SyncSender<Vec<u8>>,
        empty: Receiver<Vec<u8>>,
        thread: JoinHandle<Hasher>,
    },
}

impl<W: Write> HashingBeside<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            buffer: Vec::with_capacity(BUFFER),
            passed: 0,
            side: Side::Here(Hasher::new()),
        }
    }

    /// Passes the last bytes on and gives the digest of all.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        self.pass()?;
        match self.side {
            Side::Here(hasher) => Ok(hasher.finish()),
            Side::Thread { full, thread, .. } => {
                drop(full);
                let hasher = thread.join().map_err(|_| died())?;
                Ok(hasher.finish())
            }
        }
    }

    fn pass(&mut self) -> io::Result<()> {
        self.inner.write_all(&self.buffer)?;
        self.passed += 1;
        if self.passed > SHORT
            && let Side::Here(hasher) = &mut self.side
        {
            // Without a thread it is done here.
            self.side = start(hasher.clone()).unwrap_or_else(|_| Side::Here(hasher.clone()));
        }
        match &mut self.side {
            Side::Here(hasher) => hasher.update(&self.buffer),
            Side::Thread { full, empty, .. } => {
                let next = empty.recv().map_err(|_| died())?;
                let buffer = std::mem::replace(&mut self.buffer, next);
                full.send(buffer).map_err(|_| died())?;
            }
        }
        self.buffer.clear();
        Ok(())
    }
}

fn start(mut hasher: Hasher) -> io::Result<Side> {
    let (full, filled) = sync_channel::<Vec<u8>>(BUFFERS);
    let (used, empty) = sync_channel(BUFFERS);
    for _ in 1..BUFFERS {
        used.send(Vec::with_capacity(BUFFER)).map_err(|_| died())?;
    }
    let thread = std::thread::Builder::new().name("digest".to_owned());
    let thread = thread.spawn(move || {
        for buffer in filled {
            hasher.update(&buffer);
            // Nobody takes buffers back once the stream has ended.
            drop(used.send(buffer));
        }
        hasher
    })?;
    Ok(Side::Thread {
        full,
        empty,
        thread,
    })
}

fn died() -> io::Error {
    io::Error::other("the thread that takes the digest has died")
}

impl<W: Write> Write for HashingBeside<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == BUFFER {
            self.pass()?;
        }
        let count = bytes.len().min(BUFFER - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    /// Does nothing: what is gathered is passed on when it is enough.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_bytes_however_many_they_are() {
        let content: Vec<u8> = (0..=250).cycle().take(5 * BUFFER + 7).collect();
        for size in [0, 1, BUFFER, BUFFER + 1, 3 * BUFFER, content.len()] {
            for piece in [1000, BUFFER, 3 * BUFFER] {
                let mut passed = Vec::new();
                let mut hashing = HashingBeside::new(&mut passed);
                for bytes in content[..size].chunks(piece) {
                    hashing.write_all(bytes).unwrap();
                }
                assert_eq!(hashing.finish().unwrap(), Digest::of(&content[..size]));
                assert!(passed == content[..size], "{size} {piece}");
            }
        }
    }
}
