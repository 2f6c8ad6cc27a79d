//! `kiln run` without a terminal: what a script sees.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::{Pid, Signal};

use crate::env::{Output, TestEnv, bases, test_env};
use crate::traces::{descendants, wait_until};

impl TestEnv {
    /// `kiln run` with flags, the image busybox and a script for its shell.
    fn sh(&self, flags: &[&str], script: &str) -> Output {
        let run = self.kiln(["run"]).args(flags.iter().copied());
        run.args(["busybox", "sh", "-c", script]).run()
    }

    /// The same, which has to succeed: what it prints.
    fn prints(&self, flags: &[&str], script: &str) -> String {
        let output = self.sh(flags, script);
        assert_eq!(output.code, Some(0), "{output}");
        output.stdout.trim_end().to_owned()
    }

    fn refuses(&self, args: &[&str], message: &str) {
        let refused = self.kiln(["run"]).args(args.iter().copied()).failure(125);
        assert!(refused.stderr.contains(message), "{refused}");
    }
}

/// What docker's exit codes are: the program's own, 128 and the signal, 126, 127 and 125.
#[test]
fn exit_codes_are_dockers() {
    let env = test_env!().with_busybox();
    let both = env.sh(&["--rm"], "echo out; echo err >&2; exit 7");
    assert_eq!((both.code, both.stdout.as_str()), (Some(7), "out\n"));
    assert_eq!(both.stderr, "err\n", "kiln adds nothing");
    assert_eq!(
        env.sh(&[], "kill -9 $$; sleep 9").code,
        Some(0),
        "PID 1 ignores it"
    );
    let killed = env.sh(&[], "sh -c 'kill -TERM $$; :'; exit $?");
    assert_eq!(killed.code, Some(143), "{killed}");
    for (args, code) in [
        (&["busybox", "/bin"][..], 126),
        (&["busybox", "/tmp/../bin/nothing"], 127),
        (&["busybox", "nothing"], 127),
        (&["--entrypoint", "/nothing", "busybox"], 127),
        (&["nosuchimage"], 125),
        (&["--nosuchflag", "busybox"], 125),
        (&["-u", "nobodyhere", "busybox", "true"], 125),
        (&["busybox", "false"], 1),
        (&["busybox", "true"], 0),
    ] {
        let run = env
            .kiln(["run", "--pull", "never"])
            .args(args.iter().copied());
        let output = run.run();
        assert_eq!(output.code, Some(code), "{output}");
        assert!(code < 100 || output.stderr.contains("error: "), "{output}");
    }
    env.no_traces();
}

/// A9.3
#[test]
fn entrypoint_and_cmd_are_the_images_unless_the_command_line_says_other() {
    let env = test_env!().with_busybox();
    env.built(
        "both",
        "FROM busybox\nENTRYPOINT [\"echo\", \"entry\"]\nCMD [\"cmd\"]\n",
    );
    let said = |args: &[&str]| {
        let run = env.kiln(["run"]).args(args.iter().copied()).success();
        run.stdout.trim_end().to_owned()
    };
    assert_eq!(said(&["both"]), "entry cmd");
    assert_eq!(said(&["both", "-e", "--rm"]), "entry -e --rm");
    assert_eq!(said(&["--entrypoint", "id", "both"]), "uid=0 gid=0");
    assert_eq!(said(&["--entrypoint", "", "both", "pwd"]), "/");
    env.refuses(&["--entrypoint", "", "both"], "no command specified");
    env.refuses(&[], "\"kiln run\" requires at least 1 argument");
}

#[test]
fn environment_user_and_directory() {
    let env = test_env!().with_busybox();
    env.built(
        "app",
        "FROM busybox\n\
         RUN mkdir -p /etc && echo 'app:x:1000:1001::/home/app:/bin/sh' >/etc/passwd\n\
         ENV A=image B=image\nUSER app\nWORKDIR /srv\n",
    );
    let said = |flags: &[&str], script: &str| {
        let run = env.kiln(["run"]).args(flags.iter().copied());
        let run = run.env("C", "mine").env("SECRET", "mine");
        let run = run.args(["app", "sh", "-c", script]).success();
        run.stdout.trim_end().to_owned()
    };
    assert_eq!(
        said(&[], "id -u; id -g; pwd; echo $A $HOME"),
        "1000\n1001\n/srv\nimage /home/app"
    );
    assert_eq!(
        said(&["-u", "5:6", "-w", "/made/here"], "id -u; id -g; pwd"),
        "5\n6\n/made/here"
    );
    fs::write(
        env.path("vars"),
        "# comment\n\nB=file\nD=file=2 \nC\nNOTSET\n",
    )
    .unwrap();
    let flags = [
        "-e",
        "A=flag",
        "--env-file",
        "vars",
        "-e",
        "E",
        "-e",
        "D=flag",
    ];
    assert_eq!(
        said(
            &flags,
            "echo $A $B $C $D [${E-unset}] [${SECRET-unset}] [${NOTSET-unset}] [${TERM-unset}]"
        ),
        "flag file mine flag [unset] [unset] [unset] [unset]"
    );
    fs::write(env.path("vars"), "A B=1\n").unwrap();
    env.refuses(
        &["--env-file", "vars", "app", "true"],
        "variable 'A B' contains whitespaces",
    );
    env.refuses(
        &["--env-file", "none", "app", "true"],
        "environment file `none`",
    );
    env.refuses(&["-e", "=x", "app", "true"], "invalid environment variable");
    env.refuses(
        &["-w", "relative", "app", "true"],
        "it needs to be an absolute path",
    );
}

