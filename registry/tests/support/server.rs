//! A small registry in memory on a loopback port, with faults to order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kiln_registry::digest::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn parameter(&self, name: &str) -> Option<String> {
        let found = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        let value = found
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next_back();
        value.map(|value| value.replace("%3A", ":").replace("%2F", "/"))
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Send so many bytes of the body only, then close.
    pub cut: Option<usize>,
    /// Send so many bytes of the body only, then keep silent.
    pub hang: Option<usize>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), format!("{value}")));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// What goes wrong once, at the first request that fits.
pub enum Fault {
    /// Answer this instead.
    Say(Reply),
    /// Answer this after taking in so many bytes of an upload's body, then close.
    TakeThenClose(usize),
    /// Take in so many bytes of an upload's body, then neither read nor answer.
    TakeThenHang(usize),
    /// Answer this at once, without reading the body.
    SayEarly(Reply),
    /// Send only so many bytes of the right answer's body.
    Cut(usize),
    /// Send so many bytes of the right answer's body, then nothing.
    Hang(usize),
    /// Do what is asked, but close without an answer.
    Lose,
    /// Change the right answer.
    Change(fn(&mut Reply)),
}

type Custom = Box<dyn Fn(&Asked) -> Option<Reply> + Send>;

/// What the registry holds and is to do.
#[derive(Default)]
pub struct State {
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// By `repository/name`, name being tag or digest.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub uploads: BTreeMap<String, Vec<u8>>,
    pub log: Vec<Asked>,
    pub faults: Vec<(&'static str, &'static str, Fault)>,
    /// Asked before anything else.
    pub custom: Option<Custom>,
    next: usize,
    /// The largest body of a request.
    pub limit: Option<usize>,
    pub ranges: bool,
    pub mounts: bool,
    /// Whether manifests have an `ETag`, and are put on conditions.
    pub conditions: bool,
    /// Manifests that were refused for their condition.
    pub refused: usize,
}

/// The registry; it ends with the test's runtime.
#[derive(Clone)]
pub struct Server {
    pub address: String,
    pub state: Arc<Mutex<State>>,
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State {
            ranges: true,
            ..State::default()
        }));
        let server = Self { address, state };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.connection(stream).await });
            }
        });
        server
    }

    pub fn fault(&self, method: &'static str, path: &'static str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .push((method, path, fault));
    }

    pub fn custom(&self, answer: impl Fn(&Asked) -> Option<Reply> + Send + 'static) {
        self.state.lock().unwrap().custom = Some(Box::new(answer));
    }

    pub fn add_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.state
            .lock()
            .unwrap()
            .blobs
            .insert(digest.to_string(), bytes.to_vec());
        digest
    }

    pub fn add_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let mut state = self.state.lock().unwrap();
        for name in [tag, &digest.to_string()] {
            let manifest = (kind.to_owned(), bytes.to_vec());
            state
                .manifests
                .insert(format!("{repository}/{name}"), manifest);
        }
        digest
    }

    /// The requests so far, as `METHOD path`, without the first question for `/v2/`.
    pub fn requests(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let asked = state.log.iter().filter(|asked| asked.path != "/v2/");
        asked
            .map(|asked| format!("{} {}", asked.method, asked.path))
            .collect()
    }

    pub fn count(&self, method: &str, path: &str) -> usize {
        let state = self.state.lock().unwrap();
        let fits = |asked: &&Asked| asked.method == method && asked.path.contains(path);
        state.log.iter().filter(fits).count()
    }

    pub fn log(&self) -> Vec<Asked> {
        self.state.lock().unwrap().log.clone()
    }

    async fn connection(&self, mut stream: TcpStream) {
        let Some((mut asked, rest)) = head(&mut stream).await else {
            return;
        };
        let fault = self.take_fault(&asked);
        if let Some(Fault::SayEarly(reply)) = &fault {
            self.state.lock().unwrap().log.push(asked);
            send(&mut stream, reply).await;
            return;
        }
        let length: usize = asked
            .header("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let wanted = match fault {
            Some(Fault::TakeThenClose(bytes) | Fault::TakeThenHang(bytes)) => bytes.min(length),
            _ => length,
        };
        asked.body = rest;
        while asked.body.len() < wanted {
            let mut piece = vec![0; 64 << 10];
            match stream.read(&mut piece).await {
                Ok(count) if count > 0 => asked.body.extend_from_slice(&piece[..count]),
                _ => break,
            }
        }
        asked.body.truncate(wanted);
        self.state.lock().unwrap().log.push(asked.clone());
        if let Some(Fault::TakeThenHang(_)) = &fault {
            tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        }
        if let Some(Fault::Say(reply)) = &fault {
            send(&mut stream, reply).await;
            return;
        }
        let mut reply = self.answer(&asked);
        match fault {
            Some(Fault::TakeThenClose(_) | Fault::Lose) => return,
            Some(Fault::Cut(bytes)) => reply.cut = Some(bytes),
            Some(Fault::Hang(bytes)) => reply.hang = Some(bytes),
            Some(Fault::Change(change)) => change(&mut reply),
            _ => {}
        }
        if asked.method == "HEAD" {
            let length = reply.body.len();
            reply = reply.with("content-length", length);
            reply.body.clear();
        }
        send(&mut stream, &reply).await;
    }

    fn take_fault(&self, asked: &Asked) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let at = state
            .faults
            .iter()
            .position(|(method, path, _)| *method == asked.method && asked.path.contains(path))?;
        Some(state.faults.remove(at).2)
    }

    fn answer(&self, asked: &Asked) -> Reply {
        let mut state = self.state.lock().unwrap();
        if let Some(reply) = state.custom.as_ref().and_then(|custom| custom(asked)) {
            return reply;
        }
        if state.limit.is_some_and(|limit| asked.body.len() > limit) {
            return Reply::new(413);
        }
        state.answer(asked)
    }
}

