//! `kiln login` and `kiln logout` (D2.5, D2.6).

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::Value;

use crate::env::{Registry, TestEnv, test_env};
use crate::terminal::Session;

/// Writes a program into a folder.
fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn config(env: &TestEnv) -> Value {
    let text = fs::read(env.path("home/.docker/config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn private(env: &TestEnv) -> Registry {
    env.registry_for("user", "pa:ss")
}

#[test]
fn d2_6_credentials_are_tried_then_kept_then_used_then_forgotten() {
    let env = test_env!("docker-registry", "htpasswd", "skopeo").with_busybox();
    let registry = private(&env);
    let address = registry.address.as_str();
    let file = env.path("home/.docker/config.json");

    let login = |password: &str| {
        env.kiln(["login", "-u", "user", "--password-stdin", address])
            .stdin(password)
    };
    let refused = login("wrong-secret\n").failure(1);
    assert!(refused.stderr.contains("401"), "{refused}");
    assert!(!refused.stderr.contains("wrong-secret"), "{refused}");
    assert!(!file.exists(), "what is refused is not kept");

    let done = login("pa:ss\r\n").success();
    assert_eq!(done.stdout, "Login Succeeded\n");
    assert!(done.stderr.contains("unencrypted"), "{done}");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let auth = &config(&env)["auths"][address]["auth"];
    assert_eq!(auth, "dXNlcjpwYTpzcw==");

    let name = registry.name("team/app:1");
    env.kiln(["tag", "busybox", &name]).success();
    env.kiln(["push", &name]).success();
    // Another program reads what kiln has written.
    let skopeo = env.program("skopeo", ["inspect", "--tls-verify=false", "--authfile"]);
    skopeo.arg(&file).arg(format!("docker://{name}")).success();

    // The same credentials again, without a question.
    let again = env.kiln(["login", address]).success();
    assert!(again.stderr.contains("existing credentials"), "{again}");

    let gone = env.kiln(["logout", address]).success();
    assert_eq!(
        gone.stdout,
        format!("Removing login credentials for {address}\n")
    );
    assert_eq!(config(&env)["auths"], serde_json::json!({}));
    let none = env.kiln(["logout", address]).success();
    assert_eq!(none.stdout, format!("Not logged in to {address}\n"));
    let refused = env.kiln(["push", &name]).failure(1);
    assert!(
        refused.stderr.contains(&format!("kiln login {address}")),
        "{refused}"
    );
}

#[test]
fn d2_1_other_keys_and_a_symbolic_link_stay() {
    let env = test_env!("docker-registry", "htpasswd");
    let registry = private(&env);
    let (real, link) = (env.path("real.json"), env.path("home/.docker/config.json"));
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(&real, &link).unwrap();
    let before =
        r#"{"psFormat":"table {{.ID}}","auths":{"other.example":{"auth":"bzpv"}},"n":1.50}"#;
    fs::write(&real, before).unwrap();
    let login = env.kiln(["login", "-u", "user", "-p", "pa:ss", &registry.address]);
    let done = login.success();
    assert!(done.stderr.contains("--password-stdin"), "{done}");
    assert!(link.is_symlink());
    let text = fs::read_to_string(&real).unwrap();
    for part in [
        r#""psFormat": "table {{.ID}}""#,
        r#"{"auth":"bzpv"}"#,
        r#""n": 1.50"#,
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn d2_5_a_helper_keeps_what_the_file_does_not() {
    let env = test_env!("docker-registry", "htpasswd");
    let registry = private(&env);
    let address = registry.address.as_str();
    let kept = env.path("kept");
    program(
        &env.path("bin/docker-credential-kilntest"),
        &format!(
            "#!/bin/sh\ncase $1 in\n\
             store) cat >'{kept}';;\n\
             get) echo 'the keychain is open' >&2; test -s '{kept}' && cat '{kept}' || \
               {{ echo 'credentials not found in native keychain'; exit 1; }};;\n\
             erase) rm '{kept}';;\nesac\n",
            kept = kept.display()
        ),
    );
    fs::create_dir_all(env.path("home/.docker")).unwrap();
    let file = env.path("home/.docker/config.json");
    fs::write(&file, r#"{"credsStore":"kilntest"}"#).unwrap();
    let path = format!(
        "{}:{}:/usr/sbin",
        env.path("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let login = env.kiln(["login", "-u", "user", "--password-stdin", address]);
    let done = login.stdin("pa:ss").env("PATH", &path).success();
    assert!(!done.stderr.contains("unencrypted"), "{done}");
    let stored: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    assert_eq!(
        stored,
        serde_json::json!({"ServerURL": address, "Username": "user", "Secret": "pa:ss"})
    );
    assert!(!fs::read_to_string(&file).unwrap().contains("auth\""));

    let check = env.kiln(["login", "--check", address]).env("PATH", &path);
    let shown = check.success().stdout;
    for part in [
        "docker-credential-kilntest",
        "the keychain is open",
        "password of `user`",
        "accepted:    yes",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("pa:ss"), "{shown}");

    env.kiln(["logout", address]).env("PATH", &path).success();
    assert!(!kept.exists());
    program(
        &env.path("bin/docker-credential-kilntest"),
        "#!/bin/sh\necho 'the vault is locked' >&2; exit 1\n",
    );
    let check = env.kiln(["login", "--check", address]).env("PATH", &path);
    let failed = check.failure(1);
    assert!(failed.stderr.contains("the vault is locked"), "{failed}");
    let missing = env
        .kiln(["login", "-u", "user", "-p", "pa:ss", address])
        .failure(1);
    assert!(
        missing.stderr.contains("docker-credential-kilntest"),
        "{missing}"
    );
}

#[test]
fn d2_6_what_cannot_be_a_login_is_refused() {
    let env = test_env!("docker-registry");
    let registry = env.registry();
    let address = registry.address.as_str();
    for (args, part) in [
        (&["login", address][..], "no terminal"),
        (&["login", "-u", "u", address], "no terminal"),
        (&["login", "--password-stdin", address], "--username"),
        (
            &["login", "-u", "u", "-p", "p", "--password-stdin", address],
            "cannot be used with",
        ),
        (&["login", "-u", "u", "-p", "", address], "empty"),
        (&["login", "-u", "a:b", "-p", "p", address], "colon"),
    ] {
        let failed = env.kiln(args.iter().copied()).failure(125);
        assert!(failed.stderr.contains(part), "{failed}");
    }
    let failed = env
        .kiln(["login", "-u", "u", "-p", "p", "no host"])
        .failure(1);
    assert!(failed.stderr.contains("no name of a registry"), "{failed}");
    // An open registry takes anybody, and --check says so.
    let open = env.kiln(["login", "--check", address]).success();
    assert!(open.stdout.contains("it is open"), "{open}");
}

#[test]
fn d2_4_files_that_go_before_what_was_stored() {
    let env = test_env!("docker-registry", "htpasswd");
    let registry = private(&env);
    let address = registry.address.as_str();
    let file = env.path("auth.json");
    let login = |variable: &str, value: &str| {
        env.kiln(["login", "-u", "user", "-p", "pa:ss", address])
            .env(variable, value)
            .success()
    };
    login("REGISTRY_AUTH_FILE", file.to_str().unwrap());
    assert!(fs::read_to_string(&file).unwrap().contains(address));
    assert!(!env.path("home/.docker").exists());

    let other = format!(r#"{{"auths":{{"{address}":{{"auth":"b3RoZXI6c2VjcmV0"}}}}}}"#);
    let shadowed = login("DOCKER_AUTH_CONFIG", &other);
    assert!(shadowed.stderr.contains("goes before them"), "{shadowed}");
    assert!(
        shadowed.stderr.contains("$DOCKER_AUTH_CONFIG"),
        "{shadowed}"
    );
    let check = env.kiln(["login", "--check", address]);
    let failed = check.env("DOCKER_AUTH_CONFIG", &other).failure(1);
    assert!(failed.stdout.contains("accepted:    no"), "{failed}");
    assert!(failed.stdout.contains("$DOCKER_AUTH_CONFIG"), "{failed}");
}

/// The question at a terminal: what is typed does not show.
#[test]
fn d2_6_a_password_is_asked_for_without_an_echo() {
    let env = test_env!("docker-registry", "htpasswd", "setsid");
    let registry = private(&env);
    let address = registry.address.as_str();
    let ask = |password: &str| {
        let mut session = Session::start(&env, &["login", address]);
        session.expect("Username: ");
        session.type_("user\n");
        session.expect("Password: ");
        session.type_(password);
        session.end()
    };
    let (code, shown) = ask("pa:z\x03");
    assert_eq!(code, Some(130), "{shown}");
    let (code, shown) = ask("pa:zz\x7f\x7fss\r");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("Login Succeeded"), "{shown}");
    assert!(!shown.contains("pa:"), "{shown}");
    assert_eq!(config(&env)["auths"][address]["auth"], "dXNlcjpwYTpzcw==");
}
