use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::helper::Helper;
use super::*;

fn basic(username: &str, password: &str) -> Login {
    Login::Basic {
        username: username.to_owned(),
        password: Secret::new(password),
    }
}

async fn login(config: &str, registry: &str, repository: &str) -> Login {
    let keychain = Keychain::from_docker_config(config.as_bytes()).unwrap();
    keychain.login(registry, repository).await.unwrap()
}

/// Name `u`, password `p:w`.
const AUTH: &str = "dTpwOnc=";

fn with_key(key: &str) -> String {
    format!(r#"{{"auths":{{"{key}":{{"auth":"{AUTH}"}}}}}}"#)
}

/// D2.3: the spellings of one registry.
#[tokio::test]
async fn d2_3_keys_of_a_registry() {
    for (key, registry, fits) in [
        ("r.example", "r.example", true),
        ("r.example:5000", "r.example:5000", true),
        ("r.example:5000", "r.example", false),
        ("https://r.example", "r.example", true),
        ("http://r.example/", "r.example", true),
        ("https://r.example/v1/", "r.example", true),
        ("https://r.example/v2/", "r.example", true),
        ("r.example/v2", "r.example", true),
        ("https://r.example/any/thing", "r.example", true),
        ("r.example.evil", "r.example", false),
        ("https://index.docker.io/v1/", "docker.io", true),
        ("docker.io", "docker.io", true),
        ("index.docker.io", "docker.io", true),
        ("registry-1.docker.io", "docker.io", true),
        ("https://registry-1.docker.io/v2/", "docker.io", true),
        (
            "https://index.docker.io/v1/access-token",
            "docker.io",
            false,
        ),
        (
            "https://index.docker.io/v1/refresh-token",
            "docker.io",
            false,
        ),
        ("https://index.docker.io/v1/", "index.docker.io", true),
        ("https://hub.docker.com", "docker.io", false),
    ] {
        let expected = if fits {
            basic("u", "p:w")
        } else {
            Login::Anonymous
        };
        assert_eq!(
            login(&with_key(key), registry, "a/b").await,
            expected,
            "{key}"
        );
    }
}

/// D2.4: `host/ns/repo`, then `host/ns`, then `host`; never a neighbour.
#[tokio::test]
async fn d2_4_keys_of_parts_of_a_registry() {
    let entry = |user: &str| format!(r#"{{"username":"{user}","password":"p"}}"#);
    let config = format!(
        r#"{{"auths":{{"h":{},"h/ns":{},"h/ns/repo":{},"docker.io/team":{}}}}}"#,
        entry("host"),
        entry("ns"),
        entry("repo"),
        entry("team"),
    );
    for (registry, repository, user) in [
        ("h", "ns/repo", "repo"),
        ("h", "ns/repo/sub", "repo"),
        ("h", "ns/repository", "ns"),
        ("h", "ns", "ns"),
        ("h", "nsx/repo", "host"),
        ("docker.io", "team/app", "team"),
    ] {
        let expected = basic(user, "p");
        assert_eq!(
            login(&config, registry, repository).await,
            expected,
            "{repository}"
        );
    }
    assert_eq!(
        login(&config, "docker.io", "library/x").await,
        Login::Anonymous
    );
}

/// D2.1, D2.2: what an entry can hold.
#[tokio::test]
async fn d2_2_entries() {
    for (entry, expected) in [
        (format!(r#"{{"auth":"{AUTH}"}}"#), basic("u", "p:w")),
        (r#"{"auth":"dTpwOnc"}"#.to_owned(), basic("u", "p:w")),
        (r#"{"auth":"dTpw\nOnc=\n"}"#.to_owned(), basic("u", "p:w")),
        (r#"{"auth":"dTpwAAA="}"#.to_owned(), basic("u", "p")),
        (
            r#"{"username":"n","password":"s","email":"e"}"#.to_owned(),
            basic("n", "s"),
        ),
        (
            format!(r#"{{"auth":"{AUTH}","identitytoken":"t"}}"#),
            Login::IdentityToken(Secret::new("t")),
        ),
        (
            r#"{"registrytoken":"t","identitytoken":"i"}"#.to_owned(),
            Login::RegistryToken(Secret::new("t")),
        ),
        ("{}".to_owned(), Login::Anonymous),
        (r#"{"auth":""}"#.to_owned(), Login::Anonymous),
        (
            r#"{"auth":null,"username":null}"#.to_owned(),
            Login::Anonymous,
        ),
    ] {
        let config = format!(r#"{{"auths":{{"h":{entry}}},"unknown":1}}"#);
        assert_eq!(login(&config, "h", "r").await, expected, "{entry}");
    }
}

/// A damaged entry fails for its own registry only; no message holds what was in it.
#[tokio::test]
async fn damage() {
    let config =
        br#"{"auths":{"bad":{"auth":"c2VjcmV0"},"worse":{"auth":"s3cret!"},"h":{"auth":"dTpw"}}}"#;
    let keychain = Keychain::from_docker_config(config).unwrap();
    assert_eq!(keychain.login("h", "r").await.unwrap(), basic("u", "p"));
    for key in ["bad", "worse"] {
        let error = keychain.login(key, "r").await.unwrap_err().to_string();
        assert!(
            error.contains(key) && error.contains("config.json"),
            "{error}"
        );
        assert!(
            !error.contains("c2VjcmV0") && !error.contains("s3cret"),
            "{error}"
        );
    }
    for text in [
        "{",
        r#"{"auths":{"h":{"auth":7}}}"#,
        r#"{"auths":"hunter2"}"#,
    ] {
        let error = Keychain::from_docker_config(text.as_bytes()).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            matches!(error, CredentialsError::Syntax { line: 1, .. }),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert!(Keychain::from_docker_config(b"").is_ok());
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let keychain = Keychain::from_docker_config(with_key("h").as_bytes()).unwrap();
    let login = keychain.find("h", "r").await.unwrap().unwrap();
    let shown = format!("{keychain:?} {login:?} {}", Secret::new("p:w"));
    assert!(!shown.contains("p:w") && !shown.contains(AUTH), "{shown}");
    assert!(shown.contains("`h` in config.json"), "{shown}");
}

/// D2.4: where credentials are looked for, and which come first.
#[tokio::test]
async fn the_environment() {
    let home = tempfile::tempdir().unwrap();
    let put = |path: &str, content: &str| {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    let user = |name: &str| format!(r#"{{"auths":{{"h":{{"username":"{name}"}}}}}}"#);
    let mut environment = Environment {
        home: Some(home.path().to_owned()),
        xdg_runtime_dir: Some(home.path().join("run")),
        ..Environment::default()
    };
    let expect = async |environment: &Environment, name: &str| {
        let keychain = Keychain::from_environment(environment, Presence::Required).unwrap();
        assert_eq!(keychain.login("h", "r").await.unwrap(), basic(name, ""));
    };
    // Each one is stronger than those before it.
    put(".dockercfg", r#"{"h":{"username":"legacy"}}"#);
    expect(&environment, "legacy").await;
    put(".config/containers/auth.json", &user("user"));
    expect(&environment, "user").await;
    put("run/containers/auth.json", &user("session"));
    expect(&environment, "session").await;
    put(".docker/config.json", &user("docker"));
    expect(&environment, "docker").await;
    put("elsewhere/config.json", &user("elsewhere"));
    environment.docker_config = Some(home.path().join("elsewhere"));
    expect(&environment, "elsewhere").await;
    environment.registry_auth_file = Some(put("a.json", &user("named")));
    expect(&environment, "named").await;
    environment.docker_auth_config = Some(user("variable").into());
    expect(&environment, "variable").await;
    // A file that a variable names must be there; a directory of docker's need not.
    environment.docker_config = Some(home.path().join("nowhere"));
    assert!(Keychain::from_environment(&environment, Presence::Required).is_ok());
    environment.registry_auth_file = Some(home.path().join("nowhere"));
    let error = Keychain::from_environment(&environment, Presence::Required).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    environment.docker_auth_config = Some("{".into());
    let error = Keychain::from_environment(&environment, Presence::Required).unwrap_err();
    assert!(error.to_string().contains("$DOCKER_AUTH_CONFIG"), "{error}");
}

/// A helper of a shell script, by its path; the caller keeps the directory.
fn script(directory: &Path, name: &str, body: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Asks a script that was just written: while another test starts a process, that one may still
/// hold it open for writing.
async fn ask(program: &str, patience: Duration) -> Result<Option<Login>, helper::Failure> {
    loop {
        let helper = Helper {
            name: "helper",
            program,
            server: "h:1",
            patience,
        };
        match helper.get().await {
            Err(helper::Failure::Error(CredentialsError::HelperStart { source, .. }))
                if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
            outcome => return outcome.map(|kept| kept.login),
        }
    }
}

/// D2.5: the protocol, asked by its path so that no test changes PATH.
#[tokio::test]
async fn helpers() {
    let directory = tempfile::tempdir().unwrap();
    let run = async |body: &str| {
        let program = script(directory.path(), "helper", body);
        ask(&program, Duration::from_secs(20)).await
    };
    let answer =
        run(r#"read s; printf '{"ServerURL":"%s","Username":"%s","Secret":"x"}' "$s" "$1-$s""#);
    assert_eq!(answer.await.unwrap(), Some(basic("get-h:1", "x")));
    let answer = run(r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"x"}'"#);
    let token = Login::IdentityToken(Secret::new("x"));
    assert_eq!(answer.await.unwrap(), Some(token));
    let answer = run("echo credentials not found in native keychain; exit 1").await;
    assert_eq!(answer.unwrap(), None);
    for (body, parts) in [
        (
            "echo locked; printf 'open \\033[31mit\\n' >&2; exit 1",
            &["locked: open [31mit", "h:1"][..],
        ),
        ("exit 3", &["no reason"]),
        ("echo 'secret-and-broken'", &["invalid answer"]),
    ] {
        let Err(helper::Failure::Error(error)) = run(body).await else {
            panic!("{body}");
        };
        let shown = format!("{error} {error:?}");
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        assert!(!shown.contains("secret-and-broken"), "{shown}");
    }
}

#[tokio::test]
async fn a_helper_that_hangs_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(directory.path(), "slow", "echo waiting >&2; exec sleep 600");
    let patience = Duration::from_secs(1);
    let outcome = ask(&program, patience).await;
    let Err(helper::Failure::Error(error)) = outcome else {
        panic!("{outcome:?}");
    };
    let shown = error.to_string();
    assert!(shown.contains("in 1 seconds: waiting"), "{shown}");
}

/// D2.4: the registry's helper, else the store, else the file's own entries.
#[tokio::test]
async fn a_helper_that_is_not_installed() {
    let config = br#"{"auths":{"h":{"auth":"dTpw"}},"credsStore":"kiln-test-none",
        "credHelpers":{"docker.io":"kiln-test-hub","plain":"","r/ns":"kiln-test-scope"}}"#;
    let keychain = Keychain::from_docker_config(config).unwrap();
    assert_eq!(keychain.login("h", "r").await.unwrap(), basic("u", "p"));
    assert_eq!(
        keychain.login("plain", "r").await.unwrap(),
        Login::Anonymous
    );
    for (registry, repository, helper) in [
        ("other", "r", "docker-credential-kiln-test-none"),
        ("docker.io", "library/x", "docker-credential-kiln-test-hub"),
        ("r", "ns/x", "docker-credential-kiln-test-scope"),
    ] {
        let error = keychain.login(registry, repository).await.unwrap_err();
        assert!(error.to_string().contains(helper), "{error}");
    }
    let file = &keychain.files[0];
    let server = |registry, repository| file.helper(registry, repository).unwrap().1;
    assert_eq!(server("docker.io", "x"), "https://index.docker.io/v1/");
    assert_eq!(server("other:1", "x"), "other:1");
    assert_eq!(server("r", "ns/x"), "r/ns");
}
