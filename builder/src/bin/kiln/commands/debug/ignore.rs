//! `kiln debug ignore`: ignore files and what they exclude (A14).

use kiln_grammar::dockerignore::IgnoreFile;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
pub(super) struct Question {
    patterns: Option<Vec<String>>,
    path: Option<String>,
    /// Whether the path is a directory, which decides nothing: a pattern of one excludes a file
    /// too.
    #[serde(rename = "dir", default)]
    _dir: bool,
    file: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Path { ignored: bool },
    File { patterns: Vec<String> },
}

pub(super) fn answer(question: Question) -> Result<Answer, String> {
    match (question.patterns, question.file) {
        (Some(patterns), None) => {
            let file = IgnoreFile::from_patterns(&patterns).map_err(|error| error.to_string())?;
            let path = question
                .path
                .ok_or("invalid request: missing field `path`")?;
            let ignored = file.excludes_text(&path);
            Ok(Answer::Path { ignored })
        }
        (None, Some(text)) => {
            let patterns = IgnoreFile::clean_lines(&text);
            Ok(Answer::File { patterns })
        }
        _ => Err("invalid request: expected either `patterns` or `file`".to_owned()),
    }
}
