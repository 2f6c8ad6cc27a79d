//! `--build-context NAME=VALUE` (C7).

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

use crate::env::{Output, Run, TestEnv, test_env};

/// Builds with one named context.
fn build(env: &TestEnv, context: &str) -> Run {
    env.build("one").args(["--build-context", context])
}

/// Writes a file below a folder of the environment, outside the build context.
fn file(env: &TestEnv, path: &str, content: &str) {
    let path = env.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// C7.4
#[test]
fn a_folder_is_a_context_with_an_ignore_file_of_its_own() {
    let env = test_env!();
    for path in ["extra/a", "extra/b", "extra/ignored", "extra/deep/c"] {
        file(&env, path, path);
    }
    fs::write(env.path("extra/.dockerignore"), "ignored\n.dockerignore\n").unwrap();
    chown(env.path("extra/a"), Some(1000), Some(1000)).unwrap();
    env.file(".dockerignore", "a\n")
        .file("ignored", "of the build context");
    env.dockerfile("FROM scratch\nCOPY --from=extra . /x/\nCOPY ignored /\n");
    build(&env, "extra=extra").success();
    let saved = env.saved("one");
    assert_eq!(saved.text("ignored"), "of the build context");
    let layer = &saved.layers[0];
    let paths: Vec<&str> = layer.keys().map(String::as_str).collect();
    assert_eq!(paths, ["x", "x/a", "x/b", "x/deep", "x/deep/c"]);
    assert_eq!(layer["x/a"].owner, (0, 0));
    // The ignore file that a Dockerfile has for itself is not for other contexts.
    env.file("Dockerfile.dockerignore", "b\n");
    let id = env.inspect("one")["Id"].clone();
    build(&env, "extra=extra").success();
    assert_eq!(env.inspect("one")["Id"], id);
    env.dockerfile("FROM scratch\nCOPY --from=extra ignored /\n");
    let failed = build(&env, "extra=extra").failure(1);
    assert!(
        failed.stderr.contains(
            "`ignored`: not in named context \"extra\" (extra): excluded by .dockerignore line 1"
        ),
        "{failed}"
    );
    // The other flags of COPY hold, wildcards too.
    env.dockerfile("FROM scratch\nCOPY --from=extra --chown=7 --chmod=600 [ab] /x/\n");
    build(&env, "extra=./extra").success();
    let saved = env.saved("one");
    let entry = &saved.top()["x/b"];
    assert_eq!((entry.owner, entry.mode & 0o7777), ((7, 7), 0o600));
}

/// A15.1: the content of the folder is in the key, its place is not.
#[test]
fn what_a_folder_holds_decides_and_not_where_it_is() {
    let env = test_env!();
    for folder in ["first", "second"] {
        file(&env, &format!("{folder}/a"), "1");
    }
    env.dockerfile("FROM scratch\nCOPY --from=x a /\n");
    let cached = |output: &Output| {
        output.stderr.contains("COPY --from=x a /\n#") && output.stderr.contains("CACHED")
    };
    assert!(!cached(&build(&env, "x=first").success()));
    assert!(cached(&build(&env, "x=first").success()));
    assert!(cached(&build(&env, "x=second").success()));
    file(&env, "second/a", "2");
    let built = build(&env, "x=second").success();
    assert!(!cached(&built), "{built}");
    assert_eq!(env.saved("one").text("a"), "2");
    assert!(cached(&build(&env, "x=first").success()));
    assert_eq!(env.saved("one").text("a"), "1");
}

/// A7.2, C7.2
#[test]
fn a_folder_may_be_what_a_stage_stands_on() {
    let env = test_env!();
    fs::create_dir_all(env.path("root/bin")).unwrap();
    fs::copy("/bin/busybox", env.path("root/bin/sh")).unwrap();
    fs::set_permissions(env.path("root/bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
    file(&env, "root/etc/said", "hello");
    let dockerfile =
        |said: &str| format!("FROM base\nRUN read x </etc/said; echo \"$x {said}\" >/out\n");
    env.dockerfile(&dockerfile("one"));
    build(&env, "docker.io/library/base=root").success();
    let saved = env.saved("one");
    assert_eq!(saved.layers.len(), 2);
    assert_eq!(saved.text("out"), "hello one\n");
    assert_eq!(saved.layers[0]["bin/sh"].owner, (0, 0));
    assert_eq!(saved.config["config"]["WorkingDir"], "/");
    let history = saved.config["history"].as_array().unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(history[0]["created_by"], "local source for base");
    assert!(history[0].get("empty_layer").is_none());
    // Only what changed is done again.
    env.dockerfile(&dockerfile("two"));
    let again = build(&env, "base=root").success();
    assert_eq!(again.stderr.matches("CACHED").count(), 1, "{again}");
    file(&env, "root/etc/said", "bye");
    build(&env, "base=root").success();
    assert_eq!(env.saved("one").text("out"), "bye two\n");
    // An image that holds it can be pushed on, built on, and saved.
    env.dockerfile("FROM one\nRUN echo more >>/out\n");
    env.build("two").success();
    assert_eq!(env.saved("two").text("out"), "bye two\nmore\n");
}

/// A7.2
#[test]
fn images_take_the_place_of_images_and_stages() {
    let env = test_env!().with_busybox();
    env.built(
        "changed",
        "FROM busybox\nENV CHANGED=yes\nRUN echo changed >/changed\n",
    );
    env.dockerfile(
        "FROM alpine:3 AS tools\nRUN this never runs\nFROM alpine\nCOPY --from=tools /changed /copied\n",
    );
    let both = ["tools", "docker.io/library/alpine:latest"]
        .map(|name| format!("{name}=docker-image://changed"));
    env.build("one")
        .args(["--build-context", &both[0], "--build-context", &both[1]])
        .success();
    let saved = env.saved("one");
    assert_eq!(saved.text("copied"), "changed\n");
    assert!(
        saved.config["config"]["Env"]
            .to_string()
            .contains("CHANGED=yes")
    );
    env.build("one")
        .args(["--build-context", &both[0], "--target", "tools"])
        .success();
    assert_eq!(env.saved("one").text("changed"), "changed\n");
    // nothing at all
    env.dockerfile("FROM alpine\nCOPY Dockerfile /x\n");
    build(&env, "alpine=docker-image://scratch").success();
    assert_eq!(env.saved("one").layers.len(), 1);
    // an image that is nowhere
    let failed = build(&env, "alpine=docker-image://127.0.0.1:1/none").failure(3);
    assert!(
        failed.stderr.contains(
            "failed to resolve source metadata for `127.0.0.1:1/none` of named context \"alpine\" \
             (docker-image://127.0.0.1:1/none)"
        ),
        "{failed}"
    );
}

/// C7.3
#[test]
fn a_context_may_be_for_one_platform() {
    let env = test_env!();
    for folder in ["all", "arm"] {
        file(&env, &format!("{folder}/a"), folder);
    }
    env.dockerfile("FROM scratch\nCOPY --from=x a /\n");
    let said = |platform: &str| {
        env.build("one")
            .args([
                "--build-context",
                "x::linux/arm64=arm",
                "--build-context",
                "x=all",
            ])
            .args(["--platform", platform])
            .success();
        env.saved("one").text("a")
    };
    assert_eq!(
        (said("linux/arm64"), said("linux/amd64")),
        ("arm".into(), "all".into())
    );
}

/// C7.1
#[test]
fn an_image_may_lie_in_a_layout() {
    let env = test_env!("skopeo").with_busybox();
    env.built(
        "source",
        "FROM busybox\nENV FROM=layout\nRUN echo layout >/said\n",
    );
    let archive = env.path("source.tar");
    fs::write(&archive, env.kiln(["save", "source"]).success().bytes).unwrap();
    let digest_file = env.path("digest");
    env.program(
        "skopeo",
        ["--insecure-policy", "copy", "-q", "--digestfile"],
    )
    .arg(&digest_file)
    .arg(format!("docker-archive:{}", archive.display()))
    .arg(format!("oci:{}:one", env.path("layout").display()))
    .success();
    let digest = fs::read_to_string(digest_file).unwrap();
    env.dockerfile("FROM base\nRUN test \"$FROM\" = layout && cat /said >/again\n");
    for (store, place) in [
        ("first", "layout".to_owned()),
        ("second", "layout:one".to_owned()),
        ("third", format!("layout@{digest}")),
    ] {
        let run = env.kiln_in(store, ["build", "-t", "one", "--build-context"]);
        run.arg(format!("base=oci-layout://{place}"))
            .arg(env.context())
            .success();
        let saved = env.kiln_in(store, ["save", "one"]).success();
        assert_eq!(
            crate::saved::Saved::read(&saved.bytes).text("again"),
            "layout\n"
        );
        // Its layers are there, it itself is not.
        let images = env.kiln_in(store, ["images", "-q"]).success();
        assert_eq!(images.stdout.lines().count(), 1, "{images}");
    }
    for (place, message) in [
        ("nowhere", "is not an OCI image layout"),
        ("layout:two", "has no image `two`; it has"),
        (
            "layout@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "has no image `sha256:0000",
        ),
    ] {
        let failed = build(&env, &format!("base=oci-layout://{place}")).failure(1);
        assert!(
            failed.stderr.contains(message) && failed.stderr.contains("of named context \"base\""),
            "{failed}"
        );
    }
}

#[test]
fn what_cannot_be_a_context_is_refused_before_anything_runs() {
    let env = test_env!();
    fs::write(env.path("file"), "").unwrap();
    env.dockerfile("FROM scratch\nCOPY --from=x a /\n");
    for (context, message) in [
        (
            "x=nowhere",
            "error: in named context \"x\" (nowhere): path \"nowhere\" not found\n\
             hint: an image is named as `docker-image://nowhere`\n",
        ),
        (
            "y=file",
            "error: in named context \"y\" (file): unable to prepare context: \"file\" is not a directory\n",
        ),
    ] {
        assert_eq!(build(&env, context).arg("-q").failure(1).stderr, message);
    }
    for (context, message) in [
        ("x", "error: invalid context value: x, expected key=value\n"),
        (
            "scratch=.",
            "error: invalid context name `scratch`: it is reserved\n",
        ),
        ("Up=.", "error: invalid context name `Up`: "),
        (
            "x=https://h/x.tar",
            "error: named context \"x\": an archive from a URL is not supported: unpack it into a folder and name that\n",
        ),
        (
            "x=target:y",
            "error: named context \"x\": `target:` is known in bake files only\n",
        ),
    ] {
        let failed = build(&env, context).failure(125);
        assert!(failed.stderr.starts_with(message), "{failed}");
    }
    fs::create_dir(env.path("empty")).unwrap();
    let failed = build(&env, "x=empty").arg("-q").failure(1);
    assert!(
        failed
            .stderr
            .contains("`a`: not found in named context \"x\" (empty)"),
        "{failed}"
    );
    file(&env, "full/a", "");
    fs::write(env.path("full/.dockerignore"), "[").unwrap();
    let failed = build(&env, "x=full").arg("-q").failure(1);
    assert!(
        failed
            .stderr
            .starts_with("error: in named context \"x\" (full): invalid ignore file"),
        "{failed}"
    );
    // One that nothing names does no harm, and is told of.
    env.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let built = build(&env, "scretch=empty").success();
    assert!(
        built
            .stderr
            .contains("\nnamed context `scretch` is not used by any FROM")
            && built.stderr.contains("hint: did you mean `scratch`?"),
        "{built}"
    );
}
