//! What a step sees besides its image, and that no trace of it stays (B1.6, B5.3, B6).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_builder::runtime::{Exit, Mount, RuntimeError};

use crate::env::{Step, bind, needs_root, tmpfs};

fn whiteout(path: &Path) {
    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::empty();
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// G11: the image has none of the mount points.
#[test]
fn a_step_that_does_nothing_changes_nothing() {
    needs_root!();
    let step = Step::exec(&["true"])
        .mount(tmpfs("/opt/deep/below"))
        .mount(Mount::File {
            content: b"secret".to_vec().into(),
            target: "/run/secrets/token".to_owned(),
            mode: 0o400,
            owner: (0, 0),
        });
    assert_eq!(step.run().exit, Exit::Code(0));
    assert_eq!(step.changes(), BTreeSet::new());
}

/// B1.6 where a layer hides the places: they are made in the upper directory, and removed again.
#[test]
fn whiteouts_in_the_way_leave_no_trace_either() {
    needs_root!();
    let hide = |layer: &Path| {
        for directory in ["etc", "opt", "opt/sub"] {
            fs::create_dir(layer.join(directory)).unwrap();
        }
        for name in ["etc/hosts", "etc/resolv.conf", "proc", "opt/sub/cache"] {
            whiteout(&layer.join(name));
        }
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for directory in ["etc", "opt/sub"] {
            fs::File::open(layer.join(directory))
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    };
    let step = Step::sh("cat /etc/hosts; ls -d /opt/sub/cache /proc/self").layer(hide);
    let step = step.mount(tmpfs("/opt/sub/cache"));
    assert!(step.output().starts_with("127.0.0.1 localhost"));
    assert_eq!(step.changes(), BTreeSet::new());

    let step = Step::sh("touch /etc/mine -d @5; chmod 700 /opt/sub").layer(hide);
    let step = step.mount(tmpfs("/opt/sub/cache"));
    assert_eq!(step.run().exit, Exit::Code(0));
    let expected = ["etc", "etc/mine", "opt", "opt/sub"].map(str::to_owned);
    assert_eq!(step.changes(), BTreeSet::from(expected));
    let sub = fs::metadata(step.upper().join("opt/sub")).unwrap();
    assert_eq!(sub.mtime(), 1_000_000, "the parent's time is put back");
    let etc = fs::metadata(step.upper().join("etc")).unwrap();
    assert_ne!(etc.mtime(), 1_000_000, "this one the step changed");
}

/// A writable directory that an earlier process has used already.
#[test]
fn whiteouts_of_the_writable_directory_come_back() {
    needs_root!();
    let step = Step::sh("cat /etc/hosts").layer(|layer| {
        fs::create_dir(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/hosts"), "of the image").unwrap();
    });
    let etc = step.upper().join("etc");
    fs::create_dir(&etc).unwrap();
    whiteout(&etc.join("hosts"));
    let time = fs::metadata(&etc).unwrap().modified().unwrap();
    assert!(step.output().starts_with("127.0.0.1"));
    assert_eq!(fs::symlink_metadata(etc.join("hosts")).unwrap().rdev(), 0);
    assert_eq!(fs::metadata(&etc).unwrap().modified().unwrap(), time);
    assert_eq!(
        step.changes(),
        BTreeSet::from(["etc", "etc/hosts"].map(str::to_owned))
    );
}

#[test]
fn directories_above_a_mount_that_were_only_touched_do_not_stay() {
    needs_root!();
    let step = Step::sh("chown -R 5:5 /home; touch /srv/kept").mount(tmpfs("/home/cache/pip"));
    let step = step.mount(tmpfs("/srv/scratch/x"));
    assert_eq!(step.run().exit, Exit::Code(0));
    let expected = ["home", "srv", "srv/kept"].map(str::to_owned);
    assert_eq!(step.changes(), BTreeSet::from(expected));
    assert_eq!(fs::metadata(step.upper().join("home")).unwrap().uid(), 5);
    // The directory that came with the mount looks as docker makes it.
    let mode = fs::metadata(step.upper().join("srv")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

/// B6.1-3
#[test]
fn network_files_are_provided_and_cannot_be_changed() {
    needs_root!();
    let step = Step::sh(
        "cat /etc/hosts /etc/resolv.conf /etc/hostname
         echo evil >>/etc/hosts; echo evil >/etc/resolv.conf; rm -f /etc/hosts
         echo x >/tmp/x; mv /tmp/x /etc/resolv.conf; rm /tmp/x; cat /etc/hosts",
    )
    .layer(|layer| {
        fs::create_dir(layer.join("etc")).unwrap();
        fs::write(layer.join("etc/hosts"), "of the image\n").unwrap();
    });
    let hosts = "127.0.0.1 localhost buildkitsandbox\n";
    let outcome = step.run();
    assert_eq!(
        outcome.stdout,
        format!("{hosts}nameserver 192.0.2.1\nbuildkitsandbox\n{hosts}")
    );
    let changes = step.changes();
    assert!(changes.iter().all(|path| path == "tmp"), "{changes:?}");
}

/// B2: not even by way of swap.
#[test]
fn secrets_are_in_memory_that_is_not_swapped() {
    needs_root!();
    let script = "grep ' /run/secrets/token ' /proc/self/mountinfo";
    let step = Step::sh(script).mount(Mount::File {
        content: b"hush".to_vec().into(),
        target: "/run/secrets/token".to_owned(),
        mode: 0o400,
        owner: (0, 0),
    });
    let mount = step.output();
    assert!(mount.contains(" - tmpfs "), "{mount}");
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    if version >= (6, 4) {
        assert!(mount.contains("noswap"), "{mount}");
    }
}

/// B7.3
#[test]
fn a_specification_shows_no_secret() {
    let mut step = Step::sh("true").mount(Mount::File {
        content: b"hunter2".to_vec().into(),
        target: "/run/secrets/token".to_owned(),
        mode: 0o400,
        owner: (0, 0),
    });
    let secret = ("TOKEN".to_owned(), b"hunter2".to_vec().into());
    step.spec.secret_env.push(secret);
    let shown = format!("{:?}", step.spec);
    assert!(shown.contains("TOKEN") && shown.contains("/run/secrets/token"));
    assert!(!shown.contains("hunter2"), "{shown}");
    // Nor as numbers.
    assert!(!shown.contains("104, 117"), "{shown}");
}

/// B1.6 below mounts in which nothing can be made.
#[test]
fn mount_points_below_read_only_mounts() {
    needs_root!();
    let host = tempfile::TempDir::new().unwrap();
    fs::create_dir_all(host.path().join("there")).unwrap();
    fs::write(host.path().join("file"), "host\n").unwrap();
    let file = |target: &str| Mount::File {
        content: b"given\n".to_vec().into(),
        target: target.to_owned(),
        mode: 0o444,
        owner: (0, 0),
    };
    let layers = |target: &str| Mount::Layers {
        lowers: vec![host.path().to_owned()],
        source: "/".to_owned(),
        target: target.to_owned(),
        writable: false,
    };
    for outer in [bind(host.path(), "/in", false), layers("/in")] {
        let script = "touch /in/new/deep/x /in/there/x && cat /in/file /in/a/given && ls /in/there
                      touch /in/y /in/new/y 2>&1; ls /in";
        let step = Step::sh(script)
            .mount(outer)
            .mount(tmpfs("/in/new/deep"))
            .mount(tmpfs("/in/there"))
            .mount(file("/in/a/given"))
            .mount(layers("/in/new/view"))
            .mount(tmpfs("/in/new/view/inner"));
        let expected = "host\ngiven\nx\n\
                        touch: /in/y: Read-only file system\n\
                        touch: /in/new/y: Read-only file system\n\
                        a\nfile\nnew\nthere";
        assert_eq!(step.output(), expected);
        assert_eq!(step.changes(), BTreeSet::new());
        let left = fs::read_dir(host.path()).unwrap().count();
        assert_eq!(left, 2, "the host's directory is as it was");
    }
}

#[test]
fn binds_are_read_only_unless_asked_for() {
    needs_root!();
    let host = tempfile::TempDir::new().unwrap();
    fs::write(host.path().join("file"), "host\n").unwrap();
    let script = "cat /in/file /one; touch /in/new && echo wrote; touch /out/new";
    let step = Step::sh(script)
        .mount(bind(host.path(), "/in", false))
        .mount(bind(&host.path().join("file"), "/one", false))
        .mount(bind(host.path(), "/out", true));
    let outcome = step.run();
    assert_eq!(outcome.exit, Exit::Code(0), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "host\nhost\n");
    assert!(host.path().join("new").exists());
    assert_eq!(step.changes(), BTreeSet::new());

    let absent = Step::sh("true").mount(bind(&host.path().join("absent"), "/x", false));
    assert!(matches!(
        absent.try_run(),
        Err(RuntimeError::MountSource { .. })
    ));
    let mixed = Step::sh("true").mount(bind(host.path(), "/etc/passwd", false));
    assert!(matches!(
        mixed.try_run(),
        Err(RuntimeError::MountPoint { .. })
    ));
}

/// B1.6: the last of two mounts on one target is seen. A13.5: scripts below /dev/pipes run.
#[test]
fn files_and_order() {
    needs_root!();
    let file = |content: &str, target: &str| Mount::File {
        content: content.as_bytes().to_vec().into(),
        target: target.to_owned(),
        mode: 0o755,
        owner: (0, 0),
    };
    let step = Step::exec(&["/dev/pipes/EOF"])
        .mount(file("first", "/twice"))
        .mount(file("second", "/twice"))
        .mount(file(
            "#!/bin/sh\ncat /twice; stat -c ' %a %u' /twice",
            "/dev/pipes/EOF",
        ));
    assert_eq!(step.output(), "second 755 0");
    assert_eq!(step.changes(), BTreeSet::new());
}

/// B5.3
#[test]
fn devices_and_memory() {
    needs_root!();
    let list = Step::exec(&["ls", "/dev"]).output();
    let expected =
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(
        list.split_whitespace().collect::<Vec<_>>().join(" "),
        expected
    );
    let mut step = Step::sh(
        "head -c 4 /dev/urandom | wc -c; head -c 3 /dev/zero | od -An -tx1; echo x >/dev/null
         df -k /dev/shm | tail -1 | awk '{print $2}'; stat -c %a /dev/shm; ls /run 2>&1 | wc -l",
    );
    step.spec.shm_size = 1 << 20;
    assert_eq!(step.output(), "4\n 00 00 00\n1024\n1777\n1");
    let mut sized = Step::sh("df -k /scratch | tail -1 | awk '{print $2}'; stat -c %a /scratch");
    sized.spec.mounts.push(Mount::Tmpfs {
        target: "/scratch".to_owned(),
        size: Some(3 << 20),
    });
    assert_eq!(sized.output(), "3072\n1777");
}

#[test]
fn hostile_links_stay_inside() {
    needs_root!();
    let host = tempfile::TempDir::new().unwrap();
    let outside = host.path().to_owned();
    let step = Step::sh("cat /proc/self/status | head -1; cat /real/etc/hosts; mount | wc -l");
    let step = step.layer(|layer| {
        fs::create_dir_all(layer.join("real/etc")).unwrap();
        fs::create_dir_all(layer.join("real/proc")).unwrap();
        symlink("../../../../real/proc", layer.join("proc")).unwrap();
        symlink("/real/etc", layer.join("etc")).unwrap();
        fs::write(layer.join("real/etc/passwd"), "").unwrap();
        symlink(&outside, layer.join("cache")).unwrap();
        symlink("/proc/1/root", layer.join("magic")).unwrap();
    });
    let output = step.output();
    assert!(
        output.starts_with("Name:\tcat\n127.0.0.1 localhost"),
        "{output}"
    );
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);

    let through = |target: &str| {
        let step = Step::sh("true").layer(|layer| {
            symlink(&outside, layer.join("cache")).unwrap();
            symlink("/proc/self/cwd", layer.join("magic")).unwrap();
            symlink("/nowhere/at/all", layer.join("dangling")).unwrap();
        });
        step.mount(tmpfs(target))
            .try_run()
            .err()
            .map(|error| error.to_string())
    };
    // The link leads to a path that the image does not have.
    assert!(through("/cache").is_some());
    assert!(through("/magic").is_some());
    assert!(through("/dangling").is_some());
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
}

#[test]
fn hostile_files_do_not_hang_the_set_up() {
    needs_root!();
    let fifo = |path: &Path| {
        let kind = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
    };
    let fifos = |step: Step| {
        step.layer(|layer| {
            fs::create_dir(layer.join("etc")).unwrap();
            for name in ["passwd", "group", "resolv.conf"] {
                fifo(&layer.join("etc").join(name));
            }
        })
    };
    assert_eq!(
        fifos(Step::sh("cat /etc/resolv.conf")).output(),
        "nameserver 192.0.2.1"
    );
    let error = fifos(Step::sh("true").user("app")).try_run().err().unwrap();
    assert_eq!(error.to_string(), "cannot read /etc/passwd of the image");

    let file = Step::sh("true").layer(|layer| fs::write(layer.join("proc"), "").unwrap());
    let error = file.try_run().err().unwrap();
    assert_eq!(error.to_string(), "cannot mount on `/proc` of the image");
    let shell = Step::sh("true").layer(|layer| {
        fs::create_dir(layer.join("bin")).unwrap();
        fifo(&layer.join("bin/sh"));
    });
    assert!(matches!(shell.try_run(), Err(RuntimeError::Denied { .. })));
}

/// B2: a bind of another stage, several layers of it, perhaps writable.
#[test]
fn layers_of_another_stage_can_be_seen() {
    needs_root!();
    let stage = tempfile::TempDir::new().unwrap();
    let [top, bottom] = ["top", "bottom"].map(|name| stage.path().join(name));
    fs::create_dir_all(top.join("data")).unwrap();
    fs::create_dir_all(bottom.join("data/sub")).unwrap();
    fs::write(top.join("data/new"), "top\n").unwrap();
    fs::write(bottom.join("data/sub/old"), "bottom\n").unwrap();
    symlink("/data", bottom.join("link")).unwrap();
    symlink("/etc", bottom.join("outside")).unwrap();
    let view = |source: &str, target: &str, lowers: &[&Path], writable| Mount::Layers {
        lowers: lowers.iter().map(|path| path.to_path_buf()).collect(),
        source: source.to_owned(),
        target: target.to_owned(),
        writable,
    };
    let both: &[&Path] = &[&top, &bottom];
    let script = "cat /all/data/new /all/data/sub/old /part/old /file; ls /linked
        touch /all/data/x /one/x && echo wrote
        echo mine >/rw/data/sub/old && cat /rw/data/sub/old; rm -r /rw/data; ls /rw";
    let step = Step::sh(script)
        .mount(view("/", "/all", both, false))
        .mount(view("data/sub", "/part", both, false))
        .mount(view("/data/new", "/file", both, false))
        .mount(view("/link", "/linked", both, false))
        .mount(view("/", "/one", &[&bottom], false))
        .mount(view("/", "/rw", both, true));
    let outcome = step.run();
    let expected = "top\nbottom\nbottom\ntop\nnew\nsub\nmine\nlink\noutside\n";
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    assert_eq!(step.changes(), BTreeSet::new());
    assert_eq!(
        fs::read_to_string(bottom.join("data/sub/old")).unwrap(),
        "bottom\n"
    );

    let absent = |source: &str| {
        let step = Step::sh("true").mount(view(source, "/x", both, false));
        step.try_run().err().unwrap().to_string()
    };
    // The link leads to /etc of the stage, which it does not have.
    assert_eq!(absent("/outside"), "cannot open `/outside` to mount it");
    assert_eq!(
        absent("../../../etc/passwd"),
        "cannot open `../../../etc/passwd` to mount it"
    );
}

/// B2: a secret belongs to whom the Dockerfile says.
#[test]
fn files_have_the_owner_asked_for() {
    needs_root!();
    let step = Step::sh("stat -c '%u:%g %a' /run/secrets/token; cat /run/secrets/token");
    let step = step.user("app").mount(Mount::File {
        content: b"hush".to_vec().into(),
        target: "/run/secrets/token".to_owned(),
        mode: 0o400,
        owner: (1000, 77),
    });
    assert_eq!(step.output(), "1000:77 400\nhush");
    assert_eq!(step.changes(), BTreeSet::new());
}
