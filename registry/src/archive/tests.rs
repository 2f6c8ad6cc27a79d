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

/// D10.1, D10.2: what is written is read back, by either of its indexes.
#[tokio::test]
async fn written_and_read() {
    let bytes = two_images();
    let archive = open_bytes(&bytes).unwrap();
    let [one, two] = archive.images() else {
        panic!("{:?}", archive.images());
    };
    let shown = |image: &ArchivedImage| {
        let names = image.names.iter();
        names.map(Reference::familiar).collect::<Vec<_>>()
    };
    assert_eq!(shown(one), ["app:1", "localhost:5000/x/app:latest"]);
    assert!(two.names.is_empty() && two.ref_name.is_none());
    let expected = Image::new("amd64", &["a", "b"]);
    assert_eq!(two.root().unwrap().digest, expected.descriptor().digest);
    let image = archive.load(two, None).unwrap();
    assert!(image.announced);
    assert_eq!(image.manifest.as_ref().unwrap().bytes, expected.manifest);
    assert_eq!(image.config.bytes, expected.config);
    let kinds: Vec<_> = image.layers.iter().map(|layer| layer.compression).collect();
    assert_eq!(kinds, [Compression::None, Compression::Gzip]);
    assert_eq!(image.missing().count(), 0);
    for (layer, (descriptor, bytes)) in image.layers.iter().zip(&expected.layers) {
        assert_eq!(layer.descriptor().as_ref(), Some(descriptor));
        assert_eq!(&read(archive.layer(layer).unwrap()), bytes);
        let mut async_bytes = Vec::new();
        let mut reader = archive.open(descriptor, 0).await.unwrap();
        reader.read_to_end(&mut async_bytes).await.unwrap();
        assert_eq!(&async_bytes, bytes);
        let mut rest = Vec::new();
        let mut reader = archive.open(descriptor, 700).await.unwrap();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, bytes.get(700..).unwrap_or_default());
    }
    let absent = descriptor("x", b"absent");
    assert!(archive.open(&absent, 0).await.is_err());
    assert!(!archive.has(&absent.digest));
}

