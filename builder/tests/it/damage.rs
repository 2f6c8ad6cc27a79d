//! Archives and stores that are damaged, and disks that are full.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::env::{Run, TestEnv, test_env};
use crate::liar::{Fault, Liar};
use crate::traces::files;

/// A tar with these members: name, type, link target or content.
fn tar(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, kind, text) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        // the library itself refuses such names
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let content = if kind.is_file() { *text } else { "" };
        if !kind.is_file() {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn what_is_no_archive_of_images_is_refused_by_name() {
    let env = test_env!().with_busybox();
    let whole = env.kiln(["save", "busybox"]).success().bytes;
    let file = tar::EntryType::Regular;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "the archive is empty"),
        ("text", b"FROM busybox\n".repeat(99), "not a tar archive"),
        (
            "short",
            whole[..whole.len() / 2].to_vec(),
            "invalid archive: it ends inside `",
        ),
        (
            "other",
            tar(&[("a", file, "b")]),
            "invalid archive: does not contain a manifest.json or an index.json",
        ),
        (
            "above",
            tar(&[("../a", file, "b")]),
            "invalid archive: member `../a` leads out of the archive",
        ),
        (
            "absolute",
            tar(&[("/a", file, "b")]),
            "invalid archive: member `/a` leads out of the archive",
        ),
        (
            "link",
            tar(&[("manifest.json", tar::EntryType::Symlink, "../../etc/passwd")]),
            "leads out of the archive",
        ),
        (
            "gzip",
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03nonsense".to_vec(),
            "cannot decompress the archive as gzip",
        ),
    ];
    let before = env.content();
    for (name, bytes, message) in &cases {
        fs::write(env.path(name), bytes).unwrap();
        let named = env.kiln(["load", "-i", name]).failure(1);
        let start = format!("error: cannot load `{name}`: ");
        assert!(named.stderr.starts_with(&start), "{named}");
        assert!(named.stderr.contains(message), "{named}");
        let piped = env.kiln(["load"]).stdin(bytes.clone()).failure(1);
        assert!(piped.stderr.contains(message), "{piped}");
        assert_eq!(piped.stdout, "");
        env.no_traces();
    }
    env.same_content(&before);
    let missing = env.kiln(["load", "-i", "nowhere"]).failure(1);
    assert_eq!(
        missing.stderr,
        "error: open nowhere: no such file or directory\n"
    );
    env.kiln(["load"]).stdin(whole).success();
}

#[test]
fn a_layer_that_is_not_the_config_s_is_refused() {
    let env = test_env!().with_busybox();
    let mut archive = env.kiln(["save", "busybox"]).success().bytes;
    // A byte of busybox itself, deep in the largest layer.
    let middle = archive.len() / 2;
    archive[middle] ^= 1;
    let other = TestEnv::new();
    let output = other.kiln(["load"]).stdin(archive).failure(1);
    assert!(
        output.stderr.contains("digest mismatch") || output.stderr.contains("invalid diffID"),
        "{output}"
    );
    assert_eq!(other.kiln(["images", "-q"]).success().stdout, "");
    other.no_traces();
}

/// A small disk of its own, seen by the programs that are started on it alone; gone with this value.
struct Disk {
    holder: Child,
}

/// Its folder in the environment.
const DISK: &str = "disk";

