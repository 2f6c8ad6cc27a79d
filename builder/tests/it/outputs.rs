//! `kiln build --output` (C4): files, archives, layouts, registries, and what other tools read of
//! them.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::env::{TestEnv, test_env};
use crate::interop::{PRINTED, inspected, run, sample, tool};

const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn tree(env: &TestEnv) {
    env.file("app", "program");
    env.dockerfile(
        "FROM busybox AS made\n\
         RUN mkdir -p /out/a/b && echo one >/out/a/b/one && ln /out/a/b/one /out/same && ln -s /etc/passwd /out/link && \
         mkfifo /out/pipe && chmod 4750 /out/same && chown 7:8 /out/a && chmod 700 /out/a && touch -d @1000 /out/a/b/one && \
         rm -f /out/none\n\
         FROM scratch\n\
         COPY --from=made /out /\n\
         COPY app /app\n",
    );
}

/// Files of an image go to a folder: modes and links are kept, owners are not.
#[test]
fn c4_local_is_a_folder_of_the_callers() {
    let env = test_env!().with_busybox();
    tree(&env);
    let out = env.path("out");
    // What is there stays, and no link in it leads anywhere.
    fs::create_dir_all(out.join("kept")).unwrap();
    fs::create_dir(env.path("elsewhere")).unwrap();
    symlink(env.path("elsewhere"), out.join("a")).unwrap();
    let built = env.kiln(["build", "-o", "out", "context"]).success();
    assert_eq!(built.stdout, "");
    assert_eq!(fs::read_to_string(out.join("a/b/one")).unwrap(), "one\n");
    assert_eq!(fs::read_dir(env.path("elsewhere")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(out.join("app")).unwrap(), "program");
    let folder = fs::symlink_metadata(out.join("a")).unwrap();
    assert_eq!((folder.mode(), folder.uid(), folder.gid()), (0o40700, 0, 0));
    let [one, same] = ["a/b/one", "same"].map(|name| fs::metadata(out.join(name)).unwrap());
    assert_eq!(
        (one.ino(), one.nlink(), one.mode()),
        (same.ino(), 2, 0o104_750)
    );
    assert_eq!(one.mtime(), 1000);
    assert_eq!(
        fs::read_link(out.join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    let pipe = fs::symlink_metadata(out.join("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    assert!(out.join("kept").is_dir());

    // The name is for an image, and there is none in the store.
    env.kiln([
        "build",
        "-t",
        "named",
        "-o",
        "type=local,dest=out,mode=delete",
        "context",
    ])
    .success();
    assert!(!out.join("kept").exists() && out.join("app").exists());
    let names = env.kiln(["images", "-q", "named"]).success().stdout;
    assert_eq!(names, "");
    let epoch = env.kiln(["build", "-o", "out", "context"]);
    epoch.env("SOURCE_DATE_EPOCH", "500").success();
    assert_eq!(fs::metadata(out.join("same")).unwrap().mtime(), 500);
}

#[test]
fn c4_tar_goes_to_standard_output_or_a_file() {
    let env = test_env!("tar").with_busybox();
    tree(&env);
    let built = env.kiln(["build", "-q", "-o", "-", "context"]).success();
    let listed = env.program("tar", ["-tvf", "-", "--numeric-owner"]);
    let listed = listed.stdin(built.bytes.clone()).success().stdout;
    let line = |name: &str| {
        let found = listed.lines().find(|line| line.ends_with(name));
        found.unwrap_or_else(|| panic!("{name}: {listed}"))
    };
    assert!(line(" a/").starts_with("drwx------ 7/8"), "{listed}");
    assert!(line(" a/b/one").starts_with("-rwsr-x--- 0/0"), "{listed}");
    assert!(listed.contains(" same link to a/b/one"), "{listed}");
    assert!(listed.contains("link -> /etc/passwd"), "{listed}");
    // The same bytes, for a file; and an image without files.
    env.kiln(["build", "--output", "type=tar,dest=x.tar", "context"])
        .success();
    assert!(fs::read(env.path("x.tar")).unwrap() == built.bytes);
    env.dockerfile("FROM scratch\nLABEL a=b\n");
    env.kiln(["build", "-o", "type=tar,dest=x.tar", "context"])
        .success();
    let nothing = env.program("tar", ["-tf"]).arg(env.path("x.tar")).success();
    assert_eq!(nothing.stdout, "");
}

/// The layers of an image in a layout, from the bottom: their types and digests.
fn layers(folder: &Path) -> Vec<(String, String)> {
    let json = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.join(path)).unwrap()).unwrap()
    };
    let index = json("index.json");
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = json(&digest.replace("sha256:", "blobs/sha256/"));
    let layers = manifest["layers"].as_array().unwrap().iter();
    let text = |layer: &Value, key: &str| layer[key].as_str().unwrap().to_owned();
    layers
        .map(|layer| (text(layer, "mediaType"), text(layer, "digest")))
        .collect()
}

/// A base that came from a registry stays as it came; what was built leaves as it is to.
#[test]
fn c4_2_base_layers_are_compressed_anew_only_by_force() {
    let env = test_env!("docker-registry", "skopeo", "umoci").with_busybox();
    let registry = env.registry();
    let base = registry.name("base:1");
    env.kiln(["tag", "busybox", &base]).success();
    env.kiln(["push", &base]).success();
    let given = inspected(&env, &format!("docker://{base}"))["Layers"].clone();

    env.file("file", "built\n");
    let export = |store: &str, folder: &str, options: &str| {
        env.dockerfile(&format!("FROM {base}\nCOPY file /file\n"));
        let output = format!("type=oci,tar=false,dest={folder},{options}");
        let args = ["build", "-t", "app:1", "-o", &output, "context"];
        env.kiln_in(store, args)
            .env("SOURCE_DATE_EPOCH", "1")
            .success();
        layers(&env.path(folder))
    };
    let plain = export("other", "plain", "compression=uncompressed");
    let gzip = export("other", "gzip", "compression=gzip");
    let zstd = export("other", "zstd", "compression=zstd");
    let tar = "application/vnd.oci.image.layer.v1.tar";
    for (list, kind) in [(&plain, tar), (&gzip, GZIP), (&zstd, ZSTD)] {
        let own = list.len() - 1;
        let digests: Vec<&String> = list[..own].iter().map(|(_, digest)| digest).collect();
        assert_eq!(json!(digests), given, "{kind}");
        assert!(list[..own].iter().all(|(kind, _)| kind == GZIP), "{list:?}");
        assert_eq!(list[own].0, kind);
    }
    let forced = export("other", "forced", "compression=zstd,force-compression=true");
    assert!(forced.iter().all(|(kind, _)| kind == ZSTD), "{forced:?}");
    let high = export("other", "high", "compression=zstd,compression-level=19");
    assert_ne!(
        high.last(),
        zstd.last(),
        "a level of its own has bytes of its own"
    );
    // Bytes depend on nothing but the files.
    assert_eq!(
        export("third", "again", "compression=zstd").last(),
        zstd.last()
    );

    for folder in ["plain", "gzip", "zstd", "forced"] {
        let image = format!("oci:{}:1", env.path(folder).display());
        let to = format!("dir:{}", env.path(&format!("{folder}-dir")).display());
        tool(&env, "skopeo", ["copy", "--insecure-policy", &image, &to]).success();
    }
    let unpack = ["unpack", "--image", "gzip:1", "bundle"];
    env.program("umoci", unpack).success();
    let file = env.path("bundle/rootfs/file");
    assert_eq!(fs::read_to_string(file).unwrap(), "built\n");
}

/// The types of an image's layers, as skopeo finds them.
fn kinds(env: &TestEnv, place: &str) -> Vec<String> {
    let args = ["inspect", "--tls-verify=false", "--raw", place];
    let raw = tool(env, "skopeo", args).success().stdout;
    let manifest: Value = serde_json::from_str(&raw).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    let kinds = layers.map(|layer| layer["mediaType"].as_str().unwrap().to_owned());
    kinds.collect()
}

/// Layers compressed with zstd, for who reads them, by every way.
#[test]
fn c4_zstd_is_read_by_other_tools() {
    let env = test_env!("docker-registry", "skopeo", "buildah", "podman", "runc").with_busybox();
    let registry = env.registry();
    let name = registry.name("app:zstd");
    sample(&env, "sample");
    let output = format!("type=registry,name={name},compression=zstd,force-compression=true");
    let archive = "type=oci,dest=oci.tar,compression=zstd,force-compression=true";
    let args = [
        "build", "-t", "sample:2", "-o", archive, "-o", &output, "context",
    ];
    let built = env.kiln(args).success();
    let image = inspected(&env, &format!("docker://{name}"));
    assert!(
        built.stdout.contains(image["Digest"].as_str().unwrap()),
        "{built}"
    );
    let kinds = kinds(&env, &format!("docker://{name}"));
    assert!(kinds.iter().all(|kind| kind == ZSTD), "{kinds:?}");
    tool(&env, "podman", ["pull", "-q", "--tls-verify=false", &name]).success();
    assert_eq!(run(&env, &name), PRINTED);
    let archive = format!("oci-archive:{}", env.path("oci.tar").display());
    tool(&env, "buildah", ["pull", "-q", &archive]).success();
    // And by kiln itself, elsewhere.
    env.kiln_in("there", ["pull", &name]).success();
    crate::interop::check(&env, "there", &name);
}

#[test]
fn c4_docker_archives_are_loaded_and_several_outputs_come_from_one_build() {
    let env = test_env!("docker-registry", "skopeo").with_busybox();
    let registry = env.registry();
    env.dockerfile("FROM busybox\nRUN echo once >/once\nENTRYPOINT [\"cat\", \"/once\"]\n");
    let name = registry.name("app:1");
    let args = [
        "build",
        "-t",
        &name,
        "-o",
        "type=docker,dest=docker.tar",
        "-o",
        "files",
        "-o",
        "type=oci,dest=oci.tar,annotation.note=x",
        "--push",
        "--load",
        "--metadata-file",
        "meta.json",
        "--annotation",
        "manifest:org.example.by=kiln",
        "--iidfile",
        "id",
        "context",
    ];
    let built = env.kiln(args).success();
    assert_eq!(built.stderr.matches("RUN echo once").count(), 1, "{built}");
    let id = fs::read_to_string(env.path("id")).unwrap();
    assert_eq!(
        fs::read_to_string(env.path("files/once")).unwrap(),
        "once\n"
    );
    let loaded = env.kiln_in("there", ["load", "-i", "docker.tar"]).success();
    assert_eq!(loaded.stdout, format!("Loaded image: {name}\n"));
    let there = env
        .kiln_in("there", ["inspect", "--", &name])
        .success()
        .stdout;
    assert!(there.contains(&id), "{there}");
    assert_eq!(env.inspect(&name)["Id"], id.as_str());
    for from in ["docker-archive:docker.tar", "oci-archive:oci.tar"] {
        let copied = ["copy", "--insecure-policy", "-q", from, "dir:copied"];
        tool(&env, "skopeo", copied).success();
    }
    let raw = |place: &str| -> Value {
        let args = ["inspect", "--tls-verify=false", "--raw", place];
        serde_json::from_str(&tool(&env, "skopeo", args).success().stdout).unwrap()
    };
    let pushed = raw(&format!("docker://{name}"));
    assert_eq!(pushed["annotations"], json!({"org.example.by": "kiln"}));
    let archived = raw("oci-archive:oci.tar");
    assert_eq!(
        archived["annotations"],
        json!({"note": "x", "org.example.by": "kiln"})
    );
    let metadata = fs::read(env.path("meta.json")).unwrap();
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], id.as_str());
    let digest = inspected(&env, &format!("docker://{name}"))["Digest"].clone();
    assert_eq!(metadata["containerimage.digest"], digest);
    assert_eq!(metadata["containerimage.descriptor"]["digest"], digest);
    assert_eq!(metadata["image.name"], name.as_str());
}

