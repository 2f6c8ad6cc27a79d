//! Addresses of git repositories (A12.4, C6.3): what they are, and what they ask for.

use kiln_registry::credentials::Secret;

use super::path;
use crate::graph::GitOp;

/// What hides a user and a password.
const HIDDEN: &str = "xxxxx";

/// Whether a source of `ADD`, or the value of a named context, is a git repository.
pub(super) fn is_git(text: &str) -> bool {
    let web = text.starts_with("http://") || text.starts_with("https://");
    let bare = text.split(['#', '?']).next().unwrap_or_default();
    ["git://", "ssh://", "git@"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
        || (web && bare.ends_with(".git"))
}

/// An address without user and password; git's usual user is no secret.
pub(super) fn without_login(address: &str) -> String {
    match split(address) {
        Some((scheme, Some(login), rest)) if login != "git" => {
            let hidden = if login.contains(':') {
                format!("{HIDDEN}:{HIDDEN}")
            } else {
                HIDDEN.to_owned()
            };
            format!("{scheme}://{hidden}@{rest}")
        }
        _ => address.to_owned(),
    }
}

/// Cuts `scheme://login@rest`.
fn split(address: &str) -> Option<(&str, Option<&str>, &str)> {
    let (scheme, rest) = address.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    Some(match rest[..end].rfind('@') {
        Some(at) => (scheme, Some(&rest[..at]), &rest[at + 1..]),
        None => (scheme, None, rest),
    })
}

/// Reads an address: a repository with `#reference:subdir` or a query behind it.
///
/// # Errors
/// What is wrong with it, without the address, which may hold a password.
pub(super) fn parse(text: &str) -> Result<GitOp, String> {
    let scp = !text.contains("://");
    let (address, fragment) = match text.split_once('#') {
        Some((address, fragment)) => (address, Some(fragment).filter(|text| !text.is_empty())),
        None => (text, None),
    };
    // A path that ssh is given may hold a `?`, an address may not.
    let (address, query) = match address.split_once('?') {
        Some((address, query)) if !scp => (address, Some(query).filter(|text| !text.is_empty())),
        _ => (address, None),
    };
    let mut op = repository(address, scp)?;
    match (fragment, query) {
        (Some(_), Some(_)) => {
            return Err("a query and a fragment cannot be used together".to_owned());
        }
        (Some(fragment), None) => {
            let decoded = if scp {
                fragment.to_owned()
            } else {
                percent_decode(fragment)
            };
            let (reference, subdir) = decoded.split_once(':').unwrap_or((&decoded, ""));
            op.reference = Some(reference.to_owned()).filter(|name| !name.is_empty());
            op.subdir = subdirectory(subdir);
        }
        (None, Some(query)) => read_query(&mut op, query)?,
        (None, None) => {}
    }
    if let Some(reference) = &op.reference {
        check_reference(reference)?;
    }
    Ok(op)
}

/// The repository itself. What it names reaches a command line, so that nothing in it may look like
/// an option.
fn repository(address: &str, scp: bool) -> Result<GitOp, String> {
    if address.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err("the address holds blanks or control characters".to_owned());
    }
    let (url, login, host, path) = if scp {
        let (user_host, path) = address.split_once(':').unwrap_or((address, ""));
        let (_, host) = user_host.split_once('@').unwrap_or(("", user_host));
        (address.to_owned(), None, host, path)
    } else {
        let (scheme, login, rest) = split(address).unwrap_or(("", None, address));
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let web = matches!(scheme, "http" | "https");
        let user = login.and_then(|login| login.split(':').next());
        if user.is_some_and(|user| user.starts_with('-')) {
            return Err("the user begins with a `-`".to_owned());
        }
        match user.filter(|_| scheme == "ssh") {
            Some(user) => (format!("ssh://{user}@{rest}"), None, host, path),
            None => {
                let login = login.filter(|_| web).map(credentials);
                (format!("{scheme}://{rest}"), login, host, path)
            }
        }
    };
    if host.is_empty() || host.starts_with('-') {
        return Err("the address names no host".to_owned());
    }
    if path.is_empty() || path.starts_with('-') {
        return Err("the address names no repository".to_owned());
    }
    Ok(GitOp {
        url,
        login,
        reference: None,
        commit: None,
        subdir: String::new(),
        keep_git_dir: false,
        submodules: true,
    })
}

fn credentials(login: &str) -> (String, Secret) {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    (percent_decode(user), Secret::new(percent_decode(password)))
}

/// Reads `ref=v1&subdir=a` (C6.3).
fn read_query(op: &mut GitOp, query: &str) -> Result<(), String> {
    let mut named = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(&value.replace('+', " "));
        let reference = match key {
            "ref" => Some(value.clone()),
            "branch" => Some(format!("refs/heads/{value}")),
            "tag" => Some(format!("refs/tags/{value}")),
            _ => None,
        };
        if let Some(reference) = reference {
            if value.is_empty() {
                return Err(format!("`{key}` has no value"));
            }
            if op.reference.replace(reference).is_some() {
                return Err("only one of `ref`, `branch` and `tag` can be given".to_owned());
            }
            continue;
        }
        match key {
            "subdir" => op.subdir = subdirectory(&value),
            "checksum" => op.commit = Some(commit(&value)?),
            "commit" => {
                let commit = commit(&value)?;
                named = Some(commit.clone()).filter(|commit| matches!(commit.len(), 40 | 64));
                op.commit = Some(commit);
            }
            "keep-git-dir" => op.keep_git_dir = switch(key, &value)?,
            "submodules" => op.submodules = switch(key, &value)?,
            // How the commit is fetched does not change what is fetched.
            "fetch-by-commit" => drop(switch(key, &value)?),
            // Times must not depend on when somebody builds.
            "mtime" if value == "commit" => {}
            "mtime" => {
                return Err(format!(
                    "`mtime={value}` is not supported: files get the time of their commit"
                ));
            }
            _ => return Err(format!("unexpected query `{key}`")),
        }
    }
    // A commit in full needs no branch that leads to it.
    op.reference = op.reference.take().or(named);
    Ok(())
}

