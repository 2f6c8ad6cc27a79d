//! Which files the sources of a `COPY` or `ADD` name (A10, A11.10, A11.11).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_grammar::dockerignore::IgnoreError;
use kiln_grammar::glob;

use super::metadata::{Kind, Metadata};
use super::resolve::{End, clean};
use super::rules::{Rules, Verdict};
use super::walk::Entry;
use super::{ContextError, Tree, suggest};
use crate::graph::{CopyOp, CopySource};

/// Why the sources of a copy cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// There is no such path.
    #[error("`{path}`: not found in {tree}")]
    NotFound {
        /// The path as written.
        path: String,
        /// Which tree.
        tree: String,
        /// What the user may have meant.
        hint: Option<String>,
    },
    /// An ignore file hides the path.
    #[error("`{path}`: not in {tree}: excluded by {ignore_file} line {line} (`{pattern}`)")]
    Ignored {
        /// The path as written.
        path: String,
        /// Which tree.
        tree: String,
        /// Name of the ignore file.
        ignore_file: String,
        /// Its line, from 1.
        line: usize,
        /// The pattern as written there.
        pattern: String,
    },
    /// A link leads to nothing, or in a circle.
    #[error("`{path}`: symbolic link to `{target}`, which is not in {tree}")]
    DanglingLink {
        /// The path as written or matched.
        path: String,
        /// What the link holds.
        target: String,
        /// Which tree.
        tree: String,
    },
    /// Several files cannot all have the name of the destination (A10.8).
    #[error(
        "cannot copy {count} sources to `{destination}`: it must be a directory and end with a `/`"
    )]
    DestinationNotDirectory {
        /// The destination.
        destination: String,
        /// How many files and directories the sources name.
        count: usize,
    },
    /// A wildcard is malformed.
    #[error("syntax error in pattern `{0}`")]
    Pattern(String),
    /// A pattern of `--exclude` is malformed.
    #[error("invalid value of `--exclude`")]
    Exclude(#[from] IgnoreError),
    /// A source is of an input that the caller did not give.
    #[error("input {0} of the copy is not a tree of files")]
    NoTree(usize),
    /// A directory or link cannot be read.
    #[error("{0}")]
    Context(#[from] ContextError),
}

impl SelectError {
    /// What may help the user, apart from the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { hint, .. } => hint.clone(),
            Self::Ignored { .. } => Some("add a `!` rule below that line to include it".to_owned()),
            _ => None,
        }
    }
}

/// What one source of a copy names.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The files and directories, in the order of their names; none where wildcards match nothing.
    pub items: Vec<Item>,
}

/// One file, one directory, or what `--parents` keeps together.
#[derive(Clone, Debug)]
pub enum Item {
    /// A file given in the Dockerfile itself.
    Inline {
        /// Its name.
        name: OsString,
        /// Its content.
        content: Vec<u8>,
    },
    /// A single file of any type but a directory.
    File {
        /// Index of the tree among the inputs.
        input: usize,
        /// The name it gets in a destination directory: the source's own, also where that is a link.
        name: OsString,
        /// The file itself, its name is empty.
        file: Picked,
    },
    /// The content of a directory.
    Directory {
        /// Index of the tree among the inputs.
        input: usize,
        /// The directory itself.
        top: Metadata,
        /// Path of the directory in its tree.
        path: PathBuf,
        /// What is below, a directory before what it holds.
        below: Vec<Picked>,
    },
    /// Files that keep their paths below the destination (A11.10).
    Parents {
        /// Index of the tree among the inputs.
        input: usize,
        /// The files and all directories above them, a directory before what it holds.
        below: Vec<Picked>,
    },
}

/// A file selected from a tree.
#[derive(Clone, Debug)]
pub struct Picked {
    /// Where it is in its tree, free of links.
    pub path: PathBuf,
    /// Its path relative to the selected item.
    pub name: PathBuf,
    /// Its metadata when the tree was listed.
    pub metadata: Metadata,
}

