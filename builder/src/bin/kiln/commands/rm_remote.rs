//! `kiln rm-remote` (D9.2)

use anyhow::bail;
use kiln_builder::runtime::Cancel;
use kiln_registry::client::{Client, ClientError};
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;

use super::{Setup, block_on};
use crate::args::RmRemoteArgs;
use crate::render;
use crate::report::Reported;

pub(crate) fn run(setup: &Setup, args: &RmRemoteArgs) -> anyhow::Result<()> {
    let names = args.names.iter().map(|text| Reference::parse(text));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let client = setup.client(false)?;
    let cancel = Cancel::new()?;
    let failed = block_on(&cancel, async {
        let mut failures = Vec::new();
        for name in &names {
            let removed = tokio::select! {
                removed = remove(&client, name, args.force) => removed,
                () = cancel.cancelled() => break,
            };
            failures.extend(removed.err());
        }
        Ok(failures)
    })?;
    let mut failures = failed.into_iter();
    match (failures.next(), failures.len()) {
        (None, _) => Ok(()),
        // The usual way has the hint and the exit code.
        (Some(only), 0) => Err(only),
        (Some(first), _) => {
            for error in std::iter::once(first).chain(failures) {
                render::err(&format!("error: {error:#}"));
            }
            Err(Reported.into())
        }
    }
}

async fn remove(client: &Client, name: &Reference, force: bool) -> anyhow::Result<()> {
    match (&name.tag, name.digest) {
        (None, Some(digest)) => remove_digest(client, name, digest, force).await,
        (_, None) => remove_tag(client, name).await,
        // Both together name a tag, as long as it still is what it was.
        (Some(tag), Some(digest)) => match client.digest_of(name, tag).await? {
            Some(found) if found == digest => remove_tag(client, name).await,
            Some(found) => bail!("`{}:{tag}` names {found} by now", name.familiar_name()),
            None => bail!("`{}:{tag}` does not exist", name.familiar_name()),
        },
    }
}

async fn remove_tag(client: &Client, name: &Reference) -> anyhow::Result<()> {
    let (tag, shown) = (name.tag_or_latest(), name.familiar_name());
    let untagged = client.delete_tag(name, tag).await?;
    render::out(&format!("Untagged: {shown}:{tag}"));
    let digest = untagged.digest;
    render::err(&format!(
        "the image stays in the registry as {shown}@{digest}"
    ));
    Ok(())
}

async fn remove_digest(
    client: &Client,
    name: &Reference,
    digest: Digest,
    force: bool,
) -> anyhow::Result<()> {
    let shown = name.familiar_name();
    let tags = match client.tags_of(name, digest).await {
        Ok(tags) => tags,
        // Whoever cannot see the tags must mean it.
        Err(error) if force && is_hidden(&error) => Vec::new(),
        Err(error) if is_hidden(&error) => {
            let error = anyhow::Error::new(error);
            return Err(error.context(format!(
                "cannot see which tags would go with {shown}@{digest}: --force deletes it nevertheless"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    if tags.len() > 1 && !force {
        bail!(
            "{} tags name {shown}@{digest} and would go with it: {}; delete them one by one, or all with --force",
            tags.len(),
            tags.join(", ")
        );
    }
    client.delete_manifest(name, digest).await?;
    for tag in tags {
        render::out(&format!("Untagged: {shown}:{tag}"));
    }
    render::out(&format!("Deleted: {shown}@{digest}"));
    Ok(())
}

/// Whether the registry has no list of tags, or does not show it.
fn is_hidden(error: &ClientError) -> bool {
    matches!(error.status(), Some(400 | 401 | 403 | 405 | 501))
}
