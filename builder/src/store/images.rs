//! Images and their names.

use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::{Descriptor, ImageConfig};
use rusqlite::{OptionalExtension as _, Row, params};

use super::{Store, StoreError, digest};

/// An image in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRecord {
    /// Digest of its config: the image id.
    pub id: Digest,
    /// Its manifest as it was received or pushed; `None` for an image that never left here.
    pub manifest: Option<Descriptor>,
}

/// A name and the image it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// The full name, with tag.
    pub name: String,
    /// The image's id.
    pub image: Digest,
}

/// A digest under which a repository knows an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoDigest {
    /// Full name of the repository.
    pub repository: String,
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// The image's id.
    pub image: Digest,
}

impl Store {
    /// Records an image whose config, and what else is named, lie in the store already. A manifest
    /// that is known is kept when none is given.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_image(&self, id: &Digest, manifest: Option<&Descriptor>) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "INSERT INTO images (id, manifest, manifest_type, manifest_size, stored) VALUES (?1, ?2, ?3, ?4, unixepoch())
                 ON CONFLICT (id) DO UPDATE SET
                    manifest = coalesce(excluded.manifest, manifest),
                    manifest_type = coalesce(excluded.manifest_type, manifest_type),
                    manifest_size = coalesce(excluded.manifest_size, manifest_size)",
                params![
                    id.to_string(),
                    manifest.map(|m| m.digest.to_string()),
                    manifest.map(|m| &m.media_type),
                    manifest.map(|m| i64::try_from(m.size).unwrap_or(i64::MAX)),
                ],
            )
        })?;
        Ok(())
    }

    /// Gives an image a name; returns the id that had it before, if it was another.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn tag(&self, name: &Reference, image: &Digest) -> Result<Option<Digest>, StoreError> {
        let name = full_name(name);
        let before = self.change(|db| {
            let before: Option<String> = db
                .query_row("SELECT image FROM names WHERE name = ?1", [&name], |row| {
                    row.get(0)
                })
                .optional()?;
            db.execute(
                "INSERT OR REPLACE INTO names (name, image, tagged) VALUES (?1, ?2, unixepoch())",
                params![name, image.to_string()],
            )?;
            Ok(before)
        })?;
        let before = before.map(|text| digest(&text, "a name")).transpose()?;
        Ok(before.filter(|before| before != image))
    }

    /// Records under which digest a repository knows an image.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_repo_digest(
        &self,
        name: &Reference,
        manifest: &Digest,
        image: &Digest,
    ) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "INSERT OR REPLACE INTO repo_digests (repository, digest, image) VALUES (?1, ?2, ?3)",
                params![repository(name), manifest.to_string(), image.to_string()],
            )
        })?;
        Ok(())
    }

    /// All images, those stored last first.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let rows = self.query(|db| {
            let mut statement =
                db.prepare("SELECT id, manifest, manifest_type, manifest_size FROM images ORDER BY stored DESC, id")?;
            statement.query_map([], image_row)?.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(image_record).collect()
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn names(&self) -> Result<Vec<NamedImage>, StoreError> {
        let rows = self.query(|db| {
            let mut statement = db.prepare("SELECT name, image FROM names ORDER BY name")?;
            statement
                .query_map([], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter()
            .map(|(name, image)| {
                Ok(NamedImage {
                    name,
                    image: digest(&image, "a name")?,
                })
            })
            .collect()
    }

    /// All digests under which repositories know images.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn repo_digests(&self) -> Result<Vec<RepoDigest>, StoreError> {
        let rows = self.query(|db| {
            let mut statement =
                db.prepare("SELECT repository, digest, image FROM repo_digests ORDER BY 1, 2")?;
            statement
                .query_map([], |row| {
                    Ok((
                        row.get::<_, String>(0)?,
                        row.get::<_, String>(1)?,
                        row.get::<_, String>(2)?,
                    ))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let what = "a repository digest";
        rows.into_iter()
            .map(|(repository, manifest, image)| {
                Ok(RepoDigest {
                    repository,
                    digest: digest(&manifest, what)?,
                    image: digest(&image, what)?,
                })
            })
            .collect()
    }

    /// The record of one image.
    ///
    /// # Errors
    /// [`StoreError::NoImage`] when there is none.
    pub fn image(&self, id: &Digest) -> Result<ImageRecord, StoreError> {
        let row = self.query(|db| {
            db.query_row(
                "SELECT id, manifest, manifest_type, manifest_size FROM images WHERE id = ?1",
                [id.to_string()],
                image_row,
            )
            .optional()
        })?;
        image_record(row.ok_or_else(|| StoreError::NoImage(id.to_string()))?)
    }

    /// The image that a name with tag, or with digest, stands for.
    ///
    /// # Errors
    /// When the database cannot be read or holds nonsense.
    pub fn named(&self, name: &Reference) -> Result<Option<Digest>, StoreError> {
        let found: Option<String> = self.query(|db| match &name.digest {
            Some(digest) => db
                .query_row(
                    "SELECT image FROM repo_digests WHERE repository = ?1 AND digest = ?2",
                    params![repository(name), digest.to_string()],
                    |row| row.get(0),
                )
                .optional(),
            None => db
                .query_row(
                    "SELECT image FROM names WHERE name = ?1",
                    [full_name(name)],
                    |row| row.get(0),
                )
                .optional(),
        })?;
        found.map(|text| digest(&text, "a name")).transpose()
    }

    /// The image that a user means (D1.6): an exact name, else the prefix of an id, with or without
    /// `sha256:`.
    ///
    /// # Errors
    /// [`StoreError::NoImage`], [`StoreError::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<Digest, StoreError> {
        if let Ok(name) = Reference::parse(text)
            && let Some(image) = self.named(&name)?
        {
            return Ok(image);
        }
        let none = || StoreError::NoImage(text.to_owned());
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty()
            || prefix.len() > 64
            || !prefix
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(none());
        }
        let ids = self.query(|db| {
            let mut statement =
                db.prepare("SELECT id FROM images WHERE id >= ?1 AND id < ?2 LIMIT 2")?;
            // `g` is the character behind the last hexadecimal digit.
            let range = params![format!("sha256:{prefix}"), format!("sha256:{prefix}g")];
            statement
                .query_map(range, |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        match &ids[..] {
            [] => Err(none()),
            [id] => digest(id, "an image"),
            _ => Err(StoreError::Ambiguous(text.to_owned())),
        }
    }

    /// The config of an image.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn config(&self, id: &Digest) -> Result<ImageConfig, StoreError> {
        serde_json::from_slice(&self.read_blob(id)?).map_err(|error| StoreError::Damaged {
            what: format!("image {id}"),
            detail: error.to_string(),
        })
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn untag(&self, name: &str) -> Result<(), StoreError> {
        self.change(|db| db.execute("DELETE FROM names WHERE name = ?1", [name]))?;
        Ok(())
    }

    /// Forgets under which digest a repository knows an image.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_repo_digest(&self, entry: &RepoDigest) -> Result<(), StoreError> {
        self.change(|db| {
            db.execute(
                "DELETE FROM repo_digests WHERE repository = ?1 AND digest = ?2",
                params![entry.repository, entry.digest.to_string()],
            )
        })?;
        Ok(())
    }

    /// Removes an image and all its names. Its content goes with [`Store::sweep`].
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_image(&self, id: &Digest) -> Result<(), StoreError> {
        let id = id.to_string();
        self.change(|db| {
            db.execute("DELETE FROM names WHERE image = ?1", [&id])?;
            db.execute("DELETE FROM repo_digests WHERE image = ?1", [&id])?;
            db.execute("DELETE FROM images WHERE id = ?1", [&id])
        })?;
        Ok(())
    }
}

/// Full name with tag; the default tag where there is none.
fn full_name(name: &Reference) -> String {
    format!("{}:{}", repository(name), name.tag_or_latest())
}

/// Full name of the repository.
fn repository(name: &Reference) -> String {
    format!("{}/{}", name.registry, name.repository)
}

type ImageRow = (String, Option<String>, Option<String>, Option<i64>);

fn image_row(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn image_record((id, manifest, media_type, size): ImageRow) -> Result<ImageRecord, StoreError> {
    let manifest = match (manifest, media_type, size) {
        (Some(text), Some(media_type), Some(size)) => Some(Descriptor::new(
            media_type,
            digest(&text, "an image")?,
            size.unsigned_abs(),
        )),
        _ => None,
    };
    Ok(ImageRecord {
        id: digest(&id, "an image")?,
        manifest,
    })
}
