//! Checks of credentials: whether a registry accepts them, and what is known of them (D2.6).

use std::time::SystemTime;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::Client;
use super::challenge::{Challenge, Scopes};
use super::error::{ClientError, clean, redact};
use super::transport::Endpoint;

/// What is known of the credentials that are sent to a registry; never a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginFacts {
    /// The kind of credentials, and the user where there is one.
    pub kind: LoginKind,
    /// The file and key, or the helper, that has them; `None` for the anonymous.
    pub origin: Option<String>,
    /// What the helper said on its standard error stream.
    pub said: String,
    /// The token service that was asked; `None` where passwords are sent as they are, or nothing is.
    pub token_service: Option<String>,
    /// The scopes that the token says it grants; `None` when it does not say.
    pub granted: Option<Vec<String>>,
    /// When they end; `None` when nobody says.
    pub expires: Option<SystemTime>,
}

/// Kinds of credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoginKind {
    /// None are sent.
    #[default]
    Anonymous,
    /// The password of a user.
    Password(String),
    /// A token that is exchanged for others.
    IdentityToken,
    /// A token that is sent as it is.
    RegistryToken,
}

impl Client {
    /// Asks a registry whether it accepts the credentials for it (D2.6).
    ///
    /// # Errors
    /// [`ClientError`] when it does not, or cannot be asked.
    pub async fn check_login(&self, registry: &str) -> Result<(), ClientError> {
        let endpoint = Endpoint::origin(registry, "");
        let transport = &self.shared.transport;
        transport.check(&endpoint, &Scopes::default()).await?;
        Ok(())
    }

    /// The same, for pushes to one of its repositories where that is named, with what is known of
    /// the credentials; `None` for a registry that asks for none.
    ///
    /// # Errors
    /// As [`Client::check_login`].
    pub async fn inspect_login(
        &self,
        registry: &str,
        repository: Option<&str>,
    ) -> Result<Option<LoginFacts>, ClientError> {
        let endpoint = Endpoint::origin(registry, repository.unwrap_or_default());
        let scopes = repository.map_or_else(Scopes::default, Scopes::push);
        self.shared.transport.check(&endpoint, &scopes).await
    }
}

impl LoginFacts {
    /// Adds what a token and its service say.
    pub(super) fn with_token(mut self, realm: &reqwest::Url, token: &str) -> Self {
        self.token_service = Some(redact(realm));
        if let Some(claims) = Claims::read(token) {
            self.granted = Some(claims.scopes());
            let end = claims.exp.and_then(|at| u64::try_from(at).ok());
            self.expires = end.and_then(|seconds| {
                SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds))
            });
        }
        self
    }

    /// The facts as a challenge makes them: a password that is never sent tells nothing.
    pub(super) fn under(self, challenge: &Challenge) -> Self {
        match (challenge, &self.kind) {
            (Challenge::Basic, LoginKind::IdentityToken) => Self {
                kind: LoginKind::Anonymous,
                ..self
            },
            _ => self,
        }
    }
}

/// What a token of the distribution specification's kind says. It is not verified, which is the
/// registry's part; nothing is decided by it.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    exp: Option<i64>,
    #[serde(default)]
    access: Option<Vec<Access>>,
}

#[derive(Deserialize)]
struct Access {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    actions: Vec<String>,
}

impl Claims {
    fn read(token: &str) -> Option<Self> {
        let lenient = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        let payload = token.split('.').nth(1)?;
        let payload = GeneralPurpose::new(&URL_SAFE, lenient).decode(payload);
        serde_json::from_slice(&payload.ok()?).ok()
    }

    fn scopes(&self) -> Vec<String> {
        let access = self.access.iter().flatten().take(100);
        access
            .map(|one| {
                let text = format!("{}:{}:{}", one.kind, one.name, one.actions.join(","));
                clean(&text, 500)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_3_what_a_token_grants() {
        let payload = r#"{"exp":1700000000,"access":[{"type":"repository","name":"a/b","actions":["pull","push"]}]}"#;
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload);
        let realm = reqwest::Url::parse("https://u:p@auth.example/token?x=hunter2").unwrap();
        let facts = LoginFacts::default().with_token(&realm, &format!("e30.{payload}.c2ln"));
        assert_eq!(facts.granted.unwrap(), ["repository:a/b:pull,push"]);
        let end = facts.expires.unwrap();
        let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(end.as_secs(), 1_700_000_000);
        assert_eq!(facts.token_service.unwrap(), "https://auth.example/token");
        for opaque in ["", "abc", "a.b.c", "a.e30"] {
            let facts = LoginFacts::default().with_token(&realm, opaque);
            assert!(facts.granted.unwrap_or_default().is_empty(), "{opaque}");
        }
    }
}
