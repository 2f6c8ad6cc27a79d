//! Save and load (D10): what kiln writes is read by the other tools, and the other way round.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::env::{TestEnv, test_env};
use crate::interop::{PRINTED, check, inspected, run, sample, tool};
use crate::saved::{Saved, entries};

/// Saves an image to a file of the environment and gives its path.
fn save(env: &TestEnv, images: &[&str]) -> String {
    let archive = env.path("saved.tar");
    let args = ["save"].iter().chain(images).copied();
    env.kiln(args).arg("-o").arg(&archive).success();
    archive.to_str().unwrap().to_owned()
}

fn id(env: &TestEnv, store: &str, image: &str) -> String {
    let text = env.kiln_in(store, ["inspect", image]).success().stdout;
    let list: Value = serde_json::from_str(&text).unwrap();
    list[0]["Id"].as_str().unwrap().to_owned()
}

#[test]
fn d10_1_an_archive_is_docker_s_and_an_oci_layout() {
    let env = test_env!().with_busybox();
    sample(&env, "team/app:v1");
    let archive = fs::read(save(&env, &["team/app:v1"])).unwrap();
    let files = entries(&archive);
    let saved = Saved::read(&archive);
    assert_eq!(saved.manifest[0]["RepoTags"], json!(["team/app:v1"]));
    let diff_ids = saved.config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(saved.layers.len(), diff_ids.len());
    let layout: Value = serde_json::from_slice(&files["oci-layout"].content).unwrap();
    assert_eq!(layout["imageLayoutVersion"], "1.0.0");
    let index: Value = serde_json::from_slice(&files["index.json"].content).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let manifest = &files[&format!("blobs/{}", digest.replace(':', "/"))].content;
    let manifest: Value = serde_json::from_slice(manifest).unwrap();
    let blobs = manifest["layers"].as_array().unwrap();
    for layer in blobs.iter().chain([&manifest["config"]]) {
        let path = layer["digest"].as_str().unwrap().replace(':', "/");
        let blob = &files[&format!("blobs/{path}")];
        assert_eq!(layer["size"], json!(blob.content.len()));
    }
    // the same image gives the same bytes
    assert!(archive == env.kiln(["save", "team/app:v1"]).success().bytes);
}

#[test]
fn skopeo_copies_an_archive_of_kiln_and_kiln_loads_what_it_writes() {
    let env = test_env!("skopeo").with_busybox();
    sample(&env, "app:v1");
    let wanted = id(&env, "store", "app:v1");
    let source = format!("docker-archive:{}", save(&env, &["app:v1"]));
    let image = inspected(&env, &source);
    assert_eq!(image["Labels"], json!({"by": "kiln"}));
    assert_eq!(image["Layers"].as_array().unwrap().len(), 6);
    let dir = format!("dir:{}", env.path("dir").display());
    tool(&env, "skopeo", ["copy", "-q", &source, &dir]).success();
    for (store, form) in [
        ("docker", "docker-archive:back.tar:app:v1"),
        ("oci", "oci-archive:back-oci.tar:app:v1"),
    ] {
        tool(&env, "skopeo", ["copy", "-q", &dir, form]).success();
        let file = form.split(':').nth(1).unwrap();
        let loaded = env.kiln_in(store, ["load", "-i", file]).success();
        assert_eq!(loaded.stdout, "Loaded image: app:v1\n");
        // in the other format skopeo writes the config anew
        if store == "docker" {
            assert_eq!(id(&env, store, "app:v1"), wanted, "{form}");
        }
        check(&env, store, "app:v1");
    }
}

#[test]
fn podman_loads_and_runs_an_archive_of_kiln() {
    let env = test_env!("podman", "runc").with_busybox();
    sample(&env, "app:v1");
    let loaded = tool(&env, "podman", ["load", "-i", &save(&env, &["app:v1"])]).success();
    assert!(loaded.stdout.contains("app:v1"), "{loaded}");
    assert_eq!(run(&env, "app:v1"), PRINTED);
}

