//! The documents of the OCI image specification (and docker's older forms of them), as plain
//! structs with public fields.
//!
//! Identity comes from bytes: whatever was received is kept as [`Raw`], parsed but never written
//! again. The structs are also what kiln writes itself; their field order is the order in the
//! JSON, maps are sorted, so that the same document always has the same bytes.

pub mod annotation;
pub mod config;
pub mod descriptor;
pub mod manifest;
pub mod media_type;
pub mod platform;

pub use config::{ChainId, DiffId, ImageConfig};
pub use descriptor::Descriptor;
pub use manifest::{Index, Manifest};
pub use platform::Platform;

use crate::digest::Digest;

/// A document as it was received: its bytes, their digest, and what they say.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw<T> {
    /// The bytes; the document's identity.
    pub bytes: Vec<u8>,
    /// Digest of `bytes`.
    pub digest: Digest,
    /// The parsed document.
    pub value: T,
}

impl<T: serde::de::DeserializeOwned> Raw<T> {
    /// Parses a document and keeps its bytes.
    ///
    /// # Errors
    /// When the bytes are no JSON document of this type.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, serde_json::Error> {
        let value = serde_json::from_slice(&bytes)?;
        Ok(Self {
            digest: Digest::of(&bytes),
            bytes,
            value,
        })
    }
}

impl<T: serde::Serialize> Raw<T> {
    /// Writes a new document of kiln's own: compact JSON.
    ///
    /// # Errors
    /// When the document cannot be represented, which no type of this module does.
    pub fn write(value: T) -> Result<Self, serde_json::Error> {
        let bytes = serde_json::to_vec(&value)?;
        Ok(Self {
            digest: Digest::of(&bytes),
            bytes,
            value,
        })
    }
}
