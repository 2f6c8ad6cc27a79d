//! Conditions on what an address has now (RFC 9110, 13).

use hyper::HeaderMap;
use hyper::header::{AsHeaderName, IF_MATCH, IF_NONE_MATCH};

use super::reply::Refused;
use crate::digest::Digest;

/// The entity tag of a manifest.
pub(super) fn etag(digest: Digest) -> String {
    format!("\"{digest}\"")
}

/// What a request asks of the state that it finds.
#[derive(Clone, Debug, Default)]
pub(super) struct Condition {
    /// `If-Match`: one of these is there now.
    one_of: Option<Vec<String>>,
    /// `If-None-Match`: none of these is.
    none_of: Option<Vec<String>>,
}

impl Condition {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self {
            one_of: tags(headers, IF_MATCH),
            none_of: tags(headers, IF_NONE_MATCH),
        }
    }

    /// Whether what is there now has changed, as seen by `If-Match`.
    pub(super) fn is_changed(&self, now: Option<Digest>) -> bool {
        let now = now.map(etag);
        // Ours are strong tags, and a weak one is never equal to those here.
        let there = |tag: &String| now.is_some() && (tag == "*" || now.as_ref() == Some(tag));
        self.one_of
            .as_ref()
            .is_some_and(|tags| !tags.iter().any(there))
    }

    /// Whether what is there now is known to the client, as seen by `If-None-Match`.
    pub(super) fn is_known(&self, now: Option<Digest>) -> bool {
        let now = now.map(etag);
        let there = |tag: &String| {
            let strong = tag.strip_prefix("W/").unwrap_or(tag);
            now.as_deref()
                .is_some_and(|now| tag == "*" || now == strong)
        };
        self.none_of
            .as_ref()
            .is_some_and(|tags| tags.iter().any(there))
    }

    /// Refuses a change of something that is not as the client believes.
    pub(super) fn allow_change(&self, now: Option<Digest>) -> Result<(), Refused> {
        match self.is_changed(now) || self.is_known(now) {
            true => Err(Refused::precondition(now)),
            false => Ok(()),
        }
    }
}

/// The tags in all headers of a name. A comma within a tag would part it; ours have none.
fn tags(headers: &HeaderMap, name: impl AsHeaderName) -> Option<Vec<String>> {
    let mut values = headers.get_all(name).into_iter().peekable();
    values.peek()?;
    let texts = values.filter_map(|value| value.to_str().ok());
    let tags = texts.flat_map(|text| text.split(','));
    Some(tags.map(|tag| tag.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn conditions_are_compared_with_what_is_there() {
        let (digest, other) = (Digest::of(b"x"), Digest::of(b"y"));
        let (tag, wrong) = (etag(digest), etag(other));
        let weak = format!("W/{tag}");
        let several = format!("{wrong}, {tag}");
        // header, value, and whether a change is allowed where there is x, and where there is nothing
        for (name, value, with, without) in [
            (IF_MATCH, "*", true, false),
            (IF_MATCH, tag.as_str(), true, false),
            (IF_MATCH, wrong.as_str(), false, false),
            (IF_MATCH, weak.as_str(), false, false),
            (IF_MATCH, several.as_str(), true, false),
            (IF_MATCH, "", false, false),
            (IF_NONE_MATCH, "*", false, true),
            (IF_NONE_MATCH, tag.as_str(), false, true),
            (IF_NONE_MATCH, wrong.as_str(), true, true),
            (IF_NONE_MATCH, weak.as_str(), false, true),
            (IF_NONE_MATCH, several.as_str(), false, true),
        ] {
            let value = HeaderValue::from_str(value).unwrap();
            let condition = Condition::of(&HeaderMap::from_iter([(name.clone(), value.clone())]));
            for (now, allowed) in [(Some(digest), with), (None, without)] {
                let result = condition.allow_change(now);
                assert_eq!(result.is_ok(), allowed, "{name}: {value:?}, {now:?}");
            }
        }
        assert!(Condition::default().allow_change(None).is_ok());
        let both = [(IF_MATCH, tag), (IF_NONE_MATCH, wrong)];
        let both = both.map(|(name, value)| (name, HeaderValue::from_str(&value).unwrap()));
        let both = Condition::of(&HeaderMap::from_iter(both));
        assert!(both.allow_change(Some(digest)).is_ok());
        assert!(both.allow_change(Some(other)).is_err());
    }
}
