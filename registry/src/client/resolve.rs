//! From a reference to the manifest of one image: tag, index, platform (D5.1, D5.2, D5.6).

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, ETAG, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::io::AsyncReadExt as _;

use super::challenge::Scopes;
use super::error::{ClientError, clean, redact};
use super::known::Known;
use super::transport::{Endpoint, Whole};
use super::wire::Request;
use super::{Client, Notice, Repository};
use crate::blob::{BlobError, BlobSource as _};
use crate::digest::{Digest, Mismatch};
use crate::reference::Reference;
use crate::spec::media_type::{OCI_INDEX, OCI_MANIFEST, is_config, is_index, is_manifest};
use crate::spec::platform::choose;
use crate::spec::{Descriptor, ImageConfig, Index, Manifest, Platform, Raw};

/// The largest manifest or index, bytes; registries use the same limit (D7.3).
pub(super) const MANIFEST: usize = 4 << 20;

/// The largest image config, bytes.
const CONFIG: u64 = 8 << 20;

/// An index may hold indexes, but not without end.
const DEPTH: usize = 4;

/// Schema 1 is asked for as well: a registry that has nothing else then says so (D5.6), where it
/// would otherwise claim that there is no such image.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1, */*;q=0.1";

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An image that has been found in a registry.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The reference that was resolved.
    pub reference: Reference,
    /// The index that the image was chosen from, and its bytes.
    pub index: Option<(Descriptor, Vec<u8>)>,
    /// The image's manifest.
    pub manifest: Raw<Manifest>,
    /// The manifest's descriptor; in an index, the one that stands there.
    pub descriptor: Descriptor,
    /// The platform that was asked for.
    pub wanted: Platform,
}

impl Resolved {
    /// The digest that the reference stands for: the index's, where there is one.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.index {
            Some((descriptor, _)) => descriptor.digest,
            None => self.manifest.digest,
        }
    }

    /// The platform of the image where it is not the one that was asked for, which is worth a
    /// warning only (A7.8).
    #[must_use]
    pub fn mismatch(&self, config: &ImageConfig) -> Option<Platform> {
        let found = Platform {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            os_version: config.os_version.clone(),
            os_features: config.os_features.clone(),
            variant: config.variant.clone(),
        };
        self.wanted.rank(&found).is_none().then_some(found)
    }
}

impl Client {
    /// Finds the image that a reference and a platform name; every document is verified.
    ///
    /// # Errors
    /// [`ClientError`] when there is no such image, or the registry cannot be asked.
    pub async fn resolve(
        &self,
        reference: &Reference,
        wanted: &Platform,
    ) -> Result<Resolved, ClientError> {
        self.resolve_known(reference, wanted, None).await
    }

    /// The same, where some documents are known: a tag is asked for its digest only then, which
    /// counts against no limit (D6.3).
    ///
    /// # Errors
    /// [`ClientError`] when there is no such image, or the registry cannot be asked.
    pub async fn resolve_known(
        &self,
        reference: &Reference,
        wanted: &Platform,
        known: Option<Known>,
    ) -> Result<Resolved, ClientError> {
        let mut repository = self.repository(reference);
        repository.known = known;
        let first = repository.find(reference).await?;
        let mut document = Document::check(first, reference)?;
        let mut index = None;
        for _ in 0..DEPTH {
            if document.is_image {
                let manifest: Raw<Manifest> = document.parse("image manifest")?;
                refuse_artifact(&manifest.value, reference)?;
                return Ok(Resolved {
                    reference: reference.clone(),
                    index,
                    manifest,
                    descriptor: document.descriptor,
                    wanted: wanted.clone(),
                });
            }
            let listed: Raw<Index> = document.parse("image index")?;
            let Some(chosen) = choose(wanted, &listed.value) else {
                return Err(ClientError::NoPlatform {
                    reference: reference.to_string(),
                    wanted: shown(wanted),
                    available: available(&listed.value.manifests),
                });
            };
            let fetched = repository.child(chosen).await?;
            let outer = document.descriptor;
            document = Document::check(fetched, reference)?;
            document.descriptor = chosen.clone();
            // The outermost index is the one that the reference names.
            index.get_or_insert((outer, listed.bytes));
        }
        Err(ClientError::NotAnImage {
            reference: reference.to_string(),
            media_type: document.descriptor.media_type,
        })
    }

