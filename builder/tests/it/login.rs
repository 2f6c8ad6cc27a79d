//! `kiln login` and `kiln logout` (D2.5, D2.6).

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::Value;

use crate::aws_fake::{Aws, KEYS, OFF, REGISTRY};
use crate::env::{Registry, Run, TestEnv, test_env};
use crate::server::{Asked, Reply, Server, error};
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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Amazon's registry with AWS credentials of every kind, and no helper installed.
#[test]
fn d3_7_aws_credentials_of_every_kind() {
    let env = test_env!().with_busybox();
    let runtime = runtime();
    let (aws, registry, proxy) = runtime.block_on(async {
        let (aws, registry) = (Aws::start(3600).await, Server::start().await);
        let proxy = aws.serve(&registry).await;
        (aws, registry, proxy)
    });
    let kiln = |args: &[&str], variables: &[(&str, &str)]| -> Run {
        // Its services are asked at these addresses, as AWS' own programs would.
        let run = env
            .kiln(args.iter().copied())
            .args(["--insecure-registry", REGISTRY])
            .env("HTTP_PROXY", format!("http://{}", proxy.address))
            .env("AWS_ENDPOINT_URL_ECR", aws.url())
            .env("AWS_ENDPOINT_URL_STS", aws.url());
        variables
            .iter()
            .fold(run, |run, (name, value)| run.env(name, value))
    };
    let home = |name: &str, text: &str| {
        let path = env.path("home").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let token = home("token", "web.identity+token\n");
    let container = format!("{}/container", aws.url());
    let role = "arn:aws:iam::1:role/ci";
    let machine = aws.url();
    home(
        "profiles",
        "[deploy]\naws_access_key_id = AKIDLONG\naws_secret_access_key = long/secret+key\n\
         [ci]\nrole_arn = arn:aws:iam::1:role/ci\nsource_profile = deploy\n",
    );
    let profiles = env.path("home/profiles").display().to_string();
    let cases: [(&str, Vec<(&str, &str)>); 7] = [
        ("AWS_ACCESS_KEY_ID", KEYS.to_vec()),
        (
            "AWS_ACCESS_KEY_ID",
            vec![
                ("AWS_ACCESS_KEY_ID", "ASIAROLE"),
                ("AWS_SECRET_ACCESS_KEY", "role/secret+key"),
                ("AWS_SESSION_TOKEN", "role-session+token=="),
            ],
        ),
        (
            "the profile `deploy`",
            vec![
                ("AWS_PROFILE", "deploy"),
                ("AWS_SHARED_CREDENTIALS_FILE", &profiles),
            ],
        ),
        (
            "the role `arn:aws:iam::1:role/ci`",
            vec![
                ("AWS_PROFILE", "ci"),
                ("AWS_SHARED_CREDENTIALS_FILE", &profiles),
            ],
        ),
        (
            "the role `arn:aws:iam::1:role/ci`",
            vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
                ("AWS_ROLE_ARN", role),
            ],
        ),
        (
            "the container's service",
            vec![
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-token"),
            ],
        ),
        (
            "the machine's role",
            vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", &machine)],
        ),
    ];
    let secrets = [
        "secret+key",
        "session+token",
        "container-token",
        "web.identity",
        "password-",
    ];
    for (number, (origin, variables)) in cases.iter().enumerate() {
        let shown = kiln(&["login", "--check", REGISTRY], variables).success();
        let told = format!("AWS, with the keys of {origin}\n");
        assert!(shown.stdout.contains(&told), "{shown}");
        for part in ["password of `AWS`", "expires:", "accepted:    yes"] {
            assert!(shown.stdout.contains(part), "{part}: {shown}");
        }
        let name = format!("{REGISTRY}/app:{number}");
        env.kiln(["tag", "busybox", &name]).success();
        let pushed = kiln(&["push", &name], variables).success();
        let pulled = kiln(&["pull", &name], variables).success();
        for secret in secrets {
            for output in [&shown, &pushed, &pulled] {
                let said = output.stdout.contains(secret) || output.stderr.contains(secret);
                assert!(!said, "{secret}: {output}");
            }
        }
    }
    // A wrong key is refused by the check of the signature.
    let wrong = [KEYS[0], ("AWS_SECRET_ACCESS_KEY", "wr0ng")];
    let failed = kiln(&["login", "--check", REGISTRY], &wrong).failure(1);
    assert!(failed.stderr.contains("another signature"), "{failed}");
    assert!(!failed.stderr.contains("wr0ng"), "{failed}");
    let nobody = kiln(&["login", "--check", REGISTRY], &[OFF]).failure(1);
    assert!(nobody.stderr.contains("AWS_ACCESS_KEY_ID"), "{nobody}");
    // What AWS' own program prints is a login like any other.
    let password = format!("password-{}\n", aws.given.lock().unwrap());
    let login = ["login", "--username", "AWS", "--password-stdin", REGISTRY];
    let done = kiln(&login, &[OFF]).stdin(password).success();
    assert_eq!(done.stdout, "Login Succeeded\n");
    kiln(&["pull", &format!("{REGISTRY}/app:0")], &[OFF]).success();
    assert!(
        registry
            .log()
            .iter()
            .all(|asked| asked.header("x-amz-date").is_none())
    );
}

