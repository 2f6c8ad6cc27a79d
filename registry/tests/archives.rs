//! Archives and layouts that other tools wrote are read; what is written here, they read.
//!
//! The tools `skopeo`, `podman` and `buildah` must be installed: a test fails without them.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test may fail like the test itself"
)]

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::Path;
use std::process::Command;

use kiln_registry::archive::{self, Archive, ArchiveWriter, ArchivedManifest};
use kiln_registry::blob::BlobSink;
use kiln_registry::digest::Digest;
use kiln_registry::layout::Layout;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::{self, Compression};
use kiln_registry::spec::{Descriptor, Manifest, Raw};

/// Names and diff ids of images.
type Contents = Vec<(Vec<String>, Vec<Digest>)>;

/// Runs a tool to its end; its output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("`{program}` must be installed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn skopeo(arguments: &[&str]) -> String {
    run("skopeo", &[&["--insecure-policy"], arguments].concat())
}

/// podman or buildah with a store of its own in a directory.
fn with_store(program: &str, store: &Path, arguments: &[&str]) -> String {
    let [root, runroot] = ["root", "run"].map(|name| store.join(name).display().to_string());
    let place = [
        "--root",
        &root,
        "--runroot",
        &runroot,
        "--storage-driver",
        "vfs",
    ];
    run(program, &[&place[..], arguments].concat())
}

fn layer(name: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(name.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, name, name.as_bytes())
        .unwrap();
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::default());
    let mut packed = Vec::new();
    encoder.read_to_end(&mut packed).unwrap();
    packed
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

/// Adds an image of several layers, plain and gzip in turn; its manifest.
fn add_image(
    writer: &mut ArchiveWriter<impl io::Write>,
    name: &str,
    contents: &[&str],
) -> Descriptor {
    let mut diff_ids = Vec::new();
    let mut history = Vec::new();
    let mut layers = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        let plain = layer(content);
        diff_ids.push(Digest::of(&plain));
        history.push(serde_json::json!({ "created_by": content }));
        let (media_type, bytes) = match number % 2 {
            0 => (media_type::OCI_LAYER, plain),
            _ => (media_type::OCI_LAYER_GZIP, gzip(&plain)),
        };
        let blob = descriptor(media_type, &bytes);
        writer.add_blob(&blob, bytes.as_slice()).unwrap();
        layers.push(blob);
    }
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": { "Cmd": ["/x"], "Labels": { "name": name } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_descriptor = descriptor(media_type::OCI_CONFIG, &config);
    writer
        .add_blob(&config_descriptor, config.as_slice())
        .unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": config_descriptor,
        "layers": layers,
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let root = descriptor(media_type::OCI_MANIFEST, &manifest);
    writer.add_manifest(&root, &manifest).unwrap();
    let names = [Reference::parse(name).unwrap()];
    assert!(writer.add_image(&root, &names).unwrap().is_empty());
    root
}

/// An archive of two images that share a layer; their manifests.
fn write_archive(path: &Path) -> [Descriptor; 2] {
    let file = BufWriter::new(File::create(path).unwrap());
    let mut writer = ArchiveWriter::new(file).unwrap();
    let one = add_image(&mut writer, "example.com/one:1", &["shared", "b"]);
    let two = add_image(&mut writer, "example.com/two:2", &["shared", "c", "d"]);
    writer.finish().unwrap();
    [one, two]
}

fn open(path: &Path) -> Archive {
    let directory = path.parent().unwrap();
    archive::open(File::open(path).unwrap(), directory).unwrap()
}

/// What an archive holds, every layer read, decompressed and compared.
fn contents(archive: &Archive) -> Contents {
    let images = archive.images().iter().map(|image| {
        let loaded = archive.load(image, None).unwrap();
        let names = image.names.iter().map(ToString::to_string).collect();
        (names, verified(archive, &loaded))
    });
    let mut images: Vec<_> = images.collect();
    images.sort();
    images
}

fn verified(archive: &Archive, image: &ArchivedManifest) -> Vec<Digest> {
    let layers = image.layers.iter().map(|layer| {
        let mut stored = archive.layer(layer).unwrap();
        let mut plain = Vec::new();
        let read = match layer.compression {
            Compression::None => stored.read_to_end(&mut plain),
            Compression::Gzip => flate2::read::MultiGzDecoder::new(stored).read_to_end(&mut plain),
            Compression::Zstd => zstd::stream::read::Decoder::new(stored)
                .unwrap()
                .read_to_end(&mut plain),
        };
        read.unwrap();
        assert_eq!(Digest::of(&plain), layer.diff_id.0, "{}", layer.member);
        layer.diff_id.0
    });
    layers.collect()
}

fn expected(images: &[(&str, &[&str])]) -> Contents {
    images
        .iter()
        .map(|(name, contents)| {
            let digests = contents.iter().map(|content| Digest::of(&layer(content)));
            (vec![(*name).to_owned()], digests.collect())
        })
        .collect()
}

fn both() -> Contents {
    expected(&[
        ("example.com/one:1", &["shared", "b"]),
        ("example.com/two:2", &["shared", "c", "d"]),
    ])
}

