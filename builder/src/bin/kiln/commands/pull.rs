//! `kiln pull` (D5.4)

use kiln_builder::image::pull::{Pulled, pull};
use kiln_builder::runtime::Cancel;
use kiln_registry::reference::Reference;

use super::{Setup, block_on, platform};
use crate::args::PullArgs;
use crate::render::{self, transfer};

pub(crate) fn run(setup: &Setup, args: &PullArgs) -> anyhow::Result<()> {
    let mut reference = Reference::parse(&args.name)?;
    let say = |line: &str| {
        if !args.quiet {
            render::err(line);
        }
    };
    if reference.tag.is_none() && reference.digest.is_none() {
        say("Using default tag: latest");
        reference.tag = Some("latest".to_owned());
    }
    let (platform, _) = platform(args.platform.as_deref())?;
    let (store, client) = (setup.store()?, setup.client(args.quiet)?);
    let cancel = Cancel::new()?;
    let observer = transfer::observer(transfer::PULL, args.quiet);
    let shown = reference
        .tag
        .clone()
        .unwrap_or_else(|| reference.tag_or_latest().to_owned());
    say(&format!("{shown}: Pulling from {}", reference.repository));
    let Pulled { digest, new, .. } = block_on(&cancel, async {
        Ok(pull(&store, &client, &reference, &platform, &observer, &cancel).await?)
    })?;
    let name = reference.familiar();
    say(&format!("Digest: {digest}"));
    let status = if new {
        "Downloaded newer image for"
    } else {
        "Image is up to date for"
    };
    say(&format!("Status: {status} {name}"));
    render::out(&reference.to_string());
    Ok(())
}
