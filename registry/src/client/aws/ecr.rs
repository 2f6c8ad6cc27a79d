//! The registries of Amazon, and their passwords: `GetAuthorizationToken`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;

use super::sigv4::{self, Scope};
use super::{AwsEnvironment, AwsError, Issued, Keys, Services};
use crate::client::error::redact;
use crate::client::wire::Request;
use crate::credentials::{Login, Secret};

/// What is asked for.
const WHAT: &str = "a password for the registry";

/// The registry that all of AWS' customers share.
const PUBLIC: &str = "public.ecr.aws";

/// The domains of AWS' partitions, and where each has its services.
const DOMAINS: [(&str, &str); 8] = [
    ("amazonaws.com", "amazonaws.com"),
    ("amazonaws.com.cn", "amazonaws.com.cn"),
    ("amazonaws.eu", "amazonaws.eu"),
    ("on.aws", "api.aws"),
    (
        "on.amazonwebservices.com.cn",
        "api.amazonwebservices.com.cn",
    ),
    ("c2s.ic.gov", "c2s.ic.gov"),
    ("sc2s.sgov.gov", "sc2s.sgov.gov"),
    ("cloud.adc-e.uk", "cloud.adc-e.uk"),
];

/// What the name of a registry says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Host<'a> {
    /// `ACCOUNT.dkr.ecr.REGION.amazonaws.com` and its like.
    Private {
        region: &'a str,
        /// Where its service is.
        service: String,
    },
    /// The public gallery.
    Public,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    authorization_data: OneOrMany,
}

/// The private service answers with a list, the public one with its only item.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Data),
    Many(Vec<Data>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    authorization_token: String,
    expires_at: Option<f64>,
}

impl<'a> Host<'a> {
    /// Reads a registry's name; `None` when it is not Amazon's.
    pub(super) fn parse(registry: &'a str) -> Option<Self> {
        if registry == PUBLIC {
            return Some(Self::Public);
        }
        let (account, rest) = registry.split_once('.')?;
        let digits = account.bytes().all(|byte| byte.is_ascii_digit());
        if account.len() != 12 || !digits {
            return None;
        }
        // Names for both kinds of IP have a dash: `dkr-ecr`.
        let (kind, rest) = ["dkr.ecr", "dkr-ecr"]
            .iter()
            .find_map(|kind| Some((*kind, rest.strip_prefix(kind)?)))?;
        let (fips, rest) = match rest.strip_prefix("-fips") {
            Some(rest) => ("-fips", rest),
            None => ("", rest),
        };
        let (region, domain) = rest.strip_prefix('.')?.split_once('.')?;
        let (_, services) = DOMAINS.iter().find(|(known, _)| *known == domain)?;
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if region.is_empty() || !region.bytes().all(word) {
            return None;
        }
        let api = match (kind, fips) {
            ("dkr.ecr", "") => "api.ecr",
            ("dkr.ecr", _) => "ecr-fips",
            _ => "ecr",
        };
        let dash = if kind == "dkr-ecr" { fips } else { "" };
        Some(Self::Private {
            region,
            service: format!("https://{api}{dash}.{region}.{services}/"),
        })
    }

    pub(super) fn region(&self) -> &str {
        match self {
            Self::Private { region, .. } => region,
            Self::Public => "us-east-1",
        }
    }

