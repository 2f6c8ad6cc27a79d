//! Where a copy goes to.

use std::fmt;

use super::archive::ArchiveSink;
use super::{CopyError, Image, Place};
use crate::blob::BlobSink;
use crate::client::{Client, Repository};
use crate::layout::Layout;
use crate::reference::{Reference, is_tag};
use crate::spec::Descriptor;

/// A place, opened to be copied to.
#[derive(Debug)]
pub struct Sink {
    place: Place,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Registry(Client, Reference, Box<Repository>),
    Layout(Layout),
    Archive(ArchiveSink),
}

impl Sink {
    /// Opens a place; a layout is made where there is none, an archive is written anew.
    ///
    /// # Errors
    /// [`CopyError`] when it cannot be written. A registry is not asked yet.
    pub fn open(place: &Place, client: &Client) -> Result<Self, CopyError> {
        let kind = match place {
            Place::Registry(reference) => {
                let repository = Box::new(client.repository(reference));
                Kind::Registry(client.clone(), reference.clone(), repository)
            }
            Place::Layout { path, .. } => Kind::Layout(Layout::create(path)?),
            Place::Archive { path, .. } => Kind::Archive(ArchiveSink::create(path)?),
        };
        Ok(Self {
            place: place.clone(),
            kind,
        })
    }

    /// Ends an archive; everything else is finished already.
    ///
    /// # Errors
    /// [`CopyError`] when it cannot be written.
    pub async fn finish(self) -> Result<(), CopyError> {
        match self.kind {
            Kind::Archive(archive) => archive.finish().await,
            Kind::Registry(..) | Kind::Layout(_) => Ok(()),
        }
    }

    /// Whether the place names one image.
    pub(super) fn is_named(&self) -> bool {
        self.place.name().is_some()
    }

    pub(super) fn blobs(&self) -> &dyn BlobSink {
        match &self.kind {
            Kind::Registry(_, _, repository) => &**repository,
            Kind::Layout(layout) => layout,
            Kind::Archive(archive) => archive,
        }
    }

    /// Whether a registry holds a manifest already, and so everything that it names.
    pub(super) async fn holds(&self, descriptor: &Descriptor) -> Result<bool, CopyError> {
        let Kind::Registry(client, reference, _) = &self.kind else {
            return Ok(false);
        };
        let found = client
            .digest_of(reference, &descriptor.digest.to_string())
            .await;
        match found {
            Ok(found) => Ok(found == Some(descriptor.digest)),
            // Some say so of a repository that is yet to be made; the push has the better error.
            Err(error) if matches!(error.status(), Some(400 | 401 | 403)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The name that an image gets: that of the place, or else its own.
    pub(super) fn name_for(&self, image: &Image) -> Result<Option<String>, CopyError> {
        if let Kind::Registry(_, reference, _) = &self.kind {
            return registry_name(reference, image);
        }
        let own = || {
            image
                .whole
                .as_ref()
                .filter(|name| name.tag.is_some())
                .map(ToString::to_string)
        };
        Ok(self.place.name().or_else(own).or_else(|| image.tag.clone()))
    }

    /// The tag that a registry can be given together with a manifest.
    pub(super) fn tag<'a>(&self, name: Option<&'a str>) -> Option<&'a str> {
        name.filter(|name| matches!(self.kind, Kind::Registry(..)) && is_tag(name))
    }

    /// Gives a manifest that is there its name.
    pub(super) async fn publish(
        &self,
        root: &Descriptor,
        bytes: &[u8],
        name: Option<&str>,
    ) -> Result<(), CopyError> {
        match &self.kind {
            Kind::Registry(_, _, repository) => match self.tag(name) {
                Some(tag) => {
                    repository.put_manifest(root, bytes, Some(tag)).await?;
                    Ok(())
                }
                None => Ok(()),
            },
            Kind::Layout(layout) => {
                let (layout, root) = (layout.clone(), root.clone());
                let name = name.map(str::to_owned);
                let list = move || layout.list(&root, name.as_deref());
                let listed = tokio::task::spawn_blocking(list).await;
                Ok(listed.map_err(CopyError::Thread)??)
            }
            Kind::Archive(archive) => archive.list(root, name).await,
        }
    }
}

/// The tag that an image gets in a registry; none where the place names it by its digest.
fn registry_name(reference: &Reference, image: &Image) -> Result<Option<String>, CopyError> {
    let actual = image.descriptor.digest;
    match reference.digest {
        Some(expected) if expected != actual => return Err(CopyError::Digest { expected, actual }),
        Some(_) => return Ok(reference.tag.clone()),
        None => {}
    }
    if let Some(tag) = &reference.tag {
        return Ok(Some(tag.clone()));
    }
    match &image.tag {
        Some(tag) if is_tag(tag) => Ok(Some(tag.clone())),
        Some(text) => Err(CopyError::NoTag(text.clone())),
        None => Ok(Some("latest".to_owned())),
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}
