//! `kiln build --call` and `--check`: questions about a Dockerfile that need no build (C9).

use kiln_builder::lower;
use kiln_builder::pipeline::{BuildError, CheckRequest, Checked, Request};
use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::{Diagnostic, suggest};
use kiln_grammar::lint::{self, Names, Set};

use super::{Setup, check};
use crate::args::{BuildArgs, CheckFormat};
use crate::render::call as show;
use crate::report::{Reported, UsageError};

/// A question.
pub(super) struct Call {
    method: Method,
    format: CheckFormat,
    /// Whether it is answered with success even if the answer is bad.
    ignore_status: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Build,
    Check,
    Outline,
    Targets,
    Describe,
}

const METHODS: [(&str, Method); 6] = [
    ("build", Method::Build),
    ("check", Method::Check),
    ("lint", Method::Check),
    ("outline", Method::Outline),
    ("targets", Method::Targets),
    ("subrequests.describe", Method::Describe),
];

/// The question of a command line; `None` where it is to build.
pub(super) fn of(args: &BuildArgs) -> anyhow::Result<Option<Call>> {
    let call = if args.check { "check" } else { &args.call };
    let call = parse(call).map_err(|message| UsageError::new(format!("--call: {message}")))?;
    Ok((call.method != Method::Build).then_some(call))
}

fn parse(text: &str) -> Result<Call, String> {
    let mut parts = text.split(',').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let found = METHODS.iter().find(|(known, _)| *known == name);
    let &(_, method) = found.ok_or_else(|| {
        let near = suggest(name, METHODS.map(|(name, _)| name));
        let near = near.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
        format!(
            "there is no method `{name}`{near}: expected build, check, outline, targets or \
             subrequests.describe"
        )
    })?;
    let mut call = Call {
        method,
        format: CheckFormat::Text,
        ignore_status: false,
    };
    for part in parts {
        match part.split_once('=').unwrap_or((part, "true")) {
            ("format", "text") => call.format = CheckFormat::Text,
            ("format", "json") => call.format = CheckFormat::Json,
            ("ignorestatus", "true" | "1") => call.ignore_status = true,
            ("ignorestatus", "false" | "0") => call.ignore_status = false,
            _ => {
                return Err(format!(
                    "invalid option `{part}`: expected format=text, format=json, \
                     ignorestatus=true or ignorestatus=false"
                ));
            }
        }
    }
    Ok(call)
}

pub(super) fn run(
    setup: &Setup,
    call: &Call,
    request: Request,
    args: &BuildArgs,
) -> anyhow::Result<()> {
    let json = call.format == CheckFormat::Json;
    if call.method == Method::Describe {
        check::print(&show::describe(json));
        return Ok(());
    }
    let request = CheckRequest {
        context: request.context,
        dockerfile: request.dockerfile,
        options: request.options,
        practices: false,
        settings: lint::Settings {
            skip: own_rules(),
            ..lint::Settings::default()
        },
    };
    let store = check::store(setup);
    let checked = check::look(&request, store.as_ref(), args.file.as_deref())?;
    if call.method == Method::Check {
        check::report(&checked, call.format);
        return match check::finish(&checked) {
            Err(error) if call.ignore_status && error.is::<Reported>() => Ok(()),
            result => result,
        };
    }
    let file = parsed(&checked)?;
    check::print(&match call.method {
        Method::Targets => {
            let targets = lower::targets(&checked.source.text, file);
            show::targets(&checked.source, &targets, json)
        }
        _ => {
            let outline = lower::outline(&checked.source.text, file, &request.options);
            let outline = outline.map_err(|errors| wrong(&checked, errors))?;
            show::outline(&checked.source, &outline, json)
        }
    });
    Ok(())
}

/// The rules that docker does not have: a call answers by docker's alone.
fn own_rules() -> Names {
    let own = lint::rules().filter(|rule| rule.set == Set::Kiln);
    let names: Vec<_> = own.map(|rule| rule.name).collect();
    Names::parse(&names.join(","))
}

fn parsed(checked: &Checked) -> Result<&Dockerfile, BuildError> {
    let file = checked.file.as_ref();
    file.ok_or_else(|| wrong(checked, checked.errors.clone()))
}

fn wrong(checked: &Checked, diagnostics: Vec<Diagnostic>) -> BuildError {
    BuildError::Dockerfile {
        source_file: checked.source.clone(),
        diagnostics,
    }
}