    /// The descriptor of what a reference names now, without fetching it: a request that does not
    /// count against pull limits (D6.3). `None` when the registry does not tell without.
    ///
    /// # Errors
    /// [`ClientError`] when there is no such image, or the registry cannot be asked.
    pub async fn head(&self, reference: &Reference) -> Result<Option<Descriptor>, ClientError> {
        let repository = self.repository(reference);
        let mut last = None;
        for place in repository.places() {
            match repository.head_at(place, &name_of(reference)).await {
                Ok(found) => return Ok(found),
                Err(error) if error.status() == Some(405) => return Ok(None),
                Err(error) => last = Some(repository.passed_over(place, error)),
            }
        }
        last.map_or(Ok(None), Err)
    }

    /// Fetches the bytes of an image's config, verified.
    ///
    /// # Errors
    /// [`BlobError`] when the config is not there, not what the manifest says, or too large.
    pub async fn config(&self, image: &Resolved) -> Result<Vec<u8>, BlobError> {
        let descriptor = &image.manifest.value.config;
        let repository = self.repository(&image.reference);
        if descriptor.size > CONFIG {
            return Err(BlobError::Client(ClientError::TooLarge {
                url: format!("{repository}@{}", descriptor.digest),
                limit: usize::try_from(CONFIG).unwrap_or(usize::MAX),
            }));
        }
        let mut bytes = Vec::new();
        let mut reader = repository.open(descriptor, 0).await?;
        let read = reader.read_to_end(&mut bytes).await;
        read.map_err(|source| BlobError::Io {
            action: format!(
                "cannot read the config {} from {repository}",
                descriptor.digest
            ),
            source,
        })?;
        Ok(bytes)
    }
}

/// The name under which a manifest is asked for: the digest decides (D1.5).
fn name_of(reference: &Reference) -> String {
    match reference.digest {
        Some(digest) => digest.to_string(),
        None => reference.tag_or_latest().to_owned(),
    }
}

/// A document as a registry sent it.
#[derive(Debug)]
pub(super) struct Fetched {
    url: Url,
    content_type: Option<String>,
    /// What the registry calls this state of the document.
    pub(super) etag: Option<HeaderValue>,
    pub(super) bytes: Vec<u8>,
}

impl Repository {
    /// Fetches what a reference names: the tag's digest first, then the content by that (D5.1).
    pub(super) async fn find(&self, reference: &Reference) -> Result<Fetched, ClientError> {
        if let Some(digest) = reference.digest {
            return self.manifest(&digest.to_string(), Some(digest)).await;
        }
        let tag = reference.tag_or_latest();
        let mut last = None;
        for place in self.places() {
            match self.find_at(place, tag).await {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(self.passed_over(place, error)),
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Address(self.to_string())))
    }

    async fn find_at(&self, place: &Endpoint, tag: &str) -> Result<Fetched, ClientError> {
        match self.head_at(place, tag).await {
            Ok(Some(found)) => {
                let name = found.digest.to_string();
                match self.manifest_at(place, &name, Some(found.digest)).await {
                    // Some proxies know a digest only after it has been asked for by its tag.
                    Err(error) if error.is_not_found() => self.manifest_at(place, tag, None).await,
                    other => other,
                }
            }
            // A refused HEAD has no body; the GET says why.
            Err(error @ ClientError::Refused(_)) if !error.is_transient() => {
                self.manifest_at(place, tag, None).await
            }
            Err(error) => Err(error),
            Ok(None) => self.manifest_at(place, tag, None).await,
        }
    }

    /// A manifest that an index lists; it must have the size that stands there.
    async fn child(&self, descriptor: &Descriptor) -> Result<Fetched, ClientError> {
        let digest = descriptor.digest;
        let fetched = self.manifest(&digest.to_string(), Some(digest)).await?;
        let actual = fetched.bytes.len() as u64;
        if actual != descriptor.size {
            return Err(ClientError::Mismatch {
                url: redact(&fetched.url),
                source: Mismatch::Size {
                    digest,
                    expected: descriptor.size,
                    actual,
                    more: false,
                },
            });
        }
        Ok(fetched)
    }

    /// Fetches a manifest by tag or digest from the first place that has it.
    pub(super) async fn manifest(
        &self,
        name: &str,
        expected: Option<Digest>,
    ) -> Result<Fetched, ClientError> {
        let mut last = None;
        for place in self.places() {
            match self.manifest_at(place, name, expected).await {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(self.passed_over(place, error)),
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Address(self.to_string())))
    }

    /// Tells that a mirror failed; the registry's own failure is the caller's to tell.
    pub(super) fn passed_over(&self, place: &Endpoint, error: ClientError) -> ClientError {
        if place.address != self.origin.address {
            self.transport().notice(&Notice::Mirror {
                address: place.address.clone(),
                reason: error.reason(),
            });
        }
        error
    }

