//! What was built last: which steps each project had and what went into their keys, so that a miss
//! of the cache can be explained, and what became of results that there were.
//!
//! Nothing here decides what is executed, and nothing depends on it being there: it is kept within
//! bounds by forgetting what is oldest.

use kiln_registry::digest::Digest;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Store, StoreError, digest};

/// Projects that are remembered.
const PROJECTS: i64 = 200;
/// Steps of earlier builds are forgotten after so many days.
const STEP_DAYS: i64 = 30;
/// Steps of earlier builds that are remembered besides.
const STEPS: i64 = 5_000;
/// Bytes of all lists of files.
const LISTS: i64 = 64 << 20;
/// Evictions are forgotten after so many days.
const EVICTION_DAYS: i64 = 90;

/// What is built again and again: a Dockerfile in a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Digest of the context's folder, the Dockerfile, the target stage and the platform.
    pub place: Digest,
    /// Repository of the image, by which it is found again in another folder.
    pub name: Option<String>,
}

impl Project {
    /// Tells it from others on this machine.
    fn id(&self) -> String {
        match &self.name {
            None => self.place.to_string(),
            Some(name) => Digest::of(format!("{} {name}", self.place).as_bytes()).to_string(),
        }
    }
}

/// What is known of a step that was built.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// Its definition key.
    pub key: Digest,
    /// What went into that key, as `cache::explain` describes it.
    pub description: String,
    /// Which list of files did.
    pub files: Option<Digest>,
    /// How long it took the last time it was executed, seconds.
    pub seconds: Option<f64>,
}

/// A list of files, as `cache::explain` packs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileList {
    /// Digest of the files that it lists.
    pub digest: Digest,
    /// The packed list.
    pub packed: Vec<u8>,
}

/// A build that has ended.
#[derive(Clone, Copy, Debug)]
pub struct BuildRecord<'a> {
    /// What was built.
    pub project: &'a Project,
    /// The definition keys of its steps, in order; those that have no record are left out.
    pub steps: &'a [Digest],
    /// Records of steps that have none yet.
    pub new: &'a [StepRecord],
    /// The lists of files that these name.
    pub lists: &'a [FileList],
    /// How long those took that were executed, seconds.
    pub seconds: &'a [(Digest, f64)],
}

/// Why there is no result any more of a step that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// It was removed to free space.
    Removed,
    /// Its files were not what they had been.
    Damaged,
    /// The machine stopped before they were safe on disk.
    Unsafe,
    /// Somebody removed them past kiln.
    Lost,
    /// There never was one: the step failed.
    Failed,
}

impl Eviction {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Removed, "removed"),
        (Self::Damaged, "damaged"),
        (Self::Unsafe, "unsafe"),
        (Self::Failed, "failed"),
    ];

    /// The word for it in the database.
    pub(super) fn word(self) -> &'static str {
        let known = Self::ALL.iter().find(|(known, _)| *known == self);
        known.map_or("removed", |(_, word)| word)
    }

    fn of_word(word: &str) -> Self {
        let known = Self::ALL.iter().find(|(_, known)| *known == word);
        known.map_or(Self::Removed, |(known, _)| *known)
    }
}

impl Store {
    /// The definition keys of the steps that a project had when it was built last; none where it
    /// was not built yet.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn last_keys(&self, project: &Project) -> Result<Vec<Digest>, StoreError> {
        let keys = self.query(|db| {
            db.prepare_cached(
                "SELECT key FROM builds JOIN build_steps ON build = id WHERE project = ?1 ORDER BY position",
            )?
            .query_map([project.id()], |row| row.get::<_, String>(0))?
            .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        keys.iter().map(|key| digest(key, "a build")).collect()
    }

    /// The steps of the build that this one is to be compared with: the last one of the project, else
    /// of an image of that name, else of that Dockerfile, else the last that had a step with one of
    /// these definition keys.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn last_build(
        &self,
        project: &Project,
        keys: &[Digest],
    ) -> Result<Vec<StepRecord>, StoreError> {
        let rows = self.query(|db| match find_build(db, project, keys)? {
            Some(build) => db
                .prepare_cached(
                    "SELECT steps.key, description, files, seconds FROM build_steps JOIN steps ON steps.key = build_steps.key
                     WHERE build = ?1 ORDER BY position",
                )?
                .query_map([build], step_row)?
                .collect(),
            None => Ok(Vec::new()),
        })?;
        rows.into_iter().map(step_record).collect()
    }

