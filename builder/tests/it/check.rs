//! `kiln check`, its reports and its fixes (A17).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::env::{Output, Run, TestEnv, test_env};

/// A file that docker's rules say three things of.
const THREE: &str = "FROM alpine as base\nENV a b c\nEXPOSE 80/TCP\nCMD [\"a\"]\n";
const URL: &str = "https://docs.docker.com/go/dockerfile/rule";

/// `kiln check` by docker's rules alone, in the build context.
fn check(env: &TestEnv) -> Run {
    let list = env.kiln(["check", "--list"]).success().stdout;
    let own = list.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, set) = (words.next()?, words.next()?);
        (set == "kiln").then_some(name)
    });
    let own: Vec<_> = own.collect();
    assert!(!own.is_empty(), "{list}");
    env.kiln(["check", "--skip"])
        .arg(own.join(","))
        .arg("context")
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap()
}

/// The names of the rules that a report in docker's JSON has.
pub(crate) fn rules(output: &Output) -> Vec<String> {
    let report = json(output);
    let warnings = report["warnings"].as_array().unwrap();
    let names = warnings.iter().map(|warning| &warning["ruleName"]);
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// A17.1, A17.2
#[test]
fn people_read_number_rule_message_place_and_excerpt() {
    let env = TestEnv::new();
    env.dockerfile("FROM alpine as base\nRUN a \\\n\n  b\n");
    let output = check(&env).success();
    let text = format!(
        "2 warnings found:\n\n\
         WARNING: FromAsCasing - {URL}/from-as-casing/\n\
         'as' and 'FROM' keywords' casing do not match\n\
         context/Dockerfile:1:13\n  |\n1 | FROM alpine as base\n  |             ^^\n\n\
         WARNING: NoEmptyContinuation - {URL}/no-empty-continuation/\n\
         Empty continuation line\n\
         context/Dockerfile:3:1\n  |\n3 |\n  | ^\n\
         hint: remove the blank line, or the continuation before it\n"
    );
    assert_eq!(output.stdout, text);
    assert_eq!(output.stderr, "");
    env.dockerfile("FROM alpine AS base\n");
    assert_eq!(check(&env).success().stdout, "no warnings found\n");
    // Errors come first, as a build shows them.
    env.dockerfile("FROM alpine as base\nUSER\nUSER\n");
    let both = check(&env).failure(1).stdout;
    let errors = "context/Dockerfile:2:1: USER requires exactly one argument\n  \
                  |\n2 | USER\n  | ^^^^\n\ncontext/Dockerfile:3:1: ";
    assert!(both.starts_with(errors), "{both}");
    assert!(both.ends_with("\n\n2 errors found\n"), "{both}");
    env.dockerfile("FROM alpine as base\nCOPY --chmod=9 a b\n");
    let both = check(&env).failure(1).stdout;
    assert!(
        both.starts_with("context/Dockerfile:2:14: invalid chmod"),
        "{both}"
    );
    assert!(
        both.contains("\n\n1 warning found:\n\nWARNING: FromAsCasing"),
        "{both}"
    );
}

#[test]
fn programs_read_docker_s_json() {
    let env = TestEnv::new();
    env.dockerfile(THREE);
    let report = json(&check(&env).args(["--format", "json"]).success());
    let range = |line, from, to| {
        json!({
            "start": { "line": line, "character": from },
            "end": { "line": line, "character": to },
        })
    };
    assert_eq!(
        report["warnings"][0],
        json!({
            "ruleName": "FromAsCasing",
            "description": "The 'as' keyword should match the case of the 'from' keyword",
            "url": format!("{URL}/from-as-casing/"),
            "detail": "'as' and 'FROM' keywords' casing do not match",
            "location": { "ranges": [range(1, 12, 14)] },
            "fix": [{ "range": range(1, 12, 14), "text": "AS" }],
        })
    );
    assert_eq!(report["warnings"][1]["fix"][0]["text"], "=\"");
    assert_eq!(report["warnings"].as_array().unwrap().len(), 3);
    let source = &report["sources"][0];
    assert_eq!(source["filename"], "context/Dockerfile");
    assert_eq!(source["language"], "Dockerfile");
    let data = source["data"].as_str().unwrap();
    let data = env.program("base64", ["-d"]).stdin(data).success();
    assert_eq!(data.stdout, THREE);
    assert_eq!(report.get("buildError"), None);
    env.dockerfile("FROM alpine\nUSER\nCOPY --form=x a b\n");
    let report = json(&check(&env).args(["--format", "json"]).failure(1));
    assert_eq!(
        report["buildError"],
        json!({
            "message": "USER requires exactly one argument",
            "location": { "ranges": [range(2, 0, 4)] },
        })
    );
    let all = report["errors"].as_array().unwrap();
    assert_eq!(all[0], report["buildError"]);
    assert_eq!(all.len(), 2);
    env.dockerfile("FROM alpine\nUSER\n");
    let report = json(&check(&env).args(["--format", "json"]).failure(1));
    assert_eq!(report["warnings"], json!([]));
    assert_eq!(report.get("errors"), None);
}

/// What SARIF 2.1.0 requires, and what code hosts ask for besides.
#[test]
fn code_hosts_read_sarif() {
    let env = TestEnv::new();
    env.dockerfile(&format!("{THREE}COPY --chmod=9 a b\n"));
    let sarif = json(&check(&env).args(["--format", "sarif"]).failure(1));
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    assert_eq!(run["columnKind"], "unicodeCodePoints");
    let driver = &run["tool"]["driver"];
    assert_eq!(driver["name"], "kiln");
    let rules = driver["rules"].as_array().unwrap();
    assert!(rules.len() > 22);
    for rule in rules {
        for text in [
            &rule["id"],
            &rule["shortDescription"]["text"],
            &rule["fullDescription"]["text"],
            &rule["help"]["text"],
            &rule["help"]["markdown"],
            &rule["defaultConfiguration"]["level"],
        ] {
            assert!(!text.as_str().unwrap().is_empty(), "{rule}");
        }
    }
    assert_eq!(rules[1]["helpUri"], format!("{URL}/from-as-casing/"));
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        let index = result["ruleIndex"].as_u64().unwrap();
        assert_eq!(
            rules[usize::try_from(index).unwrap()]["id"],
            result["ruleId"]
        );
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "context/Dockerfile");
    }
    assert_eq!(results[0]["ruleId"], "InvalidDockerfile");
    assert_eq!(results[0]["level"], "error");
    let found = &results[1];
    assert_eq!(found["ruleId"], "FromAsCasing");
    assert_eq!(found["level"], "warning");
    let text = "'as' and 'FROM' keywords' casing do not match";
    assert_eq!(found["message"]["text"], text);
    let region = json!({ "startLine": 1, "startColumn": 13, "endLine": 1, "endColumn": 15 });
    assert_eq!(found["locations"][0]["physicalLocation"]["region"], region);
    let change = &found["fixes"][0]["artifactChanges"][0];
    assert_eq!(change["artifactLocation"]["uri"], "context/Dockerfile");
    assert_eq!(change["replacements"][0]["deletedRegion"], region);
    assert_eq!(change["replacements"][0]["insertedContent"]["text"], "AS");
}

