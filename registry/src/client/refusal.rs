//! What a registry says when it says no (D6.1).

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::error::{clean, redact};
use crate::digest::Digest;

/// An error answer of a registry (D6.1).
#[derive(Debug, thiserror::Error)]
#[error("{method} `{url}`: {status}{}{}", tail(" ", code.as_deref()), tail(": ", Some(message.as_str())))]
pub struct Refusal {
    /// The method of the request.
    pub method: Method,
    /// Its address, without the query.
    pub url: String,
    /// The HTTP status.
    pub status: u16,
    /// The registry's own code, such as `NAME_UNKNOWN`.
    pub code: Option<String>,
    /// What the registry says about it; control characters are removed.
    pub message: String,
    /// Whether one of its errors, and not always the first, is that it lacks a blob.
    pub blob_unknown: bool,
    /// Digests that the error's detail names.
    pub digests: Vec<Digest>,
    /// How long the registry wants to be left alone.
    pub retry_after: Option<Duration>,
}

fn tail(lead: &str, text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .map_or_else(String::new, |text| format!("{lead}{text}"))
}

#[derive(Default, Deserialize)]
struct Envelope {
    #[serde(default)]
    errors: Vec<Entry>,
    // Token services use their own forms: `details` (docker) or `error_description` (OAuth).
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    detail: serde_json::Value,
}

impl Refusal {
    /// Reads an error answer; a body that is no JSON envelope (proxies, login pages) is cut short.
    pub(super) fn new(method: &Method, url: &Url, status: u16, body: &[u8]) -> Self {
        let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
        let mut code = None;
        let mut digests = Vec::new();
        let mut blob_unknown = false;
        let message = match envelope {
            Some(envelope) if !envelope.errors.is_empty() => {
                code = envelope.errors.iter().find_map(|entry| entry.code.clone());
                for entry in &envelope.errors {
                    blob_unknown |= entry.is_blob_unknown();
                    collect_digests(&entry.detail, &mut digests, 4);
                }
                let messages: Vec<&str> = envelope.errors.iter().filter_map(Entry::text).collect();
                messages.join("; ")
            }
            Some(envelope) => {
                code = envelope.error.clone();
                envelope
                    .error_description
                    .or(envelope.details)
                    .or(envelope.message)
                    .unwrap_or_default()
            }
            None => plain_text(body),
        };
        // An answer to HEAD has no body; the status in words is better than a bare number.
        let message = match StatusCode::from_u16(status) {
            Ok(known) if message.is_empty() && code.is_none() => {
                known.canonical_reason().unwrap_or_default().to_owned()
            }
            _ => message,
        };
        Self {
            method: method.clone(),
            url: redact(url),
            status,
            code: code.map(|code| clean(&code, 64)),
            message: clean(&message, 500),
            blob_unknown,
            digests,
            retry_after: None,
        }
    }
}

impl Entry {
    fn is_blob_unknown(&self) -> bool {
        let code = self.code.as_deref();
        matches!(code, Some("MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN"))
    }

    fn text(&self) -> Option<&str> {
        let detail = self.detail.as_str();
        self.message
            .as_deref()
            .filter(|text| !text.is_empty())
            .or(detail)
    }
}

/// Collects the digests in an error's detail, which registries shape as they like.
fn collect_digests(value: &serde_json::Value, found: &mut Vec<Digest>, depth: u8) {
    use serde_json::Value;
    if depth == 0 || found.len() >= 64 {
        return;
    }
    match value {
        Value::String(text) => found.extend(text.parse::<Digest>()),
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_digests(item, found, depth - 1)),
        Value::Object(members) => members
            .values()
            .for_each(|item| collect_digests(item, found, depth - 1)),
        _ => {}
    }
}

/// The first line of a body that is text and not a page of HTML.
fn plain_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start();
    if text.starts_with('<') {
        return String::new();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::error::ClientError;

    fn refusal(status: u16, body: &str) -> Refusal {
        let url = Url::parse("https://user:pw@r.example/v2/a/manifests/1?token=s3cret#f").unwrap();
        Refusal::new(&Method::GET, &url, status, body.as_bytes())
    }

    #[test]
    fn d6_1_envelopes_of_every_kind() {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"1"}}]}"#;
        assert_eq!(
            refusal(404, body).to_string(),
            "GET `https://r.example/v2/a/manifests/1`: 404 MANIFEST_UNKNOWN: manifest unknown"
        );
        assert_eq!(
            refusal(401, r#"{"details":"incorrect username or password"}"#).message,
            "incorrect username or password"
        );
        assert_eq!(
            refusal(
                400,
                r#"{"error":"invalid_grant","error_description":"expired"}"#
            )
            .code
            .as_deref(),
            Some("invalid_grant")
        );
        assert_eq!(refusal(502, "<html>bad</html>").message, "Bad Gateway");
        assert_eq!(
            refusal(502, "upstream\u{1b}[31m gone\nmore").message,
            "upstream[31m gone"
        );
        assert_eq!(refusal(500, r#"{"errors":null}"#).status, 500);
    }

    #[test]
    fn secrets_in_addresses_are_not_kept() {
        let text = format!("{:?}", refusal(500, ""));
        assert!(!text.contains("s3cret") && !text.contains("pw"), "{text}");
    }

    #[test]
    fn the_digests_of_unknown_blobs_are_found() {
        let digest = Digest::of(b"x");
        let body = format!(
            r#"{{"errors":[{{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown","detail":{{"digest":"{digest}"}}}}]}}"#
        );
        assert_eq!(refusal(404, &body).digests, [digest]);
    }

    #[test]
    fn d7_3_an_unknown_blob_is_seen_behind_another_error() {
        // docker-registry, while another push of the same blob writes the link to it.
        let digest = Digest::of(b"x");
        let body = format!(
            r#"{{"errors":[
                {{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"}},
                {{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry","detail":{{"digest":"{digest}"}}}}
            ]}}"#
        );
        let refused = refusal(400, &body);
        assert_eq!(refused.digests, [digest]);
        assert!(ClientError::Refused(Box::new(refused)).is_blob_unknown());
        let other = refusal(400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
        assert!(!ClientError::Refused(Box::new(other)).is_blob_unknown());
    }

    #[test]
    fn d6_4_what_is_tried_again() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(ClientError::Refused(Box::new(refusal(status, ""))).is_transient());
        }
        for status in [400, 401, 403, 404, 405, 409, 413, 416, 501] {
            assert!(!ClientError::Refused(Box::new(refusal(status, ""))).is_transient());
        }
    }
}
