//! What refers to a manifest: signatures, attestations, whatever names it as its subject (D8.2).
//!
//! A registry keeps the list itself, or clients keep it under a tag made of the subject's digest.

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use serde::Deserialize;
use tokio::time::sleep;

use super::document::Found;
use super::error::{ClientError, redact};
use super::paging::within;
use super::push;
use super::retry::full_jitter;
use super::transport::Answer;
use super::wire::Request;
use super::{Client, Repository};
use crate::blob::BoxFuture;
use crate::digest::Digest;
use crate::reference::{Reference, is_image_id};
use crate::spec::media_type::{OCI_INDEX, is_index};
use crate::spec::{Descriptor, Index, Manifest, Raw};

/// The most referrers of one manifest.
const REFERRERS: usize = 10_000;

/// How often the list under a tag is written anew when others write it at the same time.
const ATTEMPTS: u32 = 8;

/// How long a list must stay as it was written.
const SETTLE: Duration = Duration::from_millis(100);

/// The registry's word that it has put the manifest on its own list.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

impl Client {
    /// What refers to a manifest, from the registry's own list or else from the one under the
    /// fallback tag; only those of an artifact type, where one is given.
    ///
    /// # Errors
    /// [`ClientError`] when the registry cannot be asked, or what it answers is no list.
    pub async fn referrers(
        &self,
        repository: &Reference,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ClientError> {
        let repository = self.repository(repository);
        let listed = match repository.listed(subject, artifact_type).await {
            // Registries without such a list do not know the address, and say so variously.
            Err(error) if matches!(error.status(), Some(400 | 404 | 405 | 501)) => {
                let found = repository.tagged(&fallback_tag(subject)).await?;
                found.map_or(Ok(Vec::new()), |found| Ok(index_of(&found)?.manifests))
            }
            other => other,
        }?;
        let mut seen = std::collections::HashSet::new();
        Ok(listed
            .into_iter()
            .filter(|entry| seen.insert(entry.digest))
            // Whether the registry has filtered or not.
            .filter(|entry| artifact_type.is_none_or(|wanted| kind(entry) == wanted))
            .collect())
    }
}

/// The artifact type of a referrer; lists of early writers have it as the media type.
fn kind(entry: &Descriptor) -> &str {
    entry.artifact_type.as_deref().unwrap_or(&entry.media_type)
}

impl Repository {
    async fn listed(
        &self,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ClientError> {
        let path = ["referrers", &subject.to_string()];
        let mut url = self.transport().url(&self.origin, &path).await?;
        if let Some(kind) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        let address = redact(&url);
        let mut found = Vec::new();
        let take = |page: Index| {
            found.extend(page.manifests);
            within(found.len(), REFERRERS, "referrers", &address)
        };
        self.pages(Request::get(url), "list of referrers", take)
            .await?;
        Ok(found)
    }

    /// Puts a manifest that has just been pushed on its subject's list, unless the registry says
    /// that it has done so. Boxed, because the list is pushed in its turn.
    pub(super) fn list_referrer<'a>(
        &'a self,
        answer: &Answer,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> BoxFuture<'a, Result<(), ClientError>> {
        let told = answer.header(SUBJECT).is_some();
        let Some((subject, entry)) = referrer(descriptor, bytes).filter(|_| !told) else {
            return Box::pin(std::future::ready(Ok(())));
        };
        let add = move |list: &mut Vec<Descriptor>| {
            let new = list.iter().all(|other| other.digest != entry.digest);
            if new {
                list.push(entry.clone());
            }
            new
        };
        Box::pin(self.change_list(subject, add))
    }

    /// Takes a manifest that has been deleted from its subject's list under the fallback tag,
    /// where there is one.
    pub(super) async fn unlist_referrer(&self, found: &Found) -> Result<(), ClientError> {
        let Some((subject, entry)) = referrer(&found.descriptor, &found.bytes) else {
            return Ok(());
        };
        let remove = |list: &mut Vec<Descriptor>| {
            let before = list.len();
            list.retain(|other| other.digest != entry.digest);
            list.len() != before
        };
        self.change_list(subject, remove).await
    }

