//! Finding out what base images are.

use std::collections::BTreeMap;

use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::suggest;
use kiln_registry::client::Client;
use kiln_registry::digest::Digest;
use kiln_registry::reference::Reference;
use kiln_registry::spec::Platform;

use super::{BaseError, BuildError, Source, contexts};
use crate::lower::{self, BaseImage, BaseImages, LAYOUT, LowerOptions, Wanted};
use crate::runtime::Cancel;
use crate::step::{LayoutImage, RemoteImage, SourceImage};
use crate::store::{Store, StoreError};

/// Finds out what base images are.
pub(super) struct Resolver<'a> {
    pub(super) client: &'a Client,
    pub(super) store: &'a Store,
    pub(super) cancel: &'a Cancel,
    pub(super) pull: bool,
    pub(super) images: BTreeMap<Digest, SourceImage>,
}

impl Resolver<'_> {
    /// Resolves until the Dockerfile, and the triggers of its base images, want no more.
    pub(super) async fn resolve_all(
        &mut self,
        file: &Dockerfile,
        source: &Source,
        options: &LowerOptions,
    ) -> Result<BaseImages, BuildError> {
        let mut bases = BaseImages::default();
        loop {
            let wanted = lower::wanted(file, options, &bases).map_err(|diagnostics| {
                BuildError::Dockerfile {
                    source_file: source.clone(),
                    diagnostics,
                }
            })?;
            if wanted.is_empty() {
                return Ok(bases);
            }
            for want in wanted {
                let base = self.resolve(&want).await.map_err(|error| match error {
                    BaseError::Cancelled => BuildError::Cancelled,
                    error => BuildError::Resolve {
                        name: want.reference.clone(),
                        context: contexts::of_image(options, &want.reference),
                        place: Box::new((source.clone(), want.span)),
                        near: near_stage(file, &want.reference),
                        source: error,
                    },
                })?;
                bases.insert(want.reference, want.platform, base);
            }
        }
    }

    /// Resolves one image: in the store, unless it has to be asked for, else in its registry.
    async fn resolve(&mut self, want: &Wanted) -> Result<BaseImage, BaseError> {
        if let Some(place) = want.reference.strip_prefix(LAYOUT) {
            let image = LayoutImage::resolve(place, &want.platform)?;
            let base = BaseImage {
                name: want.reference.clone(),
                config_digest: image.manifest.value.config.digest,
                config: image.config.clone(),
            };
            let image = SourceImage::Layout(Box::new(image));
            self.images.insert(base.config_digest, image);
            return Ok(base);
        }
        let reference = Reference::parse(&want.reference)?;
        if !self.pull
            && let Some(base) = stored(self.store, &reference, &want.platform)?
        {
            return Ok(base);
        }
        let remote = tokio::select! {
            remote = RemoteImage::resolve(self.client, self.store, &reference, &want.platform) => remote?,
            () = self.cancel.cancelled() => return Err(BaseError::Cancelled),
        };
        let base = BaseImage {
            name: reference.to_string(),
            config_digest: remote.resolved.manifest.value.config.digest,
            config: remote.config.clone(),
        };
        let image = SourceImage::Registry(Box::new(remote));
        self.images.insert(base.config_digest, image);
        Ok(base)
    }
}

/// An image of that name and platform in the store. A built image may lie here as snapshots only, a
/// pulled one as blobs; both will do.
pub(super) fn stored(
    store: &Store,
    reference: &Reference,
    platform: &Platform,
) -> Result<Option<BaseImage>, StoreError> {
    let Some(id) = store.named(reference)? else {
        return Ok(None);
    };
    let config = store.config(&id)?;
    let fits = config.os == platform.os && config.architecture == platform.architecture;
    Ok(fits.then(|| BaseImage {
        name: reference.to_string(),
        config_digest: id,
        config,
    }))
}

/// A stage whose name is like that of an image.
fn near_stage(file: &Dockerfile, image: &str) -> Option<String> {
    let names = file.stages.iter().filter_map(|stage| stage.name.as_ref());
    suggest(image, names.map(|name| name.value.as_str())).map(ToOwned::to_owned)
}