/// A push without a tag, to be put together with others later.
#[test]
fn c4_4_push_by_digest_sets_no_tag() {
    let env = test_env!("docker-registry", "skopeo").with_busybox();
    let registry = env.registry();
    env.dockerfile("FROM busybox\nRUN echo x >/x\n");
    let name = registry.name("app");
    let output = format!("type=image,name={name},push-by-digest=true,oci-mediatypes=false");
    let pushed = env
        .kiln(["build", "-q", "-o", &output, "context"])
        .success();
    let by_digest = pushed.stdout.lines().next().unwrap();
    assert!(
        by_digest.starts_with(&format!("{name}@sha256:")),
        "{pushed}"
    );
    let raw = ["inspect", "--tls-verify=false", "--raw"];
    let raw = tool(&env, "skopeo", raw)
        .arg(format!("docker://{by_digest}"))
        .success();
    assert!(
        raw.stdout
            .contains("application/vnd.docker.distribution.manifest.v2+json"),
        "{raw}"
    );
    let listed = env.kiln(["tags", &name]).run();
    assert_eq!(listed.stdout, "", "there is no tag");
    let made = registry.name("app:all");
    env.kiln(["index", "create", &made, by_digest]).success();
    env.kiln(["index", "push", &made]).success();
}

/// `kiln push` compresses anew what was built here.
#[test]
fn c4_1_push_has_the_compression_that_is_asked_for() {
    let env = test_env!("docker-registry", "skopeo").with_busybox();
    let registry = env.registry();
    let name = registry.name("app:1");
    env.built(&name, "FROM scratch\nCOPY Dockerfile /\n");
    for (args, kind) in [
        (&[][..], GZIP),
        (&["--compression=zstd", "--compression-level=7"], ZSTD),
        (&["--compression=gzip", "--compression-level=9"], GZIP),
    ] {
        env.kiln(["push", &name])
            .args(args.iter().copied())
            .success();
        assert_eq!(kinds(&env, &format!("docker://{name}")), [kind], "{args:?}");
    }
    let wrong = env.kiln(["push", "--compression=lzma", &name]).failure(125);
    assert!(
        wrong.stderr.contains("expected gzip, zstd or uncompressed"),
        "{wrong}"
    );
}

