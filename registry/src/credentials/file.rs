//! The files that hold credentials, and which of their keys mean a registry (D2.1-D2.3).

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::{CredentialsError, Login, Secret};
use crate::files;
use crate::reference::DOCKER_HUB;

/// Docker Hub's key in files, and what helpers know it as.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Headers that are the client's own.
const RESERVED: [&str; 12] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "content-range",
    "content-type",
    "expect",
    "host",
    "range",
    "transfer-encoding",
    "user-agent",
];

/// One file of credentials, or a variable in its place.
#[derive(Clone)]
pub(super) struct ConfigFile {
    /// What to call it in a message.
    pub(super) name: String,
    content: Content,
}

impl std::fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigFile")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: Option<BTreeMap<String, Entry>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "HttpHeaders")]
    http_headers: Option<BTreeMap<String, String>>,
}

/// One entry of `auths`.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<Self, CredentialsError> {
        let name = path.display().to_string();
        let bytes = files::read(path).map_err(|source| CredentialsError::Read {
            file: name.clone(),
            source,
        })?;
        if path.file_name().is_some_and(|name| name == ".dockercfg") {
            return Self::parse_legacy(name, &bytes);
        }
        Self::parse(name, &bytes)
    }

    /// Parses `config.json` or `auth.json`.
    pub(super) fn parse(name: String, bytes: &[u8]) -> Result<Self, CredentialsError> {
        let content = Self::json(&name, bytes)?;
        Ok(Self { name, content })
    }

    /// Parses `.dockercfg`, which has entries and nothing else.
    fn parse_legacy(name: String, bytes: &[u8]) -> Result<Self, CredentialsError> {
        let content = Content {
            auths: Some(Self::json(&name, bytes)?),
            ..Content::default()
        };
        Ok(Self { name, content })
    }

    fn json<T: for<'a> Deserialize<'a> + Default>(
        name: &str,
        bytes: &[u8],
    ) -> Result<T, CredentialsError> {
        // A file made by `touch` has no credentials.
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(T::default());
        }
        serde_json::from_slice(bytes).map_err(|error| {
            // The parser's own words may quote a value.
            let problem = match error.classify() {
                serde_json::error::Category::Data => "a value of the wrong type",
                _ => "it is not JSON",
            };
            syntax(name.to_owned(), Some(&error), problem)
        })
    }

    /// The helper program for a repository, and what it is to be asked for.
    pub(super) fn helper(&self, registry: &str, repository: &str) -> Option<(String, String)> {
        let helpers = self.content.cred_helpers.iter().flatten();
        let mut keys: Vec<_> = helpers
            .filter_map(|(key, name)| Some((fit(key, registry, repository)?, key, name)))
            .collect();
        keys.sort_by_key(|(fit, _, _)| std::cmp::Reverse(*fit));
        let (scope, name) = match (keys.first(), &self.content.creds_store) {
            // Helpers of a part of a registry are asked for that part.
            (Some((Fit::Scope(_), key, name)), _) => (Some(*key), *name),
            (Some((_, _, name)), _) => (None, *name),
            (None, Some(store)) => (None, store),
            (None, None) => return None,
        };
        if name.is_empty() {
            return None;
        }
        let server = match scope {
            Some(scope) => scope.clone(),
            None if host(registry) == DOCKER_HUB => HUB_KEY.to_owned(),
            None => registry.to_owned(),
        };
        Some((format!("docker-credential-{name}"), server))
    }

    /// What is to be sent with every request.
    pub(super) fn headers(&self) -> Vec<(String, Secret)> {
        let headers = self.content.http_headers.iter().flatten();
        headers
            .filter(|(name, _)| !RESERVED.contains(&name.to_ascii_lowercase().as_str()))
            .map(|(name, value)| (name.clone(), Secret::new(value.clone())))
            .collect()
    }

    /// The keys of all entries for a registry as a whole, or for just a part of it.
    pub(super) fn keys(&self, registry: &str, scope: Option<&str>) -> Vec<String> {
        let keys = self.content.auths.iter().flatten().map(|(key, _)| key);
        keys.filter(|key| match fit(key, registry, scope.unwrap_or_default()) {
            Some(Fit::Scope(length)) => scope.is_some_and(|scope| scope.len() == length),
            Some(_) => scope.is_none(),
            None => false,
        })
        .cloned()
        .collect()
    }

    /// The entries for a repository, best first.
    pub(super) fn entries(&self, registry: &str, repository: &str) -> Vec<(&str, &Entry)> {
        let entries = self.content.auths.iter().flatten();
        let mut fitting: Vec<_> = entries
            .filter_map(|(key, entry)| Some((fit(key, registry, repository)?, key.as_str(), entry)))
            .collect();
        fitting.sort_by_key(|(fit, _, _)| std::cmp::Reverse(*fit));
        fitting
            .into_iter()
            .map(|(_, key, entry)| (key, entry))
            .collect()
    }
}

