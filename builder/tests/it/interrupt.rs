//! Ends that come from outside: Ctrl-C, SIGTERM, and kill -9.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Output};

use rustix::process::{Pid, Signal};

use crate::env::{Run, TestEnv, test_env};
use crate::liar::{Fault, Liar};
use crate::traces::{Process, descendants, files, wait_until};

/// A build whose second step runs until it is killed.
const ENDLESS: &str =
    "FROM busybox\nRUN echo first >/first\nRUN (setsid sleep 88888 &); sleep 99999\n";

/// A running kiln that ends with the test.
pub(crate) struct Running(pub(crate) Option<Child>);

impl Running {
    fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    pub(crate) fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Starts the endless build and waits until both processes of its step run.
fn endless(env: &TestEnv) -> (Running, Vec<Process>) {
    started(env.dockerfile(ENDLESS).build("endless"))
}

fn started(run: Run) -> (Running, Vec<Process>) {
    let build = Running(Some(run.spawn()));
    let processes = wait_until("the step's processes", || {
        let all = descendants(build.id());
        let runs = |argument: &str| all.iter().any(|process| process.has_argument(argument));
        (runs("88888") && runs("99999")).then_some(all)
    });
    (build, processes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn interrupted_step(signal: Signal, code: i32) {
    let env = test_env!().with_busybox();
    let (build, processes) = endless(&env);
    build.signal(signal);
    let output = build.end();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("CANCELED"), "{stderr}");
    assert!(stderr.ends_with("cancelled\n"), "{stderr}");
    assert_eq!(text(&output.stdout), "");
    let left: Vec<_> = processes
        .into_iter()
        .filter(|process| process.is_alive())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    env.no_traces();
    // What was finished is remembered, the image is not there, and the store works.
    env.kiln(["inspect", "endless"]).failure(1);
    let again = env
        .dockerfile("FROM busybox\nRUN echo first >/first\nRUN true\n")
        .build("after")
        .success();
    assert!(
        again.stderr.contains("RUN echo first >/first\n#2 CACHED"),
        "{again}"
    );
}

/// DESIGN 3
#[test]
fn ctrl_c_in_a_step_ends_all_of_it_and_exits_130() {
    interrupted_step(Signal::INT, 130);
}

#[test]
fn a_request_to_end_in_a_step_ends_all_of_it_and_exits_143() {
    interrupted_step(Signal::TERM, 143);
}

/// Who stops a build waits for nothing (C5).
#[test]
fn an_interrupted_build_exports_no_cache() {
    let env = test_env!().with_busybox();
    let run = env.dockerfile(ENDLESS).build("endless");
    let (build, _) = started(run.args(["--cache-to", "type=local,dest=cache"]));
    build.signal(Signal::INT);
    let output = build.end();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("cache: "), "{stderr}");
    // The folder is there once the first layer was sent, and names nothing.
    let index = std::fs::read_to_string(env.path("cache/index.json"));
    let index = index.unwrap_or_default();
    assert!(!index.contains("sha256:"), "{index}");
}

#[test]
fn who_waits_for_the_step_of_another_process_says_so_and_can_be_interrupted() {
    let env = test_env!().with_busybox();
    let (first, _) = endless(&env);
    let mut second = Running(Some(env.build("second").spawn()));
    let stderr = second.0.as_mut().and_then(|child| child.stderr.take());
    let mut lines = BufReader::new(stderr.unwrap())
        .lines()
        .map_while(Result::ok);
    let waiting = lines.find(|line| line.contains("waiting for"));
    let said = "waiting for another kiln process, which is executing `[3/3] RUN (setsid";
    assert!(waiting.is_some_and(|line| line.contains(said)));
    second.signal(Signal::INT);
    assert_eq!(lines.last().as_deref(), Some("cancelled"));
    assert_eq!(second.end().status.code(), Some(130));
    first.signal(Signal::INT);
    assert_eq!(first.end().status.code(), Some(130));
    env.no_traces();
}

#[test]
fn ctrl_c_in_a_pull_leaves_the_store_as_it_was() {
    for verb in ["pull", "build"] {
        let env = test_env!().with_busybox();
        let liar = Liar::start(Fault::Stall);
        let before = env.content();
        let run = if verb == "pull" {
            env.kiln(["pull", &liar.name()])
        } else {
            env.dockerfile(&format!("FROM {}\nRUN true\n", liar.name()))
                .build("x")
        };
        let kiln = Running(Some(run.spawn()));
        wait_until("half of the layer to be sent", || {
            liar.stalls().then_some(())
        });
        kiln.signal(Signal::INT);
        let output = kiln.end();
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        env.no_traces();
        env.same_content(&before);
    }
}

#[test]
fn after_a_kill_nothing_runs_and_the_next_kiln_tidies_up() {
    let env = test_env!().with_busybox();
    let (build, processes) = endless(&env);
    build.signal(Signal::KILL);
    build.end();
    wait_until("the end of the step", || {
        (!processes.iter().any(|process| process.is_alive())).then_some(())
    });
    env.no_mounts();
    assert!(
        !files(&env.store().join("tmp")).is_empty(),
        "the killed build had begun nothing"
    );
    env.kiln(["images"]).success();
    env.no_traces();
    let again = env
        .dockerfile("FROM busybox\nRUN echo first >/first\nRUN cat /first\n")
        .build("after")
        .success();
    assert!(
        again.stderr.contains("RUN echo first >/first\n#2 CACHED"),
        "{again}"
    );
    env.no_traces();
}
