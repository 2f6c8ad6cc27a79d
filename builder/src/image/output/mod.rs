//! `--output`: where a built image goes, as the command line says it (C4).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use kiln_grammar::diagnostic::{did_you_mean, suggest};
use kiln_grammar::mount::{MountError, csv};
use kiln_registry::reference::{Reference, ReferenceError};
use kiln_registry::spec::media_type::Compression;

use super::form::Form;
use crate::layer::{gzip, zstd};

const TYPES: [&str; 7] = [
    "local",
    "tar",
    "oci",
    "docker",
    "image",
    "registry",
    "cacheonly",
];
/// The options of all images.
const IMAGE: [&str; 4] = [
    "oci-mediatypes",
    "compression",
    "compression-level",
    "force-compression",
];
/// Options that docker has and kiln has not, unless they say what is so anyway.
const NOT: [(&str, &[&str]); 11] = [
    ("rewrite-timestamp", &["false"]),
    ("oci-artifact", &["false"]),
    ("prefer-nondist-layers", &["false"]),
    ("attestation-inline", &["false"]),
    ("attestation-prefix", &[]),
    ("compatibility-version", &[]),
    ("buildinfo", &["false"]),
    ("buildinfo-attrs", &["false"]),
    ("registry.insecure", &["false"]),
    ("dangling-name-prefix", &[]),
    ("name-canonical", &["false"]),
];
const SCOPES: [&str; 4] = [
    "index",
    "manifest",
    "manifest-descriptor",
    "index-descriptor",
];

/// Why an output cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// It is no CSV record.
    #[error("invalid --output: {0}")]
    Csv(#[source] MountError),
    /// A field has no value.
    #[error("invalid --output: `{0}` must be a key=value pair")]
    NoValue(String),
    /// There is no type.
    #[error("type is required for --output: type={}", TYPES.join("|"))]
    NoType,
    /// A type that is none.
    #[error("unknown type `{0}` of --output{more}", more = did_you_mean(suggest(.0, TYPES)))]
    Type(String),
    /// An option that the type does not have.
    #[error("unknown option `{key}` for type={kind} in --output{}", did_you_mean(.near.as_deref()))]
    Key {
        /// The type.
        kind: String,
        /// The option.
        key: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// An option that kiln does not have.
    #[error("--output: {0} is not supported")]
    Unsupported(String),
    /// A value that is none.
    #[error("--output: invalid value `{value}` of `{key}`: expected {expected}")]
    Value {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// An option that the type cannot do without.
    #[error("--output: dest is required for type={0}")]
    NoDest(&'static str),
    /// A name that is none.
    #[error("--output: invalid name `{0}`")]
    Name(String, #[source] ReferenceError),
    /// A name with a digest.
    #[error("--output: a name for an image cannot hold a digest: `{0}`")]
    NameWithDigest(String),
    /// Annotations of an index, where there is none (C12.1).
    #[error("{scope} annotations not supported for single platform export: `{text}`")]
    Index {
        /// Where it was to be.
        scope: String,
        /// The annotation.
        text: String,
    },
    /// An annotation that is none.
    #[error("invalid annotation `{0}`: expected [SCOPE:]KEY=VALUE, where SCOPE is {scopes}", scopes = SCOPES.join(", "))]
    Annotation(String),
}

/// A place that files are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dest {
    /// Standard output.
    Stdout,
    /// A file or folder.
    Path(PathBuf),
}

/// What an output is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The image's files in a folder.
    Local {
        /// The folder.
        dest: PathBuf,
        /// Whether what the image does not have is removed from it.
        delete: bool,
    },
    /// The image's files in a tar.
    Tar(Dest),
    /// An archive that is an OCI layout.
    Oci(Dest),
    /// An OCI layout that is a folder.
    Layout(PathBuf),
    /// An archive for `docker load`.
    Docker(Dest),
    /// The store, and registries.
    Image {
        /// Whether it gets its names in the store.
        store: bool,
        /// Whether it is pushed.
        push: bool,
        /// Whether that is done without a tag (C4.4).
        by_digest: bool,
        /// Whether its layers are unpacked.
        unpack: bool,
    },
    /// Nothing but the cache.
    CacheOnly,
}

/// `--output`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What it is.
    pub kind: Kind,
    /// Names for the image in place of those that the build gives.
    pub names: Vec<Reference>,
    /// How the image leaves; `None` where nothing is said and layers may leave as they lie.
    pub form: Option<Form>,
}

impl Output {
    /// The store, as a build without any output has it, and `--load`.
    #[must_use]
    pub fn load() -> Self {
        Self::image(false)
    }

    /// `--push`
    #[must_use]
    pub fn push() -> Self {
        Self::image(true)
    }

    fn image(push: bool) -> Self {
        Self {
            kind: Kind::Image {
                store: true,
                push,
                by_digest: false,
                unpack: false,
            },
            names: Vec::new(),
            form: None,
        }
    }

    /// Reads `type=TYPE,KEY=VALUE...`, a folder, or `-` (C1).
    ///
    /// # Errors
    /// [`OutputError`] that names the option.
    pub fn parse(text: &str) -> Result<Self, OutputError> {
        let fields = csv(text).map_err(OutputError::Csv)?;
        if let [bare] = fields.as_slice()
            && bare == text
            && !bare.starts_with("type=")
        {
            let kind = match text {
                "-" => Kind::Tar(Dest::Stdout),
                path => Kind::Local {
                    dest: path.into(),
                    delete: false,
                },
            };
            return Ok(Self {
                kind,
                names: Vec::new(),
                form: None,
            });
        }
        Fields::parse(fields)?.output()
    }

    /// Whether the image gets its names in the store.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        matches!(self.kind, Kind::Image { store: true, .. })
    }

    /// Whether it is an image, and not files.
    #[must_use]
    pub fn is_image(&self) -> bool {
        !matches!(self.kind, Kind::Local { .. } | Kind::Tar(_))
    }

    /// Whether it is written to standard output.
    #[must_use]
    pub fn takes_stdout(&self) -> bool {
        let (Kind::Tar(dest) | Kind::Oci(dest) | Kind::Docker(dest)) = &self.kind else {
            return false;
        };
        *dest == Dest::Stdout
    }
}

