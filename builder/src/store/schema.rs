//! The database's tables.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::StoreError;

/// What brings a database from one version to the next, oldest first: number 1 makes the tables of
/// version 1 in an empty one. `PRAGMA user_version` holds the version. A migration that has been
/// released stays as it is; a change is a new one at the end.
const MIGRATIONS: &[&str] = &[TABLES, BUILDS, PLACES, READS, SHAPES];

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

/// What was built, so that a miss of the cache can be explained (`store::builds`).
const BUILDS: &str = "
ALTER TABLE cache ADD COLUMN upon TEXT;  -- what the results were that the step stood on; NULL: not known
CREATE TABLE evictions (         -- results of steps that there were
    key    TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    at     INTEGER NOT NULL
) STRICT;
CREATE TABLE file_lists (        -- files that went into a key, as `cache::explain` packs them
    digest TEXT PRIMARY KEY,
    files  BLOB NOT NULL
) STRICT;
CREATE TABLE steps (             -- what went into the keys of a step
    key         TEXT PRIMARY KEY,     -- its definition key
    description TEXT NOT NULL,        -- JSON of `cache::explain`
    files       TEXT REFERENCES file_lists (digest) ON DELETE SET NULL,
    seconds     REAL,                 -- how long it took the last time it was executed
    used        INTEGER NOT NULL
) STRICT;
CREATE INDEX steps_by_files ON steps (files);
CREATE TABLE builds (            -- the last build of each project
    id      INTEGER PRIMARY KEY,
    project TEXT NOT NULL UNIQUE,     -- digest of context and Dockerfile
    name    TEXT,                     -- repository of its first tag
    ended   INTEGER NOT NULL
) STRICT;
CREATE INDEX builds_by_name ON builds (name);
CREATE TABLE build_steps (       -- its steps
    build    INTEGER NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    key      TEXT NOT NULL REFERENCES steps (key) ON DELETE CASCADE,
    PRIMARY KEY (build, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX build_steps_by_key ON build_steps (key);
";

/// Builds of one Dockerfile under several names are several projects.
const PLACES: &str = "
ALTER TABLE builds ADD COLUMN place TEXT;  -- digest of context and Dockerfile
CREATE INDEX builds_by_place ON builds (place);
";

/// What a step reads besides its root, for caches beyond the store.
const READS: &str = "ALTER TABLE cache ADD COLUMN reads TEXT;  -- cache::reads_key; NULL: not known
";

/// What the files look like that were copied into a layer. Of layers that were made before it is not
/// known, which the empty shape says.
const SHAPES: &str = "
CREATE TABLE shapes (            -- of remembered results of copies
    shape    TEXT NOT NULL,           -- cache::shape_key
    snapshot TEXT NOT NULL REFERENCES snapshots (id),
    PRIMARY KEY (shape, snapshot)
) STRICT, WITHOUT ROWID;
CREATE INDEX shapes_by_snapshot ON shapes (snapshot);
INSERT INTO shapes SELECT DISTINCT '', snapshot FROM cache;
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
    hide(path)?;
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
    migrate(&mut database, path, MIGRATIONS)?;
    Ok(database)
}

/// Keeps others from reading the database, and with it the files beside it: it holds values of build
/// arguments.
fn hide(path: &Path) -> Result<(), StoreError> {
    let hide = || {
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 == 0 {
            return Ok(());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))
    };
    hide().map_err(StoreError::io("setting the mode of", path))
}

/// Brings a database to the last version, all steps of the way or none.
fn migrate(database: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), StoreError> {
    let wrap = |source| StoreError::Database {
        path: path.to_owned(),
        source,
    };
    let version = |database: &Connection| {
        database.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
    };
    let last = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    if version(database).map_err(wrap)? < last {
        let transaction = database
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(wrap)?;
        // Another process may have done it while we waited for the lock.
        let found = version(&transaction).map_err(wrap)?;
        for migration in migrations.iter().skip(usize::try_from(found).unwrap_or(0)) {
            transaction.execute_batch(migration).map_err(wrap)?;
        }
        if found < last {
            transaction
                .pragma_update(None, "user_version", last)
                .map_err(wrap)?;
        }
        transaction.commit().map_err(wrap)?;
    }
    let found = version(database).map_err(wrap)?;
    if found != last {
        return Err(StoreError::DatabaseVersion {
            path: path.to_owned(),
            found,
            known: last,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(database: &Connection) -> Vec<String> {
        let mut statement = database
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
            .unwrap();
        let names = statement.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    }

    #[test]
    fn a_database_of_each_earlier_version_gets_what_a_new_one_has() {
        let folder = tempfile::tempdir().unwrap();
        let new = open(&folder.path().join("new")).unwrap();
        for version in 0..MIGRATIONS.len() {
            let path = folder.path().join(version.to_string());
            let mut old = Connection::open(&path).unwrap();
            if version > 0 {
                migrate(&mut old, &path, &MIGRATIONS[..version]).unwrap();
                old.execute("INSERT INTO images (id, stored) VALUES ('sha256:1', 2)", [])
                    .unwrap();
            }
            drop(old);
            let now = open(&path).unwrap();
            assert_eq!(tables(&now), tables(&new), "from version {version}");
            let images: i64 = now
                .query_row("SELECT count(*) FROM images", [], |row| row.get(0))
                .unwrap();
            assert_eq!(images, i64::from(version > 0), "what it held stays");
        }
    }

    #[test]
    fn of_layers_of_an_earlier_version_nobody_knows_what_their_files_look_like() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let mut old = Connection::open(&path).unwrap();
        migrate(&mut old, &path, &MIGRATIONS[..4]).unwrap();
        old.execute_batch(
            "INSERT INTO snapshots (id, bytes, entries, created) VALUES ('one', 1, 1, 1);
             INSERT INTO cache (key, snapshot, used) VALUES ('a', 'one', 1), ('b', 'one', 1);",
        )
        .unwrap();
        drop(old);
        let now = open(&path).unwrap();
        let shape = now.query_row("SELECT shape, snapshot FROM shapes", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        });
        assert_eq!(shape.unwrap(), (String::new(), "one".to_owned()));
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        drop(open(&path).unwrap());
        let mut database = Connection::open(&path).unwrap();
        let before = tables(&database);
        let mut more = MIGRATIONS.to_vec();
        more.extend(["CREATE TABLE more (a TEXT) STRICT;", "no statement"]);
        assert!(migrate(&mut database, &path, &more).is_err());
        assert_eq!(tables(&database), before);
        migrate(&mut database, &path, MIGRATIONS).unwrap();
    }

    #[test]
    fn a_database_of_a_later_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let last = i64::try_from(MIGRATIONS.len()).unwrap();
        let database = open(&path).unwrap();
        database
            .pragma_update(None, "user_version", last + 1)
            .unwrap();
        let error = open(&path).unwrap_err();
        let text = format!(
            "has format version {}, this kiln knows version {last}",
            last + 1
        );
        assert!(error.to_string().ends_with(&text), "{error}");
    }
}
