//! The pages of the rules that only planning finds: what they call bad raises the rule, what they
//! call good does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use kiln_builder::lower::{self, BaseImage, BaseImages, LowerOptions, NamedContext};
use kiln_grammar::dockerignore::IgnoreFile;
use kiln_grammar::lint::{self, FoundBy, Rule};
use kiln_registry::digest::Digest;
use kiln_registry::spec::Platform;
use serde_json::json;

#[test]
fn the_examples_of_planned_rules_are_true() {
    for rule in lint::rules().filter(|rule| rule.found_by == FoundBy::Plan) {
        let name = rule.name;
        let bad = block(rule, "## Bad");
        assert!(raised(&bad).contains(&name), "{name}: {bad}");
        let good = block(rule, "## Good");
        assert!(!raised(&good).contains(&name), "{name}: {good}");
    }
}

/// The first Dockerfile behind a heading of a page.
fn block(rule: &Rule, heading: &str) -> String {
    let (_, behind) = rule.page.split_once(heading).unwrap();
    let (_, code) = behind.split_once("```dockerfile\n").unwrap();
    code.split_once("```").unwrap().0.to_owned()
}

/// The rules that looking at a Dockerfile raises, built as its comments say.
fn raised(text: &str) -> Vec<&'static str> {
    let file = kiln_grammar::parse(text).unwrap();
    let options = options(text);
    let mut bases = BaseImages::default();
    for wanted in lower::wanted_to_check(&file, &options, &bases, true) {
        // A digest names one image, of one platform whatever is asked for.
        if wanted.reference.contains('@') {
            bases.insert(
                wanted.reference.clone(),
                wanted.platform,
                arm(&wanted.reference),
            );
        }
    }
    let found = lower::check(&file, &options, &bases, true);
    assert!(found.errors.is_empty(), "{text}: {:?}", found.errors);
    found
        .warnings
        .iter()
        .filter_map(|warning| warning.rule)
        .collect()
}

fn arm(name: &str) -> BaseImage {
    let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"type": "layers"}});
    BaseImage {
        name: name.to_owned(),
        config_digest: Digest::of(name.as_bytes()),
        config: serde_json::from_value(config).unwrap(),
    }
}

/// What the comments `# built with ...` of an example say; the ignore file holds what they all say.
fn options(text: &str) -> LowerOptions {
    let linux = Platform::parse("linux/amd64").unwrap();
    let mut options = LowerOptions {
        platform: linux.clone(),
        build_platform: linux,
        ..LowerOptions::default()
    };
    let ignore = IgnoreFile::parse("*.log\n").unwrap();
    options.ignore = Some(Arc::new(ignore));
    for line in text.lines() {
        let Some(flag) = line.strip_prefix("# built with ") else {
            continue;
        };
        let (flag, value) = flag.split_once(' ').unwrap();
        let (name, value) = value.split_once('=').unwrap();
        match flag {
            "--build-arg" => {
                let pair = (name.to_owned(), Some(value.to_owned()));
                options.build_args.push(pair);
            }
            "--build-context" => {
                let context = NamedContext::parse(&format!("{name}={value}")).unwrap();
                options.contexts.push(context);
            }
            other => panic!("{other}: what is that?"),
        }
    }
    options
}
