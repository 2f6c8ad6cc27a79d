//! Servers for what builds fetch: a web server over a folder, and git's own server.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::env::{TestEnv, free_port};
use crate::http::{Http, reply};
use crate::server::Asked;
use crate::traces::wait_until;

/// When all files of the web server were changed last, as HTTP says it and in seconds since 1970.
const LAST_MODIFIED: &str = "Tue, 15 Nov 1994 12:45:26 GMT";
pub(crate) const MODIFIED: u64 = 784_903_526;

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    /// The value of `Authorization` without which nothing is given.
    authorization: Option<String>,
    asked: Mutex<Vec<String>>,
    queries: Mutex<Vec<String>>,
}

/// A web server that gives the files of a folder, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Web {
    pub(crate) address: String,
    shared: Arc<Shared>,
    _server: Http,
}

impl Web {
    /// Files below a folder `undated` have no time of their last change.
    pub(crate) fn start(folder: PathBuf, authorization: Option<&str>) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let shared = Arc::new(Shared {
            folder,
            authorization: authorization.map(str::to_owned),
            asked: Mutex::default(),
            queries: Mutex::default(),
        });
        let inner = Arc::clone(&shared);
        let server = Http::start(move |asked, stream| answer(&inner, asked, stream));
        Self {
            address: server.address.clone(),
            shared,
            _server: server,
        }
    }

    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.shared.folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// The paths that were asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// What stood behind the paths that were asked for.
    pub(crate) fn queries(&self) -> Vec<String> {
        self.shared.queries.lock().unwrap().clone()
    }
}

fn answer(shared: &Shared, asked: &Asked, stream: &TcpStream) -> std::io::Result<()> {
    let path = asked.path.as_str();
    shared.asked.lock().unwrap().push(path.to_owned());
    shared.queries.lock().unwrap().push(asked.query.clone());
    let file = match path {
        "/" => "index",
        path => path.trim_start_matches('/'),
    };
    let refused = shared.authorization.as_deref();
    let refused = refused.is_some_and(|wanted| asked.header("authorization") != Some(wanted));
    let (status, body) = if refused {
        (401, Vec::new())
    } else if path.starts_with("/git/") {
        return git_backend(shared, asked, stream);
    } else {
        match fs::read(shared.folder.join(file)) {
            Ok(content) => (200, content),
            Err(_) => (404, b"nothing there".to_vec()),
        }
    };
    let headers: &[_] = match path.contains("/undated/") {
        true => &[],
        false => &[("Last-Modified", LAST_MODIFIED)],
    };
    reply(asked, stream, status, headers, &body)
}

/// Lets git's own program answer, which speaks the protocol that real servers speak.
fn git_backend(shared: &Shared, asked: &Asked, mut stream: &TcpStream) -> std::io::Result<()> {
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &shared.folder)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", &asked.method)
        .env("PATH_INFO", asked.path.trim_start_matches("/git"))
        .env("QUERY_STRING", &asked.query)
        .env("CONTENT_LENGTH", asked.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    for (name, variable) in [
        ("content-type", "CONTENT_TYPE"),
        ("content-encoding", "HTTP_CONTENT_ENCODING"),
        ("git-protocol", "GIT_PROTOCOL"),
    ] {
        if let Some(value) = asked.header(name) {
            command.env(variable, value);
        }
    }
    let mut child = command.spawn()?;
    child.stdin.take().unwrap().write_all(&asked.body)?;
    let output = child.wait_with_output()?.stdout;
    let status = match output.strip_prefix(b"Status: ") {
        Some(rest) => String::from_utf8_lossy(rest)
            .lines()
            .next()
            .unwrap()
            .to_owned(),
        None => "200 OK".to_owned(),
    };
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n")?;
    stream.write_all(&output)
}

/// Git's own server on a loopback port, over the folder of repositories of an environment.
#[derive(Debug)]
pub(crate) struct GitServer {
    pub(crate) address: String,
    log: PathBuf,
    guard: Child,
}

impl GitServer {
    pub(crate) fn start(env: &TestEnv) -> Self {
        let folder = env.path("repositories");
        fs::create_dir_all(&folder).unwrap();
        let (port, log) = (free_port(), env.path("git-daemon.log"));
        // the shell ends the server when its standard input does: also when the tests are killed
        let guard = Command::new("sh")
            .arg("-c")
            .arg(
                "git daemon --verbose --export-all --listen=127.0.0.1 --port=\"$2\" \
                 --base-path=\"$1\" >\"$3\" 2>&1 </dev/null & pid=$!\n\
                 exec 2>/dev/null; cat >/dev/null; kill \"$pid\"; wait \"$pid\"",
            )
            .arg("sh")
            .arg(&folder)
            .arg(port.to_string())
            .arg(&log)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let address = format!("127.0.0.1:{port}");
        wait_until("git daemon", || TcpStream::connect(&address).ok());
        Self {
            address,
            log,
            guard,
        }
    }

    pub(crate) fn url(&self, repository: &str) -> String {
        format!("git://{}/{repository}", self.address)
    }

    /// How often a repository was asked for something.
    pub(crate) fn asked(&self, repository: &str) -> usize {
        let log = fs::read_to_string(&self.log).unwrap();
        let request = format!("/{repository}'");
        log.lines()
            .filter(|line| line.contains("Request upload-pack") && line.contains(&request))
            .count()
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
    }
}

/// A repository that the test writes to, below the folder that [`GitServer`] serves.
#[derive(Debug)]
pub(crate) struct Repository<'a> {
    env: &'a TestEnv,
    pub(crate) folder: PathBuf,
    commits: std::cell::Cell<u64>,
}

/// Time of the first commit of a repository; each further one is a day later.
pub(crate) const FIRST_COMMIT: u64 = 1_000_000_000;

impl<'a> Repository<'a> {
    pub(crate) fn new(env: &'a TestEnv, name: &str) -> Self {
        let folder = env.path("repositories").join(name);
        fs::create_dir_all(&folder).unwrap();
        let repository = Self {
            env,
            folder,
            commits: std::cell::Cell::new(0),
        };
        repository.git(&["init", "-q", "-b", "main"]);
        repository
    }

    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.join(path)
    }

    pub(crate) fn file(&self, path: &str, content: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let date = format!("{} +0000", FIRST_COMMIT + 86_400 * self.commits.get());
        let mut run = self.env.program("git", ["-C"]).arg(&self.folder);
        // submodules of repositories beside this one
        run = run.args(["-c", "protocol.file.allow=always"]);
        for name in ["AUTHOR", "COMMITTER"] {
            run = run
                .env(&format!("GIT_{name}_NAME"), "test")
                .env(&format!("GIT_{name}_EMAIL"), "test@example.com")
                .env(&format!("GIT_{name}_DATE"), &date);
        }
        let output = run.args(arguments.iter().copied()).success();
        output.stdout.trim().to_owned()
    }

    /// Commits all that is there, and gives the commit.
    pub(crate) fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.commits.set(self.commits.get() + 1);
        self.git(&["rev-parse", "HEAD"])
    }
}
