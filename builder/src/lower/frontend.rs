//! `# syntax=`: which language the file says it is written in (A2.4, A2.5).

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::source::Span;

use super::options::LowerOptions;

/// The newest `docker/dockerfile:1.N` whose language is implemented.
const NEWEST: u32 = 22;

/// Warns of a newer language than the one that is built in, and refuses any other.
pub(super) fn check(file: &Dockerfile, options: &LowerOptions) -> Option<Diagnostic> {
    let (reference, span) = match (
        options.build_arg("BUILDKIT_SYNTAX"),
        &file.directives.syntax,
    ) {
        (Some("dockerfile.v0"), _) | (None, None) => return None,
        (Some(reference), _) => (reference, Span::default()),
        (None, Some(syntax)) => (syntax.value.as_str(), syntax.span),
    };
    let reference = reference.split_whitespace().next().unwrap_or_default();
    match judge(reference) {
        Judgement::BuiltIn => None,
        Judgement::Newer => {
            let message = format!(
                "syntax `{reference}` is newer than 1.{NEWEST}, the newest one that is built in"
            );
            Some(Diagnostic::warning("UnknownSyntax", message, span))
        }
        Judgement::Foreign => {
            let message = format!("the frontend `{reference}` is not built in");
            let hint = "kiln understands docker/dockerfile:1; if the file is written for that, \
                        remove the line, or pass --build-arg BUILDKIT_SYNTAX=dockerfile.v0";
            Some(Diagnostic::error(message, span).with_hint(hint))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    BuiltIn,
    Newer,
    Foreign,
}

/// Judges a frontend by its name. Mirrors keep the last two components, so any host will do.
fn judge(reference: &str) -> Judgement {
    let name = reference.split('@').next().unwrap_or_default();
    let (name, tag) = match name.rsplit_once(':') {
        // A colon before a slash belongs to the port of a registry.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, "latest"),
    };
    let mut components = name.rsplit('/');
    match (components.next(), components.next()) {
        (Some("dockerfile-upstream"), Some("docker")) => Judgement::BuiltIn,
        (Some("dockerfile"), Some("docker")) => judge_tag(tag),
        _ => Judgement::Foreign,
    }
}

fn judge_tag(tag: &str) -> Judgement {
    let version = tag.split('-').next().unwrap_or_default();
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0 | 1)), None) => Judgement::BuiltIn,
        (Some(Ok(0)), _) => Judgement::BuiltIn,
        (Some(Ok(1)), Some(Ok(minor))) if minor <= NEWEST => Judgement::BuiltIn,
        (Some(Ok(_)), _) => Judgement::Newer,
        // `latest`, `labs`, `master`, `experimental` and other moving tags.
        _ => Judgement::BuiltIn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A2.4, A2.6
    #[test]
    fn frontends_are_judged_by_name() {
        for built_in in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker/dockerfile:1.4",
            "docker/dockerfile:1.7.1",
            "docker/dockerfile:1-labs",
            "docker/dockerfile:1.3-labs",
            "docker/dockerfile:latest",
            "docker/dockerfile:1@sha256:0123",
            "docker.io/docker/dockerfile:1",
            "mirror.example.com:5000/proxy/docker/dockerfile:1",
            "docker/dockerfile-upstream:master-labs",
            "docker/dockerfile:experimental",
        ] {
            assert_eq!(judge(built_in), Judgement::BuiltIn, "{built_in}");
        }
        for newer in [
            "docker/dockerfile:2",
            "docker/dockerfile:1.99",
            "docker/dockerfile:1.99.0",
        ] {
            assert_eq!(judge(newer), Judgement::Newer, "{newer}");
        }
        for foreign in [
            "example.com/frontend:1",
            "dockerfile:1",
            "docker/dockerfile-x",
            "",
        ] {
            assert_eq!(judge(foreign), Judgement::Foreign, "{foreign}");
        }
    }
}
