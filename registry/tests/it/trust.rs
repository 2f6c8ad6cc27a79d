//! Who trusts whom, with Debian's `docker-registry`: certificates on both sides, tokens of a service
//! of the test's own, and a registry that is another's mirror (D3, D4).

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kiln_registry::client::{Client, ClientError, ClientOptions, Mirror, Notice, Observer};
use kiln_registry::settings::{Rule, Settings, SettingsError};
use serde_json::json;

use crate::distribution::{Registry, free_address, present, round_trip};
use crate::env::{chain, client, client_as, linux, options, reference};
use crate::proxies;
use crate::proxy::Proxy;
use crate::server::{Asked, Reply, Server};

/// Runs openssl in a folder.
fn openssl(folder: &Path, arguments: &str) {
    let made = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{arguments}: {}",
        String::from_utf8_lossy(&made.stderr)
    );
}

const CURVE: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";

/// An authority, `NAME.pem` and `NAME.key`.
fn authority(folder: &Path, name: &str) {
    openssl(
        folder,
        &format!("req -x509 {CURVE} -subj /CN={name} -keyout {name}.key -out {name}.pem"),
    );
}

/// A certificate that an authority has signed.
fn certificate(folder: &Path, name: &str, by: &str, extension: &str) {
    openssl(
        folder,
        &format!("req -new {CURVE} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
    );
    std::fs::write(folder.join("extensions"), extension).unwrap();
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ),
    );
}

/// A registry that wants certificates of its clients, at an address that is no loopback one.
fn mutual() -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    authority(path, "ca");
    authority(path, "stranger");
    let server = "subjectAltName=IP:0.0.0.0,DNS:r.example\nextendedKeyUsage=serverAuth\n";
    certificate(path, "server", "ca", server);
    certificate(path, "client", "ca", "extendedKeyUsage=clientAuth\n");
    certificate(path, "unknown", "stranger", "extendedKeyUsage=clientAuth\n");
    let tls = "  tls:\n    certificate: FOLDER/server.pem\n    key: FOLDER/server.key\n    clientcas:\n      - FOLDER/ca.pem\n";
    let address = free_address().replace("127.0.0.1", "0.0.0.0");
    Registry::start_at(folder, address, tls)
}

/// Settings with a folder of certificates for a host: files of the registry's folder under new names.
fn certs(registry: &Registry, host: &str, files: &[(&str, &str)]) -> Settings {
    let folder = registry.folder.path().join("certs.d");
    let own = folder.join(host);
    drop(std::fs::remove_dir_all(&own));
    std::fs::create_dir_all(&own).unwrap();
    for (from, to) in files {
        std::fs::copy(registry.folder.path().join(from), own.join(to)).unwrap();
    }
    Settings {
        certificate_folders: vec![folder],
        ..Settings::default()
    }
}

fn client_with(settings: Settings) -> Client {
    Client::new(ClientOptions {
        settings,
        ..options()
    })
}

const CA: (&str, &str) = ("ca.pem", "ca.crt");
const PAIR: [(&str, &str); 2] = [("client.pem", "me.cert"), ("client.key", "me.key")];

#[tokio::test]
async fn d4_1_certificates_on_both_sides() {
    if !present(&["docker-registry", "openssl"]) {
        return;
    }
    let registry = mutual();
    let host = registry.address.clone();
    let ask = async |settings: Settings| {
        let name = reference(&host, "team/app:all");
        let asked = client_with(settings).resolve(&name, &linux("amd64")).await;
        asked.map(drop)
    };
    let unknown = ask(Settings::default()).await.unwrap_err();
    let hint = unknown.hint().unwrap();
    assert!(
        hint.contains(&format!("/etc/docker/certs.d/{host}/ca.crt")),
        "{hint}"
    );
    let unshown = ask(certs(&registry, &host, &[CA])).await.unwrap_err();
    let hint = unshown.hint().unwrap_or_else(|| chain(&unshown));
    assert!(hint.contains("client.cert and client.key"), "{hint}");
    let stranger = [CA, ("unknown.pem", "me.cert"), ("unknown.key", "me.key")];
    let stranger = ask(certs(&registry, &host, &stranger)).await.unwrap_err();
    assert!(
        stranger.hint().unwrap_or_default().contains("client.cert"),
        "{stranger:?}"
    );
    let half = ask(certs(&registry, &host, &[CA, PAIR[0]])).await;
    let partner = matches!(
        half,
        Err(ClientError::Settings(SettingsError::Partner { .. }))
    );
    assert!(partner, "{half:?}");
    let mixed = [CA, PAIR[0], ("unknown.key", "me.key")];
    let mixed = ask(certs(&registry, &host, &mixed)).await;
    let refused = matches!(mixed, Err(ClientError::ClientCertificate { .. }));
    assert!(refused, "{mixed:?}");

    let settings = certs(&registry, &host, &[CA, PAIR[0], PAIR[1]]);
    round_trip(&registry.address, &client_with(settings)).await;
}

