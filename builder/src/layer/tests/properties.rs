//! Any tree and any bytes.

use super::*;

/// A tree from generated parts: odd names, owners, modes, times and attributes.
fn tree() -> impl Strategy<Value = Vec<Part>> {
    let name = proptest::collection::vec(any::<u8>(), 1..120).prop_filter("a name", |name| {
        !name.contains(&0) && !name.contains(&b'/') && name != b"." && name != b".."
    });
    let id = prop_oneof![0u32..5, 2_097_150u32..2_097_154, Just(u32::MAX - 1)];
    // What the file system can hold.
    let time = prop_oneof![-1000i64..1000, 0i64..4_000_000_000];
    let file = (
        name,
        0u8..6,
        0u32..0o10000,
        id.clone(),
        id,
        time,
        any::<Vec<u8>>(),
    );
    proptest::collection::vec(file, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_survives_the_round_trip(files in tree()) {
        if is_root() {
            let mut writer = Writer::new(Vec::new());
            let mut directory = Vec::new();
            for (name, kind, mode, uid, gid, time, content) in files {
                if !matches!(whiteout::classify(&name), whiteout::Name::Plain) {
                    continue;
                }
                let kinds = [Kind::File, Kind::File, Kind::Directory, Kind::Symlink, Kind::Fifo, Kind::CharDevice];
                let path = [&directory[..], &name].concat();
                let mut header = Header::new(path, kinds[usize::from(kind)]);
                (header.mode, header.uid, header.gid) = (mode, uid, gid);
                header.mtime = Time::seconds(time);
                header.device = (1, 7);
                match header.kind {
                    Kind::File => {
                        header.size = content.len() as u64;
                        header.xattrs.insert(b"user.x".to_vec(), content.clone());
                    }
                    Kind::Symlink => header.link = vec![b'l'; content.len() + 1],
                    Kind::Directory => directory = [&header.path[..], b"/"].concat(),
                    _ => {}
                }
                writer.entry(&header).unwrap();
                if header.kind == Kind::File {
                    writer.content(&content).unwrap();
                }
            }
            let (tar, _) = writer.finish().unwrap();
            let mut layers = vec![tar];
            for _ in 0..2 {
                let directory = tempfile::tempdir().unwrap();
                let last = layers.last().unwrap();
                unpack(&mut &last[..], directory.path(), &UnpackOptions::default()).unwrap();
                let mut tar = Vec::new();
                pack(directory.path(), &mut tar, &PackOptions::default()).unwrap();
                layers.push(tar);
            }
            let headers = |tar: &[u8]| {
                let mut headers = entries(tar);
                headers.sort_by(|a, b| a.path.cmp(&b.path));
                // The last of two with one name wins; links have no mode.
                headers.reverse();
                headers.dedup_by(|a, b| a.path == b.path);
                headers
            };
            prop_assert_eq!(headers(&layers[1]).len(), headers(&layers[0]).len());
            prop_assert!(layers[1] == layers[2]);
        }
    }

    #[test]
    fn hostile_bytes_neither_crash_nor_escape(at in 0usize..4096, value: u8, more in 0usize..4096, other: u8) {
        let lines = [
            "d a mode=700", "f a/x hello", "l up ..", "l abs /", "f up/out x", "f abs/out x", "h h a/x",
            "p p", "f .wh.a", "f b/.wh..wh..opq", "f a/y xattr:user.a=b",
        ];
        let mut tar = archive(&lines.map(str::to_owned));
        let length = tar.len();
        tar[at % length] = value;
        tar[more % length] = other;
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("target");
        std::fs::create_dir(&target).unwrap();
        for form in [Form::Plain, Form::Overlay] {
            let options = UnpackOptions { form, owner: Owner::Caller, ..UnpackOptions::default() };
            drop(unpack(&mut &tar[..], &target, &options));
        }
        let beside: Vec<_> = std::fs::read_dir(parent.path()).unwrap().collect();
        prop_assert_eq!(beside.len(), 1);
    }
}
