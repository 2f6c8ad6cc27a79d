//! One HTTP exchange: no retries, no redirects, no authentication, but never without an end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Method, Response, Url};
use tokio::time::{Instant, sleep};

use super::error::ClientError;
use super::refusal::Refusal;
use super::retry::asked_wait;
use super::tls::Connections;

/// How much of an error answer is read (D6.1).
const ERROR_BODY: usize = 64 << 10;

/// How often an upload's progress is looked at.
const TICK: Duration = Duration::from_millis(100);

/// The most redirects that are followed for one request.
const REDIRECTS: usize = 10;

/// Registries may take this many times the stall limit to answer a request that they must work on.
pub(super) const PATIENCE: u32 = 5;

/// A body that brings less than this in the time without progress, bytes, is held up on purpose or
/// as good as dead.
const LEAST: u64 = 16 << 10;

/// How a body moves: the wait for it, and what came.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn came(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.bytes >= LEAST {
            *self = Self::default();
        }
    }
}

/// A request whose body can be sent again.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What is sent once.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: reqwest::Body,
}

/// How many bytes of a body have been handed to the connection.
pub(super) type Counter = Arc<AtomicU64>;

/// What is looked at while a body goes out.
pub(super) struct Watch<'a> {
    /// Bytes sent so far.
    pub(super) counter: Counter,
    /// Bytes there are to send.
    pub(super) length: u64,
    /// How long the registry may take to answer once it has them all.
    pub(super) commit: Duration,
    /// Told about the bytes that have gone out.
    pub(super) progress: &'a (dyn Fn(u64) + Send + Sync),
}

/// Sends requests and measures that they move.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) connections: Connections,
    /// No byte for this long is a failure; any total time is fine.
    pub(super) stall: Duration,
}

impl Wire {
    /// Sends a request whose body can be sent again, and follows redirects by hand (D3.4): what is
    /// secret goes to the first host only, and https is never left. Gives the last address, and
    /// the head of its answer, whatever its status.
    pub(super) async fn follow(&self, request: &Request) -> Result<(Url, Response), ClientError> {
        let Request {
            method,
            headers,
            body,
            ..
        } = request;
        let mut headers = headers.clone();
        let mut url = request.url.clone();
        for _ in 0..REDIRECTS {
            let outgoing = Outgoing {
                method: method.clone(),
                url: url.clone(),
                headers: headers.clone(),
                body: body.clone().into(),
            };
            let watch = Watch {
                counter: Counter::default(),
                length: 0,
                commit: if body.is_empty() {
                    self.stall
                } else {
                    self.stall * PATIENCE
                },
                progress: &|_| (),
            };
            let answer = self.send(outgoing, watch).await?;
            let Some(next) = redirect(method, &url, &answer)? else {
                return Ok((url, answer));
            };
            if next.origin() != url.origin() {
                headers = without_secrets(&headers);
            }
            url = next;
        }
        Err(ClientError::protocol(
            method,
            &request.url,
            "too many redirects",
        ))
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    pub(super) async fn send(
        &self,
        outgoing: Outgoing,
        watch: Watch<'_>,
    ) -> Result<Response, ClientError> {
        let Outgoing {
            method,
            url,
            headers,
            body,
        } = outgoing;
        let request = self
            .connections
            .to(&url)
            .await?
            .request(method.clone(), url.clone())
            .headers(headers)
            .body(body)
            .send();
        let mut request = Box::pin(request);
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            tokio::select! {
                answer = &mut request => {
                    (watch.progress)(watch.counter.load(Ordering::Relaxed));
                    return answer.map_err(|error| ClientError::network(&method, &url, error));
                }
                () = sleep(TICK) => {
                    let sent = watch.counter.load(Ordering::Relaxed);
                    let limit = if sent < watch.length { self.stall } else { watch.commit };
                    if sent != seen {
                        (seen, since) = (sent, Instant::now());
                        (watch.progress)(sent);
                    } else if since.elapsed() > limit {
                        return Err(stalled(&method, &url, limit));
                    }
                }
            }
        }
    }

