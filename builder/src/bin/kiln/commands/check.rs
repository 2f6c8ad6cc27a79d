//! `kiln check` (A17.1)

use std::path::{Component, Path, PathBuf};

use kiln_builder::lower::LowerOptions;
use kiln_builder::pipeline::{self, CheckRequest, Checked};
use kiln_builder::store::Store;
use kiln_grammar::diagnostic::suggest;
use kiln_grammar::lint::{self, Names, Rule, Set};
use kiln_registry::spec::Platform;

use super::{Setup, build, fix, platform};
use crate::args::{CheckArgs, CheckFormat};
use crate::render::{self, excerpt::Excerpts, table};
use crate::report::{Reported, UsageError};

pub(crate) fn run(setup: &Setup, args: &CheckArgs) -> anyhow::Result<()> {
    if args.list {
        list();
        return Ok(());
    }
    if let Some(name) = &args.explain {
        explain(rule(name)?);
        return Ok(());
    }
    let request = request(args)?;
    let store = store(setup);
    let mut checked = look(&request, store.as_ref(), args.file.as_deref())?;
    if args.fix {
        match fix::run(&request, store.as_ref(), &checked, args)? {
            fix::Fixed::Nothing => {}
            // What was shown is not in the file; what there is to say of the file stays to be said.
            fix::Fixed::Shown => return finish(&checked),
            fix::Fixed::Request(request) => {
                checked = look(&request, store.as_ref(), args.file.as_deref())?;
            }
        }
    }
    let report = render(&checked, args.format);
    // Where the fixed text goes to standard output, the report cannot.
    if args.fix && reads_stdin(args) {
        render::err(&report);
    } else {
        print(&report);
    }
    finish(&checked)
}

/// The report in a form; says so where it is not whole.
fn render(checked: &Checked, format: CheckFormat) -> String {
    let (count, most) = (checked.warnings.len(), render::check::MOST);
    if count > most && format != CheckFormat::Text {
        render::err(&format!(
            "note: {count} warnings found, the report holds the first {most}"
        ));
    }
    render::check::render(checked, format)
}

/// Prints a report; one that says nothing is no empty line.
pub(super) fn print(report: &str) {
    if !report.is_empty() {
        render::out(report);
    }
}

/// Looks at the Dockerfile, and names it as the user does.
pub(super) fn look(
    request: &CheckRequest,
    store: Option<&Store>,
    file: Option<&Path>,
) -> anyhow::Result<Checked> {
    let mut checked = pipeline::check(request, store)?;
    let path = match (file, &checked.path) {
        (Some(file), Some(_)) => Some(file.to_owned()),
        (None, Some(path)) => path.file_name().map(|name| request.context.join(name)),
        (_, None) => None,
    };
    if let Some(path) = path {
        let parts = path.components().filter(|part| *part != Component::CurDir);
        checked.source.name = parts.collect::<PathBuf>().to_string_lossy().into_owned();
    }
    Ok(checked)
}

/// Says by its exit code whether there are mistakes, or warnings that are wanted to be.
pub(super) fn finish(checked: &Checked) -> anyhow::Result<()> {
    if let Some(violation) = &checked.violation {
        render::err(&Excerpts::of(&checked.source).error(violation));
    }
    if checked.errors.is_empty() && checked.violation.is_none() {
        return Ok(());
    }
    Err(Reported.into())
}

/// The store, whose images tell more about the Dockerfile; a machine without one will do.
pub(super) fn store(setup: &Setup) -> Option<Store> {
    let root = setup.root().ok()?;
    root.join("version")
        .exists()
        .then(|| Store::open(&root))?
        .ok()
}

pub(super) fn reads_stdin(args: &CheckArgs) -> bool {
    args.file.as_deref().is_some_and(|file| file == "-")
}

fn request(args: &CheckArgs) -> anyhow::Result<CheckRequest> {
    let (platform, platform_given) = platform(args.platform.as_deref())?;
    let build_args = args.build_args.iter().map(|text| build::build_arg(text));
    Ok(CheckRequest {
        settings: lint::Settings {
            skip: names(&args.skip)?,
            enable: names(&args.enable)?,
            error: args.error,
        },
        options: LowerOptions {
            build_args: build_args.collect::<anyhow::Result<_>>()?,
            target: args.target.clone(),
            platform,
            platform_given,
            build_platform: Platform::host(),
            ..LowerOptions::default()
        },
        context: build::context(&args.context)?,
        dockerfile: build::dockerfile(args.file.as_deref())?,
        practices: true,
    })
}

/// The rules of a flag; a name that is none is a mistake.
fn names(lists: &[String]) -> anyhow::Result<Names> {
    let mut names = Names::default();
    for list in lists {
        let list = Names::parse(list);
        for name in list.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
            rule(name)?;
        }
        names.extend(list);
    }
    Ok(names)
}

fn rule(name: &str) -> anyhow::Result<&'static Rule> {
    lint::rule(name).ok_or_else(|| {
        let near = suggest(name, lint::rules().map(|rule| rule.name));
        let more = match near {
            Some(near) => format!("did you mean {near}?"),
            None => "kiln check --list names all".to_owned(),
        };
        UsageError::new(format!("there is no rule `{name}`: {more}")).into()
    })
}

fn list() {
    let row = |rule: &Rule| {
        let set = match rule.set {
            Set::Docker => "docker",
            Set::Kiln => "kiln",
        };
        let on = if rule.on { "on" } else { "off" };
        [rule.name, set, on, rule.summary]
            .map(str::to_owned)
            .to_vec()
    };
    let rows: Vec<_> = lint::rules().map(row).collect();
    table::print(&["RULE", "SET", "DEFAULT", "SUMMARY"], &rows);
}

fn explain(rule: &Rule) {
    render::out(rule.page.trim_end());
    if let Some(url) = rule.url() {
        render::out(&format!("\ndocker's page: {url}"));
    }
}

/// What a call of `kiln build` prints of a check, in a form.
pub(super) fn report(checked: &Checked, format: CheckFormat) {
    print(&render(checked, format));
}
