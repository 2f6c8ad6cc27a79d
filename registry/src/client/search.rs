//! Docker Hub's search, and what has the same address elsewhere (D9.1).

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::Client;
use super::error::{ClientError, clean, redact};

/// Where Docker Hub is searched.
pub const SEARCH_HOST: &str = "https://index.docker.io";

/// The largest answer, bytes.
const ANSWER: usize = 4 << 20;

/// The longest text of an answer that is kept, characters.
const TEXT: usize = 1000;

/// A repository that a search found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hit {
    /// Its name.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// How many people like it.
    pub star_count: u64,
    /// Whether it is one of Docker's own.
    pub is_official: bool,
    /// Whether it is built by the host; no longer told by Docker Hub.
    pub is_automated: bool,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    results: Option<Vec<Hit>>,
}

impl Client {
    /// Searches for repositories, the best first, at most `limit` of them.
    ///
    /// # Errors
    /// [`ClientError`] when the host is no address, cannot be asked or answers with something else.
    pub async fn search(
        &self,
        host: &str,
        term: &str,
        limit: usize,
    ) -> Result<Vec<Hit>, ClientError> {
        let wrong = || ClientError::Address(super::redacted(host));
        let host_url = if host.contains("://") {
            host.to_owned()
        } else {
            format!("https://{host}")
        };
        let mut url = Url::parse(&host_url).map_err(|_| wrong())?;
        let mut path = url.path_segments_mut().map_err(|()| wrong())?;
        path.pop_if_empty().extend(["v1", "search"]);
        drop(path);
        let wanted = limit.to_string();
        url.query_pairs_mut()
            .append_pair("q", term)
            .append_pair("n", &wanted);
        let mut body = self.fetch(url.as_str()).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER {
                return Err(ClientError::TooLarge {
                    url: redact(&url),
                    limit: ANSWER,
                });
            }
        }
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|source| ClientError::Document {
                url: redact(&url),
                what: "list of search results",
                source,
            })?;
        let hits = answer.results.unwrap_or_default().into_iter().take(limit);
        Ok(hits
            .map(|hit| Hit {
                name: clean(&hit.name, TEXT),
                description: clean(&hit.description.replace(['\n', '\t'], " "), TEXT),
                ..hit
            })
            .collect())
    }
}
