//! `RUN --mount` with the real binary, where a case under `testdata/steps` cannot say it: secrets are
//! nowhere (B2, B7.3), cache mounts are shared between processes (B2), the context stays as it is.

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use rustix::process::{Pid, Signal};

use crate::env::{Output, TestEnv, test_env};
use crate::traces::{files, wait_until};

/// A value that nothing else has.
const SECRET: &str = "correct-horse-8f1e-battery";

/// Waits in a step until a file is there, but not for ever.
const WAIT: &str =
    "w() { i=0; while [ ! -e $1 ] && [ $i -lt 600 ]; do sleep .05; i=$((i+1)); done; [ -e $1 ]; }";

/// The files of an environment that hold a text, a line each.
fn holding(env: &TestEnv, text: &str) -> String {
    env.program("grep", ["-rlaF", text, "."]).run().stdout
}

/// The directory of the only cache mount of a store.
fn cache(env: &TestEnv) -> PathBuf {
    let mut found = fs::read_dir(env.store().join("mounts")).unwrap();
    found.next().unwrap().unwrap().path().join("0/fs")
}

fn build(env: &TestEnv, name: &str, text: &str) -> Child {
    let file = env.path(name);
    fs::write(&file, text).unwrap();
    let run = env.kiln(["build", "-q", "-t", name, "-f"]).arg(file);
    run.arg(env.context()).spawn()
}

fn wait(child: Child) -> Output {
    let output = Output::of(child);
    assert_eq!(output.code, Some(0), "{output}");
    output
}

#[test]
fn b7_3_a_secret_is_nowhere_but_in_the_step() {
    let env = test_env!().with_busybox();
    let text = format!(
        "FROM busybox\n\
         RUN --mount=type=secret,id=a,env=TOKEN --mount=type=cache,target=/c \
         {WAIT}; touch /c/runs; w /c/go && test \"$TOKEN\" = \"$(cat /run/secrets/a)\" || test -n \"$TOKEN\"\n\
         RUN --mount=type=secret,id=a cp /run/secrets/a /dev/shm/x; cat /dev/shm/x; echo; cat /run/secrets/a >&2\n\
         RUN --mount=type=secret,id=a,env=TOKEN,target=/t printf %.20s \"$TOKEN\"; printf '%s\\n' \"${{TOKEN#????????????????????}}\"\n"
    );
    let secret = ["--secret", "id=a,env=VALUE"];
    env.dockerfile(&text);
    let child = env.build("quiet").args(secret).env("VALUE", SECRET).spawn();
    let go = wait_until("the step", || {
        let cache = env.store().join("mounts").exists().then(|| cache(&env))?;
        cache.join("runs").exists().then(|| cache.join("go"))
    });
    assert_eq!(holding(&env, SECRET), "", "while it runs");
    fs::write(go, "").unwrap();
    let output = wait(child);
    assert!(!output.stderr.contains(SECRET), "{output}");
    assert!(output.stderr.contains("****"), "{output}");
    for args in [
        &["history", "--no-trunc", "quiet"][..],
        &["inspect", "quiet"],
        &["save", "quiet", "-o", "saved.tar"],
    ] {
        let output = env.kiln(args.iter().copied()).success();
        assert!(!output.stdout.contains(SECRET), "{output}");
    }
    assert_eq!(holding(&env, SECRET), "");

    assert_ne!(
        holding(&env, "\"Cmd\":[\"sh\"]"),
        "",
        "what is there is found"
    );

    // A step that fails repeats its last lines, and a mistake in the file the line.
    let failing =
        "FROM busybox\nRUN --mount=type=secret,id=a,env=A echo \"<$A>\"; echo $A >&2; exit 7\n";
    let output = env.dockerfile(failing).build("failing").args(secret);
    let output = output.env("VALUE", SECRET).failure(1);
    assert!(!output.stderr.contains(SECRET), "{output}");
    assert!(output.stderr.contains("<****>"), "{output}");
    assert_eq!(holding(&env, SECRET), "");
}

#[test]
fn b7_1_a_secret_that_is_missing_or_too_large_stops_before_the_build() {
    let env = test_env!();
    env.dockerfile("FROM nothing.invalid/at/all\n");
    fs::write(env.path("large"), vec![b'x'; (500 << 10) + 1]).unwrap();
    for (flag, error) in [
        (
            "id=a,src=none",
            "secret a: cannot read `none`: no such file",
        ),
        ("id=a,src=large", "secret a too big. max size 500KB"),
    ] {
        let output = env.build("x").args(["--secret", flag]).failure(1);
        assert!(output.stderr.contains(error), "{output}");
        assert!(!output.stderr.contains("nothing.invalid"), "{output}");
    }
    let output = env.build("x").args(["--secret", "src=large"]).failure(125);
    assert!(output.stderr.contains("secret missing ID"), "{output}");
}

