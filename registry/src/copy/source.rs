//! Where a copy comes from.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use super::archive::ArchiveSource;
use super::{CopyError, Place};
use crate::blob::BlobSource;
use crate::client::{Client, Repository, is_fallback_tag, referrer};
use crate::digest::Digest;
use crate::layout::Layout;
use crate::reference::Reference;
use crate::spec::Descriptor;
use crate::spec::annotation::{IMAGE_NAME, REF_NAME};

/// A place, opened to be copied from.
#[derive(Debug)]
pub struct Source {
    place: Place,
    kind: Kind,
    /// What refers to what, of a layout or archive: read once, when it is first asked for.
    referrers: OnceLock<HashMap<Digest, Vec<Descriptor>>>,
}

#[derive(Debug)]
enum Kind {
    Registry(Client, Reference, Box<Repository>),
    Layout(Layout),
    Archive(Box<ArchiveSource>),
}

/// An image of a source.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its whole name, where it has one.
    pub whole: Option<Reference>,
    /// Its tag, where it has one.
    pub tag: Option<String>,
    /// Its manifest or index.
    pub descriptor: Descriptor,
    /// The bytes of that, where they are known already.
    pub bytes: Option<Vec<u8>>,
}

impl Source {
    /// Opens a place; a compressed archive is unpacked into a folder for temporary files.
    ///
    /// # Errors
    /// [`CopyError`] when there is no layout or archive. A registry is not asked yet.
    pub fn open(place: &Place, client: &Client, temporary: &Path) -> Result<Self, CopyError> {
        let kind = match place {
            Place::Registry(reference) => {
                let repository = Box::new(client.repository(reference));
                Kind::Registry(client.clone(), reference.clone(), repository)
            }
            Place::Layout { path, .. } => Kind::Layout(Layout::open(path)?),
            Place::Archive { path, .. } => {
                Kind::Archive(Box::new(ArchiveSource::open(path, temporary)?))
            }
        };
        Ok(Self {
            place: place.clone(),
            kind,
            referrers: OnceLock::new(),
        })
    }

    /// Its blobs and documents.
    #[must_use]
    pub fn blobs(&self) -> &dyn BlobSource {
        match &self.kind {
            Kind::Registry(_, _, repository) => &**repository,
            Kind::Layout(layout) => layout,
            Kind::Archive(archive) => &**archive,
        }
    }

    /// The image that the place names, or all that have a tag.
    ///
    /// # Errors
    /// [`CopyError`] when there is no such image, or one has to be named.
    pub async fn images(&self, all: bool) -> Result<Vec<Image>, CopyError> {
        if all && self.place.name().is_some() {
            return Err(CopyError::OneOfAll(self.to_string()));
        }
        if let Kind::Registry(client, reference, _) = &self.kind {
            return registry_images(client, reference, all).await;
        }
        let listed = self.listed()?;
        let Some(name) = self.place.name() else {
            let named: Vec<Image> = listed
                .iter()
                .filter(|image| image.is_named())
                .cloned()
                .collect();
            if all {
                return Ok(named);
            }
            // What has no name may only refer to what has one.
            let candidates = if named.is_empty() { listed } else { named };
            return self.only(&candidates);
        };
        let found = listed.iter().find(|image| image.is_called(&name)).cloned();
        found
            .map(|image| vec![image])
            .ok_or_else(|| self.none(format!("has no image `{name}`"), &listed))
    }

    fn only(&self, candidates: &[Image]) -> Result<Vec<Image>, CopyError> {
        let Some(first) = candidates.first() else {
            return Err(self.none("holds no image".to_owned(), candidates));
        };
        let same = |image: &Image| image.descriptor.digest == first.descriptor.digest;
        if candidates.iter().all(same) {
            return Ok(vec![first.clone()]);
        }
        Err(self.none(
            "holds several images, one must be named".to_owned(),
            candidates,
        ))
    }

    fn none(&self, problem: String, there: &[Image]) -> CopyError {
        let names: Vec<String> = there.iter().take(30).map(Image::label).collect();
        CopyError::NoImage {
            place: self.to_string(),
            problem,
            available: if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        }
    }

