//! Owner, mode, extended attributes and time of what is written.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::Note;
use crate::context::chmod::ModeChange;
use crate::context::metadata::{Metadata, Timestamp};
use crate::context::xattr::{self, Xattr};
use crate::layer::tar::{Header, Kind, Time};
use crate::layer::whiteout;
use crate::sys::owner::{self, Nanoseconds};
use crate::sys::xattr::Place;

/// What a file or directory gets besides its content.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime: Timestamp,
    pub(super) xattrs: Vec<Xattr>,
}

/// What the flags of a copy make of the metadata of its sources.
#[derive(Clone, Debug)]
pub(super) struct Flags {
    /// `--chown`, or 0:0 where sources do not keep their owners (A10.7).
    pub(super) owner: Option<(u32, u32)>,
    /// `--chmod`
    pub(super) chmod: Option<ModeChange>,
}

/// Changing owners without the right to is no reason to fail a build: it is noted.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    process: (u32, u32),
    pub(super) notes: Vec<Note>,
}

/// No more notes than people read.
const MAX_NOTES: usize = 100;

impl Flags {
    pub(super) fn mode(&self, mode: u32, directory: bool) -> u32 {
        match &self.chmod {
            Some(change) => change.apply(mode, directory),
            None => mode,
        }
    }

    pub(super) fn owner(&self, metadata: &Metadata) -> (u32, u32) {
        self.owner.unwrap_or((metadata.uid, metadata.gid))
    }

    /// The attributes of the copy of a file.
    pub(super) fn of(&self, metadata: &Metadata, xattrs: Vec<Xattr>) -> Attributes {
        Attributes {
            mode: self.mode(metadata.mode, metadata.is_dir()),
            owner: self.owner(metadata),
            mtime: metadata.mtime,
            xattrs,
        }
    }
}

impl Attributes {
    /// The attributes of a file as it is.
    pub(super) fn of(metadata: &Metadata, xattrs: Vec<Xattr>) -> Self {
        Self {
            mode: metadata.mode,
            owner: (metadata.uid, metadata.gid),
            mtime: metadata.mtime,
            xattrs,
        }
    }

    /// How a layer's tar will give those of a directory.
    pub(super) fn header(&self, path: &Path) -> Header {
        let mut header = Header::new(path.as_os_str().as_bytes(), Kind::Directory);
        header.mode = self.mode & 0o7777;
        (header.uid, header.gid) = self.owner;
        header.mtime = Time::seconds(self.mtime.seconds);
        let xattrs = self.xattrs.iter();
        header.xattrs = xattrs
            .map(|(name, value)| (name.to_bytes().to_vec(), value.clone()))
            .filter(|(name, _)| whiteout::is_packed(name))
            .collect();
        header
    }

    /// Sets them on an opened file or directory that this process has made. The owner comes
    /// first: changing it takes setuid bits and capabilities away.
    pub(super) fn apply(
        &self,
        file: impl AsFd,
        path: &Path,
        owners: &mut Owners,
    ) -> io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        if (stat.st_uid, stat.st_gid) != self.owner || owner::is_kept() {
            owners.give(Place::Open(file.as_fd()), path, self.owner)?;
        }
        if stat.st_mode & 0o7777 != self.mode || self.mode & 0o6000 != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode))?;
        }
        for attribute in &self.xattrs {
            // Not every file system has them, and not every process may set them (A10.7).
            if !xattr::write(&file, attribute) && xattr::is_capability(&attribute.0) {
                owners.note(Note::CapabilityLost(path.to_owned()));
            }
        }
        rustix::fs::futimens(&file, &times(self.mtime, None))?;
        Ok(())
    }
}

impl Owners {
    pub(super) fn new() -> Self {
        Self {
            process: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            notes: Vec::new(),
        }
    }

    /// Whether files that this process makes have this owner anyway.
    pub(super) fn is_process(&self, owner: (u32, u32)) -> bool {
        self.process == owner && !owner::is_kept()
    }

    /// Gives a file to its owner, and hands back what the time of a link has to say of that.
    pub(super) fn give(
        &mut self,
        place: Place<'_>,
        path: &Path,
        owner: (u32, u32),
    ) -> io::Result<Option<Nanoseconds>> {
        match owner::set(place, owner) {
            // No right to, and nowhere to write it down.
            Err(Errno::PERM | Errno::INVAL) => {
                self.note(Note::OwnerLost {
                    path: path.to_owned(),
                    uid: owner.0,
                    gid: owner.1,
                });
                Ok(None)
            }
            result => Ok(result?),
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(note);
        }
    }
}

/// Times for `utimensat`, with the nanoseconds that [`Owners::give`] asks for; nobody asks for the
/// access time of a new file.
pub(super) fn times(mtime: Timestamp, nanoseconds: Option<Nanoseconds>) -> Timestamps {
    let mut time = Timespec::from(mtime);
    match nanoseconds {
        Some(nanoseconds) => time.tv_nsec = nanoseconds.into(),
        // What the time of the source says of its owner is not for the copy.
        None if owner::is_meaningful(mtime.nanoseconds) => time.tv_nsec = 0,
        None => {}
    }
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
