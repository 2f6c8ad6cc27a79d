//! Answers to challenges: passwords, and tokens that are fetched once however many want them
//! (D3.2, D3.4, D3.5).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::aws::{self, AwsEnvironment};
use super::challenge::{Challenge, Scopes};
use super::error::{ClientError, redact};
use super::login::{LoginFacts, LoginKind};
use super::retry::{Backoff, Policy};
use super::wire::{Request, Wire};
use crate::credentials::{CredentialsError, Keychain, Login, Secret};

/// A token that does not say how long it lives, lives this long (D3.2); so does one that claims
/// less, as docker does.
const LIFETIME: Duration = Duration::from_secs(60);

/// A day is longer than any command runs on one token.
const LONGEST: u64 = 86_400;

/// The largest answer of a token service.
const ANSWER: usize = 256 << 10;

/// The name under which token services know kiln.
const CLIENT_ID: &str = "kiln";

/// What a request wants to be allowed to do, and where.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    /// The registry, as credentials name it.
    pub(super) registry: &'a str,
    /// The repository.
    pub(super) repository: &'a str,
    /// The scopes of a token.
    pub(super) scopes: &'a Scopes,
}

/// Where credentials come from.
pub(super) struct Sources {
    pub(super) keychain: Keychain,
    /// Those that go before the keychain's.
    pub(super) logins: BTreeMap<String, Login>,
    /// What Amazon's registries are asked with where the keychain has nothing.
    pub(super) aws: Option<AwsEnvironment>,
}

/// All credentials in use.
pub(super) struct Auth {
    sources: Sources,
    policy: Policy,
    slots: Mutex<HashMap<Key, Slot>>,
    widened: Mutex<HashMap<(String, Scopes), Scopes>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    registry: String,
    realm: Option<String>,
    service: Option<String>,
    scopes: Scopes,
}

/// Where one token lies; whoever fetches it holds the lock, so that the others wait for it.
type Slot = Arc<tokio::sync::Mutex<State>>;

#[derive(Default)]
struct State {
    generation: u64,
    current: Option<Current>,
}

struct Current {
    header: Option<HeaderValue>,
    expires: Option<Instant>,
    facts: LoginFacts,
}

/// The permission to send one request.
pub(super) struct Ticket {
    /// The value of `Authorization`; none for the anonymous.
    pub(super) header: Option<HeaderValue>,
    /// What is known of the credentials.
    pub(super) facts: LoginFacts,
    slot: Slot,
    generation: u64,
}

impl Ticket {
    /// Drops the credentials after the registry refused them, unless that has happened already.
    pub(super) async fn reject(&self) {
        let mut state = self.slot.lock().await;
        if state.generation == self.generation {
            state.current = None;
        }
    }
}

impl Auth {
    pub(super) fn new(sources: Sources, policy: Policy) -> Self {
        Self {
            sources,
            policy,
            slots: Mutex::default(),
            widened: Mutex::default(),
        }
    }

    /// Credentials for a request, from the last answer to the same challenge where it still holds.
    pub(super) async fn ticket(
        &self,
        wire: &Wire,
        base: &Url,
        challenge: &Challenge,
        wanted: &Wanted<'_>,
    ) -> Result<Ticket, ClientError> {
        let scopes = self.widest(wanted);
        let (realm, service) = match challenge {
            Challenge::Basic => (None, None),
            Challenge::Bearer { realm, service, .. } => (Some(realm.clone()), service.clone()),
        };
        let key = Key {
            registry: wanted.registry.to_owned(),
            realm,
            service,
            // A password does not depend on what is done with it.
            scopes: match challenge {
                Challenge::Basic => Scopes::pull(wanted.repository),
                Challenge::Bearer { .. } => scopes.clone(),
            },
        };
        let slot = lock(&self.slots).entry(key).or_default().clone();
        let mut state = slot.lock().await;
        let fresh = state
            .current
            .as_ref()
            .is_some_and(|current| current.expires.is_none_or(|at| Instant::now() < at));
        if !fresh {
            let current = self.answer(wire, base, challenge, wanted, &scopes).await?;
            state.current = Some(current);
            state.generation += 1;
        }
        let current = state.current.as_ref();
        let header = current.and_then(|current| current.header.clone());
        let facts = current.map(|current| current.facts.clone());
        let facts = facts.unwrap_or_default();
        let generation = state.generation;
        drop(state);
        Ok(Ticket {
            header,
            facts,
            slot,
            generation,
        })
    }

