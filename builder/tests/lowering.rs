//! Lowers the Dockerfiles under `testdata/lowering`, one folder a case:
//!
//! - `Dockerfile`, and perhaps `.dockerignore`;
//! - `options.json`, optional: `build_args`, `contexts`, `target`, `platform`, `build_platform`, ...;
//! - `base.json`, optional: image configs by reference; an image that is not there has a config
//!   with one layer and nothing else;
//! - `plan.txt` with the plan and its warnings, or `error.txt`.
//!
//! Those under `testdata/checks` are only looked at, with the images of `base.json` and no others;
//! `findings.txt` holds what is said about them, edits included.
//!
//! `KILN_UPDATE=1` writes the expectations anew. Names of cases cite the numbers of SPEC.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_builder::graph::{Limits, Network, Resources, Ulimit};
use kiln_builder::lower::{self, BaseImage, BaseImages, LowerOptions, NamedContext, Wanted};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::dockerignore::IgnoreFile;
use kiln_grammar::source::position;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ImageConfig, Platform};
use serde_json::{Value, json};

#[test]
fn cases_lower_as_expected() {
    compare("lowering", |case| {
        let (plan, error) = match lower_case(case) {
            Ok(plan) => (Some(plan), None),
            Err(error) => (None, Some(error)),
        };
        vec![("plan.txt", plan), ("error.txt", error)]
    });
}

#[test]
fn cases_are_judged_as_expected() {
    compare("checks", |case| {
        vec![("findings.txt", Some(check_case(case)))]
    });
}

