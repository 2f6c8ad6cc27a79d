//! Images of the store: listing, naming, inspecting and removing them as docker does (D11).

use std::fs;

use serde_json::{Value, json};

use crate::env::{TestEnv, test_env};

/// The cells of a table, by its columns: they are at least three spaces apart.
fn table(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let cells = line
            .split("   ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    text.lines().map(cells).collect()
}

fn images(env: &TestEnv, args: &[&str]) -> Vec<Vec<String>> {
    let args = ["images"].iter().chain(args).copied();
    table(&env.kiln(args).success().stdout)
}

fn blobs(env: &TestEnv) -> usize {
    fs::read_dir(env.store().join("blobs/sha256"))
        .unwrap()
        .count()
}

fn id(env: &TestEnv, image: &str) -> String {
    env.inspect(image)["Id"].as_str().unwrap().to_owned()
}

#[test]
fn d11_1_images_lists_each_name_of_each_image() {
    let env = test_env!().with_busybox();
    env.built(
        "app:v1",
        "FROM busybox\nRUN head -c 2000000 /dev/zero >/big\n",
    );
    env.kiln(["tag", "app:v1", "registry.example:5000/team/app"])
        .success();
    let id = id(&env, "app:v1");
    let short = &id["sha256:".len()..][..12];
    let rows = images(&env, &[]);
    assert_eq!(
        rows[0],
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    );
    assert_eq!(rows.len(), 4);
    for (row, (repository, tag)) in rows[1..]
        .iter()
        .zip([("app", "v1"), ("registry.example:5000/team/app", "latest")])
    {
        assert_eq!(row[..3], [repository, tag, short]);
        assert!(row[3].ends_with(" ago"), "{row:?}");
        assert!(row[4].ends_with("MB"), "{row:?}");
    }
    assert_eq!(rows[3][..2], ["busybox", "latest"]);
    assert_eq!(images(&env, &["app"]).len(), 2);
    assert_eq!(images(&env, &["app:v2"]).len(), 1);
    let quiet = env.kiln(["images", "-q"]).success().stdout;
    assert_eq!(quiet.lines().count(), 2, "each id once");
    assert_eq!(quiet.lines().next(), Some(short));
    let whole = env.kiln(["images", "-q", "--no-trunc", "app"]).success();
    assert_eq!(whole.stdout, format!("{id}\n"));
}

#[test]
fn a_name_that_moves_leaves_a_dangling_image() {
    let env = test_env!().with_busybox();
    env.built("app", "FROM busybox\nLABEL n=1\n");
    let first = id(&env, "app");
    env.built("app", "FROM busybox\nLABEL n=2\n");
    let rows = images(&env, &[]);
    let dangling = rows.iter().find(|row| row[0] == "<none>").unwrap();
    assert_eq!(dangling[1], "<none>");
    assert_eq!(dangling[2], first["sha256:".len()..][..12]);
    // an id, whole or not, names it all the same
    for name in [&first[..], &first["sha256:".len()..][..12]] {
        assert_eq!(env.inspect(name)["RepoTags"], json!([]));
    }
}

#[test]
fn d11_2_inspect_has_docker_s_fields() {
    let env = test_env!().with_busybox();
    env.built(
        "app",
        "FROM busybox\n\
         ENV A=b\n\
         VOLUME /data\n\
         EXPOSE 53/udp\n\
         STOPSIGNAL SIGINT\n\
         HEALTHCHECK --interval=5s CMD true\n\
         ENTRYPOINT [\"/bin/echo\"]\n\
         CMD [\"hi\"]\n",
    );
    let image = env.inspect("app");
    assert_eq!(image["RepoTags"], json!(["app:latest"]));
    assert_eq!(image["RepoDigests"], json!([]));
    assert_eq!(image["Os"], "linux");
    assert_eq!(image["RootFS"]["Type"], "layers");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 3);
    assert!(image["Size"].as_u64().unwrap() > 500_000);
    let created = image["Created"].as_str().unwrap();
    assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
    let config = &image["Config"];
    assert_eq!(config["Volumes"], json!({"/data": {}}));
    assert_eq!(config["ExposedPorts"], json!({"53/udp": {}}));
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Entrypoint"], json!(["/bin/echo"]));
    assert_eq!(config["Cmd"], json!(["hi"]));
    assert_eq!(config["Healthcheck"]["Test"], json!(["CMD-SHELL", "true"]));
    assert_eq!(config["Healthcheck"]["Interval"], 5_000_000_000_u64);
    assert_eq!(config["Env"][1], "A=b");
    // what is not there does not hide what is
    let some = env.kiln(["inspect", "nothing", "app"]).failure(1);
    assert!(some.stderr.contains("nothing"), "{some}");
    let list: Value = serde_json::from_str(&some.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    let none = env.kiln(["inspect", "nothing"]).failure(1);
    assert_eq!(none.stdout.trim(), "[]");
}

#[test]
fn d11_3_history_is_newest_first_with_docker_s_columns() {
    let env = test_env!().with_busybox();
    env.built(
        "app",
        "FROM busybox\nRUN head -c 12345 /dev/zero >/file\nENV LONG=0123456789012345678901234567890123456789\n",
    );
    let text = env.kiln(["history", "app"]).success().stdout;
    let rows: Vec<&str> = text.lines().collect();
    assert!(rows[0].starts_with("IMAGE"), "{text}");
    for column in ["CREATED", "CREATED BY", "SIZE", "COMMENT"] {
        assert!(rows[0].contains(column), "{text}");
    }
    let id = id(&env, "app");
    assert!(rows[1].starts_with(&id["sha256:".len()..][..12]), "{text}");
    assert!(
        rows[1].contains("ENV LONG=") && rows[1].contains('…'),
        "{text}"
    );
    assert!(rows[1].contains("0B"), "{text}");
    assert!(rows[2].starts_with("<missing>"), "{text}");
    assert!(
        rows[2].contains("RUN /bin/sh -c head") && rows[2].contains("kB"),
        "{text}"
    );
    assert!(rows[2].contains("buildkit.dockerfile.v0"), "{text}");
    let last = rows.last().unwrap();
    assert!(last.contains("COPY busybox /bin/busybox"), "{text}");
    let whole = env
        .kiln(["history", "--no-trunc", "-H=false", "app"])
        .success();
    assert!(
        whole.stdout.contains("56789012345678901234567890123456789"),
        "{whole}"
    );
    assert!(whole.stdout.starts_with("IMAGE"), "{whole}");
    assert!(whole.stdout.contains(&id), "{whole}");
}

#[test]
fn d11_4_tag_and_rmi_by_name() {
    let env = test_env!().with_busybox();
    env.built("app", "FROM busybox\nLABEL n=1\n");
    let id = id(&env, "app");
    let tagged = env.kiln(["tag", "app", "app:two"]).success();
    assert_eq!((&tagged.stdout[..], &tagged.stderr[..]), ("", ""));
    // a name that stood for something else moves
    env.kiln(["tag", "app", "busybox:moved"]).success();
    env.kiln(["tag", "busybox", "busybox:moved"]).success();
    assert_eq!(
        env.inspect("app")["RepoTags"],
        json!(["app:latest", "app:two"])
    );
    let missing = env.kiln(["tag", "nothing", "x"]).failure(1);
    assert!(missing.stderr.contains("No such image"), "{missing}");

    let first = env.kiln(["rmi", "app:two"]).success();
    assert_eq!(first.stdout, "Untagged: app:two\n");
    let last = env.kiln(["rmi", "app"]).success();
    assert_eq!(
        last.stdout,
        format!("Untagged: app:latest\nDeleted: {id}\n")
    );
    let gone = env.kiln(["rmi", "app"]).failure(1);
    assert!(gone.stderr.contains("No such image"), "{gone}");
    // what it stood on is as it was
    env.built("again", "FROM busybox\nRUN true\n");
}

#[test]
fn d11_4_rmi_by_id_wants_force_for_several_names() {
    let env = test_env!().with_busybox();
    env.built("app", "FROM busybox\nLABEL n=1\n");
    env.kiln(["tag", "app", "other:name"]).success();
    let id = id(&env, "app");
    let refused = env.kiln(["rmi", &id]).failure(1);
    assert!(refused.stderr.contains("must be forced"), "{refused}");
    let forced = env.kiln(["rmi", "-f", &id]).success();
    assert_eq!(
        forced.stdout,
        format!("Untagged: app:latest\nUntagged: other:name\nDeleted: {id}\n")
    );
    // one that is missing does not keep the others
    env.built("one", "FROM busybox\nLABEL n=2\n");
    let some = env.kiln(["rmi", "nothing", "one"]).failure(1);
    assert!(some.stdout.contains("Untagged: one:latest"), "{some}");
}

#[test]
fn rmi_frees_what_only_that_image_needed() {
    let env = test_env!().with_busybox();
    let before = blobs(&env);
    let archive = env.path("app.tar");
    env.built("app", "FROM busybox\nRUN echo a >/a\n");
    env.kiln(["save", "app", "-o"]).arg(&archive).success();
    env.kiln(["rmi", "app"]).success();
    assert_eq!(blobs(&env), before);
    // loaded, its layers are blobs, too: those that busybox has stay
    env.kiln(["load", "-i"]).arg(&archive).success();
    assert!(blobs(&env) > before);
    env.kiln(["rmi", "app"]).success();
    assert_eq!(blobs(&env), before);
    env.kiln(["save", "busybox", "-o"]).arg(&archive).success();
    env.kiln(["rmi", "busybox"]).success();
    assert_eq!(blobs(&env), 0);
    // and nothing is remembered that would be missed now
    env.kiln(["load", "-i"]).arg(&archive).success();
    env.built("app", "FROM busybox\nRUN echo a >/a\n");
    assert_eq!(env.saved("app").text("a"), "a\n");
}

#[test]
fn an_image_outlives_the_name_of_its_base() {
    let env = test_env!().with_busybox();
    env.built("app", "FROM busybox\nRUN echo a >/a\n");
    env.kiln(["rmi", "busybox"]).success();
    let saved = env.saved("app");
    assert_eq!(saved.text("a"), "a\n");
    assert_eq!(saved.layers.len(), 4);
    env.built("more", "FROM app\nRUN cat /a >/b\n");
    assert_eq!(env.saved("more").text("b"), "a\n");
}
