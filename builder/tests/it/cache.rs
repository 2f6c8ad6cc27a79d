//! What is executed again and what is not (A15), and what never gets into the cache or the image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::env::{Output, TestEnv, test_env};

/// The instructions that a build executed, and those it took from the cache, each in the order of
/// their numbers and without their `[1/2]`.
pub(crate) fn steps(output: &Output) -> (Vec<String>, Vec<String>) {
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let (mut executed, mut cached) = (Vec::new(), Vec::new());
    for line in output.stderr.lines() {
        let Some((number, text)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let number: u32 = number.parse().unwrap();
        let name = names.entry(number).or_insert_with(|| {
            let name = text.split_once("] ").map_or(text, |(_, name)| name);
            name.to_owned()
        });
        if text == "CACHED" && !name.starts_with("FROM ") {
            cached.push(name.clone());
        } else if text.starts_with("DONE ") {
            executed.push(name.clone());
        }
    }
    (executed, cached)
}

/// Builds and gives what was executed.
pub(crate) fn executed(env: &TestEnv, dockerfile: &str) -> Vec<String> {
    steps(&env.dockerfile(dockerfile).build("one").success()).0
}

const THREE: &str = "FROM busybox\nCOPY dir /dir\nRUN cat /dir/* >/sum\nWORKDIR /w\nRUN echo >x\n";

pub(crate) fn three(env: &TestEnv) -> Vec<String> {
    executed(env, THREE)
}

pub(crate) const ALL: [&str; 4] = [
    "COPY dir /dir",
    "RUN cat /dir/* >/sum",
    "WORKDIR /w",
    "RUN echo >x",
];

#[test]
fn a_second_build_executes_nothing_and_makes_the_same_image() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1");
    assert_eq!(three(&env), ALL);
    let first = env.inspect("one");
    let (executed, cached) = steps(&env.build("two").success());
    assert_eq!(executed, [""; 0]);
    assert_eq!(cached, ALL);
    assert_eq!(env.inspect("two")["Id"], first["Id"]);
}

#[test]
fn a15_1_times_of_files_are_not_in_the_key() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1");
    three(&env);
    let file = env.context().join("dir/a");
    for path in [
        file.as_path(),
        Path::new("context/dir"),
        Path::new("context"),
    ] {
        let path = path.to_str().unwrap();
        env.program("touch", ["-d", "@1000000000", path]).success();
    }
    assert_eq!(three(&env), [""; 0]);
    // the same content, written again
    fs::remove_file(&file).unwrap();
    env.file("dir/a", "1");
    assert_eq!(three(&env), [""; 0]);
}

#[test]
fn a15_1_contents_modes_names_and_attributes_are_in_the_key() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1").file("dir/b", "2");
    three(&env);
    env.file("dir/a", "3");
    assert_eq!(three(&env), ALL, "content, of the same size");
    let file = env.context().join("dir/a");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(three(&env), ALL, "mode");
    fs::rename(&file, env.context().join("dir/c")).unwrap();
    assert_eq!(three(&env), ALL, "name");
    env.file("dir/d", "");
    assert_eq!(three(&env), ALL, "one more");
    fs::remove_file(env.context().join("dir/d")).unwrap();
    assert_eq!(three(&env), [""; 0], "back to what was built before");
    rustix::fs::setxattr(
        env.context().join("dir/c"),
        "user.mark",
        b"1",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    assert_eq!(three(&env), ALL, "attribute");
}

