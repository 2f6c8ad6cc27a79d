//! `--cache-from` and `--cache-to`: where caches are, as the command line says it (C5).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kiln_grammar::diagnostic::{did_you_mean, suggest};
use kiln_grammar::mount::{MountError, csv};
use kiln_registry::client::BucketOptions;
use kiln_registry::credentials::Secret;
use kiln_registry::digest::Digest;
use kiln_registry::reference::{Reference, ReferenceError};
use kiln_registry::spec::media_type::Compression;

/// The name of a cache in a folder when none is given.
const TAG: &str = "latest";
const TYPES: [&str; 6] = ["registry", "local", "inline", "s3", "gha", "azblob"];
const FROM_REGISTRY: [&str; 1] = ["ref"];
const FROM_LOCAL: [&str; 3] = ["src", "tag", "digest"];
const TO_REGISTRY: [&str; 8] = [
    "ref",
    "mode",
    "image-manifest",
    "oci-mediatypes",
    "compression",
    "compression-level",
    "force-compression",
    "ignore-error",
];
const TO_LOCAL: [&str; 9] = [
    "dest",
    "tag",
    "mode",
    "max",
    "reset",
    "compression",
    "compression-level",
    "force-compression",
    "ignore-error",
];
const TO_INLINE: [&str; 1] = ["mode"];
const FROM_S3: [&str; 12] = [
    "bucket",
    "region",
    "prefix",
    "blobs_prefix",
    "manifests_prefix",
    "name",
    "endpoint_url",
    "use_path_style",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "touch_refresh",
];
const TO_S3: [&str; 7] = [
    "mode",
    "upload_parallelism",
    "oci-mediatypes",
    "compression",
    "compression-level",
    "force-compression",
    "ignore-error",
];
/// The name of contents of mounts in a folder or bucket when none is given.
const MOUNTS: &str = "mounts";
/// The name of a cache in a bucket when none is given; not that of BuildKit's caches.
const NAME: &str = "kiln";
/// How old a blob in a bucket may be before it is made new (`touch_refresh`).
const TOUCH: Duration = Duration::from_secs(24 * 3600);
/// Blobs that go to one place at once.
const PARALLEL: usize = 4;

/// Why an option cannot be obeyed. No message holds a value that may be secret.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// It is no CSV record.
    #[error("invalid {flag}: {source}")]
    Csv {
        /// The flag.
        flag: &'static str,
        /// Why not.
        source: MountError,
    },
    /// A field has no value.
    #[error("invalid {flag}: `{field}` must be a key=value pair")]
    NoValue {
        /// The flag.
        flag: &'static str,
        /// The field.
        field: String,
    },
    /// A type that is none.
    #[error("unknown cache type `{kind}` in {flag}{more}", more = did_you_mean(suggest(.kind, TYPES)))]
    Type {
        /// The flag.
        flag: &'static str,
        /// The type.
        kind: String,
    },
    /// A type or an option that kiln does not have.
    #[error("{flag}: {what} is not supported{why}")]
    Unsupported {
        /// The flag.
        flag: &'static str,
        /// What.
        what: String,
        /// What to do instead, after a colon; may be empty.
        why: &'static str,
    },
    /// An option that the type does not have.
    #[error("unknown option `{key}` for type={kind} in {flag}{}", did_you_mean(.near.as_deref()))]
    Key {
        /// The flag.
        flag: &'static str,
        /// The type.
        kind: String,
        /// The option.
        key: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// An option that the type cannot do without.
    #[error("{flag}: type={kind} needs `{key}=`")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// The type.
        kind: &'static str,
        /// The option.
        key: &'static str,
    },
    /// A value that is none.
    #[error("{flag}: invalid value `{value}` of `{key}`: expected {expected}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A reference that is none.
    #[error("{flag}: invalid reference `{text}`: {source}")]
    Reference {
        /// The flag.
        flag: &'static str,
        /// The text.
        text: String,
        /// Why not.
        source: ReferenceError,
    },
}

/// A place that a cache is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// An image or artifact in a registry.
    Registry(Reference),
    /// An OCI image layout.
    Local {
        /// Its folder.
        path: PathBuf,
        /// The name in it.
        tag: String,
        /// The manifest in it, instead of the name.
        digest: Option<Digest>,
    },
    /// Objects in a bucket.
    S3 {
        /// Where it is, and with which keys.
        bucket: Box<BucketOptions>,
        /// The cache's names in it; an export goes to all of them.
        names: Vec<String>,
    },
}

/// `--cache-from`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFrom {
    /// Where it is.
    pub spec: Spec,
}

/// Which steps an export holds (C5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Those whose layers are in the image.
    #[default]
    Min,
    /// All, of all stages.
    Max,
}

