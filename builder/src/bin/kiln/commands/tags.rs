//! `kiln tags` (D9.1)

use kiln_builder::runtime::Cancel;
use kiln_registry::reference::Reference;
use serde_json::json;

use super::{Setup, block_on};
use crate::args::{ListFormat, TagsArgs};
use crate::render;
use crate::report::UsageError;

pub(crate) fn run(setup: &Setup, args: &TagsArgs) -> anyhow::Result<()> {
    let name = Reference::parse(&args.name)?;
    if name.tag.is_some() || name.digest.is_some() {
        let message = format!("`{}` names an image, not a repository", args.name);
        return Err(UsageError::new(message).into());
    }
    let client = setup.client(args.quiet)?;
    let cancel = Cancel::new()?;
    let mut tags = block_on(&cancel, async {
        tokio::select! {
            tags = client.tags(&name) => Ok(tags?),
            () = cancel.cancelled() => Ok(Vec::new()),
        }
    })?;
    if args.omit_digest_tags {
        tags.retain(|tag| !is_digest_tag(tag));
    }
    if args.full_ref {
        tags = tags
            .iter()
            .map(|tag| format!("{}:{tag}", name.name()))
            .collect();
    }
    match args.format {
        ListFormat::Text => tags.iter().for_each(|tag| render::out(tag)),
        ListFormat::Json => {
            let list = json!({ "Repository": name.name(), "Tags": tags });
            render::out(&serde_json::to_string_pretty(&list)?);
        }
    }
    Ok(())
}

/// Whether a tag is made of a digest: `sha256-HEX`, with an ending or without (D8.2, D8.3).
pub(super) fn is_digest_tag(tag: &str) -> bool {
    let hex = tag
        .strip_prefix("sha256-")
        .map(|rest| rest.split('.').next().unwrap_or_default());
    hex.is_some_and(kiln_registry::reference::is_image_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d8_3_tags_made_of_digests() {
        let hex = "0".repeat(64);
        assert!(is_digest_tag(&format!("sha256-{hex}")));
        assert!(is_digest_tag(&format!("sha256-{hex}.sig")));
        for tag in ["1.2", "sha256-1", "latest"] {
            assert!(!is_digest_tag(tag), "{tag}");
        }
    }
}
