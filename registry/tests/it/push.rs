use std::sync::{Arc, Mutex};

use kiln_registry::blob::{BlobSink as _, Put, Step};
use kiln_registry::client::{Client, ClientError, ClientOptions};
use kiln_registry::digest::Digest;
use kiln_registry::layout::Layout;
use kiln_registry::spec::Descriptor;
use kiln_registry::spec::media_type::OCI_MANIFEST;
use kiln_registry::transfer::{self, Transfer};
use tokio::sync::mpsc;

use crate::env::{Image, bytes, chain, client, linux, options, reference, silent};
use crate::server::{Fault, Reply, Server, error};

async fn push(server: &Server, image: &Image, name: &str) -> Result<transfer::Copied, String> {
    let name = reference(&server.address, name);
    let repository = client().repository(&name);
    let tag = name.tag.as_deref();
    transfer::copy(
        &image.manifest,
        &image.descriptor,
        image,
        &repository,
        tag,
        3,
        &silent,
    )
    .await
    .map_err(|error| chain(&error))
}

fn assert_pushed(server: &Server, image: &Image, name: &str) {
    let state = server.state.lock().unwrap();
    for (digest, bytes) in &image.blobs {
        assert_eq!(state.blobs.get(&digest.to_string()), Some(bytes));
    }
    assert_eq!(
        state.manifests[name],
        (OCI_MANIFEST.to_owned(), image.manifest.bytes.clone())
    );
}

#[tokio::test]
async fn d7_3_blobs_then_config_then_manifest() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(70_000, 1), bytes(0, 0), bytes(10, 2), bytes(10, 2)]);
    let copied = push(&server, &image, "a/b:1").await.unwrap();
    assert_pushed(&server, &image, "a/b/1");
    assert_eq!(copied.blobs.len(), 4);
    assert!(copied.blobs.iter().all(|(_, put)| *put == Put::Sent));
    assert_eq!(copied.blobs[3].0, image.manifest.value.config);
    assert_eq!(copied.manifest, Some(Put::Sent));
    // What counts is what others will find: it is looked at.
    let requests = server.requests();
    assert_eq!(
        requests[requests.len() - 2..],
        ["PUT /v2/a/b/manifests/1", "HEAD /v2/a/b/manifests/1"]
    );
    assert_eq!(server.count("PATCH", ""), 0);
    // Everything is there now.
    let copied = push(&server, &image, "a/b:2").await.unwrap();
    assert!(copied.blobs.iter().all(|(_, put)| *put == Put::Existed));
}

#[tokio::test]
async fn the_copy_can_be_spawned() {
    let server = Server::start().await;
    let pushing = server.clone();
    let image = Image::new(&[bytes(10, 1)]);
    tokio::spawn(async move { push(&pushing, &image, "a:1").await })
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn d7_4_what_a_neighbour_has_is_mounted() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(1000, 1)]);
    let layer = image.manifest.value.layers[0].clone();
    server.state.lock().unwrap().mounts = true;
    server.add_blob(&image.blobs[&layer.digest]);
    // The blob is in another repository: it is not seen from this one.
    server.fault("HEAD", "/blobs/", Fault::Say(Reply::new(404)));
    let client = client();
    client.remember(&reference(&server.address, "base/image"), layer.digest);
    let repository = client.repository(&reference(&server.address, "a"));
    let put = repository.put(&layer, &image, &silent).await.unwrap();
    assert_eq!(put, Put::Mounted("base/image".to_owned()));
    let post = server
        .log()
        .into_iter()
        .find(|asked| asked.method == "POST")
        .unwrap();
    let digest = layer.digest.to_string().replace(':', "%3A");
    assert_eq!(post.query, format!("mount={digest}&from=base%2Fimage"));
    assert!(image.opened.lock().unwrap().is_empty());
}

#[tokio::test]
async fn d7_1_a_mount_that_is_not_made_gives_a_session() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(1000, 1)]);
    let layer = image.manifest.value.layers[0].clone();
    let client = client();
    client.remember(&reference(&server.address, "base/image"), layer.digest);
    let repository = client.repository(&reference(&server.address, "a"));
    assert_eq!(
        repository.put(&layer, &image, &silent).await.unwrap(),
        Put::Sent
    );
    assert_eq!(server.count("POST", ""), 1);
}

