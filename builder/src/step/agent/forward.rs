//! The socket of a step, and what is passed on from it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use super::wire::{Reader, put_string, read_frame, write_frame};
use super::{Agent, Keys};
use crate::sys::owner::is_kept_for_all;

/// Connections that one socket serves at once.
const CONNECTIONS: usize = 32;

/// Numbers of requests and answers (RFC 9987).
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// A socket that an agent answers until this is dropped.
#[derive(Debug)]
pub(in crate::step) struct Forward {
    path: PathBuf,
    task: JoinHandle<()>,
}

/// The two requests that are passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    /// Which keys are there?
    List,
    /// Sign this.
    Sign {
        /// The public key.
        key: Vec<u8>,
        data: Vec<u8>,
        flags: u32,
    },
}

impl Forward {
    /// Makes a socket in a folder that nobody else may enter.
    ///
    /// # Errors
    /// When the socket cannot be made, or when this is no thread of an asynchronous runtime.
    pub(in crate::step) fn start(
        agent: &Agent,
        folder: &Path,
        name: &str,
        mode: u32,
        owner: (u32, u32),
    ) -> io::Result<Self> {
        let path = folder.join(name);
        // An address has room for 107 bytes; by way of the descriptor it is always short.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::open(folder, flags, Mode::empty())?;
        let short = format!("/proc/self/fd/{}/{name}", place.as_raw_fd());
        let listener = net::UnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        // With a single id every user of a step is the same to the disk.
        if !is_kept_for_all() {
            chown(&path, Some(owner.0), Some(owner.1))?;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let _entered = runtime.enter();
        let listener = UnixListener::from_std(listener)?;
        let task = runtime.spawn(serve(listener, agent.clone()));
        Ok(Self { path, task })
    }

    /// The socket.
    pub(in crate::step) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, agent: Agent) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((client, _)) => drop(connections.spawn(talk(client, agent.clone()))),
                // No descriptor is left: others may be freed.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one client until it is done, or says what is no frame.
async fn talk(mut client: UnixStream, agent: Agent) -> io::Result<()> {
    let mut upstream = None;
    while let Some(frame) = read_frame(&mut client).await? {
        let answer = match (Request::parse(&frame), &agent) {
            (None, _) => None,
            (Some(request), Agent::Keys(keys)) => keys.answer(request).await,
            // An agent that is gone is one that refuses.
            (Some(request), Agent::Socket(socket)) => {
                ask(&mut upstream, socket, &request).await.ok().flatten()
            }
        };
        write_frame(&mut client, &answer.unwrap_or_else(|| vec![FAILURE])).await?;
    }
    Ok(())
}

/// Asks the agent behind a socket; `None` for an answer that is none to the question.
async fn ask(
    upstream: &mut Option<UnixStream>,
    socket: &Path,
    request: &Request,
) -> io::Result<Option<Vec<u8>>> {
    let stream = match upstream {
        Some(stream) => stream,
        None => upstream.insert(UnixStream::connect(socket).await?),
    };
    write_frame(stream, &request.encode()).await?;
    let answer = read_frame(stream).await?;
    let expected = match request {
        Request::List => IDENTITIES_ANSWER,
        Request::Sign { .. } => SIGN_RESPONSE,
    };
    Ok(answer.filter(|answer| answer.first() == Some(&expected)))
}

impl Request {
    /// Reads a frame; `None` for all that is not passed on.
    fn parse(frame: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(frame);
        let request = match reader.byte()? {
            REQUEST_IDENTITIES => Self::List,
            SIGN_REQUEST => Self::Sign {
                key: reader.string()?.to_vec(),
                data: reader.string()?.to_vec(),
                flags: reader.number()?,
            },
            _ => return None,
        };
        reader.rest().is_empty().then_some(request)
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::List => vec![REQUEST_IDENTITIES],
            Self::Sign { key, data, flags } => {
                let mut frame = vec![SIGN_REQUEST];
                put_string(&mut frame, key);
                put_string(&mut frame, data);
                frame.extend(flags.to_be_bytes());
                frame
            }
        }
    }
}

impl Keys {
    async fn answer(&self, request: Request) -> Option<Vec<u8>> {
        match request {
            Request::List => {
                let count = u32::try_from(self.0.len()).ok()?;
                let mut answer = vec![IDENTITIES_ANSWER];
                answer.extend(count.to_be_bytes());
                for key in self.0.iter() {
                    put_string(&mut answer, &key.public);
                    put_string(&mut answer, key.comment.as_bytes());
                }
                Some(answer)
            }
            Request::Sign { key, data, flags } => {
                let keys = self.clone();
                let sign = move || {
                    let known = keys.0.iter().find(|known| known.public == key)?;
                    known.sign(&data, flags)
                };
                let signature = tokio::task::spawn_blocking(sign).await.ok()??;
                let mut answer = vec![SIGN_RESPONSE];
                put_string(&mut answer, &signature);
                Some(answer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b2_only_listing_and_signing_are_passed_on() {
        let sign = Request::Sign {
            key: b"key".to_vec(),
            data: b"data".to_vec(),
            flags: 4,
        };
        for request in [Request::List, sign] {
            assert_eq!(Request::parse(&request.encode()), Some(request));
        }
        // Adding, removing and locking keys, extensions, and what is cut or too long.
        for number in (0..=u8::MAX).filter(|number| *number != REQUEST_IDENTITIES) {
            assert_eq!(Request::parse(&[number]), None, "{number}");
        }
        assert_eq!(Request::parse(&[REQUEST_IDENTITIES, 0]), None);
        assert_eq!(Request::parse(&[SIGN_REQUEST, 0, 0, 0, 9, 1]), None);
        assert_eq!(Request::parse(&[]), None);
    }

    /// An agent that answers every question with the same bytes.
    async fn liar(listener: UnixListener, answer: Vec<u8>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            while let Ok(Some(_)) = read_frame(&mut stream).await {
                drop(write_frame(&mut stream, &answer).await);
            }
        }
    }

    #[tokio::test]
    async fn b2_a_client_sees_failures_and_nothing_else_of_a_bad_agent() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        for (answer, passed) in [
            (vec![IDENTITIES_ANSWER, 0, 0, 0, 0], true),
            (vec![SIGN_RESPONSE, 0, 0, 0, 0], false),
            (vec![6], false),
        ] {
            drop(std::fs::remove_file(&real));
            let listener = UnixListener::bind(&real).unwrap();
            let agent = tokio::spawn(liar(listener, answer.clone()));
            let socket = Agent::Socket(real.clone());
            let name = format!("{passed}{}", answer.len());
            let ids = (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            );
            let forward = Forward::start(&socket, folder.path(), &name, 0o600, ids).unwrap();
            let mut client = UnixStream::connect(forward.path()).await.unwrap();
            write_frame(&mut client, &[REQUEST_IDENTITIES])
                .await
                .unwrap();
            let received = read_frame(&mut client).await.unwrap().unwrap();
            assert_eq!(received, if passed { answer } else { vec![FAILURE] });
            write_frame(&mut client, &[19]).await.unwrap();
            assert_eq!(read_frame(&mut client).await.unwrap().unwrap(), [FAILURE]);
            agent.abort();
        }
    }

    #[tokio::test]
    async fn b2_an_agent_that_is_gone_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let socket = Agent::Socket(folder.path().join("none"));
        let mut upstream = None;
        let Agent::Socket(path) = &socket else {
            unreachable!()
        };
        assert!(ask(&mut upstream, path, &Request::List).await.is_err());
    }
}