    /// The next piece of an answer's body.
    pub(super) async fn chunk(
        &self,
        method: &Method,
        url: &Url,
        answer: &mut Response,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, ClientError> {
        let (left, started) = (self.stall.saturating_sub(pace.waited), Instant::now());
        match tokio::time::timeout(left, answer.chunk()).await {
            Ok(Ok(chunk)) => {
                pace.came(chunk.as_ref().map_or(0, Bytes::len), started.elapsed());
                Ok(chunk)
            }
            Ok(Err(error)) => Err(ClientError::network(method, url, error)),
            Err(_) => Err(stalled(method, url, self.stall)),
        }
    }

    /// The whole body of an answer, refused when it is larger than `limit` bytes.
    pub(super) async fn body(
        &self,
        method: &Method,
        url: &Url,
        mut answer: Response,
        limit: usize,
    ) -> Result<Vec<u8>, ClientError> {
        let too_large = || ClientError::TooLarge {
            url: super::error::redact(url),
            limit,
        };
        if answer
            .content_length()
            .is_some_and(|length| length > limit as u64)
        {
            return Err(too_large());
        }
        let (mut body, mut pace) = (Vec::new(), Pace::default());
        while let Some(chunk) = self.chunk(method, url, &mut answer, &mut pace).await? {
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Makes an error of an answer; a body that breaks off, or is too long or too slow, is used as
    /// far as it came.
    pub(super) async fn refusal(
        &self,
        method: &Method,
        url: &Url,
        mut answer: Response,
    ) -> ClientError {
        let mut body = Vec::new();
        let read = async {
            while let Ok(Some(chunk)) = answer.chunk().await {
                body.extend_from_slice(&chunk);
                if body.len() > ERROR_BODY {
                    body.truncate(ERROR_BODY);
                    break;
                }
            }
        };
        drop(tokio::time::timeout(self.stall, read).await);
        let mut refusal = Refusal::new(method, url, answer.status().as_u16(), &body);
        refusal.retry_after = asked_wait(answer.headers());
        ClientError::Refused(Box::new(refusal))
    }
}

/// An [`io::Error`] that carries a client's error.
pub(super) fn io_error(error: ClientError) -> io::Error {
    let kind = match &error {
        ClientError::Mismatch { .. } => io::ErrorKind::InvalidData,
        ClientError::Stalled { .. } => io::ErrorKind::TimedOut,
        error if error.is_not_found() => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn stalled(method: &Method, url: &Url, limit: Duration) -> ClientError {
    ClientError::Stalled {
        method: method.clone(),
        url: super::error::redact(url),
        seconds: limit.as_secs(),
    }
}

/// The headers that any host may see.
fn without_secrets(headers: &HeaderMap) -> HeaderMap {
    let open = headers.iter().filter(|(_, value)| !value.is_sensitive());
    open.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Where an answer sends a request on; `None` when it is no redirect that may be followed.
fn redirect(method: &Method, url: &Url, answer: &Response) -> Result<Option<Url>, ClientError> {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    match answer.status().as_u16() {
        307 | 308 => location(method, url, answer.headers()).map(Some),
        301..=303 if reading => location(method, url, answer.headers()).map(Some),
        _ => Ok(None),
    }
}

/// The `Location` of an answer: absolute or relative, never out of https (D7.1).
pub(super) fn location(
    method: &Method,
    url: &Url,
    headers: &HeaderMap,
) -> Result<Url, ClientError> {
    let wrong = |problem: &str| ClientError::protocol(method, url, problem);
    let text = headers
        .get(LOCATION)
        .ok_or_else(|| wrong("there is no `Location`"))?;
    let text = text
        .to_str()
        .map_err(|_| wrong("the `Location` is not text"))?;
    let mut next = url
        .join(text)
        .map_err(|_| wrong("the `Location` is no address"))?;
    if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
        return Err(wrong("the `Location` is no http address"));
    }
    if url.scheme() == "https" && next.scheme() == "http" {
        // A registry behind a proxy that ends TLS often thinks that it is asked by plain http: the
        // same host is asked with https again, anything else would show the content to all.
        let same_host = next.host_str() == url.host_str();
        if !same_host || next.set_scheme("https").is_err() || next.set_port(url.port()).is_err() {
            return Err(ClientError::Downgrade {
                to: super::error::redact(&next),
            });
        }
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(from: &str, to: &str) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, to.parse().unwrap());
        location(&Method::POST, &Url::parse(from).unwrap(), &headers)
            .map(|url| url.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn d7_1_locations_of_every_kind() {
        let from = "https://r:5000/v2/a/blobs/uploads/";
        let cases = [
            (
                "/v2/a/blobs/uploads/1?_state=x%2F",
                "https://r:5000/v2/a/blobs/uploads/1?_state=x%2F",
            ),
            ("1", "https://r:5000/v2/a/blobs/uploads/1"),
            ("https://s/up?sig=1", "https://s/up?sig=1"),
            (
                "http://r/v2/a/blobs/uploads/1",
                "https://r:5000/v2/a/blobs/uploads/1",
            ),
            ("//s/up", "https://s/up"),
        ];
        for (to, expected) in cases {
            assert_eq!(locate(from, to).unwrap(), expected);
        }
    }

    #[test]
    fn https_never_falls_to_http() {
        let error = locate("https://r/v2/", "http://s/up?secret=1").unwrap_err();
        assert_eq!(error, "refused to go from https to `http://s/up`");
        assert!(locate("https://r/v2/", "file:///etc/passwd").is_err());
        assert!(locate("http://r/v2/", "http://s/up").is_ok());
    }
}
