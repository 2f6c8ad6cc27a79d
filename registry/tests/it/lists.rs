//! Lists that come in pages, and registries that answer oddly (D8.2, D9.1).

use kiln_registry::blob::BlobSink as _;
use kiln_registry::digest::Digest;
use kiln_registry::spec::media_type::{OCI_INDEX, OCI_MANIFEST};
use kiln_registry::spec::{Descriptor, Index, Manifest, Raw};
use serde_json::json;

use crate::env::{client, reference};
use crate::server::{Asked, Fault, Reply, Server};

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

#[tokio::test]
async fn d8_2_a_list_that_others_overwrite_is_written_again() {
    let server = Server::start().await;
    let subject = Descriptor::new(OCI_MANIFEST, Digest::of(b"subject"), 7);
    let mut about = Manifest::new(Descriptor::new("config", Digest::of(b"{}"), 2), Vec::new());
    about.subject = Some(subject.clone());
    about.artifact_type = Some("sig".to_owned());
    let about = Raw::write(about).unwrap();
    let descriptor = Descriptor::new(OCI_MANIFEST, about.digest, about.bytes.len() as u64);
    // Nothing is there before, and somebody else's list is there afterwards.
    let others = list(&[entry("a", "sbom")]);
    let reply = Reply::new(200)
        .with("content-type", OCI_INDEX)
        .body(others.bytes);
    server.fault("GET", "manifests/sha256-", Fault::Say(Reply::new(404)));
    server.fault("GET", "manifests/sha256-", Fault::Say(reply));
    let name = reference(&server.address, "team/app");
    let sink = client().repository(&name);
    sink.put_manifest(&descriptor, &about.bytes, None)
        .await
        .unwrap();
    assert_eq!(server.count("PUT", "manifests/sha256-"), 2);
    let found = client()
        .referrers(&name, subject.digest, None)
        .await
        .unwrap();
    let kinds: Vec<_> = found
        .iter()
        .map(|entry| entry.artifact_type.as_deref())
        .collect();
    assert_eq!(kinds, [Some("sbom"), Some("sig")]);
}