#[test]
fn github_shows_annotations() {
    let env = TestEnv::new();
    env.file("a,b:c", "FROM alpine as b\nRUN a \\\n\n b\n");
    let flags = ["--format", "github", "-f", "context/a,b:c"];
    let output = check(&env).args(flags).success();
    assert_eq!(
        output.stdout,
        "::warning file=context/a%2Cb%3Ac,line=1,col=13,endLine=1,endColumn=15,\
         title=FromAsCasing::'as' and 'FROM' keywords' casing do not match\n\
         ::warning file=context/a%2Cb%3Ac,line=3,col=1,endLine=3,endColumn=1,\
         title=NoEmptyContinuation::Empty continuation line%0A\
         hint: remove the blank line, or the continuation before it\n"
    );
    env.file("a,b:c", "FROM alpine\nENV a=b \\\n  c%\n");
    let output = check(&env).args(flags).failure(1);
    let start = "::error file=context/a%2Cb%3Ac,line=3,col=3,endLine=3,endColumn=5::Syntax error";
    assert!(output.stdout.starts_with(start), "{output}");
    assert!(output.stdout.contains("\"c%25\""), "{output}");
    env.file("a,b:c", "FROM alpine AS b\n");
    assert_eq!(check(&env).args(flags).success().stdout, "");
}

