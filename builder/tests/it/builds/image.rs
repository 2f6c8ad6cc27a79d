//! What an image is, read from an archive of it without kiln's code: its config, and the files
//! that its layers make one on top of the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

/// An image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) config: Value,
    pub(super) tree: Tree,
}

/// What is at each path; no path begins or ends with a slash, the root is the empty one.
pub(super) type Tree = BTreeMap<String, Node>;

/// What is at one path.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u64, u64),
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
    /// Seconds since 1970.
    pub(super) time: u64,
    /// Same for all names of one file.
    file: u64,
}

#[derive(Clone, PartialEq)]
pub(super) enum Kind {
    Folder,
    File { size: u64, sha256: [u8; 32] },
    Link(String),
    Other(EntryType, u32, u32),
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder => f.write_str("folder"),
            Self::File { size, sha256 } => {
                let [a, b, c, d, ..] = sha256;
                write!(f, "file of {size} bytes, {a:02x}{b:02x}{c:02x}{d:02x}...")
            }
            Self::Link(target) => write!(f, "link to {target}"),
            Self::Other(kind, major, minor) => write!(f, "{kind:?} {major}:{minor}"),
        }
    }
}

impl Image {
    /// Reads the one image of a docker-archive, and removes it; `work` is a folder to unpack it in.
    pub(super) fn read(archive: &Path, work: &Path) -> Self {
        tar::Archive::new(File::open(archive).unwrap())
            .unpack(work)
            .unwrap();
        fs::remove_file(archive).unwrap();
        let manifest: Value = json(&work.join("manifest.json"));
        assert_eq!(manifest.as_array().unwrap().len(), 1);
        let config = json(&work.join(manifest[0]["Config"].as_str().unwrap()));
        let mut tree = Tree::new();
        let layers = manifest[0]["Layers"].as_array().unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(layers.len(), diff_ids.len());
        for (number, layer) in layers.iter().enumerate() {
            apply(
                &mut tree,
                &work.join(layer.as_str().unwrap()),
                number as u64,
            );
        }
        fs::remove_dir_all(work).unwrap();
        Self { config, tree }
    }

    /// The words that a runtime starts.
    pub(super) fn command(&self) -> Vec<String> {
        let config = &self.config["config"];
        let words = |name: &str| config[name].as_array().cloned().unwrap_or_default();
        let all = words("Entrypoint").into_iter().chain(words("Cmd"));
        all.map(|word| word.as_str().unwrap().to_owned()).collect()
    }

    /// The names below a folder, without what is below those.
    pub(super) fn names(&self, folder: &str) -> Vec<&str> {
        let below = self.tree.keys().filter_map(|path| {
            let rest = path.strip_prefix(folder)?.strip_prefix('/')?;
            (!rest.contains('/')).then_some(rest)
        });
        below.collect()
    }

    /// What is at a path.
    pub(super) fn node(&self, path: &str) -> &Node {
        self.tree
            .get(path)
            .unwrap_or_else(|| panic!("the image has no /{path}"))
    }
}

/// For each path whose file has several names, the first of them.
pub(super) fn first_names(tree: &Tree) -> BTreeMap<&str, &str> {
    let mut names: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (path, node) in tree {
        if matches!(node.kind, Kind::File { .. }) {
            names.entry(node.file).or_default().push(path);
        }
    }
    let several = names.into_values().filter(|names| names.len() > 1);
    several
        .flat_map(|names| names.clone().into_iter().map(move |name| (name, names[0])))
        .collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Applies one layer (D5.8): whiteouts first, since they mean the layers below and never this one.
fn apply(tree: &mut Tree, layer: &Path, number: u64) {
    let mut added = Tree::new();
    let (mut gone, mut emptied) = (Vec::new(), Vec::new());
    let mut count = number << 32;
    for entry in tar::Archive::new(plain(layer)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        let path = if path == "." { String::new() } else { path };
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name == ".wh..wh..opq" {
            emptied.push(folder.to_owned());
            continue;
        }
        if let Some(name) = name.strip_prefix(".wh.") {
            gone.push(join(folder, name));
            continue;
        }
        let node = if entry.header().entry_type() == EntryType::Link {
            let target = String::from_utf8(entry.link_name_bytes().unwrap().into_owned()).unwrap();
            let target = target.trim_start_matches("./").trim_matches('/');
            let known = added.get(target).or_else(|| tree.get(target));
            known
                .unwrap_or_else(|| panic!("{path} is a hard link to {target}, which is not there"))
                .clone()
        } else {
            count += 1;
            node(&mut entry, count)
        };
        assert!(
            added.insert(path.clone(), node).is_none(),
            "{path} is in one layer twice"
        );
    }
    let below = |path: &str, folder: &str| {
        folder.is_empty()
            || path
                .strip_prefix(folder)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    tree.retain(|path, _| {
        !gone.iter().any(|gone| path == gone || below(path, gone))
            && !emptied.iter().any(|folder| below(path, folder))
    });
    let replaced: BTreeSet<String> = added
        .iter()
        .filter(|(path, node)| {
            node.kind != Kind::Folder && tree.get(*path).is_some_and(|old| old.kind == Kind::Folder)
        })
        .map(|(path, _)| path.clone())
        .collect();
    tree.retain(|path, _| !replaced.iter().any(|folder| below(path, folder)));
    tree.append(&mut added);
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

fn node(entry: &mut tar::Entry<'_, impl Read>, file: u64) -> Node {
    let mut xattrs = BTreeMap::new();
    for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
        let extension = extension.unwrap();
        if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
            xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
        }
    }
    let header = entry.header();
    let (mode, time) = (header.mode().unwrap() & 0o7777, header.mtime().unwrap());
    let owner = (header.uid().unwrap(), header.gid().unwrap());
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap().into_owned();
            Kind::Link(String::from_utf8(target).unwrap())
        }
        EntryType::Regular => {
            let mut hasher = Sha256::new();
            let size = std::io::copy(entry, &mut Hashing(&mut hasher)).unwrap();
            Kind::File {
                size,
                sha256: hasher.finalize().into(),
            }
        }
        other => Kind::Other(
            other,
            header.device_major().unwrap().unwrap_or_default(),
            header.device_minor().unwrap().unwrap_or_default(),
        ),
    };
    Node {
        kind,
        mode,
        owner,
        xattrs,
        time,
        file,
    }
}

struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The tar of a layer, which may be compressed.
fn plain(path: &Path) -> Box<dyn Read> {
    let mut magic = [0; 2];
    let opened = || BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    opened().read_exact(&mut magic).unwrap();
    if magic == [0x1f, 0x8b] {
        Box::new(MultiGzDecoder::new(opened()))
    } else {
        Box::new(opened())
    }
}
