//! Blobs out of a registry: streamed, verified as they come, taken up again where they break off
//! (D5.3).

use std::io;

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderValue, IF_RANGE, RANGE,
};
use reqwest::{StatusCode, Url};
use tokio::time::{Instant, sleep};
use tokio_util::io::StreamReader;

use super::ahead::{FAST, FIRST, LARGE, Lanes};
use super::challenge::Scopes;
use super::error::{ClientError, clean, redact};
use super::retry::Backoff;
use super::transport::{Answer, Endpoint};
use super::wire::{Pace, Request, io_error};
use super::{Notice, Repository};
use crate::blob::{BlobError, BlobReader};
use crate::digest::{Mismatch, Verifier};
use crate::spec::Descriptor;
use crate::spec::media_type::{is_index, is_manifest, is_nondistributable};

/// Opens a blob, an embedded document or a manifest. A blob is verified as it comes if `verify` says
/// so; who keeps it verifies it anyway, and need not pay for that twice.
pub(super) async fn open(
    repository: &Repository,
    blob: &Descriptor,
    offset: u64,
    verify: bool,
) -> Result<BlobReader, BlobError> {
    if let Some(bytes) = blob.embedded() {
        return Ok(from_memory(&bytes, offset));
    }
    if is_manifest(&blob.media_type) || is_index(&blob.media_type) {
        let name = blob.digest.to_string();
        let found = repository.manifest(&name, Some(blob.digest)).await;
        let bytes = found
            .map_err(|error| not_found(repository, blob, error))?
            .bytes;
        let mut verifier = Verifier::new(blob.digest, blob.size);
        verifier.update(&bytes)?;
        verifier.finish()?;
        return Ok(from_memory(&bytes, offset));
    }
    if offset >= blob.size && offset > 0 {
        return Ok(from_memory(&[], 0));
    }
    let mut download = Download::new(repository.clone(), blob.clone(), offset);
    download.verifier = download.verifier.filter(|_| verify);
    let started = download.start().await;
    started.map_err(|error| not_found(repository, blob, error))?;
    repository.remember(blob.digest);
    let pieces = stream::try_unfold(download, |mut download| async move {
        let piece = download.next().await.map_err(io_error)?;
        Ok::<_, io::Error>(piece.map(|piece| (piece, download)))
    });
    Ok(Box::new(StreamReader::new(Box::pin(pieces))))
}

fn from_memory(bytes: &[u8], offset: u64) -> BlobReader {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    Box::new(io::Cursor::new(bytes[start..].to_vec()))
}

fn not_found(repository: &Repository, blob: &Descriptor, error: ClientError) -> BlobError {
    match error {
        error if error.is_not_found() => BlobError::NotFound(blob.digest, repository.to_string()),
        ClientError::Mismatch { source, .. } => BlobError::Mismatch(source),
        error => BlobError::Client(error),
    }
}

/// Where a blob can be had.
#[derive(Clone, Debug)]
enum Place {
    Registry(Endpoint),
    /// An address that a foreign layer names itself; it is asked without credentials.
    Foreign(Url),
}

/// A blob on its way.
#[derive(Debug)]
pub(super) struct Download {
    repository: Repository,
    blob: Descriptor,
    places: Vec<Place>,
    /// Who answered last.
    url: Option<Url>,
    /// Bytes of the blob handed out, or left out as the caller wished.
    position: u64,
    /// Where what is asked for now ends; the blob's end, unless it is large.
    end: u64,
    /// Since when the first part of a large blob is under way.
    first: Option<Instant>,
    /// Further parts.
    lanes: Option<Lanes>,
    /// Whether this is one of them.
    is_part: bool,
    /// Bytes of the present answer that came before `position`.
    skip: u64,
    /// Checks the whole blob; nothing is checked when it was not wanted from its beginning, or when
    /// the caller does that.
    verifier: Option<Verifier>,
    answer: Option<Answer>,
    pace: Pace,
    /// Whether all is asked for at this place, as parts of the blob do not come as asked for.
    whole: bool,
    /// What the server says to be the name of just this content.
    etag: Option<HeaderValue>,
    backoff: Backoff,
    finished: bool,
}

impl Download {
    fn new(repository: Repository, blob: Descriptor, offset: u64) -> Self {
        let large = blob.size.saturating_sub(offset) >= LARGE;
        let mut places: Vec<Place> = repository.places().cloned().map(Place::Registry).collect();
        if is_nondistributable(&blob.media_type) {
            let connections = &repository.transport().wire.connections;
            let urls = blob.urls.iter().filter_map(|url| Url::parse(url).ok());
            let safe = urls.filter(|url| url.scheme() == "https" || connections.is_insecure(url));
            places.extend(safe.map(Place::Foreign));
        }
        Self {
            verifier: (offset == 0).then(|| Verifier::new(blob.digest, blob.size)),
            backoff: Backoff::known(repository.transport().policy),
            end: if large { offset + FIRST } else { blob.size },
            first: large.then(Instant::now),
            repository,
            blob,
            places,
            position: offset,
            url: None,
            lanes: None,
            is_part: false,
            skip: 0,
            answer: None,
            pace: Pace::default(),
            whole: false,
            etag: None,
            finished: false,
        }
    }