impl Disk {
    fn new(env: &TestEnv, size: &str) -> Self {
        fs::create_dir(env.path(DISK)).unwrap();
        let script = "mount -t tmpfs -o size=$1 none \"$2\" && echo ready && cat";
        // ends, and with it its mounts, when its standard input does
        let mut holder = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
                size,
            ])
            .arg(env.path(DISK))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self { holder }
    }

    fn program(&self, env: &TestEnv, program: &str) -> Run {
        let id = self.holder.id().to_string();
        env.program(
            "nsenter",
            ["--mount", "--target", &id, "--wd=.", "--", program],
        )
    }

    /// kiln, with its store on the disk.
    fn kiln(&self, env: &TestEnv) -> Run {
        self.program(env, env!("CARGO_BIN_EXE_kiln"))
            .env("KILN_ROOT", env.path(DISK).join("store"))
    }

    /// A folder of the disk.
    fn files(&self, path: &Path) -> Vec<String> {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        files(&root.join(path.strip_prefix("/").unwrap()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}

/// Each command that writes to a full disk says so, says where, and leaves nothing of it.
#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let env = test_env!("unshare", "nsenter").with_busybox();
    let archive = env.path("busybox.tar");
    env.kiln(["save", "busybox", "-o"]).arg(&archive).success();
    // Room for busybox, packed and unpacked, but not for what comes then.
    let disk = Disk::new(&env, "12m");
    disk.kiln(&env).args(["load", "-i"]).arg(&archive).success();
    let context = env.context();
    let build = |dockerfile: &str| {
        env.dockerfile(dockerfile);
        disk.kiln(&env)
            .args(["build", "-q", "-t", "x"])
            .arg(&context)
    };
    build("FROM busybox\nRUN true\n").success();
    let store = env.path(DISK).join("store");
    let hint = format!(
        "hint: the disk that holds the store `{}` is full: free some space there, or choose another place with --root\n",
        store.display()
    );
    env.file("big", vec![b'x'; 16 << 20]);
    let copied = build("FROM busybox\nCOPY big /big\n").failure(3);
    assert!(
        copied.stderr.contains(
            "error: failed to solve: cannot copy to `/big` in the layer: no space left on device\n"
        ),
        "{copied}"
    );
    let ran = build("FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=16\n").failure(1);
    assert!(
        ran.stderr
            .contains("dd: error writing '/big': No space left on device\n"),
        "{ran}"
    );
    let liar = Liar::with_layer(Fault::CutOnce, &vec![b'y'; 16 << 20]);
    let pulled = disk.kiln(&env).args(["pull", &liar.name()]).failure(3);
    assert!(
        pulled
            .stderr
            .contains(&format!("writing `{}/partial/", store.display())),
        "{pulled}"
    );
    let big = TestEnv::new();
    big.file("big", vec![b'z'; 16 << 20])
        .built("big", "FROM scratch\nCOPY big /big\n");
    let large = big.path("big.tar");
    big.kiln(["save", "big", "-o"]).arg(&large).success();
    let loaded = disk.kiln(&env).args(["load", "-i"]).arg(&large).failure(3);
    for output in [copied, ran, pulled, loaded] {
        // `dd` writes it with a capital
        let said = output.stderr.to_lowercase();
        assert!(said.contains("no space left on device\n"), "{output}");
        assert!(output.stderr.ends_with(&hint), "{output}");
        assert_eq!(
            said.matches("no space left").count(),
            said.matches("no space left on device\n").count()
        );
    }
    for folder in ["tmp", "partial"] {
        assert_eq!(disk.files(&store.join(folder)), Vec::<String>::new());
    }
    build("FROM busybox\nRUN echo fine\n").success();
    env.no_mounts();
}

#[test]
fn an_archive_that_does_not_fit_leaves_no_file() {
    let env = test_env!("unshare", "nsenter").with_busybox();
    let disk = Disk::new(&env, "1m");
    let target = env.path(DISK).join("out.tar");
    let output = disk
        .program(&env, env!("CARGO_BIN_EXE_kiln"))
        .env("KILN_ROOT", env.store())
        .args(["save", "busybox", "-o"])
        .arg(&target)
        .failure(3);
    let error = format!("error: cannot write `{}`: ", target.display());
    assert!(output.stderr.starts_with(&error), "{output}");
    let end = ": no space left on device\nhint: the disk is full: free some space there\n";
    assert!(output.stderr.ends_with(end), "{output}");
    assert_eq!(disk.files(&env.path(DISK)), Vec::<String>::new());
}

/// DESIGN 4
#[test]
fn a_store_of_another_version_is_refused() {
    let env = test_env!();
    env.kiln(["images"]).success();
    fs::write(env.store().join("version"), "7\n").unwrap();
    let output = env.kiln(["images"]).failure(3);
    let message = format!(
        "error: the store `{}` has format version `7`, this kiln knows version 2\n\
         hint: use the kiln that made it, or choose another place with --root\n",
        env.store().display()
    );
    assert_eq!(output.stderr, message);
    assert_eq!(
        fs::read_to_string(env.store().join("version")).unwrap(),
        "7\n"
    );
}

#[test]
fn a_database_that_is_none_is_named() {
    let env = test_env!();
    env.kiln(["images"]).success();
    let database = env.store().join("kiln.db");
    for rest in ["-wal", "-shm"] {
        drop(fs::remove_file(env.store().join(format!("kiln.db{rest}"))));
    }
    fs::write(&database, "nonsense ".repeat(1000)).unwrap();
    let output = env.kiln(["images"]).failure(3);
    let start = format!(
        "error: the store's database `{}`: file is not a database\n",
        database.display()
    );
    assert!(output.stderr.starts_with(&start), "{output}");
}

/// The largest blob of the store: busybox's layer.
fn largest_blob(env: &TestEnv) -> PathBuf {
    let folder = env.store().join("blobs/sha256");
    let blobs = files(&folder).into_iter().map(|name| folder.join(name));
    blobs
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap()
}

/// DESIGN 4: never a wrong image.
#[test]
fn an_altered_layer_never_becomes_part_of_an_image() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = registry.name("busybox:1");
    env.kiln(["tag", "busybox", &name]).success();
    let blob = largest_blob(&env);
    let whole = fs::read(&blob).unwrap();
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    let hex = blob.file_name().unwrap().to_str().unwrap();
    let message = format!(
        "layer sha256:{hex} in the store `{}` was altered and is removed now\n\
         hint: pull, load or build the image again\n",
        env.store().display()
    );
    let commands = [
        env.dockerfile("FROM busybox\nRUN true\n")
            .build("x")
            .arg("-q"),
        env.kiln(["push", "-q", &name]),
        env.kiln(["save", "busybox", "-o", "out.tar"]),
    ];
    for command in commands {
        fs::write(&blob, &altered).unwrap();
        let output = command.failure(3);
        assert!(output.stderr.ends_with(&message), "{output}");
        assert!(!blob.exists(), "it would be found again");
        env.no_traces();
    }
    fs::write(&blob, &whole).unwrap();
    env.kiln(["push", "-q", &name]).success();
    assert!(!env.path("out.tar").exists());
    env.kiln(["inspect", "x"]).failure(1);
}

