//! Blobs into a bucket: in one request, or in parts that the service joins (C5).
//!
//! The service checks the digest of what each request brings. That of a whole blob which comes in
//! parts nobody but the client can check: the parts are joined once it has.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderValue};
use reqwest::{Body, Method, Response, Url};
use tokio::io::AsyncReadExt as _;
use tokio::time::sleep;
use tokio_util::io::ReaderStream;

use super::{Bucket, encoded};
use crate::blob::{BlobError, BlobSource, Progress, Put, Step};
use crate::client::aws::{element, sigv4};
use crate::client::error::ClientError;
use crate::client::retry::Backoff;
use crate::client::transport::lock;
use crate::client::wire::{Counter, Request, Watch};
use crate::digest::{Hasher, Verifier};
use crate::spec::Descriptor;

/// How much is read from a source at once, bytes.
const PIECE: usize = 256 << 10;
/// The size of a part, bytes; a blob that is not larger is sent in one request.
const PART: u64 = 512 << 20;
/// The most parts that the service joins.
const MOST: u64 = 10_000;
/// The name space of the documents of S3.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// An upload in parts.
#[derive(Debug)]
struct Session {
    key: String,
    id: String,
}

/// A blob on its way.
struct Upload<'a> {
    bucket: &'a Bucket,
    key: String,
    blob: &'a Descriptor,
    source: &'a dyn BlobSource,
    progress: &'a Progress,
}

impl Bucket {
    /// Puts a blob that may be there already.
    pub(super) async fn put_blob(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        progress: &Progress,
    ) -> Result<Put, BlobError> {
        let key = self.blob_key(&blob.digest);
        if self.has(&key, blob).await? {
            return Ok(Put::Existed);
        }
        let upload = Upload {
            bucket: self,
            key,
            blob,
            source,
            progress,
        };
        match self.takes_parts(blob.size) {
            false => upload.in_one_request().await?,
            true => {
                let session = self.begin(&upload.key).await?;
                let parts = upload.in_parts(&session).await;
                self.end(&session, parts, blob.size).await?;
            }
        }
        Ok(Put::Sent)
    }

    /// Writes an object to itself, so that it is new.
    pub(super) async fn touch(&self, key: &str, size: u64) -> Result<(), BlobError> {
        if !self.takes_parts(size) {
            self.retried(|| self.copy(key)).await?;
            return Ok(());
        }
        let session = self.begin(key).await?;
        let parts = self.copy_in_parts(&session, size).await;
        self.end(&session, parts, size).await
    }

    async fn copy(&self, key: &str) -> Result<(), ClientError> {
        let mut request = Request::new(Method::PUT, self.url(key)?);
        self.copy_from(key, &mut request)?;
        let replace = HeaderValue::from_static("REPLACE");
        request.headers.insert("x-amz-metadata-directive", replace);
        self.ask(request, b"").await.map(drop)
    }

    async fn copy_in_parts(&self, session: &Session, size: u64) -> Result<Vec<String>, BlobError> {
        let mut tags = Vec::new();
        for (number, part) in (1..).zip(self.parts(size)) {
            let range = format!("bytes={}-{}", part.start, part.end - 1);
            let range = HeaderValue::from_str(&range)
                .map_err(|_| ClientError::Address(self.to_string()))?;
            let copy = || async {
                let mut request = Request::new(Method::PUT, self.part_url(session, number)?);
                self.copy_from(&session.key, &mut request)?;
                request
                    .headers
                    .insert("x-amz-copy-source-range", range.clone());
                let (url, text) = self.ask(request, b"").await?;
                // It stands in the answer as it is to stand in the request that joins the parts.
                let missing = || ClientError::protocol(&Method::PUT, &url, "there is no ETag");
                element(&text, "ETag").ok_or_else(missing)
            };
            tags.push(self.retried(copy).await?);
        }
        Ok(tags)
    }

    fn copy_from(&self, key: &str, request: &mut Request) -> Result<(), ClientError> {
        let bucket = sigv4::encode(&self.options.bucket);
        let from = format!("/{bucket}/{}", encoded(key));
        let from = HeaderValue::from_str(&from);
        let from = from.map_err(|_| ClientError::Address(self.to_string()))?;
        request.headers.insert("x-amz-copy-source", from);
        Ok(())
    }

    fn part_size(&self) -> u64 {
        self.options.part_size.unwrap_or(PART)
    }

    fn takes_parts(&self, size: u64) -> bool {
        size > self.part_size()
    }

    /// The parts of an object of this size, bytes.
    fn parts(&self, size: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let part = self.part_size().max(size.div_ceil(MOST)).max(1);
        (0..size.div_ceil(part)).map(move |at| at * part..((at + 1) * part).min(size))
    }

    fn part_url(&self, session: &Session, number: u64) -> Result<Url, ClientError> {
        let mut url = self.session_url(session)?;
        let query = format!("partNumber={number}&{}", url.query().unwrap_or_default());
        url.set_query(Some(&query));
        Ok(url)
    }

    fn session_url(&self, session: &Session) -> Result<Url, ClientError> {
        let mut url = self.url(&session.key)?;
        let id = sigv4::encode(&session.id);
        url.set_query(Some(&format!("uploadId={id}")));
        Ok(url)
    }

    async fn begin(&self, key: &str) -> Result<Session, ClientError> {
        let mut url = self.url(key)?;
        url.set_query(Some("uploads="));
        let ask = || self.ask(Request::new(Method::POST, url.clone()), b"");
        let (url, text) = self.retried(ask).await?;
        let missing = || ClientError::protocol(&Method::POST, &url, "there is no UploadId");
        Ok(Session {
            key: key.to_owned(),
            id: element(&text, "UploadId").ok_or_else(missing)?,
        })
    }

