//! Lowers the Dockerfiles under `testdata/lowering`, one folder a case:
//!
//! - `Dockerfile`;
//! - `options.json`, optional: `build_args`, `target`, `platform`, `build_platform`, ...;
//! - `base.json`, optional: image configs by reference; an image that is not there has a config
//!   with one layer and nothing else;
//! - `plan.txt` with the plan and its warnings, or `error.txt`.
//!
//! `KILN_UPDATE=1` writes the expectations anew. Names of cases cite the numbers of SPEC.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_builder::graph::Network;
use kiln_builder::lower::{self, BaseImage, BaseImages, LowerOptions, Wanted, platform};
use kiln_grammar::diagnostic::Diagnostic;
use kiln_grammar::source::position;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ImageConfig, Platform};
use serde_json::{Value, json};

#[test]
fn cases_lower_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/lowering");
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
        let (plan, error) = match lower_case(case) {
            Ok(plan) => (Some(plan), None),
            Err(error) => (None, Some(error)),
        };
        for (name, actual) in [("plan.txt", plan), ("error.txt", error)] {
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
    let options = options(&read_json(&case.join("options.json")));
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
            let platform = platform::format(&image.platform);
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
        Some(text) => platform::parse(text, &host).unwrap(),
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
            _ => Network::Host,
        },
        allow_host_network: value["allow_host_network"].as_bool().unwrap_or(false),
    }
}
