//! How registries are reached: what docker's and the containers tools' files, and the environment,
//! say of certificates, plain http, mirrors and proxies (D4).
//!
//! Read are, each where it is there and may be read, `ETC` being `/etc` and `CONFIG` being
//! `$XDG_CONFIG_HOME` or `~/.config`:
//!
//! | what | where |
//! |---|---|
//! | `insecure-registries`, `registry-mirrors` | `ETC/docker/daemon.json` and `CONFIG/docker/daemon.json` |
//! | `[[registry]]` | `$CONTAINERS_REGISTRIES_CONF`, else `CONFIG/containers/registries.conf`, else `ETC/containers/registries.conf`; then `registries.conf.d/*.conf` of `ETC`, then of `CONFIG` |
//! | certificates | `certs.d/HOST[:PORT]` in `containers` and `docker`, of `CONFIG` and of `ETC` |
//! | proxies | `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` |

mod certificates;
mod daemon;
mod network;
mod proxy;
mod registries;

use std::io;
use std::path::{Path, PathBuf};

use daemon::Daemon;
use registries::{Pulls, host_of};

pub use certificates::{Certificates, ClientPair};
pub use network::Network;
pub use proxy::Proxies;
pub use registries::Rule;

use crate::files::{self, is_absent};
use crate::reference::{DOCKER_HUB, Reference};

/// The most files of a folder of settings that are read.
const MAX_FILES: usize = 1000;

/// Why settings cannot be used. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file or folder cannot be read.
    #[error("cannot read the settings in `{file}`", file = file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be understood.
    #[error("invalid settings in `{file}`: {problem}", file = file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// A client's certificate without its key, or the other way round.
    #[error("`{file}` is of no use without `{missing}`", file = file.display(), missing = missing.display())]
    Partner {
        /// What is there.
        file: PathBuf,
        /// What must stand beside it.
        missing: PathBuf,
    },
    /// A variable is no address of a proxy.
    #[error("the variable {variable} holds no address of a proxy")]
    Proxy {
        /// Its name.
        variable: String,
    },
}

impl SettingsError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Partner { .. } => Some(
                "a client's certificate ends in `.cert` and its key in `.key`, under one name; authorities end in `.crt`".to_owned(),
            ),
            Self::Proxy { .. } => Some(
                "it looks like http://proxy.example:3128; socks5:// is known, too".to_owned(),
            ),
            _ => None,
        }
    }
}

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Hosts, hosts with ports, or ranges of addresses, whose certificate is not checked and that
    /// may speak plain http.
    pub insecure: Vec<String>,
    /// Addresses of mirrors of Docker Hub, in order.
    pub hub_mirrors: Vec<String>,
    /// Which proxy is asked.
    pub proxies: Proxies,
    /// Folders with a folder of certificates for each registry.
    pub certificate_folders: Vec<PathBuf>,
    /// What holds for the names that begin with a prefix.
    pub rules: Vec<Rule>,
}

/// Another place of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Host and port.
    pub host: String,
    /// The repository there.
    pub repository: String,
}

/// Where a name leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Mirrors to pull from first, in order.
    pub mirrors: Vec<Place>,
    /// Where to pull from, where that is not the place that the name says.
    pub source: Option<Place>,
    /// The file that forbids the registry.
    pub blocked: Option<PathBuf>,
}

/// Where settings are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    etc: PathBuf,
    config: Option<PathBuf>,
    registries: Option<PathBuf>,
}

impl Environment {
    fn current() -> Self {
        let path = |name| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let home = || std::env::home_dir().map(|home| home.join(".config"));
        Self {
            etc: PathBuf::from("/etc"),
            config: path("XDG_CONFIG_HOME").or_else(home),
            registries: path("CONTAINERS_REGISTRIES_CONF"),
        }
    }

    /// A path in the system's and in the user's configuration.
    fn both(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        let user = self.config.as_ref().map(|config| config.join(path));
        [Some(self.etc.join(path)), user].into_iter().flatten()
    }
}

impl Settings {
    /// Reads this machine's settings and the environment.
    ///
    /// # Errors
    /// [`SettingsError`] when one of the files or variables is wrong.
    pub fn load() -> Result<Self, SettingsError> {
        Ok(Self {
            proxies: Proxies::read(|name| std::env::var(name).ok())?,
            ..Self::read(&Environment::current())?
        })
    }

