//! Platforms: `os[/arch[/variant]]`, and the choice of one in an index (A6.12).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::descriptor::Descriptor;
use super::manifest::Index;

/// Operating systems, in Go's names; a single word that is none of these is an architecture.
const SYSTEMS: [&str; 15] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];

/// Architectures, in Go's names.
const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "sparc64", "wasm",
];

/// A platform as an index names it; names are Go's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Processor architecture.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// Version of the operating system (Windows).
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features of the operating system (Windows).
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// It does not have the form `os[/arch[/variant]]`.
    #[error("invalid platform `{0}`: expected `os[/arch[/variant]]`, such as `linux/arm64`")]
    Malformed(String),
    /// It is one word that is neither an operating system nor an architecture.
    #[error("invalid platform `{0}`: unknown operating system or architecture")]
    Unknown(String),
}

impl Platform {
    /// A platform of Linux.
    #[must_use]
    pub fn linux(architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
            ..Self::default()
        }
    }

    /// The platform that kiln runs on.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "mips" if cfg!(target_endian = "little") => "mipsle",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            "loongarch64" => "loong64",
            "x86" => "386",
            other => other,
        };
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            ..Self::default()
        }
        .normalized()
    }

    /// Parses `os[(version)][/arch[/variant]]` to its normal form; one word may be an operating
    /// system or an architecture, the other half is then this machine's (A6.12).
    ///
    /// # Errors
    /// [`PlatformError`] when the text is no platform.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        Self::parse_on(text, &Self::host())
    }

    /// Parses like [`Platform::parse`], for another machine than this one.
    ///
    /// # Errors
    /// [`PlatformError`] when the text is no platform.
    pub fn parse_on(text: &str, host: &Self) -> Result<Self, PlatformError> {
        let malformed = || PlatformError::Malformed(text.to_owned());
        let words: Vec<&str> = text.split('/').collect();
        let (&first, rest) = words.split_first().ok_or_else(malformed)?;
        let (os, os_version) = match first.split_once('(') {
            Some((os, version)) => (os, Some(version.strip_suffix(')').ok_or_else(malformed)?)),
            None => (first, None),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let named = |word: &str| !word.is_empty() && word.bytes().all(legal);
        if ![os].iter().chain(rest).all(|word| named(word)) || !os_version.is_none_or(named) {
            return Err(malformed());
        }
        let mut platform = Self {
            os: os.to_owned(),
            os_version: os_version.map(str::to_owned),
            ..Self::default()
        };
        match rest {
            [] => return platform.completed(text, host),
            [architecture] => (*architecture).clone_into(&mut platform.architecture),
            [architecture, variant] => {
                (*architecture).clone_into(&mut platform.architecture);
                platform.variant = Some((*variant).to_owned());
            }
            _ => return Err(malformed()),
        }
        Ok(platform.normalized())
    }

    /// Adds the host's half to a single word.
    fn completed(self, text: &str, host: &Self) -> Result<Self, PlatformError> {
        let as_os = self.clone().normalized();
        if SYSTEMS.contains(&as_os.os.as_str()) {
            return Ok(Self {
                architecture: host.architecture.clone(),
                variant: host.variant.clone(),
                ..as_os
            });
        }
        let as_architecture = Self {
            architecture: self.os,
            os: host.os.clone(),
            ..Self::default()
        }
        .normalized();
        let known = ARCHITECTURES.contains(&as_architecture.architecture.as_str());
        if known && self.os_version.is_none() {
            Ok(as_architecture)
        } else {
            Err(PlatformError::Unknown(text.to_owned()))
        }
    }

    /// The platform in Go's names, without a variant that says nothing (A6.12).
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.os = match self.os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.unwrap_or_default().to_lowercase();
        let architecture = self.architecture.to_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "386", _) => ("386", String::new()),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", String::new()),
            ("x86_64" | "x86-64" | "amd64", _) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", String::new()),
            ("aarch64" | "arm64", "9" | "v9.0") => ("arm64", "v9".to_owned()),
            ("aarch64" | "arm64", _) => ("arm64", variant),
            ("armhf", _) | ("arm", "") => ("arm", "v7".to_owned()),
            ("armel", _) => ("arm", "v6".to_owned()),
            ("arm", "5" | "6" | "7" | "8") => ("arm", format!("v{variant}")),
            (other, _) => (other, variant),
        };
        self.architecture = architecture.to_owned();
        self.variant = Some(variant).filter(|variant| !variant.is_empty());
        self
    }

    /// How well a candidate serves where this platform is wanted: 0 is the very same, more is a
    /// poorer one that still runs, `None` does not run (A6.12).
    #[must_use]
    pub fn rank(&self, candidate: &Self) -> Option<u32> {
        let (wanted, candidate) = (self.clone().normalized(), candidate.clone().normalized());
        if wanted.os != candidate.os || !runs_on_version(&wanted, &candidate) {
            return None;
        }
        let offered = (
            candidate.architecture,
            candidate.variant.unwrap_or_default(),
        );
        let steps = ladder(&wanted.architecture, wanted.variant.as_deref());
        steps
            .iter()
            .position(|step| *step == offered)
            .and_then(|position| u32::try_from(position).ok())
    }

    /// Whether this stands for no platform at all, as that of an attestation does.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