#[test]
fn kiln_loads_what_podman_and_buildah_save() {
    let env = test_env!("podman", "buildah").with_busybox();
    sample(&env, "app:v1");
    let wanted = id(&env, "store", "app:v1");
    let archive = save(&env, &["app:v1"]);
    tool(&env, "podman", ["load", "-q", "-i", &archive]).success();
    for format in ["docker-archive", "oci-archive"] {
        let file = env.path(&format!("podman-{format}.tar"));
        tool(&env, "podman", ["save", "-q", "--format", format, "-o"])
            .arg(&file)
            .arg("app:v1")
            .success();
        let loaded = env.kiln_in(format, ["load", "-i"]).arg(&file).success();
        assert_eq!(loaded.stdout, "Loaded image: app:v1\n");
        assert_eq!(id(&env, format, "app:v1"), wanted, "{format}");
        check(&env, format, "app:v1");
    }
    let source = format!("docker-archive:{archive}");
    tool(&env, "buildah", ["pull", "-q", &source]).success();
    let target = "docker-archive:buildah.tar:app:v2";
    tool(&env, "buildah", ["push", "-q", "app:v1", target]).success();
    env.kiln_in("buildah", ["load", "-i", "buildah.tar"])
        .success();
    check(&env, "buildah", "app:v2");
}

#[test]
fn umoci_unpacks_the_oci_layout_of_an_archive() {
    let env = test_env!("umoci", "skopeo").with_busybox();
    sample(&env, "app:v1");
    let archive = save(&env, &["app:v1"]);
    let source = format!("docker-archive:{archive}");
    tool(&env, "skopeo", ["copy", "-q", &source, "oci:copied:v1"]).success();
    fs::create_dir(env.path("layout")).unwrap();
    env.program("tar", ["-xf", &archive, "-C", "layout"])
        .success();
    let tags = env
        .program("umoci", ["ls", "--layout", "layout"])
        .success()
        .stdout;
    assert_eq!(tags, "v1\n");
    for layout in ["copied", "layout"] {
        let image = format!("{layout}:v1");
        let bundle = format!("bundle-{layout}");
        env.program("umoci", ["unpack", "--image", &image, &bundle])
            .success();
        check_tree(&env.path(&bundle).join("rootfs"));
    }
}

/// Checks the files of the sample as another tool unpacked them.
fn check_tree(root: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let names = |path: &str| {
        let mut names: Vec<_> = fs::read_dir(root.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("d/old"), ["3"]);
    assert_eq!(
        fs::read_to_string(root.join("file")).unwrap(),
        "of the context\n"
    );
    let stat = fs::metadata(root.join("two")).unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.uid(), stat.gid()),
        (0o4711, 7, 8)
    );
    assert_eq!(stat.ino(), fs::metadata(root.join("same")).unwrap().ino());
    assert_eq!(
        fs::read_link(root.join("soft")).unwrap(),
        Path::new("d/old/1")
    );
    assert!(names("").iter().all(|name| !name.starts_with(".wh.")));
}

#[test]
fn archives_go_through_pipes_and_compression() {
    let env = test_env!("gzip", "bzip2", "xz", "zstd").with_busybox();
    sample(&env, "app:v1");
    let wanted = id(&env, "store", "app:v1");
    let archive = env.kiln(["save", "app:v1"]).success().bytes;
    for program in ["cat", "gzip", "bzip2", "xz", "zstd"] {
        let args: &[&str] = if program == "cat" { &[] } else { &["-c", "-1"] };
        let packed = env
            .program(program, args.iter().copied())
            .stdin(archive.clone());
        let packed = packed.success().bytes;
        let store = format!("store-{program}");
        let loaded = env.kiln_in(&store, ["load"]).stdin(packed).success();
        assert_eq!(loaded.stdout, "Loaded image: app:v1\n", "{program}");
        assert_eq!(id(&env, &store, "app:v1"), wanted);
    }
    check(&env, "store-xz", "app:v1");
    let quiet = env
        .kiln_in("quiet", ["load", "-q"])
        .stdin(archive)
        .success();
    assert_eq!(quiet.stdout, "app:v1\n");
}

