//! Paths followed component by component through some view of files.
//!
//! The kernel resolves paths inside one directory tree (`sys::root`). Two views are not one tree:
//! a build context without what its ignore file hides, and the files of a layer being written
//! above those of the layers below. Links in them are followed here, and never lead above the root.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// What a view holds at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Link(PathBuf),
    /// Any other file.
    Other,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path of it, free of links and relative to the root; where `end` is [`End::Missing`],
    /// the part that exists.
    pub path: PathBuf,
    /// How following the path ended.
    pub end: End,
}

/// How following a path ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// There is something.
    Found(Seen),
    /// There is nothing; this is what follows the existing part.
    Missing(PathBuf),
    /// Something on the way is neither directory nor link.
    NotDirectory,
    /// Too many links.
    Loop,
}

/// Follows a path. A link at its end is followed when `follow_last` is set; `look` says what the
/// view holds at a path that is free of links.
///
/// # Errors
/// Those of `look`.
pub fn follow<E>(
    path: &Path,
    follow_last: bool,
    mut look: impl FnMut(&Path) -> Result<Option<Seen>, E>,
) -> Result<Place, E> {
    let mut pending: VecDeque<OsString> = components(path).collect();
    let mut here = PathBuf::new();
    let mut links = 0;
    let mut seen = Seen::Directory;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            here.pop();
            seen = Seen::Directory;
            continue;
        }
        let next = here.join(&name);
        match look(&next)? {
            None => {
                let rest = clean(
                    &pending
                        .iter()
                        .fold(PathBuf::from(name), |rest, name| rest.join(name)),
                );
                let end = End::Missing(rest);
                return Ok(Place { path: here, end });
            }
            Some(Seen::Link(target)) if follow_last || !pending.is_empty() => {
                links += 1;
                if links > MAX_LINKS {
                    let end = End::Loop;
                    return Ok(Place { path: next, end });
                }
                if target.is_absolute() {
                    here = PathBuf::new();
                }
                seen = Seen::Directory;
                for name in components(&target).rev() {
                    pending.push_front(name);
                }
            }
            Some(Seen::Other) if !pending.is_empty() => {
                let end = End::NotDirectory;
                return Ok(Place { path: next, end });
            }
            Some(found) => {
                here = next;
                seen = found;
            }
        }
    }
    let end = End::Found(seen);
    Ok(Place { path: here, end })
}

/// Cleans a path with `/` as root (A10.2): the result is relative to the root and has neither `.`
/// nor `..`, which cannot lead above it.
#[must_use]
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for name in components(path) {
        if name == ".." {
            cleaned.pop();
        } else {
            cleaned.push(name);
        }
    }
    cleaned
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn look(path: &Path) -> Result<Option<Seen>, Infallible> {
        Ok(match path.to_str().unwrap() {
            "usr" | "usr/lib" | "a" => Some(Seen::Directory),
            "lib" => Some(Seen::Link("usr/lib".into())),
            "abs" => Some(Seen::Link("/usr".into())),
            "a/up" => Some(Seen::Link("../../../lib".into())),
            "loop" => Some(Seen::Link("loop".into())),
            "gone" => Some(Seen::Link("a/new/../other".into())),
            "usr/lib/x" => Some(Seen::Other),
            _ => None,
        })
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let found = |path: &str, seen| Place {
            path: path.into(),
            end: End::Found(seen),
        };
        let missing = |path: &str, rest: &str| Place {
            path: path.into(),
            end: End::Missing(rest.into()),
        };
        let go = |path: &str, follow_last| follow(Path::new(path), follow_last, look).unwrap();
        assert_eq!(go("", true), found("", Seen::Directory));
        assert_eq!(go("/lib/x", true), found("usr/lib/x", Seen::Other));
        assert_eq!(go("a/up/x", true), found("usr/lib/x", Seen::Other));
        assert_eq!(go("abs/lib", true), found("usr/lib", Seen::Directory));
        assert_eq!(go("lib", false), found("lib", Seen::Link("usr/lib".into())));
        assert_eq!(go("lib/..", true), found("usr", Seen::Directory));
        assert_eq!(go("gone", true), missing("a", "other"));
        assert_eq!(go("a/b/c", true), missing("a", "b/c"));
        assert_eq!(go("loop", true).end, End::Loop);
        assert_eq!(go("lib/x/y", true).end, End::NotDirectory);
    }

    #[test]
    fn a10_2_nothing_above_the_root_is_named() {
        for (path, cleaned) in [
            ("../x", "x"),
            ("/x", "x"),
            ("./x/", "x"),
            ("a/../../b/./c", "b/c"),
            ("..", ""),
            (".", ""),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned), "{path}");
        }
    }
}
