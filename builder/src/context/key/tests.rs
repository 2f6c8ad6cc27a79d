use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use super::*;
use crate::context::select::select_all;
use crate::context::testing::{context, is_root, make, op, set_mode, set_mtime};

const FILES: &[&str] = &[
    "src/a.rs",
    "src/b.rs 0755",
    "src/sub/c.rs",
    "src/link -> a.rs",
    "src/hard => src/sub/c.rs",
    "lone",
];

/// The key of `COPY words` in a context made anew by `change`.
fn key_after(words: &str, change: impl Fn(&Path)) -> Digest {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), FILES);
    change(dir.path());
    key_in(dir.path(), words)
}

fn key_in(dir: &Path, words: &str) -> Digest {
    let tree = context(dir, "");
    key_of(&tree, words)
}

fn key_of(tree: &Tree, words: &str) -> Digest {
    let op = op(words);
    let trees = [None, Some(tree)];
    let selections = select_all(&op, &trees).unwrap();
    let key = content_key(&op, &trees, &selections, &Found::none()).unwrap();
    let known = known_content_key(&op, &trees, &selections).unwrap();
    assert!(known.is_none_or(|known| known == key));
    let shape = shape_key(&op, &trees, &selections).unwrap();
    SHAPES.with_borrow_mut(|shapes| {
        let first = *shapes.entry(key).or_insert(shape);
        assert_eq!(first, shape, "one content, two shapes");
    });
    key
}

thread_local! {
    /// The shapes of all keys of a test.
    static SHAPES: RefCell<BTreeMap<Digest, Digest>> = RefCell::default();
}

fn key(words: &str) -> Digest {
    key_after(words, |_| {})
}

/// A change of the encoding is a change of every user's cache: do it on purpose, with its version.
#[test]
fn the_encoding_is_pinned() {
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (words, hex) in [
        (
            "src /d/",
            "cc09640b37d9d102710ad805ce2b2e306afa1f0a6b6bb43f36beb948838168e6",
        ),
        (
            "lone /d",
            "1cee4bb1bafdc23e837306a8cb876b8bffc11ad4fba28b398818757f4d28c6b6",
        ),
        (
            "<<F --chmod=0755 /d/",
            "9ee155977b29793789ecb678a578c7f7f4a2c26f6eef8699f5a5a6bdb31c18d8",
        ),
        (
            "--parents src/sub /d/",
            "9db9c7f6d9e1ab0480c9ea44664b8181e21f563ba4f7ce0a9b1d19f307c74fc6",
        ),
    ] {
        found.push((words, key(words).hex()));
        expected.push((words, hex.to_owned()));
    }
    assert_eq!(found, expected);
}

#[test]
fn a15_1_times_places_and_owners_of_the_context_do_not_count() {
    let plain = key("src /d/");
    assert_eq!(
        plain,
        key_after("src /d/", |dir| set_mtime(&dir.join("src/a.rs"), 7, 7))
    );
    assert_eq!(
        plain,
        key_after("src /d/", |dir| set_mtime(&dir.join("src"), 7, 7))
    );
    let moved = |dir: &Path| fs::rename(dir.join("src"), dir.join("moved")).unwrap();
    assert_eq!(plain, key_after("moved /d/", moved));
    assert_eq!(plain, key_after("mov* /d/", moved));
    let linked = |dir: &Path| symlink("src", dir.join("way")).unwrap();
    assert_eq!(plain, key_after("way /d/", linked));
    assert_eq!(
        plain,
        key_after("src /d/", |dir| make(dir, &["unrelated", "other/file"]))
    );
    if is_root("a15_1_owners_of_the_context") {
        let give =
            |dir: &Path| std::os::unix::fs::chown(dir.join("src/a.rs"), Some(5), Some(6)).unwrap();
        assert_eq!(plain, key_after("src /d/", give));
        assert_ne!(key("--from src /d/"), key_after("--from src /d/", give));
        assert_eq!(
            key("--from --chown=1 src /d/"),
            key_after("--from --chown=1 src /d/", give)
        );
    }
}

