//! Parts of one large blob on several connections: what is slow is more often the way of one
//! connection than the registry (D5.3).
//!
//! The parts are handed out in order, so that the digest can be computed on the way. How many are
//! held in memory is bounded for all blobs of a client together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ClientError;
use super::pull::Download;
use crate::blob::BoxFuture;

/// Blobs of which at least so many bytes are missing are asked for in parts.
pub(super) const LARGE: u64 = 64 << 20;

/// The first part, bytes: it shows whether the registry serves parts, and how fast.
pub(super) const FIRST: u64 = 8 << 20;

/// A registry that sends the first part in this time is fast enough for one connection.
pub(super) const FAST: Duration = Duration::from_millis(125);

/// Size of each further part, bytes.
const PART: u64 = 4 << 20;

/// The most parts of one blob at once, and of all blobs of a client.
const EACH: u32 = 4;
const ALL: usize = 6;

/// The right to hold parts in memory.
#[derive(Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL)))
    }
}

type Part = BoxFuture<'static, Result<Bytes, ClientError>>;

/// The parts of one blob that are on their way.
pub(super) struct Lanes {
    /// Never locked: who has the lanes has them alone. Futures may not be shared otherwise.
    parts: Mutex<FuturesOrdered<Part>>,
    /// Where the parts begin and end that have not been asked for.
    waiting: VecDeque<(u64, u64)>,
    _room: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

impl Lanes {
    /// Begins to fetch the bytes of a blob between two offsets; `None` when other blobs take all
    /// the room there is.
    pub(super) fn open(room: &Room, blob: &Download, start: u64, end: u64) -> Option<Self> {
        let take = |count| Arc::clone(&room.0).try_acquire_many_owned(count).ok();
        let (count, room) = [EACH, EACH / 2]
            .into_iter()
            .find_map(|count| Some((count, take(count)?)))?;
        let step = usize::try_from(PART).unwrap_or(usize::MAX);
        let starts = (start..end).step_by(step);
        let mut lanes = Self {
            parts: Mutex::new(FuturesOrdered::new()),
            waiting: starts.map(|at| (at, (at + PART).min(end))).collect(),
            _room: room,
        };
        for _ in 0..count {
            lanes.refill(blob);
        }
        Some(lanes)
    }

    fn parts(&mut self) -> &mut FuturesOrdered<Part> {
        self.parts.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for another part, once one has been handed out.
    pub(super) fn refill(&mut self, blob: &Download) {
        if let Some((start, end)) = self.waiting.pop_front() {
            self.parts().push_back(fetch(blob.part(start, end)));
        }
    }

    /// The next part in order; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        self.parts().next().await
    }
}

fn fetch(mut part: Download) -> Part {
    Box::pin(async move {
        let mut bytes = BytesMut::new();
        part.start().await?;
        while let Some(piece) = part.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    })
}