/// A2.7, A2.8
#[test]
fn rules_are_skipped_enabled_and_made_errors() {
    let env = TestEnv::new();
    let json = ["--format", "json"];
    env.dockerfile("# about it\nFROM alpine as base\nMAINTAINER me\n");
    let all = ["FromAsCasing", "MaintainerDeprecated"];
    assert_eq!(rules(&check(&env).args(json).success()), all);
    let one = check(&env).args(["--skip", "fromascasing"]).args(json);
    assert_eq!(rules(&one.success()), &all[1..]);
    let none = check(&env).args(["--skip", "all"]).success();
    assert_eq!(none.stdout, "no warnings found\n");
    let described = "InvalidDefinitionDescription";
    for enable in [described, "all"] {
        let more = check(&env).args(["--enable", enable]).args(json).success();
        assert_eq!(rules(&more), [described, all[0], all[1]]);
    }
    let output = check(&env).args(json).arg("--error").failure(1);
    assert_eq!(rules(&output), all);
    let violation = "lint violation found for rules: FromAsCasing, MaintainerDeprecated\n";
    assert_eq!(output.stderr, format!("context/Dockerfile: {violation}"));
    env.dockerfile("# check=error=true;skip=FromAsCasing\nFROM alpine as base\nMAINTAINER me\n");
    let output = check(&env).args(json).failure(1);
    assert_eq!(rules(&output), &all[1..]);
    let start = "context/Dockerfile:1:9: lint violation found for rules: MaintainerDeprecated\n";
    assert!(output.stderr.starts_with(start), "{output}");
    let replaced = ["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all"];
    check(&env).args(replaced).success();
    let above = "FROM alpine\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n";
    env.dockerfile(above);
    assert_eq!(check(&env).success().stdout, "no warnings found\n");
    for (flags, message) in [
        (
            ["--skip", "FromAsCase"],
            "error: there is no rule `FromAsCase`: did you mean FromAsCasing?\n",
        ),
        (
            ["--enable", "nothing-like-it"],
            "error: there is no rule `nothing-like-it`: kiln check --list names all\n",
        ),
        (
            ["--explain", "StageNameCasin"],
            "error: there is no rule `StageNameCasin`: did you mean StageNameCasing?\n",
        ),
    ] {
        assert_eq!(env.kiln(["check"]).args(flags).failure(125).stderr, message);
    }
    env.kiln(["check", "--dry-run"]).failure(125);
}

#[test]
fn rules_are_listed_and_explained() {
    let env = TestEnv::new();
    let list = env.kiln(["check", "--list"]).success().stdout;
    assert!(list.starts_with("RULE"), "{list}");
    let docker = list.lines().filter(|line| {
        let mut words = line.split_whitespace();
        words.nth(1) == Some("docker")
    });
    assert_eq!(docker.count(), 22, "{list}");
    let page = env.kiln(["check", "--explain", "uNDEFINEDvar"]).success();
    assert!(page.stdout.starts_with("# UndefinedVar\n"), "{page}");
    let url = format!("{URL}/undefined-var/\n");
    assert!(page.stdout.ends_with(&url), "{page}");
    assert!(!env.store().exists());
}

