//! `ADD` of URLs and archives (A12.1, A12.3, A12.5).

use std::fs;
use std::io::Write as _;

use crate::env::{TestEnv, test_env};
use crate::web::{MODIFIED, Web};

/// A tar with files, the owner 5:6 and mode 0640.
fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(77);
        tar.append_data(&mut header, path, content.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn web(env: &TestEnv) -> Web {
    Web::start(env.path("web"), None)
}

/// Builds and gives what is said.
fn said(env: &TestEnv, dockerfile: &str) -> String {
    env.dockerfile(dockerfile).build("one").success().stderr
}

#[test]
fn a12_3_a_url_gives_a_file_named_by_its_path() {
    let env = test_env!();
    let web = web(&env);
    web.file("dir/a b.txt", "blank")
        .file("dir/c.txt", "c")
        .file("index", "root")
        .file("undated/d", "d");
    fs::write(env.path("web/dir/a%20b.txt"), "blank").unwrap();
    let (one, root) = (web.url("dir/c.txt?x=/y"), web.url(""));
    let dockerfile = format!(
        "FROM scratch\n\
         ARG NAME=c\n\
         WORKDIR /there\n\
         ADD {one} /file\n\
         ADD {one} /in/\n\
         ADD {}/${{NAME}}.txt /there\n\
         ADD {} {root} /names/\n\
         ADD --chown=7:8 --chmod=0755 {one} /flags/x\n\
         ADD {} /undated\n",
        web.url("dir"),
        web.url("dir/a%20b.txt"),
        web.url("undated/d"),
    );
    env.dockerfile(&dockerfile);
    let built = env.build("one").env("SOURCE_DATE_EPOCH", "1000").success();
    let saved = env.saved("one");
    for (path, text) in [
        ("file", "c"),
        ("in/c.txt", "c"),
        ("there/c.txt", "c"),
        ("names/a b.txt", "blank"),
        ("names/__unnamed__", "root"),
        ("flags/x", "c"),
        ("undated", "d"),
    ] {
        assert_eq!(saved.text(path), text, "{path}");
    }
    let entry = |path: &str| {
        saved
            .layers
            .iter()
            .find_map(|layer| layer.get(path))
            .unwrap()
    };
    let file = entry("file");
    assert_eq!(
        (file.mode & 0o7777, file.owner, file.mtime),
        (0o600, (0, 0), MODIFIED)
    );
    let file = entry("flags/x");
    assert_eq!((file.mode & 0o7777, file.owner), (0o755, (7, 8)));
    assert_eq!(entry("undated").mtime, 1000);
    // Progress shows the address as it is after expansion.
    let name = format!("] ADD {}\n", web.url("dir/c.txt"));
    assert!(built.stderr.contains(&name), "{built}");
}

/// A15.4
#[test]
fn a12_3_urls_are_asked_each_time_and_their_content_counts() {
    let env = test_env!();
    let web = web(&env);
    web.file("a", "1");
    let dockerfile = format!("FROM scratch\nADD {} /\n", web.url("a"));
    said(&env, &dockerfile);
    let again = said(&env, &dockerfile);
    assert_eq!(web.asked(), ["/a", "/a"]);
    assert!(again.contains("CACHED"), "{again}");
    web.file("a", "2");
    said(&env, &dockerfile);
    assert_eq!(env.saved("one").text("a"), "2");
    // Another address with the same content is the same file.
    web.file("b/a", "2");
    let moved = said(&env, &format!("FROM scratch\nADD {} /\n", web.url("b/a")));
    assert!(moved.contains("CACHED"), "{moved}");
}

#[test]
fn a12_3_what_is_not_there_or_not_the_same_is_an_error() {
    let env = test_env!();
    let web = web(&env);
    web.file("a", "1");
    let url = web.url("a");
    let good = "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b";
    let bad = good.replace("6b86", "0000");
    said(
        &env,
        &format!("FROM scratch\nADD --checksum={good} {url} /\n"),
    );
    let refused = |instruction: &str, message: &str| {
        env.dockerfile(&format!("FROM scratch\n{instruction}\n"));
        let failed = env.build("one").arg("-q").failure(1);
        let expected = format!("error: failed to solve: failed to fetch {message}\n");
        assert!(failed.stderr.starts_with("Dockerfile:2:1\n"), "{failed}");
        assert!(failed.stderr.ends_with(&expected), "{failed}");
        env.no_traces();
    };
    refused(
        &format!("ADD --checksum={bad} {url} /"),
        &format!("`{url}`: digest mismatch: expected {bad}, got {good}"),
    );
    let none = web.url("none");
    refused(
        &format!("ADD {none} /"),
        &format!("`{none}`: GET `{none}`: 404: nothing there"),
    );
}

#[test]
fn a12_3_archives_from_urls_are_unpacked_when_asked_for() {
    let env = test_env!();
    let web = web(&env);
    web.file("a.tgz", gzip(&tar_of(&[("in/file", "data")])));
    let url = web.url("a.tgz");
    said(
        &env,
        &format!("FROM scratch\nADD {url} /kept/\nADD --unpack=true {url} /unpacked/\n"),
    );
    let saved = env.saved("one");
    assert!(saved.layers[0].contains_key("kept/a.tgz"));
    assert_eq!(saved.text("unpacked/in/file"), "data");
    assert_eq!(saved.top()["unpacked/in/file"].owner, (5, 6));
}

#[test]
fn a12_1_archives_of_all_kinds_are_unpacked_by_content() {
    let env = test_env!();
    let tar = tar_of(&[("in/file", "data")]);
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&tar).unwrap();
    // Names say nothing.
    env.file("plain.zip", &tar)
        .file("gzip.txt", gzip(&tar))
        .file("bzip2", bzip2.finish().unwrap())
        .file("xz.tar", xz.finish().unwrap())
        .file("zstd.gz", zstd::encode_all(&tar[..], 1).unwrap())
        .file("text.tar.gz", "no archive")
        .file("notes.gz", gzip(b"no archive"));
    said(
        &env,
        "FROM scratch\n\
         ADD plain.zip /plain\nADD gzip.txt /gzip\nADD bzip2 /bzip2/\nADD xz.tar /xz/\nADD zstd.gz /zstd/\n\
         ADD text.tar.gz notes.gz /kept/\n\
         ADD --unpack=false gzip.txt /packed/\n\
         ADD --chown=9 --chmod=0600 plain.zip /mine/\n",
    );
    let saved = env.saved("one");
    for name in ["plain", "gzip", "bzip2", "xz", "zstd"] {
        let path = format!("{name}/in/file");
        assert_eq!(saved.text(&path), "data");
        let layer = saved
            .layers
            .iter()
            .find(|layer| layer.contains_key(&path))
            .unwrap();
        let entry = &layer[&path];
        assert_eq!(
            (entry.owner, entry.mode & 0o7777, entry.mtime),
            ((5, 6), 0o640, 77)
        );
        // made because the archive lacks it
        assert_eq!(layer[&format!("{name}/in")].mode & 0o7777, 0o755);
    }
    let all: Vec<&str> = saved
        .layers
        .iter()
        .flat_map(|layer| layer.keys())
        .map(String::as_str)
        .collect();
    for path in ["kept/text.tar.gz", "kept/notes.gz", "packed/gzip.txt"] {
        assert!(all.contains(&path), "{all:?}");
    }
    let entry = &saved.top()["mine/in/file"];
    assert_eq!((entry.owner, entry.mode & 0o7777), ((9, 9), 0o600));
}