    /// What is known of the step with this definition key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn step_record(&self, key: &Digest) -> Result<Option<StepRecord>, StoreError> {
        let row = self.query(|db| {
            db.prepare_cached("SELECT key, description, files, seconds FROM steps WHERE key = ?1")?
                .query_row([key.to_string()], step_row)
                .optional()
        })?;
        row.map(step_record).transpose()
    }

    /// A packed list of files.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn file_list(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.query(|db| {
            db.prepare_cached("SELECT files FROM file_lists WHERE digest = ?1")?
                .query_row([digest.to_string()], |row| row.get(0))
                .optional()
        })
    }

    /// Records a build instead of the one before of its project.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_build(&self, build: &BuildRecord<'_>) -> Result<(), StoreError> {
        self.change(|db| {
            insert_steps(db, build)?;
            insert_build(db, build)?;
            forget_old(db)
        })
    }

    /// What became of the result of the step with this key, and when, in seconds since 1970: `None`
    /// for one that is there, or never was.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn eviction(&self, key: &Digest) -> Result<Option<(Eviction, Option<i64>)>, StoreError> {
        let row = self.query(|db| {
            db.prepare_cached("SELECT reason, at FROM evictions WHERE key = ?1")?
                .query_row([key.to_string()], |row| {
                    let word: String = row.get(0)?;
                    Ok((Eviction::of_word(&word), Some(row.get(1)?)))
                })
                .optional()
        })?;
        if row.is_some() {
            return Ok(row);
        }
        let remembered = self.query(|db| {
            db.prepare_cached("SELECT 1 FROM cache WHERE key = ?1")?
                .exists([key.to_string()])
        })?;
        let lost = remembered && self.cached(key)?.is_none();
        Ok(lost.then_some((Eviction::Lost, None)))
    }

    /// Records that a step failed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_failure(&self, key: &Digest) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "INSERT OR REPLACE INTO evictions (key, reason, at) VALUES (?1, ?2, unixepoch())",
                params![key.to_string(), Eviction::Failed.word()],
            )
        })?;
        Ok(())
    }
}

/// A row of `steps`.
type StepRow = (String, String, Option<String>, Option<f64>);

fn step_row(row: &Row<'_>) -> rusqlite::Result<StepRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn step_record((key, description, files, seconds): StepRow) -> Result<StepRecord, StoreError> {
    let files = files.map(|files| digest(&files, "a step")).transpose()?;
    Ok(StepRecord {
        key: digest(&key, "a step")?,
        description,
        files,
        seconds,
    })
}

fn find_build(
    db: &Connection,
    project: &Project,
    keys: &[Digest],
) -> rusqlite::Result<Option<i64>> {
    let one = |sql: &str, parameter: &str| {
        db.prepare_cached(sql)?
            .query_row([parameter], |row| row.get::<_, i64>(0))
            .optional()
    };
    if let Some(build) = one("SELECT id FROM builds WHERE project = ?1", &project.id())? {
        return Ok(Some(build));
    }
    if let Some(name) = &project.name {
        let sql = "SELECT id FROM builds WHERE name = ?1 ORDER BY ended DESC, id DESC LIMIT 1";
        if let Some(build) = one(sql, name)? {
            return Ok(Some(build));
        }
    }
    let sql = "SELECT id FROM builds WHERE place = ?1 ORDER BY ended DESC, id DESC LIMIT 1";
    if let Some(build) = one(sql, &project.place.to_string())? {
        return Ok(Some(build));
    }
    // The last of its steps says most.
    for key in keys.iter().rev() {
        let sql = "SELECT id FROM build_steps JOIN builds ON id = build WHERE key = ?1 ORDER BY ended DESC, id DESC LIMIT 1";
        if let Some(build) = one(sql, &key.to_string())? {
            return Ok(Some(build));
        }
    }
    Ok(None)
}

