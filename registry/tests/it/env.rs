//! What the tests share: clients, images, sources in memory.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Mutex;
use std::time::Duration;

use kiln_registry::blob::{BlobError, BlobReader, BlobSource, BoxFuture, Step};
use kiln_registry::client::{Client, ClientOptions};
use kiln_registry::credentials::{Login, Secret};
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::settings::Settings;
use kiln_registry::spec::media_type::{OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST};
use kiln_registry::spec::{Descriptor, Index, Manifest, Platform, Raw};
use tokio::io::AsyncReadExt as _;

pub fn options() -> ClientOptions {
    ClientOptions {
        retries: 3,
        retry_delay: Duration::from_millis(5),
        stall: Duration::from_millis(700),
        ..ClientOptions::default()
    }
}

pub fn client() -> Client {
    Client::new(options())
}

/// Settings that let one registry speak plain http.
pub fn insecure(registry: &str) -> Settings {
    Settings {
        insecure: vec![registry.to_owned()],
        ..Settings::default()
    }
}

/// A client with a password for one registry.
pub fn client_as(registry: &str, username: &str, password: &str) -> Client {
    let login = Login::Basic {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    };
    Client::new(ClientOptions {
        logins: BTreeMap::from([(registry.to_owned(), login)]),
        ..options()
    })
}

pub fn reference(address: &str, name: &str) -> Reference {
    named(&format!("{address}/{name}"))
}

pub fn named(name: &str) -> Reference {
    Reference::parse(name).unwrap()
}

pub fn linux(architecture: &str) -> Platform {
    Platform {
        architecture: architecture.to_owned(),
        os: "linux".to_owned(),
        ..Platform::default()
    }
}

/// Bytes that do not repeat.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// An image in memory.
#[derive(Debug)]
pub struct Image {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub manifest: Raw<Manifest>,
    pub descriptor: Descriptor,
    /// How often a blob was opened.
    pub opened: Mutex<Vec<(Digest, u64)>>,
}

impl Image {
    pub fn new(layers: &[Vec<u8>]) -> Self {
        let config =
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let mut blobs = BTreeMap::new();
        let mut add = |kind: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            blobs.insert(digest, bytes.to_vec());
            Descriptor::new(kind, digest, bytes.len() as u64)
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: add(OCI_CONFIG, config),
            layers: layers
                .iter()
                .map(|layer| add(OCI_LAYER_GZIP, layer))
                .collect(),
            subject: None,
            annotations: BTreeMap::new(),
            extra: serde_json::Map::new(),
        };
        let manifest = Raw::write(manifest).unwrap();
        let size = manifest.bytes.len() as u64;
        Self {
            descriptor: Descriptor::new(OCI_MANIFEST, manifest.digest, size),
            blobs,
            manifest,
            opened: Mutex::default(),
        }
    }

    /// An index of some images for some architectures.
    pub fn index(images: &[(&str, &Self)]) -> Raw<Index> {
        let list = images.iter().map(|(architecture, image)| {
            let mut descriptor = image.descriptor.clone();
            descriptor.platform = Some(linux(architecture));
            descriptor
        });
        Raw::write(Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests: list.collect(),
            subject: None,
            annotations: BTreeMap::new(),
            extra: serde_json::Map::new(),
        })
        .unwrap()
    }
}

impl BlobSource for Image {
    fn open<'a>(
        &'a self,
        blob: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobReader, BlobError>> {
        Box::pin(async move {
            self.opened.lock().unwrap().push((blob.digest, offset));
            let bytes = self.blobs.get(&blob.digest);
            let bytes =
                bytes.ok_or_else(|| BlobError::NotFound(blob.digest, "memory".to_owned()))?;
            let start = usize::try_from(offset).unwrap();
            Ok(Box::new(Cursor::new(bytes[start..].to_vec())) as BlobReader)
        })
    }
}

/// Reads a whole blob.
pub async fn read(
    source: &dyn BlobSource,
    blob: &Descriptor,
    offset: u64,
) -> Result<Vec<u8>, String> {
    let mut reader = source
        .open(blob, offset)
        .await
        .map_err(|error| chain(&error))?;
    let mut bytes = Vec::new();
    reader
        .read_to_end(&mut bytes)
        .await
        .map_err(|error| chain(&error))?;
    Ok(bytes)
}

/// An error and its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

pub fn silent(_: &Descriptor, _: Step) {}