/// A certificate that held for a day, long ago.
fn expired_certificate(folder: &Path, name: &str, by: &str) {
    openssl(
        folder,
        &format!("req -new {CURVE} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
    );
    let settings = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\n\
                    policy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n\
                    [e]\nsubjectAltName=IP:0.0.0.0\n";
    for (file, text) in [("ca.cnf", settings), ("index", ""), ("serial", "01\n")] {
        std::fs::write(folder.join(file), text).unwrap();
    }
    openssl(
        folder,
        &format!(
            "ca -batch -config ca.cnf -md sha256 -in {name}.csr -cert {by}.pem -keyfile {by}.key -startdate 20200101000000Z -enddate 20200102000000Z -notext -out {name}.pem"
        ),
    );
}

#[tokio::test]
async fn d6_5_a_certificate_that_has_expired_is_told_with_the_host() {
    if !present(&["docker-registry", "openssl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    authority(folder.path(), "ca");
    expired_certificate(folder.path(), "server", "ca");
    let tls = "  tls:\n    certificate: FOLDER/server.pem\n    key: FOLDER/server.key\n";
    let address = free_address().replace("127.0.0.1", "0.0.0.0");
    let registry = Registry::start_at(folder, address, tls);
    let client = client_with(certs(&registry, &registry.address, &[CA]));
    let name = reference(&registry.address, "a:1");
    let refused = client.resolve(&name, &linux("amd64")).await.unwrap_err();
    let (message, hint) = (chain(&refused), refused.hint().unwrap());
    assert!(message.contains(&registry.address), "{message}");
    assert!(message.contains("expired"), "{message}");
    assert!(hint.contains("check the clock of this machine"), "{hint}");
}

#[tokio::test]
async fn d4_4_https_through_proxies_is_checked_from_end_to_end() {
    if !present(&["docker-registry", "openssl"]) {
        return;
    }
    let registry = mutual();
    let files = [CA, PAIR[0], PAIR[1]];
    for (proxy, scheme) in [
        (Proxy::http().await, "http"),
        (Proxy::socks().await, "socks5"),
    ] {
        let local = registry.address.replace("0.0.0.0", "127.0.0.1");
        proxy.name("r.example:443", &local);
        proxy.name("other.example:443", &local);
        let address = format!("{scheme}://{}", proxy.address);
        let settings = |host: &str| Settings {
            proxies: proxies::with(&[("HTTPS_PROXY", &address)], &[]).proxies,
            ..certs(&registry, host, &files)
        };
        let ask = async |host: &str| {
            let name = reference(host, "a:1");
            let client = client_with(settings(host));
            client.resolve(&name, &linux("amd64")).await.unwrap_err()
        };
        let answer = ask("r.example").await;
        assert_eq!(answer.status(), Some(404), "{answer:?}");
        assert!(proxy.log()[0].ends_with("r.example:443"));
        let answer = ask("other.example").await;
        let hint = answer.hint().unwrap();
        assert!(hint.contains("another host name"), "{hint}");
    }
}

/// A token service: anybody may pull, `user` with `pa:ss` may do all.
struct Tokens {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tokens {
    async fn start(folder: &Path) -> Self {
        authority(folder, "token");
        let key = pem(&folder.join("token.key"));
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key).unwrap();
        let certificate = STANDARD.encode(pem(&folder.join("token.pem")));
        let server = Server::start().await;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        server.custom(move |request: &Asked| {
            log.lock().unwrap().push(request.query.clone());
            Some(token(request, &key, &certificate))
        });
        Self { server, asked }
    }

    /// What makes a registry want these tokens.
    fn config(&self) -> String {
        format!(
            "auth:\n  token:\n    realm: http://{}/token\n    service: kiln test\n    issuer: test\n    rootcertbundle: FOLDER/token.pem\n",
            self.server.address
        )
    }
}

/// The bytes in a PEM file.
fn pem(file: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    STANDARD.decode(lines.collect::<String>()).unwrap()
}

fn token(request: &Asked, key: &EcdsaKeyPair, certificate: &str) -> Reply {
    let known = match request.header("authorization") {
        None => false,
        Some("Basic dXNlcjpwYTpzcw==") => true,
        Some(_) => return Reply::new(401).body(r#"{"details":"wrong password"}"#),
    };
    let scopes = request
        .query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="));
    let access: Vec<_> = scopes
        .filter_map(|scope| {
            let scope = scope
                .replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ",");
            let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
            let actions: Vec<_> = actions
                .split(',')
                .filter(|action| known || *action == "pull")
                .collect();
            Some(json!({"type": "repository", "name": name, "actions": actions}))
        })
        .collect();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [certificate]});
    let claims = json!({"iss": "test", "aud": "kiln test", "sub": "", "jti": format!("{now}"),
        "iat": now, "nbf": now - 60, "exp": now + 600, "access": access});
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&header), encode(&claims));
    let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
    let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature));
    Reply::new(200).body(json!({"token": token, "expires_in": 600}).to_string())
}