#[tokio::test]
async fn d7_2_a_broken_upload_goes_on_where_the_registry_is() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(3_000_000, 1)]);
    server.fault("PUT", "/uploads/", Fault::TakeThenClose(1_000_000));
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
    let log = server.log();
    let patch = log.iter().find(|asked| asked.method == "PATCH").unwrap();
    assert_eq!(patch.header("content-range"), Some("1000000-2999999"));
    assert_eq!(patch.body.len(), 2_000_000);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_no_second_upload() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(3_000_000, 1)]);
    server.fault("PUT", "/uploads/", Fault::Lose);
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
    let layer = image.manifest.value.layers[0].digest;
    assert_eq!(
        image
            .opened
            .lock()
            .unwrap()
            .iter()
            .filter(|(digest, _)| *digest == layer)
            .count(),
        1
    );
}

#[tokio::test]
async fn d7_2_a_session_that_is_gone_is_opened_again() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(100_000, 1)]);
    server.fault("PUT", "/uploads/", Fault::TakeThenClose(50_000));
    server.fault(
        "GET",
        "/uploads/",
        Fault::Say(error(404, "BLOB_UPLOAD_UNKNOWN")),
    );
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
}

/// A client that gives up at once, and remembers its uploads in a folder.
fn hasty(folder: &std::path::Path) -> Client {
    Client::new(ClientOptions {
        retries: 0,
        uploads: Some(folder.join("partial")),
        ..options()
    })
}

#[tokio::test]
async fn d7_2_the_next_process_goes_on_with_an_upload() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    let image = Image::new(&[bytes(3_000_000, 1)]);
    let layer = &image.manifest.value.layers[0];
    let name = reference(&server.address, "a");
    server.fault("PUT", "/uploads/", Fault::TakeThenClose(1_000_000));
    server.fault("PATCH", "/uploads/", Fault::TakeThenClose(1_500_000));
    for _ in 0..2 {
        let repository = hasty(folder.path()).repository(&name);
        repository.put(layer, &image, &silent).await.unwrap_err();
    }
    let steps = Arc::new(Mutex::new(Vec::new()));
    let noted = steps.clone();
    let note = move |_: &Descriptor, step| noted.lock().unwrap().push(step);
    let repository = hasty(folder.path()).repository(&name);
    repository.put(layer, &image, &note).await.unwrap();
    assert_eq!(server.state.lock().unwrap().blobs.len(), 1);
    assert!(steps.lock().unwrap().contains(&Step::Resumed(2_500_000)));
    let log = server.log();
    let sent: usize = log.iter().map(|asked| asked.body.len()).sum();
    assert_eq!((sent, server.count("POST", "")), (3_000_000, 1));
    // Nothing is left of it.
    let left = std::fs::read_dir(folder.path().join("partial")).unwrap();
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn d7_2_an_upload_that_the_registry_forgot_starts_anew() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    let image = Image::new(&[bytes(3_000_000, 1)]);
    let layer = &image.manifest.value.layers[0];
    let name = reference(&server.address, "a");
    server.fault("PUT", "/uploads/", Fault::TakeThenClose(1_000_000));
    let repository = hasty(folder.path()).repository(&name);
    repository.put(layer, &image, &silent).await.unwrap_err();
    server.state.lock().unwrap().uploads.clear();
    let repository = hasty(folder.path()).repository(&name);
    repository.put(layer, &image, &silent).await.unwrap();
    assert_eq!(server.state.lock().unwrap().blobs.len(), 1);
    assert_eq!(server.count("POST", ""), 2);
    let left = std::fs::read_dir(folder.path().join("partial")).unwrap();
    assert_eq!(left.count(), 0);
}

/// An upload that cannot be finished is taken back.
#[tokio::test]
async fn d7_2_an_upload_that_is_given_up_is_deleted() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    let image = Image::new(&[bytes(3_000_000, 1)]);
    let layer = &image.manifest.value.layers[0];
    let name = reference(&server.address, "a");
    server.fault("PUT", "/uploads/", Fault::Say(error(403, "DENIED")));
    let repository = hasty(folder.path()).repository(&name);
    repository.put(layer, &image, &silent).await.unwrap_err();
    assert_eq!(server.count("DELETE", "/uploads/"), 1);
    assert!(server.state.lock().unwrap().uploads.is_empty());
}

