//! Extended attributes that travel with a file.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::sys::owner;

/// One extended attribute: its name and its value.
pub type Xattr = (CString, Vec<u8>);

/// Reads the attributes that a copy carries (A10.7, A15.1), sorted by name.
///
/// File capabilities are carried. Not carried are the other `security.` attributes (labels of
/// this host), `system.` (ACLs, which name this host's users), and the marks of overlayfs, which
/// would hide files if they got into a layer.
///
/// # Errors
/// Those of `flistxattr` and `fgetxattr`; a file system without attributes has none.
pub fn read(file: impl AsFd) -> io::Result<Vec<Xattr>> {
    let file = file.as_fd();
    let mut names = [0_u8; 1024];
    let mut attributes = match rustix::fs::flistxattr(file, &mut names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(length) => read_named(file, &names[..length])?,
        Err(Errno::RANGE) => {
            // The kernel's own limit of a list of names is 64 KiB.
            let mut names = vec![0; 64 << 10];
            let length = rustix::fs::flistxattr(file, &mut names)?;
            read_named(file, &names[..length])?
        }
        Err(error) => return Err(error.into()),
    };
    attributes.sort();
    Ok(attributes)
}

/// Sets an attribute, and says whether the file system took it.
pub fn write(file: impl AsFd, (name, value): &Xattr) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(file, name.as_c_str(), value, flags).is_ok()
}

/// Whether an attribute with this name is a file capability.
#[must_use]
pub fn is_capability(name: &CStr) -> bool {
    name.to_bytes() == b"security.capability"
}

fn read_named(file: impl AsFd, names: &[u8]) -> io::Result<Vec<Xattr>> {
    let mut attributes = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if !is_carried(name) {
            continue;
        }
        // The kernel's limit of a value is 64 KiB.
        let mut value = vec![0; 64 << 10];
        match rustix::fs::fgetxattr(&file, name, &mut value) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                attributes.push((name.to_owned(), value));
            }
            // Removed since the list was read.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(attributes)
}

fn is_carried(name: &CStr) -> bool {
    const HOST: [&[u8]; 4] = [
        b"security.",
        b"system.",
        b"trusted.overlay.",
        b"user.overlay.",
    ];
    if owner::is_record(name.to_bytes()) {
        return false;
    }
    is_capability(name)
        || !HOST
            .iter()
            .any(|prefix| name.to_bytes().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a15_1_capabilities_are_carried_and_what_belongs_to_the_host_is_not() {
        for (name, carried) in [
            (c"security.capability", true),
            (c"security.selinux", false),
            (c"security.ima", false),
            (c"system.posix_acl_access", false),
            (c"trusted.overlay.opaque", false),
            (c"user.overlay.origin", false),
            (c"user.kiln.owner", false),
            (c"trusted.md5", true),
            (c"user.comment", true),
        ] {
            assert_eq!(is_carried(name), carried, "{name:?}");
        }
    }
}