#[tokio::test]
async fn d3_2_tokens_that_another_registry_verifies() {
    if !present(&["docker-registry", "openssl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tokens = Tokens::start(folder.path()).await;
    let registry = Registry::start_at(folder, free_address(), &tokens.config());
    let known = client_as(&registry.address, "user", "pa:ss");
    round_trip(&registry.address, &known).await;
    // One for each set of rights, however many requests there were.
    let mut asked = tokens.asked.lock().unwrap().clone();
    let count = asked.len();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), count, "{:?}", tokens.asked);

    let name = reference(&registry.address, "team/app:all");
    client().resolve(&name, &linux("amd64")).await.unwrap();
    let repository = Some("team/app");
    let facts = known.inspect_login(&registry.address, repository).await;
    let facts = facts.unwrap().unwrap();
    assert_eq!(facts.granted.unwrap(), ["repository:team/app:pull,push"]);
    assert!(facts.expires.is_some());
    let facts = client().inspect_login(&registry.address, repository).await;
    let granted = facts.unwrap().unwrap().granted.unwrap();
    assert_eq!(granted, ["repository:team/app:pull"], "a part is no error");

    let wrong = client_as(&registry.address, "user", "hunter2");
    let error = wrong.check_login(&registry.address).await.unwrap_err();
    assert!(chain(&error).contains("wrong password"), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn d4_3_a_mirror_serves_pulls_never_pushes_and_may_fail() {
    if !present(&["docker-registry"]) {
        return;
    }
    let origin = Registry::start("");
    let proxy = format!("proxy:\n  remoteurl: http://{}\n", origin.address);
    let mirror = Registry::start(&proxy);
    let told = Arc::new(Mutex::new(Vec::new()));
    let named = origin.address.clone();
    let with = |mirrors: &[&str]| {
        let told = told.clone();
        let mirrors = mirrors.iter().map(|address| Mirror {
            registry: named.clone(),
            url: format!("http://{address}"),
        });
        Client::new(ClientOptions {
            mirrors: mirrors.collect(),
            observer: Observer::new(move |notice| {
                if let Notice::Mirror { address, reason } = notice {
                    told.lock().unwrap().push(format!("{address}: {reason}"));
                }
            }),
            retries: 0,
            ..options()
        })
    };
    let name = reference(&origin.address, "team/app:all");
    let first = with(&[&mirror.address]);
    // A mirror in proxy mode refuses pushes: they go to the registry itself.
    round_trip(&origin.address, &first).await;
    let passed_over = std::mem::take(&mut *told.lock().unwrap());
    // What is nowhere, the mirror has not either.
    let missing = |line: &String| line.contains("manifests/none`: 404");
    assert!(passed_over.iter().all(missing), "{passed_over:?}");
    let found = first.resolve(&name, &linux("amd64")).await.unwrap();
    first.config(&found).await.unwrap();
    assert!(told.lock().unwrap().is_empty(), "{told:?}");

    let dead = free_address();
    let both = with(&[&dead, &mirror.address]);
    both.resolve(&name, &linux("amd64")).await.unwrap();
    assert!(told.lock().unwrap()[0].starts_with(&format!("http://{dead}/: ")));
    let alone = with(&[&dead]);
    alone.resolve(&name, &linux("amd64")).await.unwrap();

    // What the mirror holds it serves when the registry is gone.
    drop(origin);
    let pinned = format!("{}/team/app@{}", name.registry, found.digest());
    let pinned = pinned.parse().unwrap();
    let again = with(&[&mirror.address]);
    again.resolve(&pinned, &linux("amd64")).await.unwrap();
}

#[tokio::test]
async fn d4_3_registries_conf_leads_elsewhere_or_nowhere() {
    if !present(&["docker-registry"]) {
        return;
    }
    let registry = Registry::start("");
    round_trip(&registry.address, &client()).await;
    let text = format!(
        "[[registry]]\nprefix='moved.example/old'\nlocation='{}/team'\n\
         [[registry]]\nprefix='evil.example'\nblocked=true\n",
        registry.address
    );
    let rules = Rule::parse_all(Path::new("registries.conf"), text.as_bytes());
    let client = client_with(Settings {
        rules: rules.unwrap(),
        ..Settings::default()
    });
    let name = reference("moved.example", "old/app:all");
    let found = client.resolve(&name, &linux("amd64")).await.unwrap();
    client.config(&found).await.unwrap();
    let evil = reference("evil.example", "x:1");
    let error = client.resolve(&evil, &linux("amd64")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "registry `evil.example` is blocked in `registries.conf`"
    );
}
