//! Which warnings are shown, and whether they fail the build (A2.7, A2.8).

use crate::ast::Dockerfile;
use crate::diagnostic::Diagnostic;
use crate::source::{Span, comments_above};

use super::rules::rule;

/// What a Dockerfile, or who builds it, wants to hear of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Rules that are turned off.
    pub skip: Names,
    /// Rules that are turned on although they are off by default.
    pub enable: Names,
    /// Whether a warning that is left fails the build.
    pub error: bool,
}

/// Names of rules, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// Reads `Rule1,Rule2` or `all`; case does not matter.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let names = text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        Self(names.map(str::to_owned).collect())
    }

    /// Adds the names of another list.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Says whether a rule is among them.
    #[must_use]
    pub fn contains(&self, rule: &str) -> bool {
        let mut names = self.0.iter();
        names.any(|name| name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case(rule))
    }

    /// The names as they were written.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl Settings {
    /// The settings of a Dockerfile: those of `argument`, the value of the build argument
    /// `BUILDKIT_DOCKERFILE_CHECK`, where it is given, else those of its `# check=` line.
    ///
    /// # Errors
    /// A value that cannot be understood.
    pub fn of(file: &Dockerfile, argument: Option<&str>) -> Result<Self, Diagnostic> {
        let directive = file.directives.check.as_ref();
        let (text, span) = match (argument, directive) {
            (Some(text), _) => (text, Span::default()),
            (None, Some(value)) => (value.value.as_str(), value.span),
            (None, None) => return Ok(Self::default()),
        };
        Self::parse(text).map_err(|message| Diagnostic::error(message, span))
    }

    /// Reads `skip=A,B|all;error=true|false;experimental=A,B|all`.
    fn parse(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        let parts = text.split(';').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key.trim(), value.trim()) {
                ("skip", rules) => settings.skip.extend(Names::parse(rules)),
                ("experimental", rules) => settings.enable.extend(Names::parse(rules)),
                ("error", "true") => settings.error = true,
                ("error", "false") => settings.error = false,
                _ => {
                    return Err(format!(
                        "invalid check option `{part}`: expected skip=RULES, experimental=RULES, \
                         error=true or error=false"
                    ));
                }
            }
        }
        Ok(settings)
    }

    /// Leaves the warnings that are wanted, in the order of the file. A comment
    /// `# check=skip=Rule` directly above an instruction silences the rule for it (A2.8).
    #[must_use]
    pub fn filter(
        &self,
        text: &str,
        file: &Dockerfile,
        mut warnings: Vec<Diagnostic>,
    ) -> Vec<Diagnostic> {
        let starts = starts(file);
        // The directive is a comment above the first instruction, too; it has had its say.
        let directive = file.directives.check.as_ref();
        let body = directive.map_or(0, |value| value.span.end);
        warnings.sort_by_key(|warning| warning.span.start);
        warnings.dedup();
        // One instruction may have many warnings and a long comment.
        let mut above = (None, Names::default());
        warnings.retain(|warning| {
            let Some(name) = warning.rule else {
                return true;
            };
            let next = starts.partition_point(|start| *start <= warning.span.start);
            let instruction = next.checked_sub(1).and_then(|index| starts.get(index));
            if above.0 != instruction {
                let names = instruction.map(|start| skipped_above(text, body, *start));
                above = (instruction, names.unwrap_or_default());
            }
            let on = rule(name).is_none_or(|rule| rule.on) || self.enable.contains(name);
            on && !self.skip.contains(name) && !above.1.contains(name)
        });
        warnings
    }

    /// The error that warnings are, where the Dockerfile wants it so.
    #[must_use]
    pub fn violation(&self, file: &Dockerfile, warnings: &[Diagnostic]) -> Option<Diagnostic> {
        if !self.error || warnings.is_empty() {
            return None;
        }
        let mut rules: Vec<_> = warnings.iter().filter_map(|warning| warning.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        let message = format!("lint violation found for rules: {}", rules.join(", "));
        let span = file.directives.check.as_ref().map(|value| value.span);
        Some(Diagnostic::error(message, span.unwrap_or_default()))
    }
}

/// Where the instructions of a file start, in order.
fn starts(file: &Dockerfile) -> Vec<u32> {
    let globals = file.global_args.iter().map(|instruction| instruction.span);
    let stages = file.stages.iter().flat_map(|stage| {
        let instructions = stage
            .instructions
            .iter()
            .map(|instruction| instruction.span);
        std::iter::once(stage.span).chain(instructions)
    });
    globals.chain(stages).map(|span| span.start).collect()
}

/// The rules that the comments above an instruction skip, those of the file's top left out.
fn skipped_above(text: &str, body: u32, start: u32) -> Names {
    let mut skipped = Names::default();
    for comment in comments_above(text, start) {
        let value = comment.value.strip_prefix("check").map(str::trim_start);
        let value = value.and_then(|value| value.strip_prefix('='));
        if let Some(Ok(settings)) = value.map(|value| Settings::parse(value.trim()))
            && comment.span.start >= body
        {
            skipped.extend(settings.skip);
        }
    }
    skipped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules that are left of two, which fire in the first stage, and whether they fail.
    fn left(text: &str, argument: Option<&str>) -> (Vec<&'static str>, bool) {
        let file = crate::parse(text).unwrap();
        let settings = Settings::of(&file, argument).unwrap();
        let span = file.stages[0].base.span;
        let rules = ["UndefinedVar", "InvalidDefinitionDescription"];
        let warnings = rules
            .map(|rule| Diagnostic::warning(rule, "text", span))
            .to_vec();
        let left = settings.filter(text, &file, warnings);
        let failed = settings.violation(&file, &left).is_some();
        (
            left.iter().filter_map(|warning| warning.rule).collect(),
            failed,
        )
    }

    #[test]
    fn a2_7_rules_are_skipped_enabled_or_fail_the_build() {
        let one = vec!["UndefinedVar"];
        assert_eq!(left("FROM scratch\n", None), (one.clone(), false));
        let skip = "# check=skip=undefinedvar;error=true\nFROM scratch\n";
        assert_eq!(left(skip, None), (vec![], false));
        assert_eq!(left(skip, Some("error=true")), (one.clone(), true));
        assert_eq!(
            left("#check=skip=all\nFROM scratch\n", None),
            (vec![], false)
        );
        let (both, _) = left("# check=experimental=all\nFROM scratch\n", None);
        assert_eq!(both, ["UndefinedVar", "InvalidDefinitionDescription"]);
        let file = crate::parse("# check=nonsense\nFROM scratch\n").unwrap();
        let refused = Settings::of(&file, None).unwrap_err();
        assert!(refused.message.contains("invalid check option `nonsense`"));
    }

    #[test]
    fn a2_8_a_comment_skips_a_rule_for_one_instruction() {
        let above = "ARG X\n# check=skip=UndefinedVar\nFROM scratch\n";
        assert_eq!(left(above, None).0, Vec::<&str>::new());
        let elsewhere = "ARG X\n# check=skip=UndefinedVar\nARG Y\nFROM scratch\n";
        assert_eq!(left(elsewhere, None).0, ["UndefinedVar"]);
        let other = "ARG X\n# check=skip=Other\nFROM scratch\n";
        assert_eq!(left(other, None).0, ["UndefinedVar"]);
    }
}