/// How the layers of an export are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// What new ones are compressed with.
    pub compression: Compression,
    /// Whether those that are there in another form are compressed anew.
    pub force: bool,
}

/// Where an export goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a place of its own.
    Place(Spec),
    /// Into the image's config.
    Inline,
}

/// `--cache-to`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTo {
    /// Where it goes.
    pub target: Target,
    /// What it holds.
    pub mode: Mode,
    /// How its layers are compressed.
    pub packing: Packing,
    /// Whether a failure is a warning only.
    pub ignore_error: bool,
    /// Whether manifest and layers have OCI's media types, and not docker's.
    pub oci: bool,
    /// Bytes that a folder may hold; what was used least recently goes.
    pub max: Option<u64>,
    /// Whether what this build has not used goes from a folder.
    pub reset: bool,
    /// Blobs that are sent at once.
    pub parallel: usize,
}

impl CacheFrom {
    /// Reads `type=TYPE,KEY=VALUE...` or a bare reference.
    ///
    /// # Errors
    /// [`OptionError`] that names the option.
    pub fn parse(text: &str, environment: &Environment<'_>) -> Result<Self, OptionError> {
        let mut fields = Fields::parse("--cache-from", text)?;
        let spec = match fields.kind.as_str() {
            "registry" => {
                fields.only(&FROM_REGISTRY)?;
                Spec::Registry(fields.reference()?)
            }
            "local" => {
                fields.only(&FROM_LOCAL)?;
                fields.local("src")?
            }
            "s3" => {
                fields.only(&FROM_S3)?;
                fields.s3(environment)?
            }
            "inline" => {
                let what = "type=inline".to_owned();
                return Err(
                    fields.unsupported(what, ": name the image, as type=registry,ref=IMAGE")
                );
            }
            _ => return Err(fields.other()),
        };
        Ok(Self { spec })
    }
}

impl CacheTo {
    /// Reads `type=TYPE,KEY=VALUE...` or a bare reference.
    ///
    /// # Errors
    /// [`OptionError`] that names the option.
    pub fn parse(text: &str, environment: &Environment<'_>) -> Result<Self, OptionError> {
        let mut fields = Fields::parse("--cache-to", text)?;
        let target = match fields.kind.as_str() {
            "registry" => {
                fields.only(&TO_REGISTRY)?;
                Target::Place(Spec::Registry(fields.reference()?))
            }
            "local" => {
                fields.only(&TO_LOCAL)?;
                Target::Place(fields.local("dest")?)
            }
            "s3" => {
                fields.only(&[&FROM_S3[..], &TO_S3[..]].concat())?;
                Target::Place(fields.s3(environment)?)
            }
            "inline" => {
                fields.only(&TO_INLINE)?;
                Target::Inline
            }
            _ => return Err(fields.other()),
        };
        let mode = fields.mode()?;
        if target == Target::Inline && mode == Mode::Max {
            let why = ": the image's config names the image's own layers only";
            return Err(fields.unsupported("mode=max with type=inline".to_owned(), why));
        }
        if fields.values.contains_key("compression-level") {
            let why = ": layers of caches have the level that kiln's own have";
            return Err(fields.unsupported("compression-level".to_owned(), why));
        }
        if !fields.flag("image-manifest", true)? {
            let why = ": kiln writes a cache as an image manifest only";
            return Err(fields.unsupported("image-manifest=false".to_owned(), why));
        }
        Ok(Self {
            target,
            mode,
            packing: Packing {
                compression: fields.compression()?,
                force: fields.flag("force-compression", false)?,
            },
            ignore_error: fields.flag("ignore-error", true)?,
            oci: fields.flag("oci-mediatypes", true)?,
            max: fields.size("max")?,
            reset: fields.flag("reset", false)?,
            parallel: fields.parallel()?,
        })
    }
}

/// `--cache-mounts`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMounts {
    /// Where contents of cache mounts are.
    pub spec: Spec,
    /// Bytes that they may have there; the mounts that were used least recently go.
    pub max: Option<u64>,
}