#[test]
fn a15_1_what_is_written_counts() {
    let plain = key("src /d/");
    type Change<'a> = &'a dyn Fn(&Path);
    let changes: [(&str, Change<'_>); 10] = [
        ("content", &|dir| {
            fs::write(dir.join("src/a.rs"), "src/a.rx").unwrap();
        }),
        ("size", &|dir| {
            fs::write(dir.join("src/a.rs"), "longer than it was").unwrap();
        }),
        ("mode", &|dir| set_mode(&dir.join("src/a.rs"), 0o600)),
        ("mode of a directory", &|dir| {
            set_mode(&dir.join("src/sub"), 0o700);
        }),
        ("mode of the top", &|dir| set_mode(&dir.join("src"), 0o700)),
        ("name", &|dir| {
            fs::rename(dir.join("src/a.rs"), dir.join("src/A.rs")).unwrap();
        }),
        ("another file", &|dir| make(dir, &["src/new"])),
        ("an empty directory", &|dir| make(dir, &["src/empty/"])),
        ("link target", &|dir| {
            fs::remove_file(dir.join("src/link")).unwrap();
            symlink("b.rs", dir.join("src/link")).unwrap();
        }),
        ("a copy in place of a hard link", &|dir| {
            fs::remove_file(dir.join("src/hard")).unwrap();
            fs::copy(dir.join("src/sub/c.rs"), dir.join("src/hard")).unwrap();
        }),
    ];
    for (what, change) in changes {
        assert_ne!(plain, key_after("src /d/", change), "{what}");
    }
    let user = |dir: &Path| {
        let file = fs::File::open(dir.join("src/a.rs")).unwrap();
        rustix::fs::fsetxattr(&file, "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    };
    assert_ne!(plain, key_after("src /d/", user), "attribute");
}

#[test]
fn a11_12_flags_and_destination_count() {
    let keys: Vec<Digest> = [
        "src /d/",
        "src /d",
        "src /e/",
        "--chown=1 src /d/",
        "--chown=2 src /d/",
        "--chmod=0755 src /d/",
        "--link src /d/",
        "--unpack src /d/",
        "--parents src /d/",
        "--exclude=a.rs src /d/",
        "src/sub /d/",
        "lone /d/",
        "lone src /d/",
        "src lone /d/",
        "<<F /d/",
        "<<G /d/",
    ]
    .iter()
    .map(|words| key(words))
    .collect();
    for (index, one) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(one), "{index}");
    }
}

/// The umask of a checkout does not matter where the mode is given.
#[test]
fn an_octal_chmod_takes_the_mode_out_of_the_key() {
    let other_umask = |dir: &Path| {
        set_mode(&dir.join("src/a.rs"), 0o664);
        set_mode(&dir.join("src"), 0o775);
    };
    assert_ne!(key("src /d/"), key_after("src /d/", other_umask));
    for words in ["--chmod=0755 src /d/", "--chmod=u=rwX,go=rX src /d/"] {
        assert_eq!(key(words), key_after(words, other_umask), "{words}");
    }
}

/// Same size, same times, other content: only the inode's ctime tells, and it is not trusted while
/// it is young.
#[test]
fn silent_change_of_content_is_seen_with_a_stat_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let stats = cache.path().join("stat");
    let file = dir.path().join("file");
    let now = || {
        let tree = Tree::context(dir.path(), None, Some(&stats)).unwrap();
        let key = key_of(&tree, "file /f");
        tree.save_stat_cache().unwrap();
        key
    };
    let mut seen = Vec::new();
    for round in 0..40_u8 {
        fs::write(&file, [b'a' + round % 20; 8]).unwrap();
        set_mtime(&file, 1_500_000_000, 1);
        if round % 10 == 9 {
            std::thread::sleep(Duration::from_millis(30));
        }
        let key = now();
        assert_eq!(key, now(), "{round}");
        seen.push(key);
    }
    for (round, key) in seen.iter().enumerate().take(20) {
        assert_eq!(*key, seen[round + 20]);
        assert!(!seen[..round].contains(key), "{round}");
    }
}

/// A remembered digest is used: the cache is made to lie to show it.
#[test]
fn remembered_digests_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let stats = cache.path().join("stat");
    make(dir.path(), &["file", "liar"]);
    std::thread::sleep(Duration::from_millis(30));
    let tree = Tree::context(dir.path(), None, Some(&stats)).unwrap();
    let honest = key_of(&tree, "file /f");
    tree.save_stat_cache().unwrap();
    let mut bytes = fs::read(&stats).unwrap();
    let end = bytes.len() - 4;
    bytes[16 + 48] ^= 1;
    let checksum = crc32fast::hash(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
    fs::write(&stats, bytes).unwrap();
    let tree = Tree::context(dir.path(), None, Some(&stats)).unwrap();
    assert_ne!(key_of(&tree, "file /f"), honest);
}

#[test]
fn an_unreadable_file_is_named() {
    if !is_root("an_unreadable_file_is_named") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["d/open", "d/shut 0000"]);
    std::os::unix::fs::chown(dir.path().join("d/shut"), Some(1), Some(1)).unwrap();
    let error = std::thread::spawn(move || {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).unwrap();
        let tree = context(dir.path(), "");
        let op = op("d /d");
        let trees = [None, Some(&tree)];
        let selections = select_all(&op, &trees).unwrap();
        key_in(dir.path(), "d/open /d");
        content_key(&op, &trees, &selections, &Found::none())
            .unwrap_err()
            .to_string()
    })
    .join()
    .unwrap();
    assert_eq!(error, "cannot read `d/shut` of the build context");
}