/// Windows images run on their own build of Windows only; other versions are compared as they are.
fn runs_on_version(wanted: &Platform, candidate: &Platform) -> bool {
    let (Some(wanted_version), Some(version)) = (&wanted.os_version, &candidate.os_version) else {
        return true;
    };
    if wanted.os == "windows" {
        wanted_version
            .split('.')
            .take(3)
            .eq(version.split('.').take(3))
    } else {
        wanted_version == version
    }
}

/// Architectures and variants that run on one, best first.
fn ladder(architecture: &str, variant: Option<&str>) -> Vec<(String, String)> {
    let variant = variant.unwrap_or_default();
    let number = |text: &str| text.strip_prefix('v')?.parse::<u8>().ok();
    let same = |variant: &str| (architecture.to_owned(), variant.to_owned());
    let mut steps = vec![same(variant)];
    match architecture {
        "amd64" => {
            let level = number(variant).unwrap_or(1).min(9);
            steps.extend((2..level).rev().map(|level| same(&format!("v{level}"))));
            if !variant.is_empty() {
                steps.push(same(""));
            }
            steps.push(("386".to_owned(), String::new()));
        }
        "arm" => steps.extend(arm_below(number(variant).unwrap_or(5))),
        "arm64" => {
            let (major, minor) = variant.split_once('.').unwrap_or((variant, "0"));
            let minor = minor.parse::<u8>().unwrap_or(0).min(9);
            // v9.0 has all of v8.5.
            let below_9 = if major == "v9" {
                let lower = (0..minor).rev().map(|minor| match minor {
                    0 => same("v9"),
                    minor => same(&format!("v9.{minor}")),
                });
                steps.extend(lower);
                (minor + 5).min(9) + 1
            } else {
                minor
            };
            steps.extend((1..below_9).rev().map(|minor| same(&format!("v8.{minor}"))));
            if !variant.is_empty() {
                steps.push(same(""));
            }
            steps.extend(arm_below(9));
        }
        _ => {}
    }
    steps
}

/// The variants of 32-bit arm below one, best first.
fn arm_below(version: u8) -> impl Iterator<Item = (String, String)> {
    let highest = version.min(9);
    (5..highest)
        .rev()
        .map(|version| ("arm".to_owned(), format!("v{version}")))
}

