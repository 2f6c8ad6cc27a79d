//! The `git` program: started with nothing of this machine's configuration, watched, and ended
//! with all that it has started.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_registry::credentials::Secret;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::GitError;
use crate::runtime::Cancel;
use crate::sys::ids;

/// Bytes of an answer that are read.
const ANSWER: usize = 1 << 20;

/// Bytes of its last words that are kept.
const LAST_WORDS: usize = 4 << 10;

/// Variables that git and what it starts may see: where programs, keys, certificates and proxies
/// are. No other one: `GIT_*` would change what it does.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SSH_AUTH_SOCK",
    "GIT_SSH_COMMAND",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];

/// What git is told besides. Commands that a repository could name (filters, hooks, monitors) are
/// run only where a configuration says so, and there is none but this.
const SETTINGS: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    ("core.fileMode", "true"),
    ("credential.helper", ""),
    ("advice.detachedHead", "false"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("transfer.bundleURI", "false"),
];

/// How git reaches other machines; `file` would reach into this one.
const PROTOCOLS: &str = "https:http:git:ssh";

/// Git, in one folder.
pub(super) struct Program<'a> {
    name: &'static str,
    folder: &'a Path,
    cancel: &'a Cancel,
    patience: Duration,
    settings: Vec<(String, String)>,
    secret: Option<Secret>,
}

impl<'a> Program<'a> {
    pub(super) fn new(folder: &'a Path, cancel: &'a Cancel, patience: Duration) -> Self {
        let settings = SETTINGS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self {
            name: "git",
            folder,
            cancel,
            patience,
            settings: settings.collect(),
            secret: None,
        }
    }

    /// Gives a login to the host of an address and to no other; on the command line, in the
    /// address, everybody on this machine could read it.
    pub(super) fn with_login(mut self, url: &str, login: Option<&(String, Secret)>) -> Self {
        if let Some((user, password)) = login {
            let end = url.find("://").map_or(0, |scheme| scheme + 3);
            let host = url[end..].find('/').map_or(url.len(), |slash| end + slash);
            let pair = STANDARD.encode(format!("{user}:{}", password.expose()));
            self.settings.push((
                format!("http.{}/.extraHeader", &url[..host]),
                format!("Authorization: Basic {pair}"),
            ));
            // A token may stand where the user does.
            self.secret = Some(match password.expose() {
                "" => Secret::new(user),
                _ => password.clone(),
            });
        }
        self
    }

