//! Where AWS keys come from, in the order of AWS' own programs: variables, a web identity, a
//! profile, the container's service, the machine's.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::profile;
use super::sigv4::{self, Scope};
use super::{AwsEnvironment, AwsError, Keys, Services, element};
use crate::client::error::{ClientError, redact};
use crate::client::wire::Request;
use crate::credentials::Secret;
use crate::files::{self, is_absent};

/// Where containers of ECS ask.
const CONTAINER: &str = "http://169.254.170.2";
/// Hosts that a plain address of a container's service may name, besides loopback ones.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];
/// Where machines of EC2 ask.
const MACHINE: &str = "http://169.254.169.254";
const MACHINE_V6: &str = "http://[fd00:ec2::254]";
/// How long the machine's service is waited for: where there is none, nothing answers.
const MACHINE_PATIENCE: Duration = Duration::from_secs(2);
const CONTAINER_PATIENCE: Duration = Duration::from_secs(10);
/// How many profiles may lead to each other.
const CHAIN: u8 = 5;
/// Who assumes roles, where nobody says so.
const SESSION: &str = "kiln";

type Settings = BTreeMap<String, String>;

/// Finds keys.
pub(super) struct Sources<'a> {
    pub(super) environment: &'a AwsEnvironment,
    pub(super) services: &'a Services<'a>,
    /// The registry's region, for roles.
    pub(super) region: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Served {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
}

/// A role to assume.
struct Role<'a> {
    arn: &'a str,
    session: &'a str,
    external_id: Option<&'a str>,
}

