//! Where credentials are kept: docker's file or the containers tools', or the helper that it names
//! (D2.1, D2.2, D2.6).

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::edit::Object;
use super::file::{ConfigFile, HUB_KEY};
use super::helper::{Failure, Helper, TOKEN_USER};
use super::{CredentialsError, Environment, Login, Secret};
use crate::files;
use crate::reference::{DOCKER_HUB, Parts};

/// The members of an entry that hold credentials.
const SECRETS: [&str; 5] = [
    "auth",
    "username",
    "password",
    "identitytoken",
    "registrytoken",
];

/// What credentials are for: a registry, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The registry, `docker.io` being Docker Hub.
    pub registry: String,
    /// The beginning of the repositories that are meant; `None` for all.
    pub scope: Option<String>,
}

impl Server {
    /// Reads what a user names: a host, with a port or a part of the repositories; a URL is taken
    /// for its host (D1.7).
    ///
    /// # Errors
    /// [`CredentialsError::Server`] when it names none.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        let wrong = || CredentialsError::Server(text.to_owned());
        let address = ["https://", "http://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let rest = address.unwrap_or(text);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            host => host,
        };
        let path = match path.trim_end_matches('/') {
            "" | "v1" | "v2" => None,
            _ if address.is_some() => None,
            path => Some(path),
        };
        let probe = format!("{host}/{}", path.unwrap_or("x"));
        let parts = Parts::raw(&probe).map_err(|_| wrong())?;
        if parts.domain != host || parts.tag.is_some() || parts.digest.is_some() {
            return Err(wrong());
        }
        Ok(Self {
            registry: host.to_owned(),
            scope: path.map(str::to_owned),
        })
    }

    /// The key in a file, and what helpers are asked for.
    fn key(&self) -> String {
        match (&self.scope, self.registry.as_str()) {
            (None, DOCKER_HUB) => HUB_KEY.to_owned(),
            (None, registry) => registry.to_owned(),
            (Some(scope), registry) => format!("{registry}/{scope}"),
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "{}/{scope}", self.registry),
            None => f.write_str(&self.registry),
        }
    }
}

/// Where credentials went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Into a file, in the clear.
    File(PathBuf),
    /// To a helper.
    Helper(String),
}

/// The file that logins of this user go to.
#[derive(Clone, Debug)]
pub struct Store {
    file: PathBuf,
}

impl Store {
    /// The file that `REGISTRY_AUTH_FILE` names, else docker's.
    ///
    /// # Errors
    /// [`CredentialsError::NoHome`] when there is no place for it.
    pub fn current() -> Result<Self, CredentialsError> {
        let environment = Environment::current();
        let file = environment.registry_auth_file.clone();
        let file = file.or_else(|| environment.docker_file());
        Ok(Self::at(file.ok_or(CredentialsError::NoHome)?))
    }

    /// A file of one's own choice.
    #[must_use]
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// Keeps credentials: by the helper that the file names, else in the file itself.
    ///
    /// # Errors
    /// [`CredentialsError`] when the helper or the file fails; everything is as it was then.
    pub async fn put(&self, server: &Server, login: &Login) -> Result<Kept, CredentialsError> {
        let (username, secret) = match login {
            Login::Basic { username, password } => (username.as_str(), password),
            Login::IdentityToken(token) => (TOKEN_USER, token),
            Login::Anonymous | Login::RegistryToken(_) => return Err(CredentialsError::Kind),
        };
        let Some((helper, name)) = self.helper(server)? else {
            let entry = Entry::of(username, secret);
            self.edit(server, move |entries, keys, key| {
                for other in keys.iter().filter(|other| *other != key) {
                    entries.remove(other);
                }
                entry.write(entries.object(key)?);
                Ok(true)
            })
            .await?;
            return Ok(Kept::File(self.file.clone()));
        };
        let stored = Helper::new(&helper, &name).store(username, secret).await;
        stored.map_err(|failure| self.failed(failure, &helper))?;
        // As docker does: an empty entry says that there is a login.
        self.edit(server, |entries, _, key| {
            let entry = entries.object(key)?;
            entry.remove_all(&SECRETS);
            Ok(true)
        })
        .await?;
        Ok(Kept::Helper(helper))
    }

