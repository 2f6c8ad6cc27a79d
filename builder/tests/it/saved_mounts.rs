//! Contents of cache mounts that outlive a machine (`--cache-mounts`).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use kiln_registry::digest::Digest;
use serde_json::Value;

use crate::env::{Output, Run, TestEnv, busybox, test_env};

/// A build of a step that uses a mount, on the machine whose store has this name.
fn run(env: &TestEnv, machine: &str, place: &str, command: &str) -> Run {
    if !env.path(machine).exists() {
        env.kiln_in(machine, ["load"]).stdin(busybox()).success();
    }
    env.dockerfile(&format!(
        "FROM busybox\nRUN --mount=type=cache,id=go-mod,target=/c {command}\n"
    ));
    let run = env.kiln_in(machine, ["build", "--no-cache", "--cache-mounts", place]);
    run.arg(env.context())
}

/// What the build says of the mount.
fn told(output: &Output) -> &str {
    let mut lines = output.stderr.lines();
    lines
        .find_map(|line| line.strip_prefix("mount go-mod: "))
        .unwrap()
}

/// The folder of the mount in a machine's store.
fn mount(env: &TestEnv, machine: &str) -> PathBuf {
    let folder = env.path(machine).join("mounts");
    let mut mounts = fs::read_dir(folder).unwrap();
    mounts.next().unwrap().unwrap().path().join("0/fs")
}

/// All that is in a folder: path, mode, owner, time, size, and where links lead.
fn listing(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let link = fs::read_link(&path).unwrap_or_default();
        let size = if stat.is_file() { stat.len() } else { 0 };
        lines.push(format!(
            "{:?} {:o} {}:{} {}.{} {size} {:?} {}",
            path.strip_prefix(folder).unwrap(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            link,
            if stat.is_dir() { 0 } else { stat.nlink() },
        ));
    }
    lines.sort();
    lines
}

const FILL: &str = "cd /c && mkdir -p d/e && echo one >d/a && chmod 640 d/a && chown 7:8 d/a && \
     ln -s /etc/passwd link && ln d/a d/e/same && mkfifo pipe && echo x >\"$(printf 'odd\\377%%')\" && \
     head -c 300000 /dev/urandom >big && echo gone >gone && chmod 700 d/e && touch -d @1000000000 d/e";

fn bytes_in(folder: &Path) -> u64 {
    let blobs = fs::read_dir(folder.join("blobs/sha256")).unwrap();
    blobs
        .map(|blob| blob.unwrap().metadata().unwrap().len())
        .sum()
}

#[test]
fn a_mount_is_restored_as_it_was_and_only_changes_are_saved() {
    let env = test_env!();
    let place = "dir:saved";
    let first = run(&env, "one", place, FILL).success();
    assert!(told(&first).starts_with("saved +3"), "{first}");
    let first = listing(&mount(&env, "one"));

    let second = run(&env, "two", place, "test -p /c/pipe && cat /c/d/a").success();
    assert!(told(&second).starts_with("restored 300 kB in "), "{second}");
    assert!(told(&second).ends_with(" s, saved +0 B"), "{second}");
    assert_eq!(listing(&mount(&env, "two")), first);

    // a small change, also one that leaves size and time as they were
    let before = bytes_in(&env.path("saved"));
    let change = "cd /c && rm gone && mkdir new && echo new >new/file && \
                  touch -r d/a /tmp/r && echo two >d/a && touch -r /tmp/r d/a";
    let changed = run(&env, "two", place, change).success();
    assert!(told(&changed).starts_with("saved +"), "{changed}");
    let grown = bytes_in(&env.path("saved")) - before;
    assert!(grown < 5_000, "{grown} bytes more");
    let third = run(
        &env,
        "three",
        place,
        "test ! -e /c/gone && cat /c/d/a /c/d/e/same /c/new/file",
    )
    .success();
    assert!(
        third.stderr.contains(" two") && third.stderr.contains(" new"),
        "{third}"
    );
    assert_eq!(listing(&mount(&env, "three")), listing(&mount(&env, "two")));

    // much of what is in the packs is not wanted any more: all is written anew
    let much = run(&env, "three", place, "head -c 2000000 /dev/urandom >/c/big").success();
    assert!(told(&much).starts_with("saved +2"), "{much}");
    run(&env, "three", place, "rm /c/big").success();
    run(&env, "three", place, "echo more >/c/more").success();
    assert!(bytes_in(&env.path("saved")) < 10_000);
    let last = run(&env, "four", place, "cat /c/more /c/d/a").success();
    assert!(last.stderr.contains(" two"), "{last}");
    assert_eq!(
        listing(&mount(&env, "four")),
        listing(&mount(&env, "three"))
    );
}

