//! Images that are made to mislead the runtime: what it opens in them is a link to the host, a
//! fifo or a device.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_builder::runtime::{Exit, RuntimeError};
use rustix::fs::{CWD, FileType, makedev, mknodat};
use tempfile::TempDir;

use crate::env::{Step, bind, needs_root, tmpfs};

/// A directory of the host with files that an image wants.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let passwd = "victim:x:4711:4711::/:/bin/sh\n";
        fs::write(directory.path().join("passwd"), passwd).unwrap();
        fs::write(directory.path().join("group"), "victim:x:4711:\n").unwrap();
        fs::write(directory.path().join("sh"), "#!/bin/busybox sh\n").unwrap();
        Self(directory)
    }

    /// Ways to write a link to one of its files.
    fn links(&self, name: &str) -> [PathBuf; 3] {
        let path = self.0.path().join(name);
        let relative = path.strip_prefix("/").unwrap();
        [
            path.clone(),
            Path::new("../../../../../../../..").join(relative),
            Path::new("/proc/1/root").join(relative),
        ]
    }

    /// Nothing was written to it.
    fn check(&self) {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["group", "passwd", "sh"]);
        let sh = fs::read_to_string(self.0.path().join("sh")).unwrap();
        assert_eq!(sh, "#!/bin/busybox sh\n");
    }
}

/// Puts something at a path.
type Make<'a> = &'a dyn Fn(&Path);

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, 0o666.into(), 0).unwrap();
}

/// One whose reading never ends.
fn device(path: &Path) {
    let zero = makedev(1, 5);
    mknodat(CWD, path, FileType::CharacterDevice, 0o666.into(), zero).unwrap();
}

/// Runs something that may fail but not take time.
fn soon<T>(what: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = what();
    assert!(started.elapsed() < Duration::from_secs(20), "it hangs");
    result
}

fn etc(layer: &Path) -> PathBuf {
    let etc = layer.join("etc");
    fs::create_dir_all(&etc).unwrap();
    etc
}

#[test]
fn users_do_not_come_from_the_host() {
    needs_root!();
    let host = Host::new();
    for target in host.links("passwd") {
        let step = Step::sh("id").user("victim").layer(|layer| {
            symlink(&target, etc(layer).join("passwd")).unwrap();
        });
        let result = step.try_run().map(|outcome| outcome.stdout);
        assert!(matches!(result, Err(RuntimeError::User(_))), "{result:?}");
    }
    // Written into the image, the same line does name somebody.
    let step = Step::sh("id -u").user("victim").layer(|layer| {
        fs::copy(host.0.path().join("passwd"), etc(layer).join("passwd")).unwrap();
    });
    assert_eq!(step.output(), "4711");
    host.check();
}

#[test]
fn lists_of_users_that_never_end_are_errors() {
    needs_root!();
    for make in [fifo, device] {
        for (file, user) in [("passwd", "victim"), ("group", "0:victim")] {
            let step = Step::sh("id").user(user).layer(|layer| {
                make(&etc(layer).join(file));
            });
            let result = soon(|| step.try_run()).map(|outcome| outcome.stdout);
            assert!(matches!(result, Err(RuntimeError::User(_))), "{result:?}");
        }
        // Nobody is looked up for a number.
        let step = Step::sh("id -u").user("7:7").layer(|layer| {
            make(&etc(layer).join("passwd"));
            make(&etc(layer).join("group"));
        });
        if let Ok(outcome) = soon(|| step.try_run()) {
            assert_eq!(outcome.stdout.trim(), "7");
        }
    }
}

#[test]
fn programs_do_not_come_from_the_host() {
    needs_root!();
    let host = Host::new();
    for target in host.links("sh") {
        let step = Step::exec(&["/run"]).layer(|layer| {
            symlink(&target, layer.join("run")).unwrap();
        });
        let result = step.try_run().map(|outcome| outcome.exit);
        assert!(
            matches!(result, Err(RuntimeError::NotFound { .. })),
            "{result:?}"
        );
    }
    for make in [fifo, device] {
        let step = Step::exec(&["/run"]).layer(|layer| {
            make(&layer.join("run"));
            rustix::fs::chmod(layer.join("run"), 0o777.into()).unwrap();
        });
        let result = soon(|| step.try_run()).map(|outcome| outcome.exit);
        assert!(
            matches!(result, Err(RuntimeError::Denied { .. })),
            "{result:?}"
        );
    }
}

