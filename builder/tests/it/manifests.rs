//! `kiln manifest` and `kiln index`: lists of images for several platforms (D9.5).

use kiln_registry::digest::Digest;
use serde_json::{Value, json};

use crate::env::{Registry, TestEnv, test_env};
use crate::remote::Made;

/// Two images of different platforms, in different repositories.
fn images(env: &TestEnv, registry: &Registry) -> [String; 2] {
    let made = Made::new(env, "made");
    ["amd64", "arm64"].map(|architecture| {
        made.image(architecture, architecture, Some(architecture));
        let name = registry.name(&format!("parts/{architecture}:1"));
        env.kiln(["copy", "-q", &format!("oci:made:{architecture}"), &name])
            .success();
        name
    })
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn d9_5_a_list_is_created_annotated_and_pushed() {
    let env = test_env!("docker-registry", "skopeo");
    let registry = env.registry();
    let [amd, arm] = images(&env, &registry);
    let list = registry.name("team/app:1");
    let created = env.kiln(["manifest", "create", &list, &amd]).success();
    assert_eq!(created.stdout, format!("Created manifest list {list}\n"));
    let again = env.kiln(["manifest", "create", &list, &arm]).failure(1);
    assert!(again.stderr.contains("--amend"), "{again}");
    env.kiln(["manifest", "create", "--amend", &list, &arm])
        .success();
    env.kiln([
        "manifest",
        "annotate",
        &list,
        &arm,
        "--variant",
        "v8",
        "--os-features",
        "a,b",
    ])
    .success();
    let missing = env
        .kiln(["manifest", "annotate", &list, "busybox", "--arch", "x"])
        .failure(1);
    assert!(
        missing.stderr.contains("`busybox` is not in the list"),
        "{missing}"
    );

    let local = env.kiln(["manifest", "inspect", &list]).success();
    let pushed = env.kiln(["manifest", "push", &list]).success();
    assert_eq!(pushed.stdout.trim(), Digest::of(&local.bytes).to_string());
    let place = format!("docker://{list}");
    let raw = env
        .program("skopeo", ["inspect", "--tls-verify=false", "--raw", &place])
        .success();
    assert_eq!(raw.bytes, local.bytes);
    let index = json_of(&raw.stdout);
    let arm64 =
        json!({"architecture": "arm64", "os": "linux", "os.features": ["a", "b"], "variant": "v8"});
    assert_eq!(index["manifests"][1]["platform"], arm64);
    assert_eq!(index["manifests"][0]["platform"]["architecture"], "amd64");
    // The images came along: somebody else copies all of them.
    env.program(
        "skopeo",
        [
            "copy",
            "--all",
            "--src-tls-verify=false",
            &place,
            "oci:copied:1",
        ],
    )
    .success();

    // What is in the registry reads the same.
    let purged = env.kiln(["manifest", "push", "--purge", &list]).success();
    assert_eq!(purged.stdout, pushed.stdout);
    assert_eq!(
        env.kiln(["manifest", "inspect", &list]).success().bytes,
        local.bytes
    );
    let gone = env.kiln(["manifest", "rm", &list]).failure(1);
    assert!(gone.stderr.contains("there is no list"), "{gone}");
    env.kiln(["manifest", "push", &list]).failure(1);
}

#[test]
fn d9_5_images_of_a_list_are_in_registries() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let [name, list] = ["team/part:1", "team/app:1"].map(|name| registry.name(name));
    env.kiln(["tag", "busybox", &name]).success();
    let refused = env.kiln(["manifest", "create", &list, &name]).failure(1);
    assert!(refused.stderr.contains("push it first"), "{refused}");
    env.kiln(["push", &name]).success();
    env.kiln(["manifest", "create", &list, &name]).success();
}

#[test]
fn d9_5_inspect_shows_what_docker_does() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let [amd, arm] = images(&env, &registry);
    let single = json_of(
        &env.kiln(["manifest", "inspect", "-v", &amd])
            .success()
            .stdout,
    );
    let raw = env.kiln(["manifest", "inspect", &amd]).success();
    let digest = Digest::of(&raw.bytes).to_string();
    assert_eq!(single["Ref"], format!("{amd}@{digest}"));
    assert_eq!(single["Descriptor"]["digest"], digest);
    assert_eq!(single["Descriptor"]["platform"]["architecture"], "amd64");
    assert_eq!(single["OCIManifest"], json_of(&raw.stdout));

    let list = registry.name("team/app:1");
    env.kiln(["manifest", "create", &list, &amd, &arm])
        .success();
    let one = env.kiln(["manifest", "inspect", &list, &amd]).success();
    assert_eq!(one.bytes, raw.bytes);
    env.kiln(["manifest", "push", "-p", &list]).success();
    let all = json_of(
        &env.kiln(["manifest", "inspect", "--verbose", &list])
            .success()
            .stdout,
    );
    assert_eq!(all.as_array().unwrap().len(), 2, "{all}");
    assert_eq!(all[1]["Descriptor"]["platform"]["architecture"], "arm64");
}

#[test]
fn d9_5_an_index_has_annotations_and_takes_in_other_indexes() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let [amd, arm] = images(&env, &registry);
    let [first, second] = ["team/app:first", "team/app:second"].map(|name| registry.name(name));
    env.kiln([
        "index",
        "create",
        "--annotation",
        "made.by=hand",
        &first,
        &amd,
        &arm,
    ])
    .success();
    env.kiln(["index", "annotate", &first, &amd, "--annotation", "note=x"])
        .success();
    env.kiln(["index", "push", &first]).success();
    env.kiln(["index", "create", &second, &first]).success();
    let pushed = env.kiln(["index", "push", "--purge", &second]).success();
    let index = json_of(&env.kiln(["index", "inspect", &second]).success().stdout);
    assert_eq!(
        index["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(index["manifests"][0]["annotations"]["note"], "x");
    let first = json_of(&env.kiln(["index", "inspect", &first]).success().stdout);
    assert_eq!(first["annotations"]["made.by"], "hand");
    assert!(pushed.stdout.starts_with("sha256:"), "{pushed}");
    for bad in [["--annotation", "x"], ["--annotation", "=x"]] {
        env.kiln(["index", "create"])
            .args(bad)
            .args([second.as_str(), amd.as_str()])
            .failure(125);
    }
}
