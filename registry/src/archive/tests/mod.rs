//! What the tests of archives share: archives made by hand, member by member.

mod foreign;
mod own;

use std::fs::File;
use std::io::{Read, Write};

use tar::{EntryType, Header};
use tokio::io::AsyncReadExt;

use super::*;
use crate::blob::BlobSource;
use crate::reference::Reference;
use crate::spec::media_type::{self, Compression};
use crate::spec::{Descriptor, Index, Manifest, Raw};

/// A tar file made member by member, right or wrong.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, header: &mut Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn member(self, name: &str, kind: EntryType, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        self.raw(&mut header, content)
    }

    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.member(name, EntryType::Regular, "", content.as_ref())
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.member(name, EntryType::Symlink, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    fn open(self) -> Result<Archive, ArchiveError> {
        open_bytes(&self.end())
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open_bytes(bytes: &[u8]) -> Result<Archive, ArchiveError> {
    Archive::open(file(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn layer(text: &str) -> Vec<u8> {
    Tar::default().file(text, text).end()
}

fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("\"{}\"", Digest::of(layer)))
        .collect();
    let ids = ids.join(",");
    format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
    )
    .into_bytes()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

/// A docker archive of one image with one plain layer.
fn docker(manifest: &str, layer_member: &str) -> Tar {
    let layer = layer("a");
    let config = config("amd64", &[&layer]);
    Tar::default()
        .file("c.json", config)
        .file(layer_member, layer)
        .file("manifest.json", manifest)
}

const ONE: &str = r#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"]}]"#;

/// An image for one platform: its documents and blobs.
struct Image {
    layers: Vec<(Descriptor, Vec<u8>)>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Image {
    /// An image whose first layer is plain and whose others are gzip.
    fn new(architecture: &str, texts: &[&str]) -> Self {
        let plain: Vec<Vec<u8>> = texts.iter().map(|text| layer(text)).collect();
        let slices: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
        let config = config(architecture, &slices);
        let layers: Vec<_> = plain
            .iter()
            .enumerate()
            .map(|(number, plain)| match number {
                0 => (descriptor(media_type::OCI_LAYER, plain), plain.clone()),
                _ => {
                    let packed = gzip(plain);
                    (descriptor(media_type::OCI_LAYER_GZIP, &packed), packed)
                }
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, &config),
            "layers": layers.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
        });
        Self {
            manifest: serde_json::to_vec_pretty(&manifest).unwrap(),
            config,
            layers,
        }
    }

    fn descriptor(&self) -> Descriptor {
        descriptor(media_type::OCI_MANIFEST, &self.manifest)
    }

    fn for_index(&self, architecture: &str) -> Descriptor {
        let mut descriptor = self.descriptor();
        descriptor.platform = Some(Platform::linux(architecture, None));
        descriptor
    }

    fn add<W: Write>(&self, writer: &mut ArchiveWriter<W>) {
        for (descriptor, bytes) in &self.layers {
            writer.add_blob(descriptor, bytes.as_slice()).unwrap();
        }
        let config = descriptor(media_type::OCI_CONFIG, &self.config);
        writer.add_blob(&config, self.config.as_slice()).unwrap();
        writer
            .add_manifest(&self.descriptor(), &self.manifest)
            .unwrap();
    }
}

fn index(manifests: &[Descriptor]) -> Vec<u8> {
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": manifests,
    });
    serde_json::to_vec(&index).unwrap()
}

fn names(texts: &[&str]) -> Vec<Reference> {
    texts
        .iter()
        .map(|text| Reference::parse(text).unwrap())
        .collect()
}

fn two_images() -> Vec<u8> {
    let [one, two] = [&["a"][..], &["a", "b"]].map(|texts| Image::new("amd64", texts));
    let mut writer = ArchiveWriter::new(Vec::new()).unwrap();
    one.add(&mut writer);
    two.add(&mut writer);
    writer
        .add_image(
            &one.descriptor(),
            &names(&["app:1", "localhost:5000/x/app"]),
        )
        .unwrap();
    writer.add_image(&two.descriptor(), &[]).unwrap();
    writer.finish().unwrap()
}

fn read(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

fn tar_members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.header().entry_type() == EntryType::Regular)
        .map(|mut entry| {
            let name = entry.path().unwrap().display().to_string();
            (name, read(&mut entry))
        })
        .collect()
}

/// A file that is read from its start.
fn rewound(bytes: &[u8]) -> File {
    use std::io::Seek;
    let mut file = file(bytes);
    file.rewind().unwrap();
    file
}
