//! Build contexts and stores that are not as people mean them to be: files that change meanwhile, that
//! cannot be read, that are no files, and file systems that cannot keep what a layer holds.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::env::{Output, TestEnv, test_env};
use crate::people::{Ids, Person};

/// Bytes of a file that takes a while to be read.
const LARGE: u64 = 24 << 20;

/// A file system in a file, mounted as long as this value lives.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts what these arguments of mount(8) name.
    fn new(env: &TestEnv, at: &Path, args: &[&str]) -> Self {
        fs::create_dir_all(at).unwrap();
        let mount = env.program("mount", args.iter().copied()).arg(at);
        mount.success();
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmount = std::process::Command::new("umount").arg(&self.0).status();
        assert!(
            unmount.is_ok_and(|status| status.success()),
            "it is still in use"
        );
    }
}

/// Builds while a thread does something to the context again and again.
fn build_meanwhile(env: &TestEnv, tag: &str, mut act: impl FnMut() + Send) -> Output {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                act();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let output = env.build(tag).run();
        done.store(true, Ordering::Relaxed);
        output
    })
}

/// Whatever a build takes for a file that changes meanwhile, the next one sees what is there then.
#[test]
fn a_file_that_changes_while_it_is_copied_is_named_and_never_cached_wrong() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nCOPY dir /dir\n");
    let path = env.context().join("dir/changing");
    let new = vec![b'n'; 8 << 20];
    type Act<'a> = (&'a str, Box<dyn FnMut() + Send + 'a>);
    let acts: [Act<'_>; 3] = [
        (
            "grows",
            Box::new(|| {
                let mut file = fs::File::options().append(true).open(&path).unwrap();
                file.write_all(b"more").unwrap();
            }),
        ),
        (
            "shrinks",
            Box::new(|| {
                let file = fs::File::options().write(true).open(&path).unwrap();
                // So large that reading it takes longer than the time between two of these.
                let length = file.metadata().unwrap().len();
                file.set_len(if length > LARGE / 2 {
                    length - 4096
                } else {
                    LARGE
                })
                .unwrap();
            }),
        ),
        (
            "vanishes",
            Box::new(|| {
                drop(fs::remove_file(&path));
                fs::write(&path, &new).unwrap();
            }),
        ),
    ];
    for (what, mut act) in acts {
        let mut build = || {
            env.file("dir/changing", vec![b'x'; usize::try_from(LARGE).unwrap()]);
            build_meanwhile(&env, "one", &mut act)
        };
        let mut output = build();
        // A build may look in a moment without the file, and has it not then.
        for _ in 0..20 {
            if what != "vanishes" || output.code != Some(0) {
                break;
            }
            let paths = env.saved("one");
            assert!(!paths.top_paths().contains(&"dir/changing"), "{output}");
            output = build();
        }
        assert_eq!(output.code, Some(1), "{what}: {output}");
        let named = output
            .stderr
            .contains("`dir/changing` of the build context")
            || output.stderr.contains("changing");
        assert!(named, "{what}: {output}");
        env.build("one").success();
        let built = env.saved("one").text("dir/changing");
        let there = fs::read_to_string(&path).unwrap();
        assert!(built == there, "{what}: another content");
    }
}

#[test]
fn what_an_ordinary_user_cannot_read_is_named() {
    let env = test_env!("newuidmap", "setpriv");
    let env = env.with_person(Person::new(Ids::Many)).with_busybox();
    env.file("dir/open", "1")
        .file("dir/closed", "2")
        .file("shut/file", "3");
    env.dockerfile("FROM busybox\nCOPY dir /dir\n")
        .give_context();
    let closed = env.context().join("dir/closed");
    std::os::unix::fs::chown(&closed, Some(0), Some(0)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    let output = env.kiln(["build", "context"]).failure(1);
    let text = "cannot read `dir/closed` of the build context: permission denied";
    assert!(output.stderr.contains(text), "{output}");
    let shut = env.context().join("shut");
    std::os::unix::fs::chown(&shut, Some(0), Some(0)).unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o700)).unwrap();
    env.dockerfile("FROM busybox\nCOPY shut /shut\n");
    let output = env.kiln(["build", "context"]).failure(1);
    let text = "cannot list directory `shut` of the build context: permission denied";
    assert!(output.stderr.contains(text), "{output}");
    // what is not copied need not be readable
    env.dockerfile("FROM busybox\nCOPY dir/open /\n");
    env.kiln(["build", "context"]).success();
    env.file(".dockerignore", "dir/closed\n")
        .dockerfile("FROM busybox\nCOPY dir /dir\n");
    env.kiln(["build", "context"]).success();
}