    fn read(environment: &Environment) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for file in environment.both("docker/daemon.json") {
            if let Some(bytes) = optional(&file)? {
                let daemon = Daemon::parse(&file, &bytes)?;
                settings.insecure.extend(daemon.insecure_registries);
                settings.hub_mirrors.extend(daemon.registry_mirrors);
            }
        }
        settings.rules = rules(environment)?;
        for rule in &settings.rules {
            let own = rule.insecure.then(|| rule.host());
            let mirrors = rule.mirrors.iter().filter(|mirror| mirror.insecure);
            let hosts = own
                .into_iter()
                .chain(mirrors.map(|mirror| host_of(&mirror.location)));
            settings.insecure.extend(hosts.map(str::to_owned));
        }
        let mut folders: Vec<PathBuf> = environment
            .both("docker/certs.d")
            .chain(environment.both("containers/certs.d"))
            .collect();
        folders.reverse();
        settings.certificate_folders = folders;
        Ok(settings)
    }

    /// Where the images of a reference are pulled from.
    #[must_use]
    pub fn route(&self, reference: &Reference) -> Route {
        let full = reference.to_string();
        let name = reference.name();
        let fitting = self.rules.iter().filter(|rule| rule.fit(&full).is_some());
        let Some(rule) = fitting.max_by_key(|rule| rule.rank()) else {
            return Route::default();
        };
        if rule.blocked {
            return Route {
                blocked: Some(rule.file.clone()),
                ..Route::default()
            };
        }
        let place = |(host, repository)| Place { host, repository };
        let asked = |pulls| match pulls {
            Pulls::All => true,
            Pulls::DigestOnly => reference.digest.is_some(),
            Pulls::TagOnly => reference.digest.is_none(),
        };
        let mirrors = rule.mirrors.iter().filter(|mirror| asked(mirror.pulls));
        let source = rule.source(&name).map(place);
        Route {
            mirrors: mirrors
                .filter_map(|mirror| rule.moved(&name, &mirror.location).map(place))
                .collect(),
            source: source.filter(|place| {
                place.host != reference.registry || place.repository != reference.repository
            }),
            blocked: None,
        }
    }

    /// The certificates for a host, in the folders of that name: with its port, and without where
    /// it is https' own.
    ///
    /// # Errors
    /// [`SettingsError`] when a folder cannot be read, or half of a pair is missing.
    pub fn certificates(&self, host: &str, port: u16) -> Result<Certificates, SettingsError> {
        let mut names = vec![format!("{host}:{port}")];
        if port == 443 {
            names.push(host.to_owned());
            if host.ends_with(".docker.io") {
                names.push(DOCKER_HUB.to_owned());
            }
        }
        Certificates::read(&self.certificate_folders, &names)
    }
}

/// A file that need not be there, nor be for everybody.
fn optional(file: &Path) -> Result<Option<Vec<u8>>, SettingsError> {
    match files::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(None)
        }
        Err(source) => Err(SettingsError::Read {
            file: file.to_owned(),
            source,
        }),
    }
}

fn rules(environment: &Environment) -> Result<Vec<Rule>, SettingsError> {
    let mut found = Vec::new();
    let named = environment.registries.as_ref();
    if let Some(file) = named {
        let bytes = files::read(file).map_err(|source| SettingsError::Read {
            file: file.clone(),
            source,
        })?;
        found = Rule::parse_all(file, &bytes)?;
    } else {
        let mut places: Vec<PathBuf> = environment.both("containers/registries.conf").collect();
        places.reverse();
        for file in places {
            if let Some(bytes) = optional(&file)? {
                found = Rule::parse_all(&file, &bytes)?;
                break;
            }
        }
    }
    for folder in environment.both("containers/registries.conf.d") {
        for file in parts(&folder)? {
            if let Some(bytes) = optional(&file)? {
                registries::merge(&mut found, Rule::parse_all(&file, &bytes)?);
            }
        }
    }
    Ok(found)
}

