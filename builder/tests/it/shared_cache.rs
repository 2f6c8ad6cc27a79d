//! Caches beyond one store (C5): two stores stand for two machines, which build in turn.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bucket::{self, Bucket};
use crate::cache::steps;
use crate::env::{Output, Run, TestEnv, bases, busybox, test_env};

/// Steps of several stages whose results differ each time they run: who has them has fetched them.
const STAGES: &str = "FROM busybox AS tools\n\
     RUN echo tool >/tool; head -c 9 /dev/urandom | base64 >/stamp\n\
     FROM busybox AS build\n\
     WORKDIR /src\n\
     COPY src /src\n\
     COPY --from=tools /tool /stamp /tools/\n\
     RUN cat /src/* | tr -d '#' >/out; head -c 9 /dev/urandom | base64 >/other\n\
     FROM busybox\n\
     COPY --from=build /out /app/out\n\
     RUN head -c 9 /dev/urandom | base64 >/app/id; ln /app/id /app/link\n\
     LABEL name=app\n\
     CMD [\"cat\", \"/app/out\"]\n";

pub(crate) const STEPS: [&str; 7] = [
    "RUN echo tool >/tool; head -c 9 /dev/urandom | base64 >/stamp",
    "WORKDIR /src",
    "COPY src /src",
    "COPY --from=tools /tool /stamp /tools/",
    "RUN cat /src/* | tr -d '#' >/out; head -c 9 /dev/urandom | base64 >/other",
    "COPY --from=build /out /app/out",
    "RUN head -c 9 /dev/urandom | base64 >/app/id; ln /app/id /app/link",
];

/// An environment with the project.
pub(crate) fn project(env: TestEnv) -> TestEnv {
    env.file("src/a", "one\n")
        .file("src/b", "two\n")
        .dockerfile(STAGES);
    env
}

/// A build on the machine whose store has this name. A new one has the base image.
pub(crate) fn build(env: &TestEnv, machine: &str, args: &[&str]) -> Run {
    if !env.path(machine).exists() {
        env.kiln_in(machine, ["load"]).stdin(busybox()).success();
    }
    let run = env.kiln_in(machine, ["build", "-t", "app"]);
    run.args(args.iter().copied()).arg(env.context())
}

/// What was executed, in the order of the Dockerfile.
pub(crate) fn executed(output: &Output) -> Vec<String> {
    let mut executed = steps(output).0;
    let place = |step: &String| STEPS.iter().position(|known| known == step);
    executed.sort_by_key(place);
    executed
}

pub(crate) fn id(env: &TestEnv, machine: &str) -> String {
    id_of(env, machine, "app")
}

fn id_of(env: &TestEnv, machine: &str, image: &str) -> String {
    let text = env.kiln_in(machine, ["inspect", image]).success().stdout;
    let list: Value = serde_json::from_str(&text).unwrap();
    list[0]["Id"].to_string()
}

/// The line that says what the cache was good for.
pub(crate) fn summary(output: &Output) -> &str {
    let mut lines = output.stderr.lines();
    lines.find(|line| line.starts_with("cache: ")).unwrap()
}

/// The manifest and the config of a cache in a folder.
pub(crate) fn documents(folder: &Path) -> (Value, Value) {
    let read =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        folder.join("blobs/sha256").join(&digest["sha256:".len()..])
    };
    let index = read(folder.join("index.json"));
    let manifest = read(blob(&index["manifests"][0]));
    let config = read(blob(&manifest["config"]));
    (manifest, config)
}

/// Two machines build in turn and the second runs nothing; a third one builds a change, a fourth one
/// a change that makes no difference to what is built.
fn in_turn(env: &TestEnv, to: &str, from: &str) {
    let first = build(env, "one", &["--cache-to", to]).success();
    assert_eq!(executed(&first), STEPS);
    assert!(
        summary(&first).starts_with("cache: 0 hit, 7 new, sent "),
        "{first}"
    );

    let second = build(env, "two", &["--cache-from", from]).success();
    assert_eq!(executed(&second), [""; 0], "{second}");
    assert_eq!(summary(&second), "cache: 2 hit, 0 new");
    assert_eq!(id(env, "one"), id(env, "two"), "it is the same image");
    let run = env.kiln_in("two", ["run", "--rm", "app"]).success();
    assert_eq!(run.stdout, "one\ntwo\n");

    env.file("src/a", "changed\n");
    let third = build(env, "three", &["--cache-from", from]).success();
    assert_eq!(
        executed(&third),
        [STEPS[2], STEPS[3], STEPS[4], STEPS[5], STEPS[6]]
    );
    let run = env.kiln_in("three", ["run", "--rm", "app"]).success();
    assert_eq!(run.stdout, "changed\ntwo\n");

    // what the last stage reads is what it was (A15.5)
    env.file("src/a", "#one\n");
    let fourth = build(env, "four", &["--cache-from", from]).success();
    assert_eq!(
        executed(&fourth),
        [STEPS[2], STEPS[3], STEPS[4]],
        "{fourth}"
    );
    assert_eq!(id(env, "one"), id(env, "four"));
    env.file("src/a", "one\n");
}