#[test]
fn volumes_show_the_host() {
    let env = test_env!().with_busybox();
    fs::create_dir(env.path("data")).unwrap();
    fs::write(env.path("data/file"), "host").unwrap();
    let data = env.path("data").display().to_string();
    let volume = format!("{data}:/data");
    assert_eq!(
        env.prints(&["-v", &volume], "cat /data/file; echo new >/data/new"),
        "host"
    );
    assert_eq!(fs::read_to_string(env.path("data/new")).unwrap(), "new\n");
    let output = env.sh(&["-v", &format!("{volume}:ro")], "echo x >/data/x");
    assert!(
        output.code == Some(1) && output.stderr.contains("Read-only file system"),
        "{output}"
    );
    // A single file, a path relative to where kiln runs, and a folder that is made.
    assert_eq!(
        env.prints(&["-v", "./data/file:/etc/one:ro"], "cat /etc/one"),
        "host"
    );
    assert_eq!(
        env.prints(&["-v", "./made/deep:/m"], "touch /m/x; ls /m"),
        "x"
    );
    assert!(env.path("made/deep/x").exists());
    env.refuses(&["-v", "name:/data", "busybox"], "kiln keeps no volumes");
    env.refuses(&["-v", "/data", "busybox"], "expected HOST:CONTAINER");
    env.refuses(&["-v", "/tmp:data", "busybox"], "must be absolute");
    env.refuses(&["-v", "/tmp:/", "busybox"], "must be absolute");
    env.refuses(
        &["-v", "/tmp:/x:z", "busybox"],
        "the options are `ro` and `rw`",
    );
    env.no_traces();
}

#[test]
fn what_a_program_changes_is_thrown_away() {
    let env = test_env!().with_busybox();
    let before = env.content();
    assert_eq!(
        env.prints(
            &[],
            "echo x >/new; rm -r /tmp; mkdir /a; ls / | tr '\\n' ' '"
        ),
        "a bin dev etc new proc sys"
    );
    assert_eq!(
        env.prints(&[], "ls -d /tmp; ls /new 2>&1; true"),
        "/tmp\nls: /new: No such file or directory"
    );
    let after = env.content();
    let unpacked = |entry: &&String| {
        entry.contains("/snapshots/")
            || entry.starts_with("chains")
            || entry.starts_with("snapshots")
    };
    let new: Vec<_> = after
        .difference(&before)
        .filter(|entry| !unpacked(entry))
        .collect();
    assert!(new.is_empty(), "{new:?}");
    env.no_traces();
}

#[test]
fn a_root_that_cannot_be_written_to() {
    let env = test_env!().with_busybox();
    env.built("volume", "FROM busybox\nRUN mkdir /data\nVOLUME /data\n");
    let run = env.kiln([
        "run",
        "--read-only",
        "--tmpfs",
        "/scratch:size=64k",
        "volume",
        "sh",
        "-c",
    ]);
    let output = run
        .arg(
            "touch /x; touch /data/x /scratch/x && dd if=/dev/zero of=/scratch/big bs=1k count=100",
        )
        .failure(1);
    assert!(
        output.stderr.contains("touch: /x: Read-only file system"),
        "{output}"
    );
    assert!(!output.stderr.contains("/data"), "{output}");
    assert!(output.stderr.contains("No space left"), "{output}");
    assert_eq!(
        env.prints(
            &["--tmpfs", "/tmp"],
            "stat -c %a /tmp; grep -c ' /tmp tmpfs' /proc/mounts"
        ),
        "1777\n1"
    );
    env.refuses(&["--tmpfs", "tmp", "busybox"], "must be absolute");
    env.refuses(
        &["--tmpfs", "/tmp:mode=700", "busybox"],
        "`mode=700` is not supported",
    );
    env.refuses(&["--tmpfs", "/tmp:size=x", "busybox"], "`x` is no size");
}

#[test]
fn network_and_host_name() {
    let env = test_env!().with_busybox();
    let names = "hostname; cat /etc/hostname; echo $HOSTNAME; grep -c smoke /etc/hosts";
    assert_eq!(
        env.prints(&["-h", "smoke"], names),
        "smoke\nsmoke\nsmoke\n1"
    );
    assert_eq!(env.prints(&[], "hostname"), "kiln");
    let interfaces = "ls /sys/class/net";
    assert_eq!(env.prints(&["--network", "none"], interfaces), "lo");
    assert_eq!(
        env.prints(&["--network", "host"], interfaces),
        env.program("ls", ["/sys/class/net"])
            .success()
            .stdout
            .trim_end()
    );
    env.refuses(&["-h", "a b", "busybox"], "invalid host name `a b`");
}