    /// Forgets credentials; whether there were any.
    ///
    /// # Errors
    /// [`CredentialsError`] when the helper or the file fails.
    pub async fn remove(&self, server: &Server) -> Result<bool, CredentialsError> {
        let mut known = false;
        if let Some((helper, name)) = self.helper(server)? {
            match Helper::new(&helper, &name).erase().await {
                Ok(erased) => known |= erased,
                // What is in the file can be forgotten all the same.
                Err(Failure::NotInstalled) => {}
                Err(failure) => return Err(self.failed(failure, &helper)),
            }
        }
        // No folder is made for a file that is not there.
        if !self.file.exists() {
            return Ok(known);
        }
        let listed = self.edit(server, |entries, keys, _| Ok(entries.remove_all(keys)));
        Ok(listed.await? || known)
    }

    /// The helper for a server, and the server's name there.
    fn helper(&self, server: &Server) -> Result<Option<(String, String)>, CredentialsError> {
        let (config, _) = self.read()?;
        let scope = server.scope.as_deref().unwrap_or_default();
        let found = config.helper(&server.registry, scope);
        Ok(found.map(|(helper, name)| match server.scope {
            Some(_) => (helper, server.key()),
            None => (helper, name),
        }))
    }

    fn failed(&self, failure: Failure, helper: &str) -> CredentialsError {
        match failure {
            Failure::Error(error) => error,
            Failure::NotInstalled => CredentialsError::HelperMissing {
                file: self.name(),
                helper: helper.to_owned(),
            },
        }
    }

    fn name(&self) -> String {
        self.file.display().to_string()
    }

    /// The file as it means and as it is written; a missing one is empty.
    fn read(&self) -> Result<(ConfigFile, Vec<u8>), CredentialsError> {
        let bytes = match files::read(&self.file) {
            Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => b"{}".to_vec(),
            Ok(bytes) => bytes,
            Err(error) if files::is_absent(&error) => b"{}".to_vec(),
            Err(source) => {
                return Err(CredentialsError::Read {
                    file: self.name(),
                    source,
                });
            }
        };
        Ok((ConfigFile::parse(self.name(), &bytes)?, bytes))
    }

    /// Changes the entries of the file, given the keys that mean the server and the one to write.
    async fn edit(
        &self,
        server: &Server,
        change: impl FnOnce(&mut Object, &[String], &str) -> Result<bool, serde_json::Error>
        + Send
        + 'static,
    ) -> Result<bool, CredentialsError> {
        let (store, server) = (self.clone(), server.clone());
        // Locking and syncing may take their time.
        tokio::task::spawn_blocking(move || store.edit_now(&server, change))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn edit_now(
        &self,
        server: &Server,
        change: impl FnOnce(&mut Object, &[String], &str) -> Result<bool, serde_json::Error>,
    ) -> Result<bool, CredentialsError> {
        let not_written = |source| CredentialsError::Write {
            file: self.name(),
            source,
        };
        let folder = self.file.parent().unwrap_or(Path::new("."));
        // Two logins at once must not lose one of them.
        let _locked = lock(folder).map_err(not_written)?;
        let (config, bytes) = self.read()?;
        let malformed = |_| CredentialsError::Syntax {
            file: self.name(),
            line: 1,
            column: 1,
            problem: "a value of the wrong type",
        };
        let mut content: Object = serde_json::from_slice(&bytes).map_err(malformed)?;
        let keys = config.keys(&server.registry, server.scope.as_deref());
        let entries = content.object("auths").map_err(malformed)?;
        if !change(entries, &keys, &server.key()).map_err(malformed)? {
            return Ok(false);
        }
        let bytes = content.write().map_err(malformed)?;
        files::replace(&self.file, &bytes).map_err(not_written)?;
        Ok(true)
    }
}

/// Makes a folder for its owner alone, and keeps others that do the same out of it.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let opened = File::open(folder)?;
    // Some file systems know no locks; the file is replaced as a whole even so.
    drop(opened.lock());
    Ok(opened)
}

/// What stands in a file for credentials.
struct Entry {
    auth: Option<String>,
    identity: Option<String>,
}

impl Entry {
    fn of(username: &str, secret: &Secret) -> Self {
        if username == TOKEN_USER {
            return Self {
                auth: None,
                identity: Some(secret.expose().to_owned()),
            };
        }
        let pair = format!("{username}:{}", secret.expose());
        Self {
            auth: Some(STANDARD.encode(pair)),
            identity: None,
        }
    }

