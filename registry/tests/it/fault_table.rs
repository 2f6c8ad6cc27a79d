//! The fault table: what becomes of a push and a pull for each thing that goes wrong between client
//! and registry, and how many bytes are moved again because of it.
//!
//! Pulls come from Debian's `docker-registry`. That one gives up an upload of which a request broke
//! (it binds the address to an offset that it does not tell); so pushes go to a registry that goes
//! on, as the specification wants it, and to `docker-registry` as well where that is no matter.

use std::time::Duration;

use kiln_registry::client::{Client, ClientOptions, Resolved};
use kiln_registry::transfer;

use crate::distribution::{Registry, present};
use crate::env::{Image, bytes, chain, client_as, linux, options, read, reference, silent};
use crate::fault_proxy::{Fault, Proxy, Reply};
use crate::server::Server;

/// Size of the one layer.
const SIZE: usize = 2_000_000;
const MIB: u64 = 1 << 20;

fn image() -> Image {
    Image::new(&[bytes(SIZE, 3)])
}

/// A client for a case: what does not stall is given all the time that a busy machine needs.
fn client_for(name: &str) -> Client {
    let stall = if STALLS.contains(&name) { 3 } else { 60 };
    Client::new(ClientOptions {
        stall: Duration::from_secs(stall),
        ..options()
    })
}

/// The cases in which nothing moves.
const STALLS: [&str; 3] = ["stall", "stalled head", "byte by byte"];

async fn push_to(client: &Client, address: &str, image: &Image) -> Result<(), String> {
    let repository = client.repository(&reference(address, "a"));
    let (manifest, descriptor) = (&image.manifest, &image.descriptor);
    let copied = transfer::copy(
        manifest,
        descriptor,
        image,
        &repository,
        Some("1"),
        2,
        &silent,
    );
    copied.await.map(drop).map_err(|error| chain(&error))
}

async fn pull_from(client: &Client, address: &str, image: &Image) -> Result<(), String> {
    let name = reference(address, "a:1");
    let found: Result<Resolved, _> = client.resolve(&name, &linux("amd64")).await;
    let found = found.map_err(|error| chain(&error))?;
    assert_eq!(found.manifest.digest, image.manifest.digest);
    let layer = &found.manifest.value.layers[0];
    let content = read(&client.repository(&name), layer, 0).await?;
    assert_eq!(content, image.blobs[&layer.digest]);
    Ok(())
}

/// How a case ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Well, with at most so many bytes of the layer moved twice.
    Again(u64),
    /// With an error that says this, after at most so many bytes of bodies.
    Error(&'static str, u64),
}

