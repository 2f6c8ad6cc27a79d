//! `kiln history` (D11.3)

use kiln_builder::image::history::{HistoryLine, history};
use kiln_registry::digest::Digest;

use super::Setup;
use crate::args::HistoryArgs;
use crate::render::{self, table, text};

/// What stands for the id of a layer that is no image of its own.
const MISSING: &str = "<missing>";

pub(crate) fn run(setup: &Setup, args: &HistoryArgs) -> anyhow::Result<()> {
    let store = setup.store()?;
    let image = store.find(&args.image)?;
    let lines = history(&store, &image)?;
    if args.quiet {
        for number in 0..lines.len() {
            render::out(&id(&image, number, args));
        }
        return Ok(());
    }
    let rows: Vec<_> = lines
        .iter()
        .enumerate()
        .map(|(number, line)| row(&image, number, line, args))
        .collect();
    table::print(
        &["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"],
        &rows,
    );
    Ok(())
}

fn row(image: &Digest, number: usize, line: &HistoryLine, args: &HistoryArgs) -> Vec<String> {
    let created_by = text::one_line(
        &line
            .entry
            .created_by
            .clone()
            .unwrap_or_default()
            .replace(['\n', '\t'], " "),
    );
    let created = line.entry.created.as_deref();
    vec![
        id(image, number, args),
        if args.human {
            text::ago(created)
        } else {
            created.unwrap_or("N/A").to_owned()
        },
        if args.no_trunc {
            created_by
        } else {
            text::cut(&created_by, 45)
        },
        if args.human {
            text::size(line.size)
        } else {
            line.size.to_string()
        },
        text::one_line(line.entry.comment.as_deref().unwrap_or_default()),
    ]
}

fn id(image: &Digest, number: usize, args: &HistoryArgs) -> String {
    match (number, args.no_trunc) {
        (0, true) => image.to_string(),
        (0, false) => image.short(),
        _ => MISSING.to_owned(),
    }
}
