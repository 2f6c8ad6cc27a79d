//! Layers to one tree, as overlayfs would show them, for where it cannot be mounted.

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::copy::{self, Copier, How, TreeError, join, name_of, parent_of};
use crate::sys::root::Root;

/// Puts layers, lowest first, on top of what a directory holds already.
///
/// # Errors
/// [`TreeError`]; the tree is not whole then.
pub fn merge(layers: &[&Path], into: &Path, how: How) -> Result<(), TreeError> {
    let to = Root::open(into).map_err(TreeError::new("open the tree of", b""))?;
    for layer in layers {
        let from = Root::open(layer).map_err(TreeError::new("open the layer of", b""))?;
        let mut merge = Merge {
            from: &from,
            to: &to,
            copier: Copier::new(how),
            pending: vec![(Vec::new(), false)],
            done: Vec::new(),
        };
        merge.run()?;
    }
    Ok(())
}

struct Merge<'a> {
    from: &'a Root,
    to: &'a Root,
    copier: Copier,
    /// Directories to be merged, and whether they are new, so that nothing can be in the way.
    pending: Vec<(Vec<u8>, bool)>,
    /// Directories that have all that is in them.
    done: Vec<Vec<u8>>,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Merge<'_> {
    fn run(&mut self) -> Result<(), TreeError> {
        while let Some((path, fresh)) = self.pending.pop() {
            self.directory(&path, fresh)?;
            self.done.push(path);
        }
        // Times last: making something in a directory changes them.
        for path in std::mem::take(&mut self.done).into_iter().rev() {
            let open =
                |root| copy::open(root, &path, DIRECTORY).map_err(TreeError::new("open", &path));
            let (from, to) = (open(self.from)?, open(self.to)?);
            self.copier.directory(from.as_fd(), to.as_fd(), &path)?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], fresh: bool) -> Result<(), TreeError> {
        let open = |root| copy::open(root, path, DIRECTORY).map_err(TreeError::new("open", path));
        let (from, to) = (open(self.from)?, open(self.to)?);
        let read = || copy::names(from.as_fd());
        let names = read().map_err(TreeError::new("read", path))?;
        let opaque = copy::is_opaque(from.as_fd()).map_err(TreeError::new("read", path))?;
        if opaque && !fresh {
            let old = copy::names(to.as_fd()).map_err(TreeError::new("read", path))?;
            for name in old {
                copy::remove(to.as_fd(), &name).map_err(TreeError::new("remove", path))?;
            }
        }
        for name in names {
            let child = join(path, &name);
            let stat = rustix::fs::statat(&from, &name[..], AtFlags::SYMLINK_NOFOLLOW)
                .map_err(TreeError::new("read", &child))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                let fresh = self.make(&to, &child, fresh)?;
                self.pending.push((child, fresh));
                continue;
            }
            if !fresh {
                copy::remove(to.as_fd(), &name).map_err(TreeError::new("remove", &child))?;
            }
            if !is_whiteout(&stat) {
                let (from, to) = (from.as_fd(), to.as_fd());
                self.copier.file(from, self.to, to, &child, &stat)?;
            }
        }
        Ok(())
    }

    /// Makes sure that a directory is there, and says whether it is new.
    fn make(&self, to: &std::os::fd::OwnedFd, path: &[u8], fresh: bool) -> Result<bool, TreeError> {
        let name = name_of(path);
        if !fresh {
            match rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    return Ok(false);
                }
                Ok(_) => {
                    copy::remove(to.as_fd(), name).map_err(TreeError::new("remove", path))?;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(TreeError::new("read", parent_of(path))(error)),
            }
        }
        rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(TreeError::new("make", path))?;
        Ok(true)
    }
}

/// Whether overlayfs takes a file for a deletion.
#[must_use]
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::super::copy::set_opaque;
    use super::*;

    /// Two layers: a file gone, one replaced by a directory, a directory that hides the one below.
    fn layers(folder: &Path) -> [std::path::PathBuf; 2] {
        let [low, top] = ["low", "top"].map(|name| folder.join(name));
        for path in [
            "low/dir",
            "low/hidden",
            "top/dir",
            "top/hidden",
            "top/was-file",
        ] {
            fs::create_dir_all(folder.join(path)).unwrap();
        }
        for path in ["gone", "was-file", "dir/below", "hidden/below", "first"] {
            fs::write(low.join(path), path).unwrap();
        }
        fs::hard_link(low.join("first"), low.join("second")).unwrap();
        fs::write(top.join("hidden/above"), "").unwrap();
        set_opaque(fs::File::open(top.join("hidden")).unwrap().as_fd()).unwrap();
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        rustix::fs::mknodat(rustix::fs::CWD, top.join("gone"), kind, mode, 0).unwrap();
        [low, top]
    }

    fn merged(how: How) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let [low, top] = layers(folder.path());
        let into = folder.path().join("into");
        fs::create_dir(&into).unwrap();
        merge(&[&low, &top], &into, how).unwrap();
        (folder, into)
    }

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn layers_become_what_overlayfs_would_show() {
        for how in [How::Link, How::Copy, How::Split] {
            let (_folder, into) = merged(how);
            let names = walkdir::WalkDir::new(&into)
                .min_depth(1)
                .sort_by_file_name();
            let names: Vec<_> = names
                .into_iter()
                .map(|entry| {
                    let path = entry.unwrap().into_path();
                    path.strip_prefix(&into).unwrap().display().to_string()
                })
                .collect();
            let expected = [
                "dir",
                "dir/below",
                "first",
                "hidden",
                "hidden/above",
                "second",
                "was-file",
            ];
            assert_eq!(names, expected, "{how:?}");
            let mut value = [0; 1];
            let opaque = rustix::fs::getxattr(
                into.join("hidden"),
                crate::layer::whiteout::OPAQUE_ATTRIBUTE,
                &mut value[..],
            );
            assert_eq!(opaque, Err(Errno::NODATA), "a tree is no layer");
        }
    }

    #[test]
    fn files_are_linked_copied_or_separate() {
        let same = |how, shared, linked| {
            let (folder, into) = merged(how);
            let first = inode(&into.join("first"));
            assert_eq!(
                first == inode(&folder.path().join("low/first")),
                shared,
                "{how:?}"
            );
            assert_eq!(first == inode(&into.join("second")), linked, "{how:?}");
        };
        same(How::Link, true, true);
        same(How::Copy, false, true);
        same(How::Split, false, false);
    }
}
