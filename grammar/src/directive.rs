//! The parser directives at the top of a Dockerfile (A2).

use crate::ast::Directives;
use crate::diagnostic::{Diagnostic, shorten};
use crate::source::{PhysicalLine, Reader, Span, Spanned};

/// Reads the directives: `# key=value` lines at the very top, up to the first line that is
/// anything else (A2.1).
///
/// # Errors
///
/// The same key twice, an escape character that is none, or a line that is too long.
pub(crate) fn parse(text: &str) -> Result<Directives, Diagnostic> {
    let mut directives = Directives {
        escape: '\\',
        syntax: None,
        check: None,
    };
    let mut escape_seen = false;
    let mut lines = Reader::new(text, '\\');
    let mut first = true;
    let mut after_interpreter = false;
    while let Some(line) = lines.physical()? {
        // A `#!` line may stand before the directives (A2.4).
        if std::mem::take(&mut first) && is_interpreter(&line) {
            after_interpreter = true;
            continue;
        }
        let Some((key, value)) = split(&line) else {
            break;
        };
        let repeated = match key.as_str() {
            // Behind a `#!` line only the name of the frontend is looked for.
            "escape" if after_interpreter => false,
            "escape" => {
                directives.escape = escape(&value)?;
                std::mem::replace(&mut escape_seen, true)
            }
            "syntax" => directives.syntax.replace(first_word(value)).is_some(),
            "check" => directives.check.replace(value).is_some(),
            _ => break,
        };
        if repeated {
            let message = format!("only one {key} parser directive can be used");
            return Err(Diagnostic::error(message, line.span()));
        }
    }
    Ok(directives)
}

/// A frontend that a file asks for in a form that is no comment of the Dockerfile language (A2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The frontend.
    pub frontend: Spanned<String>,
    /// How it is asked for: `// syntax=...` or `{"syntax": "..."}`.
    pub form: &'static str,
}

/// Finds a frontend asked for by `// syntax=...` or by JSON, at the top or behind a `#!` line.
pub(crate) fn foreign(text: &str) -> Option<Foreign> {
    let mut lines = Reader::new(text, '\\');
    let mut first = true;
    while let Ok(Some(line)) = lines.physical() {
        if std::mem::take(&mut first) {
            if is_interpreter(&line) {
                continue;
            }
            if let Some(frontend) = from_json(text, &line) {
                let form = r#"{"syntax": "..."}"#;
                return Some(Foreign { frontend, form });
            }
        }
        let (key, value) = split_behind("//", &line)?;
        match key.as_str() {
            "syntax" => {
                let frontend = first_word(value);
                let form = "// syntax=...";
                return Some(Foreign { frontend, form });
            }
            "escape" | "check" => {}
            _ => return None,
        }
    }
    None
}

/// The frontend of a file that is JSON, or whose first line is.
fn from_json(text: &str, line: &PhysicalLine<'_>) -> Option<Spanned<String>> {
    #[derive(serde::Deserialize)]
    struct Top {
        syntax: String,
    }
    let content = line.content().trim_start_matches('\u{feff}').trim_start();
    if !content.starts_with('{') {
        return None;
    }
    let whole = text.trim_start_matches('\u{feff}');
    let top: Top = serde_json::from_str(whole)
        .or_else(|_| serde_json::from_str(content))
        .ok()?;
    (!top.syntax.is_empty()).then(|| Spanned::new(top.syntax, line.span()))
}

fn is_interpreter(line: &PhysicalLine<'_>) -> bool {
    line.content()
        .trim_start_matches('\u{feff}')
        .starts_with("#!")
}

/// Splits `# key = value`; the key comes in lower case.
fn split(line: &PhysicalLine<'_>) -> Option<(String, Spanned<String>)> {
    split_behind("#", line)
}

