//! What the user sees when something is wrong: the message, the place, the hint, the exit code.
//!
//! Builds run with `-q`, so that stderr is the failure alone and can be compared as a whole.

use std::fs;
use std::os::unix::fs::symlink;

use crate::env::{TestEnv, free_port, test_env};
use crate::liar::{Fault, Liar};
use crate::traces::{descendants, wait_until};

/// Builds these Dockerfiles and compares all that is said; nothing may be left of the build.
fn refused(env: &TestEnv, cases: &[(&str, &str)]) {
    // The base image is unpacked by the first step on it, whether that fails or not.
    env.built("warm", "FROM busybox\nRUN true\n");
    let before = env.content();
    for (dockerfile, message) in cases {
        let output = env
            .dockerfile(dockerfile)
            .build("refused")
            .arg("-q")
            .failure(1);
        assert_eq!(output.stderr, *message, "{dockerfile}");
        assert_eq!(output.stdout, "");
        env.no_traces();
    }
    env.same_content(&before);
    env.kiln(["inspect", "refused"]).failure(1);
}

/// A18.1
#[test]
fn a_missing_dockerfile_or_context_is_named() {
    let env = test_env!();
    fs::create_dir(env.path("empty")).unwrap();
    fs::create_dir_all(env.path("folder/Dockerfile")).unwrap();
    fs::write(env.path("file"), "").unwrap();
    let hint = "hint: name the Dockerfile with -f, or give the folder that holds it\n";
    let cases: [(&[&str], String); 5] = [
        (
            &["empty"],
            format!(
                "error: failed to read dockerfile: open empty/Dockerfile: no such file or directory\n{hint}"
            ),
        ),
        (
            &["-f", "other", "empty"],
            format!(
                "error: failed to read dockerfile: open other: no such file or directory\n{hint}"
            ),
        ),
        (
            &["folder"],
            "error: failed to read dockerfile: open folder/Dockerfile: is a directory\n".to_owned(),
        ),
        (
            &["nowhere"],
            "error: path \"nowhere\" not found\n".to_owned(),
        ),
        (
            &["file"],
            "error: unable to prepare context: \"file\" is not a directory\n".to_owned(),
        ),
    ];
    for (args, message) in cases {
        let output = env.kiln(["build"]).args(args.iter().copied()).failure(1);
        assert_eq!(output.stderr, message);
    }
}

#[test]
fn mistakes_in_the_dockerfile_are_shown_where_they_are() {
    let env = test_env!().with_busybox();
    refused(
        &env,
        &[
            (
                "FROM busybox\nRUNN echo hi\n",
                "Dockerfile:2:1: unknown instruction: RUNN, did you mean RUN?\n  \
                 |\n2 | RUNN echo hi\n  | ^^^^\n",
            ),
            (
                "FROM busybox\nRUN --mont=type=tmpfs,target=/x true\nCOPY --form=x a b\n",
                "Dockerfile:2:5: unknown flag: --mont for RUN, did you mean --mount?\n  \
                 |\n2 | RUN --mont=type=tmpfs,target=/x true\n  |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n\n\
                 Dockerfile:3:6: unknown flag: --form for COPY, did you mean --from?\n  \
                 |\n3 | COPY --form=x a b\n  |      ^^^^^^^^\n\n2 errors found\n",
            ),
            (
                "# check=error=true\nFROM busybox as a\n",
                "1 warning found:\n\n\
                 WARNING: FromAsCasing - https://docs.docker.com/go/dockerfile/rule/from-as-casing/\n\
                 'as' and 'FROM' keywords' casing do not match\n\
                 Dockerfile:2:14\n  |\n2 | FROM busybox as a\n  |              ^^\n\n\
                 Dockerfile:1:9: lint violation found for rules: FromAsCasing\n  \
                 |\n1 | # check=error=true\n  |         ^^^^^^^^^^\n",
            ),
            (
                "RUN true\n",
                "Dockerfile:1:1: no build stage in current context\n  \
                 |\n1 | RUN true\n  | ^^^^^^^^\nhint: only ARG can stand before the first FROM\n",
            ),
            ("", "Dockerfile: the Dockerfile cannot be empty\n"),
        ],
    );
}

