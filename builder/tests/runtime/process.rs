//! What a step's process is given, and how it ends (B4).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use kiln_builder::runtime::{Exit, Network, RuntimeError};

use crate::env::{Step, busybox, needs_root};

#[test]
fn exit_codes_and_signals_are_told_apart() {
    needs_root!();
    assert_eq!(Step::exec(&["true"]).run().exit, Exit::Code(0));
    assert_eq!(Step::sh("exit 42").run().exit, Exit::Code(42));
    assert_eq!(Step::sh("exit 137").run().exit, Exit::Code(137));
    // PID 1 ignores signals it does not handle, but for those of the kernel.
    assert_eq!(
        Step::sh("ulimit -c 0; ulimit -t 1; while :; do :; done")
            .run()
            .exit,
        Exit::Signal(9)
    );
}

#[test]
fn output_is_streamed_apart_and_whole() {
    needs_root!();
    let outcome = Step::sh("echo out; echo err >&2; printf last").run();
    assert_eq!(outcome.stdout, "out\nlast");
    assert_eq!(outcome.stderr, "err\n");
    let large = Step::sh("dd if=/dev/zero bs=1M count=20 2>/dev/null").run();
    assert_eq!(large.stdout.len(), 20 << 20);
}

/// B4.1, B4.3
#[test]
fn the_process_finds_what_docker_gives_it() {
    needs_root!();
    let step = Step::sh("echo $$; hostname; umask; env | sort; cat; readlink /proc/self/fd/0");
    let lines = step.env("A", "b c").output();
    assert_eq!(
        lines
            .lines()
            .filter(|line| !line.starts_with("SHLVL"))
            .collect::<Vec<_>>(),
        [
            "1",
            "buildkitsandbox",
            "0022",
            "A=b c",
            "HOME=/root",
            "PATH=/usr/bin:/bin",
            "PWD=/",
            "/dev/null"
        ]
    );
}

#[test]
fn inherited_descriptors_do_not_arrive() {
    needs_root!();
    let leaked = fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let fds = Step::exec(&["ls", "/proc/self/fd"]).output();
    // The fourth is that of the directory itself.
    assert_eq!(
        fds.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
    let environment = Step::sh("tr '\\0' '\\n' </proc/1/environ").output();
    assert!(
        environment
            .lines()
            .all(|line| line.starts_with("PATH=") || line == "HOME=/root")
    );
}

/// A9.8, B4.1
#[test]
fn users_are_those_of_the_image() {
    needs_root!();
    let id = "id -u; id -g; id -G; echo $HOME";
    let run = |user: &str| Step::sh(id).user(user).output().replace('\n', "|");
    assert_eq!(run(""), "0|0|0 10|/root");
    assert_eq!(run("app"), "1000|1001|1001 10 77|/home/app");
    assert_eq!(run("1000"), "1000|1001|1001 10 77|/home/app");
    assert_eq!(run("app:extra"), "1000|77|77|/home/app");
    assert_eq!(run("4242"), "4242|0|0|/");
    assert_eq!(run("4242:4343"), "4242|4343|4343|/");
    let kept = Step::sh("echo $HOME").user("app").env("HOME", "/elsewhere");
    assert_eq!(kept.output(), "/elsewhere");
    let error = Step::sh("true")
        .user("nobody-here")
        .try_run()
        .err()
        .unwrap();
    assert!(matches!(error, RuntimeError::User(_)));
    assert_eq!(
        error.to_string(),
        "unable to find user nobody-here: no matching entries in passwd file"
    );
}

#[test]
fn streams_can_be_opened_anew_by_the_user() {
    needs_root!();
    let step = Step::sh("echo again >/dev/stdout; echo too >/dev/stderr").user("app");
    let outcome = step.run();
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("again\n", "too\n"));
}