type Case = (&'static str, &'static str, &'static str, fn() -> Fault, End);

fn busy(after: &str) -> Fault {
    let envelope = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    Fault::Answer(Reply::new(429).with("retry-after", after).body(envelope))
}

fn gzip(reply: &mut Reply) {
    reply
        .headers
        .push(("content-encoding".to_owned(), "gzip".to_owned()));
    reply.body.truncate(1000);
}

fn login() -> Fault {
    let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
    Fault::Answer(Reply::new(200).with("content-type", "text/html").body(page))
}

const HTPASSWD: &str = "auth:\n  htpasswd:\n    realm: kiln\n    path: FOLDER/htpasswd\n";

const LAYER: &str = "/blobs/";
const MANIFEST: &str = "/manifests/";

/// What goes wrong with a pull: name, method and path of the request, the fault, the end.
const PULLS: &[Case] = &[
    (
        "nothing",
        "GET",
        "/none",
        || Fault::LoseAnswer,
        End::Again(0),
    ),
    (
        "cut at the first byte",
        "GET",
        LAYER,
        || Fault::CutAnswer(0),
        End::Again(0),
    ),
    (
        "cut in the middle",
        "GET",
        LAYER,
        || Fault::CutAnswer(MIB),
        End::Again(0),
    ),
    (
        "cut before the last byte",
        "GET",
        LAYER,
        || Fault::CutAnswer(SIZE as u64 - 1),
        End::Again(0),
    ),
    (
        "stall",
        "GET",
        LAYER,
        || Fault::StallAnswer(MIB),
        End::Again(0),
    ),
    (
        "stalled head",
        "GET",
        MANIFEST,
        || Fault::StallRequest(0),
        End::Again(0),
    ),
    (
        "lost answer",
        "GET",
        MANIFEST,
        || Fault::LoseAnswer,
        End::Again(0),
    ),
    (
        "truncated, and said to be whole",
        "GET",
        LAYER,
        || Fault::Edit(|reply| reply.body.truncate(1000)),
        End::Error("size mismatch", 10_000),
    ),
    ("429, seconds", "GET", LAYER, || busy("1"), End::Again(100)),
    (
        "429, a date",
        "GET",
        LAYER,
        || busy("Wed, 21 Oct 2015 07:28:00 GMT"),
        End::Again(100),
    ),
    (
        "429, for too long",
        "GET",
        LAYER,
        || busy("86400"),
        End::Error("TOOMANYREQUESTS", 10_000),
    ),
    (
        "408",
        "GET",
        LAYER,
        || Fault::Answer(Reply::new(408)),
        End::Again(100),
    ),
    (
        "500",
        "HEAD",
        MANIFEST,
        || Fault::Answer(Reply::new(500)),
        End::Again(100),
    ),
    (
        "503",
        "GET",
        MANIFEST,
        || Fault::Answer(Reply::new(503)),
        End::Again(100),
    ),
    (
        "404",
        "GET",
        LAYER,
        || Fault::Answer(Reply::new(404)),
        End::Error("not found", 10_000),
    ),
    (
        "403",
        "GET",
        LAYER,
        || Fault::Answer(Reply::new(403)),
        End::Error("403", 10_000),
    ),
    (
        "wrong digest",
        "GET",
        LAYER,
        || Fault::Edit(|reply| reply.body[5] ^= 1),
        End::Error("digest mismatch", SIZE as u64 + 10_000),
    ),
    (
        "wrong manifest",
        "GET",
        MANIFEST,
        || Fault::Edit(|reply| reply.body[5] ^= 1),
        End::Error("digest mismatch", 10_000),
    ),
    (
        "wrong length",
        "GET",
        LAYER,
        || Fault::Edit(|reply| reply.length = Some(SIZE as u64 + 7)),
        End::Error("size mismatch", SIZE as u64 + 10_000),
    ),
    (
        "gzip on top",
        "GET",
        LAYER,
        || Fault::Edit(gzip),
        End::Error("encoded as `gzip`", 10_000),
    ),
    (
        "login page for a manifest",
        "GET",
        MANIFEST,
        login,
        End::Error("a web page came", 10_000),
    ),
    (
        "login page for a blob",
        "GET",
        LAYER,
        login,
        End::Error("a web page came", 10_000),
    ),
    (
        "manifest of 100 MiB",
        "GET",
        MANIFEST,
        || Fault::Answer(Reply::new(200).body(vec![b' '; 100 << 20])),
        End::Error("larger than 4194304 bytes", 8 * MIB),
    ),
    (
        "byte by byte",
        "GET",
        LAYER,
        || Fault::Trickle(Duration::from_millis(50)),
        End::Again(1000),
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_4_the_fault_table_of_pulls() {
    if !present(&["docker-registry"]) {
        return;
    }
    let (registry, image) = (Registry::start(""), image());
    push_to(&client_for(""), &registry.address, &image)
        .await
        .unwrap();
    for (name, method, part, fault, end) in PULLS {
        let proxy = Proxy::start(&registry.address);
        proxy.fault(method, part, fault());
        let pulled = pull_from(&client_for(name), &proxy.address, &image).await;
        check(name, *end, &pulled, proxy.bytes(LAYER).1, proxy.bytes("").1);
        assert_eq!(proxy.left(), usize::from(*name == "nothing"), "{name}");
    }
}

fn check(name: &str, end: End, result: &Result<(), String>, layer: u64, all: u64) {
    match (end, result) {
        (End::Again(most), Ok(())) => {
            let again = layer - SIZE as u64;
            assert!(again <= most, "{name}: {again} bytes again");
        }
        (End::Error(words, most), Err(error)) => {
            assert!(error.contains(words), "{name}: {error}");
            assert!(all <= most, "{name}: {all} bytes");
        }
        (end, result) => panic!("{name}: {end:?}, but {result:?}"),
    }
}

const UPLOAD: &str = "/uploads/";

/// What goes wrong with a push. The config of the image is sent, too.
const PUSHES: &[Case] = &[
    (
        "nothing",
        "GET",
        "/none",
        || Fault::LoseAnswer,
        End::Again(0),
    ),
    (
        "cut at the first byte",
        "PUT",
        UPLOAD,
        || Fault::CutRequest(0),
        End::Again(0),
    ),
    (
        "cut in the middle",
        "PUT",
        UPLOAD,
        || Fault::CutRequest(MIB),
        End::Again(0),
    ),
    (
        "cut before the last byte",
        "PUT",
        UPLOAD,
        || Fault::CutRequest(SIZE as u64 - 1),
        End::Again(0),
    ),
    (
        "lost answer",
        "PUT",
        UPLOAD,
        || Fault::LoseAnswer,
        End::Again(0),
    ),
    (
        "lost session",
        "POST",
        UPLOAD,
        || Fault::LoseAnswer,
        End::Again(0),
    ),
    (
        "429 at the start",
        "POST",
        UPLOAD,
        || busy("0"),
        End::Again(0),
    ),
    (
        "429 in the middle",
        "PUT",
        UPLOAD,
        || busy("1"),
        End::Again(SIZE as u64),
    ),
    (
        "500 in the middle",
        "PUT",
        UPLOAD,
        || Fault::Answer(Reply::new(500)),
        End::Again(SIZE as u64),
    ),
    (
        "413",
        "PUT",
        UPLOAD,
        || Fault::Answer(Reply::new(413)),
        End::Again(SIZE as u64),
    ),
    (
        "403",
        "POST",
        UPLOAD,
        || Fault::Answer(Reply::new(403)),
        End::Error("403", 1000),
    ),
    (
        "503 for a manifest",
        "PUT",
        MANIFEST,
        || Fault::Answer(Reply::new(503)),
        End::Again(0),
    ),
    (
        "lost manifest",
        "PUT",
        MANIFEST,
        || Fault::LoseAnswer,
        End::Again(0),
    ),
    (
        "stored as another",
        "PUT",
        MANIFEST,
        other,
        End::Error("the registry stored", 2 * MIB),
    ),
];

fn other() -> Fault {
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    Fault::Answer(Reply::new(201).with("docker-content-digest", digest))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_4_the_fault_table_of_pushes() {
    let image = image();
    let config = image.manifest.value.config.size;
    for (name, method, part, fault, end) in PUSHES {
        let server = Server::start().await;
        let proxy = Proxy::start(&server.address);
        proxy.fault(method, part, fault());
        let pushed = push_to(&client_for(name), &proxy.address, &image).await;
        let (sent, _) = proxy.bytes(UPLOAD);
        check(name, *end, &pushed, sent.saturating_sub(config), sent);
        assert_eq!(proxy.left(), usize::from(*name == "nothing"), "{name}");
        if pushed.is_ok() {
            pull_from(&client_for(name), &server.address, &image)
                .await
                .unwrap();
        }
    }
}

/// An upload whose request broke is lost with `docker-registry`; the push goes through all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_4_the_fault_table_of_pushes_to_a_registry_that_forgets() {
    if !present(&["docker-registry"]) {
        return;
    }
    let image = image();
    let config = image.manifest.value.config.size;
    for (name, method, part, fault, end) in PUSHES {
        let registry = Registry::start("");
        let proxy = Proxy::start(&registry.address);
        proxy.fault(method, part, fault());
        let pushed = push_to(&client_for(name), &proxy.address, &image).await;
        let (sent, _) = proxy.bytes(UPLOAD);
        let end = match end {
            End::Again(_) => End::Again(SIZE as u64),
            End::Error(..) => *end,
        };
        check(name, end, &pushed, sent.saturating_sub(config), sent);
        if pushed.is_ok() {
            pull_from(&client_for(name), &registry.address, &image)
                .await
                .unwrap();
        }
    }
}

/// Credentials that run out in the middle of an upload cost what was sent in that request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_2_a_401_in_the_middle_of_an_upload() {
    if !present(&["docker-registry", "htpasswd"]) {
        return;
    }
    let registry = Registry::start(HTPASSWD);
    let (proxy, image) = (Proxy::start(&registry.address), image());
    for method in ["POST", "PUT"] {
        let challenge = Reply::new(401).with("www-authenticate", "Basic realm=\"x\"");
        proxy.fault(method, UPLOAD, Fault::Answer(challenge));
    }
    let client = client_as(&proxy.address, "kiln", "pa:ss word");
    push_to(&client, &proxy.address, &image).await.unwrap();
    assert_eq!(proxy.left(), 0);
    let config = image.manifest.value.config.size;
    let again = proxy.bytes(UPLOAD).0 - config - SIZE as u64;
    assert!(again <= SIZE as u64, "{again} bytes again");
}

/// A registry that keeps its blobs elsewhere: that host is asked without credentials (D3.4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_4_the_host_that_a_redirect_names_sees_no_credentials() {
    if !present(&["docker-registry", "htpasswd"]) {
        return;
    }
    let registry = Registry::start(HTPASSWD);
    let (proxy, image) = (Proxy::start(&registry.address), image());
    let client = client_as(&proxy.address, "kiln", "pa:ss word");
    push_to(&client, &proxy.address, &image).await.unwrap();
    let server = Server::start().await;
    for bytes in image.blobs.values() {
        server.add_blob(bytes);
    }
    let storage = Proxy::start(&server.address);
    storage.fault("GET", LAYER, Fault::CutAnswer(MIB));
    let layer = image.manifest.value.layers[0].digest;
    for _ in 0..2 {
        let target = format!("http://{}/v2/a/blobs/{layer}?signature=s", storage.address);
        let away = Reply::new(307).with("location", &target);
        proxy.fault("GET", LAYER, Fault::Answer(away));
    }
    pull_from(&client, &proxy.address, &image).await.unwrap();
    assert_eq!((proxy.left(), storage.left()), (0, 0));
    let asked = storage.passed();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|one| !one.authorized), "{asked:?}");
    assert!(proxy.passed().iter().any(|one| one.authorized));
    assert_eq!(storage.bytes("").1, SIZE as u64, "no byte comes twice");
}

