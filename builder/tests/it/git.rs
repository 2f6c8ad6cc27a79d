//! What `ADD` makes of git repositories (A12.4), and named contexts that are one.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::env::{Output, TestEnv, test_env};
use crate::web::{FIRST_COMMIT, GitServer, Repository};

/// Builds `ADD ADDRESS /x/` on nothing.
pub(crate) fn add(env: &TestEnv, address: &str) -> Output {
    let dockerfile = format!("FROM scratch\nADD {address} /x/\n");
    env.dockerfile(&dockerfile).build("one").run()
}

pub(crate) fn added(env: &TestEnv, address: &str) -> Output {
    let output = add(env, address);
    assert_eq!(output.code, Some(0), "{output}");
    output
}

/// Whether the image `one` has this text in `/x/version`.
pub(crate) fn has_version(env: &TestEnv, text: &str) {
    assert_eq!(env.saved("one").text("x/version"), text);
}

#[test]
fn a12_4_files_have_fixed_modes_owners_and_times() {
    let env = test_env!("git");
    let server = GitServer::start(&env);
    let repository = Repository::new(&env, "app.git");
    repository.file("version", "1").file("bin/run", "#!/bin/sh");
    fs::set_permissions(
        repository.path("bin/run"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    fs::set_permissions(
        repository.path("version"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    symlink("bin/run", repository.path("link")).unwrap();
    repository.commit("first");
    let url = server.url("app.git");
    let built = added(&env, &url);
    assert!(
        built.stderr.contains(&format!("[1/1] ADD {url}\n")),
        "{built}"
    );
    let saved = env.saved("one");
    assert_eq!(
        saved.top_paths(),
        ["x", "x/bin", "x/bin/run", "x/link", "x/version"]
    );
    for (path, mode) in [("x/bin", 0o755), ("x/bin/run", 0o755), ("x/version", 0o644)] {
        let entry = &saved.top()[path];
        assert_eq!((entry.mode & 0o7777, entry.owner), (mode, (0, 0)), "{path}");
        assert_eq!(entry.mtime, FIRST_COMMIT, "{path}");
    }
    assert_eq!(saved.top()["x/link"].target.as_deref(), Some("bin/run"));
    assert_eq!(saved.top()["x/link"].mtime, FIRST_COMMIT);
    let history = env.kiln(["history", "--no-trunc", "one"]).success();
    assert!(
        history.stdout.contains(&format!("ADD {url} /x/")),
        "{history}"
    );
    env.no_traces();
    // The same commit gives the same image in another store, at another time.
    let id = env.inspect("one")["Id"].clone();
    let dated = |store: &str| {
        let built = env.kiln_in(store, ["build", "-q"]).arg(env.context());
        built.env("SOURCE_DATE_EPOCH", "0").success().stdout
    };
    assert_eq!(dated("store"), dated("other"));
    assert_ne!(id, "");
    // Owner and mode are what the flags say.
    env.dockerfile(&format!(
        "FROM scratch\nADD --chown=7:8 --chmod=0750 {url} /x/\n"
    ));
    env.build("one").success();
    let saved = env.saved("one");
    let entry = &saved.top()["x/version"];
    assert_eq!((entry.mode & 0o7777, entry.owner), (0o750, (7, 8)));
}

#[test]
fn a12_4_references_tags_commits_and_folders() {
    let env = test_env!("git");
    let server = GitServer::start(&env);
    let repository = Repository::new(&env, "app.git");
    let old = repository.file("version", "old").commit("old");
    repository.git(&["tag", "-a", "v1", "-m", "annotated"]);
    let tag = repository.git(&["rev-parse", "v1"]);
    assert_ne!(tag, old);
    repository.file("version", "middle").commit("middle");
    repository.git(&["tag", "light"]);
    repository.git(&["update-ref", "refs/pull/7/head", "HEAD"]);
    let new = repository
        .file("version", "new")
        .file("a/version", "folder")
        .file("a/b/version", "deep")
        .commit("new");
    repository.git(&["branch", "feature/x", &old]);
    let url = server.url("app.git");
    for (reference, text) in [
        ("", "new"),
        ("#main", "new"),
        ("#v1", "old"),
        ("#light", "middle"),
        ("#refs/tags/light", "middle"),
        ("#pull/7/head", "middle"),
        ("#feature/x", "old"),
        (&format!("#{old}"), "old"),
        (&format!("#{tag}"), "old"),
        ("#main:a", "folder"),
        ("#:a/b", "deep"),
        ("#:../a/./b/..", "folder"),
        ("?branch=feature/x", "old"),
        ("?tag=v1", "old"),
        ("?ref=light&submodules=false", "middle"),
        ("?subdir=a", "folder"),
        (&format!("?commit={old}"), "old"),
        (&format!("?checksum={}", &new[..9]), "new"),
        (&format!("?branch=main&checksum={}", &new[..9]), "new"),
    ] {
        added(&env, &format!("{url}{reference}"));
        has_version(&env, text);
    }
    added(&env, &format!("--checksum={} {url}", &new[..7]));
    for (address, message) in [
        (
            format!("{url}#none"),
            "the repository has no branch, tag or reference `none`".to_owned(),
        ),
        (
            format!("{url}?tag=main"),
            "the repository has no branch, tag or reference `refs/tags/main`".to_owned(),
        ),
        (
            format!("{url}#{}", "1".repeat(40)),
            format!("reference `{}`", "1".repeat(40)),
        ),
        (
            format!("{url}#:a/none"),
            "the repository has no directory `a/none`".to_owned(),
        ),
        (
            format!("{url}#:a/version"),
            "the repository has no directory `a/version`".to_owned(),
        ),
        (
            format!("--checksum={old} {url}"),
            format!("checksum mismatch: expected commit {old}, got {new}"),
        ),
        (
            server.url("nothing.git"),
            "git ls-remote: fatal: ".to_owned(),
        ),
        (
            format!("{url}#{}", &new[..12]),
            "hint: a commit is named by all its digits".to_owned(),
        ),
    ] {
        let failed = add(&env, &address);
        assert_eq!(failed.code, Some(1), "{failed}");
        let place = "Dockerfile:2:1\n";
        assert!(
            failed.stderr.contains(&message) && failed.stderr.contains(place),
            "{failed}"
        );
        assert!(
            failed
                .stderr
                .contains("failed to fetch git repository `git://"),
            "{failed}"
        );
        env.no_traces();
    }
    // A branch that goes before a tag of its name, and a repository without commits.
    repository.git(&["branch", "light", &old]);
    added(&env, &format!("{url}#light"));
    has_version(&env, "old");
    Repository::new(&env, "empty.git");
    let failed = add(&env, &server.url("empty.git"));
    assert!(
        failed.stderr.contains("the repository is empty"),
        "{failed}"
    );
}

#[test]
fn a15_4_a_known_commit_is_not_fetched_again() {
    let env = test_env!("git");
    let server = GitServer::start(&env);
    let repository = Repository::new(&env, "app.git");
    repository
        .file("version", "1")
        .file("a/version", "a")
        .commit("first");
    let url = server.url("app.git");
    added(&env, &url);
    assert_eq!(server.asked("app.git"), 2, "one question, one fetch");
    let again = added(&env, &url);
    assert_eq!(server.asked("app.git"), 3);
    assert!(again.stderr.contains("CACHED"), "{again}");
    // A new commit is seen; what it leaves as it was keeps its layer.
    repository.file("version", "2").commit("second");
    added(&env, &url);
    has_version(&env, "2");
    added(&env, &format!("{url}#:a"));
    let first = env.inspect("one")["Id"].clone();
    repository.file("version", "3").commit("third");
    let built = added(&env, &format!("{url}#:a"));
    assert!(built.stderr.contains("CACHED"), "{built}");
    assert_eq!(env.inspect("one")["Id"], first);
    // `--no-cache` fetches all the same.
    let before = server.asked("app.git");
    env.build("one").arg("--no-cache").success();
    assert_eq!(server.asked("app.git"), before + 2);
}

#[test]
fn a12_4_the_folder_git_is_kept_when_asked_for() {
    let env = test_env!("git");
    let server = GitServer::start(&env);
    let repository = Repository::new(&env, "app.git");
    repository.file("version", "1").commit("first");
    repository.git(&["tag", "v1"]);
    let url = server.url("app.git");
    env.dockerfile(&format!(
        "FROM scratch\nADD --keep-git-dir=true {url}#v1 /x/\n"
    ));
    let dated = |store: &str| {
        let built = env
            .kiln_in(store, ["build", "-q", "-t", "one"])
            .arg(env.context());
        built.env("SOURCE_DATE_EPOCH", "0").success().stdout
    };
    assert_eq!(dated("store"), dated("other"), "the same bytes each time");
    let saved = env.saved("one");
    assert!(saved.text("x/.git/config").contains(&url));
    let paths = saved.top_paths();
    for private in ["x/.git/hooks", "x/.git/logs", "x/.git/FETCH_HEAD"] {
        assert!(!paths.contains(&private), "{paths:?}");
    }
    // It is a repository that works.
    let archive = env.path("one.tar");
    fs::create_dir(env.path("unpacked")).unwrap();
    fs::write(&archive, env.kiln(["save", "one"]).success().bytes).unwrap();
    for (path, entry) in saved.top() {
        let path = env.path("unpacked").join(path);
        match entry.kind {
            tar::EntryType::Directory => fs::create_dir_all(path).unwrap(),
            _ => fs::write(path, &entry.content).unwrap(),
        }
    }
    let git = |arguments: &[&str]| {
        let run = env.program("git", ["-C"]).arg(env.path("unpacked/x"));
        run.args(arguments.iter().copied()).success().stdout
    };
    assert_eq!(git(&["describe", "--tags"]), "v1\n");
    assert_eq!(git(&["status", "--porcelain"]), "");
}

#[test]
fn a12_4_submodules_come_with_theirs() {
    let env = test_env!("git");
    let server = GitServer::start(&env);
    Repository::new(&env, "inner.git")
        .file("version", "inner")
        .commit("first");
    let middle = Repository::new(&env, "middle.git");
    middle.file("version", "middle");
    middle.git(&["submodule", "--quiet", "add", "../inner.git", "in"]);
    middle.commit("first");
    let outer = Repository::new(&env, "outer.git");
    outer.file("version", "outer");
    outer.git(&["submodule", "--quiet", "add", "../middle.git", "sub"]);
    outer.commit("first");
    let url = server.url("outer.git");
    added(&env, &url);
    let saved = env.saved("one");
    for (path, text) in [
        ("x/version", "outer"),
        ("x/sub/version", "middle"),
        ("x/sub/in/version", "inner"),
    ] {
        assert_eq!(saved.text(path), text);
    }
    let left = saved
        .top_paths()
        .into_iter()
        .find(|path| path.ends_with(".git"));
    assert_eq!(left, None);
    added(&env, &format!("{url}?submodules=false"));
    let saved = env.saved("one");
    assert_eq!(
        saved.top_paths(),
        ["x", "x/.gitmodules", "x/sub", "x/version"]
    );
    // With the folders `.git` they are the same bytes each time, too.
    env.dockerfile(&format!("FROM scratch\nADD {url}?keep-git-dir=1 /x/\n"));
    let dated = |store: &str| {
        let built = env
            .kiln_in(store, ["build", "-q", "-t", "one"])
            .arg(env.context());
        built.env("SOURCE_DATE_EPOCH", "0").success().stdout
    };
    assert_eq!(dated("store"), dated("other"));
    let saved = env.saved("one");
    assert!(saved.text("x/sub/.git").starts_with("gitdir: "));
    assert!(
        saved
            .top()
            .contains_key("x/.git/modules/sub/modules/in/HEAD")
    );
    // A submodule cannot reach into this machine.
    let local = env.path("repositories/inner.git");
    outer.git(&[
        "config",
        "-f",
        ".gitmodules",
        "submodule.sub.url",
        &format!("file://{}", local.display()),
    ]);
    outer.commit("second");
    let failed = add(&env, &url);
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(
        failed.stderr.contains("transport 'file' not allowed"),
        "{failed}"
    );
    env.no_traces();
}

#[test]
fn links_and_configuration_lead_nowhere_else() {
    let env = test_env!("git");
    let server = GitServer::start(&env);
    fs::create_dir(env.path("secret")).unwrap();
    fs::write(env.path("secret/version"), "secret").unwrap();
    let repository = Repository::new(&env, "app.git");
    repository.file("a/version", "inside");
    symlink("/a", repository.path("absolute")).unwrap();
    symlink("a", repository.path("relative")).unwrap();
    symlink(env.path("secret"), repository.path("outside")).unwrap();
    symlink("../../../../../../../..", repository.path("up")).unwrap();
    repository
        .file(".gitattributes", "*.f filter=evil\n")
        .file("x.f", "plain");
    repository.commit("first");
    // What the user's own git would do counts for nothing.
    let hooks = env.path("hooks");
    fs::create_dir(&hooks).unwrap();
    let trap = format!("touch {}", env.path("trapped").display());
    let hook = hooks.join("post-checkout");
    fs::write(&hook, format!("#!/bin/sh\n{trap}\n")).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[core]\n\thooksPath = {}\n[filter \"evil\"]\n\tsmudge = {trap}\n\
         [url \"git://127.0.0.1:1/\"]\n\tinsteadOf = git://\n",
        hooks.display()
    );
    fs::write(env.path("home/.gitconfig"), config).unwrap();
    let url = server.url("app.git");
    for folder in ["absolute", "relative", "up/a"] {
        added(&env, &format!("{url}#:{folder}"));
        has_version(&env, "inside");
    }
    let failed = add(&env, &format!("{url}#:outside"));
    assert!(
        failed.stderr.contains("has no directory `outside`"),
        "{failed}"
    );
    let run = env
        .build("one")
        .env("GIT_DIR", env.path("nowhere"))
        .env("GIT_CONFIG_PARAMETERS", "'core.hooksPath'='/nowhere'");
    env.dockerfile(&format!("FROM scratch\nADD {url} /x/\n"));
    run.success();
    assert_eq!(env.saved("one").text("x/x.f"), "plain");
    assert!(!env.path("trapped").exists());
}

/// C7.1
#[test]
fn a_named_context_may_be_a_repository() {
    let env = test_env!("git").with_busybox();
    let server = GitServer::start(&env);
    let repository = Repository::new(&env, "app.git");
    fs::create_dir(repository.path("bin")).unwrap();
    fs::copy("/bin/busybox", repository.path("bin/sh")).unwrap();
    fs::set_permissions(repository.path("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
    // An ignore file is the client's, not the repository's (A14.6).
    repository
        .file("version", "1")
        .file(".dockerignore", "version\n");
    repository.commit("first");
    let context = format!("src={}#main", server.url("app.git"));
    env.dockerfile(
        "FROM busybox AS copied\nCOPY --from=src version /x/\n\
         FROM src AS run\nRUN read v </version; echo \"$v!\" >/said\n\
         FROM run\nCOPY --from=copied /x/version /x/\n",
    );
    let build = || {
        env.build("one")
            .args(["--build-context", &context])
            .success()
    };
    build();
    let saved = env.saved("one");
    assert_eq!(
        (saved.text("x/version"), saved.text("said")),
        ("1".into(), "1!\n".into())
    );
    assert_eq!(saved.layers[0]["version"].owner, (0, 0));
    let history = env.kiln(["history", "--no-trunc", "one"]).success();
    assert!(
        history.stdout.contains("git snapshot for git://"),
        "{history}"
    );
    let again = build();
    assert_eq!(again.stderr.matches("CACHED").count(), 2, "{again}");
    // It may be the whole image.
    env.build("whole")
        .args([
            "--build-context",
            &context.replacen("src", "run", 1),
            "--target",
            "run",
        ])
        .success();
    let saved = env.saved("whole");
    assert_eq!(
        (saved.layers.len(), saved.text("version")),
        (1, "1".to_owned())
    );
    // What stands on it is built anew with another commit.
    repository.file("version", "2").commit("second");
    build();
    assert_eq!(env.saved("one").text("said"), "2!\n");
}
