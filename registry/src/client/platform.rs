//! The choice of an image in an index (A6.12).

use crate::spec::{Descriptor, Platform};

/// The manifest that fits a platform best; `None` when none does.
pub(super) fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let named: Vec<(&Descriptor, &Platform)> = manifests
        .iter()
        .filter_map(|manifest| Some((manifest, manifest.platform.as_ref()?)))
        .filter(|(_, platform)| is_known(platform))
        .collect();
    for (architecture, variant) in accepted(wanted) {
        let mut fitting = named.iter().filter(|(_, platform)| {
            let (a, v) = normal(&platform.architecture, platform.variant.as_deref());
            platform.os.eq_ignore_ascii_case(&wanted.os) && a == architecture && v == variant
        });
        let found = match &wanted.os_version {
            Some(version) => fitting
                .clone()
                .find(|(_, platform)| platform.os_version.as_ref() == Some(version))
                .or_else(|| fitting.next()),
            None => fitting.next(),
        };
        if let Some((manifest, _)) = found {
            return Some(manifest);
        }
    }
    // An index may leave platforms out; one such image is taken, and its config says the rest.
    let mut silent = manifests
        .iter()
        .filter(|manifest| manifest.platform.is_none());
    match (silent.next(), silent.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// Whether an image of one platform fits what is wanted.
pub(super) fn fits(found: &Platform, wanted: &Platform) -> bool {
    let found_as = normal(&found.architecture, found.variant.as_deref());
    found.os.eq_ignore_ascii_case(&wanted.os)
        && accepted(wanted)
            .into_iter()
            .any(|candidate| candidate == found_as)
}

/// The platforms of an index, for people.
pub(super) fn list(manifests: &[Descriptor]) -> String {
    let mut names: Vec<String> = manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref())
        .filter(|platform| is_known(platform))
        .map(|platform| format!("`{}`", name(platform)))
        .collect();
    names.dedup();
    if names.is_empty() {
        return "no platform at all".to_owned();
    }
    names.truncate(30);
    names.join(", ")
}

/// A platform as users write it.
pub(super) fn name(platform: &Platform) -> String {
    let variant = platform.variant.as_deref().map(|v| format!("/{v}"));
    let text = format!(
        "{}/{}{}",
        platform.os,
        platform.architecture,
        variant.unwrap_or_default()
    );
    super::error::clean(&text, 80)
}

/// Attestations and the like stand in an index as `unknown/unknown` (D5.2).
fn is_known(platform: &Platform) -> bool {
    !(platform.os == "unknown" && platform.architecture == "unknown")
}

/// Architecture and variant in one spelling.
fn normal(architecture: &str, variant: Option<&str>) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.unwrap_or_default().to_ascii_lowercase();
    let variant = variant.strip_prefix('v').unwrap_or(&variant);
    let (architecture, variant) = match (architecture.as_str(), variant) {
        ("x86_64" | "x86-64" | "amd64", "1" | "") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
        ("aarch64" | "arm64", "8" | "") => ("arm64", ""),
        ("aarch64" | "arm64", other) => ("arm64", other),
        ("armhf", _) | ("arm", "") => ("arm", "7"),
        ("armel", _) => ("arm", "6"),
        ("i386", other) => ("386", other),
        (other, variant) => (other, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

/// What a machine of the wanted platform can run, best first.
fn accepted(wanted: &Platform) -> Vec<(String, String)> {
    let (architecture, variant) = normal(&wanted.architecture, wanted.variant.as_deref());
    let mut all = vec![(architecture.clone(), variant.clone())];
    let mut add = |architecture: &str, variant: &str| {
        let pair = (architecture.to_owned(), variant.to_owned());
        if !all.contains(&pair) {
            all.push(pair);
        }
    };
    let level: u32 = variant.parse().unwrap_or(0);
    match architecture.as_str() {
        "amd64" => {
            (2..level.min(10))
                .rev()
                .for_each(|level| add("amd64", &level.to_string()));
            add("amd64", "");
            add("386", "");
        }
        "arm64" => {
            add("arm64", "");
            (5..=8)
                .rev()
                .for_each(|level| add("arm", &level.to_string()));
        }
        "arm" => (5..level.min(9))
            .rev()
            .for_each(|level| add("arm", &level.to_string())),
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::spec::media_type::OCI_MANIFEST;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
            ..Platform::default()
        }
    }

    fn index(names: &str) -> Vec<Descriptor> {
        names
            .split(' ')
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut manifest = Descriptor::new(OCI_MANIFEST, Digest::of(name.as_bytes()), 1);
                manifest.platform = (name != "-").then(|| platform(name));
                manifest
            })
            .collect()
    }

    #[test]
    fn a6_12_the_table_of_choices() {
        let table = include_str!("../../../testdata/platform-choice.tsv");
        let mut cases = 0;
        for line in table
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            let fields: Vec<&str> = line.split('\t').collect();
            let manifests = index(fields[1]);
            let chosen = choose(&manifests, &platform(fields[0]));
            let chosen = chosen.map_or_else(
                || "none".to_owned(),
                |m| m.platform.as_ref().map_or_else(|| "-".to_owned(), name),
            );
            assert_eq!(chosen, fields[2], "{line}");
            cases += 1;
        }
        assert!(cases > 10);
    }

    #[test]
    fn a7_8_a_single_image_that_does_not_fit() {
        assert!(fits(&platform("linux/amd64"), &platform("linux/amd64/v1")));
        assert!(fits(&platform("linux/arm/v6"), &platform("linux/arm64")));
        assert!(!fits(&platform("linux/arm64"), &platform("linux/amd64")));
        assert!(!fits(&platform("windows/amd64"), &platform("linux/amd64")));
    }
}
