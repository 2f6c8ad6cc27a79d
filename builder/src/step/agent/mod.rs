//! `--ssh` and the sockets of `RUN --mount=type=ssh` (B2, B7.2).
//!
//! A step gets a socket of its own, on which only two requests are understood: to list keys and to
//! sign. They are passed on to the agent of the user, or answered with keys that were read from
//! files; in neither case does a key come near the step.

mod forward;
mod key;
mod wire;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use key::Key;

pub(super) use forward::Forward;
pub use key::KeyError;

/// Largest file of a key, bytes.
const LIMIT: u64 = 100 << 10;

/// The agent that is meant when none is named.
const DEFAULT: &str = "default";

/// Who signs for steps.
#[derive(Clone, Debug)]
pub enum Agent {
    /// The agent behind a socket.
    Socket(PathBuf),
    /// kiln itself.
    Keys(Keys),
}

/// Private keys, which nobody outside can look at.
#[derive(Clone, Debug)]
pub struct Keys(Arc<Vec<Key>>);

/// An agent of the command line that is not opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSource {
    /// What `RUN --mount=type=ssh` calls it.
    pub id: String,
    paths: Vec<PathBuf>,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No socket is named, and the environment has none.
    #[error("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")]
    NoSocket,
    /// An id is given twice.
    #[error("invalid duplicate ID {0}")]
    Twice(String),
    /// Several sockets for one id.
    #[error("only single socket allowed")]
    SeveralSockets,
    /// A socket and files of keys for one id.
    #[error("invalid combination of keys and sockets")]
    Mixed,
    /// A socket or file of a key cannot be read.
    #[error("ssh {id}: cannot read `{}`", path.display())]
    Read {
        /// Its id.
        id: String,
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no key that can be used.
    #[error("ssh {id}: failed to parse `{}`: {source}", path.display())]
    Key {
        /// Its id.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: KeyError,
    },
}

impl AgentError {
    /// Whether the command line is wrong, and not what it names.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Twice(_) | Self::SeveralSockets | Self::Mixed)
    }

    /// What may help the user, apart from the message.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Key {
                id,
                path,
                source: KeyError::Encrypted,
            } => Some(format!(
                "add it to an agent with `ssh-add {}`, and pass `--ssh {id}`",
                path.display()
            )),
            _ => None,
        }
    }
}

impl AgentSource {
    /// Reads `ID[=SOCKET|KEY[,KEY]...]`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (id, paths) = text.split_once('=').unwrap_or((text, ""));
        let id = if id.is_empty() { DEFAULT } else { id };
        let paths = paths.split(',').filter(|path| !path.is_empty());
        Self {
            id: id.to_owned(),
            paths: paths.map(PathBuf::from).collect(),
        }
    }

    /// Finds the socket or reads the keys; `socket` is the user's own agent.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn open(&self, socket: Option<PathBuf>) -> Result<Agent, AgentError> {
        let own;
        let paths = match self.paths.as_slice() {
            [] => {
                own = [socket
                    .filter(|path| !path.as_os_str().is_empty())
                    .ok_or(AgentError::NoSocket)?];
                &own[..]
            }
            paths => paths,
        };
        let (mut sockets, mut keys) = (Vec::new(), Vec::new());
        for path in paths {
            let kind = std::fs::metadata(path).map_err(self.unreadable(path))?;
            if kind.file_type().is_socket() {
                sockets.push(path);
            } else {
                keys.push(self.key(path)?);
            }
        }
        match (sockets.as_slice(), keys.is_empty()) {
            ([], _) => Ok(Agent::Keys(Keys(Arc::new(keys)))),
            ([_], false) => Err(AgentError::Mixed),
            // What the path means must not change with the directory of the process.
            ([socket], true) => match std::path::absolute(socket) {
                Ok(socket) => Ok(Agent::Socket(socket)),
                Err(error) => Err(self.unreadable(socket)(error)),
            },
            _ => Err(AgentError::SeveralSockets),
        }
    }

    fn key(&self, path: &Path) -> Result<Key, AgentError> {
        let size = usize::try_from(LIMIT).unwrap_or_default();
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        let read = File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes));
        read.map_err(self.unreadable(path))?;
        let mut key = Key::parse(&bytes).map_err(|source| AgentError::Key {
            id: self.id.clone(),
            path: path.to_owned(),
            source,
        })?;
        if key.comment.is_empty() {
            key.comment = path.display().to_string();
        }
        Ok(key)
    }

    fn unreadable(&self, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
        let (id, path) = (self.id.clone(), path.to_owned());
        move |source| AgentError::Read { id, path, source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn open(text: &str, socket: Option<&Path>) -> Result<Agent, String> {
        let opened = AgentSource::parse(text).open(socket.map(Path::to_owned));
        opened.map_err(|error| error.to_string())
    }

    #[test]
    fn b7_2_an_agent_is_a_socket_or_files() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let _listeners = (
            UnixListener::bind(&one).unwrap(),
            UnixListener::bind(&two).unwrap(),
        );
        let text = |paths: &[&Path]| {
            let paths: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
            format!("id={}", paths.join(","))
        };
        for agent in [open("default", Some(&one)), open(&text(&[&one]), None)] {
            assert!(matches!(agent, Ok(Agent::Socket(path)) if path == one));
        }
        let missing = "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set";
        for (text, socket) in [("default", None), ("id=", Some(Path::new("")))] {
            assert_eq!(open(text, socket).unwrap_err(), missing);
        }
        let several = open(&text(&[&one, &two]), None).unwrap_err();
        assert_eq!(several, "only single socket allowed");
        let none = open("id=/none/at/all", None).unwrap_err();
        assert_eq!(none, "ssh id: cannot read `/none/at/all`");
        let no_key = folder.path().join("three");
        std::fs::write(&no_key, "no key").unwrap();
        let error = open(&text(&[&no_key]), None).unwrap_err();
        assert!(error.ends_with("no private key in PEM"), "{error}");
    }

    #[test]
    fn b7_2_ids_have_a_default() {
        assert_eq!(AgentSource::parse("").id, "default");
        assert_eq!(AgentSource::parse("=/a").id, "default");
        assert_eq!(AgentSource::parse("x=/a,/b").paths.len(), 2);
    }
}
