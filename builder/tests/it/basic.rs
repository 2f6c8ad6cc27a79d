//! Basic builds on busybox: what each instruction and flag leaves in the image.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use serde_json::json;

use crate::env::test_env;

#[test]
fn copies_steps_and_metadata_make_the_image() {
    let env = test_env!().with_busybox();
    env.file("hello", "world\n").file("tree/a/b", "deep");
    env.built(
        "one",
        "FROM busybox\n\
         LABEL by=test\n\
         ENV GREETING=hello\n\
         WORKDIR /work/dir\n\
         COPY hello ./\n\
         COPY tree /tree\n\
         RUN echo \"$GREETING $(cat hello) $PWD\" >said\n\
         EXPOSE 80\n\
         USER 1000:1001\n\
         CMD [\"sh\", \"-c\", \"true\"]\n",
    );
    let saved = env.saved("one");
    assert_eq!(saved.text("work/dir/said"), "hello world /work/dir\n");
    assert_eq!(saved.text("tree/a/b"), "deep");
    let config = &saved.config["config"];
    assert_eq!(config["Labels"], json!({"by": "test"}));
    assert_eq!(config["WorkingDir"], "/work/dir");
    assert_eq!(config["User"], "1000:1001");
    assert_eq!(config["Cmd"], json!(["sh", "-c", "true"]));
    assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}}));
    let env_of_image = config["Env"].as_array().unwrap();
    assert!(env_of_image.contains(&json!("GREETING=hello")));
}

#[test]
fn add_unpacks_an_archive_and_copy_does_not() {
    let env = test_env!().with_busybox();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o640);
    header.set_cksum();
    tar.append_data(&mut header, "in/file", &b"data"[..])
        .unwrap();
    env.file("a.tar", tar.into_inner().unwrap());
    env.built(
        "one",
        "FROM busybox\nADD a.tar /added/\nCOPY a.tar /copied/\n",
    );
    let saved = env.saved("one");
    assert_eq!(saved.text("added/in/file"), "data");
    assert_eq!(saved.top_paths(), ["copied", "copied/a.tar"]);
}

#[test]
fn a11_7_owners_and_modes_are_those_that_were_asked_for() {
    let env = test_env!().with_busybox();
    env.file("file", "x").file("script", "y");
    env.built(
        "one",
        "FROM busybox\n\
         COPY --chown=1000 file /a\n\
         COPY --chown=1000:7 --chmod=0751 script /b\n",
    );
    let saved = env.saved("one");
    let (first, second) = (
        &saved.layers[saved.layers.len() - 2]["a"],
        &saved.top()["b"],
    );
    assert_eq!(first.owner, (1000, 1000));
    assert_eq!((second.owner, second.mode), ((1000, 7), 0o751));
}

#[test]
fn a13_heredocs_are_scripts_and_files() {
    let env = test_env!().with_busybox();
    env.built(
        "one",
        "FROM busybox\n\
         RUN <<EOF\n\
         echo one >/said\n\
         echo two >>/said\n\
         EOF\n\
         ARG WHO=you\n\
         COPY <<one <<'two' /files/\n\
         for $WHO\n\
         one\n\
         for $WHO\n\
         two\n\
         RUN <<EOF\n\
         #!/bin/awk -f\n\
         BEGIN { print 6 * 7 >\"/answer\" }\n\
         EOF\n",
    );
    let saved = env.saved("one");
    assert_eq!(saved.text("said"), "one\ntwo\n");
    assert_eq!(saved.text("files/one"), "for you\n");
    assert_eq!(saved.text("files/two"), "for $WHO\n");
    assert_eq!(saved.text("answer"), "42\n");
}

const STAGES: &str = "FROM busybox AS base\n\
     RUN echo base >/base\n\
     FROM base AS left\n\
     RUN echo left >/left\n\
     FROM base AS right\n\
     RUN echo right >/right\n\
     FROM base AS unused\n\
     RUN false\n\
     FROM scratch\n\
     COPY --from=left /left /\n\
     COPY --from=right /right /\n";

#[test]
fn stages_that_are_not_needed_do_not_run() {
    let env = test_env!().with_busybox();
    env.built("all", STAGES);
    let saved = env.saved("all");
    assert_eq!(saved.layers.len(), 2);
    assert_eq!(
        (saved.text("left"), saved.text("right")),
        ("left\n".into(), "right\n".into())
    );
    // a target stops there, and its name has no case
    env.build("target").args(["--target", "LEFT"]).success();
    let saved = env.saved("target");
    assert_eq!(saved.top_paths(), ["left"]);
    let failed = env.build("none").args(["--target", "nowhere"]).failure(1);
    assert!(failed.stderr.contains("nowhere"), "{failed}");
}

