//! Answers to `kiln build --call`, as buildx prints them.

use kiln_builder::lower::{Need, Outline, Target};
use kiln_builder::pipeline::Source;
use serde::Serialize;

use super::check::{Location, location, source_data, to_json};
use super::excerpt::{Excerpts, message};
use super::table;
use super::text::masked;

/// What is left out where it has nothing to say.
fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Serialize)]
struct OutlineJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<ArgJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<NeedJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<NeedJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache: Vec<CacheJson>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct ArgJson {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

#[derive(Serialize)]
struct NeedJson {
    name: String,
    #[serde(skip_serializing_if = "is_false")]
    required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

#[derive(Serialize)]
struct CacheJson {
    #[serde(rename = "ID")]
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

#[derive(Serialize)]
struct TargetsJson {
    targets: Vec<TargetJson>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct TargetJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    base: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Location>,
}

/// What the target takes.
pub(crate) fn outline(source: &Source, outline: &Outline, json: bool) -> String {
    if json {
        outline_json(source, outline)
    } else {
        outline_text(outline)
    }
}

fn outline_json(source: &Source, outline: &Outline) -> String {
    let excerpts = Excerpts::of(source);
    let needs = |list: &[Need]| -> Vec<NeedJson> {
        let need = |need: &Need| NeedJson {
            name: need.id.clone(),
            required: need.required,
            location: location(&excerpts, need.span),
        };
        list.iter().map(need).collect()
    };
    let args = outline.args.iter().map(|arg| ArgJson {
        name: arg.name.clone(),
        description: arg.description.clone(),
        value: arg.value.as_deref().map(masked),
        location: location(&excerpts, arg.span),
    });
    let caches = outline.caches.iter().map(|cache| CacheJson {
        id: cache.id.clone(),
        location: location(&excerpts, cache.span),
    });
    to_json(&OutlineJson {
        name: outline.name.clone(),
        description: outline.description.clone(),
        args: args.collect(),
        secrets: needs(&outline.secrets),
        ssh: needs(&outline.ssh),
        cache: caches.collect(),
        sources: vec![source_data(source)],
    })
}

fn outline_text(outline: &Outline) -> String {
    let mut tables = Vec::new();
    let name = outline.name.as_deref().unwrap_or("(default)");
    let mut head = vec![vec!["TARGET:".to_owned(), message(name)]];
    if let Some(about) = &outline.description {
        head.push(vec!["DESCRIPTION:".to_owned(), message(about)]);
    }
    tables.push(table::lines(&head));
    let args = outline.args.iter().map(|arg| {
        let text = |text: &Option<String>| message(text.as_deref().unwrap_or_default());
        vec![message(&arg.name), text(&arg.value), text(&arg.description)]
    });
    tables.extend(titled(&["BUILD ARG", "VALUE", "DESCRIPTION"], args));
    for (title, needs) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        let rows = needs.iter().map(|need| {
            let required = if need.required { "true" } else { "" };
            vec![message(&need.id), required.to_owned()]
        });
        tables.extend(titled(&[title, "REQUIRED"], rows));
    }
    let caches = outline.caches.iter().map(|cache| vec![message(&cache.id)]);
    tables.extend(titled(&["CACHE MOUNT"], caches));
    tables.join("\n\n")
}

/// A table with its heading, where it has rows.
fn titled(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Option<String> {
    let heading = heading.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    (rows.len() > 1).then(|| table::lines(&rows))
}

/// The stages that can be built.
pub(crate) fn targets(source: &Source, targets: &[Target], json: bool) -> String {
    if json {
        return targets_json(source, targets);
    }
    let row = |target: &Target| {
        // A stage without a name can only be built when it is the last one.
        let name = match (&target.name, target.default) {
            (Some(name), true) => format!("{name} (default)"),
            (Some(name), false) => name.clone(),
            (None, true) => "(default)".to_owned(),
            (None, false) => return None,
        };
        let about = target.description.as_deref().unwrap_or_default();
        Some(vec![message(&name), message(about)])
    };
    titled(&["TARGET", "DESCRIPTION"], targets.iter().filter_map(row)).unwrap_or_default()
}

fn targets_json(source: &Source, targets: &[Target]) -> String {
    let excerpts = Excerpts::of(source);
    let targets = targets.iter().map(|target| TargetJson {
        name: target.name.clone(),
        default: target.default,
        description: target.description.clone(),
        base: masked(&target.base),
        platform: target.platform.clone(),
        location: location(&excerpts, target.span),
    });
    to_json(&TargetsJson {
        targets: targets.collect(),
        sources: vec![source_data(source)],
    })
}

/// A method that can be called.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Method {
    name: &'static str,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    opts: Vec<Named>,
    metadata: Vec<Named>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'static str,
}

/// The methods that can be called.
pub(crate) fn describe(json: bool) -> String {
    let method = |name, description, opts| Method {
        name,
        version: "1.0.0",
        r#type: "rpc",
        description,
        opts,
        metadata: ["result.json", "result.txt"]
            .map(|name| Named {
                name,
                description: "",
            })
            .into(),
    };
    let target = Named {
        name: "target",
        description: "Target build stage",
    };
    let methods = [
        method(
            "frontend.outline",
            "List all parameters current build target supports",
            vec![target],
        ),
        method(
            "frontend.targets",
            "List all targets current build supports",
            Vec::new(),
        ),
        method("frontend.lint", "Lint a Dockerfile", Vec::new()),
        method(
            "frontend.subrequests.describe",
            "List available subrequest types",
            Vec::new(),
        ),
    ];
    if json {
        return to_json(&methods);
    }
    let rows = methods.iter().map(|method| {
        let name = method.name.trim_start_matches("frontend.");
        [name, method.version, method.description]
            .map(str::to_owned)
            .to_vec()
    });
    titled(&["NAME", "VERSION", "DESCRIPTION"], rows).unwrap_or_default()
}
