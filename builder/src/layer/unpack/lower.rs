//! What a layer takes from the layers below it: metadata of directories it does not mention, and
//! files that it links to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::tree::{Parent, Step, as_path, is_directory, is_whiteout};
use super::{Below, Form, UnpackError, Unpacker, components, refused};
use crate::layer::tar::{Header, Kind, Time};
use crate::layer::whiteout::{self, display};
use crate::layer::xattr::Place;
use crate::sys::owner;
use crate::sys::root::Root;

impl<'a> Unpacker<'a> {
    /// The directory of an entry. What is missing of it is created, as the lower layers have it,
    /// else with mode 0755 and the time of the entry.
    pub(super) fn parent(
        &mut self,
        names: &[&[u8]],
        entry: &Header,
    ) -> Result<Parent, UnpackError> {
        if let Some(parent) = self.tree.quick(names) {
            return Ok(parent);
        }
        let mut links = 0;
        let mut at = self.tree.top(&entry.path)?;
        let mut names = owned(names);
        loop {
            match self.tree.walk(at, names, &mut links, &entry.path)? {
                Step::Found(parent) => return Ok(parent),
                Step::Missing {
                    parent,
                    name,
                    whiteout,
                    rest,
                } => {
                    names = rest;
                    let link = if whiteout {
                        None
                    } else {
                        self.lower_link(&parent.join(&name), entry)?
                    };
                    at = if let Some(text) = link {
                        let (tree, path) = (&self.tree, &entry.path);
                        tree.follow(parent, &text, &mut names, &mut links, path)?
                    } else {
                        self.implied(&parent, &name, whiteout, entry)?
                    };
                }
            }
        }
    }

    /// Creates a directory that the archive does not mention.
    fn implied(
        &mut self,
        parent: &Parent,
        name: &[u8],
        whiteout: bool,
        entry: &Header,
    ) -> Result<Parent, UnpackError> {
        let path = parent.join(name);
        let mut header = Header::new(path.clone(), Kind::Directory);
        header.mode = 0o755;
        header.mtime = entry.mtime;
        if !whiteout
            && let Some(lower) = self.lower(entry)?
            && let Some((stat, place)) = look(lower, &path, &entry.path)?
            && is_directory(&stat)
        {
            header = self.describe(&stat, Place::In(place.as_fd(), b"."), path)?;
        }
        self.put(parent, name, &header, &mut |_| Ok(None))?;
        self.tree.child(parent, name, &entry.path)
    }

    /// Creates another name of a file that is there already, here or in a lower layer.
    pub(super) fn hard_link(
        &mut self,
        parent: &Parent,
        name: &[u8],
        header: &Header,
    ) -> Result<(), UnpackError> {
        let missing = || UnpackError::MissingTarget {
            path: display(&header.path).into_owned(),
            target: display(&header.link).into_owned(),
        };
        let names = components(&header.link)?;
        let (&last, directories) = names.split_last().ok_or_else(missing)?;
        let found = match self.tree.quick(directories) {
            Some(found) => Some(found),
            None => {
                let top = self.tree.top(&header.path)?;
                match self
                    .tree
                    .walk(top, owned(directories), &mut 0, &header.path)?
                {
                    Step::Found(found) => Some(found),
                    Step::Missing { whiteout: true, .. } => return Err(missing()),
                    Step::Missing { .. } => None,
                }
            }
        };
        let stat = match &found {
            Some(found) => self.tree.stat(found, last, &header.path)?,
            None => None,
        };
        let found = match (found, stat) {
            (Some(found), Some(stat)) => {
                let deleted = self.options.form != Form::Plain && is_whiteout(&stat);
                if deleted || is_directory(&stat) {
                    return Err(missing());
                }
                found
            }
            _ => self.copy_up(&names, header)?.ok_or_else(missing)?,
        };
        if found.path == parent.path && last == name {
            return Ok(());
        }
        if self.tree.stat(parent, name, &header.path)?.is_some() {
            self.remove(parent, name, &header.path)?;
        }
        let flags = AtFlags::empty();
        match rustix::fs::linkat(&found.directory, last, &parent.directory, name, flags) {
            Ok(()) => Ok(()),
            // The target lay in the directory that the link replaced.
            Err(Errno::NOENT) => Err(missing()),
            Err(error) => Err(refused(&header.path, error)),
        }
    }

