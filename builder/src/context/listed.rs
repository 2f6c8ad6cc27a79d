//! The files that a copy selects, in the few bytes that tell later what changed of them.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::Tree;
use super::chmod::ModeChange;
use super::digests::{Content, Found, first_names};
use super::key::{INLINE_MODE, KeyError, directory_xattrs};
use super::metadata::{Kind, Metadata};
use super::select::{Item, Picked, Selection};
use super::xattr::Xattr;
use crate::graph::CopyOp;

/// One file that went into a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileEntry {
    /// Its path in the tree it is copied from.
    pub path: Vec<u8>,
    /// Type and permissions as `st_mode` has them.
    pub mode: u32,
    /// User and group where they are copied, else 0.
    pub owner: (u32, u32),
    /// The first bytes of the digest of its content, or a hash of its link target or device number.
    pub content: [u8; 8],
    /// A hash of its extended attributes; 0 for none.
    pub attributes: [u8; 8],
}

/// Lists what [`content_key`](super::key::content_key) takes into a key. Contents that are known
/// already are not read again.
///
/// # Errors
/// As the key.
pub fn listed(
    op: &CopyOp,
    trees: &[Option<&Tree>],
    selections: &[Selection],
    found: &Found,
) -> Result<Vec<FileEntry>, KeyError> {
    let mut list = List {
        chmod: op.chmod.as_deref().map(ModeChange::parse).transpose()?,
        owners: op.keep_owner && op.chown.is_none(),
        found,
        items: 0,
        files: Vec::new(),
    };
    for item in selections.iter().flat_map(|selection| &selection.items) {
        list.item(item, trees)?;
        list.items += 1;
    }
    Ok(list.files)
}

struct List<'a> {
    chmod: Option<ModeChange>,
    owners: bool,
    found: &'a Found,
    /// How many items are listed.
    items: usize,
    files: Vec<FileEntry>,
}

impl List<'_> {
    fn item(&mut self, item: &Item, trees: &[Option<&Tree>]) -> Result<(), KeyError> {
        let tree = |input: &usize| {
            let tree = trees.get(*input).copied().flatten();
            tree.ok_or(KeyError::NoTree(*input))
        };
        match item {
            Item::Inline { name, content } => self.files.push(FileEntry {
                path: name.as_bytes().to_vec(),
                mode: type_bits(Kind::File) | INLINE_MODE,
                owner: (0, 0),
                content: hash(content),
                attributes: [0; 8],
            }),
            Item::File { input, file, .. } => {
                self.files(tree(input)?, std::slice::from_ref(file))?;
            }
            Item::Directory {
                input,
                top,
                path,
                below,
            } => {
                let tree = tree(input)?;
                let attributes = attributes(&directory_xattrs(tree, path)?);
                let top = self.entry(path, top, [0; 8], attributes);
                self.files.push(top);
                self.files(tree, below)?;
            }
            Item::Parents { input, below } => self.files(tree(input)?, below)?,
        }
        Ok(())
    }

    fn files(&mut self, tree: &Tree, files: &[Picked]) -> Result<(), KeyError> {
        let firsts = first_names(files);
        let contents = match self.found.of(self.items) {
            Some(copied) => Cow::Borrowed(&copied.contents),
            None => Cow::Owned(tree.contents(files, &firsts)?),
        };
        self.files.reserve(files.len());
        for (number, (file, first)) in files.iter().zip(firsts).enumerate() {
            let (content, attributes) = match file.metadata.kind {
                Kind::File => {
                    let number = first.unwrap_or(number);
                    let found = contents.binary_search_by_key(&number, |(of, _)| *of);
                    found.map_or(([0; 8], [0; 8]), |index| {
                        let Content { digest, xattrs } = &contents[index].1;
                        let first = digest.first_chunk().copied().unwrap_or_default();
                        (first, attributes(xattrs))
                    })
                }
                Kind::Directory => ([0; 8], attributes(&directory_xattrs(tree, &file.path)?)),
                Kind::Symlink => (hash(&tree.read_link(&file.path)?), [0; 8]),
                Kind::CharDevice | Kind::BlockDevice => (hash(&file.metadata.rdev), [0; 8]),
                Kind::Fifo | Kind::Socket => ([0; 8], [0; 8]),
            };
            let entry = self.entry(&file.path, &file.metadata, content, attributes);
            self.files.push(entry);
        }
        Ok(())
    }

    fn entry(
        &self,
        path: &Path,
        metadata: &Metadata,
        content: [u8; 8],
        attributes: [u8; 8],
    ) -> FileEntry {
        let mode = match (&self.chmod, metadata.kind) {
            (_, Kind::Symlink) => 0o777,
            (Some(change), _) => change.apply(metadata.mode, metadata.is_dir()),
            (None, _) => metadata.mode,
        };
        let owner = (metadata.uid, metadata.gid);
        FileEntry {
            path: path.as_os_str().as_bytes().to_vec(),
            mode: type_bits(metadata.kind) | mode,
            owner: if self.owners { owner } else { (0, 0) },
            content,
            attributes,
        }
    }
}

fn attributes(xattrs: &[Xattr]) -> [u8; 8] {
    if xattrs.is_empty() {
        return [0; 8];
    }
    hash(xattrs)
}

/// Tells a value from others; it decides nothing but the words of a message.
fn hash(value: &(impl std::hash::Hash + ?Sized)) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().to_le_bytes()
}

/// The type of a file as `st_mode` has it.
fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::File => 0o100_000,
        Kind::Directory => 0o040_000,
        Kind::Symlink => 0o120_000,
        Kind::Fifo => 0o010_000,
        Kind::CharDevice => 0o020_000,
        Kind::BlockDevice => 0o060_000,
        Kind::Socket => 0o140_000,
    }
}
