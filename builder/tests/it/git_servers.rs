//! How git repositories are reached: logins, the protocols of servers, and what happens when they
//! cannot be (A12.4, A12.6).

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::process::{Pid, Signal};

use crate::env::{Output, test_env};
use crate::git::{add, added, has_version};
use crate::traces::{descendants, wait_until};
use crate::web::{Repository, Web};

/// A dumb server, as the web's, cannot give single commits; and what it is told must not be heard
/// by others.
#[test]
fn a_password_reaches_the_server_and_nobody_else() {
    let env = test_env!("git");
    let repository = Repository::new(&env, "app.git");
    repository.file("version", "private").commit("first");
    repository.git(&["update-server-info"]);
    let folder = env.path("repositories/app.git");
    // ann:s3cr3t@word
    let web = Web::start(folder, Some("Basic YW5uOnMzY3IzdEB3b3Jk"));
    let address = |path: &str| format!("http://ann:s3cr3t%40word@{}/{path}", web.address);
    let built = add(&env, &address(".git"));
    assert_eq!(built.code, Some(0), "{built}");
    has_version(&env, "private");
    let shown = format!("ADD http://xxxxx:xxxxx@{}/.git /x/", web.address);
    let config = env.saved("one").config.to_string();
    assert!(config.contains(&shown), "{config}");
    let failed = add(&env, &address("none.git"));
    assert_eq!(failed.code, Some(1), "{failed}");
    for said in [&built.stderr, &failed.stderr, &config] {
        assert!(!said.contains("s3cr3t"), "{said}");
    }
    assert_eq!(holding(&env.store(), b"s3cr3t"), [""; 0]);
    // Without it the server says no, and nobody is asked for a name.
    let url = format!("http://{}/.git", web.address);
    let refused = add(&env, &url);
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(
        refused.stderr.contains("hint: the repository is private"),
        "{refused}"
    );
}

/// The protocol that the servers of the web speak, with a login for each request.
#[test]
fn a_server_of_the_web_gives_single_commits() {
    let env = test_env!("git");
    let inner = Repository::new(&env, "inner.git");
    inner.file("version", "inner").commit("first");
    let repository = Repository::new(&env, "app.git");
    let old = repository.file("version", "old").commit("first");
    repository.git(&["submodule", "--quiet", "add", "../inner.git", "sub"]);
    repository.file("version", "new").commit("second");
    let web = Web::start(env.path("repositories"), Some("Basic YW5uOnMzY3IzdA=="));
    for (reference, text) in [("", "new"), ("#main", "new"), (&format!("#{old}"), "old")] {
        let url = format!("http://ann:s3cr3t@{}/git/app.git{reference}", web.address);
        added(&env, &url);
        has_version(&env, text);
        env.no_traces();
    }
    // The host that has the login is asked for the submodule with it, too.
    let asked = web.asked();
    assert!(
        asked.contains(&"/git/inner.git/git-upload-pack".to_owned()),
        "{asked:?}"
    );
    assert_eq!(holding(&env.store(), b"s3cr3t"), [""; 0]);
}

/// The files below a folder that hold some bytes.
fn holding(folder: &Path, wanted: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holding(&path, wanted));
        } else if entry.file_type().unwrap().is_file() {
            let content = fs::read(&path).unwrap();
            if content.windows(wanted.len()).any(|bytes| bytes == wanted) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// A12.6
#[test]
fn ssh_is_gits_own_with_the_users_agent() {
    let env = test_env!("git");
    let repository = Repository::new(&env, "app.git");
    repository.file("version", "by ssh").commit("first");
    // The last argument is what ssh would run over there.
    let (ssh, heard) = (env.path("ssh"), env.path("heard"));
    let script = format!(
        "#!/bin/sh\necho \"$SSH_AUTH_SOCK $*\" >>{}\nfor last; do :; done\ncd {} && eval \"$last\"\n",
        heard.display(),
        env.path("repositories").display()
    );
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let whole = format!(
        "ssh://git@example.com:2222{}#main",
        repository.folder.display()
    );
    for address in ["git@example.com:app.git", &whole] {
        env.dockerfile(&format!("FROM scratch\nADD {address} /x/\n"));
        env.build("one")
            .env("GIT_SSH_COMMAND", &ssh)
            .env("SSH_AUTH_SOCK", "/the/agent")
            .success();
        has_version(&env, "by ssh");
    }
    let heard = fs::read_to_string(heard).unwrap();
    assert!(
        heard.lines().all(|line| line.starts_with("/the/agent ")),
        "{heard}"
    );
    assert!(
        heard.contains(" git@example.com git-upload-pack 'app.git'"),
        "{heard}"
    );
    assert!(heard.contains("-p 2222 git@example.com "), "{heard}");
    // What ssh says is said, and a host that is not known has a hint.
    let script = "#!/bin/sh\nprintf 'Host key verification failed.\\r\\n' >&2; exit 255\n";
    fs::write(&ssh, script).unwrap();
    let failed = env.build("one").env("GIT_SSH_COMMAND", &ssh).failure(1);
    let message = "git ls-remote: Host key verification failed.; fatal: Could not read from remote";
    assert!(failed.stderr.contains(message), "{failed}");
    assert!(
        failed
            .stderr
            .contains("hint: add the host to `~/.ssh/known_hosts`"),
        "{failed}"
    );
}

#[test]
fn an_interrupted_fetch_leaves_nothing() {
    let env = test_env!("git");
    // It takes calls and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("git://{}/x.git", listener.local_addr().unwrap());
    env.dockerfile(&format!("FROM scratch\nADD {url} /x/\n"));
    let build = env.build("one").spawn();
    let (call, _) = listener.accept().unwrap();
    let processes = wait_until("git", || {
        let all = descendants(build.id());
        let git = |process: &crate::traces::Process| process.has_argument("ls-remote");
        all.iter().any(git).then_some(all)
    });
    let id = Pid::from_raw(build.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(id, Signal::INT).unwrap();
    let output = Output::of(build);
    assert_eq!(output.code, Some(130), "{output}");
    let alive: Vec<_> = processes.into_iter().filter(|one| one.is_alive()).collect();
    assert!(alive.is_empty(), "{alive:?}");
    env.no_traces();
    drop(call);
}

#[test]
fn a_machine_that_cannot_fetch_says_why() {
    let env = test_env!("git");
    env.dockerfile("FROM scratch\nADD git://127.0.0.1:1/x.git /x/\n");
    let failed = env.build("one").failure(3);
    assert!(
        failed
            .stderr
            .contains("git ls-remote: fatal: unable to connect"),
        "{failed}"
    );
    let failed = env.build("one").env("PATH", env.path("empty")).failure(3);
    assert!(
        failed.stderr.contains("the program `git` is not installed")
            && failed.stderr.contains("hint: install git on this machine"),
        "{failed}"
    );
}
