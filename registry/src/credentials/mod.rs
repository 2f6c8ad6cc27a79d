//! Credentials for registries: docker's and the containers tools' files, their helpers, and the
//! environment (D2).
//!
//! A [`Keychain`] is read once and asked as often as credentials are needed: helpers run each
//! time, since what they give may expire.

mod edit;
mod file;
mod helper;
mod secret;
mod store;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use file::ConfigFile;
use helper::Helper;

use crate::files::is_absent;

pub use secret::{Secret, SecretBytes};
pub use store::{Kept, Server, Store};

/// How to log in to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// Without credentials.
    Anonymous,
    /// With a name and a password, or whatever the registry takes for one.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// With a token that the token server exchanges for others.
    IdentityToken(Secret),
    /// With a token that is sent to the registry as it is.
    RegistryToken(Secret),
}

/// Credentials, and what they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The credentials.
    pub login: Login,
    /// The file and key, or the helper, that has them.
    pub origin: String,
    /// What the helper said on its standard error stream, as one line.
    pub said: String,
}

/// Why credentials cannot be had. No message holds any part of a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read the credentials in `{file}`")]
    Read {
        /// The file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// A file, or variable, is no such configuration.
    #[error("invalid credentials in `{file}`, line {line}, column {column}: {problem}")]
    Syntax {
        /// The file or variable.
        file: String,
        /// Line of the problem, from 1.
        line: usize,
        /// Column of the problem, from 1.
        column: usize,
        /// The kind of problem.
        problem: &'static str,
    },
    /// An entry is damaged.
    #[error("invalid credentials for `{key}` in `{file}`: {problem}")]
    Entry {
        /// The file or variable.
        file: String,
        /// The entry's key.
        key: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A helper that a file names is not installed.
    #[error("`{file}` names the credential helper `{helper}`, which is not installed")]
    HelperMissing {
        /// The file or variable.
        file: String,
        /// The program.
        helper: String,
    },
    /// A helper cannot be run.
    #[error("cannot run the credential helper `{helper}`")]
    HelperStart {
        /// The program.
        helper: String,
        /// Why not.
        source: io::Error,
    },
    /// A helper failed.
    #[error("the credential helper `{helper}` failed for `{server}`: {message}")]
    HelperFailed {
        /// The program.
        helper: String,
        /// What it was asked for.
        server: String,
        /// What it said, without control characters.
        message: String,
    },
    /// A helper did not answer in time.
    #[error(
        "the credential helper `{helper}` did not answer for `{server}` in {seconds} seconds{message}"
    )]
    HelperTimeout {
        /// The program.
        helper: String,
        /// What it was asked for.
        server: String,
        /// How long it was waited for.
        seconds: u64,
        /// What it said on the standard error stream until then, after a colon; or nothing.
        message: String,
    },
    /// A file cannot be written.
    #[error("cannot write the credentials to `{file}`")]
    Write {
        /// The file.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// There is no place for a file of credentials.
    #[error("no HOME is set: there is no place for credentials")]
    NoHome,
    /// A text names no registry.
    #[error("`{0}` is no name of a registry")]
    Server(String),
    /// Something that is no password cannot be kept.
    #[error("nothing but a user with a password or an identity token can be stored")]
    Kind,
    /// A helper's answer is no such answer.
    #[error("the credential helper `{helper}` gave an invalid answer for `{server}`")]
    HelperAnswer {
        /// The program.
        helper: String,
        /// What it was asked for.
        server: String,
    },
}

impl CredentialsError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HelperMissing { file, helper } => Some(format!(
                "install `{helper}`, or take its name out of `{file}`"
            )),
            Self::NoHome => Some("say with DOCKER_CONFIG in which folder".to_owned()),
            Self::Server(_) => {
                Some("it looks like registry.example or registry.example:5000".to_owned())
            }
            _ => None,
        }
    }
}

/// All credentials of a user, the first that has some for a registry counting.
#[derive(Clone, Debug, Default)]
pub struct Keychain {
    files: Vec<ConfigFile>,
    skipped: Vec<PathBuf>,
}

