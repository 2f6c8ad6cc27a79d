//! Proxies: which one a request takes, if any (D4.4).

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::{Network, SettingsError};

/// The proxies that the environment names.
///
/// The variables are read as docker reads them: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or the
/// same in lower case; and `ALL_PROXY` where the one for the scheme is missing.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
}

/// What is reached without a proxy.
#[derive(Clone, Debug)]
enum Exception {
    Everything,
    Network(Network),
    Address(IpAddr, Option<u16>),
    /// A domain with all below it, and with itself unless only what is below was meant.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl fmt::Debug for Proxies {
    // Addresses of proxies hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("exceptions", &self.exceptions)
            .finish()
    }
}

impl Proxies {
    /// Reads the variables through a function.
    ///
    /// # Errors
    /// [`SettingsError::Proxy`] when one is no address of a proxy.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let find = |name: &str| {
            [name.to_owned(), name.to_lowercase()]
                .into_iter()
                .find_map(|name| {
                    let value = variable(&name)?;
                    let value = value.trim();
                    (!value.is_empty()).then(|| (name, value.to_owned()))
                })
        };
        let address = |name: &str| find(name).map(|(name, text)| proxy(name, &text));
        let all = || address("ALL_PROXY");
        // A web server hands a header `Proxy:` of whoever calls it to its programs as HTTP_PROXY.
        let called_by_web = variable("REQUEST_METHOD").is_some();
        let http = address("HTTP_PROXY").filter(|_| !called_by_web);
        Ok(Self {
            http: http.or_else(all).transpose()?,
            https: address("HTTPS_PROXY").or_else(all).transpose()?,
            exceptions: exceptions(&find("NO_PROXY").map(|(_, text)| text).unwrap_or_default()),
        })
    }

    /// The proxy for an address; `None` when it is asked directly.
    #[must_use]
    pub fn of(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref(),
            "https" => self.https.as_ref(),
            _ => None,
        }?;
        let host = url.host_str()?.trim_end_matches('.');
        let port = url.port_or_known_default();
        let excepted = self.exceptions.iter().any(|one| one.fits(host, port));
        (!excepted).then_some(proxy)
    }
}

fn proxy(variable: String, text: &str) -> Result<Url, SettingsError> {
    let spelled = match text.split_once("://") {
        None => format!("http://{text}"),
        // As in docker, the proxy looks the name up: it may know names that this machine does not.
        Some(("socks" | "socks5", rest)) => format!("socks5h://{rest}"),
        Some(_) => text.to_owned(),
    };
    let known = ["http", "https", "socks4", "socks4a", "socks5h"];
    Url::parse(&spelled)
        .ok()
        .filter(|url| known.contains(&url.scheme()) && url.has_host())
        .ok_or(SettingsError::Proxy { variable })
}

fn exceptions(text: &str) -> Vec<Exception> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(exception)
        .collect()
}

fn exception(word: &str) -> Exception {
    if word == "*" {
        return Exception::Everything;
    }
    if let Some(network) = Network::parse(word) {
        return Exception::Network(network);
    }
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse();
    if let Ok(address) = bare(word) {
        return Exception::Address(address, None);
    }
    let (host, port) = match word.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (word, None),
        },
        None => (word, None),
    };
    if let Ok(address) = bare(host) {
        return Exception::Address(address, port);
    }
    let host = host.strip_prefix('*').unwrap_or(host);
    let name = host.trim_matches('.').to_lowercase();
    Exception::Domain {
        name,
        itself: !host.starts_with('.'),
        port,
    }
}

impl Exception {
    fn fits(&self, host: &str, port: Option<u16>) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let same_port = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match self {
            Self::Everything => true,
            Self::Network(network) => bare.parse().is_ok_and(|ip| network.contains(ip)),
            Self::Address(address, wanted) => {
                same_port(wanted) && bare.parse::<IpAddr>().is_ok_and(|ip| ip == *address)
            }
            Self::Domain {
                name,
                itself,
                port: wanted,
            } => {
                let host = bare.to_lowercase();
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.ends_with('.'));
                same_port(wanted) && !name.is_empty() && (below || *itself && host == *name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Proxies, SettingsError> {
        Proxies::read(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn d4_4_exceptions_from_the_table() {
        let table = include_str!("../../../testdata/no-proxy.tsv");
        let mut cases = 0;
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let columns: Vec<&str> = line.split('\t').collect();
            let [exceptions, url, way] = columns[..] else {
                panic!("{line}");
            };
            let proxies = read(&[("ALL_PROXY", "p:1"), ("NO_PROXY", exceptions)]).unwrap();
            let way_taken = match proxies.of(&Url::parse(url).unwrap()) {
                Some(_) => "proxy",
                None => "direct",
            };
            assert_eq!(way_taken, way, "{line}");
            cases += 1;
        }
        assert!(cases > 20);
    }

    #[test]
    fn d4_4_which_proxy_serves_which_scheme() {
        let of = |variables: &[(&str, &str)], url: &str| {
            let proxies = read(variables).unwrap();
            let proxy = proxies.of(&Url::parse(url).unwrap());
            proxy.map(ToString::to_string)
        };
        let both = [("http_proxy", "one:3128"), ("HTTPS_PROXY", "https://two")];
        assert_eq!(of(&both, "http://r/").unwrap(), "http://one:3128/");
        assert_eq!(of(&both, "https://r/").unwrap(), "https://two/");
        let all = [("all_proxy", "socks5://u:p@s:1080"), ("HTTP_PROXY", " ")];
        assert_eq!(of(&all, "http://r/").unwrap(), "socks5h://u:p@s:1080");
        assert_eq!(of(&all, "https://r/").unwrap(), "socks5h://u:p@s:1080");
        let shadowed = [("HTTPS_PROXY", "upper"), ("https_proxy", "lower")];
        assert_eq!(of(&shadowed, "https://r/").unwrap(), "http://upper/");
        let web = [("HTTP_PROXY", "evil"), ("REQUEST_METHOD", "GET")];
        assert_eq!(of(&web, "http://r/"), None);
        assert_eq!(of(&[], "https://r/"), None);
    }

    #[test]
    fn d4_4_a_wrong_proxy_is_named_by_its_variable_only() {
        for wrong in ["ftp://user:hunter2@p", "http://", "://hunter2"] {
            let error = read(&[("https_proxy", wrong)]).unwrap_err().to_string();
            assert!(error.contains("https_proxy"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", read(&[("ALL_PROXY", "http://u:hunter2@p")]));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
