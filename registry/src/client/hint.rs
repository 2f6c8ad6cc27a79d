//! What the user could do about an error; apart from the error itself, which only says what is.

use reqwest::{Method, Url};

use super::DOCKER_HUB_HOST;
use super::aws::{AwsError, is_ecr};
use super::error::{ClientError, is_unknown_host, wants_certificate};
use super::refusal::Refusal;
use crate::reference::DOCKER_HUB;

impl ClientError {
    /// What the user could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => refusal.hint(),
            Self::Connect { url, .. } => connect_hint(&self.chain(), url),
            Self::Network { url, .. } => network_hint(&self.chain(), url),
            Self::Stalled { .. } | Self::CutShort { .. } => Some("the network or the registry hangs; run the command again to go on".to_owned()),
            Self::Token { registry, source, .. } => match source.status() {
                Some(401 | 403) => Some(login_hint(registry)),
                _ => source.hint(),
            },
            Self::Schema1 { .. } => Some(
                "pull it with an old docker and push it again, or rebuild it, as a docker v2 or OCI image".to_owned(),
            ),
            Self::NotAnImage { reference, .. } => Some(format!(
                "an artifact is fetched as it is with: kiln copy docker://{reference} oci:FOLDER"
            )),
            Self::NoDeletion { .. } => Some(
                "deletion is off, or the registry has its own way for it; docker's registry allows it with REGISTRY_STORAGE_DELETE_ENABLED=true".to_owned(),
            ),
            Self::ListBusy { .. } => Some("run the command again".to_owned()),
            Self::WebPage { .. } => Some(
                "a proxy or a login page answers in the registry's place: check the network's login, the proxy settings and the name of the registry".to_owned(),
            ),
            Self::NoPlatform { .. } => Some("choose one of them with `--platform`".to_owned()),
            Self::Downgrade { .. } => Some(
                "the registry seems to stand behind a proxy that does not tell it about https (X-Forwarded-Proto)".to_owned(),
            ),
            Self::Settings(error) => error.hint(),
            Self::Credentials { source, .. } => source.hint(),
            Self::Aws { registry, source } => aws_hint(registry, source),
            Self::TagTaken { .. } => Some("tags of this repository are immutable: push under another tag".to_owned()),
            _ => None,
        }
    }
}

impl Refusal {
    /// The registry as credentials are kept for it.
    fn host(&self) -> String {
        match host_of(&self.url) {
            host if host == DOCKER_HUB_HOST => DOCKER_HUB.to_owned(),
            host => host,
        }
    }

    fn hint(&self) -> Option<String> {
        let writes = !matches!(self.method, Method::GET | Method::HEAD);
        match (self.status, self.code.as_deref()) {
            (_, Some("NAME_UNKNOWN")) | (404, _) if writes => {
                Some("the repository does not exist: create it in the registry first".to_owned())
            }
            (401, _) => Some(login_hint(&self.host())),
            (403, _) if writes => Some(format!(
                "the account may not push there, or the repository does not exist; {}",
                login_hint(&self.host())
            )),
            (403, _) => Some(login_hint(&self.host())),
            (404, _) => Some(
                "check the name and the tag; private repositories also look like this".to_owned(),
            ),
            (429, _) => Some(format!(
                "the registry limits how much may be asked; {} to get a higher limit, or use a mirror",
                login_hint(&self.host())
            )),
            (413, _) => {
                Some("the registry, or a proxy before it, limits the size of a request".to_owned())
            }
            _ => None,
        }
    }
}

fn login_hint(registry: &str) -> String {
    if is_ecr(registry) {
        return format!(
            "log in with AWS credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role), or with `{}`",
            aws_login(registry)
        );
    }
    format!(
        "log in with `kiln login {registry}`; `kiln login --check {registry}` shows what is known"
    )
}

/// How to log in to one of Amazon's registries with their own program.
fn aws_login(registry: &str) -> String {
    format!("aws ecr get-login-password | kiln login --username AWS --password-stdin {registry}")
}