/// Registries that keep nothing of a broken request get chunks, each on a connection of its own.
#[tokio::test]
async fn demand_6_a_registry_that_forgets_broken_uploads_gets_chunks() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(40_000_000, 1)]);
    server.fault("PUT", "/uploads/", Fault::TakeThenClose(1000));
    server.fault(
        "GET",
        "/uploads/",
        Fault::Say(error(404, "BLOB_UPLOAD_INVALID")),
    );
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
    let log = server.log();
    let chunks: Vec<_> = log
        .iter()
        .filter(|asked| asked.method == "PATCH")
        .map(|asked| (asked.body.len(), asked.header("connection")))
        .collect();
    assert_eq!(chunks, [(20_000_000, Some("close")); 2]);
}

#[tokio::test]
async fn d7_2_too_large_is_sent_in_chunks() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(3_000_000, 1)]);
    server.state.lock().unwrap().limit = Some(1_000_000);
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
    let log = server.log();
    let ranges: Vec<&str> = log
        .iter()
        .filter(|asked| asked.method == "PATCH" && asked.body.len() < 1_000_000)
        .filter_map(|asked| asked.header("content-range"))
        .collect();
    assert_eq!(
        ranges,
        [
            "0-749999",
            "750000-1499999",
            "1500000-2249999",
            "2250000-2999999"
        ]
    );
}

#[tokio::test]
async fn d7_2_too_large_said_before_the_end_is_sent_in_chunks() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(20_000_000, 1)]);
    server.fault("PUT", "/uploads/", Fault::SayEarly(Reply::new(413)));
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
}

#[tokio::test]
async fn d7_2_an_offset_that_does_not_fit_is_read_again() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(3_000_000, 1)]);
    server.state.lock().unwrap().limit = Some(1_600_000);
    server.fault(
        "PATCH",
        "/uploads/",
        Fault::Say(error(416, "RANGE_INVALID")),
    );
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
}

#[tokio::test]
async fn killer_15_a_registry_that_does_not_know_its_blob_gets_it_again() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(1000, 1)]);
    let digest = image.manifest.value.layers[0].digest;
    // It says that the blob is there, which it is not.
    server.fault("HEAD", "/blobs/", Fault::Say(Reply::new(200)));
    let detail = format!(
        r#"{{"errors":[{{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown","detail":{{"digest":"{digest}"}}}}]}}"#
    );
    server.fault(
        "PUT",
        "/manifests/",
        Fault::Say(Reply::new(404).body(detail)),
    );
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
    assert_eq!(server.count("PUT", "/manifests/"), 2);
}

/// The registry does not say which blob it lacks: it is asked for each, and gets that one.
#[tokio::test]
async fn d7_3_blobs_that_are_missing_after_all_are_found_and_sent() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(1000, 1), bytes(2000, 2)]);
    let lost = image.manifest.value.layers[1].digest.to_string();
    push(&server, &image, "a:1").await.unwrap();
    server.state.lock().unwrap().blobs.remove(&lost);
    for _ in 0..2 {
        server.fault("HEAD", "/blobs/", Fault::Say(Reply::new(200)));
        server.fault("HEAD", "/blobs/", Fault::Say(Reply::new(200)));
        server.fault("HEAD", "/blobs/", Fault::Say(Reply::new(200)));
        server.fault(
            "PUT",
            "/manifests/",
            Fault::Say(error(400, "MANIFEST_BLOB_UNKNOWN")),
        );
    }
    image.opened.lock().unwrap().clear();
    let copied = push(&server, &image, "a:2").await.unwrap();
    assert_pushed(&server, &image, "a/2");
    assert_eq!(copied.manifest, Some(Put::Sent));
    assert_eq!(server.count("PUT", "/manifests/"), 4);
    // A registry that never believes it is left.
    for _ in 0..9 {
        let unknown = Fault::Say(error(400, "MANIFEST_BLOB_UNKNOWN"));
        server.fault("PUT", "/manifests/", unknown);
    }
    let error = push(&server, &image, "a:3").await.unwrap_err();
    assert!(error.contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    assert_eq!(server.count("PUT", "/manifests/"), 7);
}

