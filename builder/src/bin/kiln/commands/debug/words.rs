//! `kiln debug words`: the expansion of one word or line (A5).

use std::collections::HashMap;

use kiln_grammar::word::{self, Options};
use serde::{Deserialize, Serialize};

use super::chain;

#[derive(Deserialize)]
pub(super) struct Question {
    text: String,
    /// `name=value`; later ones win, and a name alone is set to an empty text.
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    op: Operation,
    #[serde(default = "backslash")]
    escape: char,
    #[serde(default)]
    raw_quotes: bool,
    #[serde(default)]
    raw_escapes: bool,
    #[serde(default)]
    skip_unset: bool,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    #[default]
    Word,
    Words,
}

fn backslash() -> char {
    '\\'
}

#[derive(Serialize)]
pub(super) struct Answer {
    words: Vec<String>,
    matched: Vec<String>,
    unmatched: Vec<String>,
}

pub(super) fn answer(question: Question) -> Result<Answer, String> {
    let env: HashMap<&str, &str> = question
        .env
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .collect();
    let lookup = |name: &str| env.get(name).map(|value| (*value).to_owned());
    let options = Options {
        raw_quotes: question.raw_quotes,
        raw_escapes: question.raw_escapes,
        skip_unset: question.skip_unset,
        plain_quotes: false,
    };
    let (text, escape) = (&question.text, question.escape);
    match question.op {
        Operation::Word => {
            let expanded = word::expand_with(text, escape, options, &lookup);
            let expanded = expanded.map_err(|error| chain(&error))?;
            Ok(Answer {
                words: vec![expanded.text],
                matched: expanded.matched,
                unmatched: expanded.unmatched,
            })
        }
        Operation::Words => {
            let expanded = word::expand_words_with(text, escape, options, &lookup);
            let expanded = expanded.map_err(|error| chain(&error))?;
            Ok(Answer {
                words: expanded.words,
                matched: expanded.matched,
                unmatched: expanded.unmatched,
            })
        }
    }
}
