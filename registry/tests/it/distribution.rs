//! The same against the independent registry of Debian's `docker-registry`.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_registry::blob::{BlobSink as _, Put};
use kiln_registry::client::{Client, ClientOptions};
use kiln_registry::spec::Descriptor;
use kiln_registry::spec::media_type::OCI_INDEX;
use kiln_registry::transfer;
use tempfile::TempDir;

use crate::env::{
    Image, bytes, client, client_as, insecure, linux, options, read, reference, silent,
};

pub struct Registry {
    process: Child,
    pub address: String,
    pub folder: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Whether the programs are here; in CI they must be.
#[expect(clippy::print_stderr, reason = "a test that is left out must say so")]
pub fn present(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs
        .iter()
        .filter(|program| {
            let run = Command::new(program)
                .arg("--help")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            run.is_err()
        })
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: these programs are not installed: {missing:?}");
        assert!(
            std::env::var_os("CI").is_none(),
            "{missing:?} must be installed in CI"
        );
    }
    missing.is_empty()
}

/// An address that is free now. Another process may take it before it is used; that fails loudly.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

impl Registry {
    /// Starts a registry with some more lines of configuration, which end in its `http` section.
    pub fn start(auth: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_at(folder, free_address(), auth)
    }

    pub fn start_at(folder: TempDir, address: String, auth: &str) -> Self {
        let root = folder.path().display();
        let auth = auth.replace("FOLDER", &root.to_string());
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\nhttp:\n  addr: {address}\n{auth}"
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        if auth.contains("htpasswd") {
            let made = Command::new("htpasswd")
                .args(["-nbB", "kiln", "pa:ss word"])
                .output()
                .unwrap();
            std::fs::write(folder.path().join("htpasswd"), made.stdout).unwrap();
        }
        // Not a pipe, which would be full one day with nobody reading it.
        let log = folder.path().join("log");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while std::net::TcpStream::connect(&address).is_err() {
            if started.elapsed() > Duration::from_secs(20) {
                process.kill().unwrap();
                let text = std::fs::read_to_string(&log).unwrap();
                panic!("docker-registry does not start: {text}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self {
            process,
            address,
            folder,
        }
    }
}

/// Pushes, pulls and mounts with a registry that is empty.
pub async fn round_trip(address: &str, client: &Client) {
    let name = reference(address, "team/app:1");
    let image = Image::new(&[bytes(5_000_000, 1), bytes(100, 2), Vec::new()]);
    let repository = client.repository(&name);
    let pushed = transfer::copy(
        &image.manifest,
        &image.descriptor,
        &image,
        &repository,
        Some("1"),
        3,
        &silent,
    );
    let pushed = pushed.await.unwrap();
    assert!(
        pushed.blobs.iter().all(|(_, put)| *put == Put::Sent),
        "{pushed:?}"
    );

    let index = Image::index(&[("amd64", &image)]);
    let descriptor = Descriptor::new(OCI_INDEX, index.digest, index.bytes.len() as u64);
    repository
        .put_manifest(&descriptor, &index.bytes, Some("all"))
        .await
        .unwrap();

    let name = reference(address, "team/app:all");
    let found = client.resolve(&name, &linux("amd64")).await.unwrap();
    assert_eq!(found.manifest.bytes, image.manifest.bytes);
    assert_eq!(found.digest(), index.digest);
    client.config(&found).await.unwrap();
    for layer in &found.manifest.value.layers {
        assert_eq!(
            read(&repository, layer, 0).await.unwrap(),
            image.blobs[&layer.digest]
        );
    }
    let large = &found.manifest.value.layers[0];
    assert_eq!(
        read(&repository, large, 4_999_990).await.unwrap(),
        image.blobs[&large.digest][4_999_990..]
    );

    // A neighbour gets the blobs by mounts alone.
    let neighbour = client.repository(&reference(address, "team/other"));
    let copied = transfer::copy(
        &image.manifest,
        &image.descriptor,
        &image,
        &neighbour,
        Some("1"),
        3,
        &silent,
    );
    let copied = copied.await.unwrap();
    let mounted = |put: &Put| *put == Put::Mounted("team/app".to_owned());
    assert!(
        copied.blobs.iter().all(|(_, put)| mounted(put)),
        "{copied:?}"
    );

    let missing = reference(address, "team/app:none");
    let error = client.resolve(&missing, &linux("amd64")).await.unwrap_err();
    assert_eq!(error.code(), Some("MANIFEST_UNKNOWN"), "{error}");
}

#[tokio::test]
async fn push_and_pull_without_credentials() {
    if present(&["docker-registry"]) {
        round_trip(&Registry::start("").address, &client()).await;
    }
}

#[tokio::test]
async fn localhost_by_name() {
    if present(&["docker-registry"]) {
        let mut registry = Registry::start("");
        registry.address = registry.address.replace("127.0.0.1", "localhost");
        round_trip(&registry.address, &client()).await;
    }
}

#[tokio::test]
async fn push_and_pull_with_a_password() {
    if !present(&["docker-registry", "htpasswd"]) {
        return;
    }
    let registry =
        Registry::start("auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/htpasswd\n");
    round_trip(
        &registry.address,
        &client_as(&registry.address, "kiln", "pa:ss word"),
    )
    .await;
    let name = reference(&registry.address, "team/app:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert_eq!(error.status(), Some(401));
    let wrong = client_as(&registry.address, "kiln", "wrong");
    assert_eq!(
        wrong
            .check_login(&registry.address)
            .await
            .unwrap_err()
            .status(),
        Some(401)
    );
}

/// A registry that speaks https with a certificate for 0.0.0.0, which is not loopback by name and
/// leads to this machine nevertheless.
fn with_tls() -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=kiln test",
            "-keyout",
            "key.pem",
        ])
        .args(["-addext", "subjectAltName=IP:0.0.0.0"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-out", "cert.pem"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let address = free_address().replace("127.0.0.1", "0.0.0.0");
    let tls = "  tls:\n    certificate: FOLDER/cert.pem\n    key: FOLDER/key.pem\n";
    Registry::start_at(folder, address, tls)
}

#[tokio::test]
async fn d4_1_https_with_an_authority_that_must_be_known() {
    if !present(&["docker-registry", "openssl"]) {
        return;
    }
    let registry = with_tls();
    let name = reference(&registry.address, "team/app:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(
        error.hint().unwrap().contains("authority is not known"),
        "{error:?}"
    );

    let trusting = Client::new(ClientOptions {
        ca_files: vec![registry.folder.path().join("cert.pem")],
        ..options()
    });
    round_trip(&registry.address, &trusting).await;
    let careless = Client::new(ClientOptions {
        settings: insecure(&registry.address),
        ..options()
    });
    let name = reference(&registry.address, "team/app:1");
    careless.resolve(&name, &linux("amd64")).await.unwrap();
    // Loopback is asked by https first, too.
    let name = reference(
        &registry.address.replace("0.0.0.0", "127.0.0.1"),
        "team/app:1",
    );
    client().resolve(&name, &linux("amd64")).await.unwrap();
}

#[tokio::test]
async fn d4_2_plain_http_where_https_is_wanted() {
    if !present(&["docker-registry"]) {
        return;
    }
    let mut registry = Registry::start("");
    registry.address = registry.address.replace("127.0.0.1", "0.0.0.0");
    let name = reference(&registry.address, "team/app:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(
        error
            .hint()
            .unwrap()
            .contains("server gave HTTP response to HTTPS client"),
        "{error:?}"
    );
    let allowed = Client::new(ClientOptions {
        settings: insecure(&registry.address),
        ..options()
    });
    round_trip(&registry.address, &allowed).await;
}