#[tokio::test]
async fn a_manifest_that_is_found_as_another_is_an_error() {
    let server = Server::start().await;
    let image = Image::new(&[]);
    let missing = || Fault::Say(Reply::new(404));
    server.fault("HEAD", "/manifests/", missing());
    // It is not there at once, and then it is something else.
    server.fault("HEAD", "/manifests/", missing());
    server.fault(
        "HEAD",
        "/manifests/",
        Fault::Change(|reply| {
            let other = Digest::of(b"other").to_string();
            reply.headers = vec![("docker-content-digest".to_owned(), other)];
        }),
    );
    let error = push(&server, &image, "a:1").await.unwrap_err();
    assert!(error.contains("the registry stored"), "{error}");
}

#[tokio::test]
async fn a_manifest_stored_as_another_is_an_error() {
    let server = Server::start().await;
    let image = Image::new(&[]);
    server.fault(
        "PUT",
        "/manifests/",
        Fault::Change(|reply| {
            reply.headers = vec![(
                "docker-content-digest".to_owned(),
                Digest::of(b"other").to_string(),
            )];
        }),
    );
    let error = push(&server, &image, "a:1").await.unwrap_err();
    assert!(error.contains("the registry stored"), "{error}");
}

#[tokio::test]
async fn demand_15_an_immutable_tag_with_the_same_content_is_a_success() {
    let server = Server::start().await;
    let (image, other) = (Image::new(&[]), Image::new(&[bytes(10, 1)]));
    push(&server, &image, "a:1").await.unwrap();
    let taken = || Fault::Say(error(400, "TAG_INVALID"));
    let copied = push(&server, &image, "a:1").await.unwrap();
    assert_eq!(copied.manifest, Some(Put::Existed));
    assert_eq!(server.count("PUT", "/manifests/"), 1);
    // Also where the registry does not say so before it is asked to move the tag.
    server.fault("HEAD", "/manifests/", Fault::Say(Reply::new(404)));
    server.fault("PUT", "/manifests/", taken());
    let copied = push(&server, &image, "a:1").await.unwrap();
    assert_eq!(copied.manifest, Some(Put::Existed));
    server.fault("PUT", "/manifests/", taken());
    let error = push(&server, &other, "a:1").await.unwrap_err();
    let expected = format!(
        "it names {}, not {}",
        image.manifest.digest, other.manifest.digest
    );
    assert!(error.contains(&expected), "{error}");
}

#[tokio::test]
async fn a_source_that_ends_too_early_is_the_error() {
    let server = Server::start().await;
    let mut image = Image::new(&[bytes(100_000, 1)]);
    let digest = image.manifest.value.layers[0].digest;
    image.blobs.get_mut(&digest).unwrap().truncate(50_000);
    let error = push(&server, &image, "a:1").await.unwrap_err();
    assert!(
        error.contains("the content ends before byte 100000"),
        "{error}"
    );
    image.blobs.remove(&digest);
    let error = push(&server, &image, "a:1").await.unwrap_err();
    assert!(error.contains("not found in memory"), "{error}");
}

#[tokio::test]
async fn d7_1_an_upload_to_another_host_goes_without_credentials() {
    let (server, storage) = (Server::start().await, Server::start().await);
    let image = Image::new(&[bytes(1000, 1)]);
    let layer = &image.manifest.value.layers[0];
    let location = format!("http://{}/up?sig=a%2Fb", storage.address);
    server.custom(move |asked| {
        let held = asked.header("authorization").is_some();
        if !held {
            return Some(error(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=x"));
        }
        let opens = asked.method == "POST";
        opens.then(|| Reply::new(202).with("location", &location))
    });
    storage.custom(|_| Some(Reply::new(201)));
    let client = crate::env::client_as(&server.address, "u", "p");
    let repository = client.repository(&reference(&server.address, "a"));
    repository.put(layer, &image, &silent).await.unwrap();
    let asked = storage.log().pop().unwrap();
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.query, format!("sig=a%2Fb&digest={}", layer.digest));
    assert_eq!(asked.body.len(), 1000);
}

#[tokio::test]
async fn a_pull_is_the_source_of_a_push() {
    let (from, to) = (Server::start().await, Server::start().await);
    let image = Image::new(&[bytes(300_000, 1), bytes(100, 2)]);
    push(&from, &image, "a:1").await.unwrap();
    from.fault("GET", "/blobs/", Fault::Cut(5000));
    let name = reference(&from.address, "a:1");
    let client = client();
    let found = client.resolve(&name, &linux("amd64")).await.unwrap();
    let (source, sink) = (
        client.repository(&name),
        client.repository(&reference(&to.address, "b")),
    );
    transfer::copy(
        &found.manifest,
        &found.descriptor,
        &source,
        &sink,
        Some("2"),
        2,
        &silent,
    )
    .await
    .unwrap();
    assert_pushed(&to, &image, "b/2");
}

#[tokio::test]
async fn refusals_are_not_tried_again() {
    let server = Server::start().await;
    let image = Image::new(&[]);
    server.fault("POST", "/uploads/", Fault::Say(error(403, "DENIED")));
    let name = reference(&server.address, "a");
    let repository = client().repository(&name);
    let error = repository
        .put(&image.manifest.value.config, &image, &silent)
        .await
        .unwrap_err();
    let kiln_registry::blob::BlobError::Client(error) = error else {
        panic!("{error:?}");
    };
    assert!(matches!(error, ClientError::Refused(_)));
    assert!(
        error.hint().unwrap().contains("may not push"),
        "{:?}",
        error.hint()
    );
    assert_eq!(server.count("POST", ""), 1);
}

#[tokio::test]
async fn demand_6_uploads_that_stall_are_sent_in_chunks() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(40_000_000, 1)]);
    server.fault("PUT", "/uploads/", Fault::TakeThenHang(1000));
    server.fault("PUT", "/uploads/", Fault::TakeThenHang(1000));
    push(&server, &image, "a:1").await.unwrap();
    assert_pushed(&server, &image, "a/1");
    assert_eq!(server.count("PATCH", "/uploads/"), 2);
}

