//! A registry with one image, whose layer does not arrive as it was announced.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use kiln_registry::digest::Digest;

use crate::http::{Http, head, reply};
use crate::server::Asked;

/// What is wrong with the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// One byte of it is another one.
    Altered,
    /// It ends half-way, but not when it is asked for again.
    CutOnce,
    /// Half of it comes, and then nothing more.
    Stall,
    /// The same, but all of it comes when it is asked for again.
    StallOnce,
}

#[derive(Debug)]
struct Image {
    fault: Fault,
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
    asked: AtomicUsize,
}

/// The registry, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Liar {
    image: Arc<Image>,
    server: Http,
}

impl Liar {
    pub(crate) fn start(fault: Fault) -> Self {
        Self::with_layer(fault, &[b'x'; 1 << 20])
    }

    /// With a layer that holds one file of this content.
    pub(crate) fn with_layer(fault: Fault, content: &[u8]) -> Self {
        Self::serve(image(fault, content, false))
    }

    /// The same with a layer that is compressed.
    pub(crate) fn compressed(fault: Fault, content: &[u8]) -> Self {
        Self::serve(image(fault, content, true))
    }

    fn serve(image: Image) -> Self {
        let image = Arc::new(image);
        let shared = Arc::clone(&image);
        Self {
            image,
            server: Http::start(move |asked, stream| answer(&shared, asked, stream)),
        }
    }

    /// The name of its image.
    pub(crate) fn name(&self) -> String {
        format!("{}/lies:1", self.server.address)
    }

    /// The digest of its image's layer.
    pub(crate) fn layer(&self) -> Digest {
        Digest::of(&self.image.layer)
    }

    /// Whether half of the layer was sent.
    pub(crate) fn stalls(&self) -> bool {
        self.image.asked.load(Ordering::SeqCst) > 0
    }
}

fn image(fault: Fault, content: &[u8], compressed: bool) -> Image {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", content).unwrap();
    let tar = tar.into_inner().unwrap();
    let diff_id = Digest::of(&tar);
    let (layer, suffix) = match compressed {
        true => {
            let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
            writer.write_all(&tar).unwrap();
            (writer.finish().unwrap(), "+gzip")
        }
        false => (tar, ""),
    };
    let config = serde_json::json!({
        "architecture": kiln_registry::spec::Platform::host().architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
    });
    let config = config.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config).to_string(),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            "digest": Digest::of(&layer).to_string(),
            "size": layer.len(),
        }],
    });
    Image {
        fault,
        manifest: manifest.to_string().into_bytes(),
        config,
        layer,
        asked: AtomicUsize::new(0),
    }
}

/// Answers one request.
fn answer(image: &Image, asked: &Asked, mut stream: &TcpStream) -> std::io::Result<()> {
    let path = asked.path.as_str();
    let is_layer = path.ends_with(&Digest::of(&image.layer).to_string());
    let (kind, body) = match path {
        _ if is_layer => ("application/octet-stream", &image.layer),
        path if path.contains("/manifests/") => (
            "application/vnd.oci.image.manifest.v1+json",
            &image.manifest,
        ),
        path if path.contains("/blobs/") => ("application/octet-stream", &image.config),
        _ => ("text/plain", &Vec::new()),
    };
    let headers = [("Content-Type", kind)];
    if !is_layer || asked.method == "HEAD" {
        return reply(asked, stream, 200, &headers, body);
    }
    head(stream, 200, &headers, body.len())?;
    let (first, second) = body.split_at(body.len() / 2);
    stream.write_all(first)?;
    let before = image.asked.fetch_add(1, Ordering::SeqCst);
    match image.fault {
        Fault::Altered => {
            let mut second = second.to_vec();
            second[0] ^= 1;
            stream.write_all(&second)
        }
        // until the other side has had enough
        Fault::StallOnce if before > 0 => stream.write_all(second),
        Fault::Stall | Fault::StallOnce => {
            std::io::copy(&mut &*stream, &mut std::io::sink()).map(drop)
        }
        Fault::CutOnce if before == 0 => Ok(()),
        Fault::CutOnce => stream.write_all(second),
    }
}
