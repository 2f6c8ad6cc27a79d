//! The builds of `testdata/builds`, as people write them: kiln builds each, pushes it to a registry
//! and pulls it into an empty store. What arrives is what buildah makes of the same files, but for
//! differences that `compare` lists, and it runs. A second build runs nothing and gives the same
//! image.
//!
//! The tests share kiln's store, buildah's and the registry, so that each base image is fetched once.

mod buildah;
mod compare;
mod image;
mod levels;
mod website;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::env::{Registry, TestEnv, bases, test_env};
use buildah::Storage;
use image::Image;
use website::website;

/// Variables that lead `pip` and `npm` to their registries.
const NETWORK: [&str; 7] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
];

/// What the tests share.
#[derive(Debug)]
struct Shared {
    // ends before the folder goes that it works in
    registry: Registry,
    buildah: Storage,
    env: TestEnv,
    mirror: String,
}

impl Shared {
    /// The value that lives already, or a new one. It goes when the last test that has it ends.
    fn with(bases: &str) -> Arc<Self> {
        static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let env = TestEnv::new();
            let new = Arc::new(Self {
                registry: env.registry(),
                buildah: Storage::new(env.path("buildah"), bases),
                env,
                mirror: format!("docker.io=http://{bases}"),
            });
            *shared = Arc::downgrade(&new);
            new
        })
    }
}

/// One of the builds.
struct Build {
    shared: Arc<Shared>,
    /// Has the context, and an empty store.
    env: TestEnv,
    /// The image's name in the registry.
    name: String,
    /// Name of the file in the context.
    dockerfile: &'static str,
    /// `--build-arg`s, in the form that both builders know.
    args: Vec<String>,
    /// The same for buildah, where they differ.
    buildah_args: Option<Vec<String>>,
    /// Arguments that make this machine's certificates known in `RUN`.
    certificates: bool,
    /// When it was begun, seconds since 1970.
    since: u64,
}

impl Build {
    fn new(env: TestEnv, shared: Arc<Shared>, case: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../testdata/builds")
            .join(case);
        copy(&source, &env.context());
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        Self {
            name: shared.registry.name(&format!("{case}:1")),
            shared,
            env,
            dockerfile: "Dockerfile",
            args: Vec::new(),
            buildah_args: None,
            certificates: false,
            since,
        }
    }

    /// Lets `RUN` steps reach servers whose certificates only this machine knows.
    fn with_certificates(self) -> Self {
        Self {
            certificates: true,
            ..self
        }
    }

    /// Builds with kiln and with buildah, whose images must be the same, and returns kiln's.
    fn check(&self) -> Image {
        let (kiln, buildah) = std::thread::scope(|scope| {
            // most of it is waiting
            let buildah = scope.spawn(|| self.buildah());
            (self.kiln(), buildah.join().unwrap())
        });
        compare::assert_same(&kiln, &buildah, self.since);
        kiln
    }

    /// Builds, and builds again; pushes, and pulls into an empty store; returns what arrives there.
    fn kiln(&self) -> Image {
        let id = self.build_twice();
        self.shared.env.kiln(["push", &self.name]).success();
        let pulled = self.env.kiln(["pull", &self.name]).success();
        assert!(pulled.stdout.contains(&self.name), "{pulled}");
        assert_eq!(self.env.inspect(&self.name)["Id"], id.as_str());
        let archive = self.env.path("kiln.tar");
        let save = self.env.kiln(["save", &self.name, "-o"]);
        save.arg(&archive).success();
        Image::read(&archive, &self.env.path("kiln"))
    }

    /// The build of `Dockerfile.child`, which stands on this one's image.
    fn child(self) -> Self {
        let argument = |base: &str| vec!["--build-arg".to_owned(), format!("BASE={base}")];
        Self {
            dockerfile: "Dockerfile.child",
            args: argument(&self.name),
            buildah_args: Some(argument(&self.local_name())),
            name: self.name.replace("service", "child"),
            ..self
        }
    }

