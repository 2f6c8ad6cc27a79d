//! A docker-registry on a loopback port.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::hold::Hold;
use crate::process;

/// How long a registry may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(20);

/// A registry that runs as long as this value lives.
#[derive(Debug)]
pub(crate) struct Registry {
    address: String,
    _hold: Hold,
}

impl Registry {
    /// Starts a registry that keeps its images in `storage` and waits until it answers.
    pub(crate) fn start(storage: &Path) -> Result<Self> {
        std::fs::create_dir_all(storage)
            .with_context(|| format!("cannot make `{}`", storage.display()))?;
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\n\
             log: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{address}'}}\n",
            storage.display()
        );
        let log = storage.join(format!("log-{port}"));
        // the configuration comes through a pipe, so that two registries on one storage cannot
        // read each other's
        let hold = Hold::new(
            "printf '%s' \"$1\" | docker-registry serve /dev/stdin >\"$2\" 2>&1 & pid=$!\n\
             cat >/dev/null; kill \"$pid\"; wait \"$pid\"; rm -f -- \"$2\"",
            &[&config, &log.to_string_lossy()],
        )?;
        let started = Instant::now();
        while !answers(&address) {
            if started.elapsed() > PATIENCE {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "docker-registry does not answer on `{address}`\n{}",
                    process::tail(&text, 20)
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            address,
            _hold: hold,
        })
    }

    /// Returns the registry's `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?;
    Ok(listener.local_addr()?.port())
}

fn answers(address: &str) -> bool {
    let request = format!("GET /v2/ HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split_whitespace().nth(1) == Some("200"))
}
