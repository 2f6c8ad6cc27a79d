//! What can go wrong between kiln and a registry, in a form a caller can act on.

use std::error::Error as _;
use std::path::PathBuf;

use reqwest::{Method, Url};

use super::aws::AwsError;
use super::refusal::Refusal;
use crate::credentials::CredentialsError;
use crate::digest::{Digest, Mismatch};
use crate::settings::SettingsError;

/// Why a request to a registry failed.
///
/// No message and no field holds a secret: URLs are kept without user, password and query.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The registry answered with an error (D6.1).
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// No connection could be made.
    #[error("cannot connect to `{url}`")]
    Connect {
        /// The address asked.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The connection broke.
    #[error("{method} `{url}` failed")]
    Network {
        /// The method of the request.
        method: Method,
        /// Its address.
        url: String,
        /// What broke.
        source: reqwest::Error,
    },
    /// Nothing moved for too long.
    #[error("{method} `{url}` made no progress for {seconds} s")]
    Stalled {
        /// The method of the request.
        method: Method,
        /// Its address.
        url: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The token service gave no token.
    #[error("cannot get a token for `{registry}` from `{realm}`")]
    Token {
        /// The registry the token is for.
        registry: String,
        /// Address of the token service.
        realm: String,
        /// What it answered.
        source: Box<Self>,
    },
    /// The token service answered without a usable token.
    #[error("`{realm}` answered without a usable token for `{registry}`")]
    NoToken {
        /// The registry the token is for.
        registry: String,
        /// Address of the token service.
        realm: String,
    },
    /// Credentials may not be sent there (D3.4).
    #[error("`{registry}` asks to send credentials to `{realm}`, which is neither https nor local")]
    UnsafeRealm {
        /// The registry.
        registry: String,
        /// Where it wants credentials sent.
        realm: String,
    },
    /// The credentials could not be read.
    #[error("cannot read the credentials for `{registry}`")]
    Credentials {
        /// The registry they are for.
        registry: String,
        /// Why not.
        source: CredentialsError,
    },
    /// The AWS credentials of the environment gave no password (D3.7).
    #[error("cannot log in to `{registry}` with AWS credentials")]
    Aws {
        /// The registry.
        registry: String,
        /// Why not.
        source: Box<AwsError>,
    },
    /// What arrived is not what was announced.
    #[error("`{url}` does not hold what was announced")]
    Mismatch {
        /// Where it came from.
        url: String,
        /// What differs.
        source: Mismatch,
    },
    /// The registry ended its answer too early.
    #[error("`{url}` ended after {actual} of {expected} bytes")]
    CutShort {
        /// What was read.
        url: String,
        /// Its size, bytes.
        expected: u64,
        /// What came, bytes.
        actual: u64,
    },
    /// The registry says it stored something else than was sent.
    #[error("the registry stored `{url}` as {actual}, but {expected} was sent")]
    StoredDigest {
        /// The manifest.
        url: String,
        /// Digest of what was sent.
        expected: Digest,
        /// Digest in the registry's answer.
        actual: Digest,
    },
    /// An answer is larger than kiln accepts.
    #[error("`{url}` is larger than {limit} bytes")]
    TooLarge {
        /// What was read.
        url: String,
        /// The limit, bytes.
        limit: usize,
    },
    /// A document cannot be understood.
    #[error("`{url}` is no valid {what}")]
    Document {
        /// Where it came from.
        url: String,
        /// What was expected.
        what: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// Something else than a registry answers.
    #[error("a web page came for `{url}`, and not the {what}")]
    WebPage {
        /// What was asked for.
        url: String,
        /// What it should be.
        what: &'static str,
    },
    /// The registry broke the protocol.
    #[error("unexpected answer to {method} `{url}`: {problem}")]
    Protocol {
        /// The method of the request.
        method: Method,
        /// Its address.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The image is in docker's first format (D5.6).
    #[error("`{reference}` is a schema 1 image, which is not supported")]
    Schema1 {
        /// The image.
        reference: String,
    },
    /// The reference names something that is no image.
    #[error("`{reference}` is no image: unsupported media type `{media_type}`")]
    NotAnImage {
        /// The reference.
        reference: String,
        /// What it is.
        media_type: String,
    },
    /// The index has no image for the platform (A7.8).
    #[error(
        "no match for platform in manifest: `{reference}` has no image for `{wanted}`, only for {available}"
    )]
    NoPlatform {
        /// The index.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// The platforms it has, for people.
        available: String,
    },
    /// A redirect or upload location would leave https.
    #[error("refused to go from https to `{to}`")]
    Downgrade {
        /// The plain address.
        to: String,
    },
    /// The tag is taken by other content and cannot be moved.
    #[error("tag `{tag}` cannot be moved: it names {existing}, not {pushed}")]
    TagTaken {
        /// The tag, with its repository.
        tag: String,
        /// What it names.
        existing: Digest,
        /// What was to be pushed.
        pushed: Digest,
        /// How the registry refused.
        source: Box<Self>,
    },
    /// The registry deletes nothing (D9.2).
    #[error("`{repository}` does not let anything be deleted")]
    NoDeletion {
        /// The repository.
        repository: String,
        /// How the registry refused.
        source: Box<Self>,
    },
    /// A list is longer than is accepted.
    #[error("`{url}` has more than {limit} {what}")]
    TooMany {
        /// The list.
        url: String,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The tag for a list of referrers names something else (D8.2).
    #[error("{digest}, where the list of referrers should be, is of type `{media_type}`")]
    NotAList {
        /// What is there.
        digest: String,
        /// Its media type.
        media_type: String,
    },
    /// Others changed a list of referrers all the time (D8.2).
    #[error("the list of referrers `{list}` is changed by others all the time")]
    ListBusy {
        /// The list.
        list: String,
    },
    /// A configured address is no URL.
    #[error("`{0}` is no valid registry address")]
    Address(String),
    /// Settings forbid the registry (D4.3).
    #[error("registry `{registry}` is blocked in `{file}`", file = file.display())]
    Blocked {
        /// The registry.
        registry: String,
        /// The file that says so.
        file: PathBuf,
    },
    /// The settings for a host cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A client's certificate and key cannot be used.
    #[error("`{certificate}` and `{key}` are no usable pair of certificate and key", certificate = certificate.display(), key = key.display())]
    ClientCertificate {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// What is wrong.
        source: reqwest::Error,
    },
    /// A file of certificates cannot be read.
    #[error("cannot read certificates from `{path}`")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of CA certificates holds none, or malformed ones.
    #[error("`{path}` holds no usable CA certificates")]
    CaContent {
        /// The file.
        path: PathBuf,
        /// What is wrong, where that is known.
        source: Option<reqwest::Error>,
    },
    /// The TLS or HTTP library could not be set up.
    #[error("cannot set up the connection settings")]
    Setup(#[source] reqwest::Error),
}

/// Foreign text without control characters, at most `limit` characters.
pub(super) fn clean(text: &str, limit: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(limit)
        .collect()
}

/// An address without user, password, query and fragment, any of which may hold a secret.
pub(super) fn redact(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for addresses that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

impl ClientError {
    /// Tells apart a failure to connect from a break later on, and drops the address, which may
    /// hold a secret, from the library's error.
    pub(super) fn network(method: &Method, url: &Url, source: reqwest::Error) -> Self {
        let url = redact(url);
        if source.is_connect() {
            return Self::Connect {
                url,
                source: source.without_url(),
            };
        }
        Self::Network {
            method: method.clone(),
            url,
            source: source.without_url(),
        }
    }

    pub(super) fn protocol(method: &Method, url: &Url, problem: impl Into<String>) -> Self {
        Self::Protocol {
            method: method.clone(),
            url: redact(url),
            problem: problem.into(),
        }
    }

    /// The HTTP status of the registry's answer, where there was one.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status),
            Self::Token { source, .. }
            | Self::TagTaken { source, .. }
            | Self::NoDeletion { source, .. } => source.status(),
            _ => None,
        }
    }

    /// The registry's own error code, such as `MANIFEST_UNKNOWN`, where there was one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.code.as_deref(),
            Self::Token { source, .. }
            | Self::TagTaken { source, .. }
            | Self::NoDeletion { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Whether the registry says that the thing does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == 404)
    }

    /// Whether a manifest was refused because the registry does not know a blob of it.
    #[must_use]
    pub fn is_blob_unknown(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.blob_unknown)
    }

    /// Whether trying again later may help (D6.4).
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // 501 and 505 say "never"; 499 and 522 are proxies giving up.
            Self::Refused(refusal) => {
                matches!(
                    refusal.status,
                    408 | 429 | 499 | 500 | 502 | 503 | 504 | 520..=529
                )
            }
            Self::Connect { .. } => {
                let text = self.chain();
                !(text.contains("Connection refused")
                    || is_tls_problem(&text)
                    || is_unknown_host(&text))
            }
            Self::Network { source, .. } => !source.is_builder() && !self.wants_certificate(),
            Self::Stalled { .. } | Self::CutShort { .. } => true,
            Self::Token { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Whether nobody listens at the address, or the name is unknown.
    pub(super) fn is_unreachable(&self) -> bool {
        if !matches!(self, Self::Connect { .. }) {
            return false;
        }
        let text = self.chain();
        text.contains("Connection refused") || is_unknown_host(&text)
    }

    /// The error and its causes in one line, for people who are told that kiln tries again.
    pub(super) fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(mut cause) = next {
            if is_library_error(cause) {
                while let Some(deeper) = cause.source() {
                    cause = deeper;
                }
            }
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// Whether the server closed the connection for want of a client's certificate that it likes.
    pub(super) fn wants_certificate(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Connect { .. })
            && wants_certificate(&self.chain())
    }

    /// The messages of the causes, for looking at what the libraries keep to themselves.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Whether a cause is the HTTP library's, whose message tells less than the last of its causes.
#[must_use]
pub fn is_library_error(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<reqwest::Error>()
}

/// What a server says of the certificate that a client shows, or does not.
pub(super) fn wants_certificate(text: &str) -> bool {
    let alerts = ["CertificateRequired", "BadCertificate", "UnknownCA"];
    text.contains("received fatal alert") && alerts.iter().any(|alert| text.contains(alert))
}

/// The TLS library's reasons that another attempt does not change.
fn is_tls_problem(text: &str) -> bool {
    text.contains("invalid peer certificate")
        || text.contains("InvalidContentType")
        || text.contains("peer is incompatible")
        || wants_certificate(text)
}

/// A name that the resolver knows not to exist; "try again" answers are left out on purpose.
pub(super) fn is_unknown_host(text: &str) -> bool {
    text.contains("Name or service not known")
        || text.contains("Name does not resolve")
        || text.contains("No address associated")
}