/// Chooses the manifest of an index that serves a wanted platform best, the first of equals.
///
/// Attestations (`unknown/unknown`) are no candidates. A manifest without a platform is chosen
/// only when no other serves and it is the only such one; its config must then be looked at.
#[must_use]
pub fn choose<'a>(wanted: &Platform, index: &'a Index) -> Option<&'a Descriptor> {
    let ranked = index.manifests.iter().filter_map(|descriptor| {
        let rank = wanted.rank(descriptor.platform.as_ref()?)?;
        Some((rank, descriptor))
    });
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Some(best);
    }
    let mut unnamed = index
        .manifests
        .iter()
        .filter(|descriptor| descriptor.platform.is_none());
    unnamed.next().filter(|_| unnamed.next().is_none())
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if let Some(version) = &self.os_version {
            write!(f, "({version})")?;
        }
        for part in [Some(&self.architecture), self.variant.as_ref()]
            .into_iter()
            .flatten()
        {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    /// A6.12: which image of an index is chosen; the table says it in words.
    #[test]
    fn the_table_of_choices() {
        let platform = |text: &str| {
            let mut parts = text.split('/').map(str::to_owned);
            let os = parts.next().unwrap();
            let architecture = parts.next().unwrap();
            Platform {
                os,
                architecture,
                variant: parts.next(),
                ..Platform::default()
            }
        };
        let index = |names: &str| Index {
            manifests: names
                .split(' ')
                .filter(|name| !name.is_empty())
                .map(|name| Descriptor {
                    platform: (name != "-").then(|| platform(name)),
                    ..Descriptor::new("application/json", Digest::of(name.as_bytes()), 1)
                })
                .collect(),
            ..serde_json::from_str(r#"{"schemaVersion":2}"#).unwrap()
        };
        let table = include_str!("../../../testdata/platform-choice.tsv");
        let mut cases = 0;
        for line in table
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
        {
            let fields: Vec<&str> = line.split('\t').collect();
            let index = index(fields[1]);
            let chosen = choose(&platform(fields[0]), &index).map_or_else(
                || "none".to_owned(),
                |found| {
                    found
                        .platform
                        .as_ref()
                        .map_or_else(|| "-".to_owned(), ToString::to_string)
                },
            );
            assert_eq!(chosen, fields[2], "{line}");
            cases += 1;
        }
        assert!(cases > 10);
    }

    /// A6.12: spellings and the normal form of each.
    #[test]
    fn normal_forms() {
        let host = Platform::host();
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/X86_64", "linux/amd64"),
            ("linux/x86-64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("macos/aarch64", "darwin/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
            ("linux/riscv64", "linux/riscv64"),
            ("linux/novel/v2", "linux/novel/v2"),
            ("linux", &format!("linux/{}", host.architecture)),
            ("s390x", &format!("{}/s390x", host.os)),
            ("armhf", &format!("{}/arm/v7", host.os)),
            ("AARCH64", &format!("{}/arm64", host.os)),
        ] {
            let platform = Platform::parse(text).unwrap();
            assert_eq!(platform.to_string(), expected, "{text}");
            assert_eq!(Platform::parse(expected), Ok(platform), "{text}");
        }
        for text in [
            "",
            "/",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "li nux/arm",
            "linux(1/arm",
            "linux()/arm",
            "linux/*",
            "all,linux",
        ] {
            let outcome = Platform::parse(text);
            assert!(
                matches!(outcome, Err(PlatformError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["beos", "arm64(1)"] {
            let outcome = Platform::parse(text);
            assert!(matches!(outcome, Err(PlatformError::Unknown(_))), "{text}");
        }
    }

    /// A6.12: what runs where, best first.
    #[test]
    fn ranks() {
        for (wanted, best_first) in [
            (
                "linux/arm64",
                &[
                    "linux/arm64/v8",
                    "linux/arm/v8",
                    "linux/arm/v7",
                    "linux/arm/v6",
                    "linux/arm/v5",
                ][..],
            ),
            (
                "linux/arm/v7",
                &["linux/arm", "linux/arm/v6", "linux/arm/v5"],
            ),
            ("linux/arm/v5", &["linux/arm/v5"]),
            (
                "linux/amd64/v3",
                &[
                    "linux/amd64/v3",
                    "linux/amd64/v2",
                    "linux/amd64/v1",
                    "linux/386",
                ],
            ),
            ("linux/amd64", &["linux/amd64", "linux/386"]),
            (
                "linux/arm64/v9.1",
                &[
                    "linux/arm64/v9.1",
                    "linux/arm64/v9.0",
                    "linux/arm64/v8.6",
                    "linux/arm64/v8.1",
                    "linux/arm64",
                ],
            ),
            ("linux/s390x", &["linux/s390x"]),
        ] {
            let wanted = Platform::parse(wanted).unwrap();
            let ranks: Vec<_> = best_first
                .iter()
                .map(|text| wanted.rank(&Platform::parse(text).unwrap()).expect(text))
                .collect();
            assert_eq!(ranks[0], 0, "{wanted}");
            assert!(ranks.is_sorted_by(|a, b| a < b), "{wanted}: {ranks:?}");
        }
        for (wanted, other) in [
            ("linux/amd64", "linux/amd64/v2"),
            ("linux/amd64", "windows/amd64"),
            ("linux/arm/v6", "linux/arm/v7"),
            ("linux/arm/v7", "linux/arm64"),
            ("linux/386", "linux/amd64"),
            ("linux/arm64", "linux/arm64/v8.2"),
            ("windows(10.0.17763.1)/amd64", "windows(10.0.20348.1)/amd64"),
        ] {
            let [wanted, other] = [wanted, other].map(|text| Platform::parse(text).unwrap());
            assert_eq!(wanted.rank(&other), None, "{wanted} {other}");
        }
        let patch = ["windows(10.0.1.5)/amd64", "windows(10.0.1.9)/amd64"];
        let [wanted, other] = patch.map(|text| Platform::parse(text).unwrap());
        assert_eq!(wanted.rank(&other), Some(0));
    }

    fn index(platforms: &[Option<&str>]) -> Index {
        let manifests = platforms.iter().map(|platform| {
            let text = format!("{platform:?}");
            let mut descriptor = Descriptor::new("m", Digest::of(text.as_bytes()), 1);
            descriptor.platform = platform.map(|text| match text {
                "unknown/unknown" => Platform {
                    os: "unknown".to_owned(),
                    architecture: "unknown".to_owned(),
                    ..Platform::default()
                },
                text => Platform::parse(text).unwrap(),
            });
            descriptor
        });
        let empty = r#"{"schemaVersion":2}"#;
        Index {
            manifests: manifests.collect(),
            ..serde_json::from_str(empty).unwrap()
        }
    }

    #[test]
    fn the_choice_in_an_index() {
        let wanted = Platform::linux("arm64", None);
        for (platforms, expected) in [
            (&[Some("linux/arm/v7"), Some("linux/arm64")][..], Some(1)),
            (&[Some("linux/arm/v6"), Some("linux/arm/v7")], Some(1)),
            (&[Some("linux/amd64"), Some("unknown/unknown")], None),
            (&[Some("unknown/unknown"), None], Some(1)),
            (&[None, Some("linux/arm/v5")], Some(1)),
            (&[None, None], None),
            (&[], None),
        ] {
            let index = index(platforms);
            let expected = expected.map(|i: usize| &index.manifests[i]);
            assert_eq!(choose(&wanted, &index), expected, "{platforms:?}");
        }
    }
}
