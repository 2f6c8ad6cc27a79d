//! Runs of bytes in a file, verified while they are read.
//!
//! A section reads at its own offset, so many can be open on one file at once, even on one
//! without a name. It comes as a blocking reader and as one for tokio, which reads and hashes on
//! the blocking pool.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinHandle;

use crate::digest::{Digest, Verifier};

/// Bytes read at once by an [`AsyncSection`].
const CHUNK: usize = 128 * 1024;

/// A run of bytes in a file, as a blocking reader.
///
/// With a digest it fails instead of handing out its last bytes when they do not match, so that a
/// reader who counts bytes and never sees the end is warned too.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
    verifier: Option<Verifier>,
}

impl Section {
    /// The `size` bytes of a file from an offset.
    #[must_use]
    pub fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self {
            file,
            position: offset,
            end: offset.saturating_add(size),
            verifier: None,
        }
    }

    /// Has what is left to read verified against a digest.
    #[must_use]
    pub fn verified(mut self, digest: Digest) -> Self {
        self.verifier = Some(Verifier::new(digest, self.remaining()));
        self
    }

    /// Bytes left to read.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.end - self.position
    }

    /// The same as a reader for tokio; it must be read in a tokio runtime.
    #[must_use]
    pub fn into_async(self) -> AsyncSection {
        AsyncSection(State::Ready(Box::new(Chunk {
            section: self,
            bytes: Vec::new(),
            start: 0,
        })))
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.remaining()).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        let count = if wanted == 0 {
            0
        } else {
            self.file.read_at(&mut buffer[..wanted], self.position)?
        };
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.position += count as u64;
        let invalid = |mismatch| io::Error::new(io::ErrorKind::InvalidData, mismatch);
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&buffer[..count]).map_err(invalid)?;
        }
        if self.remaining() == 0
            && let Some(verifier) = self.verifier.take()
        {
            verifier.finish().map_err(invalid)?;
        }
        Ok(count)
    }
}

/// A run of bytes in a file, as a reader for tokio.
#[derive(Debug)]
pub struct AsyncSection(State);

#[derive(Debug)]
enum State {
    Ready(Box<Chunk>),
    Reading(JoinHandle<io::Result<Box<Chunk>>>),
    Failed,
}

#[derive(Debug)]
struct Chunk {
    section: Section,
    bytes: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// Reads the next bytes in place of those handed out.
    fn refill(mut self: Box<Self>) -> io::Result<Box<Self>> {
        self.bytes.resize(CHUNK, 0);
        let count = self.section.read(&mut self.bytes)?;
        self.bytes.truncate(count);
        self.start = 0;
        Ok(self)
    }
}

impl AsyncRead for AsyncSection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.0, State::Failed) {
                State::Ready(mut chunk) if chunk.start < chunk.bytes.len() => {
                    let bytes = &chunk.bytes[chunk.start..];
                    let count = bytes.len().min(buffer.remaining());
                    buffer.put_slice(&bytes[..count]);
                    chunk.start += count;
                    self.0 = State::Ready(chunk);
                    return Poll::Ready(Ok(()));
                }
                State::Ready(chunk) => {
                    self.0 = State::Reading(tokio::task::spawn_blocking(|| chunk.refill()));
                }
                State::Reading(mut task) => {
                    let Poll::Ready(outcome) = Pin::new(&mut task).poll(context) else {
                        self.0 = State::Reading(task);
                        return Poll::Pending;
                    };
                    let chunk = outcome.map_err(io::Error::other)??;
                    let ended = chunk.bytes.is_empty();
                    self.0 = State::Ready(chunk);
                    if ended {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Failed => {
                    let message = "read again after a failure";
                    return Poll::Ready(Err(io::Error::other(message)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    #[test]
    fn a_section_reads_its_bytes_only() {
        let file = file(b"0123456789");
        let section = || Section::new(Arc::clone(&file), 2, 5);
        assert_eq!(io::read_to_string(section()).unwrap(), "23456");
        let right = section().verified(Digest::of(b"23456"));
        assert_eq!(io::read_to_string(right).unwrap(), "23456");
        let mut wrong = section().verified(Digest::of(b"other"));
        let error = wrong.read_exact(&mut [0; 5]).unwrap_err();
        assert!(error.to_string().starts_with("digest mismatch"), "{error}");
        let error = io::read_to_string(Section::new(file, 8, 5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn the_asynchronous_form_does_the_same() {
        let content = vec![7; CHUNK + 100];
        let file = file(&content);
        let section = |size: u64| Section::new(Arc::clone(&file), 0, size);
        let mut read = Vec::new();
        let whole = section(CHUNK as u64 + 100).verified(Digest::of(&content));
        whole.into_async().read_to_end(&mut read).await.unwrap();
        assert_eq!(read, content);
        let mut wrong = section(10).verified(Digest::of(b"")).into_async();
        assert!(wrong.read_to_end(&mut read).await.is_err());
        assert!(wrong.read_to_end(&mut read).await.is_err());
        let mut empty = section(0).verified(Digest::of(b"x")).into_async();
        assert!(empty.read_to_end(&mut read).await.is_err());
    }
}
