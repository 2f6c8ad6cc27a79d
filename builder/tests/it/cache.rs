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
fn executed(env: &TestEnv, dockerfile: &str) -> Vec<String> {
    steps(&env.dockerfile(dockerfile).build("one").success()).0
}

const THREE: &str = "FROM busybox\nCOPY dir /dir\nRUN cat /dir/* >/sum\nWORKDIR /w\nRUN echo >x\n";

fn three(env: &TestEnv) -> Vec<String> {
    executed(env, THREE)
}

const ALL: [&str; 4] = [
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
    assert_eq!(executed(&env, moved), ["RUN echo one", "RUN echo two"]);
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