    /// A part of the blob, from the place that is asked now.
    pub(super) fn part(&self, start: u64, end: u64) -> Self {
        Self {
            places: self.places.first().cloned().into_iter().collect(),
            end,
            first: None,
            is_part: true,
            etag: self.etag.clone(),
            ..Self::new(self.repository.clone(), self.blob.clone(), start)
        }
    }

    /// Whether a part of the blob is asked for, and not all of it.
    fn asks_for_part(&self) -> bool {
        !self.whole && (self.position > 0 || self.end < self.blob.size)
    }

    /// Asks for the rest of the blob, at the first place that has it.
    pub(super) async fn start(&mut self) -> Result<(), ClientError> {
        loop {
            let Some(place) = self.places.first() else {
                return Err(ClientError::Address(self.repository.to_string()));
            };
            let asked = match self.ask(place).await {
                Ok(answer) => self.accept(&answer).map(|skip| (answer, skip)),
                Err(error) => Err(error),
            };
            let error = match asked {
                Ok((answer, skip)) => {
                    if answer.response.status() == StatusCode::OK {
                        self.end = self.blob.size;
                    }
                    self.etag = self.lasting(&answer).or(self.etag.take());
                    self.url = Some(answer.url.clone());
                    (self.answer, self.skip) = (Some(answer), skip);
                    self.pace = Pace::default();
                    return Ok(());
                }
                Err(error) => error,
            };
            if self.asks_for_part()
                && !self.is_part
                && (error.status() == Some(416) || matches!(error, ClientError::Protocol { .. }))
            {
                self.whole = true;
                self.end = self.blob.size;
                continue;
            }
            if self.places.len() == 1 {
                return Err(error);
            }
            let failed = self.places.remove(0);
            (self.whole, self.etag) = (false, None);
            if let Place::Registry(place) = &failed {
                self.repository.passed_over(place, error);
            }
        }
    }

    async fn ask(&self, place: &Place) -> Result<Answer, ClientError> {
        let transport = self.repository.transport();
        let mut request = match place {
            Place::Registry(endpoint) => {
                let digest = self.blob.digest.to_string();
                Request::get(transport.url(endpoint, &["blobs", &digest]).await?)
            }
            Place::Foreign(url) => Request::get(url.clone()),
        };
        let headers = &mut request.headers;
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if self.asks_for_part() {
            let last = match self.end < self.blob.size {
                true => (self.end - 1).to_string(),
                false => String::new(),
            };
            let range = HeaderValue::from_str(&format!("bytes={}-{last}", self.position));
            headers.extend(range.ok().map(|range| (RANGE, range)));
            headers.extend(self.etag.clone().map(|etag| (IF_RANGE, etag)));
        }
        match place {
            Place::Registry(endpoint) => {
                let scopes = Scopes::pull(&endpoint.repository);
                transport.call(endpoint, &scopes, &request).await
            }
            Place::Foreign(_) => {
                let (url, response) = transport.wire.follow(&request).await?;
                if response.status().is_success() {
                    return Ok(Answer {
                        method: request.method,
                        url,
                        response,
                    });
                }
                Err(transport
                    .wire
                    .refusal(&request.method, &url, response)
                    .await)
            }
        }
    }

    /// The tag of an answer by which the rest can be asked for; only one that names the content,
    /// as others differ between the servers of one registry, which then send all again.
    fn lasting(&self, answer: &Answer) -> Option<HeaderValue> {
        let etag = answer.response.headers().get(ETAG)?;
        let text = etag.to_str().ok()?;
        let names = text.starts_with('"') && text.contains(&self.blob.digest.hex());
        names.then(|| etag.clone())
    }

