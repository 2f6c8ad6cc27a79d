use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_registry::client::{Client, ClientError, ClientOptions};
use kiln_registry::credentials::{Login, Secret};
use kiln_registry::spec::media_type::OCI_MANIFEST;
use kiln_registry::transfer;

use crate::env::{Image, bytes, client, client_as, linux, options, read, reference, silent};
use crate::server::{Asked, Fault, Reply, Server, error};

fn with_image(server: &Server) -> Image {
    let layers: Vec<Vec<u8>> = (0..8).map(|seed| bytes(2000, seed)).collect();
    let image = Image::new(&layers);
    for bytes in image.blobs.values() {
        server.add_blob(bytes);
    }
    server.add_manifest("a", "1", OCI_MANIFEST, &image.manifest.bytes);
    image
}

/// Makes a server want tokens `token-1`, `token-2`, ... of which only the newest holds.
fn want_tokens(server: &Server, scope: &'static str) -> Arc<AtomicUsize> {
    let given = Arc::new(AtomicUsize::new(0));
    let (now, address) = (given.clone(), server.address.clone());
    server.custom(move |asked: &Asked| {
        if asked.path == "/token" {
            let number = now.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(
                Reply::new(200).body(format!(r#"{{"token":"token-{number}","expires_in":300}}"#)),
            );
        }
        let held = format!("Bearer token-{}", now.load(Ordering::SeqCst));
        if asked.header("authorization") == Some(&held) {
            return None;
        }
        let challenge = format!(r#"Bearer realm="http://{address}/token",service="test"{scope}"#);
        Some(
            error(401, "UNAUTHORIZED")
                .with("www-authenticate", "Negotiate")
                .with("www-authenticate", challenge),
        )
    });
    given
}

#[tokio::test]
async fn d3_1_basic_goes_with_every_request_but_the_first() {
    let server = Server::start().await;
    with_image(&server);
    server.custom(|asked| {
        let held = asked.header("authorization") == Some("Basic dXNlcjpwYTpzcw==");
        (!held).then(|| error(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=x"))
    });
    let name = reference(&server.address, "a:1");
    let client = client_as(&server.address, "user", "pa:ss");
    client.resolve(&name, &linux("amd64")).await.unwrap();
    client.check_login(&server.address).await.unwrap();
    let wrong = client_as(&server.address, "user", "no");
    let error = wrong.resolve(&name, &linux("amd64")).await.unwrap_err();
    assert_eq!(error.status(), Some(401));
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("kiln login {}", server.address)),
        "{:?}",
        error.hint()
    );
    assert!(wrong.check_login(&server.address).await.is_err());
}

#[tokio::test]
async fn d3_2_one_token_is_fetched_however_many_want_it() {
    let server = Server::start().await;
    let image = with_image(&server);
    want_tokens(&server, "");
    let repository = client().repository(&reference(&server.address, "a"));
    let layers = &image.manifest.value.layers;
    let reads = layers.iter().map(|layer| read(&repository, layer, 0));
    let done = futures_util::future::join_all(reads).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    assert_eq!(server.count("GET", "/token"), 1);
    assert_eq!(
        server
            .log()
            .iter()
            .filter(|asked| asked.path == "/v2/")
            .count(),
        1
    );
    let asked = server
        .log()
        .into_iter()
        .find(|asked| asked.path == "/token")
        .unwrap();
    assert_eq!(asked.query, "service=test&scope=repository%3Aa%3Apull");
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn d3_3_a_wider_scope_in_the_challenge_is_asked_for() {
    let server = Server::start().await;
    let image = with_image(&server);
    let given = want_tokens(
        &server,
        r#",scope="repository:a:pull repository:base:pull""#,
    );
    let repository = client().repository(&reference(&server.address, "a"));
    read(&repository, &image.manifest.value.layers[0], 0)
        .await
        .unwrap();
    // The token is withdrawn: the next one is wanted with the challenge's scope.
    given.fetch_add(1, Ordering::SeqCst);
    read(&repository, &image.manifest.value.layers[1], 0)
        .await
        .unwrap();
    let last = server
        .log()
        .into_iter()
        .rfind(|asked| asked.path == "/token")
        .unwrap();
    assert_eq!(
        last.query,
        "service=test&scope=repository%3Aa%3Apull&scope=repository%3Abase%3Apull"
    );
}

#[tokio::test]
async fn d3_2_a_token_that_ends_in_mid_upload_is_renewed() {
    let server = Server::start().await;
    let given = want_tokens(&server, "");
    let image = Image::new(&[bytes(100_000, 5)]);
    let repository =
        client_as(&server.address, "u", "p").repository(&reference(&server.address, "b"));
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="test""#,
        server.address
    );
    server.fault(
        "PUT",
        "/blobs/",
        Fault::Say(error(401, "UNAUTHORIZED").with("www-authenticate", challenge)),
    );
    transfer::copy(
        &image.manifest,
        &image.descriptor,
        &image,
        &repository,
        Some("1"),
        2,
        &silent,
    )
    .await
    .unwrap();
    assert_eq!(given.load(Ordering::SeqCst), 2);
    let asked = server
        .log()
        .into_iter()
        .find(|asked| asked.path == "/token")
        .unwrap();
    assert_eq!(asked.header("authorization"), Some("Basic dTpw"));
    assert_eq!(
        asked.query,
        "service=test&scope=repository%3Ab%3Apull%2Cpush"
    );
}

fn with_identity(server: &Server) -> Client {
    let login = Login::IdentityToken(Secret::new("s3cret&".to_owned()));
    Client::new(ClientOptions {
        logins: BTreeMap::from([(server.address.clone(), login)]),
        ..options()
    })
}

#[tokio::test]
async fn d3_2_an_identity_token_is_posted() {
    let server = Server::start().await;
    with_image(&server);
    want_tokens(&server, "");
    let name = reference(&server.address, "a:1");
    with_identity(&server)
        .resolve(&name, &linux("amd64"))
        .await
        .unwrap();
    let asked = server
        .log()
        .into_iter()
        .find(|asked| asked.path == "/token")
        .unwrap();
    assert_eq!(asked.method, "POST");
    assert_eq!(
        String::from_utf8(asked.body).unwrap(),
        "grant_type=refresh_token&service=test&client_id=kiln&scope=repository%3Aa%3Apull&refresh_token=s3cret%26"
    );
}

#[tokio::test]
async fn d3_5_a_service_without_post_is_asked_by_get() {
    let server = Server::start().await;
    with_image(&server);
    want_tokens(&server, "");
    server.fault("POST", "/token", Fault::Say(Reply::new(405)));
    let name = reference(&server.address, "a:1");
    with_identity(&server)
        .resolve(&name, &linux("amd64"))
        .await
        .unwrap();
    assert_eq!(server.count("GET", "/token"), 1);
}

#[tokio::test]
async fn d3_6_a_refused_token_is_the_error_and_holds_no_secret() {
    let server = Server::start().await;
    want_tokens(&server, "");
    let body = r#"{"details":"incorrect username or password"}"#;
    server.fault("GET", "/token", Fault::Say(Reply::new(401).body(body)));
    let name = reference(&server.address, "a:1");
    let client = client_as(&server.address, "user", "hunter2");
    let error = client.resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ClientError::Token { .. }), "{error:?}");
    assert!(crate::env::chain(&error).contains("incorrect username or password"));
    assert!(!format!("{error:?} {client:?}").contains("hunter2"));
    let hint = error.hint().unwrap();
    assert!(
        hint.contains(&format!("kiln login {}", server.address)),
        "{hint}"
    );
}

#[tokio::test]
async fn d3_4_credentials_are_not_sent_to_a_plain_foreign_realm() {
    let server = Server::start().await;
    server.custom(|_| {
        let challenge = r#"Bearer realm="http://evil.example/token""#;
        Some(error(401, "UNAUTHORIZED").with("www-authenticate", challenge))
    });
    let name = reference(&server.address, "a:1");
    let client = client_as(&server.address, "user", "hunter2");
    let error = client.resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(
        matches!(error, ClientError::UnsafeRealm { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn d3_4_authorization_never_crosses_hosts() {
    let (server, storage) = (Server::start().await, Server::start().await);
    let image = with_image(&server);
    let layer = &image.manifest.value.layers[0];
    storage.add_blob(&image.blobs[&layer.digest]);
    want_tokens(&server, "");
    let target = format!(
        "http://{}/v2/x/blobs/{}?signature=1",
        storage.address, layer.digest
    );
    server.fault(
        "GET",
        "/blobs/",
        Fault::Say(Reply::new(307).with("location", target)),
    );
    let repository =
        client_as(&server.address, "u", "p").repository(&reference(&server.address, "a"));
    assert_eq!(
        read(&repository, layer, 0).await.unwrap(),
        image.blobs[&layer.digest]
    );
    let asked = storage.log();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
    assert_eq!(asked[0].query, "signature=1");
}

#[tokio::test]
async fn d3_3_deleting_is_asked_for_in_the_token() {
    let server = Server::start().await;
    let image = with_image(&server);
    want_tokens(&server, "");
    let name = reference(&server.address, "a");
    // The server takes a deletion for reading; what matters is what it was asked.
    let client = client();
    let deleted = client.delete_manifest(&name, image.manifest.digest);
    deleted.await.unwrap();
    let last = server
        .log()
        .into_iter()
        .rfind(|asked| asked.path == "/token")
        .unwrap();
    assert_eq!(
        last.query,
        "service=test&scope=repository%3Aa%3Adelete%2Cpull%2Cpush"
    );
}
