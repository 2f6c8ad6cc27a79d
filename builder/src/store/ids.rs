//! Whose files a store holds: the users of a namespace are other users on the disk.

use std::fs;
use std::io;
use std::path::Path;

use super::{Store, StoreError, lock};
use crate::sys::ids::Map;
use crate::sys::owner;

/// The ids of a store that was made where every id is the host's own.
const ALL_IDS: &str = "of the host";

impl Store {
    /// Makes sure that the owners of the snapshots' files are what they were to the process that
    /// wrote them: users of a namespace are other users on the disk. To be called before snapshots
    /// are read or written.
    ///
    /// # Errors
    /// [`StoreError::Ids`] when they are not.
    pub fn claim_ids(&self) -> Result<(), StoreError> {
        if self.claimed.get().is_none() {
            self.compare_ids()?;
            owner::open_table(&self.root.join("owners"));
            // Another thread may have come to the same result.
            _ = self.claimed.set(());
        }
        Ok(())
    }

    fn compare_ids(&self) -> Result<(), StoreError> {
        let path = self.root.join("ids");
        let here = ids(&Map::current().map_err(StoreError::io("reading", Path::new("/proc")))?);
        let found = match fs::read_to_string(&path) {
            Ok(text) => text.trim().chars().take(1000).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let snapshots = self.root.join("snapshots");
                let mut entries = fs::read_dir(&snapshots)
                    .map_err(StoreError::io("reading the folder", &snapshots))?;
                if here != ALL_IDS && entries.next().is_none() {
                    let temporary = self.root.join("tmp").join(lock::random_name());
                    fs::write(&temporary, format!("{here}\n"))
                        .and_then(|()| fs::rename(&temporary, &path))
                        .map_err(StoreError::io("writing", &path))?;
                    return Ok(());
                }
                ALL_IDS.to_owned()
            }
            Err(error) => return Err(StoreError::io("reading", &path)(error)),
        };
        if found == here {
            return Ok(());
        }
        Err(StoreError::Ids {
            path: self.root.clone(),
            found,
            here,
        })
    }
}

fn ids(map: &Map) -> String {
    if map.is_whole() {
        ALL_IDS.to_owned()
    } else {
        map.to_string()
    }
}

/// Whether this process is root of the host, to whom files belong as the image says.
pub(super) fn is_root_of_host() -> bool {
    let root = rustix::process::geteuid().is_root();
    root && crate::sys::ids::in_initial_namespace().unwrap_or(true)
}
