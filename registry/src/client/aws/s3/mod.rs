//! Objects in a bucket of S3, or of what speaks its language, as the source and the sink of blobs
//! (C5).
//!
//! A blob lies under its digest, a manifest under a name. Requests are signed with their content's
//! digest, which of a blob is known before: it is sent as it is read, and what arrives otherwise is
//! refused by the service. A large blob goes in parts (`upload`).

mod upload;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use jiff::Timestamp;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LAST_MODIFIED, RANGE};
use reqwest::{Body, Method, Response, Url};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep};
use tokio_util::io::StreamReader;

use super::sigv4::{self, Scope, hash};
use super::sources::Sources;
use super::{AwsEnvironment, AwsError, Keys, Services, element, refusal};
use crate::blob::{BlobError, BlobReader, BlobSink, BlobSource, BoxFuture, Progress, Put};
use crate::client::error::ClientError;
use crate::client::retry::{Backoff, http_date};
use crate::client::wire::{Counter, Outgoing, PATIENCE, Pace, Request, Watch, io_error};
use crate::client::{Client, Shared};
use crate::credentials::Secret;
use crate::digest::Digest;
use crate::spec::Descriptor;

/// The largest document that is read, bytes.
const DOCUMENT: usize = 8 << 20;
/// How much of an error answer is read, bytes.
const ERROR: usize = 64 << 10;
/// How long keys are used before they are looked for anew: those of roles end.
const FRESH: Duration = Duration::from_secs(300);

/// Where a bucket is, and who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketOptions {
    /// Its name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The address of the service where it is not AWS' own.
    pub endpoint: Option<String>,
    /// Whether the bucket stands in the path and not in the host's name.
    pub path_style: bool,
    /// Id, secret and session token; without them the AWS credentials of the environment count.
    pub keys: Option<(String, Secret, Option<Secret>)>,
    /// What all names begin with.
    pub prefix: String,
    /// What names of blobs go on with.
    pub blobs_prefix: String,
    /// What names of manifests go on with.
    pub manifests_prefix: String,
    /// A blob that is older than this is written to itself when it is wanted again, for services
    /// that delete what is old.
    pub touch_refresh: Duration,
    /// A blob that is larger than this is sent in parts of this size, bytes; without a value 512
    /// MiB. AWS takes no part under 5 MiB but the last, and none above 5 GiB.
    pub part_size: Option<u64>,
}

/// The keys in use, and since when.
type Held = Option<(Instant, Arc<Keys>)>;

/// A bucket.
#[derive(Clone)]
pub struct Bucket {
    shared: Arc<Shared>,
    environment: Option<AwsEnvironment>,
    options: BucketOptions,
    base: Url,
    held: Arc<AsyncMutex<Held>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.options.bucket).finish()
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.options.bucket, self.options.prefix)
    }
}

/// What is known of an object.
#[derive(Clone, Copy, Debug)]
struct Object {
    size: Option<u64>,
    /// Seconds since 1970.
    modified: Option<u64>,
}

impl Client {
    /// A bucket of S3.
    ///
    /// # Errors
    /// When the address of the service is none.
    pub fn bucket(&self, options: BucketOptions) -> Result<Bucket, ClientError> {
        let base = base(&options)?;
        Ok(Bucket {
            shared: Arc::clone(&self.shared),
            environment: self.shared.aws.clone(),
            options,
            base,
            held: Arc::default(),
        })
    }
}

/// The address that all objects of a bucket lie below.
fn base(options: &BucketOptions) -> Result<Url, ClientError> {
    let BucketOptions {
        bucket,
        region,
        endpoint,
        ..
    } = options;
    let domain = match region.starts_with("cn-") {
        true => "amazonaws.com.cn",
        false => "amazonaws.com",
    };
    let usual = || format!("https://s3.{region}.{domain}");
    let address = endpoint.clone().unwrap_or_else(usual);
    let wrong = || ClientError::Address(crate::client::redacted(&address));
    let mut url = Url::parse(&address).map_err(|_| wrong())?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() {
        return Err(wrong());
    }
    let host = url.host_str().ok_or_else(wrong)?.to_owned();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // A bucket cannot stand before an address in numbers, nor one with dots before a certificate's.
    let path_style = options.path_style
        || bare.parse::<IpAddr>().is_ok()
        || host == "localhost"
        || bucket.contains('.');
    let path = url.path().trim_end_matches('/').to_owned();
    if path_style {
        url.set_path(&format!("{path}/{}/", sigv4::encode(bucket)));
    } else {
        url.set_host(Some(&format!("{bucket}.{host}")))
            .map_err(|_| wrong())?;
        url.set_path(&format!("{path}/"));
    }
    Ok(url)
}

/// A name of an object as it stands in addresses.
fn encoded(key: &str) -> String {
    let segments = key.split('/').map(sigv4::encode);
    segments.collect::<Vec<_>>().join("/")
}