#[test]
fn d10_2_several_images_and_names_share_one_archive() {
    let env = test_env!().with_busybox();
    env.built("one:1", "FROM busybox\nRUN echo 1 >/one\n");
    env.built("two:2", "FROM one:1\nRUN echo 2 >/two\n");
    env.kiln(["tag", "one:1", "also:1"]).success();
    env.kiln(["tag", "two:2", "one:2"]).success();
    let two = id(&env, "store", "two:2");
    let archive = fs::read(save(&env, &["one:1", "also:1", "two:2"])).unwrap();
    let files = entries(&archive);
    let manifest: Value = serde_json::from_slice(&files["manifest.json"].content).unwrap();
    assert_eq!(manifest.as_array().unwrap().len(), 2);
    assert_eq!(manifest[0]["RepoTags"], json!(["one:1", "also:1"]));
    assert_eq!(manifest[1]["RepoTags"], json!(["two:2"]));
    assert_eq!(manifest[1]["Layers"].as_array().unwrap().len(), 5);
    let loaded = env.kiln_in("there", ["load"]).stdin(archive).success();
    assert_eq!(
        loaded.stdout,
        "Loaded image: one:1\nLoaded image: also:1\nLoaded image: two:2\n"
    );
    assert_eq!(id(&env, "there", "two:2"), two);
    // a name without a tag is all its tags; an id is none
    let saved = env.kiln(["save", "one"]).success().bytes;
    let manifest: Value =
        serde_json::from_slice(&entries(&saved)["manifest.json"].content).unwrap();
    assert_eq!(manifest[0]["RepoTags"], json!(["one:1"]));
    assert_eq!(manifest[1]["RepoTags"], json!(["one:2"]));
    let saved = env.kiln(["save", &two]).success().bytes;
    assert_eq!(Saved::read(&saved).manifest[0]["RepoTags"], json!([]));
    let loaded = env.kiln_in("third", ["load"]).stdin(saved).success();
    assert_eq!(loaded.stdout, format!("Loaded image ID: {two}\n"));
}

#[test]
fn a_pulled_image_keeps_its_digest_through_save_and_load() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let name = registry.name("app:v1");
    sample(&env, &name);
    let pushed = env.kiln(["push", &name]).success().stdout;
    env.kiln_in("pulled", ["pull", &name]).success();
    let archive = env.kiln_in("pulled", ["save", &name]).success().bytes;
    env.kiln_in("loaded", ["load"])
        .stdin(archive.clone())
        .success();
    let again = env.kiln_in("loaded", ["save", &name]).success().bytes;
    assert!(archive == again, "the archive is the same");
    // a push of it has nothing to send but its name
    let other = registry.name("app:v2");
    env.kiln_in("loaded", ["tag", &name, &other]).success();
    let again = env.kiln_in("loaded", ["push", &other]).success();
    assert_eq!(again.stdout.replace("v2", "v1"), pushed);
    assert!(!again.stderr.contains("Pushed"), "{again}");
    check(&env, "loaded", &name);
}

#[test]
fn d10_4_load_says_what_a_name_stood_for_before() {
    let env = test_env!().with_busybox();
    env.built("app", "FROM busybox\nLABEL n=1\n");
    let archive = save(&env, &["app"]);
    env.built("app", "FROM busybox\nLABEL n=2\n");
    let second = id(&env, "store", "app");
    let loaded = env.kiln(["load", "-i", &archive]).success();
    assert_eq!(loaded.stdout, "Loaded image: app:latest\n");
    assert!(
        loaded
            .stderr
            .contains("already exists, renaming the old one"),
        "{loaded}"
    );
    assert!(loaded.stderr.contains(&second), "{loaded}");
}

