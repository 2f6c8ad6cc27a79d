//! A service of S3's language with one bucket, which really checks signatures (AWS Signature Version
//! 4). The check is written apart from the client.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::aws_fake::{hex, hmac};

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
    ended: AtomicBool,
}

/// The service, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) address: String,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared::default());
        let inner = Arc::clone(&shared);
        let server = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for stream in listener.incoming() {
                    if inner.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let inner = &inner;
                    scope.spawn(move || stream.map(|stream| drop(serve(inner, &stream))));
                }
            });
        });
        Self {
            address,
            shared,
            server: Some(server),
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

impl Drop for Bucket {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(&self.address));
        drop(self.server.take().map(JoinHandle::join));
    }
}

/// A request as it came; names of headers are in lower case.
struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        method,
        path,
        headers,
        body,
    })
}

fn serve(shared: &Shared, mut stream: &TcpStream) -> std::io::Result<()> {
    let Some(asked) = read(stream) else {
        return Ok(());
    };
    let (status, extra, body) = match verified(&asked) {
        Ok(()) => answer(shared, &asked),
        Err(problem) => {
            let body = format!(
                "<Error><Code>SignatureDoesNotMatch</Code><Message>{problem}\n{SECRET}</Message></Error>"
            );
            (403, String::new(), body.into_bytes())
        }
    };
    let line = format!("{} {} {status}", asked.method, asked.path);
    shared.log.lock().unwrap().push(line);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if asked.method != "HEAD" {
        stream.write_all(&body)?;
    }
    Ok(())
}

fn answer(shared: &Shared, asked: &Asked) -> (u16, String, Vec<u8>) {
    let mut objects = shared.objects.lock().unwrap();
    let name = decoded(&asked.path);
    let missing = || {
        let body = "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>";
        (404, String::new(), body.as_bytes().to_vec())
    };
    match (
        asked.method.as_str(),
        asked.headers.get("x-amz-copy-source"),
    ) {
        ("PUT", None) => {
            objects.insert(name, (asked.body.clone(), NEW.to_owned()));
            (200, String::new(), Vec::new())
        }
        ("PUT", Some(from)) => match objects.get(&decoded(from)).cloned() {
            Some((bytes, _)) => {
                objects.insert(name, (bytes, NEW.to_owned()));
                (200, String::new(), b"<CopyObjectResult/>".to_vec())
            }
            None => missing(),
        },
        ("GET" | "HEAD", _) => match objects.get(&name) {
            Some((bytes, written)) => {
                let extra = format!("Last-Modified: {written}\r\n");
                (200, extra, bytes.clone())
            }
            None => missing(),
        },
        _ => (405, String::new(), Vec::new()),
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

/// Whether a request is signed as S3 wants it.
fn verified(asked: &Asked) -> Result<(), String> {
    let header = |name: &str| {
        let value = asked.headers.get(name);
        value.map(String::as_str).ok_or(format!("no {name}"))
    };
    let rest = header("authorization")?;
    let rest = rest
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .ok_or("another algorithm")?;
    let parts: BTreeMap<&str, &str> = rest
        .split(", ")
        .filter_map(|part| part.split_once('='))
        .collect();
    let credential: Vec<&str> = parts["Credential"].split('/').collect();
    let [id, day, region, service, "aws4_request"] = credential[..] else {
        return Err("a wrong scope".to_owned());
    };
    if (id, region, service) != (ID, REGION, "s3") {
        return Err(format!("a scope for {id}, {region} and {service}"));
    }
    if header("x-amz-security-token")? != SESSION {
        return Err("a wrong session".to_owned());
    }
    let content = hex(&Sha256::digest(&asked.body));
    if header("x-amz-content-sha256")? != content {
        return Err("other content".to_owned());
    }
    let signed: Vec<&str> = parts["SignedHeaders"].split(';').collect();
    for name in asked.headers.keys() {
        if (name.starts_with("x-amz-") || name == "host") && !signed.contains(&name.as_str()) {
            return Err(format!("{name} is not signed"));
        }
    }
    let mut headers = String::new();
    for name in &signed {
        headers.push_str(&format!("{name}:{}\n", header(name)?));
    }
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let canonical = format!(
        "{}\n{}\n{query}\n{headers}\n{}\n{content}",
        asked.method,
        encoded(&decoded(path)),
        parts["SignedHeaders"],
    );
    let time = header("x-amz-date")?;
    let scope = credential[1..].join("/");
    let text = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hex(&Sha256::digest(canonical))
    );
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in [day, region, service, "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    match hex(&hmac(&key, text.as_bytes())) == parts["Signature"] && time.starts_with(day) {
        true => Ok(()),
        false => Err("another signature".to_owned()),
    }
}