#[test]
fn what_is_not_copied_and_where_the_context_lies_do_not_matter() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1").file(".dockerignore", "**/*.log\n");
    three(&env);
    env.file("beside", "new").file("dir/x.log", "ignored");
    assert_eq!(three(&env), [""; 0]);
    fs::rename(env.context(), env.path("elsewhere")).unwrap();
    let moved = env.kiln(["build", "elsewhere"]).success();
    assert_eq!(steps(&moved).0, [""; 0]);
}

#[test]
fn a_changed_instruction_executes_itself_and_what_follows() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1");
    three(&env);
    let changed = THREE.replace("WORKDIR /w", "WORKDIR /v");
    assert_eq!(executed(&env, &changed), ["WORKDIR /v", "RUN echo >x"]);
    let changed = THREE.replace("COPY dir", "COPY --chown=1:1 dir");
    assert_eq!(executed(&env, &changed).len(), 4);
    // the first state is still known
    assert_eq!(three(&env), [""; 0]);
}

#[test]
fn a15_3_an_argument_invalidates_the_first_run_behind_it() {
    let env = test_env!().with_busybox();
    env.file("file", "x").dockerfile(
        "ARG UNUSED\nFROM busybox\nRUN echo before\nARG A\nCOPY file /\nRUN echo behind\n",
    );
    let build = |args: &[&str]| {
        let build = env.build("one").args(args.iter().copied());
        steps(&build.success()).0
    };
    assert_eq!(build(&["--build-arg", "A=1"]).len(), 3);
    assert_eq!(build(&["--build-arg", "A=2"]), ["RUN echo behind"]);
    assert_eq!(build(&["--build-arg", "A=1"]), [""; 0]);
    assert_eq!(
        build(&["--build-arg", "A=1", "--build-arg", "UNUSED=1"]),
        [""; 0]
    );
    assert_eq!(build(&[]), ["RUN echo behind"], "unset is not empty");
    assert_eq!(build(&["--build-arg", "A="]), ["RUN echo behind"]);
}

#[test]
fn a15_7_metadata_executes_nothing_and_env_what_sees_it() {
    let env = test_env!().with_busybox();
    let first = "FROM busybox\nRUN echo one\nENV A=1\nRUN echo two\n";
    assert_eq!(executed(&env, first).len(), 2);
    for more in [
        "LABEL l=1\n",
        "ENV B=2\n",
        "CMD [\"x\"]\n",
        "EXPOSE 1\n",
        "USER 7\n",
    ] {
        assert_eq!(executed(&env, &format!("{first}{more}")), [""; 0], "{more}");
    }
    let labelled = first.replace("RUN echo one", "LABEL l=1\nRUN echo one");
    assert_eq!(executed(&env, &labelled), [""; 0]);
    let changed = first.replace("A=1", "A=2");
    assert_eq!(executed(&env, &changed), ["RUN echo two"]);
    // an ENV that moves in front of a step is new to it
    let moved = "FROM busybox\nENV A=1\nRUN echo one\nRUN echo two\n";
    // and leaves the same as before, so that the other one need not be executed
    assert_eq!(executed(&env, moved), ["RUN echo one"]);
}

#[test]
fn a15_4_what_the_base_is_counts_and_not_its_name() {
    let env = test_env!().with_busybox();
    env.built("base", "FROM busybox\nRUN echo 1 >/version\n");
    let dockerfile = "FROM base\nRUN cat /version >/seen\n";
    assert_eq!(executed(&env, dockerfile), ["RUN cat /version >/seen"]);
    env.kiln(["tag", "base", "other:name"]).success();
    assert_eq!(
        executed(&env, &dockerfile.replace("base", "other:name")),
        [""; 0]
    );
    env.built("base", "FROM busybox\nRUN echo 2 >/version\n");
    assert_eq!(executed(&env, dockerfile), ["RUN cat /version >/seen"]);
    assert_eq!(env.saved("one").text("seen"), "2\n");
}

#[test]
fn a15_5_a_stage_that_makes_the_same_bytes_stops_the_invalidation() {
    let env = test_env!().with_busybox();
    let dockerfile = "FROM busybox AS make\n\
         RUN echo bytes >/out; echo SECOND >/other\n\
         FROM busybox\n\
         COPY --from=make /out /out\n\
         RUN cat /out\n";
    assert_eq!(executed(&env, dockerfile).len(), 3);
    let changed = dockerfile.replace("SECOND", "third");
    assert_eq!(
        executed(&env, &changed),
        ["RUN echo bytes >/out; echo third >/other"]
    );
    let changed = dockerfile.replace("bytes", "others");
    assert_eq!(executed(&env, &changed).len(), 3);
}

#[test]
fn a15_6_no_cache_executes_everything_and_is_remembered() {
    let env = test_env!().with_busybox();
    env.file("file", "x");
    env.dockerfile("FROM busybox\nCOPY file /\nRUN cat /proc/sys/kernel/random/uuid >/id\n");
    env.build("one").success();
    let again = env.build("two").arg("--no-cache").success();
    assert_eq!(steps(&again).0.len(), 2);
    let second = env.saved("two").text("id");
    assert_ne!(env.saved("one").text("id"), second);
    assert_eq!(steps(&env.build("three").success()).0, [""; 0]);
    assert_eq!(env.saved("three").text("id"), second);
}

#[test]
fn a_failed_step_leaves_those_before_it_in_the_cache() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN echo good\nRUN exit 9\n");
    env.build("one").failure(1);
    let fixed = "FROM busybox\nRUN echo good\nRUN exit 0\n";
    assert_eq!(executed(&env, fixed), ["RUN exit 0"]);
}

#[test]
fn a6_9_proxies_reach_steps_and_nothing_else() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\nRUN test -n \"$http_proxy\" && test -n \"$HTTPS_PROXY\" && echo ok >/ok\n",
    );
    let build = |tag: &str, value: &str| {
        env.build(tag)
            .args(["--build-arg", &format!("http_proxy=http://{value}:1")])
            .args(["--build-arg", &format!("HTTPS_PROXY=http://{value}:2")])
            .success()
    };
    build("one", "secret-host");
    let saved = env.saved("one");
    assert_eq!(saved.top_paths(), ["ok"]);
    let config = saved.config.to_string().to_lowercase();
    assert!(!config.contains("secret-host"), "{config}");
    let again = build("two", "other-host");
    assert_eq!(steps(&again).0, [""; 0], "the value is not in the key");
    // declared, it is an argument like any other
    let declared = "FROM busybox\nARG http_proxy\nRUN echo \"$http_proxy\" >/seen\n";
    env.dockerfile(declared);
    build("three", "first");
    let config = env.saved("three").config.to_string();
    assert!(config.contains("|1 http_proxy=http://first:1"), "{config}");
    assert_eq!(steps(&build("three", "second")).0.len(), 1);
}

#[test]
fn the_host_s_certificates_and_proxies_reach_steps_and_nothing_else() {
    let env = test_env!().with_busybox();
    env.file("own.crt", "of the image\n").file(
        "check",
        "grep -q host-bundle $SSL_CERT_FILE && \
         grep -q host-bundle /etc/ssl/certs/ca-certificates.crt && \
         test $HTTPS_PROXY = http://of-host:1 && touch /checked\n",
    );
    env.dockerfile(
        "FROM busybox\n\
         COPY own.crt /etc/ssl/certs/ca-certificates.crt\n\
         COPY check /\n\
         RUN sh /check\n",
    );
    let bundle = env.path("bundle.crt");
    let build = |tag: &str, text: &str| {
        fs::write(&bundle, text).unwrap();
        env.build(tag)
            .arg("--host-ca")
            .env("SSL_CERT_FILE", &bundle)
            .env("HTTPS_PROXY", "http://of-host:1")
            .success()
    };
    build("one", "host-bundle 1");
    let saved = env.saved("one");
    assert_eq!(
        saved.text("etc/ssl/certs/ca-certificates.crt"),
        "of the image\n"
    );
    assert_eq!(saved.top_paths(), ["checked"]);
    let config = saved.config.to_string();
    for word in ["of-host", "kiln-host-ca", "SSL_CERT_FILE", "bundle"] {
        assert!(!config.contains(word), "{word}: {config}");
    }
    assert_eq!(steps(&build("two", "host-bundle 2")).0, [""; 0]);
    let without = env.build("three").success();
    assert_eq!(steps(&without).0, [""; 0]);
}

/// The stages `make` and the last one, which reads what that makes.
const STAGES: &str = "FROM busybox AS make\n\
     RUN cat /proc/sys/kernel/random/uuid >/id; echo same >/same\n\
     FROM busybox AS copy\n\
     COPY --from=make /same /same\n\
     RUN cat /same\n\
     FROM copy\n\
     COPY --from=make /id /id\n\
     RUN cat /id\n";

#[test]
fn a15_6_no_cache_filter_executes_the_steps_of_a_stage_and_what_really_changed() {
    let env = test_env!().with_busybox();
    let make = "RUN cat /proc/sys/kernel/random/uuid >/id; echo same >/same";
    assert_eq!(executed(&env, STAGES).len(), 5);
    let filtered = |value: &str| {
        let build = env.build("one").args(["--no-cache-filter", value]);
        build.success()
    };
    let again = filtered("make");
    assert_eq!(
        steps(&again).0,
        [make, "COPY --from=make /id /id", "RUN cat /id"]
    );
    // by number, with another that has no steps of its own to execute but what it reads
    assert_eq!(steps(&filtered("0")).0.len(), 3);
    assert_eq!(
        steps(&filtered("COPY")).0,
        ["COPY --from=make /same /same", "RUN cat /same"],
        "what they leave is the same"
    );
    assert_eq!(steps(&filtered("copy,make")).0.len(), 5);
    let unknown = filtered("mkae");
    assert_eq!(steps(&unknown).0, [""; 0]);
    let text = "note: --no-cache-filter: no stage is called `mkae`";
    assert!(unknown.stderr.contains(text), "{unknown}");
    env.build("one")
        .args(["--no-cache-filter", "make", "--no-cache"])
        .failure(125);
    assert_eq!(executed(&env, STAGES), [""; 0]);
}

#[test]
fn a15_6_cache_mounts_are_kept_without_the_cache() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\nRUN --mount=type=cache,target=/c echo x >>/c/log; cp /c/log /log\n",
    );
    env.build("one").success();
    env.build("one").arg("--no-cache").success();
    assert_eq!(env.saved("one").text("log"), "x\nx\n");
}

#[test]
fn a15_5_a_run_that_leaves_the_same_bytes_stops_the_invalidation() {
    let env = test_env!().with_busybox();
    let dockerfile = "FROM busybox\n\
         ARG A\n\
         RUN echo bytes >/out; echo $A >/tmp/a; rm /tmp/a\n\
         WORKDIR /w\n\
         COPY file /file\n";
    env.file("file", "x").dockerfile(dockerfile);
    let build = |a: &str| {
        let build = env.build("one").args(["--build-arg", &format!("A={a}")]);
        let executed = steps(&build.success()).0;
        (executed, env.inspect("one")["RootFS"]["Layers"].clone())
    };
    let (executed, layers) = build("1");
    assert_eq!(executed.len(), 3);
    let (executed, same) = build("2");
    assert_eq!(executed.len(), 1, "{executed:?}");
    assert_eq!(layers, same, "the layer is the former one, times included");
    env.dockerfile(&dockerfile.replace("bytes", "other"));
    assert_eq!(build("2").0.len(), 3);
}

/// What of a `RUN` is in its key, one change after the other.
#[test]
fn a15_2_what_a_run_is_counts_and_what_the_machine_lends_it_does_not() {
    let env = test_env!().with_busybox();
    env.file("shown/a", "1").file("beside", "1");
    fs::write(env.path("secret"), "one").unwrap();
    let secret = format!("id=s,src={}", env.path("secret").display());
    let run = "FROM busybox\n\
        ARG A\n\
        ENV E=1\n\
        USER 0\n\
        WORKDIR /tmp\n\
        RUN --network=none --mount=type=bind,source=shown,target=/shown \
        --mount=type=cache,id=one,target=/c --mount=type=secret,id=s \
        cat /proc/sys/kernel/random/uuid >/id\n";
    let usual = [
        "--build-arg",
        "A=1",
        "--add-host",
        "name:10.0.0.1",
        "--secret",
        &secret,
    ];
    let runs = |text: &str, args: &[&str]| {
        env.dockerfile(text);
        let build = env.build("one").args(usual).args(args.iter().copied());
        let executed = steps(&build.success()).0;
        executed
            .iter()
            .filter(|step| step.starts_with("RUN"))
            .count()
    };
    assert_eq!(runs(run, &[]), 1);
    // must not rebuild
    fs::write(env.path("secret"), "two").unwrap();
    assert_eq!(runs(run, &[]), 0, "the secret");
    env.file("beside", "2");
    assert_eq!(runs(run, &[]), 0, "a file beside the bind");
    for (from, to) in [
        ("id=one", "id=two"),
        ("id=one", "id=one,sharing=locked"),
        ("FROM busybox\n", "FROM busybox\nLABEL l=1\n"),
    ] {
        assert_eq!(runs(&run.replace(from, to), &[]), 0, "{to}");
    }
    for args in [
        ["--build-arg", "HTTP_PROXY=http://127.0.0.1:1"],
        ["--label", "l=1"],
        ["--jobs", "1"],
    ] {
        assert_eq!(runs(run, &args), 0, "{args:?}");
    }
    env.dockerfile(run);
    let addresses = [
        "--build-arg",
        "A=1",
        "--add-host",
        "name:10.0.0.2",
        "--secret",
        &secret,
    ];
    let other = env.build("one").args(addresses).success();
    assert_eq!(steps(&other).0, [""; 0], "the address of a host");
    // must rebuild
    for (from, to) in [
        ("random/uuid >", "random/uuid>"),
        ("E=1", "E=2"),
        ("USER 0", "USER 0:0"),
        ("WORKDIR /tmp", "WORKDIR /"),
        ("--network=none", "--network=default"),
        ("target=/c", "target=/d"),
        ("target=/c", "target=/c,ro"),
        ("target=/shown", "target=/show"),
        ("type=secret,id=s", "type=secret,id=s,target=/s"),
    ] {
        assert_eq!(runs(&run.replace(from, to), &[]), 1, "{from} -> {to}");
    }
    for args in [
        ["--build-arg", "A=2"],
        ["--ulimit", "nofile=100:100"],
        ["--memory", "64m"],
        ["--add-host", "more:10.0.0.3"],
        ["--shm-size", "1m"],
    ] {
        assert_eq!(runs(run, &args), 1, "{args:?}");
    }
    env.file("shown/a", "2");
    assert_eq!(runs(run, &[]), 1, "a file of the bind");
    env.file("shown/a", "1");
    assert_eq!(runs(run, &[]), 0);
}

#[test]
fn a15_4_pull_asks_for_the_base_and_executes_nothing_where_it_is_the_same() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let base = registry.name("base:1");
    let push = |image: &str| {
        env.kiln(["tag", image, &base]).success();
        env.kiln(["push", &base]).success();
    };
    push("busybox");
    env.dockerfile(&format!("FROM {base}\nRUN echo 1 >/one\n"));
    env.build("one").success();
    let pull = || steps(&env.build("one").arg("--pull").success()).0;
    let run = |executed: Vec<String>| {
        executed
            .iter()
            .filter(|step| step.starts_with("RUN"))
            .count()
    };
    assert_eq!(run(pull()), 0);
    // the name moves in the registry, and here it stays what it was
    let other = env.alike().with_busybox();
    other.built("other", "FROM busybox\nRUN echo 2 >/two\n");
    other.kiln(["tag", "other", &base]).success();
    other.kiln(["push", &base]).success();
    assert_eq!(
        run(steps(&env.build("one").success()).0),
        0,
        "without --pull"
    );
    let output = env.build("one").arg("--pull").success();
    assert_eq!(run(steps(&output).0), 1);
    let text = format!("miss: base image {base} moved sha256:");
    assert!(output.stderr.contains(&text), "{output}");
}