    /// Runs it to its end and gives what it printed.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String, GitError> {
        let action = arguments.first().copied().unwrap_or_default();
        let mut child = self.command(arguments).spawn().map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound && self.folder.exists() {
                GitError::NoProgram
            } else {
                GitError::Run(error)
            }
        })?;
        let watched = self.watch(&mut child, action);
        if watched.is_err() {
            kill(&child);
        }
        let status = child.wait().map_err(GitError::Run)?;
        let (answer, last_words) = watched?;
        if status.success() {
            return String::from_utf8(answer).map_err(|_| GitError::Answer("output"));
        }
        let words = String::from_utf8_lossy(&last_words);
        Err(GitError::Failed {
            action: action.to_owned(),
            message: self.message(&words, status.code()),
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.name);
        command
            .args(arguments)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, to be ended as one.
            .process_group(0)
            .env_clear()
            .envs(kept())
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TEMPLATE_DIR", "")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
            .env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        if let Some(parent) = self.folder.parent() {
            // The store may itself lie in somebody's repository.
            command.env("GIT_CEILING_DIRECTORIES", parent);
        }
        if env::var_os("GIT_SSH_COMMAND").is_none() {
            let home = env::var("HOME").ok();
            let home = home.filter(|_| !ids::in_initial_namespace().unwrap_or(true));
            command.env("GIT_SSH_COMMAND", ssh(home.as_deref()));
        }
        if env::var_os("GIT_SSL_CAINFO").is_none()
            && let Some(bundle) = env::var_os("SSL_CERT_FILE")
        {
            // Where kiln itself finds whom to trust, for which git has a name of its own.
            command.env("GIT_SSL_CAINFO", bundle);
        }
        for (number, (name, value)) in self.settings.iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{number}"), name)
                .env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        command
    }

    /// Reads what it prints until it ends: all of the answer, the last of the rest.
    fn watch(&self, child: &mut Child, action: &str) -> Result<(Vec<u8>, Vec<u8>), GitError> {
        let mut streams = [
            child
                .stdout
                .take()
                .map(|pipe| File::from(OwnedFd::from(pipe))),
            child
                .stderr
                .take()
                .map(|pipe| File::from(OwnedFd::from(pipe))),
        ];
        let ended = pid(child)
            .map_or(Err(io::ErrorKind::NotFound.into()), |pid| {
                Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
            })
            .map_err(GitError::Run)?;
        let (mut answer, mut words) = (Vec::new(), VecDeque::new());
        let mut buffer = [0; 8 << 10];
        loop {
            let ready = self.wait(&streams, ended.as_fd(), action)?;
            for (number, stream) in streams.iter_mut().enumerate() {
                let Some(file) = stream.as_mut().filter(|_| ready.streams[number]) else {
                    continue;
                };
                let count = file.read(&mut buffer).map_err(GitError::Run)?;
                match (count, number) {
                    (0, _) => *stream = None,
                    (_, 0) => answer.extend_from_slice(&buffer[..count]),
                    _ => keep_last(&mut words, &buffer[..count]),
                }
            }
            if answer.len() > ANSWER {
                return Err(GitError::TooLong {
                    action: action.to_owned(),
                    limit: ANSWER,
                });
            }
            // What it started may live on and hold the streams, as a master of ssh connections.
            if ready.ended && !ready.streams.contains(&true) {
                return Ok((answer, words.into()));
            }
        }
    }

    /// Waits until there is something to read or it has ended.
    fn wait(
        &self,
        streams: &[Option<File>; 2],
        ended: BorrowedFd<'_>,
        action: &str,
    ) -> Result<Ready, GitError> {
        // A closed stream has its place taken by the token, which is looked at anyway.
        let stream = |number: usize| match &streams[number] {
            Some(file) => file.as_fd(),
            None => self.cancel.as_fd(),
        };
        let mut polled = [self.cancel.as_fd(), ended, stream(0), stream(1)]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let seconds = self.patience.as_secs();
        let timeout = Timespec {
            tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
            tv_nsec: i64::from(self.patience.subsec_nanos()),
        };
        loop {
            match poll(&mut polled, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(GitError::Run(error.into())),
                Ok(0) => {
                    return Err(GitError::Silent {
                        action: action.to_owned(),
                        seconds,
                    });
                }
                Ok(_) => break,
            }
        }
        let [cancelled, ended, out, err] = polled.map(|fd| !fd.revents().is_empty());
        if cancelled {
            return Err(GitError::Cancelled);
        }
        Ok(Ready {
            ended,
            streams: [out && streams[0].is_some(), err && streams[1].is_some()],
        })
    }

    /// The last words without progress, and without the password in case a server repeats it.
    fn message(&self, words: &str, code: Option<i32>) -> String {
        let lines: Vec<&str> = words
            .lines()
            .filter_map(|line| line.trim_end().rsplit('\r').next())
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let is_serious = |line: &&str| {
            ["fatal:", "error:", "ssh:"]
                .iter()
                .any(|start| line.starts_with(start))
                || line.contains("Permission denied")
                || line.contains("Host key verification failed")
        };
        let serious: Vec<&str> = lines.iter().copied().filter(is_serious).collect();
        let chosen = if serious.is_empty() { lines } else { serious };
        let tail = chosen.len().saturating_sub(3);
        let text = chosen[tail..].join("; ");
        let text = match &self.secret {
            Some(secret) if !secret.expose().is_empty() => text.replace(secret.expose(), "xxxxx"),
            _ => text,
        };
        match (text.as_str(), code) {
            ("", Some(code)) => format!("exit code {code}"),
            ("", None) => "killed by a signal".to_owned(),
            _ => text,
        }
    }
}

/// What [`Program::wait`] has seen.
struct Ready {
    ended: bool,
    streams: [bool; 2],
}

fn kept() -> impl Iterator<Item = (&'static str, OsString)> {
    KEPT.iter()
        .filter_map(|name| Some((*name, env::var_os(name)?)))
}

