//! Copying the bytes of one file, each once, holes left out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes read at once. A file that fits is not worth the set-up of an in-kernel copy.
pub const BUFFER: usize = 128 << 10;
/// What is in a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

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
        target: Some(target.as_fd()),
        buffer,
        in_kernel: size > BUFFER as u64,
        hear: None,
    };
    copier.all(size, holes)?;
    if holes {
        rustix::fs::ftruncate(target, size)?;
    }
    Ok(())
}

/// Takes the bytes of a file in their order.
pub type Hear<'a> = dyn FnMut(&[u8]) + 'a;

/// Lets `hear` have all bytes of a file that has `size` bytes and perhaps holes, which are not read.
///
/// # Errors
/// Those of reading, and `UnexpectedEof` when the file is shorter than its metadata says.
pub fn read(
    source: impl AsFd,
    size: u64,
    holes: bool,
    buffer: &mut [u8],
    hear: &mut Hear<'_>,
) -> io::Result<()> {
    let mut copier = Copier {
        source: source.as_fd(),
        target: None,
        buffer,
        in_kernel: false,
        hear: Some(hear),
    };
    copier.all(size, holes)
}

/// Copies the content of many files, and says of those that are asked for what it is.
#[derive(Debug)]
pub struct FileCopier {
    buffer: Vec<u8>,
    /// Whether the file system may be able to let two files share blocks.
    shares: bool,
}

impl Default for FileCopier {
    fn default() -> Self {
        Self {
            buffer: vec![0; BUFFER],
            shares: true,
        }
    }
}

impl FileCopier {
    /// Does what [`copy`] does, and lets `hear` have all bytes in their order, those of holes too. They
    /// are read once, so that they are those that were copied; only where files can share blocks they
    /// are not read for the copy.
    ///
    /// # Errors
    /// As [`copy`].
    pub fn copy(
        &mut self,
        source: impl AsFd,
        target: impl AsFd,
        size: u64,
        holes: bool,
        hear: Option<&mut Hear<'_>>,
    ) -> io::Result<()> {
        let Some(hear) = hear else {
            return copy(source, target, size, holes, &mut self.buffer);
        };
        let worth = self.shares && size > BUFFER as u64;
        // The first refusal is one for all: they are copied from one place to another.
        let shared = worth && rustix::fs::ioctl_ficlone(&target, &source).is_ok();
        self.shares &= shared || !worth;
        let mut copier = Copier {
            source: source.as_fd(),
            target: (!shared).then_some(target.as_fd()),
            buffer: &mut self.buffer,
            in_kernel: false,
            hear: Some(hear),
        };
        copier.all(size, holes)?;
        if holes && !shared {
            rustix::fs::ftruncate(target, size)?;
        }
        Ok(())
    }
}

struct Copier<'a> {
    source: BorrowedFd<'a>,
    /// `None` where the target has the content already.
    target: Option<BorrowedFd<'a>>,
    buffer: &'a mut [u8],
    in_kernel: bool,
    hear: Option<&'a mut Hear<'a>>,
}

impl Copier<'_> {
    fn all(&mut self, size: u64, holes: bool) -> io::Result<()> {
        if !holes {
            return self.range(0, size);
        }
        let mut position = 0;
        while position < size {
            let Some((start, end)) = self.next_data(position, size)? else {
                break;
            };
            self.hole(start - position);
            self.range(start, end)?;
            position = end;
        }
        self.hole(size - position);
        Ok(())
    }

    /// Says what is in a hole of so many bytes.
    fn hole(&mut self, mut length: u64) {
        let Some(hear) = &mut self.hear else {
            return;
        };
        while length > 0 {
            let count = usize::try_from(length).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            hear(&ZEROS[..count]);
            length -= count as u64;
        }
    }

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
        let Some(target) = self.target else {
            return Ok(left);
        };
        let (mut from, mut to) = (position, position);
        let done =
            rustix::fs::copy_file_range(self.source, Some(&mut from), target, Some(&mut to), left);
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
        if let Some(hear) = &mut self.hear {
            hear(bytes);
        }
        let Some(target) = self.target else {
            return Ok(count);
        };
        let mut at = position;
        while !bytes.is_empty() {
            match rustix::io::pwrite(target, bytes, at) {
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    /// What is heard of a file is what it holds, holes too, and its copy holds the same, and has holes.
    #[test]
    fn what_is_heard_is_what_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        // Where data is, and how long the file is.
        let cases: [(&[(u64, usize)], u64); 7] = [
            (&[], 0),
            (&[(0, 7)], 7),
            (&[(0, BUFFER)], BUFFER as u64),
            (&[(0, 3 * BUFFER + 5)], 3 * BUFFER as u64 + 5),
            (&[(1 << 20, 10_000)], 3 << 20),
            (
                &[(0, 4096), (2 << 20, BUFFER + 1)],
                (2 << 20) + BUFFER as u64 + 1,
            ),
            (&[], 5 << 20),
        ];
        let mut copier = FileCopier::default();
        for (number, (data, size)) in cases.iter().enumerate() {
            let source = File::create_new(place("source")).unwrap();
            for (at, length) in *data {
                let bytes: Vec<u8> = (1..=251).cycle().take(*length).collect();
                source.write_all_at(&bytes, *at).unwrap();
            }
            source.set_len(*size).unwrap();
            let source = File::open(place("source")).unwrap();
            let expected = fs::read(place("source")).unwrap();
            let holes = source.metadata().unwrap().blocks() * 512 < *size;
            let (mut heard, mut read) = (Vec::new(), Vec::new());
            let target = File::create_new(place("target")).unwrap();
            let mut hear = |bytes: &[u8]| heard.extend_from_slice(bytes);
            let hear: Option<&mut Hear<'_>> = Some(&mut hear);
            copier.copy(&source, &target, *size, holes, hear).unwrap();
            let mut hear = |bytes: &[u8]| read.extend_from_slice(bytes);
            super::read(&source, *size, holes, &mut vec![0; BUFFER], &mut hear).unwrap();
            assert!(heard == expected && read == expected, "case {number}");
            assert!(
                fs::read(place("target")).unwrap() == expected,
                "case {number}"
            );
            let held = target.metadata().unwrap().blocks() * 512;
            assert!(!holes || held < *size, "case {number}");
            for name in ["source", "target"] {
                fs::remove_file(place(name)).unwrap();
            }
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::write(&source, [7; 100]).unwrap();
        let source = File::open(source).unwrap();
        let target = File::create_new(target).unwrap();
        let mut hear = |_: &[u8]| {};
        let hear: Option<&mut Hear<'_>> = Some(&mut hear);
        let error = FileCopier::default().copy(&source, &target, 101, false, hear);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