    fn build_twice(&self) -> String {
        let (first, id) = self.build();
        assert!(first.contains("DONE"), "{first}");
        let (second, again) = self.build();
        // a second build runs nothing (A15); what a URL gives is asked for, though (A15.4)
        let ran = |step: &&str| !step.contains("CACHED") && !step.contains("] ADD http://");
        let steps = second.split_terminator("\n\n");
        let ran: Vec<&str> = steps
            .filter(|step| step.starts_with('#'))
            .filter(ran)
            .collect();
        assert!(ran.is_empty(), "{second}");
        assert!(second.contains("CACHED"), "{second}");
        assert_eq!(id, again);
        id
    }

    /// The output and the image's id.
    fn build(&self) -> (String, String) {
        let iidfile = self.env.path("iid");
        let mut build = self
            .shared
            .env
            .kiln(["build", "-t", &self.name, "--iidfile"]);
        build = build
            .arg(&iidfile)
            .args(self.args.iter().map(String::as_str));
        if self.certificates {
            build = build.arg("--host-ca").inherit(&NETWORK);
        }
        let built = build
            .arg("-f")
            .arg(self.env.context().join(self.dockerfile))
            .arg(self.env.context())
            .env("KILN_MIRRORS", &self.shared.mirror)
            .success();
        (built.stderr, fs::read_to_string(iidfile).unwrap())
    }

    fn buildah(&self) -> Image {
        let context = self.env.context();
        let dockerfile = context.join(self.dockerfile);
        let args = self.buildah_args.as_ref().unwrap_or(&self.args);
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["-f", dockerfile.to_str().unwrap()]);
        let bundle = std::env::var("SSL_CERT_FILE")
            .unwrap_or_else(|_| "/etc/ssl/certs/ca-certificates.crt".to_owned());
        let volume = format!("{bundle}:/etc/ssl/certs/ca-certificates.crt:ro");
        if self.certificates {
            args.extend(["--volume", &volume]);
        }
        let name = self.local_name();
        let buildah = &self.shared.buildah;
        buildah.build(&self.env, &name, &args, &context)
    }

    /// The name of buildah's image.
    fn local_name(&self) -> String {
        let (_, name) = self.name.rsplit_once('/').unwrap();
        format!("localhost/{}", name.replace(':', "-"))
    }

    /// What a container of the image prints.
    fn run(&self, options: &[&str], command: &[&str], stdin: &str) -> String {
        let run = self.shared.buildah.run(&self.env, options, &self.name);
        run.args(command.iter().copied())
            .stdin(stdin)
            .success()
            .stdout
    }

    /// Starts the image's program in a container of it, and fetches a page there.
    fn fetch(&self, image: &Image, port: u16, path: &str) -> String {
        let script = format!(
            "\"$@\" >/dev/null 2>&1 &
             for n in {{1..600}}; do
               {{ exec 3<>/dev/tcp/127.0.0.1/{port}; }} 2>/dev/null && break
               kill -0 $! || exit
               sleep 0.1
             done
             printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3
             cat <&3"
        );
        let mut command = vec!["-c", &script, "bash"];
        let program = image.command();
        command.extend(program.iter().map(String::as_str));
        self.run(&["--entrypoint", "bash"], &command, "")
    }
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, target) = (
            entry.as_ref().unwrap(),
            to.join(entry.as_ref().unwrap().file_name()),
        );
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

macro_rules! build {
    ($case:literal) => {{
        let env = test_env!("buildah", "docker-registry", "podman", "runc");
        Build::new(env, Shared::with(&bases!()), $case)
    }};
}

#[test]
fn flask_serves_its_guest_book() {
    let build = build!("flask").with_certificates();
    let image = build.check();
    assert_eq!(
        image.names("app"),
        ["app.py", "requirements.txt", "templates"]
    );
    assert_eq!(image.command(), ["python", "app.py"]);
    let answer = build.fetch(&image, 5000, "/healthz");
    assert!(
        answer.ends_with("{\"entries\":0,\"status\":\"ok\"}\n"),
        "{answer}"
    );
}

