use kiln_registry::client::{Client, ClientError, ClientOptions, Mirror};
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Descriptor;
use kiln_registry::spec::media_type::{DOCKER_LAYER_GZIP, OCI_INDEX, OCI_MANIFEST};

use crate::env::{Image, bytes, chain, client, linux, options, read, reference};
use crate::server::{Fault, Reply, Server, error};

fn serve(server: &Server, repository: &str, tag: &str, image: &Image) {
    for bytes in image.blobs.values() {
        server.add_blob(bytes);
    }
    server.add_manifest(repository, tag, OCI_MANIFEST, &image.manifest.bytes);
}

#[tokio::test]
async fn d5_1_a_tag_is_resolved_by_head_and_fetched_by_digest() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(1000, 1)]);
    serve(&server, "a/b", "1", &image);
    let (client, name) = (client(), reference(&server.address, "a/b:1"));
    let found = client.resolve(&name, &linux("amd64")).await.unwrap();
    assert_eq!(found.manifest.bytes, image.manifest.bytes);
    assert_eq!(found.digest(), image.manifest.digest);
    assert!(found.index.is_none());
    let config = client.config(&found).await.unwrap();
    assert_eq!(Digest::of(&config), image.manifest.value.config.digest);
    let config = serde_json::from_slice(&config).unwrap();
    assert!(found.mismatch(&config).is_none());
    let digest = image.manifest.digest;
    assert_eq!(
        server.requests()[..2],
        [
            "HEAD /v2/a/b/manifests/1".to_owned(),
            format!("GET /v2/a/b/manifests/{digest}")
        ]
    );
}

#[tokio::test]
async fn d5_1_a_registry_that_refuses_head_is_asked_by_get() {
    let server = Server::start().await;
    serve(&server, "a", "1", &Image::new(&[]));
    server.fault("HEAD", "/manifests/", Fault::Say(Reply::new(405)));
    let name = reference(&server.address, "a:1");
    client().resolve(&name, &linux("amd64")).await.unwrap();
    assert_eq!(
        server.requests(),
        ["HEAD /v2/a/manifests/1", "GET /v2/a/manifests/1"]
    );
}

#[tokio::test]
async fn a6_12_an_index_is_resolved_to_the_platform() {
    let server = Server::start().await;
    let (amd, arm) = (Image::new(&[bytes(10, 1)]), Image::new(&[bytes(10, 2)]));
    serve(&server, "a", "amd", &amd);
    serve(&server, "a", "arm", &arm);
    let index = Image::index(&[("amd64", &amd), ("arm64", &arm)]);
    server.add_manifest("a", "1", OCI_INDEX, &index.bytes);
    let name = reference(&server.address, "a:1");
    let found = client().resolve(&name, &linux("arm64")).await.unwrap();
    assert_eq!(found.manifest.digest, arm.manifest.digest);
    assert_eq!(found.digest(), index.digest);
    assert_eq!(found.index.unwrap().1, index.bytes);
    let error = client().resolve(&name, &linux("s390x")).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("no match for platform in manifest") && text.contains("`linux/arm64`"),
        "{text}"
    );
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let server = Server::start().await;
    let image = Image::new(&[]);
    serve(&server, "a", "1", &image);
    server.fault(
        "GET",
        "/manifests/",
        Fault::Change(|reply| reply.body[0] = b' '),
    );
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ClientError::Mismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_manifest_of_more_than_4_mib_is_refused() {
    let server = Server::start().await;
    server.add_manifest("a", "1", OCI_MANIFEST, &vec![b' '; (4 << 20) + 1]);
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn d6_1_an_unknown_image_is_said_to_be_unknown() {
    let server = Server::start().await;
    let name = reference(&server.address, "a:1");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert_eq!(error.code(), Some("MANIFEST_UNKNOWN"));
    assert!(error.is_not_found() && error.hint().is_some());
}

fn layer(server: &Server, length: usize) -> (Vec<u8>, Descriptor) {
    let bytes = bytes(length, 7);
    let digest = server.add_blob(&bytes);
    (
        bytes,
        Descriptor::new(DOCKER_LAYER_GZIP, digest, length as u64),
    )
}

#[tokio::test]
async fn d5_3_a_broken_download_goes_on_where_it_broke() {
    let server = Server::start().await;
    let (expected, blob) = layer(&server, 300_000);
    server.fault("GET", "/blobs/", Fault::Cut(100_000));
    server.fault("GET", "/blobs/", Fault::Cut(50_000));
    let repository = client().repository(&reference(&server.address, "a"));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), expected);
    let ranges: Vec<_> = server
        .log()
        .iter()
        .map(|asked| asked.header("range").map(str::to_owned))
        .collect();
    let ranges: Vec<String> = ranges.into_iter().flatten().collect();
    assert_eq!(ranges, ["bytes=100000-", "bytes=150000-"]);
}

