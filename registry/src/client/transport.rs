//! The one way of every request: which host and scheme, credentials, retries.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, Url};
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use super::ahead::Room;
use super::auth::{Auth, Ticket, Wanted};
use super::challenge::{Challenge, Scopes};
use super::error::{ClientError, clean};
use super::login::LoginFacts;
use super::quota::Quotas;
use super::retry::{Backoff, Policy};
use super::wire::{Outgoing, Request, Watch, Wire};
use super::{Notice, Observer};
use crate::credentials::{Keychain, Secret};

/// A host that speaks plain http may leave a TLS greeting unanswered: this long is waited for it
/// where plain http is allowed as well.
const TLS_PROBE: Duration = Duration::from_secs(10);

/// The most different warnings that are kept.
const WARNINGS: usize = 100;

/// A repository at one host: the registry itself, or a mirror of it.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The registry, as credentials name it.
    pub(super) registry: String,
    /// Host and port, with the scheme before it where that is given.
    pub(super) address: String,
    /// The repository's path at this host.
    pub(super) repository: String,
    /// The file that forbids the registry.
    pub(super) blocked: Option<Arc<Path>>,
}

/// What is known of a host.
#[derive(Debug)]
pub(super) struct Host {
    /// Its root, `https://host:port/`.
    base: Url,
    /// What it asked for last.
    challenge: Mutex<Option<Challenge>>,
}

/// The head of an answer, and who gave it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) response: Response,
}

impl Answer {
    /// A header's text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Whole {
    /// A header's text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What all repositories of a client share.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) wire: Wire,
    pub(super) policy: Policy,
    auth: Auth,
    /// Sent to registries with everything (D4.5); each is a secret.
    headers: HeaderMap,
    hosts: Mutex<HashMap<String, Arc<OnceCell<Arc<Host>>>>>,
    warnings: Mutex<BTreeSet<String>>,
    pub(super) quotas: Quotas,
    pub(super) room: Room,
    observer: Observer,
}

impl Transport {
    pub(super) fn new(
        wire: Wire,
        policy: Policy,
        auth: Auth,
        headers: HeaderMap,
        observer: Observer,
    ) -> Self {
        Self {
            wire,
            policy,
            auth,
            headers,
            hosts: Mutex::default(),
            warnings: Mutex::default(),
            quotas: Quotas::default(),
            room: Room::default(),
            observer,
        }
    }

    /// Tells whoever listens.
    pub(super) fn notice(&self, notice: &Notice) {
        self.observer.tell(notice);
    }