    /// Asks for the password.
    pub(super) async fn password(
        &self,
        environment: &AwsEnvironment,
        services: &Services<'_>,
        keys: &Keys,
    ) -> Result<Issued, AwsError> {
        let (variable, usual, service, target) = match self {
            Self::Private { service, .. } => (
                "ECR",
                service.as_str(),
                "ecr",
                "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            ),
            Self::Public => (
                "ECR_PUBLIC",
                "https://api.ecr-public.us-east-1.amazonaws.com/",
                "ecr-public",
                "SpencerFrontendService.GetAuthorizationToken",
            ),
        };
        let url = environment.endpoint(variable, usual)?;
        let request = || {
            let mut request = Request::new(Method::POST, url.clone());
            let kind = HeaderValue::from_static("application/x-amz-json-1.1");
            request.headers.insert(CONTENT_TYPE, kind);
            let target = HeaderValue::from_static(target);
            request.headers.insert("x-amz-target", target);
            request.body = "{}".into();
            let scope = Scope {
                region: self.region(),
                service,
            };
            sigv4::sign(&mut request, keys, scope, Timestamp::now())
                .map(|()| request)
                .ok_or_else(|| AwsError::Keys {
                    origin: keys.origin.clone(),
                })
        };
        let answer = services.ask(WHAT, request).await?;
        let issued = read(&answer).ok_or_else(|| AwsError::Answer {
            url: redact(&url),
            what: WHAT.to_owned(),
        })?;
        Ok(Issued {
            origin: format!("AWS, with the keys of {}", keys.origin),
            ..issued
        })
    }
}

fn read(answer: &[u8]) -> Option<Issued> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let data = match answer.authorization_data {
        OneOrMany::One(data) => data,
        OneOrMany::Many(list) => list.into_iter().next()?,
    };
    let pair = STANDARD.decode(data.authorization_token).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (username, password) = pair.split_once(':')?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`as` stops at the limits, which the type refuses"
    )]
    let expires = data
        .expires_at
        .and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
    Some(Issued {
        login: Login::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        },
        origin: String::new(),
        expires,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_7_names_of_amazons_registries() {
        let service = |name: &str| match Host::parse(name)? {
            Host::Private { region, service } => Some(format!("{region} {service}")),
            Host::Public => Some("public".to_owned()),
        };
        for (name, expected) in [
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "eu-west-1 https://api.ecr.eu-west-1.amazonaws.com/",
            ),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1 https://ecr-fips.us-gov-west-1.amazonaws.com/",
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1 https://api.ecr.cn-north-1.amazonaws.com.cn/",
            ),
            (
                "123456789012.dkr-ecr.eu-west-1.on.aws",
                "eu-west-1 https://ecr.eu-west-1.api.aws/",
            ),
            (
                "123456789012.dkr-ecr-fips.us-east-1.on.aws",
                "us-east-1 https://ecr-fips.us-east-1.api.aws/",
            ),
            ("public.ecr.aws", "public"),
        ] {
            assert_eq!(service(name).as_deref(), Some(expected), "{name}");
        }
        for other in [
            "docker.io",
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.a/b.amazonaws.com",
            "evil.example.dkr.ecr.eu-west-1.amazonaws.com",
        ] {
            assert_eq!(service(other), None, "{other}");
        }
    }

    #[test]
    fn d3_7_answers_of_both_services() {
        let one = r#"{"authorizationToken":"QVdTOnA6dw==","expiresAt":1.7E9}"#;
        for answer in [
            format!(r#"{{"authorizationData":[{one}]}}"#),
            format!(r#"{{"authorizationData":{one}}}"#),
        ] {
            let issued = read(answer.as_bytes()).unwrap();
            let password = Secret::new("p:w");
            let username = "AWS".to_owned();
            assert_eq!(issued.login, Login::Basic { username, password });
            assert_eq!(issued.expires.unwrap().as_second(), 1_700_000_000);
        }
        for wrong in [
            "",
            "{}",
            r#"{"authorizationData":[]}"#,
            r#"{"authorizationData":[{"authorizationToken":"!"}]}"#,
            r#"{"authorizationData":[{"authorizationToken":"QVdT"}]}"#,
        ] {
            assert!(read(wrong.as_bytes()).is_none(), "{wrong}");
        }
        let far = r#"{"authorizationData":[{"authorizationToken":"QVdTOnA=","expiresAt":1e300}]}"#;
        assert!(read(far.as_bytes()).unwrap().expires.is_none());
    }
}
