//! `kiln push` (D7.6)

use std::sync::Arc;

use anyhow::bail;
use kiln_builder::image::form::Form;
use kiln_builder::image::output::compression_of;
use kiln_builder::image::publish::{self, Target};
use kiln_builder::runtime::Cancel;
use kiln_builder::store::Store;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Descriptor;

use super::run::fits;
use super::{Setup, all_tags_of, block_on, platform};
use crate::args::PushArgs;
use crate::render::{self, transfer};
use crate::report::UsageError;

pub(crate) fn run(setup: &Setup, args: &PushArgs) -> anyhow::Result<()> {
    if args.all_tags {
        return push_all(setup, args);
    }
    let mut reference = Reference::parse(&args.name)?;
    if reference.digest.is_some() {
        bail!("cannot push `{}` by digest: name it by a tag", args.name);
    }
    let store = setup.store()?;
    let Some(image) = store.named(&reference)? else {
        bail!(
            "An image does not exist locally with the tag: {}",
            args.name
        );
    };
    if reference.tag.is_none() {
        if !args.quiet {
            render::err("Using default tag: latest");
        }
        reference.tag = Some("latest".to_owned());
    }
    require_platform(&store, &image, &args.name, args)?;
    let form = form(args)?;
    let client = setup.client(args.quiet)?;
    let cancel = Cancel::new()?;
    let target = Target {
        reference: &reference,
        by_digest: false,
        form: &form,
    };
    block_on(&cancel, async {
        let pushed = push(&store, &client, &cancel, target, &image, args.quiet);
        render::out(&pushed.await?.1);
        Ok(())
    })
}

/// What the arguments say of compression.
fn form(args: &PushArgs) -> anyhow::Result<Form> {
    let (name, level) = (
        args.compression.as_deref(),
        args.compression_level.as_deref(),
    );
    let form = compression_of(name, level, args.force_compression);
    form.map_err(|error| UsageError::new(error.to_string()).into())
}

/// Makes sure that an image is for the platform that is asked for; the store has one of each name.
fn require_platform(
    store: &Store,
    image: &Digest,
    name: &str,
    args: &PushArgs,
) -> anyhow::Result<()> {
    let (platform, given) = platform(args.platform.as_deref())?;
    if given && !fits(store, image, &platform)? {
        bail!("the image `{name}` in the store is not for {platform}");
    }
    Ok(())
}

/// Pushes all images that have a name in the repository here.
fn push_all(setup: &Setup, args: &PushArgs) -> anyhow::Result<()> {
    let repository = all_tags_of(&args.name)?;
    let store = setup.store()?;
    let mut named = Vec::new();
    for entry in store.names()? {
        let reference = Reference::parse(&entry.name)?;
        let same = reference.name() == repository.name();
        if same && reference.digest.is_none() {
            require_platform(&store, &entry.image, &entry.name, args)?;
            named.push((reference, entry.image));
        }
    }
    if named.is_empty() {
        bail!(
            "An image does not exist locally with the name: {}",
            args.name
        );
    }
    let form = form(args)?;
    let client = setup.client(args.quiet)?;
    let cancel = Cancel::new()?;
    block_on(&cancel, async {
        for (reference, image) in &named {
            let target = Target {
                reference,
                by_digest: false,
                form: &form,
            };
            let pushed = push(&store, &client, &cancel, target, image, args.quiet);
            render::out(&pushed.await?.1);
        }
        Ok(())
    })
}

/// Pushes an image under a name and says so; also returns the line that is data.
pub(crate) async fn push(
    store: &Arc<Store>,
    client: &Client,
    cancel: &Cancel,
    target: Target<'_>,
    image: &Digest,
    quiet: bool,
) -> anyhow::Result<(Descriptor, String)> {
    let reference = target.reference;
    let repository = format!("{}/{}", reference.registry, reference.repository);
    if !quiet {
        render::err(&format!("The push refers to repository [{repository}]"));
    }
    let observer = transfer::observer(transfer::PUSH, quiet);
    let (pushed, there) = publish::push(store, client, target, image, &observer, cancel).await?;
    let digest = pushed.digest.to_string();
    let tag = match target.by_digest {
        true => digest.as_str(),
        false => reference.tag_or_latest(),
    };
    if there && !quiet {
        render::err(&format!("{tag}: already there"));
    }
    let line = match (quiet, target.by_digest) {
        (true, true) => format!("{repository}@{digest}"),
        (true, false) => reference.to_string(),
        (false, _) => format!("{tag}: digest: {digest} size: {}", pushed.size),
    };
    Ok((pushed, line))
}
