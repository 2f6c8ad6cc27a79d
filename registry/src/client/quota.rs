//! How much a registry lets somebody pull, and how much of that was used (D6.3).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;

use super::transport::lock;

/// The most registries of which account is kept.
const REGISTRIES: usize = 100;

/// The manifests that were asked for at one registry, and what it says about its limit. Docker Hub
/// counts those that are fetched, and not those of which only the head is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// The registry, as references name it.
    pub registry: String,
    /// Manifests of which the head was asked for.
    pub heads: u64,
    /// Manifests that were fetched.
    pub pulls: u64,
    /// How many may be fetched in a window of time.
    pub limit: Option<u64>,
    /// How many still may be.
    pub left: Option<u64>,
    /// The window.
    pub window: Option<Duration>,
}

impl Quota {
    /// A warning, when a tenth or less of what is allowed is left.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let (limit, left) = (self.limit?, self.left?);
        let window = self.window.map_or_else(String::new, |window| {
            format!(" in {} h", window.as_secs().div_ceil(3600))
        });
        (left <= limit / 10).then(|| {
            format!(
                "only {left} of {limit} pulls{window} are left at {}: log in for more, or use a mirror",
                self.name()
            )
        })
    }

    /// Whether there is anything to tell: the registry has a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.left.is_some() || self.registry == "docker.io"
    }

    fn name(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" => "Docker Hub",
            other => other,
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.pulls == 1 { "" } else { "s" };
        let (name, heads, pulls) = (self.name(), self.heads, self.pulls);
        write!(f, "{name}: {heads} HEAD, {pulls} counted pull{plural}")?;
        match self.left {
            Some(left) => write!(f, ", {left} left"),
            None => Ok(()),
        }
    }
}

/// The accounts of all registries.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<BTreeMap<String, Quota>>);

impl Quotas {
    /// Notes an answer to a question for a manifest.
    pub(super) fn note(&self, registry: &str, method: &Method, success: bool, headers: &HeaderMap) {
        let mut all = lock(&self.0);
        if all.len() >= REGISTRIES && !all.contains_key(registry) {
            return;
        }
        let quota = all.entry(registry.to_owned()).or_insert_with(|| Quota {
            registry: registry.to_owned(),
            ..Quota::default()
        });
        match *method {
            Method::HEAD => quota.heads += 1,
            Method::GET if success => quota.pulls += 1,
            _ => {}
        }
        if let Some((limit, window)) = rate(headers, "ratelimit-limit") {
            (quota.limit, quota.window) = (Some(limit), window.or(quota.window));
        }
        if let Some((left, _)) = rate(headers, "ratelimit-remaining") {
            quota.left = Some(left);
        }
    }

    pub(super) fn all(&self) -> Vec<Quota> {
        lock(&self.0).values().cloned().collect()
    }
}

/// `100;w=21600`: a number, and the seconds of a window.
fn rate(headers: &HeaderMap, name: &str) -> Option<(u64, Option<Duration>)> {
    let text = headers.get(name)?.to_str().ok()?;
    let (number, rest) = text.split_once(';').unwrap_or((text, ""));
    let window = rest
        .split(';')
        .find_map(|part| part.trim().strip_prefix("w="));
    let window = window.and_then(|seconds| seconds.parse().ok());
    Some((number.trim().parse().ok()?, window.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(limit: &str, left: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", limit.parse().unwrap());
        headers.insert("ratelimit-remaining", left.parse().unwrap());
        headers
    }

    #[test]
    fn d6_3_what_is_left_is_told() {
        let quotas = Quotas::default();
        let none = HeaderMap::new();
        quotas.note("docker.io", &Method::HEAD, true, &none);
        quotas.note(
            "docker.io",
            &Method::HEAD,
            true,
            &headers("100;w=21600", "98;w=21600"),
        );
        quotas.note(
            "docker.io",
            &Method::GET,
            true,
            &headers("100;w=21600", "97;w=21600"),
        );
        quotas.note("docker.io", &Method::GET, false, &none);
        quotas.note("r:5000", &Method::GET, true, &none);
        let all = quotas.all();
        let text = "Docker Hub: 2 HEAD, 1 counted pull, 97 left";
        assert_eq!(
            (all[0].to_string().as_str(), all[0].warning()),
            (text, None)
        );
        assert!(all[0].is_limited() && !all[1].is_limited());
        quotas.note(
            "docker.io",
            &Method::GET,
            true,
            &headers("100;w=21600", "10"),
        );
        assert_eq!(
            quotas.all()[0].warning().unwrap(),
            "only 10 of 100 pulls in 6 h are left at Docker Hub: log in for more, or use a mirror"
        );
    }

    #[test]
    fn d6_3_headers_that_make_no_sense_are_none() {
        for bad in ["", "many", "-1;w=2", "99999999999999999999"] {
            assert_eq!(
                rate(&headers("1", bad), "ratelimit-remaining"),
                None,
                "{bad}"
            );
        }
        assert_eq!(
            rate(&headers("5;x", "1"), "ratelimit-limit"),
            Some((5, None))
        );
    }
}