#[test]
fn system_calls_are_those_of_the_profile() {
    let env = test_env!().with_busybox();
    let mode = "grep Seccomp: /proc/self/status | tr -dc 0-9";
    assert_eq!(env.prints(&[], mode), "2");
    let none = ["--security-opt", "seccomp=unconfined"];
    assert_eq!(env.prints(&none, mode), "0");
    env.refuses(
        &["--security-opt", "seccomp=/none", "busybox"],
        "seccomp profile `/none`",
    );
}

#[test]
fn standard_input_is_passed_on_when_asked_for() {
    let env = test_env!().with_busybox();
    let input = "line\n".repeat(100_000);
    let run = env
        .kiln(["run", "-i", "busybox", "cat"])
        .stdin(input.as_bytes());
    assert_eq!(run.success().stdout, input);
    // A reader that does not wait for the end, and one that gets nothing.
    let run = env
        .kiln(["run", "-i", "busybox", "head", "-n1"])
        .stdin(input.as_bytes());
    assert_eq!(run.success().stdout, "line\n");
    let run = env.kiln(["run", "busybox", "cat"]).stdin(input.as_bytes());
    assert_eq!(run.success().stdout, "");
    // Whoever the user is may open its streams anew.
    let args = ["run", "-i", "-u", "7", "busybox", "sh", "-c"];
    let run = env.kiln(args).arg("cat /dev/stdin >/dev/stdout").stdin("x");
    assert_eq!(run.success().stdout, "x");
    env.refuses(&["-it", "busybox"], "the input device is not a TTY");
}

#[test]
fn a_reader_that_closes_its_end_ends_the_program() {
    let env = test_env!("bash").with_busybox();
    let command = format!("{} run busybox yes | head -n 1", env!("CARGO_BIN_EXE_kiln"));
    let args = ["-o", "pipefail", "-c", command.as_str()];
    let output = env
        .program("bash", args)
        .env("KILN_ROOT", env.store())
        .run();
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(141), "y\n"),
        "{output}"
    );
    env.no_traces();
}

/// docker's --sig-proxy
#[test]
fn signals_go_to_the_program_and_the_second_one_kills() {
    let env = test_env!().with_busybox();
    let traps = "trap 'echo got; exit 3' TERM; trap 'echo user' USR1; echo ready; while :; do sleep 0.1; done";
    let deaf = "trap '' TERM INT; echo ready; while :; do sleep 0.1; done";
    let start = |script: &str| {
        let mut child = env.kiln(["run", "busybox", "sh", "-c", script]).spawn();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        child
    };
    let signal = |child: &std::process::Child, signal| {
        let id = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    };
    let child = start(traps);
    signal(&child, Signal::USR1);
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&child, Signal::TERM);
    let output = Output::of(child);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (Some(3), "user\ngot\n"),
        "{output}"
    );

    let child = start(deaf);
    let processes = descendants(child.id());
    signal(&child, Signal::INT);
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&child, Signal::TERM);
    let output = Output::of(child);
    assert_eq!(output.code, Some(143), "{output}");
    wait_until("the end of its processes", || {
        (!processes.iter().any(|process| process.is_alive())).then_some(())
    });
    env.no_traces();
}

#[test]
fn d5_5_an_image_is_fetched_when_the_policy_says_so() {
    let bases = bases!();
    let env = test_env!();
    let name = format!("{bases}/library/busybox:stable");
    env.refuses(&["--pull", "never", &name, "true"], "No such image");
    let first = env.kiln(["run", &name, "echo", "hello"]).success();
    assert_eq!(first.stdout, "hello\n");
    assert!(first.stderr.contains("Unable to find image"), "{first}");
    let second = env.kiln(["run", &name, "echo", "hello"]).success();
    assert_eq!(second.stderr, "", "{second}");
    let always = env.kiln(["run", "--pull", "always", "-q", &name, "echo", "hello"]);
    assert_eq!(always.success().stderr, "");
    env.kiln([
        "run",
        "--pull",
        "never",
        "--platform",
        "linux/s390x",
        &name,
        "true",
    ])
    .failure(125);
}

/// A program that lies in a folder of the host, so that it needs no image of its own.
#[test]
fn a_program_of_the_host_runs_from_a_volume() {
    let env = test_env!().with_busybox();
    fs::write(env.path("tool"), "#!/bin/sh\necho \"$0 $*\"\n").unwrap();
    let denied = env
        .kiln(["run", "-v", "./tool:/tool", "busybox", "/tool"])
        .failure(126);
    assert!(denied.stderr.contains("permission denied"), "{denied}");
    fs::set_permissions(env.path("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let run = env.kiln([
        "run",
        "-v",
        "./tool:/tool:ro",
        "busybox",
        "/tool",
        "-v",
        "x",
    ]);
    assert_eq!(run.success().stdout, "/tool -v x\n");
}
