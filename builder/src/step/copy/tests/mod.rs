mod follow;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::context::key::content_key;
use crate::context::select::select_all;
use crate::context::testing::{is_root, make, op, set_mtime};
use crate::layer::{self, PackOptions};

/// The build time given to every copy.
const TIME: u64 = 1_700_000_000;

/// A place with a context, lower layers and an upper one.
struct Place {
    dir: tempfile::TempDir,
}

fn measure(directory: &Path) -> Measured {
    let mut measured = Measured::default();
    for entry in walkdir::WalkDir::new(directory).min_depth(1) {
        let metadata = entry.unwrap().metadata().unwrap();
        measured.entries += 1;
        if metadata.is_file() {
            measured.bytes += metadata.len();
        }
    }
    measured
}

impl Place {
    fn new(context: &[&str], lower: &[&str]) -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in ["context", "lower", "upper"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        fs::set_permissions(place.path("lower"), fs::Permissions::from_mode(0o755)).unwrap();
        make(&place.path("context"), context);
        make(&place.path("lower"), lower);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self, words: &str) -> Result<CopyReport, CopyError> {
        self.copy_with(words, &mut |_| Ok(false))
    }

    fn copy_with(&self, words: &str, unpack: &mut Unpack<'_>) -> Result<CopyReport, CopyError> {
        let op = op(words);
        let context = if op.keep_owner {
            Tree::merged(Root::open(&self.path("context")).unwrap())
        } else {
            Tree::context(&self.path("context"), None, None).unwrap()
        };
        let lower = Root::open(&self.path("lower")).unwrap();
        let trees = [None, Some(&context)];
        let selections = select_all(&op, &trees)?;
        let inputs = CopyInputs {
            fetched: &[],
            trees: &trees,
            lower: Some(&lower),
            upper: &self.path("upper"),
            scratch: &self.path("scratch"),
            time: UNIX_EPOCH + Duration::from_secs(TIME),
            follow: true,
            learn: true,
        };
        let empty = fs::read_dir(inputs.upper).unwrap().next().is_none();
        let mut report = copy(&op, &selections, &inputs, unpack)?;
        // A file that is nearly all holes takes its full size in the layer.
        if let Some(following) = report.following.take()
            && report.bytes < 1 << 30
        {
            let packed = layer::diff_id(inputs.upper, &PackOptions::default());
            assert_eq!(following.wait(), Some(packed.unwrap()));
        }
        // What was found out while copying is what is found by reading first.
        let first = content_key(&op, &trees, &selections, &Found::none()).unwrap();
        let meanwhile = content_key(&op, &trees, &selections, &report.found).unwrap();
        assert_eq!(meanwhile, first);
        if empty && let Some(measured) = report.measured {
            assert_eq!(measured, measure(inputs.upper));
        }
        Ok(report)
    }

    fn upper(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path("upper").join(name)).unwrap()
    }

    /// The upper layer as text: `path mode` of directories and files, files with their content
    /// where it is not their own name.
    fn render(&self) -> String {
        let mut text = String::new();
        let root = Root::open(&self.path("upper")).unwrap();
        for (path, metadata) in Tree::merged(root).entries() {
            let file = self.path("upper").join(&path);
            _ = match metadata.kind {
                Kind::Directory => writeln!(text, "{}/ {:o}", path.display(), metadata.mode),
                Kind::Symlink => writeln!(
                    text,
                    "{} -> {}",
                    path.display(),
                    fs::read_link(&file).unwrap().display()
                ),
                Kind::File => writeln!(
                    text,
                    "{} {:o} {}",
                    path.display(),
                    metadata.mode,
                    fs::read_to_string(&file).unwrap().trim_end()
                ),
                _ => writeln!(text, "{} special", path.display()),
            };
        }
        text
    }
}

/// Folders of cases would hold little but modes and links, which git does not keep; so each case
/// is a block of text: `context:`, `lower:`, `copy:` and the layer or `error:` that results.
const CASES: &str = include_str!("../../../../../testdata/copy.txt");

