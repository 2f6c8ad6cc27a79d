//! `--cache-from` and `--cache-to`: where caches are, as the command line says it (C5).

mod fields;

use std::path::PathBuf;

use kiln_grammar::diagnostic::{did_you_mean, suggest};
use kiln_grammar::mount::MountError;
use kiln_registry::client::BucketOptions;
use kiln_registry::digest::Digest;
use kiln_registry::reference::{Reference, ReferenceError};
use kiln_registry::spec::media_type::Compression;

use fields::Fields;

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

#[cfg(test)]
mod tests;
