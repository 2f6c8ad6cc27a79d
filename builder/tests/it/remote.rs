//! The verbs that work on registries, past the store: tags, rm-remote, copy, referrers, search
//! (D8, D9), against a registry that is not kiln's.

use std::collections::BTreeMap;
use std::fs;

use kiln_registry::blob::{BlobSink as _, InMemory};
use kiln_registry::digest::Digest;
use kiln_registry::layout::Layout;
use kiln_registry::spec::media_type::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use kiln_registry::spec::{Descriptor, Index, Manifest, Platform, Raw};
use serde_json::{Value, json};

use crate::env::{TestEnv, test_env};
use crate::own::Own;
use crate::web::Web;

/// A layout with images, made without any other tool.
pub(crate) struct Made {
    layout: Layout,
    runtime: tokio::runtime::Runtime,
}

impl Made {
    pub(crate) fn new(env: &TestEnv, name: &str) -> Self {
        Self {
            layout: Layout::create(env.path(name)).unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Descriptor {
        let blob = Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        let source = InMemory(bytes.to_vec());
        let put = self.layout.put(&blob, &source, &|_, _| ());
        self.runtime.block_on(put).unwrap();
        blob
    }

    fn document(&self, kind: &str, bytes: &[u8], name: Option<&str>) -> Descriptor {
        let root = Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        let put = self.layout.put_manifest(&root, bytes, name);
        self.runtime.block_on(put).unwrap();
        root
    }

    /// An image of one layer, which is a tar of nothing and a text behind its end.
    pub(crate) fn image(&self, architecture: &str, text: &str, name: Option<&str>) -> Descriptor {
        let mut layer = vec![0; 1024];
        layer.extend_from_slice(text.as_bytes());
        let layer = self.blob(OCI_LAYER, &layer);
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        });
        let config = self.blob(OCI_CONFIG, config.to_string().as_bytes());
        let manifest = Raw::write(Manifest::new(config, vec![layer])).unwrap();
        self.document(OCI_MANIFEST, &manifest.bytes, name)
    }

    /// An index of two platforms.
    fn index(&self, text: &str, name: &str) -> Descriptor {
        let images = ["amd64", "arm64"].map(|architecture| {
            let mut image = self.image(architecture, &format!("{text} {architecture}"), None);
            image.platform = Some(Platform {
                os: "linux".to_owned(),
                architecture: architecture.to_owned(),
                ..Platform::default()
            });
            image
        });
        let index = Raw::write(Index::new(OCI_INDEX, images.to_vec())).unwrap();
        self.document(OCI_INDEX, &index.bytes, Some(name))
    }

    /// An artifact about something.
    fn about(&self, subject: &Descriptor, kind: &str, text: &str) -> Descriptor {
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let layer = self.blob("text/plain", text.as_bytes());
        let mut manifest = Manifest::new(config, vec![layer]);
        manifest.artifact_type = Some(kind.to_owned());
        manifest.subject = Some(Descriptor::new(
            &subject.media_type,
            subject.digest,
            subject.size,
        ));
        manifest.annotations = BTreeMap::from([("note".to_owned(), text.to_owned())]);
        let manifest = Raw::write(manifest).unwrap();
        let root = self.document(OCI_MANIFEST, &manifest.bytes, None);
        self.layout.list(&root, None).unwrap();
        root
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn d9_1_tags_are_listed_sorted_and_paged() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    made.image("amd64", "x", Some("1"));
    let name = registry.name("team/app");
    for tag in ["v2", "v10", "latest", "a"] {
        let to = format!("docker://{name}:{tag}");
        env.kiln(["copy", "-q", "oci:made:1", &to]).success();
    }
    let tags = |args: &[&str]| {
        env.kiln(["tags", &name])
            .args(args.iter().copied())
            .success()
            .stdout
    };
    assert_eq!(lines(&tags(&[])), ["a", "latest", "v10", "v2"]);
    assert_eq!(lines(&tags(&["-q"])), ["a", "latest", "v10", "v2"]);
    assert_eq!(lines(&tags(&["--full-ref"]))[0], format!("{name}:a"));
    let list: Value = serde_json::from_str(&tags(&["--format", "json"])).unwrap();
    assert_eq!(
        list,
        json!({"Repository": name, "Tags": ["a", "latest", "v10", "v2"]})
    );

    let none = env.kiln(["tags", &registry.name("team/none")]).failure(1);
    assert!(none.stderr.contains("NAME_UNKNOWN"), "{none}");
    let tagged = env.kiln(["tags", &format!("{name}:a")]).failure(125);
    assert!(
        tagged.stderr.contains("names an image, not a repository"),
        "{tagged}"
    );
}

#[test]
fn d9_2_a_tag_is_deleted_without_its_neighbours() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    let image = made.image("amd64", "x", Some("1"));
    let name = registry.name("team/app");
    for tag in ["a", "b", "c"] {
        env.kiln(["copy", "-q", "oci:made:1", &format!("{name}:{tag}")])
            .success();
    }
    let tags = || env.kiln(["tags", &name]).success().stdout;
    let removed = env.kiln(["rm-remote", &format!("{name}:b")]).success();
    assert_eq!(removed.stdout, format!("Untagged: {name}:b\n"));
    assert_eq!(lines(&tags()), ["a", "c"]);
    // The image is still there, also for its other tags.
    env.kiln(["copy", "-q", &format!("{name}:a"), "oci:out:a"])
        .success();