#[test]
fn the_command_line_is_checked_before_anything_happens() {
    let env = test_env!();
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["build", "--targt", "x", "."],
            &["unexpected argument '--targt'", "'--target'"],
        ),
        (&["psuh"], &["unrecognized subcommand 'psuh'", "'push'"]),
        (
            &["build", "-t", "BAD/Name", "."],
            &["error: invalid tag \"BAD/Name\": ", "lowercase"],
        ),
        (
            &["build", "--platform", "a/b/c/d", "."],
            &["invalid platform `a/b/c/d`"],
        ),
        (
            &["build", "--build-arg", "=x", "."],
            &["invalid build argument `=x`: expected NAME"],
        ),
        (
            &["build", "-"],
            &["a build context on standard input is not supported yet"],
        ),
    ];
    for (args, messages) in cases {
        let output = env.kiln(args.iter().copied()).failure(125);
        for message in messages {
            assert!(output.stderr.contains(message), "{output}");
        }
        assert_eq!(output.stdout, "");
    }
    assert!(!env.store().exists());
}

/// A7.2, A10.1: a stage that is not there may be an image; its name tells that it was misspelt.
#[test]
fn a_misspelt_stage_is_recognised() {
    let env = test_env!().with_busybox();
    let dead = format!("docker.io=http://127.0.0.1:{}", free_port());
    let dockerfile = "FROM busybox AS build\nFROM busybox\n";
    let target = env
        .dockerfile(dockerfile)
        .build("x")
        .args(["--target", "biuld"])
        .failure(1);
    assert_eq!(
        target.stderr,
        "Dockerfile: target stage \"biuld\" could not be found (did you mean build?)\n"
    );
    for (line, place) in [("COPY --from=biuld /a /b", "3:13"), ("FROM biuld", "3:6")] {
        let output = env
            .dockerfile(&format!("{dockerfile}{line}\n"))
            .build("x")
            .arg("-q")
            .env("KILN_MIRRORS", &dead)
            .failure(1);
        let start = format!("Dockerfile:{place}\n  |\n3 | {line}\n");
        assert!(output.stderr.starts_with(&start), "{output}");
        let hint = "hint: there is no stage of that name; did you mean `build`?\n";
        assert!(output.stderr.ends_with(hint), "{output}");
    }
}

