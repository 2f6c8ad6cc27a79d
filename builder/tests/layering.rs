//! A module may use only what stands left of it in the order of its crate.
//!
//! The order is the pipeline, so that a reader can take the modules from left to right and never
//! meets a name that is explained further on. Read from the sources: every path that starts with
//! `crate::`, outside of tests.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The order of a crate: modules of one group do not see each other.
type Order = &'static [&'static [&'static str]];

const GRAMMAR: Order = &[
    &["source", "glob", "pattern"],
    &["diagnostic"],
    &["ast", "dockerignore"],
    &["directive", "word"],
    &["heredoc", "mount", "syntax"],
    &["parse"],
    &["lint", "print"],
];

const REGISTRY: Order = &[
    &["digest", "files"],
    &["section"],
    &["spec"],
    &["reference"],
    &["blob"],
    &["layout", "archive", "credentials", "settings"],
    &["client"],
    &["transfer"],
    &["copy"],
    &["server"],
    &["testing"],
];

const BUILDER: Order = &[
    &["sys", "event"],
    &["store", "graph"],
    &["layer", "context"],
    &["snapshot", "runtime"],
    &["lower"],
    &["cache"],
    &["step"],
    &["schedule"],
    &["image"],
    &["pipeline"],
];

/// Uses that break the order, and why they may.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    // one error type for all ends of a transfer keeps the client's own cause
    ("registry", "blob", "client"),
    // a diagnostic points into a source, and reading a source can end in a diagnostic
    ("grammar", "source", "diagnostic"),
];

#[test]
fn grammar_modules_use_what_stands_left_of_them() {
    assert_order("grammar", GRAMMAR);
}

#[test]
fn registry_modules_use_what_stands_left_of_them() {
    assert_order("registry", REGISTRY);
}

#[test]
fn builder_modules_use_what_stands_left_of_them() {
    assert_order("builder", BUILDER);
}

#[test]
fn the_pure_stages_touch_no_files() {
    // `lower` and the graph are text in, plan out; the grammar as a whole is
    let mut found = Vec::new();
    for folder in ["grammar/src", "builder/src/lower", "builder/src/graph"] {
        for file in sources(&workspace().join(folder)) {
            let text = code(&fs::read_to_string(&file).unwrap());
            for banned in [
                "std::fs",
                "TcpStream",
                "UdpSocket",
                "std::process",
                "std::env",
                "tokio::",
            ] {
                if text.contains(banned) {
                    found.push(format!("{}: {banned}", file.display()));
                }
            }
        }
    }
    assert!(
        found.is_empty(),
        "input or output in a pure stage:\n{}",
        found.join("\n")
    );
}

fn assert_order(krate: &str, order: Order) {
    let root = workspace().join(krate).join("src");
    let files = sources(&root);
    assert!(!files.is_empty(), "no sources in {}", root.display());
    let mut offences = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap();
        let Some(module) = module_of(path) else {
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        for problem in problems(krate, &module, &code(&text), order) {
            offences.push(format!("{krate}/src/{}: {problem}", path.display()));
        }
    }
    assert!(
        offences.is_empty(),
        "the order of the modules is broken:\n{}",
        offences.join("\n")
    );
}

/// Returns what is wrong in the code of a module.
fn problems(krate: &str, module: &str, code: &str, order: Order) -> Vec<String> {
    let place = |name: &str| order.iter().position(|group| group.contains(&name));
    let Some(own) = place(module) else {
        return vec![format!(
            "`{module}` has no place in the order; give it one in {}",
            file!()
        )];
    };
    used(code)
        .into_iter()
        .filter(|name| name != module && !EXCEPTIONS.contains(&(krate, module, name)))
        .filter_map(|name| match place(&name) {
            Some(other) if other < own => None,
            Some(_) => Some(format!("`{module}` may not use `{name}`")),
            // a path to something in `lib.rs` itself, which stands right of all modules
            None => Some(format!(
                "`{module}` may not use `crate::{name}`, which no module left of it has"
            )),
        })
        .collect()
}

/// Returns the top module that a source file belongs to; none for the crate's root and the binary.
fn module_of(path: &Path) -> Option<String> {
    let first = path.iter().next()?.to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!["lib", "main", "bin"].contains(&name)).then(|| name.to_owned())
}

/// Returns the top modules that the `crate::` paths in some code lead to.
fn used(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (start, _) in code.match_indices("crate::") {
        let before = code[..start].chars().next_back();
        // `$crate::` is a macro's way to say the same; `other_crate::` is another word
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(first_segments(list)),
            None => names.extend(leading_word(rest)),
        }
    }
    names
}

/// Returns the first segment of every path in a braced list, up to its closing brace.
fn first_segments(list: &str) -> Vec<String> {
    let (mut depth, mut at_start, mut found) = (0_usize, true, Vec::new());
    for (position, character) in list.char_indices() {
        match character {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && !c.is_whitespace() => {
                found.extend(leading_word(&list[position..]));
                at_start = false;
            }
            _ => {}
        }
    }
    found
}

fn leading_word(text: &str) -> Option<String> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// Returns a file's text without comments and without its tests, which may use anything.
fn code(text: &str) -> String {
    let body = text
        .split("\n#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default();
    let lines = body
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Lists the source files below a folder but for those of tests; none when there is no folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() && name != "tests" {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

#[test]
fn paths_are_found_in_every_form() {
    let text = "\
        //! see [`crate::comment`]\n\
        use crate::digest::{Digest, DiffId};\n\
        use crate::{\n    blob, // not crate::other\n    spec::{manifest::Manifest, Descriptor},\n    client as c};\n\
        pub(crate) fn f() -> crate::layer::Layer { my_crate::nothing() }\n\
        \n#[cfg(test)]\nmod tests {\n    use crate::server;\n}\n";
    let names: Vec<String> = used(&code(text)).into_iter().collect();
    assert_eq!(names, ["blob", "client", "digest", "layer", "spec"]);
}

#[test]
fn a_broken_order_is_noticed() {
    let order: Order = &[&["a"], &["b", "c"], &["d"]];
    assert!(problems("x", "b", "use crate::a; use crate::b::x;", order).is_empty());
    assert_eq!(
        problems("x", "b", "use crate::c;", order),
        ["`b` may not use `c`"]
    );
    assert_eq!(
        problems("x", "b", "fn f() { crate::d::x() }", order),
        ["`b` may not use `d`"]
    );
    assert!(problems("x", "b", "use crate::Error;", order)[0].contains("`crate::Error`"));
    assert!(problems("x", "e", "", order)[0].contains("no place"));
    assert_eq!(module_of(Path::new("spec/mod.rs")).as_deref(), Some("spec"));
    assert_eq!(module_of(Path::new("digest.rs")).as_deref(), Some("digest"));
    assert_eq!(module_of(Path::new("bin/kiln/main.rs")), None);
}
