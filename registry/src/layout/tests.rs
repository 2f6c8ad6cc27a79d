use std::sync::Mutex;

use tokio::io::AsyncReadExt as _;

use super::*;
use crate::blob::Step;
use crate::spec::{Manifest, Raw};

/// A source of any blob: its content, whatever the descriptor says.
#[derive(Debug)]
struct Content(&'static [u8]);

impl BlobSource for Content {
    fn open<'a>(
        &'a self,
        _: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        assert_eq!(offset, 0);
        let reader: BlobReader = Box::new(self.0);
        Box::pin(std::future::ready(Ok(reader)))
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

fn silent(_: &Descriptor, _: Step) {}

/// The files of a layout that are neither blobs nor its own two.
fn leftovers(layout: &Layout) -> Vec<String> {
    fs::read_dir(layout.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !matches!(name.as_str(), "blobs" | INDEX | MARKER))
        .collect()
}

#[tokio::test]
async fn blobs_go_in_and_come_out() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::create(directory.path().join("new/layout")).unwrap();
    let blob = descriptor("x", b"some content");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&seen);
    let progress = move |_: &Descriptor, step| shared.lock().unwrap().push(step);
    let put = layout
        .put(&blob, &Content(b"some content"), &progress)
        .await;
    assert_eq!(put.unwrap(), Put::Sent);
    assert_eq!(*seen.lock().unwrap(), [Step::Bytes(12)]);
    let put = layout.put(&blob, &Content(b"is not read"), &progress).await;
    assert_eq!(put.unwrap(), Put::Existed);
    for (offset, expected) in [(0, "some content"), (5, "content"), (99, "")] {
        let mut text = String::new();
        let mut reader = BlobSource::open(&layout, &blob, offset).await.unwrap();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, expected);
    }
    let missing = descriptor("x", b"missing");
    let outcome = BlobSource::open(&layout, &missing, 0).await;
    assert!(matches!(outcome, Err(BlobError::NotFound(..))));
    assert!(leftovers(&layout).is_empty());
}

/// What is not as announced never appears, and leaves nothing behind.
#[tokio::test]
async fn wrong_content_does_not_appear() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::create(directory.path()).unwrap();
    let blob = descriptor("x", b"right");
    for wrong in [&b"wrong"[..], b"righ", b"right!"] {
        let outcome = layout.put(&blob, &Content(wrong), &silent).await;
        assert!(
            matches!(outcome, Err(BlobError::Mismatch(_))),
            "{outcome:?}"
        );
        assert!(!layout.blob_path(&blob.digest).exists());
        assert!(leftovers(&layout).is_empty());
    }
    // Damage that came later is found when it is read.
    layout
        .put(&blob, &Content(b"right"), &silent)
        .await
        .unwrap();
    fs::write(layout.blob_path(&blob.digest), "wrong").unwrap();
    let mut bytes = Vec::new();
    let mut reader = BlobSource::open(&layout, &blob, 0).await.unwrap();
    assert!(reader.read_to_end(&mut bytes).await.is_err());
    assert!(matches!(
        layout.document(&blob),
        Err(LayoutError::Mismatch { .. })
    ));
    fs::write(layout.blob_path(&blob.digest), "longer").unwrap();
    let outcome = BlobSource::open(&layout, &blob, 0).await;
    assert!(matches!(outcome, Err(BlobError::Mismatch(_))));
}

/// D10.3: how images are listed and found again.
#[tokio::test]
async fn images_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::create(directory.path()).unwrap();
    let documents = [&b"{\"one\":1}"[..], b"{\"two\":2}", b"{\"three\":3}"];
    let [one, two, three] = documents.map(|bytes| descriptor(media_type::OCI_MANIFEST, bytes));
    let put = async |descriptor: &Descriptor, bytes: &[u8], name| {
        layout.put_manifest(descriptor, bytes, name).await.unwrap();
    };
    assert!(matches!(
        layout.resolve(None),
        Err(LayoutError::NoImage { .. })
    ));
    put(&one, documents[0], None).await;
    assert!(layout.index().unwrap().manifests.is_empty());
    put(&one, documents[0], Some("v1")).await;
    assert_eq!(layout.resolve(None).unwrap().digest, one.digest);
    put(&two, documents[1], Some("localhost:5000/app:2")).await;
    for (name, expected) in [
        ("v1", &one),
        ("2", &two),
        ("localhost:5000/app:2", &two),
        (&two.digest.to_string(), &two),
    ] {
        let found = layout.resolve(Some(name)).unwrap();
        assert_eq!(found.digest, expected.digest, "{name}");
        assert_eq!(layout.document(&found).unwrap().len() as u64, expected.size);
    }
    let error = layout.resolve(None).unwrap_err().to_string();
    assert!(
        error.contains("2 images") && error.contains("`v1`"),
        "{error}"
    );
    let error = layout.resolve(Some("v3")).unwrap_err().to_string();
    assert!(error.contains("no image `v3`; it has `v1`"), "{error}");
    // A name moves; an image without one is listed once.
    put(&three, documents[2], Some("v1")).await;
    assert_eq!(layout.resolve(Some("v1")).unwrap().digest, three.digest);
    layout.list(&one, None).unwrap();
    layout.list(&one, None).unwrap();
    assert_eq!(layout.index().unwrap().manifests.len(), 3);
    assert!(leftovers(&layout).is_empty());
}

/// Several writers at once lose no entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers() {
    let directory = tempfile::tempdir().unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|number| {
            let layout = Layout::create(directory.path()).unwrap();
            tokio::task::spawn_blocking(move || {
                let image = descriptor(media_type::OCI_MANIFEST, &[number]);
                layout.list(&image, Some(&format!("v{number}"))).unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let layout = Layout::open(directory.path()).unwrap();
    assert_eq!(layout.index().unwrap().manifests.len(), 16);
}

#[test]
fn other_folders_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(matches!(
        Layout::open(path),
        Err(LayoutError::NotALayout(_))
    ));
    fs::write(path.join(MARKER), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    let error = Layout::open(path).unwrap_err().to_string();
    assert!(error.contains("version `2.0.0`"), "{error}");
    fs::write(path.join(MARKER), "{").unwrap();
    assert!(matches!(
        Layout::open(path),
        Err(LayoutError::Document { .. })
    ));
    fs::write(path.join(MARKER), vec![b' '; 9 << 20]).unwrap();
    assert!(matches!(
        Layout::open(path),
        Err(LayoutError::TooLarge { .. })
    ));
}

/// The samples of testdata/specs read as what they are, and their bytes are kept.
#[test]
fn samples() {
    let manifest = include_bytes!("../../../testdata/specs/docker-manifest.json");
    let raw: Raw<Manifest> = Raw::parse(manifest.to_vec()).unwrap();
    assert_eq!(raw.bytes, manifest);
    assert_eq!(raw.value.layers.len(), 2);
    let index = include_bytes!("../../../testdata/specs/index-with-attestations.json");
    let raw: Raw<Index> = Raw::parse(index.to_vec()).unwrap();
    let wanted = crate::spec::Platform::parse("linux/arm64").unwrap();
    let chosen = crate::spec::platform::choose(&wanted, &raw.value).unwrap();
    let variant = chosen
        .platform
        .as_ref()
        .and_then(|platform| platform.variant.as_deref());
    assert_eq!(variant, Some("v8"));
}
