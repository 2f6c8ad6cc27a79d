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
    while let Some(line) = lines.physical()? {
        // A `#!` line may stand before the directives (A2.4).
        let interpreter = std::mem::take(&mut first) && line.content().starts_with("#!");
        if interpreter {
            continue;
        }
        let Some((key, value)) = split(&line) else {
            break;
        };
        let repeated = match key.as_str() {
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

/// Splits `# key = value`; the key comes in lower case.
fn split(line: &PhysicalLine<'_>) -> Option<(String, Spanned<String>)> {
    let content = line.content();
    let comment = content.trim_start_matches('\u{feff}').trim_start();
    let (key, value) = comment.strip_prefix('#')?.split_once('=')?;
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
