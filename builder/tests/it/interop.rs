//! The other tools, and what kiln pulls of theirs and they of kiln's.

use std::fs;

use serde_json::{Value, json};

use crate::env::{Registry, Run, TestEnv, bases, test_env};
use crate::saved::Saved;

/// skopeo, buildah or podman with storage of their own in the environment's folder.
pub(crate) fn tool<'a>(
    env: &TestEnv,
    program: &str,
    args: impl IntoIterator<Item = &'a str>,
) -> Run {
    let storage = |name: &str| env.path(&format!("{program}-{name}"));
    let (root, runroot) = (storage("root"), storage("run"));
    let run = match program {
        "skopeo" => env.program(program, []),
        _ => env
            .program(program, ["--storage-driver", "vfs", "--root"])
            .arg(root)
            .arg("--runroot")
            .arg(runroot),
    };
    let run = match program {
        "podman" => run.args(["--cgroup-manager", "cgroupfs", "--runtime", "runc"]),
        _ => run,
    };
    run.args(args)
}

/// Pushes, with buildah, an index `NAME:both` of the images `NAME:ARCHITECTURE` and gives its
/// digest.
pub(crate) fn index(
    env: &TestEnv,
    registry: &Registry,
    name: &str,
    architectures: &[&str],
) -> String {
    let both = registry.name(&format!("{name}:both"));
    tool(env, "buildah", ["manifest", "create", &both]).success();
    for architecture in architectures {
        let member = format!(
            "docker://{}",
            registry.name(&format!("{name}:{architecture}"))
        );
        tool(
            env,
            "buildah",
            ["manifest", "add", "--tls-verify=false", &both, &member],
        )
        .success();
    }
    let file = env.path("index-digest");
    let target = format!("docker://{both}");
    tool(
        env,
        "buildah",
        [
            "manifest",
            "push",
            "--all",
            "--tls-verify=false",
            "--digestfile",
        ],
    )
    .arg(&file)
    .args([both.as_str(), target.as_str()])
    .success();
    fs::read_to_string(file).unwrap().trim().to_owned()
}

/// What `skopeo inspect` says of an image.
pub(crate) fn inspected(env: &TestEnv, image: &str) -> Value {
    let args = ["inspect", "--tls-verify=false", image];
    serde_json::from_str(&tool(env, "skopeo", args).success().stdout).unwrap()
}

/// Builds the image that the tools of these tests hand to each other.
pub(crate) fn sample(env: &TestEnv, name: &str) {
    env.file("file", "of the context\n");
    env.built(
        name,
        "FROM busybox\n\
         RUN mkdir -p /gone && touch /gone/x /lost && mkdir -p /d/old && echo 1 >/d/old/1 && echo 2 >/two && ln /two /same && \
         ln -s d/old/1 /soft && chown 7:8 /two && chmod 4711 /two\n\
         RUN rm -r /gone /lost /d/old && mkdir /d/old && echo 3 >/d/old/3\n\
         COPY file /file\n\
         ENV WHO=world\n\
         LABEL by=kiln\n\
         CMD [\"sh\", \"-c\", \"echo hello $WHO; ls /d/old; ls -d /gone /lost 2>/dev/null; cat /file; stat -c '%a %u:%g %h' /same\"]\n",
    );
}

/// What a container of that image prints.
pub(crate) const PRINTED: &str = "hello world\n3\nof the context\n4711 7:8 2\n";

/// Checks that an image in a store is the sample, by what a step sees in it.
pub(crate) fn check(env: &TestEnv, store: &str, name: &str) {
    env.dockerfile(&format!(
        "FROM {name}\n\
         RUN (echo hello $WHO; ls /d/old; ls -d /gone /lost 2>/dev/null; cat /file; stat -c '%a %u:%g %h' /same; cat /soft) >/out 2>&1; true\n"
    ));
    env.kiln_in(store, ["build", "-t", "checked", "context"])
        .success();
    let saved = env.kiln_in(store, ["save", "checked"]).success().bytes;
    let saved = Saved::read(&saved);
    let expected = format!("{PRINTED}cat: can't open '/soft': No such file or directory\n");
    assert_eq!(saved.text("out"), expected);
    assert_eq!(saved.config["config"]["Labels"]["by"], "kiln");
}

#[test]
fn skopeo_reads_what_kiln_pushed() {
    let env = test_env!("docker-registry", "skopeo").with_busybox();
    let registry = env.registry();
    let name = registry.name("app:v1");
    sample(&env, &name);
    let pushed = env.kiln(["push", &name]).success();
    let image = inspected(&env, &format!("docker://{name}"));
    assert!(
        pushed.stdout.contains(image["Digest"].as_str().unwrap()),
        "{pushed}"
    );
    assert_eq!(image["Labels"], json!({"by": "kiln"}));
    assert_eq!(image["Layers"].as_array().unwrap().len(), 6);
    assert_eq!(image["Os"], "linux");
}

