//! Builds the cases under `testdata/steps`, one folder a case, with the real binary:
//!
//! - `Dockerfile`, which is put in the build context where the case has one;
//! - `context/` and `context.txt`, both optional: the files of the build context; the second holds
//!   what git cannot (see `files.rs`);
//! - `options.json`, optional: see [`Options`];
//! - `expect.txt` with what the image adds to its base (see `describe.rs`), or `error.txt` with the
//!   exit code and all that is said of a build that fails.
//!
//! Bases are `scratch`, `busybox`, and `system`, which `testdata/steps/system.Dockerfile` makes.
//! Cases share a store, so that what several need is built once; one with a store `of its own`
//! is about the cache or about times, which the cache does not look at.
//!
//! `KILN_UPDATE=1` writes the expectations anew; `KILN_CASE=text` picks the cases with that name.
//! Names of cases cite the numbers of SPEC.

mod describe;
mod files;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use serde::Deserialize;

use crate::container;
use crate::env::{Output, TestEnv, test_env};
use crate::people::{Ids, Person};
use describe::{Base, Show};

/// Cases that are built at once.
const THREADS: usize = 4;

/// Cases that a container without the right to mount cannot build, and why.
const NEED_MOUNTS: [(&str, &str); 9] = [
    ("a15.2-key-of-a-run", "no network namespace"),
    ("a16.3-created-by", "no network namespace"),
    ("a8.1-forms", "no /proc"),
    (
        "a8.4-what-was-provided-is-not-in-the-layer",
        "no /proc and /sys",
    ),
    (
        "b1.6-mount-points-in-a-read-only-bind",
        "root may write to a copy that should be read-only",
    ),
    (
        "b2-a-bind-that-is-written-to",
        "root may write to a copy that should be read-only",
    ),
    (
        "b2-binds-of-the-context",
        "root may write to a copy that should be read-only",
    ),
    (
        "b2-cache-mounts",
        "root may write to a directory that should be read-only",
    ),
    ("b2-tmpfs", "no limit of size"),
];

/// How a case is built.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// The builds, one after the other; none is one without flags.
    builds: Vec<Build>,
    /// What is compared; nothing is the layers and what changed in the config.
    show: Vec<Show>,
    /// Whether the case has a store of its own.
    own_store: bool,
}

/// One build of a case.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Build {
    /// Flags.
    args: Vec<String>,
    /// Environment variables.
    env: BTreeMap<String, String>,
    /// A file in the form of `context.txt` with changes that come before this build.
    changes: Option<String>,
    /// The tag, where others build on this image.
    tag: Option<String>,
    /// What comes on standard input.
    stdin: String,
    /// The argument, if it is not the folder of the context; an empty one is none.
    context: Option<String>,
}

/// What all cases need.
struct Suite {
    env: TestEnv,
    bases: Vec<Base>,
    update: bool,
}

#[test]
fn cases_build_as_expected() {
    build_all(test_env!().with_busybox(), |_| true);
}

/// Without overlayfs the very same layers come out (DEMAND 20).
#[test]
fn cases_build_as_expected_in_plain_directories() {
    build_all(
        test_env!()
            .with_variable("KILN_SNAPSHOTTER", "plain")
            .with_busybox(),
        |_| true,
    );
}

/// Cases in which a step makes device nodes, which only the host's root can.
const DEVICES: [&str; 2] = [
    "a10.7-what-is-carried-between-stages",
    "a8.3-the-layer-is-the-difference",
];

/// The numbers of cases about files and processes: the others do not depend on who builds.
const FILES: [&str; 9] = [
    "a8.", "a9.8-", "a9.9-", "a10.", "a11.", "a12.", "a13.", "b1.6-", "b2-",
];

fn is_about_files(case: &Path) -> bool {
    let name = case.file_name().unwrap().to_str().unwrap();
    FILES.iter().any(|prefix| name.starts_with(prefix)) && !DEVICES.contains(&name)
}

/// What an ordinary user builds is what root builds (B5.6).
#[test]
fn cases_build_as_expected_in_a_user_namespace() {
    let person = Person::new(Ids::Many);
    let env = test_env!("newuidmap").with_person(person).with_busybox();
    build_all(env, is_about_files);
}

/// And where overlayfs is denied to users, with fuse-overlayfs in its place.
#[test]
fn cases_build_as_expected_by_fuse_overlayfs() {
    let person = Person::new(Ids::Many).with_fuse();
    let env = test_env!("newuidmap", "fuse-overlayfs");
    let env = env.with_variable("KILN_SNAPSHOTTER", "fuse");
    build_all(env.with_person(person).with_busybox(), |case| {
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap_or_default();
        // To fuse-overlayfs names like `.wh.x` are deletions: a step cannot see them.
        let odd = case.ends_with("a12.1-whiteout-names-are-ordinary");
        is_about_files(case) && text.contains("RUN") && !odd
    });
}