fn insert_steps(db: &Connection, build: &BuildRecord<'_>) -> rusqlite::Result<()> {
    let mut insert =
        db.prepare_cached("INSERT OR IGNORE INTO file_lists (digest, files) VALUES (?1, ?2)")?;
    for list in build.lists {
        insert.execute(params![list.digest.to_string(), list.packed])?;
    }
    // A list that was too large to be kept is named by nobody.
    let mut insert = db.prepare_cached(
        "INSERT INTO steps (key, description, files, seconds, used)
         VALUES (?1, ?2, (SELECT digest FROM file_lists WHERE digest = ?3), ?4, unixepoch())
         ON CONFLICT (key) DO UPDATE SET description = excluded.description, files = excluded.files, used = excluded.used",
    )?;
    for step in build.new {
        insert.execute(params![
            step.key.to_string(),
            step.description,
            step.files.map(|files| files.to_string()),
            step.seconds
        ])?;
    }
    let mut update = db.prepare_cached("UPDATE steps SET seconds = ?2 WHERE key = ?1")?;
    for (key, seconds) in build.seconds {
        update.execute(params![key.to_string(), seconds])?;
    }
    Ok(())
}

fn insert_build(db: &Connection, build: &BuildRecord<'_>) -> rusqlite::Result<()> {
    let (id, Project { place, name }) = (build.project.id(), build.project);
    db.execute("DELETE FROM builds WHERE project = ?1", [&id])?;
    db.execute(
        "INSERT INTO builds (project, name, place, ended) VALUES (?1, ?2, ?3, unixepoch())",
        params![id, name, place.to_string()],
    )?;
    let row = db.last_insert_rowid();
    let mut insert = db.prepare_cached(
        "INSERT INTO build_steps (build, position, key) SELECT ?1, ?2, key FROM steps WHERE key = ?3",
    )?;
    let mut update = db.prepare_cached("UPDATE steps SET used = unixepoch() WHERE key = ?1")?;
    for (position, key) in (0_i64..).zip(build.steps) {
        insert.execute(params![row, position, key.to_string()])?;
        update.execute([key.to_string()])?;
    }
    Ok(())
}

/// Forgets what is beyond the bounds.
fn forget_old(db: &Connection) -> rusqlite::Result<()> {
    db.execute(
        "DELETE FROM builds WHERE id NOT IN (SELECT id FROM builds ORDER BY ended DESC, id DESC LIMIT ?1)",
        [PROJECTS],
    )?;
    db.execute(
        "DELETE FROM steps WHERE key NOT IN (SELECT key FROM build_steps)
         AND (used < unixepoch() - ?1 * 86400 OR key NOT IN (SELECT key FROM steps ORDER BY used DESC LIMIT ?2))",
        [STEP_DAYS, STEPS],
    )?;
    db.execute(
        "DELETE FROM file_lists WHERE digest NOT IN (SELECT files FROM steps WHERE files IS NOT NULL)",
        [],
    )?;
    let size: i64 = db.query_row(
        "SELECT coalesce(sum(length(files)), 0) FROM file_lists",
        [],
        |row| row.get(0),
    )?;
    if size > LISTS {
        forget_lists(db, size - LISTS)?;
    }
    db.execute(
        "DELETE FROM evictions WHERE at < unixepoch() - ?1 * 86400",
        [EVICTION_DAYS],
    )?;
    Ok(())
}