#[test]
fn podman_runs_what_kiln_pushed() {
    let env = test_env!("docker-registry", "podman", "runc").with_busybox();
    let registry = env.registry();
    let name = registry.name("app:v1");
    sample(&env, &name);
    env.kiln(["push", &name]).success();
    tool(&env, "podman", ["pull", "-q", "--tls-verify=false", &name]).success();
    let printed = run(&env, &name);
    assert_eq!(printed, PRINTED);
}

/// Runs an image with podman and gives what it printed.
pub(crate) fn run(env: &TestEnv, image: &str) -> String {
    // podman's own limits are more than a root without CAP_SYS_RESOURCE may set
    tool(env, "podman", ["run", "--rm", "--network=host"])
        .args([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1000:1000",
        ])
        .arg(image)
        .success()
        .stdout
}

#[test]
fn kiln_pulls_what_skopeo_pushed_in_either_format() {
    let env = test_env!("docker-registry", "skopeo").with_busybox();
    let registry = env.registry();
    sample(&env, "app");
    let archive = env.path("app.tar");
    env.kiln(["save", "app", "-o"]).arg(&archive).success();
    let source = format!("docker-archive:{}", archive.display());
    for format in ["v2s2", "oci"] {
        let name = registry.name(&format!("skopeo:{format}"));
        let target = format!("docker://{name}");
        tool(
            &env,
            "skopeo",
            ["copy", "-q", "--dest-tls-verify=false", "-f", format],
        )
        .args([source.as_str(), target.as_str()])
        .success();
        env.kiln_in(format, ["pull", &name]).success();
        check(&env, format, &name);
        // pushed on, it is what it was
        let digest = inspected(&env, &target)["Digest"].clone();
        let copy = registry.name(&format!("copy:{format}"));
        env.kiln_in(format, ["tag", &name, &copy]).success();
        let pushed = env.kiln_in(format, ["push", &copy]).success();
        assert!(pushed.stdout.contains(digest.as_str().unwrap()), "{pushed}");
    }
}

#[test]
fn d5_7_kiln_pulls_zstd_layers() {
    let env = test_env!("docker-registry", "skopeo").with_busybox();
    let registry = env.registry();
    sample(&env, "app");
    let archive = env.path("app.tar");
    env.kiln(["save", "app", "-o"]).arg(&archive).success();
    let name = registry.name("app:zstd");
    tool(
        &env,
        "skopeo",
        [
            "copy",
            "-q",
            "--dest-tls-verify=false",
            "-f",
            "oci",
            "--dest-compress-format",
            "zstd",
        ],
    )
    .arg(format!("docker-archive:{}", archive.display()))
    .arg(format!("docker://{name}"))
    .success();
    let target = format!("docker://{name}");
    let raw = tool(
        &env,
        "skopeo",
        ["inspect", "--raw", "--tls-verify=false", &target],
    );
    let raw = raw.success().stdout;
    assert_eq!(raw.matches("tar+zstd").count(), 6, "{raw}");
    env.kiln_in("there", ["pull", &name]).success();
    check(&env, "there", &name);
}

#[test]
fn kiln_pulls_what_buildah_and_podman_pushed() {
    let env = test_env!("docker-registry", "buildah", "podman").with_busybox();
    let registry = env.registry();
    sample(&env, "app");
    let archive = env.path("app.tar");
    env.kiln(["save", "app", "-o"]).arg(&archive).success();
    let archive = archive.to_str().unwrap();
    // an image of its own for buildah: one more layer on that of kiln
    let own = env.path("own");
    fs::create_dir(&own).unwrap();
    fs::write(
        own.join("Dockerfile"),
        "FROM localhost/app\nCOPY Dockerfile /added\n",
    )
    .unwrap();
    let source = format!("docker-archive:{archive}");
    tool(&env, "buildah", ["pull", "-q", &source]).success();
    let name = registry.name("buildah:1");
    tool(
        &env,
        "buildah",
        ["bud", "--pull-never", "-q", "-t", &name, "own"],
    )
    .success();
    tool(&env, "buildah", ["push", "-q", "--tls-verify=false", &name]).success();
    env.kiln_in("buildah", ["pull", &name]).success();
    check(&env, "buildah", &name);
    let saved = env.kiln_in("buildah", ["save", &name]).success().bytes;
    assert_eq!(Saved::read(&saved).top_paths(), ["added"]);

    tool(&env, "podman", ["load", "-q", "-i", archive]).success();
    let name = registry.name("podman:1");
    tool(
        &env,
        "podman",
        ["push", "-q", "--tls-verify=false", "app", &name],
    )
    .success();
    env.kiln_in("podman", ["pull", &name]).success();
    check(&env, "podman", &name);
}

