//! Lists of images that are being put together before they are pushed (D9.5).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Descriptor;
use serde::{Deserialize, Serialize};

use super::lock::{open, random_name};
use super::{Store, StoreError};

/// The largest list, bytes.
const LIST: u64 = 16 << 20;

/// A list of images, as `kiln manifest create` begins it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageList {
    /// The whole name that it is to have.
    pub name: String,
    /// Whether it is docker's manifest list as long as all its images are docker's, rather than
    /// always an OCI index.
    pub docker: bool,
    /// Annotations of the whole.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Its images, in order.
    #[serde(default)]
    pub entries: Vec<ListEntry>,
}

/// An image of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The repository and digest that it is fetched by.
    pub source: String,
    /// The name that it was added under.
    pub added: String,
    /// What the list says of it.
    pub descriptor: Descriptor,
}

impl Store {
    /// The list of a name, if there is one.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn image_list(&self, name: &Reference) -> Result<Option<ImageList>, StoreError> {
        let path = self.list_path(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(LIST).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("reading", &path)(error)),
        }
        let list = serde_json::from_slice(&bytes).map_err(|error| StoreError::Damaged {
            what: format!("the list `{}`", name.familiar()),
            detail: error.to_string(),
        })?;
        Ok(Some(list))
    }

    /// Changes the list of a name, or begins it; others who change it meanwhile wait. Where `change`
    /// fails, the list stays as it is.
    ///
    /// # Errors
    /// Those of `change`; when the list cannot be read or written.
    pub fn change_image_list<E: From<StoreError>>(
        &self,
        name: &Reference,
        change: impl FnOnce(Option<ImageList>) -> Result<ImageList, E>,
    ) -> Result<ImageList, E> {
        let _lock = self.lock_lists()?;
        let list = change(self.image_list(name)?)?;
        let bytes = serde_json::to_vec(&list).map_err(|error| StoreError::Damaged {
            what: format!("the list `{}`", name.familiar()),
            detail: error.to_string(),
        })?;
        let path = self.list_path(name);
        let folder = self.root().join("lists");
        fs::create_dir_all(&folder).map_err(StoreError::io("making the folder", &folder))?;
        let temporary = self.root().join("tmp").join(random_name());
        let write = || {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        let written = write();
        if written.is_err() {
            drop(fs::remove_file(&temporary));
        }
        written.map_err(StoreError::io("writing", &path))?;
        Ok(list)
    }

    /// Removes the list of a name; false when there was none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_image_list(&self, name: &Reference) -> Result<bool, StoreError> {
        let _lock = self.lock_lists()?;
        let path = self.list_path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("removing", &path)(error)),
        }
    }

    fn lock_lists(&self) -> Result<File, StoreError> {
        let path = self.root().join("locks/lists");
        let file = open(&path)?;
        file.lock().map_err(StoreError::io("locking", &path))?;
        Ok(file)
    }

    /// Names hold slashes, and may be longer than a file's name.
    fn list_path(&self, name: &Reference) -> PathBuf {
        let name = Digest::of(name.to_string().as_bytes()).hex();
        self.root().join("lists").join(format!("{name}.json"))
    }
}