#[test]
fn a_mount_that_was_used_here_later_stays_and_an_older_one_does_not() {
    let env = test_env!();
    let place = "dir:saved";
    run(&env, "one", place, "echo one >/c/one").success();
    sleep(Duration::from_millis(1100));
    let second = run(&env, "two", place, "echo two >/c/two").success();
    assert!(told(&second).starts_with("restored 4 B in "), "{second}");
    // used here before it was saved there
    let again = run(&env, "one", place, "cat /c/one /c/two").success();
    assert!(told(&again).starts_with("restored 8 B in "), "{again}");
    // and now after that: nothing is lost, and all is saved
    env.kiln_in("one", ["build", "--no-cache"])
        .arg(env.context())
        .success();
    fs::write(mount(&env, "one").join("mine"), "mine\n").unwrap();
    let own = run(&env, "one", place, "cat /c/mine /c/two").success();
    assert!(told(&own).starts_with("saved +"), "{own}");
    run(&env, "three", place, "cat /c/mine /c/one /c/two").success();
}

#[test]
fn a_registry_keeps_mounts_beside_a_cache() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let place = format!(
        "type=registry,ref={},max=100MB",
        registry.name("app:mounts")
    );
    run(&env, "one", &place, FILL).success();
    let second = run(&env, "two", &place, "cat /c/d/a").success();
    assert!(told(&second).starts_with("restored 300 kB in "), "{second}");
    // another name is that of a cache
    let cache = registry.name("app:cache");
    env.kiln_in("one", ["build", "--cache-to", &cache])
        .arg(env.context())
        .success();
    let foreign = run(&env, "one", &format!("type=registry,ref={cache}"), "true").success();
    let message = "not saved: it holds something else than cache mounts";
    assert!(told(&foreign).ends_with(message), "{foreign}");
    let small = run(&env, "one", "dir:small,max=100kB", "true").success();
    assert_eq!(
        told(&small),
        "not saved: with it there would be more than 100 kB",
        "{small}"
    );
    let usage = run(&env, "one", "dir:x,mx=1", "true").failure(125);
    assert!(usage.stderr.contains("unknown option `mx`"), "{usage}");
}

fn parse(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(folder: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap();
    folder.join("blobs/sha256").join(&digest["sha256:".len()..])
}

/// Puts other bytes in the place of a layer of the saved mounts.
fn replace(folder: &Path, layer: usize, bytes: &[u8]) {
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(folder.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let mut index = parse(&folder.join("index.json"));
    let mut manifest = parse(&blob(folder, &index["manifests"][0]));
    let (digest, size) = put(bytes);
    manifest["layers"][layer]["digest"] = digest.into();
    manifest["layers"][layer]["size"] = size.into();
    let (digest, size) = put(&serde_json::to_vec(&manifest).unwrap());
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = size.into();
    fs::write(
        folder.join("index.json"),
        serde_json::to_vec(&index).unwrap(),
    )
    .unwrap();
}

/// A tar with one file of a name that no tool would write.
fn evil(name: &str, link: Option<&str>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |name: &str, kind: tar::EntryType, link: Option<&str>, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        if let Some(link) = link {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    };
    if let Some(link) = link {
        put("way", tar::EntryType::Symlink, Some(link), b"");
    }
    put(name, tar::EntryType::Regular, None, b"evil");
    let bytes = tar.into_inner().unwrap();
    zstd::encode_all(&bytes[..], 3).unwrap()
}

#[test]
fn what_is_damaged_or_malicious_is_not_restored_and_leads_nowhere() {
    let env = test_env!();
    let saved = env.path("saved");
    let outside = env.path("outside");
    fs::create_dir(&outside).unwrap();
    run(&env, "one", "dir:saved", "echo one >/c/one").success();
    let manifest = parse(&blob(
        &saved,
        &parse(&saved.join("index.json"))["manifests"][0],
    ));
    let whole: Vec<(PathBuf, Vec<u8>)> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| (blob(&saved, layer), fs::read(blob(&saved, layer)).unwrap()))
        .collect();
    assert_eq!(whole.len(), 2, "an index and a pack");

    let refused = |machine: &str| {
        // a copy of the place, as the build saves again
        env.program("cp", ["-a", "saved", machine]).success();
        let place = format!("dir:{machine}");
        let store = format!("{machine}-store");
        let output = run(
            &env,
            &store,
            &place,
            "test -z \"$(ls -A /c)\" && echo two >/c/two",
        )
        .success();
        let note = "note: mount go-mod: not restored: ";
        assert!(output.stderr.contains(note), "{machine}: {output}");
        assert!(told(&output).starts_with("saved +"), "{output}");
        // what was new is saved all the same, and the next machine has it
        let next = run(&env, &format!("{machine}-next"), &place, "cat /c/two").success();
        assert!(next.stderr.contains(" two"), "{machine}: {next}");
    };
    for (layer, kind) in [(0, "index"), (1, "pack")] {
        let (path, bytes) = &whole[layer];
        let mut flipped = bytes.clone();
        let middle = bytes.len() / 2;
        flipped[middle] ^= 1;
        fs::write(path, &flipped).unwrap();
        refused(&format!("{kind}-flipped"));
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        refused(&format!("{kind}-cut"));
        fs::remove_file(path).unwrap();
        refused(&format!("{kind}-gone"));
        fs::write(path, bytes).unwrap();
    }
    let target = outside.display().to_string();
    for (name, pack) in [
        ("dots", evil("../../../../evil", None)),
        ("absolute", evil(&format!("{target}/evil"), None)),
        ("link", evil("way/evil", Some(&target))),
        ("bomb", zstd::encode_all(&vec![0; 50 << 20][..], 3).unwrap()),
    ] {
        replace(&saved, 1, &pack);
        refused(name);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}");
        assert!(!env.path("evil").exists() && !env.path(name).join("evil").exists());
    }
    let deep = format!("[{}", "[".repeat(100_000));
    for (name, index) in [
        ("none", b"[]".to_vec()),
        ("deep", deep.into_bytes()),
        (
            "absent",
            br#"[{"p":"../x","k":"file","m":420,"o":[0,0],"t":[0,0],"s":4,"n":0}]"#.to_vec(),
        ),
    ] {
        replace(&saved, 1, &whole[1].1);
        replace(&saved, 0, &zstd::encode_all(&index[..], 3).unwrap());
        if name == "none" {
            // an index that says nothing of a file takes it away
            let output = run(&env, "none", "dir:saved", "test -z \"$(ls -A /c)\"").success();
            assert!(told(&output).starts_with("restored "), "{output}");
        } else {
            refused(name);
        }
    }
}

