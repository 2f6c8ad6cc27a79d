//! The fault table: what becomes of a push and a pull for each thing that goes wrong between client
//! and registry, and how many bytes are moved again because of it. The table is
//! `testdata/registry/faults.txt`; adding a case is adding a line.
//!
//! It is gone through with kiln's own registry and with Debian's `docker-registry`. That one gives up
//! an upload of which a request broke (it binds the address to an offset that it does not tell), so
//! that a push may send the layer a second time; the push goes through all the same.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use kiln_registry::client::{Client, ClientOptions, NameLookup, Resolved};
use kiln_registry::server::ServerOptions;
use kiln_registry::transfer;

use crate::distribution::{Registry, present};
use crate::env::{
    Image, bytes, chain, client_as, insecure, linux, named, options, read, reference, silent,
};
use crate::fault_proxy::{Fault, Proxy, Reply};
use crate::own::Served;
use crate::server::Server;

const TABLE: &str = include_str!("../../../testdata/registry/faults.txt");

/// Size of the one layer.
const SIZE: u64 = 2_000_000;
const MIB: u64 = 1 << 20;

const LAYER: &str = "/blobs/";
const UPLOAD: &str = "/uploads/";
const HTPASSWD: &str = "auth:\n  htpasswd:\n    realm: kiln\n    path: FOLDER/htpasswd\n";

/// A name that only the tests look up.
const NAME: &str = "registry.example";

/// How long a case may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The time between two bytes that trickle.
const TRICKLE: Duration = Duration::from_millis(50);

fn image() -> Image {
    Image::new(&[bytes(2_000_000, 3)])
}

/// A client that has all the time a busy machine needs.
fn patient() -> Client {
    Client::new(ClientOptions {
        stall: Duration::from_secs(60),
        ..options()
    })
}

async fn push_to(client: &Client, name: &str, image: &Image) -> Result<(), String> {
    let repository = client.repository(&named(name));
    let (manifest, descriptor) = (&image.manifest, &image.descriptor);
    let copied = transfer::copy(
        manifest,
        descriptor,
        image,
        &repository,
        Some("1"),
        2,
        &silent,
    );
    copied.await.map(drop).map_err(|error| chain(&error))
}

async fn pull_from(client: &Client, name: &str, image: &Image) -> Result<(), String> {
    let name = named(&format!("{name}:1"));
    let found: Result<Resolved, _> = client.resolve(&name, &linux("amd64")).await;
    let found = found.map_err(|error| chain(&error))?;
    assert_eq!(found.manifest.digest, image.manifest.digest);
    let layer = &found.manifest.value.layers[0];
    let content = read(&client.repository(&name), layer, 0).await?;
    assert_eq!(content, image.blobs[&layer.digest]);
    Ok(())
}

