//! Copying the bytes of one file, each once, holes left out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes read at once. A file that fits is not worth the set-up of an in-kernel copy.
pub const BUFFER: usize = 128 << 10;

/// Copies the content of `source`, which has `size` bytes and perhaps holes, to the empty file
/// `target`; `buffer` is scratch memory.
///
/// # Errors
/// Those of reading and writing, and `UnexpectedEof` when the source is shorter than its metadata says.
pub fn copy(
    source: impl AsFd,
    target: impl AsFd,
    size: u64,
    holes: bool,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut copier = Copier {
        source: source.as_fd(),
        target: target.as_fd(),
        buffer,
        in_kernel: size > BUFFER as u64,
    };
    if !holes {
        return copier.range(0, size);
    }
    let mut position = 0;
    while position < size {
        let Some((start, end)) = copier.next_data(position, size)? else {
            break;
        };
        copier.range(start, end)?;
        position = end;
    }
    Ok(rustix::fs::ftruncate(target, size)?)
}

struct Copier<'a> {
    source: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
    buffer: &'a mut [u8],
    in_kernel: bool,
}

impl Copier<'_> {
    /// The next stretch from `position` on that is no hole.
    fn next_data(&self, position: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match rustix::fs::seek(self.source, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows nothing of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((position, size))),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(self.source, SeekFrom::Hole(start))?;
        Ok((start < size).then_some((start, end.min(size))))
    }

    fn range(&mut self, mut position: u64, end: u64) -> io::Result<()> {
        while position < end {
            let left = usize::try_from(end - position).unwrap_or(usize::MAX);
            let count = if self.in_kernel {
                self.copy_in_kernel(position, left)?
            } else {
                self.copy_through_memory(position, left)?
            };
            position += count as u64;
        }
        Ok(())
    }

    /// Lets the kernel copy, which shares the blocks where the file system can. The first refusal
    /// ends it for this file.
    fn copy_in_kernel(&mut self, position: u64, left: usize) -> io::Result<usize> {
        let (mut from, mut to) = (position, position);
        let done = rustix::fs::copy_file_range(
            self.source,
            Some(&mut from),
            self.target,
            Some(&mut to),
            left,
        );
        match done {
            Ok(count) if count > 0 => Ok(count),
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::FBIG)) => {
                Err(error.into())
            }
            Err(Errno::INTR) => Ok(0),
            Ok(_) | Err(_) => {
                self.in_kernel = false;
                Ok(0)
            }
        }
    }

    fn copy_through_memory(&mut self, position: u64, left: usize) -> io::Result<usize> {
        let limit = left.min(self.buffer.len());
        let buffer = self.buffer.get_mut(..limit).unwrap_or_default();
        let count = match rustix::io::pread(self.source, &mut *buffer, position) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = buffer.get(..count).unwrap_or_default();
        let mut at = position;
        while !bytes.is_empty() {
            match rustix::io::pwrite(self.target, bytes, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }
}