impl State {
    fn answer(&mut self, asked: &Asked) -> Reply {
        let path = asked.path.trim_start_matches("/v2/").to_owned();
        if path.is_empty() {
            return Reply::new(200).body("{}");
        }
        if let Some((repository, rest)) = path.split_once("/blobs/uploads/") {
            return self.upload(asked, repository, rest);
        }
        if let Some((_, digest)) = path.split_once("/blobs/") {
            return self.blob(asked, digest);
        }
        match path.split_once("/manifests/") {
            Some((repository, name)) => self.manifest(asked, repository, name),
            None => error(404, "NAME_UNKNOWN"),
        }
    }

    fn blob(&self, asked: &Asked, digest: &str) -> Reply {
        let Some(bytes) = self.blobs.get(digest) else {
            return error(404, "BLOB_UNKNOWN");
        };
        let range = asked.header("range").filter(|_| self.ranges);
        let start =
            range.and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match start {
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::new(206)
                    .with("content-range", range)
                    .body(&bytes[start..])
            }
            None => Reply::new(200).body(bytes.clone()),
        }
    }

    fn manifest(&mut self, asked: &Asked, repository: &str, name: &str) -> Reply {
        let key = format!("{repository}/{name}");
        if asked.method == "PUT" {
            let now = self.manifests.get(&key);
            let now = now.map(|(_, bytes)| format!("\"{}\"", Digest::of(bytes)));
            let changed = asked
                .header("if-match")
                .is_some_and(|etag| now.as_deref() != Some(etag))
                || (asked.header("if-none-match").is_some() && now.is_some());
            if self.conditions && changed {
                self.refused += 1;
                return error(412, "UNKNOWN");
            }
            let kind = asked.header("content-type").unwrap().to_owned();
            let digest = Digest::of(&asked.body).to_string();
            let manifest = (kind, asked.body.clone());
            self.manifests
                .insert(format!("{repository}/{digest}"), manifest.clone());
            self.manifests.insert(key, manifest);
            return Reply::new(201).with("docker-content-digest", digest);
        }
        match self.manifests.get(&key) {
            Some((kind, bytes)) => {
                let reply = Reply::new(200)
                    .with("content-type", kind)
                    .with("docker-content-digest", Digest::of(bytes))
                    .body(bytes.clone());
                match self.conditions {
                    true => reply.with("etag", format!("\"{}\"", Digest::of(bytes))),
                    false => reply,
                }
            }
            None => error(404, "MANIFEST_UNKNOWN"),
        }
    }

    fn upload(&mut self, asked: &Asked, repository: &str, id: &str) -> Reply {
        if asked.method == "POST" {
            if let Some(blob) = asked.parameter("mount")
                && self.mounts
                && self.blobs.contains_key(&blob)
            {
                return Reply::new(201);
            }
            self.next += 1;
            let id = self.next.to_string();
            self.uploads.insert(id.clone(), Vec::new());
            return Reply::new(202).with("location", place(repository, &id, 0));
        }
        let Some(bytes) = self.uploads.get_mut(id) else {
            return error(404, "BLOB_UPLOAD_UNKNOWN");
        };
        // Like a real registry's, the address is good for one offset only.
        let state = asked.parameter("_state");
        if asked.method != "GET" && state != Some(bytes.len().to_string()) {
            return error(416, "RANGE_INVALID");
        }
        bytes.extend_from_slice(&asked.body);
        let location = place(repository, id, bytes.len());
        let range = format!("0-{}", bytes.len().saturating_sub(1));
        match asked.method.as_str() {
            "GET" => Reply::new(204)
                .with("location", location)
                .with("range", range),
            "PATCH" => Reply::new(202)
                .with("location", location)
                .with("range", range),
            "DELETE" => {
                self.uploads.remove(id);
                Reply::new(204)
            }
            _ => self.close(asked, id),
        }
    }

    fn close(&mut self, asked: &Asked, id: &str) -> Reply {
        let complete = asked.header("content-length").unwrap() == asked.body.len().to_string();
        let bytes = self.uploads[id].clone();
        let digest = Digest::of(&bytes).to_string();
        if complete && asked.parameter("digest") == Some(digest.clone()) {
            self.uploads.remove(id);
            self.blobs.insert(digest, bytes);
            return Reply::new(201);
        }
        error(400, "DIGEST_INVALID")
    }
}

/// Relative, with a query of its own.
fn place(repository: &str, id: &str, offset: usize) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}?_x=a%2Fb&_state={offset}")
}

pub fn error(status: u16, code: &str) -> Reply {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"refused: {code}"}}]}}"#);
    Reply::new(status).body(body)
}

async fn head(stream: &mut TcpStream) -> Option<(Asked, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.ok()?;
        // A TLS greeting is answered as plain servers do: not at all.
        if count == 0 || (bytes.is_empty() && piece[0] == 0x16) {
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
            return None;
        }
        bytes.extend_from_slice(&piece[..count]);
    };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let method = first.next()?.to_owned();
    let target = first.next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines.filter_map(|line| line.split_once(": "));
    let asked = Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect(),
        body: Vec::new(),
    };
    Some((asked, bytes[end + 4..].to_vec()))
}

async fn send(stream: &mut TcpStream, reply: &Reply) {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length")
        && reply.status != 204
    {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    let end = reply
        .cut
        .or(reply.hang)
        .unwrap_or(reply.body.len())
        .min(reply.body.len());
    drop(stream.write_all(head.as_bytes()).await);
    drop(stream.write_all(&reply.body[..end]).await);
    drop(stream.flush().await);
    if reply.hang.is_some() {
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    }
    drop(stream.shutdown().await);
}
