//! Copies of what is malformed, too deep or too large (D9.3).

use kiln_registry::copy::{self, Options, Place, Sink, Source};
use kiln_registry::digest::Digest;
use kiln_registry::layout::Layout;
use kiln_registry::spec::media_type::{OCI_INDEX, OCI_MANIFEST};
use kiln_registry::spec::{Descriptor, Index, Manifest, Raw};
use tempfile::TempDir;

use crate::env::{chain, client, silent};

/// A layout whose files are written without any check.
struct Made {
    folder: TempDir,
    layout: Layout,
}

impl Made {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let layout = Layout::create(folder.path().join("from")).unwrap();
        Self { folder, layout }
    }

    fn document(&self, kind: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        std::fs::write(self.layout.blob_path(&descriptor.digest), bytes).unwrap();
        descriptor
    }

    fn index(&self, children: &[Descriptor]) -> Descriptor {
        let index = Raw::write(Index::new(OCI_INDEX, children.to_vec())).unwrap();
        self.document(OCI_INDEX, &index.bytes)
    }

    /// Copies an image to another layout, which must fail; why it did.
    async fn refused(&self, root: &Descriptor) -> String {
        self.layout.list(root, Some("1")).unwrap();
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let place = |text: String| Place::parse(&text).unwrap();
        let from = place(format!("oci:{}:1", path("from")));
        let source = Source::open(&from, &client(), self.folder.path()).unwrap();
        let sink = Sink::open(&place(format!("oci:{}", path("to"))), &client()).unwrap();
        let options = Options::default();
        let copied = copy::copy(&source, &sink, &options, &silent, |_| ()).await;
        let listed = Layout::open(path("to")).unwrap().index().unwrap();
        assert!(listed.manifests.is_empty(), "{listed:?}");
        chain(&copied.unwrap_err())
    }
}

#[tokio::test]
async fn d9_3_malformed_documents_are_named() {
    let made = Made::new();
    for (kind, text, expected) in [
        (
            OCI_MANIFEST,
            "{}".to_owned(),
            "is no valid image manifest: missing field",
        ),
        (
            OCI_MANIFEST,
            "<html>".to_owned(),
            "is no valid image manifest: expected value",
        ),
        (OCI_INDEX, "[".repeat(100_000), "is no valid image index"),
        (
            OCI_INDEX,
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:1","size":1}]}"#
                .to_owned(),
            "is no valid image index",
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "{}".to_owned(),
            "is a schema 1 image",
        ),
        (
            "text/html",
            "{}".to_owned(),
            "unsupported media type `text/html`",
        ),
        (
            OCI_MANIFEST,
            " ".repeat((4 << 20) + 1),
            "is larger than 4194304 bytes",
        ),
    ] {
        let root = made.document(kind, text.as_bytes());
        let error = made.refused(&root).await;
        assert!(error.contains(expected), "{error}");
        let named = expected.starts_with("is no valid") || expected.starts_with("is larger");
        assert!(
            !named || error.contains(&root.digest.to_string()),
            "{error}"
        );
    }
}

#[tokio::test]
async fn d9_3_indexes_are_followed_so_far_only() {
    let made = Made::new();
    let mut at = made.index(&[]);
    for _ in 0..5 {
        at = made.index(&[at]);
    }
    let error = made.refused(&at).await;
    assert!(
        error.contains("goes beyond the limits for one image"),
        "{error}"
    );

    let missing = Descriptor::new(OCI_MANIFEST, Digest::of(b"missing"), 7);
    let error = made
        .refused(&made.index(std::slice::from_ref(&missing)))
        .await;
    assert!(
        error.contains(&format!("{} not found", missing.digest)),
        "{error}"
    );

    let mut short = made.index(&[]);
    short.size += 1;
    let error = made.refused(&made.index(&[short])).await;
    assert!(error.contains("bytes"), "{error}");
    let lie = made.document(OCI_INDEX, b"{}");
    std::fs::write(made.layout.blob_path(&lie.digest), b"[]").unwrap();
    let error = made.refused(&made.index(std::slice::from_ref(&lie))).await;
    assert!(error.contains(&lie.digest.to_string()), "{error}");
}

#[tokio::test]
async fn d8_1_content_that_a_manifest_carries_need_not_lie_beside_it() {
    let made = Made::new();
    let mut config = Descriptor::new("application/vnd.oci.empty.v1+json", Digest::of(b"{}"), 2);
    config.data = Some("e30=".to_owned());
    let manifest = Raw::write(Manifest::new(config.clone(), Vec::new())).unwrap();
    let root = made.document(OCI_MANIFEST, &manifest.bytes);
    made.layout.list(&root, Some("1")).unwrap();
    let path = |name: &str| made.folder.path().join(name).display().to_string();
    let from = Place::parse(&format!("oci:{}:1", path("from"))).unwrap();
    let to = Place::parse(&format!("oci:{}", path("to"))).unwrap();
    let source = Source::open(&from, &client(), made.folder.path()).unwrap();
    let sink = Sink::open(&to, &client()).unwrap();
    let options = Options::default();
    let copied = copy::copy(&source, &sink, &options, &silent, |_| ());
    copied.await.unwrap();
    let there = Layout::open(path("to")).unwrap();
    assert_eq!(there.document(&config).unwrap(), b"{}");
}