/// An annotation of `--annotation`, for the manifest (C12).
///
/// # Errors
/// [`OutputError`] for one that is none, or of a place that an image for one platform does not have.
pub fn annotation(text: &str) -> Result<(String, String), OutputError> {
    let wrong = || OutputError::Annotation(text.to_owned());
    let (key, value) = text.split_once('=').ok_or_else(wrong)?;
    let (scopes, key) = key.split_once(':').unwrap_or(("manifest", key));
    for scope in scopes.split(',') {
        in_scope(scope, text)?;
    }
    match key {
        "" => Err(wrong()),
        key => Ok((key.to_owned(), value.to_owned())),
    }
}

/// Refuses all places of annotations but the manifest. Which platform's does not matter: there is one.
fn in_scope(scope: &str, text: &str) -> Result<(), OutputError> {
    match scope.split_once('[').map_or(scope, |(scope, _)| scope) {
        "manifest" => Ok(()),
        "manifest-descriptor" => {
            let what = format!("an annotation of the descriptor, `{text}`,");
            Err(OutputError::Unsupported(what))
        }
        scope if SCOPES.contains(&scope) => Err(OutputError::Index {
            scope: scope.to_owned(),
            text: text.to_owned(),
        }),
        _ => Err(OutputError::Annotation(text.to_owned())),
    }
}