#[test]
fn independent_stages_run_at_the_same_time() {
    let env = test_env!().with_busybox();
    // Each waits for the other: run one after the other, neither would end well. What they meet at
    // is the machine's loopback, which they share. What `nc` passes on when both sides hang up at
    // once is chance, so that they met is all that counts.
    let port = crate::env::free_port();
    let built = env
        .dockerfile(&format!(
            "FROM busybox AS one\n\
             RUN timeout 60 nc -l -p {port} 127.0.0.1 </dev/null && echo met >/got\n\
             FROM busybox AS two\n\
             RUN until nc 127.0.0.1 {port} </dev/null; do usleep 20000; done; echo met >/got\n\
             FROM scratch\n\
             COPY --from=one /got /one\n\
             COPY --from=two /got /two\n"
        ))
        .build("meet")
        .args(["--network", "host"])
        .success();
    let saved = env.saved("meet");
    assert_eq!(saved.text("one"), "met\n", "{built}");
    assert_eq!(saved.text("two"), "met\n", "{built}");
}

#[test]
fn arguments_reach_steps_and_not_the_config() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "ARG BASE=nothing\nFROM ${BASE}\nARG A=default\nARG B\nARG C=c\n\
         RUN echo \"$A ${B-unset} $C\" >/said\n",
    );
    env.build("one")
        .args(["--build-arg", "BASE=busybox", "--build-arg", "A=given"])
        .args(["--build-arg", "B"])
        .env("B", "from the environment")
        .success();
    let saved = env.saved("one");
    assert_eq!(saved.text("said"), "given from the environment c\n");
    let variables = saved.config["config"]["Env"].to_string();
    assert!(!variables.contains("given"), "{variables}");
}

#[test]
fn quiet_prints_the_id_alone_and_iidfile_holds_it() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN echo noise; echo more >&2\n");
    let file = env.path("id");
    let built = env
        .build("one")
        .args(["-q", "--iidfile"])
        .arg(&file)
        .success();
    let id = env.inspect("one")["Id"].as_str().unwrap().to_owned();
    assert_eq!(built.stdout, format!("{id}\n"));
    assert_eq!(built.stderr, "");
    assert_eq!(fs::read_to_string(&file).unwrap(), id);
    // a build that fails leaves no old id behind, and still says why
    env.dockerfile("FROM busybox\nRUN echo reason; exit 3\n");
    let failed = env
        .build("one")
        .args(["-q", "--iidfile"])
        .arg(&file)
        .failure(1);
    assert!(!file.exists());
    assert_eq!(failed.stdout, "");
    assert!(failed.stderr.contains("reason"), "{failed}");
    assert!(failed.stderr.contains("exit code: 3"), "{failed}");
    assert_eq!(env.inspect("one")["Id"], json!(id));
}

#[test]
fn labels_of_the_command_line_win() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nLABEL a=file b=file\n");
    env.build("one")
        .args(["--label", "a=line", "--label", "c=x=y", "--label", "d"])
        .success();
    assert_eq!(
        env.inspect("one")["Config"]["Labels"],
        json!({"a": "line", "b": "file", "c": "x=y", "d": ""})
    );
}

#[test]
fn several_tags_name_one_image() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN true\n");
    env.build("one").args(["-t", "two:v1"]).success();
    assert_eq!(
        env.inspect("one")["RepoTags"],
        json!(["one:latest", "two:v1"])
    );
}

#[test]
fn the_dockerfile_comes_from_standard_input_or_another_file() {
    let env = test_env!().with_busybox();
    env.file("file", "x")
        .file("sub/other.dockerfile", "FROM busybox\nCOPY file /other\n");
    env.build("in")
        .args(["-f", "-"])
        .stdin("FROM busybox\nCOPY file /piped\n")
        .success();
    assert_eq!(env.saved("in").top_paths(), ["piped"]);
    let file = env.context().join("sub/other.dockerfile");
    env.build("sub").arg("-f").arg(file).success();
    assert_eq!(env.saved("sub").top_paths(), ["other"]);
    let missing = env.build("none").failure(1);
    assert!(
        missing.stderr.contains("failed to read dockerfile"),
        "{missing}"
    );
}

#[test]
fn a14_1_the_ignore_file_beside_the_dockerfile_replaces_that_of_the_context() {
    let env = test_env!().with_busybox();
    env.file("a", "").file("b", "").file("c", "");
    env.file(
        ".dockerignore",
        "a\nDockerfile\n*.dockerfile*\n.dockerignore\n",
    )
    .file("my.dockerfile", "FROM scratch\nCOPY . /\n")
    .file("my.dockerfile.dockerignore", "b\n*ocker*\n");
    env.built("plain", "FROM scratch\nCOPY . /\n");
    assert_eq!(env.saved("plain").top_paths(), ["b", "c"]);
    let file = env.context().join("my.dockerfile");
    env.build("mine").arg("-f").arg(file).success();
    assert_eq!(env.saved("mine").top_paths(), ["a", "c"]);
}