impl Bucket {
    /// The manifest under a name; `None` when there is none.
    ///
    /// # Errors
    /// [`ClientError`] when the service refuses.
    pub async fn manifest(&self, name: &str) -> Result<Option<Vec<u8>>, ClientError> {
        let key = self.manifest_key(name);
        let url = self.url(&key)?;
        let answer = self.retried(|| self.read(&key, 0)).await;
        match answer {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => {
                let wire = &self.shared.transport.wire;
                wire.body(&Method::GET, &url, answer, DOCUMENT)
                    .await
                    .map(Some)
            }
        }
    }

    fn manifest_key(&self, name: &str) -> String {
        let BucketOptions {
            prefix,
            manifests_prefix,
            ..
        } = &self.options;
        format!("{prefix}{manifests_prefix}{name}")
    }

    fn blob_key(&self, blob: &Digest) -> String {
        let BucketOptions {
            prefix,
            blobs_prefix,
            ..
        } = &self.options;
        format!("{prefix}{blobs_prefix}{blob}")
    }

    /// The address of an object. Whatever is special is encoded, as it is in what is signed.
    fn url(&self, key: &str) -> Result<Url, ClientError> {
        let whole = format!("{}{}", self.base, encoded(key));
        // `..` would lead to another bucket.
        let outside = key.split('/').any(|part| matches!(part, "." | ".."));
        let url = Url::parse(&whole).ok().filter(|_| !outside);
        url.ok_or_else(|| ClientError::Address(crate::client::redacted(&whole)))
    }

