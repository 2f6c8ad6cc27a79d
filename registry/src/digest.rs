//! Digests of content, and the reader that refuses content which does not match.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// The digest of some bytes, `sha256:<64 hex digits>`.
///
/// Other algorithms of the OCI specification are recognised and refused by name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a text is not a digest that kiln can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// It does not have the form `algorithm:hex`.
    #[error("invalid digest `{0}`: expected `sha256:` and 64 lower-case hexadecimal digits")]
    Malformed(String),
    /// It is one of an algorithm that is not supported.
    #[error("unsupported digest algorithm `{0}`: only sha256 is supported")]
    Unsupported(String),
}

impl Digest {
    /// The digest of a byte string.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest as 64 lower-case hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }

    /// The first twelve hexadecimal digits, as `docker images` shows them.
    #[must_use]
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// The 32 bytes themselves.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.to_owned());
        let (algorithm, hex) = text.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            let known = matches!(algorithm, "sha384" | "sha512" | "blake3");
            return Err(if known {
                DigestError::Unsupported(algorithm.to_owned())
            } else {
                malformed()
            });
        }
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| malformed())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Starts a new digest.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// What a verified reader found wrong; it travels as the source of an [`io::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The content has another digest than announced.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Digest {
        /// What was announced.
        expected: Digest,
        /// What the bytes have.
        actual: Digest,
    },
    /// The content is longer or shorter than announced.
    #[error("size mismatch for {digest}: expected {expected} bytes, got {actual}{}", if *.more { " or more" } else { "" })]
    Size {
        /// The digest announced.
        digest: Digest,
        /// The size announced, bytes.
        expected: u64,
        /// The bytes seen.
        actual: u64,
        /// Whether reading stopped at `actual` because it was too many already.
        more: bool,
    },
}

/// The check itself, apart from any reader: feed it all bytes, then ask.
#[derive(Clone, Debug)]
pub struct Verifier {
    hasher: Hasher,
    expected: Digest,
    size: u64,
    seen: u64,
}

impl Verifier {
    /// A check against a digest and a size in bytes.
    #[must_use]
    pub fn new(expected: Digest, size: u64) -> Self {
        Self {
            hasher: Hasher::new(),
            expected,
            size,
            seen: 0,
        }
    }

    /// Takes more bytes in.
    ///
    /// # Errors
    /// [`Mismatch::Size`] as soon as there are more bytes than announced.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        self.seen += bytes.len() as u64;
        if self.seen > self.size {
            return Err(Mismatch::Size {
                digest: self.expected,
                expected: self.size,
                actual: self.seen,
                more: true,
            });
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Says whether what was fed is what was announced.
    ///
    /// # Errors
    /// [`Mismatch`] when size or digest differ.
    pub fn finish(self) -> Result<(), Mismatch> {
        if self.seen != self.size {
            return Err(Mismatch::Size {
                digest: self.expected,
                expected: self.size,
                actual: self.seen,
                more: false,
            });
        }
        let actual = self.hasher.finish();
        if actual == self.expected {
            Ok(())
        } else {
            Err(Mismatch::Digest {
                expected: self.expected,
                actual,
            })
        }
    }
}

/// A reader that fails, at the end of the content, unless size and digest are those announced.
///
/// It never hands out more bytes than announced.
#[derive(Debug)]
pub struct Verified<R> {
    inner: R,
    verifier: Option<Verifier>,
}

impl<R: Read> Verified<R> {
    /// Wraps a reader of content with an announced digest and size in bytes.
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        Self {
            inner,
            verifier: Some(Verifier::new(expected, size)),
        }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let invalid = |mismatch| io::Error::new(io::ErrorKind::InvalidData, mismatch);
        let count = self.inner.read(buffer)?;
        if count > 0 {
            if let Some(verifier) = &mut self.verifier {
                verifier.update(&buffer[..count]).map_err(invalid)?;
            }
        } else if !buffer.is_empty()
            && let Some(verifier) = self.verifier.take()
        {
            verifier.finish().map_err(invalid)?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.short(), "e3b0c44298fc");
        for bad in [
            "",
            "sha256:",
            "sha256:E3",
            "md5:00",
            &text.to_uppercase(),
            &text[..70],
        ] {
            assert!(
                matches!(bad.parse::<Digest>(), Err(DigestError::Malformed(_))),
                "{bad}"
            );
        }
        assert!(matches!(
            "sha512:00".parse::<Digest>(),
            Err(DigestError::Unsupported(_))
        ));
    }

    #[test]
    fn a_verified_reader_accepts_only_what_was_announced() {
        let read = |bytes: &[u8], size| {
            io::read_to_string(Verified::new(bytes, Digest::of(b"hello"), size))
                .map_err(|e| e.to_string())
        };
        assert_eq!(read(b"hello", 5).unwrap(), "hello");
        assert!(
            read(b"hullo", 5)
                .unwrap_err()
                .starts_with("digest mismatch")
        );
        assert!(
            read(b"hell", 5)
                .unwrap_err()
                .contains("expected 5 bytes, got 4")
        );
        assert!(read(b"hello!", 5).unwrap_err().contains("got 6 or more"));
    }
}
