//! Paths of the image: pure text, `/` is the separator, nothing is looked up.

/// Joins a path to a directory and cleans it: absolute, no `.`, `..` or doubled slashes, nothing
/// above the root. An absolute path replaces the directory.
pub(super) fn join(directory: &str, path: &str) -> String {
    let start = if path.starts_with('/') { "" } else { directory };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Cleans a path as [`join`] does, but leaves a relative one relative.
pub(super) fn clean(path: &str) -> String {
    if path.starts_with('/') {
        return join("/", path);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            ("" | ".", _) => {}
            ("..", Some(last)) if *last != ".." => {
                parts.pop();
            }
            (name, _) => parts.push(name),
        }
    }
    match parts.as_slice() {
        [] => ".".to_owned(),
        parts => parts.join("/"),
    }
}

/// The destination of a copy: joined with the working directory; what names a directory by its
/// form (`.`, nothing, a slash or `/.` at the end) ends in a slash (A11.1).
pub(super) fn destination(directory: &str, path: &str) -> String {
    let is_directory = matches!(path, "" | "." | "..")
        || path.ends_with('/')
        || path.ends_with("/.")
        || path.ends_with("/..");
    let mut joined = join(directory, path);
    if is_directory && !joined.ends_with('/') {
        joined.push('/');
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_keeps_relative_paths() {
        for (path, cleaned) in [
            ("/a/../b//c/", "/b/c"),
            ("a/./b/", "a/b"),
            ("a/..", "."),
            ("../../a/../b", "../../b"),
            ("", "."),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }

    #[test]
    fn join_cleans_and_stays_below_the_root() {
        for (directory, path, joined) in [
            ("/", "a", "/a"),
            ("/a/b", "c", "/a/b/c"),
            ("/a/b", "../c/", "/a/c"),
            ("/a", "../../../c", "/c"),
            ("/a", "/b//./c/", "/b/c"),
            ("", "", "/"),
            ("rel", "x y", "/rel/x y"),
        ] {
            assert_eq!(join(directory, path), joined, "{directory} + {path}");
        }
    }

    /// A11.1
    #[test]
    fn destination_remembers_directories() {
        for (path, joined) in [
            (".", "/w/"),
            ("", "/w/"),
            ("./", "/w/"),
            ("x", "/w/x"),
            ("x/", "/w/x/"),
            ("x/.", "/w/x/"),
            ("..", "/"),
            ("/", "/"),
            ("/x", "/x"),
        ] {
            assert_eq!(destination("/w", path), joined, "{path}");
        }
    }
}