impl Sources<'_> {
    /// The keys of the first source that has some.
    pub(super) async fn keys(&self) -> Result<Option<Keys>, AwsError> {
        if let Some(keys) = self.variables()? {
            return Ok(Some(keys));
        }
        if let Some(keys) = self.web_identity().await? {
            return Ok(Some(keys));
        }
        if let Some(keys) = self.profile().await? {
            return Ok(Some(keys));
        }
        if let Some(keys) = self.container().await? {
            return Ok(Some(keys));
        }
        self.machine().await
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.environment.get(name)
    }

    fn variables(&self) -> Result<Option<Keys>, AwsError> {
        let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let missing = |variable: &str, problem| AwsError::Variable {
            variable: variable.to_owned(),
            problem,
        };
        match (self.get(id), self.get(secret)) {
            (None, None) => Ok(None),
            (Some(_), None) => Err(missing(id, "AWS_SECRET_ACCESS_KEY is not set")),
            (None, Some(_)) => Err(missing(secret, "AWS_ACCESS_KEY_ID is not set")),
            (Some(id), Some(secret)) => Ok(Some(Keys {
                id: id.to_owned(),
                secret: Secret::new(secret),
                session: self.get("AWS_SESSION_TOKEN").map(Secret::new),
                origin: "AWS_ACCESS_KEY_ID".to_owned(),
            })),
        }
    }

    async fn web_identity(&self) -> Result<Option<Keys>, AwsError> {
        let file = self.get("AWS_WEB_IDENTITY_TOKEN_FILE");
        let (Some(file), Some(arn)) = (file, self.get("AWS_ROLE_ARN")) else {
            return Ok(None);
        };
        let session = self.get("AWS_ROLE_SESSION_NAME").unwrap_or(SESSION);
        let role = Role {
            arn,
            session,
            external_id: None,
        };
        self.with_web_identity(&role, file).await.map(Some)
    }

    async fn with_web_identity(&self, role: &Role<'_>, file: &str) -> Result<Keys, AwsError> {
        let file = PathBuf::from(file);
        let token = files::read(&file).and_then(|bytes| {
            String::from_utf8(bytes)
                .map(Zeroizing::new)
                .map_err(|_| std::io::ErrorKind::InvalidData.into())
        });
        let token = token.map_err(|source| AwsError::File { file, source })?;
        let pairs = [("WebIdentityToken", token.trim())];
        self.role("AssumeRoleWithWebIdentity", role, &pairs, None)
            .await
    }

    /// Asks the service of roles; with the keys of who wants to be another, if any.
    async fn role(
        &self,
        action: &str,
        role: &Role<'_>,
        more: &[(&str, &str)],
        keys: Option<&Keys>,
    ) -> Result<Keys, AwsError> {
        let what = format!("the keys of the role `{}`", role.arn);
        let domain = match self.region.starts_with("cn-") {
            true => "amazonaws.com.cn",
            false => "amazonaws.com",
        };
        let usual = format!("https://sts.{}.{domain}/", self.region);
        let url = self.environment.endpoint("STS", &usual)?;
        // The address type writes forms, too.
        let mut form = url.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .append_pair("Action", action)
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", role.arn)
            .append_pair("RoleSessionName", role.session)
            .extend_pairs(role.external_id.map(|id| ("ExternalId", id)))
            .extend_pairs(more);
        let form = form.query().unwrap_or_default().to_owned();
        let request = || {
            let mut request = Request::new(Method::POST, url.clone());
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers.insert(CONTENT_TYPE, kind);
            request.body = form.clone().into();
            let scope = Scope {
                region: self.region,
                service: "sts",
            };
            match keys {
                None => Ok(request),
                Some(keys) => sigv4::sign(&mut request, keys, scope, Timestamp::now())
                    .map(|()| request)
                    .ok_or_else(|| AwsError::Keys {
                        origin: keys.origin.clone(),
                    }),
            }
        };
        let answer = Zeroizing::new(self.services.ask(&what, request).await?);
        let text = String::from_utf8_lossy(&answer);
        let part = |name| element(&text, name);
        match (part("AccessKeyId"), part("SecretAccessKey")) {
            (Some(id), Some(secret)) => Ok(Keys {
                id,
                secret: Secret::new(secret),
                session: part("SessionToken").map(Secret::new),
                origin: format!("the role `{}`", role.arn),
            }),
            _ => Err(AwsError::Answer {
                url: redact(&url),
                what,
            }),
        }
    }

    async fn profile(&self) -> Result<Option<Keys>, AwsError> {
        let named = self.get("AWS_PROFILE").or(self.get("AWS_DEFAULT_PROFILE"));
        let profiles = self.profiles()?;
        let name = named.unwrap_or("default");
        match profiles.get(name) {
            Some(_) => self.of_profile(&profiles, name, CHAIN).await,
            None if named.is_some() => Err(broken(name, "there is none of that name")),
            None => Ok(None),
        }
    }

    /// The profiles of both files; where both have a setting, the one of `credentials` counts.
    fn profiles(&self) -> Result<profile::Profiles, AwsError> {
        let mut all = profile::Profiles::new();
        let places = [
            ("AWS_CONFIG_FILE", "config", true),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials", false),
        ];
        for (variable, name, config) in places {
            let home = || Some(self.environment.home.as_ref()?.join(".aws").join(name));
            let Some(file) = self.get(variable).map(PathBuf::from).or_else(home) else {
                continue;
            };
            let bytes = match files::read(&file) {
                Ok(bytes) => Zeroizing::new(bytes),
                Err(error) if is_absent(&error) => continue,
                Err(source) => return Err(AwsError::File { file, source }),
            };
            let text = String::from_utf8_lossy(&bytes);
            for (name, settings) in profile::parse(&text, config) {
                all.entry(name).or_default().extend(settings);
            }
        }
        Ok(all)
    }

    /// The keys of a profile; `None` when it has nothing to do with keys.
    fn of_profile<'a>(
        &'a self,
        profiles: &'a profile::Profiles,
        name: &'a str,
        left: u8,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Keys>, AwsError>> + Send + 'a>> {
        Box::pin(async move {
            let settings = profiles
                .get(name)
                .ok_or_else(|| broken(name, "there is none of that name"))?;
            let get = |key: &str| settings.get(key).map(String::as_str);
            if let Some(arn) = get("role_arn") {
                let role = Role {
                    arn,
                    session: get("role_session_name").unwrap_or(SESSION),
                    external_id: get("external_id"),
                };
                if let Some(file) = get("web_identity_token_file") {
                    return self.with_web_identity(&role, file).await.map(Some);
                }
                let keys = self.behind(profiles, name, settings, left).await?;
                return self
                    .role("AssumeRole", &role, &[], Some(&keys))
                    .await
                    .map(Some);
            }
            match (get("aws_access_key_id"), get("aws_secret_access_key")) {
                (Some(id), Some(secret)) => Ok(Some(Keys {
                    id: id.to_owned(),
                    secret: Secret::new(secret),
                    session: get("aws_session_token").map(Secret::new),
                    origin: format!("the profile `{name}`"),
                })),
                (None, None) => match ["credential_process", "sso_session", "sso_start_url"]
                    .into_iter()
                    .find(|key| get(key).is_some())
                {
                    Some(key) => Err(broken(name, &format!("kiln does not know `{key}`"))),
                    None => Ok(None),
                },
                _ => Err(broken(name, "it has half of a pair of keys")),
            }
        })
    }

    /// The keys with which a profile's role is assumed.
    async fn behind(
        &self,
        profiles: &profile::Profiles,
        name: &str,
        settings: &Settings,
        left: u8,
    ) -> Result<Keys, AwsError> {
        if left == 0 {
            return Err(broken(name, "too many profiles lead to each other"));
        }
        let source = settings.get("source_profile");
        let keys = match (source, settings.get("credential_source")) {
            // A profile with keys may name itself.
            (Some(source), _) if source == name => {
                let mut own = profiles.clone();
                if let Some(settings) = own.get_mut(name) {
                    settings.remove("role_arn");
                }
                self.of_profile(&own, name, left - 1).await?
            }
            (Some(source), _) => self.of_profile(profiles, source, left - 1).await?,
            (None, Some(kind)) => match kind.as_str() {
                "Environment" => self.variables()?,
                "EcsContainer" => self.container().await?,
                "Ec2InstanceMetadata" => self.machine().await?,
                _ => return Err(broken(name, "its `credential_source` is unknown")),
            },
            (None, None) => {
                return Err(broken(name, "it has a `role_arn`, but no `source_profile`"));
            }
        };
        keys.ok_or_else(|| broken(name, "what its role is assumed with has no keys"))
    }

    async fn container(&self) -> Result<Option<Keys>, AwsError> {
        let [relative, full] = [
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        let (variable, address) = match (self.get(relative), self.get(full)) {
            (Some(path), _) => (relative, format!("{CONTAINER}{path}")),
            (None, Some(address)) => (full, address.to_owned()),
            (None, None) => return Ok(None),
        };
        let url = Url::parse(&address).ok().filter(is_near);
        let url = url.ok_or_else(|| AwsError::Variable {
            variable: variable.to_owned(),
            problem: "it names neither a service of this machine nor an https address",
        })?;
        let mut request = Request::get(url.clone());
        if let Some(token) = self.container_token()? {
            let value = HeaderValue::from_str(token.trim()).map_err(|_| AwsError::Variable {
                variable: "AWS_CONTAINER_AUTHORIZATION_TOKEN".to_owned(),
                problem: "it cannot stand in a request",
            });
            let mut value = value?;
            value.set_sensitive(true);
            request.headers.insert(AUTHORIZATION, value);
        }
        let answer = self.services.ask_locally(request, CONTAINER_PATIENCE).await;
        let what = "the keys of the container";
        let answer = answer.map_err(|source| AwsError::Service {
            what: what.to_owned(),
            source: Box::new(source),
        })?;
        served(&answer, "the container's service")
            .map(Some)
            .ok_or_else(|| AwsError::Answer {
                url: redact(&url),
                what: what.to_owned(),
            })
    }

    fn container_token(&self) -> Result<Option<Zeroizing<String>>, AwsError> {
        let Some(file) = self.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") else {
            let token = self.get("AWS_CONTAINER_AUTHORIZATION_TOKEN");
            return Ok(token.map(|token| Zeroizing::new(token.to_owned())));
        };
        let file = PathBuf::from(file);
        let bytes = files::read(&file).map_err(|source| AwsError::File { file, source })?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Some(Zeroizing::new(text)))
    }

    /// The machine's service, in its second version, which cannot be tricked through a proxy.
    /// Elsewhere than in AWS there is none, which is no error.
    async fn machine(&self) -> Result<Option<Keys>, AwsError> {
        if self.environment.is_true("AWS_EC2_METADATA_DISABLED") {
            return Ok(None);
        }
        let mode = self.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
        let usual = match mode {
            Some(mode) if mode.eq_ignore_ascii_case("ipv6") => MACHINE_V6,
            _ => MACHINE,
        };
        let variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
        let base = Url::parse(self.get(variable).unwrap_or(usual));
        let base = base.map_err(|_| AwsError::Variable {
            variable: variable.to_owned(),
            problem: "it holds no address",
        })?;
        let Ok(keys) = self.ask_machine(&base).await else {
            return Ok(None);
        };
        Ok(keys)
    }

    async fn ask_machine(&self, base: &Url) -> Result<Option<Keys>, ClientError> {
        let at = |path: &str| {
            let mut url = base.clone();
            url.set_path(path);
            url
        };
        let mut request = Request::new(Method::PUT, at("/latest/api/token"));
        let lifetime = HeaderValue::from_static("60");
        request
            .headers
            .insert("x-aws-ec2-metadata-token-ttl-seconds", lifetime);
        let ask = |request| self.services.ask_locally(request, MACHINE_PATIENCE);
        let token = Zeroizing::new(ask(request).await?);
        let Ok(mut token) = HeaderValue::from_bytes(&token) else {
            return Ok(None);
        };
        token.set_sensitive(true);
        let get = |path: &str| {
            let mut request = Request::get(at(path));
            request
                .headers
                .insert("x-aws-ec2-metadata-token", token.clone());
            ask(request)
        };
        let roles = "/latest/meta-data/iam/security-credentials/";
        let role = get(roles).await?;
        let role = String::from_utf8_lossy(&role);
        let Some(role) = role.lines().next().filter(|role| !role.is_empty()) else {
            return Ok(None);
        };
        let answer = Zeroizing::new(get(&format!("{roles}{role}")).await?);
        Ok(served(&answer, "the machine's role"))
    }
}

