//! `kiln shell` and `kiln build --on-fail shell`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::env::{Output, TestEnv, test_env};
use crate::terminal::Session;
use crate::traces::files;

/// A build whose fourth step fails half-way.
const FAILS: &str = "\
FROM busybox
ENV COLOR=green
RUN mkdir -p /etc && echo 'app:x:1000:1001::/home/app:/bin/sh' >/etc/passwd && echo one >/one
WORKDIR /work
USER app
RUN --mount=type=secret,id=token,uid=1000 \\
    --mount=type=tmpfs,target=/scratch \\
    --mount=type=bind,source=data,target=/data \\
    echo two >/tmp/two; rm -f /work/none; ls /nothere
RUN echo three
";

impl TestEnv {
    /// With a build that has failed.
    fn failed(self) -> Self {
        fs::write(self.path("token"), "the secret").unwrap();
        self.file("data", "of the context").dockerfile(FAILS);
        let failed = self
            .build("x")
            .args(["--secret", "id=token,src=token"])
            .failure(1);
        let hint = "hint: look around in the failed step with: kiln shell --failed\n";
        assert!(failed.stderr.ends_with(hint), "{failed}");
        self
    }

    fn shell(&self, args: &[&str]) -> Output {
        self.kiln(["shell"]).args(args.iter().copied()).run()
    }

    /// What a command in a shell prints.
    fn shows(&self, args: &[&str]) -> String {
        let output = self.shell(args);
        assert_eq!(output.code, Some(0), "{output}");
        output.stdout.trim_end().to_owned()
    }

    fn no_shell(&self, args: &[&str], code: i32, message: &str) {
        let output = self.shell(args);
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(message), "{output}");
    }
}

/// What a person at the failed step asks.
const LOOK: &str = "cat /one /tmp/two /data; echo; echo $COLOR; id -u; pwd; mount | grep -c 'on /scratch type tmpfs'";
const SEES: &str = "one\ntwo\nof the context\ngreen\n1000\n/work\n1";

#[test]
fn a_failed_step_is_opened_later_as_far_as_it_got() {
    let env = test_env!().with_busybox().failed();
    assert_eq!(env.shows(&["--failed", "sh", "-c", LOOK]), SEES);
    // What a shell changes is thrown away; it reads commands, and its exit code is kiln's.
    let run = env
        .kiln(["shell", "--failed"])
        .stdin("echo changed >/tmp/two; cat /tmp/two; exit 9");
    let output = run.failure(9);
    assert_eq!(output.stdout, "changed\n", "{output}");
    assert_eq!(env.shows(&["--failed", "--", "cat", "/tmp/two"]), "two");
    assert_eq!(env.shows(&["--failed", "-u", "0", "--", "id", "-u"]), "0");
    let before = ["--failed", "--before", "ls", "/tmp"];
    assert_eq!(env.shows(&before), "");
    env.no_traces();
}

/// Where overlayfs cannot be mounted, what a failed step had changed is put on a copy of its tree.
#[test]
fn a_failed_step_of_plain_directories_is_opened() {
    let env = test_env!().with_busybox();
    fs::write(env.path("token"), "the secret").unwrap();
    env.file("data", "of the context").dockerfile(FAILS);
    let plain = |args: &[&str]| {
        env.kiln(["--snapshotter", "plain"])
            .args(args.iter().copied())
    };
    let build = [
        "build",
        "--secret",
        "id=token,src=token",
        "-t",
        "x",
        "context",
    ];
    plain(&build).failure(1);
    for _ in 0..2 {
        let script = format!("{LOOK}; echo changed >/tmp/two");
        let shown = plain(&["shell", "--failed", "sh", "-c", &script]).success();
        assert_eq!(shown.stdout.trim_end(), SEES, "{shown}");
    }
    let one = plain(&["run", "-i", "busybox", "cat"]).stdin("x").success();
    assert_eq!(one.stdout, "x");
    env.no_traces();
}

