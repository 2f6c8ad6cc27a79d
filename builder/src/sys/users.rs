//! Users and groups of an image, looked up in its own `/etc/passwd` and `/etc/group`.

use super::root::Root;

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
        source: std::io::Error,
    },
}

/// Resolves `user[:group]` for a process by the rules of A9.8; an empty text is root.
///
/// # Errors
/// [`UserError`] for unknown names and unreadable files.
pub fn resolve(root: &Root, spec: &str) -> Result<User, UserError> {
    _ = (root, spec);
    Err(UserError::Malformed(spec.to_owned()))
}

/// Resolves a `--chown` value to `(uid, gid)` by the rules of A11.7: a number alone is also the
/// group, a name brings its primary group, `root` is always 0.
///
/// # Errors
/// [`UserError`] for unknown names and unreadable files.
pub fn resolve_owner(root: &Root, spec: &str) -> Result<(u32, u32), UserError> {
    _ = (root, spec);
    Err(UserError::Malformed(spec.to_owned()))
}