/// Neither root nor a store, a registry or the context's contents are needed.
#[test]
fn nothing_but_the_dockerfile_is_needed() {
    let env = test_env!("setpriv").with_busybox();
    let kiln = env.path("kiln");
    fs::copy(env!("CARGO_BIN_EXE_kiln"), &kiln).unwrap();
    fs::set_permissions(&kiln, PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(env.path("."), PermissionsExt::from_mode(0o755)).unwrap();
    env.dockerfile("FROM nowhere.invalid/x as a\nCOPY --from=other.invalid/y /a /b\n");
    let commands: [&[&str]; 5] = [
        &["check"],
        &["build", "--check"],
        &["build", "--call=outline"],
        &["build", "--call=targets"],
        &["build", "--call=subrequests.describe"],
    ];
    for command in commands {
        for store in ["store", "no-store"] {
            env.program(
                "setpriv",
                ["--reuid=65534", "--regid=65534", "--clear-groups"],
            )
            .arg(&kiln)
            .args(command.iter().copied())
            .arg("context")
            .env("KILN_ROOT", env.path(store))
            .success();
        }
    }
    assert!(!env.path("no-store").exists());
    // What is in the store tells more: that image has no shell of its own, and sets no variables.
    env.dockerfile("FROM busybox AS a\nENV x=$NOBODY\n");
    let known = check(&env).args(["--format", "json"]).success();
    assert_eq!(rules(&known), ["UndefinedVar"]);
    env.no_traces();
}

#[test]
fn the_dockerfile_is_named_as_it_was_given() {
    let env = TestEnv::new();
    env.dockerfile("FROM a as b\n")
        .file("sub/x.Dockerfile", "FROM a as b\n");
    let absolute = env.context().join("Dockerfile");
    let absolute = absolute.to_str().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["context"], "context/Dockerfile"),
        (&["./context/."], "context/Dockerfile"),
        (
            &["-f", "./context/sub/x.Dockerfile"],
            "context/sub/x.Dockerfile",
        ),
        (&["-f", absolute], absolute),
        (&["-f", "-"], "Dockerfile"),
    ];
    for (args, name) in cases {
        let output = env.kiln(["check"]).args(args.iter().copied());
        let output = output.stdin("FROM a as b\n").success();
        assert!(
            output.stdout.contains(&format!("\n{name}:1:8\n")),
            "{output}"
        );
    }
    let output = env.kiln(["check", "nowhere"]).failure(1);
    assert_eq!(output.stderr, "error: path \"nowhere\" not found\n");
    fs::remove_file(env.context().join("Dockerfile")).unwrap();
    let output = env.kiln(["check", "context"]).failure(1);
    let start = "error: failed to read dockerfile: open context/Dockerfile: no such file";
    assert!(output.stderr.starts_with(start), "{output}");
    let large = env.kiln(["check", "-f", "-"]).stdin(vec![b'#'; 17 << 20]);
    let output = large.failure(1);
    assert!(
        output.stdout.contains("the Dockerfile is larger than"),
        "{output}"
    );
}

/// Text of a Dockerfile commands no terminal, and passwords in addresses are hidden.
#[test]
fn foreign_text_is_harmless_in_every_form() {
    let env = TestEnv::new();
    env.dockerfile(
        "FROM a as \u{9b}b\nMAINTAINER \u{1b}]0;x\u{7} http://u:geheim@h/\nLABEL a http://u:geheim@h \u{1b}[2J\n",
    );
    let harmless = |output: Output| {
        let bad = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!output.stdout.contains(bad), "{:?}", output.stdout);
        assert!(!output.stdout.contains("geheim"), "{output}");
        assert!(!output.stderr.contains(bad), "{:?}", output.stderr);
    };
    for format in ["text", "json", "sarif", "github"] {
        harmless(check(&env).args(["--format", format]).run());
    }
    env.dockerfile("FROM a as b\nMAINTAINER \u{1b}]0;x\u{7} http://u:geheim@h/\nARG X=\u{9b}\n");
    for format in ["text", "json", "sarif", "github"] {
        harmless(check(&env).args(["--format", format]).success());
    }
    harmless(check(&env).args(["--fix", "--dry-run"]).success());
    for call in [
        "outline",
        "targets",
        "outline,format=json",
        "targets,format=json",
    ] {
        harmless(env.kiln(["build", "--call", call, "context"]).success());
    }
    let report = json(&check(&env).args(["--format", "json"]).success());
    let data = report["sources"][0]["data"].as_str().unwrap();
    let data = env.program("base64", ["-d"]).stdin(data).success();
    assert!(data.stdout.contains("http://u:******@h/"), "{data}");
}

