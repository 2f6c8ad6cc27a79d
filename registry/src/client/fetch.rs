//! Files at any address, for `ADD` (A12.3): no registry, and no credentials but those that the
//! address holds.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, LAST_MODIFIED};
use reqwest::{Method, Response, Url};
use tokio::time::sleep;

use super::error::{ClientError, redact};
use super::retry::{Backoff, http_date};
use super::wire::{Pace, Request};
use super::{Client, Notice};

/// A file that is coming in.
#[derive(Debug)]
pub struct Body {
    client: Client,
    url: Url,
    response: Response,
    /// Bytes announced, and bytes that came.
    length: Option<u64>,
    seen: u64,
    pace: Pace,
}

/// An address as it may be shown: without credentials, query and fragment.
#[must_use]
pub fn redacted(address: &str) -> String {
    Url::parse(address).map_or_else(|_| "(not a URL)".to_owned(), |url| redact(&url))
}

impl Client {
    /// Starts to download a file, trying again where that may help; redirects are followed.
    ///
    /// # Errors
    /// [`ClientError`] when the address is none, or the server refuses.
    pub async fn fetch(&self, address: &str) -> Result<Body, ClientError> {
        let url = Url::parse(address).ok().filter(Url::has_host);
        let url = url.ok_or_else(|| ClientError::Address(redacted(address)))?;
        let transport = &self.shared.transport;
        let mut backoff = Backoff::new(transport.policy);
        loop {
            let error = match self.fetch_once(&url).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            let Some(wait) = backoff.next(&error) else {
                return Err(error);
            };
            transport.notice(&Notice::Retry {
                wait,
                reason: error.reason(),
            });
            sleep(wait).await;
        }
    }

    async fn fetch_once(&self, url: &Url) -> Result<Body, ClientError> {
        let wire = &self.shared.transport.wire;
        let (url, response) = wire.follow(&Request::get(url.clone())).await?;
        if !response.status().is_success() {
            return Err(wire.refusal(&Method::GET, &url, response).await);
        }
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|text| text.to_str().ok()?.parse().ok());
        Ok(Body {
            client: self.clone(),
            url,
            response,
            length,
            seen: 0,
            pace: Pace::default(),
        })
    }
}

impl Body {
    /// The next piece of the file; `None` at its end.
    ///
    /// # Errors
    /// [`ClientError`] when the connection breaks or stalls, also when it ends too early.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        let wire = &self.client.shared.transport.wire;
        let chunk = wire
            .chunk(&Method::GET, &self.url, &mut self.response, &mut self.pace)
            .await?;
        if let Some(chunk) = &chunk {
            self.seen += chunk.len() as u64;
        } else if let Some(expected) = self.length.filter(|length| *length != self.seen) {
            return Err(ClientError::CutShort {
                url: redact(&self.url),
                expected,
                actual: self.seen,
            });
        }
        Ok(chunk)
    }

    /// When the server says that the file was changed last.
    #[must_use]
    pub fn last_modified(&self) -> Option<SystemTime> {
        let text = self.response.headers().get(LAST_MODIFIED)?.to_str().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(http_date(text)?))
    }
}
