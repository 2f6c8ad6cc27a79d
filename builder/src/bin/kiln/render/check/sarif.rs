//! SARIF 2.1.0, which code hosts and editors read.

use std::path::Path;

use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::lint::{self, Rule};
use serde_json::{Map, Value, json};

use super::{Report, edits, to_json};
use crate::render::excerpt::message;

/// Stands for the mistakes that no rule names.
const MISTAKE: &str = "InvalidDockerfile";

pub(super) fn render(report: &Report<'_>) -> String {
    let file = json!({ "uri": uri(&report.source.name) });
    let mut rules: Vec<Value> = lint::rules().map(rule).collect();
    rules.push(mistake());
    let errors = report
        .errors
        .iter()
        .map(|error| result(report, &file, error, "error"));
    let warnings = report.warnings.iter();
    let warnings = warnings.map(|warning| result(report, &file, warning, "warning"));
    let results: Vec<Value> = errors.chain(warnings).collect();
    to_json(&json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "kiln",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    }))
}

fn rule(rule: &Rule) -> Value {
    let mut value = json!({
        "id": rule.name,
        "name": rule.name,
        "shortDescription": { "text": rule.summary },
        "fullDescription": { "text": rule.summary },
        "help": { "text": rule.page, "markdown": rule.page },
        "defaultConfiguration": { "level": "warning", "enabled": rule.on },
    });
    if let (Some(url), Some(value)) = (rule.url(), value.as_object_mut()) {
        value.insert("helpUri".to_owned(), url.into());
    }
    value
}

fn mistake() -> Value {
    let text = "The Dockerfile cannot be built as it is written";
    json!({
        "id": MISTAKE,
        "name": MISTAKE,
        "shortDescription": { "text": text },
        "fullDescription": { "text": text },
        "help": { "text": text, "markdown": text },
        "defaultConfiguration": { "level": "error", "enabled": true },
    })
}

fn result(report: &Report<'_>, file: &Value, diagnostic: &Diagnostic, level: &str) -> Value {
    let rule = diagnostic.rule.unwrap_or(MISTAKE);
    let index = lint::rules().position(|known| known.name == rule);
    let mut text = message(&diagnostic.message);
    if let Some(hint) = &diagnostic.hint {
        text.push_str("\nhint: ");
        text.push_str(&message(hint));
    }
    // What is said of the whole file is shown at its first line.
    let whole = json!({ "startLine": 1 });
    let region = report.place(diagnostic.span);
    let region = region.map_or(whole, |region| json!(region));
    let mut result = Map::new();
    let mut set = |name: &str, value: Value| result.insert(name.to_owned(), value);
    set("ruleId", rule.into());
    set(
        "ruleIndex",
        index.unwrap_or_else(|| lint::rules().count()).into(),
    );
    set("level", level.into());
    set("message", json!({ "text": text }));
    let place = json!({ "artifactLocation": file, "region": region });
    set("locations", json!([{ "physicalLocation": place }]));
    if let Some(fix) = fix(report, file, diagnostic) {
        set("fixes", json!([fix]));
    }
    Value::Object(result)
}

fn fix(report: &Report<'_>, file: &Value, warning: &Diagnostic) -> Option<Value> {
    let replacements: Vec<Value> = edits(warning)
        .iter()
        .map(|edit| {
            json!({
                "deletedRegion": report.region(edit.span),
                "insertedContent": { "text": edit.text },
            })
        })
        .collect();
    (!replacements.is_empty()).then(|| {
        json!({
            "description": { "text": "What kiln check --fix does" },
            "artifactChanges": [{ "artifactLocation": file, "replacements": replacements }],
        })
    })
}

/// A path as a URI: relative to the working directory where it can be.
fn uri(name: &str) -> String {
    let path = Path::new(name);
    let inside = std::env::current_dir()
        .ok()
        .and_then(|folder| path.strip_prefix(folder).ok());
    let path = inside.unwrap_or(path);
    let mut uri = String::from(if path.is_absolute() { "file://" } else { "" });
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(*byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn paths_become_uris() {
        let here = std::env::current_dir().unwrap().join("a b/Dockerfile");
        assert_eq!(uri(&here.to_string_lossy()), "a%20b/Dockerfile");
        assert_eq!(uri("../x:y"), "../x%3Ay");
        assert_eq!(uri("/nowhere/é"), "file:///nowhere/%C3%A9");
    }
}