fn aws_hint(registry: &str, error: &AwsError) -> Option<String> {
    match error {
        AwsError::Service { source, .. } => match &**source {
            ClientError::Refused(refusal) if refusal.status == 403 || refusal.status == 400 => {
                Some("check that the keys are right, that they may call ecr:GetAuthorizationToken, and the clock of this machine".to_owned())
            }
            other => other.hint(),
        },
        AwsError::Profile { .. } => Some(format!("or use `{}`", aws_login(registry))),
        _ => None,
    }
}

/// The host, with the port where it has one of its own, of an address.
fn host_of(url: &str) -> String {
    let Some(url) = Url::parse(url).ok().filter(Url::has_host) else {
        return url.to_owned();
    };
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// What to do when a connection broke. A server that misses a client's certificate says so after the
/// handshake, and its word is often lost with the connection.
fn network_hint(chain: &str, url: &str) -> Option<String> {
    if wants_certificate(chain) {
        return Some(format!(
            "the server wants a certificate of its clients: {}",
            certificate_place(url)
        ));
    }
    let closed = [
        "operation was canceled: connection closed",
        "Connection reset",
        "broken pipe",
        "Broken pipe",
    ];
    let at_once = url.starts_with("https:") && url.ends_with("/v2/");
    (at_once && closed.iter().any(|text| chain.contains(text))).then(|| {
        format!(
            "the server closed the connection at once; if it wants a certificate of its clients, {}",
            certificate_place(url)
        )
    })
}

fn certificate_place(url: &str) -> String {
    let host = host_of(url);
    format!("put it into `/etc/docker/certs.d/{host}/` as client.cert and client.key")
}

fn connect_hint(chain: &str, url: &str) -> Option<String> {
    if wants_certificate(chain) {
        return network_hint(chain, url);
    }
    let has = |text: &str| chain.contains(text);
    let host = host_of(url);
    let hint = if has("InvalidContentType") {
        format!(
            "server gave HTTP response to HTTPS client: if it is meant to speak plain http, allow that with `--insecure-registry {host}`, or list it in `insecure-registries` of docker's daemon.json"
        )
    } else if has("UnknownIssuer") {
        format!(
            "the certificate's authority is not known: put its certificate into `/etc/docker/certs.d/{host}/ca.crt`, or name a file with all authorities in SSL_CERT_FILE"
        )
    } else if has("CaUsedAsEndEntity") {
        "the server shows an authority's certificate as its own: give it one with CA:FALSE, or allow it with --insecure-registry".to_owned()
    } else if has("certificate expired") || has("certificate not valid yet") {
        "the certificate's dates do not fit: check the clock of this machine and the registry's certificate".to_owned()
    } else if has("certificate not valid for name") {
        "the certificate belongs to another host name".to_owned()
    } else if has("Connection refused") {
        format!("nothing listens at `{url}`: is the server running, and the port right?")
    } else if is_unknown_host(chain) {
        "the host name does not exist: check the name of the registry".to_owned()
    } else if has("failed to lookup") || has("dns error") {
        "the host name cannot be looked up: check the network and the name servers".to_owned()
    } else {
        return None;
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the connection ended of a client that showed no certificate, or a wrong one.
    #[test]
    fn d4_1_a_connection_that_ends_at_once_may_want_a_certificate() {
        let ends = [
            "connection error: Connection reset by peer (os error 104)",
            "operation was canceled: connection closed before message completed",
            "client error (SendRequest): stream closed because of a broken pipe",
            "client error (SendRequest): Broken pipe (os error 32)",
        ];
        for end in ends {
            let hint = network_hint(end, "https://r.example:5000/v2/").unwrap();
            let place = "`/etc/docker/certs.d/r.example:5000/` as client.cert and client.key";
            assert!(hint.contains(place), "{end}: {hint}");
            assert_eq!(network_hint(end, "https://r.example/v2/a/blobs/x"), None);
            assert_eq!(network_hint(end, "http://r.example/v2/"), None);
        }
    }
}
