//! Reads an archive as a stream.

use std::io::{self, ErrorKind, Read};

use super::field::{self, Block, Format};
use super::header::{self, Parsed, Pending};
use super::pax;
use super::sparse::{self, Declared, MAX_SEGMENTS, Segment};
use super::{BLOCK, Header, Kind, TarError};

/// Limit of one extended header, long name or sparse map, bytes.
pub const MAX_METADATA: u64 = 1 << 20;
/// Headers that may stand before the entry they describe.
pub const MAX_PENDING: u64 = 16;

/// Reads entries one after the other; between two, its [`Read`] gives the content of the last one,
/// zeros where a sparse file has holes.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// Bytes taken from `inner`.
    offset: u64,
    content: Content,
    ended: bool,
}

/// What is left of the current entry's content.
#[derive(Debug, Default)]
struct Content {
    /// The pieces that are stored, the first perhaps partly read; in reverse order.
    segments: Vec<Segment>,
    /// How far [`Read`] has come, holes included.
    position: u64,
    size: u64,
    /// Bytes in the archive not read yet.
    stored: u64,
    /// Bytes that fill the last block.
    padding: u64,
}

impl<R: Read> Reader<R> {
    /// Reads an uncompressed archive from its start.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            offset: 0,
            content: Content::default(),
            ended: false,
        }
    }

    /// Bytes of the archive read so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Gives the underlying reader back; what follows the end of the archive is still in it.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Goes to the next entry, past what is left of the current one; `None` at the end, which is
    /// two blocks of zeros or, between two entries, the end of the stream.
    ///
    /// # Errors
    /// [`TarError`]; the archive cannot be read any further then.
    pub fn next_entry(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        // Stays so after an error too.
        self.ended = true;
        if !self.skip_content()? {
            return Ok(None);
        }
        let mut pending = Pending::default();
        loop {
            let at = self.offset;
            let Some(block) = self.header_block()? else {
                if pending.count > 0 {
                    return Err(TarError::Truncated { offset: at });
                }
                return Ok(None);
            };
            if let Some(header) = self.entry(at, &block, &mut pending)? {
                self.ended = false;
                return Ok(Some(header));
            }
            pending.count += 1;
            if pending.count > MAX_PENDING {
                return Err(TarError::TooLarge {
                    offset: at,
                    limit: MAX_PENDING,
                    what: "headers before one entry",
                });
            }
        }
    }

    /// Reads some of the content without its holes: the offset in the file and the number of bytes
    /// that were put into the buffer; `None` at the end. Not to be mixed with [`Read`] within one
    /// entry.
    ///
    /// # Errors
    /// Those of the stream, and `UnexpectedEof` when it ends inside the content.
    pub fn read_stored(&mut self, buffer: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        let Some(segment) = self.content.next_segment() else {
            return Ok(None);
        };
        let most = usize::try_from(segment.length).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(Some((segment.offset, 0)));
        }
        let count = loop {
            match self.inner.read(&mut buffer[..most]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if count == 0 {
            let truncated = TarError::Truncated {
                offset: self.offset,
            };
            return Err(io::Error::new(ErrorKind::UnexpectedEof, truncated));
        }
        self.offset += count as u64;
        self.content.consume(count as u64);
        Ok(Some((segment.offset, count)))
    }

    /// Leaves the current entry; false when the archive ends right after its content.
    fn skip_content(&mut self) -> Result<bool, TarError> {
        let content = std::mem::take(&mut self.content);
        if self.skip(content.stored)? < content.stored {
            return Err(TarError::Truncated {
                offset: self.offset,
            });
        }
        Ok(self.skip(content.padding)? == content.padding)
    }

    fn skip(&mut self, count: u64) -> Result<u64, TarError> {
        if count == 0 {
            return Ok(0);
        }
        let skipped = io::copy(&mut self.inner.by_ref().take(count), &mut io::sink());
        let skipped = skipped.map_err(|source| self.failed(source))?;
        self.offset += skipped;
        Ok(skipped)
    }

    fn failed(&self, source: io::Error) -> TarError {
        TarError::Read {
            offset: self.offset,
            source,
        }
    }

    /// The next block; `None` when the stream ends before it.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(TarError::Truncated {
                        offset: self.offset,
                    });
                }
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(Some(block))
    }

    /// The next header block; `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<Block>, TarError> {
        let offset = self.offset;
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().any(|&byte| byte != 0) {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(second) if second.iter().any(|&byte| byte != 0) => Err(TarError::Malformed {
                offset,
                what: "a single block of zeros",
            }),
            _ => Ok(None),
        }
    }

    /// Takes one header block: an entry, or `None` when it belongs to the entry that follows.
    fn entry(
        &mut self,
        at: u64,
        block: &Block,
        pending: &mut Pending,
    ) -> Result<Option<Header>, TarError> {
        let malformed = |what| TarError::Malformed { offset: at, what };
        let ambiguous = |what| TarError::Ambiguous { offset: at, what };
        let format = field::format(block).ok_or_else(|| malformed("wrong checksum"))?;
        let size = field::number(&block[field::SIZE]).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| malformed("invalid size"))?;
        match block[field::FLAG] {
            b'x' => {
                if pending.records.is_some() {
                    return Err(ambiguous("two extended headers for one entry"));
                }
                let bytes = self.metadata(at, size)?;
                pending.records = Some(pax::parse(&bytes).map_err(malformed)?);
                Ok(None)
            }
            b'g' => {
                let records = pax::parse(&self.metadata(at, size)?).map_err(malformed)?;
                let decisive = |key: &Vec<u8>| {
                    matches!(&key[..], b"path" | b"linkpath" | b"size")
                        || key.starts_with(pax::SPARSE)
                };
                if !pending.is_empty() {
                    return Err(ambiguous("a global header between an entry and its own"));
                }
                // Go hands global headers to its callers, and all of them ignore them.
                if records.keys().any(decisive) {
                    return Err(ambiguous("a global header with names or sizes"));
                }
                Ok(None)
            }
            flag @ (b'L' | b'K') => {
                let bytes = self.metadata(at, size)?;
                let slot = if flag == b'L' {
                    &mut pending.path
                } else {
                    &mut pending.link
                };
                if slot.is_some() {
                    return Err(ambiguous("two long names for one entry"));
                }
                *slot = Some(field::text(&bytes).to_vec());
                Ok(None)
            }
            _ => {
                let pending = std::mem::take(pending);
                self.file(at, block, format, pending).map(Some)
            }
        }
    }

    /// The content of an entry that describes another one.
    fn metadata(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_METADATA {
            return Err(TarError::TooLarge {
                offset: at,
                limit: MAX_METADATA,
                what: "bytes of metadata",
            });
        }
        let mut bytes = Vec::new();
        let read = self.inner.by_ref().take(size).read_to_end(&mut bytes);
        read.map_err(|source| self.failed(source))?;
        self.offset += bytes.len() as u64;
        let padding = padding(size);
        if bytes.len() as u64 != size || self.skip(padding)? != padding {
            return Err(TarError::Truncated {
                offset: self.offset,
            });
        }
        Ok(bytes)
    }

    /// An entry that stands for itself.
    fn file(
        &mut self,
        at: u64,
        block: &Block,
        format: Format,
        pending: Pending,
    ) -> Result<Header, TarError> {
        let malformed = |what| TarError::Malformed { offset: at, what };
        let Parsed {
            mut header,
            records,
            stored,
        } = header::parse(block, format, pending).map_err(|refusal| refusal.at(at))?;
        let mut content = Content {
            stored,
            padding: padding(stored),
            ..Content::default()
        };
        let segments = if block[field::FLAG] == b'S' {
            let real = field::number(&block[field::GNU_REAL_SIZE]);
            let real = real.and_then(|size| u64::try_from(size).ok());
            header.size = real.ok_or_else(|| malformed("invalid size"))?;
            Some(self.gnu_map(at, block, format)?)
        } else {
            match sparse::declared(&records).map_err(malformed)? {
                Declared::No => None,
                Declared::Map(segments) => Some(segments),
                Declared::InContent => Some(self.content_map(at, &mut content)?),
            }
        };
        if let Some(segments) = segments {
            if header.kind != Kind::File {
                return Err(malformed("a sparse map for what is no file"));
            }
            sparse::rename(&records, &mut header).map_err(malformed)?;
            sparse::validate(&segments, header.size, content.stored).map_err(malformed)?;
            content.segments = segments;
            content.segments.reverse();
        } else if stored > 0 {
            content.segments.push(Segment {
                offset: 0,
                length: stored,
            });
        }
        header::check_names(&mut header).map_err(|refusal| refusal.at(at))?;
        content.size = header.size;
        self.content = content;
        Ok(header)
    }

    /// The map of an old GNU sparse file, which goes on in blocks after the header.
    fn gnu_map(
        &mut self,
        at: u64,
        block: &Block,
        format: Format,
    ) -> Result<Vec<Segment>, TarError> {
        let malformed = |what| TarError::Malformed { offset: at, what };
        if format != Format::Gnu {
            return Err(malformed(
                "a sparse file in an archive that is not GNU tar's",
            ));
        }
        let mut segments = Vec::new();
        let mut more = sparse::gnu_entries(block, true, &mut segments).map_err(malformed)?;
        while more {
            let offset = self.offset;
            let block = self.block()?.ok_or(TarError::Truncated { offset })?;
            let before = segments.len();
            more = sparse::gnu_entries(&block, false, &mut segments).map_err(malformed)?;
            if more && segments.len() == before {
                return Err(malformed("empty block in a sparse map"));
            }
        }
        Ok(segments)
    }

    /// The map of sparse format 1.0: decimal numbers, one a line, in the first blocks of the
    /// content.
    fn content_map(&mut self, at: u64, content: &mut Content) -> Result<Vec<Segment>, TarError> {
        let malformed = |what| TarError::Malformed { offset: at, what };
        let mut numbers = Vec::new();
        let mut line = Vec::new();
        loop {
            if content.stored < BLOCK as u64 {
                return Err(malformed("sparse map longer than the content"));
            }
            let offset = self.offset;
            let block = self.block()?.ok_or(TarError::Truncated { offset })?;
            content.stored -= BLOCK as u64;
            for &byte in &block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(malformed("malformed sparse map"));
                    }
                    continue;
                }
                let number =
                    pax::decimal(&line).ok_or_else(|| malformed("malformed sparse map"))?;
                line.clear();
                numbers.push(number);
                if numbers[0] > MAX_SEGMENTS as u64 {
                    return Err(malformed(sparse::TOO_MANY));
                }
                if (numbers.len() as u64 - 1) / 2 == numbers[0] && numbers.len() % 2 == 1 {
                    return Ok(sparse::segments(&numbers[1..]));
                }
            }
        }
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.content.position;
        let data = self.content.next_segment().map(|segment| segment.offset);
        let hole = data.unwrap_or(self.content.size) - position;
        if hole > 0 {
            let count = usize::try_from(hole)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            buffer[..count].fill(0);
            self.content.position += count as u64;
            return Ok(count);
        }
        let count = self.read_stored(buffer)?.map_or(0, |(_, count)| count);
        self.content.position += count as u64;
        Ok(count)
    }
}

impl Content {
    /// The next piece that is not empty.
    fn next_segment(&mut self) -> Option<Segment> {
        while self.segments.last()?.length == 0 {
            self.segments.pop();
        }
        self.segments.last().copied()
    }

    fn consume(&mut self, count: u64) {
        self.stored -= count;
        if let Some(segment) = self.segments.last_mut() {
            segment.offset += count;
            segment.length -= count;
        }
    }
}

/// Bytes that fill the last block of a content.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