/// B4.2
#[test]
fn the_working_directory_is_made_for_the_user() {
    needs_root!();
    let step = Step::sh("pwd; touch here").user("app").cwd("/srv/app/data");
    assert_eq!(step.output(), "/srv/app/data");
    for path in ["srv", "srv/app", "srv/app/data"] {
        let metadata = fs::metadata(step.upper().join(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
    }
    let error = Step::sh("true").cwd("/etc/passwd").try_run().err().unwrap();
    assert!(matches!(error, RuntimeError::Cwd { .. }), "{error}");
}

#[test]
fn programs_that_cannot_start_are_explained() {
    needs_root!();
    let error = |step: Step| step.try_run().err().unwrap().to_string();
    assert_eq!(
        error(Step::exec(&["/bin/absent"])),
        "exec `/bin/absent`: no such file or directory in the image"
    );
    assert_eq!(
        error(Step::exec(&["absent"])),
        "exec `absent`: executable file not found in PATH of the image"
    );
    assert_eq!(
        error(Step::exec(&["/etc/passwd"])),
        "exec `/etc/passwd`: permission denied"
    );
    assert!(matches!(
        Step::exec(&[]).try_run(),
        Err(RuntimeError::NoProgram)
    ));

    let program = |content: &'static [u8]| {
        Step::exec(&["/bin/program"]).layer(move |layer| {
            fs::create_dir(layer.join("bin")).unwrap();
            let path = layer.join("bin/program");
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        })
    };
    assert_eq!(
        error(program(b"#!/bin/absent\n")),
        "exec `/bin/program`: its interpreter or dynamic loader is not in the image"
    );
    let mut s390x = Vec::from(*b"\x7fELF\x02\x02\x01");
    s390x.resize(64, 0);
    s390x[17] = 2;
    s390x[19] = 22;
    assert_eq!(
        error(program(s390x.leak())),
        "exec `/bin/program`: exec format error: it is for s390x, and this machine has no binfmt_misc handler for that"
    );
    assert_eq!(
        error(program(b"no shebang\n")),
        "exec `/bin/program`: exec format error"
    );
}

#[test]
fn background_processes_end_with_the_step() {
    needs_root!();
    let start = Instant::now();
    let outcome = Step::sh("sleep 77777 & echo started").run();
    assert_eq!(outcome.stdout, "started\n");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(!crate::cancel::is_running("77777"));
}

#[test]
fn limits_are_set() {
    needs_root!();
    let mut step = Step::sh("ulimit -n; ulimit -Hn");
    step.spec.rlimits = vec![("nofile".to_owned(), 100, 200)];
    assert_eq!(step.output(), "100\n200");
    step.spec.rlimits = vec![("nonsense".to_owned(), 1, 1)];
    assert!(matches!(step.try_run(), Err(RuntimeError::Limit(name)) if name == "nonsense"));
}

#[test]
fn an_image_of_many_layers_is_merged() {
    needs_root!();
    let mut step = Step::sh("cat /top; ls /layers | wc -l");
    for number in 0..300 {
        step = step.layer(|layer| {
            fs::create_dir(layer.join("layers")).unwrap();
            fs::write(layer.join("layers").join(number.to_string()), "").unwrap();
            fs::write(layer.join("top"), number.to_string()).unwrap();
        });
    }
    assert_eq!(step.output(), "299300");
}

/// Prints how long the shortest step takes; it says nothing about a machine under load.
#[test]
fn a_step_starts_quickly() {
    needs_root!();
    busybox();
    let mut times = Vec::new();
    for network in [Network::Host, Network::None] {
        times.clear();
        for _ in 0..20 {
            let mut step = Step::exec(&["/bin/true"]);
            step.spec.network = network.clone();
            let start = Instant::now();
            assert_eq!(step.run().exit, Exit::Code(0));
            times.push(start.elapsed());
        }
        times.sort();
        println!("{network:?}: min {:?}, median {:?}", times[0], times[10]);
    }
    assert!(times[0] < Duration::from_millis(500));
}