    let by_digest = format!("{name}@{}", image.digest);
    let refused = env.kiln(["rm-remote", &by_digest]).failure(1);
    assert!(
        refused.stderr.contains("2 tags name") && refused.stderr.contains(": a, c;"),
        "{refused}"
    );
    assert_eq!(lines(&tags()), ["a", "c"]);
    let removed = env.kiln(["rm-remote", "--force", &by_digest]).success();
    let expected = format!("Untagged: {name}:a\nUntagged: {name}:c\nDeleted: {by_digest}\n");
    assert_eq!(removed.stdout, expected);
    assert_eq!(tags(), "");
    let gone = env.kiln(["rm-remote", &format!("{name}:a")]).failure(1);
    assert!(gone.stderr.contains("MANIFEST_UNKNOWN"), "{gone}");
}

#[test]
fn d9_2_a_registry_that_deletes_nothing_is_said_to() {
    let env = test_env!("docker-registry");
    let registry = env.registry_without_deletion();
    let made = Made::new(&env, "made");
    let image = made.image("amd64", "x", Some("1"));
    let name = registry.name("team/app");
    env.kiln(["copy", "-q", "oci:made:1", &format!("{name}:a")])
        .success();
    for what in [format!("{name}:a"), format!("{name}@{}", image.digest)] {
        let refused = env.kiln(["rm-remote", &what]).failure(1);
        assert!(
            refused.stderr.contains("does not let anything be deleted"),
            "{refused}"
        );
        assert!(
            refused.stderr.contains("REGISTRY_STORAGE_DELETE_ENABLED"),
            "{refused}"
        );
    }
    let found = env
        .kiln(["copy", "-q", &format!("{name}:a"), "oci:out:a"])
        .success();
    assert_eq!(found.stdout.trim(), image.digest.to_string());
}