    /// Joins parts of which the tags are known; or gives them up, as what nobody joins costs who
    /// owns the bucket.
    async fn end(
        &self,
        session: &Session,
        parts: Result<Vec<String>, BlobError>,
        size: u64,
    ) -> Result<(), BlobError> {
        let joined = match parts {
            Ok(tags) => self.join(session, &tags, size).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        if joined.is_err()
            && let Ok(url) = self.session_url(session)
        {
            // What went wrong first says more than what may go wrong here.
            drop(self.ask(Request::new(Method::DELETE, url), b"").await);
        }
        joined
    }

    async fn join(&self, session: &Session, tags: &[String], size: u64) -> Result<(), ClientError> {
        let parts = (1..).zip(tags).map(|(number, tag)| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>")
        });
        let parts: String = parts.collect();
        let body = format!(
            "<CompleteMultipartUpload xmlns=\"{NAMESPACE}\">{parts}</CompleteMultipartUpload>"
        );
        let url = self.session_url(session)?;
        let join = || async {
            let request = Request::new(Method::POST, url.clone());
            let (url, text) = self.ask(request, body.as_bytes()).await?;
            match text.contains("CompleteMultipartUploadResult") {
                true => Ok(()),
                false => Err(ClientError::protocol(
                    &Method::POST,
                    &url,
                    "it does not say that the parts were joined",
                )),
            }
        };
        match self.retried(join).await {
            // The upload is over: it was joined, and the answer to that was lost.
            Err(error) if error.status() == Some(404) => {
                match self.retried(|| self.head(&session.key)).await {
                    Ok(Some(object)) if object.size == Some(size) => Ok(()),
                    _ => Err(error),
                }
            }
            joined => joined,
        }
    }
}

impl Upload<'_> {
    async fn in_one_request(&self) -> Result<(), BlobError> {
        let url = self.bucket.url(&self.key)?;
        let digest = self.blob.digest.hex();
        self.retried(|| self.send(&url, 0..self.blob.size, &digest))
            .await?;
        Ok(())
    }

    /// Sends the parts; the tags that the service gave them.
    async fn in_parts(&self, session: &Session) -> Result<Vec<String>, BlobError> {
        let mut whole = Verifier::new(self.blob.digest, self.blob.size);
        let mut tags = Vec::new();
        for (number, part) in (1..).zip(self.bucket.parts(self.blob.size)) {
            let digest = self.digest(part.clone(), &mut whole).await?;
            let url = self.bucket.part_url(session, number)?;
            let answer = self
                .retried(|| self.send(&url, part.clone(), &digest))
                .await?;
            let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
            let tag =
                tag.ok_or_else(|| ClientError::protocol(&Method::PUT, &url, "there is no ETag"))?;
            tags.push(escaped(tag));
        }
        whole.finish()?;
        Ok(tags)
    }

    /// The digest of a part in hexadecimal; what it is of counts for that of the whole as well.
    async fn digest(&self, part: Range<u64>, whole: &mut Verifier) -> Result<String, BlobError> {
        let reader = self.source.open(self.blob, part.start).await?;
        let mut reader = reader.take(part.end - part.start);
        let (mut hasher, mut buffer) = (Hasher::new(), vec![0; PIECE]);
        loop {
            let count = reader.read(&mut buffer).await;
            let count = count.map_err(|source| self.unreadable(source))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            whole.update(&buffer[..count])?;
        }
        if whole.seen() < part.end {
            // The source ended early, which this says.
            whole.clone().finish()?;
        }
        Ok(hasher.finish().hex())
    }

    fn unreadable(&self, source: io::Error) -> BlobError {
        BlobError::Io {
            action: format!("cannot read {} to send it", self.blob.digest),
            source,
        }
    }

    /// Tries again where that may help, and tells about it.
    async fn retried<T, F: Future<Output = Result<T, BlobError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, BlobError> {
        let mut backoff = Backoff::new(self.bucket.shared.transport.policy);
        loop {
            let error = match attempt().await {
                Err(BlobError::Client(error)) => error,
                done => return done,
            };
            let Some(wait) = backoff.next(&error) else {
                return Err(error.into());
            };
            let told = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            (self.progress)(self.blob, Step::Retry(told, error.reason()));
            sleep(wait).await;
        }
    }

    /// Sends a part of the blob, or all of it, with this digest.
    async fn send(&self, url: &Url, part: Range<u64>, digest: &str) -> Result<Response, BlobError> {
        let length = part.end - part.start;
        let mut request = Request::new(Method::PUT, url.clone());
        self.bucket.signed(&mut request, digest).await?;
        request.headers.insert(CONTENT_LENGTH, length.into());
        let reader = self.source.open(self.blob, part.start).await?.take(length);
        let counter = Counter::default();
        let sent = Arc::clone(&counter);
        let broken: Arc<Mutex<Option<io::Error>>> = Arc::default();
        let told = Arc::clone(&broken);
        let pieces = ReaderStream::with_capacity(reader, PIECE)
            .inspect_ok(move |piece| {
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            })
            .map_err(move |error| {
                let kind = error.kind();
                *lock(&told) = Some(error);
                io::Error::new(kind, "the source of the blob failed")
            });
        let progress = |sent| (self.progress)(self.blob, Step::Bytes(part.start + sent));
        let watch = Watch {
            counter,
            length,
            progress: &progress,
            ..self.bucket.watch()
        };
        let body = match length {
            0 => Body::default(),
            _ => Body::wrap_stream(pieces.boxed()),
        };
        let answer = self.bucket.send(request, body, watch).await;
        // When the source broke, the request broke for that reason and no other.
        if let Some(source) = lock(&broken).take() {
            return Err(self.unreadable(source));
        }
        Ok(answer?)
    }
}

/// Text as it stands in an XML document.
fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}