#[test]
fn c5_1_two_machines_share_a_registry() {
    let env = project(test_env!("docker-registry"));
    let registry = env.registry();
    let cache = registry.name("app:cache");
    let to = format!("type=registry,ref={cache},mode=max");
    in_turn(&env, &to, &cache);
}

#[test]
fn c5_1_two_machines_share_a_folder() {
    let env = project(test_env!());
    in_turn(
        &env,
        "type=local,dest=cache,mode=max",
        "type=local,src=cache",
    );
}

#[test]
fn c5_1_two_machines_share_a_build_on_a_real_base_image() {
    let env = test_env!("docker-registry");
    let mirror = format!("docker.io=http://{}", bases!());
    let registry = env.registry();
    env.file("main.sh", "cat /etc/debian_version >/version\n")
        .dockerfile(
            "FROM debian AS build\n\
         RUN useradd -m app && su app -c 'echo mine >/home/app/mine'\n\
         COPY main.sh /\n\
         RUN sh /main.sh\n\
         FROM debian\n\
         COPY --from=build /version /home/app/ /data/\n\
         RUN rm -rf /usr/share/doc && head -c 9 /dev/urandom | base64 >/id\n",
        );
    let cache = registry.name("debian:cache");
    let to = format!("type=registry,ref={cache},mode=max,compression=zstd");
    let on = |machine: &str, flag: &str, place: &str| {
        let run = env.kiln_in(
            machine,
            ["--mirror", &mirror, "build", "-t", "app", flag, place],
        );
        run.arg(env.context()).success()
    };
    // fetching the base image is no step
    let ran = |output: &Output| -> Vec<String> {
        let executed = steps(output).0.into_iter();
        executed.filter(|step| !step.starts_with("FROM ")).collect()
    };
    assert_eq!(ran(&on("one", "--cache-to", &to)).len(), 5);
    let second = on("two", "--cache-from", &cache);
    assert_eq!(ran(&second), [""; 0], "{second}");
    assert_eq!(id(&env, "one"), id(&env, "two"));
    env.file("main.sh", "cat /home/app/mine >/version\n");
    let third = on("three", "--cache-from", &cache);
    let expected = [
        "COPY main.sh /",
        "RUN sh /main.sh",
        "COPY --from=build /version /home/app/ /data/",
    ];
    assert_eq!(ran(&third)[..3], expected);
    let run = env
        .kiln_in("three", ["run", "--rm", "app", "cat", "/data/version"])
        .success();
    assert_eq!(run.stdout, "mine\n");
}

#[test]
fn c5_what_was_fetched_is_remembered_and_what_is_not_needed_is_not_fetched() {
    let env = project(test_env!("docker-registry"));
    let registry = env.registry();
    let cache = registry.name("app:cache");
    let to = format!("type=registry,ref={cache},mode=max");
    build(&env, "one", &["--cache-to", &to]).success();
    build(&env, "two", &["--cache-from", &cache]).success();
    let log = registry.log();
    let fetched = |line: &&str| line.contains("GET") && line.contains("/app/blobs/sha256:");
    let fetched = log
        .lines()
        .filter(fetched)
        .filter(|line| line.contains("http.response.status=200"));
    assert_eq!(
        fetched.count(),
        3,
        "the config and the image's two layers\n{log}"
    );
    // without the cache
    let again = build(&env, "two", &[]).success();
    assert_eq!(executed(&again), [""; 0]);
    // and a step upon what was not unpacked yet
    let more = format!("{STAGES}RUN test -s /app/id && cat /app/link >/seen\n");
    env.dockerfile(&more);
    let upon = build(&env, "two", &[]).success();
    assert_eq!(
        steps(&upon).0,
        ["RUN test -s /app/id && cat /app/link >/seen"]
    );
    // a second export sends what is new only
    let third = build(&env, "one", &["--cache-to", &to]).success();
    assert!(!summary(&third).contains("sent 0B"), "{third}");
    let fourth = build(&env, "one", &["--cache-to", &to]).success();
    assert!(
        summary(&fourth).starts_with("cache: 3 hit, 0 new, sent 0B in "),
        "{fourth}"
    );
}

