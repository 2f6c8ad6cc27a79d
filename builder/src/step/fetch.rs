//! `ADD URL`: downloads a file (A12.3).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use kiln_registry::client::{Body, ClientError};
use kiln_registry::digest::{Digest, Hasher};

use super::{StepError, Worker};
use crate::graph::FetchOp;
use crate::snapshot::SnapshotId;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server or the network said no.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The file is another one than announced.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Checksum {
        /// Value of `--checksum`.
        expected: Digest,
        /// Digest of what came.
        actual: Digest,
    },
    /// The file could not be written.
    #[error("writing the file")]
    Io(#[from] io::Error),
}

/// Downloads a file into a layer that holds just it: mode 0600, owner 0:0, time as the server says.
pub async fn fetch(worker: &Worker, op: &FetchOp) -> Result<SnapshotId, StepError> {
    let active = worker.snapshots.prepare()?;
    let path = active.upper().join(&op.name);
    let failed = |source: FetchError| StepError::Fetch {
        url: kiln_registry::client::redacted(&op.url),
        source,
    };
    let mut body = worker
        .client
        .fetch(&op.url)
        .await
        .map_err(|error| failed(error.into()))?;
    let time = body
        .last_modified()
        .unwrap_or_else(|| worker.settings.time());
    let write = async {
        let mut file = File::create(&path)?;
        let actual = receive(&mut body, &mut file).await?;
        if let Some(expected) = op.checksum.filter(|expected| *expected != actual) {
            return Err(FetchError::Checksum { expected, actual });
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        file.set_modified(time)?;
        Ok(())
    };
    write.await.map_err(failed)?;
    Ok(worker.snapshots.commit(active)?)
}

async fn receive(body: &mut Body, file: &mut File) -> Result<Digest, FetchError> {
    let mut hasher = Hasher::new();
    while let Some(chunk) = body.chunk().await? {
        hasher.update(&chunk);
        // Chunks are small; writing them to the page cache does not hold up the executor.
        file.write_all(&chunk)?;
    }
    Ok(hasher.finish())
}

/// Seconds since 1970 as the time of a file.
pub(super) fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
