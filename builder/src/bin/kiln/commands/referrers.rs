//! `kiln referrers` (D8.2)

use std::collections::HashSet;

use kiln_builder::runtime::Cancel;
use kiln_registry::blob::BoxFuture;
use kiln_registry::client::{Client, ClientError};
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::OCI_INDEX;
use kiln_registry::spec::{Descriptor, Index};

use super::{Setup, block_on, platform};
use crate::args::{ListFormat, ReferrersArgs};
use crate::render::{self, text};

/// Referrers of referrers shown, at most.
const DEPTH: usize = 8;

pub(crate) fn run(setup: &Setup, args: &ReferrersArgs) -> anyhow::Result<()> {
    let name = Reference::parse(&args.name)?.with_default_tag();
    let client = setup.client(false)?;
    let cancel = Cancel::new()?;
    let lines = block_on(&cancel, async {
        tokio::select! {
            lines = show(&client, &name, args) => lines,
            () = cancel.cancelled() => Ok(Vec::new()),
        }
    })?;
    lines.iter().for_each(|line| render::out(line));
    Ok(())
}

async fn show(
    client: &Client,
    name: &Reference,
    args: &ReferrersArgs,
) -> anyhow::Result<Vec<String>> {
    let subject = match (&args.platform, name.digest) {
        (Some(_), _) => {
            let (wanted, _) = platform(args.platform.as_deref())?;
            client.resolve(name, &wanted).await?.manifest.digest
        }
        (None, Some(digest)) => digest,
        (None, None) => client.document(name).await?.descriptor.digest,
    };
    let kind = args.artifact_type.as_deref();
    if args.format == ListFormat::Json {
        let found = client.referrers(name, subject, kind).await?;
        let list = Index::new(OCI_INDEX, found);
        return Ok(vec![serde_json::to_string_pretty(&list)?]);
    }
    let mut tree = Lines {
        client,
        name,
        seen: HashSet::from([subject]),
        lines: vec![format!("{}@{subject}", name.familiar_name())],
    };
    tree.below(subject, kind, "", DEPTH).await?;
    Ok(tree.lines)
}

/// A tree on its way.
struct Lines<'a> {
    client: &'a Client,
    name: &'a Reference,
    seen: HashSet<Digest>,
    lines: Vec<String>,
}

impl Lines<'_> {
    /// Adds what refers to a manifest, and what refers to that.
    fn below<'a>(
        &'a mut self,
        subject: Digest,
        kind: Option<&'a str>,
        indent: &'a str,
        depth: usize,
    ) -> BoxFuture<'a, Result<(), ClientError>> {
        Box::pin(async move {
            let found = self.client.referrers(self.name, subject, kind).await?;
            let last = found.len().saturating_sub(1);
            for (place, entry) in found.iter().enumerate() {
                let (here, below) = match place {
                    place if place == last => ("└── ", "    "),
                    _ => ("├── ", "│   "),
                };
                self.lines.push(format!("{indent}{here}{}", line(entry)));
                let indent = format!("{indent}{below}");
                for (key, value) in &entry.annotations {
                    let note = text::one_line(&format!("{key}: {value}"));
                    self.lines
                        .push(format!("{indent}  {}", text::cut(&note, 160)));
                }
                // A circle is nothing that a registry could make, but one that lies could.
                if depth > 1 && self.seen.insert(entry.digest) {
                    self.below(entry.digest, None, &indent, depth - 1).await?;
                }
            }
            Ok(())
        })
    }
}

fn line(entry: &Descriptor) -> String {
    let kind = entry.artifact_type.as_deref().unwrap_or(&entry.media_type);
    let kind = text::cut(&text::one_line(kind), 160);
    format!("{kind} {} ({})", entry.digest, text::size(entry.size))
}
