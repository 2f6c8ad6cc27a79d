//! The digest that is taken while a layer is written is that of the layer.

use proptest::prelude::*;

use super::*;

/// A file of a context: where it is, what it is, and what belongs to it.
type Part = (Vec<usize>, u8, u32, i64, usize);

/// Names that are easily put in a wrong order, and one that a layer cannot hold.
const NAMES: [&str; 9] = ["a", "a.b", "a-b", "a b", "b", "A", "\u{e9}", ".wh.x", "0"];

const COPIES: [&str; 9] = [
    ". /",
    ". /d/",
    "a /a",
    "a b /d/",
    "a/ /exists",
    "* /",
    "--parents a b /d/",
    "--chmod=0751 . /d",
    "--from --link . /d",
];

fn tree() -> impl Strategy<Value = Vec<Part>> {
    let path = proptest::collection::vec(0..NAMES.len(), 1..4);
    let time = prop_oneof![-1000i64..1000, 0i64..4_000_000_000];
    let size = prop_oneof![0usize..10_000, 60_000usize..300_000];
    let part = (path, 0u8..12, 0u32..0o10000, time, size);
    proptest::collection::vec(part, 1..60)
}

/// Puts a part into a context, unless another one is in its way.
fn put(context: &Path, (names, kind, mode, time, size): &Part) {
    let names: PathBuf = names.iter().map(|&name| NAMES[name]).collect();
    let path = context.join(names);
    let parent = path.parent().unwrap_or(context);
    if fs::symlink_metadata(&path).is_ok() || fs::create_dir_all(parent).is_err() {
        return;
    }
    // Otherwise who is not root cannot go on.
    let mode = mode | 0o700;
    match kind {
        0 => fs::create_dir(&path).unwrap(),
        1 => symlink("a/b", &path).unwrap(),
        2 => {
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, 0o600.into(), 0).unwrap();
        }
        3 => drop(fs::hard_link(context.join("a/b"), &path)),
        _ => fs::write(&path, vec![kind + b'a'; *size]).unwrap(),
    }
    // A hard link may be one to a symbolic link.
    if fs::symlink_metadata(&path).is_ok_and(|put| !put.is_symlink()) {
        let flags = rustix::fs::XattrFlags::empty();
        // Not every file system has them.
        _ = rustix::fs::setxattr(&path, "user.x", &[*kind], flags);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_mtime(&path, *time, 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_followed_is_what_is_packed_afterwards(parts in tree(), words in 0..COPIES.len()) {
        let place = Place::new(&["a/"], &["exists/", "d/a/ 0700", "d/b", "a.b"]);
        for part in &parts {
            put(&place.path("context"), part);
        }
        let op = op(COPIES[words]);
        let context = Tree::merged(Root::open(&place.path("context")).unwrap());
        let lower = Root::open(&place.path("lower")).unwrap();
        let trees = [None, Some(&context)];
        let Ok(selections) = select_all(&op, &trees) else {
            return Ok(());
        };
        let inputs = CopyInputs {
            fetched: &[],
            trees: &trees,
            lower: Some(&lower),
            upper: &place.path("upper"),
            scratch: &place.path("scratch"),
            time: UNIX_EPOCH + Duration::from_secs(TIME),
            follow: true,
            learn: true,
        };
        let Ok(report) = copy(&op, &selections, &inputs, &mut |_| Ok(false)) else {
            return Ok(());
        };
        let first = content_key(&op, &trees, &selections, &Found::none()).unwrap();
        let meanwhile = content_key(&op, &trees, &selections, &report.found).unwrap();
        prop_assert_eq!(meanwhile, first);
        // Hard links, and what is in a directory that no layer can hold.
        let unusual = parts.iter().any(|part| part.1 == 3 || part.0.contains(&7));
        prop_assert!(report.following.is_some() || unusual || words == 3 || words == 5);
        if let Some(following) = report.following {
            let packed = layer::diff_id(inputs.upper, &PackOptions::default()).unwrap();
            prop_assert_eq!(following.wait(), Some(packed));
        }
    }
}

#[test]
fn nothing_is_followed_to_its_end_where_a_directory_is_not_what_it_was_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let attributes = Attributes {
        mode: 0o751,
        owner: (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
        mtime: Timestamp {
            seconds: 7,
            nanoseconds: 0,
        },
        xattrs: Vec::new(),
    };
    let begin = |name: &str, mode: u32| {
        let path = folder.path().join(name).join("d");
        fs::create_dir_all(&path).unwrap();
        let upper = path.parent().unwrap().to_owned();
        let mut promise = layer::Promise::default();
        promise.directory(attributes.header(Path::new("")));
        promise.directory(attributes.header(Path::new("d")));
        assert!(promise.file(b"d", b"f"));
        assert!(!promise.file(b"e", b"f"));
        let root = Root::open(&upper).unwrap();
        let (writing, following) = layer::follow(root, promise).unwrap();
        fs::write(path.join("f"), "f").unwrap();
        writing.wrote(0..1);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_mtime(&path, 7, 9);
        (upper, writing, following)
    };
    let (upper, writing, following) = begin("kept", 0o751);
    writing.finish();
    let packed = layer::diff_id(&upper, &PackOptions::default()).unwrap();
    assert_eq!(following.wait(), Some(packed));
    let (_, writing, following) = begin("mode", 0o750);
    writing.finish();
    assert_eq!(following.wait(), None, "another mode");
    let (upper, writing, following) = begin("more", 0o751);
    fs::write(upper.join("unexpected"), "").unwrap();
    writing.finish();
    let packed = layer::diff_id(&upper, &PackOptions::default()).unwrap();
    let followed = following.wait();
    assert!(
        followed.is_none_or(|followed| followed == packed),
        "one more file"
    );
    let (_, writing, following) = begin("end", 0o751);
    drop(writing);
    assert_eq!(following.wait(), None, "not finished");
}
