//! A proxy between a client and a registry: it does to the traffic what bad networks and bad servers
//! do, and counts what passes. One request per connection, plain HTTP, a thread for each.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The largest head of a request or answer, bytes.
const HEAD: usize = 64 << 10;

/// How long the proxy holds on to a connection that it lets stall, and waits for a registry's last
/// words.
const PATIENCE: Duration = Duration::from_secs(60);

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// So many bytes of the request's body pass, then both sides are cut off.
    CutRequest(u64),
    /// So many bytes of the answer's body pass, then the client is cut off.
    CutAnswer(u64),
    /// So many bytes of the request's body pass, then nothing more happens.
    StallRequest(u64),
    /// So many bytes of the answer's body pass, then nothing more happens.
    StallAnswer(u64),
    /// The registry does what it is asked to, but the client hears nothing of it.
    LoseAnswer,
    /// This is answered, and the registry never asked.
    Answer(Reply),
    /// The registry's answer is changed.
    Edit(fn(&mut Reply)),
    /// The answer's body comes byte by byte, with so much time between.
    TrickleBody(Duration),
    /// The whole answer comes so.
    TrickleHead(Duration),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The length that is announced; else the body's.
    pub length: Option<u64>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            length: None,
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// A request that passed, or is passing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Whether there were credentials with it.
    pub authorized: bool,
    /// Bytes of its body that went on, and of the answer's body.
    pub sent: u64,
    pub received: u64,
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    part: &'static str,
    /// So many requests that fit are let through first.
    skip: usize,
    fault: Fault,
}

#[derive(Debug, Default)]
struct Shared {
    registry: String,
    rules: Mutex<Vec<Rule>>,
    passed: Mutex<Vec<Passed>>,
    /// A connection is cut each time that so many bytes have passed in all; 0 for never.
    every: AtomicU64,
    total: AtomicU64,
    /// Milliseconds that each connection waits after each 64 KiB.
    pause: AtomicU64,
    /// Requests under way now, and the most there were.
    going: AtomicUsize,
    most: AtomicUsize,
    ended: AtomicBool,
}

/// The proxy, for as long as this value lives.
#[derive(Debug)]
pub struct Proxy {
    pub address: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy before the registry at an address.
    pub fn start(registry: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            registry: registry.to_owned(),
            ..Shared::default()
        });
        let serving = Arc::clone(&shared);
        let listener = std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                // Threads that hold a stalled connection end by themselves.
                drop(std::thread::spawn(move || {
                    client.and_then(|client| serving.serve(&client))
                }));
            }
        });
        Self {
            address,
            shared,
            listener: Some(listener),
        }
    }

    /// Lets something go wrong once, at the first request of this method whose path has this part.
    pub fn fault(&self, method: &'static str, part: &'static str, fault: Fault) {
        self.later(0, method, part, fault);
    }

    /// The same, after some such requests were let through.
    pub fn later(&self, skip: usize, method: &'static str, part: &'static str, fault: Fault) {
        lock(&self.shared.rules).push(Rule {
            method,
            part,
            skip,
            fault,
        });
    }

    /// Cuts a connection each time that so many bytes have passed.
    pub fn cut_every(&self, bytes: u64) {
        self.shared.every.store(bytes, Ordering::SeqCst);
    }

    /// Lets each connection wait for so many milliseconds after each 64 KiB.
    pub fn slow(&self, milliseconds: u64) {
        self.shared.pause.store(milliseconds, Ordering::SeqCst);
    }

    /// The most requests that were under way at once.
    pub fn most(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }

    /// Faults that have not happened.
    pub fn left(&self) -> usize {
        lock(&self.shared.rules).len()
    }

    /// The requests so far.
    pub fn passed(&self) -> Vec<Passed> {
        lock(&self.shared.passed).clone()
    }

    /// How many requests of a method had this in their path.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let passed = lock(&self.shared.passed);
        let fits = |one: &&Passed| one.method == method && one.target.contains(part);
        passed.iter().filter(fits).count()
    }

    /// Bytes of bodies that have passed so far: those sent, and those received.
    pub fn bytes(&self, part: &str) -> (u64, u64) {
        let passed = lock(&self.shared.passed);
        let fits = passed.iter().filter(|one| one.target.contains(part));
        fits.fold((0, 0), |(sent, received), one| {
            (sent + one.sent, received + one.received)
        })
    }

    /// Bytes of bodies that have passed so far in either direction, also of requests that go on.
    pub fn total(&self) -> u64 {
        self.shared.total.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is to end.
        drop(TcpStream::connect(&self.address));
        if let Some(listener) = self.listener.take() {
            drop(listener.join());
        }
    }
}

