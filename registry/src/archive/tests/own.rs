//! Archives as kiln writes them, and OCI archives in their variety.

use super::*;

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

/// A blob that is written from outside is the same member as one that is read.
#[test]
fn blobs_are_read_or_written_with_the_same_result() {
    for length in [0, 1, 511, 512, 513, 70_000] {
        let content = vec![b'x'; length];
        let blob = descriptor("x", &content);
        let mut read = ArchiveWriter::new(Vec::new()).unwrap();
        assert!(read.add_blob(&blob, &content[..]).unwrap());
        let mut written = ArchiveWriter::new(Vec::new()).unwrap();
        let write = |out: &mut dyn Write| {
            content
                .chunks(1000)
                .try_for_each(|bytes| out.write_all(bytes))
                .unwrap();
            Ok::<_, ArchiveError>(Digest::of(&content))
        };
        assert!(written.add_blob_by(&blob, write).unwrap());
        let never = |_: &mut dyn Write| -> Result<Digest, ArchiveError> { unreachable!() };
        assert!(!written.add_blob_by(&blob, never).unwrap());
        assert!(
            read.finish().unwrap() == written.finish().unwrap(),
            "{length}"
        );
    }
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
    for wrong in [&b"wrong"[..], b"righ", b"right!"] {
        let mut writer = ArchiveWriter::new(Vec::new()).unwrap();
        let write = |out: &mut dyn Write| {
            // Who writes may take no notice.
            drop(out.write_all(wrong));
            Ok::<_, ArchiveError>(Digest::of(wrong))
        };
        let error = writer.add_blob_by(&blob, write).unwrap_err();
        assert!(matches!(error, ArchiveError::Mismatch { .. }), "{error}");
        assert!(writer.finish().is_err());
    }
    assert!(writer.add_blob(&blob, &b"right"[..]).unwrap());
    assert!(!writer.add_blob(&blob, &b"never read"[..]).unwrap());
    assert!(writer.finish().is_ok());
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
