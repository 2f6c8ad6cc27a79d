//! Layers packed and unpacked, with the cases of `testdata/layers`.
//!
//! A case is a text file: sections `lower:`, `before:`, `layer:` and `tree:` (or `error:`), one
//! file a line: kind (`d`, `f`, `l`, `h`, `c`, `b`, `p`, in results also `w` for a whiteout), path,
//! then content, link or device where the kind has one, then what differs from mode 755 or 644,
//! owner 0:0 and time 1000. `form: plain` extracts an archive instead of a layer.

mod properties;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{FileType, Mode, XattrFlags};

use super::tar::{Header, Kind, Reader, Time, Writer};
use super::*;
use crate::sys::root::Root;

/// Whether this test can make devices and owners; where tests must not be skipped it has to.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "needs root");
        eprintln!("SKIPPED: needs root");
    }
    root
}

fn unescape(text: &str) -> Vec<u8> {
    text.replace("\\s", " ").into_bytes()
}

/// One line of a case as an entry with its content.
fn parse(line: &str) -> (Header, Vec<u8>) {
    let mut words = line.split(' ');
    let kind = match words.next().unwrap() {
        "d" => Kind::Directory,
        "f" => Kind::File,
        "l" => Kind::Symlink,
        "h" => Kind::HardLink,
        "c" => Kind::CharDevice,
        "b" => Kind::BlockDevice,
        "p" => Kind::Fifo,
        other => panic!("unknown kind {other}"),
    };
    let mut header = Header::new(unescape(words.next().unwrap()), kind);
    header.mode = if kind == Kind::Directory {
        0o755
    } else {
        0o644
    };
    header.mtime = Time::seconds(1000);
    let mut content = Vec::new();
    for word in words {
        if let Some(mode) = word.strip_prefix("mode=") {
            header.mode = u32::from_str_radix(mode, 8).unwrap();
        } else if let Some(owner) = word.strip_prefix("owner=") {
            let (uid, gid) = owner.split_once(':').unwrap();
            (header.uid, header.gid) = (uid.parse().unwrap(), gid.parse().unwrap());
        } else if let Some(time) = word.strip_prefix("time=") {
            let (seconds, nanos) = time.split_once('.').unwrap_or((time, "0"));
            header.mtime = Time {
                seconds: seconds.parse().unwrap(),
                nanos: nanos.parse().unwrap(),
            };
        } else if let Some(attribute) = word.strip_prefix("xattr:") {
            let (name, value) = attribute.split_once('=').unwrap();
            header.xattrs.insert(unescape(name), unescape(value));
        } else if matches!(kind, Kind::Symlink | Kind::HardLink) {
            header.link = unescape(word);
        } else if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            let (major, minor) = word.split_once(':').unwrap();
            header.device = (major.parse().unwrap(), minor.parse().unwrap());
        } else {
            content = unescape(word);
        }
    }
    header.size = content.len() as u64;
    (header, content)
}

fn archive(lines: &[String]) -> Vec<u8> {
    // The writer leaves nanoseconds out, so such entries get an extended header here, and can
    // have nothing else that needs one.
    let mut bytes = Vec::new();
    for line in lines {
        let (header, content) = parse(line);
        if header.mtime.nanos != 0 {
            bytes.extend(super::tar::fraction_header(header.mtime));
        }
        let mut writer = Writer::new(Vec::new());
        writer.entry(&header).unwrap();
        writer.content(&content).unwrap();
        let (entry, _) = writer.finish().unwrap();
        bytes.extend_from_slice(&entry[..entry.len() - 1024]);
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

fn attributes(path: &Path) -> Vec<(String, String)> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut found = Vec::new();
    for name in list[..length].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(' ', "\\s");
        found.push((text(name), text(&value[..length])));
    }
    found.sort();
    found
}