/// The fields of an output; keys are in lower case, but for those of annotations.
struct Fields {
    kind: String,
    values: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Fields {
    fn parse(fields: Vec<String>) -> Result<Self, OutputError> {
        let (mut values, mut annotations) = (BTreeMap::new(), BTreeMap::new());
        for field in fields {
            let Some((key, value)) = field.split_once('=') else {
                return Err(OutputError::NoValue(field));
            };
            let key = key.trim();
            match annotation_key(key) {
                Some((scope, name)) => {
                    in_scope(scope, &field)?;
                    annotations.insert(name.to_owned(), value.to_owned());
                }
                None => drop(values.insert(key.to_lowercase(), value.to_owned())),
            }
        }
        Ok(Self {
            kind: values.remove("type").ok_or(OutputError::NoType)?,
            values,
            annotations,
        })
    }

    fn output(mut self) -> Result<Output, OutputError> {
        for (key, without) in NOT {
            let value = self.values.remove(key);
            if let Some(value) = value.filter(|value| !without.contains(&value.as_str())) {
                return Err(OutputError::Unsupported(format!("`{key}={value}`")));
            }
        }
        let kind = self.kind.clone();
        let (known, is_image): (&[&str], bool) = match kind.as_str() {
            "local" => (&["dest", "mode", "platform-split"], false),
            "tar" => (&["dest", "platform-split"], false),
            "oci" => (&["dest", "tar", "name"], true),
            "docker" => (&["dest", "name", "context"], true),
            "image" | "registry" => (&["name", "push", "push-by-digest", "unpack", "store"], true),
            "cacheonly" => (&[], false),
            _ => return Err(OutputError::Type(kind)),
        };
        self.only(known, is_image)?;
        let names = self.names()?;
        let form = self.form()?;
        let kind = self.place(&kind)?;
        let form = match (&kind, form == Form::default()) {
            (Kind::Docker(_), true) => None,
            _ => Some(form),
        };
        Ok(Output {
            form: form.filter(|_| is_image),
            kind,
            names,
        })
    }

    fn place(&mut self, kind: &str) -> Result<Kind, OutputError> {
        Ok(match kind {
            "local" => {
                let delete = match self.take("mode").as_deref() {
                    None | Some("copy") => false,
                    Some("delete") => true,
                    Some(other) => return Err(wrong("mode", other, "copy or delete")),
                };
                // There is one platform.
                self.flag("platform-split", true)?;
                match self.dest() {
                    Some(Dest::Path(dest)) => Kind::Local { dest, delete },
                    _ => return Err(OutputError::NoDest("local")),
                }
            }
            "tar" => {
                self.flag("platform-split", true)?;
                Kind::Tar(self.dest().unwrap_or(Dest::Stdout))
            }
            "oci" => match (self.flag("tar", true)?, self.dest()) {
                (true, dest) => Kind::Oci(dest.unwrap_or(Dest::Stdout)),
                (false, Some(Dest::Path(folder))) => Kind::Layout(folder),
                (false, _) => return Err(OutputError::NoDest("oci,tar=false")),
            },
            "docker" => {
                if let Some(context) = self.take("context").filter(|name| name != "default") {
                    let what = format!("`context={context}`: there is no docker behind kiln, it");
                    return Err(OutputError::Unsupported(what));
                }
                match self.dest() {
                    Some(dest) => Kind::Docker(dest),
                    None => Output::load().kind,
                }
            }
            "cacheonly" => Kind::CacheOnly,
            registry => {
                let by_digest = self.flag("push-by-digest", false)?;
                let push = self.flag("push", registry == "registry")?;
                Kind::Image {
                    store: self.flag("store", true)?,
                    push: push || by_digest,
                    by_digest,
                    unpack: self.flag("unpack", false)?,
                }
            }
        })
    }

    /// Refuses options that are not among these.
    fn only(&self, known: &[&str], is_image: bool) -> Result<(), OutputError> {
        let image = if is_image { &IMAGE[..] } else { &[] };
        let all = || known.iter().chain(image).copied();
        let unknown = self
            .values
            .keys()
            .find(|key| all().all(|known| known != *key));
        let annotation = || self.annotations.keys().next().filter(|_| !is_image);
        match unknown.or_else(annotation) {
            None => Ok(()),
            Some(key) => Err(OutputError::Key {
                kind: self.kind.clone(),
                key: key.clone(),
                near: suggest(key, all()).map(str::to_owned),
            }),
        }
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key).filter(|value| !value.is_empty())
    }