#[test]
fn node_site_has_the_pages_and_no_node() {
    let build = build!("node-site").with_certificates();
    let image = build.check();
    assert_eq!(
        image.names("usr/share/nginx/html"),
        ["about.html", "index.html"]
    );
    assert!(!image.tree.contains_key("usr/bin/node"));
    let page = build.fetch(&image, 80, "/about.html");
    assert!(page.contains("<title>About</title>"), "{page}");
    let page = build.fetch(&image, 80, "/");
    assert!(page.contains("<title>Field notes</title>"), "{page}");
}

#[test]
fn debian_nginx_serves_on_its_port() {
    let build = build!("debian-nginx");
    let image = build.check();
    assert_eq!(image.names("var/lib/apt/lists"), [""; 0]);
    assert_eq!(image.command(), ["/usr/sbin/nginx", "-g", "daemon off;"]);
    build.run(&[], &["-t"], "");
    let page = build.fetch(&image, 8080, "/");
    assert!(page.contains("<title>It works</title>"), "{page}");
}

#[test]
fn users_own_what_they_run() {
    let build = build!("users");
    let image = build.check();
    let owned = |(path, _): &(&String, &image::Node)| path.starts_with("srv/inventory");
    let nodes: Vec<_> = image.tree.iter().filter(owned).collect();
    assert_eq!(nodes.len(), 5);
    assert!(
        nodes.iter().all(|(_, node)| node.owner == (10001, 10001)),
        "{nodes:?}"
    );
    assert_eq!(build.run(&[], &[], ""), "6350 items worth 356.00\n");
}

#[test]
fn static_is_one_program() {
    let build = build!("static");
    let image = build.check();
    assert_eq!(image.tree.keys().collect::<Vec<_>>(), ["crc32"]);
    assert_eq!(build.run(&[], &[], "hello"), "3610a686 5\n");
}

#[test]
fn service_and_its_child() {
    let mut build = build!("service");
    archive_plugins(&build.env.context());
    let words = fs::read(build.env.context().join("words.txt")).unwrap();
    let website = website(words);
    let url = format!("WORDS_URL=http://{}/words.txt", website.address);
    build.args = vec!["--build-arg".to_owned(), url];

    let image = build.check();
    let plugins = ["10-ligatures.sed", "20-lowercase.sed"];
    assert_eq!(image.names("opt/worker/plugins"), plugins);
    assert_eq!(
        image.node("opt/worker/plugins/10-ligatures.sed").owner,
        (7, 8)
    );
    assert_eq!(image.config["config"]["Healthcheck"]["Retries"], 2);
    assert_eq!(
        image.config["config"]["OnBuild"].as_array().unwrap().len(),
        2
    );
    let count = build.run(&[], &["cat", "/opt/worker/words.count"], "");
    assert_eq!(count, "3\n");
    let script = "echo 'Apple, no \u{fb01}sh; BREAD' >$SPOOL/in/a && worker.sh --once && health.sh && cat $SPOOL/out/a.count";
    assert_eq!(build.run(&[], &["bash", "-c", script], ""), "2\n");

    let child = build.child();
    let image = child.check();
    assert_eq!(image.names("opt/worker/jobs"), ["cleanup.sh", "totals.sh"]);
    assert!(
        image.config["config"]["OnBuild"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    let list = child.run(&[], &["cat", "/opt/worker/jobs.list"], "");
    assert_eq!(list, "cleanup.sh\ntotals.sh\n");
}

/// Packs the folder `plugins` of a context, as somebody who is not root has it.
fn archive_plugins(context: &Path) {
    let file = fs::File::create(context.join("plugins.tar.gz")).unwrap();
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for name in ["10-ligatures.sed", "20-lowercase.sed"] {
        let content = fs::read(context.join("plugins").join(name)).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        archive
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap();
}
