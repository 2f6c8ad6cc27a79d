//! Build contexts from text, for what git cannot hold. Each line is a file:
//!
//! ```text
//! KIND PATH [NAME=VALUE]... [-> TARGET] [: CONTENT]
//! ```
//!
//! Kinds: `file`, `dir`, `symlink`, `hardlink` (TARGET is a path in the context), `fifo`, `socket`,
//! `char` and `block` (`device=MAJOR:MINOR`), `tar` (indented lines below are its entries), and
//! `remove`. Names: `mode` (octal), `owner` (`UID:GID`), `mtime` (seconds since 1970), `size` (to
//! which a file is cut, or filled with zeros), `compress` (`gz`, `bz2`, `xz` or `zst`), and any
//! other is an extended attribute.
//! A path may be in double quotes; CONTENT and attributes know `\n`, `\t`, `\\`, `\0` to `\2`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::container;

/// When files were changed of which nothing else is said.
const TIME: u64 = 1_000_000_000;

/// A build context while it is made.
#[derive(Debug)]
pub(super) struct Context {
    root: PathBuf,
    times: BTreeMap<PathBuf, u64>,
}

/// A line of the text.
#[derive(Debug)]
struct Line {
    kind: String,
    path: PathBuf,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    mtime: Option<u64>,
    size: Option<u64>,
    device: (u32, u32),
    compress: Option<String>,
    xattrs: Vec<(String, Vec<u8>)>,
    target: String,
    content: Vec<u8>,
    /// Entries of an archive.
    below: Vec<Self>,
}

impl Context {
    pub(super) fn new(root: PathBuf) -> Self {
        let times = BTreeMap::new();
        Self { root, times }
    }

    /// Copies a folder, whose modes git and the umask may have changed.
    pub(super) fn copy(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap().path();
            self.copy_below(folder, &entry);
        }
        self.settle();
    }

    fn copy_below(&self, folder: &Path, path: &Path) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.copy_below(folder, &entry.unwrap().path());
            }
        } else {
            self.copy_file(path, path.strip_prefix(folder).unwrap());
        }
    }

    pub(super) fn copy_file(&self, from: &Path, to: &Path) {
        let to = self.place(to);
        fs::copy(from, &to).unwrap();
        let executable = fs::metadata(from).unwrap().permissions().mode() & 0o100 != 0;
        set_mode(&to, if executable { 0o755 } else { 0o644 });
    }

    /// The path of a file in the context, whose folders exist afterwards.
    fn place(&self, path: &Path) -> PathBuf {
        let mut folder = self.root.clone();
        for name in path.parent().into_iter().flatten() {
            folder.push(name);
            if !folder.exists() {
                fs::create_dir(&folder).unwrap();
                set_mode(&folder, 0o755);
            }
        }
        self.root.join(path)
    }

    /// Makes what a text says; one that is not there says nothing.
    pub(super) fn apply(&mut self, text: &Path) {
        for line in lines(text) {
            self.make(&line);
        }
        self.settle();
    }

    fn make(&mut self, line: &Line) {
        let path = self.place(&line.path);
        match line.kind.as_str() {
            "remove" if path.is_dir() => return fs::remove_dir_all(path).unwrap(),
            "remove" => return fs::remove_file(path).unwrap(),
            "file" => {
                let file = fs::File::create(&path).unwrap();
                compress(line.compress.as_deref(), &line.content, file);
            }
            "dir" => fs::create_dir_all(&path).unwrap(),
            "symlink" => symlink(&line.target, &path).unwrap(),
            "hardlink" => fs::hard_link(self.root.join(&line.target), &path).unwrap(),
            "socket" => drop(UnixListener::bind(&path).unwrap()),
            "fifo" => node(&path, FileType::Fifo, line),
            "char" => node(&path, FileType::CharacterDevice, line),
            "block" => node(&path, FileType::BlockDevice, line),
            "tar" => {
                let file = fs::File::create(&path).unwrap();
                compress(line.compress.as_deref(), &archive(&line.below), file);
            }
            kind => panic!("`{kind}` is no kind of file"),
        }
        if let Some(size) = line.size {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(size).unwrap();
        }
        if let Some((uid, gid)) = line.owner {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
        }
        if !matches!(line.kind.as_str(), "symlink" | "hardlink") {
            let usual = if line.kind == "dir" { 0o755 } else { 0o644 };
            set_mode(&path, line.mode.unwrap_or(usual));
        }
        for (name, value) in &line.xattrs {
            match rustix::fs::lsetxattr(&path, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // A container's root may not set these, and no layer has them.
                Err(Errno::PERM)
                    if container::is_entered()
                        && ["security.kiln", "trusted."]
                            .iter()
                            .any(|p| name.starts_with(p)) => {}
                Err(error) => panic!("{name} of {}: {error}", path.display()),
            }
        }
        self.times.insert(path, line.mtime.unwrap_or(TIME));
    }

    /// Gives all files their times.
    fn settle(&self) {
        set_mode(&self.root, 0o755);
        self.settle_below(&self.root);
    }

    fn settle_below(&self, path: &Path) {
        if fs::symlink_metadata(path).unwrap().is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.settle_below(&entry.unwrap().path());
            }
        }
        let seconds = self.times.get(path).copied().unwrap_or(TIME);
        let time = Timespec {
            tv_sec: i64::try_from(seconds).unwrap(),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn node(path: &Path, kind: FileType, line: &Line) {
    let device = rustix::fs::makedev(line.device.0, line.device.1);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

fn lines(file: &Path) -> Vec<Line> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<Line> = Vec::new();
    for text in text.lines() {
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        let line = Line::parse(text.trim_start());
        match lines.last_mut() {
            Some(archive) if text.starts_with(' ') => archive.below.push(line),
            _ => lines.push(line),
        }
    }
    lines
}

impl Line {
    fn parse(text: &str) -> Self {
        let (head, content) = text.split_once(" : ").unwrap_or((text, ""));
        let (head, target) = head.split_once(" -> ").unwrap_or((head, ""));
        let (kind, rest) = head.split_once(' ').unwrap();
        let (path, names) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap(),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        let mut line = Self {
            kind: kind.to_owned(),
            path: path.into(),
            mode: None,
            owner: None,
            mtime: None,
            size: None,
            device: (0, 0),
            compress: None,
            xattrs: Vec::new(),
            target: target.to_owned(),
            content: unescape(content),
            below: Vec::new(),
        };
        for word in names.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap();
            match name {
                "mode" => line.mode = Some(u32::from_str_radix(value, 8).unwrap()),
                "owner" => line.owner = Some(pair(value)),
                "mtime" => line.mtime = Some(value.parse().unwrap()),
                "size" => line.size = Some(value.parse().unwrap()),
                "device" => line.device = pair(value),
                "compress" => line.compress = Some(value.to_owned()),
                _ => line.xattrs.push((name.to_owned(), unescape(value))),
            }
        }
        line
    }
}

