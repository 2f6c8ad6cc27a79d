//! How often and when a request is tried again (D6.4).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::ClientError;

/// The rules, the same for all requests of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// How many times after the first.
    pub(super) retries: u32,
    /// The wait before the first retry is at most this; it doubles each time.
    pub(super) delay: Duration,
    /// No single wait of our own is longer.
    pub(super) ceiling: Duration,
    /// The longest wait that a registry may ask for.
    pub(super) patience: Duration,
}

/// The retries of one request.
#[derive(Debug)]
pub(super) struct Backoff {
    policy: Policy,
    attempt: u32,
    /// Whether the host has answered before: then nobody listening is a restart, and a name that is
    /// not known any more is the name server's trouble; neither is a wrong name.
    known: bool,
}

impl Backoff {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            attempt: 0,
            known: false,
        }
    }

    /// For a request to a host that has answered before.
    pub(super) fn known(policy: Policy) -> Self {
        Self {
            known: true,
            ..Self::new(policy)
        }
    }

    /// Starts counting anew, after progress.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many retries there were since the last progress.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How long to wait before the next attempt; `None` when there is to be none.
    pub(super) fn next(&mut self, error: &ClientError) -> Option<Duration> {
        let may_help = error.is_transient() || (self.known && error.is_unreachable());
        if !may_help || self.attempt >= self.policy.retries {
            return None;
        }
        let doubled = self.policy.delay.saturating_mul(1 << self.attempt.min(16));
        self.attempt += 1;
        let jitter = full_jitter(doubled.min(self.policy.ceiling));
        match retry_after(error) {
            // Waiting less than asked only makes it worse; waiting for hours helps nobody.
            Some(asked) if asked > self.policy.patience => None,
            Some(asked) => Some(asked + jitter),
            None => Some(jitter),
        }
    }
}

fn retry_after(error: &ClientError) -> Option<Duration> {
    match error {
        ClientError::Refused(refusal) => refusal.retry_after,
        ClientError::Token { source, .. } => retry_after(source),
        _ => None,
    }
}

/// A duration between nothing and `most`, so that many clients do not come back at once.
pub(super) fn full_jitter(most: Duration) -> Duration {
    // The standard library seeds this hasher at random; nothing here needs a better source.
    let random = RandomState::new().build_hasher().finish();
    let permille = u32::try_from(random % 1000).unwrap_or(500);
    most * permille / 1000
}

/// What `Retry-After` asks for: seconds, or a date.
pub(super) fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(Duration::from_secs(http_date(text)?.saturating_sub(now)))
}

/// Seconds since 1970 of an HTTP date, `Wed, 21 Oct 2015 07:28:00 GMT`.
pub(super) fn http_date(text: &str) -> Option<u64> {
    let mut words = text.split_once(',')?.1.split_whitespace();
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = i64::try_from(months.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    let sane = (1970..=9999).contains(&year)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    if words.next() != Some("GMT") || !sane {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    u64::try_from(seconds).ok()
}

/// Days since 1 January 1970, with years that begin in March so that leap days come last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::refusal::Refusal;
    use reqwest::{Method, Url};

    fn policy() -> Policy {
        Policy {
            retries: 2,
            delay: Duration::from_millis(100),
            ceiling: Duration::from_millis(150),
            patience: Duration::from_secs(10),
        }
    }

    fn refused(status: u16, retry_after: Option<u64>) -> ClientError {
        let url = Url::parse("http://r/v2/").unwrap();
        let mut refusal = Refusal::new(&Method::GET, &url, status, b"");
        refusal.retry_after = retry_after.map(Duration::from_secs);
        ClientError::Refused(Box::new(refusal))
    }

    #[test]
    fn attempts_are_counted_and_waits_bounded() {
        let mut backoff = Backoff::new(policy());
        assert!(backoff.next(&refused(503, None)).unwrap() <= Duration::from_millis(100));
        assert!(backoff.next(&refused(503, None)).unwrap() <= Duration::from_millis(150));
        assert_eq!(backoff.next(&refused(503, None)), None);
        backoff.reset();
        assert!(backoff.next(&refused(503, None)).is_some());
        assert_eq!(Backoff::new(policy()).next(&refused(404, None)), None);
    }

    #[test]
    fn d6_3_retry_after_is_kept_unless_it_is_too_long() {
        let wait = Backoff::new(policy()).next(&refused(429, Some(3))).unwrap();
        assert!(wait >= Duration::from_secs(3));
        assert_eq!(Backoff::new(policy()).next(&refused(429, Some(3600))), None);
    }

    #[test]
    fn http_dates() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            http_date("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(1_445_412_480)
        );
        assert_eq!(
            http_date("Thu, 29 Feb 2024 23:59:59 GMT"),
            Some(1_709_251_199)
        );
        for bad in [
            "",
            "soon",
            "Wed, 21 Oct",
            "Wed, 99 Oct 2015 07:28:00 GMT",
            "Wed, 21 Oct 2015 07:28:00 CET",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            RETRY_AFTER,
            "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap(),
        );
        assert_eq!(asked_wait(&headers), Some(Duration::ZERO));
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(asked_wait(&headers), Some(Duration::from_secs(7)));
    }
}
