//! The tags of a repository: list them, and delete one without losing its neighbours (D9.1, D9.2).

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::challenge::Scopes;
use super::document::Found;
use super::error::{ClientError, redact};
use super::paging::within;
use super::push;
use super::wire::Request;
use super::{Client, Repository};
use crate::blob::{BlobError, InMemory};
use crate::digest::Digest;
use crate::reference::{Reference, is_tag};
use crate::spec::media_type::{OCI_CONFIG, OCI_MANIFEST};
use crate::spec::{Descriptor, Manifest, Raw};

/// Tags asked for at once; some registries refuse to give more.
const PAGE: &str = "1000";

/// The most tags of a repository that are listed.
const TAGS: usize = 1_000_000;

/// Tags whose digests are asked for at the same time.
const JOBS: usize = 8;

#[derive(Deserialize)]
struct Page {
    // Registries say `null` where there are none.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// What became of a tag that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untagged {
    /// What the tag named.
    pub digest: Digest,
    /// Whether the registry cannot delete tags, so that another manifest was put in place of the
    /// tag's own, and deleted.
    pub by_stand_in: bool,
}

impl Client {
    /// The tags of a repository, sorted, each once; names that are no tags are left out.
    ///
    /// # Errors
    /// [`ClientError`] when there is no such repository, or the registry cannot be asked.
    pub async fn tags(&self, repository: &Reference) -> Result<Vec<String>, ClientError> {
        let repository = self.repository(repository);
        let path = ["tags", "list"];
        let mut url = repository
            .transport()
            .url(&repository.origin, &path)
            .await?;
        url.query_pairs_mut().append_pair("n", PAGE);
        let mut tags = Vec::new();
        let address = redact(&url);
        let take = |page: Page| {
            let named = page.tags.unwrap_or_default();
            tags.extend(named.into_iter().filter(|tag| is_tag(tag)));
            within(tags.len(), TAGS, "tags", &address)
        };
        repository
            .pages(Request::get(url), "list of tags", take)
            .await?;
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    }

    /// The tags of a repository that name a digest, sorted.
    ///
    /// # Errors
    /// [`ClientError`] when the tags cannot be listed, or one of them cannot be asked for.
    pub async fn tags_of(
        &self,
        repository: &Reference,
        digest: Digest,
    ) -> Result<Vec<String>, ClientError> {
        let tags = self.tags(repository).await?;
        let place = self.repository(repository);
        let ask = |tag: String| {
            let place = &place;
            async move { Ok::<_, ClientError>((place.digest_of(&tag).await?, tag)) }
        };
        let named: Vec<_> = stream::iter(tags.into_iter().map(ask))
            .buffered(JOBS)
            .try_collect()
            .await?;
        let same = named
            .into_iter()
            .filter(|(found, _)| *found == Some(digest));
        Ok(same.map(|(_, tag)| tag).collect())
    }

    /// What a tag of a repository names now, by the registry's own word; `None` when there is no
    /// such tag.
    ///
    /// # Errors
    /// [`ClientError`] when the registry cannot be asked.
    pub async fn digest_of(
        &self,
        repository: &Reference,
        tag: &str,
    ) -> Result<Option<Digest>, ClientError> {
        self.repository(repository).digest_of(tag).await
    }