/// Finds what the sources of a copy name; `trees` stand at the indices of the vertex's inputs.
///
/// # Errors
/// [`SelectError`] for what is missing, hidden, unreadable or cannot be copied together.
pub fn select_all(op: &CopyOp, trees: &[Option<&Tree>]) -> Result<Vec<Selection>, SelectError> {
    let selections = op
        .sources
        .iter()
        .map(|source| select(op, source, trees))
        .collect::<Result<Vec<_>, _>>()?;
    let count = selections.iter().map(|s| s.items.len()).sum();
    if count > 1 && !op.parents && !op.destination.ends_with('/') {
        return Err(SelectError::DestinationNotDirectory {
            destination: op.destination.clone(),
            count,
        });
    }
    Ok(selections)
}

fn select(
    op: &CopyOp,
    source: &CopySource,
    trees: &[Option<&Tree>],
) -> Result<Selection, SelectError> {
    match source {
        CopySource::Inline { name, content } => Ok(Selection {
            items: vec![Item::Inline {
                name: name.into(),
                content: content.clone().into_bytes(),
            }],
        }),
        CopySource::Path { input, path } => {
            let tree = trees
                .get(*input)
                .copied()
                .flatten()
                .ok_or(SelectError::NoTree(*input))?;
            let selector = Selector {
                tree,
                input: *input,
                written: path,
                exclude: Rules::from_patterns(&op.exclude)?,
                parents: op.parents,
                literal: op.literal,
            };
            selector.select()
        }
    }
}

/// Part of a source path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Literal(OsString),
    Pattern(OsString),
    /// `**`: any number of directories, also none.
    AnyDepth,
    /// `/./` with `--parents`: what is before it is not kept.
    Pivot,
}

/// A place that part of the source path has led to.
#[derive(Clone, Debug)]
struct Spot {
    /// Path in the tree, free of links.
    path: PathBuf,
    /// Path as `--parents` keeps it.
    name: PathBuf,
    /// Directories between the pivot and here, as `--parents` keeps them.
    above: Vec<Picked>,
    /// Whether the ignore file hides it unless something below is included.
    passage: bool,
    metadata: Metadata,
}

struct Selector<'a> {
    tree: &'a Tree,
    input: usize,
    written: &'a str,
    exclude: Rules,
    parents: bool,
    literal: bool,
}