#[test]
fn d9_3_images_are_copied_between_all_places_as_they_are() {
    let env = test_env!("docker-registry", "skopeo");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    let index = made.index("x", "1.0").digest.to_string();
    let name = registry.name("team/app:1.0");
    let remote = format!("docker://{name}");
    let copy = |from: &str, to: &str| {
        let copied = env.kiln(["copy", from, to]).success();
        assert_eq!(copied.stdout.trim(), index, "{copied}");
        copied
    };
    copy("oci:made:1.0", &remote);
    copy(&remote, "oci-archive:a.tar");
    copy("oci-archive:a.tar", "oci:second:x");
    copy("oci:second", "docker-archive:b.tar:other.example/app:2");
    copy(
        "docker-archive:b.tar",
        &format!("{}/again:2", registry.address),
    );
    // Somebody else reads the same.
    for place in [
        format!("docker://{}/again:2", registry.address),
        "oci:second:x".to_owned(),
        "oci-archive:a.tar".to_owned(),
    ] {
        let raw = env
            .program("skopeo", ["inspect", "--tls-verify=false", "--raw", &place])
            .success();
        assert_eq!(Digest::of(&raw.bytes).to_string(), index, "{place}");
    }
    let inside = env
        .program("skopeo", ["inspect", "docker-archive:b.tar"])
        .success();
    assert!(inside.stdout.contains("\"Os\": \"linux\""), "{inside}");

    // One platform, by its own digest.
    let one = env
        .kiln(["copy", "--platform", "linux/arm64", &remote, "oci:arm:1"])
        .success();
    let config = env
        .program("skopeo", ["inspect", "--config", "oci:arm:1"])
        .success()
        .stdout;
    assert!(config.contains("arm64"), "{config}");
    assert_ne!(one.stdout.trim(), index);
    let none = env
        .kiln(["copy", "--platform", "linux/s390x", &remote, "oci:none"])
        .failure(1);
    assert!(none.stderr.contains("no image for `linux/s390x`"), "{none}");
}

#[test]
fn d9_3_nothing_is_sent_twice_and_neighbours_mount() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    made.index("x", "1");
    let [one, two] = ["team/one:1", "team/two:1"].map(|name| registry.name(name));
    env.kiln(["copy", "oci:made:1", &one]).success();
    let mounted = env.kiln(["copy", &one, &two]).success();
    assert_eq!(
        mounted.stderr.matches("Mounted from team/one").count(),
        4,
        "{mounted}"
    );
    let sent = |log: &str| log.matches("http.request.method=PATCH ").count();
    let before = sent(&registry.log());
    let again = env.kiln(["copy", "oci:made:1", &two]).success();
    assert!(!again.stderr.contains("Copied"), "{again}");
    assert_eq!(sent(&registry.log()), before);
}

#[test]
fn d9_3_all_tags_go_along() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    for tag in ["1", "2", "old"] {
        made.image("amd64", tag, Some(tag));
    }
    let [one, two] = ["team/one", "team/two"].map(|name| registry.name(name));
    env.kiln(["copy", "-a", "oci:made", &one]).success();
    let copied = env.kiln(["copy", "--all-tags", &one, &two]).success();
    assert_eq!(lines(&copied.stdout).len(), 3, "{copied}");
    assert!(copied.stdout.starts_with("1 sha256:"), "{copied}");
    let listed = env.kiln(["tags", &two]).success().stdout;
    assert_eq!(lines(&listed), ["1", "2", "old"]);
    env.kiln(["copy", "-a", &two, "oci-archive:all.tar"])
        .success();
    let loaded = env.kiln(["load", "-i", "all.tar"]).success();
    assert_eq!(
        loaded.stdout.matches("Loaded image: ").count(),
        3,
        "{loaded}"
    );
    let one_of_all = env
        .kiln(["copy", "-a", &one, &format!("{two}:1")])
        .failure(1);
    assert!(
        one_of_all.stderr.contains("neither source nor destination"),
        "{one_of_all}"
    );
    let several = env.kiln(["copy", "oci:made", "oci:x"]).failure(1);
    assert!(
        several.stderr.contains("several images, one must be named"),
        "{several}"
    );
}

