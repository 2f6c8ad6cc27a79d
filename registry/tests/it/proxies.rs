//! Proxies on the way to a registry (D4.4).

use kiln_registry::client::{Client, ClientOptions};
use kiln_registry::credentials::Keychain;
use kiln_registry::reference::Reference;
use kiln_registry::settings::{Proxies, Settings};
use kiln_registry::spec::media_type::OCI_MANIFEST;

use crate::env::{Image, bytes, chain, linux, options, read, reference};
use crate::proxy::Proxy;
use crate::server::{Fault, Reply, Server};

/// Settings as these variables make them.
pub fn with(variables: &[(&str, &str)], insecure: &[&str]) -> Settings {
    let proxies = Proxies::read(|name| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    });
    Settings {
        proxies: proxies.unwrap(),
        insecure: insecure.iter().map(|name| (*name).to_owned()).collect(),
        ..Settings::default()
    }
}

/// A client with settings as these variables make them.
fn client(variables: &[(&str, &str)], insecure: &[&str]) -> Client {
    Client::new(ClientOptions {
        settings: with(variables, insecure),
        ..options()
    })
}

/// Pulls an image's manifest and first layer.
async fn pull(client: &Client, name: &Reference, image: &Image) {
    client.resolve(name, &linux("amd64")).await.unwrap();
    let layer = &image.manifest.value.layers[0];
    read(&client.repository(name), layer, 0).await.unwrap();
}

async fn server() -> (Server, Image) {
    let server = Server::start().await;
    let image = Image::new(&[bytes(5000, 1)]);
    for bytes in image.blobs.values() {
        server.add_blob(bytes);
    }
    server.add_manifest("a", "1", OCI_MANIFEST, &image.manifest.bytes);
    (server, image)
}

#[tokio::test]
async fn d4_4_plain_http_goes_through_an_http_proxy() {
    let ((server, image), proxy) = (server().await, Proxy::http().await);
    proxy.name("r.example:80", &server.address);
    let address = format!("http://user:s3cret@{}", proxy.address);
    let client = client(&[("HTTP_PROXY", &address)], &["r.example"]);
    pull(&client, &reference("r.example", "a:1"), &image).await;
    let log = proxy.log();
    // https is asked first, which has no proxy here and no such name.
    assert!(
        log.iter()
            .all(|line| line == "[Basic dXNlcjpzM2NyZXQ=] GET r.example:80"
                || line == "[Basic dXNlcjpzM2NyZXQ=] HEAD r.example:80"),
        "{log:?}"
    );
    assert!(!log.is_empty());
    assert!(
        server
            .log()
            .iter()
            .all(|asked| asked.header("proxy-authorization").is_none())
    );
}

#[tokio::test]
async fn d4_4_a_socks_proxy_looks_names_up() {
    let ((server, image), proxy) = (server().await, Proxy::socks().await);
    proxy.name("r.example:80", &server.address);
    let address = format!("socks5://user:s3cret@{}", proxy.address);
    let client = client(&[("all_proxy", &address)], &["r.example"]);
    pull(&client, &reference("r.example", "a:1"), &image).await;
    let log = proxy.log();
    assert!(
        log.contains(&"[user:s3cret] SOCKS r.example:443".to_owned()),
        "{log:?}"
    );
    assert!(
        log.contains(&"[user:s3cret] SOCKS r.example:80".to_owned()),
        "{log:?}"
    );
}

#[tokio::test]
async fn d4_4_loopback_and_exceptions_are_asked_directly() {
    let ((server, _), proxy) = (server().await, Proxy::http().await);
    let variables = [
        ("ALL_PROXY", proxy.address.as_str()),
        ("NO_PROXY", "0.0.0.0/8"),
    ];
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let plain = format!("0.0.0.0:{port}");
    let client = client(&variables, &[&plain]);
    for address in [server.address.as_str(), plain.as_str()] {
        let name = reference(address, "a:1");
        client.resolve(&name, &linux("amd64")).await.unwrap();
    }
    assert_eq!(proxy.log(), Vec::<String>::new());
}

#[tokio::test]
async fn d4_4_a_proxy_that_fails_is_an_error_without_its_password() {
    let proxy = Proxy::http().await;
    let address = format!("http://user:s3cret@{}", proxy.address);
    let client = Client::new(ClientOptions {
        settings: with(&[("HTTPS_PROXY", &address)], &[]),
        retries: 0,
        ..options()
    });
    let name = reference("unknown.example", "a:1");
    let error = client.resolve(&name, &linux("amd64")).await.unwrap_err();
    let shown = format!("{} {error:?} {client:?}", chain(&error));
    assert!(
        !shown.contains("s3cret") && shown.contains("unknown.example"),
        "{shown}"
    );
    assert_eq!(
        proxy.log(),
        ["[Basic dXNlcjpzM2NyZXQ=] CONNECT unknown.example:443"]
    );
}

#[tokio::test]
async fn d4_5_headers_of_the_config_reach_the_registry_and_nobody_else() {
    let ((server, image), storage) = (server().await, Server::start().await);
    let layer = &image.manifest.value.layers[0];
    storage.add_blob(&image.blobs[&layer.digest]);
    let target = format!("http://{}/v2/x/blobs/{}", storage.address, layer.digest);
    server.fault(
        "GET",
        "/blobs/",
        Fault::Say(Reply::new(307).with("location", target)),
    );
    let config = br#"{"HttpHeaders":{"X-Meta-Job":"s3cret","User-Agent":"evil","Host":"evil"}}"#;
    let client = Client::new(ClientOptions {
        keychain: Keychain::from_docker_config(config).unwrap(),
        user_agent: "kiln/test".to_owned(),
        ..options()
    });
    let name = reference(&server.address, "a:1");
    pull(&client, &name, &image).await;
    for asked in server.log() {
        assert_eq!(asked.header("x-meta-job"), Some("s3cret"), "{asked:?}");
        assert_eq!(asked.header("user-agent"), Some("kiln/test"));
        assert_eq!(asked.header("host"), Some(server.address.as_str()));
    }
    assert_eq!(storage.log().len(), 1);
    assert_eq!(storage.log()[0].header("x-meta-job"), None);
    assert_eq!(storage.log()[0].header("user-agent"), Some("kiln/test"));
}