impl Selector<'_> {
    fn select(&self) -> Result<Selection, SelectError> {
        let steps = self.steps();
        let wild = steps
            .iter()
            .any(|step| matches!(step, Step::Pattern(_) | Step::AnyDepth));
        let mut spots = Vec::new();
        self.expand(self.top()?, &steps, wild, false, &mut spots)?;
        if self.parents {
            return self.with_parents(spots, wild);
        }
        let mut items = Vec::new();
        for spot in spots {
            items.extend(self.item(&spot, wild)?);
        }
        Ok(Selection { items })
    }

    /// Cuts the source path at its slashes; before and behind a pivot it is cleaned apart.
    fn steps(&self) -> Vec<Step> {
        let (before, behind) = match self.written.split_once("/./") {
            Some((before, behind)) if self.parents => (before, Some(behind)),
            _ => (self.written, None),
        };
        let step = |name: &OsStr| match name.as_bytes() {
            b"**" if self.parents => Step::AnyDepth,
            name if !self.literal && glob::is_pattern(name) => {
                Step::Pattern(OsStr::from_bytes(name).to_owned())
            }
            name => Step::Literal(OsStr::from_bytes(name).to_owned()),
        };
        let mut steps: Vec<_> = clean(Path::new(before)).iter().map(step).collect();
        if let Some(behind) = behind {
            steps.push(Step::Pivot);
            steps.extend(clean(Path::new(behind)).iter().map(step));
        }
        // `**/**` is `**`, but would find everything twice.
        steps.dedup_by(|a, b| *a == Step::AnyDepth && *b == Step::AnyDepth);
        steps
    }

    fn top(&self) -> Result<Spot, SelectError> {
        let stat = self
            .tree
            .stat(Path::new(""))
            .map_err(|source| self.tree.read_error(Path::new("/"), source))?;
        Ok(Spot {
            path: PathBuf::new(),
            name: PathBuf::new(),
            above: Vec::new(),
            passage: false,
            metadata: Metadata::from(&stat),
        })
    }

    /// Finds where `steps` lead from a spot. Links on the way are followed up to the first
    /// wildcard; behind it only real directories are entered, so nothing is found twice.
    fn expand(
        &self,
        spot: Spot,
        steps: &[Step],
        wild: bool,
        behind_wildcard: bool,
        found: &mut Vec<Spot>,
    ) -> Result<(), SelectError> {
        let Some((step, rest)) = steps.split_first() else {
            found.push(spot);
            return Ok(());
        };
        match step {
            Step::Pivot => {
                let (name, above) = (PathBuf::new(), Vec::new());
                let spot = Spot {
                    name,
                    above,
                    ..spot
                };
                self.expand(spot, rest, wild, behind_wildcard, found)
            }
            Step::Literal(name) if !behind_wildcard => {
                match self.enter(&spot, name, !rest.is_empty())? {
                    Some(next) => self.expand(next, rest, wild, false, found),
                    None if wild => Ok(()),
                    None => Err(self.missing(&spot.path.join(name), rest)),
                }
            }
            Step::Literal(_) | Step::Pattern(_) => {
                for entry in self.children(&spot)? {
                    let matched = match step {
                        Step::Pattern(pattern) => self.matches(pattern, &entry.name)?,
                        Step::Literal(name) => *name == entry.name,
                        Step::AnyDepth | Step::Pivot => false,
                    };
                    if matched && (rest.is_empty() || entry.metadata.is_dir()) {
                        self.expand(spot.child(&entry), rest, wild, true, found)?;
                    }
                }
                Ok(())
            }
            Step::AnyDepth => {
                // A directory stands for all below it.
                if !rest.is_empty() {
                    self.expand(spot.clone(), rest, wild, true, found)?;
                }
                for entry in self.children(&spot)? {
                    let child = spot.child(&entry);
                    if rest.is_empty() {
                        found.push(child);
                    } else if entry.metadata.is_dir() {
                        self.expand(child, steps, wild, true, found)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Goes to a named file in a directory; a link is followed if more of the path comes behind.
    fn enter(&self, spot: &Spot, name: &OsStr, follow: bool) -> Result<Option<Spot>, SelectError> {
        let place = self.tree.follow(&spot.path.join(name), follow)?;
        if !matches!(place.end, End::Found(_)) {
            return Ok(None);
        }
        let Some(metadata) = self.tree.lookup_or_root(&place.path)? else {
            return Ok(None);
        };
        if follow && !metadata.is_dir() {
            return Ok(None);
        }
        let mut next = spot.child(&Entry {
            name: name.to_owned(),
            metadata,
            passage: false,
        });
        next.path = place.path;
        Ok(Some(next))
    }

    fn children(&self, spot: &Spot) -> Result<Vec<Entry>, SelectError> {
        Ok(self.tree.list_or_fail(&spot.path)?)
    }

    fn matches(&self, pattern: &OsStr, name: &OsStr) -> Result<bool, SelectError> {
        glob::matches(pattern.as_bytes(), name.as_bytes())
            .map_err(|_| SelectError::Pattern(self.written.to_owned()))
    }

    /// What a spot is copied as: a file, or the content of a directory. A link is followed (A10.6).
    fn item(&self, spot: &Spot, wild: bool) -> Result<Option<Item>, SelectError> {
        let name = spot.path.file_name().unwrap_or_default().to_owned();
        let by_name = self
            .exclude
            .verdict(Path::new(&name), spot.metadata.is_dir());
        if by_name == Verdict::Excluded && (wild || !spot.metadata.is_dir()) {
            return Ok(None);
        }
        let (path, metadata) = self.followed(&spot.path, spot.metadata)?;
        if !metadata.is_dir() {
            let name_in_item = PathBuf::new();
            return Ok(Some(Item::File {
                input: self.input,
                name,
                file: Picked {
                    path,
                    name: name_in_item,
                    metadata,
                },
            }));
        }
        self.tree.prefetch(&path);
        let mut below = Vec::new();
        self.gather(&path, Path::new(""), &mut below)?;
        if spot.passage && below.is_empty() {
            return Ok(None);
        }
        Ok(Some(Item::Directory {
            input: self.input,
            top: metadata,
            path,
            below,
        }))
    }

    fn with_parents(&self, spots: Vec<Spot>, wild: bool) -> Result<Selection, SelectError> {
        let mut kept: BTreeMap<PathBuf, Picked> = BTreeMap::new();
        for spot in spots {
            // What a wildcard finds lies inside the copied tree, where links stay links (A10.6).
            let (path, metadata) = if wild {
                (spot.path, spot.metadata)
            } else {
                self.followed(&spot.path, spot.metadata)?
            };
            let is_root = spot.name.as_os_str().is_empty();
            let verdict = self.exclude.verdict(&spot.name, metadata.is_dir());
            let mut below = Vec::new();
            if metadata.is_dir() && verdict != Verdict::Excluded {
                self.tree.prefetch(&path);
                self.gather(&path, &spot.name, &mut below)?;
            }
            let counts = verdict == Verdict::Included && !spot.passage;
            if below.is_empty() && !counts {
                continue;
            }
            if !is_root {
                below.extend(spot.above);
                below.push(Picked {
                    path,
                    name: spot.name,
                    metadata,
                });
            }
            for picked in below {
                kept.entry(picked.name.clone()).or_insert(picked);
            }
        }
        let below: Vec<_> = kept.into_values().collect();
        let items = if below.is_empty() {
            Vec::new()
        } else {
            vec![Item::Parents {
                input: self.input,
                below,
            }]
        };
        Ok(Selection { items })
    }

    /// Everything below a directory; `name` is what its paths start with in the selection.
    fn gather(&self, dir: &Path, name: &Path, below: &mut Vec<Picked>) -> Result<(), SelectError> {
        let listing = self.tree.list(dir);
        let entries = match &listing.entries {
            Ok(entries) => entries,
            Err(error) => return Err(self.tree.list_error(dir, *error).into()),
        };
        below.reserve(entries.len());
        for entry in entries {
            let name = joined(name, &entry.name);
            let is_dir = entry.metadata.is_dir();
            let excluded = match self.exclude.verdict(&name, is_dir) {
                Verdict::Excluded => continue,
                verdict => verdict == Verdict::Passage,
            };
            let path = joined(dir, &entry.name);
            let mark = below.len();
            let inside = is_dir.then(|| (path.clone(), name.clone()));
            below.push(Picked {
                path,
                name,
                metadata: entry.metadata,
            });
            if let Some((path, name)) = inside {
                self.gather(&path, &name, below)?;
            }
            if (entry.passage || excluded) && below.len() == mark + 1 {
                below.pop();
            }
        }
        Ok(())
    }

    fn followed(
        &self,
        path: &Path,
        metadata: Metadata,
    ) -> Result<(PathBuf, Metadata), SelectError> {
        if metadata.kind != Kind::Symlink {
            return Ok((path.to_owned(), metadata));
        }
        let place = self.tree.follow(path, true)?;
        let target = match place.end {
            End::Found(_) => self.tree.lookup_or_root(&place.path)?,
            _ => None,
        };
        match target {
            Some(target) => Ok((place.path, target)),
            None => Err(SelectError::DanglingLink {
                path: path.display().to_string(),
                target: self.tree.read_link(path)?.display().to_string(),
                tree: self.tree.label.clone(),
            }),
        }
    }

    /// The reason why there is nothing at a path (A10.4).
    fn missing(&self, path: &Path, rest: &[Step]) -> SelectError {
        let (written, tree) = (self.written.to_owned(), self.tree.label.clone());
        if let Some(hidden) = self.tree.excluded_by(path)
            && self.tree.root.stat(path, false).is_ok()
        {
            return SelectError::Ignored {
                path: written,
                tree,
                ignore_file: self.tree.ignore_file.clone(),
                line: hidden.line,
                pattern: hidden.pattern,
            };
        }
        let rest = rest.iter().filter_map(|step| match step {
            Step::Literal(name) => Some(name),
            _ => None,
        });
        SelectError::NotFound {
            hint: suggest::hint(self.tree, self.written, path, &rest.collect::<PathBuf>()),
            path: written,
            tree,
        }
    }
}

/// A name in a directory, with no more memory than that takes: there may be very many.
fn joined(dir: &Path, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::with_capacity(dir.as_os_str().len() + 1 + name.len());
    path.push(dir);
    path.push(name);
    path
}

impl Spot {
    fn child(&self, entry: &Entry) -> Self {
        let mut above = self.above.clone();
        if !self.name.as_os_str().is_empty() {
            above.push(Picked {
                path: self.path.clone(),
                name: self.name.clone(),
                metadata: self.metadata,
            });
        }
        Self {
            path: self.path.join(&entry.name),
            name: self.name.join(&entry.name),
            above,
            passage: entry.passage,
            metadata: entry.metadata,
        }
    }
}

#[cfg(test)]
mod tests;
