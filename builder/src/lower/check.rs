//! `# check=`: which warnings are shown, and whether they fail the build (A2.7).

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::{Diagnostic, Severity};
use kiln_grammar::source::Span;

use super::LowerOptions;

/// The build argument that replaces the directive.
const ARGUMENT: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Leaves out the warnings that the Dockerfile does not want; fails with the rules of the others
/// where it says `error=true`.
///
/// # Errors
/// The warnings as errors, or a value that cannot be understood.
pub fn check(
    file: &Dockerfile,
    options: &LowerOptions,
    warnings: Vec<Diagnostic>,
) -> Result<Vec<Diagnostic>, Vec<Diagnostic>> {
    let directive = file.directives.check.as_ref();
    let span = directive.map_or(Span::default(), |value| value.span);
    let Some(text) = options
        .build_arg(ARGUMENT)
        .or(directive.map(|value| value.value.as_str()))
    else {
        return Ok(warnings);
    };
    let (skip, fail) = parse(text).map_err(|message| vec![Diagnostic::error(message, span)])?;
    let skipped = |rule: &str| {
        skip.iter()
            .any(|name| name == "all" || name.eq_ignore_ascii_case(rule))
    };
    let kept: Vec<_> = warnings
        .into_iter()
        .filter(|warning| !warning.rule.is_some_and(skipped))
        .collect();
    if !fail || kept.is_empty() {
        return Ok(kept);
    }
    let mut rules: Vec<_> = kept.iter().filter_map(|warning| warning.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    let message = format!("lint violation found for rules: {}", rules.join(", "));
    let errors = kept.into_iter().map(|warning| Diagnostic {
        severity: Severity::Error,
        ..warning
    });
    Err(errors.chain([Diagnostic::error(message, span)]).collect())
}

/// Reads `skip=A,B|all;error=true|false`. `experimental=` turns on rules that kiln does not have.
fn parse(text: &str) -> Result<(Vec<String>, bool), String> {
    let (mut skip, mut fail) = (Vec::new(), false);
    for part in text
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
        {
            Some(("skip", rules)) => {
                skip.extend(rules.split(',').map(|rule| rule.trim().to_owned()));
            }
            Some(("error", "true")) => fail = true,
            Some(("error", "false")) => fail = false,
            Some(("experimental", _)) => {}
            _ => {
                return Err(format!(
                    "invalid check option `{part}`: expected skip=RULES, error=true or error=false"
                ));
            }
        }
    }
    Ok((skip, fail))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules left, or error messages.
    fn checked(directive: &str, argument: Option<&str>) -> Result<Vec<&'static str>, Vec<String>> {
        let file = kiln_grammar::parse(&format!("{directive}\nFROM scratch\n")).unwrap();
        let build_args = argument.map(|value| (ARGUMENT.to_owned(), Some(value.to_owned())));
        let options = LowerOptions {
            build_args: build_args.into_iter().collect(),
            ..LowerOptions::default()
        };
        let warning = |rule| Diagnostic::warning(rule, "text", Span::default());
        let warnings = vec![warning("UndefinedVar"), warning("ExposeProtoCasing")];
        check(&file, &options, warnings)
            .map(|kept| kept.iter().filter_map(|warning| warning.rule).collect())
            .map_err(|errors| errors.into_iter().map(|error| error.message).collect())
    }

    #[test]
    fn a2_7_rules_are_skipped_or_fail_the_build() {
        let both = vec!["UndefinedVar", "ExposeProtoCasing"];
        assert_eq!(checked("# none", None).unwrap(), both);
        assert_eq!(
            checked("# check=skip=undefinedvar", None).unwrap(),
            ["ExposeProtoCasing"]
        );
        assert!(checked("# check=skip=all", None).unwrap().is_empty());
        let errors = checked("# check=skip=UndefinedVar;error=true", None).unwrap_err();
        assert_eq!(
            errors,
            ["text", "lint violation found for rules: ExposeProtoCasing"]
        );
        assert!(
            checked("# check=skip=all;error=true", None)
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            checked("# check=skip=all", Some("error=false")).unwrap(),
            both,
            "the argument replaces it"
        );
        assert!(
            checked("# check=nonsense", None).unwrap_err()[0]
                .contains("invalid check option `nonsense`")
        );
    }
}
