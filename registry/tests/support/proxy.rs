//! Proxies of the tests' own: CONNECT and plain HTTP, and SOCKS5. They know names that no resolver
//! knows, all of them on loopback.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// A proxy; it ends with the test's runtime.
#[derive(Clone, Debug)]
pub struct Proxy {
    pub address: String,
    /// Where each `host:port` really is.
    names: Arc<Mutex<BTreeMap<String, String>>>,
    /// What was asked for, `CONNECT host:port` and the like, with the credentials that came along.
    log: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// An HTTP proxy.
    pub async fn http() -> Self {
        Self::start(false).await
    }

    /// A SOCKS5 proxy.
    pub async fn socks() -> Self {
        Self::start(true).await
    }

    async fn start(socks: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap().to_string(),
            names: Arc::default(),
            log: Arc::default(),
        };
        let one = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = one.clone();
                tokio::spawn(async move {
                    if socks {
                        proxy.serve_socks(stream).await
                    } else {
                        proxy.serve_http(stream).await
                    }
                });
            }
        });
        proxy
    }

    /// Makes a name known.
    pub fn name(&self, name: &str, address: &str) {
        let mut names = self.names.lock().unwrap();
        names.insert(name.to_owned(), address.to_owned());
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    async fn reach(&self, how: &str, name: &str) -> Option<TcpStream> {
        self.log.lock().unwrap().push(format!("{how} {name}"));
        let address = self.names.lock().unwrap().get(name).cloned();
        TcpStream::connect(address?).await.ok()
    }

    async fn serve_http(&self, mut client: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let (first, rest) = head.split_once("\r\n")?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let lines = rest.lines().filter_map(|line| line.split_once(": "));
        let login = lines
            .filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authorization"))
            .map(|(_, value)| format!("[{value}] "))
            .collect::<String>();
        let how = format!("{login}{method}");
        if method == "CONNECT" {
            let Some(mut server) = self.reach(&how, target).await else {
                client
                    .write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                    .await
                    .ok()?;
                return None;
            };
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            copy_bidirectional(&mut client, &mut server).await.ok()?;
            return Some(());
        }
        // One exchange a connection: the answer's end is the connection's.
        let (authority, path) = target.strip_prefix("http://")?.split_once('/')?;
        let name = match authority.contains(':') {
            true => authority.to_owned(),
            false => format!("{authority}:80"),
        };
        let mut server = self.reach(&how, &name).await?;
        let rest: String = rest
            .lines()
            .filter(|line| !line.to_lowercase().starts_with("proxy-") && !line.is_empty())
            .map(|line| format!("{line}\r\n"))
            .collect();
        let head = format!("{method} /{path} HTTP/1.1\r\n{rest}connection: close\r\n\r\n");
        server.write_all(head.as_bytes()).await.ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok()?;
        Some(())
    }

    async fn serve_socks(&self, mut client: TcpStream) -> Option<()> {
        let mut greeting = [0; 2];
        client.read_exact(&mut greeting).await.ok()?;
        let mut methods = vec![0; greeting[1].into()];
        client.read_exact(&mut methods).await.ok()?;
        let mut login = String::new();
        if methods.contains(&2) {
            client.write_all(&[5, 2]).await.ok()?;
            client.read_u8().await.ok()?;
            let user = text(&mut client).await?;
            let password = text(&mut client).await?;
            login = format!("[{user}:{password}] ");
            client.write_all(&[1, 0]).await.ok()?;
        } else {
            client.write_all(&[5, 0]).await.ok()?;
        }
        let mut request = [0; 4];
        client.read_exact(&mut request).await.ok()?;
        // Names only: who looks them up by itself cannot know them.
        assert_eq!(request[..2], [5, 1]);
        assert_eq!(request[3], 3, "the proxy is to look the name up");
        let host = text(&mut client).await?;
        let port = client.read_u16().await.ok()?;
        let (how, name) = (format!("{login}SOCKS"), format!("{host}:{port}"));
        let Some(mut server) = self.reach(&how, &name).await else {
            client
                .write_all(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0])
                .await
                .ok()?;
            return None;
        };
        client
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok()?;
        Some(())
    }
}

/// A text with its length before it.
async fn text(client: &mut TcpStream) -> Option<String> {
    let mut text = vec![0; client.read_u8().await.ok()?.into()];
    client.read_exact(&mut text).await.ok()?;
    String::from_utf8(text).ok()
}
