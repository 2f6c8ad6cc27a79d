//! The old form `ENV name value` as `ENV name=value`.

use crate::ast::Word;
use crate::diagnostic::Edit;
use crate::source::Span;
use crate::syntax;
use crate::word::{self, Options};

/// Values of variables that both forms are tried with: unset, empty, and one that blanks and
/// quotes would tell apart.
const VALUES: [Option<&str>; 3] = [None, Some(""), Some("a  'b' \"c")];

/// The edits that turn the old form into the new one; `None` where that cannot be proved to mean
/// the same.
pub(super) fn edits(text: &str, escape: char, key: &Word, value: &Word) -> Option<Vec<Edit>> {
    let between = Span {
        start: key.span.end,
        end: value.span.start,
    };
    // A comment between name and value would be lost.
    let blank = |letter: char| letter.is_whitespace() || letter == escape;
    if !text.get(between.range())?.chars().all(blank) {
        return None;
    }
    let same = |new: &String| is_same(escape, &key.value, &value.value, new);
    let plain = value.value.clone();
    if same(&plain) {
        return Some(vec![edit(between, "=")]);
    }
    if same(&format!("\"{plain}\"")) {
        let end = Span {
            start: value.span.end,
            end: value.span.end,
        };
        return Some(vec![edit(between, "=\""), edit(end, "\"")]);
    }
    // A value over several lines is not replaced as a whole: there may be comments in it.
    if text.get(value.span.range())? != plain {
        return None;
    }
    let requoted = format!("\"{}\"", plain.replace(['"', '\''], ""));
    let new = [requoted, escape_blanks(&plain, escape)]
        .into_iter()
        .find(same)?;
    Some(vec![edit(between, "="), edit(value.span, &new)])
}

fn edit(span: Span, text: &str) -> Edit {
    let text = text.to_owned();
    Edit { span, text }
}

/// A value with an escape character before each blank that no quote holds.
fn escape_blanks(value: &str, escape: char) -> String {
    let mut escaped = String::with_capacity(value.len() + 8);
    let mut quote = None;
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\'' | '"', None) => quote = Some(letter),
            (_, Some(open)) if letter == open => quote = None,
            (' ' | '\t', None) => escaped.push(escape),
            _ => {}
        }
        escaped.push(letter);
        // What is escaped already neither opens nor ends anything.
        if letter == escape && quote != Some('\'') {
            escaped.extend(letters.next());
        }
    }
    escaped
}

/// Whether `name=new` is one pair, and worth what `name old` is, whatever variables are worth.
fn is_same(escape: char, name: &str, old: &str, new: &str) -> bool {
    let text = format!("# escape={escape}\nENV {name}={new}\n");
    let Ok(parsed) = syntax::parse(&text) else {
        return false;
    };
    let one_pair = parsed.errors.is_empty()
        && match parsed.nodes.as_slice() {
            [node] => {
                let args: Vec<_> = node.args.iter().map(|word| word.value.as_str()).collect();
                args == [name, new, "="]
            }
            _ => false,
        };
    let worth = |text, value| worth(escape, text, value);
    let same = |value: &Option<_>| {
        let old = worth(old, *value);
        old.is_some() && old == worth(new, *value)
    };
    one_pair && VALUES.iter().all(same)
}

/// What a value becomes where every variable is worth the same.
fn worth(escape: char, text: &str, value: Option<&str>) -> Option<String> {
    let options = Options {
        skip_unset: true,
        ..Options::default()
    };
    let expanded = word::expand_with(text, escape, options, &|_| value.map(str::to_owned));
    expanded.ok().map(|expanded| expanded.text)
}

#[cfg(test)]
mod tests {
    use crate::parse;

    use super::super::{fix, lint};

    fn fixed(line: &str, escape: char) -> Option<String> {
        let text = format!("# escape={escape}\nFROM a\n{line}\n");
        let edits = lint(&text, &parse(&text).unwrap())
            .into_iter()
            .filter(|warning| warning.rule == Some("LegacyKeyValueFormat"))
            .flat_map(|warning| warning.fix)
            .collect::<Vec<_>>();
        let all = fix(&text, &edits);
        let line = all.strip_prefix(&format!("# escape={escape}\nFROM a\n"));
        (!edits.is_empty()).then(|| line.unwrap().trim_end().to_owned())
    }

    /// A3.5, A17
    #[test]
    fn the_old_form_becomes_the_new_one_where_it_means_the_same() {
        let cases = [
            ("ENV a b", '\\', Some("ENV a=b")),
            ("ENV a   b c  d", '\\', Some("ENV a=\"b c  d\"")),
            ("ENV a $b c", '\\', Some("ENV a=\"$b c\"")),
            ("ENV a ${b:-c d}", '\\', Some("ENV a=\"${b:-c d}\"")),
            ("ENV a \"b c\"", '\\', Some("ENV a=\"b c\"")),
            ("ENV a b \"c d\" e", '\\', Some("ENV a=\"b c d e\"")),
            ("ENV a it\\'s b", '\\', Some("ENV a=it\\'s\\ b")),
            ("ENV a C:\\x y", '`', Some("ENV a=\"C:\\x y\"")),
            ("LABEL a b=c d", '\\', Some("LABEL a=\"b=c d\"")),
            ("ENV a b \\\n  c", '\\', Some("ENV a=\"b \\\n  c\"")),
            ("ENV a \\\n  b", '\\', Some("ENV a=b")),
            ("ONBUILD ENV a b c", '\\', Some("ONBUILD ENV a=\"b c\"")),
            ("ONBUILD ENV a b c", '`', None),
            // A comment in between, an open quote: nothing that a program should touch.
            ("ENV a \\\n# why\n b", '\\', None),
            ("ENV a it's b", '\\', None),
            ("ENV \"a b\" c", '\\', None),
            // What single quotes keep from expanding, double quotes would not.
            ("ENV a '$b' c", '\\', Some("ENV a='$b'\\ c")),
        ];
        for (line, escape, expected) in cases {
            assert_eq!(fixed(line, escape).as_deref(), expected, "{line}");
        }
    }
}
