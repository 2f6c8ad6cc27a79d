//! Restoring the content of a mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kiln_grammar::mount::Sharing;
use kiln_registry::digest::Digest;
use kiln_registry::spec::Descriptor;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};

use super::index::{self, Entry};
use super::{MountsError, Saved, SavedMounts, Used, fetch, io, line, lock};
use crate::layer::{Compression, Form, Limits, UnpackOptions, decompressor, unpack_at};
use crate::store::{CacheMount, Store};
use crate::sys::owner;
use crate::sys::root::Root;

impl SavedMounts {
    /// Restores a mount before its first use in a build, where that is to be done; another step that
    /// wants it meanwhile waits. A failure is told, and leaves the mount as it was. Blocks, on a thread
    /// of tokio's for such work.
    pub fn restore(&self, key: &Digest, id: &str) {
        let used = Arc::clone(lock(&self.used).entry(*key).or_default());
        let mut used = lock(&used);
        if used.is_some() {
            return;
        }
        let start = Instant::now();
        let (restored, useless) = match self.restore_one(key, id) {
            Ok(bytes) => (
                bytes.map(|bytes| (bytes, start.elapsed().as_secs_f64())),
                false,
            ),
            Err(error) => {
                self.note(id, &format!("not restored: {}", line(&error)));
                (None, true)
            }
        };
        *used = Some(Used {
            id: id.to_owned(),
            restored,
            useless,
        });
    }

    fn restore_one(&self, key: &Digest, id: &str) -> Result<Option<u64>, MountsError> {
        let runtime = tokio::runtime::Handle::current();
        let loaded = runtime.block_on(self.loaded.wait());
        let Some(saved) = loaded.iter().find(|saved| saved.key == *key) else {
            return Ok(None);
        };
        // Who uses it now knows better what is in it.
        let Some(mount) = self.store.cache_mount(key, id, Sharing::Locked)? else {
            return Ok(None);
        };
        if !is_behind(&mount, saved)? {
            return Ok(None);
        }
        let folder = self.store.temporary()?;
        let target = folder.path().join("fs");
        fs::create_dir(&target).map_err(io("making its folder"))?;
        let mut new = Vec::new();
        let filled = runtime
            .block_on(self.fetch_all(saved, &mut new))
            .and_then(|()| index::read(&self.store, &saved.index.digest))
            .and_then(|entries| fill(&self.store, saved, &entries, &target));
        for blob in new {
            // It lies where it came from; what cannot be removed goes with the next sweep.
            drop(fs::remove_file(self.store.blob_path(&blob.digest)));
        }
        filled?;
        mount.replace(&target)?;
        mount.set_synced(&saved.index.digest.to_string())?;
        Ok(Some(saved.bytes))
    }

    /// Fetches what a mount is restored from; adds what was not there yet to `new`, also when the rest
    /// does not come. What was there belongs to somebody else, whatever the document says that it is.
    async fn fetch_all<'a>(
        &self,
        saved: &'a Saved,
        new: &mut Vec<&'a Descriptor>,
    ) -> Result<(), MountsError> {
        let fetches = saved.blobs().map(async |blob| {
            let came = fetch(&self.place, blob, &self.store).await?;
            Ok::<_, MountsError>(came.then_some(blob))
        });
        let mut fetches: FuturesUnordered<_> = fetches.collect();
        while let Some(came) = fetches.next().await {
            new.extend(came?);
        }
        Ok(())
    }
}

/// Whether a mount is not here, or was used here before it was saved elsewhere.
fn is_behind(mount: &CacheMount, saved: &Saved) -> Result<bool, MountsError> {
    let failed = |error| io("looking at it")(error);
    if !mount.is_made() {
        return Ok(true);
    }
    if fs::read_dir(mount.path()).map_err(failed)?.next().is_none() {
        return Ok(true);
    }
    if mount.synced() == Some(saved.index.digest.to_string()) {
        return Ok(false);
    }
    let time = Duration::from_secs(u64::try_from(saved.time).unwrap_or(0));
    let time = SystemTime::UNIX_EPOCH.checked_add(time);
    Ok(mount
        .last_used()
        .zip(time)
        .is_some_and(|(used, time)| used < time))
}

/// Fills an empty folder with what a mount had.
fn fill(store: &Store, saved: &Saved, entries: &[Entry], target: &Path) -> Result<(), MountsError> {
    let root = Root::open(target).map_err(io("opening its folder"))?;
    for (pack, size) in &saved.packs {
        let limits = Limits {
            size: *size,
            ..Limits::default()
        };
        let file = store.open_blob(&pack.digest)?;
        let reader = decompressor(Compression::Zstd, file, limits);
        let mut reader = reader.map_err(io("decompressing it"))?;
        let options = UnpackOptions {
            form: Form::Plain,
            ..UnpackOptions::default()
        };
        unpack_at(&mut reader, &root, &options)?;
    }
    let wanted = by_path(entries)?;
    remove_others(target, &wanted)?;
    finish(&root, &wanted)
}