    /// Remembers that a registry wants more for such a request than was asked for.
    pub(super) fn widen(&self, wanted: &Wanted<'_>, challenge: &Challenge) {
        if let Challenge::Bearer {
            scope: Some(scope), ..
        } = challenge
        {
            let known = self.widest(wanted);
            let mut wider = known.clone();
            wider.add(scope);
            if wider != known {
                let key = (wanted.registry.to_owned(), wanted.scopes.clone());
                lock(&self.widened).insert(key, wider);
            }
        }
    }

    fn widest(&self, wanted: &Wanted<'_>) -> Scopes {
        let key = (wanted.registry.to_owned(), wanted.scopes.clone());
        lock(&self.widened)
            .get(&key)
            .unwrap_or(wanted.scopes)
            .clone()
    }

    async fn answer(
        &self,
        wire: &Wire,
        base: &Url,
        challenge: &Challenge,
        wanted: &Wanted<'_>,
        scopes: &Scopes,
    ) -> Result<Current, ClientError> {
        let found = self.find(wire, wanted).await?;
        let facts = found.facts.under(challenge);
        let lasting = |header| Current {
            header,
            expires: None,
            facts: facts.clone(),
        };
        match (challenge, &found.login) {
            (_, Login::RegistryToken(token)) => {
                Ok(lasting(secret_header("Bearer", token.expose())))
            }
            (Challenge::Basic, Login::Basic { username, password }) => Ok(Current {
                expires: found.expires,
                ..lasting(basic(username, password))
            }),
            // Without a user name there is no answer; the registry's refusal says the rest.
            (Challenge::Basic, Login::Anonymous | Login::IdentityToken(_)) => Ok(lasting(None)),
            (Challenge::Bearer { realm, service, .. }, login) => {
                let service = TokenService {
                    wire,
                    registry: wanted.registry,
                    realm: base
                        .join(realm)
                        .map_err(|_| ClientError::Address(realm.clone()))?,
                    service: service.as_deref(),
                    scopes,
                };
                let current = service.fetch(login, self.policy).await?;
                Ok(current.with(facts))
            }
        }
    }

    /// The credentials for a registry, wherever they are.
    async fn find(&self, wire: &Wire, wanted: &Wanted<'_>) -> Result<Held, ClientError> {
        let registry = wanted.registry;
        if let Some(login) = self.sources.logins.get(registry) {
            return Ok(Held::new(login.clone(), None));
        }
        let found = self.sources.keychain.find(registry, wanted.repository);
        match found.await {
            Ok(Some(found)) => {
                let mut held = Held::new(found.login, Some(found.origin));
                held.facts.said = found.said;
                Ok(held)
            }
            Ok(None) => self.ask_aws(wire, registry).await,
            // The helper that is missing would have done no more than kiln does by itself.
            Err(CredentialsError::HelperMissing { .. })
                if self.sources.aws.is_some() && aws::is_ecr(registry) =>
            {
                self.ask_aws(wire, registry).await
            }
            Err(source) => Err(ClientError::Credentials {
                registry: registry.to_owned(),
                source,
            }),
        }
    }

    async fn ask_aws(&self, wire: &Wire, registry: &str) -> Result<Held, ClientError> {
        let anonymous = Held::new(Login::Anonymous, None);
        let Some(environment) = &self.sources.aws else {
            return Ok(anonymous);
        };
        let asked = aws::login(environment, wire, self.policy, registry).await;
        let issued = asked.map_err(|source| ClientError::Aws {
            registry: registry.to_owned(),
            source: Box::new(source),
        })?;
        let Some(issued) = issued else {
            return Ok(anonymous);
        };
        let mut held = Held::new(issued.login, Some(issued.origin));
        if let Some(at) = issued.expires {
            let at = SystemTime::from(at);
            let left = at.duration_since(SystemTime::now()).unwrap_or_default();
            held.expires = Some(Instant::now() + early(left));
            held.facts.expires = Some(at);
        }
        Ok(held)
    }
}

/// Credentials as their source gave them.
struct Held {
    login: Login,
    expires: Option<Instant>,
    facts: LoginFacts,
}

impl Held {
    fn new(login: Login, origin: Option<String>) -> Self {
        let kind = match &login {
            Login::Anonymous => LoginKind::Anonymous,
            Login::Basic { username, .. } => LoginKind::Password(username.clone()),
            Login::IdentityToken(_) => LoginKind::IdentityToken,
            Login::RegistryToken(_) => LoginKind::RegistryToken,
        };
        Self {
            login,
            expires: None,
            facts: LoginFacts {
                kind,
                origin,
                ..LoginFacts::default()
            },
        }
    }
}

