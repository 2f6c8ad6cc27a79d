//! The database's tables.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::StoreError;

/// Format version of the database, in `PRAGMA user_version`.
const VERSION: i64 = 1;

/// Times are seconds since 1970; digests are `sha256:HEX`.
const TABLES: &str = "
CREATE TABLE images (            -- an image known here
    id            TEXT PRIMARY KEY,   -- digest of its config
    manifest      TEXT,               -- digest of its manifest, as received or as pushed
    manifest_type TEXT,
    manifest_size INTEGER,
    stored        INTEGER NOT NULL
) STRICT;
CREATE TABLE names (
    name    TEXT PRIMARY KEY,         -- full name with tag
    image   TEXT NOT NULL REFERENCES images (id),
    tagged  INTEGER NOT NULL
) STRICT;
CREATE INDEX names_by_image ON names (image);
CREATE TABLE repo_digests (      -- under which digest a repository knows an image
    repository TEXT NOT NULL,
    digest     TEXT NOT NULL,
    image      TEXT NOT NULL REFERENCES images (id),
    PRIMARY KEY (repository, digest)
) STRICT;
CREATE TABLE layer_blobs (       -- compressed (or plain) forms of a layer that lie in blobs/
    diff_id    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (diff_id, digest)
) STRICT;
CREATE TABLE snapshots (         -- layers that lie unpacked in snapshots/
    id       TEXT PRIMARY KEY,
    diff_id  TEXT,                    -- once it was computed
    tar_size INTEGER,                 -- bytes of the uncompressed layer, with diff_id
    bytes    INTEGER NOT NULL,        -- content bytes, as `SIZE` shows them
    entries  INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    boot     TEXT                     -- NULL once surely on disk, else the boot that wrote it
) STRICT;
CREATE INDEX snapshots_by_diff_id ON snapshots (diff_id);
CREATE TABLE chains (            -- unpacked layers of images that were pulled or loaded
    chain_id TEXT PRIMARY KEY,
    snapshot TEXT NOT NULL REFERENCES snapshots (id)
) STRICT;
CREATE TABLE cache (             -- results of steps
    key      TEXT PRIMARY KEY,
    snapshot TEXT NOT NULL REFERENCES snapshots (id),
    used     INTEGER NOT NULL
) STRICT;
";

/// How long the set-up is tried again while other processes are at theirs.
const WAIT: Duration = Duration::from_secs(30);

/// Opens the database, making its tables first where there are none. Switching to the write-ahead
/// log does not honour the busy timeout, so that is waited for here.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let start = Instant::now();
    loop {
        match prepare(path) {
            Err(StoreError::Database { source, .. })
                if is_busy(&source) && start.elapsed() < WAIT =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DatabaseLocked)
    )
}

fn prepare(path: &Path) -> Result<Connection, StoreError> {
    let wrap = |source| StoreError::Database {
        path: path.to_owned(),
        source,
    };
    let mut database = Connection::open(path).map_err(wrap)?;
    // Waiting covers other processes' writes, which are short; a reader never waits in WAL mode.
    database
        .busy_timeout(Duration::from_secs(30))
        .map_err(wrap)?;
    database
        .pragma_update(None, "journal_mode", "wal")
        .map_err(wrap)?;
    database
        .pragma_update(None, "synchronous", "normal")
        .map_err(wrap)?;
    database
        .pragma_update(None, "foreign_keys", true)
        .map_err(wrap)?;
    let version = |database: &Connection| {
        database.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
    };
    if version(&database).map_err(wrap)? == 0 {
        let transaction = database
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(wrap)?;
        // Another process may have made the tables while we waited for the lock.
        if version(&transaction).map_err(wrap)? == 0 {
            transaction.execute_batch(TABLES).map_err(wrap)?;
            transaction
                .pragma_update(None, "user_version", VERSION)
                .map_err(wrap)?;
        }
        transaction.commit().map_err(wrap)?;
    }
    let found = version(&database).map_err(wrap)?;
    if found != VERSION {
        return Err(StoreError::Version {
            path: path.to_owned(),
            found: found.to_string(),
        });
    }
    Ok(database)
}
