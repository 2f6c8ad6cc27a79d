use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_registry::client::{Client, ClientError, ClientOptions, Notice, Observer};
use kiln_registry::spec::media_type::OCI_MANIFEST;

use crate::env::{Image, client, linux, options, reference};
use crate::server::{Fault, Reply, Server, error};

async fn with_image() -> Server {
    let server = Server::start().await;
    server.add_manifest("a", "1", OCI_MANIFEST, &Image::new(&[]).manifest.bytes);
    server
}

#[tokio::test]
async fn d6_4_transient_answers_are_tried_again() {
    let server = with_image().await;
    for status in [503, 408, 500] {
        server.fault("GET", "/manifests/", Fault::Say(Reply::new(status)));
    }
    server.fault("HEAD", "/manifests/", Fault::Lose);
    let name = reference(&server.address, "a:1");
    client().resolve(&name, &linux("amd64")).await.unwrap();
    assert_eq!(server.count("GET", "/manifests/"), 4);
    assert_eq!(server.count("HEAD", "/manifests/"), 2);
}

#[tokio::test]
async fn d6_4_but_not_for_ever() {
    let server = with_image().await;
    server.custom(|_| Some(Reply::new(503).body("down for maintenance\n")));
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert_eq!(error.status(), Some(503));
    assert!(
        error.to_string().ends_with("503: down for maintenance"),
        "{error}"
    );
    assert_eq!(server.log().len(), 4);
}

#[tokio::test]
async fn d6_3_retry_after_is_waited_for() {
    let server = with_image().await;
    let busy = error(429, "TOOMANYREQUESTS").with("retry-after", 1);
    server.fault("HEAD", "/manifests/", Fault::Say(busy));
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = notices.clone();
    let client = Client::new(ClientOptions {
        observer: Observer::new(move |notice| heard.lock().unwrap().push(notice.clone())),
        ..options()
    });
    let started = Instant::now();
    let name = reference(&server.address, "a:1");
    client.resolve(&name, &linux("amd64")).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    let notices = notices.lock().unwrap();
    assert!(
        matches!(&notices[..], [Notice::Retry { wait, .. }] if *wait >= Duration::from_secs(1)),
        "{notices:?}"
    );
}

#[tokio::test]
async fn d6_3_a_wait_beyond_all_patience_is_the_error() {
    let server = with_image().await;
    server.custom(|asked| {
        let busy = error(429, "TOOMANYREQUESTS").with("retry-after", 86_400);
        (asked.path != "/v2/").then_some(busy)
    });
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(429), None));
    assert!(error.hint().unwrap().contains("limits how much"));
    assert_eq!(server.count("HEAD", ""), 1);
}

#[tokio::test]
async fn a_registry_that_says_nothing_is_not_waited_for() {
    let server = with_image().await;
    for _ in 0..4 {
        server.fault("GET", "/manifests/", Fault::Hang(0));
    }
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ClientError::Stalled { .. }), "{error:?}");
}

#[tokio::test]
async fn redirects_end() {
    let server = with_image().await;
    let target = format!("http://{}/v2/a/manifests/1", server.address);
    server.custom(move |asked| {
        (asked.path != "/v2/").then(|| Reply::new(302).with("location", &target))
    });
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn d6_2_warnings_are_collected_once() {
    let server = with_image().await;
    for method in ["HEAD", "GET"] {
        server.fault(
            method,
            "/manifests/",
            Fault::Change(|reply| {
                let warning = r#"299 - "this registry \"old\" closes in May""#.to_owned();
                reply.headers.push(("warning".to_owned(), warning));
            }),
        );
    }
    let client = client();
    let name = reference(&server.address, "a:1");
    client.resolve(&name, &linux("amd64")).await.unwrap();
    assert_eq!(client.warnings(), [r#"this registry "old" closes in May"#]);
}

#[tokio::test]
async fn an_error_page_is_not_read_without_end() {
    let server = with_image().await;
    server.fault("HEAD", "/manifests/", Fault::Say(Reply::new(404)));
    server.fault(
        "GET",
        "/manifests/",
        Fault::Say(Reply::new(404).body(vec![b'x'; 10 << 20])),
    );
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(error.to_string().len() < 1000);
}
