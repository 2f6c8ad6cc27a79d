//! Push and pull with a registry that is not kiln's (D6, D7).

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::env::{Output, Registry, TestEnv, test_env};

/// The digest that `kiln push` printed.
fn digest(pushed: &Output) -> String {
    let (_, rest) = pushed.stdout.split_once("digest: ").unwrap();
    rest.split(' ').next().unwrap().to_owned()
}

/// Builds a small image of two own layers under a name in the registry.
fn built(env: &TestEnv, registry: &Registry) -> String {
    let name = registry.name("team/app:v1");
    env.built(
        &name,
        "FROM busybox\nRUN echo one >/one\nRUN echo two >/two\nENV A=b\n",
    );
    name
}

/// Number of requests of this kind that the registry has answered.
fn requests(registry: &Registry, method: &str) -> usize {
    let wanted = format!("http.request.method={method} ");
    let answered = registry.log();
    answered
        .lines()
        .filter(|line| line.contains("response completed") && line.contains(&wanted))
        .count()
}

/// Writes a docker config.json with credentials for a registry and gives its folder.
fn docker_config(env: &TestEnv, registry: &Registry, user: &str, password: &str) -> String {
    let encoded = env
        .program("base64", ["-w0"])
        .stdin(format!("{user}:{password}"));
    let auth = encoded.success().stdout;
    let folder = env.path("docker");
    fs::create_dir_all(&folder).unwrap();
    let config = json!({"auths": {(registry.address.as_str()): {"auth": auth}}});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn what_is_pushed_is_pulled_and_built_upon() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = built(&env, &registry);
    let pushed = env.kiln(["push", &name]).success();
    let digest = digest(&pushed);
    let repository = registry.name("team/app");
    assert!(
        pushed
            .stderr
            .starts_with(&format!("The push refers to repository [{repository}]\n")),
        "{pushed}"
    );
    assert!(
        pushed
            .stdout
            .starts_with(&format!("v1: digest: {digest} size: ")),
        "{pushed}"
    );
    assert_eq!(
        env.inspect(&name)["RepoDigests"],
        json!([format!("{repository}@{digest}")])
    );

    let pulled = env.kiln_in("there", ["pull", &name]).success();
    assert!(
        pulled.stderr.contains(&digest) || pulled.stdout.contains(&digest),
        "{pulled}"
    );
    let inspect = |store: &str| {
        let text = env.kiln_in(store, ["inspect", &name]).success().stdout;
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    };
    let (here, there) = (inspect("store"), inspect("there"));
    for field in [
        "Id",
        "RepoDigests",
        "RepoTags",
        "RootFS",
        "Config",
        "Created",
    ] {
        assert_eq!(here[field], there[field], "{field}");
    }
    env.dockerfile(&format!(
        "FROM {name}\nRUN cat /one /two >/both; echo $A >>/both\n"
    ));
    env.kiln_in("there", ["build", "-t", "next", "context"])
        .success();
    let saved = env.kiln_in("there", ["save", "next"]).success().bytes;
    assert_eq!(
        crate::saved::Saved::read(&saved).text("both"),
        "one\ntwo\nb\n"
    );
    // a base image that is not here is fetched by the build
    env.kiln_in("third", ["build", "-t", "next", "context"])
        .success();
    let saved = env.kiln_in("third", ["save", "next"]).success().bytes;
    assert_eq!(
        crate::saved::Saved::read(&saved).text("both"),
        "one\ntwo\nb\n"
    );
}

#[test]
fn a_second_push_sends_nothing_and_a_second_pull_fetches_nothing() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = built(&env, &registry);
    let first = env.kiln(["push", &name]).success();
    let uploads = requests(&registry, "POST");
    assert!(uploads >= 4, "layers and config were uploaded: {uploads}");
    let second = env.kiln(["push", &name]).success();
    assert_eq!(digest(&first), digest(&second));
    assert_eq!(requests(&registry, "POST"), uploads);
    assert!(second.stderr.contains("Layer already exists"), "{second}");
    // the same from another store: what was pulled is pushed as it came
    env.kiln_in("there", ["pull", &name]).success();
    let gets = registry.log().matches("/blobs/").count();
    env.kiln_in("there", ["pull", &name]).success();
    assert_eq!(registry.log().matches("/blobs/").count(), gets);
    let third = env.kiln_in("there", ["push", &name]).success();
    assert_eq!(digest(&first), digest(&third));
    assert_eq!(requests(&registry, "POST"), uploads);
}