/// B7.3
#[test]
fn secrets_are_read_again_from_where_they_came() {
    let env = test_env!().with_busybox().failed();
    let record = env.store().join("last/build.json");
    let text = fs::read_to_string(&record).unwrap();
    assert!(
        !text.contains("the secret") && text.contains("/token"),
        "{text}"
    );
    let mode = fs::metadata(&record).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let look = [
        "--failed",
        "sh",
        "-c",
        "wc -c </run/secrets/token; cat /run/secrets/token",
    ];
    let shown = env.shows(&look);
    assert!(
        shown.starts_with("10\n") && !shown.contains("the secret"),
        "masked: {shown}"
    );
    fs::write(env.path("token"), "renewed").unwrap();
    assert!(env.shows(&look).starts_with("7\n"));
    fs::remove_file(env.path("token")).unwrap();
    let absent = env.shell(&["--failed", "ls", "/run/secrets/token"]);
    assert!(
        absent
            .stderr
            .contains("note: the secret `token` is not where it was"),
        "{absent}"
    );
    assert_eq!(absent.code, Some(1), "{absent}");
    fs::write(env.path("other"), "other").unwrap();
    let mut given = vec!["--secret", "id=token,src=other"];
    given.extend(look);
    assert!(env.shows(&given).starts_with("5\n"));
}

#[test]
fn any_step_of_the_last_build_can_be_opened() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox AS tools\nRUN echo tool >/tool\n\
         FROM busybox\nENV A=b\nRUN echo 1 >/f\nWORKDIR /w\nRUN echo 2 >/f\nCOPY --from=tools /tool /tool\nRUN --network=none echo 3 >/f\n",
    );
    let look = "cat /f; pwd; echo $A; ls /tool 2>&1";
    // From the cache as well as built now.
    for cached in [false, true] {
        let built = env.build("x").success();
        let number = |name: &str| {
            let line = built
                .stderr
                .lines()
                .find(|line| line.contains(name))
                .unwrap();
            line.split(' ')
                .next()
                .unwrap()
                .trim_start_matches('#')
                .to_owned()
        };
        let sees = |step: &str, flags: &[&str]| {
            let mut args = vec!["--step", step];
            args.extend(flags);
            args.extend(["--", "sh", "-c", look]);
            let output = env.shell(&args);
            output.stdout.replace('\n', " ").trim_end().to_owned()
        };
        let none = "ls: /tool: No such file or directory";
        assert_eq!(sees(&number("echo 2"), &[]), format!("2 /w b {none}"));
        assert_eq!(
            sees(&number("echo 2"), &["--before"]),
            format!("1 /w b {none}")
        );
        assert_eq!(sees(&number("WORKDIR"), &[]), format!("1 /w b {none}"));
        assert_eq!(sees(&number("COPY"), &[]), "2 /w b /tool");
        assert_eq!(sees(&format!("#{}", number("echo 3")), &[]), "3 /w b /tool");
        assert_eq!(sees("stage-1 2/6", &[]), format!("1 / b {none}"));
        let step = number("echo 3");
        let lo = env.shows(&["--step", &step, "--", "ls", "/sys/class/net"]);
        assert_eq!(lo, "lo", "the network of the step");
        if !cached {
            let tool = env.shows(&["--step", &number("echo tool"), "cat", "/tool"]);
            assert_eq!(tool, "tool");
        }
    }
    env.no_shell(&["--step", "77"], 125, "had no step `77`; it had #1 ");
    env.no_shell(&["--failed"], 125, "did not fail");
    env.no_shell(&[], 125, "requires an image, --failed or --step");
    env.no_shell(
        &["--before", "busybox"],
        125,
        "--before, --secret and --ssh are for steps",
    );
    env.no_traces();
}

#[test]
fn an_image_is_opened_without_its_entrypoint() {
    let env = test_env!().with_busybox();
    env.built(
        "x",
        "FROM busybox\nENTRYPOINT [\"/nothere\"]\nENV A=b\nWORKDIR /w\nUSER 7\n",
    );
    let run = env.kiln(["shell", "x"]).stdin("id -u; pwd; echo $A $0");
    assert_eq!(run.success().stdout, "7\n/w\nb /bin/sh\n");
    assert_eq!(env.shows(&["x", "echo", "-n", "--failed"]), "--failed");
    assert_eq!(env.shows(&["-u", "0", "x", "--", "id", "-u"]), "0");
    // Nothing of it needs a build.
    env.no_shell(
        &["--failed"],
        125,
        "the last build on this store did not fail",
    );
    env.no_shell(&["nosuchimage:1@sha256:0"], 125, "cannot run `nosuchimage");
}

#[test]
fn without_a_shell_it_says_so() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM scratch\nCOPY --from=busybox /bin/busybox /busybox\nRUN [\"/busybox\", \"false\"]\n",
    );
    env.build("x").failure(1);
    let output = env.shell(&["--failed"]);
    assert_eq!(output.code, Some(127), "{output}");
    assert!(output.stderr.contains("has no shell `/bin/sh`"), "{output}");
    assert!(
        output.stderr.contains("hint: give a command that it has"),
        "{output}"
    );
    assert_eq!(env.shows(&["--failed", "/busybox", "echo", "here"]), "here");
    env.no_shell(&["--failed", "/nothing"], 127, "exec `/nothing`");
}

