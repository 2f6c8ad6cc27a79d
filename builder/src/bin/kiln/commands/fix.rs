//! `kiln check --fix`

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::Path;

use anyhow::Context as _;
use kiln_builder::pipeline::{self, CheckRequest, Checked, DockerfileFrom};
use kiln_builder::store::Store;
use kiln_grammar::lint::{Looked, fix_all};

use super::check::reads_stdin;
use crate::args::CheckArgs;
use crate::render::{self, diff};

/// What was done.
pub(super) enum Fixed {
    /// There was nothing to do.
    Nothing,
    /// What would be done was shown.
    Shown,
    /// It was done; this looks at the result.
    Request(Box<CheckRequest>),
}

/// Fixes what is mechanical, and says how much that was.
pub(super) fn run(
    request: &CheckRequest,
    store: Option<&Store>,
    checked: &Checked,
    args: &CheckArgs,
) -> anyhow::Result<Fixed> {
    let text = &checked.source.text;
    let mut left = checked.warnings.len();
    let fixed = fix_all(text, &mut |text| {
        let looked = look(request, store, text);
        left = looked.warnings.len();
        looked
    });
    let all = checked.warnings.len();
    if fixed == *text {
        left = all;
    }
    let (count, noun) = (all.saturating_sub(left), plural(all));
    let stdin = reads_stdin(args);
    if args.dry_run {
        render::out_raw(&diff::unified(&checked.source.name, text, &fixed));
        render::err(&format!("would fix {count} of {all} {noun}"));
        return Ok(Fixed::Shown);
    }
    if stdin {
        render::out_raw(&fixed);
    }
    render::err(&format!("fixed {count} of {all} {noun}"));
    if fixed == *text {
        return Ok(Fixed::Nothing);
    }
    let mut request = request.clone();
    match &checked.path {
        Some(path) if !stdin => {
            replace(path, &fixed).with_context(|| format!("writing `{}`", checked.source.name))?;
        }
        _ => request.dockerfile = DockerfileFrom::Text(fixed),
    }
    Ok(Fixed::Request(Box::new(request)))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "warning" } else { "warnings" }
}

/// Looks at a text that is not in the file yet.
fn look(request: &CheckRequest, store: Option<&Store>, text: &str) -> Looked {
    let request = CheckRequest {
        dockerfile: DockerfileFrom::Text(text.to_owned()),
        ..request.clone()
    };
    match pipeline::check(&request, store) {
        Ok(checked) => Looked {
            errors: checked.errors.len(),
            warnings: checked.warnings,
        },
        // The context was there a moment ago; whatever took it away, nothing is changed.
        Err(_) => Looked {
            errors: usize::MAX,
            warnings: Vec::new(),
        },
    }
}

/// Replaces a file as a whole: whoever reads it meanwhile sees the old text or the new one. A link
/// stays one; mode and, where this user may say so, owner stay what they were.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let old = fs::metadata(&path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    let new = folder.join(format!(
        ".{}.kiln-{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let written = write(&new, text, &old).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        // What was begun is of no use; if it cannot be removed, the first error tells why.
        drop(fs::remove_file(&new));
    }
    written?;
    File::open(folder)?.sync_all()
}

fn write(path: &Path, text: &str, old: &fs::Metadata) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        // Only root may give files away; another user's new file is its own.
        drop(fchown(&file, Some(old.uid()), Some(old.gid())));
    }
    file.set_permissions(old.permissions())?;
    file.sync_all()
}
