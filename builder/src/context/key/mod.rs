//! The content key of a copy (A11.12, A15.1): equal keys over equal lower layers make equal layers.
//!
//! In the key: the destination and the flags that change what is written; of every selected file
//! its path relative to the selection, type, mode, owner, size and digest or link target or device
//! number, the attributes that are carried, and which names are hard links of one file.
//!
//! Not in the key: times (a fresh clone has others), paths outside the selection, the patterns and
//! links that led to it, inode numbers. What `--chown` and `--chmod` replace is not in it either,
//! so the umask of a checkout does not matter there. Names given to `--chown` are looked up in the
//! lower layers, whose key the caller adds.
//!
//! Every field has a fixed length or its length before it, so no two selections encode alike.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_registry::digest::{Digest, Hasher};

use super::chmod::{ModeChange, ModeError};
use super::digests::{Content, Copied, Found, first_names};
use super::metadata::{Kind, Metadata};
use super::select::{Item, Picked, Selection};
use super::xattr::{self, Xattr};
use super::{ContextError, Tree};
use crate::graph::CopyOp;

/// Version of the encoding.
const ENCODING: &[u8] = b"kiln copy content 2\n";

/// Bytes that are gathered for the hasher.
const GATHERED: usize = 32 << 10;

/// Permission bits of inline files (A13.8).
pub const INLINE_MODE: u32 = 0o644;

/// Why there is no content key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The value of `--chmod` is malformed.
    #[error("{0}")]
    Mode(#[from] ModeError),
    /// A selected file cannot be read.
    #[error("{0}")]
    Context(#[from] ContextError),
    /// A selection is of an input that the caller did not give.
    #[error("input {0} of the copy is not a tree of files")]
    NoTree(usize),
    /// Only known contents were to be taken, and one is not known; nothing that people get to see.
    #[error("the content of `{}` is not known", .0.display())]
    Unknown(PathBuf),
}

/// Version of the encoding without contents.
const SHAPE: &[u8] = b"kiln copy shape 1\n";

/// Computes the content key of what [`select_all`](super::select::select_all) found; `trees` are
/// the same as there. Reads the contents of the selected files that are not known. Of items whose files
/// were copied, what was `found` then counts, and nothing else.
///
/// # Errors
/// [`KeyError`], mostly for files that cannot be read.
pub fn content_key(
    op: &CopyOp,
    trees: &[Option<&Tree>],
    selections: &[Selection],
    found: &Found,
) -> Result<Digest, KeyError> {
    key(op, trees, selections, Source::Anywhere(found))
}

/// The content key, where all contents are known without opening a file.
///
/// # Errors
/// [`KeyError`], as above.
pub fn known_content_key(
    op: &CopyOp,
    trees: &[Option<&Tree>],
    selections: &[Selection],
) -> Result<Option<Digest>, KeyError> {
    match key(op, trees, selections, Source::Memory) {
        Err(KeyError::Unknown(_)) => Ok(None),
        key => key.map(Some),
    }
}

/// A key of what the selected files look like: all that is in the content key but contents,
/// attributes and link targets. Equal content keys have equal shapes, so that what has a shape that
/// was never seen has a content that was never seen.
///
/// # Errors
/// [`KeyError`], for what was not selected well.
pub fn shape_key(
    op: &CopyOp,
    trees: &[Option<&Tree>],
    selections: &[Selection],
) -> Result<Digest, KeyError> {
    key(op, trees, selections, Source::Nowhere)
}

fn key(
    op: &CopyOp,
    trees: &[Option<&Tree>],
    selections: &[Selection],
    source: Source<'_>,
) -> Result<Digest, KeyError> {
    let chmod = op.chmod.as_deref().map(ModeChange::parse).transpose()?;
    let mut key = Key {
        hasher: Hasher::new(),
        gathered: Vec::with_capacity(GATHERED),
        chmod,
        chown: op.chown.is_some(),
        keep_owner: op.keep_owner,
        source,
        items: 0,
    };
    key.put(match source {
        Source::Nowhere => SHAPE,
        Source::Memory | Source::Anywhere(_) => ENCODING,
    });
    key.bytes(op.destination.as_bytes());
    key.text(op.chown.as_deref());
    key.text(op.chmod.as_deref());
    key.put(&[op.link.into(), op.unpack.into(), op.parents.into()]);
    for selection in selections {
        key.number(selection.items.len() as u64);
        for item in &selection.items {
            key.item(item, trees)?;
            key.items += 1;
        }
    }
    key.hasher.update(&key.gathered);
    Ok(key.hasher.finish())
}

/// Where the contents come from that go into a key.
#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    /// None do.
    Nowhere,
    /// From earlier builds: a file that is not known is not read.
    Memory,
    /// From copying the files, from earlier builds, or from the files themselves.
    Anywhere(&'a Found),
}

struct Key<'a> {
    hasher: Hasher,
    /// Fields that the hasher has not seen yet: most are a few bytes, and cost less together.
    gathered: Vec<u8>,
    chmod: Option<ModeChange>,
    chown: bool,
    keep_owner: bool,
    source: Source<'a>,
    /// How many items are in it.
    items: usize,
}

