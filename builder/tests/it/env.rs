//! The harness: a folder with a build context and a store, kiln in it, registries beside it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::people::{self, Person};

/// How long a registry may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(30);

/// A [`TestEnv`]; says so and returns from the test where root or one of the named programs is
/// missing, which with `CI` set is a failure.
macro_rules! test_env {
    ($($program:literal),* $(,)?) => {
        match $crate::env::missing(&[$($program),*]) {
            None => $crate::env::TestEnv::new(),
            Some(missing) => {
                $crate::env::skip(&missing);
                return;
            }
        }
    };
}
pub(crate) use test_env;

/// The address of the registry with the base images, which `cargo xtask test` serves; says so and
/// returns from the test where there is none, which with `CI` set is a failure.
macro_rules! bases {
    () => {
        match std::env::var("KILN_TEST_BASES") {
            Ok(address) => address,
            Err(_) => {
                $crate::env::skip("the base images (`cargo xtask test` has them)");
                return;
            }
        }
    };
}
pub(crate) use bases;

/// What of this a machine lacks: root, busybox, or one of the programs.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    let folders = std::env::var("PATH").unwrap_or_default();
    let lacks = |program: &&&str| {
        let found = |folder| Path::new(folder).join(program).exists();
        !folders.split(':').chain(["/usr/sbin"]).any(found)
    };
    let programs = ["/bin/busybox"].iter().chain(programs);
    programs
        .into_iter()
        .find(lacks)
        .map(|program| format!("`{program}`"))
}

/// Says that a test is skipped, which a CI must not take for success.
pub(crate) fn skip(missing: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    // not `eprintln!`, which nobody sees of a test that passes
    let line = format!("SKIPPED: {test} needs {missing}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} needs {missing}, and CI is set"
    );
}

/// A folder with a build context and a store that are gone at the end.
#[derive(Debug)]
pub(crate) struct TestEnv {
    folder: TempDir,
    /// Variables that every kiln gets.
    variables: Vec<(&'static str, &'static str)>,
    /// Who runs kiln, if not root.
    person: Option<Person>,
}

impl TestEnv {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["context", "home", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self {
            folder,
            variables: Vec::new(),
            person: None,
        }
    }

    /// Another one, in which kiln gets the same variables and is run by the same user.
    pub(crate) fn alike(&self) -> Self {
        let mut other = Self::new();
        other.variables.clone_from(&self.variables);
        match &self.person {
            Some(person) => other.with_person(person.clone()),
            None => other,
        }
    }

    /// With an ordinary user who runs kiln, and to whom this environment's folders belong.
    pub(crate) fn with_person(mut self, person: Person) -> Self {
        for name in ["", "context", "home", "tmp"] {
            people::give_one(&self.path(name));
        }
        self.person = Some(person);
        self
    }

    /// Gives the build context to who runs kiln.
    pub(crate) fn give_context(&self) {
        if self.person.is_some() {
            people::give(&self.context());
        }
    }

    /// With a variable that every kiln gets.
    pub(crate) fn with_variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    /// With the image `busybox` in its store: /bin/busybox, its applets, /tmp, and nothing else.
    pub(crate) fn with_busybox(self) -> Self {
        self.kiln(["load"]).stdin(busybox()).success();
        self
    }

    /// A path in the environment's folder, outside the build context.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.path("context")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes a file of the build context, and the folders above it.
    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.context().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn dockerfile(&self, text: &str) -> &Self {
        self.file("Dockerfile", text)
    }

    /// kiln with this environment's store, in this environment's folder, with nothing of the
    /// caller's environment but the path.
    pub(crate) fn kiln<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Run {
        self.kiln_in("store", args)
    }

    /// kiln with another store, named by a folder in this environment.
    pub(crate) fn kiln_in<'a>(&self, store: &str, args: impl IntoIterator<Item = &'a str>) -> Run {
        let mut command = match &self.person {
            None => self.command(env!("CARGO_BIN_EXE_kiln")),
            Some(person) => {
                let (program, first) = person.kiln();
                let mut command = self.command(program);
                command.args(first);
                command
            }
        };
        command.env("KILN_ROOT", self.path(store)).args(args);
        command.envs(self.variables.iter().copied());
        Run {
            command,
            stdin: Vec::new(),
        }
    }

    /// `kiln build -t TAG CONTEXT`, to which flags may be added.
    pub(crate) fn build(&self, tag: &str) -> Run {
        self.kiln(["build", "-t", tag]).arg(self.context())
    }

    /// Another program, in the environment that kiln gets.
    pub(crate) fn program<'a>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Run {
        let mut command = self.command(program);
        command.args(args);
        Run {
            command,
            stdin: Vec::new(),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .current_dir(self.folder.path());
        command
    }

    /// Builds the Dockerfile's text on the context, and gives the image's id.
    pub(crate) fn built(&self, tag: &str, dockerfile: &str) -> String {
        let built = self.dockerfile(dockerfile).build(tag).arg("-q").success();
        built.stdout.trim().to_owned()
    }

    /// `kiln inspect` of one image.
    pub(crate) fn inspect(&self, image: &str) -> Value {
        let text = self.kiln(["inspect", image]).success().stdout;
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 1);
        list[0].clone()
    }

    pub(crate) fn registry(&self) -> Registry {
        Registry::start(&self.path("registry"), None, true)
    }

    /// A registry that deletes nothing.
    pub(crate) fn registry_without_deletion(&self) -> Registry {
        Registry::start(&self.path("registry"), None, false)
    }

    /// A registry that lets only one user in.
    pub(crate) fn registry_for(&self, user: &str, password: &str) -> Registry {
        let made = self.program("htpasswd", ["-Bbn", user, password]).success();
        let file = self.path("htpasswd");
        fs::write(&file, made.stdout).unwrap();
        Registry::start(&self.path("private-registry"), Some(&file), true)
    }
}

