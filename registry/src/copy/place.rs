//! Where images are, as `kiln copy` and containers' tools write it (D1.7).

use std::fmt;
use std::path::PathBuf;

use crate::reference::{Reference, ReferenceError};

/// The transports that are known, for messages.
const KNOWN: &str =
    "docker://NAME, oci:FOLDER[:TAG], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME]";

/// Transports of other tools.
const FOREIGN: [&str; 7] = [
    "containers-storage",
    "dir",
    "docker-daemon",
    "ocidir",
    "ostree",
    "sif",
    "tarball",
];

/// Why a text is no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The transport is another tool's.
    #[error("cannot copy from or to `{0}`: known are {KNOWN}")]
    Transport(String),
    /// There is no path behind the transport.
    #[error("`{0}` names no path")]
    NoPath(String),
    /// It is no image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

/// A place that holds images, and the name of one there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A repository of a registry.
    Registry(Reference),
    /// An OCI image layout (D10.3).
    Layout {
        /// Its folder.
        path: PathBuf,
        /// The image's tag or whole name in it.
        name: Option<String>,
    },
    /// An archive (D10.1, D10.3). What kiln writes is docker's and OCI's form at once.
    Archive {
        /// The file.
        path: PathBuf,
        /// The image's tag or whole name in it.
        name: Option<String>,
    },
}

impl Place {
    /// Parses `docker://NAME`, `oci:FOLDER[:TAG]`, `oci-archive:FILE[:NAME]`,
    /// `docker-archive:FILE[:NAME]`; without a transport it is an image's name.
    ///
    /// # Errors
    /// [`PlaceError`] when it is none of these.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Self::Registry(Reference::parse(name)?));
        }
        let (transport, rest) = text.split_once(':').unwrap_or((text, ""));
        if !matches!(transport, "oci" | "oci-archive" | "docker-archive") {
            if FOREIGN.contains(&transport) {
                return Err(PlaceError::Transport(transport.to_owned()));
            }
            if let Some((scheme, _)) = text.split_once("://") {
                return Err(PlaceError::Transport(scheme.to_owned()));
            }
            return Ok(Self::Registry(Reference::parse(text)?));
        }
        let (path, name) = match rest.split_once(':') {
            Some((path, name)) => (path, Some(name.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(PlaceError::NoPath(text.to_owned()));
        }
        let (path, name) = (PathBuf::from(path), name.filter(|name| !name.is_empty()));
        Ok(match transport {
            "oci" => Self::Layout { path, name },
            _ => Self::Archive { path, name },
        })
    }

    /// The name of one image that the place holds, if one is given.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Registry(reference) => {
                let digest = || Some(reference.digest?.to_string());
                reference.tag.clone().or_else(digest)
            }
            Self::Layout { name, .. } | Self::Archive { name, .. } => name.clone(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, name) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Layout { path, name } | Self::Archive { path, name } => (path, name),
        };
        write!(f, "{}", path.display())?;
        name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d1_7_transports() {
        let parse = |text| Place::parse(text).unwrap();
        let name = |text: &str| Some(text.to_owned());
        let registry = Place::Registry(Reference::parse("r.example:5000/a:1").unwrap());
        assert_eq!(parse("docker://r.example:5000/a:1"), registry);
        assert_eq!(parse("r.example:5000/a:1"), registry);
        assert_eq!(
            parse("busybox"),
            Place::Registry(Reference::parse("busybox").unwrap())
        );
        assert_eq!(
            parse("oci:/a/b:1.2"),
            Place::Layout {
                path: "/a/b".into(),
                name: name("1.2")
            }
        );
        for text in [
            "oci-archive:a.tar:r.example:5000/a:1",
            "docker-archive:a.tar:r.example:5000/a:1",
        ] {
            let archive = Place::Archive {
                path: "a.tar".into(),
                name: name("r.example:5000/a:1"),
            };
            assert_eq!(parse(text), archive);
        }
        for text in [
            "oci:",
            "oci::1",
            "dir:/a",
            "https://r.example/a",
            "docker-daemon:a:1",
            "docker://A",
            "",
        ] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
