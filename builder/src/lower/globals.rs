//! The global scope: platform arguments and the `ARG` instructions before the first `FROM`
//! (A6.1, A6.10).

use kiln_grammar::ast::{Dockerfile, Kind};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_registry::spec::Platform;

use super::options::LowerOptions;
use super::scope::Scope;

/// Bytes that all arguments before the first `FROM` may take.
const LIMIT: usize = 64 << 20;

/// Evaluates the global scope. `build_arg` gives the values of the command line, which beat
/// defaults; a default that cannot be expanded leaves its argument without a value.
pub(super) fn evaluate(
    file: &Dockerfile,
    options: &LowerOptions,
    build_arg: &dyn Fn(&str) -> Option<String>,
    errors: &mut Vec<Diagnostic>,
) -> Scope {
    let mut scope = Scope::default();
    for (name, value) in automatic(file, options) {
        scope.set(&name, &build_arg(&name).unwrap_or(value));
    }
    for instruction in &file.global_args {
        let Kind::Arg(pairs) = &instruction.kind else {
            continue;
        };
        for pair in pairs {
            let value = match (build_arg(&pair.name.value), &pair.default) {
                (Some(value), _) => Some(value),
                (None, None) => None,
                (None, Some(word)) => match scope.expand(&word.value, file.directives.escape) {
                    Ok(expanded) => Some(expanded.value),
                    Err(error) => {
                        errors.push(Diagnostic::error(error.to_string(), word.span));
                        None
                    }
                },
            };
            scope.declare(&pair.name.value, value.as_deref());
            if scope.size() > LIMIT {
                let message = format!("arguments take more than {} MiB", LIMIT >> 20);
                errors.push(Diagnostic::error(message, pair.name.span));
                return scope;
            }
        }
    }
    scope
}

/// The arguments that are set without being declared (A6.10).
fn automatic(file: &Dockerfile, options: &LowerOptions) -> Vec<(String, String)> {
    let last = file.stages.last().and_then(|stage| stage.name.as_ref());
    let target = match (&options.target, last) {
        (Some(target), _) => target.clone(),
        (None, Some(name)) => name.value.clone(),
        (None, None) => "default".to_owned(),
    };
    let mut arguments = Vec::new();
    for (prefix, platform) in [
        ("BUILD", &options.build_platform),
        ("TARGET", &options.platform),
    ] {
        for (name, value) in fields(platform) {
            arguments.push((format!("{prefix}{name}"), value));
        }
    }
    arguments.push(("TARGETSTAGE".to_owned(), target));
    arguments
}

fn fields(platform: &Platform) -> [(&'static str, String); 5] {
    [
        ("PLATFORM", platform.to_string()),
        ("OS", platform.os.clone()),
        ("OSVERSION", platform.os_version.clone().unwrap_or_default()),
        ("ARCH", platform.architecture.clone()),
        ("VARIANT", platform.variant.clone().unwrap_or_default()),
    ]
}
