//! Ends that somebody else brings about.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_builder::runtime::{Cancel, Exit, Native, RuntimeError, Stream};

use crate::env::{Step, native, needs_root};

/// Whether any process of the machine has this argument.
pub(crate) fn is_running(argument: &str) -> bool {
    find(argument).is_some()
}

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// B4.4
#[test]
fn cancelling_kills_grandchildren_too() {
    needs_root!();
    let step = Step::sh("(setsid sleep 66661 &) ; setsid sleep 66662 & echo ready; sleep 66663");
    let cancel = Cancel::new().unwrap();
    let token = cancel.clone();
    let mut cancel_when_ready = |_: Stream, _: &[u8]| token.cancel();
    let result = native().run(&step.spec, &mut cancel_when_ready, &cancel);
    assert!(matches!(result, Err(RuntimeError::Cancelled)), "{result:?}");
    for argument in ["66661", "66662", "66663"] {
        assert!(!is_running(argument), "{argument} is left");
    }
    let again = native().run(&step.spec, &mut |_, _| {}, &cancel);
    assert!(matches!(again, Err(RuntimeError::Cancelled)));
}

#[test]
fn a_step_that_floods_its_output_can_be_cancelled() {
    needs_root!();
    let step = Step::exec(&["yes", "55551"]);
    let cancel = Cancel::new().unwrap();
    let token = cancel.clone();
    let mut read = 0;
    let mut flood = |_: Stream, bytes: &[u8]| {
        read += bytes.len();
        if read > 1 << 20 {
            token.cancel();
        }
    };
    let result = native().run(&step.spec, &mut flood, &cancel);
    assert!(matches!(result, Err(RuntimeError::Cancelled)));
    assert!(!is_running("55551"));
}

fn parent_of(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    parent.unwrap().to_owned()
}

/// The id of a process that has this argument.
fn find(argument: &str) -> Option<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut names = processes.map(|entry| entry.file_name().into_string().unwrap());
    names.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|part| part == argument.as_bytes())
    })
}

#[test]
fn killing_the_keeper_ends_the_step() {
    needs_root!();
    let result = std::thread::scope(|scope| {
        let run = scope.spawn(|| Step::exec(&["sleep", "33331"]).try_run().err());
        wait_until(|| is_running("33331"));
        let outer = parent_of(&find("33331").unwrap());
        let keeper = parent_of(&outer).parse().unwrap();
        let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
        run.join().unwrap()
    });
    assert!(matches!(result, Some(RuntimeError::Lost)), "{result:?}");
    wait_until(|| !is_running("33331"));
}

/// Sandboxes come from one process. Whoever kills it ends the steps that run, not the builder.
#[test]
fn a_killed_server_ends_its_steps_and_is_replaced() {
    needs_root!();
    let native = Native::new(PathBuf::from(env!("CARGO_BIN_EXE_kiln")));
    let run = |args: &[&str]| {
        let step = Step::exec(args);
        native.run(&step.spec, &mut |_, _| {}, &Cancel::new().unwrap())
    };
    assert_eq!(run(&["true"]).unwrap(), Exit::Code(0));
    // Often, as the sandbox that waits for the next step may outlive the server by a moment.
    for _ in 0..10 {
        let killed = std::thread::scope(|scope| {
            let step = scope.spawn(|| run(&["sleep", "22221"]));
            wait_until(|| is_running("22221"));
            let keeper = parent_of(&parent_of(&find("22221").unwrap()));
            let server = parent_of(&keeper).parse().unwrap();
            let server = rustix::process::Pid::from_raw(server).unwrap();
            rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
            step.join().unwrap()
        });
        assert!(matches!(killed, Err(RuntimeError::Lost)), "{killed:?}");
        assert_eq!(run(&["true"]).unwrap(), Exit::Code(0));
        wait_until(|| !is_running("22221"));
    }
}

/// The test runs itself as the builder that is killed.
#[test]
fn killing_the_builder_leaves_no_process() {
    needs_root!();
    if std::env::var_os("KILN_TEST_VICTIM").is_some() {
        // A program that changes its user loses its death signal.
        let step = Step::sh("setsid sleep 44441 & exec su app -c 'echo ready; sleep 44442; true'");
        println!("step: {}", step.directory.path().display());
        let mut print = |_: Stream, bytes: &[u8]| println!("{}", String::from_utf8_lossy(bytes));
        let exit = native().run(&step.spec, &mut print, &Cancel::new().unwrap());
        panic!("ended by itself: {exit:?}");
    }
    let test = "cancel::killing_the_builder_leaves_no_process";
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("KILN_TEST_VICTIM", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut directory = None;
    // Stays open, or the builder would fail before it is killed.
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    for line in lines.by_ref() {
        let line = line.unwrap();
        if let Some((_, path)) = line.split_once("step: ") {
            directory = Some(path.to_owned());
        }
        if line == "ready" {
            break;
        }
    }
    wait_until(|| is_running("44441") && is_running("44442"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until(|| !is_running("44441") && !is_running("44442"));
    // It could not tidy up after itself; its mounts are gone with its processes.
    let directory = directory.unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&directory));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn leftovers_of_a_killed_run_do_not_matter() {
    needs_root!();
    let step = Step::sh("echo fine");
    fs::create_dir_all(step.spec.root.work.join("work/stale")).unwrap();
    fs::create_dir_all(step.spec.root.work.join("incompat/volatile")).unwrap();
    fs::create_dir_all(step.spec.root.work.join("points/proc")).unwrap();
    let outcome = step.run();
    assert_eq!((outcome.exit, &*outcome.stdout), (Exit::Code(0), "fine\n"));
}