#[tokio::test]
async fn d5_3_a_server_without_ranges_starts_over() {
    let server = Server::start().await;
    let (expected, blob) = layer(&server, 300_000);
    server.state.lock().unwrap().ranges = false;
    server.fault("GET", "/blobs/", Fault::Cut(100_000));
    let repository = client().repository(&reference(&server.address, "a"));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), expected);
    assert_eq!(
        read(&repository, &blob, 299_990).await.unwrap(),
        expected[299_990..]
    );
    assert_eq!(read(&repository, &blob, 300_000).await.unwrap(), b"");
}

/// A part that is not the one that was asked for is left, and all is asked for.
#[tokio::test]
async fn d5_3_a_wrong_part_is_not_taken() {
    let server = Server::start().await;
    let (expected, blob) = layer(&server, 1000);
    let wrong = || {
        Fault::Change(|reply| {
            reply.headers = vec![("content-range".to_owned(), "bytes 7-999/1000".to_owned())];
        })
    };
    let repository = client().repository(&reference(&server.address, "a"));
    server.fault("GET", "/blobs/", wrong());
    assert_eq!(read(&repository, &blob, 10).await.unwrap(), expected[10..]);
    server.fault("GET", "/blobs/", Fault::Say(error(416, "RANGE_INVALID")));
    assert_eq!(read(&repository, &blob, 10).await.unwrap(), expected[10..]);
    // Parts are all that it has, and all wrong.
    server.fault("GET", "/blobs/", wrong());
    server.fault(
        "GET",
        "/blobs/",
        Fault::Change(|reply| {
            reply.status = 206;
            reply.headers = vec![("content-range".to_owned(), "bytes 7-999/1000".to_owned())];
        }),
    );
    let error = read(&repository, &blob, 10).await.unwrap_err();
    assert!(
        error.contains("asked for the bytes from 10 of 1000"),
        "{error}"
    );
}

/// An entity tag that names the content goes with the question for the rest; others may differ
/// between the servers of one registry.
#[tokio::test]
async fn d5_3_the_rest_is_asked_for_by_the_tag_of_the_content() {
    let server = Server::start().await;
    let (expected, blob) = layer(&server, 300_000);
    let repository = client().repository(&reference(&server.address, "a"));
    for (tag, sent) in [
        (format!("\"{}\"", blob.digest), true),
        ("\"v1\"".to_owned(), false),
        (format!("W/\"{}\"", blob.digest), false),
    ] {
        let first = tag.clone();
        let bytes = expected.clone();
        server.custom(move |asked| {
            let whole = asked.path.contains("/blobs/") && asked.header("range").is_none();
            whole.then(|| {
                let mut reply = Reply::new(200).with("etag", &first).body(bytes.clone());
                reply.cut = Some(100_000);
                reply
            })
        });
        assert_eq!(read(&repository, &blob, 0).await.unwrap(), expected);
        let log = server.log();
        let asked = log.last().unwrap();
        assert_eq!(asked.header("range"), Some("bytes=100000-"));
        assert_eq!(asked.header("if-range"), sent.then_some(tag.as_str()));
    }
}

