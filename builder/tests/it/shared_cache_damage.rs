//! Caches beyond one store that are damaged, or cannot be read or written (C5).

use std::fs;
use std::path::Path;

use kiln_registry::digest::Digest;
use serde_json::Value;

use crate::env::test_env;
use crate::shared_cache::{STEPS, build, documents, executed, project, summary};

/// Writes other documents in their place.
fn replace(folder: &Path, manifest: &Value, config: &[u8]) {
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(folder.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let mut manifest = manifest.clone();
    let (digest, size) = put(config);
    manifest["config"]["digest"] = digest.into();
    manifest["config"]["size"] = size.into();
    let (digest, size) = put(&serde_json::to_vec(&manifest).unwrap());
    let path = folder.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = size.into();
    fs::write(path, serde_json::to_vec(&index).unwrap()).unwrap();
}

/// Does something to the blob of a layer that had these bytes.
type Damage<'a> = dyn Fn(&Value, &[u8]) + 'a;

/// All layers of a cache are damaged in some way: each that is needed is a miss, and the image is what
/// it would be without.
#[test]
fn c5_a_damaged_entry_is_a_miss() {
    let env = project(test_env!());
    build(
        &env,
        "one",
        &["--cache-to", "type=local,dest=cache,mode=max"],
    )
    .success();
    let cache = env.path("cache");
    let (manifest, config) = documents(&cache);
    let layers = manifest["layers"].as_array().unwrap().clone();
    let path = |layer: &Value| {
        let digest = layer["digest"].as_str().unwrap();
        cache.join("blobs/sha256").join(&digest["sha256:".len()..])
    };
    let whole: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| fs::read(path(layer)).unwrap())
        .collect();
    let damages: [(&str, &Damage); 3] = [
        ("cut", &|layer, bytes| {
            fs::write(path(layer), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("flipped", &|layer, bytes| {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path(layer), bytes).unwrap();
        }),
        ("gone", &|layer, _| fs::remove_file(path(layer)).unwrap()),
    ];
    for (machine, damage) in damages {
        for (layer, bytes) in layers.iter().zip(&whole) {
            damage(layer, bytes);
        }
        let built = build(&env, machine, &["--cache-from", "type=local,src=cache"]).success();
        assert_eq!(executed(&built), STEPS, "{machine}: {built}");
        assert!(
            built
                .stderr
                .contains("what the cache cache has for `[build 4/5] COPY --from=tools /tool /stamp /tools/` is of no use: "),
            "{built}"
        );
        assert_eq!(summary(&built), "cache: 0 hit, 7 new", "{built}");
        let run = env.kiln_in(machine, ["run", "--rm", "app"]).success();
        assert_eq!(run.stdout, "one\ntwo\n");
        let again = build(&env, machine, &[]).success();
        assert_eq!(executed(&again), [""; 0]);
    }
    for (layer, bytes) in layers.iter().zip(&whole) {
        fs::write(path(layer), bytes).unwrap();
    }

    // layers that are not what the document says: each is the one of another step
    let mut other = config.clone();
    let facts = other["layers"].as_array_mut().unwrap();
    facts.rotate_left(1);
    replace(&cache, &manifest, &serde_json::to_vec(&other).unwrap());
    let built = build(&env, "swapped", &["--cache-from", "type=local,src=cache"]).success();
    assert_eq!(executed(&built), STEPS, "{built}");

    // documents that are no cache
    let mut far = config.clone();
    far["steps"][0]["layer"] = 1_000_000.into();
    let mut later = config.clone();
    later["version"] = 2.into();
    let deep = format!("{{\"version\":1,\"layers\":{}", "[".repeat(100_000));
    let mut foreign = manifest.clone();
    foreign["config"]["mediaType"] = "application/vnd.buildkit.cacheconfig.v0".into();
    let bytes = |value: &Value| serde_json::to_vec(value).unwrap();
    for (machine, manifest, config, message) in [
        (
            "far",
            &manifest,
            bytes(&far),
            "it is damaged: a step names a layer that it has not",
        ),
        (
            "later",
            &manifest,
            bytes(&later),
            "it has version 2, and this kiln reads version 1",
        ),
        (
            "deep",
            &manifest,
            deep.into_bytes(),
            "its document cannot be understood",
        ),
        ("large", &manifest, vec![b' '; 9 << 20], "is larger than"),
        (
            "foreign",
            &foreign,
            bytes(&config),
            "it is a cache of BuildKit, which kiln cannot read",
        ),
    ] {
        replace(&cache, manifest, &config);
        let built = build(&env, machine, &["--cache-from", "type=local,src=cache"]).success();
        assert_eq!(executed(&built), STEPS, "{machine}");
        let begin = "importing cache manifest from cache: ";
        let told = built
            .stderr
            .lines()
            .find(|line| line.contains(begin))
            .unwrap();
        assert!(told.contains(message), "{told}");
        assert!(told.ends_with("; the build goes on without it"), "{told}");
    }
}

/// A blob of which a cache says that it is a layer, and which is another one, is not taken for that
/// layer later either, when the image goes somewhere.
#[test]
fn c5_a_wrong_blob_does_not_get_into_an_image() {
    let env = test_env!();
    env.file("a", "content of a").file("b", "b");
    env.dockerfile("FROM busybox\nCOPY a /a\nCOPY b /b\nRUN true\n");
    let to = ["--cache-to", "type=local,dest=cache,mode=max"];
    build(&env, "one", &to).success();
    let cache = env.path("cache");
    let (mut manifest, config) = documents(&cache);
    manifest["layers"].as_array_mut().unwrap().rotate_left(1);
    replace(&cache, &manifest, &serde_json::to_vec(&config).unwrap());
    env.dockerfile("FROM busybox\nCOPY a /a\nCOPY b /b\nRUN cat /a /b\n");
    let built = build(&env, "two", &["--cache-from", "type=local,src=cache"]).success();
    assert!(built.stderr.contains("is of no use: "), "{built}");
    let out = ["-o", "type=oci,name=app,dest=app.tar"];
    build(&env, "two", &out).success();
    env.kiln_in("three", ["load", "-i", "app.tar"]).success();
    let run = env.kiln_in("three", ["run", "--rm", "app", "cat", "/a", "/b"]);
    assert_eq!(run.success().stdout, "content of ab");
}

#[test]
fn c5_2_what_is_missing_or_cannot_be_written_is_told_and_no_more() {
    let env = project(test_env!("docker-registry"));
    let registry = env.registry();
    let none = registry.name("none:cache");
    let file = env.path("file");
    fs::write(&file, "").unwrap();
    let built = build(
        &env,
        "one",
        &[
            "--cache-from",
            &none,
            "--cache-from",
            "type=local,src=nowhere",
            "--cache-from",
            "127.0.0.1:1/app:cache",
            "--cache-to",
            "type=local,dest=file",
            "--cache-to",
            "127.0.0.1:1/app:cache",
        ],
    )
    .success();
    assert_eq!(executed(&built), STEPS);
    for place in [none.as_str(), "nowhere"] {
        let told = format!(
            "importing cache manifest from {place}: not found; the build goes on without it"
        );
        assert!(built.stderr.contains(&told), "{built}");
    }
    assert!(
        built
            .stderr
            .contains("importing cache manifest from 127.0.0.1:1/app:cache: "),
        "{built}"
    );
    for place in ["file", "127.0.0.1:1/app:cache"] {
        let told = format!("warning: exporting the cache to {place} failed: ");
        assert!(built.stderr.contains(&told), "{built}");
    }
    let to = "type=local,dest=file,ignore-error=false";
    let failed = build(&env, "one", &["--cache-to", to]).failure(3);
    assert!(
        failed.stderr.contains(
            "error: the image was built and is kept, but exporting the cache to file failed: "
        ),
        "{failed}"
    );
    let wrong = build(&env, "one", &["--cache-to", "type=local,dst=x"]).failure(125);
    assert!(
        wrong
            .stderr
            .contains("unknown option `dst` for type=local in --cache-to, did you mean dest?"),
        "{wrong}"
    );
    let wrong = build(&env, "one", &["--cache-from", "type=gha,scope=x"]).failure(125);
    assert!(
        wrong
            .stderr
            .contains("--cache-from: type=gha is not supported"),
        "{wrong}"
    );
}
