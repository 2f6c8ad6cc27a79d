//! Image references: `[registry/]repository[:tag][@digest]` (D1).
//!
//! Text becomes [`Parts`], checked against the grammar in one of docker's four readings; a
//! [`Reference`] is what can be asked of a registry: a registry, a repository and a usable digest.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry that is meant where a reference names none.
pub const DOCKER_HUB: &str = "docker.io";

/// Docker Hub's older name, still found in references and config files.
const DOCKER_INDEX: &str = "index.docker.io";

/// Where Docker Hub keeps the repositories of one word.
const OFFICIAL: &str = "library/";

/// The longest repository path, as the distribution specification has it.
const REPOSITORY_MAX: usize = 255;

/// The longest tag.
const TAG_MAX: usize = 128;

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is no text.
    #[error("invalid reference format: the reference is empty")]
    Empty,
    /// It does not follow the grammar (D1.1).
    #[error("invalid reference format: `{0}`")]
    Malformed(String),
    /// The repository has upper-case letters (D1.4).
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Read word for word, it would be a reference without its upper-case letters.
    #[error("repository name must be lowercase: `{0}`")]
    UppercaseText(String),
    /// The repository is too long (D1.1).
    #[error("repository name must not be more than {REPOSITORY_MAX} characters: `{0}`")]
    TooLong(String),
    /// It is an image id where a name is wanted (D1.4).
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    ImageId(String),
    /// Its first component can neither be a registry nor part of a Docker Hub repository.
    #[error("invalid registry name `{registry}` in `{reference}`")]
    Registry {
        /// What stands where the registry should.
        registry: String,
        /// The whole text.
        reference: String,
    },
    /// Its digest has not the length or the digits of its algorithm.
    #[error(
        "invalid checksum digest {problem} in `{reference}`: {algorithm} has {digits} lower-case \
         hexadecimal digits"
    )]
    Checksum {
        /// The whole text.
        reference: String,
        /// What is wrong, its `length` or its `format`.
        problem: &'static str,
        /// The algorithm of the digest.
        algorithm: String,
        /// How many digits it has.
        digits: usize,
    },
    /// Its digest is malformed or of an algorithm that cannot be used.
    #[error("cannot use the digest of `{reference}`")]
    Digest {
        /// The whole text.
        reference: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
}

/// The name of an image in a registry, in docker's normal form (D1.1-D1.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// The registry, `docker.io` or `host[:port]`.
    pub registry: String,
    /// The repository in the registry, `library/busybox`.
    pub repository: String,
    /// The tag, if one is given.
    pub tag: Option<String>,
    /// The digest, if one is given; it decides what is fetched, the tag is only shown (D1.5).
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses a reference as docker does: without a registry it is on Docker Hub, a single word
    /// there is in `library/`; no tag is added.
    ///
    /// # Errors
    /// [`ReferenceError`] when the text is no reference, or kiln cannot use its digest.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let parts = Parts::normalized(text)?;
        if parts.domain.is_empty() {
            let registry = text.split('/').next().unwrap_or_default().to_owned();
            return Err(ReferenceError::Registry {
                registry,
                reference: text.to_owned(),
            });
        }
        let digest = parts.digest.as_deref().map(str::parse).transpose();
        Ok(Self {
            registry: parts.domain,
            repository: parts.path,
            tag: parts.tag,
            digest: digest.map_err(|source| ReferenceError::Digest {
                reference: text.to_owned(),
                source,
            })?,
        })
    }

    /// The tag, `latest` where none is given (D1.3).
    #[must_use]
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// The reference with the tag `latest` where it has neither tag nor digest (D1.3).
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The short form of the name that docker shows, without tag and digest (D1.3).
    #[must_use]
    pub fn familiar_name(&self) -> String {
        familiar(&self.registry, &self.repository)
    }

    /// The short form of the whole reference that docker shows (D1.3).
    #[must_use]
    pub fn familiar(&self) -> String {
        let digest = self.digest.map(|digest| digest.to_string());
        assemble(self.familiar_name(), self.tag.as_deref(), digest.as_deref())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.map(|digest| digest.to_string());
        f.write_str(&assemble(
            self.name(),
            self.tag.as_deref(),
            digest.as_deref(),
        ))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Whether a text is a valid tag (D1.1).
#[must_use]
pub fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Whether a text is a valid name of a repository in its registry (D1.1).
#[must_use]
pub fn is_repository(text: &str) -> bool {
    text.len() <= REPOSITORY_MAX && is_path(text)
}

/// Whether a text is a whole image id: 64 lower-case hexadecimal digits (D1.4).
#[must_use]
pub fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_lower_hex)
}