impl CacheMounts {
    /// Reads `dir:FOLDER[,max=SIZE]` or `type=TYPE,KEY=VALUE...`.
    ///
    /// # Errors
    /// [`OptionError`] that names the option.
    pub fn parse(text: &str, environment: &Environment<'_>) -> Result<Self, OptionError> {
        const FLAG: &str = "--cache-mounts";
        let local = text
            .strip_prefix("dir:")
            .map(|rest| format!("type=local,dest={rest}"));
        let mut fields = Fields::parse(FLAG, local.as_deref().unwrap_or(text))?;
        let named = |name: &str| match name {
            "" => MOUNTS.to_owned(),
            name => name.to_owned(),
        };
        let spec = match fields.kind.as_str() {
            "registry" => {
                fields.only(&["ref", "max"])?;
                Spec::Registry(fields.reference()?)
            }
            "local" => {
                fields.only(&["dest", "tag", "max"])?;
                let tag = named(&fields.take("tag").unwrap_or_default());
                fields.values.insert("tag".to_owned(), tag);
                fields.local("dest")?
            }
            "s3" => {
                fields.only(&[&FROM_S3[..], &["max"]].concat())?;
                let name = named(&fields.take("name").unwrap_or_default());
                fields.values.insert("name".to_owned(), name);
                fields.s3(environment)?
            }
            "inline" => {
                return Err(
                    fields.unsupported("type=inline".to_owned(), ": mounts are in no image")
                );
            }
            _ => return Err(fields.other()),
        };
        let max = fields.size("max")?;
        Ok(Self { spec, max })
    }
}