/// Two builds that wait for each other's file can only both end when they run side by side.
#[test]
fn b2_a_shared_cache_mount_has_several_writers() {
    let env = test_env!().with_busybox();
    let text = |own: &str, other: &str| {
        format!(
            "FROM busybox\nRUN --mount=type=cache,target=/c {WAIT}; touch /c/{own}; w /c/{other}\n"
        )
    };
    let builds = [("one", "two"), ("two", "one")];
    let builds = builds.map(|(own, other)| build(&env, own, &text(own, other)));
    for build in builds {
        wait(build);
    }
}

#[test]
fn b2_a_locked_cache_mount_has_one_writer_and_the_others_wait() {
    let env = test_env!().with_busybox();
    let locked = "--mount=type=cache,target=/c,id=x,sharing=locked";
    let text = format!("FROM busybox\nRUN {locked} {WAIT}; touch /c/in; w /c/go; rm /c/in\n");
    let first = build(&env, "first", &text);
    wait_until("the first step", || cache_file(&env, "in"));

    let file = env.path("second");
    fs::write(
        &file,
        format!("FROM busybox\nRUN {locked} test ! -e /c/in\n"),
    )
    .unwrap();
    let second = || {
        let run = env.kiln(["build", "-t", "second", "-f"]).arg(&file);
        run.arg(env.context()).spawn()
    };
    // Who waits can be told to stop.
    let cancelled = second();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    signal(&cancelled, Signal::INT);
    let cancelled = Output::of(cancelled);
    assert_eq!(cancelled.code, Some(130), "{cancelled}");
    assert!(
        cancelled.stderr.contains("waiting for the cache mount `x`"),
        "{cancelled}"
    );

    let second = second();
    std::thread::sleep(std::time::Duration::from_millis(500));
    fs::write(cache(&env).join("go"), "").unwrap();
    wait(first);
    wait(second);
}

#[test]
fn b2_a_second_writer_of_a_private_cache_mount_gets_a_fresh_one() {
    let env = test_env!().with_busybox();
    let private = "--mount=type=cache,target=/c,sharing=private";
    let text = format!("FROM busybox\nRUN {private} {WAIT}; touch /c/in; w /c/go\n");
    let first = build(&env, "first", &text);
    wait_until("the first step", || cache_file(&env, "in"));
    let fresh = format!("FROM busybox\nRUN {private} test ! -e /c/in && touch /c/second\n");
    wait(build(&env, "second", &fresh));
    fs::write(cache(&env).join("go"), "").unwrap();
    wait(first);
    // Alone again, one gets the first directory.
    let again = format!("FROM busybox\nRUN {private} test -e /c/in && test ! -e /c/second\n");
    wait(build(&env, "third", &again));
}

#[test]
fn b2_a_killed_build_leaves_its_cache_mount_usable() {
    let env = test_env!().with_busybox();
    let locked = "--mount=type=cache,target=/c,sharing=locked";
    let text = format!("FROM busybox\nRUN {locked} {WAIT}; touch /c/in; w /c/never\n");
    let killed = build(&env, "killed", &text);
    wait_until("the step", || cache_file(&env, "in"));
    signal(&killed, Signal::KILL);
    drop(Output::of(killed));
    let next = format!("FROM busybox\nRUN {locked} test -e /c/in && touch /c/next\n");
    wait(build(&env, "next", &next));
    // Removing all images leaves it, too.
    env.kiln(["rmi", "next", "busybox"]).success();
    assert!(cache(&env).join("next").exists());
}

#[test]
fn b2_nothing_that_a_step_writes_to_a_bind_reaches_the_context() {
    let env = test_env!().with_busybox();
    env.file("f", "as it was\n").file("d/g", "as it was\n");
    let text = "FROM busybox\n\
                RUN --mount=target=/c,rw --mount=source=f,target=/f,rw \
                echo new >/c/new; echo new >/c/f; echo new >/f; rm -r /c/d; chmod 777 /c\n\
                RUN --mount=target=/c ! sh -c 'echo new >/c/f' && ! rm /c/f\n";
    let before = files(&env.context()).len();
    env.built("x", text);
    assert_eq!(files(&env.context()).len(), before + 1, "the Dockerfile");
    for file in ["f", "d/g"] {
        let text = fs::read_to_string(env.context().join(file)).unwrap();
        assert_eq!(text, "as it was\n");
    }
}

fn cache_file(env: &TestEnv, name: &str) -> Option<()> {
    let mounts = env.store().join("mounts");
    let there = mounts.exists() && fs::read_dir(&mounts).unwrap().next().is_some();
    (there && cache(env).join(name).exists()).then_some(())
}

fn signal(child: &Child, signal: Signal) {
    let id = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}