fn split_behind(mark: &str, line: &PhysicalLine<'_>) -> Option<(String, Spanned<String>)> {
    let content = line.content();
    let comment = content.trim_start_matches('\u{feff}').trim_start();
    let (key, value) = comment.strip_prefix(mark)?.split_once('=')?;
    let key = key.trim();
    let starts_well = key.starts_with(|first: char| first.is_ascii_alphabetic());
    let value = value.trim();
    if !starts_well || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) || value.is_empty() {
        return None;
    }
    let end = line.start + content.trim_end().len();
    let span = Span::from_range(end - value.len()..end);
    Some((
        key.to_ascii_lowercase(),
        Spanned::new(value.to_owned(), span),
    ))
}

fn escape(value: &Spanned<String>) -> Result<char, Diagnostic> {
    match value.value.as_str() {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => {
            let other = shorten(other);
            let message = format!("invalid escape token '{other}' does not match ` or \\");
            Err(Diagnostic::error(message, value.span))
        }
    }
}

/// The value of `syntax` ends at the first blank (A2.4).
fn first_word(value: Spanned<String>) -> Spanned<String> {
    let length = value
        .value
        .find(char::is_whitespace)
        .unwrap_or(value.value.len());
    let start = value.span.start as usize;
    let mut word = value.value;
    word.truncate(length);
    Spanned::new(word, Span::from_range(start..start + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syntax(text: &str) -> Option<String> {
        parse(text).unwrap().syntax.map(|syntax| syntax.value)
    }

    #[test]
    fn reads_the_top_of_the_file() {
        let text = "\u{feff}#syntax = a/b:1 x\n# ESCAPE=`\n# check=skip=all;error=true\nFROM a";
        let directives = parse(text).unwrap();
        assert_eq!(directives.escape, '`');
        let syntax = directives.syntax.unwrap();
        assert_eq!(syntax.value, "a/b:1");
        assert_eq!(&text[syntax.span.range()], "a/b:1");
        assert_eq!(directives.check.unwrap().value, "skip=all;error=true");
    }

    #[test]
    fn stops_at_anything_else() {
        assert_eq!(syntax("\n# syntax=a"), None, "A2.1");
        assert_eq!(syntax("# note\n# syntax=a"), None);
        assert_eq!(syntax("# other=1\n# syntax=a"), None);
        assert_eq!(syntax("FROM x\n# syntax=a"), None);
        assert_eq!(syntax("#!/bin/x\n# syntax=a").as_deref(), Some("a"), "A2.4");
        let directives = parse("#!/bin/x\n# escape=`\n# syntax=a").unwrap();
        assert_eq!(directives.escape, '\\');
        assert_eq!(directives.syntax.unwrap().value, "a");
    }

    #[test]
    fn finds_what_is_no_dockerfile() {
        let frontend = |text| foreign(text).map(|foreign| foreign.frontend.value);
        for (text, expected) in [
            ("// syntax=a/b:1 opts\nx", Some("a/b:1")),
            ("\u{feff}#!/bin/x\n//SYNTAX = a\n", Some("a")),
            ("// check=skip=all\n// syntax=a", Some("a")),
            ("{\"syntax\": \"a\"}\nx: 1\n", Some("a")),
            ("{\n  \"x\": 1, \"syntax\": \"a\"\n}\n", Some("a")),
            ("{\"syntax\": \"\"}", None),
            ("{\"syntax\": 1}", None),
            ("// note\n// syntax=a", None),
            ("\n// syntax=a", None),
            ("FROM a", None),
        ] {
            assert_eq!(frontend(text).as_deref(), expected, "A2.4: {text:?}");
        }
    }

    #[test]
    fn refuses_doubles_and_wrong_escapes() {
        let message = |text| parse(text).unwrap_err().message;
        assert_eq!(
            message("# escape=`\n# escape=`\n"),
            "only one escape parser directive can be used"
        );
        assert_eq!(
            message("# escape=x\n"),
            "invalid escape token 'x' does not match ` or \\"
        );
    }
}
