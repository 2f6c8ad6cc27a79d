//! Passwords for Amazon's registries, from the AWS credentials of the environment: no helper program
//! needs to be installed (D3.7).
//!
//! `sources` finds the keys as AWS' own programs do, `sigv4` signs with them, `ecr` asks the
//! registry's service for a password, which holds for some hours.

mod ecr;
mod profile;
mod s3;
mod sigv4;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::error::{ClientError, clean};
use super::refusal::Refusal;
use super::retry::{Backoff, Policy};
use super::wire::{Request, Wire};
use crate::credentials::{Login, Secret};

pub use s3::{Bucket, BucketOptions};

/// The largest answer of one of AWS' services.
const ANSWER: usize = 256 << 10;

/// How long one of AWS' services may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The part of the environment that AWS' programs look at.
#[derive(Clone, Default)]
pub struct AwsEnvironment {
    variables: BTreeMap<String, Secret>,
    home: Option<PathBuf>,
}

impl fmt::Debug for AwsEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsEnvironment").finish_non_exhaustive()
    }
}

impl AwsEnvironment {
    /// The environment of this process.
    #[must_use]
    pub fn current() -> Self {
        let known = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let value = value.into_string().ok()?;
            (name.starts_with("AWS_") && !value.is_empty()).then_some((name, value))
        });
        Self::new(known, std::env::home_dir())
    }

    /// Some variables, and the folder that holds `.aws`.
    #[must_use]
    pub fn new(
        variables: impl IntoIterator<Item = (String, String)>,
        home: Option<PathBuf>,
    ) -> Self {
        let variables = variables.into_iter();
        Self {
            variables: variables
                .map(|(name, value)| (name, Secret::new(value)))
                .collect(),
            home,
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(Secret::expose)
    }

    fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    /// The address of a service: what the variables say, else where AWS has it.
    fn endpoint(&self, service: &str, usual: &str) -> Result<Url, AwsError> {
        let own = format!("AWS_ENDPOINT_URL_{service}");
        let ignored = self.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let names = [own.as_str(), "AWS_ENDPOINT_URL"];
        let given = names
            .into_iter()
            .find_map(|name| Some((name, self.get(name).filter(|_| !ignored)?)));
        let (name, text) = given.unwrap_or(("", usual));
        let http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let url = Url::parse(text).ok().filter(http);
        url.ok_or_else(|| AwsError::Variable {
            variable: name.to_owned(),
            problem: "it holds no http address",
        })
    }
}

/// Why the AWS credentials of the environment give no password. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// A variable is of no use.
    #[error("the variable {variable} is of no use: {problem}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read `{file}`", file = file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A profile is of no use.
    #[error("the AWS profile `{profile}` is of no use: {problem}")]
    Profile {
        /// Its name.
        profile: String,
        /// What is wrong.
        problem: String,
    },
    /// A service refused, or could not be asked.
    #[error("cannot get {what}")]
    Service {
        /// What was asked for.
        what: String,
        /// Why it did not come.
        source: Box<ClientError>,
    },
    /// A service's answer cannot be understood.
    #[error("`{url}` answered without {what}")]
    Answer {
        /// The service.
        url: String,
        /// What was asked for.
        what: String,
    },
    /// Keys that cannot stand in a request.
    #[error("the AWS keys of {origin} hold characters that no key has")]
    Keys {
        /// Where they come from.
        origin: String,
    },
}

/// What AWS knows a caller by.
struct Keys {
    id: String,
    secret: Secret,
    session: Option<Secret>,
    /// Where they come from, for people.
    origin: String,
}

/// A password that AWS gave.
pub(super) struct Issued {
    pub(super) login: Login,
    pub(super) origin: String,
    /// When it ends.
    pub(super) expires: Option<Timestamp>,
}

/// Whether a registry is one that AWS credentials are for.
pub(super) fn is_ecr(registry: &str) -> bool {
    ecr::Host::parse(registry).is_some()
}

/// The password for a registry of Amazon's; `None` for any other, and without AWS credentials.
pub(super) async fn login(
    environment: &AwsEnvironment,
    wire: &Wire,
    policy: Policy,
    registry: &str,
) -> Result<Option<Issued>, AwsError> {
    let Some(host) = ecr::Host::parse(registry) else {
        return Ok(None);
    };
    let services = Services { wire, policy };
    let sources = sources::Sources {
        environment,
        services: &services,
        region: host.region(),
    };
    match sources.keys().await? {
        Some(keys) => host.password(environment, &services, &keys).await.map(Some),
        None => Ok(None),
    }
}

/// The way to AWS' services.
struct Services<'a> {
    wire: &'a Wire,
    policy: Policy,
}

/// An error answer in AWS' JSON.
#[derive(Default, Deserialize)]
struct Failure {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(default, alias = "Message")]
    message: String,
}

