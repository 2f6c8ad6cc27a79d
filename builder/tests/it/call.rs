//! `kiln build --check` and `--call` (C9).

use serde_json::json;

use crate::check::{json, rules};
use crate::env::TestEnv;

/// C9.1
#[test]
fn a_call_checks_by_docker_s_rules() {
    let env = TestEnv::new();
    env.dockerfile("FROM alpine as base\n");
    let flags = ["build", "--build-arg", "UNUSED=1", "context"];
    let plain = env.kiln(flags).arg("--check").success();
    assert!(plain.stdout.starts_with("1 warning found:\n"), "{plain}");
    assert_eq!(
        env.kiln(flags).arg("--call=check").success().stdout,
        plain.stdout
    );
    let json = env.kiln(flags).arg("--call=check,format=json").success();
    assert_eq!(rules(&json), ["FromAsCasing"]);
    env.dockerfile("# check=error=true\nFROM alpine as base\n");
    let failed = env.kiln(flags).arg("--check").failure(1);
    assert!(
        failed
            .stderr
            .contains("lint violation found for rules: FromAsCasing\n"),
        "{failed}"
    );
    env.kiln(flags)
        .arg("--call=check,ignorestatus=true")
        .success();
    env.dockerfile("FROM alpine\nRUNN\n");
    let failed = env.kiln(flags).arg("--check").failure(1);
    assert!(
        failed
            .stdout
            .starts_with("context/Dockerfile:2:1: unknown instruction"),
        "{failed}"
    );
    let failed = env.kiln(flags).arg("--call=targets").failure(1);
    assert!(
        failed
            .stderr
            .starts_with("context/Dockerfile:2:1: unknown instruction"),
        "{failed}"
    );
    for (call, message) in [
        ("chek", "there is no method `chek` (did you mean check?)"),
        ("check,format=yaml", "invalid option `format=yaml`"),
    ] {
        let refused = env.kiln(flags).args(["--call", call]).failure(125);
        assert!(refused.stderr.contains(message), "{refused}");
    }
    env.kiln(flags)
        .args(["--check", "--call=check"])
        .failure(125);
    assert!(!env.store().exists());
}

const OUTLINED: &str = "# BASE where it starts\nARG BASE=alpine:${TAG}\nARG TAG=3\nARG OTHER=1\n\
    FROM $BASE AS unused\nARG UNUSED=1\n\
    # deps what is needed\nFROM alpine AS deps\n\
    RUN --mount=type=secret,id=token,required --mount=type=secret,id=token --mount=type=secret,id=maybe,env=M \\\n  \
    --mount=type=cache,target=/root/.cache --mount=type=cache,id=shared,target=/c --mount=type=ssh true\n\
    # some words\n# Final makes the image\nFROM $BASE AS final\n\
    # PORT where it listens\n# HOST on what\nARG PORT=80 HOST=h$PORT\nARG TAG\nARG NOTHING\n\
    COPY --from=deps /a /b\nFROM scratch AS late\n";

/// C9.1, A1.12
#[test]
fn an_outline_tells_what_a_target_takes() {
    let env = TestEnv::new();
    env.dockerfile(OUTLINED);
    let flags = [
        "build",
        "--target=final",
        "--build-arg=PORT=8080",
        "context",
    ];
    let text = env.kiln(flags).arg("--call=outline").success().stdout;
    assert_eq!(
        text,
        "TARGET:        final\n\
         DESCRIPTION:   makes the image\n\n\
         BUILD ARG   VALUE     DESCRIPTION\n\
         BASE        alpine:   where it starts\n\
         TAG         3\n\
         PORT        8080      where it listens\n\
         HOST        h8080     on what\n\
         NOTHING\n\n\
         SECRET   REQUIRED\n\
         token    true\n\
         maybe\n\n\
         SSH       REQUIRED\n\
         default\n\n\
         CACHE MOUNT\n\
         /root/.cache\n\
         shared\n"
    );
    let outline = json(&env.kiln(flags).arg("--call=outline,format=json").success());
    assert_eq!(outline["name"], "final");
    assert_eq!(outline["description"], "makes the image");
    assert_eq!(
        outline["args"][2],
        json!({
            "name": "PORT",
            "description": "where it listens",
            "value": "8080",
            "location": { "ranges": [{
                "start": { "line": 16, "character": 4 },
                "end": { "line": 16, "character": 8 },
            }] },
        })
    );
    assert_eq!(outline["args"][4].get("value"), None);
    assert_eq!(outline["secrets"][0]["name"], "token");
    assert_eq!(outline["secrets"][0]["required"], true);
    assert_eq!(outline["secrets"][1].get("required"), None);
    assert_eq!(outline["ssh"][0]["name"], "default");
    assert_eq!(outline["cache"][0]["ID"], "/root/.cache");
    assert_eq!(outline["sources"].as_array().unwrap().len(), 1);
    let default = env.kiln(["build", "--call=outline", "context"]).success();
    assert_eq!(default.stdout, "TARGET:   late\n");
    let unknown = env.kiln(["build", "--call=outline", "--target=fianl", "context"]);
    let unknown = unknown.failure(1).stderr;
    assert!(
        unknown.contains("could not be found (did you mean final?)"),
        "{unknown}"
    );
}

/// C9.1, A1.12
#[test]
fn targets_and_methods_are_listed() {
    let env = TestEnv::new();
    env.dockerfile(&format!("{OUTLINED}FROM --platform=linux/arm64 late\n"));
    let text = env
        .kiln(["build", "--call=targets", "context"])
        .success()
        .stdout;
    assert_eq!(
        text,
        "TARGET      DESCRIPTION\nunused\ndeps        what is needed\nfinal       makes the image\n\
         late\n(default)\n"
    );
    let list = env.kiln(["build", "--call=targets,format=json", "context"]);
    let list = json(&list.success());
    let targets = list["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 5);
    assert_eq!(
        targets[1],
        json!({
            "name": "deps",
            "description": "what is needed",
            "base": "alpine",
            "location": { "ranges": [{
                "start": { "line": 8, "character": 0 },
                "end": { "line": 8, "character": 19 },
            }] },
        })
    );
    assert_eq!(targets[4]["default"], true);
    assert_eq!(targets[4]["platform"], "linux/arm64");
    assert_eq!(targets[4].get("name"), None);
    let describe = env.kiln(["build", "--call=subrequests.describe", "context"]);
    let describe = describe.success().stdout;
    assert!(
        describe.starts_with("NAME                   VERSION   DESCRIPTION\noutline"),
        "{describe}"
    );
    let describe = env.kiln([
        "build",
        "--call=subrequests.describe,format=json",
        "context",
    ]);
    let describe = json(&describe.success());
    assert_eq!(describe[0]["Name"], "frontend.outline");
    assert_eq!(describe[0]["Opts"][0]["Name"], "target");
}