/// A10.2, A10.4
#[test]
fn a_source_that_is_not_in_the_context_is_explained() {
    let env = test_env!().with_busybox();
    fs::write(env.path("outside"), "secret of the host").unwrap();
    env.file("bin/tool", "").file("docs/readme.txt", "");
    env.file(".dockerignore", "# not needed\n**/bin\n");
    symlink("../outside", env.context().join("link")).unwrap();
    let place = |line: &str| {
        let carets = "^".repeat(line.len());
        format!("Dockerfile:2:1\n  |\n2 | {line}\n  | {carets}\nerror: failed to solve: ")
    };
    let cases = [
        (
            "COPY ../outside /x",
            "`../outside`: not found in the build context\n\
             hint: paths cannot lead above the root of the build context, and `..` there stays there\n",
        ),
        (
            "COPY bin/tool /x",
            "`bin/tool`: not in the build context: excluded by .dockerignore line 2 (`**/bin`)\n\
             hint: add a `!` rule below that line to include it\n",
        ),
        (
            "COPY docs/raedme.txt /x",
            "`docs/raedme.txt`: not found in the build context\n\
             hint: did you mean `docs/readme.txt`?\n",
        ),
        (
            "COPY link /x",
            "`link`: symbolic link to `../outside`, which is not in the build context\n",
        ),
        (
            "COPY nothing-like-it /x",
            "`nothing-like-it`: not found in the build context\n",
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(line, message)| (format!("FROM busybox\n{line}\n"), place(line) + message))
        .collect();
    let cases: Vec<_> = cases
        .iter()
        .map(|(file, text)| (file.as_str(), text.as_str()))
        .collect();
    refused(&env, &cases);
    // The name within the context is what `..` leads to.
    env.file("outside", "of the context");
    for source in ["../outside", "link"] {
        env.built("inside", &format!("FROM busybox\nCOPY {source} /x\n"));
        assert_eq!(env.saved("inside").text("x"), "of the context");
    }
}

/// B4.6 and what docker prints
#[test]
fn a_failing_step_shows_its_last_lines_its_place_and_its_exit_code() {
    let env = test_env!().with_busybox();
    refused(
        &env,
        &[
            (
                "FROM busybox\nRUN echo one; printf '\\033[31mtwo\\n' >&2; \\\n    exit 7\n",
                "------\n > [2/2] RUN echo one; printf '\\033[31mtwo\\n' >&2;     exit 7:\none\ntwo\n------\n\
                 Dockerfile:2:1\n  |\n\
                 2 | / RUN echo one; printf '\\033[31mtwo\\n' >&2; \\\n\
                 3 | |     exit 7\n  \
                 | |__________^\n\
                 error: failed to solve: process \"/bin/sh -c echo one; printf '\\033[31mtwo\\n' >&2;     exit 7\" \
                 did not complete successfully: exit code: 7\n\
                 hint: look around in the failed step with: kiln shell --failed\n",
            ),
            (
                "FROM busybox\nRUN false\n",
                "Dockerfile:2:1\n  |\n2 | RUN false\n  | ^^^^^^^^^\n\
                 error: failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 1\n\
                 hint: look around in the failed step with: kiln shell --failed\n",
            ),
            (
                "FROM busybox\nRUN [\"no-such-program\"]\n",
                "Dockerfile:2:1\n  |\n2 | RUN [\"no-such-program\"]\n  | ^^^^^^^^^^^^^^^^^^^^^^^\n\
                 error: failed to solve: exec `no-such-program`: executable file not found in PATH of the image\n",
            ),
            (
                "FROM scratch\nRUN true\n",
                "Dockerfile:2:1\n  |\n2 | RUN true\n  | ^^^^^^^^\n\
                 error: failed to solve: exec `/bin/sh`: no such file or directory in the image\n\
                 hint: the image has no shell: write the command as a JSON array, as in RUN [\"/program\", \"argument\"]\n",
            ),
            (
                "FROM busybox\nUSER nemo\nRUN true\n",
                "Dockerfile:3:1\n  |\n3 | RUN true\n  | ^^^^^^^^\n\
                 error: failed to solve: unable to find user nemo: no matching entries in passwd file\n",
            ),
        ],
    );
}

#[test]
fn a_step_that_is_killed_says_by_what() {
    let env = test_env!().with_busybox();
    let run = env
        .dockerfile("FROM busybox\nRUN [\"sleep\", \"77777\"]\n")
        .build("x")
        .arg("-q");
    let child = run.spawn();
    let step = wait_until("the step", || {
        let all = descendants(child.id());
        all.into_iter()
            .find(|process| process.has_argument("77777"))
    });
    step.kill();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let end = "error: failed to solve: process \"sleep 77777\" was killed by signal 9 (out of memory?)\n\
         hint: look around in the failed step with: kiln shell --failed\n";
    assert!(stderr.ends_with(end), "{stderr}");
    env.no_traces();
}

#[test]
fn a_registry_out_of_reach_is_the_environment_s_failure() {
    let env = test_env!().with_busybox();
    let address = format!("127.0.0.1:{}", free_port());
    let name = format!("{address}/some/app:1");
    env.kiln(["tag", "busybox", &name]).success();
    let cannot = format!("cannot connect to `http://{address}/v2/`: connection refused\n");
    let hint = format!(
        "hint: nothing listens at `http://{address}/v2/`: is the server running, and the port right?\n"
    );
    let push = env.kiln(["push", "-q", &name]).failure(3);
    assert_eq!(push.stderr, format!("error: {cannot}{hint}"));
    env.kiln(["rmi", &name]).success();
    let before = env.content();
    let pull = env.kiln(["pull", "-q", &name]).failure(3);
    assert_eq!(pull.stderr, format!("error: {cannot}{hint}"));
    let from = env
        .dockerfile(&format!("FROM {name}\n"))
        .build("x")
        .failure(3);
    let resolve = format!("error: failed to resolve source metadata for `{name}`: {cannot}{hint}");
    assert!(from.stderr.ends_with(&resolve), "{from}");
    assert!(from.stderr.starts_with("Dockerfile:1:6\n"), "{from}");
    env.same_content(&before);
    env.no_traces();
}

/// The build is not lost: its image has its names, and pushing it later is all that is left.
#[test]
fn an_image_that_cannot_be_pushed_is_kept() {
    let env = test_env!("docker-registry").with_busybox();
    let dead = format!("127.0.0.1:{}/app:1", free_port());
    let dockerfile = "FROM busybox\nRUN echo built >/file\n";
    let output = env
        .dockerfile(dockerfile)
        .build(&dead)
        .arg("--push")
        .arg("-q")
        .failure(4);
    let start = format!(
        "error: the image was built and is kept, but pushing `{dead}` failed: cannot connect to "
    );
    assert!(output.stderr.starts_with(&start), "{output}");
    let hint = format!("\nhint: continue with: kiln push {dead}; nothing listens at ");
    assert!(output.stderr.contains(&hint), "{output}");
    let registry = env.registry();
    let name = registry.name("app:1");
    env.kiln(["tag", &dead, &name]).success();
    env.kiln(["push", &name]).success();
    env.no_traces();
}

/// A wrong password shows neither itself nor its encoded form.
#[test]
fn a_refusing_registry_is_quoted_and_no_password_is_shown() {
    let env = test_env!("docker-registry", "htpasswd").with_busybox();
    let registry = env.registry_for("ann", "right-one");
    let name = registry.name("app:1");
    let login = |password: &str| {
        // base64 of `ann:PASSWORD`
        let text = env
            .program("base64", ["-w0"])
            .stdin(format!("ann:{password}"))
            .success();
        let config = format!(
            "{{\"auths\":{{\"{}\":{{\"auth\":\"{}\"}}}}}}",
            registry.address, text.stdout
        );
        fs::create_dir_all(env.path("home/.docker")).unwrap();
        fs::write(env.path("home/.docker/config.json"), config).unwrap();
        text.stdout
    };
    let encoded = login("wrong-one");
    env.kiln(["tag", "busybox", &name]).success();
    for args in [["push", &name], ["pull", &name]] {
        let output = env.kiln(args).failure(1);
        assert!(
            output.stderr.contains("401: Unauthorized\n")
                || output.stderr.contains("401 UNAUTHORIZED: "),
            "{output}"
        );
        let hint = format!("`kiln login {}`", registry.address);
        assert!(output.stderr.contains(&hint), "{output}");
        for secret in ["wrong-one", encoded.as_str()] {
            assert!(!output.to_string().contains(secret), "{output}");
        }
    }
    login("right-one");
    env.kiln(["push", &name]).success();
    let missing = registry.name("no/such:2");
    let output = env.kiln(["pull", "-q", &missing]).failure(1);
    let url = format!("http://{}/v2/no/such/manifests/2", registry.address);
    assert!(
        output.stderr.starts_with("error: ") && output.stderr.contains(&url),
        "{output}"
    );
    assert!(
        output
            .stderr
            .contains("404 MANIFEST_UNKNOWN: manifest unknown"),
        "{output}"
    );
    let hint = "hint: check the name and the tag; private repositories also look like this\n";
    assert!(output.stderr.ends_with(hint), "{output}");
    env.no_traces();
}

/// Nothing that fails its digest becomes part of the store.
#[test]
fn content_that_is_not_what_was_announced_is_refused() {
    let env = test_env!().with_busybox();
    let before = env.content();
    let liar = Liar::start(Fault::Altered);
    let pull = env.kiln(["pull", &liar.name()]).failure(3);
    let build = env
        .dockerfile(&format!("FROM {}\nRUN true\n", liar.name()))
        .build("x")
        .failure(3);
    for output in [pull, build] {
        let expected = format!("digest mismatch: expected {}, got ", liar.layer());
        assert!(output.stderr.contains(&expected), "{output}");
    }
    env.no_traces();
    env.same_content(&before);
    // A connection that breaks is not yet a failure.
    let liar = Liar::start(Fault::CutOnce);
    let output = env.kiln(["pull", &liar.name()]).success();
    assert!(output.stderr.contains("retrying in"), "{output}");
}

/// A12.3, A6.9: secrets in addresses and in predefined arguments.
#[test]
fn secrets_are_never_shown() {
    let env = test_env!().with_busybox();
    let port = free_port();
    let proxy = format!("http://ann:proxy-word@127.0.0.1:{port}");
    let dockerfile = format!(
        "FROM busybox\nRUN echo $HTTP_PROXY | wc -c\nADD http://ann:add-word@127.0.0.1:{port}/x?token=add-token /x\n"
    );
    let failed = env
        .dockerfile(&dockerfile)
        .build("x")
        .arg("--build-arg")
        .arg(format!("HTTP_PROXY={proxy}"))
        .failure(3);
    let mirror = format!("docker.io=http://ann:mirror-word@127.0.0.1:{port}");
    let pulled = env
        .kiln(["pull", "none"])
        .env("KILN_MIRRORS", mirror)
        .env("HTTPS_PROXY", &proxy)
        .run();
    assert!(
        pulled.stderr.contains("note: passed over the mirror `"),
        "{pulled}"
    );
    let built = env
        .dockerfile("FROM busybox\nRUN test -n \"$HTTP_PROXY\" && exit 3\n")
        .build("x")
        .env("HTTP_PROXY", &proxy)
        .arg("--build-arg")
        .arg("HTTP_PROXY")
        .failure(1);
    env.dockerfile("FROM busybox\nRUN test -n \"$HTTP_PROXY\"\n")
        .build("y")
        .arg(format!("--build-arg=HTTP_PROXY={proxy}"))
        .success();
    let shown = [
        env.kiln(["history", "--no-trunc", "y"]).success(),
        env.kiln(["inspect", "y"]).success(),
    ];
    for output in [failed, pulled, built].iter().chain(&shown) {
        for secret in ["proxy-word", "add-word", "add-token", "mirror-word"] {
            let (stdout, stderr) = (&output.stdout, &output.stderr);
            assert!(
                !stdout.contains(secret) && !stderr.contains(secret),
                "{output}"
            );
        }
    }
}
