//! Blobs and manifests into a registry (D7).

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use super::Repository;
use super::challenge::Scopes;
use super::error::{ClientError, redact};
use super::session::Session;
use super::transport::lock;
use super::upload::Upload;
use super::wire::Request;
use crate::blob::{BlobError, BlobSource, Progress, Put};
use crate::digest::Digest;
use crate::spec::media_type::is_nondistributable;
use crate::spec::{Descriptor, Index, Manifest};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Puts a blob: nothing when it is there, a link from a neighbour, or its bytes (D7.1).
pub(super) async fn put(
    repository: &Repository,
    blob: &Descriptor,
    source: &dyn BlobSource,
    progress: &Progress,
) -> Result<Put, BlobError> {
    if is_nondistributable(&blob.media_type) {
        return Ok(Put::Existed);
    }
    let done = put_here(repository, blob, source, progress).await?;
    repository.remember(blob.digest);
    Ok(done)
}

async fn put_here(
    repository: &Repository,
    blob: &Descriptor,
    source: &dyn BlobSource,
    progress: &Progress,
) -> Result<Put, BlobError> {
    let distrusted = repository.distrusts(blob.digest);
    if !distrusted && repository.has(blob).await? {
        return Ok(Put::Existed);
    }
    let opened = if distrusted {
        None
    } else {
        match repository.mount(blob).await {
            Mounted::From(name) => return Ok(Put::Mounted(name)),
            Mounted::Not(session) => session,
        }
    };
    let (registry, name) = (&repository.registry, &repository.repository);
    let memory = repository.sessions().memory(registry, name, blob).await;
    let upload = Upload::new(repository, blob, source, progress, memory);
    upload.run(opened).await?;
    Ok(Put::Sent)
}

/// What became of the wish to mount a blob.
enum Mounted {
    From(String),
    /// It was not; the registry may have opened an upload instead, which is to be used.
    Not(Option<Session>),
}

