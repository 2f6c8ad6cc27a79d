//! `--allow`, `--security-opt` and `RUN --security` (B3.2, B5.5).

use std::fs;

use crate::env::test_env;

const INSECURE: &str = "FROM busybox\nRUN --security=insecure mount -t tmpfs none /tmp && id -u\n";

/// B3.2
#[test]
fn insecure_steps_need_to_be_allowed() {
    let env = test_env!().with_busybox();
    env.dockerfile(INSECURE);
    for allow in [&[][..], &["--allow", "network.host"]] {
        let refused = env
            .build("x")
            .arg("-q")
            .args(allow.iter().copied())
            .failure(1);
        assert_eq!(
            refused.stderr,
            "Dockerfile:2:16: security.insecure is not allowed\n  |\n\
             2 | RUN --security=insecure mount -t tmpfs none /tmp && id -u\n  \
             |                ^^^^^^^^\nhint: pass `--allow security.insecure`\n"
        );
    }
    for allow in ["security.insecure", "network.host,security.insecure"] {
        env.build("x").args(["--allow", allow]).success();
    }
    // A check does not ask who allows it.
    env.build("x").args(["--check"]).success();
    // Allowed is not given: the mode counts, and the step without it is another one.
    env.dockerfile("FROM busybox\nRUN mount -t tmpfs none /tmp && id -u\n");
    let failed = env
        .build("x")
        .args(["--allow", "security.insecure"])
        .failure(1);
    assert!(failed.stderr.contains("mount"), "{failed}");
}

/// B3
#[test]
fn what_can_be_allowed_is_said() {
    let env = test_env!();
    env.dockerfile("FROM scratch\n");
    for (flags, message) in [
        (
            ["--allow", "network"],
            "error: invalid entitlement `network`: network.host and security.insecure are possible\n",
        ),
        (
            ["--allow", "device=vendor/class"],
            "error: --allow device is not supported: network.host and security.insecure are\n",
        ),
        (
            ["--security-opt", "apparmor=docker-default"],
            "error: --security-opt apparmor=docker-default is not supported: \
             seccomp=FILE|unconfined|builtin is\n",
        ),
    ] {
        assert_eq!(env.build("x").args(flags).failure(125).stderr, message);
    }
}

/// B5.5: the profile is obeyed, is not in the cache key, and is checked first of all.
#[test]
fn steps_run_under_a_profile_of_the_users() {
    let env = test_env!().with_busybox();
    let profile = env.path("profile.json");
    let option = format!("seccomp={}", profile.display());
    let with = |option: &str| {
        let build = env
            .build("x")
            .args(["--no-cache", "--security-opt", option]);
        build.run()
    };
    env.dockerfile("FROM busybox\nRUN mkdir /made\n");
    let rule = |action| {
        format!(
            r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {{ "names": ["mkdir", "mkdirat", "moutn"], "action": "{action}", "errnoRet": 28 }}] }}"#
        )
    };
    fs::write(&profile, rule("SCMP_ACT_ERRNO")).unwrap();
    let failed = with(&option);
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(
        failed.stderr.contains("No space left on device"),
        "{failed}"
    );
    let warning = format!(
        "warning: seccomp profile `{}`: unknown system calls are left out: moutn\n",
        profile.display()
    );
    assert!(failed.stderr.contains(&warning), "{failed}");
    for option in ["seccomp=unconfined", "seccomp=builtin"] {
        assert_eq!(with(option).code, Some(0));
    }
    fs::write(&profile, rule("SCMP_ACT_ERNO")).unwrap();
    let refused = env
        .build("x")
        .args(["--security-opt", &option])
        .failure(125);
    let said = format!(
        "error: seccomp profile `{}`: syscalls[0].action: unknown action `SCMP_ACT_ERNO`: ",
        profile.display()
    );
    assert!(refused.stderr.starts_with(&said), "{refused}");
    fs::write(&profile, "{\n  \"defaultAction\": }").unwrap();
    let refused = env
        .build("x")
        .args(["--security-opt", &option])
        .failure(125);
    assert!(refused.stderr.contains("at line 2 column 20"), "{refused}");
}

/// `--runtime`: the same image, the same failure, and a word where there is no such runtime.
#[test]
fn other_runtimes_build_the_same() {
    let env = test_env!("crun", "runc").with_busybox();
    let dockerfile = "FROM busybox\n\
        WORKDIR /srv\n\
        RUN <<EOF\n#!/bin/sh\necho $0 >made && mkdir -p /etc && id -u >/etc/who\n\
        touch -d @1 made . /etc/who /etc\nEOF\n\
        RUN --mount=type=tmpfs,target=/a/b --network=none rm /bin/vi && echo x >/a/b/c && touch -d @1 /bin\n";
    // The steps set all times, so that they give the same bytes every time.
    env.dockerfile(dockerfile);
    let build = |flags: &[&str]| {
        let build = env.build("x").env("SOURCE_DATE_EPOCH", "1000000000");
        build.args(["-q", "--no-cache"]).args(flags.iter().copied())
    };
    let own = build(&[]).success().stdout;
    for runtime in ["crun", "runc"] {
        assert_eq!(build(&["--runtime", runtime]).success().stdout, own);
    }
    env.dockerfile("FROM busybox\nRUN echo said; exit 7\n");
    let own = build(&[]).failure(1).stderr;
    for runtime in ["crun", "runc"] {
        assert_eq!(build(&["--runtime", runtime]).failure(1).stderr, own);
    }
    for (name, said) in [
        (
            "nonsense",
            "error: --runtime nonsense: there is no such program: install crun, runc",
        ),
        ("./Dockerfile", "error: --runtime ./Dockerfile: "),
    ] {
        let refused = build(&["--runtime", name]).failure(125);
        assert!(refused.stderr.starts_with(said), "{refused}");
    }
}