/// The `*.conf` files of a folder in order of their names.
fn parts(folder: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let failed = |source| SettingsError::Read {
        file: folder.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "conf")
        {
            files.push(path);
        }
    }
    files.sort();
    files.truncate(MAX_FILES);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn with(files: &[(&str, &str)]) -> (tempfile::TempDir, Environment) {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let environment = Environment {
            etc: folder.path().join("etc"),
            config: Some(folder.path().join("config")),
            registries: None,
        };
        (folder, environment)
    }

    fn route(settings: &Settings, name: &str) -> String {
        let route = settings.route(&Reference::parse(name).unwrap());
        let places = route.mirrors.iter().chain(&route.source);
        let places: Vec<_> = places
            .map(|place| format!("{}/{}", place.host, place.repository))
            .collect();
        match route.blocked {
            Some(file) => format!("blocked by {}", file.file_name().unwrap().display()),
            None => places.join(" "),
        }
    }

    #[test]
    fn d4_3_all_files_are_read_and_the_longest_prefix_counts() {
        let digest = format!("r.example/team/app@sha256:{}", "0".repeat(64));
        let (_folder, environment) = with(&[
            (
                "etc/docker/daemon.json",
                r#"{"insecure-registries":["a.example"],"registry-mirrors":["https://one"]}"#,
            ),
            (
                "config/docker/daemon.json",
                r#"{"registry-mirrors":["http://two"]}"#,
            ),
            (
                "etc/containers/registries.conf",
                "[[registry]]\nlocation='never.read'",
            ),
            (
                "config/containers/registries.conf",
                "unqualified-search-registries = ['docker.io']\n\
                 [[registry]]\nprefix='r.example'\nlocation='s.example:5000'\ninsecure=true\n\
                 [[registry]]\nprefix='r.example/team'\nlocation='t.example/x'\n\
                 [[registry.mirror]]\nlocation='m1.example'\npull-from-mirror='digest-only'\ninsecure=true\n\
                 [[registry.mirror]]\nlocation='m2.example'\npull-from-mirror='tag-only'\n",
            ),
            (
                "etc/containers/registries.conf.d/10-block.conf",
                "[[registry]]\nlocation='evil.example'\nblocked=true",
            ),
            ("etc/containers/registries.conf.d/README", "no settings"),
            (
                "config/containers/registries.conf.d/20.conf",
                "[[registry]]\nprefix='*.wild.example'\nlocation='w.example'",
            ),
        ]);
        let settings = Settings::read(&environment).unwrap();
        assert_eq!(
            settings.insecure,
            ["a.example", "s.example:5000", "m1.example"]
        );
        assert_eq!(settings.hub_mirrors, ["https://one", "http://two"]);
        for (name, expected) in [
            ("r.example/other:1", "s.example:5000/other"),
            ("r.example/team/app:1", "m2.example/app t.example/x/app"),
            (digest.as_str(), "m1.example/app t.example/x/app"),
            ("evil.example/x", "blocked by 10-block.conf"),
            ("a.wild.example/x", "w.example/x"),
            ("never.read/x", ""),
            ("busybox", ""),
        ] {
            assert_eq!(route(&settings, name), expected, "{name}");
        }
        let folders = settings.certificate_folders;
        assert!(folders[0].ends_with("config/containers/certs.d"));
        assert!(folders[3].ends_with("etc/docker/certs.d"));
    }

    #[test]
    fn d4_3_a_file_named_by_the_variable_must_be_there() {
        let (folder, mut environment) = with(&[
            (
                "etc/containers/registries.conf",
                "[[registry]]\nlocation='a'\nblocked=true",
            ),
            (
                "named.conf",
                "[[registry]]\nlocation='b.example'\nblocked=true",
            ),
        ]);
        environment.registries = Some(folder.path().join("named.conf"));
        let settings = Settings::read(&environment).unwrap();
        assert_eq!(route(&settings, "b.example/x"), "blocked by named.conf");
        environment.registries = Some(folder.path().join("none.conf"));
        let error = Settings::read(&environment).unwrap_err().to_string();
        assert!(error.contains("none.conf"), "{error}");
    }

    #[test]
    fn d4_1_names_of_certificate_folders() {
        let (folder, _) = with(&[
            ("c/r.example/a.crt", ""),
            ("c/r.example:443/b.crt", ""),
            ("c/r.example:5000/c.crt", ""),
            ("c/docker.io/d.crt", ""),
        ]);
        let settings = Settings {
            certificate_folders: vec![folder.path().join("c")],
            ..Settings::default()
        };
        let count = |host, port| {
            let found = settings.certificates(host, port).unwrap();
            found.authorities.len()
        };
        assert_eq!(count("r.example", 443), 2);
        assert_eq!(count("r.example", 5000), 1);
        assert_eq!(count("r.example", 80), 0);
        assert_eq!(count("registry-1.docker.io", 443), 1);
    }
}