/// D10.1: skopeo sees the same images as a docker archive and as an OCI archive, with the same
/// digests.
#[test]
fn skopeo_reads_ours() {
    let directory = tempfile::tempdir().unwrap();
    let ours = directory.path().join("ours.tar");
    let [one, two] = write_archive(&ours);
    let ours = ours.display();
    let docker = format!("docker-archive:{ours}:example.com/one:1");
    let shown = skopeo(&["inspect", "--config", &docker]);
    assert!(shown.contains("example.com/one:1"), "{shown}");
    for (tag, image) in [("1", &one), ("2", &two)] {
        let shown = skopeo(&["inspect", &format!("oci-archive:{ours}:{tag}")]);
        assert!(shown.contains(&image.digest.to_string()), "{shown}");
    }
    let layout = directory.path().join("layout");
    let from = format!("oci-archive:{ours}:2");
    let to = format!("oci:{}:v2", layout.display());
    skopeo(&["copy", "--preserve-digests", &from, &to]);
    let layout = Layout::open(layout).unwrap();
    let image = layout.resolve(Some("v2")).unwrap();
    assert_eq!(image.digest, two.digest);
    let manifest = layout.document(&image).unwrap();
    let manifest: Raw<Manifest> = Raw::parse(manifest).unwrap();
    assert_eq!(manifest.value.layers.len(), 3);
    assert!(layout.document(&manifest.value.config).is_ok());
}

/// Docker and OCI archives of skopeo, compressed or not.
#[test]
fn skopeo_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let ours = path("ours.tar");
    let [one, _] = write_archive(&ours);
    let from = format!("oci-archive:{}:1", ours.display());
    let name = "example.com/one:1";
    for kind in ["docker-archive", "oci-archive"] {
        let theirs = path(kind);
        let to = format!("{kind}:{}:{name}", theirs.display());
        // A docker archive has no digest of the manifest to keep.
        let keep = ["--preserve-digests"];
        let keep = if kind == "oci-archive" {
            &keep[..]
        } else {
            &[]
        };
        skopeo(&[&["copy"], keep, &[&from, &to]].concat());
        let archive = open(&theirs);
        let one_image = expected(&[(name, &["shared", "b"])]);
        assert_eq!(contents(&archive), one_image, "{kind}");
        if kind == "oci-archive" {
            assert_eq!(archive.images()[0].root().unwrap().digest, one.digest);
        }
        let packed = path("packed.gz");
        std::fs::write(&packed, gzip(&std::fs::read(&theirs).unwrap())).unwrap();
        assert_eq!(contents(&open(&packed)), one_image, "{kind}");
    }
}

/// podman loads ours and saves it again, one image or several.
#[test]
fn podman_loads_and_saves() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path();
    let path = |name: &str| store.join(name).display().to_string();
    let ours = path("ours.tar");
    write_archive(Path::new(&ours));
    let loaded = with_store("podman", store, &["load", "-i", &ours]);
    for name in ["example.com/one:1", "example.com/two:2"] {
        assert!(loaded.contains(name), "{loaded}");
    }
    let save = |format: &str, images: &[&str]| {
        let file = path(&format!("{format}{}", images.len()));
        let arguments = ["save", "--format", format, "-o", &file];
        with_store("podman", store, &[&arguments[..], images].concat());
        contents(&open(Path::new(&file)))
    };
    let two = both().split_off(1);
    assert_eq!(save("docker-archive", &["example.com/two:2"]), two);
    assert_eq!(save("oci-archive", &["example.com/two:2"]), two);
    let all = ["-m", "example.com/one:1", "example.com/two:2"];
    assert_eq!(save("docker-archive", &all), both());
}

/// buildah commits an image and pushes it to archives of both kinds.
#[test]
fn buildah_writes() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path();
    let path = |name: &str| store.join(name).display().to_string();
    let buildah = |arguments: &[&str]| with_store("buildah", store, arguments);
    std::fs::write(path("file"), "content").unwrap();
    let container = buildah(&["from", "scratch"]);
    let container = container.trim();
    buildah(&["copy", container, &path("file"), "/file"]);
    buildah(&["commit", container, "built"]);
    for kind in ["docker-archive", "oci-archive"] {
        let file = path(kind);
        let target = format!("{kind}:{file}:example.com/built:3");
        buildah(&["push", "built", &target]);
        let images = contents(&open(Path::new(&file)));
        let [(names, layers)] = &images[..] else {
            panic!("{images:?}");
        };
        assert!(
            names.contains(&"example.com/built:3".to_owned()),
            "{kind}: {names:?}"
        );
        assert_eq!(layers.len(), 1, "{kind}");
    }
}

/// From an archive to a layout, as source and sink; skopeo finds the image by its tag.
#[tokio::test]
async fn an_archive_becomes_a_layout() {
    let directory = tempfile::tempdir().unwrap();
    let ours = directory.path().join("ours.tar");
    write_archive(&ours);
    let archive = open(&ours);
    let layout = Layout::create(directory.path().join("layout")).unwrap();
    for image in archive.images() {
        let root = image.root().unwrap();
        let manifest = archive.load(image, None).unwrap().manifest.unwrap();
        let config = std::iter::once(&manifest.value.config);
        for blob in config.chain(&manifest.value.layers) {
            layout.put(blob, &archive, &|_, _| {}).await.unwrap();
        }
        let name = image.names[0].to_string();
        layout
            .put_manifest(&root, &manifest.bytes, Some(&name))
            .await
            .unwrap();
        assert_eq!(layout.resolve(Some(&name)).unwrap().digest, root.digest);
        let tag = image.names[0].tag_or_latest();
        let place = format!("oci:{}:{tag}", layout.path().display());
        let shown = skopeo(&["inspect", &place]);
        assert!(shown.contains(&root.digest.to_string()), "{shown}");
    }
}
