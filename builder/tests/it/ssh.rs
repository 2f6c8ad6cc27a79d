//! `RUN --mount=type=ssh` with OpenSSH's own programs in the step (B2, B7.2).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::env::{TestEnv, test_env};
use crate::traces::wait_until;

/// A signature made by an agent, and looked at by `ssh-keygen`.
const SIGN: &str = "cd $(mktemp -d) && echo data >data \
                    && ssh-keygen -q -Y sign -f /key.pub -n file data \
                    && echo \"me $(cat /key.pub)\" >allowed \
                    && ssh-keygen -Y verify -f allowed -I me -n file -s data.sig <data";

/// An agent that ends with the test.
struct SshAgent(Child, PathBuf);

impl SshAgent {
    fn start(env: &TestEnv) -> Self {
        let socket = env.path("agent");
        let agent = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the agent", || socket.exists().then_some(()));
        Self(agent, socket)
    }

    /// `ssh-add` outside of any step.
    fn add(&self, env: &TestEnv, args: &[&str]) -> String {
        let run = env.program("ssh-add", args.iter().copied());
        run.env("SSH_AUTH_SOCK", &self.1).success().stdout
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An image with `ssh-add` and `ssh-keygen` of this machine; the public key of `key` is in it.
fn with_tools(env: TestEnv, kind: &[&str]) -> TestEnv {
    for program in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        copy(&env, Path::new(program));
        let libraries = env.program("ldd", [program]).success().stdout;
        let words = libraries.split_whitespace();
        for library in words.filter(|word| word.starts_with('/')) {
            copy(&env, Path::new(library));
        }
    }
    key(&env, "key", kind);
    fs::copy(env.path("key.pub"), env.context().join("root/key.pub")).unwrap();
    env.file(
        "root/etc/passwd",
        "root:x:0:0::/tmp:/bin/sh\napp:x:7:7::/tmp:/bin/sh\n",
    );
    env.built("tools", "FROM busybox\nCOPY root /\n");
    env
}

fn copy(env: &TestEnv, path: &Path) {
    let bytes = fs::read(path).unwrap();
    let name = format!("root{}", path.display());
    env.file(&name, bytes);
    let to = env.context().join(name);
    fs::set_permissions(to, fs::metadata(path).unwrap().permissions()).unwrap();
}

fn key(env: &TestEnv, name: &str, kind: &[&str]) {
    let args = ["-q", "-N", "", "-C", "a comment", "-f", name];
    let args = args.into_iter().chain(kind.iter().copied());
    env.program("ssh-keygen", args).success();
}

#[test]
fn b2_a_step_lists_and_signs_with_the_agent_of_the_user_and_can_do_nothing_else() {
    let env = test_env!("ssh-agent", "ssh-add", "ssh-keygen", "ldd").with_busybox();
    let env = with_tools(env, &["-t", "ed25519"]);
    let agent = SshAgent::start(&env);
    agent.add(&env, &["-q", "key"]);
    let text = format!(
        "FROM tools\n\
         RUN --mount=type=ssh ssh-add -l && test $SSH_AUTH_SOCK = /run/buildkit/ssh_agent.0\n\
         RUN --mount=type=ssh {SIGN}\n\
         RUN --mount=type=ssh ! ssh-add -D && ! ssh-add -d /key.pub && ssh-add -l\n\
         RUN --mount=type=ssh stat -c '%a %u:%g %F' $SSH_AUTH_SOCK | grep -x '600 0:0 socket'\n\
         RUN --mount=type=ssh,id=none --mount=type=ssh,target=/sock --mount=type=ssh \
         test $SSH_AUTH_SOCK = /sock && SSH_AUTH_SOCK=/run/buildkit/ssh_agent.2 ssh-add -l\n\
         RUN --mount=type=ssh,id=none test -z \"$SSH_AUTH_SOCK\" && test ! -e /run\n\
         ENV SSH_AUTH_SOCK=/mine\n\
         RUN --mount=type=ssh,target=/mine,uid=7,mode=0600 test $SSH_AUTH_SOCK = /mine\n\
         USER app\n\
         RUN --mount=type=ssh,target=/mine,uid=7 {SIGN}\n\
         RUN --mount=type=ssh,target=/mine ! ssh-add -l\n\
         RUN test ! -e /run && test ! -e /mine\n"
    );
    let build = || {
        let build = env.dockerfile(&text).build("x").args(["--ssh", "default"]);
        build.env("SSH_AUTH_SOCK", &agent.1)
    };
    let output = build().success();
    assert!(output.stderr.contains("a comment (ED25519)"), "{output}");
    assert_eq!(
        output
            .stderr
            .matches("Good \"file\" signature for me")
            .count(),
        2,
        "{output}"
    );
    assert!(
        agent.add(&env, &["-l"]).contains("a comment"),
        "it is still there"
    );
    env.no_traces();
    // Neither what the agent holds is in the key, nor that there is one.
    let again = env.build("x").success();
    assert!(!again.stderr.contains("ED25519"), "{again}");
    let named = env.build("x").args(["--no-cache", "--ssh", "=agent"]);
    assert!(named.success().stderr.contains("ED25519"));
}

#[test]
fn b7_2_keys_from_files_sign_and_stay_outside() {
    for kind in [
        &["-t", "ed25519"][..],
        &["-t", "rsa", "-b", "2048"],
        &["-t", "ecdsa", "-b", "384"],
    ] {
        let env = test_env!("ssh-add", "ssh-keygen", "ldd").with_busybox();
        let env = with_tools(env, kind);
        key(&env, "other", &["-t", "ecdsa"]);
        let text = format!(
            "FROM tools\nRUN --mount=type=ssh,id=deploy test $(ssh-add -l | wc -l) = 2 && {SIGN}\n"
        );
        let build = env.dockerfile(&text).build("x");
        let output = build.args(["--ssh", "deploy=key,other"]).success();
        assert!(
            output.stderr.contains("Good \"file\" signature for me"),
            "{output}"
        );
        let private = fs::read_to_string(env.path("key")).unwrap();
        let line = private.lines().nth(2).unwrap();
        let saved = env.kiln(["save", "x"]).success().bytes;
        assert!(
            !saved
                .windows(line.len())
                .any(|part| part == line.as_bytes())
        );
    }
}

#[test]
fn b7_2_what_is_wrong_with_agents_is_said_before_the_build() {
    let env = test_env!("ssh-keygen");
    env.dockerfile("FROM nothing.invalid/at/all\n");
    let args = ["-q", "-N", "secret phrase", "-f", "locked", "-t", "ed25519"];
    env.program("ssh-keygen", args).success();
    key(&env, "key", &["-t", "ed25519"]);
    let _listener = std::os::unix::net::UnixListener::bind(env.path("agent")).unwrap();
    fs::write(env.path("none"), "no key").unwrap();
    for (flags, code, error) in [
        (
            &["default"][..],
            1,
            "invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set",
        ),
        (
            &["x=missing"],
            1,
            "ssh x: cannot read `missing`: no such file or directory",
        ),
        (
            &["x=none"],
            1,
            "ssh x: failed to parse `none`: no private key in PEM",
        ),
        (
            &["x=locked"],
            1,
            "hint: add it to an agent with `ssh-add locked`, and pass `--ssh x`",
        ),
        (
            &["x=key,agent"],
            125,
            "invalid combination of keys and sockets",
        ),
        (&["x=key", "x=key"], 125, "invalid duplicate ID x"),
    ] {
        let mut build = env.build("x");
        for flag in flags {
            build = build.args(["--ssh", flag]);
        }
        let output = build.failure(code);
        assert!(output.stderr.contains(error), "{error}\n{output}");
    }
}
