//! Answers to challenges: passwords, and tokens that are fetched once however many want them
//! (D3.2, D3.4, D3.5).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::challenge::{Challenge, Scopes};
use super::error::{ClientError, redact};
use super::retry::{Backoff, Policy};
use super::wire::{Request, Wire};
use crate::credentials::{Keychain, Login, Secret};

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

/// All credentials in use.
pub(super) struct Auth {
    keychain: Keychain,
    logins: BTreeMap<String, Login>,
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
}

/// The permission to send one request.
pub(super) struct Ticket {
    /// The value of `Authorization`; none for the anonymous.
    pub(super) header: Option<HeaderValue>,
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
    pub(super) fn new(keychain: Keychain, logins: BTreeMap<String, Login>, policy: Policy) -> Self {
        Self {
            keychain,
            logins,
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
        let header = state
            .current
            .as_ref()
            .and_then(|current| current.header.clone());
        let generation = state.generation;
        drop(state);
        Ok(Ticket {
            header,
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
        let asked;
        let login = match self.logins.get(wanted.registry) {
            Some(login) => login,
            None => {
                let found = self
                    .keychain
                    .login(wanted.registry, wanted.repository)
                    .await;
                asked = found.map_err(|source| ClientError::Credentials {
                    registry: wanted.registry.to_owned(),
                    source,
                })?;
                &asked
            }
        };
        match (challenge, login) {
            (_, Login::RegistryToken(token)) => Ok(Current {
                header: secret_header("Bearer", token.expose()),
                expires: None,
            }),
            (Challenge::Basic, Login::Basic { username, password }) => Ok(Current {
                header: basic(username, password),
                expires: None,
            }),
            // Without a user name there is no answer; the registry's refusal says the rest.
            (Challenge::Basic, Login::Anonymous | Login::IdentityToken(_)) => Ok(Current {
                header: None,
                expires: None,
            }),
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
                service.fetch(login, self.policy).await
            }
        }
    }
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
            Duration::from_secs(seconds.min(LONGEST)).max(LIFETIME)
        });
        // Counted from now, as `issued_at` is by the clock of another machine; and a tenth early.
        Ok(Current {
            header: Some(header),
            expires: Some(Instant::now() + lifetime * 9 / 10),
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
