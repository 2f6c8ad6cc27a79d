//! The upload of one blob: in one request, taken up again where it broke off, or in chunks (D7.1,
//! D7.2).

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use reqwest::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE,
};
use reqwest::{Body, Method, Url};
use tokio::io::AsyncReadExt as _;
use tokio::time::sleep;
use tokio_util::io::ReaderStream;

use super::Repository;
use super::challenge::Scopes;
use super::error::ClientError;
use super::retry::Backoff;
use super::session::{Memory, Session};
use super::transport::{Answer, lock};
use super::wire::{Counter, Outgoing, PATIENCE, Request, Watch, location};
use crate::blob::{BlobError, BlobSource, Progress, Step};
use crate::digest::Mismatch;
use crate::spec::Descriptor;

/// How much is read from the source at once.
const PIECE: usize = 256 << 10;

/// The first size of a chunk, when one request for all is too large; it is halved while chunks
/// are.
const CHUNK: u64 = 32 << 20;

/// No chunk is made smaller.
const SMALLEST_CHUNK: u64 = 256 << 10;

/// How the bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// All that is left in one request.
    Whole,
    /// In pieces of so many bytes.
    Chunks(u64),
}

/// One blob on its way into a repository.
pub(super) struct Upload<'a> {
    repository: &'a Repository,
    blob: &'a Descriptor,
    source: &'a dyn BlobSource,
    progress: &'a Progress,
    /// Where the upload is remembered for the next process.
    memory: Memory,
    scopes: Scopes,
    mode: Mode,
    /// Bytes that the registry has.
    offset: u64,
    /// Whether an earlier request went to the same session: the registry may have dropped it since.
    resumed: bool,
    /// Whether the credentials have been renewed since there was progress.
    renewed: bool,
    /// The most bytes that the registry ever had: only more than that is progress.
    best: u64,
    restarts: u32,
    backoff: Backoff,
}

/// What to do after a request failed.
enum Next {
    /// Send again from where the registry says it is.
    Resume,
    /// Send all of it again, to a new session.
    Restart,
}

/// Why a request failed: the source, which is not tried again here, or the registry.
enum Failure {
    Source(BlobError),
    Client(ClientError),
}