#[test]
fn d7_4_a_layer_that_another_repository_has_is_not_uploaded_again() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = built(&env, &registry);
    env.kiln(["push", &name]).success();
    let sent = requests(&registry, "PUT") + requests(&registry, "PATCH");
    let other = registry.name("other/place:v2");
    env.kiln(["tag", &name, &other]).success();
    let pushed = env.kiln(["push", &other]).success();
    assert!(pushed.stderr.contains("Mounted from team/app"), "{pushed}");
    let now = requests(&registry, "PUT") + requests(&registry, "PATCH");
    // its config may be uploaded; the manifest is
    assert!(now - sent <= 3, "{} uploads", now - sent);
    env.kiln_in("there", ["pull", &other]).success();
}

#[test]
fn build_with_push_pushes_all_names() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let names = [registry.name("a:1"), registry.name("b/c:2")];
    env.dockerfile("FROM busybox\nRUN echo one >/one\n");
    env.build(&names[0])
        .args(["-t", &names[1], "--push"])
        .success();
    for name in &names {
        env.kiln_in("there", ["pull", "-q", name]).success();
    }
    // what cannot be pushed fails, and the image is kept
    let nowhere = format!("127.0.0.1:{}/x:1", crate::env::free_port());
    let failed = env.build(&nowhere).arg("--push").failure(4);
    assert!(failed.stderr.contains(&nowhere), "{failed}");
    env.inspect(&nowhere);
}

#[test]
fn images_are_pulled_by_digest() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = built(&env, &registry);
    let digest = digest(&env.kiln(["push", &name]).success());
    // the tag moves on; the digest does not
    env.built(&name, "FROM busybox\nLABEL other=image\n");
    env.kiln(["push", &name]).success();
    let pinned = format!("{}@{digest}", registry.name("team/app"));
    let pulled = env.kiln_in("there", ["pull", &pinned]).success();
    assert!(format!("{pulled}").contains(&digest), "{pulled}");
    env.dockerfile(&format!("FROM {pinned}\nRUN cat /two >/three\n"));
    env.kiln_in("there", ["build", "-t", "x", "context"])
        .success();
    // it is listed by its repository, and removed by what it was pulled as
    let rows = env.kiln_in("there", ["images", "--digests"]).success();
    let row = rows.stdout.lines().find(|line| line.contains(&digest));
    let cells: Vec<_> = row.unwrap().split_whitespace().collect();
    assert_eq!(cells[..3], [&registry.name("team/app"), "<none>", &digest]);
    env.kiln_in("there", ["tag", &pinned, "kept:1"]).success();
    let removed = env.kiln_in("there", ["rmi", &pinned]).success();
    assert_eq!(
        removed.stdout,
        format!("Untagged: {pinned}\n"),
        "a tag is left"
    );
    let removed = env.kiln_in("there", ["rmi", "kept:1"]).success();
    assert!(removed.stdout.contains("\nDeleted: sha256:"), "{removed}");
    let wrong = pinned.replace(&digest[7..19], "000000000000");
    let failed = env.kiln_in("there", ["pull", &wrong]).run();
    assert_ne!(failed.code, Some(0));
}

#[test]
fn a_private_registry_wants_the_credentials_of_config_json() {
    let env = test_env!("docker-registry", "htpasswd").with_busybox();
    let registry = env.registry_for("user", "pass:word");
    let name = built(&env, &registry);
    let refused = env.kiln(["push", &name]).run();
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(!refused.stderr.contains("panicked"), "{refused}");
    let wrong = docker_config(&env, &registry, "user", "wrong-secret");
    let refused = env.kiln(["push", &name]).env("DOCKER_CONFIG", &wrong).run();
    assert_ne!(refused.code, Some(0), "{refused}");
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(
        text.contains("unauthorized") || text.contains("denied") || text.contains("401"),
        "{text}"
    );
    assert!(!text.contains("wrong-secret"), "{text}");

    let right = docker_config(&env, &registry, "user", "pass:word");
    env.kiln(["push", &name])
        .env("DOCKER_CONFIG", &right)
        .success();
    assert_ne!(env.kiln_in("there", ["pull", &name]).run().code, Some(0));
    env.kiln_in("there", ["pull", &name])
        .env("DOCKER_CONFIG", &right)
        .success();
    // and where docker looks without the variable
    fs::rename(Path::new(&right), env.path("home/.docker")).unwrap();
    env.kiln_in("third", ["pull", &name]).success();
    env.dockerfile(&format!("FROM {name}\nRUN cat /one\n"));
    env.kiln_in("fourth", ["build", "context"]).success();
}