/// The parts of a reference as text; absent ones are empty or `None`.
///
/// Its digest follows the grammar and, for algorithms of known length, has that length; it need
/// not be of an algorithm that kiln can compute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The registry's host and port.
    pub domain: String,
    /// The repository in the registry.
    pub path: String,
    /// The tag.
    pub tag: Option<String>,
    /// The digest, `algorithm:hex`.
    pub digest: Option<String>,
}

impl Parts {
    /// Parses a reference word for word: nothing is added to it (D1.1).
    ///
    /// # Errors
    /// [`ReferenceError`] when the text is no reference.
    pub fn raw(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        Self::read(text, text)
    }

    /// Parses a reference and adds docker's default registry and `library/` (D1.2-D1.4).
    ///
    /// # Errors
    /// [`ReferenceError`] when the text is no reference, or a whole image id.
    pub fn normalized(text: &str) -> Result<Self, ReferenceError> {
        if is_image_id(text) {
            return Err(ReferenceError::ImageId(text.to_owned()));
        }
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (domain, rest) = split_registry(text);
        let official = domain == DOCKER_HUB && !rest.contains('/');
        let rest = format!("{}{rest}", if official { OFFICIAL } else { "" });
        let path = rest.split(':').next().unwrap_or_default();
        if path.to_lowercase() != path {
            return Err(ReferenceError::Uppercase(path.to_owned()));
        }
        Self::read(&format!("{domain}/{rest}"), text)
    }

    /// Parses a normalized reference, or a whole image id or digest, which gives a digest alone.
    ///
    /// # Errors
    /// [`ReferenceError`] when the text is neither.
    pub fn any(text: &str) -> Result<Self, ReferenceError> {
        let digest = if is_image_id(text) {
            format!("sha256:{text}")
        } else if check_digest(text, text).is_ok() {
            text.to_owned()
        } else {
            return Self::normalized(text);
        };
        Ok(Self {
            digest: Some(digest),
            ..Self::default()
        })
    }

    /// Parses a normalized reference to what is fetched: `latest` where there is neither tag nor
    /// digest, no tag where there is a digest (D1.5).
    ///
    /// # Errors
    /// [`ReferenceError`] when the text is no reference.
    pub fn docker(text: &str) -> Result<Self, ReferenceError> {
        let mut parts = Self::normalized(text)?;
        if parts.digest.is_some() {
            parts.tag = None;
        } else if parts.tag.is_none() {
            parts.tag = Some("latest".to_owned());
        }
        Ok(parts)
    }

    /// The shortest form of the name, without tag and digest (D1.3).
    #[must_use]
    pub fn familiar_name(&self) -> String {
        familiar(&self.domain, &self.path)
    }

    /// Parses a reference; messages show what the user wrote.
    fn read(text: &str, written: &str) -> Result<Self, ReferenceError> {
        let Some(parts) = Self::split(text) else {
            let lower = text.to_lowercase();
            return Err(if lower != text && Self::split(&lower).is_some() {
                ReferenceError::UppercaseText(written.to_owned())
            } else {
                ReferenceError::Malformed(written.to_owned())
            });
        };
        if parts.path.len() > REPOSITORY_MAX {
            return Err(ReferenceError::TooLong(parts.path));
        }
        if let Some(digest) = &parts.digest {
            check_digest(digest, written)?;
        }
        Ok(parts)
    }

    /// Splits by the grammar alone; `None` when it is not followed.
    fn split(text: &str) -> Option<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if !digest.is_none_or(is_digest) {
            return None;
        }
        // A colon before the last slash belongs to a port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_start..].rfind(':') {
            Some(colon) => {
                let (name, tag) = rest.split_at(path_start + colon);
                (name, Some(&tag[1..]))
            }
            None => (rest, None),
        };
        if !tag.is_none_or(is_tag) {
            return None;
        }
        let (domain, path) = match name.split_once('/') {
            Some((domain, path)) if is_domain(domain) => (domain, path),
            _ => ("", name),
        };
        is_path(path).then(|| Self {
            domain: domain.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.domain.as_str(), self.path.as_str()) {
            ("", "") => return f.write_str(self.digest.as_deref().unwrap_or_default()),
            ("", path) => path.to_owned(),
            (domain, path) => format!("{domain}/{path}"),
        };
        let (tag, digest) = (self.tag.as_deref(), self.digest.as_deref());
        f.write_str(&assemble(name, tag, digest))
    }
}

/// Tells the registry from the rest (D1.2).
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((DOCKER_INDEX, rest)) => (DOCKER_HUB, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.to_lowercase() != first =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, text),
    }
}

fn familiar(domain: &str, path: &str) -> String {
    match domain {
        "" => path.to_owned(),
        DOCKER_HUB => match path.strip_prefix(OFFICIAL) {
            Some(word) if !word.contains('/') => word.to_owned(),
            _ => path.to_owned(),
        },
        _ => format!("{domain}/{path}"),
    }
}

