//! Lists that come in pages, and registries that answer oddly (D8.2, D9.1).

use kiln_registry::blob::BlobSink as _;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::{OCI_INDEX, OCI_MANIFEST};
use kiln_registry::spec::{Descriptor, Index, Manifest, Raw};
use serde_json::json;

use crate::env::{Image, bytes, chain, client, options, reference};
use crate::server::{self, Asked, Fault, Reply, Server};

/// Answers one path with pages, whose links are relative; the last has none.
fn paged(
    path: &'static str,
    pages: Vec<String>,
    more: &'static str,
) -> impl Fn(&Asked) -> Option<Reply> {
    move |asked| {
        if asked.path != path {
            return None;
        }
        let number = asked
            .query
            .rsplit_once("page=")
            .map_or(0, |(_, text)| text.parse().unwrap());
        let reply = Reply::new(200).body(pages[number].clone());
        let next = number + 1;
        Some(if next < pages.len() {
            reply.with("link", format!("<{more}page={next}>; rel=\"next\""))
        } else {
            reply
        })
    }
}

#[tokio::test]
async fn d9_1_all_pages_of_tags_are_read_and_null_is_none() {
    let server = Server::start().await;
    let pages = [
        r#"{"tags":["b","a"]}"#,
        r#"{"tags":null}"#,
        r#"{"name":"x"}"#,
        r#"{"tags":["c","a","no tag"]}"#,
    ];
    let pages = pages.map(str::to_owned).to_vec();
    server.custom(paged(
        "/v2/team/app/tags/list",
        pages,
        "/v2/team/app/tags/list?",
    ));
    let tags = client()
        .tags(&reference(&server.address, "team/app"))
        .await
        .unwrap();
    assert_eq!(tags, ["a", "b", "c"]);
    assert_eq!(server.count("GET", "tags/list"), 4);
    assert!(server.log().iter().any(|asked| asked.query == "n=1000"));
}

