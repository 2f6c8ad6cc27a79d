//! Reasons of misses from files: each of `testdata/explain` holds a Dockerfile before and after, the
//! files of the context with mode, path and content, and what is said of each step that changed.
//! Images are what their tag says. `KILN_UPDATE=1` writes the expectations anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use kiln_builder::cache::explain::description::{Description, Names};
use kiln_builder::cache::explain::files::{FileEntry, compare};
use kiln_builder::cache::explain::reason::{Difference, Reason};
use kiln_builder::cache::explain::{Step, explain};
use kiln_builder::cache::{CacheKey, definition_key};
use kiln_builder::graph::{CopySource, Graph, ImageOp, Op, VertexId};
use kiln_builder::lower::{self, BaseImage, BaseImages, LowerOptions};
use kiln_grammar::ast::Kind;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{DiffId, ImageConfig, Platform};

/// One side of a case.
struct Build {
    graph: Graph,
    steps: BTreeMap<VertexId, Step>,
    files: Vec<FileEntry>,
}

#[test]
fn cases_are_explained_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/explain");
    let mut paths: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut failed = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let (case, expected) = text.split_once("--- reasons\n").unwrap();
        let actual = reasons(case);
        if std::env::var_os("KILN_UPDATE").is_some() {
            fs::write(&path, format!("{case}--- reasons\n{actual}")).unwrap();
        } else if actual != expected {
            let name = path.display();
            failed.push(format!(
                "{name}\n--- expected\n{expected}--- actual\n{actual}"
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn reasons(case: &str) -> String {
    let section = |name: &str| {
        let text = case
            .split_once(&format!("--- {name}\n"))
            .map(|(_, rest)| rest);
        let text = text.unwrap_or_default();
        text.split_once("--- ")
            .map_or(text, |(text, _)| text)
            .to_owned()
    };
    let before = build(&section("before"), &section("files before"));
    let after = build(&section("after"), &section("files after"));
    let known: Vec<_> = before
        .steps
        .values()
        .map(|step| (step.key, step.description.clone()))
        .collect();
    let explained = explain(&after.graph, &known, &after.steps);
    let mut text = String::new();
    for (id, explanation) in explained {
        let step = &after.steps[&id];
        if known.iter().any(|(key, _)| *key == step.key) {
            continue;
        }
        let reason = match explanation.counterpart {
            None => Reason::NeverBuilt,
            Some(_) => {
                let mut differences = explanation.differences;
                for one in &mut differences {
                    if matches!(one, Difference::Files(None)) {
                        *one = Difference::Files(Some(compare(&before.files, &after.files)));
                    }
                }
                Reason::Changed(differences)
            }
        };
        writeln!(text, "{}: {reason}", after.graph.vertex(id).name).unwrap();
    }
    text
}

fn build(dockerfile: &str, files: &str) -> Build {
    let file = kiln_grammar::parse(dockerfile).unwrap();
    let options = LowerOptions {
        platform: Platform::linux("amd64", None),
        build_platform: Platform::linux("amd64", None),
        ..LowerOptions::default()
    };
    let mut bases = BaseImages::default();
    loop {
        let wanted = lower::wanted(&file, &options, &bases).unwrap();
        if wanted.is_empty() {
            break;
        }
        for want in wanted {
            bases.insert(want.reference.clone(), want.platform, base(&want.reference));
        }
    }
    let graph = lower::lower(&file, &options, &bases).unwrap().graph;
    let arguments: Vec<BTreeSet<String>> = file
        .stages
        .iter()
        .map(|stage| {
            let pairs = stage.instructions.iter().filter_map(|one| match &one.kind {
                Kind::Arg(pairs) => Some(pairs),
                _ => None,
            });
            pairs
                .flatten()
                .map(|pair| pair.name.value.clone())
                .collect()
        })
        .collect();
    let files = entries(files);
    let names = Names {
        arguments: &arguments,
        image: &|image: &ImageOp| image.config,
    };
    let mut keys: BTreeMap<VertexId, CacheKey> = BTreeMap::new();
    let mut steps = BTreeMap::new();
    for id in graph.ids() {
        let vertex = graph.vertex(id);
        let local = |input: &VertexId| matches!(graph.vertex(*input).op, Op::Context(_));
        let selected = match &vertex.op {
            Op::Copy(op) if vertex.inputs[1..].iter().all(local) => {
                let sources = op.sources.iter().filter_map(|source| match source {
                    CopySource::Path { path, .. } => Some(path.trim_matches('/')),
                    CopySource::Inline { .. } => None,
                });
                let mut text = String::new();
                for source in sources {
                    let below = |file: &&FileEntry| {
                        source == "." || file.path.starts_with(source.as_bytes())
                    };
                    write!(text, "{:?}", files.iter().filter(below).collect::<Vec<_>>()).unwrap();
                }
                Some(Digest::of(text.as_bytes()))
            }
            _ => None,
        };
        let inputs: Vec<_> = vertex.inputs.iter().map(|input| keys[input]).collect();
        let count = if selected.is_some() { 1 } else { inputs.len() };
        let key = definition_key(vertex, &inputs[..count], selected.as_ref());
        if matches!(vertex.op, Op::Run(_) | Op::Copy(_) | Op::Mkdir(_)) {
            let description = Description::of(&graph, id, &names, &|input| keys[&input], selected);
            // what the store keeps of it says the same
            let kept = Description::parse(&description.encode()).unwrap();
            assert_eq!(kept, description);
            let key = *key.digest();
            steps.insert(id, Step { key, description });
        }
        keys.insert(id, key);
    }
    Build {
        graph,
        steps,
        files,
    }
}

/// An image with one layer, which the tag names.
fn base(reference: &str) -> BaseImage {
    let tag = reference.rsplit('=').next().unwrap();
    let digest = Digest::of(tag.as_bytes());
    let mut config = ImageConfig {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..ImageConfig::default()
    };
    config.rootfs.diff_ids = vec![DiffId(digest)];
    BaseImage {
        name: reference.to_owned(),
        config_digest: digest,
        config,
    }
}

/// `0644 path content` a line.
fn entries(text: &str) -> Vec<FileEntry> {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let mode = u32::from_str_radix(words.next().unwrap(), 8).unwrap();
        let path = words.next().unwrap().as_bytes().to_vec();
        let mut content = [0; 8];
        for (to, from) in content
            .iter_mut()
            .zip(words.next().unwrap_or_default().bytes())
        {
            *to = from;
        }
        FileEntry {
            path,
            mode: 0o100_000 | mode,
            owner: (0, 0),
            content,
            attributes: [0; 8],
        }
    };
    text.lines().map(entry).collect()
}