/// Compares what each case of a folder comes to with its files.
fn compare(folder: &str, run: impl Fn(&Path) -> Vec<(&'static str, Option<String>)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testdata")
        .join(folder);
    let mut cases: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", root.display());
    let update = std::env::var_os("KILN_UPDATE").is_some();
    let mut failed = Vec::new();
    for case in &cases {
        for (name, actual) in run(case) {
            let path = case.join(name);
            if update {
                match actual {
                    Some(text) => fs::write(&path, text).unwrap(),
                    None if path.exists() => fs::remove_file(&path).unwrap(),
                    None => {}
                }
                continue;
            }
            let expected = fs::read_to_string(&path).ok();
            if actual != expected {
                let show = |text: Option<String>| text.unwrap_or_else(|| "(none)\n".to_owned());
                failed.push(format!(
                    "{}\n--- expected\n{}--- actual\n{}",
                    path.display(),
                    show(expected),
                    show(actual)
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Lowers one case: the plan as text, or what is wrong.
fn lower_case(case: &Path) -> Result<String, String> {
    let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
    let options = case_options(case);
    let configs = read_json(&case.join("base.json"));
    let report = |errors: Vec<Diagnostic>| {
        let mut report = String::new();
        for error in &errors {
            write_diagnostic(&mut report, &text, error);
        }
        report
    };
    let file = kiln_grammar::parse(&text).map_err(report)?;
    let mut bases = BaseImages::default();
    let mut out = String::new();
    loop {
        let wanted = lower::wanted(&file, &options, &bases).map_err(report)?;
        if wanted.is_empty() {
            break;
        }
        for image in wanted {
            let at = position(&text, image.span.map_or(0, |span| span.start));
            let platform = image.platform.to_string();
            let (line, column) = (at.line, at.column);
            writeln!(
                out,
                "wanted {} {platform} at {line}:{column}",
                image.reference
            )
            .unwrap();
            let base = base(&image, &configs[&image.reference]);
            bases.insert(image.reference, image.platform, base);
        }
    }
    let plan = lower::lower(&file, &options, &bases).map_err(report)?;
    out.push_str(&plan.dump());
    for warning in &plan.warnings {
        write_diagnostic(&mut out, &text, warning);
    }
    Ok(out)
}

/// Looks at one case: errors and warnings as text.
fn check_case(case: &Path) -> String {
    let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
    let options = case_options(case);
    let configs = read_json(&case.join("base.json"));
    let file = kiln_grammar::parse(&text).unwrap();
    let mut bases = BaseImages::default();
    for image in lower::wanted_to_check(&file, &options, &bases, true) {
        let config = &configs[&image.reference];
        if !config.is_null() {
            let base = base(&image, config);
            bases.insert(image.reference, image.platform, base);
        }
    }
    let found = lower::check(&file, &options, &bases, true);
    let mut warnings = kiln_grammar::lint::lint(&text, &file);
    warnings.extend(found.warnings);
    let settings = kiln_grammar::lint::Settings::of(&file, None).unwrap();
    let warnings = settings.filter(&text, &file, warnings);
    let mut out = String::new();
    for diagnostic in found.errors.iter().chain(&warnings) {
        write_diagnostic(&mut out, &text, diagnostic);
        for edit in &diagnostic.fix {
            let old = &text[edit.span.range()];
            writeln!(out, "    fix: {old:?} -> {:?}", edit.text).unwrap();
        }
    }
    out
}

fn case_options(case: &Path) -> LowerOptions {
    let ignore = fs::read_to_string(case.join(".dockerignore")).ok();
    LowerOptions {
        ignore: ignore.map(|text| Arc::new(IgnoreFile::parse(&text).unwrap())),
        ..options(&read_json(&case.join("options.json")))
    }
}

fn write_diagnostic(out: &mut String, text: &str, diagnostic: &Diagnostic) {
    let at = position(text, diagnostic.span.start);
    let rule = diagnostic.rule.unwrap_or("error");
    writeln!(
        out,
        "{}:{} {rule}: {}",
        at.line, at.column, diagnostic.message
    )
    .unwrap();
    if let Some(hint) = &diagnostic.hint {
        writeln!(out, "    hint: {hint}").unwrap();
    }
}

fn read_json(path: &Path) -> Value {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Err(_) => Value::Null,
    }
}

fn base(wanted: &Wanted, config: &Value) -> BaseImage {
    let config: ImageConfig = if config.is_null() {
        serde_json::from_value(json!({
            "os": wanted.platform.os,
            "architecture": wanted.platform.architecture,
            "variant": wanted.platform.variant,
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(wanted.reference.as_bytes())]},
        }))
        .unwrap()
    } else {
        serde_json::from_value(config.clone()).unwrap()
    };
    BaseImage {
        name: format!("example.com/{}", wanted.reference),
        config_digest: Digest::of(&serde_json::to_vec(&config).unwrap()),
        config,
    }
}

fn options(value: &Value) -> LowerOptions {
    let host = Platform {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..Platform::default()
    };
    let platform = |name: &str| match value[name].as_str() {
        Some(text) => Platform::parse_on(text, &host).unwrap(),
        None => host.clone(),
    };
    let pairs = |name: &str| -> Vec<(String, Option<String>)> {
        let pairs = value[name].as_array().cloned().unwrap_or_default();
        let pair = |pair: &Value| {
            let name = pair[0].as_str().unwrap().to_owned();
            (name, pair[1].as_str().map(str::to_owned))
        };
        pairs.iter().map(pair).collect()
    };
    LowerOptions {
        build_args: pairs("build_args"),
        target: value["target"].as_str().map(str::to_owned),
        platform: platform("platform"),
        platform_given: value["platform"].is_string(),
        build_platform: platform("build_platform"),
        name_platform: value["name_platform"].as_bool().unwrap_or(false),
        labels: pairs("labels")
            .into_iter()
            .map(|(name, value)| (name, value.unwrap_or_default()))
            .collect(),
        network: match value["network"].as_str() {
            Some("none") => Network::None,
            Some("default") => Network::Default,
            _ => Network::Host,
        },
        allow_host_network: value["allow_host_network"].as_bool().unwrap_or(false),
        allow_insecure: value["allow_insecure"].as_bool().unwrap_or(false),
        limits: limits(value),
        extra_hosts: strings(value, "extra_hosts"),
        contexts: value["contexts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|text| NamedContext::parse(text.as_str().unwrap()).unwrap())
            .collect(),
        ignore: None,
    }
}

fn strings(value: &Value, name: &str) -> Vec<String> {
    let strings = value[name].as_array().into_iter().flatten();
    strings
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn limits(value: &Value) -> Limits {
    let ulimits = strings(value, "ulimits");
    let resources = strings(value, "resources");
    let resources = resources.iter().map(|pair| pair.split_once('=').unwrap());
    Limits {
        ulimits: Ulimit::parse_all(ulimits.iter().map(String::as_str)).unwrap(),
        resources: Resources::parse(resources).unwrap(),
        shm_size: value["shm_size"].as_u64(),
    }
}

/// A step points at its instruction, one that a base image asked for at nothing.
#[test]
fn vertices_know_where_they_come_from() {
    let text = "FROM base AS a\nRUN x\nFROM a\nWORKDIR /w\n";
    let file = kiln_grammar::parse(text).unwrap();
    let options = options(&Value::Null);
    let mut bases = BaseImages::default();
    let config = json!({
        "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"},
        "config": {"OnBuild": ["RUN trigger"]},
    });
    let wanted = lower::wanted(&file, &options, &bases).unwrap().remove(0);
    let image = base(&wanted, &config);
    bases.insert(wanted.reference, wanted.platform, image);
    let plan = lower::lower(&file, &options, &bases).unwrap();
    let origins: Vec<_> = plan
        .graph
        .vertices()
        .iter()
        .map(|vertex| {
            let origin = vertex.origin.unwrap();
            (origin.stage, origin.span.map(|span| &text[span.range()]))
        })
        .collect();
    assert_eq!(
        origins,
        [
            (0, Some("FROM base AS a")),
            (0, None),
            (0, Some("RUN x")),
            (1, Some("WORKDIR /w")),
        ]
    );
    assert_eq!(plan.base_image().unwrap().name, "example.com/base");
    assert_eq!(plan.layers().count(), 3);
}

/// A small file cannot ask for much memory.
#[test]
fn values_that_double_are_refused() {
    let lower = |text: &str| {
        let file = kiln_grammar::parse(text).unwrap();
        lower::lower(&file, &options(&Value::Null), &BaseImages::default())
    };
    let doubling = "ENV A=$A$A\n".repeat(60);
    let error = lower(&format!("FROM scratch\nENV A=xxxxxxxx\n{doubling}")).unwrap_err();
    assert!(
        error[0].message.contains("longer than"),
        "{}",
        error[0].message
    );

    let large = format!("ENV A={}\nENV B=$A$A$A$A\n", "x".repeat(60_000));
    let steps = "RUN x\n".repeat(8_000);
    let error = lower(&format!("FROM scratch\n{large}{steps}")).unwrap_err();
    assert!(error[0].message.contains("MiB"), "{}", error[0].message);

    let ranges = "EXPOSE 0-65535\n".repeat(10);
    let plan = lower(&format!("FROM scratch\n{ranges}")).unwrap();
    let ports = plan.config.config.exposed_ports.unwrap();
    assert_eq!(ports.len(), 65_536);
    assert_eq!(plan.history[0].created_by, "EXPOSE [0-65535]");
}

/// Long chains of stages are walked, not recursed into.
#[test]
fn many_stages_are_lowered() {
    let mut text = "FROM scratch AS s0\n".to_owned();
    for stage in 1..1_000 {
        writeln!(
            text,
            "FROM s{} AS s{stage}\nCOPY --from=s0 /a /b",
            stage - 1
        )
        .unwrap();
    }
    let file = kiln_grammar::parse(&text).unwrap();
    let plan = lower::lower(&file, &options(&Value::Null), &BaseImages::default()).unwrap();
    assert_eq!(plan.history.len(), 999);
}

/// What a Dockerfile could be made of, for the test below.
const PIECES: &[&str] = &[
    "ARG A",
    "ARG A=$B",
    "ARG B=${A:-x} A=",
    "ENV A=$A$B",
    "ENV $A=1",
    "ENV A ${",
    "LABEL a=$A",
    "RUN echo $A",
    "RUN [\"a\"]",
    "RUN <<EOF\n#!x\nEOF",
    "RUN cat <<E\nE",
    "CMD a",
    "CMD []",
    "ENTRYPOINT []",
    "SHELL []",
    "SHELL [\"a\"]",
    "COPY a b",
    "COPY a b c",
    "COPY a b c/",
    "COPY --from=a a b",
    "COPY --from=1 a b",
    "COPY --from=x a b",
    "COPY --from=$A a b",
    "COPY --chmod=$A --chown=$B a $A",
    "COPY <<EOF /\n$A\nEOF",
    "ADD http://x/%zz%4/ $A",
    "ADD --checksum=$A http://x $B",
    "ADD x.git#a y",
    "ADD https://h/x.git#$A:b y",
    "ADD --checksum=$A git://h/x?ref=$A y",
    "COPY --from=folder a b",
    "COPY --from=repository a b",
    "RUN --mount=from=folder,target=/x y",
    "FROM folder",
    "FROM repository AS c",
    "FROM y AS folder",
    "FROM y AS image",
    "VOLUME $A",
    "EXPOSE $A 1-3/UDP",
    "EXPOSE 99999",
    "WORKDIR $A",
    "WORKDIR ../..",
    "USER $A",
    "STOPSIGNAL 9",
    "STOPSIGNAL $A",
    "HEALTHCHECK NONE",
    "HEALTHCHECK CMD x",
    "ONBUILD RUN x",
    "ONBUILD COPY --from=b x $A",
    "MAINTAINER m",
    "RUN --mount=target=$A,from=a x",
    "RUN --mount=type=tmpfs,target=/x y",
    "RUN --mount=type=cache,target=/x,from=b y",
    "RUN --network=host y",
    "FROM scratch",
    "FROM scratch AS a",
    "FROM a AS b",
    "FROM b",
    "FROM $A",
    "FROM --platform=$A x AS a",
    "FROM x:$A@$B",
];

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(256))]

    /// Whatever parses is lowered or refused, and what is wanted is all that is missing.
    #[test]
    fn anything_is_lowered_or_refused(
        pieces in proptest::collection::vec(0..PIECES.len(), 1..12),
        triggers in proptest::collection::vec(0..PIECES.len(), 0..3),
        argument in proptest::option::of("[a-z/:$.0-9]{0,6}"),
    ) {
        let mut text = "FROM x AS a\n".to_owned();
        for piece in pieces {
            text.push_str(PIECES[piece]);
            text.push('\n');
        }
        let triggers: Vec<&str> = triggers.into_iter().map(|piece| PIECES[piece]).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"},
            "config": {"OnBuild": triggers},
        });
        let contexts = ["folder=a", "repository=git://h/x", "image=docker-image://x"];
        let options = options(&json!({"build_args": [["A", argument]], "contexts": contexts}));
        let Ok(file) = kiln_grammar::parse(&text) else {
            return Ok(());
        };
        let mut bases = BaseImages::default();
        loop {
            let Ok(wanted) = lower::wanted(&file, &options, &bases) else {
                return Ok(());
            };
            if wanted.is_empty() {
                break;
            }
            for image in wanted {
                let base = base(&image, &config);
                bases.insert(image.reference, image.platform, base);
            }
        }
        match lower::lower(&file, &options, &bases) {
            Ok(plan) => {
                let layers: Vec<_> = plan.layers().collect();
                proptest::prop_assert!(layers.is_sorted());
                match layers.last() {
                    Some(&last) => proptest::prop_assert_eq!(plan.root, last),
                    None => proptest::prop_assert!(plan.graph.vertex(plan.root).inputs.is_empty()),
                }
            }
            Err(errors) => {
                for error in errors {
                    proptest::prop_assert!(!error.message.contains("is not resolved"));
                    proptest::prop_assert!(!error.message.contains("is not built before"));
                    proptest::prop_assert!(error.span.end as usize <= text.len());
                }
            }
        }
    }
}
