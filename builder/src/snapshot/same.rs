//! Whether two layers hold the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::sys::xattr::{Place, Reader};

/// Bytes compared at once.
const BUFFER: usize = 128 << 10;

/// Whether two directories hold the same files: names, types, modes, owners, attributes, contents,
/// and which names are one file. Times do not count, as in no key (A15.1).
pub(super) fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let mut comparison = Comparison {
        links: HashMap::new(),
        linked: HashSet::new(),
        buffers: (vec![0; BUFFER], vec![0; BUFFER]),
        reader: Reader::new(),
    };
    comparison.directory(one, other)
}

struct Comparison {
    /// Files with several names: the inode in the one directory, and that in the other.
    links: HashMap<(u64, u64), (u64, u64)>,
    /// Inodes of the other directory that are among these.
    linked: HashSet<(u64, u64)>,
    buffers: (Vec<u8>, Vec<u8>),
    reader: Reader,
}

impl Comparison {
    /// Compares directories; those below are kept on a list, as they may be deeper than a stack.
    fn directory(&mut self, one: &Path, other: &Path) -> io::Result<bool> {
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let (a, b) = (one.join(&path), other.join(&path));
            let names = names(&a)?;
            if names != self::names(&b)? {
                return Ok(false);
            }
            if path.as_os_str().is_empty() && self.attributes(&a)? != self.attributes(&b)? {
                return Ok(false);
            }
            for name in names {
                let (a, b) = (a.join(&name), b.join(&name));
                let (first, second) = (fs::symlink_metadata(&a)?, fs::symlink_metadata(&b)?);
                if !self.file((&a, &first), (&b, &second))? {
                    return Ok(false);
                }
                if first.is_dir() {
                    waiting.push(path.join(name));
                }
            }
        }
        Ok(true)
    }

    fn file(&mut self, one: (&Path, &Metadata), other: (&Path, &Metadata)) -> io::Result<bool> {
        let (a, b) = (one.1, other.1);
        let facts = |file: &Metadata| (file.mode(), file.uid(), file.gid(), file.rdev());
        if facts(a) != facts(b) || self.attributes(one.0)? != self.attributes(other.0)? {
            return Ok(false);
        }
        if a.is_symlink() {
            return Ok(fs::read_link(one.0)? == fs::read_link(other.0)?);
        }
        if !a.is_file() {
            return Ok(true);
        }
        let inodes = ((a.dev(), a.ino()), (b.dev(), b.ino()));
        if a.nlink() > 1 || b.nlink() > 1 {
            if let Some(known) = self.links.get(&inodes.0) {
                return Ok(*known == inodes.1);
            }
            if !self.linked.insert(inodes.1) {
                return Ok(false);
            }
            self.links.insert(inodes.0, inodes.1);
        }
        // Layers may share a file.
        Ok(inodes.0 == inodes.1 || (a.len() == b.len() && self.contents(one.0, other.0)?))
    }

    /// The attributes of a file, without what overlayfs notes for itself.
    fn attributes(&mut self, path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let counts = |name: &[u8]| {
            let overlay = name.strip_prefix(b"user.overlay.");
            let overlay = overlay.or_else(|| name.strip_prefix(b"trusted.overlay."));
            overlay.is_none_or(|mark| matches!(mark, b"opaque" | b"redirect" | b"whiteout"))
        };
        self.reader.read(Place::At(file.as_fd()), counts)
    }

    fn contents(&mut self, one: &Path, other: &Path) -> io::Result<bool> {
        let (mut one, mut other) = (File::open(one)?, File::open(other)?);
        let (a, b) = (&mut self.buffers.0, &mut self.buffers.1);
        loop {
            let count = one.read(a)?;
            let read = a.get(..count).unwrap_or_default();
            let Some(same) = b.get_mut(..count) else {
                return Ok(false);
            };
            other.read_exact(same)?;
            if read != same {
                return Ok(false);
            }
            if count == 0 {
                return Ok(true);
            }
        }
    }
}

fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(folder)?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn layer(folder: &Path) {
        fs::create_dir_all(folder.join("dir/deep")).unwrap();
        fs::write(folder.join("dir/file"), "content").unwrap();
        fs::write(folder.join("dir/deep/large"), vec![7; 300_000]).unwrap();
        fs::hard_link(folder.join("dir/file"), folder.join("name")).unwrap();
        symlink("dir/file", folder.join("link")).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(
            folder,
            "user.overlay.origin",
            folder.as_os_str().as_encoded_bytes(),
            flags,
        )
        .unwrap();
    }

    #[test]
    fn layers_are_the_same_whatever_their_times_and_never_when_anything_else_differs() {
        let folder = tempfile::tempdir().unwrap();
        let one = folder.path().join("one");
        layer(&one);
        type Change<'a> = &'a dyn Fn(&Path);
        let table: [(&str, Change<'_>); 10] = [
            ("times", &|path| {
                let file = File::open(path.join("dir/file")).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("content", &|path| {
                fs::write(path.join("dir/file"), "CONTENT").unwrap();
            }),
            ("size", &|path| {
                fs::write(path.join("dir/file"), "").unwrap();
            }),
            ("the end of a large file", &|path| {
                let mut bytes = vec![7; 300_000];
                bytes[299_999] = 8;
                fs::write(path.join("dir/deep/large"), bytes).unwrap();
            }),
            ("mode", &|path| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(path.join("dir"), mode).unwrap();
            }),
            ("name", &|path| {
                fs::rename(path.join("link"), path.join("lynk")).unwrap();
            }),
            ("link", &|path| {
                fs::remove_file(path.join("link")).unwrap();
                symlink("dir/felt", path.join("link")).unwrap();
            }),
            ("hard link", &|path| {
                fs::remove_file(path.join("name")).unwrap();
                fs::write(path.join("name"), "content").unwrap();
            }),
            ("one more", &|path| {
                fs::write(path.join("dir/deep/more"), "").unwrap();
            }),
            ("mark", &|path| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(path.join("dir"), "user.overlay.opaque", b"y", flags).unwrap();
            }),
        ];
        for (what, change) in table {
            let other = folder.path().join(what);
            layer(&other);
            assert!(same(&one, &other).unwrap(), "before {what}");
            change(&other);
            let equal = what == "times";
            assert_eq!(same(&one, &other).unwrap(), equal, "{what}");
            assert_eq!(same(&other, &one).unwrap(), equal, "{what}, the other way");
        }
    }
}
