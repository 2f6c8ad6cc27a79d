//! Documents of a repository as they are: images, indexes and artifacts alike (D9.3, D9.5).

use super::error::ClientError;
use super::resolve::Fetched;
use super::{Client, Repository};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::spec::Descriptor;

/// A manifest, index or artifact as a registry holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its type, digest and size.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Client {
    /// Fetches what a reference names, whatever kind of manifest it is; at most 4 MiB, verified
    /// against its digest (D5.1).
    ///
    /// # Errors
    /// [`ClientError`] when there is none, it is no JSON document, or the registry cannot be asked.
    pub async fn document(&self, reference: &Reference) -> Result<Found, ClientError> {
        self.repository(reference).find(reference).await?.found()
    }
}

impl Repository {
    /// The document under a tag of the registry itself, past all mirrors; `None` when there is none.
    pub(super) async fn tagged(&self, tag: &str) -> Result<Option<Found>, ClientError> {
        match self.manifest_at(&self.origin, tag, None).await {
            Ok(fetched) => fetched.found().map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Fetched {
    pub(super) fn found(self) -> Result<Found, ClientError> {
        let media_type = self.media_type()?;
        let size = self.bytes.len() as u64;
        Ok(Found {
            descriptor: Descriptor::new(media_type, Digest::of(&self.bytes), size),
            bytes: self.bytes,
        })
    }
}
