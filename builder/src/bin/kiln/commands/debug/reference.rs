//! `kiln debug reference`: the names of images (D1).

use kiln_registry::reference::Parts;
use serde::{Deserialize, Serialize};

use super::chain;

#[derive(Deserialize)]
pub(super) struct Question {
    #[serde(rename = "ref")]
    reference: String,
    #[serde(rename = "as", default)]
    reading: Reading,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reading {
    Raw,
    #[default]
    Normalized,
    Any,
    Docker,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Name {
        domain: String,
        path: String,
        tag: String,
        digest: String,
        familiar: String,
        string: String,
    },
    /// An id, which has no name.
    Id { digest: String, string: String },
}

pub(super) fn answer(question: Question) -> Result<Answer, String> {
    let text = &question.reference;
    let parts = match question.reading {
        Reading::Raw => Parts::raw(text),
        Reading::Normalized => Parts::normalized(text),
        Reading::Any => Parts::any(text),
        Reading::Docker => Parts::docker(text),
    };
    let parts = parts.map_err(|error| chain(&error))?;
    let string = parts.to_string();
    if parts.path.is_empty() {
        let digest = parts.digest.unwrap_or_default();
        return Ok(Answer::Id { digest, string });
    }
    Ok(Answer::Name {
        familiar: parts.familiar_name(),
        domain: parts.domain,
        path: parts.path,
        tag: parts.tag.unwrap_or_default(),
        digest: parts.digest.unwrap_or_default(),
        string,
    })
}
