//! Archives that others made: old, damaged, hostile.

use super::*;

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

/// A member beyond the 8 GiB that octal digits can say, in a file with a hole.
#[test]
fn a_large_member() {
    use std::os::unix::fs::FileExt;
    const SIZE: u64 = 9 << 30;
    let mut header = Header::new_gnu();
    header.set_path("large").unwrap();
    header.set_size(SIZE);
    header.set_cksum();
    let file = file(header.as_bytes());
    let rest = docker(ONE, "l.tar").end();
    file.write_all_at(&rest, 512 + SIZE).unwrap();
    assert_eq!(Archive::open(file).unwrap().images().len(), 1);
}

/// A small archive cannot name so much that memory runs out.
#[test]
fn amplified() {
    let many = |entry: &str, count| format!("[{}]", vec![entry; count].join(","));
    let manifest = many(r#"{"Config":"c.json","Layers":[]}"#, 20_000);
    let error = docker(&manifest, "l.tar").open().unwrap_err();
    assert!(
        error.to_string().contains("images beyond the limit"),
        "{error}"
    );
    let padding = " ".repeat(1 << 20);
    let config = format!(r#"{{"rootfs":{{"type":"layers"}}}}{padding}"#);
    let error = Tar::default()
        .file("c.json", config)
        .file("manifest.json", many(r#"{"Config":"c.json"}"#, 200))
        .open()
        .unwrap_err();
    assert!(
        error.to_string().contains("bytes of documents beyond"),
        "{error}"
    );
}