#[test]
fn what_does_not_exist_is_said_so() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = registry.name("no/such:thing");
    let failed = env.kiln(["pull", &name]).failure(1);
    assert!(
        failed.stderr.contains("no/such") && failed.stderr.contains("MANIFEST_UNKNOWN"),
        "{failed}"
    );
    let failed = env.kiln(["push", &name]).failure(1);
    assert!(
        failed.stderr.contains(&format!(
            "An image does not exist locally with the tag: {name}"
        )),
        "{failed}"
    );
}

#[test]
fn a_platform_is_chosen_out_of_an_index() {
    let env = test_env!("docker-registry", "buildah").with_busybox();
    let registry = env.registry();
    let other = if std::env::consts::ARCH == "aarch64" {
        "amd64"
    } else {
        "arm64"
    };
    let own = if other == "arm64" { "amd64" } else { "arm64" };
    for platform in [own, other] {
        env.dockerfile(&format!("FROM scratch\nCOPY {platform} /platform\n"));
        env.file(platform, platform);
        let name = registry.name(&format!("multi:{platform}"));
        env.build(&name)
            .args(["--platform", &format!("linux/{platform}"), "--push"])
            .success();
    }
    let index = crate::interop::index(&env, &registry, "multi", &[other, own]);
    let name = registry.name("multi:both");
    let platform = |store: &str| {
        let saved = env.kiln_in(store, ["save", &name]).success().bytes;
        crate::saved::Saved::read(&saved).text("platform")
    };
    env.kiln_in("own", ["pull", &name]).success();
    assert_eq!(platform("own"), own);
    let given = format!("linux/{other}");
    env.kiln_in("other", ["pull", "--platform", &given, &name])
        .success();
    assert_eq!(platform("other"), other);
    // the digest that is remembered is what the tag stands for, so that a pin fits all platforms
    let digests = env.kiln_in("own", ["inspect", &name]).success().stdout;
    assert!(digests.contains(&index), "{index}: {digests}");
    let none = env
        .kiln_in("none", ["pull", "--platform", "linux/s390x", &name])
        .run();
    assert_ne!(none.code, Some(0), "{none}");
    assert!(none.stderr.contains("s390x"), "{none}");
    // a build takes the one of its platform
    env.dockerfile(&format!("FROM {name}\nCOPY Dockerfile /\n"));
    env.kiln_in(
        "cross",
        ["build", "--platform", &given, "-t", "x", "context"],
    )
    .success();
    let saved = env.kiln_in("cross", ["save", "x"]).success().bytes;
    assert_eq!(crate::saved::Saved::read(&saved).text("platform"), other);
}

#[test]
fn pull_asks_for_a_newer_base_and_a_plain_build_does_not() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = registry.name("base:1");
    let publish = |text: &str| {
        env.built(&name, &format!("FROM busybox\nRUN echo {text} >/version\n"));
        env.kiln(["push", &name]).success();
    };
    let version = |args: &[&str]| {
        env.dockerfile(&format!("FROM {name}\nCOPY --from={name} /version /copy\n"));
        let build = env
            .kiln_in("there", ["build", "-t", "x"])
            .args(args.iter().copied());
        build.arg(env.context()).success();
        let saved = env.kiln_in("there", ["save", "x"]).success().bytes;
        let saved = crate::saved::Saved::read(&saved);
        (saved.text("version"), saved.text("copy"))
    };
    let both = |text: &str| (format!("{text}\n"), format!("{text}\n"));
    publish("old");
    assert_eq!(version(&[]), both("old"));
    publish("new");
    assert_eq!(version(&[]), both("old"));
    assert_eq!(version(&["--pull"]), both("new"));
    assert_eq!(version(&[]), both("new"));
}

