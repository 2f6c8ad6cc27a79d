//! Connection settings: trusted roots, client certificates, name resolution, proxies (D4.1, D4.2,
//! D4.4).

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Certificate, Identity, Proxy, Url, redirect};
use tokio::sync::OnceCell;
use zeroize::Zeroize as _;

use super::error::ClientError;
use super::names::{NameLookup, is_localhost};
use super::transport::lock;
use crate::files;
use crate::settings::{Certificates, ClientPair, Network, Proxies, Settings};

/// The time to open a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(30);

/// HTTP/2 lets this much of one blob be under way, of all blobs four times as much; the default
/// of 64 KiB makes a distant registry slow.
const WINDOW: u32 = 4 << 20;

/// HTTP clients: one for each distinct set of settings, made when first wanted.
#[derive(Debug)]
pub(super) struct Connections {
    settings: Settings,
    networks: Vec<Network>,
    /// Hosts whose addresses lie in one of the insecure networks.
    inside: Mutex<BTreeSet<String>>,
    ca_files: Vec<PathBuf>,
    user_agent: String,
    names: NameLookup,
    own: Mutex<HashMap<(String, u16), Certificates>>,
    clients: Mutex<HashMap<Kind, Slot>>,
}

/// Where one HTTP client lies, or will lie.
type Slot = Arc<OnceCell<reqwest::Client>>;

/// What tells the settings of connections apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Whether certificates are checked.
    check: bool,
    /// Whether no proxy is asked.
    direct: bool,
    /// The host and port that have certificates of their own.
    host: Option<(String, u16)>,
}

impl Connections {
    pub(super) fn new(
        settings: Settings,
        ca_files: Vec<PathBuf>,
        user_agent: String,
        names: NameLookup,
    ) -> Self {
        let networks = settings.insecure.iter();
        Self {
            networks: networks.filter_map(|text| Network::parse(text)).collect(),
            settings,
            inside: Mutex::default(),
            ca_files,
            user_agent,
            names,
            own: Mutex::default(),
            clients: Mutex::default(),
        }
    }

    /// Whether certificates of a host are not checked and plain http is allowed (D4.2).
    pub(super) fn is_insecure(&self, url: &Url) -> bool {
        is_loopback(url)
            || url.host_str().is_some_and(|host| {
                let with_port = url
                    .port_or_known_default()
                    .map(|port| format!("{host}:{port}"));
                let names = &self.settings.insecure;
                names
                    .iter()
                    .any(|name| name == host || Some(name) == with_port.as_ref())
                    || lock(&self.inside).contains(host)
                    || self.is_in_network(ip(host))
            })
    }

    fn is_in_network(&self, address: Option<IpAddr>) -> bool {
        address.is_some_and(|address| self.networks.iter().any(|one| one.contains(address)))
    }

    /// Looks a host's name up where insecure registries are given as ranges of addresses.
    pub(super) async fn look_up(&self, url: &Url) {
        let Some(host) = url.host_str() else { return };
        if self.networks.is_empty() || ip(host).is_some() {
            return;
        }
        // A name that only a proxy knows lies in no network of ours.
        if let Ok(found) = self.names.addresses(host).await
            && found.into_iter().any(|at| self.is_in_network(Some(at)))
        {
            lock(&self.inside).insert(host.to_owned());
        }
    }

    /// The HTTP client for an address.
    pub(super) async fn to(&self, url: &Url) -> Result<reqwest::Client, ClientError> {
        self.client(url, is_loopback(url)).await
    }

    /// The HTTP client for an address that no proxy may see.
    pub(super) async fn directly_to(&self, url: &Url) -> Result<reqwest::Client, ClientError> {
        self.client(url, true).await
    }

    /// The certificates that belong to a host.
    fn own(&self, url: &Url) -> Result<Certificates, ClientError> {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Ok(Certificates::default());
        };
        if url.scheme() != "https" {
            return Ok(Certificates::default());
        }
        let key = (host.to_owned(), port);
        if let Some(known) = lock(&self.own).get(&key) {
            return Ok(known.clone());
        }
        let found = self.settings.certificates(host, port)?;
        lock(&self.own).insert(key, found.clone());
        Ok(found)
    }

    async fn client(&self, url: &Url, direct: bool) -> Result<reqwest::Client, ClientError> {
        let own = self.own(url)?;
        let host = || Some((url.host_str()?.to_owned(), url.port_or_known_default()?));
        let kind = Kind {
            check: !self.is_insecure(url),
            direct,
            host: if own.is_empty() { None } else { host() },
        };
        let slot = lock(&self.clients).entry(kind.clone()).or_default().clone();
        let client = slot.get_or_try_init(|| async {
            let plan = Plan {
                kind,
                own,
                ca_files: self.ca_files.clone(),
                user_agent: self.user_agent.clone(),
                names: self.names.clone(),
                proxies: self.settings.proxies.clone(),
            };
            // Reading the system's certificates is file access and parsing.
            tokio::task::spawn_blocking(move || plan.build())
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        });
        client.await.cloned()
    }
}

/// All that an HTTP client is made of.
struct Plan {
    kind: Kind,
    own: Certificates,
    ca_files: Vec<PathBuf>,
    user_agent: String,
    names: NameLookup,
    proxies: Proxies,
}