fn broken(profile: &str, problem: &str) -> AwsError {
    AwsError::Profile {
        profile: profile.to_owned(),
        problem: problem.to_owned(),
    }
}

fn served(answer: &[u8], origin: &str) -> Option<Keys> {
    let served: Served = serde_json::from_slice(answer).ok()?;
    Some(Keys {
        id: served.access_key_id,
        secret: Secret::new(served.secret_access_key),
        session: served.token.map(Secret::new),
        origin: origin.to_owned(),
    })
}

/// Whether keys may be asked for there: by https, or without leaving the machine.
fn is_near(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    match url.scheme() {
        "https" => url.has_host(),
        "http" => CONTAINER_HOSTS.contains(&host) || crate::client::tls::is_loopback(url),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d3_7_keys_are_asked_for_nearby_only() {
        for (address, expected) in [
            ("http://169.254.170.2/v2/x", true),
            ("http://169.254.170.23/v1", true),
            ("http://[fd00:ec2::23]/v1", true),
            ("http://127.0.0.1:9000/", true),
            ("https://keys.example/", true),
            ("http://keys.example/", false),
            ("http://169.254.170.2.evil.example/", false),
            ("ftp://127.0.0.1/", false),
        ] {
            assert_eq!(
                is_near(&Url::parse(address).unwrap()),
                expected,
                "{address}"
            );
        }
        // What stands before an `@` is no host.
        let tricky = format!("{CONTAINER}@evil.example/");
        assert!(!is_near(&Url::parse(&tricky).unwrap()));
    }
}