#[test]
fn cases_of_a11() {
    let mut wrong = Vec::new();
    for case in CASES.split("\n\n").filter(|case| case.contains("copy:")) {
        let mut fields: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut expected = String::new();
        for line in case.lines().filter(|line| !line.starts_with('#')) {
            match line.split_once(": ") {
                Some((field @ ("context" | "lower" | "copy"), value)) => {
                    fields.entry(field).or_default().push(value);
                }
                _ => expected += &format!("{line}\n"),
            }
        }
        let list = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let place = Place::new(&list("context"), &list("lower"));
        let found = match place.copy(list("copy")[0]) {
            Ok(_) => place.render(),
            Err(error) => format!("error: {error}\n"),
        };
        if found != expected {
            wrong.push(format!("{case}\n--- found\n{found}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a11_3_metadata_of_merged_directories() {
    let place = Place::new(
        &["src/new/file", "src/old/file", "src/ 0750", "src/old/ 0700"],
        &["d/old/there", "d/ 0711", "d/old/ 0555"],
    );
    let context = place.path("context");
    set_mtime(&context.join("src/new/file"), 1_111_111_111, 123_456_789);
    set_mtime(&context.join("src/old"), 1_111_111_112, 5);
    set_mtime(&context.join("src/new"), 1_111_111_113, 0);
    set_mtime(&context.join("src"), 1_111_111_114, 7);
    set_mtime(&place.path("lower"), 1_000_000_000, 0);
    place.copy("src /d").unwrap();
    let times = |name| {
        let metadata = place.upper(name);
        (
            metadata.mode() & 0o7777,
            metadata.mtime(),
            metadata.mtime_nsec(),
        )
    };
    assert_eq!(times("d"), (0o711, 1_111_111_114, 7), "keeps its mode");
    assert_eq!(times("d/old"), (0o700, 1_111_111_112, 5));
    assert_eq!(times("d/new"), (0o755, 1_111_111_113, 0));
    assert_eq!(times("d/new/file"), (0o644, 1_111_111_111, 123_456_789));
    assert_eq!(times(""), (0o755, 1_000_000_000, 0), "the lower root");
}

#[test]
fn a11_4_created_parents_have_the_build_time() {
    let place = Place::new(&["file"], &["etc/conf/", "etc/ 01777"]);
    set_mtime(&place.path("lower/etc"), 1_000_000_001, 3);
    place.copy("file /etc/new/deep/").unwrap();
    let etc = place.upper("etc");
    assert_eq!(
        (etc.mode() & 0o7777, etc.mtime(), etc.mtime_nsec()),
        (0o1777, 1_000_000_001, 3)
    );
    let new = place.upper("etc/new/deep");
    assert_eq!(
        (new.mode() & 0o7777, new.mtime()),
        (0o755, TIME.cast_signed())
    );
}

#[test]
fn a10_7_owners_modes_and_capabilities() {
    if !is_root("a10_7_owners_modes_and_capabilities") {
        return;
    }
    // A valid version 2 capability: cap_net_raw, effective.
    let capability =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let make_place = || {
        let place = Place::new(&["dir/tool 04755", "dir/ping 0755", "dir/sub/"], &[]);
        for name in ["dir", "dir/tool", "dir/ping"] {
            let path = place.path("context").join(name);
            std::os::unix::fs::lchown(&path, Some(1_407_182_137), Some(7)).unwrap();
        }
        let tool = place.path("context/dir/tool");
        fs::set_permissions(tool, fs::Permissions::from_mode(0o4755)).unwrap();
        let ping = fs::File::open(place.path("context/dir/ping")).unwrap();
        let set = |name: &str, value: &[u8]| {
            rustix::fs::fsetxattr(&ping, name, value, rustix::fs::XattrFlags::empty()).unwrap();
        };
        set("security.capability", capability);
        set("user.note", b"kept");
        place
    };
    let owner = |place: &Place, name: &str| {
        let metadata = place.upper(name);
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    for (words, uid, gid) in [
        ("dir /d", 0, 0),
        ("--from dir /d", 1_407_182_137, 7),
        ("--chown=3:4 dir /d", 3, 4),
        ("--from --chown=3:4 dir /d", 3, 4),
        ("--from --parents dir/tool dir/ping /d/", 1_407_182_137, 7),
    ] {
        let place = make_place();
        let report = place.copy(words).unwrap();
        assert_eq!(report.notes, [], "{words}");
        let at = if words.contains("parents") {
            "d/dir"
        } else {
            "d"
        };
        assert_eq!(owner(&place, at), (uid, gid, 0o755), "{words}");
        assert_eq!(
            owner(&place, &format!("{at}/tool")),
            (uid, gid, 0o4755),
            "{words}"
        );
        let ping = fs::File::open(place.path("upper").join(at).join("ping")).unwrap();
        let xattrs = crate::context::xattr::read(&ping).unwrap();
        let expected = [
            (c"security.capability".to_owned(), capability.to_vec()),
            (c"user.note".to_owned(), b"kept".to_vec()),
        ];
        assert_eq!(xattrs, expected, "{words}");
    }
}

#[test]
fn a11_4_a11_7_created_directories_belong_to_the_owner() {
    if !is_root("a11_4_created_directories") {
        return;
    }
    let place = Place::new(&["file"], &["opt/", "etc/passwd"]);
    fs::write(place.path("lower/etc/passwd"), "app:x:8:9::/:/bin/sh\n").unwrap();
    place
        .copy("--chown=app --chmod=0750 file /opt/a/b/")
        .unwrap();
    let owner = |name| {
        let metadata = place.upper(name);
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner("opt"), (0, 0, 0o755));
    assert_eq!(owner("opt/a"), (8, 9, 0o750));
    assert_eq!(owner("opt/a/b"), (8, 9, 0o750));
    assert_eq!(owner("opt/a/b/file"), (8, 9, 0o750));
    let error = place.copy("--chown=nobody-here file /x").unwrap_err();
    assert_eq!(error.to_string(), "cannot resolve `--chown=nobody-here`");
}

#[test]
fn a10_7_hard_links_within_one_tree_are_kept() {
    let place = Place::new(
        &[
            "d/a",
            "d/b => d/a",
            "d/sub/c => d/a",
            "e/x => d/a",
            "lone => d/a",
        ],
        &["dest/b", "dest/sub/c"],
    );
    let report = place.copy("d e lone /dest/").unwrap();
    assert_eq!((report.files, report.bytes), (5, 9));
    let inode = |name| place.upper(name).ino();
    assert_eq!(inode("dest/a"), inode("dest/b"));
    assert_eq!(inode("dest/a"), inode("dest/sub/c"));
    assert_ne!(inode("dest/a"), inode("dest/x"));
    assert_eq!(place.upper("dest/a").nlink(), 3);
    assert_eq!(place.upper("dest/lone").nlink(), 1);
}

#[test]
fn a10_7_devices_fifos_and_sockets() {
    if !is_root("a10_7_devices_fifos_and_sockets") {
        return;
    }
    let place = Place::new(&["dev/"], &[]);
    let dev = fs::File::open(place.path("context/dev")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        &dev,
        "null",
        rustix::fs::FileType::CharacterDevice,
        mode,
        device,
    )
    .unwrap();
    rustix::fs::mknodat(
        &dev,
        "white",
        rustix::fs::FileType::CharacterDevice,
        mode,
        0,
    )
    .unwrap();
    rustix::fs::mknodat(&dev, "pipe", rustix::fs::FileType::Fifo, mode, 0).unwrap();
    rustix::fs::chmodat(&dev, "null", mode, rustix::fs::AtFlags::empty()).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(place.path("context/dev/sock")).unwrap();
    let report = place.copy("--from dev /dev").unwrap();
    drop(socket);
    assert_eq!(
        report.notes,
        [
            Note::SocketSkipped("dev/sock".into()),
            Note::DeviceSkipped("dev/white".into())
        ]
    );
    let null = place.upper("dev/null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (device, 0o666));
    assert!(place.upper("dev/pipe").file_type().is_fifo());
    assert!(!place.path("upper/dev/white").exists());
}

#[test]
fn sparse_files_stay_sparse() {
    use std::os::unix::fs::FileExt as _;
    let place = Place::new(&["x"], &[]);
    let size = 3 << 30;
    let file = fs::File::create(place.path("context/sparse")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"middle", 1 << 30).unwrap();
    file.write_all_at(b"end", size - 3).unwrap();
    let report = place.copy("sparse /d/").unwrap();
    assert!(
        matches!(
            report.notes[..],
            [Note::Sparse {
                size: 0xC000_0000,
                ..
            }]
        ),
        "{report:?}"
    );
    let copied = fs::File::open(place.path("upper/d/sparse")).unwrap();
    let metadata = copied.metadata().unwrap();
    assert_eq!(metadata.len(), size);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    let mut bytes = [0; 8];
    copied.read_exact_at(&mut bytes, (1 << 30) - 1).unwrap();
    assert_eq!(&bytes, b"\0middle\0");
    copied.read_exact_at(&mut bytes, size - 8).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0end");
}

#[test]
fn large_files_are_copied_whole() {
    let place = Place::new(&["x"], &[]);
    let bytes: Vec<u8> = (0..3_000_001_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(place.path("context/large"), &bytes).unwrap();
    let report = place.copy("large /").unwrap();
    assert_eq!(report.bytes, bytes.len() as u64);
    assert!(fs::read(place.path("upper/large")).unwrap() == bytes);
}

#[test]
fn a_file_that_changes_after_the_selection_is_an_error() {
    let place = Place::new(&["dir/file", "dir/other"], &[]);
    let context = Tree::context(&place.path("context"), None, None).unwrap();
    let trees = [None, Some(&context)];
    let op = op("dir /d");
    let selections = select_all(&op, &trees).unwrap();
    fs::write(place.path("context/dir/file"), "grown longer").unwrap();
    let inputs = CopyInputs {
        fetched: &[],
        trees: &trees,
        lower: None,
        upper: &place.path("upper"),
        scratch: &place.path("scratch"),
        time: UNIX_EPOCH,
        follow: true,
        learn: true,
    };
    let error = copy(&op, &selections, &inputs, &mut |_| Ok(false)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`dir/file` of the build context changed during the build"
    );
    fs::remove_file(place.path("context/dir/file")).unwrap();
    fs::remove_dir_all(place.path("upper/d")).unwrap();
    let error = copy(&op, &selections, &inputs, &mut |_| Ok(false)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read `dir/file` of the build context"
    );
}

#[test]
fn links_of_an_image_do_not_lead_out_of_it() {
    let place = Place::new(&["file", "dir/file"], &[]);
    let outside = tempfile::tempdir().unwrap();
    for (name, target) in [
        ("abs", outside.path().to_owned()),
        (
            "up",
            Path::new("../../../../../..").join(outside.path().strip_prefix("/").unwrap()),
        ),
    ] {
        symlink(target, place.path("lower").join(name)).unwrap();
    }
    place.copy("file /abs/").unwrap();
    let place_of = outside.path().strip_prefix("/").unwrap();
    assert!(place.path("upper").join(place_of).join("file").is_file());
    let place = Place { dir: place.dir };
    fs::remove_dir_all(place.path("upper")).unwrap();
    fs::create_dir(place.path("upper")).unwrap();
    place.copy("dir /up/").unwrap();
    assert!(place.path("upper").join(place_of).join("file").is_file());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a12_1_archives_are_merged_into_the_destination() {
    let place = Place::new(
        &["a.tar", "plain"],
        &[
            "opt/etc/kept",
            "opt/etc/ 0700",
            "opt/bin -> usr",
            "opt/usr/",
            "opt/was-file",
            "opt/was-dir/x",
        ],
    );
    let mut calls = Vec::new();
    let mut unpack = |archive: &Archive<'_>| {
        calls.push(archive.path.display().to_string());
        if archive.path != Path::new("a.tar") {
            return Ok(false);
        }
        make(
            archive.into,
            &[
                "etc/conf 0600",
                "bin/tool",
                "named/file",
                "was-file/now",
                "was-dir",
                "l -> bin",
            ],
        );
        set_mtime(&archive.into.join("etc/conf"), 1_234_567_890, 99);
        let below = archive.existing.unwrap();
        let etc = below.stat(Path::new("etc"), false).unwrap();
        assert_eq!(etc.st_mode & 0o7777, 0o700);
        Ok(true)
    };
    place
        .copy_with("--unpack a.tar plain /opt/", &mut unpack)
        .unwrap();
    assert_eq!(calls, ["a.tar", "plain"]);
    assert_eq!(
        place.render(),
        "opt/ 755\n\
         opt/etc/ 755\n\
         opt/etc/conf 600 etc/conf\n\
         opt/l -> bin\n\
         opt/named/ 755\n\
         opt/named/file 644 named/file\n\
         opt/plain 644 plain\n\
         opt/usr/ 755\n\
         opt/usr/tool 644 bin/tool\n\
         opt/was-dir 644 was-dir\n\
         opt/was-file/ 755\n\
         opt/was-file/now 644 was-file/now\n"
    );
    let conf = place.upper("opt/etc/conf");
    assert_eq!((conf.mtime(), conf.mtime_nsec()), (1_234_567_890, 99));
    assert!(!place.path("scratch").exists());
}

#[test]
fn a12_1_a_failed_archive_is_named() {
    let place = Place::new(&["bad.tar"], &[]);
    let error = place
        .copy_with("--unpack bad.tar /", &mut |_| Err("broken header".into()))
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot unpack `bad.tar`");
    assert!(!place.path("scratch").exists());
}

/// The same copy twice gives the same tree, whatever the threads do.
#[test]
fn many_files_are_all_there() {
    let files: Vec<String> = (0..3000)
        .map(|i| format!("d/{}/{}/f{i}", i % 7, i % 31))
        .collect();
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let place = Place::new(&names, &["dest/3/3/f3"]);
    let report = place.copy("d /dest").unwrap();
    assert_eq!(report.files, 3000);
    assert!(report.measured.is_some());
    for (index, file) in files.iter().enumerate() {
        let copied = place
            .path("upper/dest")
            .join(file.strip_prefix("d/").unwrap());
        assert_eq!(fs::read_to_string(copied).unwrap(), *file, "{index}");
    }
}