#[tokio::test]
async fn a_registry_that_only_pretends_to_take_bytes_is_left() {
    let server = Server::start().await;
    let image = Image::new(&[bytes(3_000_000, 1)]);
    server.state.lock().unwrap().limit = Some(1_600_000);
    for _ in 0..20 {
        server.fault(
            "PATCH",
            "/uploads/",
            Fault::Change(|reply| {
                reply.headers = vec![
                    (
                        "location".to_owned(),
                        "/v2/a/blobs/uploads/1?_state=0".to_owned(),
                    ),
                    ("range".to_owned(), "0-0".to_owned()),
                ];
            }),
        );
    }
    let error = push(&server, &image, "a:1").await.unwrap_err();
    assert!(error.contains("took nothing of a chunk"), "{error}");
}

#[tokio::test]
async fn d7_5_foreign_layers_are_not_pushed() {
    let server = Server::start().await;
    let kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let blob = Descriptor::new(kind, Digest::of(b"x"), 1);
    let repository = client().repository(&reference(&server.address, "a"));
    let put = repository
        .put(&blob, &Image::new(&[]), &silent)
        .await
        .unwrap();
    assert_eq!(put, Put::Existed);
    assert!(server.log().is_empty());
}

/// Layers of an image that is still being made are copied as they become known, and once.
#[tokio::test]
async fn d7_3_layers_are_copied_while_others_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let to = Layout::create(folder.path().join("to")).unwrap();
    let image = Image::new(&[bytes(100, 1), bytes(200, 2), bytes(300, 3)]);
    let started = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&started);
    let progress = move |blob: &Descriptor, step| {
        if step == Step::Start {
            list.lock().unwrap().push(blob.digest);
        }
    };
    let transfer = Transfer {
        source: &image,
        sink: &to,
        jobs: 2,
        progress: &progress,
    };
    let layers = &image.manifest.value.layers;
    let (known, ready) = mpsc::unbounded_channel();
    let make = async {
        for layer in [&layers[0], &layers[1], &layers[0]] {
            known.send(layer.clone()).unwrap();
            // It is there before the next one is known.
            while !to.blob_path(&layer.digest).exists() {
                tokio::task::yield_now().await;
            }
        }
        drop(known);
    };
    let (copied, ()) = tokio::join!(transfer.layers(ready), make);
    let (copied, manifest) = (copied.unwrap(), &image.manifest);
    let whole = transfer
        .image(copied, manifest, &image.descriptor, Some("1"))
        .await;
    assert_eq!(whole.unwrap().blobs.len(), 4);
    let config = &manifest.value.config;
    let order: Vec<_> = layers
        .iter()
        .chain([config])
        .map(|blob| blob.digest)
        .collect();
    assert_eq!(*started.lock().unwrap(), order);
    assert!(to.blob_path(&image.descriptor.digest).exists());
}