    /// How much of an answer's body comes before what was asked for.
    fn accept(&self, answer: &Answer) -> Result<u64, ClientError> {
        let wrong = |problem: String| ClientError::protocol(&answer.method, &answer.url, problem);
        let encoding = answer.header(CONTENT_ENCODING).unwrap_or("identity");
        if encoding != "identity" {
            let encoding = clean(encoding, 80);
            return Err(wrong(format!(
                "the blob is encoded as `{encoding}` on top, which was not asked for"
            )));
        }
        match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header(CONTENT_RANGE).unwrap_or_default();
                match content_range(range) {
                    Some((start, last, total))
                        if start == self.position
                            && (start..self.end).contains(&last)
                            && total.is_none_or(|total| total == self.blob.size) =>
                    {
                        Ok(0)
                    }
                    _ => Err(wrong(format!(
                        "asked for the bytes from {} of {}, got `{}`",
                        self.position,
                        self.blob.size,
                        clean(range, 80)
                    ))),
                }
            }
            // The server does not know ranges: everything comes again.
            StatusCode::OK if self.is_part => Err(wrong("all came for a part".to_owned())),
            StatusCode::OK => {
                let length = answer
                    .header(CONTENT_LENGTH)
                    .and_then(|text| text.parse().ok());
                let page = answer
                    .header(CONTENT_TYPE)
                    .is_some_and(|kind| kind.starts_with("text/html"));
                match length {
                    length if page && length != Some(self.blob.size) => Err(ClientError::WebPage {
                        url: redact(&answer.url),
                        what: "blob",
                    }),
                    Some(actual) if actual != self.blob.size => Err(ClientError::Mismatch {
                        url: redact(&answer.url),
                        source: self.wrong_size(actual, false),
                    }),
                    _ => Ok(self.position),
                }
            }
            status => Err(wrong(format!("status {status} for a blob"))),
        }
    }

    fn wrong_size(&self, actual: u64, more: bool) -> Mismatch {
        Mismatch::Size {
            digest: self.blob.digest,
            expected: self.blob.size,
            actual,
            more,
        }
    }

    /// The next bytes; `None` at the end, when size and digest were right.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while !self.finished {
            let read = match self.lanes.take() {
                Some(lanes) => self.read_part(lanes).await,
                None => self.read().await,
            };
            let error = match read {
                Ok(Some(piece)) if piece.is_empty() => continue,
                Ok(Some(piece)) => {
                    self.backoff.reset();
                    return Ok(Some(piece));
                }
                Ok(None) => return Ok(None),
                Err(error) => error,
            };
            self.answer = None;
            let Some(wait) = self.backoff.next(&error) else {
                return Err(error);
            };
            let transport = self.repository.transport();
            transport.notice(&Notice::Retry {
                wait,
                reason: error.reason(),
            });
            sleep(wait).await;
            self.start().await?;
        }
        Ok(None)
    }

    async fn read(&mut self) -> Result<Option<Bytes>, ClientError> {
        let Some(mut answer) = self.answer.take() else {
            return Ok(None);
        };
        let (method, url) = (answer.method.clone(), answer.url.clone());
        let wire = &self.repository.transport().wire;
        let Some(mut piece) = wire
            .chunk(&method, &url, &mut answer.response, &mut self.pace)
            .await?
        else {
            if self.end()? {
                return Ok(None);
            }
            self.go_on().await?;
            return Ok(Some(Bytes::new()));
        };
        let before = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        self.skip -= before as u64;
        let piece = piece.split_off(before);
        self.take(&piece)?;
        self.answer = Some(answer);
        Ok(Some(piece))
    }

    /// Checks what came.
    fn take(&mut self, piece: &Bytes) -> Result<(), ClientError> {
        let seen = self.position + piece.len() as u64;
        let verified = match &mut self.verifier {
            _ if seen > self.end => Err(self.wrong_size(seen, true)),
            Some(verifier) => verifier.update(piece),
            None => Ok(()),
        };
        verified.map_err(|source| self.mismatch(source))?;
        self.position = seen;
        Ok(())
    }

    /// The next of the parts that come side by side.
    async fn read_part(&mut self, mut lanes: Lanes) -> Result<Option<Bytes>, ClientError> {
        match lanes.next().await {
            Some(Ok(piece)) => {
                self.take(&piece)?;
                lanes.refill(self);
                self.lanes = Some(lanes);
                Ok(Some(piece))
            }
            // It was tried again by itself: now the rest comes in one piece.
            Some(Err(_)) => {
                self.start().await?;
                Ok(Some(Bytes::new()))
            }
            None => self.end().map(|_| None),
        }
    }

    /// After the first part of a large blob: the rest in one piece where that is fast, else in
    /// parts side by side.
    async fn go_on(&mut self) -> Result<(), ClientError> {
        let slow = self
            .first
            .take()
            .is_some_and(|since| since.elapsed() > FAST);
        self.end = self.blob.size;
        let room = &self.repository.transport().room;
        if slow && let Some(lanes) = Lanes::open(room, self, self.position, self.end) {
            self.lanes = Some(lanes);
            return Ok(());
        }
        self.start().await
    }

    /// The end of an answer, or a break that looked like one; says whether the blob ends there.
    fn end(&mut self) -> Result<bool, ClientError> {
        if self.position < self.end {
            return Err(ClientError::CutShort {
                url: self.shown(),
                expected: self.end,
                actual: self.position,
            });
        }
        if self.end < self.blob.size && !self.is_part {
            return Ok(false);
        }
        self.finished = true;
        match self.verifier.take().map(Verifier::finish) {
            Some(Err(source)) => Err(self.mismatch(source)),
            _ => Ok(true),
        }
    }

    fn mismatch(&self, source: Mismatch) -> ClientError {
        ClientError::Mismatch {
            url: self.shown(),
            source,
        }
    }

    /// Where it comes from, as it may be shown.
    fn shown(&self) -> String {
        let url = self.url.as_ref().map(redact);
        url.unwrap_or_else(|| self.repository.to_string())
    }
}

/// First and last byte and total of `bytes 5-9/10`; the total may be unknown.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, last.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d5_3_content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(content_range("bytes 0-9/*"), Some((0, 9, None)));
        for bad in [
            "",
            "bytes */10",
            "5-9/10",
            "bytes 5-9",
            "bytes x-9/10",
            "bytes 5-9/x",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