#[test]
fn what_was_fetched_for_a_mount_that_is_not_restored_does_not_stay() {
    let env = test_env!();
    let saved = env.path("saved");
    run(
        &env,
        "one",
        "dir:saved",
        "head -c 20000000 /dev/urandom >/c/one",
    )
    .success();
    let manifest = parse(&blob(
        &saved,
        &parse(&saved.join("index.json"))["manifests"][0],
    ));
    let (index, pack) = (&manifest["layers"][0], &manifest["layers"][1]);
    // That is found out only when all of it was read: the index is here by then.
    let mut bytes = fs::read(blob(&saved, pack)).unwrap();
    bytes[10_000_000] ^= 1;
    fs::write(blob(&saved, pack), bytes).unwrap();
    let output = run(&env, "two", "dir:saved", "true").success();
    let note = "note: mount go-mod: not restored: ";
    assert!(output.stderr.contains(note), "{output}");
    assert!(!blob(&env.path("two"), index).exists(), "it stays");
}

/// A document may name any blob: those that the store has for something else neither go from it nor
/// leave it.
#[test]
fn what_a_document_names_is_not_taken_for_what_it_says() {
    let env = test_env!();
    let saved = env.path("saved");
    run(&env, "one", "dir:saved", "echo one >/c/one").success();
    run(&env, "two", "dir:empty", "true").success();
    let inspected = env.kiln_in("two", ["inspect", "busybox"]).success().stdout;
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let id = inspected[0]["Id"].as_str().unwrap();
    let name = Path::new("blobs/sha256").join(&id["sha256:".len()..]);
    let config = fs::read(env.path("two").join(&name)).unwrap();
    replace(&saved, 1, &config);
    fs::remove_file(saved.join(&name)).unwrap();

    env.dockerfile("FROM busybox\nRUN --mount=type=cache,id=other,target=/c echo two >/c/two\n");
    let other = env.kiln_in("two", ["build", "--cache-mounts", "dir:saved"]);
    let other = other.arg(env.context()).success();
    assert!(other.stderr.contains("mount other: saved +"), "{other}");
    assert!(!saved.join(&name).exists(), "it has left the store");

    let output = run(&env, "two", "dir:saved", "true").success();
    assert!(
        output.stderr.contains("mount go-mod: not restored: "),
        "{output}"
    );
    env.kiln_in("two", ["run", "--rm", "busybox", "true"])
        .success();
}