#[test]
fn sockets_are_left_out_with_a_word_and_pipes_are_kept() {
    let env = test_env!("mkfifo").with_busybox();
    env.file("dir/file", "1")
        .dockerfile("FROM busybox\nCOPY dir /dir\n");
    let dir = env.context().join("dir");
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    env.program("mkfifo", ["context/dir/pipe"]).success();
    let output = env.build("one").success();
    assert!(
        output.stderr.contains("skipped socket `dir/socket`"),
        "{output}"
    );
    env.dockerfile("FROM busybox\nCOPY dir /dir\nRUN test -p /dir/pipe && test ! -e /dir/socket\n");
    env.build("one").success();
    env.dockerfile("FROM busybox\nCOPY dir/pipe /\nRUN test -p /pipe\n");
    env.build("one").success();
}

#[test]
fn links_in_a_circle_are_copied_as_links_and_named_where_they_are_followed() {
    let env = test_env!().with_busybox();
    env.file("dir/file", "1")
        .dockerfile("FROM busybox\nCOPY dir /dir\nRUN readlink /dir/one >/seen\n");
    let dir = env.context().join("dir");
    symlink("two", dir.join("one")).unwrap();
    symlink("one", dir.join("two")).unwrap();
    symlink(".", dir.join("itself")).unwrap();
    env.build("one").success();
    assert_eq!(env.saved("one").text("seen"), "two\n");
    for source in ["dir/one", "dir/one/file"] {
        env.dockerfile(&format!("FROM busybox\nCOPY {source} /\n"));
        let output = env.build("one").failure(1);
        assert!(output.stderr.contains(&format!("`{source}`")), "{output}");
    }
}

#[test]
fn names_need_not_be_utf_8() {
    let env = test_env!().with_busybox();
    let name = OsStr::from_bytes(b"caf\xe9 \n");
    fs::create_dir(env.context().join("dir")).unwrap();
    let path = env.context().join("dir").join(name);
    fs::write(&path, "1").unwrap();
    env.dockerfile("FROM busybox\nCOPY dir /dir\nRUN cat /dir/* >/seen; ls /dir >/name\n");
    let seen = |file: &str| {
        let run = env.kiln(["run", "--rm", "one", "cat", file]);
        run.success().bytes
    };
    env.build("one").success();
    assert_eq!(seen("/seen"), b"1");
    assert!(!seen("/name").is_empty());
    fs::write(&path, "2").unwrap();
    let output = env.build("one").success();
    let text = "miss: dir/caf\u{fffd} \u{fffd} content changed (1 of 1 file)";
    assert!(output.stderr.contains(text), "{output}");
    assert_eq!(seen("/seen"), b"2");
}

/// A file that is mostly a hole is not read through, and takes no more room in the store.
#[test]
fn a_file_of_8_gib_that_holds_little_is_copied_as_such() {
    let env = test_env!().with_busybox();
    env.file("small", "1")
        .dockerfile("FROM busybox AS make\nCOPY big /big\nFROM busybox\nCOPY small /\n");
    let path = env.context().join("big");
    let file = fs::File::create(&path).unwrap();
    file.set_len(8 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 5 << 30).unwrap();
    drop(file);
    let start = Instant::now();
    let output = env
        .build("one")
        .args(["--target", "make", "--output", "type=cacheonly"])
        .run();
    let output = match output.code {
        Some(0) => output,
        // without outputs that make no image, the image's layer is read, too
        _ => env.build("one").args(["--target", "make"]).success(),
    };
    let took = start.elapsed();
    assert!(
        output.stderr.contains("is sparse: 8589934592 bytes long"),
        "{output}"
    );
    let used: u64 = walkdir::WalkDir::new(env.store())
        .into_iter()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    assert!(used < 64 << 20, "{used} bytes in the store");
    assert!(took < Duration::from_secs(240), "{took:?}");
    let start = Instant::now();
    env.build("one").args(["--target", "make"]).success();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?} with the cache");
}