#[test]
fn c5_1_min_has_the_layers_of_the_image_only() {
    let env = project(test_env!());
    build(&env, "one", &["--cache-to", "type=local,dest=cache"]).success();
    let (manifest, _) = documents(&env.path("cache"));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    let second = build(&env, "two", &["--cache-from", "type=local,src=cache"]).success();
    assert_eq!(executed(&second), [""; 0]);
    env.file("src/a", "#one\n");
    let third = build(&env, "three", &["--cache-from", "type=local,src=cache"]).success();
    assert_eq!(executed(&third), STEPS[..5], "the stages are not in it");
    assert_eq!(
        id(&env, "one"),
        id(&env, "three"),
        "their result was (A15.5)"
    );
}

#[test]
fn c5_a_folder_keeps_older_entries_as_far_as_they_fit() {
    let env = test_env!().with_busybox();
    let size = |folder: &str| -> u64 {
        let blobs = fs::read_dir(env.path(folder).join("blobs/sha256")).unwrap();
        blobs
            .map(|blob| blob.unwrap().metadata().unwrap().len())
            .sum()
    };
    let variant = |name: &str, to: &str| {
        // 100 kB that do not compress
        let text = format!("FROM busybox\nRUN : {name}; head -c 100000 /dev/urandom >/{name}\n");
        env.dockerfile(&text);
        build(&env, "store", &["--cache-to", to]).success()
    };
    let known = |name: &str, folder: &str, machine: &str| {
        env.dockerfile(&format!(
            "FROM busybox\nRUN : {name}; head -c 100000 /dev/urandom >/{name}\n"
        ));
        let from = format!("type=local,src={folder}");
        steps(&build(&env, machine, &["--cache-from", &from]).success())
            .0
            .is_empty()
    };
    for name in ["a", "b", "c"] {
        variant(name, "type=local,dest=all");
        let limited = variant(name, "type=local,dest=some,max=250kB");
        assert!(summary(&limited).contains("kB of 250kB"), "{limited}");
    }
    assert!(size("all") > 300_000);
    assert!(known("a", "all", "one") && known("b", "all", "one") && known("c", "all", "one"));
    assert!(size("some") < 260_000, "{}", size("some"));
    assert!(!known("a", "some", "two"));
    assert!(known("b", "some", "two") && known("c", "some", "two"));
    variant("d", "type=local,dest=all,reset=true");
    assert!(size("all") < 110_000, "{}", size("all"));
    assert!(!known("c", "all", "three") && known("d", "all", "three"));
}