/// How a case ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Well, with at most so many bytes of the layer moved twice.
    Again(u64),
    /// With an error that says this, after at most so many bytes of bodies.
    Error(u64, &'static str),
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
struct Case {
    is_push: bool,
    name: &'static str,
    method: &'static str,
    part: &'static str,
    fault: &'static str,
    end: End,
}

impl Case {
    fn parse(line: &'static str) -> Self {
        let columns: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let [way, name, request, fault, end] = columns[..] else {
            panic!("{line}");
        };
        let (method, part) = request.split_once(' ').unwrap_or((request, ""));
        let (kind, rest) = end.split_once(' ').unwrap();
        let (count, words) = rest.split_once(' ').unwrap_or((rest, ""));
        let count = count.parse().unwrap();
        Self {
            is_push: way == "push",
            name,
            method,
            part,
            fault,
            end: match kind {
                "again" => End::Again(count),
                _ => End::Error(count, words),
            },
        }
    }

    /// What goes wrong at the proxy; nothing where it is a name that is not found.
    fn fault(&self) -> Option<Fault> {
        let words: Vec<&str> = self.fault.split(' ').collect();
        let bytes = || words[2].parse().unwrap();
        Some(match words[..2] {
            ["cut", "request"] => Fault::CutRequest(bytes()),
            ["cut", "answer"] => Fault::CutAnswer(bytes()),
            ["stall", "request"] => Fault::StallRequest(bytes()),
            ["stall", "answer"] => Fault::StallAnswer(bytes()),
            ["lose", "answer"] => Fault::LoseAnswer,
            ["trickle", "head"] => Fault::TrickleHead(TRICKLE),
            ["trickle", "body"] => Fault::TrickleBody(TRICKLE),
            ["edit", how] => Fault::Edit(edit(how)),
            ["answer", status] => {
                let reply = Reply::new(status.parse().unwrap());
                Fault::Answer(
                    words[2..]
                        .iter()
                        .fold(reply, |reply, part| with(reply, part)),
                )
            }
            _ => return None,
        })
    }

    /// A client for the case: what does not stall is given all the time that a busy machine needs.
    fn client(&self) -> Client {
        let stalls = ["stall", "trickle"].iter();
        let stalls = stalls.clone().any(|word| self.fault.starts_with(word));
        Client::new(ClientOptions {
            stall: Duration::from_secs(if stalls { 3 } else { 60 }),
            settings: insecure(NAME),
            names: self.lookup(),
            ..options()
        })
    }

    /// A lookup that fails so many times from some time on.
    fn lookup(&self) -> NameLookup {
        let words: Vec<&str> = self.fault.split(' ').collect();
        let (count, from, problem) = match words[..] {
            ["fail", count, "from", from] => (count, from, "Temporary failure in name resolution"),
            ["forget", count, "from", from] => (count, from, "Name or service not known"),
            _ => ("0", "0", ""),
        };
        let (from, count): (usize, usize) = (from.parse().unwrap(), count.parse().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        NameLookup::new(move |_| {
            let at = asked.fetch_add(1, Ordering::SeqCst);
            let fails = (from..from + count).contains(&at);
            Box::pin(std::future::ready(match fails {
                true => Err(std::io::Error::other(problem)),
                false => Ok(vec![IpAddr::from(Ipv4Addr::LOCALHOST)]),
            }))
        })
    }

    /// Goes through the case at a registry that holds `image` in the repository `a`.
    async fn run(
        &self,
        registry: &str,
        repository: &str,
        image: &Image,
        forgets: bool,
    ) -> Result<(), String> {
        let Self {
            name, method, part, ..
        } = *self;
        let proxy = Proxy::start(registry);
        let mut address = proxy.address.clone();
        match self.fault() {
            Some(fault) => proxy.fault(method, part, fault),
            None => address = address.replace("127.0.0.1", NAME),
        }
        let client = self.client();
        let (ended, layer, all) = if self.is_push {
            let ended = push_to(&client, &format!("{address}/{repository}"), image).await;
            let sent = proxy.bytes(UPLOAD).0;
            let config = image.manifest.value.config.size;
            (ended, sent.saturating_sub(config), sent)
        } else {
            let ended = pull_from(&client, &format!("{address}/a"), image).await;
            (ended, proxy.bytes(LAYER).1, proxy.bytes("").1)
        };
        let which = if self.is_push { "push" } else { "pull" };
        let wrong = |what: String| Err(format!("{which}, {name}: {what}"));
        match (self.end, &ended) {
            (End::Again(most), Ok(())) => {
                let most = if forgets && self.is_push { SIZE } else { most };
                if layer.saturating_sub(SIZE) > most {
                    return wrong(format!("{layer} bytes moved"));
                }
            }
            (End::Error(most, words), Err(error)) => {
                if !error.contains(words) || all > most {
                    return wrong(format!("{all} bytes, and {error}"));
                }
            }
            (end, ended) => return wrong(format!("{end:?}, but {ended:?}")),
        }
        if proxy.left() != usize::from(name == "nothing") {
            return wrong("it did not happen".to_owned());
        }
        if self.is_push && ended.is_ok() {
            let stored = format!("{registry}/{repository}");
            return pull_from(&patient(), &stored, image).await;
        }
        Ok(())
    }
}

/// How the right answer is changed.
fn edit(how: &str) -> fn(&mut Reply) {
    match how {
        "truncated" => |reply| reply.body.truncate(reply.body.len() / 200),
        "flipped" => |reply| reply.body[5] ^= 1,
        "longer" => |reply| reply.length = Some(reply.body.len() as u64 + 7),
        "gzip" => |reply| {
            let header = ("content-encoding".to_owned(), "gzip".to_owned());
            reply.headers.push(header);
            let mut packed = Vec::new();
            let mut encoder = flate2::read::GzEncoder::new(&reply.body[..], Default::default());
            encoder.read_to_end(&mut packed).unwrap();
            packed.truncate(1000);
            reply.body = packed;
        },
        _ => panic!("{how}"),
    }
}

/// An answer with another part.
fn with(reply: Reply, part: &str) -> Reply {
    let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
    let busy = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    let unlinked = r#"{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match"},
        {"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
    let other = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    match part.split_once('=') {
        Some(("retry-after", "past")) => reply.with("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
        Some(("location", "nobody")) => reply.with("location", "http://127.0.0.1:1/"),
        Some((header, value)) => reply.with(header, value),
        None => match part {
            "busy" => reply.body(busy),
            "unlinked-blob" => reply.body(unlinked),
            "web-page" => reply.with("content-type", "text/html").body(page),
            "100-mib" => reply.body(vec![b' '; 100 << 20]),
            "other-digest" => reply.with("docker-content-digest", other),
            _ => panic!("{part}"),
        },
    }
}

/// Cases at once; some of them wait for seconds, and those that count bytes want no busy machine.
const AT_ONCE: usize = 6;

/// Goes through the whole table at a registry.
async fn go_through(registry: &str, forgets: bool) {
    let image = image();
    let whole = format!("{registry}/a");
    push_to(&patient(), &whole, &image).await.unwrap();
    let lines = TABLE.lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cases: Vec<Case> = lines.map(Case::parse).collect();
    assert!(cases.len() > 70, "{}", cases.len());
    let runs = cases.iter().enumerate().map(|(number, case)| {
        let (image, repository) = (&image, format!("b{number}"));
        async move {
            let run = case.run(registry, &repository, image, forgets);
            let ended = tokio::time::timeout(PATIENCE, run).await;
            ended.unwrap_or_else(|_| Err(format!("{case:?} does not end")))
        }
    });
    let ended = stream::iter(runs).buffer_unordered(AT_ONCE);
    let wrong: Vec<String> = ended.filter_map(async |end| end.err()).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_4_the_fault_table_with_kilns_own_registry() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), ServerOptions::default()).await;
    go_through(&served.address, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_4_the_fault_table_with_docker_registry() {
    if !present(&["docker-registry"]) {
        return;
    }
    let registry = Registry::start("");
    go_through(&registry.address, true).await;
}

/// A name that is never found is looked up again as often as anything is tried again.
#[tokio::test]
async fn d6_4_names_are_looked_up_again_and_the_error_says_what_to_do() {
    for (problem, lookups, hint) in [
        (
            "Temporary failure in name resolution",
            // Both schemes may be spoken there.
            2 * (1 + options().retries),
            "check the network and the name servers",
        ),
        (
            "Name or service not known",
            2,
            "check the name of the registry",
        ),
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let client = Client::new(ClientOptions {
            settings: insecure(NAME),
            names: NameLookup::new(move |name| {
                assert_eq!(name, NAME);
                count.fetch_add(1, Ordering::SeqCst);
                let problem = format!("failed to lookup address information: {problem}");
                Box::pin(std::future::ready(Err(std::io::Error::other(problem))))
            }),
            ..options()
        });
        let name = reference(NAME, "a:1");
        let error = client.resolve(&name, &linux("amd64")).await.unwrap_err();
        assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        assert!(chain(&error).contains(problem), "{}", chain(&error));
        assert_eq!(asked.load(Ordering::SeqCst), lookups as usize, "{problem}");
    }
}

fn name_at(proxy: &Proxy) -> String {
    format!("{}/a", proxy.address)
}

/// Credentials that run out at any request: they are shown anew, and of an upload what was sent in
/// that request is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_2_a_401_at_every_request() {
    if !present(&["docker-registry", "htpasswd"]) {
        return;
    }
    let registry = Registry::start(HTPASSWD);
    let (proxy, image) = (Proxy::start(&registry.address), image());
    let refuse = |method, part| {
        let challenge = Reply::new(401).with("www-authenticate", "Basic realm=\"x\"");
        proxy.fault(method, part, Fault::Answer(challenge));
    };
    for (method, part) in [
        ("HEAD", LAYER),
        ("POST", UPLOAD),
        ("PUT", UPLOAD),
        ("PUT", "/manifests/"),
    ] {
        refuse(method, part);
    }
    let client = client_as(&proxy.address, "kiln", "pa:ss word");
    push_to(&client, &name_at(&proxy), &image).await.unwrap();
    assert_eq!(proxy.left(), 0);
    let config = image.manifest.value.config.size;
    let again = proxy.bytes(UPLOAD).0 - config - SIZE;
    assert!(again <= SIZE, "{again} bytes again");

    for (method, part) in [("HEAD", "/manifests/"), ("GET", "/manifests/")] {
        refuse(method, part);
    }
    // The second request for the layer is for what was cut off.
    proxy.fault("GET", LAYER, Fault::CutAnswer(MIB));
    refuse("GET", LAYER);
    let before = proxy.bytes(LAYER).1;
    pull_from(&client, &name_at(&proxy), &image).await.unwrap();
    assert_eq!(proxy.left(), 0);
    assert_eq!(proxy.bytes(LAYER).1 - before, SIZE, "no byte comes twice");
}

/// A registry that keeps its blobs elsewhere: that host is asked without credentials (D3.4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_4_the_host_that_a_redirect_names_sees_no_credentials() {
    if !present(&["docker-registry", "htpasswd"]) {
        return;
    }
    let registry = Registry::start(HTPASSWD);
    let (proxy, image) = (Proxy::start(&registry.address), image());
    let client = client_as(&proxy.address, "kiln", "pa:ss word");
    push_to(&client, &name_at(&proxy), &image).await.unwrap();
    let server = Server::start().await;
    for bytes in image.blobs.values() {
        server.add_blob(bytes);
    }
    let storage = Proxy::start(&server.address);
    storage.fault("GET", LAYER, Fault::CutAnswer(MIB));
    let layer = image.manifest.value.layers[0].digest;
    for _ in 0..2 {
        let target = format!("http://{}/v2/a/blobs/{layer}?signature=s", storage.address);
        let away = Reply::new(307).with("location", &target);
        proxy.fault("GET", LAYER, Fault::Answer(away));
    }
    pull_from(&client, &name_at(&proxy), &image).await.unwrap();
    assert_eq!((proxy.left(), storage.left()), (0, 0));
    let asked = storage.passed();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|one| !one.authorized), "{asked:?}");
    assert!(proxy.passed().iter().any(|one| one.authorized));
    assert_eq!(storage.bytes("").1, SIZE, "no byte comes twice");
}