#[test]
fn d8_2_referrers_are_listed_and_copied_without_an_api_for_them() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    let image = made.image("amd64", "x", Some("1"));
    let signature = made.about(&image, "application/vnd.example.signature", "signed");
    made.about(&image, "application/vnd.example.sbom", "packages");
    made.about(
        &signature,
        "application/vnd.example.note",
        "on the signature",
    );
    let [one, two] = ["team/one:1", "team/two:1"].map(|name| registry.name(name));
    let copied = env
        .kiln(["copy", "--referrers", "oci:made:1", &one])
        .success();
    assert!(copied.stderr.contains("3 referrers came along"), "{copied}");

    let tree = env.kiln(["referrers", &one]).success().stdout;
    assert!(
        tree.starts_with(&format!("{}@{}\n", registry.name("team/one"), image.digest)),
        "{tree}"
    );
    assert!(
        tree.contains("├── application/vnd.example.s")
            && tree.contains("└── application/vnd.example.s"),
        "{tree}"
    );
    assert!(
        tree.contains("── application/vnd.example.note sha256:"),
        "{tree}"
    );
    assert!(tree.contains("note: on the signature"), "{tree}");
    let kind = "application/vnd.example.sbom";
    let found = env
        .kiln([
            "referrers",
            "--format",
            "json",
            "--artifact-type",
            kind,
            &one,
        ])
        .success();
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found["manifests"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["manifests"][0]["annotations"]["note"], "packages");

    env.kiln(["copy", "--referrers", &one, &two]).success();
    let other = env.kiln(["referrers", &two]).success().stdout;
    assert_eq!(tree.replace("team/one", "team/two"), other);
    env.kiln(["copy", "--referrers", &two, "oci-archive:all.tar"])
        .success();
    let back = env
        .kiln(["copy", "--referrers", "oci-archive:all.tar", "oci:back"])
        .success();
    assert!(back.stderr.contains("3 referrers came along"), "{back}");

    // Only the image is loaded, and only it has a tag of its own.
    let loaded = env.kiln(["load", "-i", "all.tar"]).success();
    assert_eq!(loaded.stdout, format!("Loaded image: {two}\n"));
    let all = env
        .kiln(["copy", "-q", "-a", &registry.name("team/two"), "oci:all"])
        .success();
    assert_eq!(all.stdout, format!("{two} {}\n", image.digest));

    // A referrer that is deleted leaves the list, and the tags of lists can be left out.
    let gone = format!("{}@{}", registry.name("team/two"), signature.digest);
    env.kiln(["rm-remote", &gone]).success();
    let left = env.kiln(["referrers", &two]).success().stdout;
    assert!(!left.contains("signature"), "{left}");
    let tags = env
        .kiln(["tags", "-O", &registry.name("team/two")])
        .success()
        .stdout;
    assert_eq!(lines(&tags), ["1"]);
}

#[test]
fn kiln_s_own_registry_serves_all_verbs() {
    let env = test_env!().with_busybox();
    let own = Own::start(&env.path("own"));
    let [one, two] = ["team/one:1", "team/two:1"].map(|name| format!("{}/{name}", own.address));
    env.kiln(["tag", "busybox", &one]).success();
    env.kiln(["push", &one]).success();
    env.kiln_in("there", ["pull", &one]).success();
    let mounted = env.kiln(["copy", &one, &two]).success();
    assert!(
        mounted.stderr.contains("Mounted from team/one"),
        "{mounted}"
    );

    let made = Made::new(&env, "made");
    let image = made.image("amd64", "x", Some("1"));
    made.about(&image, "application/vnd.example.signature", "signed");
    let three = format!("{}/three:1", own.address);
    env.kiln(["copy", "--referrers", "oci:made:1", &three])
        .success();
    let tree = env.kiln(["referrers", &three]).success().stdout;
    assert!(
        tree.contains("└── application/vnd.example.signature"),
        "{tree}"
    );
    // The registry keeps the list itself.
    let name = three.trim_end_matches(":1");
    assert_eq!(env.kiln(["tags", name]).success().stdout, "1\n");
    env.kiln(["rm-remote", &three]).success();
    assert_eq!(env.kiln(["tags", name]).success().stdout, "");
}

#[test]
fn d5_6_an_artifact_is_not_pulled_but_copied() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let made = Made::new(&env, "made");
    let config = made.blob("application/vnd.cncf.helm.config.v1+json", b"{}");
    let chart = made.blob(
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        b"chart",
    );
    let manifest = Raw::write(Manifest::new(config, vec![chart])).unwrap();
    made.document(OCI_MANIFEST, &manifest.bytes, Some("1"));
    let name = registry.name("charts/app:1");
    env.kiln(["copy", "oci:made:1", &name]).success();
    let refused = env.kiln(["pull", &name]).failure(1);
    assert!(
        refused
            .stderr
            .contains("unsupported media type `application/vnd.cncf.helm.config.v1+json`"),
        "{refused}"
    );
    let hint = format!("kiln copy docker://{name} oci:FOLDER");
    assert!(refused.stderr.contains(&hint), "{refused}");
    let fetched = env
        .kiln(["copy", &format!("docker://{name}"), "oci:out"])
        .success();
    assert_eq!(fetched.stdout.trim(), manifest.digest.to_string());
}