    /// The images that a layout or archive lists.
    fn listed(&self) -> Result<Vec<Image>, CopyError> {
        Ok(match &self.kind {
            Kind::Registry(..) => Vec::new(),
            Kind::Layout(layout) => layout
                .index()?
                .manifests
                .into_iter()
                .map(Image::listed)
                .collect(),
            Kind::Archive(archive) => archive
                .images()
                .flat_map(|(image, root)| {
                    let bare = |tag: Option<String>| Image {
                        whole: None,
                        tag,
                        descriptor: root.clone(),
                        bytes: None,
                    };
                    let named = image.names.iter().map(move |name| Image {
                        whole: Some(name.clone()),
                        tag: name.tag.clone(),
                        descriptor: root.clone(),
                        bytes: None,
                    });
                    let named: Vec<Image> = named.collect();
                    if named.is_empty() {
                        vec![bare(image.ref_name.clone())]
                    } else {
                        named
                    }
                })
                .collect(),
        })
    }

    /// What refers to a manifest, as far as the place knows (D8.2).
    ///
    /// # Errors
    /// [`CopyError`] when it cannot be asked.
    pub async fn referrers(&self, subject: Digest) -> Result<Vec<Descriptor>, CopyError> {
        if let Kind::Registry(client, reference, _) = &self.kind {
            return Ok(client.referrers(reference, subject, None).await?);
        }
        if let Some(known) = self.referrers.get() {
            return Ok(known.get(&subject).cloned().unwrap_or_default());
        }
        let mut found: HashMap<Digest, Vec<Descriptor>> = HashMap::new();
        for image in self.listed()? {
            let descriptor = image.descriptor;
            let bytes = match &self.kind {
                Kind::Layout(layout) => layout.document(&descriptor).ok(),
                Kind::Archive(archive) => archive.document(&descriptor),
                Kind::Registry(..) => None,
            };
            if let Some((about, _)) = bytes.and_then(|bytes| referrer(&descriptor, &bytes)) {
                found.entry(about).or_default().push(descriptor);
            }
        }
        let known = self.referrers.get_or_init(|| found);
        Ok(known.get(&subject).cloned().unwrap_or_default())
    }

    /// Remembers that a registry holds a blob, so that it can be mounted (D7.4).
    pub(super) fn remember(&self, blob: Digest) {
        if let Kind::Registry(client, reference, _) = &self.kind {
            client.remember(reference, blob);
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Image {
    fn listed(descriptor: Descriptor) -> Self {
        let note = |key| descriptor.annotations.get(key);
        let parse = |text: &String| {
            let whole = text.contains([':', '/']);
            whole.then(|| Reference::parse(text).ok()).flatten()
        };
        let whole = note(IMAGE_NAME)
            .and_then(parse)
            .or_else(|| note(REF_NAME).and_then(parse));
        let tag = whole.as_ref().and_then(|name| name.tag.clone());
        let tag = tag.or_else(|| note(REF_NAME).cloned());
        Self {
            whole,
            tag,
            descriptor,
            bytes: None,
        }
    }

    fn is_named(&self) -> bool {
        self.whole.is_some() || self.tag.is_some()
    }

    fn is_called(&self, name: &str) -> bool {
        let wanted = Reference::parse(name).map(Reference::with_default_tag);
        self.tag.as_deref() == Some(name)
            || self.whole.is_some() && self.whole == wanted.ok()
            || self.descriptor.digest.to_string() == name
    }

    fn label(&self) -> String {
        match (&self.whole, &self.tag) {
            (Some(name), _) => format!("`{}`", name.familiar()),
            (None, Some(tag)) => format!("`{tag}`"),
            (None, None) => self.descriptor.digest.to_string(),
        }
    }
}

async fn registry_images(
    client: &Client,
    reference: &Reference,
    all: bool,
) -> Result<Vec<Image>, CopyError> {
    let names = if all {
        let tags = client.tags(reference).await?;
        let tagged = |tag| Reference {
            tag: Some(tag),
            digest: None,
            ..reference.clone()
        };
        // Lists of referrers are made anew where they are wanted.
        let tags = tags.into_iter().filter(|tag| !is_fallback_tag(tag));
        tags.map(tagged).collect()
    } else {
        vec![reference.clone().with_default_tag()]
    };
    let mut images = Vec::new();
    for name in names {
        let found = client.document(&name).await?;
        images.push(Image {
            tag: name.tag.clone(),
            whole: Some(name),
            descriptor: found.descriptor,
            bytes: Some(found.bytes),
        });
    }
    Ok(images)
}