fn pair(text: &str) -> (u32, u32) {
    let (first, second) = text.split_once(':').unwrap();
    (first.parse().unwrap(), second.parse().unwrap())
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'n' => b'\n',
                b't' => b'\t',
                digit @ b'0'..=b'2' => digit - b'0',
                other => other,
            },
            byte => byte,
        });
    }
    bytes
}

fn compress(how: Option<&str>, bytes: &[u8], mut file: fs::File) {
    match how {
        None => file.write_all(bytes).unwrap(),
        Some("gz") => {
            let mut writer = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            writer.write_all(bytes).unwrap();
        }
        Some("bz2") => {
            let mut writer = bzip2::write::BzEncoder::new(file, bzip2::Compression::fast());
            writer.write_all(bytes).unwrap();
        }
        Some("xz") => {
            let mut writer = liblzma::write::XzEncoder::new(file, 0);
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap();
        }
        Some("zst") => {
            let packed = zstd::encode_all(bytes, 1).unwrap();
            file.write_all(&packed).unwrap();
        }
        Some(other) => panic!("`{other}` is no compression"),
    }
}

/// A tar with names and owners just as they are written, hostile ones as well.
fn archive(lines: &[Line]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for line in lines {
        let mut header = tar::Header::new_gnu();
        let kind = match line.kind.as_str() {
            "file" => tar::EntryType::Regular,
            "dir" => tar::EntryType::Directory,
            "symlink" => tar::EntryType::Symlink,
            "hardlink" => tar::EntryType::Link,
            "fifo" => tar::EntryType::Fifo,
            kind => panic!("`{kind}` in a tar"),
        };
        header.set_entry_type(kind);
        let usual = if line.kind == "dir" { 0o755 } else { 0o644 };
        header.set_mode(line.mode.unwrap_or(usual));
        let (uid, gid) = line.owner.unwrap_or((0, 0));
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(line.mtime.unwrap_or(TIME));
        header.set_size(line.content.len() as u64);
        let fields = header.as_gnu_mut().unwrap();
        let path = line.path.to_str().unwrap().as_bytes();
        fields.name[..path.len()].copy_from_slice(path);
        fields.linkname[..line.target.len()].copy_from_slice(line.target.as_bytes());
        header.set_cksum();
        let pairs = line
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()));
        let pairs: Vec<_> = pairs.collect();
        let pairs = pairs.iter().map(|(name, value)| (name.as_str(), *value));
        if !line.xattrs.is_empty() {
            tar.append_pax_extensions(pairs).unwrap();
        }
        tar.append(&header, line.content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}