#[test]
fn d9_3_damaged_sources_are_named_and_leave_nothing() {
    let env = test_env!();
    let made = Made::new(&env, "made");
    let image = made.image("amd64", "x", Some("1"));
    let layer = {
        let bytes = made.layout.document(&image).unwrap();
        let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
        made.layout.blob_path(&manifest.layers[0].digest)
    };
    let mut bytes = fs::read(&layer).unwrap();
    bytes[5] ^= 1;
    fs::write(&layer, bytes).unwrap();
    fs::write(env.path("old.tar"), "what was there").unwrap();
    let damaged = env
        .kiln(["copy", "oci:made:1", "oci-archive:old.tar"])
        .failure(3);
    assert!(damaged.stderr.contains("sha256:"), "{damaged}");
    assert_eq!(fs::read(env.path("old.tar")).unwrap(), b"what was there");
    let left = fs::read_dir(env.path("")).unwrap().flatten();
    let names: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().contains("partial")),
        "{names:?}"
    );
    for (from, expected) in [
        ("oci:nothing", "is not an OCI image layout"),
        ("oci-archive:nothing.tar", "cannot open `nothing.tar`"),
        ("oci-archive:old.tar", "not a tar archive"),
        ("oci:made:2", "has no image `2`; it has `1`"),
    ] {
        let refused = env.kiln(["copy", from, "oci:out"]).run();
        assert!(
            refused.code != Some(0) && refused.stderr.contains(expected),
            "{from}: {refused}"
        );
    }
    let unknown = env.kiln(["copy", "dir:made", "oci:out"]).failure(125);
    assert!(unknown.stderr.contains("docker-archive:FILE"), "{unknown}");
}

#[test]
fn d9_1_search_asks_the_host_that_is_given() {
    let env = test_env!();
    let web = Web::start(env.path("web"), None);
    let results = json!({"num_results": 2, "results": [
        {"name": "busybox", "description": "Busybox base image.\u{1b}[31m", "star_count": 3000, "is_official": true},
        {"name": "me/busybox", "description": "x".repeat(60), "star_count": 2, "is_official": false},
    ]});
    web.file("v1/search", results.to_string());
    let host = web.url("");
    let search = |args: &[&str]| {
        let run = env.kiln(["search", "busybox"]).args(args.iter().copied());
        run.env("KILN_SEARCH_HOST", &host).success().stdout
    };
    let table = search(&[]);
    assert_eq!(
        lines(&table)[..2],
        [
            "NAME         DESCRIPTION                                     STARS   OFFICIAL",
            "busybox      Busybox base image.[31m                         3000    [OK]",
        ]
    );
    assert!(table.contains("xxx…"), "{table}");
    assert!(search(&["--no-trunc"]).contains(&"x".repeat(60)));
    assert_eq!(
        search(&["--format", "{{.Name}}: {{ .StarCount }}"]),
        "busybox: 3000\nme/busybox: 2\n"
    );
    assert_eq!(
        lines(&search(&["-f", "stars=3", "--format", "{{.Name}}"])),
        ["busybox"]
    );
    assert_eq!(
        lines(&search(&[
            "-f",
            "is-official=false",
            "--format",
            "{{.Name}}"
        ])),
        ["me/busybox"]
    );
    assert_eq!(
        lines(&search(&["--limit", "1", "--format", "json"])).len(),
        1
    );
    assert_eq!(web.queries()[0], "q=busybox&n=25");
    for bad in [
        ["--filter", "stars=x"],
        ["--format", "{{.Nothing}}"],
        ["--limit", "0"],
    ] {
        env.kiln(["search", "x"]).args(bad).failure(125);
    }
    web.file("v1/search", "<html>login</html>");
    let page = env.kiln(["search", "x", "--host", &host]).failure(1);
    assert!(
        page.stderr.contains("no valid list of search results"),
        "{page}"
    );
}
