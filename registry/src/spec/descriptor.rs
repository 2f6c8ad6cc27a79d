//! Descriptors: what a document says about another piece of content.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::platform::Platform;
use crate::digest::{Digest, Verifier};

/// Media type, digest and size of some content ([image-spec, descriptor](https://github.com/opencontainers/image-spec/blob/main/descriptor.md)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content, bytes.
    pub size: u64,
    /// Other places the content can be fetched from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Annotations, sorted by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The content itself in base64, when it is embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Platform of an image, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Type of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Whatever else the document held.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Descriptor {
    /// A descriptor with nothing but the three required fields.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: None,
            extra: serde_json::Map::new(),
        }
    }

    /// The content that the descriptor carries itself, where that is what it says (D8.1).
    #[must_use]
    pub fn embedded(&self) -> Option<Vec<u8>> {
        let bytes = STANDARD.decode(self.data.as_deref()?).ok()?;
        let mut verifier = Verifier::new(self.digest, self.size);
        verifier.update(&bytes).ok()?;
        verifier.finish().ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d8_1_embedded_content_must_be_what_the_descriptor_says() {
        let mut blob = Descriptor::new("application/json", Digest::of(b"{}"), 2);
        assert_eq!(blob.embedded(), None);
        blob.data = Some("e30=".to_owned());
        assert_eq!(blob.embedded().unwrap(), b"{}");
        blob.data = Some("e31=".to_owned());
        assert_eq!(blob.embedded(), None);
    }
}