#[tokio::test]
async fn a_blob_is_never_more_or_other_than_announced() {
    let server = Server::start().await;
    let (_, blob) = layer(&server, 1000);
    let repository = client().repository(&reference(&server.address, "a"));
    server.fault(
        "GET",
        "/blobs/",
        Fault::Change(|reply| reply.body[500] ^= 1),
    );
    let error = read(&repository, &blob, 0).await.unwrap_err();
    assert!(error.contains("digest mismatch"), "{error}");
    server.fault("GET", "/blobs/", Fault::Change(|reply| reply.body.push(0)));
    let error = read(&repository, &blob, 0).await.unwrap_err();
    assert!(error.contains("size mismatch"), "{error}");
    let missing = Descriptor::new(DOCKER_LAYER_GZIP, Digest::of(b"no"), 2);
    let error = read(&repository, &missing, 0).await.unwrap_err();
    assert!(error.contains("not found in"), "{error}");
}

#[tokio::test]
async fn a_stalled_body_is_taken_up_again() {
    let server = Server::start().await;
    let (expected, blob) = layer(&server, 100_000);
    server.fault("GET", "/blobs/", Fault::Hang(40_000));
    let repository = client().repository(&reference(&server.address, "a"));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), expected);
    assert_eq!(
        server.log().last().unwrap().header("range"),
        Some("bytes=40000-")
    );
}

#[tokio::test]
async fn d4_3_mirrors_come_first_and_may_fail() {
    let (broken, mirror, empty) = (
        Server::start().await,
        Server::start().await,
        Server::start().await,
    );
    broken.custom(|_| Some(error(403, "DENIED")));
    let image = Image::new(&[bytes(100, 3)]);
    serve(&mirror, "library/busybox", "latest", &image);
    let mirrors = [&broken, &empty, &mirror].map(|server| Mirror {
        registry: "docker.io".to_owned(),
        url: format!("http://{}", server.address),
    });
    let client = Client::new(ClientOptions {
        mirrors: mirrors.to_vec(),
        ..options()
    });
    let name = Reference::parse("busybox").unwrap();
    let found = client.resolve(&name, &linux("amd64")).await.unwrap();
    assert_eq!(found.manifest.digest, image.manifest.digest);
    let repository = client.repository(&name);
    let layer = &found.manifest.value.layers[0];
    assert_eq!(read(&repository, layer, 0).await.unwrap(), bytes(100, 3));
}

#[tokio::test]
async fn nothing_listening_is_said_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let name = reference(&address, "a");
    let error = client().resolve(&name, &linux("amd64")).await.unwrap_err();
    assert!(chain(&error).contains("Connection refused"), "{error:?}");
    assert!(
        error.hint().unwrap().contains("nothing listens"),
        "{:?}",
        error.hint()
    );
}

#[tokio::test]
async fn d5_3_foreign_layers_come_from_their_own_addresses() {
    let (server, store) = (Server::start().await, Server::start().await);
    let (expected, mut blob) = layer(&store, 1000);
    blob.media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned();
    blob.urls = vec![
        "file:///etc/passwd".to_owned(),
        format!("http://{}/v2/any/blobs/{}", store.address, blob.digest),
    ];
    let repository = client().repository(&reference(&server.address, "a"));
    assert_eq!(read(&repository, &blob, 0).await.unwrap(), expected);
    // Of an ordinary layer they mean nothing.
    blob.media_type = DOCKER_LAYER_GZIP.to_owned();
    assert!(read(&repository, &blob, 0).await.is_err());
}

#[tokio::test]
async fn d6_3_the_head_alone_tells_the_digest() {
    let server = Server::start().await;
    let image = Image::new(&[]);
    serve(&server, "a", "1", &image);
    let name = reference(&server.address, "a:1");
    let found = client().head(&name).await.unwrap().unwrap();
    assert_eq!(
        (found.digest, found.size),
        (image.descriptor.digest, image.descriptor.size)
    );
    assert_eq!(server.requests(), ["HEAD /v2/a/manifests/1"]);
    server.fault("HEAD", "/manifests/", Fault::Say(Reply::new(405)));
    assert_eq!(client().head(&name).await.unwrap(), None);
}