    /// Deletes a tag; whatever else names the same manifest stays as it is (D9.2).
    ///
    /// Where the registry cannot delete a tag, the tag is moved to a manifest of its own, and that
    /// is deleted. Should the deletion fail then, the tag gets back what it named.
    ///
    /// # Errors
    /// [`ClientError::NoDeletion`] when the registry deletes nothing; the tag is as it was then.
    pub async fn delete_tag(
        &self,
        repository: &Reference,
        tag: &str,
    ) -> Result<Untagged, BlobError> {
        let place = self.repository(repository);
        let found = match place.tagged(tag).await? {
            Some(found) => found,
            // What the registry says to that is the best error.
            None => place.manifest_at(&place.origin, tag, None).await?.found()?,
        };
        let digest = found.descriptor.digest;
        match place.delete(tag).await {
            Ok(()) => Ok(Untagged {
                digest,
                by_stand_in: false,
            }),
            Err(error) if cannot(&error) => {
                place.delete_stand_in(tag, &found).await?;
                Ok(Untagged {
                    digest,
                    by_stand_in: true,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a manifest, and with it every tag that names it (D9.2). Where the registry keeps
    /// no list of referrers, the manifest is taken out of its subject's (D8.2).
    ///
    /// # Errors
    /// [`ClientError::NoDeletion`] when the registry deletes nothing.
    pub async fn delete_manifest(
        &self,
        repository: &Reference,
        digest: Digest,
    ) -> Result<(), ClientError> {
        let place = self.repository(repository);
        let name = digest.to_string();
        let found = place
            .manifest_at(&place.origin, &name, Some(digest))
            .await?;
        let found = found.found()?;
        place
            .delete(&name)
            .await
            .map_err(|error| place.no_deletion(error))?;
        place.unlist_referrer(&found).await
    }
}

impl Repository {
    async fn digest_of(&self, tag: &str) -> Result<Option<Digest>, ClientError> {
        match self.head_at(&self.origin, tag).await {
            Ok(Some(found)) => Ok(Some(found.digest)),
            Ok(None) => {
                let found = self.tagged(tag).await?;
                Ok(found.map(|found| found.descriptor.digest))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), ClientError> {
        let url: Url = self
            .transport()
            .url(&self.origin, &["manifests", name])
            .await?;
        let request = Request::new(Method::DELETE, url);
        let scopes = Scopes::delete(&self.repository);
        self.transport()
            .call(&self.origin, &scopes, &request)
            .await?;
        Ok(())
    }

    /// Moves a tag to a manifest that nothing else names, and deletes that.
    async fn delete_stand_in(&self, tag: &str, found: &Found) -> Result<(), BlobError> {
        let (stand_in, descriptor) = stand_in(tag)?;
        let name = descriptor.digest.to_string();
        // It is not there yet: a registry that deletes says so, another one that it never does.
        match self.delete(&name).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(self.no_deletion(error).into()),
        }
        let config = InMemory(STAND_IN_CONFIG.to_vec());
        push::put(self, &stand_in.value.config, &config, &|_, _| ()).await?;
        push::put_manifest(self, &descriptor, &stand_in.bytes, Some(tag)).await?;
        if let Err(error) = self.delete(&name).await {
            push::put_manifest(self, &found.descriptor, &found.bytes, Some(tag)).await?;
            return Err(self.no_deletion(error).into());
        }
        Ok(())
    }

    fn no_deletion(&self, error: ClientError) -> ClientError {
        if cannot(&error) && !error.is_not_found() {
            return ClientError::NoDeletion {
                repository: self.to_string(),
                source: Box::new(error),
            };
        }
        error
    }
}

/// Whether a registry says that it cannot do what was asked, rather than that it may not.
fn cannot(error: &ClientError) -> bool {
    let unsupported = matches!(
        error.code(),
        Some("UNSUPPORTED" | "DIGEST_INVALID" | "TAG_INVALID" | "MANIFEST_INVALID")
    );
    match error.status() {
        Some(405 | 501) => true,
        // The tag was just there: who does not find it now looked for a digest.
        Some(404) => true,
        Some(400) => unsupported || error.code().is_none(),
        _ => false,
    }
}

const STAND_IN_CONFIG: &[u8] =
    br#"{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;

/// A manifest like no other.
fn stand_in(tag: &str) -> Result<(Raw<Manifest>, Descriptor), ClientError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let unique = format!("{}-{:?}", std::process::id(), now.unwrap_or_default());
    let size = STAND_IN_CONFIG.len() as u64;
    let config = Descriptor::new(OCI_CONFIG, Digest::of(STAND_IN_CONFIG), size);
    let mut manifest = Manifest::new(config, Vec::new());
    let notes = [("kiln.deleted-tag", tag), ("kiln.unique", &unique)];
    let notes = notes.map(|(key, text)| (key.to_owned(), text.to_owned()));
    manifest.annotations.extend(notes);
    let manifest = Raw::write(manifest).map_err(|source| ClientError::Document {
        url: tag.to_owned(),
        what: "image manifest",
        source,
    })?;
    let size = manifest.bytes.len() as u64;
    let descriptor = Descriptor::new(OCI_MANIFEST, manifest.digest, size);
    Ok((manifest, descriptor))
}
