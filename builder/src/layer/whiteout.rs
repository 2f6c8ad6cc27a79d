//! Deletions: how layers write them (`.wh.NAME`), how overlayfs keeps them (character device 0:0,
//! an attribute for opaque directories), and which names and attributes are neither's content.

use std::borrow::Cow;

use crate::sys::owner;

/// What stands before the name of a deleted file in a layer.
pub const PREFIX: &[u8] = b".wh.";
/// Name of the entry that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// What stands before names that aufs kept for itself.
const META_PREFIX: &[u8] = b".wh..wh.";

/// What the last component of an entry's name means in a layer (D5.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// An ordinary name.
    Plain,
    /// This name is deleted from lower layers.
    Whiteout(&'a [u8]),
    /// The directory shows nothing of lower layers.
    Opaque,
    /// A left-over of aufs without meaning.
    Meta,
    /// A whiteout of no name, of `.` or of `..`.
    Invalid,
}

/// Classifies one component of a name.
#[must_use]
pub fn classify(name: &[u8]) -> Name<'_> {
    if name == OPAQUE {
        return Name::Opaque;
    }
    if name.starts_with(META_PREFIX) {
        return Name::Meta;
    }
    match name.strip_prefix(PREFIX) {
        None => Name::Plain,
        Some(b"" | b"." | b"..") => Name::Invalid,
        Some(deleted) => Name::Whiteout(deleted),
    }
}

/// The name of the entry that deletes another one.
#[must_use]
pub fn name_of(deleted: &[u8]) -> Vec<u8> {
    [PREFIX, deleted].concat()
}

/// Overlayfs's attribute for opaque directories; its value is `y`. All overlays are mounted with
/// `userxattr`, whoever mounts them, so that root, others and those who cannot mount at all share
/// one form of snapshots.
pub const OPAQUE_ATTRIBUTE: &str = "user.overlay.opaque";

/// The part of an attribute's name after overlayfs's prefix for kiln's mounts; `None` for any other
/// attribute.
#[must_use]
pub fn overlay_attribute(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b"user.overlay.")
}

/// Whether an attribute speaks to overlayfs, on kiln's mounts or on those of others. None such comes
/// out of a layer or a context, nor gets into one.
#[must_use]
pub fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Whether a layer that kiln makes carries an attribute: file capabilities and what users set.
/// Labels of the host's security modules and access lists that a host directory handed down would
/// make the same build differ between machines.
#[must_use]
pub fn is_packed(name: &[u8]) -> bool {
    let ours = name == b"security.capability" || name.starts_with(b"user.");
    ours && !is_overlay(name) && !owner::is_record(name)
}

/// Whether an attribute that a layer brings is set on the file: all but those that overlayfs or the
/// host's security module would obey.
#[must_use]
pub fn is_unpacked(name: &[u8]) -> bool {
    let host = matches!(name, b"security.selinux" | b"system.nfs4_acl");
    !host && !is_overlay(name) && !owner::is_record(name)
}

/// A name as messages show it.
pub(super) fn display(name: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => Cow::Borrowed(text),
        _ => Cow::Owned(name.escape_ascii().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers() {
        for (name, class) in [
            (&b"a"[..], Name::Plain),
            (b".wh", Name::Plain),
            (b"x.wh.y", Name::Plain),
            (b".wh.a", Name::Whiteout(b"a")),
            (b".wh..hidden", Name::Whiteout(b".hidden")),
            (b".wh..wh..opq", Name::Opaque),
            (b".wh..wh.plnk", Name::Meta),
            (b".wh..wh.aufs", Name::Meta),
            (b".wh.", Name::Invalid),
            (b".wh..", Name::Invalid),
            (b".wh...", Name::Invalid),
        ] {
            assert_eq!(classify(name), class, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn attributes_of_overlayfs_never_cross() {
        for name in [&b"trusted.overlay.opaque"[..], b"user.overlay.whiteout"] {
            assert!(!is_packed(name) && !is_unpacked(name));
        }
        assert!(!is_packed(b"security.selinux") && !is_unpacked(b"security.selinux"));
        assert!(!is_packed(b"system.posix_acl_access"));
        assert!(is_packed(b"security.capability") && is_packed(b"user.x"));
    }
}