#[test]
fn only_the_last_failure_is_kept_until_images_are_removed() {
    let env = test_env!().with_busybox();
    let kept = || {
        let mut names = files(&env.store().join("last"));
        names.retain(|name| name != "build.json");
        names.len()
    };
    env.no_shell(&["--failed"], 125, "nothing is known of a last build");
    let fail = |text: &str| {
        let text = format!("FROM busybox\nRUN echo {text} >/f; false\n");
        env.dockerfile(&text).build("x").failure(1);
    };
    fail("first");
    fail("second");
    assert_eq!(
        (kept(), env.shows(&["--failed", "cat", "/f"]).as_str()),
        (1, "second")
    );
    // Several steps fail at once: the one that the build names is kept.
    env.dockerfile(
        "FROM busybox AS a\nRUN echo a >/f; false\nFROM busybox AS b\nRUN echo b >/f; false\n\
         FROM busybox\nCOPY --from=a /f /a\nCOPY --from=b /f /b\n",
    );
    let failed = env.build("x").failure(1);
    let name = if failed.stderr.contains("Dockerfile:2:1") {
        "a"
    } else {
        "b"
    };
    let shown = env.shows(&["--failed", "cat", "/f"]);
    assert_eq!((kept(), shown.as_str()), (1, name), "{failed}");
    env.no_traces();
    env.built("other", "FROM busybox\nRUN echo fine\n");
    assert_eq!(kept(), 0);
    env.no_shell(&["--failed"], 125, "did not fail");
    fail("third");
    env.kiln(["rmi", "other"]).success();
    assert_eq!(kept(), 0);
    env.no_shell(
        &["--failed"],
        125,
        "are gone: removing images frees their space, too",
    );
}

#[test]
fn a_shell_opens_when_a_step_fails() {
    let env = test_env!("setsid").with_busybox();
    fs::write(env.path("token"), "the secret").unwrap();
    env.file("data", "of the context").dockerfile(FAILS);
    let args = [
        "build",
        "--on-fail",
        "shell",
        "--secret",
        "id=token,src=token",
        "-t",
        "x",
        "context",
    ];
    let mut session = Session::start(&env, &args);
    let before = session.expect("what you change is thrown away; leave with `exit` or Ctrl-D\r\n");
    assert!(
        before.contains("ls: /nothere: No such file or directory"),
        "{before}"
    );
    assert!(before.contains("exit code: 1"), "{before}");
    assert!(before.contains("(as far as it got)"), "{before}");
    session.expect("/work $ ");
    // The very secret of the build, though its file is gone by now.
    fs::remove_file(env.path("token")).unwrap();
    session.type_("cat /run/secrets/token; echo; echo changed >/tmp/two; stty size\n");
    session.expect("the secret\r\n30 100\r\n/work $ ");
    session.type_(LOOK);
    session.type_("\n");
    session.expect(&SEES.replace("two", "changed").replace('\n', "\r\n"));
    session.expect("/work $ ");
    session.type_("exit 3\n");
    let (code, shown) = session.end();
    assert_eq!(code, Some(1), "the build's code, not the shell's: {shown}");
    assert!(shown.contains("Dockerfile:6"), "{shown}");
    assert!(shown.contains("kiln shell --failed"), "{shown}");
    assert_eq!(env.shows(&["--failed", "cat", "/tmp/two"]), "two");
    // Nobody can be asked without a terminal.
    let run = env
        .kiln(["build", "--on-fail", "shell", "-q"])
        .arg(env.context());
    let output = run.failure(1);
    assert!(output.stderr.ends_with("kiln shell --failed\n"), "{output}");
    env.no_traces();
}

#[test]
fn a_later_shell_in_a_terminal() {
    let env = test_env!("setsid").with_busybox().failed();
    let mut session = Session::start(&env, &["shell", "--failed"]);
    session.expect("a shell in [4/5] RUN ");
    session.expect("/work $ ");
    session.type_("\x04");
    assert_eq!(session.end().0, Some(0));
    let mut session = Session::start(&env, &["shell", "busybox"]);
    session.expect("a shell in the image busybox; ");
    session.expect("/ # ");
    session.type_("exit 4\n");
    assert_eq!(session.end().0, Some(4));
}