#[test]
fn a12_1_an_archive_merges_with_what_is_there() {
    let env = test_env!().with_busybox();
    env.file(
        "a.tar",
        tar_of(&[
            ("d/new", "new"),
            ("d/old", "changed"),
            ("d/.wh.kept", "no whiteout"),
        ]),
    );
    said(
        &env,
        "FROM busybox\n\
         RUN mkdir -p /real/d && ln -s real /link && cd /real/d && echo old >old && echo kept >kept\n\
         ADD a.tar /link\n\
         RUN cd /real/d && cat new old kept .wh.kept >/all; ls /link/ >>/all\n",
    );
    assert_eq!(
        env.saved("one").text("all"),
        "newchangedkept\nno whiteoutd\n"
    );
}

#[test]
fn a12_1_a_broken_archive_is_named() {
    let env = test_env!();
    let tar = tar_of(&[("a", &"x".repeat(9000)), ("b", "b")]);
    let zipped = gzip(&tar_of(&[("a", &"xyz".repeat(90_000))]));
    let mut corrupt = zipped.clone();
    let end = corrupt.len() - 6;
    corrupt[end] ^= 1;
    let mut mangled = tar.clone();
    // the checksum of the second header
    mangled[512 + 9216 + 150] ^= 7;
    env.file("cut.tar", &tar[..4000])
        .file("cut.tgz", &zipped[..zipped.len() - 20])
        .file("sum.tgz", &corrupt)
        .file("mangled.tar", &mangled);
    for name in ["cut.tar", "cut.tgz", "sum.tgz", "mangled.tar"] {
        env.dockerfile(&format!("FROM scratch\nADD {name} /x/\n"));
        let failed = env.build("one").arg("-q").failure(1);
        let message = format!("error: failed to solve: cannot unpack `{name}`: ");
        assert!(
            failed.stderr.starts_with("Dockerfile:2:1\n") && failed.stderr.contains(&message),
            "{failed}"
        );
        env.no_traces();
    }
}

#[test]
fn a12_5_sources_of_all_kinds_in_one_instruction() {
    let env = test_env!("git");
    let web = web(&env);
    web.file("from-web", "web")
        .file("web.tar", tar_of(&[("no", "")]));
    env.file("plain", "plain")
        .file("a.tar", tar_of(&[("in/file", "data")]));
    let server = crate::web::GitServer::start(&env);
    let repository = crate::web::Repository::new(&env, "app.git");
    repository.file("version", "1").commit("first");
    said(
        &env,
        &format!(
            "FROM scratch\nADD plain {} a.tar {} {} <<here /x/\ntext\nhere\n",
            web.url("from-web"),
            server.url("app.git"),
            web.url("web.tar")
        ),
    );
    let saved = env.saved("one");
    assert_eq!(
        saved.top_paths(),
        [
            "x",
            "x/from-web",
            "x/here",
            "x/in",
            "x/in/file",
            "x/plain",
            "x/version",
            "x/web.tar"
        ]
    );
    let modes =
        ["x/from-web", "x/in/file", "x/version"].map(|path| saved.top()[path].mode & 0o7777);
    assert_eq!(modes, [0o600, 0o640, 0o644]);
}
