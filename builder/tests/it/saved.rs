//! An image as `kiln save` writes it, read with code that is not kiln's.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};

use serde_json::Value;

use crate::env::TestEnv;

/// The first image of a docker-archive.
#[derive(Debug)]
pub(crate) struct Saved {
    /// `manifest.json`.
    pub(crate) manifest: Value,
    /// The image's config.
    pub(crate) config: Value,
    /// The layers' entries, lowest layer first.
    pub(crate) layers: Vec<Layer>,
}

/// A layer's entries by path, without a slash at either end.
pub(crate) type Layer = BTreeMap<String, Entry>;

/// One entry of a layer.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: tar::EntryType,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    /// Target of a link.
    pub(crate) target: Option<String>,
    /// Major and minor number of a device.
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    pub(crate) content: Vec<u8>,
}

impl TestEnv {
    /// Saves an image and reads the archive.
    pub(crate) fn saved(&self, image: &str) -> Saved {
        Saved::read(&self.kiln(["save", image]).success().bytes)
    }
}

impl Saved {
    pub(crate) fn read(archive: &[u8]) -> Self {
        let files = entries(archive);
        let json = |path: &str| serde_json::from_slice(&files[path].content).unwrap();
        let manifest: Value = json("manifest.json");
        let image = &manifest[0];
        let layers = image["Layers"].as_array().unwrap();
        let layers = layers
            .iter()
            .map(|path| entries(&files[path.as_str().unwrap()].content))
            .collect();
        Self {
            config: json(image["Config"].as_str().unwrap()),
            manifest,
            layers,
        }
    }

    /// The topmost layer.
    pub(crate) fn top(&self) -> &Layer {
        self.layers.last().unwrap()
    }

    /// The paths in the topmost layer.
    pub(crate) fn top_paths(&self) -> Vec<&str> {
        self.top().keys().map(String::as_str).collect()
    }

    /// The content of a file, in the topmost layer that has it.
    pub(crate) fn text(&self, path: &str) -> String {
        let entry = self.layers.iter().rev().find_map(|layer| layer.get(path));
        let entry = entry.unwrap_or_else(|| panic!("no `{path}` in the image"));
        String::from_utf8(entry.content.clone()).unwrap()
    }
}

/// The entries of a tar, compressed or not.
pub(crate) fn entries(tar: &[u8]) -> Layer {
    let mut plain = Vec::new();
    if tar.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        plain = zstd::decode_all(tar).unwrap();
    } else if tar.starts_with(&[0x1f, 0x8b]) {
        let mut reader = flate2::read::MultiGzDecoder::new(tar);
        reader.read_to_end(&mut plain).unwrap();
    } else {
        plain.extend_from_slice(tar);
    }
    let mut archive = tar::Archive::new(Cursor::new(plain));
    let read = |entry: std::io::Result<tar::Entry<'_, Cursor<Vec<u8>>>>| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let xattrs = entry
            .pax_extensions()
            .unwrap()
            .map_or_else(BTreeMap::new, |pairs| {
                let pairs = pairs.map(|pair| pair.unwrap());
                let named = pairs.filter_map(|pair| {
                    let name = pair.key().unwrap().strip_prefix("SCHILY.xattr.")?;
                    Some((name.to_owned(), pair.value_bytes().to_vec()))
                });
                named.collect()
            });
        let header = entry.header();
        let read = Entry {
            kind: header.entry_type(),
            mode: header.mode().unwrap(),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            mtime: header.mtime().unwrap(),
            device: device(header),
            xattrs,
            target: entry
                .link_name()
                .unwrap()
                .map(|target| target.to_string_lossy().into_owned()),
            content,
        };
        (path.trim_matches('/').to_owned(), read)
    };
    archive.entries().unwrap().map(read).collect()
}

/// The numbers of a device; other entries have none.
fn device(header: &tar::Header) -> Option<(u32, u32)> {
    let kind = header.entry_type();
    if !kind.is_character_special() && !kind.is_block_special() {
        return None;
    }
    let major = header.device_major().unwrap();
    major.zip(header.device_minor().unwrap())
}
