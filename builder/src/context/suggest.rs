//! What a user may have meant by a path that does not exist.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::Tree;

/// A file of the same name elsewhere is looked for among so many files.
const MAX_SEARCHED: usize = 100_000;

/// A hint for a path that was `written` in the Dockerfile: there is no `path` (clean) in the tree,
/// behind which `rest` was looked for.
pub(super) fn hint(tree: &Tree, written: &str, path: &Path, rest: &Path) -> Option<String> {
    if tree.lookup(path).is_ok_and(|found| found.is_some()) {
        return Some(format!("`{}` is not a directory", path.display()));
    }
    let near = similar_name(tree, path)
        .map(|near| near.join(rest))
        .or_else(|| elsewhere(tree, &path.join(rest)));
    if let Some(near) = near {
        // A join with nothing leaves a slash at the end.
        let near = near.components().collect::<PathBuf>();
        return Some(format!("did you mean `{}`?", near.display()));
    }
    leads_above(written).then(|| {
        format!(
            "paths cannot lead above the root of {}, and `..` there stays there",
            tree.label()
        )
    })
}

/// Whether a path as written would name something above the root.
fn leads_above(written: &str) -> bool {
    let mut depth = 0_usize;
    for component in Path::new(written).components() {
        match component {
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    false
}

fn similar_name(tree: &Tree, path: &Path) -> Option<PathBuf> {
    let (dir, name) = (path.parent()?, path.file_name()?);
    let listing = tree.list(dir);
    let entries = listing.entries.as_ref().ok()?;
    entries
        .iter()
        .filter_map(|entry| Some((distance(name, &entry.name)?, &entry.name)))
        .min()
        .map(|(_, name)| dir.join(name))
}

/// The file with the same name that is the least deep; only the build context is searched, the
/// tree of an image would be too large.
fn elsewhere(tree: &Tree, path: &Path) -> Option<PathBuf> {
    if !tree.live {
        return None;
    }
    let name = path.file_name()?;
    let mut level = vec![PathBuf::new()];
    let mut searched = 0;
    while !level.is_empty() && searched < MAX_SEARCHED {
        let mut deeper = Vec::new();
        for dir in level {
            let listing = tree.list(&dir);
            for entry in listing.entries.iter().flatten() {
                searched += 1;
                if entry.name == name && !entry.passage {
                    return Some(dir.join(name));
                }
                if entry.metadata.is_dir() {
                    deeper.push(dir.join(&entry.name));
                }
            }
        }
        level = deeper;
    }
    None
}

/// How many letters must change to make one name the other; `None` when it is too many to be a
/// mistake. Letters of another case count nothing.
fn distance(a: &OsStr, b: &OsStr) -> Option<usize> {
    let (a, b) = (
        a.as_bytes().to_ascii_lowercase(),
        b.as_bytes().to_ascii_lowercase(),
    );
    let allowed = (a.len() / 3).min(3);
    if a.len().abs_diff(b.len()) > allowed {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        let mut last = i + 1;
        for (pair, right) in row.windows(2).zip(&b) {
            let [diagonal, above] = pair else { continue };
            last = (diagonal + usize::from(left != right))
                .min(above + 1)
                .min(last + 1);
            next.push(last);
        }
        row = next;
    }
    row.last().copied().filter(|distance| *distance <= allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_likely_mistakes_are_near() {
        for (a, b, expected) in [
            ("packge.json", "package.json", Some(1)),
            ("Makefile", "makefile", Some(0)),
            ("requirments.txt", "requirements.txt", Some(1)),
            ("ab", "cd", None),
            ("src", "source", None),
            ("main.rs", "lib.rs", None),
        ] {
            assert_eq!(distance(OsStr::new(a), OsStr::new(b)), expected, "{a} {b}");
        }
    }

    #[test]
    fn paths_that_lead_above_the_root_are_told() {
        assert!(leads_above("../x"));
        assert!(leads_above("a/../../x"));
        assert!(!leads_above("a/../x"));
        assert!(!leads_above("/x"));
    }
}