impl Keychain {
    /// Reads all credentials of the user (D2.1, D2.4), in this order: the variable
    /// `DOCKER_AUTH_CONFIG`, the file `REGISTRY_AUTH_FILE`, docker's `config.json` in
    /// `DOCKER_CONFIG` or `~/.docker`, the containers tools' `auth.json` of the session and of
    /// the user, `~/.dockercfg`.
    ///
    /// # Errors
    /// [`CredentialsError`] when one of them is damaged. Those that are not there are passed
    /// over, and so are those that may not be read unless a variable names them: see
    /// [`Keychain::skipped`].
    pub fn load() -> Result<Self, CredentialsError> {
        Self::from_environment(&Environment::current(), Presence::Required)
    }

    /// The same for a login, which makes the file that `REGISTRY_AUTH_FILE` names where it is not
    /// there yet.
    ///
    /// # Errors
    /// As [`Keychain::load`].
    pub fn load_for_login() -> Result<Self, CredentialsError> {
        Self::from_environment(&Environment::current(), Presence::Named)
    }

    /// Reads docker's configuration in a directory, and nothing else.
    ///
    /// # Errors
    /// [`CredentialsError`] when there is a file that cannot be read.
    pub fn from_directory(directory: &Path) -> Result<Self, CredentialsError> {
        let mut keychain = Self::default();
        keychain.read(&directory.join("config.json"), Presence::Optional)?;
        Ok(keychain)
    }

    /// Reads one file, docker's `config.json` or the containers tools' `auth.json`.
    ///
    /// # Errors
    /// [`CredentialsError`] when it cannot be read.
    pub fn from_file(file: &Path) -> Result<Self, CredentialsError> {
        let mut keychain = Self::default();
        keychain.read(file, Presence::Required)?;
        Ok(keychain)
    }

    /// Reads the content of docker's `config.json`.
    ///
    /// # Errors
    /// [`CredentialsError::Syntax`] when it is none.
    pub fn from_docker_config(bytes: &[u8]) -> Result<Self, CredentialsError> {
        Ok(Self {
            files: vec![ConfigFile::parse("config.json".to_owned(), bytes)?],
            skipped: Vec::new(),
        })
    }

    /// A keychain without credentials.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Files in the usual places that may not be read; worth a word where a login fails.
    #[must_use]
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// The credentials for a repository of a registry, `docker.io` being Docker Hub;
    /// [`Login::Anonymous`] when there are none.
    ///
    /// # Errors
    /// [`CredentialsError`] when an entry is damaged or a helper fails.
    pub async fn login(&self, registry: &str, repository: &str) -> Result<Login, CredentialsError> {
        let found = self.find(registry, repository).await?;
        Ok(found.map_or(Login::Anonymous, |found| found.login))
    }