fn keep_last(words: &mut VecDeque<u8>, more: &[u8]) {
    words.extend(more);
    let surplus = words.len().saturating_sub(LAST_WORDS);
    drop(words.drain(..surplus));
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

/// Ends it with all that it has started.
fn kill(child: &Child) {
    if let Some(group) = pid(child) {
        // Fails only when nothing of the group lives any more.
        _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// How git starts ssh, which goes by the home of the user that it takes us for: in a user namespace
/// that is root, and its files are out of reach. `home` is where the files are then.
fn ssh(home: Option<&str>) -> String {
    let mut command = "ssh -o BatchMode=yes".to_owned();
    // git gives the text to a shell, and ssh takes an option apart again.
    let plain = |text: &&str| {
        text.starts_with('/')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
    };
    let Some(home) = home.filter(plain) else {
        return command;
    };
    let folder = Path::new(home).join(".ssh");
    let config = folder.join("config");
    if config.is_file() {
        command += &format!(" -F {}", config.display());
    }
    command += &format!(" -o UserKnownHostsFile={}/known_hosts", folder.display());
    for key in ["id_ed25519", "id_ecdsa", "id_rsa"] {
        let key = folder.join(key);
        if key.is_file() {
            command += &format!(" -o IdentityFile={}", key.display());
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell<'a>(folder: &'a Path, cancel: &'a Cancel, patience: Duration) -> Program<'a> {
        Program {
            name: "sh",
            ..Program::new(folder, cancel, patience)
        }
    }

    #[test]
    fn what_it_prints_and_how_it_ends_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = Cancel::new().unwrap();
        let login = ("me".to_owned(), Secret::new("p4ss"));
        let sh = shell(folder.path(), &cancel, Duration::from_secs(20))
            .with_login("https://h/x.git", Some(&login));
        assert_eq!(sh.run(&["-c", "echo out; echo err >&2"]).unwrap(), "out\n");
        // one that lives on with the streams in its hands does not hold up the end
        let begun = Instant::now();
        assert_eq!(sh.run(&["-c", "echo out; sleep 30 &"]).unwrap(), "out\n");
        assert!(begun.elapsed() < Duration::from_secs(15));
        let script = "echo 'remote: 1%\r2%' >&2; echo fatal: no p4ss for you >&2; exit 5";
        let error = sh.run(&["-c", script]).unwrap_err();
        assert_eq!(error.to_string(), "git -c: fatal: no xxxxx for you");
        let error = sh.run(&["-c", "exit 7"]).unwrap_err();
        assert_eq!(error.to_string(), "git -c: exit code 7");
        let error = sh.run(&["-c", "yes"]).unwrap_err();
        assert!(matches!(error, GitError::TooLong { .. }), "{error}");
        // the login reaches it, for the one host
        let found = sh.run(&["-c", "env | grep extraHeader"]).unwrap();
        assert!(found.ends_with("=http.https://h/.extraHeader\n"), "{found}");
    }

    #[test]
    fn ssh_is_told_where_the_files_of_the_user_are() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        std::fs::create_dir(home.path().join(".ssh")).unwrap();
        std::fs::write(home.path().join(".ssh/id_ed25519"), "").unwrap();
        assert_eq!(
            ssh(Some(path)),
            format!(
                "ssh -o BatchMode=yes -o UserKnownHostsFile={path}/.ssh/known_hosts -o \
                 IdentityFile={path}/.ssh/id_ed25519"
            )
        );
        std::fs::write(home.path().join(".ssh/config"), "").unwrap();
        assert!(ssh(Some(path)).contains(&format!(" -F {path}/.ssh/config ")));
        for none in [
            None,
            Some("/home/a b"),
            Some("/x';reboot;'"),
            Some("relative"),
        ] {
            assert_eq!(ssh(none), "ssh -o BatchMode=yes");
        }
    }

    #[test]
    fn a_silent_one_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = Cancel::new().unwrap();
        let sh = shell(folder.path(), &cancel, Duration::from_millis(200));
        let begun = Instant::now();
        let error = sh.run(&["-c", "sleep 60 & sleep 60"]).unwrap_err();
        assert!(matches!(error, GitError::Silent { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn cancelling_ends_it_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = Cancel::new().unwrap();
        let sh = shell(folder.path(), &cancel, Duration::from_secs(60));
        let script = "sleep 61 & echo $! >child; wait";
        let error = std::thread::scope(|scope| {
            let running = scope.spawn(|| sh.run(&["-c", script]));
            let file = folder.path().join("child");
            while std::fs::read_to_string(&file)
                .unwrap_or_default()
                .is_empty()
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            cancel.cancel();
            running.join().unwrap().unwrap_err()
        });
        assert!(matches!(error, GitError::Cancelled), "{error}");
        let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.unwrap_or_default()
        };
        let begun = Instant::now();
        while !state().is_empty() && !state().contains(") Z ") {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = Cancel::new().unwrap();
        let git = Program {
            name: "no-such-program-here",
            ..Program::new(folder.path(), &cancel, Duration::from_secs(1))
        };
        let error = git.run(&["version"]).unwrap_err();
        assert!(matches!(error, GitError::NoProgram), "{error}");
        assert!(error.to_string().contains("`git` is not installed"));
    }
}