impl<'a> Upload<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        blob: &'a Descriptor,
        source: &'a dyn BlobSource,
        progress: &'a Progress,
        memory: Memory,
    ) -> Self {
        let forgetful = repository.sessions().is_forgetful(&repository.registry);
        let mode = match forgetful && blob.size > CHUNK {
            true => Mode::Chunks(CHUNK),
            false => Mode::Whole,
        };
        Self {
            repository,
            blob,
            source,
            progress,
            memory,
            scopes: Scopes::push(&repository.repository),
            mode,
            offset: 0,
            resumed: false,
            renewed: false,
            best: 0,
            restarts: 0,
            backoff: Backoff::known(repository.transport().policy),
        }
    }

    /// Sends the blob until the registry has it and has found its digest right; to the upload that
    /// an earlier process left, else to the one that has been opened, if there is one.
    pub(super) async fn run(mut self, opened: Option<Session>) -> Result<(), BlobError> {
        let mut session = self.first(opened).await?;
        let result = self.send_all(&mut session).await;
        match &result {
            // The next process goes on from here.
            Err(BlobError::Client(error))
                if error.is_transient() || error.status() == Some(401) => {}
            Err(_) => {
                self.memory.forget().await;
                self.repository.cancel(session).await;
            }
            Ok(()) => self.memory.forget().await,
        }
        result
    }

    /// The upload to begin with.
    async fn first(&mut self, opened: Option<Session>) -> Result<Session, ClientError> {
        if let Some((mut session, chunk)) = self.memory.load().await
            && self.locate(&mut session).await?
            && self.offset > 0
        {
            if let Some(unused) = opened {
                self.repository.cancel(unused).await;
            }
            self.mode = chunk.map_or(self.mode, Mode::Chunks);
            (self.progress)(self.blob, Step::Resumed(self.offset));
            return Ok(session);
        }
        let session = match opened {
            Some(session) => session,
            None => self.repository.begin().await?,
        };
        self.remember(&session).await;
        Ok(session)
    }

    async fn remember(&self, session: &Session) {
        let chunk = match self.mode {
            Mode::Whole => None,
            Mode::Chunks(size) => Some(size),
        };
        self.memory.save(session, chunk).await;
    }

    async fn send_all(&mut self, session: &mut Session) -> Result<(), BlobError> {
        loop {
            let error = match self.send(session).await {
                Ok(()) => return Ok(()),
                Err(Failure::Source(error)) => return Err(error),
                Err(Failure::Client(error)) => error,
            };
            let broke = error.status().is_none();
            let found = match self.after(error, session).await? {
                Next::Resume => self.locate(session).await?,
                Next::Restart => false,
            };
            if found && broke && self.offset == 0 {
                // Nothing is gained by going on there, and the registry may have dropped it.
                self.repository.cancel(session.clone()).await;
                *session = self.restart().await?;
                continue;
            }
            if found {
                continue;
            }
            // The registry may have the blob, and only its answer was lost.
            if !self.repository.distrusts(self.blob.digest)
                && self.repository.has(self.blob).await?
            {
                return Ok(());
            }
            if broke {
                // It keeps nothing of a request that broke: shorter ones lose less.
                let sessions = self.repository.sessions();
                sessions.found_forgetful(&self.repository.registry);
                self.mode = self.smaller(session).unwrap_or(self.mode);
            }
            *session = self.restart().await?;
        }
    }

    /// Sends what is left and closes the upload.
    async fn send(&mut self, session: &mut Session) -> Result<(), Failure> {
        if let Mode::Chunks(_) = self.mode {
            while self.offset < self.blob.size {
                self.send_chunk(session).await?;
            }
        } else if self.offset > 0 && self.offset < self.blob.size {
            // The final PUT may carry bytes, but not all registries take them after others.
            self.send_range(session, self.blob.size - self.offset)
                .await?;
        }
        let left = self.blob.size - self.offset;
        let mut url = session.location.clone();
        append_digest(&mut url, &self.blob.digest.to_string());
        self.request(Method::PUT, url, left, false).await.map(drop)
    }

    async fn send_chunk(&mut self, session: &mut Session) -> Result<(), Failure> {
        let Mode::Chunks(size) = self.mode else {
            return Ok(());
        };
        let size = size.max(session.smallest).min(self.blob.size - self.offset);
        self.send_range(session, size).await
    }

    /// One PATCH; the answer says where the next goes.
    async fn send_range(&mut self, session: &mut Session, size: u64) -> Result<(), Failure> {
        let url = session.location.clone();
        let answer = self.request(Method::PATCH, url, size, true).await?;
        let next = location(&answer.method, &answer.url, answer.response.headers());
        session.location = next.map_err(Failure::Client)?;
        self.remember(session).await;
        let taken = answer.header(RANGE).and_then(received);
        let taken = taken.unwrap_or(self.offset + size).min(self.offset + size);
        if taken <= self.offset {
            let problem = "the registry took nothing of a chunk";
            let error = ClientError::protocol(&answer.method, &answer.url, problem);
            return Err(Failure::Client(error));
        }
        self.offset = taken;
        self.resumed = true;
        self.advance();
        Ok(())
    }

    /// Notes how far the registry is; progress renews the patience with it.
    fn advance(&mut self) {
        if self.offset > self.best {
            self.best = self.offset;
            self.renewed = false;
            self.backoff.reset();
        }
        (self.progress)(self.blob, Step::Bytes(self.offset));
    }

    /// Sends some bytes of the blob, from a source opened for this one attempt.
    async fn request(
        &self,
        method: Method,
        url: Url,
        size: u64,
        ranged: bool,
    ) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        let octets = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, octets);
        headers.insert(CONTENT_LENGTH, size.into());
        if ranged {
            // Inclusive, and without the word "bytes" (D7.2).
            let range = format!("{}-{}", self.offset, (self.offset + size).saturating_sub(1));
            let value = HeaderValue::from_str(&range).ok();
            headers.extend(value.map(|value| (CONTENT_RANGE, value)));
        }
        if self.mode != Mode::Whole {
            // What cuts connections short, by bytes or by time, counts anew for each chunk.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let counter = Counter::default();
        let broken = Arc::new(Mutex::new(None));
        let body = self.body(size, counter.clone(), broken.clone()).await?;
        let (blob, offset) = (self.blob, self.offset);
        let progress = |sent: u64| {
            if sent > 0 {
                (self.progress)(blob, Step::Bytes(offset + sent));
            }
        };
        let transport = self.repository.transport();
        let watch = Watch {
            counter,
            length: size,
            commit: transport.wire.stall * PATIENCE,
            progress: &progress,
        };
        let outgoing = Outgoing {
            method,
            url,
            headers,
            body,
        };
        let origin = &self.repository.origin;
        let answer = transport
            .stream(origin, &self.scopes, outgoing, watch)
            .await;
        // When the source broke, the request broke for that reason and no other.
        let broken = lock(&broken).take();
        match (broken, answer) {
            (Some(error), _) => Err(Failure::Source(self.source_error(error))),
            (None, answer) => answer.map_err(Failure::Client),
        }
    }

    async fn body(
        &self,
        size: u64,
        counter: Counter,
        broken: Arc<Mutex<Option<io::Error>>>,
    ) -> Result<Body, Failure> {
        if size == 0 {
            return Ok(Body::default());
        }
        let opened = self.source.open(self.blob, self.offset).await;
        let reader = opened.map_err(Failure::Source)?.take(size);
        let (sent, end) = (counter.clone(), self.offset + size);
        let short = stream::once(async move {
            if counter.load(Ordering::Relaxed) == size {
                return Ok(Bytes::new());
            }
            let problem = format!("the content ends before byte {end}");
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem))
        });
        let stream = ReaderStream::with_capacity(reader, PIECE)
            .inspect_ok(move |piece| {
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            })
            .chain(short)
            .try_filter(|piece| future::ready(!piece.is_empty()))
            .map_err(move |error| {
                let told = io::Error::new(error.kind(), "the source of the blob failed");
                *lock(&broken) = Some(error);
                told
            });
        Ok(Body::wrap_stream(stream.boxed()))
    }

    fn source_error(&self, error: io::Error) -> BlobError {
        let mismatch = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Mismatch>());
        match mismatch {
            Some(mismatch) => BlobError::Mismatch(mismatch.clone()),
            None => BlobError::Io {
                action: format!("cannot read {} to push it", self.blob.digest),
                source: error,
            },
        }
    }

    /// Decides what a failure means, and waits where that is to be done.
    async fn after(&mut self, error: ClientError, session: &Session) -> Result<Next, ClientError> {
        let status = error.status();
        match status {
            // The credentials have been renewed by now, the offset may not be where it was.
            Some(401 | 416) if !self.renewed => {
                self.renewed = true;
                return Ok(Next::Resume);
            }
            Some(413) => {
                self.mode = self.smaller(session).ok_or(error)?;
                return Ok(Next::Resume);
            }
            // What was put together from parts may have been put together wrongly, or the
            // registry has forgotten the upload.
            Some(400 | 404 | 410) if self.resumed => {
                self.resumed = false;
                return self.may_restart().then_some(Next::Restart).ok_or(error);
            }
            _ => {}
        }
        let Some(wait) = self.backoff.next(&error) else {
            return Err(error);
        };
        // A proxy may not let the whole pass, and not say so.
        if status.is_none() && self.mode == Mode::Whole && self.backoff.attempt() > 1 {
            self.mode = self.smaller(session).unwrap_or(self.mode);
        }
        self.wait(wait, &error).await;
        Ok(Next::Resume)
    }

    fn may_restart(&mut self) -> bool {
        self.restarts += 1;
        self.restarts <= self.repository.transport().policy.retries
    }

    async fn wait(&self, wait: Duration, error: &ClientError) {
        let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        (self.progress)(self.blob, Step::Retry(milliseconds, error.reason()));
        sleep(wait).await;
    }

    /// The next smaller way to send, after the registry or a proxy found a request too large.
    fn smaller(&self, session: &Session) -> Option<Mode> {
        let size = match self.mode {
            Mode::Whole => CHUNK.min(self.blob.size / 2),
            Mode::Chunks(size) => size / 2,
        };
        (size >= SMALLEST_CHUNK.max(session.smallest)).then_some(Mode::Chunks(size))
    }

    /// Opens a new session; what was sent is lost.
    async fn restart(&mut self) -> Result<Session, ClientError> {
        self.offset = 0;
        (self.progress)(self.blob, Step::Bytes(0));
        let session = self.repository.begin().await?;
        self.remember(&session).await;
        Ok(session)
    }

    /// Asks the registry how much it has (D7.2); false when the session is of no more use.
    async fn locate(&mut self, session: &mut Session) -> Result<bool, ClientError> {
        let request = Request::get(session.location.clone());
        let (transport, origin) = (self.repository.transport(), &self.repository.origin);
        let answer = match transport.call(origin, &self.scopes, &request).await {
            Ok(answer) => answer,
            // Registries that cannot tell, or have dropped the upload.
            Err(ClientError::Refused(refusal)) if refusal.status != 401 => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(offset) = answer.header(RANGE).and_then(received) else {
            return Ok(false);
        };
        if offset > self.blob.size {
            return Ok(false);
        }
        if let Ok(next) = location(&answer.method, &answer.url, answer.response.headers()) {
            session.location = next;
            self.remember(session).await;
        }
        self.offset = offset;
        self.resumed = true;
        self.advance();
        Ok(true)
    }
}