    /// The same, with where they come from; `None` when there are none.
    ///
    /// # Errors
    /// As [`Keychain::login`].
    pub async fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Found>, CredentialsError> {
        for file in &self.files {
            if let Some(found) = find_in(file, registry, repository).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Headers for every request to a registry (D4.5): the `HttpHeaders` of the first file that has
    /// some. Those that say how a message is built or who asks are left out.
    #[must_use]
    pub fn headers(&self) -> Vec<(String, Secret)> {
        let mut all = self.files.iter().map(ConfigFile::headers);
        all.find(|headers| !headers.is_empty()).unwrap_or_default()
    }

    fn from_environment(
        environment: &Environment,
        auth_file: Presence,
    ) -> Result<Self, CredentialsError> {
        let mut keychain = Self::default();
        if let Some(text) = &environment.docker_auth_config {
            let bytes = text.as_encoded_bytes();
            let file = ConfigFile::parse("$DOCKER_AUTH_CONFIG".to_owned(), bytes)?;
            keychain.files.push(file);
        }
        if let Some(file) = &environment.registry_auth_file {
            keychain.read(file, auth_file)?;
        }
        let home = environment.home.as_deref();
        if let Some(file) = environment.docker_file() {
            let presence = match environment.docker_config {
                Some(_) => Presence::Named,
                None => Presence::Optional,
            };
            keychain.read(&file, presence)?;
        }
        let session = match (&environment.xdg_runtime_dir, environment.uid) {
            (Some(directory), _) => Some(directory.join("containers/auth.json")),
            (None, Some(uid)) => Some(PathBuf::from(format!("/run/containers/{uid}/auth.json"))),
            (None, None) => None,
        };
        let config = environment.xdg_config_home.clone();
        let config = config.or_else(|| home.map(|home| home.join(".config")));
        let user = config.map(|config| config.join("containers/auth.json"));
        let legacy = home.map(|home| home.join(".dockercfg"));
        for file in [session, user, legacy].into_iter().flatten() {
            keychain.read(&file, Presence::Optional)?;
        }
        Ok(keychain)
    }

    fn read(&mut self, path: &Path, presence: Presence) -> Result<(), CredentialsError> {
        match ConfigFile::read(path) {
            Ok(file) => self.files.push(file),
            Err(CredentialsError::Read { source, .. })
                if presence != Presence::Required && is_absent(&source) => {}
            Err(CredentialsError::Read { source, .. })
                if presence == Presence::Optional
                    && source.kind() == io::ErrorKind::PermissionDenied =>
            {
                // A container's user is often not whom HOME belongs to.
                self.skipped.push(path.to_owned());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What it means when a file is not there, or may not be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Both are errors.
    Required,
    /// It need not be there.
    Named,
    /// Neither matters.
    Optional,
}

/// The credentials that one file has, or its helpers: a helper of the registry, else the store,
/// else the file's own entries (D2.4).
async fn find_in(
    file: &ConfigFile,
    registry: &str,
    repository: &str,
) -> Result<Option<Found>, CredentialsError> {
    let Some((helper, server)) = file.helper(registry, repository) else {
        return found_in_entries(file, registry, repository);
    };
    let kept = match Helper::new(&helper, &server).get().await {
        // A store that never came along with its file is no reason to ignore the file's entries.
        Err(helper::Failure::NotInstalled) => {
            return match found_in_entries(file, registry, repository)? {
                Some(found) => Ok(Some(found)),
                None => Err(CredentialsError::HelperMissing {
                    file: file.name.clone(),
                    helper,
                }),
            };
        }
        Err(helper::Failure::Error(error)) => return Err(error),
        Ok(kept) => kept,
    };
    match kept.login {
        Some(login) => Ok(Some(Found {
            login,
            origin: format!("{helper}, which {} names", file.name),
            said: kept.said,
        })),
        None => found_in_entries(file, registry, repository),
    }
}

fn found_in_entries(
    file: &ConfigFile,
    registry: &str,
    repository: &str,
) -> Result<Option<Found>, CredentialsError> {
    for (key, entry) in file.entries(registry, repository) {
        if let Some(login) = entry.login(&file.name, key)? {
            let origin = format!("`{key}` in {}", file.name);
            let said = String::new();
            return Ok(Some(Found {
                login,
                origin,
                said,
            }));
        }
    }
    Ok(None)
}

/// What of the environment decides where credentials are looked for.
#[derive(Debug, Default)]
pub(super) struct Environment {
    docker_auth_config: Option<OsString>,
    docker_config: Option<PathBuf>,
    registry_auth_file: Option<PathBuf>,
    xdg_runtime_dir: Option<PathBuf>,
    xdg_config_home: Option<PathBuf>,
    home: Option<PathBuf>,
    uid: Option<u32>,
}

impl Environment {
    /// Docker's file of this user.
    fn docker_file(&self) -> Option<PathBuf> {
        match (&self.docker_config, &self.home) {
            (Some(directory), _) => Some(directory.join("config.json")),
            (None, Some(home)) => Some(home.join(".docker/config.json")),
            (None, None) => None,
        }
    }

    fn current() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name| variable(name).map(PathBuf::from);
        Self {
            docker_auth_config: variable("DOCKER_AUTH_CONFIG"),
            docker_config: path("DOCKER_CONFIG"),
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            home: std::env::home_dir(),
            uid: std::fs::metadata("/proc/self").ok().map(|own| own.uid()),
        }
    }
}
