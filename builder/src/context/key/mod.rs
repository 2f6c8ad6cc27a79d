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

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kiln_registry::digest::{Digest, Hasher};

use super::chmod::{ModeChange, ModeError};
use super::digests::Content;
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
}

/// Computes the content key of what [`select_all`](super::select::select_all) found; `trees` are
/// the same as there. Reads the contents of the selected files that are not known.
///
/// # Errors
/// [`KeyError`], mostly for files that cannot be read.
pub fn content_key(
    op: &CopyOp,
    trees: &[Option<&Tree>],
    selections: &[Selection],
) -> Result<Digest, KeyError> {
    let chmod = op.chmod.as_deref().map(ModeChange::parse).transpose()?;
    let mut key = Key {
        hasher: Hasher::new(),
        gathered: Vec::with_capacity(GATHERED),
        chmod,
        chown: op.chown.is_some(),
        keep_owner: op.keep_owner,
    };
    key.put(ENCODING);
    key.bytes(op.destination.as_bytes());
    key.text(op.chown.as_deref());
    key.text(op.chmod.as_deref());
    key.put(&[op.link.into(), op.unpack.into(), op.parents.into()]);
    for selection in selections {
        key.number(selection.items.len() as u64);
        for item in &selection.items {
            key.item(item, trees)?;
        }
    }
    key.hasher.update(&key.gathered);
    Ok(key.hasher.finish())
}

struct Key {
    hasher: Hasher,
    /// Fields that the hasher has not seen yet: most are a few bytes, and cost less together.
    gathered: Vec<u8>,
    chmod: Option<ModeChange>,
    chown: bool,
    keep_owner: bool,
}

impl Key {
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
                self.xattrs(&directory_xattrs(tree, path)?);
                self.files(tree, below)?;
            }
            Item::Parents { input, below } => {
                self.tag(b'p');
                self.files(tree(input)?, below)?;
            }
        }
        Ok(())
    }

    fn files(&mut self, tree: &Tree, files: &[Picked]) -> Result<(), KeyError> {
        let regular: Vec<(&Path, &Metadata)> = files
            .iter()
            .filter(|file| file.metadata.kind == Kind::File)
            .map(|file| (file.path.as_path(), &file.metadata))
            .collect();
        let mut contents = tree.contents(&regular)?.into_iter();
        let mut links: HashMap<(u64, u64), &Path> = HashMap::new();
        self.number(files.len() as u64);
        for file in files {
            self.name(file.name.as_os_str());
            self.metadata(&file.metadata);
            let first = file.metadata.hard_link().and_then(|inode| {
                let first = *links.entry(inode).or_insert(&file.name);
                (first != file.name).then_some(first)
            });
            let content = match file.metadata.kind {
                Kind::File => contents.next(),
                _ => None,
            };
            if let Some(first) = first {
                self.tag(b'h');
                self.name(first.as_os_str());
            } else {
                self.content(tree, file, content)?;
            }
        }
        Ok(())
    }

    fn content(
        &mut self,
        tree: &Tree,
        file: &Picked,
        content: Option<Content>,
    ) -> Result<(), KeyError> {
        match file.metadata.kind {
            Kind::File => {
                if let Some(Content { digest, xattrs }) = content {
                    self.number(file.metadata.size);
                    self.put(&digest);
                    self.xattrs(&xattrs);
                }
            }
            Kind::Directory => self.xattrs(&directory_xattrs(tree, &file.path)?),
            Kind::Symlink => self.name(tree.read_link(&file.path)?.as_os_str()),
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