    /// The warnings that registries have sent so far (D6.2).
    pub(super) fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).iter().cloned().collect()
    }

    /// The address of something in a repository.
    pub(super) async fn url(&self, to: &Endpoint, path: &[&str]) -> Result<Url, ClientError> {
        let mut url = self.host(to).await?.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().push("v2");
            segments.extend(to.repository.split('/')).extend(path);
        }
        Ok(url)
    }

    /// Sends a request, again where that may help, and gives its answer if that is a success.
    pub(super) async fn call(
        &self,
        to: &Endpoint,
        scopes: &Scopes,
        request: &Request,
    ) -> Result<Answer, ClientError> {
        // It is asked with retries of its own.
        self.host(to).await?;
        let mut backoff = Backoff::known(self.policy);
        loop {
            let error = match self.attempt(to, scopes, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            self.pause(&mut backoff, error).await?;
        }
    }

    /// Sends a request and reads all of its answer, at most `limit` bytes; again where that may help,
    /// also when the answer breaks off.
    pub(super) async fn read(
        &self,
        to: &Endpoint,
        scopes: &Scopes,
        request: &Request,
        limit: usize,
    ) -> Result<Whole, ClientError> {
        self.host(to).await?;
        let mut backoff = Backoff::known(self.policy);
        loop {
            let error = match self.read_once(to, scopes, request, limit).await {
                Ok(whole) => return Ok(whole),
                Err(error) => error,
            };
            self.pause(&mut backoff, error).await?;
        }
    }

    async fn read_once(
        &self,
        to: &Endpoint,
        scopes: &Scopes,
        request: &Request,
        limit: usize,
    ) -> Result<Whole, ClientError> {
        let Answer {
            method,
            url,
            response,
        } = self.attempt(to, scopes, request).await?;
        let headers = response.headers().clone();
        let body = self.wire.body(&method, &url, response, limit).await?;
        Ok(Whole { url, headers, body })
    }

    /// Waits before another attempt, and tells about it; gives the error back where there is to be
    /// none.
    async fn pause(&self, backoff: &mut Backoff, error: ClientError) -> Result<(), ClientError> {
        let Some(wait) = backoff.next(&error) else {
            return Err(error);
        };
        self.notice(&Notice::Retry {
            wait,
            reason: error.reason(),
        });
        sleep(wait).await;
        Ok(())
    }

    /// Sends a request once, or twice where new credentials are wanted.
    pub(super) async fn attempt(
        &self,
        to: &Endpoint,
        scopes: &Scopes,
        request: &Request,
    ) -> Result<Answer, ClientError> {
        let host = self.host(to).await?;
        let mut renewed = false;
        loop {
            let ticket = self.ticket(&host, to, scopes, &request.url).await?;
            let mut request = request.clone();
            self.authorize(&host, &request.url, &mut request.headers, ticket.as_ref());
            let (url, response) = self.wire.follow(&request).await?;
            let refused = response.status() == 401 && url.origin() == host.base.origin();
            if refused && !renewed && self.renew(&host, to, scopes, ticket, &response).await {
                renewed = true;
                continue;
            }
            if request.url.path().contains("/manifests/") {
                let (success, headers) = (response.status().is_success(), response.headers());
                let registry = to.registry.as_str();
                self.quotas
                    .note(registry, &request.method, success, headers);
            }
            return self.judge(request.method, url, response).await;
        }
    }

    /// Sends a body that cannot be sent again, once. After a 401 the next request has new
    /// credentials.
    pub(super) async fn stream(
        &self,
        to: &Endpoint,
        scopes: &Scopes,
        mut outgoing: Outgoing,
        watch: Watch<'_>,
    ) -> Result<Answer, ClientError> {
        let host = self.host(to).await?;
        let (method, url) = (outgoing.method.clone(), outgoing.url.clone());
        let ticket = self.ticket(&host, to, scopes, &url).await?;
        self.authorize(&host, &url, &mut outgoing.headers, ticket.as_ref());
        let response = self.wire.send(outgoing, watch).await?;
        if response.status() == 401 && url.origin() == host.base.origin() {
            self.renew(&host, to, scopes, ticket, &response).await;
        }
        self.judge(method, url, response).await
    }

    /// Adds what the registry is to know; to any other host nothing of it is sent.
    fn authorize(&self, host: &Host, url: &Url, headers: &mut HeaderMap, ticket: Option<&Ticket>) {
        headers.remove(AUTHORIZATION);
        if url.origin() != host.base.origin() {
            return;
        }
        headers.extend(self.headers.clone());
        if let Some(value) = ticket.and_then(|ticket| ticket.header.clone()) {
            headers.insert(AUTHORIZATION, value);
        }
    }

    /// Credentials for an address; none for any host but the registry's own (D3.4).
    async fn ticket(
        &self,
        host: &Host,
        to: &Endpoint,
        scopes: &Scopes,
        url: &Url,
    ) -> Result<Option<Ticket>, ClientError> {
        let challenge = lock(&host.challenge).clone();
        let Some(challenge) = challenge.filter(|_| url.origin() == host.base.origin()) else {
            return Ok(None);
        };
        let wanted = to.wanted(scopes);
        let ticket = self
            .auth
            .ticket(&self.wire, &host.base, &challenge, &wanted);
        ticket.await.map(Some)
    }

    /// Makes ready for another attempt after a 401; false when there is nothing else to try.
    async fn renew(
        &self,
        host: &Host,
        to: &Endpoint,
        scopes: &Scopes,
        ticket: Option<Ticket>,
        response: &Response,
    ) -> bool {
        let challenges = Challenge::all(response.headers());
        let challenge = Challenge::best(&challenges).cloned();
        if let Some(challenge) = &challenge {
            self.auth.widen(&to.wanted(scopes), challenge);
            *lock(&host.challenge) = Some(challenge.clone());
        }
        let asked = ticket.is_some();
        if let Some(ticket) = ticket {
            ticket.reject().await;
        }
        asked || challenge.is_some()
    }

    /// Passes a success on and makes an error of everything else.
    async fn judge(
        &self,
        method: Method,
        url: Url,
        response: Response,
    ) -> Result<Answer, ClientError> {
        self.collect_warnings(response.headers());
        if response.status().is_success() {
            return Ok(Answer {
                method,
                url,
                response,
            });
        }
        Err(self.wire.refusal(&method, &url, response).await)
    }

    fn collect_warnings(&self, headers: &HeaderMap) {
        for value in headers.get_all("warning") {
            let text = String::from_utf8_lossy(value.as_bytes());
            let Some(text) = text
                .strip_prefix("299 ")
                .and_then(|rest| rest.split_once('"'))
            else {
                continue;
            };
            let text = clean(text.1.trim_end().trim_end_matches('"'), 500).replace("\\\"", "\"");
            let mut warnings = lock(&self.warnings);
            if warnings.len() < WARNINGS && warnings.insert(text.clone()) {
                drop(warnings);
                self.notice(&Notice::Warning(text));
            }
        }
    }

    /// What is known of an endpoint's host; it is asked when it is first wanted.
    async fn host(&self, to: &Endpoint) -> Result<Arc<Host>, ClientError> {
        if let Some(file) = &to.blocked {
            return Err(ClientError::Blocked {
                registry: to.registry.clone(),
                file: file.to_path_buf(),
            });
        }
        let cell = lock(&self.hosts)
            .entry(to.address.clone())
            .or_default()
            .clone();
        let host = cell.get_or_try_init(|| self.ping(&to.address)).await?;
        Ok(host.clone())
    }

    /// Asks `/v2/` which scheme is spoken and which credentials are wanted (D3.1, D4.2).
    async fn ping(&self, address: &str) -> Result<Arc<Host>, ClientError> {
        let mut backoff = Backoff::new(self.policy);
        loop {
            let error = match self.ping_once(address).await {
                Ok(host) => return Ok(Arc::new(host)),
                Err(error) => error,
            };
            self.pause(&mut backoff, error).await?;
        }
    }

    async fn ping_once(&self, address: &str) -> Result<Host, ClientError> {
        let parse = |text: &str| {
            let url = Url::parse(text).ok().filter(Url::has_host);
            url.ok_or_else(|| ClientError::Address(address.to_owned()))
        };
        if address.contains("://") {
            return self.greet(parse(address)?).await;
        }
        let secure = parse(&format!("https://{address}/"))?;
        self.wire.connections.look_up(&secure).await;
        if !self.wire.connections.is_insecure(&secure) {
            return self.greet(secure).await;
        }
        match timeout(TLS_PROBE, self.greet(secure)).await {
            Ok(Ok(host)) => Ok(host),
            Ok(Err(error @ ClientError::Refused(_))) => Err(error),
            Ok(Err(_)) | Err(_) => self.greet(parse(&format!("http://{address}/"))?).await,
        }
    }

    async fn greet(&self, base: Url) -> Result<Host, ClientError> {
        let mut url = base.clone();
        url.set_path("/v2/");
        let mut request = Request::get(url);
        request.headers = self.headers.clone();
        let (url, response) = self.wire.follow(&request).await?;
        let challenges = Challenge::all(response.headers());
        let challenge = match response.status().as_u16() {
            401 => Challenge::best(&challenges).cloned(),
            408 | 429 | 500.. => {
                return Err(self.wire.refusal(&request.method, &url, response).await);
            }
            // Some registries know no `/v2/`; what they want shows at the first request.
            _ => None,
        };
        self.collect_warnings(response.headers());
        Ok(Host {
            base,
            challenge: Mutex::new(challenge),
        })
    }

    /// Asks `/v2/` with credentials, to see whether they are accepted; what is known of them, where
    /// the registry asks for any.
    pub(super) async fn check(
        &self,
        to: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<LoginFacts>, ClientError> {
        let host = self.host(to).await?;
        let mut url = host.base.clone();
        url.set_path("/v2/");
        self.call(to, scopes, &Request::get(url.clone())).await?;
        let ticket = self.ticket(&host, to, scopes, &url).await?;
        Ok(ticket.map(|ticket| ticket.facts))
    }
}

impl Endpoint {
    fn wanted<'a>(&'a self, scopes: &'a Scopes) -> Wanted<'a> {
        Wanted {
            registry: &self.registry,
            repository: &self.repository,
            scopes,
        }
    }
}

impl Request {
    /// A plain `GET`.
    pub(super) fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    /// A request without headers and body.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

/// The headers that the user's files add to every request (D4.5); a name or value that cannot stand
/// in one is left out.
pub(super) fn own_headers(keychain: &Keychain) -> HeaderMap {
    let parse = |(name, value): (String, Secret)| {
        let name: HeaderName = name.parse().ok()?;
        let mut value = HeaderValue::from_str(value.expose()).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    keychain.headers().into_iter().filter_map(parse).collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