/// The entries by their paths, none of which may lead out of the mount.
fn by_path(entries: &[Entry]) -> Result<BTreeMap<Vec<u8>, &Entry>, MountsError> {
    let is_plain = |path: &Vec<u8>| {
        let mut names = path.split(|&byte| byte == b'/');
        path.is_empty() || names.all(|name| !matches!(name, b"" | b"." | b".."))
    };
    let paths = entries.iter().map(|entry| {
        let path = index::unescaped(&entry.path).filter(is_plain);
        Ok((
            path.ok_or(MountsError::Wrong("a name in its index"))?,
            entry,
        ))
    });
    paths.collect()
}

/// Removes what is in packs and no longer in the mount. Nobody else works in the folder.
fn remove_others(target: &Path, wanted: &BTreeMap<Vec<u8>, &Entry>) -> Result<(), MountsError> {
    let failed = |error| io("removing what is not in it any more")(error);
    let walk = walkdir::WalkDir::new(target)
        .min_depth(1)
        .contents_first(true);
    for entry in walk {
        let entry = entry.map_err(|error| failed(error.into()))?;
        let path = entry.path().strip_prefix(target).unwrap_or(entry.path());
        if wanted.contains_key(path.as_os_str().as_bytes()) {
            continue;
        }
        let removed = match entry.file_type().is_dir() {
            true => fs::remove_dir(entry.path()),
            false => fs::remove_file(entry.path()),
        };
        removed.map_err(failed)?;
    }
    Ok(())
}

/// Sees that all is there, and gives it its times; folders get theirs, and their modes, when nothing in
/// them changes any more.
fn finish(root: &Root, wanted: &BTreeMap<Vec<u8>, &Entry>) -> Result<(), MountsError> {
    let mut folder: Option<(Vec<u8>, OwnedFd)> = None;
    // What is in a folder comes after it in this order, and so before it backwards.
    for (path, entry) in wanted.iter().rev() {
        let split = path.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = match split {
            Some(at) => (&path[..at], &path[at + 1..]),
            None if path.is_empty() => (&path[..], &b"."[..]),
            None => (&path[..0], &path[..]),
        };
        let open = match &folder {
            Some((known, open)) if known.as_slice() == parent => open,
            _ => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let opened = root.open_beneath(Path::new(OsStr::from_bytes(parent)), flags);
                let opened = opened.map_err(io("opening a folder in it"))?;
                &folder.insert((parent.to_vec(), opened)).1
            }
        };
        one(open, name, entry)?;
    }
    Ok(())
}

fn one(folder: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), MountsError> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let missing = |_| MountsError::Wrong("a file of its index is in no pack");
    let stat = rustix::fs::statat(folder, name, nofollow).map_err(missing)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if entry.is_file() && size != entry.size {
        return Err(MountsError::Wrong(
            "a file has another size than in its index",
        ));
    }
    let failed = |error: rustix::io::Errno| io("setting a time in it")(error.into());
    if entry.is_folder() {
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if kind != rustix::fs::FileType::Directory {
            return Err(MountsError::Wrong("a folder of its index is none"));
        }
        // Of the mount's own folder no pack says anything. With a single id the disk cannot say more.
        if name == b"." && !owner::is_kept_for_all() {
            let (uid, gid) = entry.owner;
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            rustix::fs::chownat(folder, name, Some(uid), Some(gid), nofollow).map_err(failed)?;
        }
        let mode = Mode::from(entry.mode & 0o7777);
        rustix::fs::chmodat(folder, name, mode, AtFlags::empty()).map_err(failed)?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: entry.time.0,
            tv_nsec: i64::from(entry.time.1.min(999_999_999)),
        },
    };
    rustix::fs::utimensat(folder, name, &times, nofollow).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_entry_leads_out_of_the_mount() {
        let entry = |path: &str| -> Entry {
            let json = serde_json::json!({"p": path, "k": "folder", "m": 0o777, "o": [0, 0], "t": [0, 0], "n": 0});
            serde_json::from_value(json).unwrap()
        };
        for path in ["", "a", "a/b", "...", "a/..b", ".a"] {
            assert!(by_path(&[entry(path)]).is_ok(), "{path}");
        }
        for path in [
            "..", ".", "a/..", "a/../..", "/a", "a/", "a//b", "./a", "%2E%2E",
        ] {
            assert!(by_path(&[entry(path)]).is_err(), "{path}");
        }
    }
}