    async fn keys(&self) -> Result<Arc<Keys>, ClientError> {
        let mut held = self.held.lock().await;
        if let Some((since, keys)) = &*held
            && since.elapsed() < FRESH
        {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(self.find_keys().await?);
        *held = Some((Instant::now(), Arc::clone(&keys)));
        Ok(keys)
    }

    async fn find_keys(&self) -> Result<Keys, ClientError> {
        if let Some((id, secret, session)) = &self.options.keys {
            return Ok(Keys {
                id: id.clone(),
                secret: secret.clone(),
                session: session.clone(),
                origin: "access_key_id".to_owned(),
            });
        }
        let failed = |source| ClientError::Aws {
            registry: self.to_string(),
            source: Box::new(source),
        };
        let none = || AwsError::Service {
            what: "AWS credentials: there are none in the environment".to_owned(),
            source: Box::new(ClientError::Address(self.to_string())),
        };
        let transport = &self.shared.transport;
        let services = Services {
            wire: &transport.wire,
            policy: transport.policy,
        };
        let environment = self.environment.as_ref().ok_or_else(none).map_err(failed)?;
        let sources = Sources {
            environment,
            services: &services,
            region: &self.options.region,
        };
        let keys = sources.keys().await.map_err(failed)?;
        keys.ok_or_else(none).map_err(failed)
    }

    /// The headers of a request, signed; `digest` is that of its body in hexadecimal.
    async fn signed(&self, request: &mut Request, digest: &str) -> Result<(), ClientError> {
        let keys = self.keys().await?;
        let failed = || ClientError::Aws {
            registry: self.to_string(),
            source: Box::new(AwsError::Keys {
                origin: keys.origin.clone(),
            }),
        };
        let value = HeaderValue::from_str(digest).map_err(|_| failed())?;
        request.headers.insert("x-amz-content-sha256", value);
        let scope = Scope {
            region: &self.options.region,
            service: "s3",
        };
        sigv4::sign_content(request, digest, &keys, scope, Timestamp::now()).ok_or_else(failed)
    }

    /// Sends a request, once; whatever is no success is an error.
    async fn send(
        &self,
        request: Request,
        body: Body,
        watch: Watch<'_>,
    ) -> Result<Response, ClientError> {
        let wire = &self.shared.transport.wire;
        let Request {
            method,
            url,
            headers,
            ..
        } = request;
        let outgoing = Outgoing {
            method: method.clone(),
            url: url.clone(),
            headers,
            body,
        };
        let answer = wire.send(outgoing, watch).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let region = answer.headers().get("x-amz-bucket-region");
        let region = region
            .and_then(|text| text.to_str().ok())
            .map(str::to_owned);
        let text = wire.body(&method, &url, answer, ERROR).await;
        let mut error = refusal(&method, &url, status.as_u16(), &text.unwrap_or_default());
        if let (ClientError::Refused(refusal), Some(region)) = (&mut error, region)
            && region != self.options.region
        {
            refusal.message = format!("the bucket is in the region `{region}`");
        }
        Err(error)
    }

    /// Sends a request with a small body; the address, and the text of the answer.
    async fn ask(&self, mut request: Request, body: &[u8]) -> Result<(Url, String), ClientError> {
        self.signed(&mut request, &hash(body)).await?;
        let (method, url) = (request.method.clone(), request.url.clone());
        let body = Body::from(body.to_vec());
        let answer = self.send(request, body, self.watch()).await?;
        let wire = &self.shared.transport.wire;
        let bytes = wire.body(&method, &url, answer, ERROR).await?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // Where work takes long its status comes before it is done; what becomes of it stands below.
        if element(&text, "Error").is_some() {
            return Err(refusal(&method, &url, 500, &bytes));
        }
        Ok((url, text))
    }

    /// Tries again where that may help.
    async fn retried<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        let mut backoff = Backoff::new(self.shared.transport.policy);
        loop {
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            match backoff.next(&error) {
                Some(wait) => sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    fn watch(&self) -> Watch<'static> {
        Watch {
            counter: Counter::default(),
            length: 0,
            commit: self.shared.transport.wire.stall * PATIENCE,
            progress: &|_| (),
        }
    }

    /// Asks for an object from an offset on.
    async fn read(&self, key: &str, offset: u64) -> Result<Response, ClientError> {
        let mut request = Request::get(self.url(key)?);
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            request
                .headers
                .extend(range.ok().map(|range| (RANGE, range)));
        }
        self.signed(&mut request, &hash(b"")).await?;
        let url = request.url.clone();
        let answer = self.send(request, Body::default(), self.watch()).await?;
        if offset > 0 && answer.status() != 206 {
            return Err(ClientError::protocol(
                &Method::GET,
                &url,
                "a part was asked for",
            ));
        }
        Ok(answer)
    }

    async fn head(&self, key: &str) -> Result<Option<Object>, ClientError> {
        let mut request = Request::new(Method::HEAD, self.url(key)?);
        self.signed(&mut request, &hash(b"")).await?;
        let answer = match self.send(request, Body::default(), self.watch()).await {
            Ok(answer) => answer,
            // Who may not list is not told whether there is something.
            Err(error) if matches!(error.status(), Some(403 | 404)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = |name| answer.headers().get(name)?.to_str().ok();
        Ok(Some(Object {
            size: text(CONTENT_LENGTH).and_then(|text| text.parse().ok()),
            modified: text(LAST_MODIFIED).and_then(http_date),
        }))
    }

    /// Whether the blob is there, and young enough to stay.
    async fn has(&self, key: &str, blob: &Descriptor) -> Result<bool, BlobError> {
        let Some(object) = self.retried(|| self.head(key)).await? else {
            return Ok(false);
        };
        if object.size.is_some_and(|size| size != blob.size) {
            return Ok(false);
        }
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        let old = self.options.touch_refresh.as_secs();
        if object
            .modified
            .is_some_and(|at| now.saturating_sub(at) > old)
        {
            self.touch(key, blob.size).await?;
        }
        Ok(true)
    }

    async fn put_document(&self, key: &str, kind: &str, bytes: &[u8]) -> Result<(), ClientError> {
        let mut request = Request::new(Method::PUT, self.url(key)?);
        if let Ok(kind) = HeaderValue::from_str(kind) {
            request.headers.insert(CONTENT_TYPE, kind);
        }
        self.ask(request, bytes).await.map(drop)
    }
}

impl BlobSource for Bucket {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        Box::pin(async move {
            let key = self.blob_key(&blob.digest);
            let url = self.url(&key)?;
            let answer = self.retried(|| self.read(&key, offset)).await;
            let answer = answer.map_err(|error| match error.is_not_found() {
                true => BlobError::NotFound(blob.digest, self.to_string()),
                false => error.into(),
            })?;
            let state = (self.clone(), url, answer, Pace::default());
            let pieces =
                stream::try_unfold(state, |(bucket, url, mut answer, mut pace)| async move {
                    let wire = &bucket.shared.transport.wire;
                    let piece = wire.chunk(&Method::GET, &url, &mut answer, &mut pace).await;
                    let piece = piece.map_err(io_error)?;
                    Ok::<_, io::Error>(piece.map(|piece| (piece, (bucket, url, answer, pace))))
                });
            Ok(Box::new(StreamReader::new(Box::pin(pieces))) as BlobReader)
        })
    }
}

impl BlobSink for Bucket {
    fn put<'a>(
        &'a self,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(self.put_blob(blob, source, progress))
    }

    /// Puts a manifest under a name; without one it lies among the blobs.
    fn put_manifest<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        bytes: &'a [u8],
        tag: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Put, BlobError>> {
        Box::pin(async move {
            let key = match tag {
                Some(name) => self.manifest_key(name),
                None => self.blob_key(&descriptor.digest),
            };
            self.retried(|| self.put_document(&key, &descriptor.media_type, bytes))
                .await?;
            Ok(Put::Sent)
        })
    }
}

#[cfg(test)]
mod tests;
