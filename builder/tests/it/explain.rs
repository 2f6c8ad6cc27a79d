//! Why a step was not in the cache: what a build, a plan and a report say of it (A15).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kiln_builder::store::{Eviction, SnapshotId, Store};
use serde_json::Value;

use crate::env::{Output, TestEnv, test_env};

/// The reason of each miss that a build tells, by instruction without its `[1/2]`.
fn reasons(output: &Output) -> BTreeMap<String, String> {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for line in output.stderr.lines() {
        let Some((number, text)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let name = names.entry(number).or_insert_with(|| {
            let name = text.split_once("] ").map_or(text, |(_, name)| name);
            name.to_owned()
        });
        if let Some(reason) = text.strip_prefix("miss: ") {
            found.insert(name.clone(), reason.to_owned());
        }
    }
    found
}

/// Builds, and compares the reasons of misses with these.
fn build(env: &TestEnv, args: &[&str], expected: &[(&str, &str)]) {
    let output = env.build("app").args(args.iter().copied()).success();
    let expected: BTreeMap<_, _> = expected
        .iter()
        .map(|(name, reason)| ((*name).to_owned(), (*reason).to_owned()))
        .collect();
    assert_eq!(reasons(&output), expected, "{output}");
}

const RUN: &str = "RUN cat /src/* >/sum; echo $VERSION";
const LAST: &str = "RUN echo last";

fn project(env: &TestEnv) {
    env.file("src/main.rs", "1")
        .file("src/lib.rs", "2")
        .file("src/run", "3")
        .dockerfile(&format!(
            "FROM busybox\nARG VERSION=1.2\nENV MODE=fast\nCOPY src /src\n{RUN}\n{LAST}\n"
        ));
}

fn change(env: &TestEnv, from: &str, to: &str) {
    let path = env.context().join("Dockerfile");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a15_1_a_miss_names_the_files_that_changed() {
    let env = test_env!().with_busybox();
    project(&env);
    let follow = "step 2/4 changed";
    let copy = |reason| [("COPY src /src", reason), (RUN, follow), (LAST, follow)];
    build(
        &env,
        &[],
        &[
            ("COPY src /src", "never built"),
            (RUN, "never built"),
            (LAST, "never built"),
        ],
    );
    build(&env, &[], &[]);
    env.file("src/main.rs", "changed");
    build(
        &env,
        &[],
        &copy("src/main.rs content changed (1 of 3 files)"),
    );
    for name in ["main.rs", "lib.rs"] {
        let mode = fs::Permissions::from_mode(0o664);
        fs::set_permissions(env.context().join("src").join(name), mode).unwrap();
    }
    build(&env, &[], &copy("mode 0644 -> 0664 on 2 files"));
    env.file("src/new.rs", "");
    build(&env, &[], &copy("src/new.rs added"));
    fs::remove_file(env.context().join("src/run")).unwrap();
    build(&env, &[], &copy("src/run removed"));
    fs::remove_file(env.context().join("src/lib.rs")).unwrap();
    std::os::unix::fs::symlink("main.rs", env.context().join("src/lib.rs")).unwrap();
    build(&env, &[], &copy("src/lib.rs type changed (1 of 3 files)"));
}

#[test]
fn a15_2_a15_3_a_miss_names_what_changed_of_the_instruction_and_its_environment() {
    let env = test_env!().with_busybox();
    project(&env);
    env.build("app").success();
    let follow = (LAST, "step 3/4 changed");
    build(
        &env,
        &["--build-arg", "VERSION=1.3"],
        &[
            (RUN, "ARG VERSION 1.2 -> 1.3"),
            (LAST, "step 3/4 changed; ARG VERSION 1.2 -> 1.3"),
        ],
    );
    build(&env, &[], &[]);
    change(&env, "MODE=fast", "MODE=slow");
    build(
        &env,
        &[],
        &[
            (RUN, "ENV MODE fast -> slow"),
            (LAST, "step 3/4 changed; ENV MODE fast -> slow"),
        ],
    );
    change(&env, ">/sum", ">/all");
    let all = RUN.replace("/sum", "/all");
    build(&env, &[], &[(&all, "the command changed"), follow]);
    change(&env, "RUN cat", "RUN --mount=type=cache,target=/c cat");
    let cached = all.replace("RUN", "RUN --mount=type=cache,target=/c");
    // what it leaves is the same as before, so that nothing else is executed
    build(&env, &[], &[(&cached, "mount /c added")]);
    change(
        &env,
        "RUN --mount=type=cache,target=/c",
        "RUN --network=none",
    );
    let offline = all.replace("RUN", "RUN --network=none");
    build(
        &env,
        &[],
        &[(&offline, "--network default -> none; mount /c removed")],
    );
    change(&env, LAST, "RUN echo new\nRUN echo last");
    build(
        &env,
        &[],
        &[("RUN echo new", "never built"), (LAST, "step 4/5 is new")],
    );
    change(&env, "RUN echo new\n", "");
    build(&env, &[], &[]);
    change(&env, "RUN echo last", "USER 7\nRUN echo last");
    build(&env, &[], &[(LAST, "the user (empty) -> 7")]);
    change(&env, "USER 7\nRUN echo last", "RUN echo last");
    change(&env, "COPY src /src", "COPY --chmod=644 src /src");
    build(
        &env,
        &[],
        &[
            (
                "COPY --chmod=644 src /src",
                "--chmod (empty) -> 644; mode 0755 -> 0644 on src",
            ),
            (&offline, "step 2/4 changed"),
            (LAST, "step 2/4 changed; the user 7 -> (empty)"),
        ],
    );
}

#[test]
fn a15_4_a_miss_names_the_base_that_moved() {
    let env = test_env!().with_busybox();
    let old = env.built("base", "FROM busybox\nRUN echo 1 >/version\n");
    env.dockerfile("FROM base\nRUN one\n".replace("one", "true").as_str())
        .build("app")
        .success();
    let new = env.built("base", "FROM busybox\nRUN echo 2 >/version\n");
    env.dockerfile("FROM base\nRUN true\n");
    let text = format!("base image base moved {} -> {}", &old[..19], &new[..19]);
    let output = env.build("app").success();
    assert_eq!(reasons(&output)["RUN true"], text);
    env.kiln(["tag", "busybox", "base:2"]).success();
    env.dockerfile("FROM base:2\nRUN true\n");
    let output = env.build("app").success();
    assert_eq!(reasons(&output)["RUN true"], "base image base -> base:2");
}

#[test]
fn values_of_secret_arguments_are_neither_shown_nor_kept() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nARG API_TOKEN\nARG PLAIN\nRUN true\n");
    let args = |token: &str| {
        let token = format!("API_TOKEN={token}");
        env.build("app")
            .args(["--build-arg", &token, "--build-arg", "PLAIN=plain-value"])
            .args(["--explain-cache", "json"])
            .success()
    };
    args("first-s3cret");
    let output = args("second-s3cret");
    assert_eq!(reasons(&output)["RUN true"], "ARG API_TOKEN changed");
    assert!(
        !output
            .to_string()
            .replace(&output_command(&output), "")
            .contains("s3cret")
    );
    let mut kept = false;
    for name in ["kiln.db", "kiln.db-wal"] {
        let bytes = fs::read(env.store().join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("s3cret"), "in {name}");
        kept |= text.contains("plain-value");
    }
    assert!(kept, "values that are no secrets are kept, to be shown");
    let mode = fs::metadata(env.store().join("kiln.db")).unwrap();
    assert_eq!(
        mode.permissions().mode() & 0o077,
        0,
        "nobody else reads them"
    );
}

/// The command line that an output shows, which holds what the test itself gave.
fn output_command(output: &Output) -> String {
    output
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The snapshots in a store, the latest last.
fn snapshots(store: &Path) -> Vec<SnapshotId> {
    let mut found: Vec<_> = fs::read_dir(store.join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.metadata().unwrap().modified().unwrap(), entry))
        .collect();
    found.sort_by_key(|(time, _)| *time);
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let names = found.into_iter().map(|(_, entry)| name(entry));
    names.map(SnapshotId::from_name).collect()
}

#[test]
fn a_miss_says_what_became_of_a_result_that_there_was() {
    let env = test_env!().with_busybox();
    // the base is unpacked before
    env.built("warm", "FROM busybox\nRUN true\n");
    env.dockerfile("FROM busybox\nRUN echo result >/result\n");
    let before = snapshots(&env.store());
    env.build("app").success();
    let mut made = snapshots(&env.store());
    made.retain(|id| !before.contains(id));
    let [made] = made.as_slice() else {
        panic!("one step makes one snapshot: {made:?}");
    };
    let store = Store::open(&env.store()).unwrap();
    store.forget_snapshot(made, Eviction::Removed).unwrap();
    drop(store);
    let text = "RUN echo result >/result";
    let output = env.build("app").success();
    let reason = &reasons(&output)[text];
    assert!(reason.starts_with("evicted by gc "), "{reason}");
    let mut again = snapshots(&env.store());
    again.retain(|id| !before.contains(id));
    fs::remove_dir_all(env.store().join("snapshots").join(again[0].name())).unwrap();
    build(&env, &[], &[(text, "its files are gone from the store")]);
    build(&env, &["--no-cache"], &[(text, "--no-cache")]);
}

#[test]
fn a_step_that_failed_says_so_the_next_time() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\nRUN --mount=type=secret,id=s test \"$(cat /run/secrets/s)\" = ok\n",
    );
    let build = |value: &str| {
        fs::write(env.path("secret"), value).unwrap();
        let secret = format!("id=s,src={}", env.path("secret").display());
        env.build("app").args(["--secret", &secret])
    };
    build("bad").failure(1);
    let output = build("ok").success();
    let reasons = reasons(&output);
    let reason = reasons.values().next().unwrap();
    assert!(reason.starts_with("it failed "), "{reason}");
    // a secret is not in the key (A15.2)
    let again = build("bad").success();
    assert!(self::reasons(&again).is_empty());
}