/// A tree in the form of the cases, without its root.
fn dump(root: &Path) -> String {
    let mut text = String::new();
    let mut links = HashMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap();
        let name = path.to_str().unwrap().replace(' ', "\\s");
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = meta.file_type();
        let mut default = 0o644;
        if !kind.is_dir() && meta.nlink() > 1 {
            if let Some(first) = links.get(&meta.ino()) {
                writeln!(text, "h {name} {first}").unwrap();
                continue;
            }
            links.insert(meta.ino(), name.clone());
        }
        let device = || {
            let device = meta.rdev();
            format!(
                "{}:{}",
                rustix::fs::major(device),
                rustix::fs::minor(device)
            )
        };
        let what = if kind.is_dir() {
            default = 0o755;
            ("d", String::new())
        } else if kind.is_symlink() {
            default = 0o777;
            let link = std::fs::read_link(entry.path()).unwrap();
            ("l", link.to_str().unwrap().to_owned())
        } else if kind.is_char_device() && meta.rdev() == 0 {
            writeln!(text, "w {name}").unwrap();
            continue;
        } else if kind.is_char_device() {
            ("c", device())
        } else if kind.is_block_device() {
            ("b", device())
        } else if kind.is_fifo() {
            ("p", String::new())
        } else {
            ("f", std::fs::read_to_string(entry.path()).unwrap())
        };
        write!(text, "{} {name}", what.0).unwrap();
        if !what.1.is_empty() {
            write!(text, " {}", what.1.replace(' ', "\\s")).unwrap();
        }
        if meta.mode() & 0o7777 != default {
            write!(text, " mode={:o}", meta.mode() & 0o7777).unwrap();
        }
        if (meta.uid(), meta.gid()) != (0, 0) {
            write!(text, " owner={}:{}", meta.uid(), meta.gid()).unwrap();
        }
        // A year in the seventies was set, a later one is the clock's.
        let time = (meta.mtime(), meta.mtime_nsec());
        if time != (1000, 0) && meta.mtime() < 1 << 28 {
            write!(text, " time={}", time.0).unwrap();
            if time.1 != 0 {
                write!(text, ".{}", time.1).unwrap();
            }
        }
        for (name, value) in attributes(entry.path()) {
            write!(text, " xattr:{name}={value}").unwrap();
        }
        text.push('\n');
    }
    text
}

/// The lines of a case by section.
fn sections(text: &str) -> HashMap<String, Vec<String>> {
    let mut sections: HashMap<String, Vec<String>> = HashMap::new();
    let mut current = String::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        match line.split_once(':') {
            Some((name, rest)) if !name.contains(' ') => {
                current = name.to_owned();
                let section = sections.entry(current.clone()).or_default();
                section.extend(Some(rest.trim().to_owned()).filter(|rest| !rest.is_empty()));
            }
            _ => sections.get_mut(&current).unwrap().push(line.to_owned()),
        }
    }
    sections
}

fn plain() -> UnpackOptions<'static> {
    UnpackOptions {
        form: Form::Plain,
        ..UnpackOptions::default()
    }
}