#[test]
fn c4_3_what_cannot_be_is_refused_before_the_build() {
    let env = test_env!();
    env.dockerfile("FROM scratch\nRUN no such thing\n");
    for (args, part) in [
        (&["-o", "type=tra"][..], "did you mean tar?"),
        (&["-o", "-", "-o", "type=oci"], "one archive only"),
        (&["-o", "type=registry"], "a name is needed"),
        (
            &["-o", "type=local,dest=/,mode=delete"],
            "would remove all files",
        ),
        (&["-o", "out", "--iidfile", "id"], "no image id"),
        (&["-o", "-", "-t", "a", "--push"], "what is pushed"),
        (&["-o", "-", "--explain-cache=json"], "add dest=FILE"),
        (&["-o", "out", "--plan"], "cannot be used with"),
        (
            &["-o", "type=image,rewrite-timestamp=true"],
            "is not supported",
        ),
        (
            &["--annotation", "index:a=b"],
            "index annotations not supported",
        ),
    ] {
        let failed = env
            .kiln(["build"])
            .args(args.iter().copied())
            .arg("context")
            .failure(125);
        assert!(failed.stderr.contains(part), "{failed}");
    }
}

/// D11.8, as docker: what was named wrong is an ordinary failure.
#[test]
fn a_file_that_cannot_be_made_is_refused_before_the_build() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM scratch\nRUN no such thing\n");
    let no_folder = "cannot write `none/x`: there is no folder `none`";
    let folder = "cannot write `home`: is a directory";
    for (args, error) in [
        (
            &["build", "-o", "type=docker,dest=none/x", "context"][..],
            no_folder,
        ),
        (&["build", "-o", "type=oci,dest=home", "context"], folder),
        (
            &["build", "-o", "type=tar,dest=none/x", "context"],
            no_folder,
        ),
        (&["build", "--iidfile", "none/x", "context"], no_folder),
        (
            &["build", "--metadata-file", "none/x", "context"],
            no_folder,
        ),
        (
            &["build", "--explain-cache", "json,dest=none/x", "context"],
            no_folder,
        ),
        (&["save", "busybox", "-o", "none/x"], no_folder),
        (&["save", "busybox", "-o", "home"], folder),
        (
            &["save", "busybox", "-o", "new/"],
            "cannot write `new/`: is a directory",
        ),
        (
            &["save", "busybox", "-o", "/proc/x"],
            "cannot write `/proc/x`: ",
        ),
    ] {
        let failed = env.kiln(args.iter().copied()).failure(1);
        assert!(failed.stderr.contains(error), "{failed}");
    }
}