#[tokio::test]
async fn d9_1_pages_that_lead_astray_are_refused() {
    let other = Server::start().await;
    for (link, expected) in [
        (
            format!("http://{}/v2/x/tags/list", other.address),
            "leads to another host",
        ),
        (
            "/v2/team/app/tags/list?n=1000".to_owned(),
            "this page again",
        ),
    ] {
        let server = Server::start().await;
        server.custom(move |asked| {
            let list = asked.path == "/v2/team/app/tags/list";
            list.then(|| {
                Reply::new(200)
                    .body(r#"{"tags":["a"]}"#)
                    .with("link", format!("<{link}>; rel=next"))
            })
        });
        let name = reference(&server.address, "team/app");
        let error = client().tags(&name).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(other.log().len(), 0);
}

#[tokio::test]
async fn d9_1_pages_that_are_none_are_refused() {
    for (body, expected) in [
        ("<html>".to_owned(), "no valid list of tags"),
        (r#"{"tags":{}}"#.to_owned(), "no valid list of tags"),
        ("x".repeat((16 << 20) + 1), "larger than"),
    ] {
        let server = Server::start().await;
        server.custom(move |asked| {
            asked
                .path
                .ends_with("tags/list")
                .then(|| Reply::new(200).body(body.clone()))
        });
        let error = client()
            .tags(&reference(&server.address, "team/app"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

fn entry(text: &str, kind: &str) -> Descriptor {
    let mut entry = Descriptor::new("m", Digest::of(text.as_bytes()), 1);
    entry.artifact_type = Some(kind.to_owned());
    entry
}

fn list(entries: &[Descriptor]) -> Raw<Index> {
    Raw::write(Index::new(OCI_INDEX, entries.to_vec())).unwrap()
}

#[tokio::test]
async fn d8_2_pages_of_referrers_are_filtered_whoever_should() {
    let server = Server::start().await;
    let subject = Digest::of(b"subject");
    let pages = [
        [entry("a", "sig"), entry("b", "sbom")],
        [entry("c", "sig"), entry("a", "sig")],
    ];
    let pages = pages
        .map(|page| json!(list(&page).value).to_string())
        .to_vec();
    let path: &'static str = format!("/v2/team/app/referrers/{subject}").leak();
    server.custom(paged(path, pages, "?artifactType=sig&"));
    let name = reference(&server.address, "team/app");
    let found = client()
        .referrers(&name, subject, Some("sig"))
        .await
        .unwrap();
    assert_eq!(found, [entry("a", "sig"), entry("c", "sig")]);
    assert!(
        server
            .log()
            .iter()
            .any(|asked| asked.query == "artifactType=sig")
    );
}

#[tokio::test]
async fn d8_2_without_an_api_the_tag_is_read() {
    let server = Server::start().await;
    let subject = Digest::of(b"subject");
    let name = reference(&server.address, "team/app");
    assert_eq!(client().referrers(&name, subject, None).await.unwrap(), []);
    let listed = list(&[entry("a", "sig"), entry("b", "sbom")]);
    let tag = format!("sha256-{}", subject.hex());
    server.add_manifest("team/app", &tag, OCI_INDEX, &listed.bytes);
    let found = client()
        .referrers(&name, subject, Some("sbom"))
        .await
        .unwrap();
    assert_eq!(found, [entry("b", "sbom")]);
    // Something else under that tag is no list.
    let image = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    server.add_manifest(
        "team/app",
        &tag,
        "application/vnd.oci.image.manifest.v1+json",
        image,
    );
    let error = client().referrers(&name, subject, None).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("where the list of referrers should be"),
        "{error}"
    );
}

/// A manifest about another one.
fn about(subject: &Descriptor, kind: &str) -> (Descriptor, Vec<u8>) {
    let mut about = Manifest::new(Descriptor::new("config", Digest::of(b"{}"), 2), Vec::new());
    about.subject = Some(subject.clone());
    about.artifact_type = Some(kind.to_owned());
    let about = Raw::write(about).unwrap();
    let descriptor = Descriptor::new(OCI_MANIFEST, about.digest, about.bytes.len() as u64);
    (descriptor, about.bytes)
}

/// The artifact types that a registry lists, sorted.
async fn kinds(name: &Reference, subject: Digest) -> Vec<String> {
    let found = client().referrers(name, subject, None).await.unwrap();
    let kinds = found.into_iter().filter_map(|entry| entry.artifact_type);
    let mut kinds: Vec<_> = kinds.collect();
    kinds.sort_unstable();
    kinds
}

#[tokio::test]
async fn d8_2_a_list_that_others_overwrite_is_written_again() {
    let server = Server::start().await;
    let subject = Descriptor::new(OCI_MANIFEST, Digest::of(b"subject"), 7);
    let (descriptor, bytes) = about(&subject, "sig");
    // Nothing is there before, and somebody else's list is there afterwards.
    let others = list(&[entry("a", "sbom")]);
    let reply = Reply::new(200)
        .with("content-type", OCI_INDEX)
        .body(others.bytes);
    server.fault("GET", "manifests/sha256-", Fault::Say(Reply::new(404)));
    server.fault("GET", "manifests/sha256-", Fault::Say(reply));
    let name = reference(&server.address, "team/app");
    let sink = client().repository(&name);
    let put = sink.put_manifest(&descriptor, &bytes, None);
    put.await.unwrap();
    assert_eq!(server.count("PUT", "manifests/sha256-"), 2);
    assert_eq!(kinds(&name, subject.digest).await, ["sbom", "sig"]);
}

/// Many write to one list, of the same process and of others; a registry that takes conditions has
/// nobody's change overwritten, and one that does not has them all in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d8_2_many_write_to_one_list() {
    for conditional in [true, false] {
        let server = Server::start().await;
        server.state.lock().unwrap().conditions = conditional;
        let name = reference(&server.address, "team/app");
        let subject = Descriptor::new(OCI_MANIFEST, Digest::of(b"subject"), 7);
        let clients = [client(), client(), client()];
        let writers = (0..6).map(|number| {
            let sink = clients[number / 2].repository(&name);
            let (descriptor, bytes) = about(&subject, &number.to_string());
            async move { sink.put_manifest(&descriptor, &bytes, None).await }
        });
        for put in futures_util::future::join_all(writers).await {
            put.unwrap();
        }
        let all = ["0", "1", "2", "3", "4", "5"];
        assert_eq!(kinds(&name, subject.digest).await, all);
        let tagged = format!("/manifests/sha256-{}", subject.digest.hex());
        let refused = server.state.lock().unwrap().refused;
        if conditional {
            // What was not refused stays: each change is written once.
            assert_eq!(server.count("PUT", &tagged) - refused, all.len());
        }
    }
}

/// A registry that takes no condition at all still gets its list.
#[tokio::test]
async fn d8_2_a_registry_that_refuses_every_condition() {
    let server = Server::start().await;
    server.custom(|asked| {
        let conditional = ["if-match", "if-none-match"].map(|name| asked.header(name));
        (conditional != [None, None]).then(|| Reply::new(412))
    });
    let name = reference(&server.address, "team/app");
    let subject = Descriptor::new(OCI_MANIFEST, Digest::of(b"subject"), 7);
    let (descriptor, bytes) = about(&subject, "sig");
    let sink = client().repository(&name);
    let put = sink.put_manifest(&descriptor, &bytes, None);
    put.await.unwrap();
    assert_eq!(kinds(&name, subject.digest).await, ["sig"]);
}

/// A registry that deletes no tags, and fails when it is to delete what was put in the tag's place:
/// the tag names again what it named.
#[tokio::test]
async fn d9_2_a_tag_that_could_not_be_deleted_gets_back_what_it_named() {
    for (status, code) in [(500, "UNKNOWN"), (405, "UNSUPPORTED"), (403, "DENIED")] {
        let server = Server::start().await;
        let image = Image::new(&[bytes(100, 1)]);
        server.add_manifest("app", "a", OCI_MANIFEST, &image.manifest.bytes);
        server.custom(move |asked| {
            let tag = asked.method == "DELETE" && !asked.path.contains("/sha256:");
            tag.then(|| server::error(405, "UNSUPPORTED"))
        });
        // It says what registries say that delete: there is no such manifest yet.
        let (name, place) = (reference(&server.address, "app"), "/manifests/sha256:");
        server.fault(
            "DELETE",
            place,
            Fault::Say(server::error(404, "MANIFEST_UNKNOWN")),
        );
        for _ in 0..=options().retries {
            server.fault("DELETE", place, Fault::Say(server::error(status, code)));
        }
        let error = client().delete_tag(&name, "a").await.unwrap_err();
        assert!(
            chain(&error).contains(&status.to_string()),
            "{}",
            chain(&error)
        );
        let tagged = server.state.lock().unwrap().manifests["app/a"].clone();
        assert_eq!(
            tagged,
            (OCI_MANIFEST.to_owned(), image.manifest.bytes.clone())
        );
        // It was away in between.
        assert_eq!(server.count("PUT", "/manifests/a"), 2);
    }
}
