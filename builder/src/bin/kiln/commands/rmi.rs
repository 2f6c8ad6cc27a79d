//! `kiln rmi` (D11.4)

use anyhow::bail;
use kiln_builder::store::Store;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;

use super::Setup;
use crate::args::RmiArgs;
use crate::render;
use crate::report::Reported;

pub(crate) fn run(setup: &Setup, args: &RmiArgs) -> anyhow::Result<()> {
    let store = setup.store()?;
    let mut failed = false;
    for text in &args.images {
        if let Err(error) = remove(&store, text, args.force) {
            render::err(&format!("error: {error:#}"));
            failed = true;
        }
    }
    if store.sweep()?.is_none() {
        render::err("note: another kiln uses the store; the space is freed by the next rmi");
    }
    if failed { Err(Reported.into()) } else { Ok(()) }
}

/// Takes a name away and, with the last one, the image; or the image with all its names.
fn remove(store: &Store, text: &str, force: bool) -> anyhow::Result<()> {
    let image = store.find(text)?;
    let mut names = store.names()?;
    names.retain(|named| named.image == image);
    let named = Reference::parse(text).ok();
    let named = named.filter(|name| matches!(store.named(name), Ok(Some(_))));
    if let Some(name) = named {
        untag(store, &name)?;
        // A name by digest is no tag: the image goes with it only when it has no tag at all.
        let left = names.len() - usize::from(name.digest.is_none());
        if left > 0 {
            return Ok(());
        }
        names.clear();
    }
    if names.len() > 1 && !force {
        let id = image.short();
        bail!(
            "conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories"
        );
    }
    for named in names {
        let name = Reference::parse(&named.name)?;
        render::out(&format!("Untagged: {}", name.familiar()));
    }
    delete(store, &image)
}

/// Takes away a name by tag, or what a repository knows an image by.
fn untag(store: &Store, name: &Reference) -> anyhow::Result<()> {
    let repository = format!("{}/{}", name.registry, name.repository);
    match name.digest {
        Some(digest) => {
            let entries = store.repo_digests()?.into_iter();
            for entry in
                entries.filter(|entry| entry.repository == repository && entry.digest == digest)
            {
                store.remove_repo_digest(&entry)?;
            }
            render::out(&format!("Untagged: {}@{digest}", name.familiar_name()));
        }
        None => {
            let tag = name.tag_or_latest();
            store.untag(&format!("{repository}:{tag}"))?;
            render::out(&format!("Untagged: {}:{tag}", name.familiar_name()));
        }
    }
    Ok(())
}

fn delete(store: &Store, image: &Digest) -> anyhow::Result<()> {
    for entry in store
        .repo_digests()?
        .into_iter()
        .filter(|entry| entry.image == *image)
    {
        let name = Reference::parse(&entry.repository)?;
        render::out(&format!(
            "Untagged: {}@{}",
            name.familiar_name(),
            entry.digest
        ));
    }
    store.remove_image(image)?;
    render::out(&format!("Deleted: {image}"));
    Ok(())
}
