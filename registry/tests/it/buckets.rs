//! Large blobs into a bucket, in parts (C5).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_registry::blob::{BlobError, BlobSink as _, Put, Step};
use kiln_registry::client::{Bucket, BucketOptions};
use kiln_registry::credentials::Secret;
use kiln_registry::spec::Descriptor;
use sha2::{Digest as _, Sha256};

use crate::aws_fake::{ID, hex, verified};
use crate::env::{Image, bytes, chain, client, read, silent};
use crate::server::{Asked, Reply, Server};

const MIB: usize = 1 << 20;
const PART: usize = MIB;
const SIZE: usize = 7 * MIB / 2;

/// What the service says, once, where a request has this method and this in its query; `true` when
/// it does what was asked all the same.
type Fault = (&'static str, &'static str, Reply, bool);

#[derive(Debug, Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Vec<u8>>,
    /// The parts of each upload with their tags, by path and number.
    sessions: BTreeMap<String, (String, Parts)>,
    /// How many uploads have begun.
    begun: usize,
    modified: &'static str,
}

type Parts = BTreeMap<u32, (String, Vec<u8>)>;

/// A service of S3's language with one bucket, which really checks signatures and contents.
struct Service {
    server: Server,
    state: Arc<Mutex<State>>,
    faults: Arc<Mutex<Vec<Fault>>>,
}

impl Service {
    async fn start() -> Self {
        let server = Server::start().await;
        let state = Arc::new(Mutex::new(State {
            modified: "Tue, 15 Nov 2039 12:45:26 GMT",
            ..State::default()
        }));
        let faults: Arc<Mutex<Vec<Fault>>> = Arc::default();
        let (inner, orders) = (Arc::clone(&state), Arc::clone(&faults));
        server.custom(move |asked| {
            let mut orders = orders.lock().unwrap();
            let fits =
                |(method, part, ..): &Fault| asked.method == *method && asked.query.contains(part);
            let order = orders
                .iter()
                .position(fits)
                .map(|order| orders.remove(order));
            let does = order.as_ref().is_none_or(|(.., does)| *does);
            let right = does.then(|| answer(&mut inner.lock().unwrap(), asked));
            order.map(|(_, _, reply, _)| reply).or(right)
        });
        Self {
            server,
            state,
            faults,
        }
    }

    fn fault(&self, method: &'static str, part: &'static str, reply: Reply, does: bool) {
        let fault = (method, part, reply, does);
        self.faults.lock().unwrap().push(fault);
    }

    fn bucket(&self) -> Bucket {
        let secret = Secret::new("long/secret+key".to_owned());
        let options = BucketOptions {
            bucket: "b".to_owned(),
            region: "eu-west-1".to_owned(),
            endpoint: Some(format!("http://{}", self.server.address)),
            keys: Some((ID.to_owned(), secret, None)),
            blobs_prefix: "blobs/".to_owned(),
            touch_refresh: Duration::from_secs(3600),
            part_size: Some(PART as u64),
            ..BucketOptions::default()
        };
        client().bucket(options).unwrap()
    }

    async fn put(&self, image: &Image) -> Result<Put, BlobError> {
        self.bucket().put(layer(image), image, &silent).await
    }

    /// The requests that ended well or not, as method and query, each with its count.
    fn counts(&self) -> Vec<String> {
        let mut counts = BTreeMap::<String, usize>::new();
        for asked in self.server.log() {
            let query = asked
                .query
                .split('&')
                .map(|pair| pair.split('=').next().unwrap());
            let query = query.collect::<Vec<_>>().join("&");
            *counts
                .entry(format!("{} {query}", asked.method))
                .or_default() += 1;
        }
        let counts = counts.into_iter();
        counts
            .map(|(what, count)| format!("{count} {what}").trim().to_owned())
            .collect()
    }

    /// The objects; there must be no upload that has not ended.
    fn objects(&self) -> Vec<Vec<u8>> {
        let state = self.state.lock().unwrap();
        assert!(state.sessions.is_empty(), "{:?}", state.sessions.keys());
        state.objects.values().cloned().collect()
    }
}

fn error(status: u16, code: &str) -> Reply {
    Reply::new(status).body(format!(
        "<Error><Code>{code}</Code><Message>no</Message></Error>"
    ))
}