/// Runs a case and says what came of it, as its file should end.
fn run(text: &str) -> (String, String) {
    let sections = sections(text);
    let get = |name: &str| sections.get(name).cloned().unwrap_or_default();
    let directory = tempfile::tempdir().unwrap();
    let (target, lower) = (
        directory.path().join("target"),
        directory.path().join("lower"),
    );
    for (path, section) in [(&target, "before"), (&lower, "lower")] {
        std::fs::create_dir(path).unwrap();
        unpack(&mut &archive(&get(section))[..], path, &plain()).unwrap();
    }
    let lower = sections
        .contains_key("lower")
        .then(|| Root::open(&lower).unwrap());
    let mut options = UnpackOptions {
        lower: lower.as_ref().into(),
        ..UnpackOptions::default()
    };
    if get("form") == ["plain"] {
        options.form = Form::Plain;
    }
    if let [owner] = &get("owner")[..] {
        let (uid, gid) = owner.split_once(':').unwrap();
        options.owner = Owner::Fixed(uid.parse().unwrap(), gid.parse().unwrap());
    }
    let mut expected = String::new();
    for kind in ["error", "warning"] {
        for line in get(kind) {
            writeln!(expected, "{kind}: {line}").unwrap();
        }
    }
    expected.extend(get("tree").iter().map(|line| format!("{line}\n")));
    let actual = match unpack(&mut &archive(&get("layer"))[..], &target, &options) {
        Err(error) => format!("error: {error}\n"),
        Ok(unpacked) => {
            let warnings = unpacked.warnings.iter();
            let warnings: String = warnings.map(|w| format!("warning: {w}\n")).collect();
            let opaque = if unpacked.opaque_root {
                "opaque-root\n"
            } else {
                ""
            };
            format!("{warnings}{opaque}{}", dump(&target))
        }
    };
    // Nothing may ever appear beside the target.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    (expected, actual)
}

