//! Answers, and refusals in the form of the specification (D6.1).

use std::io;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::StatusCode;
use serde_json::{Value, json};

use super::condition::etag;
use crate::digest::Digest;

/// An answer as hyper sends it.
pub(super) type Response = hyper::Response<BoxBody<Bytes, io::Error>>;

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply {
    response: Response,
}

impl Reply {
    pub(super) fn new(status: u16, body: BoxBody<Bytes, io::Error>) -> Self {
        let mut response = hyper::Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { response }
    }

    /// An answer without a body.
    pub(super) fn empty(status: u16) -> Self {
        let mut reply = Self::bytes(status, Vec::new());
        // An answer that cannot have a body has no length either.
        if matches!(status, 204 | 304) {
            reply.response.headers_mut().remove(CONTENT_LENGTH);
        }
        reply
    }

    pub(super) fn bytes(status: u16, body: Vec<u8>) -> Self {
        let length = body.len();
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
        Self::new(status, body.boxed()).header(CONTENT_LENGTH, length)
    }

    pub(super) fn json(status: u16, body: Vec<u8>) -> Self {
        Self::bytes(status, body).header(CONTENT_TYPE, "application/json")
    }

    /// Adds a header; a text that is no header value is left out.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand over what they have just made"
    )]
    pub(super) fn header(mut self, name: HeaderName, value: impl ToString) -> Self {
        if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
            self.response.headers_mut().append(name, value);
        }
        self
    }

    /// Adds the digest of what is answered or was stored.
    pub(super) fn digest(self, digest: Digest) -> Self {
        self.header(CONTENT_DIGEST, digest)
    }

    pub(super) fn finish(self) -> Response {
        let version = HeaderName::from_static("docker-distribution-api-version");
        self.header(version, "registry/2.0").response
    }
}

/// Why a request is not obeyed.
#[derive(Debug)]
pub(super) struct Refused {
    status: u16,
    code: &'static str,
    message: String,
    detail: Value,
    headers: Vec<(HeaderName, String)>,
}

impl Refused {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            detail: Value::Null,
            headers: Vec::new(),
        }
    }

    /// Names the digests that it is about.
    pub(super) fn about(mut self, digests: &[Digest]) -> Self {
        let named: Vec<Value> = digests
            .iter()
            .map(|digest| json!({ "digest": digest }))
            .collect();
        self.detail = Value::Array(named);
        self
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand over what they have just made"
    )]
    pub(super) fn header(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// A condition does not hold for what is there now.
    pub(super) fn precondition(now: Option<Digest>) -> Self {
        let refused = Self::new(
            412,
            "PRECONDITION",
            "it has been changed, or is there already",
        );
        match now {
            Some(digest) => refused.header(ETAG, etag(digest)).about(&[digest]),
            None => refused,
        }
    }

    pub(super) fn unsupported(message: &str) -> Self {
        Self::new(405, "UNSUPPORTED", message)
    }

    pub(super) fn blob_unknown(digest: Digest) -> Self {
        Self::new(404, "BLOB_UNKNOWN", "the repository holds no such blob").about(&[digest])
    }

    pub(super) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(400, "DIGEST_INVALID", message)
    }

    /// A bug, or a thread that ended early.
    pub(super) fn failed() -> Self {
        Self::new(500, "UNKNOWN", "the registry failed")
    }

    /// The disk failed. What exactly is not the client's to know.
    pub(super) fn disk(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(507, "DENIED", "the registry's disk is full")
            }
            _ => Self::new(500, "UNKNOWN", "the registry cannot read or write its disk"),
        }
    }

    pub(super) fn busy() -> Self {
        let refused = Self::new(503, "TOOMANYREQUESTS", "another request uses this upload");
        refused.header(RETRY_AFTER, 1)
    }
}

impl From<Refused> for Reply {
    fn from(refused: Refused) -> Self {
        let mut error = json!({ "code": refused.code, "message": refused.message });
        if !refused.detail.is_null() {
            error["detail"] = refused.detail;
        }
        let body = json!({ "errors": [error] }).to_string();
        let reply = Self::json(refused.status, body.into_bytes());
        refused
            .headers
            .into_iter()
            .fold(reply, |reply, (name, value)| reply.header(name, value))
    }
}