/// Adds the digest to a location as it is: it may hold a query of its own, in any spelling (D7.1).
fn append_digest(url: &mut Url, digest: &str) {
    let query = match url.query() {
        Some(query) if !query.is_empty() => format!("{query}&digest={digest}"),
        _ => format!("digest={digest}"),
    };
    url.set_query(Some(&query));
}

/// The bytes that `Range: 0-99` (or `bytes=0-99`) says have been received. `0-0` is what registries
/// say of an upload without a byte.
fn received(text: &str) -> Option<u64> {
    let (start, end) = text.trim_start_matches("bytes=").split_once('-')?;
    let end: u64 = end.trim().parse().ok()?;
    let count = if end == 0 { 0 } else { end.checked_add(1)? };
    (start.trim() == "0").then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_1_the_digest_is_appended_to_the_query_as_it_is() {
        for (from, expected) in [
            ("https://r/u/1", "https://r/u/1?digest=sha256:0"),
            ("https://r/u/1?", "https://r/u/1?digest=sha256:0"),
            (
                "https://r/u/1?_state=a%2Fb+c&x",
                "https://r/u/1?_state=a%2Fb+c&x&digest=sha256:0",
            ),
        ] {
            let mut url = Url::parse(from).unwrap();
            append_digest(&mut url, "sha256:0");
            assert_eq!(url.as_str(), expected);
        }
    }

    #[test]
    fn d7_2_received_ranges() {
        assert_eq!(received("0-0"), Some(0));
        assert_eq!(received("0-1023"), Some(1024));
        assert_eq!(received("bytes=0-1023"), Some(1024));
        for bad in ["", "0", "5-9", "0-", "x-y", "0-18446744073709551615"] {
            assert_eq!(received(bad), None, "{bad}");
        }
    }
}
