//! The registry of this crate: kiln's client, other people's clients, and requests by hand.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use kiln_registry::blob::{BlobSink as _, InMemory};
use kiln_registry::digest::Digest;
use kiln_registry::server::{Server, ServerOptions};
use kiln_registry::spec::media_type::{OCI_INDEX, OCI_MANIFEST};
use kiln_registry::spec::{Descriptor, Manifest, Raw};
use kiln_registry::transfer;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::distribution::{present, round_trip};
use crate::env::{Image, bytes, client, reference, silent};

/// A server of a folder, for as long as this value lives.
pub struct Served {
    pub address: String,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Served {
    pub async fn start(folder: &Path, options: ServerOptions) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(any, folder, options).await.unwrap();
        Self {
            address: server.address().unwrap().to_string(),
            task: tokio::spawn(server.run(std::future::pending())),
        }
    }

    /// One with an empty folder, which is gone when that value is.
    pub async fn empty() -> (TempDir, Self) {
        let folder = TempDir::new().unwrap();
        let served = Self::start(folder.path(), ServerOptions::default()).await;
        (folder, served)
    }

    /// Ends it, and waits until its folder is free.
    async fn end(mut self) {
        self.task.abort();
        drop((&mut self.task).await);
    }

    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let url = if path.starts_with('/') {
            format!("http://{}{path}", self.address)
        } else {
            path.to_owned()
        };
        let mut request = reqwest::Client::new()
            .request(method, url)
            .body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Response {
        self.ask(Method::GET, path, &[], b"").await
    }

    /// Opens an upload; where it goes on.
    async fn session(&self, name: &str) -> String {
        let opened = self
            .ask(
                Method::POST,
                &format!("/v2/{name}/blobs/uploads/"),
                &[],
                b"",
            )
            .await;
        assert_eq!(opened.status(), 202);
        header(&opened, "location").to_owned()
    }

    async fn push(&self, name: &str, tag: &str, image: &Image) {
        let sink = client().repository(&reference(&self.address, name));
        let copied = transfer::copy(
            &image.manifest,
            &image.descriptor,
            image,
            &sink,
            Some(tag),
            3,
            &silent,
        );
        copied.await.unwrap();
    }
}

pub fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (
        status,
        body["errors"][0]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    )
}