/// Without its OCI part the archive reads as the same images.
#[test]
fn both_indexes_say_the_same() {
    let bytes = two_images();
    let members = tar_members(&bytes);
    let mut docker = Tar::default();
    for (name, content) in &members {
        if !matches!(name.as_str(), "oci-layout" | "index.json") {
            docker = docker.file(name, content);
        }
    }
    let [oci, docker] = [open_bytes(&bytes), docker.open()].map(Result::unwrap);
    for (a, b) in oci.images().iter().zip(docker.images()) {
        assert_eq!(a.names, b.names);
        let [a, b] = [oci.load(a, None), docker.load(b, None)].map(Result::unwrap);
        assert_eq!(a.config, b.config);
        let digests = |image: &ArchivedManifest| {
            let layers = image.layers.iter();
            layers
                .map(|layer| layer.descriptor().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(digests(&a), digests(&b));
        // The same layers and config; the manifest's own bytes are not in a docker archive.
        assert!(!b.announced);
        assert_eq!(a.manifest.unwrap().value, b.manifest.unwrap().value);
    }
    assert_eq!(oci.images().len(), docker.images().len());
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

/// The same calls give the same bytes, on any day and machine; each blob is there once.
#[test]
fn the_bytes_are_pinned() {
    let bytes = two_images();
    let names: Vec<_> = tar_members(&bytes)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let blobs = names
        .iter()
        .filter(|name| name.starts_with("blobs/"))
        .count();
    assert_eq!(blobs, 6, "{names:?}");
    let of = |name: &str| {
        let members = tar_members(&bytes);
        let found = members.into_iter().find(|(other, _)| other == name);
        String::from_utf8(found.unwrap().1).unwrap()
    };
    assert_eq!(of("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    assert!(of("repositories").starts_with(r#"{"app":{"1":""#));
    let plain = Image::new("amd64", &["a"]);
    let mut writer = ArchiveWriter::new(Vec::new()).unwrap();
    plain.add(&mut writer);
    writer
        .add_image(&plain.descriptor(), &self::names(&["app:1"]))
        .unwrap();
    assert_eq!(
        Digest::of(&writer.finish().unwrap()).to_string(),
        "sha256:5a0e3e33dcd931a942274933247400ff1088168a8b7d77112d9b7a012c206282"
    );
}

/// No archive lists what it does not hold; a platform left out is said.
#[test]
fn what_is_listed_is_there() {
    let image = Image::new("amd64", &["a"]);
    let other = Image::new("s390x", &["b"]);
    let mut writer = ArchiveWriter::new(Vec::new()).unwrap();
    let manifest = image.descriptor();
    writer.add_manifest(&manifest, &image.manifest).unwrap();
    let error = writer.add_image(&manifest, &names(&["app"])).unwrap_err();
    assert!(error.to_string().contains("the config of `app`"), "{error}");
    image.add(&mut writer);
    let both = index(&[image.for_index("amd64"), other.for_index("s390x")]);
    let root = descriptor(media_type::OCI_INDEX, &both);
    let error = writer.add_image(&root, &[]).unwrap_err();
    assert!(
        error.to_string().contains("the manifest of `sha256:"),
        "{error}"
    );
    writer.add_manifest(&root, &both).unwrap();
    let left_out = writer.add_image(&root, &names(&["app"])).unwrap();
    assert_eq!(left_out, [other.for_index("s390x")]);
    let archive = open_bytes(&writer.finish().unwrap()).unwrap();
    let app = &archive.images()[0];
    assert_eq!(app.root().unwrap().digest, Digest::of(&both));
    let wanted = |text: &str| Platform::parse(text).unwrap();
    assert!(archive.load(app, Some(&wanted("linux/amd64"))).is_ok());
    let error = archive.load(app, Some(&wanted("linux/s390x"))).unwrap_err();
    assert!(matches!(error, ArchiveError::MissingBlob { .. }), "{error}");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    let error = archive
        .load(app, Some(&wanted("linux/riscv64")))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it has linux/amd64, linux/s390x"),
        "{error}"
    );
}

#[test]
fn blobs_are_verified_while_written() {
    let mut writer = ArchiveWriter::new(Vec::new()).unwrap();
    let blob = descriptor("x", b"right");
    for wrong in [&b"wrong"[..], b"righ", b"right!"] {
        let mut writer = ArchiveWriter::new(Vec::new()).unwrap();
        let error = writer.add_blob(&blob, wrong).unwrap_err();
        assert!(matches!(error, ArchiveError::Mismatch { .. }), "{error}");
        assert!(writer.finish().is_err());
    }
    assert!(writer.add_blob(&blob, &b"right"[..]).unwrap());
    assert!(!writer.add_blob(&blob, &b"never read"[..]).unwrap());
    assert!(writer.finish().is_ok());
}

/// D10.1: legacy archives, with symbolic links in place of the same layer again.
#[test]
fn legacy_links() {
    let shared = layer("shared");
    let config = config("arm64", &[&shared, &shared, &shared]);
    let manifest = r#"[{"Config":"c.json","RepoTags":null,
        "Layers":["one/layer.tar","two/layer.tar","./three/layer.tar"]}]"#;
    let archive = Tar::default()
        .member("one/", EntryType::Directory, "", b"")
        .file("one/VERSION", "1.0")
        .file("./one/layer.tar", &shared)
        .link("two/layer.tar", "../one/layer.tar")
        .member("three/layer.tar", EntryType::Link, "two/layer.tar", b"")
        .file("c.json", config)
        .file("manifest.json", manifest)
        .open()
        .unwrap();
    let [image] = archive.images() else {
        panic!();
    };
    assert!(image.names.is_empty());
    let image = archive.load(image, None).unwrap();
    assert_eq!(image.layers.len(), 3);
    for layer in &image.layers {
        assert_eq!(read(archive.layer(layer).unwrap()), shared);
    }
    let root = image.descriptor().unwrap();
    assert_eq!(
        archive.document(&root).unwrap(),
        image.manifest.unwrap().bytes
    );
}

/// A compressed layer of a docker archive has no digest that anyone announced.
#[test]
fn compressed_docker_layers() {
    let [plain, other] = ["a", "b"].map(layer);
    for (packed, compression) in [
        (gzip(&other), Compression::Gzip),
        (
            zstd::encode_all(other.as_slice(), 3).unwrap(),
            Compression::Zstd,
        ),
    ] {
        let archive = Tar::default()
            .file("c.json", config("amd64", &[&plain, &other]))
            .file("1.tar", &plain)
            .file("2.tar.gz", &packed)
            .file(
                "manifest.json",
                r#"[{"Config":"c.json","Layers":["1.tar","2.tar.gz"]}]"#,
            )
            .open()
            .unwrap();
        let image = archive.load(&archive.images()[0], None).unwrap();
        assert!(image.manifest.is_none() && archive.images()[0].root().is_none());
        assert_eq!(image.layers[0].digest, Some(Digest::of(&plain)));
        assert_eq!(image.layers[1].digest, None);
        assert_eq!(image.layers[1].compression, compression);
        assert_eq!(image.layers[1].diff_id.0, Digest::of(&other));
        assert_eq!(read(archive.layer(&image.layers[1]).unwrap()), packed);
        let layers = vec![descriptor("l", &plain), descriptor("l", &packed)];
        let made = image.synthesise(layers.clone());
        assert_eq!(made.layers, layers);
        assert_eq!(made.config.digest, image.config.digest);
    }
}

/// A layer that is not the one announced fails when it is read, whatever its size.
#[test]
fn other_layers_than_announced() {
    let layer = layer("a");
    let other = self::layer("z");
    let archive = Tar::default()
        .file("c.json", config("amd64", &[&layer]))
        .file("l.tar", &other)
        .file("manifest.json", ONE)
        .open()
        .unwrap();
    let image = archive.load(&archive.images()[0], None).unwrap();
    let mut bytes = Vec::new();
    let outcome = archive
        .layer(&image.layers[0])
        .unwrap()
        .read_to_end(&mut bytes);
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .starts_with("digest mismatch")
    );
}

/// What an archive cannot be; each line is refused by a message that says so.
#[test]
fn refused() {
    let layer = layer("a");
    let one = || docker(ONE, "l.tar");
    let named = |name: &str| format!("blobs/sha256/{}", Digest::of(name.as_bytes()).hex());
    let cases: Vec<(Tar, &str)> = vec![
        (
            Tar::default().file("x", "y"),
            "does not contain a manifest.json",
        ),
        (
            Tar::default().file("manifest.json", "[]"),
            "it contains no image",
        ),
        (
            Tar::default().file("manifest.json", "{"),
            "cannot read `manifest.json`",
        ),
        (
            Tar::default().file("manifest.json", ONE),
            "`c.json`, which `manifest.json` names, is missing",
        ),
        (
            docker(ONE, "other.tar"),
            "`l.tar`, which `manifest.json` names, is missing",
        ),
        (
            docker(r#"[{"Config":"c.json","Layers":[]}]"#, "l.tar"),
            "has 0 layers, its config names 1",
        ),
        (
            docker(r#"[{"Config":"c.json"}]"#, "l.tar"),
            "has 0 layers, its config names 1",
        ),
        (
            docker(&ONE.replace("app:1", "App:1"), "l.tar"),
            "invalid image name `App:1`",
        ),
        (
            docker(&ONE.replace("l.tar", "../l.tar"), "l.tar"),
            "member `../l.tar` leads out",
        ),
        (one().file("l.tar", "again"), "`l.tar` appears twice"),
        (one().file("./c.json", "again"), "`c.json` appears twice"),
        (
            one().file("/etc/passwd", ""),
            "member `/etc/passwd` leads out",
        ),
        (one().file("a/../../b", ""), "member `a/../../b` leads out"),
        (one().link("a/b", "../../c"), "link `../../c` leads out"),
        (
            one().link("a", "/etc/passwd"),
            "link `/etc/passwd` leads out",
        ),
        (
            one().member("a", EntryType::Link, "../c", b""),
            "link `../c` leads out",
        ),
        (
            docker(ONE, "m.tar")
                .link("l.tar", "a")
                .link("a", "b")
                .link("b", "l.tar"),
            "is a link that never ends",
        ),
        (
            one().member("s", EntryType::GNUSparse, "", b""),
            "a sparse file",
        ),
        (
            one().member("x", EntryType::XHeader, "", b"9 path=a\n"),
            "without a member",
        ),
        (
            one().member("x", EntryType::XHeader, "", b"99 path=a\n"),
            "malformed extended header",
        ),
        (
            one().member("x", EntryType::XHeader, "", b"-1 a=b\n"),
            "malformed extended header",
        ),
        (
            one().member("x", EntryType::XHeader, "", b"0 "),
            "malformed extended header",
        ),
        (
            one().member("x", EntryType::XHeader, "", &vec![b'a'; 2 << 20]),
            "an extended header beyond",
        ),
        (
            one()
                .member("x", EntryType::GNULongName, "", &[b'a'; 5000])
                .file("y", ""),
            "the name of a member beyond",
        ),
        (
            Tar::default().file("manifest.json", vec![b' '; 9 << 20]),
            "the size of the document `manifest.json` beyond",
        ),
        (
            docker(&ONE.replace("l.tar", "l.bz2"), "l.tar").file("l.bz2", "BZh91AY"),
            "compressed with bzip2, which is not supported",
        ),
        (
            docker(
                &ONE.replace("c.json", &format!("{}.json", "0".repeat(64))),
                "l.tar",
            )
            .file(
                &format!("{}.json", "0".repeat(64)),
                config("amd64", &[&layer]),
            ),
            "is not what it is announced to be",
        ),
        (
            docker(&ONE.replace("l.tar", &named("z")), &named("z")),
            "invalid diffID for layer 0",
        ),
    ];
    for (tar, message) in cases {
        let error = tar.open().expect_err(message).to_string();
        assert!(error.contains(message), "{error}\nwanted: {message}");
    }
}

/// A file that ends early says where; cut at any byte it never panics.
#[test]
fn truncated() {
    let bytes = two_images();
    let whole = open_bytes(&bytes).unwrap().images().len();
    assert_eq!(whole, 2);
    let layer_end = 512 * 6;
    let error = open_bytes(&bytes[..layer_end]).unwrap_err();
    assert!(matches!(error, ArchiveError::Truncated { .. }), "{error}");
    for end in (0..bytes.len() - 1024).step_by(97) {
        assert!(open_bytes(&bytes[..end]).is_err(), "{end}");
    }
    assert!(matches!(open_bytes(b""), Err(ArchiveError::Empty)));
    assert!(matches!(open_bytes(b"text"), Err(ArchiveError::NotTar)));
    assert!(matches!(
        open_bytes(&[b'x'; 2048]),
        Err(ArchiveError::NotTar)
    ));
}

/// With any byte turned over, what can still be read is what was written.
#[test]
fn damaged() {
    let bytes = two_images();
    let known: Vec<Digest> = tar_members(&bytes)
        .iter()
        .map(|(_, content)| Digest::of(content))
        .collect();
    let mut failures = 0;
    for place in (0..bytes.len()).step_by(31) {
        let mut bytes = bytes.clone();
        bytes[place] ^= 0x41;
        let Ok(archive) = open_bytes(&bytes) else {
            failures += 1;
            continue;
        };
        for image in archive.images() {
            let Ok(image) = archive.load(image, None) else {
                failures += 1;
                continue;
            };
            assert!(known.contains(&image.manifest.unwrap().digest), "{place}");
            assert!(known.contains(&image.config.digest), "{place}");
            for layer in &image.layers {
                let mut content = Vec::new();
                match archive.layer(layer).unwrap().read_to_end(&mut content) {
                    Ok(_) => assert!(known.contains(&Digest::of(&content)), "{place}"),
                    Err(_) => failures += 1,
                }
            }
        }
    }
    assert!(failures > 50, "{failures}");
}

/// Extended headers: the last record of a key counts, PAX sizes too; members of other kinds and
/// links with a size hide nothing.
#[test]
fn extended_headers() {
    let long = format!("{}/l.tar", "d".repeat(150));
    let record = |text: &str| {
        let mut length = text.len() + 3;
        while format!("{length} {text}\n").len() != length {
            length += 1;
        }
        format!("{length} {text}\n")
    };
    let records = record("path=wrong") + &record(&format!("path={long}")) + &record("mtime=1.5");
    let layer = layer("a");
    let manifest = ONE.replace("l.tar", &long);
    let mut link = Header::new_gnu();
    link.set_path("link").unwrap();
    link.set_link_name("c.json").unwrap();
    link.set_entry_type(EntryType::Link);
    link.set_size(1024);
    let mut sized = Header::new_gnu();
    sized.set_path("manifest.json").unwrap();
    sized.set_size(7);
    let archive = Tar::default()
        .member(
            "g",
            EntryType::XGlobalHeader,
            "",
            record("comment=x").as_bytes(),
        )
        .member("x", EntryType::XHeader, "", records.as_bytes())
        .file("short", &layer)
        .raw(&mut link, b"")
        .member("fifo", EntryType::Fifo, "", b"")
        .member("@", EntryType::GNULongName, "", b"c.json\0")
        .file("short", config("amd64", &[&layer]))
        .member(
            "x",
            EntryType::XHeader,
            "",
            record(&format!("size={}", manifest.len())).as_bytes(),
        )
        .raw(&mut sized, manifest.as_bytes())
        .open()
        .unwrap();
    let image = archive.load(&archive.images()[0], None).unwrap();
    assert_eq!(read(archive.layer(&image.layers[0]).unwrap()), layer);
}

/// D10.3: the names of images in an index, nested indexes, several entries of one image.
#[test]
fn oci_indexes() {
    let image = Image::new("amd64", &["a"]);
    let mut nested = index(&[image.for_index("amd64")]);
    let mut blobs = Tar::default().file("oci-layout", "{}");
    for (descriptor, bytes) in &image.layers {
        blobs = blobs.file(&format!("blobs/sha256/{}", descriptor.digest.hex()), bytes);
    }
    for bytes in [&image.config, &image.manifest] {
        blobs = blobs.file(&format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes);
    }
    for _ in 0..2 {
        blobs = blobs.file(
            &format!("blobs/sha256/{}", Digest::of(&nested).hex()),
            &nested,
        );
        nested = index(&[descriptor(media_type::OCI_INDEX, &nested)]);
    }
    blobs = blobs.file(
        &format!("blobs/sha256/{}", Digest::of(&nested).hex()),
        &nested,
    );
    let entry = |bytes: &[u8], media_type: &str, key: &str, name: &str| {
        let mut descriptor = descriptor(media_type, bytes);
        descriptor
            .annotations
            .insert(key.to_owned(), name.to_owned());
        descriptor
    };
    let ref_name = crate::spec::annotation::REF_NAME;
    let image_name = crate::spec::annotation::IMAGE_NAME;
    let manifest = |key, name| entry(&image.manifest, media_type::OCI_MANIFEST, key, name);
    let archive = blobs
        .file(
            "index.json",
            index(&[
                manifest(image_name, "docker.io/library/app:1"),
                manifest(image_name, "docker.io/library/app:2"),
                entry(
                    &nested,
                    media_type::OCI_INDEX,
                    ref_name,
                    "quay.example/deep",
                ),
                entry(b"no manifest", "application/json", ref_name, "other"),
                entry(b"absent", media_type::OCI_MANIFEST, ref_name, "tag-only"),
            ]),
        )
        .open()
        .unwrap();
    let [app, deep, absent] = archive.images() else {
        panic!("{:?}", archive.images());
    };
    assert_eq!(app.names, names(&["app:1", "app:2"]));
    assert_eq!(deep.names, names(&["quay.example/deep:latest"]));
    assert_eq!(absent.ref_name.as_deref(), Some("tag-only"));
    let [a, b] = [app, deep].map(|image| archive.load(image, None).unwrap());
    assert_eq!(a.manifest, b.manifest);
    let error = archive.load(absent, None).unwrap_err();
    assert!(error.to_string().contains("lacks sha256:"), "{error}");
    let other = Platform::linux("s390x", None);
    assert!(matches!(
        archive.load(app, Some(&other)),
        Err(ArchiveError::NoPlatform { .. })
    ));
}

/// D10.4: archives come compressed, by pipe, and back to back.
#[test]
fn spooled() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = two_images();
    let xz = {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (first, second) = bytes.split_at(5000);
    let members = [gzip(first), gzip(second)].concat();
    let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
    for packed in [bytes.clone(), members, zstd, xz, bzip2] {
        let spooled = spool(packed.as_slice(), directory.path()).unwrap();
        assert_eq!(Archive::open(spooled).unwrap().images().len(), 2);
        assert_eq!(
            open(rewound(&packed), directory.path())
                .unwrap()
                .images()
                .len(),
            2
        );
        if packed != bytes {
            let cut = &packed[..packed.len() / 2];
            let error = spool(cut, directory.path()).unwrap_err();
            assert!(matches!(error, ArchiveError::Decompress { .. }), "{error}");
        }
    }
    assert!(matches!(
        spool(&b""[..], directory.path()),
        Err(ArchiveError::Empty)
    ));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A file that is read from its start.
fn rewound(bytes: &[u8]) -> File {
    use std::io::Seek;
    let mut file = file(bytes);
    file.rewind().unwrap();
    file
}

#[test]
fn a_manifest_of_ours_keeps_its_field_order() {
    let image = Image::new("amd64", &["a"]);
    let raw: Raw<Manifest> = Raw::parse(image.manifest).unwrap();
    let written = Raw::write(raw.value).unwrap();
    let text = String::from_utf8(written.bytes).unwrap();
    assert!(text.starts_with(
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"#
    ));
    let empty: Raw<Index> = Raw::parse(index(&[])).unwrap();
    assert!(empty.value.manifests.is_empty());
}
