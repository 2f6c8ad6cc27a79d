//! Addresses: which thing of which repository a request is about.

use std::borrow::Cow;

use hyper::Uri;

use super::reply::Refused;
use crate::digest::Digest;
use crate::reference::{is_repository, is_tag};

/// The longest query, bytes.
const QUERY: usize = 8 << 10;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Root,
    Catalog,
    Tags,
    Referrers(Digest),
    Blob(Digest),
    Uploads,
    Upload(String),
    Manifest(Wanted),
}

/// A manifest's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Tag(String),
    Digest(Digest),
}

/// An address that has been understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The repository, valid by the grammar; empty where the target is none of a repository's.
    pub(super) name: String,
    pub(super) target: Target,
    pub(super) query: Query,
}

/// The parameters of a request, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// The first value of a parameter.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.iter().filter(move |(name, _)| name == key);
        pairs.map(|(_, value)| value.as_str())
    }

    /// The parameter `digest`.
    pub(super) fn digest(&self) -> Option<Result<Digest, Refused>> {
        self.get("digest").map(digest)
    }
}

impl Route {
    pub(super) fn parse(uri: &Uri) -> Result<Self, Refused> {
        let query = query(uri.query().unwrap_or_default())?;
        let unknown = || Refused::new(404, "NAME_UNKNOWN", "there is nothing at this address");
        let path = decode(uri.path()).ok_or_else(unknown)?;
        let rest = path.strip_prefix("/v2/").or((path == "/v2").then_some(""));
        let rest = rest.ok_or_else(unknown)?;
        let bare = |target| Self {
            name: String::new(),
            target,
            query: query.clone(),
        };
        match rest {
            "" => return Ok(bare(Target::Root)),
            "_catalog" => return Ok(bare(Target::Catalog)),
            _ => {}
        }
        let (name, target) = split(rest).ok_or_else(unknown)?;
        if !is_repository(name) {
            let message = format!("`{name}` is no name of a repository");
            return Err(Refused::new(400, "NAME_INVALID", message));
        }
        Ok(Self {
            name: name.to_owned(),
            target: target?,
            query,
        })
    }
}

/// Splits a path into the repository and what is meant of it. A repository may itself have
/// components such as `blobs`: the last ones count.
fn split(path: &str) -> Option<(&str, Result<Target, Refused>)> {
    if let Some(name) = path.strip_suffix("/tags/list") {
        return Some((name, Ok(Target::Tags)));
    }
    let trimmed = path
        .strip_suffix("/blobs/uploads/")
        .or_else(|| path.strip_suffix("/blobs/uploads"));
    if let Some(name) = trimmed {
        return Some((name, Ok(Target::Uploads)));
    }
    let (before, last) = path.rsplit_once('/')?;
    if let Some(name) = before.strip_suffix("/blobs/uploads") {
        return Some((name, Ok(Target::Upload(last.to_owned()))));
    }
    let (name, kind) = before.rsplit_once('/')?;
    let target = match kind {
        "blobs" => digest(last).map(Target::Blob),
        "referrers" => digest(last).map(Target::Referrers),
        "manifests" if is_tag(last) => Ok(Target::Manifest(Wanted::Tag(last.to_owned()))),
        "manifests" => digest(last).map(|digest| Target::Manifest(Wanted::Digest(digest))),
        _ => return None,
    };
    Some((name, target))
}

/// A digest that a client gave.
pub(super) fn digest(text: &str) -> Result<Digest, Refused> {
    text.parse()
        .map_err(|error| Refused::digest_invalid(format!("{error}")))
}

fn query(text: &str) -> Result<Query, Refused> {
    let wrong = || Refused::new(400, "UNSUPPORTED", "the query cannot be understood");
    if text.len() > QUERY {
        return Err(wrong());
    }
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        Some((decode(key)?.into_owned(), decode(&value)?.into_owned()))
    });
    pairs.collect::<Option<_>>().map(Query).ok_or_else(wrong)
}

/// Decodes `%41`; `None` when that is no UTF-8, or malformed.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// A text for a query, with everything escaped that could be misread.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(String, Target), ()> {
        let route = Route::parse(&text.parse().unwrap()).map_err(drop)?;
        Ok((route.name, route.target))
    }

    #[test]
    fn addresses_of_every_kind() {
        let digest = Digest::of(b"x");
        let named = |name: &str, target| Ok((name.to_owned(), target));
        assert_eq!(parse("/v2/"), named("", Target::Root));
        assert_eq!(parse("/v2/_catalog?n=1"), named("", Target::Catalog));
        assert_eq!(parse("/v2/a/b/tags/list"), named("a/b", Target::Tags));
        let tag = Target::Manifest(Wanted::Tag("1.0".to_owned()));
        assert_eq!(parse("/v2/a/manifests/1.0"), named("a", tag.clone()));
        assert_eq!(parse("/v2/blobs/manifests/1.0"), named("blobs", tag));
        let manifest = Target::Manifest(Wanted::Digest(digest));
        let escaped = digest.to_string().replace(':', "%3A");
        assert_eq!(
            parse(&format!("/v2/a/manifests/{escaped}")),
            named("a", manifest)
        );
        assert_eq!(
            parse(&format!("/v2/a/blobs/{digest}")),
            named("a", Target::Blob(digest))
        );
        assert_eq!(
            parse(&format!("/v2/a/referrers/{digest}")),
            named("a", Target::Referrers(digest))
        );
        assert_eq!(parse("/v2/a/blobs/uploads/"), named("a", Target::Uploads));
        assert_eq!(
            parse("/v2/a/blobs/uploads/0f"),
            named("a", Target::Upload("0f".to_owned()))
        );
    }

    #[test]
    fn addresses_that_lead_nowhere() {
        for text in [
            "/",
            "/v1/",
            "/v2/x",
            "/v2/a/tags",
            "/v2/A/tags/list",
            "/v2/../etc/tags/list",
            "/v2/a%2F..%2Fb/tags/list",
            "/v2/a/manifests/..",
            "/v2/a/manifests/sha256:00",
            "/v2/a/blobs/sha512:0",
            "/v2/_blobs/tags/list",
            "/v2//tags/list",
            "/v2/a/x/b",
            "/v2/a/manifests/%FF",
            "/v2/a/manifests/1?x=%zz",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let long = format!("/v2/{}/tags/list", "a".repeat(256));
        assert!(parse(&long).is_err());
    }

    #[test]
    fn queries_are_decoded_and_encoded() {
        let route = Route::parse(&"/v2/?a=x%3Ay+z&a=2&b".parse().unwrap()).unwrap();
        assert_eq!(route.query.all("a").collect::<Vec<_>>(), ["x:y z", "2"]);
        assert_eq!(
            (route.query.get("b"), route.query.get("c")),
            (Some(""), None)
        );
        assert_eq!(encode("a/b c&+é"), "a/b%20c%26%2B%C3%A9");
    }
}