/// Connections that are cut again and again: what has arrived is not asked for again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demand_6_a_line_that_is_cut_every_300_kilobytes() {
    let (server, image) = (Server::start().await, image());
    let proxy = Proxy::start(&server.address);
    proxy.cut_every(300_000);
    push_to(&patient(), &name_at(&proxy), &image).await.unwrap();
    pull_from(&patient(), &name_at(&proxy), &image)
        .await
        .unwrap();
    let cuts = proxy.total() / 300_000;
    assert!(cuts >= 13, "{cuts}");
    // All but the small documents moves once: what was cut was the end of a piece that had passed.
    let again = proxy.total() - 2 * SIZE;
    assert!(again < 20_000, "{again} bytes again");
    assert!(proxy.count("PATCH", UPLOAD) >= 6);
}

/// A large layer over slow connections comes in parts side by side, also when some of them break;
/// in one piece from a server that sends another part than was asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_3_a_large_layer_comes_in_parts_where_that_helps() {
    if !present(&["docker-registry"]) {
        return;
    }
    let registry = Registry::start("");
    let image = Image::new(&[bytes(68 << 20, 9)]);
    push_to(&patient(), &format!("{}/a", registry.address), &image)
        .await
        .unwrap();
    let size = image.manifest.value.layers[0].size;
    let slow = || {
        let proxy = Proxy::start(&registry.address);
        // 16 MB/s for each connection.
        proxy.slow(4);
        proxy
    };

    let proxy = slow();
    for at in [1, 4] {
        proxy.later(at, "GET", LAYER, Fault::CutAnswer(MIB));
    }
    pull_from(&patient(), &name_at(&proxy), &image)
        .await
        .unwrap();
    assert!(proxy.most() >= 3, "{} at once", proxy.most());
    assert_eq!(proxy.count("GET", LAYER), 1 + 15 + 2);
    assert_eq!((proxy.bytes(LAYER).1 - size, proxy.left()), (0, 0));

    let proxy = slow();
    proxy.fault("GET", LAYER, Fault::Edit(all_of_it));
    pull_from(&patient(), &name_at(&proxy), &image)
        .await
        .unwrap();
    assert_eq!((proxy.count("GET", LAYER), proxy.left()), (2, 0));
}

fn all_of_it(reply: &mut Reply) {
    reply.headers.retain(|(name, _)| name != "content-range");
}
