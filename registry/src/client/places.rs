//! Where a repository is read from and written to: itself, its mirrors, and what settings say (D4.3).

use std::sync::Arc;

use super::transport::Endpoint;
use super::{Client, DOCKER_HUB_HOST, Repository};
use crate::reference::{DOCKER_HUB, Reference};
use crate::settings::Place;

impl Client {
    /// The repository that a reference names. Tag and digest matter only where the settings let a
    /// mirror be asked for one of them alone.
    #[must_use]
    pub fn repository(&self, reference: &Reference) -> Repository {
        let (registry, repository) = (&reference.registry, &reference.repository);
        let route = self.shared.settings.route(reference);
        let origin = Endpoint {
            blocked: route.blocked.map(Arc::from),
            ..Endpoint::origin(registry, repository)
        };
        let source = match &route.source {
            Some(place) => Endpoint::place(place),
            None => origin.clone(),
        };
        let mirrors = if origin.blocked.is_some() {
            Vec::new()
        } else {
            let routed = route.mirrors.iter().map(Endpoint::place);
            let named = self.shared.mirrors.iter();
            let named = named.filter(|mirror| mirror.registry == *registry);
            let of_hub = self.shared.settings.hub_mirrors.iter();
            let of_hub = of_hub.filter(|_| registry == DOCKER_HUB);
            named
                .map(|mirror| mirror.url.as_str())
                .map(|url| Endpoint::mirror(url, repository))
                .chain(routed)
                .chain(of_hub.map(|url| Endpoint::mirror(url, repository)))
                .collect()
        };
        Repository {
            shared: self.shared.clone(),
            registry: registry.clone(),
            repository: repository.clone(),
            mirrors,
            source,
            origin,
            doubt: Arc::default(),
            known: None,
        }
    }
}

impl Repository {
    /// Where to read from, in order.
    pub(super) fn places(&self) -> impl Iterator<Item = &Endpoint> {
        self.mirrors.iter().chain([&self.source])
    }
}

impl Endpoint {
    pub(super) fn origin(registry: &str, repository: &str) -> Self {
        let address = match registry {
            DOCKER_HUB | "index.docker.io" => DOCKER_HUB_HOST,
            other => other,
        };
        Self {
            registry: registry.to_owned(),
            address: address.to_owned(),
            repository: repository.to_owned(),
            blocked: None,
        }
    }

    fn place(place: &Place) -> Self {
        Self::origin(&place.host, &place.repository)
    }

    fn mirror(url: &str, repository: &str) -> Self {
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, url),
        };
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        Self {
            registry: host.to_owned(),
            address: scheme.map_or_else(|| host.to_owned(), |scheme| format!("{scheme}://{host}/")),
            repository: if prefix.is_empty() {
                repository.to_owned()
            } else {
                format!("{prefix}/{repository}")
            },
            blocked: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ClientOptions, Mirror};
    use crate::settings::Settings;

    fn places(client: &Client, text: &str) -> Vec<String> {
        let repository = client.repository(&Reference::parse(text).unwrap());
        repository
            .places()
            .map(|place| format!("{} {}", place.address, place.repository))
            .collect()
    }

    #[test]
    fn d4_3_mirrors_are_for_their_registry_only() {
        let client = Client::new(ClientOptions {
            mirrors: vec![Mirror {
                registry: "docker.io".to_owned(),
                url: "http://127.0.0.1:5000".to_owned(),
            }],
            settings: Settings {
                hub_mirrors: vec!["https://mirror.example/hub/".to_owned()],
                ..Settings::default()
            },
            ..ClientOptions::default()
        });
        assert_eq!(
            places(&client, "busybox"),
            [
                "http://127.0.0.1:5000/ library/busybox",
                "https://mirror.example/ hub/library/busybox",
                "registry-1.docker.io library/busybox",
            ]
        );
        assert_eq!(places(&client, "quay.io/a/b"), ["quay.io a/b"]);
    }
}
