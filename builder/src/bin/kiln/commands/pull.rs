//! `kiln pull` (D5.4)

use std::sync::Arc;

use kiln_builder::event::Observer;
use kiln_builder::image::pull::{Pulled, pull};
use kiln_builder::runtime::Cancel;
use kiln_builder::store::Store;
use kiln_registry::client::Client;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::tags::is_digest_tag;
use super::{Setup, all_tags_of, block_on, platform};
use crate::args::PullArgs;
use crate::render::{self, transfer};

pub(crate) fn run(setup: &Setup, args: &PullArgs) -> anyhow::Result<()> {
    let mut reference = match args.all_tags {
        true => all_tags_of(&args.name)?,
        false => Reference::parse(&args.name)?,
    };
    let say = |line: &str| {
        if !args.quiet {
            render::err(line);
        }
    };
    if !args.all_tags && reference.tag.is_none() && reference.digest.is_none() {
        say("Using default tag: latest");
        reference.tag = Some("latest".to_owned());
    }
    let (platform, _) = platform(args.platform.as_deref())?;
    let puller = Puller {
        store: setup.store()?,
        client: setup.client(args.quiet)?,
        cancel: Cancel::new()?,
        observer: transfer::observer(transfer::PULL, args.quiet),
        platform,
        say: &say,
    };
    if !args.all_tags {
        return puller.pull(&reference);
    }
    for tag in puller.tags(&reference)? {
        reference.tag = Some(tag);
        puller.pull(&reference)?;
    }
    Ok(())
}

/// What all pulls of a command share.
struct Puller<'a> {
    store: Arc<Store>,
    client: Client,
    cancel: Cancel,
    observer: Observer,
    platform: Platform,
    say: &'a dyn Fn(&str),
}

impl Puller<'_> {
    /// The tags of a repository that people gave: signatures and lists of referrers have others.
    fn tags(&self, repository: &Reference) -> anyhow::Result<Vec<String>> {
        let mut tags = block_on(&self.cancel, async {
            tokio::select! {
                tags = self.client.tags(repository) => Ok(tags?),
                () = self.cancel.cancelled() => Ok(Vec::new()),
            }
        })?;
        tags.retain(|tag| !is_digest_tag(tag));
        Ok(tags)
    }

    /// Pulls one image and says what came of it.
    fn pull(&self, reference: &Reference) -> anyhow::Result<()> {
        let shown = reference.tag_or_latest();
        (self.say)(&format!("{shown}: Pulling from {}", reference.repository));
        let Pulled { digest, new, .. } = block_on(&self.cancel, async {
            let (store, client) = (&self.store, &self.client);
            let (observer, cancel) = (&self.observer, &self.cancel);
            Ok(pull(store, client, reference, &self.platform, observer, cancel).await?)
        })?;
        (self.say)(&format!("Digest: {digest}"));
        let status = if new {
            "Downloaded newer image for"
        } else {
            "Image is up to date for"
        };
        (self.say)(&format!("Status: {status} {}", reference.familiar()));
        render::out(&reference.to_string());
        Ok(())
    }
}
