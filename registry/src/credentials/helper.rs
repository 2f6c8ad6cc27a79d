//! Credential helpers: programs that keep the credentials (D2.5).

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use super::{CredentialsError, Login, Secret};

/// How long a helper may take; some ask a cloud, some ask the user.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of an answer accepted.
const MAX_ANSWER: u64 = 1 << 20;
/// Bytes of what a helper says about a failure.
const MAX_MESSAGE: usize = 4096;
/// What helpers say when they know of no credentials.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The user whose secret is an identity token.
pub(super) const TOKEN_USER: &str = "<token>";

/// Why a helper gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no such program.
    NotInstalled,
    /// Anything else.
    Error(CredentialsError),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// A helper, and what it is to be asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Helper<'a> {
    /// What to call it in a message.
    pub(super) name: &'a str,
    /// What to run.
    pub(super) program: &'a str,
    /// The registry as helpers know it.
    pub(super) server: &'a str,
    /// How long to wait.
    pub(super) patience: Duration,
}

/// What a helper answered.
#[derive(Debug)]
struct Heard {
    success: bool,
    answer: Zeroizing<Vec<u8>>,
    complaint: String,
}

/// What a helper has for a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The credentials; `None` when it knows of none.
    pub(super) login: Option<Login>,
    /// What it said besides, on the standard error stream.
    pub(super) said: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    username: &'a str,
    secret: &'a str,
}

impl<'a> Helper<'a> {
    /// A helper that is searched in `PATH`.
    pub(super) fn new(name: &'a str, server: &'a str) -> Self {
        Self {
            name,
            program: name,
            server,
            patience: PATIENCE,
        }
    }

    /// Asks for the credentials of the server.
    pub(super) async fn get(&self) -> Result<Kept, Failure> {
        let heard = self.ask("get", self.server.as_bytes()).await?;
        let said = heard.complaint.clone();
        let login = self.read_login(&heard).map_err(Failure::Error)?;
        Ok(Kept { login, said })
    }

    /// Has the credentials of the server kept.
    pub(super) async fn store(&self, username: &str, secret: &Secret) -> Result<(), Failure> {
        let question = Question {
            server_url: self.server,
            username,
            secret: secret.expose(),
        };
        let question = serde_json::to_vec(&question).map(Zeroizing::new);
        let question = question.map_err(|error| self.not_started(error.into()))?;
        let heard = self.ask("store", &question).await?;
        self.check(&heard).map_err(Failure::Error)
    }

    /// Has the credentials of the server forgotten; whether there were any.
    pub(super) async fn erase(&self) -> Result<bool, Failure> {
        if self.get().await?.login.is_none() {
            return Ok(false);
        }
        let heard = self.ask("erase", self.server.as_bytes()).await?;
        self.check(&heard).map_err(Failure::Error)?;
        Ok(true)
    }

    async fn ask(&self, verb: &str, question: &[u8]) -> Result<Heard, Failure> {
        // A name with a slash would be run from wherever it leads.
        if self.name.contains('/') {
            return Err(Failure::NotInstalled);
        }
        let mut child = Command::new(self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Failure::NotInstalled,
                _ => self.not_started(source),
            })?;
        let mut complaint = Vec::new();
        let talk = talk(&mut child, question, &mut complaint);
        match tokio::time::timeout(self.patience, talk).await {
            Err(_) => {
                let said = readable(&complaint);
                let colon = if said.is_empty() { "" } else { ": " };
                Err(Failure::Error(CredentialsError::HelperTimeout {
                    helper: self.name.to_owned(),
                    server: self.server.to_owned(),
                    seconds: self.patience.as_secs(),
                    message: format!("{colon}{said}"),
                }))
            }
            Ok(Err(source)) => Err(self.not_started(source)),
            Ok(Ok((success, answer))) => Ok(Heard {
                success,
                answer: Zeroizing::new(answer),
                complaint: readable(&complaint),
            }),
        }
    }

    fn not_started(&self, source: io::Error) -> Failure {
        Failure::Error(CredentialsError::HelperStart {
            helper: self.name.to_owned(),
            source,
        })
    }

    /// Makes an error of a failure, with what the helper said.
    fn check(&self, heard: &Heard) -> Result<(), CredentialsError> {
        if heard.success {
            return Ok(());
        }
        let parts = [readable(&heard.answer), heard.complaint.clone()];
        let parts: Vec<&str> = parts
            .iter()
            .map(String::as_str)
            .filter(|s| !s.is_empty())
            .collect();
        let message = match parts[..] {
            [] => "it gave no reason".to_owned(),
            _ => parts.join(": "),
        };
        Err(CredentialsError::HelperFailed {
            helper: self.name.to_owned(),
            server: self.server.to_owned(),
            message,
        })
    }

    fn read_login(&self, heard: &Heard) -> Result<Option<Login>, CredentialsError> {
        if !heard.success && readable(&heard.answer).contains(NOT_FOUND) {
            return Ok(None);
        }
        self.check(heard)?;
        let Ok(answer) = serde_json::from_slice::<Answer>(&heard.answer) else {
            return Err(CredentialsError::HelperAnswer {
                helper: self.name.to_owned(),
                server: self.server.to_owned(),
            });
        };
        Ok(match (answer.username.as_str(), answer.secret.as_str()) {
            ("", "") => None,
            (TOKEN_USER, _) => Some(Login::IdentityToken(Secret::new(answer.secret))),
            _ => Some(Login::Basic {
                username: answer.username,
                password: Secret::new(answer.secret),
            }),
        })
    }
}

/// Tells a helper what is wanted and hears it out; whether it succeeded, and its answer.
async fn talk(
    child: &mut Child,
    question: &[u8],
    complaint: &mut Vec<u8>,
) -> io::Result<(bool, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A helper that never reads has its own reasons; its status tells.
            stdin.write_all(question).await.ok();
        }
    };
    let mut answer = Vec::new();
    let (_, heard, complained) =
        tokio::join!(ask, hear(stdout, &mut answer), hear(stderr, complaint));
    heard.and(complained)?;
    Ok((child.wait().await?.success(), answer))
}

/// Reads a stream to its end, and keeps its beginning.
async fn hear(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut stream) = stream else {
        return Ok(());
    };
    (&mut stream).take(MAX_ANSWER).read_to_end(kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}

/// What a program said, as one line that is safe to print.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_MESSAGE)]);
    let words: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}