#[test]
fn a_failed_build_is_not_what_the_next_one_is_compared_with() {
    let env = test_env!().with_busybox();
    env.file("a", "1")
        .dockerfile("FROM busybox\nCOPY a /\nRUN true\nRUN echo 2\n");
    env.build("app").success();
    change(&env, "RUN true", "RUN false");
    env.build("app").failure(1);
    change(&env, "RUN false", "RUN true");
    build(&env, &[], &[]);
    env.file("a", "2");
    let follow = "step 2/4 changed";
    build(
        &env,
        &[],
        &[
            ("COPY a /", "a content changed (1 of 1 file)"),
            ("RUN true", follow),
            ("RUN echo 2", follow),
        ],
    );
}

#[test]
fn a_renamed_stage_and_reordered_instructions_are_compared_with_what_they_were() {
    let env = test_env!().with_busybox();
    env.file("a", "1").file("b", "1").dockerfile(
        "FROM busybox AS one\nCOPY a /a\nCOPY b /b\nRUN cat /a /b >/c\nFROM busybox\nCOPY --from=one /c /c\n",
    );
    env.build("app").success();
    env.dockerfile(
        "FROM busybox AS two\nCOPY b /b\nCOPY a /a\nRUN cat /a /b >/c\nFROM busybox\nCOPY --from=two /c /c\n",
    );
    build(
        &env,
        &[],
        &[
            ("COPY b /b", "stands on busybox instead of step one 2/4"),
            ("COPY a /a", "stands on step two 2/4 instead of busybox"),
            ("RUN cat /a /b >/c", "step two 3/4 changed"),
        ],
    );
}