#[test]
fn what_is_no_archive_is_refused_and_a_failed_save_leaves_the_old_file() {
    let env = test_env!().with_busybox();
    let missing = env.kiln(["load", "-i", "nowhere.tar"]).run();
    assert_ne!(missing.code, Some(0));
    assert!(missing.stderr.contains("nowhere.tar"), "{missing}");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_cksum();
    builder.append_data(&mut header, "file", &b"x"[..]).unwrap();
    let empty = env
        .kiln(["load"])
        .stdin(builder.into_inner().unwrap())
        .failure(1);
    assert!(
        empty.stderr.contains("does not contain a manifest.json"),
        "{empty}"
    );
    let mut damaged = fs::read(save(&env, &["busybox"])).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let refused = env.kiln_in("there", ["load"]).stdin(damaged).failure(1);
    assert!(!refused.stderr.contains("panicked"), "{refused}");
    let images = env.kiln_in("there", ["images", "-q"]).success();
    assert_eq!(images.stdout, "");

    let file = env.path("saved.tar");
    let before = fs::read(&file).unwrap();
    env.kiln(["save", "busybox", "nothing", "-o"])
        .arg(&file)
        .failure(1);
    assert!(before == fs::read(&file).unwrap());
    let names: Vec<_> = fs::read_dir(env.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("partial")),
        "{names:?}"
    );
}

#[test]
fn archives_of_several_images_go_both_ways() {
    let env = test_env!("skopeo", "podman").with_busybox();
    env.built("one:1", "FROM busybox\nRUN echo 1 >/one\n");
    env.built("two:2", "FROM one:1\nRUN echo 2 >/two\n");
    let archive = save(&env, &["one:1", "two:2"]);
    for (name, layers) in [("one:1", 4), ("two:2", 5)] {
        let image = inspected(&env, &format!("docker-archive:{archive}:{name}"));
        assert_eq!(image["Layers"].as_array().unwrap().len(), layers, "{image}");
    }
    tool(&env, "podman", ["load", "-q", "-i", &archive]).success();
    let args = ["save", "-q", "-m", "-o", "podman.tar", "one:1", "two:2"];
    tool(&env, "podman", args).success();
    let loaded = env.kiln_in("there", ["load", "-i", "podman.tar"]).success();
    // podman calls them `localhost/...` here
    let mut names: Vec<_> = loaded.stdout.lines().collect();
    names.sort_unstable();
    let names = names.iter().map(|line| line.rsplit(' ').next().unwrap());
    for (name, image) in names.zip(["one:1", "two:2"]) {
        assert!(name.ends_with(image), "{loaded}");
        assert_eq!(id(&env, "there", name), id(&env, "store", image));
    }
    assert_eq!(loaded.stdout.lines().count(), 2);
}

#[test]
fn d10_3_this_machine_s_platform_is_loaded_from_an_archive_of_an_index() {
    let env = test_env!("docker-registry", "skopeo", "buildah").with_busybox();
    let registry = env.registry();
    let own = if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    for platform in ["amd64", "arm64", "s390x"] {
        env.file(platform, platform)
            .dockerfile(&format!("FROM scratch\nCOPY {platform} /platform\n"));
        env.build(&registry.name(&format!("multi:{platform}")))
            .args(["--platform", &format!("linux/{platform}"), "--push"])
            .success();
    }
    crate::interop::index(&env, &registry, "multi", &["s390x", "amd64", "arm64"]);
    let source = format!("docker://{}", registry.name("multi:both"));
    let args = [
        "copy",
        "-q",
        "--all",
        "--src-tls-verify=false",
        &source,
        "oci-archive:all.tar:v1",
    ];
    tool(&env, "skopeo", args).success();
    let loaded = env.kiln_in("there", ["load", "-i", "all.tar"]).success();
    let name = loaded.stdout.trim().rsplit(' ').next().unwrap().to_owned();
    let saved = env.kiln_in("there", ["save", &name]).success().bytes;
    assert_eq!(Saved::read(&saved).text("platform"), own);
}
