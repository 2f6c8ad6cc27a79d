//! Reading the Dockerfile and the ignore file of a context.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kiln_grammar::dockerignore::IgnoreFile;

use super::{BuildError, DockerfileFrom, Source};

/// Longest Dockerfile that is read, bytes.
const DOCKERFILE_LIMIT: u64 = 64 << 20;

pub(super) fn open_folder(path: &Path) -> Result<PathBuf, BuildError> {
    let context = fs::canonicalize(path).map_err(|_| BuildError::NoContext(path.to_owned()))?;
    if context.is_dir() {
        Ok(context)
    } else {
        Err(BuildError::ContextNotFolder(path.to_owned()))
    }
}

/// The Dockerfile's path, where it has one, and its text.
pub(super) fn read_dockerfile(
    dockerfile: &DockerfileFrom,
    context: &Path,
) -> Result<(Option<PathBuf>, Source), BuildError> {
    let path = match dockerfile {
        DockerfileFrom::Text(text) => {
            return Ok((
                None,
                Source {
                    name: "Dockerfile".to_owned(),
                    text: text.clone(),
                },
            ));
        }
        DockerfileFrom::Path(path) => path.clone(),
        DockerfileFrom::Context => {
            // What users know is `open Dockerfile`, without `./` (A18.1).
            let context = context.strip_prefix(".").unwrap_or(context);
            let usual = context.join("Dockerfile");
            let fallback = context.join("dockerfile");
            if !usual.exists() && fallback.exists() {
                fallback
            } else {
                usual
            }
        }
    };
    let text = read_text(&path).map_err(|source| BuildError::NoDockerfile {
        path: path.clone(),
        source,
    })?;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok((Some(path), Source { name, text }))
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|_| {
        let message = "the file is not UTF-8";
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, DOCKERFILE_LIMIT), &mut bytes)?;
    if bytes.len() as u64 == DOCKERFILE_LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The ignore file beside the Dockerfile, else that of the context (A14.1).
pub(super) fn ignore_file(dockerfile: Option<&Path>, context: &Path) -> Option<PathBuf> {
    let specific = dockerfile.map(|path| {
        let mut name = path.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    let mut files = specific.into_iter().chain([context.join(".dockerignore")]);
    files.find(|path| path.exists())
}

pub(super) fn read_ignore_file(
    dockerfile: Option<&Path>,
    context: &Path,
) -> Result<Option<IgnoreFile>, BuildError> {
    let Some(path) = ignore_file(dockerfile, context) else {
        return Ok(None);
    };
    let bytes = match read_bytes(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(BuildError::NoIgnoreFile { path, source }),
    };
    // A name that is no text is matched as if its odd bytes were the replacement character, so the
    // pattern for it may be read like that too.
    let parsed = IgnoreFile::parse(&String::from_utf8_lossy(&bytes));
    let parsed = parsed.map_err(|source| BuildError::IgnoreFile { path, source })?;
    Ok(Some(parsed))
}
