//! Lists that come in pages: each answer's `Link` says where the next one is (D9.1).

use reqwest::header::LINK;
use reqwest::{Method, Url};
use serde::de::DeserializeOwned;

use super::Repository;
use super::challenge::Scopes;
use super::error::{ClientError, redact};
use super::transport::Whole;
use super::wire::Request;

/// The largest page, bytes.
const PAGE: usize = 16 << 20;

/// The most pages of one list.
const PAGES: usize = 10_000;

impl Repository {
    /// Fetches a list page by page and hands each page over, which says whether to go on.
    ///
    /// # Errors
    /// [`ClientError`] of a request; when a page is none, leads to another host, or to itself.
    pub(super) async fn pages<T: DeserializeOwned>(
        &self,
        first: Request,
        what: &'static str,
        mut take: impl FnMut(T) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let scopes = Scopes::pull(&self.repository);
        let transport = self.transport();
        let mut request = first;
        for _ in 0..PAGES {
            let answer = transport
                .read(&self.origin, &scopes, &request, PAGE)
                .await?;
            let next = next(&answer)?;
            let Whole { url, body, .. } = answer;
            let page = serde_json::from_slice(&body).map_err(|source| ClientError::Document {
                url: redact(&url),
                what,
                source,
            })?;
            take(page)?;
            match next {
                None => return Ok(()),
                Some(next) if next == request.url => {
                    let problem = "the next page is this page again";
                    return Err(ClientError::protocol(&Method::GET, &url, problem));
                }
                Some(next) => request.url = next,
            }
        }
        within(PAGES + 1, PAGES, "pages", &redact(&request.url))
    }
}

/// Refuses a list that has become too long.
pub(super) fn within(
    count: usize,
    limit: usize,
    what: &'static str,
    address: &str,
) -> Result<(), ClientError> {
    if count <= limit {
        return Ok(());
    }
    let url = address.to_owned();
    Err(ClientError::TooMany { url, what, limit })
}

/// Where the next page is. It must be at the same host: the request carries credentials.
fn next(answer: &Whole) -> Result<Option<Url>, ClientError> {
    let wrong = |problem: &str| ClientError::protocol(&Method::GET, &answer.url, problem);
    let links = answer.headers.get_all(LINK).iter();
    let texts = links.filter_map(|value| value.to_str().ok());
    let Some(target) = texts
        .flat_map(links_of)
        .find_map(|(target, next)| next.then_some(target))
    else {
        return Ok(None);
    };
    let next = answer.url.join(target);
    let next = next.map_err(|_| wrong("the `Link` to the next page is no address"))?;
    if next.origin() != answer.url.origin() {
        return Err(wrong("the `Link` to the next page leads to another host"));
    }
    Ok(Some(next))
}

/// The targets of a `Link` header, and whether each is the next page.
fn links_of(header: &str) -> Vec<(&str, bool)> {
    let mut links = Vec::new();
    let mut rest = header;
    while let Some((_, after)) = rest.split_once('<') {
        let Some((target, after)) = after.split_once('>') else {
            break;
        };
        // The parameters end where the next link begins.
        let end = after.find('<').unwrap_or(after.len());
        let is_next = after[..end].split([';', ',']).any(|parameter| {
            let pair = parameter.split_once('=');
            pair.is_some_and(|(key, value)| {
                key.trim().eq_ignore_ascii_case("rel")
                    && value
                        .trim()
                        .trim_matches('"')
                        .split(' ')
                        .any(|rel| rel.eq_ignore_ascii_case("next"))
            })
        });
        links.push((target, is_next));
        rest = &after[end..];
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d9_1_links_of_every_kind() {
        let next = |header| {
            links_of(header)
                .into_iter()
                .find(|link| link.1)
                .map(|link| link.0)
        };
        for (header, expected) in [
            (
                r#"</v2/a/tags/list?n=1&last=b>; rel="next""#,
                Some("/v2/a/tags/list?n=1&last=b"),
            ),
            ("</x?last=a,b;c>;rel=next", Some("/x?last=a,b;c")),
            (
                r#"</first>; rel="first", </second>; title="x"; REL="Next last""#,
                Some("/second"),
            ),
            (r#"</x>; rel="prev""#, None),
            ("</x; rel=next", None),
            ("rel=next", None),
            ("", None),
        ] {
            assert_eq!(next(header), expected, "{header}");
        }
    }
}