/// The same in a stock container, without the right to mount (DEMAND 1): the cases that run
/// something.
#[test]
fn cases_build_as_expected_in_a_stock_container() {
    if container::is_inside() {
        build_all(TestEnv::new().with_busybox(), |case| {
            let text = fs::read_to_string(case.join("Dockerfile")).unwrap_or_default();
            let name = case.file_name().unwrap().to_string_lossy();
            let unlike = |(known, _): &(&str, &str)| *known == name;
            text.contains("RUN") && !NEED_MOUNTS.iter().any(unlike)
        });
    }
}

fn build_all(env: TestEnv, picked: impl Fn(&Path) -> bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/steps");
    env.built(
        "system",
        &fs::read_to_string(root.join("system.Dockerfile")).unwrap(),
    );
    let archive = env.path("system.tar");
    env.kiln(["save", "system", "-o"]).arg(&archive).success();
    let suite = Suite {
        bases: ["busybox", "system"]
            .map(|name| Base::of(&env.saved(name)))
            .into(),
        env,
        update: std::env::var_os("KILN_UPDATE").is_some(),
    };
    let wanted = std::env::var("KILN_CASE").unwrap_or_default();
    let mut cases: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && path.to_string_lossy().contains(&wanted) && picked(path))
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", root.display());
    let (queue, failed) = (Mutex::new(cases), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some(case) = next else { break };
                    failed.lock().unwrap().extend(suite.check(&case));
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

impl Suite {
    /// Builds a case and gives what differs from its expectations.
    fn check(&self, case: &Path) -> Vec<String> {
        let result = self.build_case(case);
        let (expect, error) = match result {
            Ok(text) => (Some(text), None),
            Err(text) => (None, Some(text)),
        };
        let mut failed = Vec::new();
        for (name, actual) in [("expect.txt", expect), ("error.txt", error)] {
            let path = case.join(name);
            let expected = fs::read_to_string(&path).ok();
            if actual == expected {
                continue;
            }
            if self.update {
                match actual {
                    Some(text) => fs::write(&path, text).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                continue;
            }
            let show = |text: Option<String>| text.unwrap_or_else(|| "(none)\n".to_owned());
            failed.push(format!(
                "{}\n--- expected\n{}--- actual\n{}",
                path.display(),
                show(expected),
                show(actual)
            ));
        }
        failed
    }

    /// Builds a case: what came of it as text, or how its only build failed.
    fn build_case(&self, case: &Path) -> Result<String, String> {
        let options: Options = match fs::read(case.join("options.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .unwrap_or_else(|error| panic!("{}: {error}", case.display())),
            Err(_) => Options::default(),
        };
        let show = if options.show.is_empty() {
            vec![Show::Layers, Show::Changes]
        } else {
            options.show
        };
        let env = self.env.alike();
        let own = options.own_store.then(|| env.path("store"));
        if own.is_some() {
            let archive = self.env.path("system.tar");
            env.kiln(["load", "-q", "-i"]).arg(archive).success();
            env.kiln(["load", "-q"])
                .stdin(crate::env::busybox())
                .success();
        }
        let store = own.unwrap_or_else(|| self.env.store());
        let mut context = files::Context::new(env.context());
        context.copy(&case.join("context"));
        if case.join("Dockerfile").exists() {
            context.copy_file(&case.join("Dockerfile"), Path::new("Dockerfile"));
        }
        context.apply(&case.join("context.txt"));
        env.give_context();
        let builds = match options.builds {
            builds if builds.is_empty() => vec![Build::default()],
            builds => builds,
        };
        let name = case.file_name().unwrap().to_str().unwrap();
        let mut text = String::new();
        for (number, build) in builds.iter().enumerate() {
            if let Some(changes) = &build.changes {
                context.apply(&case.join(changes));
                env.give_context();
            }
            let tag = build.tag.as_deref().unwrap_or(name);
            let output = run(&env, &store, tag, build, &show);
            let failed = (output.code != Some(0)).then(|| describe::failure(&output));
            match failed {
                Some(error) if builds.len() == 1 => return Err(error),
                failed => {
                    if builds.len() > 1 {
                        text += &format!("== build {}\n", number + 1);
                    }
                    text += &failed.unwrap_or_else(|| {
                        let saved = env.kiln(["save", tag]).env("KILN_ROOT", &store).success();
                        describe::image(&saved.bytes, &output, &show, &self.bases)
                    });
                }
            }
        }
        Ok(text)
    }
}

fn run(env: &TestEnv, store: &Path, tag: &str, build: &Build, show: &[Show]) -> Output {
    let progress = show.iter().any(|show| show.reads_progress());
    let mut run = env
        .kiln(["build", "-t", tag])
        .arg(if progress { "--progress=plain" } else { "-q" })
        .args(build.args.iter().map(String::as_str))
        .env("KILN_ROOT", store)
        .stdin(build.stdin.as_bytes());
    match build.context.as_deref() {
        Some("") => {}
        context => run = run.arg(context.unwrap_or("context")),
    }
    for (name, value) in &build.env {
        run = run.env(name, value);
    }
    run.run()
}
