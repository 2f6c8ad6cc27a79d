//! Credential helpers: programs that keep the credentials (D2.5).

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{CredentialsError, Login, Secret};

/// How long a helper may take; some ask a cloud, some ask the user.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of an answer accepted.
const MAX_ANSWER: u64 = 1 << 20;
/// Bytes of what a helper says about a failure.
const MAX_MESSAGE: usize = 4096;
/// What helpers say when they know of no credentials.
const NOT_FOUND: &str = "credentials not found in native keychain";

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

/// Asks a helper for the credentials of a server; `None` when it knows of none.
pub(super) async fn get(
    helper: &str,
    server: &str,
    patience: Duration,
) -> Result<Option<Login>, Failure> {
    // A name with a slash would be run from wherever it leads.
    if helper.contains('/') {
        return Err(Failure::NotInstalled);
    }
    ask(helper, helper, server, patience).await
}

/// The same by the path of a program.
pub(super) async fn ask(
    program: &str,
    helper: &str,
    server: &str,
    patience: Duration,
) -> Result<Option<Login>, Failure> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Failure::NotInstalled,
            _ => Failure::Error(CredentialsError::HelperStart {
                helper: helper.to_owned(),
                source,
            }),
        })?;
    let mut complaint = Vec::new();
    let talk = talk(&mut child, server, &mut complaint);
    match tokio::time::timeout(patience, talk).await {
        Err(_) => {
            let said = readable(&complaint);
            let colon = if said.is_empty() { "" } else { ": " };
            Err(Failure::Error(CredentialsError::HelperTimeout {
                helper: helper.to_owned(),
                server: server.to_owned(),
                seconds: patience.as_secs(),
                message: format!("{colon}{said}"),
            }))
        }
        Ok(Err(source)) => Err(Failure::Error(CredentialsError::HelperStart {
            helper: helper.to_owned(),
            source,
        })),
        Ok(Ok((success, answer))) => {
            read_answer(helper, server, success, &answer, &complaint).map_err(Failure::Error)
        }
    }
}

/// Tells a helper the server and hears it out; whether it succeeded, and its answer.
async fn talk(
    child: &mut Child,
    server: &str,
    complaint: &mut Vec<u8>,
) -> io::Result<(bool, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A helper that never reads has its own reasons; its status tells.
            stdin.write_all(server.as_bytes()).await.ok();
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

fn read_answer(
    helper: &str,
    server: &str,
    success: bool,
    answer: &[u8],
    complaint: &[u8],
) -> Result<Option<Login>, CredentialsError> {
    if !success {
        let said = readable(answer);
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        let parts = [said, readable(complaint)];
        let parts: Vec<&str> = parts
            .iter()
            .map(String::as_str)
            .filter(|s| !s.is_empty())
            .collect();
        let message = match parts[..] {
            [] => "it gave no reason".to_owned(),
            _ => parts.join(": "),
        };
        return Err(CredentialsError::HelperFailed {
            helper: helper.to_owned(),
            server: server.to_owned(),
            message,
        });
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(answer) else {
        return Err(CredentialsError::HelperAnswer {
            helper: helper.to_owned(),
            server: server.to_owned(),
        });
    };
    Ok(match (answer.username.as_str(), answer.secret.as_str()) {
        ("", "") => None,
        ("<token>", _) => Some(Login::IdentityToken(Secret::new(answer.secret))),
        _ => Some(Login::Basic {
            username: answer.username,
            password: Secret::new(answer.secret),
        }),
    })
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