fn answer(state: &mut State, asked: &Asked) -> Reply {
    let content = hex(&Sha256::digest(&asked.body));
    if asked.header("x-amz-content-sha256") != Some(&content) {
        return error(400, "XAmzContentSHA256Mismatch");
    }
    let key = |id: &str| (id == ID).then_some(("long/secret+key", None));
    if let Err(problem) = verified(asked, "s3", key) {
        return error(403, &problem);
    }
    let query: BTreeMap<&str, &str> = asked
        .query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let number = query.get("partNumber").map(|text| text.parse().unwrap());
    let session = query.get("uploadId").map(|id| (*id).to_owned());
    match (asked.method.as_str(), session, number) {
        ("POST", None, None) if query.contains_key("uploads") => {
            state.begun += 1;
            let id = format!("id%2F{}", state.begun);
            let new = (asked.path.clone(), Parts::new());
            state.sessions.insert(id, new);
            Reply::new(200).body(format!("<R><UploadId>id/{}</UploadId></R>", state.begun))
        }
        ("PUT", Some(id), Some(number)) => put_part(state, asked, &id, number),
        ("POST", Some(id), None) => join(state, asked, &id),
        ("DELETE", Some(id), None) => match state.sessions.remove(&id) {
            Some(_) => Reply::new(204),
            None => error(404, "NoSuchUpload"),
        },
        ("PUT", None, None) => {
            let body = asked.body.clone();
            state.objects.insert(asked.path.clone(), body);
            Reply::new(200)
        }
        ("HEAD", None, None) => match state.objects.get(&asked.path) {
            Some(bytes) => Reply::new(200)
                .with("last-modified", state.modified)
                .body(bytes.clone()),
            None => Reply::new(404),
        },
        ("GET", None, None) => match state.objects.get(&asked.path) {
            Some(bytes) => Reply::new(200).body(bytes.clone()),
            None => Reply::new(404),
        },
        _ => error(405, "MethodNotAllowed"),
    }
}

fn put_part(state: &mut State, asked: &Asked, id: &str, number: u32) -> Reply {
    let bytes = match asked.header("x-amz-copy-source") {
        None => asked.body.clone(),
        Some(from) => {
            let range = asked.header("x-amz-copy-source-range").unwrap();
            let range = range.strip_prefix("bytes=").unwrap();
            let (start, last) = range.split_once('-').unwrap();
            let range = start.parse().unwrap()..=last.parse::<usize>().unwrap();
            state.objects[from][range].to_vec()
        }
    };
    let Some((_, parts)) = state.sessions.get_mut(id) else {
        return error(404, "NoSuchUpload");
    };
    let tag = hex(&Sha256::digest(&bytes)[..8]);
    parts.insert(number, (tag.clone(), bytes));
    match asked.header("x-amz-copy-source") {
        None => Reply::new(200).with("etag", format!("\"{tag}&\"")),
        Some(_) => Reply::new(200).body(format!(
            "<CopyPartResult><ETag>&quot;{tag}&amp;&quot;</ETag></CopyPartResult>"
        )),
    }
}

/// Joins the parts that are named, with their tags.
fn join(state: &mut State, asked: &Asked, id: &str) -> Reply {
    let Some((path, parts)) = state.sessions.get(id) else {
        return error(404, "NoSuchUpload");
    };
    let (mut named, mut whole) = (String::new(), Vec::new());
    for (number, (tag, bytes)) in parts {
        named.push_str(&format!(
            "<Part><PartNumber>{number}</PartNumber><ETag>\"{tag}&amp;\"</ETag></Part>"
        ));
        whole.extend_from_slice(bytes);
    }
    let space = "http://s3.amazonaws.com/doc/2006-03-01/";
    let named =
        format!("<CompleteMultipartUpload xmlns=\"{space}\">{named}</CompleteMultipartUpload>");
    let body = String::from_utf8_lossy(&asked.body);
    if body.replace("&quot;", "\"") != named {
        return error(400, "InvalidPart");
    }
    state.objects.insert(path.clone(), whole);
    state.sessions.remove(id);
    Reply::new(200).body("<?xml version=\"1.0\"?>\n<CompleteMultipartUploadResult/>")
}

fn layer(image: &Image) -> &Descriptor {
    &image.manifest.value.layers[0]
}

fn image() -> Image {
    Image::new(&[bytes(SIZE, 3)])
}