#[test]
fn another_folder_is_compared_with_the_image_of_that_name() {
    let env = test_env!().with_busybox();
    env.file("a", "1").dockerfile("FROM busybox\nCOPY a /\n");
    env.build("app").success();
    fs::rename(env.context(), env.path("moved")).unwrap();
    fs::write(env.path("moved/a"), "2").unwrap();
    let output = env.kiln(["build", "-t", "app:other", "moved"]).success();
    let text = "a content changed (1 of 1 file)";
    assert_eq!(reasons(&output)["COPY a /"], text);
}

#[test]
fn a_bind_of_the_context_names_its_files() {
    let env = test_env!().with_busybox();
    env.file("a", "1")
        .file("b", "2")
        .dockerfile("FROM busybox\nRUN --mount=type=bind,source=.,target=/src cat /src/a\n");
    env.build("app").success();
    env.file("a", "2");
    let output = env.build("app").success();
    let reasons = reasons(&output);
    let run = reasons.iter().find(|(name, _)| name.starts_with("RUN"));
    assert_eq!(
        run.unwrap().1,
        "a content changed (1 of 3 files)",
        "{output}"
    );
}

fn explained(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn explain_cache_is_one_document_for_programs() {
    let env = test_env!().with_busybox();
    project(&env);
    let json = |args: &[&str]| {
        let build = env.build("app").args(["--explain-cache", "json"]);
        explained(&build.args(args.iter().copied()).success())
    };
    let first = json(&[]);
    assert_eq!(first["version"], 1);
    assert_eq!(first["failed"], false);
    let results: Vec<_> = first["steps"].as_array().unwrap().iter().collect();
    assert_eq!(results.len(), 3);
    assert!(
        results
            .iter()
            .all(|step| step["reason"]["code"] == "never-built")
    );
    assert!(
        results
            .iter()
            .all(|step| step["seconds"].as_f64().is_some())
    );
    env.file("src/main.rs", "changed");
    let second = json(&[]);
    let copy = &second["steps"][0];
    assert_eq!(copy["step"], "2/4");
    assert_eq!(copy["instruction"], "COPY src /src");
    assert_eq!(copy["result"], "miss");
    assert!(copy["key"].as_str().unwrap().starts_with("sha256:"));
    let change = &copy["reason"]["changes"][0];
    assert_eq!(change["code"], "files");
    assert_eq!(
        (&change["total"], &change["changed"]),
        (&3.into(), &1.into())
    );
    assert_eq!(change["files"][0]["path"], "src/main.rs");
    assert_eq!(change["files"][0]["change"], "content");
    let third = json(&[]);
    assert!(
        third["steps"]
            .as_array()
            .unwrap()
            .iter()
            .all(|step| step["result"] == "hit")
    );
    let to = env.path("report.json");
    let dest = format!("json,dest={}", to.display());
    change_and_fail(&env, &dest);
    let failed: Value = serde_json::from_str(&fs::read_to_string(&to).unwrap()).unwrap();
    assert_eq!(failed["failed"], true);
    assert_eq!(failed["steps"][2]["result"], "not needed");
    let quiet = env.build("app").args(["--explain-cache", "json", "-q"]);
    quiet.failure(125);
    let with_file = env.build("app").args(["--explain-cache", &dest, "-q"]);
    with_file.failure(1);
    env.build("app")
        .args(["--explain-cache", "yaml"])
        .failure(125);
}

#[test]
fn the_document_is_alone_on_standard_output() {
    let env = test_env!("docker-registry").with_busybox();
    env.dockerfile("FROM busybox\nRUN echo to people; echo one >/one\n");
    let registry = env.registry();
    let name = registry.name("app:1");
    let archive = env.path("app.tar");
    let archive = format!("type=oci,dest={}", archive.display());
    let pushed = format!("type=image,name={},push=true", registry.name("app:2"));
    for output in [
        &["--push"] as &[&str],
        &["-o", &pushed],
        &["-o", &archive],
        &["--push", "--cache-to", "inline"],
    ] {
        let build = env.build(&name).args(["--explain-cache", "json"]);
        let output = build.args(output.iter().copied()).success();
        assert_eq!(explained(&output)["failed"], false, "{output}");
    }
    // It is written as well when the image could not be pushed.
    let build = env
        .build("127.0.0.1:1/app")
        .args(["--explain-cache", "json", "--push"]);
    let output = build.failure(4);
    assert_eq!(explained(&output)["failed"], false, "{output}");
    let pushed = env.build(&name).args(["--push"]).success();
    assert!(pushed.stdout.starts_with("1: digest: sha256:"), "{pushed}");
}

fn change_and_fail(env: &TestEnv, dest: &str) {
    change(env, RUN, "RUN false");
    let build = env.build("app").args(["--explain-cache", dest]);
    build.failure(1);
}

#[test]
fn require_cached_fails_before_the_step_is_executed() {
    let env = test_env!().with_busybox();
    env.file("a", "1")
        .dockerfile("FROM busybox AS deps\nCOPY a /\nRUN cat a\nFROM deps\nRUN echo app\n");
    let fails = |args: &[&str], step: &str, reason: &str| {
        let output = env.build("app").args(args.iter().copied()).failure(1);
        let text = format!("not in the cache, as --require-cached demands: {reason}");
        assert!(output.stderr.contains(&text), "{output}");
        assert!(output.stderr.contains(step), "{output}");
        assert!(
            !output.stderr.contains(&format!("] {step}\n#")),
            "it was not begun: {output}"
        );
    };
    fails(&["--require-cached"], "COPY a /", "never built");
    env.build("app").success();
    env.build("app").arg("--require-cached").success();
    env.build("app").arg("--require-cached=DEPS").success();
    change(&env, "echo app", "echo other");
    fails(
        &["--require-cached"],
        "RUN echo other",
        "the command changed",
    );
    env.build("app").arg("--require-cached=deps").success();
    env.file("a", "2");
    fails(
        &["--require-cached=deps"],
        "COPY a /",
        "a content changed (1 of 1 file)",
    );
    fails(
        &["--require-cached=0"],
        "COPY a /",
        "a content changed (1 of 1 file)",
    );
    let unknown = env.build("app").arg("--require-cached=dpes").failure(1);
    let text = "--require-cached names the stage `dpes`, which the Dockerfile does not have";
    assert!(unknown.stderr.contains(text), "{unknown}");
    env.build("app")
        .args(["--require-cached", "--no-cache"])
        .failure(125);
}

#[test]
fn a_plan_says_what_would_be_done_and_does_nothing() {
    let env = test_env!().with_busybox();
    project(&env);
    let plan = |args: &[&str], code: i32| {
        let output = env.build("app").args(args.iter().copied()).run();
        assert_eq!(output.code, Some(code), "{output}");
        output.stdout
    };
    let before = snapshots(&env.store());
    let text = plan(&["--plan"], 2);
    assert!(
        text.contains("miss [2/4] COPY src /src: never built\n"),
        "{text}"
    );
    assert!(text.ends_with("3 steps to execute\n"), "{text}");
    assert_eq!(snapshots(&env.store()), before);
    let images = env.kiln(["images", "-q", "app"]).success();
    assert_eq!(images.stdout, "");
    env.build("app").success();
    let done = plan(&["--plan"], 0);
    assert!(done.ends_with("nothing to do\n"), "{done}");
    assert!(done.starts_with("hit  [2/4] COPY src /src\n"), "{done}");
    env.file("src/main.rs", "changed");
    let before = snapshots(&env.store());
    let json: Value = serde_json::from_str(&plan(&["--plan=json"], 2)).unwrap();
    assert_eq!(json["misses"], 3);
    assert_eq!(json["unknown"], 0, "all of them were timed");
    assert!(json["seconds"].as_f64().unwrap() > 0.0);
    let text = "src/main.rs content changed (1 of 3 files)";
    assert_eq!(json["steps"][0]["reason"]["text"], text);
    assert_eq!(snapshots(&env.store()), before);
    // a plan changes nothing of what the next build is compared with
    let reason = reasons(&env.build("app").success());
    assert_eq!(reason["COPY src /src"], text);
    assert!(plan(&["--plan", "--no-cache"], 2).contains(": --no-cache"));
    env.dockerfile("FROM busybox\nCOPY missing /\n");
    let output = env.build("app").arg("--plan").failure(1);
    assert!(output.stderr.contains("missing"), "{output}");
}

#[test]
fn a_plan_counts_the_bytes_that_are_missing_of_base_images() {
    let env = test_env!("docker-registry").with_busybox();
    let registry = env.registry();
    let base = registry.name("base:1");
    env.kiln(["tag", "busybox", &base]).success();
    env.kiln(["push", &base]).success();
    env.dockerfile(&format!("FROM {base}\nRUN true\n"));
    let plan = |store: &str| {
        let args = ["build", "--plan=json", "context"];
        let output = env.kiln_in(store, args).run();
        let json: Value = serde_json::from_str(&output.stdout).unwrap();
        (output.code, json)
    };
    let (code, json) = plan("other");
    assert_eq!(code, Some(2));
    let bytes = json["fetch_bytes"].as_u64().unwrap();
    assert!(bytes > 100_000, "{json}");
    assert_eq!(json["fetches"][0]["bytes"], bytes);
    assert_eq!(
        fs::read_dir(env.path("other/snapshots")).unwrap().count(),
        0
    );
    let (code, again) = plan("other");
    assert_eq!((code, &again["fetch_bytes"]), (Some(2), &bytes.into()));
    env.kiln_in("other", ["build", "context"]).success();
    let (code, json) = plan("other");
    assert_eq!((code, &json["fetch_bytes"]), (Some(0), &0.into()));
}
