//! `kiln save` (D10.5)

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, anyhow};
use kiln_builder::image::publish;
use kiln_builder::runtime::Cancel;
use kiln_builder::store::Store;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;

use super::{Setup, block_on};
use crate::args::SaveArgs;
use crate::report::UsageError;

/// Bytes gathered before they are written.
const BUFFER: usize = 256 << 10;

pub(crate) fn run(setup: &Setup, args: &SaveArgs) -> anyhow::Result<()> {
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(UsageError::new(
            "cowardly refusing to save to a terminal. Use the -o flag or redirect",
        )
        .into());
    }
    args.output.as_deref().map_or(Ok(()), check_target)?;
    let store = setup.store()?;
    let images = wanted(&store, &args.images)?;
    let cancel = Cancel::new()?;
    let output = args.output.clone();
    let stop = cancel.clone();
    block_on(&cancel, async move {
        tokio::task::spawn_blocking(move || match output {
            Some(path) => to_file(&path, |out| {
                publish::save(&store, &images, None, out, &stop)?;
                Ok(())
            }),
            None => to_stdout(|out| {
                publish::save(&store, &images, None, out, &stop)?;
                Ok(())
            }),
        })
        .await?
    })
}

/// The images that are meant, each once, with the names it is saved under.
fn wanted(store: &Store, texts: &[String]) -> anyhow::Result<Vec<(Digest, Vec<Reference>)>> {
    let mut images: Vec<(Digest, Vec<Reference>)> = Vec::new();
    for text in texts {
        for (image, name) in meant(store, text)? {
            let place = images.iter().position(|(known, _)| *known == image);
            let place = place.unwrap_or_else(|| {
                images.push((image, Vec::new()));
                images.len() - 1
            });
            let names = &mut images[place].1;
            names.extend(name.filter(|name| !names.contains(name)));
        }
    }
    Ok(images)
}

/// What one argument means: a name with its tag, all tags of a name without one, or an image by its
/// id, which is saved without a name (D10.2).
fn meant(store: &Store, text: &str) -> anyhow::Result<Vec<(Digest, Option<Reference>)>> {
    if let Ok(name) = Reference::parse(text)
        && name.digest.is_none()
    {
        let mut found = Vec::new();
        for named in store.names()? {
            let known = Reference::parse(&named.name)?;
            let same = known.registry == name.registry && known.repository == name.repository;
            if same && (name.tag.is_none() || known.tag == name.tag) {
                found.push((named.image, Some(known)));
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(vec![(store.find(text)?, None)])
}

/// Lets an archive be written to standard output.
pub(super) fn to_stdout(
    write: impl FnOnce(&mut dyn io::Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    write(&mut out)?;
    out.flush().context("writing to standard output")
}

/// Refuses a file that cannot be made where it is to be, before any work is done for it.
pub(super) fn check_target(path: &Path) -> anyhow::Result<()> {
    let problem = |problem: &str| Err(anyhow!("cannot write `{}`: {problem}", path.display()));
    if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return problem("is a directory");
    }
    match path.parent() {
        Some(folder) if folder != "" && !folder.is_dir() => {
            problem(&format!("there is no folder `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Lets an archive be written to a temporary file beside the target, so that a failure leaves the
/// target as it was.
pub(super) fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn io::Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // A device or pipe cannot be replaced by a rename, and need not be.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let file = File::options()
            .write(true)
            .open(path)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        let mut out = BufWriter::with_capacity(BUFFER, file);
        write(&mut out)?;
        return Ok(out.flush()?);
    }
    let mut name = path
        .file_name()
        .context("the output needs a file name")?
        .to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let temporary = path.with_file_name(name);
    let result = fill(&temporary, path, write);
    if result.is_err() {
        drop(fs::remove_file(&temporary));
    }
    result.with_context(|| format!("cannot write `{}`", path.display()))
}

fn fill(
    temporary: &Path,
    path: &Path,
    write: impl FnOnce(&mut dyn io::Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, File::create(temporary)?);
    write(&mut out)?;
    out.flush()?;
    Ok(fs::rename(temporary, path)?)
}
