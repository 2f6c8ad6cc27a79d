//! How often a build reads the files of its context: never one that it knows, and once one that must
//! be copied anyway (A11.12, A15.1).

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use serde_json::Value;

use crate::env::{TestEnv, test_env};

/// Hears which files of some directories are opened.
struct Watch(OwnedFd);

impl Watch {
    fn new(directories: &[&Path]) -> Self {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for directory in directories {
            inotify::add_watch(&watch, *directory, WatchFlags::OPEN).unwrap();
        }
        Self(watch)
    }

    /// The files that were opened since it was asked last, and how often.
    fn opened(&self) -> BTreeMap<String, usize> {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut opened = BTreeMap::new();
        while let Ok(event) = reader.next() {
            assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW));
            if let Some(name) = event.file_name()
                && !event.events().contains(ReadFlags::ISDIR)
            {
                *opened
                    .entry(name.to_string_lossy().into_owned())
                    .or_default() += 1;
            }
        }
        opened
    }
}

/// What is written just before a build is never believed to stay as it is, so there is time between.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

fn times(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    let named = |(name, count): &(&str, usize)| ((*name).to_owned(), *count);
    expected.iter().map(named).collect()
}

#[test]
fn a11_12_files_that_must_be_copied_are_read_once() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nCOPY dir /dir\nRUN cat /dir/small\n");
    env.file("dir/small", "small");
    env.file("dir/large", vec![b'l'; 300 << 10]);
    let directory = env.context().join("dir");
    let watch = Watch::new(&[&directory]);
    settle();
    assert_eq!(watch.opened(), times(&[]));
    env.build("one").success();
    assert_eq!(watch.opened(), times(&[("large", 1), ("small", 1)]));
    env.build("one").success();
    assert_eq!(watch.opened(), times(&[]), "all is known");

    // A layer may be there for a file that looks as one did before: its digest is needed first.
    env.file("dir/small", "SMALL");
    settle();
    watch.opened();
    env.build("one").success();
    assert_eq!(watch.opened(), times(&[("large", 1), ("small", 2)]));

    // There is none with one file more; a small one is read first all the same, to say so at once.
    env.file("dir/little", "little");
    settle();
    watch.opened();
    env.build("one").success();
    let little = times(&[("large", 1), ("little", 2), ("small", 1)]);
    assert_eq!(watch.opened(), little);
    env.file("dir/more", vec![b'm'; 100 << 10]);
    settle();
    watch.opened();
    env.build("one").success();
    let once = times(&[("large", 1), ("little", 1), ("more", 1), ("small", 1)]);
    assert_eq!(watch.opened(), once);
    assert_eq!(env.saved("one").text("dir/small"), "SMALL");

    env.build("one").args(["--no-cache"]).success();
    assert_eq!(watch.opened(), once);
}

/// A fresh checkout of what was built before is read, and found in the cache.
#[test]
fn a15_1_files_of_another_folder_that_look_the_same_are_read_and_not_copied() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nCOPY dir /dir\nRUN cat /dir/one\n");
    env.file("dir/one", "1");
    env.build("one").success();
    let other = env.path("other");
    fs::create_dir_all(other.join("dir")).unwrap();
    for file in ["Dockerfile", "dir/one"] {
        fs::copy(env.context().join(file), other.join(file)).unwrap();
    }
    let watch = Watch::new(&[&other.join("dir")]);
    let build = env.kiln(["build", "-t", "two"]).arg(&other).success();
    assert_eq!(build.stderr.matches("CACHED").count(), 3, "{build}");
    assert_eq!(watch.opened(), times(&[("one", 1)]));
}

fn explained(env: &TestEnv) -> Value {
    let build = env.build("one").args(["--explain-cache", "json"]);
    serde_json::from_str(&build.success().stdout).unwrap()
}

/// Keys that are made after files were copied are the same as those made before.
#[test]
fn a15_keys_do_not_depend_on_when_files_are_read() {
    const DOCKERFILES: [&str; 5] = [
        "FROM busybox\nCOPY a /a\nRUN cat /a\nCOPY b /b\nWORKDIR /w\nRUN cat /b\n",
        "FROM busybox\nCOPY a /a\nCOPY --link b /b\nRUN cat /a /b\n",
        "FROM busybox AS one\nCOPY a /a\nRUN cp /a /c\n\
         FROM busybox\nCOPY --from=one /c /c\nCOPY --link --from=one /a /d\nRUN cat /c /d\n",
        "FROM busybox\nRUN --mount=type=bind,source=a,target=/m cat /m\nCOPY b /b\n",
        "FROM scratch AS files\nCOPY a b /\n\
         FROM busybox\nRUN --mount=type=bind,from=files,target=/m cat /m/a\n",
    ];
    for (number, dockerfile) in DOCKERFILES.iter().enumerate() {
        let env = test_env!().with_busybox();
        env.dockerfile(dockerfile);
        env.file("a", format!("a of {number}"));
        env.file("b", format!("b of {number}"));
        let (first, second) = (explained(&env), explained(&env));
        let (first, second) = (&first["steps"], &second["steps"]);
        let steps = first.as_array().unwrap().iter();
        for (before, after) in steps.zip(second.as_array().unwrap()) {
            assert_eq!(before["result"], "miss", "{dockerfile}{before}");
            assert_ne!(after["result"], "miss", "{dockerfile}{after}");
            assert_eq!(before["key"], after["key"], "{dockerfile}{after}");
        }
        let plan = env.build("one").args(["--plan"]).success();
        assert!(plan.stdout.contains("nothing to do"), "{plan}");
    }
}

/// What a cache from elsewhere has brought is found again without it, although nobody has looked at
/// the files of these layers here.
#[test]
fn c5_what_came_from_elsewhere_is_found_before_files_are_copied() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nCOPY dir /dir\nRUN cat /dir/one >/two\n");
    env.file("dir/one", "1");
    let cache = env.path("cache").display().to_string();
    let to = format!("type=local,dest={cache},mode=max");
    env.build("one").args(["--cache-to", &to]).success();
    let there = test_env!().with_busybox();
    there.dockerfile("FROM busybox\nCOPY dir /dir\nRUN cat /dir/one >/two\n");
    there.file("dir/one", "1");
    let from = format!("type=local,src={cache}");
    there.build("one").args(["--cache-from", &from]).success();
    // Written again, it is not known any more, so that nothing but what it looks like can be.
    there.file("dir/one", "1");
    let again = there.build("two").success();
    assert_eq!(again.stderr.matches("CACHED").count(), 3, "{again}");
}