/// A head, and what of the body came with it.
struct Message {
    first: String,
    headers: Vec<(String, String)>,
    rest: Vec<u8>,
}

impl Message {
    fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece)?;
            bytes.extend_from_slice(&piece[..count]);
            // A TLS greeting is no head.
            if count == 0 || bytes.len() > HEAD || bytes[0] == 0x16 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        Ok(Self {
            first,
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .filter(|(name, _)| name != "connection")
                .collect(),
            rest: bytes[end + 4..].to_vec(),
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn length(&self) -> u64 {
        let length = self.header("content-length");
        length.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn head(&self) -> Vec<u8> {
        head(&self.first, &self.headers)
    }
}

fn head(first: &str, headers: &[(String, String)]) -> Vec<u8> {
    let mut text = format!("{first}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

impl Shared {
    /// Serves the one request of a connection.
    fn serve(&self, mut client: &TcpStream) -> io::Result<()> {
        let request = match Message::read(&mut client) {
            Ok(request) => request,
            Err(error) => {
                // As plain servers answer a TLS greeting.
                client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
                return Err(error);
            }
        };
        let mut words = request.first.split(' ');
        let (method, target) = (
            words.next().unwrap_or_default().to_owned(),
            words.next().unwrap_or_default().to_owned(),
        );
        let fault = self.take_fault(&method, &target);
        let passed = Passed {
            authorized: request.header("authorization").is_some(),
            method,
            target,
            sent: 0,
            received: 0,
        };
        let at = {
            let mut all = lock(&self.passed);
            all.push(passed);
            all.len() - 1
        };
        let stalls = matches!(fault, Some(Fault::StallRequest(_) | Fault::StallAnswer(_)));
        let going = self.going.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(going, Ordering::SeqCst);
        let served = self.pass(client, &request, fault, at);
        self.going.fetch_sub(1, Ordering::SeqCst);
        if stalls {
            // The client has to give up by itself; nobody waits for this thread.
            std::thread::sleep(PATIENCE);
        }
        served
    }

    fn take_fault(&self, method: &str, target: &str) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let path = target.split('?').next().unwrap_or_default();
        let fits = |rule: &Rule| rule.method == method && path.contains(rule.part);
        let at = rules.iter().position(fits)?;
        match rules[at].skip {
            0 => Some(rules.remove(at).fault),
            _ => {
                rules[at].skip -= 1;
                None
            }
        }
    }

    fn pass(
        &self,
        mut client: &TcpStream,
        request: &Message,
        fault: Option<Fault>,
        at: usize,
    ) -> io::Result<()> {
        let sent = |count| lock(&self.passed)[at].sent += count;
        let received = |count| lock(&self.passed)[at].received += count;
        let (length, is_head) = (request.length(), request.first.starts_with("HEAD "));
        let body = request.rest.chain(client).take(length);
        if let Some(Fault::Answer(reply)) = &fault {
            sent(io::copy(&mut { body }, &mut io::sink())?);
            send(client, reply, is_head, received)?;
            return client.shutdown(Shutdown::Both);
        }
        let mut registry = TcpStream::connect(&self.registry)?;
        registry.write_all(&request.head())?;
        let limit = match fault {
            Some(Fault::CutRequest(bytes) | Fault::StallRequest(bytes)) => bytes.min(length),
            _ => length,
        };
        let (count, whole) = self.copy(body, &mut registry, limit, sent)?;
        if let Some(Fault::StallRequest(_)) = fault {
            return Ok(());
        }
        if !whole || count < length {
            // The registry is to take what it has got: it sees an end, and no reset.
            registry.shutdown(Shutdown::Write)?;
            registry.set_read_timeout(Some(PATIENCE))?;
            client.shutdown(Shutdown::Both)?;
            return io::copy(&mut registry, &mut io::sink()).map(drop);
        }
        let answer = Message::read(&mut registry)?;
        let mut body = (&answer.rest[..]).chain(&registry);
        match fault {
            Some(Fault::LoseAnswer) => io::copy(&mut body, &mut io::sink()).map(drop),
            Some(Fault::Edit(edit)) => {
                let mut reply = Reply::new(status(&answer.first));
                reply.headers = answer.headers.clone();
                body.read_to_end(&mut reply.body)?;
                reply.headers.retain(|(name, _)| name != "content-length");
                if is_head {
                    reply.length = Some(answer.length());
                }
                edit(&mut reply);
                send(client, &reply, is_head, received)?;
                client.shutdown(Shutdown::Both)
            }
            Some(Fault::TrickleHead(pause)) => trickle(&answer.head()[..], client, pause, |_| ()),
            Some(Fault::TrickleBody(pause)) => {
                client.write_all(&answer.head())?;
                trickle(body, client, pause, received)
            }
            fault => {
                client.write_all(&answer.head())?;
                let limit = match fault {
                    Some(Fault::CutAnswer(bytes) | Fault::StallAnswer(bytes)) => bytes,
                    _ => u64::MAX,
                };
                self.copy(body, &mut client, limit, received)?;
                match fault {
                    Some(Fault::StallAnswer(_)) => Ok(()),
                    _ => client.shutdown(Shutdown::Both),
                }
            }
        }
    }

    /// Copies up to so many bytes; gives how many there were, and false when the connection is to
    /// be cut now. They are counted before they go on: who has them may look at once.
    fn copy(
        &self,
        mut from: impl Read,
        to: &mut impl Write,
        limit: u64,
        count: impl Fn(u64),
    ) -> io::Result<(u64, bool)> {
        let every = self.every.load(Ordering::SeqCst);
        let mut buffer = vec![0; 64 << 10];
        let mut copied = 0;
        while copied < limit {
            let most = usize::try_from(limit - copied).unwrap_or(usize::MAX);
            let most = most.min(buffer.len());
            let read = match from.read(&mut buffer[..most]) {
                Ok(0) | Err(_) => break,
                Ok(read) => read as u64,
            };
            count(read);
            let before = self.total.fetch_add(read, Ordering::SeqCst);
            to.write_all(&buffer[..usize::try_from(read).unwrap_or_default()])?;
            match self.pause.load(Ordering::SeqCst) {
                0 => {}
                pause => std::thread::sleep(Duration::from_millis(pause)),
            }
            copied += read;
            if every > 0 && before / every != (before + read) / every {
                return Ok((copied, false));
            }
        }
        Ok((copied, true))
    }
}

/// Copies byte by byte, until the other side has had enough.
fn trickle(
    from: impl Read,
    mut to: &TcpStream,
    pause: Duration,
    count: impl Fn(u64),
) -> io::Result<()> {
    for byte in io::BufReader::new(from).bytes() {
        std::thread::sleep(pause);
        count(1);
        to.write_all(&[byte?])?;
    }
    Ok(())
}

fn status(first: &str) -> u16 {
    let word = first.split(' ').nth(1);
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn send(
    mut client: &TcpStream,
    reply: &Reply,
    is_head: bool,
    count: impl Fn(u64),
) -> io::Result<()> {
    let length = reply.length.unwrap_or(reply.body.len() as u64);
    let mut headers = reply.headers.clone();
    if reply.status != 204 {
        headers.push(("content-length".to_owned(), length.to_string()));
    }
    client.write_all(&head(&format!("HTTP/1.1 {} X", reply.status), &headers))?;
    if is_head {
        return Ok(());
    }
    for piece in reply.body.chunks(64 << 10) {
        count(piece.len() as u64);
        // A client that has had enough closes its end.
        client.write_all(piece)?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