#[test]
fn a14_2_an_ignore_file_need_not_be_utf_8() {
    let env = test_env!().with_busybox();
    env.file("a", "").file("b", "");
    let odd = OsStr::from_bytes(b"caf\xe9");
    fs::write(env.context().join(odd), "").unwrap();
    fs::write(
        env.context().join(".dockerignore"),
        b"# d\xe9j\xe0 vu\nb\ncaf\xe9\n*ocker*\n",
    )
    .unwrap();
    env.built("odd", "FROM scratch\nCOPY . /\n");
    assert_eq!(env.saved("odd").top_paths(), ["a"]);
}

#[test]
fn a2_8_a_comment_silences_the_warnings_of_one_instruction() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM scratch\n# check=skip=undefinedvar\nENV A=$B\nENV C=$D\n");
    let built = env.build("one").success();
    assert!(built.stderr.contains("undefined variable '$D'"), "{built}");
    assert!(!built.stderr.contains("'$B'"), "{built}");
}

#[test]
fn a14_8_dockerfile_in_lower_case_is_taken_where_there_is_no_other() {
    let env = test_env!().with_busybox();
    env.file("dockerfile", "FROM scratch\nCOPY lower /\n");
    env.file("lower", "").file("upper", "");
    env.build("lower").success();
    assert_eq!(env.saved("lower").top_paths(), ["lower"]);
    env.built("upper", "FROM scratch\nCOPY upper /\n");
    assert_eq!(env.saved("upper").top_paths(), ["upper"]);
}

#[test]
fn network_none_leaves_the_loopback_alone() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN cat /proc/net/dev >/devices\n");
    env.build("none").args(["--network", "none"]).success();
    env.build("host").args(["--network", "host"]).success();
    let count = |image: &str| {
        let devices = env.saved(image).text("devices");
        devices.lines().filter(|line| line.contains(':')).count()
    };
    assert_eq!(count("none"), 1);
    let devices = env.saved("none").text("devices");
    assert!(devices.contains("lo:"), "{devices}");
    assert_eq!(
        count("host"),
        fs::read_dir("/sys/class/net").unwrap().count()
    );
}

#[test]
fn b1_6_a_step_leaves_no_trace_of_what_was_provided() {
    let env = test_env!().with_busybox();
    env.built(
        "one",
        "FROM busybox\n\
         RUN cat /etc/hosts /etc/resolv.conf >/dev/null && mount >/dev/null && echo x >/only\n\
         RUN --mount=type=tmpfs,target=/deep/er/mount touch /deep/er/mount/file\n\
         RUN echo mine >/etc/mine\n",
    );
    let saved = env.saved("one");
    let layers: Vec<Vec<&str>> = saved
        .layers
        .iter()
        .rev()
        .take(3)
        .map(|layer| layer.keys().map(String::as_str).collect())
        .collect();
    assert_eq!(layers[2], ["only"]);
    assert!(layers[1].is_empty(), "{:?}", layers[1]);
    assert_eq!(layers[0], ["etc", "etc/mine"]);
}

#[test]
fn b6_3_an_image_s_own_hosts_file_stays_as_it_is() {
    let env = test_env!().with_busybox();
    env.file("hosts", "10.0.0.1 mine\n")
        .file("resolv.conf", "nameserver 10.0.0.1\n");
    env.built(
        "one",
        "FROM busybox\n\
         COPY hosts resolv.conf /etc/\n\
         RUN ! grep mine /etc/hosts && grep -q buildkitsandbox /etc/hosts\n\
         RUN ! echo x 2>/dev/null >>/etc/hosts\n\
         RUN ! mv /etc/resolv.conf /gone 2>/dev/null; ! rm /etc/hosts 2>/dev/null\n",
    );
    let saved = env.saved("one");
    assert_eq!(saved.text("etc/hosts"), "10.0.0.1 mine\n");
    for layer in saved.layers.iter().rev().take(3) {
        assert!(layer.is_empty(), "{:?}", layer.keys());
    }
}