impl Plan {
    fn build(self) -> Result<reqwest::Client, ClientError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(self.user_agent)
            // Redirects and retries need rules of their own, see `transport`.
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(CONNECT)
            .http2_initial_stream_window_size(WINDOW)
            .http2_initial_connection_window_size(4 * WINDOW)
            .dns_resolver(self.names)
            // The library's own reading of the environment knows no ports in NO_PROXY.
            .no_proxy();
        if !self.kind.direct {
            let proxies = self.proxies;
            builder = builder.proxy(Proxy::custom(move |url| proxies.of(url).cloned()));
        }
        if let Some(pair) = &self.own.client {
            builder = builder.identity(identity(pair)?);
        }
        if !self.kind.check {
            let builder = builder.tls_certs_only([]);
            return builder
                .tls_danger_accept_invalid_certs(true)
                .build()
                .map_err(ClientError::Setup);
        }
        let mut certificates = roots();
        for path in self.ca_files.iter().chain(&self.own.authorities) {
            certificates.extend(read_ca_file(path)?);
        }
        builder
            .tls_certs_only(certificates)
            .build()
            .map_err(ClientError::Setup)
    }
}

/// What kiln shows a registry that wants to know who it is.
fn identity(pair: &ClientPair) -> Result<Identity, ClientError> {
    let mut pem = Vec::new();
    for path in [&pair.key, &pair.certificate] {
        pem.extend(files::read(path).map_err(|source| ClientError::CaFile {
            path: path.clone(),
            source,
        })?);
        pem.push(b'\n');
    }
    let wrong = |source| ClientError::ClientCertificate {
        certificate: pair.certificate.clone(),
        key: pair.key.clone(),
        source,
    };
    let identity = Identity::from_pem(&pem);
    pem.zeroize();
    let identity = identity.map_err(wrong)?;
    // A key that belongs to another certificate is found only when a client is made of them.
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .identity(identity.clone())
        .build()
        .map_err(wrong)?;
    Ok(identity)
}

/// The system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), or Mozilla's where there
/// are none, as in an empty container.
fn roots() -> Vec<Certificate> {
    let system = rustls_native_certs::load_native_certs();
    let parse = |der: &[u8]| Certificate::from_der(der).ok();
    let found: Vec<Certificate> = system.certs.iter().filter_map(|der| parse(der)).collect();
    let usable = usable(found);
    if usable.is_empty() {
        webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .filter_map(|der| parse(der))
            .collect()
    } else {
        usable
    }
}

/// Leaves out certificates that the TLS library refuses: one of them would spoil the whole store.
fn usable(certificates: Vec<Certificate>) -> Vec<Certificate> {
    let builds = |certificates: Vec<Certificate>| {
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only(certificates)
            .build()
            .is_ok()
    };
    if builds(certificates.clone()) {
        return certificates;
    }
    certificates
        .into_iter()
        .filter(|certificate| builds(vec![certificate.clone()]))
        .collect()
}

/// A CA file named by the user must be right: leaving it out would only show as a refused
/// certificate later.
fn read_ca_file(path: &Path) -> Result<Vec<Certificate>, ClientError> {
    let bytes = files::read(path).map_err(|source| ClientError::CaFile {
        path: path.to_owned(),
        source,
    })?;
    let content = |source| ClientError::CaContent {
        path: path.to_owned(),
        source,
    };
    let certificates =
        Certificate::from_pem_bundle(&bytes).map_err(|error| content(Some(error)))?;
    if certificates.is_empty() {
        return Err(content(None));
    }
    // Bad ones are found only when a store is made of them.
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(certificates.clone())
        .build()
        .map_err(|error| content(Some(error)))?;
    Ok(certificates)
}

/// Whether an address is this machine: `localhost`, 127.0.0.0/8 or `::1`.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    is_localhost(host) || ip(host).is_some_and(|ip| ip.is_loopback())
}

/// The address that a host of a URL is, if it is no name.
fn ip(host: &str) -> Option<IpAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d4_2_loopback_is_insecure_by_default() {
        let insecure = ["plain.example:5000", "any.example", "10.0.0.0/8"];
        let settings = Settings {
            insecure: insecure.map(str::to_owned).to_vec(),
            ..Settings::default()
        };
        let connections = Connections::new(
            settings,
            Vec::new(),
            "kiln".to_owned(),
            NameLookup::default(),
        );
        for (url, expected) in [
            ("https://localhost:5000/", true),
            ("https://LOCALHOST./", true),
            ("https://127.1.2.3/", true),
            ("https://[::1]:5000/", true),
            ("https://a.localhost/", true),
            ("https://128.0.0.1/", false),
            ("https://notlocalhost/", false),
            ("https://plain.example:5000/", true),
            ("https://plain.example/", false),
            ("https://any.example:1/", true),
            ("https://localhost.example/", false),
            ("https://10.2.3.4:5000/", true),
            ("https://11.2.3.4:5000/", false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(connections.is_insecure(&url), expected, "{url}");
        }
    }

    #[test]
    fn a_wrong_ca_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(matches!(
            read_ca_file(&path),
            Err(ClientError::CaFile { .. })
        ));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(matches!(
            read_ca_file(&path),
            Err(ClientError::CaContent { .. })
        ));
        let wrong = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, wrong).unwrap();
        assert!(matches!(
            read_ca_file(&path),
            Err(ClientError::CaContent { .. })
        ));
    }

    #[test]
    fn there_are_always_roots() {
        assert!(!roots().is_empty());
    }
}
