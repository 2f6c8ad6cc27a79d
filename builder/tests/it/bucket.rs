//! A service of S3's language with one bucket, which really checks signatures.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use crate::aws_fake::{hex, verified};
use crate::http::{Http, reply};
use crate::server::Asked;

pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const ID: &str = "AKIDBUCKET";
pub(crate) const SECRET: &str = "bucket/secret+key";
/// The session that a request must name.
pub(crate) const SESSION: &str = "session+token==";

/// An object: its bytes, and when it was written as HTTP says it.
type Object = (Vec<u8>, String);

const NEW: &str = "Tue, 15 Nov 2039 12:45:26 GMT";
const OLD: &str = "Tue, 15 Nov 1994 12:45:26 GMT";

#[derive(Debug, Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Object>>,
    log: Mutex<Vec<String>>,
}

/// The service, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) address: String,
    shared: Arc<Shared>,
    _server: Http,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let inner = Arc::clone(&shared);
        let server = Http::start(move |asked, stream| serve(&inner, asked, stream));
        Self {
            address: server.address.clone(),
            shared,
            _server: server,
        }
    }

    /// The requests so far: method, path, status.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// The names of all objects.
    pub(crate) fn names(&self) -> Vec<String> {
        self.shared
            .objects
            .lock()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    }

    /// Lets all objects look old.
    pub(crate) fn age(&self) {
        for (_, written) in self.shared.objects.lock().unwrap().values_mut() {
            OLD.clone_into(written);
        }
    }

    /// Changes a byte of all objects with this in their name.
    pub(crate) fn damage(&self, part: &str) {
        for (name, (bytes, _)) in self.shared.objects.lock().unwrap().iter_mut() {
            if name.contains(part) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
        }
    }
}

fn serve(shared: &Shared, asked: &Asked, stream: &TcpStream) -> std::io::Result<()> {
    let (status, written, body) = match checked(asked) {
        Ok(()) => answer(shared, asked),
        Err(problem) => {
            let body = format!(
                "<Error><Code>SignatureDoesNotMatch</Code><Message>{problem}\n{SECRET}</Message></Error>"
            );
            (403, None, body.into_bytes())
        }
    };
    let line = format!("{} {} {status}", asked.method, asked.path);
    shared.log.lock().unwrap().push(line);
    let written = written.as_deref().map(|time| ("Last-Modified", time));
    reply(asked, stream, status, written.as_slice(), &body)
}

/// The status, when the object was written, and the body.
fn answer(shared: &Shared, asked: &Asked) -> (u16, Option<String>, Vec<u8>) {
    let mut objects = shared.objects.lock().unwrap();
    let name = decoded(&asked.path);
    let missing = || {
        let body = "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>";
        (404, None, body.as_bytes().to_vec())
    };
    match (asked.method.as_str(), asked.header("x-amz-copy-source")) {
        ("PUT", None) => {
            objects.insert(name, (asked.body.clone(), NEW.to_owned()));
            (200, None, Vec::new())
        }
        ("PUT", Some(from)) => match objects.get(&decoded(from)).cloned() {
            Some((bytes, _)) => {
                objects.insert(name, (bytes, NEW.to_owned()));
                (200, None, b"<CopyObjectResult/>".to_vec())
            }
            None => missing(),
        },
        ("GET" | "HEAD", _) => match objects.get(&name) {
            Some((bytes, written)) => (200, Some(written.clone()), bytes.clone()),
            None => missing(),
        },
        _ => (405, None, Vec::new()),
    }
}

fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = std::str::from_utf8(&rest[..2]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// A path as it is signed: all but letters, digits and `-._~/` encoded.
fn encoded(path: &str) -> String {
    let mut text = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Whether a request is signed as S3 wants it: with the digest of its content as a header, and the
/// path encoded in one way, however it came.
fn checked(asked: &Asked) -> Result<(), String> {
    let content = hex(&Sha256::digest(&asked.body));
    if asked.header("x-amz-content-sha256") != Some(&content) {
        return Err("other content".to_owned());
    }
    let path = encoded(&decoded(&asked.path));
    let asked = Asked {
        path,
        ..asked.clone()
    };
    let key = |id: &str| (id == ID).then_some((SECRET, Some(SESSION)));
    verified(&asked, "s3", key).map(drop)
}