#[tokio::test]
async fn kiln_pushes_pulls_and_mounts() {
    let (_folder, served) = Served::empty().await;
    round_trip(&served.address, &client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_buildah_and_podman_push_and_pull() {
    if !present(&["skopeo", "buildah", "podman"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let served = Served::start(&folder.path().join("registry"), ServerOptions::default()).await;
    let (address, root) = (served.address.clone(), folder.path().to_owned());
    let work = tokio::task::spawn_blocking(move || {
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program)
                .args(arguments)
                .current_dir(&root)
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {errors}");
            String::from_utf8(output.stdout).unwrap()
        };
        let stores = ["one", "two"].map(|name| root.join(name).display().to_string());
        let [one, two] = stores.each_ref().map(|store| {
            [
                "--root",
                store,
                "--runroot",
                store,
                "--storage-driver",
                "vfs",
            ]
        });
        std::fs::write(root.join("file"), bytes(3_000_000, 1)).unwrap();
        let buildah = |rest: &[&str]| run("buildah", &[&one[..], rest].concat());
        let made = buildah(&["from", "scratch"]);
        buildah(&["copy", made.trim(), "file", "/file"]);
        let first = format!("{address}/team/app:1");
        buildah(&["commit", "--rm", made.trim(), &first]);
        buildah(&["push", "--tls-verify=false", &first]);
        run(
            "podman",
            &[&two[..], &["pull", "-q", "--tls-verify=false", &first]].concat(),
        );
        let second = format!("docker://{address}/team/again:2");
        run(
            "podman",
            &[
                &two[..],
                &["push", "-q", "--tls-verify=false", &first, &second],
            ]
            .concat(),
        );
        let flags = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        let third = format!("docker://{address}/other:3");
        run(
            "skopeo",
            &[&["copy", "-q"], &flags[..], &[&second, &third]].concat(),
        );
        run(
            "skopeo",
            &["copy", "-q", "--src-tls-verify=false", &third, "oci:out:3"],
        );
        let raw = |place: &str| run("skopeo", &["inspect", "--tls-verify=false", "--raw", place]);
        assert_eq!(raw(&third), raw("oci:out:3"));
        let tags = run(
            "skopeo",
            &[
                "list-tags",
                "--tls-verify=false",
                &format!("docker://{address}/other"),
            ],
        );
        assert!(tags.contains("\"3\""), "{tags}");
        run("skopeo", &["delete", "--tls-verify=false", &third]);
    });
    work.await.unwrap();
    assert_eq!(served.get("/v2/other/manifests/3").await.status(), 404);
}

#[tokio::test]
async fn d7_2_an_upload_goes_on_where_it_broke_off() {
    let folder = TempDir::new().unwrap();
    let served = Served::start(folder.path(), ServerOptions::default()).await;
    let blob = bytes(100_000, 1);
    let digest = Digest::of(&blob);
    let place = served.session("team/app").await;
    let head = format!("PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&blob[..40_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    // The server closes when it has put away what came.
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);

    let status = served.get(&place).await;
    assert_eq!(
        (status.status().as_u16(), header(&status, "range")),
        (204, "0-39999")
    );
    let astray = served
        .ask(
            Method::PATCH,
            &place,
            &[("content-range", "50000-50009")],
            &blob[50_000..50_010],
        )
        .await;
    assert_eq!(header(&astray, "range"), "0-39999");
    assert_eq!(astray.status(), 416);
    let part = served
        .ask(
            Method::PATCH,
            &place,
            &[("content-range", "40000-69999")],
            &blob[40_000..70_000],
        )
        .await;
    assert_eq!(
        (part.status().as_u16(), header(&part, "range")),
        (202, "0-69999")
    );

    // Another process knows the session, too, and hashes what it has not seen itself.
    served.end().await;
    let served = Served::start(folder.path(), ServerOptions::default()).await;
    let last = served
        .ask(
            Method::PUT,
            &format!("{place}?digest={digest}"),
            &[],
            &blob[70_000..],
        )
        .await;
    assert_eq!(last.status(), 201);
    let back = served.get(&format!("/v2/team/app/blobs/{digest}")).await;
    assert_eq!(back.bytes().await.unwrap(), blob);
    assert_eq!(
        code(served.get(&place).await).await,
        (404, "BLOB_UPLOAD_UNKNOWN".to_owned())
    );
}

#[tokio::test]
async fn d7_2_what_is_not_as_announced_is_not_kept() {
    let folder = TempDir::new().unwrap();
    let options = ServerOptions {
        largest_blob: 1000,
        ..ServerOptions::default()
    };
    let served = Served::start(folder.path(), options).await;
    let place = served.session("app").await;
    let digest = Digest::of(b"right");
    let wrong = served
        .ask(
            Method::PUT,
            &format!("{place}?digest={digest}"),
            &[],
            b"wrong",
        )
        .await;
    assert_eq!(code(wrong).await, (400, "DIGEST_INVALID".to_owned()));
    assert_eq!(
        served
            .get(&format!("/v2/app/blobs/{digest}"))
            .await
            .status(),
        404
    );
    assert_eq!(served.get(&place).await.status(), 404);

    let place = served.session("app").await;
    let large = served.ask(Method::PATCH, &place, &[], &[0; 1001]).await;
    assert_eq!(code(large).await, (413, "SIZE_INVALID".to_owned()));
    assert_eq!(header(&served.get(&place).await, "range"), "0-0");
    // A session is its own repository's.
    let other = place.replace("/v2/app/", "/v2/other/");
    assert_eq!(served.get(&other).await.status(), 404);
    for bad in ["..", "%2e%2e%2f%2e%2e", "0", &"0".repeat(32)] {
        let answer = served.get(&format!("/v2/app/blobs/uploads/{bad}")).await;
        assert!(matches!(answer.status().as_u16(), 400 | 404), "{bad}");
    }
    assert_eq!(
        served.ask(Method::DELETE, &place, &[], b"").await.status(),
        204
    );
    let once = format!("/v2/app/blobs/uploads/?digest={digest}");
    assert_eq!(
        served
            .ask(Method::POST, &once, &[], b"right")
            .await
            .status(),
        201
    );
}

#[tokio::test]
async fn d5_3_blobs_are_given_in_parts_and_to_their_repositories_only() {
    let (_folder, served) = Served::empty().await;
    let sink = client().repository(&reference(&served.address, "app"));
    let blob = Descriptor::new("x", Digest::of(b"0123456789"), 10);
    sink.put(&blob, &InMemory(b"0123456789".to_vec()), &silent)
        .await
        .unwrap();
    let path = format!("/v2/app/blobs/{}", blob.digest);
    let part = |range: &'static str, tag: String| {
        let (served, path) = (&served, &path);
        async move {
            served
                .ask(
                    Method::GET,
                    path,
                    &[("range", range), ("if-range", &tag)],
                    b"",
                )
                .await
        }
    };
    let tag = format!("\"{}\"", blob.digest);
    let found = part("bytes=3-5", tag.clone()).await;
    assert_eq!(
        (found.status().as_u16(), header(&found, "content-range")),
        (206, "bytes 3-5/10")
    );
    assert_eq!(found.bytes().await.unwrap(), "345");
    assert_eq!(
        part("bytes=3-5", "\"other\"".to_owned())
            .await
            .bytes()
            .await
            .unwrap(),
        "0123456789"
    );
    let beyond = part("bytes=10-", tag).await;
    assert_eq!(
        (beyond.status().as_u16(), header(&beyond, "content-range")),
        (416, "bytes */10")
    );
    let head = served.ask(Method::HEAD, &path, &[], b"").await;
    assert_eq!(
        (head.status().as_u16(), header(&head, "content-length")),
        (200, "10")
    );
    let other = served.get(&path.replace("/app/", "/other/")).await;
    assert_eq!(code(other).await, (404, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(
        served.ask(Method::DELETE, &path, &[], b"").await.status(),
        202
    );
    assert_eq!(served.get(&path).await.status(), 404);
}

#[tokio::test]
async fn d7_3_a_manifest_must_be_whole_and_right() {
    let (_folder, served) = Served::empty().await;
    let image = Image::new(&[bytes(100, 1)]);
    let put = |path: String, kind: &'static str, body: Vec<u8>| {
        let served = &served;
        async move {
            code(
                served
                    .ask(Method::PUT, &path, &[("content-type", kind)], &body)
                    .await,
            )
            .await
        }
    };
    let manifest = image.manifest.bytes.clone();
    let path = || "/v2/app/manifests/1".to_owned();
    let lacks = put(path(), OCI_MANIFEST, manifest.clone()).await;
    assert_eq!(lacks, (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    served.push("app", "1", &image).await;
    let invalid = (400, "MANIFEST_INVALID".to_owned());
    assert_eq!(put(path(), OCI_INDEX, manifest.clone()).await, invalid);
    assert_eq!(put(path(), "text/html", b"<html>".to_vec()).await, invalid);
    assert_eq!(
        put(path(), OCI_MANIFEST, "[".repeat(100_000).into_bytes()).await,
        invalid
    );
    let large = put(path(), OCI_MANIFEST, vec![b' '; (4 << 20) + 1]).await;
    assert_eq!(large, (413, "SIZE_INVALID".to_owned()));
    let other = format!("/v2/app/manifests/{}", Digest::of(b"other"));
    assert_eq!(
        put(other, OCI_MANIFEST, manifest).await,
        (400, "DIGEST_INVALID".to_owned())
    );
    for path in [
        "/v2/app/manifests/.x",
        "/v2/APP/manifests/1",
        "/v2/a/../b/manifests/1",
    ] {
        let status = put(path.to_owned(), OCI_MANIFEST, b"{}".to_vec()).await.0;
        assert!(matches!(status, 400 | 404 | 405), "{path}: {status}");
    }
    let digest = image.manifest.digest;
    let tagged = format!("/v2/app/manifests/{digest}?tag=x&tag=y");
    let kind = [("content-type", OCI_MANIFEST)];
    let tagged = served
        .ask(Method::PUT, &tagged, &kind, &image.manifest.bytes)
        .await;
    let tags = tagged.headers().get_all("oci-tag").iter();
    assert_eq!(tags.collect::<Vec<_>>(), ["x", "y"]);
    let name = reference(&served.address, "app");
    assert_eq!(
        client().tags_of(&name, digest).await.unwrap(),
        ["1", "x", "y"]
    );
    let found = served.get("/v2/app/manifests/1").await;
    assert_eq!(header(&found, "content-type"), OCI_MANIFEST);
    assert_eq!(
        header(&found, "docker-content-digest"),
        image.manifest.digest.to_string()
    );
}

#[tokio::test]
async fn d9_1_lists_come_in_pages() {
    let (_folder, served) = Served::empty().await;
    let image = Image::new(&[bytes(100, 1)]);
    for tag in ["b", "a", "c"] {
        served.push("team/app", tag, &image).await;
    }
    served.push("team", "x", &image).await;
    let mut path = "/v2/team/app/tags/list?n=2".to_owned();
    let page = served.get(&path).await;
    path = header(&page, "link")
        .trim_start_matches('<')
        .split('>')
        .next()
        .unwrap()
        .to_owned();
    let list: Value = serde_json::from_slice(&page.bytes().await.unwrap()).unwrap();
    assert_eq!(list, json!({"name": "team/app", "tags": ["a", "b"]}));
    let last = served.get(&path).await;
    assert_eq!(header(&last, "link"), "");
    let list: Value = serde_json::from_slice(&last.bytes().await.unwrap()).unwrap();
    assert_eq!(list["tags"], json!(["c"]));
    let catalog = served.get("/v2/_catalog").await.bytes().await.unwrap();
    let catalog: Value = serde_json::from_slice(&catalog).unwrap();
    assert_eq!(catalog, json!({"repositories": ["team", "team/app"]}));
    assert_eq!(
        code(served.get("/v2/none/tags/list").await).await,
        (404, "NAME_UNKNOWN".to_owned())
    );
    assert_eq!(served.get("/v2/team/tags/list?n=x").await.status(), 400);
}

#[tokio::test]
async fn d9_2_tags_and_manifests_are_deleted_apart() {
    let folder = TempDir::new().unwrap();
    let served = Served::start(folder.path(), ServerOptions::default()).await;
    let image = Image::new(&[bytes(100, 1)]);
    for tag in ["a", "b", "c"] {
        served.push("app", tag, &image).await;
    }
    let (client, name) = (client(), reference(&served.address, "app"));
    let untagged = client.delete_tag(&name, "b").await.unwrap();
    assert!(!untagged.by_stand_in);
    let digest = image.manifest.digest;
    assert_eq!(client.tags_of(&name, digest).await.unwrap(), ["a", "c"]);
    client.delete_manifest(&name, digest).await.unwrap();
    assert!(client.tags(&name).await.unwrap().is_empty());
    served.end().await;

    let options = ServerOptions {
        deletes: false,
        ..ServerOptions::default()
    };
    let served = Served::start(folder.path(), options).await;
    let name = reference(&served.address, "app");
    served.push("app", "a", &image).await;
    let error = client.delete_tag(&name, "a").await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not let anything be deleted"),
        "{error}"
    );
    assert_eq!(client.digest_of(&name, "a").await.unwrap(), Some(digest));
}

#[tokio::test]
async fn d8_2_referrers_are_listed_by_the_registry() {
    let (_folder, served) = Served::empty().await;
    let image = Image::new(&[bytes(100, 1)]);
    served.push("app", "1", &image).await;
    let (client, name) = (client(), reference(&served.address, "app"));
    let sink = client.repository(&name);
    let config = image.manifest.value.config.clone();
    let mut first = None;
    for number in 0..150 {
        let mut about = Manifest::new(config.clone(), Vec::new());
        about.subject = Some(image.descriptor.clone());
        about.artifact_type = Some(if number % 3 == 0 { "sig" } else { "sbom" }.to_owned());
        about
            .annotations
            .insert("number".to_owned(), number.to_string());
        let about = Raw::write(about).unwrap();
        let descriptor = Descriptor::new(OCI_MANIFEST, about.digest, about.bytes.len() as u64);
        sink.put_manifest(&descriptor, &about.bytes, None)
            .await
            .unwrap();
        first.get_or_insert(about.digest);
    }
    let subject = image.manifest.digest;
    let all = client.referrers(&name, subject, None).await.unwrap();
    assert_eq!(all.len(), 150);
    assert!(all.iter().any(|entry| entry.annotations["number"] == "149"));
    assert_eq!(
        client
            .referrers(&name, subject, Some("sig"))
            .await
            .unwrap()
            .len(),
        50
    );
    client.delete_manifest(&name, first.unwrap()).await.unwrap();
    assert_eq!(
        client
            .referrers(&name, subject, Some("sig"))
            .await
            .unwrap()
            .len(),
        49
    );
    // The client has left the list to the registry.
    assert_eq!(client.tags(&name).await.unwrap(), ["1"]);
}

#[tokio::test]
async fn a_folder_has_one_server_and_garbage_ends_none() {
    let folder = TempDir::new().unwrap();
    let served = Served::start(folder.path(), ServerOptions::default()).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let second = Server::bind(any, folder.path(), ServerOptions::default()).await;
    assert!(
        second
            .unwrap_err()
            .to_string()
            .contains("served by another")
    );
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        &[b'A'; 1 << 20],
    ] {
        let mut stream = TcpStream::connect(&served.address).await.unwrap();
        drop(stream.write_all(garbage).await);
        drop(stream.shutdown().await);
        drop(stream.read_to_end(&mut Vec::new()).await);
    }
    let fine = served.get("/v2/").await;
    assert_eq!(
        (
            fine.status().as_u16(),
            header(&fine, "docker-distribution-api-version")
        ),
        (200, "registry/2.0")
    );
    let unknown = served
        .ask(Method::POST, "/v2/a/manifests/1", &[], b"")
        .await;
    assert_eq!(code(unknown).await, (405, "UNSUPPORTED".to_owned()));
}
