//! `kiln load` (D10.4)

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use kiln_builder::image::ImageError;
use kiln_builder::image::load::load;
use kiln_registry::archive;

use super::Setup;
use crate::args::LoadArgs;
use crate::render;
use crate::report::UsageError;

pub(crate) fn run(setup: &Setup, args: &LoadArgs) -> anyhow::Result<()> {
    let file = match &args.input {
        Some(path) => File::open(path).with_context(|| format!("open {}", path.display()))?,
        None if io::stdin().is_terminal() => {
            return Err(UsageError::new("requested load from stdin, but stdin is empty").into());
        }
        None => File::from(
            io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .context("reading standard input")?,
        ),
    };
    let store = setup.store()?;
    let folder = store.temporary()?;
    let loaded = archive::open(file, folder.path())
        .map_err(ImageError::from)
        .and_then(|archive| load(&store, &archive));
    let loaded = match &args.input {
        Some(path) => loaded.with_context(|| format!("cannot load `{}`", path.display()))?,
        None => loaded?,
    };
    for image in loaded {
        for (name, before) in &image.moved {
            render::err(&format!(
                "The image {} already exists, renaming the old one with ID {before} to empty string",
                name.familiar()
            ));
        }
        for name in &image.names {
            let text = name.familiar();
            render::out(&if args.quiet {
                text
            } else {
                format!("Loaded image: {text}")
            });
        }
        if image.names.is_empty() {
            let id = image.id.to_string();
            render::out(&if args.quiet {
                id
            } else {
                format!("Loaded image ID: {id}")
            });
        }
    }
    Ok(())
}
