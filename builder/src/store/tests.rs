use std::fs;
use std::io::Write as _;
use std::sync::Arc;

use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::{DiffId, Manifest};

use super::{Eviction, LayerBlob, SnapshotFacts, SnapshotId, Store, StoreError};

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    (folder, store)
}

fn name(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// An image with a config and one layer blob; its id.
fn image(store: &Store, mark: &str) -> Digest {
    let layer = store
        .write_blob(format!("layer {mark}").as_bytes())
        .unwrap();
    let diff_id = DiffId(Digest::of(format!("tar {mark}").as_bytes()));
    let blob = LayerBlob {
        digest: layer,
        media_type: "x".to_owned(),
        size: 7,
    };
    store.add_layer_blob(diff_id, &blob).unwrap();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let id = store.write_blob(config.as_bytes()).unwrap();
    store.add_image(&id, None).unwrap();
    id
}

fn snapshot(store: &Store, text: &str) -> SnapshotId {
    let id = SnapshotId::from_name(text.to_owned());
    fs::create_dir(store.snapshot_path(&id)).unwrap();
    let facts = SnapshotFacts {
        layer: None,
        bytes: 1,
        entries: 1,
        created: 1,
        settled: true,
    };
    store.add_snapshot(&id, &facts).unwrap();
    id
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let (folder, store) = store();
    let root = store.root().to_owned();
    drop(store);
    fs::write(root.join("version"), "99\n").unwrap();
    let error = Store::open(&root).unwrap_err();
    assert!(
        matches!(&error, StoreError::Version { found, .. } if found == "99"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--root"));
    drop(folder);
}

#[test]
fn a_blob_has_its_name_only_when_it_is_whole() {
    let (_folder, store) = store();
    let digest = Digest::of(b"content");
    let mut writer = store.new_blob().unwrap();
    writer.write_all(b"content").unwrap();
    assert!(!store.has_blob(&digest));
    assert_eq!(writer.commit(&store).unwrap(), (digest, 7));
    assert_eq!(store.read_blob(&digest).unwrap(), b"content");
    let unfinished = store.new_blob().unwrap();
    drop(unfinished);
    assert_eq!(
        fs::read_dir(store.root().join("tmp")).unwrap().count(),
        0,
        "nothing unfinished is left"
    );
}

#[test]
fn a_blob_that_was_altered_is_not_believed() {
    let (_folder, store) = store();
    let digest = store.write_blob(b"content").unwrap();
    fs::write(store.blob_path(&digest), b"other").unwrap();
    assert!(matches!(
        store.read_blob(&digest),
        Err(StoreError::Damaged { .. })
    ));
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    let (_folder, store) = store();
    let root = store.root().to_owned();
    let alive = store.temporary().unwrap();
    let dead = root.join("tmp/0123");
    fs::create_dir_all(dead.join("fs/deep")).unwrap();
    fs::write(dead.join("lock"), "").unwrap();
    let second = Store::open(&root).unwrap();
    assert!(alive.path().exists(), "its lock is held");
    assert!(!dead.exists());
    drop(second);
}

#[test]
fn d1_6_images_are_found_by_name_and_by_prefix_of_their_id() {
    let (_folder, store) = store();
    let (one, two) = (image(&store, "1"), image(&store, "2"));
    store.tag(&name("app:1"), &one).unwrap();
    assert_eq!(store.find("docker.io/library/app:1").unwrap(), one);
    assert_eq!(store.find(&one.short()).unwrap(), one);
    assert_eq!(store.find(&two.to_string()).unwrap(), two);
    assert!(matches!(store.find("app:2"), Err(StoreError::NoImage(_))));
    assert!(matches!(store.find("sha256:"), Err(StoreError::NoImage(_))));
    let many: Vec<Digest> = (0..20)
        .map(|n| image(&store, &format!("many {n}")))
        .collect();
    let first = &many[0].hex()[..1];
    let same = store
        .images()
        .unwrap()
        .iter()
        .filter(|image| image.id.hex().starts_with(first))
        .count();
    assert_eq!(
        matches!(store.find(first), Err(StoreError::Ambiguous(_))),
        same > 1
    );
}

#[test]
fn a_name_moves_from_one_image_to_another() {
    let (_folder, store) = store();
    let (one, two) = (image(&store, "1"), image(&store, "2"));
    assert_eq!(store.tag(&name("app"), &one).unwrap(), None);
    assert_eq!(store.tag(&name("app"), &one).unwrap(), None, "to itself");
    assert_eq!(store.tag(&name("app:latest"), &two).unwrap(), Some(one));
    assert_eq!(store.named(&name("app")).unwrap(), Some(two));
}

#[test]
fn sweeping_removes_just_what_no_image_needs() {
    let (_folder, store) = store();
    let (keep, gone) = (image(&store, "keep"), image(&store, "gone"));
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{keep}","size":1}},"layers":[]}}"#
    );
    serde_json::from_str::<Manifest>(&manifest).unwrap();
    let manifest = store.write_blob(manifest.as_bytes()).unwrap();
    store
        .add_repo_digest(&name("app"), &manifest, &keep)
        .unwrap();
    let stray = store.write_blob(b"stray").unwrap();
    store.remove_image(&gone).unwrap();

    let freed = store.sweep().unwrap().unwrap();
    assert!(freed > 0);
    assert!(store.has_blob(&keep) && store.has_blob(&manifest));
    assert!(store.has_blob(&Digest::of(b"layer keep")));
    assert!(!store.has_blob(&gone) && !store.has_blob(&stray));
    assert!(!store.has_blob(&Digest::of(b"layer gone")));
}

#[test]
fn nothing_is_swept_while_another_process_uses_the_store() {
    let (_folder, store) = store();
    let stray = store.write_blob(b"stray").unwrap();
    let other = Store::open(store.root()).unwrap();
    assert_eq!(store.sweep().unwrap(), None);
    assert!(store.has_blob(&stray));
    drop(other);
    assert!(store.sweep().unwrap().is_some());
    assert!(!store.has_blob(&stray));
}

#[test]
fn a_cache_record_whose_snapshot_is_gone_is_a_miss() {
    let (_folder, store) = store();
    let (id, key) = (snapshot(&store, "one"), Digest::of(b"key"));
    assert_eq!(store.cached(&key).unwrap(), None);
    store.remember(&[&key], &id).unwrap();
    assert_eq!(store.cached(&key).unwrap().unwrap().snapshot, id);
    fs::remove_dir(store.snapshot_path(&id)).unwrap();
    assert_eq!(store.cached(&key).unwrap(), None);
    let lost = store.eviction(&key).unwrap();
    assert_eq!(lost, Some((Eviction::Lost, None)));
}

#[test]
fn what_was_evicted_is_known_until_it_is_there_again() {
    let (_folder, store) = store();
    let (id, key) = (snapshot(&store, "one"), Digest::of(b"key"));
    store.remember_upon(&[(&key, Some("base"))], &id).unwrap();
    let record = store.cached(&key).unwrap().unwrap();
    assert_eq!(record.upon.as_deref(), Some("base"));
    assert_eq!(store.eviction(&key).unwrap(), None);
    store.forget_snapshot(&id, Eviction::Damaged).unwrap();
    let (why, at) = store.eviction(&key).unwrap().unwrap();
    assert_eq!(why, Eviction::Damaged);
    assert!(at.is_some());
    let again = snapshot(&store, "again");
    store.remember(&[&key], &again).unwrap();
    assert_eq!(store.eviction(&key).unwrap(), None);
}

#[test]
fn what_files_look_like_is_known_as_long_as_there_is_a_layer_of_them() {
    let (_folder, store) = store();
    let (shape, other) = (Digest::of(b"shape"), Digest::of(b"other"));
    let (one, two) = (snapshot(&store, "one"), snapshot(&store, "two"));
    assert!(!store.has_shape([&shape, &other]).unwrap());
    for layer in [&one, &two, &one] {
        store.remember_shape(&shape, layer).unwrap();
    }
    for layer in [&one, &two] {
        assert!(store.has_shape([&other, &shape]).unwrap());
        assert!(!store.has_shape([&other, &other]).unwrap());
        store.forget_snapshot(layer, Eviction::Damaged).unwrap();
    }
    assert!(!store.has_shape([&shape, &other]).unwrap());
}

#[test]
fn snapshots_of_an_earlier_boot_are_not_trusted_blindly() {
    let (_folder, store) = store();
    let (sealed, open) = (snapshot(&store, "sealed"), snapshot(&store, "open"));
    store
        .seal_snapshot(&sealed, DiffId(Digest::of(b"tar")), 3)
        .unwrap();
    store.remember(&[&Digest::of(b"key")], &open).unwrap();
    store
        .query(|db| db.execute("UPDATE snapshots SET boot = 'another'", []))
        .unwrap();
    let root = store.root().to_owned();
    drop(store);

    let store = Store::open(&root).unwrap();
    assert!(
        !store.snapshot(&sealed).unwrap().settled,
        "its digest has to be compared first"
    );
    assert!(matches!(
        store.snapshot(&open),
        Err(StoreError::Missing { .. })
    ));
    assert!(!store.snapshot_path(&open).exists());
    assert_eq!(store.cached(&Digest::of(b"key")).unwrap(), None);
    let evicted = store.eviction(&Digest::of(b"key")).unwrap();
    assert_eq!(evicted.map(|(why, _)| why), Some(Eviction::Unsafe));
    store.settle_snapshot(&sealed).unwrap();
    assert!(store.snapshot(&sealed).unwrap().settled);
}

#[test]
fn a_step_is_locked_for_one_at_a_time() {
    let (_folder, store) = store();
    let store = Arc::new(store);
    let key = Digest::of(b"step");
    let counter = Arc::new(std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (store, counter) = (Arc::clone(&store), Arc::clone(&counter));
            scope.spawn(move || {
                for _ in 0..50 {
                    let lock = store.lock_step(&key).unwrap();
                    let before = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    assert_eq!(before, 0, "two hold the lock");
                    counter.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
    assert_eq!(
        fs::read_dir(store.root().join("locks")).unwrap().count(),
        1,
        "only `content` is left"
    );
}

#[test]
fn many_open_a_new_store_at_once() {
    // Opening and closing over and over: the first to open and the last to close a database are
    // those that get in each other's way.
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let start = std::sync::Barrier::new(16);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..4 {
                        image(&Store::open(folder.path()).unwrap(), "same");
                    }
                });
            }
        });
    }
}