/// In memory, where making so many files takes no time.
#[test]
fn a_directory_of_200_000_files_is_no_trouble() {
    let env = test_env!("mount").with_busybox();
    let memory = env.path("memory");
    let _mounted = Mounted::new(&env, &memory, &["-t", "tmpfs", "none"]);
    let dir = memory.join("context/dir");
    fs::create_dir_all(&dir).unwrap();
    fs::write(
        memory.join("context/Dockerfile"),
        "FROM scratch\nCOPY dir /dir\n",
    )
    .unwrap();
    for number in 0..200_000 {
        fs::write(dir.join(format!("{number}")), "").unwrap();
    }
    let build = || {
        let start = Instant::now();
        let args = ["build", "-t", "one", "memory/context"];
        (env.kiln_in("memory/store", args).success(), start.elapsed())
    };
    let (_, cold) = build();
    fs::write(dir.join("777"), "changed").unwrap();
    let (output, _) = build();
    let text = "miss: dir/777 content changed (1 of 200000 files)";
    assert!(output.stderr.contains(text), "{output}");
    let (_, cached) = build();
    assert!(cached < cold, "{cached:?} against {cold:?}");
    assert!(cold < Duration::from_secs(120), "{cold:?}");
}

/// Where times have no fractions, nothing is believed of files that changed in one second (killer 1).
#[test]
fn killer_1_changes_within_one_second_count_on_a_file_system_with_coarse_times() {
    let env = test_env!("mkfs.ext4", "mount", "losetup").with_busybox();
    let image = env.path("coarse.img");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    // inodes of 128 bytes have no room for fractions of seconds
    let make = env.program("mkfs.ext4", ["-q", "-I", "128", "-F", "coarse.img"]);
    make.success();
    let folder = env.path("coarse");
    let _mounted = Mounted::new(&env, &folder, &["-o", "loop", "coarse.img"]);
    let build = || {
        env.kiln(["build", "-t", "one", "coarse"]).success();
        env.saved("one").text("file")
    };
    fs::write(folder.join("Dockerfile"), "FROM busybox\nCOPY file /file\n").unwrap();
    fs::write(folder.join("file"), "0").unwrap();
    std::thread::sleep(Duration::from_millis(2_500));
    build();
    for round in ["1", "2", "3"] {
        let times = fs::metadata(folder.join("file")).unwrap();
        assert_eq!(times.mtime_nsec(), 0, "the file system has fine times");
        fs::write(folder.join("file"), round).unwrap();
        assert_eq!(build(), round);
    }
}

#[test]
fn a_store_without_extended_attributes_is_refused_clearly() {
    let env = test_env!("mount").with_busybox();
    let folder = env.path("ram");
    let _mounted = Mounted::new(&env, &folder, &["-t", "ramfs", "none"]);
    env.file("a", "1").dockerfile("FROM scratch\nCOPY a /\n");
    let output = env.kiln_in("ram/store", ["build", "context"]).failure(3);
    assert!(
        output
            .stderr
            .contains("has no extended attributes of users (`user.*`)"),
        "{output}"
    );
    assert!(
        output
            .stderr
            .contains("hint: choose a place on another file system with --root"),
        "{output}"
    );
}

#[test]
fn a_store_in_memory_is_a_store() {
    let env = test_env!("mount").with_busybox();
    let folder = env.path("memory");
    let _mounted = Mounted::new(&env, &folder, &["-t", "tmpfs", "none"]);
    let archive = env.path("base.tar");
    env.kiln(["save", "busybox", "-o"]).arg(&archive).success();
    env.kiln_in("memory/store", ["load", "-q", "-i", "base.tar"])
        .success();
    env.file("a", "1")
        .dockerfile("FROM busybox\nCOPY a /\nRUN cat /a >/b; rm /a\n");
    for _ in 0..2 {
        env.kiln_in("memory/store", ["build", "-t", "one", "context"])
            .success();
    }
    let shown = env.kiln_in(
        "memory/store",
        ["run", "--rm", "one", "sh", "-c", "cat /b; test ! -e /a"],
    );
    assert_eq!(shown.success().stdout, "1");
}

#[test]
fn a_clock_that_went_back_makes_no_difference() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1")
        .dockerfile("FROM busybox\nCOPY dir /dir\n");
    // a file from the future: what is remembered of it is not believed until then
    let path = env.context().join("dir/a");
    let future = std::time::SystemTime::now() + Duration::from_secs(3_600);
    let set = |path: &Path| fs::File::open(path).unwrap().set_modified(future).unwrap();
    set(&path);
    env.build("one").success();
    fs::write(&path, "2").unwrap();
    set(&path);
    env.build("one").success();
    assert_eq!(env.saved("one").text("dir/a"), "2");
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_file());
    assert!(!fs::symlink_metadata(&path).unwrap().file_type().is_socket());
}