    /// Changes the list under the fallback tag. Where the registry knows conditional requests nobody
    /// else's change is overwritten; most do not, so that the list is read again afterwards, and
    /// changed again where the change is lost. Within one process one change waits for the other.
    async fn change_list(
        &self,
        subject: Digest,
        change: impl Fn(&mut Vec<Descriptor>) -> bool + Send,
    ) -> Result<(), ClientError> {
        let _turn = self.shared.lists.lock().await;
        let tag = fallback_tag(subject);
        for attempt in 0..ATTEMPTS {
            let (mut index, state) = self.list(&tag).await?;
            if !change(&mut index.manifests) {
                return Ok(());
            }
            within(index.manifests.len(), REFERRERS, "referrers", &tag)?;
            let written = Raw::write(index).map_err(|source| ClientError::Document {
                url: format!("{self}:{tag}"),
                what: "list of referrers",
                source,
            })?;
            let size = written.bytes.len() as u64;
            let descriptor = Descriptor::new(OCI_INDEX, written.digest, size);
            // A registry that refuses each time does not mean what the condition says.
            let condition = state.filter(|_| attempt < ATTEMPTS / 2);
            let put = push::put_once(self, &descriptor, &written.bytes, Some(&tag), condition);
            match put.await {
                Err(error) if error.status() == Some(412) => {
                    sleep(full_jitter(SETTLE)).await;
                    continue;
                }
                // Others may change it at the same time, which the next round sees.
                put => put?,
            };
            // Whoever has read the list before it was written will have written it by then.
            sleep(SETTLE + full_jitter(SETTLE * 2_u32.pow(attempt))).await;
        }
        // Each round wrote the list; only its last state was not looked at.
        let (mut index, _) = self.list(&tag).await?;
        if change(&mut index.manifests) {
            return Err(ClientError::ListBusy {
                list: format!("{self}:{tag}"),
            });
        }
        Ok(())
    }
}

impl Repository {
    /// The list under a tag, and the condition that it has not been changed since.
    async fn list(
        &self,
        tag: &str,
    ) -> Result<(Index, Option<(HeaderName, HeaderValue)>), ClientError> {
        let found = match self.manifest_at(&self.origin, tag, None).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() => {
                let nothing = HeaderValue::from_static("*");
                let list = Index::new(OCI_INDEX, Vec::new());
                return Ok((list, Some((IF_NONE_MATCH, nothing))));
            }
            Err(error) => return Err(error),
        };
        // A weak one does not stand for one state only.
        let etag = found.etag.clone();
        let etag = etag.filter(|etag| !etag.as_bytes().starts_with(b"W/"));
        let list = index_of(&found.found()?)?;
        Ok((list, etag.map(|etag| (IF_MATCH, etag))))
    }
}

/// The tag of the list that clients keep (D8.2).
fn fallback_tag(subject: Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// Whether a tag is for a list of referrers that clients keep (D8.2).
#[must_use]
pub fn is_fallback_tag(tag: &str) -> bool {
    tag.strip_prefix("sha256-").is_some_and(is_image_id)
}

fn index_of(found: &Found) -> Result<Index, ClientError> {
    let digest = found.descriptor.digest.to_string();
    if !is_index(&found.descriptor.media_type) {
        return Err(ClientError::NotAList {
            digest,
            media_type: super::error::clean(&found.descriptor.media_type, 100),
        });
    }
    let index: Index =
        serde_json::from_slice(&found.bytes).map_err(|source| ClientError::Document {
            url: digest.clone(),
            what: "list of referrers",
            source,
        })?;
    within(index.manifests.len(), REFERRERS, "referrers", &digest)?;
    Ok(index)
}

/// What tells of a manifest in a list of referrers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refers {
    #[serde(default)]
    subject: Option<Descriptor>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

/// The subject of a manifest, and the entry for it in that one's list; `None` when it has none.
#[must_use]
pub fn referrer(descriptor: &Descriptor, bytes: &[u8]) -> Option<(Digest, Descriptor)> {
    let said: Refers = serde_json::from_slice(bytes).ok()?;
    let subject = said.subject?;
    let config = || {
        let manifest: Manifest = serde_json::from_slice(bytes).ok()?;
        Some(manifest.config.media_type)
    };
    let mut entry = Descriptor::new(&descriptor.media_type, descriptor.digest, descriptor.size);
    let stated = said.artifact_type.filter(|kind| !kind.is_empty());
    entry.artifact_type = stated.or_else(config);
    entry.annotations = said.annotations;
    Some((subject.digest, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d8_2_the_entry_of_a_referrer() {
        let digest = Digest::of(b"x");
        let about = format!(r#""subject":{{"mediaType":"a","digest":"{digest}","size":1}}"#);
        let config =
            format!(r#""config":{{"mediaType":"application/vnd.x","digest":"{digest}","size":1}}"#);
        let descriptor = Descriptor::new("m", Digest::of(b"y"), 7);
        let of = |text: &str| referrer(&descriptor, text.as_bytes());
        let (subject, entry) = of(&format!(
            r#"{{"schemaVersion":2,{config},"artifactType":"t","annotations":{{"k":"v"}},{about}}}"#
        ))
        .unwrap();
        assert_eq!(subject, digest);
        assert_eq!(entry.artifact_type.as_deref(), Some("t"));
        assert_eq!(entry.annotations["k"], "v");
        let (_, entry) = of(&format!(r#"{{"schemaVersion":2,{config},{about}}}"#)).unwrap();
        assert_eq!(entry.artifact_type.as_deref(), Some("application/vnd.x"));
        assert!(of(&format!(r#"{{"schemaVersion":2,{config}}}"#)).is_none());
        assert!(of("[]").is_none());
    }

    #[test]
    fn d8_2_the_fallback_tag() {
        let digest = Digest::of(b"{}");
        assert_eq!(
            fallback_tag(digest),
            "sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
        assert!(crate::reference::is_tag(&fallback_tag(digest)));
        assert!(is_fallback_tag(&fallback_tag(digest)));
        assert!(!is_fallback_tag("sha256-1"));
    }
}
