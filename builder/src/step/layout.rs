//! Images in OCI image layouts, which named contexts may be (C7.1).

use std::fs;
use std::path::Path;

use kiln_registry::blob::Step;
use kiln_registry::digest::Digest;
use kiln_registry::layout::{Layout, LayoutError};
use kiln_registry::spec::media_type::{OCI_INDEX, OCI_MANIFEST, is_index, is_manifest};
use kiln_registry::spec::platform::choose;
use kiln_registry::spec::{Descriptor, ImageConfig, Index, Manifest, Platform, Raw};
use kiln_registry::transfer;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::StepError;
use super::image::{JOBS, ResolveError, blob_event, check_layers, record_layers};
use crate::event::Observer;
use crate::store::Store;

/// An index may hold indexes, but not without end.
const DEPTH: usize = 4;

/// An image of an OCI image layout.
#[derive(Debug)]
pub struct LayoutImage {
    /// How messages name it.
    pub name: String,
    /// Its manifest.
    pub manifest: Raw<Manifest>,
    /// Its config.
    pub config: ImageConfig,
    layout: Layout,
    descriptor: Descriptor,
}

impl LayoutImage {
    /// Finds the image that `PATH[:TAG|@DIGEST]` names, for a platform. Without a tag it is
    /// `latest`, or the only one there is.
    ///
    /// # Errors
    /// [`ResolveError`] when there is no such image.
    pub fn resolve(text: &str, wanted: &Platform) -> Result<Self, ResolveError> {
        let (path, tag, digest) = parts(text);
        let layout = Layout::open(path)?;
        let mut descriptor = match (digest, tag) {
            (Some(digest), _) => by_digest(&layout, digest)?,
            (None, Some(tag)) => layout.resolve(Some(tag))?,
            (None, None) => layout
                .resolve(Some("latest"))
                .or_else(|_| layout.resolve(None))?,
        };
        for _ in 0..DEPTH {
            if is_manifest(&descriptor.media_type) {
                return Self::read(text, layout, descriptor);
            }
            if !is_index(&descriptor.media_type) {
                break;
            }
            let index: Raw<Index> = parse(&layout, &descriptor)?;
            let Some(chosen) = choose(wanted, &index.value) else {
                return Err(ResolveError::NoPlatform {
                    image: text.to_owned(),
                    wanted: wanted.to_string(),
                    available: platforms(&index.value),
                });
            };
            descriptor = chosen.clone();
        }
        Err(ResolveError::NotAnImage {
            image: text.to_owned(),
            media_type: descriptor.media_type,
        })
    }

    fn read(text: &str, layout: Layout, descriptor: Descriptor) -> Result<Self, ResolveError> {
        let manifest: Raw<Manifest> = parse(&layout, &descriptor)?;
        let config: ImageConfig =
            serde_json::from_slice(&layout.document(&manifest.value.config)?)?;
        check_layers(&config, &manifest.value)?;
        Ok(Self {
            name: text.to_owned(),
            manifest,
            config,
            layout,
            descriptor,
        })
    }

    /// Copies what the store lacks of the image. It gets no name there: only its layers are wanted.
    ///
    /// # Errors
    /// When something cannot be read or stored.
    pub async fn fetch(&self, store: &Store, observer: &Observer) -> Result<(), StepError> {
        let observer = observer.clone();
        let progress = move |blob: &Descriptor, step: Step| observer.tell(blob_event(blob, step));
        transfer::copy(
            &self.manifest,
            &self.descriptor,
            &self.layout,
            store,
            None,
            JOBS,
            &progress,
        )
        .await
        .map_err(|error| StepError::Blob(self.name.clone(), error))?;
        record_layers(store, &self.config, &self.manifest.value)?;
        Ok(())
    }
}

/// Cuts `PATH[:TAG][@DIGEST]`.
fn parts(text: &str) -> (&Path, Option<&str>, Option<&str>) {
    let (text, digest) = match text.rsplit_once('@') {
        Some((path, digest)) if !digest.contains('/') => (path, Some(digest)),
        _ => (text, None),
    };
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    };
    (Path::new(path), tag, digest)
}

/// The descriptor of a blob that the layout need not list.
fn by_digest(layout: &Layout, text: &str) -> Result<Descriptor, ResolveError> {
    let unlisted = match layout.resolve(Some(text)) {
        Ok(listed) => return Ok(listed),
        Err(error) => error,
    };
    let Some((digest, size)) = text.parse::<Digest>().ok().and_then(|digest| {
        let metadata = fs::metadata(layout.blob_path(&digest)).ok()?;
        Some((digest, metadata.len()))
    }) else {
        return Err(unlisted.into());
    };
    let mut descriptor = Descriptor::new(OCI_MANIFEST, digest, size);
    let outline: Outline = parse(layout, &descriptor)?.value;
    if let Some(media_type) = outline.media_type {
        descriptor.media_type = media_type;
    } else if outline.manifests.is_some() {
        OCI_INDEX.clone_into(&mut descriptor.media_type);
    }
    Ok(descriptor)
}

/// What tells the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
}

fn parse<T: serde::de::DeserializeOwned>(
    layout: &Layout,
    descriptor: &Descriptor,
) -> Result<Raw<T>, LayoutError> {
    let document = layout.document(descriptor)?;
    Raw::parse(document).map_err(|source| LayoutError::Document {
        path: layout.blob_path(&descriptor.digest),
        source,
    })
}

/// The platforms of an index, for people.
fn platforms(index: &Index) -> String {
    let known = index
        .manifests
        .iter()
        .filter_map(|one| one.platform.as_ref());
    let names: Vec<String> = known
        .filter(|platform| !platform.is_unknown())
        .map(|platform| format!("`{platform}`"))
        .collect();
    if names.is_empty() {
        "no platform at all".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C7.1
    #[test]
    fn places_in_a_layout() {
        for (text, path, tag, digest) in [
            ("/a/b", "/a/b", None, None),
            ("a:1", "a", Some("1"), None),
            ("/a:b/c", "/a:b/c", None, None),
            ("/a@b/c:2", "/a@b/c", Some("2"), None),
            ("../a@sha256:0", "../a", None, Some("sha256:0")),
            ("a:1@sha256:0", "a", Some("1"), Some("sha256:0")),
        ] {
            assert_eq!(parts(text), (Path::new(path), tag, digest), "{text}");
        }
    }
}
