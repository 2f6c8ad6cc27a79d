//! What lowering is told besides the Dockerfile.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_grammar::dockerignore::IgnoreFile;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ImageConfig, Platform};

use super::contexts::NamedContext;
use crate::graph::{Limits, Network};

/// The settings of one build for one platform.
#[derive(Clone, Debug, Default)]
pub struct LowerOptions {
    /// `--build-arg`, in order, later ones win. A value of `None` is a name that the client's
    /// environment does not set: such an argument is not set at all (A6.8).
    pub build_args: Vec<(String, Option<String>)>,
    /// `--target`; `None` builds the last stage.
    pub target: Option<String>,
    /// The platform to build for.
    pub platform: Platform,
    /// Whether the user asked for `platform`: the image then says so whatever its base says.
    pub platform_given: bool,
    /// The platform that builds.
    pub build_platform: Platform,
    /// Whether step names start with the platform: the build is for more than one (C10.2).
    pub name_platform: bool,
    /// `--label`, put on the final image last (A9.10).
    pub labels: Vec<(String, String)>,
    /// `--network`: what `RUN` without a word about it gets (B3.1).
    pub network: Network,
    /// `--allow network.host`: whether `RUN --network=host` may leave a narrower `network`.
    pub allow_host_network: bool,
    /// `--allow security.insecure`: whether `RUN --security=insecure` is obeyed (B3.2).
    pub allow_insecure: bool,
    /// What `RUN` may use of the machine (B4.5).
    pub limits: Limits,
    /// The names of `--add-host`, in alphabetical order, each once.
    pub extra_hosts: Vec<String>,
    /// `--build-context`, in order.
    pub contexts: Vec<NamedContext>,
    /// What the build context leaves out, for a word about sources that are among it.
    pub ignore: Option<Arc<IgnoreFile>>,
}

/// The build arguments that reach `RUN` without an `ARG`, in lower case (A6.9).
pub(super) const PROXIES: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "all_proxy",
];

impl LowerOptions {
    /// Gives the proxy variables of the command line, each in upper and lower case. The step puts
    /// them before the environment of its [`RunOp`](crate::graph::RunOp), which wins; they are
    /// part of no key and no image (A6.9).
    #[must_use]
    pub fn proxies(&self) -> Vec<(String, String)> {
        let mut proxies = Vec::new();
        for name in PROXIES {
            let given = |(known, _): &&(String, Option<String>)| known.eq_ignore_ascii_case(name);
            let value = self.build_args.iter().rev().find(given);
            if let Some((_, Some(value))) = value {
                proxies.push((name.to_uppercase(), value.clone()));
                proxies.push(((*name).to_owned(), value.clone()));
            }
        }
        proxies
    }

    /// The value of a build argument, where it is set.
    #[must_use]
    pub fn build_arg(&self, name: &str) -> Option<&str> {
        self.build_args
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .and_then(|(_, value)| value.as_deref())
    }
}

/// The images that a Dockerfile names, as far as they are resolved.
#[derive(Clone, Debug, Default)]
pub struct BaseImages {
    images: HashMap<(String, Platform), BaseImage>,
}

impl BaseImages {
    /// Adds the image that a [`Wanted`](super::Wanted) asked for.
    pub fn insert(&mut self, reference: String, platform: Platform, image: BaseImage) {
        self.images.insert((reference, platform), image);
    }

    /// The image of a reference as written.
    #[must_use]
    pub fn get(&self, reference: &str, platform: &Platform) -> Option<&BaseImage> {
        self.images.get(&(reference.to_owned(), platform.clone()))
    }
}

/// A resolved image.
#[derive(Clone, Debug)]
pub struct BaseImage {
    /// Its full name, with the digest it was resolved to.
    pub name: String,
    /// Digest of its config.
    pub config_digest: Digest,
    /// Its config.
    pub config: ImageConfig,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A6.9
    #[test]
    fn proxies_come_in_both_cases() {
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        let options = LowerOptions {
            build_args: vec![
                pair("HTTP_PROXY", Some("old")),
                pair("http_proxy", Some("new")),
                pair("No_Proxy", None),
                pair("OTHER", Some("x")),
            ],
            ..LowerOptions::default()
        };
        let expected = [("HTTP_PROXY", "new"), ("http_proxy", "new")];
        assert_eq!(
            options.proxies(),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