#[test]
fn several_pulls_and_pushes_at_once_do_not_disturb_each_other() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = built(&env, &registry);
    let all = |runs: Vec<crate::env::Run>| {
        let children: Vec<_> = runs.into_iter().map(crate::env::Run::spawn).collect();
        for child in children {
            let output = Output::of(child);
            assert_eq!(output.code, Some(0), "{output}");
        }
    };
    all((0..3).map(|_| env.kiln(["push", &name])).collect());
    all((0..3)
        .map(|_| env.kiln_in("there", ["pull", &name]))
        .collect());
    env.dockerfile(&format!("FROM {name}\nRUN cat /one /two\n"));
    all((0..3)
        .map(|_| env.kiln_in("there", ["build", "context"]))
        .collect());
    // a build that pulls, twice at once
    all((0..2)
        .map(|_| env.kiln_in("fourth", ["build", "context"]))
        .collect());
}

#[test]
fn d5_4_d7_6_all_tags_of_a_repository_go_and_come() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = built(&env, &registry);
    let repository = registry.name("team/app");
    let other = format!("{repository}:v2");
    env.built(&other, "FROM busybox\nRUN echo three >/three\n");
    // Neither another repository nor one whose name only begins alike is meant.
    let beside = registry.name("team/app2:v3");
    env.kiln(["tag", &other, &beside]).success();
    let pushed = env.kiln(["push", "-a", &repository]).success();
    let lines: Vec<_> = pushed.stdout.lines().map(|line| &line[..3]).collect();
    assert_eq!(lines, ["v1:", "v2:"], "{pushed}");
    for args in [&["push", "-a", &repository][..], &["push", &name]] {
        let args = args.iter().copied();
        let other = env.kiln(args).args(["--platform", "plan9/mips"]).failure(1);
        assert!(other.stderr.contains("is not for plan9/mips"), "{other}");
    }

    let elsewhere = TestEnv::new();
    let pulled = elsewhere
        .kiln(["pull", "--all-tags", &repository])
        .success();
    assert_eq!(pulled.stdout, format!("{name}\n{other}\n"), "{pulled}");
    for name in [&name, &other] {
        assert_eq!(elsewhere.inspect(name)["Id"], env.inspect(name)["Id"]);
    }
    let refused = elsewhere.kiln(["pull", &beside]).failure(1);
    assert!(refused.stderr.contains("team/app2"), "{refused}");

    for command in ["push", "pull"] {
        let refused = env.kiln([command, "-a", &name]).failure(125);
        let message = "tag can't be used with --all-tags/-a";
        assert!(refused.stderr.contains(message), "{refused}");
    }
    let none = env.kiln(["push", "-a", &registry.name("nobody/nothing")]);
    let none = none.failure(1);
    let message = "An image does not exist locally with the name";
    assert!(none.stderr.contains(message), "{none}");
}

#[test]
fn d8_4_content_trust_is_refused_and_not_left_out() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\n");
    let trusted = |args: &[&str]| {
        let args = args.iter().copied();
        env.kiln(args).env("DOCKER_CONTENT_TRUST", "1")
    };
    let context = env.context();
    let build = ["build", context.to_str().unwrap()];
    for args in [
        &["pull", "a"][..],
        &["push", "a"],
        &["run", "busybox"],
        &build,
    ] {
        let refused = trusted(args).failure(125);
        assert!(refused.stderr.contains("DOCKER_CONTENT_TRUST"), "{refused}");
    }
    trusted(&["images"]).success();
    trusted(&build).arg("--disable-content-trust").success();
    env.kiln(build).env("DOCKER_CONTENT_TRUST", "0").success();
}

/// Pushed again elsewhere, a layer is the bytes that it was: it is compressed once.
#[test]
fn d7_8_what_was_compressed_is_kept() {
    let env = test_env!("docker-registry").with_busybox();
    let (one, two) = (env.registry(), env.registry());
    let name = built(&env, &one);
    let first = env.kiln(["push", &name]).success();
    assert!(first.stderr.contains("Compressing"), "{first}");
    let other = two.name("team/app:v1");
    env.kiln(["tag", &name, &other]).success();
    let second = env.kiln(["push", &other]).success();
    assert_eq!(digest(&first), digest(&second));
    assert!(!second.stderr.contains("Compressing"), "{second}");
}