    /// Copies a file from the lower layers to the same place in this one, as overlayfs does
    /// before it makes a link; `None` when there is no such file.
    fn copy_up(&mut self, names: &[&[u8]], entry: &Header) -> Result<Option<Parent>, UnpackError> {
        let Some(lower) = self.lower(entry)? else {
            return Ok(None);
        };
        let Some((&name, directories)) = names.split_last() else {
            return Ok(None);
        };
        match look(lower, &names.join(&b'/'), &entry.path)? {
            Some((stat, _)) if !is_directory(&stat) && !is_whiteout(&stat) => {}
            _ => return Ok(None),
        }
        let parent = self.parent(directories, entry)?;
        let path = parent.join(name);
        let Some((stat, _)) = look(lower, &path, &entry.path)? else {
            return Ok(None);
        };
        let failed = |source| UnpackError::Create {
            path: display(&entry.path).into_owned(),
            source,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let file = lower.open_at(as_path(&path), flags, Mode::empty());
            let mut file = File::from(file.map_err(failed)?);
            let mut header = self.describe(&stat, Place::Open(file.as_fd()), path.clone())?;
            header.size = u64::try_from(stat.st_size).unwrap_or(0);
            let mut offset = 0;
            let mut pieces = |buffer: &mut [u8]| -> io::Result<Option<(u64, usize)>> {
                let count = file.read(buffer)?;
                offset += count as u64;
                Ok((count > 0).then_some((offset - count as u64, count)))
            };
            self.put(&parent, name, &header, &mut pieces)?;
        } else {
            // What cannot be opened is reached through its directory.
            let directory = lower.locate(as_path(&parent.path)).map_err(failed)?;
            let place = Place::In(directory.as_fd(), name);
            let header = self.describe(&stat, place, path.clone())?;
            self.put(&parent, name, &header, &mut |_| Ok(None))?;
        }
        self.copied.insert(path);
        Ok(Some(parent))
    }

    /// The header of a file of the lower layers.
    fn describe(
        &mut self,
        stat: &Stat,
        place: Place<'_>,
        path: Vec<u8>,
    ) -> Result<Header, UnpackError> {
        let failed = |source| UnpackError::Create {
            path: display(&path).into_owned(),
            source,
        };
        let xattrs = self.xattrs.read(place, whiteout::is_unpacked);
        let xattrs = xattrs.map_err(failed)?;
        let mut stat = *stat;
        owner::correct(place, &mut stat).map_err(|error| failed(error.into()))?;
        let (kind, link) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (Kind::Directory, Vec::new()),
            FileType::CharacterDevice => (Kind::CharDevice, Vec::new()),
            FileType::BlockDevice => (Kind::BlockDevice, Vec::new()),
            FileType::Fifo => (Kind::Fifo, Vec::new()),
            FileType::Symlink => {
                let Place::In(directory, name) = place else {
                    return Err(failed(io::ErrorKind::InvalidInput.into()));
                };
                let text = rustix::fs::readlinkat(directory, name, Vec::new());
                (
                    Kind::Symlink,
                    text.map_err(|e| failed(e.into()))?.into_bytes(),
                )
            }
            _ => (Kind::File, Vec::new()),
        };
        let mut header = Header::new(path, kind);
        header.link = link;
        header.xattrs = xattrs;
        header.mode = stat.st_mode & 0o7777;
        header.uid = stat.st_uid;
        header.gid = stat.st_gid;
        header.device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        header.mtime = Time {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        Ok(header)
    }

    /// The lower layers, where the form has such.
    fn lower(&self, entry: &Header) -> Result<Option<&'a Root>, UnpackError> {
        match self.options.lower {
            _ if self.options.form == Form::Plain => Ok(None),
            Below::Nothing => Ok(None),
            Below::Tree(tree) => Ok(Some(tree)),
            Below::Later(lower) => lower.tree().map_err(|source| UnpackError::Below {
                path: display(&entry.path).into_owned(),
                source,
            }),
        }
    }

    /// The text of a symbolic link of the lower layers.
    fn lower_link(&self, path: &[u8], entry: &Header) -> Result<Option<Vec<u8>>, UnpackError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let Some(lower) = self.lower(entry)? else {
            return Ok(None);
        };
        let link = lower.open_at(as_path(path), flags, Mode::empty());
        let text = link
            .ok()
            .and_then(|link| rustix::fs::readlinkat(link, "", Vec::new()).ok());
        let text = text.map(std::ffi::CString::into_bytes);
        Ok(text.filter(|text| !text.is_empty()))
    }
}

/// What a path of the lower layers is, a link at its end not followed; `None` when nothing.
fn look(lower: &Root, path: &[u8], entry: &[u8]) -> Result<Option<(Stat, OwnedFd)>, UnpackError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let place = match lower.open_at(as_path(path), flags, Mode::empty()) {
        Ok(place) => place,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(UnpackError::Create {
                    path: display(entry).into_owned(),
                    source: error,
                }),
            };
        }
    };
    let stat = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH);
    Ok(Some((stat.map_err(|error| refused(entry, error))?, place)))
}

fn owned(names: &[&[u8]]) -> VecDeque<Vec<u8>> {
    names.iter().map(|name| name.to_vec()).collect()
}