fn assemble(mut name: String, tag: Option<&str>, digest: Option<&str>) -> String {
    for (separator, part) in [(':', tag), ('@', digest)] {
        if let Some(part) = part {
            name.push(separator);
            name.push_str(part);
        }
    }
    name
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// `host[:port]`, the host a domain name or an IPv6 address in brackets.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return false;
        };
        return !address.is_empty()
            && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
            && (rest.is_empty() || rest.strip_prefix(':').is_some_and(port));
    }
    match text.split_once(':') {
        Some((host, number)) => host.split('.').all(label) && port(number),
        None => text.split('.').all(label),
    }
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.into_iter()
        .all(|end| end.copied().is_some_and(alphanumeric))
        && text
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

/// The reference grammar's idea of a digest.
fn is_digest(text: &str) -> bool {
    let component = |text: &str| {
        text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.split(['-', '_', '+', '.']).all(component)
            && hex.len() >= 32
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Checks the digest of a reference: its algorithm must be a registered one, and its digits that
/// algorithm's.
fn check_digest(digest: &str, reference: &str) -> Result<(), ReferenceError> {
    let unusable = |source| ReferenceError::Digest {
        reference: reference.to_owned(),
        source,
    };
    let malformed = || unusable(DigestError::Malformed(digest.to_owned()));
    let (algorithm, hex) = digest.split_once(':').ok_or_else(malformed)?;
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ if is_digest(digest) => {
            return Err(unusable(DigestError::Unsupported(algorithm.to_owned())));
        }
        _ => return Err(malformed()),
    };
    let problem = if hex.len() != digits {
        "length"
    } else if !hex.bytes().all(is_lower_hex) {
        "format"
    } else {
        return Ok(());
    };
    Err(ReferenceError::Checksum {
        reference: reference.to_owned(),
        problem,
        algorithm: algorithm.to_owned(),
        digits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text as the table's first column says; the result as the table's other columns.
    fn read(reading: &str, text: &str) -> Result<[String; 5], ReferenceError> {
        let parts = match reading {
            "raw" => Parts::raw(text),
            "normalized" => Parts::normalized(text),
            "any" => Parts::any(text),
            "docker" => Parts::docker(text),
            "reference" => Reference::parse(text).map(|reference| Parts {
                domain: reference.registry,
                path: reference.repository,
                tag: reference.tag,
                digest: reference.digest.map(|digest| digest.to_string()),
            }),
            other => panic!("unknown reading {other}"),
        }?;
        let familiar = parts.familiar_name();
        let [tag, digest] = [parts.tag, parts.digest].map(Option::unwrap_or_default);
        Ok([parts.domain, parts.path, tag, digest, familiar])
    }

    /// D1.1-D1.5: every line of testdata/references.tsv.
    #[test]
    fn the_table() {
        let table = include_str!("../../testdata/references.tsv");
        let mut cases = 0;
        for (number, line) in (1..).zip(table.lines()) {
            if line.starts_with("# ") {
                continue;
            }
            cases += 1;
            let columns: Vec<&str> = line.split('\t').collect();
            let outcome = read(columns[0], columns[1]);
            match columns[2..] {
                ["!", part] => {
                    let error = outcome.expect_err(line).to_string();
                    assert!(error.contains(part), "line {number}: {error}");
                }
                [_, _, _, _, _] => assert_eq!(
                    outcome.as_ref().map(|o| o.each_ref().map(String::as_str)),
                    Ok(columns[2..].try_into().unwrap()),
                    "line {number}"
                ),
                _ => panic!("line {number} has {} columns", columns.len()),
            }
        }
        assert!(cases > 100, "{cases}");
    }

    #[test]
    fn forms_of_a_reference() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let text = format!("app:1@{digest}");
        let reference = Reference::parse(&text).unwrap();
        assert_eq!(reference.familiar(), text);
        assert_eq!(reference.to_string(), format!("docker.io/library/{text}"));
        assert_eq!(reference.name(), "docker.io/library/app");
        assert_eq!(reference.to_string().parse(), Ok(reference));
        let bare = Reference::parse("localhost:1/app").unwrap();
        assert_eq!(bare.tag_or_latest(), "latest");
        assert_eq!(
            bare.with_default_tag().to_string(),
            "localhost:1/app:latest"
        );
    }

    /// Whatever is accepted reads the same in its full form.
    #[test]
    fn no_text_panics() {
        let alphabet = [
            "a", "A", "0", ".", ":", "/", "@", "[", "]", "-", "_", "é", "sha256:",
        ];
        let mut seed = 7_usize;
        for _ in 0..20_000 {
            let text: String = (0..8)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    alphabet[(seed >> 33) % alphabet.len()]
                })
                .collect();
            if let Ok(reference) = Reference::parse(&text) {
                assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
            if let Ok(parts) = Parts::raw(&text) {
                assert_eq!(parts.to_string(), text);
            }
        }
    }
}
