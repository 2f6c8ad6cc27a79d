//! Users and groups of an image, looked up in its own `/etc/passwd` and `/etc/group`.

use std::io;
use std::path::Path;

use super::root::Root;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Larger files are refused (A11.7).
const LIMIT: u64 = 10 << 20;

/// A user as a process needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, `/` where none is known.
    pub home: String,
}

/// Why a user or group could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The passwd file has no such name.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// The group file has no such name.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// The text is not `user[:group]`.
    #[error("invalid user `{0}`: expected `user[:group]`, each a name or a number")]
    Malformed(String),
    /// The passwd or group file cannot be read (not a regular file, or over 10 MiB).
    #[error("cannot read {file} of the image")]
    Unreadable {
        /// Path in the image.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Resolves `user[:group]` for a process by the rules of A9.8; an empty text is root.
///
/// # Errors
/// [`UserError`] for unknown names and unreadable files.
pub fn resolve(root: &Root, spec: &str) -> Result<User, UserError> {
    let (name, group) = split(spec)?;
    // Nobody asked for a look-up then, so that a broken file is no reason to fail.
    let lenient = spec.is_empty();
    let passwd = read(root, PASSWD, lenient)?;
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd_entries(&passwd).find(|entry| entry.name == name || entry.uid_text == name);
    let (uid, gid) = match (&entry, id(name)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    let home = entry.as_ref().map_or("", |entry| entry.home);
    let mut user = User {
        uid,
        gid,
        groups: Vec::new(),
        home: if home.is_empty() { "/" } else { home }.to_owned(),
    };
    if let Some(group) = group {
        user.gid = resolve_group(root, group)?;
    } else if let Some(entry) = entry {
        let groups = read(root, GROUP, lenient)?;
        let member = |group: &Group<'_>| group.members.split(',').any(|name| name == entry.name);
        user.groups = group_entries(&groups)
            .filter(member)
            .map(|group| group.gid)
            .collect();
    }
    Ok(user)
}

/// Resolves a `--chown` value to `(uid, gid)` by the rules of A11.7: a number alone is also the
/// group, a name brings its primary group, `root` is always 0.
///
/// # Errors
/// [`UserError`] for unknown names and unreadable files.
pub fn resolve_owner(root: &Root, spec: &str) -> Result<(u32, u32), UserError> {
    let (name, group) = split(spec)?;
    if name.is_empty() {
        return Err(UserError::Malformed(spec.to_owned()));
    }
    let (uid, primary) = match id(name) {
        Some(uid) => (uid, uid),
        None if name == "root" => (0, 0),
        None => {
            let passwd = read(root, PASSWD, false)?;
            let entry = passwd_entries(&passwd).find(|entry| entry.name == name);
            entry
                .map(|entry| (entry.uid, entry.gid))
                .ok_or_else(|| UserError::NoUser(name.to_owned()))?
        }
    };
    match group {
        None => Ok((uid, primary)),
        Some(group) if id(group).is_some() => Ok((uid, id(group).unwrap_or_default())),
        Some("root") => Ok((uid, 0)),
        Some(group) => Ok((uid, resolve_group(root, group)?)),
    }
}

/// Takes `user[:group]` apart; a group, where there is one, is not empty.
fn split(spec: &str) -> Result<(&str, Option<&str>), UserError> {
    let malformed = || UserError::Malformed(spec.to_owned());
    if spec.contains(['\0', '\n']) {
        return Err(malformed());
    }
    match spec.split_once(':') {
        None => Ok((spec, None)),
        Some((_, group)) if group.is_empty() || group.contains(':') => Err(malformed()),
        Some((name, group)) => Ok((name, Some(group))),
    }
}

/// Reads a decimal id; the last number means "unchanged" to the kernel and is none.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = digits.then(|| text.parse().ok()).flatten();
    id.filter(|id| *id != u32::MAX)
}

fn resolve_group(root: &Root, name: &str) -> Result<u32, UserError> {
    let groups = read(root, GROUP, false)?;
    group_entries(&groups)
        .find(|group| group.name == name || group.gid_text == name)
        .map(|group| group.gid)
        .or_else(|| id(name))
        .ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

/// The content of a file; empty when it is missing, or unreadable and `lenient` is set.
fn read(root: &Root, file: &'static str, lenient: bool) -> Result<String, UserError> {
    match root.read(Path::new(file), LIMIT) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if lenient || absent(&error) => Ok(String::new()),
        Err(source) => Err(UserError::Unreadable { file, source }),
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

struct Passwd<'a> {
    name: &'a str,
    uid_text: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The entries of a passwd file; lines that are none are passed over.
fn passwd_entries(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    lines(text).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid_text, gid_text) = (fields.next()?, fields.next()?);
        let (_comment, home) = (fields.next(), fields.next());
        Some(Passwd {
            name,
            uid_text,
            uid: id(uid_text)?,
            gid: id(gid_text)?,
            home: home.unwrap_or_default(),
        })
    })
}

struct Group<'a> {
    name: &'a str,
    gid_text: &'a str,
    gid: u32,
    members: &'a str,
}

/// The entries of a group file; lines that are none are passed over.
fn group_entries(text: &str) -> impl Iterator<Item = Group<'_>> {
    lines(text).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password, gid_text) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group {
            name,
            gid_text,
            gid: id(gid_text)?,
            members: fields.next().unwrap_or_default(),
        })
    })
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}