/// Reads a commit, or its first digits.
pub(super) fn commit(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits && (7..=64).contains(&text.len()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "`{text}` is no commit: expected 7 to 64 hexadecimal digits"
    ))
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("`{key}={value}`: expected true or false")),
    }
}

fn subdirectory(text: &str) -> String {
    path::join("/", text).trim_start_matches('/').to_owned()
}

/// Refuses what git does not take for the name of a reference, or would take for more than one.
fn check_reference(name: &str) -> Result<(), String> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    let bad = name.starts_with(['-', '/'])
        || name.ends_with(['/', '.'])
        || name.contains(odd)
        || ["..", "//", "@{"].iter().any(|part| name.contains(part));
    if bad {
        Err(format!("`{name}` is no valid git reference"))
    } else {
        Ok(())
    }
}

/// Decodes `%41`; what does not decode to text is left as it is.
pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = |index: usize| tail.get(index).and_then(|&c| char::from(c).to_digit(16));
        let decoded = match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        bytes.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, String, String) {
        let op = parse(text).unwrap();
        (op.url, op.reference.unwrap_or_default(), op.subdir)
    }

    /// A12.4
    #[test]
    fn addresses_name_repository_reference_and_folder() {
        for (text, url, reference, subdir) in [
            ("https://h/x.git", "https://h/x.git", "", ""),
            ("https://h/x.git#v1", "https://h/x.git", "v1", ""),
            ("https://h/x.git#v1:a/b", "https://h/x.git", "v1", "a/b"),
            ("https://h/x.git#:../a/", "https://h/x.git", "", "a"),
            ("https://h/x.git#a%2Fb", "https://h/x.git", "a/b", ""),
            ("https://h/x.git#", "https://h/x.git", "", ""),
            ("git@h:o/x#main:d", "git@h:o/x", "main", "d"),
            ("ssh://git@h:22/x", "ssh://git@h:22/x", "", ""),
            ("ssh://u:pw@h/x", "ssh://u@h/x", "", ""),
            ("git://u@h/x#pull/7/head", "git://h/x", "pull/7/head", ""),
            (
                "https://h/x.git?branch=b&subdir=/d",
                "https://h/x.git",
                "refs/heads/b",
                "d",
            ),
            (
                "https://h/x.git?tag=1",
                "https://h/x.git",
                "refs/tags/1",
                "",
            ),
        ] {
            let expected = (url.to_owned(), reference.to_owned(), subdir.to_owned());
            assert_eq!(read(text), expected, "{text}");
        }
    }

    /// C6.3
    #[test]
    fn queries_say_the_rest() {
        let op = parse("https://h/x.git?checksum=ABCDEF1&keep-git-dir&submodules=false").unwrap();
        assert_eq!(op.commit.as_deref(), Some("abcdef1"));
        assert!(op.keep_git_dir && !op.submodules);
        let whole = "0123456789".repeat(4);
        let reference = |query: &str| {
            parse(&format!("https://h/x.git?{query}"))
                .unwrap()
                .reference
        };
        assert_eq!(reference(&format!("commit={whole}")), Some(whole.clone()));
        assert_eq!(
            reference(&format!("commit={whole}&ref=a")).as_deref(),
            Some("a")
        );
        assert_eq!(reference(&format!("checksum={whole}")), None);
        let op = parse("https://u:p%40w@h/x.git").unwrap();
        assert_eq!(op.login, Some(("u".to_owned(), Secret::new("p@w"))));
        assert_eq!(op.url, "https://h/x.git");
        assert!(!format!("{op:?}").contains("p@w"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, reason) in [
            ("https://h/x.git?ref=a#b", "together"),
            ("https://h/x.git?ref=a&tag=b", "only one of"),
            ("https://h/x.git?ref=", "no value"),
            ("https://h/x.git?colour=red", "unexpected query `colour`"),
            ("https://h/x.git?commit=abc", "7 to 64"),
            ("https://h/x.git?submodules=maybe", "true or false"),
            ("https://h/x.git?mtime=checkout", "time of their commit"),
            ("https://h/x.git#--upload-pack=x", "no valid git reference"),
            ("https://h/x.git?branch=a..b", "no valid git reference"),
            ("https://h/x.git#a b", "no valid git reference"),
            ("ssh://-oProxyCommand=x/y", "no host"),
            ("ssh://-o@h/y", "begins with a `-`"),
            ("git@-h:x", "no host"),
            ("git@h:-x", "no repository"),
            ("git@h", "no repository"),
            ("https:///x.git", "no host"),
            ("git://h/a b", "blanks"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn logins_are_hidden() {
        for (text, shown) in [
            ("https://h/a@b", "https://h/a@b"),
            ("https://u:p@h/x", "https://xxxxx:xxxxx@h/x"),
            ("https://token@h/x", "https://xxxxx@h/x"),
            ("https://u:p@w@h/x", "https://xxxxx:xxxxx@h/x"),
            ("ssh://git@h/x", "ssh://git@h/x"),
            ("git@h:x", "git@h:x"),
        ] {
            assert_eq!(without_login(text), shown);
        }
    }
}
