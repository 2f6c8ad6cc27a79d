//! `kiln inspect` (D11.2)

use kiln_builder::image::history::size;
use kiln_builder::store::{Store, StoreError};
use kiln_registry::reference::Reference;
use serde_json::{Value, json};

use super::Setup;
use crate::args::InspectArgs;
use crate::render;
use crate::report::Reported;

pub(crate) fn run(setup: &Setup, args: &InspectArgs) -> anyhow::Result<()> {
    let store = setup.store()?;
    let mut found = Vec::new();
    let mut failed = false;
    for text in &args.images {
        match inspect(&store, text) {
            Ok(value) => found.push(value),
            Err(error) => {
                render::err(&format!("error: {error:#}"));
                failed = true;
            }
        }
    }
    render::out(&serde_json::to_string_pretty(&Value::Array(found))?);
    if failed { Err(Reported.into()) } else { Ok(()) }
}

fn inspect(store: &Store, text: &str) -> anyhow::Result<Value> {
    let id = store.find(text)?;
    let config = store.config(&id)?;
    let names = store.names()?.into_iter().filter(|named| named.image == id);
    let tags = names
        .map(|named| Ok(Reference::parse(&named.name)?.familiar()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let known = store
        .repo_digests()?
        .into_iter()
        .filter(|entry| entry.image == id);
    let digests = known
        .map(|entry| {
            Ok(format!(
                "{}@{}",
                Reference::parse(&entry.repository)?.familiar_name(),
                entry.digest
            ))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let record = store.image(&id)?;
    let mut value = json!({
        "Id": id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Comment": config.history.last().and_then(|entry| entry.comment.clone()).unwrap_or_default(),
        "Created": config.created,
        "Author": config.author.unwrap_or_default(),
        "Config": config.config,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": size(store, &id).map_err(|error| StoreError::Damaged { what: format!("image {id}"), detail: error.to_string() })?,
        "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
    });
    for (name, text) in [
        ("Variant", config.variant),
        ("OsVersion", config.os_version),
    ] {
        if let Some(text) = text {
            value[name] = Value::String(text);
        }
    }
    if let Some(manifest) = record.manifest {
        value["Descriptor"] = serde_json::to_value(manifest)?;
    }
    Ok(value)
}
