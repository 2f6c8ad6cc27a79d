//! Steps that several stages, builds and processes want at once.

use std::fs;
use std::path::PathBuf;

use crate::cache::steps;
use crate::env::{Output, TestEnv, test_env};
use crate::traces::wait_until;

#[test]
fn two_builds_at_once_execute_each_step_once() {
    let env = test_env!().with_busybox();
    env.file("file", "x").dockerfile(
        "FROM busybox\n\
         COPY file /\n\
         RUN cat /proc/sys/kernel/random/uuid >/one; usleep 300000\n\
         WORKDIR /w\n\
         RUN cat /proc/sys/kernel/random/uuid >/two; usleep 300000\n",
    );
    let builds: Vec<_> = (0..3)
        .map(|number| env.build(&format!("image{number}")).spawn())
        .collect();
    let mut executed = Vec::new();
    for build in builds {
        let output = Output::of(build);
        assert_eq!(output.code, Some(0), "{output}");
        executed.extend(steps(&output).0);
    }
    executed.sort();
    assert_eq!(executed.len(), 4, "{executed:?}");
    executed.dedup();
    assert_eq!(executed.len(), 4, "{executed:?}");
    let layers = |image: &str| env.inspect(image)["RootFS"]["Layers"].clone();
    assert_eq!(layers("image0"), layers("image1"));
    assert_eq!(layers("image0"), layers("image2"));
}

#[test]
fn steps_that_several_stages_share_are_executed_once() {
    let env = test_env!().with_busybox();
    let stage = "RUN cat /proc/sys/kernel/random/uuid >/id\nRUN cp /id /copy\n";
    let dockerfile = format!(
        "FROM busybox AS a\n{stage}FROM busybox AS b\n{stage}FROM busybox\n\
         COPY --from=a /id /a\nCOPY --from=b /copy /b\n"
    );
    for _ in 0..2 {
        env.dockerfile(&dockerfile);
        let output = env.build("one").arg("--no-cache").success();
        assert_eq!(steps(&output).0.len(), 4, "{output}");
        let saved = env.saved("one");
        assert_eq!(saved.text("a"), saved.text("b"));
    }
}

#[test]
fn jobs_says_how_many_steps_run_at_once() {
    let env = test_env!().with_busybox();
    // each waits until the other has begun, or gives up
    let stage = |own: &str, other: &str| {
        format!(
            "FROM busybox AS {own}\nRUN --mount=type=cache,target=/c touch /c/{own}; n=0; \
             while ! test -e /c/{other} && test $n -lt 30; do usleep 100000; n=$((n+1)); done; \
             usleep 500000; rm /c/{own}; echo $n >/{own}\n"
        )
    };
    let dockerfile = format!(
        "{}{}FROM busybox\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n",
        stage("a", "b"),
        stage("b", "a")
    );
    env.dockerfile(&dockerfile);
    let waited = |jobs: &str| {
        let build = env.build("one").args(["--no-cache", "--jobs", jobs]);
        build.success();
        let saved = env.saved("one");
        let count = |name: &str| saved.text(name).trim().parse::<u32>().unwrap();
        count("a").max(count("b"))
    };
    assert_eq!(
        waited("1"),
        30,
        "one waits in vain while the other cannot begin"
    );
    assert!(waited("2") < 30);
    assert!(waited("0") < 30);
    env.build("one").args(["--jobs", "many"]).failure(125);
}

/// The file that a step has left in its cache mount.
fn begun(env: &TestEnv) -> Option<PathBuf> {
    let files = walkdir::WalkDir::new(env.store().join("mounts")).into_iter();
    let mut files = files.flatten();
    let file = files.find(|file| file.file_name() == "begun")?;
    Some(file.into_path())
}

/// What another process is about to finish is in the cache for who must not execute it.
#[test]
fn a_step_that_another_process_executes_is_awaited_by_who_must_not() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\n\
         RUN --mount=type=cache,target=/c touch /c/begun; \
         while test ! -e /c/end; do usleep 10000; done\n",
    );
    let first = env.build("first").spawn();
    let begun = wait_until("the step", || begun(&env));
    let mut second = env.build("second").arg("--require-cached").spawn();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(second.try_wait().unwrap(), None, "it waits");
    fs::write(begun.with_file_name("end"), "").unwrap();
    for (build, executed) in [(first, 1), (second, 0)] {
        let output = Output::of(build);
        assert_eq!(output.code, Some(0), "{output}");
        assert_eq!(steps(&output).0.len(), executed, "{output}");
    }
}

/// A process that awaits the result of another executes the step itself when that fails or is killed.
#[test]
fn a_step_that_another_process_does_not_finish_is_executed_by_who_waits() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\n\
         RUN --mount=type=cache,target=/c --mount=type=secret,id=s touch /c/begun; \
         while test \"$(cat /run/secrets/s)\" = wait && test ! -e /c/end; do usleep 10000; done; \
         test \"$(cat /run/secrets/s)\" = ok\n",
    );
    for ends in ["killed", "failed"] {
        fs::write(env.path("wait"), "wait").unwrap();
        fs::write(env.path("ok"), "ok").unwrap();
        let start = |tag: &str, secret: &str| {
            let secret = format!("id=s,src={}", env.path(secret).display());
            env.build(tag)
                .args(["--secret", &secret])
                .arg("--no-cache")
                .spawn()
        };
        let mut first = start("first", "wait");
        let begun = loop {
            if let Some(file) = begun(&env) {
                break file;
            }
            assert_eq!(first.try_wait().unwrap(), None, "the first one still waits");
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let second = start("second", "ok");
        std::thread::sleep(std::time::Duration::from_millis(500));
        if ends == "killed" {
            first.kill().unwrap();
        } else {
            fs::write(begun.with_file_name("end"), "").unwrap();
        }
        let first = Output::of(first);
        assert_ne!(first.code, Some(0), "{first}");
        let second = Output::of(second);
        assert_eq!(second.code, Some(0), "{ends}: {second}");
        assert_eq!(steps(&second).0.len(), 1, "{ends}: {second}");
        for name in ["begun", "end"] {
            drop(fs::remove_file(begun.with_file_name(name)));
        }
    }
}
