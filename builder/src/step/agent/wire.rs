//! The encoding of ssh and of its agents: numbers, strings, and frames (RFC 4251, RFC 9987).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest frame, as OpenSSH has it; bytes.
const LIMIT: u32 = 256 << 10;

/// Reads values one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A length, and so many bytes.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }

    /// A number of any size, without zeros in front; negative ones are none.
    pub(super) fn integer(&mut self) -> Option<&'a [u8]> {
        let bytes = self.string()?;
        if bytes.first().is_some_and(|first| first & 0x80 != 0) {
            return None;
        }
        Some(without_zeros(bytes))
    }

    /// What is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// A number's bytes without zeros in front.
pub(super) fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// Adds a string. What is longer than a length can say is longer than any frame, too.
pub(super) fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    let length = u32::try_from(string.len()).unwrap_or(u32::MAX);
    out.extend(length.to_be_bytes());
    out.extend(string);
}

/// Adds a number of any size.
pub(super) fn put_integer(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = without_zeros(bytes);
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => put_string(out, &[&[0], bytes].concat()),
        _ => put_string(out, bytes),
    }
}

/// Reads a frame; `None` at the end of the stream.
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => drop(read?),
    }
    let length = u32::from_be_bytes(length);
    if length == 0 || length > LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Writes a frame, in one piece.
pub(super) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    body: &[u8],
) -> io::Result<()> {
    let mut frame = Vec::with_capacity(4 + body.len());
    put_string(&mut frame, body);
    stream.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were_put() {
        let mut out = Vec::new();
        put_string(&mut out, b"text");
        put_integer(&mut out, &[0, 0, 0x80, 1]);
        put_integer(&mut out, &[0, 1]);
        put_integer(&mut out, &[0]);
        let mut reader = Reader::new(&out);
        assert_eq!(reader.string(), Some(&b"text"[..]));
        assert_eq!(reader.integer(), Some(&[0x80, 1][..]));
        assert_eq!(reader.integer(), Some(&[1][..]));
        assert_eq!(reader.integer(), Some(&[][..]));
        assert_eq!((reader.string(), reader.rest()), (None, &[][..]));
    }

    #[test]
    fn lengths_that_lie_are_seen() {
        assert_eq!(Reader::new(&[0, 0, 0, 5, 1]).string(), None);
        assert_eq!(Reader::new(&[0xff; 4]).string(), None);
        assert_eq!(Reader::new(&[0, 0, 0, 1, 0x80]).integer(), None);
    }

    #[tokio::test]
    async fn frames_are_bounded() {
        let mut sent = Vec::new();
        write_frame(&mut sent, b"x").await.unwrap();
        assert_eq!(read_frame(&mut &sent[..]).await.unwrap().unwrap(), b"x");
        assert!(read_frame(&mut &b""[..]).await.unwrap().is_none());
        for bad in [&[0, 4, 0, 1][..], &[0; 4], &[0, 0, 0, 9, 1]] {
            assert!(read_frame(&mut &bad[..]).await.is_err(), "{bad:?}");
        }
    }
}
