//! Connection settings: trusted roots, name resolution, proxies (D4.1, D4.2, D4.4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Url, redirect};
use tokio::sync::OnceCell;

use super::error::ClientError;

/// The time to open a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(30);

/// HTTP/2 lets this much of one blob be under way, of all blobs four times as much; the default
/// of 64 KiB makes a distant registry slow.
const WINDOW: u32 = 4 << 20;

/// HTTP clients, one for each distinct set of settings, made when first wanted.
#[derive(Debug)]
pub(super) struct Connections {
    insecure: Vec<String>,
    ca_files: Vec<PathBuf>,
    user_agent: String,
    checked: OnceCell<reqwest::Client>,
    checked_direct: OnceCell<reqwest::Client>,
    unchecked: OnceCell<reqwest::Client>,
    unchecked_direct: OnceCell<reqwest::Client>,
}

impl Connections {
    pub(super) fn new(insecure: Vec<String>, ca_files: Vec<PathBuf>, user_agent: String) -> Self {
        Self {
            insecure,
            ca_files,
            user_agent,
            checked: OnceCell::new(),
            checked_direct: OnceCell::new(),
            unchecked: OnceCell::new(),
            unchecked_direct: OnceCell::new(),
        }
    }

    /// Whether certificates of a host are not checked and plain http is allowed (D4.2).
    pub(super) fn is_insecure(&self, url: &Url) -> bool {
        is_loopback(url)
            || url.host_str().is_some_and(|host| {
                let with_port = url
                    .port_or_known_default()
                    .map(|port| format!("{host}:{port}"));
                self.insecure
                    .iter()
                    .any(|name| name == host || Some(name) == with_port.as_ref())
            })
    }

    /// The HTTP client for an address.
    pub(super) async fn to(&self, url: &Url) -> Result<&reqwest::Client, ClientError> {
        let direct = is_loopback(url);
        let check = !self.is_insecure(url);
        let cell = match (check, direct) {
            (true, false) => &self.checked,
            (true, true) => &self.checked_direct,
            (false, false) => &self.unchecked,
            (false, true) => &self.unchecked_direct,
        };
        cell.get_or_try_init(|| async {
            let (ca_files, user_agent) = (self.ca_files.clone(), self.user_agent.clone());
            // Reading the system's certificates is file access and parsing.
            tokio::task::spawn_blocking(move || build(&ca_files, &user_agent, check, direct))
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        })
        .await
    }
}

fn build(
    ca_files: &[PathBuf],
    user_agent: &str,
    check: bool,
    direct: bool,
) -> Result<reqwest::Client, ClientError> {
    if !check {
        return settings(user_agent, direct)
            .tls_certs_only([])
            .tls_danger_accept_invalid_certs(true)
            .build()
            .map_err(ClientError::Setup);
    }
    let mut certificates = roots();
    for path in ca_files {
        certificates.extend(read_ca_file(path)?);
    }
    settings(user_agent, direct)
        .tls_certs_only(certificates)
        .build()
        .map_err(ClientError::Setup)
}

fn settings(user_agent: &str, direct: bool) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .user_agent(user_agent)
        // Redirects and retries need rules of their own, see `transport`.
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(CONNECT)
        .http2_initial_stream_window_size(WINDOW)
        .http2_initial_connection_window_size(4 * WINDOW)
        .dns_resolver(Resolver);
    if direct { builder.no_proxy() } else { builder }
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
    let bytes = std::fs::read(path).map_err(|source| ClientError::CaFile {
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
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    is_localhost(host) || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost")
}

/// Resolves `localhost` by itself, as there may be no `/etc/hosts`, and all else with the system.
#[derive(Debug)]
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses: Addrs = if is_localhost(name.as_str()) {
                // Port 0 stands for the port of the address.
                let both = [
                    IpAddr::from(Ipv4Addr::LOCALHOST),
                    Ipv6Addr::LOCALHOST.into(),
                ];
                Box::new(both.into_iter().map(|ip| SocketAddr::new(ip, 0)))
            } else {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Box::new(found.collect::<Vec<_>>().into_iter())
            };
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr as _;

    #[test]
    fn d4_2_loopback_is_insecure_by_default() {
        let connections = Connections::new(
            vec!["plain.example:5000".to_owned(), "any.example".to_owned()],
            Vec::new(),
            "kiln".to_owned(),
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
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(connections.is_insecure(&url), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn localhost_needs_no_hosts_file() {
        let name = Name::from_str("localhost").unwrap();
        let found: Vec<SocketAddr> = Resolver.resolve(name).await.unwrap().collect();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(found.len(), 2);
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
