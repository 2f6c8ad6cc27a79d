//! `--secret`: where a secret comes from, and reading it (B7.1).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use kiln_grammar::diagnostic::{did_you_mean, suggest};
use kiln_grammar::mount::{MountError, csv};
use kiln_registry::credentials::SecretBytes;
use serde::{Deserialize, Serialize};

/// Largest secret, bytes.
const LIMIT: u64 = 500 << 10;

const KEYS: [&str; 5] = ["id", "source", "src", "env", "type"];

/// A secret of the command line that is not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSource {
    /// What `RUN --mount=type=secret` calls it.
    pub id: String,
    file: Option<PathBuf>,
    variable: Option<String>,
}

/// Why a secret cannot be had. No message holds any part of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The flag is no CSV record.
    #[error("invalid secret: {0}")]
    Csv(#[from] MountError),
    /// A field of the flag has no value.
    #[error("invalid field '{0}' must be a key=value pair")]
    NoValue(String),
    /// The flag has a field that is not known.
    #[error("unexpected key '{key}' in '{field}'{more}", more = did_you_mean(suggest(.key, KEYS)))]
    Key {
        /// The key.
        key: String,
        /// Where it stands.
        field: String,
    },
    /// A type that is neither `file` nor `env`.
    #[error("unsupported secret type {0:?}{more}", more = did_you_mean(suggest(.0, ["file", "env"])))]
    Type(String),
    /// It has no id.
    #[error("secret missing ID")]
    NoId,
    /// Its file cannot be read.
    #[error("secret {id}: cannot read `{}`", path.display())]
    Read {
        /// Its id.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is larger than a secret may be.
    #[error("secret {0} too big. max size 500KB")]
    TooLarge(String),
}

impl SecretError {
    /// Whether the command line is wrong, and not what it names.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::TooLarge(_))
    }
}

impl SecretSource {
    /// Reads `id=ID[,src=FILE][,env=VARIABLE][,type=file|env]`.
    ///
    /// # Errors
    /// [`SecretError`] for fields that are not known or wrong.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
        for field in csv(text)? {
            let Some((written, value)) = field.split_once('=') else {
                return Err(SecretError::NoValue(field));
            };
            let value = Some(value.to_owned()).filter(|value| !value.is_empty());
            match written.to_lowercase().as_str() {
                "id" => id = value,
                "source" | "src" => file = value,
                "env" => variable = value,
                "type" => match value.as_deref() {
                    Some("file" | "env") => kind = value,
                    _ => return Err(SecretError::Type(value.unwrap_or_default())),
                },
                key => {
                    let key = key.to_owned();
                    return Err(SecretError::Key { key, field });
                }
            }
        }
        let id = id.ok_or(SecretError::NoId)?;
        if kind.as_deref() == Some("env") && variable.is_none() {
            variable = file.take();
        }
        let file = file.map(PathBuf::from);
        Ok(Self { id, file, variable })
    }

    /// The same source, seen from anywhere: its file is named by an absolute path. `environment` tells
    /// which variables are set now.
    #[must_use]
    pub fn absolute(mut self, environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        if self.file.is_none() && self.variable.is_none() {
            match environment(&self.id) {
                Some(_) => self.variable = Some(self.id.clone()),
                None => self.file = Some(PathBuf::from(&self.id)),
            }
        }
        self.file = self.file.map(|file| match std::path::absolute(&file) {
            Ok(absolute) => absolute,
            Err(_) => file,
        });
        self
    }

    /// Reads the secret: the variable where one is named, else the file; where neither is, the
    /// variable of its id if there is one, else the file of that name. Whether a named variable was
    /// not set, which makes the secret empty as it does with docker, is given beside it.
    ///
    /// # Errors
    /// [`SecretError`] when the file cannot be read or is too large.
    pub fn read(
        &self,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(SecretBytes, Option<String>), SecretError> {
        let value = |name: &str| environment(name).map(|value| value.into_vec().into());
        let bytes: SecretBytes = match (&self.variable, &self.file) {
            (Some(name), None) => match value(name) {
                Some(bytes) => bytes,
                None => return Ok((SecretBytes::default(), Some(name.clone()))),
            },
            // docker wants the file to be there, too.
            (Some(name), Some(file)) => {
                self.read_file(file.clone())?;
                value(name).unwrap_or_default()
            }
            (None, Some(file)) => self.read_file(file.clone())?,
            (None, None) => match value(&self.id) {
                Some(bytes) => bytes,
                None => self.read_file(PathBuf::from(&self.id))?,
            },
        };
        if bytes.expose().len() as u64 > LIMIT {
            return Err(SecretError::TooLarge(self.id.clone()));
        }
        Ok((bytes, None))
    }

    fn read_file(&self, path: PathBuf) -> Result<SecretBytes, SecretError> {
        // Read once and never moved while it grows, so that no copy stays behind.
        let mut bytes = Vec::with_capacity(usize::try_from(LIMIT).unwrap_or_default() + 1);
        let read = File::open(&path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes));
        let bytes = SecretBytes::from(bytes);
        match read {
            Ok(length) if length as u64 > LIMIT => Err(SecretError::TooLarge(self.id.clone())),
            Ok(_) => Ok(bytes),
            Err(source) => Err(SecretError::Read {
                id: self.id.clone(),
                path,
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "TOKEN" => Some(OsString::from("of the environment")),
            _ => None,
        };
        let source = SecretSource::parse(text).map_err(|error| error.to_string())?;
        let (secret, _) = source
            .read(&environment)
            .map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(secret.expose()).into_owned())
    }

    #[test]
    fn b7_1_a_secret_comes_from_a_file_or_from_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a,b");
        std::fs::write(&file, "of the file").unwrap();
        let file = file.display();
        for (text, value) in [
            (format!("\"src={file}\",id=x"), "of the file"),
            (format!("ID=x,\"source={file}\",type=file"), "of the file"),
            (format!("\"id={file}\""), "of the file"),
            ("id=x,env=TOKEN".to_owned(), "of the environment"),
            ("id=x,type=env,src=TOKEN".to_owned(), "of the environment"),
            ("id=TOKEN".to_owned(), "of the environment"),
            (format!("id=TOKEN,\"src={file}\""), "of the file"),
            (
                format!("id=x,env=TOKEN,\"src={file}\""),
                "of the environment",
            ),
            ("id=x,env=NONE".to_owned(), ""),
        ] {
            assert_eq!(read(&text), Ok(value.to_owned()), "{text}");
        }
    }

    #[test]
    fn b7_1_what_is_wrong_is_named() {
        for (text, error) in [
            ("x", "invalid field 'x' must be a key=value pair"),
            (
                "id=x,scr=y",
                "unexpected key 'scr' in 'scr=y', did you mean src?",
            ),
            (
                "id=x,type=fil",
                "unsupported secret type \"fil\", did you mean file?",
            ),
            ("src=x", "secret missing ID"),
            ("id=", "secret missing ID"),
            (
                "",
                "invalid secret: failed to parse csv mounts: the record is empty",
            ),
            ("id=x,src=/none", "secret x: cannot read `/none`"),
            (
                "id=none/at/all",
                "secret none/at/all: cannot read `none/at/all`",
            ),
        ] {
            assert_eq!(read(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn b2_a_secret_has_at_most_500_kib() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        for (size, fits) in [(LIMIT, true), (LIMIT + 1, false)] {
            std::fs::write(&file, vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
            assert_eq!(read(&format!("id=x,src={}", file.display())).is_ok(), fits);
        }
    }
}
