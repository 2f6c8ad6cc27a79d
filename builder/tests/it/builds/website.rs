//! One page on a loopback port.

use crate::http::{Http, reply};

/// A server that answers every request with the same bytes, for as long as the value lives.
pub(super) fn website(page: Vec<u8>) -> Http {
    let headers = [
        ("content-type", "text/plain"),
        ("last-modified", "Sat, 03 Feb 2024 04:05:06 GMT"),
    ];
    Http::start(move |asked, stream| reply(asked, stream, 200, &headers, &page))
}
