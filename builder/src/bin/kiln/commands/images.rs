//! `kiln images` (D11.1)

use std::collections::HashMap;

use kiln_builder::image::history::size;
use kiln_builder::store::Store;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;

use super::Setup;
use crate::args::ImagesArgs;
use crate::render::{self, table, text};

/// One name of an image, or an image without one: then with the repository that knows it, if any.
struct Row {
    name: Option<Reference>,
    digest: Option<Digest>,
    id: Digest,
    created: Option<String>,
    size: u64,
}

pub(crate) fn run(setup: &Setup, args: &ImagesArgs) -> anyhow::Result<()> {
    let store = setup.store()?;
    let mut rows = rows(&store)?;
    if let Some(filter) = &args.name {
        let wanted = Reference::parse(filter)?;
        rows.retain(|row| row.name.as_ref().is_some_and(|name| matches(name, &wanted)));
    }
    // Newest first; names of one image in order.
    rows.sort_by(|a, b| b.created.cmp(&a.created));
    if args.quiet {
        let mut seen = Vec::new();
        for row in rows {
            if !seen.contains(&row.id) {
                render::out(&id(&row.id, args.no_trunc));
                seen.push(row.id);
            }
        }
        return Ok(());
    }
    let mut heading = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if args.digests {
        heading.insert(2, "DIGEST");
    }
    let cells: Vec<_> = rows.iter().map(|row| cells(row, args)).collect();
    table::print(&heading, &cells);
    Ok(())
}

fn matches(name: &Reference, wanted: &Reference) -> bool {
    let tag = wanted
        .tag
        .as_deref()
        .is_none_or(|tag| name.digest.is_none() && name.tag_or_latest() == tag);
    name.registry == wanted.registry && name.repository == wanted.repository && tag
}

fn rows(store: &Store) -> anyhow::Result<Vec<Row>> {
    let mut names: HashMap<Digest, Vec<Reference>> = HashMap::new();
    for named in store.names()? {
        names
            .entry(named.image)
            .or_default()
            .push(Reference::parse(&named.name)?);
    }
    let digests = store.repo_digests()?;
    let mut rows = Vec::new();
    for image in store.images()? {
        // One image that is damaged must not hide the others.
        let (created, size) = match (store.config(&image.id), size(store, &image.id)) {
            (Ok(config), Ok(size)) => (config.created, size),
            (Err(error), _) => {
                render::err(&format!("warning: {error}"));
                (None, 0)
            }
            (_, Err(error)) => {
                render::err(&format!("warning: {error}"));
                (None, 0)
            }
        };
        let known: Vec<_> = digests
            .iter()
            .filter(|known| known.image == image.id)
            .collect();
        let row = |name: Option<Reference>, digest: Option<Digest>| Row {
            name,
            digest,
            id: image.id,
            created: created.clone(),
            size,
        };
        if let Some(names) = names.remove(&image.id) {
            rows.extend(names.into_iter().map(|name| {
                let repository = format!("{}/{}", name.registry, name.repository);
                let digest = known.iter().find(|known| known.repository == repository);
                row(Some(name), digest.map(|known| known.digest))
            }));
        } else if known.is_empty() {
            rows.push(row(None, None));
        } else {
            for known in known {
                let mut name = Reference::parse(&known.repository)?;
                name.digest = Some(known.digest);
                rows.push(row(Some(name), Some(known.digest)));
            }
        }
    }
    Ok(rows)
}

fn cells(row: &Row, args: &ImagesArgs) -> Vec<String> {
    let none = || "<none>".to_owned();
    let mut cells = vec![
        row.name
            .as_ref()
            .map_or_else(none, Reference::familiar_name),
        row.name
            .as_ref()
            .filter(|name| name.digest.is_none())
            .map_or_else(none, |name| name.tag_or_latest().to_owned()),
        id(&row.id, args.no_trunc),
        text::ago(row.created.as_deref()),
        text::size(row.size),
    ];
    if args.digests {
        cells.insert(2, row.digest.map_or_else(none, |digest| digest.to_string()));
    }
    cells
}

fn id(id: &Digest, whole: bool) -> String {
    if whole { id.to_string() } else { id.short() }
}