impl Current {
    /// With what is known of the login that it was got with.
    fn with(self, login: LoginFacts) -> Self {
        let facts = LoginFacts {
            token_service: self.facts.token_service,
            granted: self.facts.granted,
            expires: self.facts.expires,
            ..login
        };
        Self { facts, ..self }
    }
}

/// How much of a lifetime is used: what ends while a request is under way has ended too early.
fn early(lifetime: Duration) -> Duration {
    Duration::from_secs(lifetime.as_secs().min(LONGEST)) * 9 / 10
}

/// A token service and what is wanted of it.
struct TokenService<'a> {
    wire: &'a Wire,
    registry: &'a str,
    realm: Url,
    service: Option<&'a str>,
    scopes: &'a Scopes,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl TokenService<'_> {
    async fn fetch(&self, login: &Login, policy: Policy) -> Result<Current, ClientError> {
        let safe = self.realm.scheme() == "https" || self.wire.connections.is_insecure(&self.realm);
        if !safe && !matches!(login, Login::Anonymous) {
            return Err(ClientError::UnsafeRealm {
                registry: self.registry.to_owned(),
                realm: redact(&self.realm),
            });
        }
        let answer = match login {
            Login::IdentityToken(token) => match self.ask(&self.post(token), policy).await {
                // D3.5: some services know no POST at all.
                Err(refused) if matches!(refused.status(), Some(401 | 404 | 405)) => {
                    let get = self.get(basic("<token>", token));
                    self.ask(&get, policy).await.map_err(|_| refused)?
                }
                other => other?,
            },
            Login::Basic { username, password } => {
                self.ask(&self.get(basic(username, password)), policy)
                    .await?
            }
            Login::RegistryToken(_) | Login::Anonymous => self.ask(&self.get(None), policy).await?,
        };
        self.read(&answer)
    }

    /// `GET realm?service=..&scope=..`, one `scope` for each repository.
    fn get(&self, authorization: Option<HeaderValue>) -> Request {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in self.scopes.iter() {
                query.append_pair("scope", &scope);
            }
        }
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value);
        }
        Request {
            method: Method::GET,
            url,
            headers,
            body: Bytes::new(),
        }
    }

    fn post(&self, identity: &Secret) -> Request {
        // The address type writes forms, too.
        let mut form = self.realm.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", self.service.unwrap_or_default())
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &self.scopes.to_string())
            .append_pair("refresh_token", identity.expose());
        let body = form.query().unwrap_or_default().to_owned();
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, kind);
        Request {
            method: Method::POST,
            url: self.realm.clone(),
            headers,
            body: body.into(),
        }
    }

    async fn ask(&self, request: &Request, policy: Policy) -> Result<Vec<u8>, ClientError> {
        let mut backoff = Backoff::new(policy);
        loop {
            let error = match self.ask_once(request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match backoff.next(&error) {
                Some(wait) => sleep(wait).await,
                None => {
                    return Err(ClientError::Token {
                        registry: self.registry.to_owned(),
                        realm: redact(&self.realm),
                        source: Box::new(error),
                    });
                }
            }
        }
    }

    async fn ask_once(&self, request: &Request) -> Result<Vec<u8>, ClientError> {
        let (url, answer) = self.wire.follow(request).await?;
        if answer.status().is_success() {
            self.wire.body(&request.method, &url, answer, ANSWER).await
        } else {
            Err(self.wire.refusal(&request.method, &url, answer).await)
        }
    }

    fn read(&self, body: &[u8]) -> Result<Current, ClientError> {
        let unusable = || ClientError::NoToken {
            registry: self.registry.to_owned(),
            realm: redact(&self.realm),
        };
        let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| unusable())?;
        let token = answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token.filter(|token| !token.is_empty()))
            .ok_or_else(unusable)?;
        let header = secret_header("Bearer", &token).ok_or_else(unusable)?;
        let lifetime = answer.expires_in.map_or(LIFETIME, |seconds| {
            Duration::from_secs(seconds).max(LIFETIME)
        });
        let mut facts = LoginFacts::default().with_token(&self.realm, &token);
        if facts.expires.is_none() {
            facts.expires = SystemTime::now().checked_add(lifetime);
        }
        // Counted from now, as `issued_at` is by the clock of another machine.
        Ok(Current {
            header: Some(header),
            expires: Some(Instant::now() + early(lifetime)),
            facts,
        })
    }
}

fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = format!("{username}:{}", password.expose());
    secret_header("Basic", &STANDARD.encode(pair))
}

/// An `Authorization` that is not printed; `None` when the text cannot stand in a header.
fn secret_header(scheme: &str, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
