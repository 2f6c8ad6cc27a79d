//! Directories for the tests of this module and of the step that writes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use kiln_grammar::dockerignore::IgnoreFile;
use rustix::fs::{CWD, Timespec, Timestamps};

use super::Tree;
use crate::graph::{CopyOp, CopySource};

/// Makes files: `dir/` is a directory, `a -> b` a symbolic link, `a => b` a hard link of `b`,
/// anything else a file that holds its own name. ` 0755` behind a name is a mode.
pub(crate) fn make(root: &Path, files: &[&str]) {
    for file in files {
        let (name, mode) = match file.rsplit_once(" 0") {
            Some((name, mode)) => (name, u32::from_str_radix(mode, 8).ok()),
            None => (*file, None),
        };
        let link = name.split_once(" -> ");
        let hard = name.split_once(" => ");
        let name = link.or(hard).map_or(name, |(name, _)| name);
        let path = root.join(name);
        let directory = if name.ends_with('/') {
            Some(Path::new(name))
        } else {
            Path::new(name).parent()
        };
        make_directories(root, directory.unwrap());
        if let Some((_, target)) = link {
            symlink(target, &path).unwrap();
        } else if let Some((_, target)) = hard {
            fs::hard_link(root.join(target), &path).unwrap();
        } else if !name.ends_with('/') {
            fs::write(&path, name).unwrap();
            set_mode(&path, 0o644);
        }
        if let Some(mode) = mode {
            set_mode(&path, mode);
        }
    }
}

/// Makes what is missing of a directory, whatever the umask.
fn make_directories(root: &Path, dir: &Path) {
    let ancestors: Vec<&Path> = dir.ancestors().collect();
    for ancestor in ancestors.iter().rev().skip(1) {
        let path = root.join(ancestor);
        if !path.is_dir() {
            fs::create_dir(&path).unwrap();
            set_mode(&path, 0o755);
        }
    }
}

/// Sets the permission bits.
pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A build context of such files under an ignore file.
pub(crate) fn context(root: &Path, ignore: &str) -> Tree {
    Tree::context(
        root,
        Some(Arc::new(IgnoreFile::parse(ignore).unwrap())),
        None,
    )
    .unwrap()
}

/// `COPY sources... destination` from the build context, which is input 1.
pub(crate) fn op(words: &str) -> CopyOp {
    let mut words: Vec<&str> = words.split_whitespace().collect();
    let destination = words.pop().unwrap().to_owned();
    let mut op = CopyOp {
        destination,
        ..CopyOp::default()
    };
    for word in words {
        if let Some(pattern) = word.strip_prefix("--exclude=") {
            op.exclude.push(pattern.to_owned());
        } else if let Some(value) = word.strip_prefix("--chmod=") {
            op.chmod = Some(value.to_owned());
        } else if let Some(value) = word.strip_prefix("--chown=") {
            op.chown = Some(value.to_owned());
        } else {
            match word {
                "--parents" => op.parents = true,
                "--link" => op.link = true,
                "--unpack" => op.unpack = true,
                "--from" => op.keep_owner = true,
                word if word.starts_with("<<") => op.sources.push(CopySource::Inline {
                    name: word[2..].to_owned(),
                    content: "inline\n".to_owned(),
                }),
                path => op.sources.push(CopySource::Path {
                    input: 1,
                    path: path.to_owned(),
                }),
            }
        }
    }
    op
}

/// Sets the modification time.
pub(crate) fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(CWD, path, &times, nofollow).unwrap();
}

/// Whether a test may do what only root can; says so loudly when not, and fails where it must not
/// be left out.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: {test} needs root");
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{test} may not be skipped in CI"
        );
    }
    root
}
