//! One entry's header: the block itself, then what stood before it. Extended headers (PAX) count
//! more than GNU's long names, those more than the fields of the block.

use super::field::{self, Block, Format};
use super::pax::{self, Records};
use super::{Header, Kind, TarError, Time};

/// Limit of a name or link text, bytes.
pub const MAX_NAME: u64 = 4096;

/// What the headers before an entry said about it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) records: Option<Records>,
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    /// Headers seen, global ones included.
    pub(super) count: u64,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_none() && self.path.is_none() && self.link.is_none()
    }
}

/// An entry before its sparse map is known.
pub(super) struct Parsed {
    pub(super) header: Header,
    pub(super) records: Records,
    /// Bytes of content in the archive.
    pub(super) stored: u64,
}

/// Why a header is refused; the reader adds where it lies.
pub(super) enum Refusal {
    Malformed(&'static str),
    Ambiguous(&'static str),
    Unsupported(u8),
    LongName,
}

impl Refusal {
    pub(super) fn at(self, offset: u64) -> TarError {
        match self {
            Self::Malformed(what) => TarError::Malformed { offset, what },
            Self::Ambiguous(what) => TarError::Ambiguous { offset, what },
            Self::Unsupported(flag) => TarError::Unsupported { offset, flag },
            Self::LongName => TarError::TooLarge {
                offset,
                limit: MAX_NAME,
                what: "bytes of name",
            },
        }
    }
}

/// Reads a header block with all that was said before it.
pub(super) fn parse(block: &Block, format: Format, pending: Pending) -> Result<Parsed, Refusal> {
    let fields = Fields::read(block, format)?.merge(&pending)?;
    let flag = block[field::FLAG];
    let kind = match flag {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 if fields.path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return Err(Refusal::Unsupported(flag)),
    };
    // Only files have content, whatever the size field of others says.
    let stored = if kind == Kind::File { fields.size } else { 0 };
    let records = pending.records.unwrap_or_default();
    let id = |id: i64, what| match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Refusal::Malformed(what)),
    };
    let device = |number| u32::try_from(number).map_err(|_| Refusal::Malformed("invalid device"));
    let header = Header {
        path: fields.path,
        kind,
        link: if matches!(kind, Kind::HardLink | Kind::Symlink) {
            fields.link
        } else {
            Vec::new()
        },
        mode: u32::try_from(fields.mode & 0o7777).unwrap_or(0),
        uid: id(fields.uid, "user id out of range")?,
        gid: id(fields.gid, "group id out of range")?,
        size: stored,
        mtime: fields.mtime,
        device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            (device(fields.device.0)?, device(fields.device.1)?)
        } else {
            (0, 0)
        },
        xattrs: records
            .iter()
            .filter_map(|(key, value)| {
                Some((key.strip_prefix(pax::XATTR)?.to_vec(), value.clone()))
            })
            .filter(|(name, _)| !name.is_empty())
            .collect(),
    };
    Ok(Parsed {
        header,
        records,
        stored,
    })
}

/// Checks the lengths of names and takes slashes off the end of the path.
pub(super) fn check_names(header: &mut Header) -> Result<(), Refusal> {
    if header.path.len().max(header.link.len()) as u64 > MAX_NAME {
        return Err(Refusal::LongName);
    }
    while header.path.ends_with(b"/") {
        header.path.pop();
    }
    Ok(())
}

/// The fields as numbers and texts.
struct Fields {
    path: Vec<u8>,
    link: Vec<u8>,
    mode: i64,
    uid: i64,
    gid: i64,
    size: u64,
    mtime: Time,
    device: (i64, i64),
}

impl Fields {
    fn read(block: &Block, format: Format) -> Result<Self, Refusal> {
        let number = |range: std::ops::Range<usize>| {
            field::number(&block[range]).ok_or(Refusal::Malformed("invalid number"))
        };
        let size = number(field::SIZE)?;
        Ok(Self {
            path: join(prefix(block, format), field::text(&block[field::NAME])),
            link: field::text(&block[field::LINK]).to_vec(),
            mode: number(field::MODE)?,
            uid: number(field::UID)?,
            gid: number(field::GID)?,
            size: u64::try_from(size).map_err(|_| Refusal::Malformed("invalid size"))?,
            mtime: Time::seconds(number(field::MTIME)?),
            device: if format == Format::V7 {
                (0, 0)
            } else {
                (number(field::MAJOR)?, number(field::MINOR)?)
            },
        })
    }

    /// Applies extended headers and long names. An empty value leaves the field as it is.
    fn merge(mut self, pending: &Pending) -> Result<Self, Refusal> {
        let empty = Records::new();
        let records = pending.records.as_ref().unwrap_or(&empty);
        let get = |key: &[u8]| records.get(key).filter(|value| !value.is_empty());
        let decimal = |key: &[u8], what| match get(key) {
            Some(value) => match pax::decimal(value) {
                Some(number) => Ok(Some(number)),
                None => Err(Refusal::Malformed(what)),
            },
            None => Ok(None),
        };
        self.path = name(self.path, get(b"path"), pending.path.as_ref())?;
        self.link = name(self.link, get(b"linkpath"), pending.link.as_ref())?;
        if let Some(size) = decimal(b"size", "invalid size")? {
            self.size = size;
        }
        if let Some(uid) = decimal(b"uid", "invalid user id")? {
            self.uid = i64::try_from(uid).unwrap_or(i64::MAX);
        }
        if let Some(gid) = decimal(b"gid", "invalid group id")? {
            self.gid = i64::try_from(gid).unwrap_or(i64::MAX);
        }
        if let Some(mtime) = get(b"mtime") {
            self.mtime = pax::time(mtime).ok_or(Refusal::Malformed("invalid time"))?;
        }
        Ok(self)
    }
}

/// The name that counts. Go lets GNU's long name win over an extended header, others do the
/// opposite, so the two must agree.
fn name(
    field: Vec<u8>,
    record: Option<&Vec<u8>>,
    long: Option<&Vec<u8>>,
) -> Result<Vec<u8>, Refusal> {
    let long = long.filter(|long| !long.is_empty());
    match (record, long) {
        (Some(record), Some(long)) if record != long => Err(Refusal::Ambiguous(
            "an extended header and a long name differ",
        )),
        (Some(name), _) | (None, Some(name)) => Ok(name.clone()),
        (None, None) => Ok(field),
    }
}

/// The part of the name that stands apart from it.
fn prefix(block: &Block, format: Format) -> &[u8] {
    match format {
        Format::V7 => b"",
        Format::Ustar => field::text(&block[field::PREFIX]),
        Format::Star => field::text(&block[field::STAR_PREFIX]),
        Format::Gnu => {
            // GNU tar has times here. Go before 1.8 wrote a prefix nevertheless, and images
            // with such layers are still around.
            let is_time = |range: std::ops::Range<usize>| {
                block[range.start] == 0 || field::number(&block[range]).is_some()
            };
            let prefix = field::text(&block[field::PREFIX]);
            if is_time(field::GNU_ATIME) && is_time(field::GNU_CTIME) || !prefix.is_ascii() {
                b""
            } else {
                prefix
            }
        }
    }
}

fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}