#[test]
fn new_directories_are_opaque_only_where_they_hide_something() {
    let env = test_env!().with_busybox();
    env.built(
        "one",
        "FROM busybox\n\
         RUN mkdir -p /foo/bar && mkdir /moved && mv /moved /foo/baz && ln -s foo /link\n\
         RUN mkdir /new && touch /foo/kept /foo/bar/old\n\
         RUN rm -r /foo/bar && mkdir /foo/bar && touch /foo/bar/young\n\
         RUN rm /link && mkdir /link && touch /link/file\n\
         RUN ls -A /foo /foo/bar /link /new >/seen\n",
    );
    let saved = env.saved("one");
    let layers: Vec<Vec<&str>> = saved
        .layers
        .iter()
        .rev()
        .take(5)
        .map(|layer| layer.keys().map(String::as_str).collect())
        .collect();
    assert_eq!(layers[4], ["foo", "foo/bar", "foo/baz", "link"]);
    assert_eq!(
        layers[3],
        ["foo", "foo/bar", "foo/bar/old", "foo/kept", "new"]
    );
    assert_eq!(
        layers[2],
        ["foo", "foo/bar", "foo/bar/.wh..wh..opq", "foo/bar/young"]
    );
    assert_eq!(layers[1], ["link", "link/file"]);
    let seen = "/foo:\nbar\nbaz\nkept\n\n/foo/bar:\nyoung\n\n/link:\nfile\n\n/new:\n";
    assert_eq!(saved.text("seen"), seen);
    // the same from the layers' tars, in a store that never saw the directories
    let archive = env.path("one.tar");
    env.kiln(["save", "one", "-o"]).arg(&archive).success();
    env.kiln_in("other", ["load", "-i"]).arg(&archive).success();
    env.dockerfile("FROM one\nRUN ls -A /foo /foo/bar /link /new >/again\n");
    env.kiln_in("other", ["build", "-t", "two", "context"])
        .success();
    let bytes = env.kiln_in("other", ["save", "two"]).success().bytes;
    assert_eq!(crate::saved::Saved::read(&bytes).text("again"), seen);
}

#[test]
fn a7_3_scratch_has_a_path_and_no_files() {
    let env = test_env!();
    env.file("file", "x");
    env.built("one", "FROM scratch\nCOPY file /\n");
    let saved = env.saved("one");
    assert_eq!(saved.layers.len(), 1);
    assert_eq!(saved.config["config"]["WorkingDir"], "/");
    assert!(
        saved.config["config"]["Env"][0]
            .as_str()
            .unwrap()
            .starts_with("PATH=/usr/local/sbin:")
    );
}

#[test]
fn a_file_with_foreign_owner_mode_and_time_keeps_mode_and_time_only() {
    let env = test_env!().with_busybox();
    env.file("file", "x");
    let file = env.context().join("file");
    let path = file.to_str().unwrap();
    env.program("chown", ["1234:1234", path]).success();
    env.program("chmod", ["4750", path]).success();
    env.program("touch", ["-d", "@1000000000", path]).success();
    env.built("one", "FROM busybox\nCOPY file /\n");
    let saved = env.saved("one");
    let entry = &saved.top()["file"];
    assert_eq!(
        (entry.owner, entry.mode, entry.mtime),
        ((0, 0), 0o4750, 1_000_000_000)
    );
}

#[test]
fn a12_links_stay_links() {
    let env = test_env!().with_busybox();
    env.built(
        "one",
        "FROM busybox\nRUN echo x >/a && ln /a /b && ln -s /a /c\n",
    );
    let saved = env.saved("one");
    let top = saved.top();
    assert_eq!(top["a"].kind, tar::EntryType::Regular);
    assert_eq!(top["b"].kind, tar::EntryType::Link);
    assert_eq!(top["b"].target.as_deref(), Some("a"));
    assert_eq!(top["c"].kind, tar::EntryType::Symlink);
    assert_eq!(top["c"].target.as_deref(), Some("/a"));
}

#[test]
fn an_image_may_have_more_layers_than_docker_allows() {
    let env = test_env!().with_busybox();
    let mut dockerfile = "FROM busybox\n".to_owned();
    for number in 0..150 {
        let line = format!("COPY <<end /files/{number}\n{number}\nend\n");
        dockerfile.push_str(&line);
    }
    dockerfile.push_str("RUN cat /files/* | wc -l >/count\n");
    env.built("many", &dockerfile);
    assert_eq!(env.saved("many").text("count"), "150\n");
    let archive = env.kiln(["save", "many"]).success().bytes;
    env.kiln_in("there", ["load"]).stdin(archive).success();
    env.dockerfile("FROM many\nRUN ls /files | wc -l >/again\n");
    env.kiln_in("there", ["build", "-t", "more", "context"])
        .success();
    let saved = env.kiln_in("there", ["save", "more"]).success().bytes;
    assert_eq!(crate::saved::Saved::read(&saved).text("again"), "150\n");
}

#[test]
fn a6_11_the_sandbox_has_the_host_name_that_is_asked_for() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN { hostname; head -n 1 /etc/hosts; } >/name\n");
    let name = ["--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=named.example"];
    env.build("named").args(name).success();
    assert_eq!(
        env.saved("named").text("name"),
        "named.example\n127.0.0.1\tlocalhost named.example\n"
    );
    env.build("usual").success();
    let text = env.saved("usual").text("name").to_owned();
    assert!(
        text.starts_with("buildkitsandbox\n"),
        "a step of its own: {text}"
    );
}