#[tokio::test]
async fn c5_a_large_blob_goes_into_a_bucket_in_parts() {
    let (service, image) = (Service::start().await, image());
    let (bucket, told) = (service.bucket(), Arc::new(Mutex::new(Vec::new())));
    let steps = Arc::clone(&told);
    let progress = move |_: &Descriptor, step: Step| steps.lock().unwrap().push(step);
    let put = bucket.put(layer(&image), &image, &progress).await;
    assert_eq!(put.unwrap(), Put::Sent);
    let counts = ["1 HEAD", "1 POST uploadId", "1 POST uploads"];
    let counts = [&counts[..], &["4 PUT partNumber&uploadId"]].concat();
    assert_eq!(service.counts(), counts);
    assert_eq!(service.objects(), [bytes(SIZE, 3)]);
    let steps = std::mem::take(&mut *told.lock().unwrap());
    let sent: Vec<u64> = steps
        .iter()
        .map(|step| match step {
            Step::Bytes(sent) => *sent,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(sent.is_sorted(), "{sent:?}");
    assert_eq!(sent.last(), Some(&(SIZE as u64)));

    let again = bucket.put(layer(&image), &image, &progress).await;
    assert_eq!(again.unwrap(), Put::Existed);
    let came = read(&bucket, layer(&image), 0).await.unwrap();
    assert!(came == bytes(SIZE, 3));
}

/// The largest blob of one part, and the smallest of two.
#[tokio::test]
async fn c5_parts_begin_above_the_size_of_one() {
    for (size, parts) in [(PART, 0), (PART + 1, 2)] {
        let (service, image) = (Service::start().await, Image::new(&[bytes(size, 3)]));
        assert_eq!(service.put(&image).await.unwrap(), Put::Sent);
        let log = service.server.log();
        let in_parts = log
            .iter()
            .filter(|asked| asked.query.contains("partNumber"));
        assert_eq!(
            (in_parts.count(), service.objects()),
            (parts, vec![bytes(size, 3)])
        );
    }
}

#[tokio::test]
async fn c5_what_fails_for_now_is_tried_again_and_no_other_part() {
    let (service, image) = (Service::start().await, image());
    service.fault("POST", "uploads=", error(503, "SlowDown"), false);
    service.fault("PUT", "partNumber=2", error(500, "InternalError"), false);
    // The status comes first, and then what became of it.
    service.fault("POST", "uploadId=", error(200, "InternalError"), false);
    // Its answer is lost: the upload is over then.
    service.fault("POST", "uploadId=", error(500, "InternalError"), true);
    assert_eq!(service.put(&image).await.unwrap(), Put::Sent);
    let counts = ["2 HEAD", "3 POST uploadId", "2 POST uploads"];
    let counts = [&counts[..], &["5 PUT partNumber&uploadId"]].concat();
    assert_eq!(service.counts(), counts);
    assert_eq!(service.objects(), [bytes(SIZE, 3)]);
}

#[tokio::test]
async fn c5_an_upload_that_fails_leaves_no_parts() {
    let cases = [
        (
            "PUT",
            "partNumber=3",
            error(403, "AccessDenied"),
            "AccessDenied",
        ),
        ("PUT", "partNumber=3", Reply::new(200), "there is no ETag"),
        (
            "POST",
            "uploadId=",
            error(400, "InvalidPart"),
            "InvalidPart",
        ),
        (
            "POST",
            "uploadId=",
            Reply::new(200).body("<html>"),
            "it does not say that the parts were joined",
        ),
    ];
    for (method, part, reply, words) in cases {
        let (service, image) = (Service::start().await, image());
        service.fault(method, part, reply, false);
        let error = chain(&service.put(&image).await.unwrap_err());
        assert!(error.contains(words), "{error}");
        assert!(service.objects().is_empty(), "{words}");
    }
    let (service, image) = (Service::start().await, image());
    service.fault("POST", "uploads=", Reply::new(200), false);
    let error = chain(&service.put(&image).await.unwrap_err());
    assert!(error.contains("there is no UploadId"), "{error}");
}

/// Each part is what it says, and the whole is not.
#[tokio::test]
async fn c5_parts_of_something_else_are_not_joined() {
    let changed = |bytes: &mut Vec<u8>| bytes[2 * MIB] ^= 1;
    let shorter = |bytes: &mut Vec<u8>| bytes.truncate(2 * MIB + 7);
    for (change, words) in [
        (changed as fn(&mut Vec<u8>), "digest mismatch"),
        (shorter, "size mismatch"),
    ] {
        let (service, mut image) = (Service::start().await, image());
        let digest = layer(&image).digest;
        change(image.blobs.get_mut(&digest).unwrap());
        let error = chain(&service.put(&image).await.unwrap_err());
        assert!(error.contains(words), "{error}");
        assert!(service.objects().is_empty());
        assert_eq!(service.server.count("DELETE", ""), 1);
    }
}

/// A service that deletes what is old sees that it is wanted; more than one request may copy takes
/// parts as well.
#[tokio::test]
async fn c5_a_large_blob_is_made_new_in_parts() {
    let (service, image) = (Service::start().await, image());
    service.put(&image).await.unwrap();
    service.state.lock().unwrap().modified = "Tue, 15 Nov 1994 12:45:26 GMT";
    service.fault("PUT", "partNumber=3", error(200, "InternalError"), false);
    assert_eq!(service.put(&image).await.unwrap(), Put::Existed);
    let copies = service.server.log().into_iter();
    let copies = copies.filter(|asked| asked.header("x-amz-copy-source").is_some());
    let ranges: Vec<String> = copies
        .map(|asked| asked.header("x-amz-copy-source-range").unwrap().to_owned())
        .collect();
    let expected = ["0-1048575", "1048576-2097151", "2097152-3145727"];
    let expected = [&expected[..], &["2097152-3145727", "3145728-3670015"]].concat();
    assert_eq!(
        ranges,
        expected
            .iter()
            .map(|range| format!("bytes={range}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(service.objects(), [bytes(SIZE, 3)]);
    assert_eq!(service.state.lock().unwrap().begun, 2);
}