    /// A question for a manifest.
    async fn request(
        &self,
        place: &Endpoint,
        method: Method,
        name: &str,
    ) -> Result<Request, ClientError> {
        let url = self.transport().url(place, &["manifests", name]).await?;
        let mut request = Request::new(method, url);
        let accepted = HeaderValue::from_static(ACCEPTED);
        request.headers.insert(ACCEPT, accepted);
        let plain = HeaderValue::from_static("identity");
        request.headers.insert(ACCEPT_ENCODING, plain);
        Ok(request)
    }

    /// Digest, size and type of a manifest from its HEAD; `None` when the answer lacks the digest.
    pub(super) async fn head_at(
        &self,
        place: &Endpoint,
        name: &str,
    ) -> Result<Option<Descriptor>, ClientError> {
        let scopes = Scopes::pull(&place.repository);
        self.head_with(place, name, &scopes).await
    }

    /// The same, with the rights of another kind of work, which need no token of their own then.
    pub(super) async fn head_with(
        &self,
        place: &Endpoint,
        name: &str,
        scopes: &Scopes,
    ) -> Result<Option<Descriptor>, ClientError> {
        let request = self.request(place, Method::HEAD, name).await?;
        let answer = self.transport().call(place, scopes, &request).await?;
        let digest = answer
            .header(CONTENT_DIGEST)
            .and_then(|text| text.parse().ok());
        let size = answer
            .header(reqwest::header::CONTENT_LENGTH)
            .and_then(|text| text.parse().ok());
        let media_type = answer.header(CONTENT_TYPE).unwrap_or_default().to_owned();
        Ok(digest.map(|digest| Descriptor::new(media_type, digest, size.unwrap_or(0))))
    }

    pub(super) async fn manifest_at(
        &self,
        place: &Endpoint,
        name: &str,
        expected: Option<Digest>,
    ) -> Result<Fetched, ClientError> {
        let known = self.known.as_ref();
        if let Some(bytes) = expected.and_then(|digest| known?.get(&digest)) {
            return Ok(Fetched {
                url: self.transport().url(place, &["manifests", name]).await?,
                content_type: None,
                etag: None,
                bytes,
            });
        }
        let scopes = Scopes::pull(&place.repository);
        let request = self.request(place, Method::GET, name).await?;
        let answer = self.transport().read(place, &scopes, &request, MANIFEST);
        let answer = answer.await?;
        let content_type = answer.header(CONTENT_TYPE).map(str::to_owned);
        let announced = answer
            .header(CONTENT_DIGEST)
            .and_then(|text| text.parse().ok());
        let etag = answer.headers.get(ETAG).cloned();
        let Whole {
            url, body: bytes, ..
        } = answer;
        let actual = Digest::of(&bytes);
        // Without a digest asked for, the registry's own word is all there is to check against.
        match expected.or(announced) {
            Some(expected) if expected != actual && is_web_page(&bytes) => {
                Err(ClientError::WebPage {
                    url: redact(&url),
                    what: "manifest",
                })
            }
            Some(expected) if expected != actual => Err(ClientError::Mismatch {
                url: redact(&url),
                source: Mismatch::Digest { expected, actual },
            }),
            _ => Ok(Fetched {
                url,
                content_type,
                etag,
                bytes,
            }),
        }
    }
}

impl Fetched {
    /// What the document is: by its header, else by its own word, else by its form (D5.2).
    pub(super) fn media_type(&self) -> Result<String, ClientError> {
        Ok(self.outline()?.media_type(self.content_type.as_deref()))
    }

    fn outline(&self) -> Result<Outline, ClientError> {
        let (url, what) = (redact(&self.url), "manifest");
        serde_json::from_slice(&self.bytes).map_err(|source| match is_web_page(&self.bytes) {
            true => ClientError::WebPage { url, what },
            false => ClientError::Document { url, what, source },
        })
    }
}

/// A document whose type is known.
struct Document {
    url: String,
    bytes: Vec<u8>,
    is_image: bool,
    descriptor: Descriptor,
}

/// What tells the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
    #[serde(default)]
    config: Option<IgnoredAny>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
}

impl Document {
    /// Finds out what a document is: by its header, else by its own word, else by its form (D5.2).
    fn check(fetched: Fetched, reference: &Reference) -> Result<Self, ClientError> {
        let outline = fetched.outline()?;
        let Fetched {
            url,
            content_type,
            bytes,
            ..
        } = fetched;
        let url = redact(&url);
        let media_type = outline.media_type(content_type.as_deref());
        let index = is_index(&media_type);
        // One document that can be read as two different images is a trap.
        let other = if index {
            outline.config.is_some() || outline.layers.is_some()
        } else {
            outline.manifests.is_some()
        };
        if outline.schema_version == 1 || media_type.contains("docker.distribution.manifest.v1+") {
            return Err(ClientError::Schema1 {
                reference: reference.to_string(),
            });
        }
        if !(index || is_manifest(&media_type)) || other {
            return Err(ClientError::NotAnImage {
                reference: reference.to_string(),
                media_type: clean(&media_type, 100),
            });
        }
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        Ok(Self {
            url,
            bytes,
            is_image: !index,
            descriptor,
        })
    }