/// Answers like a token service, and like the registry that wants its tokens.
fn with_tokens(asked: &Asked, address: &str) -> Option<Reply> {
    let user = Some("Basic dXNlcjpwYTpzcw==");
    if asked.path == "/token" {
        if asked.header("authorization") != user {
            return Some(error(401, "UNAUTHORIZED"));
        }
        let claims = match asked.query.contains("scope=repository%3Ateam%2Fapp%3A") {
            // Less than what was asked for.
            true => {
                r#"{"exp":4102444800,"access":[{"type":"repository","name":"team/app","actions":["pull"]}]}"#
            }
            false => r#"{"exp":4102444800,"access":[]}"#,
        };
        let token = format!("e30.{}.c2ln", crate::aws_fake::base64(claims.as_bytes()));
        let body = serde_json::json!({"token": token.replace('=', ""), "expires_in": 300});
        return Some(Reply::new(200).body(body.to_string()));
    }
    let bearer = asked
        .header("authorization")
        .is_some_and(|text| text.starts_with("Bearer e30."));
    let challenge = format!(r#"Bearer realm="http://{address}/token",service="test""#);
    (!bearer).then(|| error(401, "UNAUTHORIZED").with("www-authenticate", challenge))
}

#[test]
fn d2_6_check_tells_what_a_token_service_grants() {
    let env = test_env!();
    let runtime = runtime();
    let server = runtime.block_on(Server::start());
    let address = server.address.clone();
    server.custom(move |asked| with_tokens(asked, &address));
    let address = server.address.as_str();

    let login = env.kiln(["login", "-u", "user", "--password-stdin", address]);
    login.stdin("pa:ss").success();
    let check = |what: &str| env.kiln(["login", "--check", what]).success().stdout;
    let shown = check(address);
    let from = format!("token from:  http://{address}/token\n");
    for part in [
        "password of `user`",
        from.as_str(),
        "granted:     nothing was asked for; name a repository",
        "accepted:    yes",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let shown = check(&format!("{address}/team/app"));
    for part in [
        "granted:     repository:team/app:pull\n",
        "expires:     2100-01-01",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(
        !shown.contains("pa:ss") && !shown.contains("e30."),
        "{shown}"
    );

    let login = env.kiln(["login", "-u", "user", "--password-stdin", address]);
    let refused = login.stdin("wrong").failure(1);
    let told = format!("cannot get a token for `{address}` from `http://{address}/token`");
    assert!(refused.stderr.contains(&told), "{refused}");
}
