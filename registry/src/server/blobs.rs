//! Blobs out of a registry (D5.3), and their deletion (D9.2).

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::HeaderMap;
use hyper::body::Frame;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::reply::{Refused, Reply};
use super::{Shared, on_disk};
use crate::digest::Digest;

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Answers with a blob, or the part of it that is asked for.
pub(super) async fn get(
    shared: &Arc<Shared>,
    name: String,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Reply, Refused> {
    let found = on_disk(shared, move |folder| folder.blob(&name, digest)).await?;
    let (path, size) = found.ok_or_else(|| Refused::blob_unknown(digest))?;
    let tag = format!("\"{digest}\"");
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let range = text(RANGE).filter(|_| text(IF_RANGE).is_none_or(|known| known == tag));
    let part = range.map_or(Part::Whole, |range| Part::of(range, size));
    let (status, start, length) = match part {
        Part::Whole => (200, 0, size),
        Part::Some { start, end } => (206, start, end - start + 1),
        Part::None => {
            let refused = Refused::new(416, "SIZE_INVALID", "the range is not in the blob");
            return Err(refused.header(CONTENT_RANGE, format!("bytes */{size}")));
        }
    };
    let body = body(path, start, length).await?;
    let reply = Reply::new(status, body)
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, length)
        .header(ACCEPT_RANGES, "bytes")
        .header(ETAG, &tag)
        .digest(digest);
    Ok(match part {
        Part::Some { start, end } => {
            reply.header(CONTENT_RANGE, format!("bytes {start}-{end}/{size}"))
        }
        Part::Whole | Part::None => reply,
    })
}

type Body = http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error>;

async fn body(path: PathBuf, start: u64, length: u64) -> Result<Body, Refused> {
    let opened = async {
        let mut file = tokio::fs::File::open(path).await?;
        if start > 0 {
            file.seek(SeekFrom::Start(start)).await?;
        }
        Ok(file)
    };
    let file = opened.await.map_err(|error| Refused::disk(&error))?;
    let pieces = ReaderStream::with_capacity(file.take(length), CHUNK);
    Ok(BodyExt::boxed(StreamBody::new(pieces.map_ok(Frame::data))))
}

/// What of a blob is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// From one byte to another, both included.
    Some {
        start: u64,
        end: u64,
    },
    /// Nothing that is there.
    None,
}

impl Part {
    /// Reads `Range`; what cannot be understood, and several ranges, mean the whole.
    fn of(text: &str, size: u64) -> Self {
        let range = text
            .strip_prefix("bytes=")
            .and_then(|range| range.trim().split_once('-'));
        let Some((first, last)) = range else {
            return Self::Whole;
        };
        let number = |text: &str| text.parse::<u64>().ok();
        let (start, end) = match (first, last) {
            ("", count) => match number(count) {
                Some(count) => (size.saturating_sub(count), size.saturating_sub(1)),
                None => return Self::Whole,
            },
            (first, "") => match number(first) {
                Some(start) => (start, size.saturating_sub(1)),
                None => return Self::Whole,
            },
            (first, last) => match (number(first), number(last)) {
                (Some(start), Some(end)) if start <= end => {
                    (start, end.min(size.saturating_sub(1)))
                }
                _ => return Self::Whole,
            },
        };
        if start >= size || (first.is_empty() && last == "0") {
            return Self::None;
        }
        Self::Some { start, end }
    }
}

pub(super) async fn delete(
    shared: &Arc<Shared>,
    name: String,
    digest: Digest,
) -> Result<Reply, Refused> {
    if !shared.options.deletes {
        return Err(Refused::unsupported("deletion is off"));
    }
    let was_there = on_disk(shared, move |folder| folder.unlink_blob(&name, digest)).await?;
    if was_there {
        Ok(Reply::empty(202))
    } else {
        Err(Refused::blob_unknown(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d5_3_ranges() {
        let some = |start, end| Part::Some { start, end };
        for (text, expected) in [
            ("bytes=0-", some(0, 9)),
            ("bytes=3-", some(3, 9)),
            ("bytes=3-4", some(3, 4)),
            ("bytes=3-100", some(3, 9)),
            ("bytes=-4", some(6, 9)),
            ("bytes=-100", some(0, 9)),
            ("bytes=10-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=5-4", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("items=0-1", Part::Whole),
            ("bytes=x-", Part::Whole),
            ("bytes=99999999999999999999-", Part::Whole),
        ] {
            assert_eq!(Part::of(text, 10), expected, "{text}");
        }
        assert_eq!(Part::of("bytes=0-", 0), Part::None);
    }
}