    fn parse<T: DeserializeOwned>(&self, what: &'static str) -> Result<Raw<T>, ClientError> {
        Raw::parse(self.bytes.clone()).map_err(|source| ClientError::Document {
            url: self.url.clone(),
            what,
            source,
        })
    }
}

impl Outline {
    fn media_type(&self, content_type: Option<&str>) -> String {
        let header = content_type
            .and_then(|text| text.split(';').next())
            .map(|text| text.trim().to_ascii_lowercase())
            .filter(|text| text.starts_with("application/vnd."));
        let guess = || match (self.manifests.is_some(), self.config.is_some()) {
            (true, _) => OCI_INDEX.to_owned(),
            (false, true) => OCI_MANIFEST.to_owned(),
            (false, false) => content_type.unwrap_or("unknown").to_owned(),
        };
        header
            .or_else(|| self.media_type.clone())
            .unwrap_or_else(guess)
    }
}

/// Refuses what has the form of an image and another purpose: charts, signatures, policies (D5.6).
fn refuse_artifact(manifest: &Manifest, reference: &Reference) -> Result<(), ClientError> {
    let config = manifest.config.media_type.as_str();
    // The first pushes of docker's schema 2 did not say what their configs are.
    if is_config(config) || config == "application/octet-stream" {
        return Ok(());
    }
    Err(ClientError::NotAnImage {
        reference: reference.to_string(),
        media_type: clean(config, 100),
    })
}

/// Whether a document is HTML, as login pages are.
fn is_web_page(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"<")
}

/// The platforms of an index, for people.
fn available(manifests: &[Descriptor]) -> String {
    let platforms = manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref());
    let mut names: Vec<String> = platforms
        .filter(|platform| !platform.is_unknown())
        .map(|platform| format!("`{}`", shown(platform)))
        .collect();
    names.dedup();
    if names.is_empty() {
        return "no platform at all".to_owned();
    }
    names.truncate(30);
    names.join(", ")
}

/// A platform that a registry named, made safe to show.
fn shown(platform: &Platform) -> String {
    clean(&platform.to_string(), 80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::media_type::{DOCKER_INDEX, DOCKER_MANIFEST};

    fn check(content_type: Option<&str>, body: &str) -> Result<String, ClientError> {
        let fetched = Fetched {
            url: Url::parse("https://r/v2/a/manifests/1").unwrap(),
            etag: None,
            content_type: content_type.map(str::to_owned),
            bytes: body.as_bytes().to_vec(),
        };
        let reference = Reference::parse("r.example/a:1").unwrap();
        Document::check(fetched, &reference).map(|document| document.descriptor.media_type)
    }

    const IMAGE: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    const INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

    #[test]
    fn d5_2_a_missing_content_type_is_tolerated() {
        assert_eq!(check(None, IMAGE).unwrap(), OCI_MANIFEST);
        assert_eq!(check(Some("text/plain"), INDEX).unwrap(), OCI_INDEX);
        let typed = format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","config":{{}}}}"#);
        assert_eq!(
            check(Some("application/json"), &typed).unwrap(),
            DOCKER_MANIFEST
        );
        let header = format!("{DOCKER_INDEX}; charset=utf-8");
        assert_eq!(check(Some(&header), INDEX).unwrap(), DOCKER_INDEX);
    }

    #[test]
    fn d5_6_schema_1_is_refused_by_name() {
        let v1 = r#"{"schemaVersion":1,"fsLayers":[],"signatures":[]}"#;
        let error = check(None, v1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`r.example/a:1` is a schema 1 image, which is not supported"
        );
        assert!(error.hint().unwrap().contains("OCI"));
    }

    #[test]
    fn what_is_no_image_or_two_at_once_is_refused() {
        let both = r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#;
        for (kind, body) in [
            (Some("text/html"), "<html>"),
            (Some("application/vnd.cncf.helm.chart"), "{}"),
            (Some(OCI_MANIFEST), both),
            (Some(OCI_INDEX), both),
            (None, "[]"),
            (None, "{}"),
        ] {
            assert!(check(kind, body).is_err(), "{kind:?} {body}");
        }
    }
}