impl Entry {
    /// The credentials; `None` when the entry is empty, as where a store has them.
    pub(super) fn login(&self, file: &str, key: &str) -> Result<Option<Login>, CredentialsError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Login::RegistryToken(Secret::new(token))));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Login::IdentityToken(Secret::new(token))));
        }
        let (username, password) = match given(&self.auth) {
            Some(auth) => decode(&auth).map_err(|problem| CredentialsError::Entry {
                file: file.to_owned(),
                key: key.to_owned(),
                problem,
            })?,
            None => (
                self.username.clone().unwrap_or_default(),
                self.password.clone().unwrap_or_default(),
            ),
        };
        if username.is_empty() && password.is_empty() {
            return Ok(None);
        }
        Ok(Some(Login::Basic {
            username,
            password: Secret::new(password),
        }))
    }
}

/// Name and password of `auth`, parted at the first colon (D2.2).
fn decode(auth: &str) -> Result<(String, String), &'static str> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    // Secrets pasted from other tools come wrapped, or with a line end.
    let packed: Vec<u8> = auth.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let bytes = GeneralPurpose::new(&STANDARD, lenient)
        .decode(packed)
        .map_err(|_| "`auth` is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "`auth` is not UTF-8")?;
    let (username, password) = text
        .split_once(':')
        .ok_or("`auth` has no colon between name and password")?;
    Ok((username.to_owned(), password.trim_matches('\0').to_owned()))
}

/// How well a key fits a repository; the greatest fits best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fit {
    /// Another spelling of the registry, as a URL with any path.
    Address,
    /// Another of the usual spellings of the registry (D2.3).
    Spelling,
    /// The registry's key as docker writes it.
    Registry,
    /// A part of the registry, so many characters of the repository (D2.4).
    Scope(usize),
}

fn fit(key: &str, registry: &str, repository: &str) -> Option<Fit> {
    let registry = host(registry);
    let schemes = ["https://", "http://"];
    let address = schemes.iter().find_map(|scheme| key.strip_prefix(scheme));
    let rest = address.unwrap_or(key);
    let (key_host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host(key_host) != registry {
        return None;
    }
    let usual = if registry == DOCKER_HUB {
        HUB_KEY
    } else {
        registry
    };
    if key == usual {
        return Some(Fit::Registry);
    }
    let path = path.trim_end_matches('/');
    match path {
        "" | "v1" | "v2" => Some(Fit::Spelling),
        // Docker Hub's login keeps its own tokens beside the password.
        _ if address.is_some() => (registry != DOCKER_HUB).then_some(Fit::Address),
        scope => repository
            .strip_prefix(scope)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            .then_some(Fit::Scope(scope.len())),
    }
}

/// A registry's host, one for all names of Docker Hub.
fn host(registry: &str) -> &str {
    match registry {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    }
}

fn syntax(
    file: String,
    error: Option<&serde_json::Error>,
    problem: &'static str,
) -> CredentialsError {
    CredentialsError::Syntax {
        file,
        line: error.map_or(1, serde_json::Error::line),
        column: error.map_or(1, serde_json::Error::column),
        problem,
    }
}