    fn write(self, entry: &mut Object) {
        entry.remove_all(&SECRETS);
        let members = [("auth", self.auth), ("identitytoken", self.identity)];
        for (name, text) in members {
            if let Some(text) = text {
                entry.set(name, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Keychain;
    use std::fs;

    fn basic(password: &str) -> Login {
        Login::Basic {
            username: "u".to_owned(),
            password: Secret::new(password),
        }
    }

    #[test]
    fn d1_7_names_of_servers() {
        for (text, expected) in [
            ("r.example", "r.example -"),
            ("r.example:5000", "r.example:5000 -"),
            ("https://r.example/v1/", "r.example -"),
            ("http://r.example:80/any/path", "r.example:80 -"),
            ("r.example/v2/", "r.example -"),
            ("r.example/team/app", "r.example team/app"),
            ("docker.io", "docker.io -"),
            ("https://index.docker.io/v1/", "docker.io -"),
            ("registry-1.docker.io", "docker.io -"),
            ("localhost", "localhost -"),
            ("[::1]:5000", "[::1]:5000 -"),
        ] {
            let server = Server::parse(text).unwrap();
            let shown = format!(
                "{} {}",
                server.registry,
                server.scope.as_deref().unwrap_or("-")
            );
            assert_eq!(shown, expected, "{text}");
        }
        for wrong in [
            "",
            "/",
            "https://",
            "a b",
            "r.example/Team",
            "r.example/x:1",
            "ftp://r",
            "é",
        ] {
            assert!(Server::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn d2_6_credentials_come_and_go_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/config.json");
        let store = Store::at(file.clone());
        let server = Server::parse("r.example").unwrap();
        assert!(!store.remove(&server).await.unwrap());
        assert!(!folder.path().join("new").exists());

        let kept = store.put(&server, &basic("one")).await.unwrap();
        assert_eq!(kept, Kept::File(file.clone()));
        fs::write(
            &file,
            r#"{"psFormat":"x","auths":{"https://r.example/v1/":{"auth":"b2xkOm9sZA=="},
                "r.example":{"auth":"eDp5","email":"e"},"other":{"auth":"bzpv"}}}"#,
        )
        .unwrap();
        store.put(&server, &basic("p:w")).await.unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(r#""psFormat": "x""#) && text.contains(r#""email": "e""#),
            "{text}"
        );
        assert!(!text.contains("v1"), "{text}");
        let keychain = Keychain::from_file(&file).unwrap();
        assert_eq!(
            keychain.login("r.example", "a").await.unwrap(),
            basic("p:w")
        );

        let part = Server::parse("r.example/team").unwrap();
        let token = Login::IdentityToken(Secret::new("t"));
        store.put(&part, &token).await.unwrap();
        let keychain = Keychain::from_file(&file).unwrap();
        assert_eq!(keychain.login("r.example", "team/x").await.unwrap(), token);
        assert_eq!(
            keychain.login("r.example", "a").await.unwrap(),
            basic("p:w")
        );

        assert!(store.remove(&server).await.unwrap());
        let keychain = Keychain::from_file(&file).unwrap();
        assert_eq!(
            keychain.login("r.example", "a").await.unwrap(),
            Login::Anonymous
        );
        assert_eq!(keychain.login("r.example", "team/x").await.unwrap(), token);
        assert!(store.remove(&part).await.unwrap());
        assert!(!store.remove(&part).await.unwrap());
        assert_ne!(
            Keychain::from_file(&file)
                .unwrap()
                .login("other", "x")
                .await
                .unwrap(),
            Login::Anonymous
        );
    }

    #[tokio::test]
    async fn d2_1_a_damaged_file_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let store = Store::at(file.clone());
        let server = Server::parse("r.example").unwrap();
        for damaged in [
            "{",
            "[]",
            r#"{"auths":[1]}"#,
            r#"{"auths":{"r.example":1}}"#,
        ] {
            fs::write(&file, damaged).unwrap();
            assert!(store.put(&server, &basic("p")).await.is_err(), "{damaged}");
            assert_eq!(fs::read_to_string(&file).unwrap(), damaged);
        }
    }

    #[tokio::test]
    async fn d2_1_logins_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let all = (0..20).map(|number| {
            let store = Store::at(file.clone());
            async move {
                let server = Server::parse(&format!("r{number}.example")).unwrap();
                store.put(&server, &basic("p")).await.unwrap();
            }
        });
        futures_util::future::join_all(all).await;
        let keychain = Keychain::from_file(&file).unwrap();
        for number in 0..20 {
            let registry = format!("r{number}.example");
            assert_eq!(keychain.login(&registry, "x").await.unwrap(), basic("p"));
        }
    }
}
