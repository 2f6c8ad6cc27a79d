//! The fields of one option: a list of `KEY=VALUE` with commas.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kiln_grammar::diagnostic::suggest;
use kiln_grammar::mount::csv;
use kiln_registry::client::BucketOptions;
use kiln_registry::credentials::Secret;
use kiln_registry::reference::Reference;
use kiln_registry::spec::media_type::Compression;

use super::{Environment, Mode, OptionError, Spec, TYPES};

/// The name of a cache in a folder when none is given.
const TAG: &str = "latest";
/// The name of a cache in a bucket when none is given; not that of BuildKit's caches.
const NAME: &str = "kiln";
/// How old a blob in a bucket may be before it is made new (`touch_refresh`).
const TOUCH: Duration = Duration::from_secs(24 * 3600);
/// Blobs that go to one place at once.
const PARALLEL: usize = 4;

/// The fields of an option, by their lower-case names.
pub(super) struct Fields {
    pub(super) flag: &'static str,
    pub(super) kind: String,
    pub(super) values: BTreeMap<String, String>,
}

impl Fields {
    pub(super) fn parse(flag: &'static str, text: &str) -> Result<Self, OptionError> {
        let all = csv(text).map_err(|source| OptionError::Csv { flag, source })?;
        // As docker has it: without any `=` it is a reference.
        if let [bare] = all.as_slice()
            && !bare.contains('=')
        {
            return Ok(Self {
                flag,
                kind: "registry".to_owned(),
                values: BTreeMap::from([("ref".to_owned(), bare.clone())]),
            });
        }
        let mut values = BTreeMap::new();
        for field in all {
            let Some((key, value)) = field.split_once('=') else {
                return Err(OptionError::NoValue { flag, field });
            };
            values.insert(key.trim().to_lowercase(), value.to_owned());
        }
        let kind = values.remove("type").ok_or(OptionError::Missing {
            flag,
            kind: "registry|local|inline|s3",
            key: "type",
        })?;
        Ok(Self { flag, kind, values })
    }