#[test]
fn a_layer_that_is_gone_is_named_and_loading_it_again_heals_the_store() {
    let env = test_env!().with_busybox();
    let archive = env.kiln(["save", "busybox"]).success().bytes;
    let blob = largest_blob(&env);
    fs::remove_file(&blob).unwrap();
    let hex = blob.file_name().unwrap().to_str().unwrap();
    let output = env
        .dockerfile("FROM busybox\nRUN true\n")
        .build("x")
        .arg("-q")
        .failure(3);
    let message = format!(
        "error: failed to solve: layer sha256:{hex} is missing in the store `{}`\n",
        env.store().display()
    );
    assert!(output.stderr.contains(&message), "{output}");
    assert!(
        output
            .stderr
            .ends_with("hint: pull, load or build the image again\n"),
        "{output}"
    );
    env.no_traces();
    env.kiln(["load"]).stdin(archive).success();
    env.build("x").success();
}

/// What a step made is found to be another thing when it leaves the store; building again heals.
#[test]
fn an_altered_step_never_leaves_the_store() {
    let env = test_env!().with_busybox();
    let dockerfile = "FROM busybox\nRUN echo one >/one\n";
    env.built("x", dockerfile);
    let folder = env.store().join("snapshots");
    let made = files(&folder)
        .into_iter()
        .map(|name| folder.join(name).join("one"));
    let made = made.filter(|path| path.exists()).collect::<Vec<_>>();
    assert_eq!(made.len(), 1);
    fs::write(&made[0], "two\n").unwrap();
    let output = env.kiln(["save", "x", "-o", "out.tar"]).failure(3);
    assert!(
        output.stderr.contains("was altered and is removed now\n"),
        "{output}"
    );
    env.no_traces();
    env.built("x", dockerfile);
    assert_eq!(env.saved("x").text("one"), "one\n");
}

/// DESIGN 4: a corrupt cache entry is a miss, never a failed build.
#[test]
fn a_removed_snapshot_is_made_anew() {
    let env = test_env!().with_busybox();
    let dockerfile = "FROM busybox\nRUN echo one >/one\nRUN cat /one /one >/two\n";
    env.built("x", dockerfile);
    let folder = env.store().join("snapshots");
    for name in files(&folder) {
        fs::remove_dir_all(folder.join(&name)).unwrap();
        env.built("y", dockerfile);
        let saved = env.saved("y");
        assert_eq!(saved.text("one"), "one\n");
        assert_eq!(saved.text("two"), "one\none\n");
        env.no_traces();
    }
}

#[test]
fn a_file_in_place_of_the_store_is_named() {
    let env = test_env!();
    File::create(env.store()).unwrap();
    let output = env.kiln(["images"]).failure(3);
    let start = format!("error: making the folder `{}", env.store().display());
    assert!(output.stderr.starts_with(&start), "{output}");
}