#[test]
fn cases_of_unpacking() {
    if !is_root() {
        return;
    }
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/layers");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(cases)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() > 10);
    let mut wrong = String::new();
    for path in paths {
        let (expected, actual) = run(&std::fs::read_to_string(&path).unwrap());
        if expected != actual {
            let name = path.file_name().unwrap().display();
            writeln!(wrong, "{name}\nexpected:\n{expected}actual:\n{actual}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A directory as overlayfs would leave it, with one of everything.
fn upper(path: &Path) {
    let lines = [
        "d b mode=1777 owner=5:6",
        "f b/z last time=78.5",
        "f b/a first owner=1407182137:3000000000 time=77",
        "h b/m b/a",
        "l link ../some\\swhere owner=7:7",
        "c null 1:3 mode=666",
        "b disk 8:1 mode=660 owner=0:6",
        "p pipe mode=600",
        "f caps x mode=4755 xattr:user.note=a\\sb",
        "d opaque",
        "f opaque/in x",
        "f b.file x",
        "f räksmörgås x",
    ];
    let lines = lines.map(str::to_owned);
    unpack(&mut &archive(&lines)[..], path, &plain()).unwrap();
    let opaque = path.join("opaque");
    rustix::fs::setxattr(
        &opaque,
        whiteout::OPAQUE_ATTRIBUTE,
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    rustix::fs::setxattr(&opaque, "user.overlay.origin", b"1", XattrFlags::empty()).unwrap();
    let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let caps = path.join("caps");
    rustix::fs::setxattr(
        &caps,
        "security.capability",
        capability,
        XattrFlags::empty(),
    )
    .unwrap();
    let mode = Mode::empty();
    for name in ["gone", "b/gone"] {
        let name = path.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &name, FileType::CharacterDevice, mode, 0).unwrap();
    }
    drop(std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap());
    std::fs::write(path.join(".wh.fake"), "x").unwrap();
    for (name, time) in [("b", 5), ("opaque", 6), ("", 7)] {
        let directory = std::fs::File::open(path.join(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time);
        directory.set_modified(time).unwrap();
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn entries(tar: &[u8]) -> Vec<Header> {
    let mut reader = Reader::new(tar);
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

#[test]
fn packing_keeps_what_layers_hold() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    upper(directory.path());
    let mut tar = Vec::new();
    let packed = pack(directory.path(), &mut tar, &PackOptions::default()).unwrap();
    let entries = entries(&tar);
    let names: Vec<_> = entries
        .iter()
        .map(|h| String::from_utf8(h.path.clone()).unwrap())
        .collect();
    let expected = [
        "b",
        "b/a",
        "b/.wh.gone",
        "b/m",
        "b/z",
        "b.file",
        "caps",
        "disk",
        ".wh.gone",
        "link",
        "null",
        "opaque",
        "opaque/.wh..wh..opq",
        "opaque/in",
        "pipe",
        "räksmörgås",
    ];
    assert_eq!(names, expected);
    assert_eq!((packed.size, packed.entries), (tar.len() as u64, 16));
    let by_name = |name: &str| entries.iter().find(|h| h.path == name.as_bytes()).unwrap();
    assert_eq!(by_name("b/m").kind, Kind::HardLink);
    assert_eq!(by_name("b/m").link, b"b/a");
    assert_eq!(
        (by_name("b/a").uid, by_name("b/a").gid),
        (1_407_182_137, 3_000_000_000)
    );
    assert_eq!(by_name("b/a").mtime, Time::seconds(77));
    assert_eq!(by_name("disk").device, (8, 1));
    assert_eq!(by_name("caps").xattrs.len(), 2);
    assert_eq!(by_name("caps").mode, 0o4755);
    assert_eq!(by_name("opaque").xattrs.len(), 0);
    let warnings: Vec<_> = packed.warnings.iter().map(ToString::to_string).collect();
    let expected = [
        "`/.wh.fake` is left out: in a layer its name would delete another file",
        "`/socket` is left out: layers cannot hold sockets",
    ];
    assert_eq!(warnings, expected);
    let id = kiln_registry::digest::Digest::of(&tar);
    assert_eq!(id.short(), "dce025fd6151");
    let options = PackOptions {
        clamp: Some(50),
        root: true,
    };
    let mut tar = Vec::new();
    pack(directory.path(), &mut tar, &options).unwrap();
    let clamped = super::tests::entries(&tar);
    assert_eq!(clamped[0].path, b".");
    assert_eq!(clamped[0].mtime, Time::seconds(7));
    assert!(clamped.iter().all(|h| h.mtime <= Time::seconds(50)));
    assert!(clamped.iter().any(|h| h.mtime == Time::seconds(6)));
}

#[test]
fn sealing_is_packing_with_digests() {
    if !is_root() {
        return;
    }
    use kiln_registry::digest::Digest;
    use kiln_registry::spec::media_type::Compression as Layer;
    let directory = tempfile::tempdir().unwrap();
    upper(directory.path());
    let options = PackOptions::default();
    let mut tar = Vec::new();
    let packed = pack(directory.path(), &mut tar, &options).unwrap();
    let (id, same) = diff_id(directory.path(), &options).unwrap();
    assert_eq!((id.0, &same), (Digest::of(&tar), &packed));
    for compression in [Layer::None, Layer::Gzip, Layer::Zstd] {
        let mut blobs = Vec::new();
        for threads in [0, 2] {
            let mut blob = Vec::new();
            let sealed = seal(directory.path(), compression, threads, &mut blob, &options).unwrap();
            assert_eq!((sealed.diff_id, &sealed.packed), (id, &packed));
            assert_eq!(
                (sealed.digest, sealed.size),
                (Digest::of(&blob), blob.len() as u64)
            );
            let mut read = Vec::new();
            let limits = Limits::default();
            let mut reader = decompressor(compression.into(), &blob[..], limits).unwrap();
            std::io::Read::read_to_end(&mut reader, &mut read).unwrap();
            assert!(read == tar, "{compression:?}");
            drop(reader);
            blobs.push(blob);
        }
        assert!(blobs[0] == blobs[1], "{compression:?}");
    }
}

#[test]
fn packing_what_was_unpacked_gives_the_same_layer() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    upper(directory.path());
    let mut first = Vec::new();
    pack(directory.path(), &mut first, &PackOptions::default()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    unpack(&mut &first[..], copy.path(), &UnpackOptions::default()).unwrap();
    let mut second = Vec::new();
    let packed = pack(copy.path(), &mut second, &PackOptions::default()).unwrap();
    assert!(first == second);
    assert!(packed.warnings.is_empty());
}

#[test]
fn redirected_directories_are_an_error() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("moved");
    std::fs::create_dir(&inner).unwrap();
    rustix::fs::setxattr(
        &inner,
        "user.overlay.redirect",
        b"/old",
        XattrFlags::empty(),
    )
    .unwrap();
    let error = pack(directory.path(), std::io::sink(), &PackOptions::default()).unwrap_err();
    let expected = "`/moved` is incomplete: overlayfs keeps `user.overlay.redirect` for it";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_sparse_file_is_packed_in_little_memory() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("lastlog")).unwrap();
    file.set_len(300 << 20).unwrap();
    let packed = pack(directory.path(), std::io::sink(), &PackOptions::default()).unwrap();
    assert_eq!(packed.size, (300 << 20) + 512 + 1024);
    assert!(packed.warnings.is_empty());
}

#[test]
fn deep_trees_need_few_descriptors() {
    let directory = tempfile::tempdir().unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", 1500).collect();
    std::fs::create_dir_all(directory.path().join(&deep)).unwrap();
    std::fs::write(directory.path().join(&deep).join("f"), "x").unwrap();
    std::fs::write(directory.path().join("d/z"), "x").unwrap();
    let mut tar = Vec::new();
    let packed = pack(directory.path(), &mut tar, &PackOptions::default()).unwrap();
    assert_eq!(packed.entries, 1502);
    let copy = tempfile::tempdir().unwrap();
    let options = UnpackOptions {
        owner: Owner::Caller,
        ..UnpackOptions::default()
    };
    unpack(&mut &tar[..], copy.path(), &options).unwrap();
    assert!(copy.path().join(&deep).join("f").exists());
    assert!(copy.path().join("d/z").exists());
}

#[test]
fn unpacking_makes_holes_again_and_reads_to_the_end() {
    let mut tar = Vec::new();
    let mut writer = Writer::new(&mut tar);
    let mut header = Header::new("zeros", Kind::File);
    header.size = 8 << 20;
    writer.entry(&header).unwrap();
    writer.content(&vec![0; 8 << 20]).unwrap();
    writer.finish().unwrap();
    tar.extend_from_slice(b"and more that belongs to the digest");
    let directory = tempfile::tempdir().unwrap();
    let options = UnpackOptions {
        owner: Owner::Caller,
        ..UnpackOptions::default()
    };
    let mut rest = &tar[..];
    let unpacked = unpack(&mut rest, directory.path(), &options).unwrap();
    assert!(rest.is_empty());
    assert_eq!((unpacked.entries, unpacked.size), (1, 8 << 20));
    let meta = directory.path().join("zeros").metadata().unwrap();
    assert_eq!(meta.len(), 8 << 20);
    assert!(meta.blocks() * 512 < 1 << 20);
}

#[test]
fn entries_are_limited() {
    let directory = tempfile::tempdir().unwrap();
    let lines: Vec<_> = (0..4).map(|n| format!("f {n} x")).collect();
    let options = UnpackOptions {
        max_entries: 3,
        owner: Owner::Caller,
        ..UnpackOptions::default()
    };
    let error = unpack(&mut &archive(&lines)[..], directory.path(), &options).unwrap_err();
    assert_eq!(error.to_string(), "the archive has more than 3 entries");
}

#[test]
fn gnu_tar_extracts_what_is_packed() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    upper(directory.path());
    let file = tempfile::NamedTempFile::new().unwrap();
    pack(directory.path(), file.as_file(), &PackOptions::default()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let tar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(file.path())
        .arg("-C")
        .arg(copy.path())
        .status();
    let Ok(status) = tar else {
        eprintln!("SKIPPED: no tar program");
        return;
    };
    assert!(status.success());
    let ours = tempfile::tempdir().unwrap();
    unpack(&mut file.reopen().unwrap(), ours.path(), &plain()).unwrap();
    assert_eq!(dump(copy.path()), dump(ours.path()));
}

/// Name, kind, mode, user, group, time and content.
type Part = (Vec<u8>, u8, u32, u32, u32, i64, Vec<u8>);
