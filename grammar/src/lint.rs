//! Warnings that a comment above an instruction silences (A2.8).

use std::collections::HashMap;

use crate::ast::Dockerfile;
use crate::diagnostic::Diagnostic;
use crate::source::{Span, comments_above};

/// Leaves out the warnings about an instruction that a comment `# check=skip=Rule` directly above
/// it silences; `text` is what the Dockerfile was parsed from.
#[must_use]
pub fn unsilenced(
    text: &str,
    dockerfile: &Dockerfile,
    warnings: Vec<Diagnostic>,
) -> Vec<Diagnostic> {
    let instructions = spans(dockerfile);
    let mut skipped: HashMap<u32, Vec<String>> = HashMap::new();
    let mut silenced = |warning: &Diagnostic| {
        let Some(rule) = warning.rule else {
            return false;
        };
        let behind = instructions.partition_point(|span| span.start <= warning.span.start);
        let Some(span) = behind.checked_sub(1).and_then(|at| instructions.get(at)) else {
            return false;
        };
        let rules = skipped
            .entry(span.start)
            .or_insert_with(|| skipped_above(text, dockerfile, *span));
        warning.span.start <= span.end
            && rules
                .iter()
                .any(|name| name == "all" || name.eq_ignore_ascii_case(rule))
    };
    let kept = warnings.into_iter();
    kept.filter(|warning| !silenced(warning)).collect()
}

/// Where the instructions stand, in the order of the file.
fn spans(dockerfile: &Dockerfile) -> Vec<Span> {
    let arguments = dockerfile.global_args.iter().map(|argument| argument.span);
    let stages = dockerfile.stages.iter().flat_map(|stage| {
        let instructions = stage.instructions.iter();
        std::iter::once(stage.span).chain(instructions.map(|instruction| instruction.span))
    });
    arguments.chain(stages).collect()
}

/// The rules that the comments above an instruction name. The directive at the top of the file,
/// which holds for all of it, is not one of them.
fn skipped_above(text: &str, dockerfile: &Dockerfile, instruction: Span) -> Vec<String> {
    let directive = dockerfile.directives.check.as_ref();
    let is_directive = |span: Span| {
        directive.is_some_and(|directive| span.range().contains(&directive.span.range().start))
    };
    let comments = comments_above(text, instruction.start);
    let comments = comments
        .iter()
        .filter(|comment| !is_directive(comment.span));
    comments
        .filter_map(|comment| value(&comment.value, "check"))
        .flat_map(|options| options.split(';'))
        .filter_map(|option| value(option, "skip"))
        .flat_map(|rules| rules.split(','))
        .map(|rule| rule.trim().to_owned())
        .collect()
}

/// What stands behind `key =`.
fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let (name, value) = text.split_once('=')?;
    name.trim().eq_ignore_ascii_case(key).then(|| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Vec<u32> {
        let dockerfile = crate::parse(text).unwrap();
        let warnings = text
            .match_indices('$')
            .map(|(at, _)| {
                let at = u32::try_from(at).unwrap();
                let span = Span { start: at, end: at };
                Diagnostic::warning("UndefinedVar", "text", span)
            })
            .collect();
        unsilenced(text, &dockerfile, warnings)
            .iter()
            .map(|warning| crate::source::position(text, warning.span.start).line)
            .collect()
    }

    #[test]
    fn a2_8_a_comment_above_silences_one_instruction() {
        assert_eq!(
            kept("FROM a\n# check=skip=UndefinedVar\nENV A=$B\nENV C=$D\n"),
            [4]
        );
        assert_eq!(
            kept("# check = skip = x, undefinedVAR ;error=true\n# note\nARG A=$B\nFROM $A\n"),
            [3, 4]
        );
        assert_eq!(
            kept("\n# check = skip = x, undefinedVAR ;error=true\n# note\nARG A=$B\nFROM $A\n"),
            [5]
        );
        assert_eq!(
            kept("# syntax=x\n\n# Check=skip=all\nFROM $a\nENV A=$B\n"),
            [5]
        );
        assert_eq!(kept("FROM a\n# check=skip=UndefinedVar\n\nENV A=$B\n"), [4]);
        assert_eq!(
            kept("FROM a\n# check=skip=Other\nENV A=$B \\\n# check=skip=UndefinedVar\n C=$D\n"),
            [3, 5]
        );
        assert_eq!(
            kept("FROM a\n# check=skip=UndefinedVar\nENV A=$B \\\n  C=$D\n"),
            [0; 0]
        );
    }

    #[test]
    fn other_warnings_stay() {
        let text = "FROM a\n# check=skip=UndefinedVar\nENV A=$B\n";
        let dockerfile = crate::parse(text).unwrap();
        let warnings = vec![
            Diagnostic::warning("UndefinedVar", "of the whole file", Span::default()),
            Diagnostic::error("no rule", dockerfile.stages[0].instructions[0].span),
        ];
        assert_eq!(unsilenced(text, &dockerfile, warnings.clone()), warnings);
    }
}