/// The files and file systems that the runtime shows have their places in the image: a place that is
/// a link stands for what it means there, and none of them reaches the host.
#[test]
fn places_of_the_runtime_do_not_lead_to_the_host() {
    needs_root!();
    let host = Host::new();
    for place in ["etc/resolv.conf", "etc/hosts", "etc/hostname"] {
        for target in host.links("sh").iter().chain(&host.links("new")) {
            let step = Step::sh(&format!("cat /{place}; true")).layer(|layer| {
                etc(layer);
                symlink(target, layer.join(place)).unwrap();
            });
            if let Ok(outcome) = soon(|| step.try_run()) {
                assert!(!outcome.stdout.contains("busybox sh"), "{place}");
            }
            host.check();
        }
    }
    let directory = host.0.path();
    for place in ["proc", "dev", "sys"] {
        for target in [directory.to_owned(), Path::new("../../..").join(directory)] {
            let step = Step::sh("echo x >/proc/new; echo x >/dev/new; true").layer(|layer| {
                symlink(&target, layer.join(place)).unwrap();
            });
            drop(soon(|| step.try_run()));
            host.check();
        }
    }
}

/// The same places as a fifo, a device, a directory, a file, or a link in a circle.
#[test]
fn places_of_the_wrong_kind_neither_hang_nor_leak() {
    needs_root!();
    for place in ["etc/resolv.conf", "etc/hosts", "proc", "dev", "sys"] {
        let kinds: [(&str, Make); 5] = [
            ("fifo", &fifo),
            ("device", &device),
            ("directory", &|path| fs::create_dir(path).unwrap()),
            ("file", &|path| fs::write(path, "").unwrap()),
            ("circle", &|path| {
                symlink(path.file_name().unwrap(), path).unwrap();
            }),
        ];
        for (kind, make) in kinds {
            let step = Step::sh("echo ran; test -e /proc/1 && test -c /dev/null").layer(|layer| {
                etc(layer);
                make(&layer.join(place));
            });
            match soon(|| step.try_run()) {
                Ok(outcome) => assert_eq!(outcome.exit, Exit::Code(0), "{place} is a {kind}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(&format!("/{place}")),
                        "{place}, {kind}: {error}"
                    );
                }
            }
        }
    }
}

/// A mount's target that is a link, or below one, is found inside of the root.
#[test]
fn targets_of_mounts_do_not_lead_to_the_host() {
    needs_root!();
    let (host, source) = (Host::new(), TempDir::new().unwrap());
    fs::write(source.path().join("file"), "mine").unwrap();
    let directory = host.0.path();
    for target in [directory.to_owned(), Path::new("../../..").join(directory)] {
        let attack = |mount| {
            let script = "echo x >/link/new; echo x >/link/a/b/new; true";
            let step = Step::sh(script).mount(mount).layer(|layer| {
                symlink(&target, layer.join("link")).unwrap();
            });
            drop(step.try_run());
            host.check();
        };
        attack(tmpfs("/link"));
        attack(tmpfs("/link/a/b"));
        attack(tmpfs("/tmp/../link/a"));
        attack(bind(source.path(), "/link", false));
        attack(bind(&source.path().join("file"), "/link/new", false));
        attack(bind(&source.path().join("file"), "/link/sh", false));
    }
    assert_eq!(fs::read_dir(source.path()).unwrap().count(), 1);
    // What is shown read-only stays as it is, whatever the step tries.
    let script = "echo x >/mnt/file; rm /mnt/file; mv /mnt/file /mnt/other; : >/mnt/new; true";
    Step::sh(script)
        .mount(bind(source.path(), "/mnt", false))
        .run();
    assert_eq!(fs::read(source.path().join("file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(source.path()).unwrap().count(), 1);
    // Where it may write, it does.
    Step::sh(script)
        .mount(bind(source.path(), "/mnt", true))
        .run();
    assert!(fs::read(source.path().join("new")).is_ok());
}