impl Services<'_> {
    /// Asks a service, again where that may help. What is asked is made anew each time, as a
    /// signature holds for minutes only.
    async fn ask(
        &self,
        what: &str,
        request: impl Fn() -> Result<Request, AwsError>,
    ) -> Result<Vec<u8>, AwsError> {
        let mut backoff = Backoff::new(self.policy);
        loop {
            let request = request()?;
            let client = self.wire.connections.to(&request.url).await;
            let asked = match client {
                Ok(client) => self.exchange(client, request, PATIENCE).await,
                Err(error) => Err(error),
            };
            let error = match asked {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match backoff.next(&error) {
                Some(wait) => sleep(wait).await,
                None => {
                    return Err(AwsError::Service {
                        what: what.to_owned(),
                        source: Box::new(error),
                    });
                }
            }
        }
    }

    /// Asks a service of this machine once, which no proxy may see.
    async fn ask_locally(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let client = self.wire.connections.directly_to(&request.url).await?;
        self.exchange(client, request, patience).await
    }

    async fn exchange(
        &self,
        client: reqwest::Client,
        request: Request,
        patience: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let Request {
            method,
            url,
            headers,
            body,
        } = request;
        let sent = client
            .request(method.clone(), url.clone())
            .headers(headers)
            .body(body)
            .send();
        let stalled = |_| ClientError::Stalled {
            method: method.clone(),
            url: super::error::redact(&url),
            seconds: patience.as_secs(),
        };
        let exchange = async {
            let answer = sent
                .await
                .map_err(|error| ClientError::network(&method, &url, error))?;
            let status = answer.status();
            let body = self.wire.body(&method, &url, answer, ANSWER).await?;
            if status.is_success() {
                return Ok(body);
            }
            Err(refusal(&method, &url, status.as_u16(), &body))
        };
        timeout(patience, exchange).await.map_err(stalled)?
    }
}

/// An error answer; of its message the first line, as the others of a refused signature hold what
/// was signed.
fn refusal(method: &reqwest::Method, url: &Url, status: u16, body: &[u8]) -> ClientError {
    let mut refusal = Refusal::new(method, url, status, b"");
    let text = String::from_utf8_lossy(body);
    let (code, message) = match serde_json::from_slice::<Failure>(body) {
        Ok(failure) => (failure.kind, failure.message),
        Err(_) => (
            element(&text, "Code").unwrap_or_default(),
            element(&text, "Message").unwrap_or_default(),
        ),
    };
    if !code.is_empty() {
        let code = code.rsplit('#').next().unwrap_or_default();
        refusal.code = Some(clean(code, 64));
    }
    if let Some(line) = message.lines().next().filter(|line| !line.is_empty()) {
        refusal.message = clean(line, 300);
    }
    ClientError::Refused(Box::new(refusal))
}

/// The text of the first element of a name; the answers that are read so hold no entities but in
/// messages.
fn element(xml: &str, name: &str) -> Option<String> {
    let start = xml.split_once(&format!("<{name}>"))?.1;
    let text = start.split_once(&format!("</{name}>"))?.0.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_7_refusals_hold_no_more_than_a_line() {
        let url = Url::parse("https://ecr.example/").unwrap();
        let shown = |body: &str| {
            let error = refusal(&reqwest::Method::POST, &url, 400, body.as_bytes());
            error.to_string()
        };
        let json = r#"{"__type":"com.amazon#InvalidSignatureException",
            "message":"The signature does not match.\n\nx-amz-security-token:hunter2"}"#;
        assert_eq!(
            shown(json),
            "POST `https://ecr.example/`: 400 InvalidSignatureException: The signature does not match."
        );
        let xml = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not you</Message></Error></ErrorResponse>";
        assert_eq!(
            shown(xml),
            "POST `https://ecr.example/`: 400 AccessDenied: Not you"
        );
        assert!(shown("<html>").contains("400: Bad Request"));
    }

    #[test]
    fn d3_7_addresses_of_services() {
        let endpoint = |variables: &[(&str, &str)]| {
            let variables = variables.iter();
            let variables = variables.map(|(name, value)| ((*name).into(), (*value).into()));
            let environment = AwsEnvironment::new(variables, None);
            let url = environment.endpoint("ECR", "https://usual.example");
            url.map_or_else(|error| error.to_string(), |url| url.to_string())
        };
        let both = [
            ("AWS_ENDPOINT_URL_ECR", "http://own:1/"),
            ("AWS_ENDPOINT_URL", "http://all:1/"),
        ];
        assert_eq!(endpoint(&[]), "https://usual.example/");
        assert_eq!(endpoint(&both), "http://own:1/");
        assert_eq!(endpoint(&both[1..]), "http://all:1/");
        let ignored = [both[0], ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")];
        assert_eq!(endpoint(&ignored), "https://usual.example/");
        assert!(endpoint(&[("AWS_ENDPOINT_URL_ECR", "x")]).contains("AWS_ENDPOINT_URL_ECR"));
    }
}