/// Forgets lists that were not used for longest, until so many bytes are free.
fn forget_lists(db: &Connection, mut excess: i64) -> rusqlite::Result<()> {
    let lists = db
        .prepare(
            "SELECT digest, length(file_lists.files), max(used) AS last FROM file_lists JOIN steps ON steps.files = digest
             GROUP BY digest ORDER BY last, digest",
        )?
        .query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for (digest, size) in lists {
        if excess <= 0 {
            break;
        }
        db.execute("DELETE FROM file_lists WHERE digest = ?1", [digest])?;
        excess -= size;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(id: &str, name: Option<&str>) -> Project {
        Project {
            place: Digest::of(id.as_bytes()),
            name: name.map(ToOwned::to_owned),
        }
    }

    fn step(key: &str, files: Option<&FileList>) -> StepRecord {
        StepRecord {
            key: Digest::of(key.as_bytes()),
            description: key.to_owned(),
            files: files.map(|list| list.digest),
            seconds: None,
        }
    }

    fn list(text: &str, size: usize) -> FileList {
        FileList {
            digest: Digest::of(text.as_bytes()),
            packed: vec![1; size],
        }
    }

    fn record(store: &Store, project: &Project, steps: &[StepRecord], lists: &[FileList]) {
        let keys: Vec<_> = steps.iter().map(|step| step.key).collect();
        store
            .record_build(&BuildRecord {
                project,
                steps: &keys,
                new: steps,
                lists,
                seconds: &[(keys[0], 1.5)],
            })
            .unwrap();
    }

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (folder, store)
    }

    #[test]
    fn a_build_is_found_by_its_project_its_name_and_its_steps() {
        let (_folder, store) = store();
        let files = list("files", 10);
        let one = [step("a", None), step("b", Some(&files))];
        record(&store, &project("one", Some("app")), &one, &[files]);
        let two = [step("a", None), step("c", None)];
        record(&store, &project("two", None), &two, &[]);

        let found = |project: &Project, keys: &[&str]| {
            let keys: Vec<_> = keys.iter().map(|key| Digest::of(key.as_bytes())).collect();
            let steps = store.last_build(project, &keys).unwrap();
            let texts = steps.into_iter().map(|step| step.description);
            texts.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            found(&project("one", None), &["c"]),
            "a b",
            "the same place"
        );
        assert_eq!(found(&project("two", Some("app")), &[]), "a b", "the name");
        assert_eq!(found(&project("two", Some("other")), &[]), "a c");
        assert_eq!(found(&project("new", Some("app")), &[]), "a b");
        assert_eq!(found(&project("new", Some("no")), &["a", "b"]), "a b");
        assert_eq!(found(&project("new", None), &["a"]), "a c", "the last one");
        assert_eq!(found(&project("new", None), &["d"]), "");
        let known = store.step_record(&Digest::of(b"a")).unwrap().unwrap();
        assert_eq!(known.seconds, Some(1.5));
        let known = store.step_record(&Digest::of(b"b")).unwrap().unwrap();
        let packed = store.file_list(&known.files.unwrap()).unwrap();
        assert_eq!(packed, Some(vec![1; 10]));
    }

    #[test]
    fn what_is_kept_stays_within_bounds() {
        let (_folder, store) = store();
        let count = |table: &str| {
            let sql = format!("SELECT count(*) FROM {table}");
            let count = store.query(|db| db.query_row(&sql, [], |row| row.get::<_, i64>(0)));
            count.unwrap()
        };
        for number in 0..5 {
            let files = list(&format!("files {number}"), 15 << 20);
            let steps = [step(&number.to_string(), Some(&files))];
            record(
                &store,
                &project(&number.to_string(), None),
                &steps,
                &[files],
            );
        }
        assert_eq!(count("file_lists"), 4, "64 MiB in lists");
        assert_eq!(count("steps"), 5, "their steps stay");
        for number in 0..PROJECTS {
            let steps = [step(&format!("more {number}"), None)];
            record(
                &store,
                &project(&format!("more {number}"), None),
                &steps,
                &[],
            );
        }
        assert_eq!(count("builds"), PROJECTS);
        assert_eq!(count("build_steps"), PROJECTS);
        store
            .query(|db| {
                db.execute(
                    "UPDATE steps SET used = 5 WHERE key NOT IN (SELECT key FROM build_steps)",
                    [],
                )
            })
            .unwrap();
        record(&store, &project("one", None), &[step("one", None)], &[]);
        assert_eq!(
            count("steps"),
            PROJECTS + 1,
            "and those of the build that has just gone"
        );
        assert_eq!(count("file_lists"), 0);
    }

    #[test]
    fn a_failure_is_known_until_the_step_succeeds() {
        let (_folder, store) = store();
        let key = Digest::of(b"key");
        assert_eq!(store.eviction(&key).unwrap(), None);
        store.record_failure(&key).unwrap();
        let (why, at) = store.eviction(&key).unwrap().unwrap();
        assert_eq!(why, Eviction::Failed);
        assert!(at.unwrap() > 1_700_000_000);
    }
}
