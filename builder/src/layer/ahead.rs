//! Reads a stream on a thread of its own, so that decompressing it and using what comes out take
//! place at the same time.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that are read at once.
const BUFFER: usize = 128 << 10;
/// Buffers that go around.
const BUFFERS: usize = 4;

/// A stream that is read ahead.
#[derive(Debug)]
struct ReadAhead {
    filled: Option<Receiver<io::Result<Vec<u8>>>>,
    empty: SyncSender<Vec<u8>>,
    /// What was read last, and how much of it is used.
    buffer: Vec<u8>,
    used: usize,
    thread: Option<JoinHandle<()>>,
}

/// Reads a stream ahead on another thread; where there is none to be had, as it is.
#[must_use]
pub fn read_ahead(reader: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
    let (send, filled) = sync_channel(BUFFERS);
    let (empty, again) = sync_channel(BUFFERS);
    let (give, source) = sync_channel(1);
    let thread = std::thread::Builder::new().name("unpack".to_owned());
    let thread = thread.spawn(move || {
        if let Ok(reader) = source.recv() {
            read(reader, &send, &again);
        }
    });
    let Ok(thread) = thread else {
        return reader;
    };
    for _ in 0..BUFFERS {
        // There is room for all of them.
        drop(empty.send(Vec::with_capacity(BUFFER)));
    }
    // The thread waits for it.
    drop(give.send(reader));
    Box::new(ReadAhead {
        filled: Some(filled),
        empty,
        buffer: Vec::new(),
        used: 0,
        thread: Some(thread),
    })
}

/// Fills buffers until the stream ends or fails, or nobody wants more.
fn read(
    mut reader: Box<dyn Read + Send>,
    filled: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    while let Ok(mut buffer) = empty.recv() {
        // Not `read_to_end`, which begins with small pieces in each buffer.
        buffer.resize(BUFFER, 0);
        let (count, end) = fill(&mut reader, &mut buffer);
        buffer.truncate(count);
        // What came before an error counts.
        if count > 0 && filled.send(Ok(buffer)).is_err() {
            return;
        }
        match end {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => return drop(filled.send(Err(error))),
        }
    }
}

/// Fills a buffer as far as the stream goes: how far that was, and whether it has ended.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> (usize, io::Result<bool>) {
    let mut count = 0;
    while count < buffer.len() {
        match reader.read(&mut buffer[count..]) {
            Ok(0) => return (count, Ok(true)),
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (count, Err(error)),
        }
    }
    (count, Ok(false))
}

impl Read for ReadAhead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len() {
            let Some(filled) = &self.filled else {
                return Ok(0);
            };
            match filled.recv() {
                Ok(next) => {
                    let used = std::mem::replace(&mut self.buffer, next?);
                    self.used = 0;
                    if used.capacity() >= BUFFER {
                        // At the end of the stream nobody takes it any more.
                        drop(self.empty.send(used));
                    }
                }
                Err(_) => {
                    self.filled = None;
                    return match self.thread.take().map(JoinHandle::join) {
                        Some(Err(_)) => Err(io::Error::other("the thread that reads has died")),
                        _ => Ok(0),
                    };
                }
            }
        }
        let rest = &self.buffer[self.used..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.used += count;
        Ok(count)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // Without anybody who wants more the thread ends; it may hold what must be closed by then.
        self.filled = None;
        let (closed, _) = sync_channel(0);
        drop(std::mem::replace(&mut self.empty, closed));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of so many bytes, in pieces, and then an error or its end.
    struct Source {
        left: usize,
        fails: bool,
    }

    impl Read for Source {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 && self.fails {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let count = self.left.min(into.len()).min(10_007);
            for (at, byte) in into[..count].iter_mut().enumerate() {
                *byte = u8::try_from((self.left - at) % 251).unwrap();
            }
            self.left -= count;
            Ok(count)
        }
    }

    #[test]
    fn what_is_read_ahead_is_the_stream() {
        for left in [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 7 * BUFFER + 3] {
            for fails in [false, true] {
                let (mut expected, mut read) = (Vec::new(), Vec::new());
                let direct = Source { left, fails }.read_to_end(&mut expected);
                let mut ahead = read_ahead(Box::new(Source { left, fails }));
                let result = ahead.read_to_end(&mut read);
                assert!(read == expected, "{left}");
                let kind = |result: io::Result<usize>| result.map_err(|error| error.kind());
                assert_eq!(kind(result), kind(direct));
            }
        }
    }

    #[test]
    fn who_wants_no_more_is_not_waited_for() {
        let mut ahead = read_ahead(Box::new(io::repeat(7)));
        ahead.read_exact(&mut [0; 1000]).unwrap();
        drop(ahead);
    }
}
