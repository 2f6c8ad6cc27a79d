//! A small HTTP server on a loopback port, for fakes: one request a connection.

use std::io::{BufRead as _, BufReader, Read as _, Result, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::server::Asked;

/// The server, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) address: String,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Http {
    /// Lets requests be answered, each on a thread of its own. Who hangs up early does not matter.
    pub(crate) fn start(
        answer: impl Fn(&Asked, &TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let server = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for stream in listener.incoming() {
                    if end.load(Ordering::SeqCst) {
                        return;
                    }
                    let answer = &answer;
                    scope.spawn(move || stream.and_then(|stream| answer(&read(&stream)?, &stream)));
                }
            });
        });
        Self {
            address,
            ended,
            server: Some(server),
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // wakes the server, which then sees that it is to end
        drop(TcpStream::connect(&self.address));
        drop(self.server.take().map(JoinHandle::join));
    }
}

fn read(stream: &TcpStream) -> Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut asked = Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        ..Asked::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let name = name.to_ascii_lowercase();
        asked.headers.insert(name, value.trim().to_owned());
    }
    let length = asked.header("content-length");
    let length = length.map_or(0, |text| text.parse().unwrap());
    asked.body = vec![0; length];
    reader.read_exact(&mut asked.body)?;
    Ok(asked)
}

/// Begins an answer: its status, headers, and the length of its body.
pub(crate) fn head(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    length: usize,
) -> Result<()> {
    let headers = headers.iter();
    let lines: String = headers
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    write!(
        stream,
        "HTTP/1.1 {status} x\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

/// Answers a request.
pub(crate) fn reply(
    asked: &Asked,
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<()> {
    head(stream, status, headers, body.len())?;
    match asked.method.as_str() {
        "HEAD" => Ok(()),
        _ => stream.write_all(body),
    }
}