    /// Refuses options that are not among these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), OptionError> {
        match self
            .values
            .keys()
            .find(|key| !known.contains(&key.as_str()))
        {
            None => Ok(()),
            Some(key) => Err(OptionError::Key {
                flag: self.flag,
                kind: self.kind.clone(),
                key: key.clone(),
                near: suggest(key, known.iter().copied()).map(str::to_owned),
            }),
        }
    }

    /// Why a type cannot be had.
    pub(super) fn other(&self) -> OptionError {
        match self.kind.as_str() {
            "gha" | "azblob" => self.unsupported(
                format!("type={}", self.kind),
                ": type=registry, type=s3 and type=local are there, and a CI can keep the folder of the last",
            ),
            kind => OptionError::Type {
                flag: self.flag,
                kind: kind.to_owned(),
            },
        }
    }

    pub(super) fn unsupported(&self, what: String, why: &'static str) -> OptionError {
        OptionError::Unsupported {
            flag: self.flag,
            what,
            why,
        }
    }

    /// The value of an option; an empty one is none.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key).filter(|value| !value.is_empty())
    }

    pub(super) fn needed(&mut self, key: &'static str) -> Result<String, OptionError> {
        let kind = TYPES.into_iter().find(|known| *known == self.kind);
        self.take(key).ok_or(OptionError::Missing {
            flag: self.flag,
            kind: kind.unwrap_or("registry"),
            key,
        })
    }

    pub(super) fn reference(&mut self) -> Result<Reference, OptionError> {
        let text = self.needed("ref")?;
        let parsed = Reference::parse(&text);
        let parsed = parsed.map_err(|source| OptionError::Reference {
            flag: self.flag,
            text,
            source,
        })?;
        if parsed.digest.is_some() && self.flag == "--cache-to" {
            let why = ": a cache is written under a tag";
            return Err(self.unsupported("a reference with a digest".to_owned(), why));
        }
        Ok(parsed.with_default_tag())
    }

    pub(super) fn local(&mut self, key: &'static str) -> Result<Spec, OptionError> {
        let path = PathBuf::from(self.needed(key)?);
        let digest = match self.take("digest") {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| OptionError::Value {
                flag: self.flag,
                key: "digest",
                value: text,
                expected: "sha256:HEX",
            })?),
        };
        let tag = self.take("tag").unwrap_or_else(|| TAG.to_owned());
        Ok(Spec::Local { path, tag, digest })
    }

    /// A bucket; what is not said comes from the variables that docker looks at.
    pub(super) fn s3(&mut self, environment: &Environment<'_>) -> Result<Spec, OptionError> {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let missing = |key| OptionError::Missing {
            flag: self.flag,
            kind: "s3",
            key,
        };
        let (no_bucket, no_region) = (missing("bucket"), missing("region"));
        let bucket = self.take("bucket").or_else(|| set("AWS_BUCKET"));
        let bucket = bucket.ok_or(no_bucket)?;
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !bucket.bytes().all(word) {
            return Err(self.value("bucket", bucket, "the name of a bucket"));
        }
        let region = self.take("region").or_else(|| set("AWS_REGION"));
        let region = region
            .or_else(|| set("AWS_DEFAULT_REGION"))
            .ok_or(no_region)?;
        let endpoint = self.take("endpoint_url");
        if let Some(url) = &endpoint
            && !url.starts_with("http://")
            && !url.starts_with("https://")
        {
            return Err(self.value("endpoint_url", url.clone(), "an http address"));
        }
        let names = self.take("name").unwrap_or_else(|| NAME.to_owned());
        let names = names.split(';').filter(|name| !name.is_empty());
        let names: Vec<String> = names.map(str::to_owned).collect();
        if names.is_empty() {
            return Err(self.value("name", String::new(), "NAME or NAME;NAME"));
        }
        let mut prefix =
            |key, usual: &str| self.values.remove(key).unwrap_or_else(|| usual.to_owned());
        let [prefix, blobs_prefix, manifests_prefix] = [
            prefix("prefix", ""),
            prefix("blobs_prefix", "blobs/"),
            prefix("manifests_prefix", "manifests/"),
        ];
        let bucket = Box::new(BucketOptions {
            bucket,
            region,
            endpoint,
            path_style: self.flag("use_path_style", false)?,
            keys: self.keys()?,
            prefix,
            blobs_prefix,
            manifests_prefix,
            touch_refresh: self.duration("touch_refresh", TOUCH)?,
            part_size: None,
        });
        Ok(Spec::S3 { bucket, names })
    }

    pub(super) fn keys(&mut self) -> Result<Option<(String, Secret, Option<Secret>)>, OptionError> {
        let missing = |key| OptionError::Missing {
            flag: self.flag,
            kind: "s3",
            key,
        };
        let (no_id, no_secret) = (missing("access_key_id"), missing("secret_access_key"));
        let session = self.take("session_token").map(Secret::new);
        match (self.take("access_key_id"), self.take("secret_access_key")) {
            (None, None) => Ok(None),
            (Some(_), None) => Err(no_secret),
            (None, Some(_)) => Err(no_id),
            (Some(id), Some(secret)) => Ok(Some((id, Secret::new(secret), session))),
        }
    }

    pub(super) fn parallel(&mut self) -> Result<usize, OptionError> {
        let Some(text) = self.take("upload_parallelism") else {
            return Ok(PARALLEL);
        };
        match text.parse() {
            Ok(count @ 1..=100) => Ok(count),
            _ => Err(self.value("upload_parallelism", text, "a number from 1 to 100")),
        }
    }

    /// A span of time as docker writes it: `24h`, `90m`, `1h30m`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        usual: Duration,
    ) -> Result<Duration, OptionError> {
        let Some(text) = self.take(key) else {
            return Ok(usual);
        };
        duration(&text).ok_or_else(|| self.value(key, text, "a span of time, as in 24h or 90m"))
    }

    pub(super) fn value(
        &self,
        key: &'static str,
        value: String,
        expected: &'static str,
    ) -> OptionError {
        OptionError::Value {
            flag: self.flag,
            key,
            value,
            expected,
        }
    }

    pub(super) fn mode(&mut self) -> Result<Mode, OptionError> {
        match self.take("mode").as_deref() {
            None | Some("min") => Ok(Mode::Min),
            Some("max") => Ok(Mode::Max),
            Some(other) => Err(OptionError::Value {
                flag: self.flag,
                key: "mode",
                value: other.to_owned(),
                expected: "min or max",
            }),
        }
    }

    pub(super) fn compression(&mut self) -> Result<Compression, OptionError> {
        match self.take("compression").as_deref() {
            None | Some("gzip") => Ok(Compression::Gzip),
            Some("zstd") => Ok(Compression::Zstd),
            Some("uncompressed") => Ok(Compression::None),
            Some("estargz") => Err(self.unsupported("compression=estargz".to_owned(), "")),
            Some(other) => Err(OptionError::Value {
                flag: self.flag,
                key: "compression",
                value: other.to_owned(),
                expected: "gzip, zstd or uncompressed",
            }),
        }
    }

    pub(super) fn flag(&mut self, key: &'static str, usual: bool) -> Result<bool, OptionError> {
        match self.take(key).as_deref() {
            None => Ok(usual),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(OptionError::Value {
                flag: self.flag,
                key,
                value: other.to_owned(),
                expected: "true or false",
            }),
        }
    }

    pub(super) fn size(&mut self, key: &'static str) -> Result<Option<u64>, OptionError> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        match size(&text) {
            Some(size) => Ok(Some(size)),
            None => Err(OptionError::Value {
                flag: self.flag,
                key,
                value: text,
                expected: "a size, as in 500MB or 5G",
            }),
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text, 0_u64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit = match tail.as_bytes().first()? {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        let part = number.parse::<u64>().ok()?.checked_mul(unit)?;
        seconds = seconds.checked_add(part)?;
        rest = &tail[1..];
    }
    Some(Duration::from_secs(seconds))
}

/// A size in bytes; the units are powers of 1000, with an `i` of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (unit, base) = match unit.strip_suffix('i') {
        Some(unit) => (unit, 1024_u64),
        None => (unit, 1000),
    };
    let power = match unit {
        "" if base == 1000 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let scale = base.pow(power);
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if !part.is_empty() {
        let digits = u32::try_from(part.len()).ok().filter(|count| *count <= 6)?;
        bytes = bytes
            .checked_add(part.parse::<u64>().ok()?.checked_mul(scale)? / 10_u64.pow(digits))?;
    }
    Some(bytes)
}