impl<'a> Key<'a> {
    fn item(&mut self, item: &Item, trees: &[Option<&Tree>]) -> Result<(), KeyError> {
        let tree = |input: &usize| {
            let tree = trees.get(*input).copied().flatten();
            tree.ok_or(KeyError::NoTree(*input))
        };
        match item {
            Item::Inline { name, content } => {
                self.tag(b'i');
                self.name(name);
                self.bytes(content);
            }
            Item::File { input, name, file } => {
                self.tag(b'f');
                self.name(name);
                self.files(tree(input)?, std::slice::from_ref(file))?;
            }
            Item::Directory {
                input,
                top,
                path,
                below,
            } => {
                self.tag(b'd');
                let tree = tree(input)?;
                self.metadata(top);
                if !self.is_shape() {
                    self.xattrs(&directory_xattrs(tree, path)?);
                }
                self.files(tree, below)?;
            }
            Item::Parents { input, below } => {
                self.tag(b'p');
                self.files(tree(input)?, below)?;
            }
        }
        Ok(())
    }

    /// What was found out of this item's files while they were copied.
    fn copied(&self) -> Option<&'a Copied> {
        match self.source {
            Source::Anywhere(found) => found.of(self.items),
            Source::Nowhere | Source::Memory => None,
        }
    }

    fn is_shape(&self) -> bool {
        matches!(self.source, Source::Nowhere)
    }

    fn files(&mut self, tree: &Tree, files: &[Picked]) -> Result<(), KeyError> {
        let firsts = first_names(files);
        let contents = match (self.copied(), self.source) {
            (Some(copied), _) => Cow::Borrowed(&copied.contents),
            (None, Source::Nowhere) => Cow::Owned(Vec::new()),
            (None, Source::Memory) => Cow::Owned(tree.known_contents(files, &firsts)?),
            (None, Source::Anywhere(_)) => Cow::Owned(tree.contents(files, &firsts)?),
        };
        let mut contents = contents.iter().peekable();
        self.number(files.len() as u64);
        for (number, (file, first)) in files.iter().zip(firsts).enumerate() {
            self.name(file.name.as_os_str());
            self.metadata(&file.metadata);
            if let Some(first) = first {
                self.tag(b'h');
                self.name(files[first].name.as_os_str());
            } else if self.is_shape() {
                if file.metadata.kind == Kind::File {
                    self.number(file.metadata.size);
                }
            } else {
                let content = contents.next_if(|(of, _)| *of == number);
                self.content(tree, (number, file), content.map(|(_, content)| content))?;
            }
        }
        Ok(())
    }

    fn content(
        &mut self,
        tree: &Tree,
        (number, file): (usize, &Picked),
        content: Option<&Content>,
    ) -> Result<(), KeyError> {
        match file.metadata.kind {
            Kind::File => {
                let unknown = || KeyError::Unknown(file.path.clone());
                let Content { digest, xattrs } = content.ok_or_else(unknown)?;
                self.number(file.metadata.size);
                self.put(digest);
                self.xattrs(xattrs);
            }
            Kind::Directory => self.xattrs(&directory_xattrs(tree, &file.path)?),
            Kind::Symlink => match self.copied().and_then(|it| it.targets.get(&number)) {
                Some(target) => self.name(target.as_os_str()),
                None => self.name(tree.read_link(&file.path)?.as_os_str()),
            },
            Kind::CharDevice | Kind::BlockDevice => self.number(file.metadata.rdev),
            Kind::Fifo | Kind::Socket => {}
        }
        Ok(())
    }

    /// Type, and mode and owner as they will be written.
    fn metadata(&mut self, metadata: &Metadata) {
        self.tag(match metadata.kind {
            Kind::File => b'-',
            Kind::Directory => b'd',
            Kind::Symlink => b'l',
            Kind::Fifo => b'p',
            Kind::CharDevice => b'c',
            Kind::BlockDevice => b'b',
            Kind::Socket => b's',
        });
        if metadata.kind != Kind::Symlink {
            let mode = match &self.chmod {
                Some(change) => change.apply(metadata.mode, metadata.is_dir()),
                None => metadata.mode,
            };
            self.put(&mode.to_le_bytes());
        }
        if self.keep_owner && !self.chown {
            self.put(&metadata.uid.to_le_bytes());
            self.put(&metadata.gid.to_le_bytes());
        }
    }

    fn xattrs(&mut self, xattrs: &[Xattr]) {
        self.number(xattrs.len() as u64);
        for (name, value) in xattrs {
            self.bytes(name.to_bytes());
            self.bytes(value);
        }
    }

    fn name(&mut self, name: &OsStr) {
        self.bytes(name.as_bytes());
    }

    fn text(&mut self, text: Option<&str>) {
        self.tag(text.is_some().into());
        self.bytes(text.unwrap_or_default().as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.put(bytes);
    }

    fn number(&mut self, number: u64) {
        self.put(&number.to_le_bytes());
    }

    fn tag(&mut self, tag: u8) {
        self.put(&[tag]);
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.gathered.len() + bytes.len() > GATHERED {
            self.hasher.update(&self.gathered);
            self.gathered.clear();
        }
        self.gathered.extend_from_slice(bytes);
    }
}

pub(super) fn directory_xattrs(tree: &Tree, path: &Path) -> Result<Vec<Xattr>, ContextError> {
    let directory = tree.open(path)?;
    xattr::read(directory).map_err(|error| tree.read_error(path, error))
}

#[cfg(test)]
mod tests;