/// Connections that are cut again and again: what has arrived is not asked for again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_6_a_line_that_is_cut_every_300_kilobytes() {
    let (server, image) = (Server::start().await, image());
    let proxy = Proxy::start(&server.address);
    proxy.cut_every(300_000);
    push_to(&client_for(""), &proxy.address, &image)
        .await
        .unwrap();
    pull_from(&client_for(""), &proxy.address, &image)
        .await
        .unwrap();
    let cuts = proxy.total() / 300_000;
    assert!(cuts >= 13, "{cuts}");
    // All but the small documents moves once: what was cut was the end of a piece that had passed.
    let again = proxy.total() - 2 * SIZE as u64;
    assert!(again < 20_000, "{again} bytes again");
    assert!(proxy.count("PATCH", UPLOAD) >= 6);
}

/// A large layer over slow connections comes in parts side by side, also when some of them break;
/// over a fast one it comes in one piece.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_3_a_large_layer_comes_in_parts_where_that_helps() {
    if !present(&["docker-registry"]) {
        return;
    }
    let registry = Registry::start("");
    let image = Image::new(&[bytes(68 << 20, 9)]);
    push_to(&client_for(""), &registry.address, &image)
        .await
        .unwrap();
    for ranges in [true, false] {
        let proxy = Proxy::start(&registry.address);
        proxy.slow(1);
        if ranges {
            for at in [1, 4] {
                proxy.later(at, "GET", LAYER, Fault::CutAnswer(MIB));
            }
        } else {
            proxy.fault("GET", LAYER, Fault::Edit(all_of_it));
        }
        pull_from(&client_for(""), &proxy.address, &image)
            .await
            .unwrap();
        let size = image.manifest.value.layers[0].size;
        let again = proxy.bytes(LAYER).1 - size;
        match ranges {
            true => {
                assert!(proxy.most() >= 3, "{} at once", proxy.most());
                assert_eq!(proxy.count("GET", LAYER), 1 + 15 + 2);
                assert_eq!((again, proxy.left()), (0, 0));
            }
            // A server that sends another part than was asked for is asked for all.
            false => assert!(proxy.most() <= 2, "{} at once", proxy.most()),
        }
    }
}

fn all_of_it(reply: &mut Reply) {
    reply.headers.retain(|(name, _)| name != "content-range");
}
