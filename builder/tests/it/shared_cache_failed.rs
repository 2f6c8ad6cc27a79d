//! What becomes of caches beyond one store when a build fails (C5): the steps that ended well are
//! added to them, and nothing in them is lost.

use std::fs;

use crate::bucket::{self, Bucket};
use crate::cache::steps;
use crate::env::{Output, TestEnv, test_env};
use crate::shared_cache::{build, documents, summary};

/// A project of which step after step comes to be right: `first` has nothing but the base below it.
fn project(env: &TestEnv, first: &str, second: &str) {
    env.dockerfile(&format!(
        "FROM busybox\n\
         RUN : {first}; head -c 9 /dev/urandom | base64 >/first\n\
         RUN : {second}; head -c 9 /dev/urandom | base64 >/second; test {second} != wrong\n\
         RUN echo third >/third\n"
    ));
}

/// What a machine executes that has nothing but the cache.
fn executed(env: &TestEnv, machine: &str, from: &str) -> usize {
    let output = build(env, machine, &["--cache-from", from]).success();
    steps(&output).0.len()
}

fn failed(env: &TestEnv, machine: &str, to: &str) -> Output {
    let output = build(env, machine, &["--cache-to", to]).failure(1);
    assert!(output.stderr.contains("exit code: 1"), "{output}");
    output
}

/// The steps before the one that failed are there for the next machine, and so is what was there.
fn adds(env: &TestEnv, to: &str, from: &str) {
    project(env, "one", "wrong");
    let output = failed(env, "one", to);
    assert!(
        summary(&output).starts_with("cache: 0 hit, 1 new, sent "),
        "{output}"
    );
    let last = output.stderr.find("exit code: 1").unwrap();
    assert!(output.stderr.find("cache: ").unwrap() < last, "{output}");

    project(env, "one", "right");
    assert_eq!(executed(env, "two", from), 2);
    build(env, "two", &["--cache-to", to]).success();
    assert_eq!(executed(env, "three", from), 0);

    project(env, "other", "wrong");
    failed(env, "four", to);
    project(env, "other", "right");
    assert_eq!(executed(env, "five", from), 2);
    project(env, "one", "right");
    assert_eq!(executed(env, "six", from), 0, "nothing was lost");
}

#[test]
fn c5_a_build_that_fails_adds_to_a_registry() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let reference = format!("type=registry,ref={}", registry.name("app:cache"));
    adds(&env, &reference, &reference);
}

/// Also one that else would hold the last build alone.
#[test]
fn c5_a_build_that_fails_adds_to_a_folder() {
    let env = test_env!().with_busybox();
    let to = "type=local,dest=cache,reset=true";
    adds(&env, to, "type=local,src=cache");
}

#[test]
fn c5_a_build_that_fails_adds_to_a_bucket() {
    let env = test_env!()
        .with_busybox()
        .with_variable("AWS_ACCESS_KEY_ID", bucket::ID)
        .with_variable("AWS_SECRET_ACCESS_KEY", bucket::SECRET)
        .with_variable("AWS_SESSION_TOKEN", bucket::SESSION);
    let bucket = Bucket::start();
    let place = format!(
        "type=s3,bucket=ci,region={},endpoint_url=http://{},name=main",
        bucket::REGION,
        bucket.address
    );
    adds(&env, &place, &place);
}

#[test]
fn c5_a_build_that_fails_at_once_exports_nothing() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN false\n");
    let output = failed(&env, "one", "type=local,dest=cache");
    assert!(summary(&output).starts_with("cache: 0 hit, 0 new, sent 0B"));
    assert!(!env.path("cache/index.json").exists());
}

/// With `mode=min` the stages are left out, as ever.
#[test]
fn c5_1_a_build_that_fails_exports_what_its_mode_says() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox AS tools\nRUN echo tool >/tool\n\
         FROM busybox\nRUN echo one >/one\nCOPY --from=tools /tool /copy\nRUN false\n",
    );
    for (mode, layers) in [("min", 2), ("max", 3)] {
        let to = format!("type=local,dest={mode},mode={mode}");
        failed(&env, mode, &to);
        let (manifest, _) = documents(&env.path(mode));
        assert_eq!(manifest["layers"].as_array().unwrap().len(), layers);
    }
}

/// What cannot be read cannot be added to: it stays as it is, and the build fails for its own reason.
#[test]
fn c5_2_a_build_that_fails_leaves_a_cache_that_it_cannot_read() {
    let env = test_env!().with_busybox();
    project(&env, "one", "right");
    build(&env, "one", &["--cache-to", "type=local,dest=cache"]).success();
    let (manifest, _) = documents(&env.path("cache"));
    let digest = manifest["config"]["digest"].as_str().unwrap();
    let config = env
        .path("cache/blobs/sha256")
        .join(&digest["sha256:".len()..]);
    fs::write(&config, "{}").unwrap();
    let index = fs::read(env.path("cache/index.json")).unwrap();
    project(&env, "other", "wrong");
    for more in ["", ",ignore-error=false"] {
        let output = failed(&env, "one", &format!("type=local,dest=cache{more}"));
        assert!(
            output
                .stderr
                .contains("\nwarning: exporting the cache to cache failed: "),
            "{output}"
        );
        assert_eq!(fs::read(env.path("cache/index.json")).unwrap(), index);
    }
}