    fn dest(&mut self) -> Option<Dest> {
        Some(match self.take("dest")?.as_str() {
            "-" => Dest::Stdout,
            path => Dest::Path(path.into()),
        })
    }

    fn flag(&mut self, key: &'static str, usual: bool) -> Result<bool, OutputError> {
        match self.take(key).as_deref() {
            None => Ok(usual),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }

    fn names(&mut self) -> Result<Vec<Reference>, OutputError> {
        let text = self.take("name").unwrap_or_default();
        let names = text.split(',').filter(|name| !name.is_empty());
        names
            .map(|text| match Reference::parse(text) {
                Ok(name) if name.digest.is_none() => Ok(name.with_default_tag()),
                Ok(_) => Err(OutputError::NameWithDigest(text.to_owned())),
                Err(error) => Err(OutputError::Name(text.to_owned(), error)),
            })
            .collect()
    }

    fn form(&mut self) -> Result<Form, OutputError> {
        let compression = self.take("compression");
        let level = self.take("compression-level");
        Ok(Form {
            docker: !self.flag("oci-mediatypes", true)?,
            annotations: std::mem::take(&mut self.annotations),
            ..compression_of(
                compression.as_deref(),
                level.as_deref(),
                self.flag("force-compression", false)?,
            )?
        })
    }
}

/// What compression options mean (C4.1).
///
/// # Errors
/// [`OutputError`] that names the option.
pub fn compression_of(
    name: Option<&str>,
    level: Option<&str>,
    force: bool,
) -> Result<Form, OutputError> {
    let compression = match name {
        None => None,
        Some("gzip") => Some(Compression::Gzip),
        Some("zstd") => Some(Compression::Zstd),
        Some("uncompressed") => Some(Compression::None),
        Some("estargz") => return Err(OutputError::Unsupported("compression=estargz".to_owned())),
        Some(other) => return Err(wrong("compression", other, "gzip, zstd or uncompressed")),
    };
    let level = match (level, compression) {
        (None, _) => None,
        (Some(_), Some(Compression::None)) => {
            let what = "compression-level without compression".to_owned();
            return Err(OutputError::Unsupported(what));
        }
        // As the compressor itself has it, 0 is its own choice.
        (Some(text), Some(Compression::Zstd)) => number(text, 0..=zstd::HIGHEST, [0, zstd::LEVEL])?,
        (Some(text), _) => number(text, 1..=gzip::HIGHEST, [gzip::LEVEL; 2])?,
    };
    Ok(Form {
        // What is compressed anew by all means is, without another word, gzip.
        compression: compression.or(force.then_some(Compression::Gzip)),
        level,
        force,
        ..Form::default()
    })
}

/// A level; `None` for those that stand for the usual one.
fn number(
    text: &str,
    known: RangeInclusive<i32>,
    usual: [i32; 2],
) -> Result<Option<i32>, OutputError> {
    let level = text.parse().ok().filter(|level| known.contains(level));
    let level = level.ok_or_else(|| {
        let expected = format!("a number from {} to {}", known.start(), known.end());
        wrong("compression-level", text, &expected)
    })?;
    Ok(Some(level).filter(|level| !usual.contains(level)))
}

/// The place and the key of `annotation.KEY`, `annotation-PLACE.KEY` and `annotation-PLACE[PLATFORM].KEY`.
fn annotation_key(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix("annotation")?;
    match rest.strip_prefix('.') {
        Some(name) => Some(("manifest", name)),
        None => rest.strip_prefix('-')?.split_once('.'),
    }
}

fn wrong(key: &'static str, value: &str, expected: &str) -> OutputError {
    OutputError::Value {
        key,
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests;