/// An archive of the busybox image, built by kiln once for all tests of this process.
pub(crate) fn busybox() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let env = TestEnv::new();
        fs::copy("/bin/busybox", env.context().join("busybox")).unwrap();
        env.built(
            "busybox",
            "FROM scratch\n\
             COPY busybox /bin/busybox\n\
             RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
             RUN mkdir -m 1777 /tmp\n\
             CMD [\"sh\"]\n",
        );
        let archive = env.path("busybox.tar");
        env.kiln(["save", "busybox", "-o"]).arg(&archive).success();
        fs::read(archive).unwrap()
    })
}

/// A program that is about to run.
#[derive(Debug)]
#[must_use]
pub(crate) struct Run {
    command: Command,
    stdin: Vec<u8>,
}

impl Run {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Passes variables of the tests' own environment on, where they are set: the proxies, say.
    pub(crate) fn inherit(mut self, names: &[&str]) -> Self {
        for name in names {
            if let Some(value) = std::env::var_os(name) {
                self.command.env(name, value);
            }
        }
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts it, for tests that do something meanwhile. Its end is the caller's care.
    pub(crate) fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command.spawn().unwrap()
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Output {
        let shown = format!("{:?}", self.command);
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = std::mem::take(&mut self.stdin);
        // a program that reads nothing closes its end; what it prints tells more than the error
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let mut output = Output::of(child);
        writer.join().unwrap();
        output.shown = shown;
        output
    }

    /// Runs it and expects success.
    pub(crate) fn success(self) -> Output {
        let output = self.run();
        assert_eq!(output.code, Some(0), "{output}");
        output
    }

    /// Runs it and expects this exit code.
    pub(crate) fn failure(self, code: i32) -> Output {
        let output = self.run();
        assert_eq!(output.code, Some(code), "{output}");
        output
    }
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Output {
    shown: String,
    /// The exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Standard output as it came.
    pub(crate) bytes: Vec<u8>,
}

impl Output {
    /// What a child leaves, when it has ended.
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            shown: String::new(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            shown,
            code,
            stdout,
            stderr,
            ..
        } = self;
        write!(
            f,
            "{shown}\nexit code: {code:?}\n--- stdout\n{stdout}--- stderr\n{stderr}"
        )
    }
}

/// A docker-registry on a loopback port, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) address: String,
    log: PathBuf,
    guard: Child,
}

impl Registry {
    fn start(folder: &Path, htpasswd: Option<&Path>, deletes: bool) -> Self {
        fs::create_dir_all(folder).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let auth = htpasswd.map_or_else(String::new, |file| {
            format!(
                "auth: {{htpasswd: {{realm: test, path: '{}'}}}}\n",
                file.display()
            )
        });
        let config = format!(
            "version: 0.1\n\
             log: {{level: info}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: {deletes}}}}}\n\
             http: {{addr: '{address}'}}\n{auth}",
            folder.display()
        );
        let (file, log) = (folder.join("config.yml"), folder.join("log"));
        fs::write(&file, config).unwrap();
        // the shell ends the registry when its standard input does: also when the tests are killed
        let guard = Command::new("sh")
            .arg("-c")
            .arg(
                "docker-registry serve \"$1\" >\"$2\" 2>&1 </dev/null & pid=$!\n\
                 exec 2>/dev/null; cat >/dev/null; kill \"$pid\"; wait \"$pid\"",
            )
            .arg("sh")
            .args([&file, &log])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let registry = Self {
            address,
            log,
            guard,
        };
        registry.wait();
        registry
    }

    fn wait(&self) {
        let started = Instant::now();
        while !matches!(status(&self.address), Some(200 | 401)) {
            assert!(
                started.elapsed() < PATIENCE,
                "docker-registry does not answer\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A name in this registry.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// All that the registry has logged: each request with its method and path.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
    }
}

/// A port that is free now. Another process may take it before it is used; that fails loudly.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The status of `GET /v2/`, where somebody answers.
fn status(address: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET /v2/ HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_whitespace().nth(1)?.parse().ok()
}