impl Repository {
    /// Whether the registry has a blob, in its full size.
    pub(super) async fn has(&self, blob: &Descriptor) -> Result<bool, ClientError> {
        let digest = blob.digest.to_string();
        let url = self
            .transport()
            .url(&self.origin, &["blobs", &digest])
            .await?;
        let request = Request::new(Method::HEAD, url);
        let scopes = Scopes::push(&self.repository);
        match self.transport().call(&self.origin, &scopes, &request).await {
            Ok(answer) => {
                let size = answer.header(reqwest::header::CONTENT_LENGTH);
                let size = size.and_then(|text| text.parse::<u64>().ok());
                Ok(size.is_none_or(|size| size == blob.size))
            }
            Err(error) if matches!(error.status(), Some(404 | 405)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks to link a blob from another repository. A refusal is no error: the blob is sent then.
    async fn mount(&self, blob: &Descriptor) -> Mounted {
        let seen = &self.shared.seen;
        let mut session = None;
        for from in seen.candidates(&self.registry, &self.repository, blob.digest) {
            if let Some(unused) = session.take() {
                self.cancel(unused).await;
            }
            match self.mount_from(blob.digest, &from).await {
                Ok(None) => return Mounted::From(from),
                Ok(Some(opened)) => session = Some(opened),
                Err(_) => {}
            }
        }
        Mounted::Not(session)
    }

    /// Asks for one mount; gives the upload that the registry opened instead, if it did.
    async fn mount_from(&self, blob: Digest, from: &str) -> Result<Option<Session>, ClientError> {
        let mut url = self.uploads().await?;
        url.query_pairs_mut()
            .append_pair("mount", &blob.to_string())
            .append_pair("from", from);
        // One token for both (D3.3).
        let scopes = Scopes::push(&self.repository).with(&Scopes::pull(from));
        let request = Request::new(Method::POST, url);
        let answer = self
            .transport()
            .call(&self.origin, &scopes, &request)
            .await?;
        if answer.response.status() == 201 {
            return Ok(None);
        }
        Session::opened(&answer).map(Some)
    }

    pub(super) async fn uploads(&self) -> Result<reqwest::Url, ClientError> {
        // The last, empty segment makes the slash at the end.
        let path = ["blobs", "uploads", ""];
        self.transport().url(&self.origin, &path).await
    }

    /// Opens an upload.
    pub(super) async fn begin(&self) -> Result<Session, ClientError> {
        let request = Request::new(Method::POST, self.uploads().await?);
        let scopes = Scopes::push(&self.repository);
        let answer = self
            .transport()
            .call(&self.origin, &scopes, &request)
            .await?;
        Session::opened(&answer)
    }

    /// Gives an upload up. Registries tidy up by themselves, so that failing here is no matter.
    pub(super) async fn cancel(&self, session: Session) {
        let request = Request::new(Method::DELETE, session.location);
        let scopes = Scopes::push(&self.repository);
        drop(
            self.transport()
                .attempt(&self.origin, &scopes, &request)
                .await,
        );
    }

    /// Distrusts the registry's word about the blobs that it named when it refused a manifest, so
    /// that the next `put` sends them whatever it says; about all that the manifest refers to, when
    /// it named none and has been asked once more already.
    async fn distrust(&self, error: &ClientError, bytes: &[u8]) {
        let named = match error {
            ClientError::Refused(refusal) => refusal.digests.as_slice(),
            _ => &[],
        };
        let round = {
            let mut doubt = lock(&self.doubt);
            doubt.rounds += 1;
            doubt.blobs.extend(named);
            if doubt.rounds > 1 && named.is_empty() {
                doubt.blobs.extend(references(bytes));
            }
            doubt.rounds
        };
        // Some registries see what they have just stored a moment later only.
        tokio::time::sleep(self.transport().policy.delay * round).await;
    }
}

/// What a manifest or index refers to.
fn references(bytes: &[u8]) -> Vec<Digest> {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let parts = manifest.layers.iter().chain([&manifest.config]);
        return parts.map(|part| part.digest).collect();
    }
    serde_json::from_slice::<Index>(bytes)
        .map(|index| index.manifests.iter().map(|m| m.digest).collect())
        .unwrap_or_default()
}

/// Puts a manifest, and sees that the registry has stored just that (D7.3). One that its tag names
/// already is not put again: the tag may be one that cannot be moved.
pub(super) async fn put_manifest(
    repository: &Repository,
    descriptor: &Descriptor,
    bytes: &[u8],
    tag: Option<&str>,
) -> Result<Put, ClientError> {
    if let Some(tag) = tag
        && matches!(repository.stored(tag).await, Ok(Some(digest)) if digest == descriptor.digest)
    {
        return Ok(Put::Existed);
    }
    let put = put_once(repository, descriptor, bytes, tag, None).await?;
    if put == Put::Existed {
        return Ok(put);
    }
    // What counts is what others will find.
    let digest = descriptor.digest.to_string();
    let name = tag.unwrap_or(&digest);
    match repository.reread(name).await? {
        Some(actual) if actual != descriptor.digest => Err(ClientError::StoredDigest {
            url: format!("{repository}:{name}"),
            expected: descriptor.digest,
            actual,
        }),
        _ => Ok(put),
    }
}

/// Puts a manifest, and believes the registry's answer. With a condition, as `If-Match`, a registry
/// that knows it answers 412 where it does not hold.
pub(super) async fn put_once(
    repository: &Repository,
    descriptor: &Descriptor,
    bytes: &[u8],
    tag: Option<&str>,
    condition: Option<(HeaderName, HeaderValue)>,
) -> Result<Put, ClientError> {
    let digest = descriptor.digest.to_string();
    let name = tag.unwrap_or(&digest);
    let transport = repository.transport();
    let url = transport
        .url(&repository.origin, &["manifests", name])
        .await?;
    let mut request = Request::new(Method::PUT, url);
    request.body = bytes.to_vec().into();
    let kind = HeaderValue::from_str(&descriptor.media_type).map_err(|_| {
        ClientError::protocol(
            &Method::PUT,
            &request.url,
            "the media type is no header value",
        )
    })?;
    request.headers.insert(CONTENT_TYPE, kind);
    request.headers.extend(condition);
    let scopes = Scopes::push(&repository.repository);
    let answer = match transport.call(&repository.origin, &scopes, &request).await {
        Ok(answer) => answer,
        Err(error) => return after_refusal(repository, descriptor, bytes, tag, error).await,
    };
    let said = answer.header(CONTENT_DIGEST);
    match said.and_then(|text| text.parse().ok()) {
        Some(actual) if actual != descriptor.digest => Err(ClientError::StoredDigest {
            url: redact(&request.url),
            expected: descriptor.digest,
            actual,
        }),
        _ => {
            let listed = repository.list_referrer(&answer, descriptor, bytes).await;
            listed.map(|()| Put::Sent)
        }
    }
}

impl Repository {
    /// The digest of a manifest that the registry itself has now; `None` when it does not tell.
    async fn stored(&self, name: &str) -> Result<Option<Digest>, ClientError> {
        let scopes = Scopes::push(&self.repository);
        let found = self.head_with(&self.origin, name, &scopes).await?;
        Ok(found.map(|found| found.digest))
    }

    /// Looks at a manifest that has just been put, for as long as the registry takes to see it.
    /// Who may write but not read is not asked for more.
    async fn reread(&self, name: &str) -> Result<Option<Digest>, ClientError> {
        let policy = self.transport().policy;
        for round in 1..=policy.retries {
            match self.stored(name).await {
                Err(error) if error.is_not_found() => {
                    tokio::time::sleep(policy.delay.saturating_mul(round)).await;
                }
                Err(error) if matches!(error.status(), Some(400..=499)) => return Ok(None),
                found => return found,
            }
        }
        match self.stored(name).await {
            Err(error) if error.is_not_found() => {
                let path = ["manifests", name];
                let url = self.transport().url(&self.origin, &path).await?;
                let problem = "it was accepted, but the registry does not have it";
                Err(ClientError::protocol(&Method::PUT, &url, problem))
            }
            found => found,
        }
    }
}

/// A refused manifest may be there already, under a tag that cannot be moved.
async fn after_refusal(
    repository: &Repository,
    descriptor: &Descriptor,
    bytes: &[u8],
    tag: Option<&str>,
    error: ClientError,
) -> Result<Put, ClientError> {
    if error.is_blob_unknown() {
        repository.distrust(&error, bytes).await;
        return Err(error);
    }
    let (Some(tag), Some(400 | 403 | 405 | 409 | 412)) = (tag, error.status()) else {
        return Err(error);
    };
    let Ok(Some(existing)) = repository.stored(tag).await else {
        return Err(error);
    };
    if existing == descriptor.digest {
        return Ok(Put::Existed);
    }
    if says_immutable(&error) {
        return Err(ClientError::TagTaken {
            tag: format!("{repository}:{tag}"),
            existing,
            pushed: descriptor.digest,
            source: Box::new(error),
        });
    }
    Err(error)
}

/// Every registry has words of its own for a tag that may not be moved.
fn says_immutable(error: &ClientError) -> bool {
    let ClientError::Refused(refusal) = error else {
        return false;
    };
    let code = refusal.code.as_deref().unwrap_or_default();
    let message = refusal.message.to_ascii_lowercase();
    matches!(code, "TAG_ALREADY_EXISTS" | "TAG_INVALID")
        || [
            "immutable",
            "already exists",
            "cannot be overwritten",
            "be overwritten",
        ]
        .iter()
        .any(|words| message.contains(words))
}
