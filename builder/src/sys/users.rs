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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const USERS: &str = "# people\nroot:x:0:0:root:/root:/bin/sh\n\nbroken\nalso:x:nan:1\n\
        app:x:1000:1001:App:/home/app:/bin/sh\nhomeless:x:5:6\nbig:x:4294967294:4294967294::/:\n";
    const GROUPS: &str =
        "root:x:0:\nwheel:x:10:root,app\nextra:x:77:app\napp:x:1001:\nbroken:x\n500:x:9:\n";

    fn image(passwd: Option<&str>, group: Option<&str>) -> (tempfile::TempDir, Root) {
        let dir = tempfile::TempDir::new().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        for (name, content) in [("passwd", passwd), ("group", group)] {
            if let Some(content) = content {
                fs::write(dir.path().join("etc").join(name), content).unwrap();
            }
        }
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        }
    }

    /// A9.8
    #[test]
    fn resolves_users_of_processes() {
        let (_dir, root) = image(Some(USERS), Some(GROUPS));
        let resolve = |spec| resolve(&root, spec).unwrap();
        assert_eq!(resolve(""), user(0, 0, &[10], "/root"));
        assert_eq!(resolve("root"), user(0, 0, &[10], "/root"));
        assert_eq!(resolve("app"), user(1000, 1001, &[10, 77], "/home/app"));
        assert_eq!(resolve("1000"), user(1000, 1001, &[10, 77], "/home/app"));
        assert_eq!(resolve("app:extra"), user(1000, 77, &[], "/home/app"));
        assert_eq!(resolve("app:4242"), user(1000, 4242, &[], "/home/app"));
        assert_eq!(resolve("4242"), user(4242, 0, &[], "/"));
        assert_eq!(resolve("4242:wheel"), user(4242, 10, &[], "/"));
        assert_eq!(resolve("homeless"), user(5, 6, &[], "/"));
        assert_eq!(resolve("big").uid, 4_294_967_294);
        assert_eq!(resolve(":wheel"), user(0, 10, &[], "/root"));
    }

    /// A18 has the texts.
    #[test]
    fn explains_what_it_does_not_find() {
        let (_dir, root) = image(Some(USERS), Some(GROUPS));
        let error = |spec| resolve(&root, spec).unwrap_err().to_string();
        assert_eq!(
            error("who"),
            "unable to find user who: no matching entries in passwd file"
        );
        assert_eq!(
            error("app:who"),
            "unable to find group who: no matching entries in group file"
        );
        assert!(error("4294967295").starts_with("unable to find user"));
        for malformed in ["app:", "a:b:c", ":", "a\nb"] {
            let error = resolve(&root, malformed).unwrap_err();
            assert!(matches!(error, UserError::Malformed(_)), "{malformed}");
        }
    }

    #[test]
    fn an_image_without_files_has_numbers_only() {
        let (_dir, root) = image(None, None);
        assert_eq!(resolve(&root, "").unwrap(), user(0, 0, &[], "/"));
        assert_eq!(resolve(&root, "7:8").unwrap(), user(7, 8, &[], "/"));
        assert!(resolve(&root, "root").is_err());
        assert_eq!(resolve_owner(&root, "root:root").unwrap(), (0, 0));
    }

    /// A11.7
    #[test]
    fn resolves_owners_of_files() {
        let (_dir, root) = image(Some(USERS), Some(GROUPS));
        let resolve = |spec| resolve_owner(&root, spec).unwrap();
        assert_eq!(resolve("1000"), (1000, 1000));
        assert_eq!(resolve("1:2"), (1, 2));
        assert_eq!(resolve("app"), (1000, 1001));
        assert_eq!(resolve("app:wheel"), (1000, 10));
        assert_eq!(resolve("app:5"), (1000, 5));
        assert_eq!(resolve("9:extra"), (9, 77));
        assert_eq!(resolve("root"), (0, 0));
        let error = |spec| resolve_owner(&root, spec).unwrap_err();
        assert!(matches!(error("who"), UserError::NoUser(_)));
        assert!(matches!(error("app:who"), UserError::NoGroup(_)));
        for malformed in ["", ":app", "app:"] {
            assert!(matches!(error(malformed), UserError::Malformed(_)));
        }
    }

    /// A11.7: links stay in the image, what is no regular file is refused and does not block.
    #[test]
    fn hostile_files_are_refused() {
        let (dir, root) = image(None, None);
        let passwd = dir.path().join("etc/passwd");
        std::os::unix::fs::symlink("/etc/shadow", &passwd).unwrap();
        assert!(matches!(
            resolve(&root, "root").unwrap_err(),
            UserError::NoUser(_)
        ));
        fs::remove_file(&passwd).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, &passwd, kind, mode, 0).unwrap();
        assert!(matches!(
            resolve(&root, "app").unwrap_err(),
            UserError::Unreadable { .. }
        ));
        assert_eq!(resolve(&root, "").unwrap().uid, 0, "root needs no file");
        fs::remove_file(&passwd).unwrap();
        let file = fs::File::create(&passwd).unwrap();
        file.set_len(LIMIT + 1).unwrap();
        assert!(matches!(
            resolve_owner(&root, "app").unwrap_err(),
            UserError::Unreadable { .. }
        ));
    }
}