#[test]
fn a_real_base_image_is_pulled_through_a_mirror_and_survives_the_tools() {
    let env = test_env!("skopeo", "umoci", "dpkg");
    let mirrors = format!("docker.io=http://{}", bases!());
    env.dockerfile("FROM debian\nRUN dpkg --verify && echo made >/made\n");
    env.build("app").env("KILN_MIRRORS", mirrors).success();
    let archive = env.path("app.tar");
    env.kiln(["save", "app", "-o"]).arg(&archive).success();
    let source = format!("docker-archive:{}", archive.display());
    let layout = format!("oci:{}:v1", env.path("layout").display());
    tool(&env, "skopeo", ["copy", "-q", &source, &layout]).success();
    env.program("umoci", ["unpack", "--image", "layout:v1", "bundle"])
        .success();
    let root = env.path("bundle/rootfs");
    assert_eq!(fs::read_to_string(root.join("made")).unwrap(), "made\n");
    // what dpkg knows of its files is true of those that umoci unpacked
    let root = format!("--root={}", root.display());
    let verified = env.program("dpkg", [root.as_str(), "--verify"]).success();
    assert_eq!(verified.stdout, "");
}

#[test]
fn names_nodes_and_attributes_of_any_kind_are_read_by_others() {
    let env = test_env!("skopeo", "umoci").with_busybox();
    // a capability as setcap writes it: cap_net_bind_service, effective and permitted
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    env.file("capable", "x").file("näme with spaces", "y");
    let capable = env.context().join("capable");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&capable, "security.capability", &capability, flags).unwrap();
    let folder = "d".repeat(200);
    let file = "f".repeat(255);
    env.built(
        "app:v1",
        &format!(
            "FROM busybox\n\
             COPY . /context/\n\
             RUN mkdir -p /{folder}/{folder} && echo deep >/{folder}/{folder}/{file} && \
             ln -s /{folder}/{folder}/{file} /soft && ln /{folder}/{folder}/{file} /hard\n\
             RUN mknod /null c 1 3 && mknod /pipe p && touch -d @4000000000 /late && \
             touch -d @-5 /early && chown 3000000:3000000 /late && printf x >\"$(printf '/caf\\351')\"\n"
        ),
    );
    let archive = env.path("app.tar");
    env.kiln(["save", "app:v1", "-o"]).arg(&archive).success();
    let source = format!("docker-archive:{}", archive.display());
    tool(&env, "skopeo", ["copy", "-q", &source, "oci:layout:v1"]).success();
    env.program("umoci", ["unpack", "--image", "layout:v1", "bundle"])
        .success();
    let root = env.path("bundle/rootfs");
    let mut value = [0; 64];
    let size = rustix::fs::getxattr(
        root.join("context/capable"),
        "security.capability",
        &mut value,
    );
    assert_eq!(value[..size.unwrap()], capability);
    assert_eq!(
        fs::read(root.join("context/näme with spaces")).unwrap(),
        b"y"
    );
    let deep = root.join(&folder).join(&folder).join(&file);
    assert_eq!(fs::read(&deep).unwrap(), b"deep\n");
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(
        fs::metadata(&deep).unwrap().ino(),
        fs::metadata(root.join("hard")).unwrap().ino()
    );
    let link = format!("/{folder}/{folder}/{file}");
    assert_eq!(
        fs::read_link(root.join("soft")).unwrap().to_str(),
        Some(&link[..])
    );
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("pipe").mode() & 0o170_000, 0o010_000);
    assert_eq!(
        (stat("late").mtime(), stat("late").uid()),
        (4_000_000_000, 3_000_000)
    );
    assert_eq!(stat("early").mtime(), -5);
    let raw = std::ffi::OsStr::from_bytes(b"caf\xe9");
    assert_eq!(fs::read(root.join(raw)).unwrap(), b"x");
    // and kiln reads its own
    env.kiln_in("there", ["load", "-i"]).arg(&archive).success();
    env.dockerfile(
        "FROM app:v1\n\
         RUN cat /soft /hard /caf* >/out; \
         stat -c '%t:%T %F %Y %u' /null /pipe /late /early >>/out\n",
    );
    env.kiln_in("there", ["build", "-t", "seen", "context"])
        .success();
    let saved = env.kiln_in("there", ["save", "seen"]).success().bytes;
    let out = Saved::read(&saved).text("out");
    assert!(
        out.starts_with("deep\ndeep\nx1:3 character special file"),
        "{out}"
    );
    assert!(
        out.contains(" 4000000000 3000000\n") && out.contains(" -5 0\n"),
        "{out}"
    );
}