#[test]
fn c5_layers_are_sent_while_later_steps_run() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    env.dockerfile(
        "FROM busybox\nRUN echo first >/first\nRUN while ! test -e /wait/go; do sleep 0.1; done\n",
    );
    env.dockerfile(
        "FROM busybox\nRUN echo first >/first\n\
         RUN --mount=type=cache,target=/wait touch /wait/on; while ! test -e /wait/go; do sleep 0.05; done\n",
    );
    let to = format!("type=registry,ref={}", registry.name("app:cache"));
    let mut child = build(&env, "store", &["--cache-to", &to]).spawn();
    let sent = |log: &str| {
        log.lines().any(|line| {
            line.contains("PUT") && line.contains("/v2/app/blobs/uploads/") && line.contains("201")
        })
    };
    let start = std::time::Instant::now();
    while !sent(&registry.log()) {
        assert!(
            start.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(),
            "nothing was sent"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mounts = fs::read_dir(env.store().join("mounts")).unwrap();
    for mount in mounts {
        fs::write(mount.unwrap().path().join("0/fs/go"), "").unwrap();
    }
    let output = Output::of(child);
    assert_eq!(output.code, Some(0), "{output}");
}

#[test]
fn c5_layers_from_elsewhere_become_plain_folders_too() {
    let env = project(test_env!());
    build(
        &env,
        "one",
        &["--cache-to", "type=local,dest=cache,mode=max"],
    )
    .success();
    env.file("src/a", "changed\n");
    let args = [
        "--cache-from",
        "type=local,src=cache",
        "--isolation",
        "chroot",
        "--snapshotter",
        "plain",
    ];
    let second = build(&env, "two", &args).success();
    assert_eq!(
        executed(&second),
        [STEPS[2], STEPS[3], STEPS[4], STEPS[5], STEPS[6]]
    );
}

#[test]
fn c5_1_two_machines_share_a_bucket() {
    let env = project(test_env!())
        .with_variable("AWS_ACCESS_KEY_ID", bucket::ID)
        .with_variable("AWS_SECRET_ACCESS_KEY", bucket::SECRET)
        .with_variable("AWS_SESSION_TOKEN", bucket::SESSION);
    let bucket = Bucket::start();
    let place = format!(
        "type=s3,bucket=ci,region={},endpoint_url=http://{},prefix=caches/,name=main;all",
        bucket::REGION,
        bucket.address
    );
    let to = format!("{place},mode=max,upload_parallelism=2");
    in_turn(&env, &to, &place);
    let names = bucket.names();
    for manifest in ["/ci/caches/manifests/all", "/ci/caches/manifests/main"] {
        assert!(names.iter().any(|name| name == manifest), "{names:?}");
    }
    let blob = |name: &&String| name.starts_with("/ci/caches/blobs/sha256:");
    assert_eq!(
        names.iter().filter(blob).count(),
        8,
        "seven layers and a config: {names:?}"
    );

    // what is there is not sent again, and what is old is made new
    bucket.age();
    let before = bucket.log().len();
    let again = build(&env, "one", &["--cache-to", &to]).success();
    assert!(
        summary(&again).starts_with("cache: 2 hit, 0 new, sent 0B in "),
        "{again}"
    );
    let log = bucket.log()[before..].join("\n");
    assert_eq!(
        log.matches("PUT /ci/caches/blobs/").count(),
        8,
        "each is touched once\n{log}"
    );

    // keys that do not fit, and content that does not
    let wrong = format!(
        "{place},access_key_id={},secret_access_key=hunter2,session_token=hunter3",
        bucket::ID
    );
    let refused = build(&env, "two", &["--no-cache", "--cache-to", &wrong]).success();
    assert!(
        refused
            .stderr
            .contains("warning: exporting the cache to s3://ci/caches/: main, all failed: "),
        "{refused}"
    );
    assert!(
        refused.stderr.contains("SignatureDoesNotMatch"),
        "{refused}"
    );
    for secret in ["hunter", bucket::SECRET] {
        assert!(!refused.stderr.contains(secret), "{refused}");
    }
    bucket.damage("/blobs/");
    let damaged = build(&env, "five", &["--cache-from", &place]).success();
    assert_eq!(executed(&damaged), STEPS, "{damaged}");
}

#[test]
fn c5_1_two_machines_share_an_image() {
    let env = project(test_env!("docker-registry"));
    let registry = env.registry();
    let image = registry.name("app:1");
    let built = |machine: &str| {
        env.kiln_in(machine, ["load"]).stdin(busybox()).success();
        let flags = ["build", "--cache-from", &image, "--cache-to", "type=inline"];
        let run = env.kiln_in(machine, flags).args(["--push", "-t", &image]);
        run.arg(env.context()).success()
    };
    let first = built("one");
    assert_eq!(executed(&first), STEPS);
    let second = built("two");
    assert_eq!(executed(&second), [""; 0], "{second}");
    assert_eq!(id_of(&env, "one", &image), id_of(&env, "two", &image));
    // the other stages are not in it; what they make is (A15.5)
    env.file("src/a", "#one\n");
    let third = built("three");
    assert_eq!(executed(&third), STEPS[..5]);
    // an image upon it does not say what it is made of
    env.dockerfile(&format!("FROM {image}\nRUN echo more >/more\n"));
    build(&env, "three", &[]).success();
    let text = env
        .kiln_in("three", ["save", "app", "-o", "app.tar"])
        .success();
    drop(text);
    let tar = fs::read(env.path("app.tar")).unwrap();
    let name = b"io.kiln.cache.v1";
    assert!(!tar.windows(name.len()).any(|part| part == name));
    let plain = build(&env, "four", &["--cache-from", &registry.name("busybox")]).success();
    assert!(
        plain.stderr.contains(": not found; the build goes on"),
        "{plain}"
    );
}