#[test]
fn what_is_mechanical_is_fixed() {
    let env = TestEnv::new();
    let text = "\u{feff}# syntax=docker/dockerfile:1\r\nfrom alpine as Base\r\n# kept\r\nENV a b c\r\nEXPOSE 80/TCP\r\n\
                WORKDIR app\r\nCMD run it\r\nRUN a \\\r\n\r\n  b\r\nMAINTAINER me\r\nFROM base\r\nENV TOKEN=x\r\nCMD a && b";
    let fixed = "\u{feff}# syntax=docker/dockerfile:1\r\nFROM alpine AS base\r\n# kept\r\nENV a=\"b c\"\r\nEXPOSE 80/tcp\r\n\
                 WORKDIR /app\r\nCMD [\"run\", \"it\"]\r\nRUN a \\\r\n  b\r\nLABEL org.opencontainers.image.authors=\"me\"\r\nFROM base\r\nENV TOKEN=x\r\nCMD a && b";
    env.dockerfile(text);
    let path = env.context().join("Dockerfile");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o604)).unwrap();
    symlink("Dockerfile", env.context().join("link")).unwrap();
    let output = check(&env).args(["--fix", "-f", "context/link"]).success();
    assert_eq!(fs::read_to_string(&path).unwrap(), fixed);
    assert_eq!(output.stderr, "fixed 8 of 10 warnings\n");
    assert!(
        output
            .stdout
            .starts_with("2 warnings found:\n\nWARNING: SecretsUsedInArgOrEnv"),
        "{output}"
    );
    assert!(env.context().join("link").is_symlink());
    let before = fs::metadata(&path).unwrap();
    assert_eq!(before.mode() & 0o777, 0o604);
    // Nothing to do: nothing is written.
    let again = check(&env).arg("--fix").success();
    assert_eq!(again.stderr, "fixed 0 of 2 warnings\n");
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.ino(), before.ctime_nsec()),
        (after.ino(), after.ctime_nsec())
    );
    let names = fs::read_dir(env.context()).unwrap();
    assert_eq!(names.count(), 2, "only the Dockerfile and the link");
    // A filter: the text on standard output, the report apart.
    let filter = check(&env).args(["--fix", "-f", "-"]).stdin(text).success();
    assert_eq!(filter.stdout, fixed);
    assert!(
        filter
            .stderr
            .starts_with("fixed 8 of 10 warnings\n2 warnings found:"),
        "{filter}"
    );
    // What is skipped is not touched, nor is a file with mistakes.
    env.dockerfile(THREE);
    check(&env).args(["--fix", "--skip", "all"]).success();
    assert_eq!(fs::read_to_string(&path).unwrap(), THREE);
    let broken = format!("{THREE}RUNN x\n");
    let filter = check(&env)
        .args(["--fix", "-f", "-"])
        .stdin(broken.as_str())
        .failure(1);
    assert_eq!(filter.stdout, broken);
}

#[test]
fn a_dry_run_shows_a_patch() {
    let env = test_env!("git");
    env.dockerfile(THREE);
    let output = check(&env).args(["--fix", "--dry-run"]).success();
    assert_eq!(
        output.stdout,
        "--- context/Dockerfile\n+++ context/Dockerfile\n@@ -1,4 +1,4 @@\n\
         -FROM alpine as base\n-ENV a b c\n-EXPOSE 80/TCP\n\
         +FROM alpine AS base\n+ENV a=\"b c\"\n+EXPOSE 80/tcp\n CMD [\"a\"]\n"
    );
    assert_eq!(output.stderr, "would fix 3 of 3 warnings\n");
    let path = env.context().join("Dockerfile");
    assert_eq!(fs::read_to_string(&path).unwrap(), THREE);
    env.program("git", ["apply", "-p0"])
        .stdin(output.stdout)
        .success();
    let patched = fs::read_to_string(&path).unwrap();
    env.dockerfile(THREE);
    check(&env).arg("--fix").success();
    assert_eq!(fs::read_to_string(&path).unwrap(), patched);
    assert_eq!(
        check(&env).args(["--fix", "--dry-run"]).success().stdout,
        ""
    );
}

#[test]
fn a_build_shows_its_warnings_like_a_check() {
    let env = test_env!().with_busybox();
    let output = env.dockerfile("FROM busybox as a\n").build("x").success();
    let warnings = format!(
        "1 warning found:\n\n\
         WARNING: FromAsCasing - {URL}/from-as-casing/\n\
         'as' and 'FROM' keywords' casing do not match\n\
         Dockerfile:1:14\n  |\n1 | FROM busybox as a\n  |              ^^\n\n\
         writing image sha256:"
    );
    assert!(output.stderr.contains(&warnings), "{output}");
    env.no_traces();
}