/// Looks up a variable of the environment.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

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
    fn other(&self) -> OptionError {
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

    fn local(&mut self, key: &'static str) -> Result<Spec, OptionError> {
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
    fn s3(&mut self, environment: &Environment<'_>) -> Result<Spec, OptionError> {
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
        });
        Ok(Spec::S3 { bucket, names })
    }

    fn keys(&mut self) -> Result<Option<(String, Secret, Option<Secret>)>, OptionError> {
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

    fn parallel(&mut self) -> Result<usize, OptionError> {
        let Some(text) = self.take("upload_parallelism") else {
            return Ok(PARALLEL);
        };
        match text.parse() {
            Ok(count @ 1..=100) => Ok(count),
            _ => Err(self.value("upload_parallelism", text, "a number from 1 to 100")),
        }
    }

    /// A span of time as docker writes it: `24h`, `90m`, `1h30m`.
    fn duration(&mut self, key: &'static str, usual: Duration) -> Result<Duration, OptionError> {
        let Some(text) = self.take(key) else {
            return Ok(usual);
        };
        duration(&text).ok_or_else(|| self.value(key, text, "a span of time, as in 24h or 90m"))
    }

    fn value(&self, key: &'static str, value: String, expected: &'static str) -> OptionError {
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

    fn compression(&mut self) -> Result<Compression, OptionError> {
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
fn size(text: &str) -> Option<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> String {
        match CacheFrom::parse(text, &|_| None) {
            Ok(from) => format!("{:?}", from.spec),
            Err(error) => error.to_string(),
        }
    }

    fn refused(text: &str) -> String {
        CacheTo::parse(text, &|_| None).unwrap_err().to_string()
    }

    #[test]
    fn c1_a_bare_reference_is_one_in_a_registry() {
        let to = CacheTo::parse("registry.example/app:cache", &|_| None).unwrap();
        let Target::Place(Spec::Registry(reference)) = &to.target else {
            panic!("{to:?}");
        };
        assert_eq!(reference.to_string(), "registry.example/app:cache");
        assert_eq!((to.mode, to.oci, to.ignore_error), (Mode::Min, true, true));
        let same =
            CacheTo::parse("type=registry,ref=registry.example/app:cache", &|_| None).unwrap();
        assert_eq!(to, same);
        assert!(from("app").contains("latest"));
    }

    #[test]
    fn c5_options_of_exports() {
        let to = CacheTo::parse(
            "type=local,dest=/c,mode=max,max=5G,tag=main,reset=true,compression=zstd,ignore-error=false",
            &|_| None,
        )
        .unwrap();
        assert_eq!(to.max, Some(5_000_000_000));
        assert!(to.reset && !to.ignore_error);
        assert_eq!(to.mode, Mode::Max);
        assert_eq!(to.packing.compression, Compression::Zstd);
        assert_eq!(
            CacheTo::parse("type=inline", &|_| None).unwrap().target,
            Target::Inline
        );
    }

    #[test]
    fn c5_what_is_not_known_is_named() {
        for (text, expected) in [
            (
                "type=regsitry,ref=a",
                "unknown cache type `regsitry` in --cache-to, did you mean registry?",
            ),
            (
                "type=registry,ref=a,mod=max",
                "unknown option `mod` for type=registry in --cache-to, did you mean mode?",
            ),
            ("type=registry", "--cache-to: type=registry needs `ref=`"),
            (
                "type=local,src=a",
                "unknown option `src` for type=local in --cache-to",
            ),
            (
                "ref=a",
                "--cache-to: type=registry|local|inline|s3 needs `type=`",
            ),
            (
                "type=registry,ref=a,mode=all",
                "--cache-to: invalid value `all` of `mode`: expected min or max",
            ),
            (
                "type=local,dest=a,max=x",
                "--cache-to: invalid value `x` of `max`: expected a size, as in 500MB or 5G",
            ),
            (
                "type=registry,ref=A B",
                "--cache-to: invalid reference `A B`",
            ),
            (
                "type=registry,ref=a,reset",
                "invalid --cache-to: `reset` must be a key=value pair",
            ),
        ] {
            let message = refused(text);
            assert!(message.starts_with(expected), "{text}: {message}");
        }
        for text in [
            "type=gha",
            "type=azblob,name=a",
            "type=inline,mode=max",
            "type=registry,ref=a,compression=estargz",
            "type=registry,ref=a,compression-level=3",
            "type=registry,ref=a,image-manifest=false",
        ] {
            assert!(refused(text).contains("is not supported"), "{text}");
        }
        assert!(from("type=inline").contains("type=registry,ref=IMAGE"));
    }

    #[test]
    fn c5_buckets() {
        let environment = |name: &str| match name {
            "AWS_REGION" => Some("eu-west-1".to_owned()),
            "AWS_BUCKET" => Some("from-variable".to_owned()),
            _ => None,
        };
        let from = CacheFrom::parse("type=s3", &environment).unwrap();
        let Spec::S3 { bucket, names } = from.spec else {
            panic!("{from:?}");
        };
        assert_eq!(
            (bucket.bucket.as_str(), bucket.region.as_str()),
            ("from-variable", "eu-west-1")
        );
        assert_eq!(
            (
                bucket.blobs_prefix.as_str(),
                bucket.manifests_prefix.as_str()
            ),
            ("blobs/", "manifests/")
        );
        assert_eq!((names, bucket.keys), (vec!["kiln".to_owned()], None));
        let text = "type=s3,bucket=b,region=r,name=a;b,prefix=p/,access_key_id=I,secret_access_key=hunter2,\
                    session_token=hunter3,touch_refresh=1h30m,upload_parallelism=7,mode=max";
        let to = CacheTo::parse(text, &|_| None).unwrap();
        let shown = format!("{to:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        assert_eq!((to.mode, to.parallel), (Mode::Max, 7));
        let Target::Place(Spec::S3 { bucket, names }) = to.target else {
            panic!("{shown}");
        };
        assert_eq!((names.len(), bucket.touch_refresh.as_secs()), (2, 5400));
        for (text, expected) in [
            ("type=s3", "--cache-to: type=s3 needs `bucket=`"),
            ("type=s3,bucket=b", "--cache-to: type=s3 needs `region=`"),
            (
                "type=s3,bucket=b,region=r,access_key_id=I",
                "--cache-to: type=s3 needs `secret_access_key=`",
            ),
            (
                "type=s3,bucket=b,region=r,endpoint=x",
                "unknown option `endpoint` for type=s3 in --cache-to",
            ),
            (
                "type=s3,bucket=b,region=r,max_attempts=3",
                "unknown option `max_attempts`",
            ),
            (
                "type=s3,bucket=b/c,region=r",
                "--cache-to: invalid value `b/c` of `bucket`",
            ),
            (
                "type=s3,bucket=b,region=r,endpoint_url=x",
                "--cache-to: invalid value `x` of `endpoint_url`",
            ),
            (
                "type=s3,bucket=b,region=r,touch_refresh=1d",
                "--cache-to: invalid value `1d` of `touch_refresh`",
            ),
            (
                "type=s3,bucket=b,region=r,upload_parallelism=0",
                "--cache-to: invalid value `0` of `upload_parallelism`",
            ),
        ] {
            let message = refused(text);
            assert!(message.starts_with(expected), "{text}: {message}");
        }
    }

    #[test]
    fn places_of_mounts() {
        let parsed = |text: &str| CacheMounts::parse(text, &|_| None);
        let mounts = parsed("dir:.cache/mounts,max=2G").unwrap();
        let expected = Spec::Local {
            path: PathBuf::from(".cache/mounts"),
            tag: "mounts".to_owned(),
            digest: None,
        };
        assert_eq!((mounts.spec, mounts.max), (expected, Some(2_000_000_000)));
        assert!(matches!(
            parsed("registry.example/app:mounts").unwrap().spec,
            Spec::Registry(_)
        ));
        let message = |text: &str| parsed(text).unwrap_err().to_string();
        assert_eq!(message("dir:"), "--cache-mounts: type=local needs `dest=`");
        assert!(
            message("dir:x,mx=1").contains("unknown option `mx`"),
            "{}",
            message("dir:x,mx=1")
        );
        assert!(message("type=gha").contains("type=gha is not supported"));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("5g", Some(5_000_000_000)),
            ("1.5MB", Some(1_500_000)),
            ("2GiB", Some(2 << 30)),
            ("10 kb", Some(10_000)),
            ("", None),
            ("x", None),
            ("5i", None),
            ("99999999999T", None),
            ("1..2G", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
