use std::os::unix::ffi::OsStrExt as _;

use super::*;
use crate::context::testing::{context, make, op};

/// `COPY words | what is selected`: cases over the tree of [`FILES`] and the ignore file of
/// [`IGNORE`].
const CASES: &str = include_str!("../../../../testdata/copy-select.tsv");

const IGNORE: &str = "\
# hidden, with one way back
secret
logs
!logs/keep/*.log
**/*.tmp
";

const FILES: &[&str] = &[
    "a.txt",
    "b.txt",
    ".hidden",
    "x[1].txt",
    "scratch.tmp",
    "Makefile",
    "dir/one",
    "dir/two.txt",
    "dir/sub/three.txt",
    "dir/sub/deep/four.md",
    "dir/link -> sub/three.txt",
    "dir/empty/",
    "dir/junk.tmp",
    "other/one",
    "other/sub/three.txt",
    "current -> dir",
    "file-link -> dir/two.txt",
    "abs-link -> /dir/sub",
    "up-link -> ../../../dir/one",
    "dangling -> nowhere",
    "to-secret -> secret/key",
    "circle -> circle",
    "secret/key",
    "logs/a.log",
    "logs/keep/b.log",
    "logs/keep/c.txt",
    "logs/drop/d.log",
    "docker/entrypoint.sh",
];

/// Renders a selection: files by the name they get in a directory and their path in the tree if
/// that is another, directories with `/` and what is below them.
fn render(selections: &[Selection]) -> String {
    let picked = |picked: &[Picked]| {
        let names: Vec<String> = picked
            .iter()
            .map(|picked| {
                let kind = match picked.metadata.kind {
                    Kind::Directory => "/",
                    Kind::Symlink => "@",
                    _ => "",
                };
                format!("{}{kind}", picked.name.display())
            })
            .collect();
        names.join(" ")
    };
    let items: Vec<String> = selections
        .iter()
        .flat_map(|selection| &selection.items)
        .map(|item| match item {
            Item::Inline { name, .. } => format!("<<{}", name.display()),
            Item::File { name, file, .. } if file.path.file_name() == Some(name) => {
                file.path.display().to_string()
            }
            Item::File { name, file, .. } => {
                format!("{}={}", name.display(), file.path.display())
            }
            Item::Directory { path, below, .. } => {
                format!("{}/({})", path.display(), picked(below))
            }
            Item::Parents { below, .. } => format!("({})", picked(below)),
        })
        .collect();
    if items.is_empty() {
        "nothing".to_owned()
    } else {
        items.join(" ")
    }
}

fn run(tree: &Tree, words: &str) -> Result<String, SelectError> {
    select_all(&op(words), &[None, Some(tree)]).map(|selections| render(&selections))
}

#[test]
fn cases_of_a10_a11_10_a11_11_a14() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), FILES);
    let tree = context(dir.path(), IGNORE);
    let mut wrong = Vec::new();
    for line in CASES
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (words, expected) = line.split_once('\t').expect(line);
        let found = run(&tree, words).unwrap_or_else(|error| {
            let hint = error.hint().map(|hint| format!(" ({hint})"));
            format!("error: {error}{}", hint.unwrap_or_default())
        });
        if found != expected.trim_start() {
            wrong.push(format!(
                "{words}\n  expected {expected}\n  found    {found}"
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A context of a merged tree has no ignore file, and its hints do not search everything.
#[test]
fn a10_1_trees_of_stages_are_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["usr/bin/tool", "secret/key"]);
    let tree =
        Tree::merged(crate::sys::root::Root::open(dir.path()).unwrap()).named("stage `builder`");
    assert_eq!(run(&tree, "secret /d/").unwrap(), "secret/(key)");
    let error = run(&tree, "/usr/bin/tol /d/").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`/usr/bin/tol`: not found in stage `builder`"
    );
    assert_eq!(error.hint().unwrap(), "did you mean `usr/bin/tool`?");
    assert_eq!(run(&tree, "tool /d/").unwrap_err().hint(), None);
}

#[test]
fn names_that_are_not_utf_8_are_selected() {
    let dir = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"caf\xe9.txt");
    std::fs::write(dir.path().join(name), "x").unwrap();
    let tree = context(dir.path(), "");
    for words in ["caf*.txt /d/", "caf?.txt /d/"] {
        let selections = select_all(&op(words), &[None, Some(&tree)]).unwrap();
        let [Item::File { name: found, .. }] = &selections[0].items[..] else {
            panic!("{words}: {selections:?}");
        };
        assert_eq!(found, name);
    }
}

#[test]
fn a14_5_what_is_listed_is_what_is_visible() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), FILES);
    let tree = context(dir.path(), IGNORE);
    let names: Vec<String> = tree
        .entries()
        .into_iter()
        .map(|(path, _)| path.display().to_string())
        .filter(|path| path.starts_with("logs") || path.starts_with("secret"))
        .collect();
    assert_eq!(names, ["logs", "logs/keep", "logs/keep/b.log"]);
}

/// An unreadable directory is an error only for who copies it.
#[test]
fn unreadable_directories_matter_only_when_selected() {
    if !crate::context::testing::is_root("unreadable_directories") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["ok/file", "closed/file", "closed/ 0000"]);
    std::os::unix::fs::chown(dir.path().join("closed"), Some(1), Some(1)).unwrap();
    // The threads that this one starts have no more rights than it has.
    let errors = std::thread::spawn(move || {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).unwrap();
        let tree = context(dir.path(), "");
        assert_eq!(run(&tree, "ok /d/").unwrap(), "ok/(file)");
        [run(&tree, "closed /d/"), run(&tree, ". /d/")]
            .map(|result| result.unwrap_err().to_string())
    })
    .join()
    .unwrap();
    assert_eq!(
        errors[0],
        "cannot list directory `closed` of the build context"
    );
    assert_eq!(errors[1], errors[0]);
}
