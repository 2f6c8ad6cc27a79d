//! Attacks on other processes, and processes that want to stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use kiln_builder::runtime::{Cancel, Stream};

use super::{on_the_host, stopped_by};
use crate::cancel::is_running;
use crate::compare;
use crate::env::{Step, native, needs_root};

struct Victim(Child);

impl Victim {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The host's processes, the builder and the sandbox's own among them, cannot be seen, traced, read
/// or signalled.
#[test]
fn processes_of_the_host_are_out_of_reach() {
    needs_root!();
    let victim = Victim::new();
    let pid = victim.0.id().to_string();
    for attack in ["kill", "ptrace", "memory", "pidfd"] {
        assert_eq!(stopped_by(&[attack, &pid]), libc::ESRCH, "{attack}");
        assert_eq!(on_the_host(&[attack, &pid]), 0, "{attack}");
    }
    let script = format!(
        "ls -d /proc/{pid} /proc/{} 2>/dev/null; kill -9 -1; true",
        std::process::id()
    );
    assert_eq!(Step::sh(&script).output(), "");
    assert_eq!(on_the_host(&["kill", &pid]), 0, "it lives");
}

/// The first process has no parent that it sees, and its process group is its own.
#[test]
fn the_parent_cannot_be_reached() {
    needs_root!();
    let status = Step::exec(&[
        "grep",
        "-E",
        "^(PPid|TracerPid|NSpid|NSsid|NSpgid)",
        "/proc/self/status",
    ]);
    let status = status.output();
    assert!(status.contains("PPid:\t0"), "{status}");
    for attack in ["kill", "ptrace", "memory", "pidfd"] {
        for pid in ["0", "4194303"] {
            if (attack, pid) == ("kill", "0") {
                continue;
            }
            let error = stopped_by(&[attack, pid]);
            let expected = [libc::ESRCH, libc::EINVAL, libc::EPERM];
            assert!(expected.contains(&error), "{attack} of {pid}: {error}");
        }
    }
    // A signal to its own group does not reach the sandbox around it.
    assert_eq!(
        Step::sh("trap '' TERM; kill -TERM 0; echo alive").output(),
        "alive"
    );
}

/// Whatever a process does to outlive the step: setsid, no parent, no signals.
#[test]
fn no_process_outlives_its_step() {
    needs_root!();
    let script = "
        (setsid sh -c 'trap \"\" TERM HUP INT QUIT; sleep 77771 & wait' &) &
        (trap '' HUP TERM; sleep 77772 >/dev/null 2>&1 </dev/null &) &
        (setsid setsid sleep 77773 </dev/null >/dev/null 2>&1 &) &
        until test $(grep -lx sleep /proc/[0-9]*/comm 2>/dev/null | wc -l) = 3; do :; done
        echo STARTED";
    let started = Instant::now();
    let outcome = Step::sh(script).run();
    assert_eq!(outcome.stdout, "STARTED\n", "{}", outcome.stderr);
    assert!(started.elapsed().as_secs() < 20, "nobody waits for them");
    for argument in ["77771", "77772", "77773"] {
        assert!(!is_running(argument), "{argument} is left");
    }
}

/// A fork bomb ends at the limit, and with the step.
#[test]
fn a_fork_bomb_stays_in_its_limit() {
    needs_root!();
    let script = "bomb() { sleep 88881 & bomb; }; bomb 2>&1; true";
    let mut step = Step::sh(script).user("4711:4711");
    step.spec.rlimits = vec![("nproc".to_owned(), 40, 40)];
    let outcome = step.run();
    assert!(outcome.stdout.contains("can't fork"), "{}", outcome.stdout);
    assert!(!is_running("88881"));
    // Without it, that many processes are no problem.
    let many = "n=0; while test $n -lt 60; do sleep 88882 & n=$((n+1)); done; echo ALL";
    let mut step = Step::sh(many).user("4711:4711");
    assert_eq!(step.output(), "ALL");
    step.spec.rlimits = vec![("nproc".to_owned(), 40, 40)];
    assert!(!step.run().stdout.contains("ALL"));
    assert!(!is_running("88882"));
}

/// The same by a control group, in all hierarchies that have a limit for processes.
#[test]
fn a_fork_bomb_stays_in_its_control_group() {
    needs_root!();
    let _alone = compare::alone();
    for core in [native(), compare::core("crun"), compare::core("runc")] {
        let group = Group::new(64);
        let script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null
            { echo max >/sys/fs/cgroup/pids/pids.max; } 2>/dev/null && echo ESCAPED
            bomb() { sleep 88883 & bomb; }; bomb 2>&1; true";
        let mut step = Step::sh(script);
        step.spec.cgroups = vec![group.0.join("cgroup.procs")];
        let mut stdout = Vec::new();
        let mut collect = |stream, bytes: &[u8]| {
            if stream == Stream::Stdout {
                stdout.extend_from_slice(bytes);
            }
        };
        let cancel = Cancel::new().unwrap();
        core.run(&step.spec, &mut collect, &cancel).unwrap();
        let stdout = String::from_utf8_lossy(&stdout);
        assert!(stdout.contains("can't fork"), "{stdout}");
        assert!(!stdout.contains("ESCAPED"), "{stdout}");
        assert!(!is_running("88883"));
    }
}

/// A control group with a limit of processes, gone at the end.
struct Group(PathBuf);

impl Group {
    fn new(limit: u32) -> Self {
        let old = Path::new("/sys/fs/cgroup/pids");
        let top = if old.is_dir() {
            old
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let group = top.join(format!("attack-{}", std::process::id()));
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("pids.max"), limit.to_string()).unwrap();
        Self(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

/// What it leaves in memory is not the host's, and goes.
#[test]
fn shared_memory_and_queues_are_the_steps_own() {
    needs_root!();
    let segments = || {
        fs::read_to_string("/proc/sysvipc/shm")
            .unwrap()
            .lines()
            .count()
    };
    let before = segments();
    let script = "echo x >/dev/shm/kiln-attack; echo $(($(wc -l </proc/sysvipc/shm)-1))";
    assert_eq!(Step::sh(script).output(), "0");
    assert_eq!(segments(), before);
    assert!(fs::metadata("/dev/shm/kiln-attack").is_err());
}
