//! What steps may use of the machine (B4.5), and flags of old scripts (C2).

use std::fs;
use std::path::PathBuf;

use crate::env::{Output, TestEnv, test_env};
use crate::traces::wait_until;

/// A name for a group that all of a test's groups are made in.
fn parent(test: &str) -> String {
    format!("kiln-it-{test}-{}", std::process::id())
}

/// The groups of that name, in all hierarchies.
fn groups(parent: &str) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new("/sys/fs/cgroup").max_depth(4);
    // groups of others come and go meanwhile
    let entries = entries.into_iter().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_dir() && entry.file_name() == parent)
        .map(walkdir::DirEntry::into_path)
        .collect()
}

/// The content of a file in the only step's group, in whichever hierarchy has it.
fn setting(parent: &str, names: [&str; 2]) -> String {
    let steps = groups(parent);
    let steps = steps.iter().flat_map(|group| fs::read_dir(group).unwrap());
    let steps: Vec<_> = steps.map(|entry| entry.unwrap().path()).collect();
    let files = steps
        .iter()
        .flat_map(|step| names.map(|name| step.join(name)));
    let mut texts = files.filter_map(|file| fs::read_to_string(file).ok());
    texts.next().unwrap_or_default().trim().to_owned()
}

fn run(env: &TestEnv, parent: &str, command: &str, args: &[&str]) -> crate::env::Run {
    env.dockerfile(&format!("FROM busybox\nRUN {command}\n"));
    let parent = format!("--cgroup-parent=/{parent}");
    env.build("image").arg(parent).args(args.iter().copied())
}

/// Uses memory without an end.
const HUNGRY: &str = "x=0123456789; while true; do x=$x$x; done";

#[test]
fn b4_5_a_memory_kill_is_told_with_limit_peak_and_process() {
    let env = test_env!().with_busybox();
    let parent = parent("kill");
    let failed = run(&env, &parent, HUNGRY, &["--memory", "32m"]).failure(1);
    let told = "was killed: memory limit 32 MiB reached, peak 3";
    assert!(failed.stderr.contains(told), "{failed}");
    assert!(failed.stderr.contains("MiB, process sh\n"), "{failed}");
    assert!(groups(&parent).is_empty(), "{:?}", groups(&parent));
    // What it left can be looked at, as after any other end.
    assert!(failed.stderr.contains("shell --failed"), "{failed}");
    env.kiln(["shell", "--failed", "--", "true"]).success();
}

#[test]
fn b4_5_a_memory_kill_is_told_also_when_the_shell_says_something_else() {
    let env = test_env!().with_busybox();
    let parent = parent("child");
    let hungry = format!("sh -c '{HUNGRY}' || exit 3");
    let failed = run(&env, &parent, &hungry, &["-m", "32m"]).failure(1);
    let told = "did not complete successfully: exit code: 3: one of its processes was killed: memory limit 32 MiB reached";
    assert!(failed.stderr.contains(told), "{failed}");
    let hungry = format!("sh -c '{HUNGRY}' || true");
    let built = run(&env, &parent, &hungry, &["--resource", "memory=32m"]).success();
    let told = "was killed, and the step succeeded all the same: memory limit 32 MiB reached";
    assert_eq!(built.stderr.matches(told).count(), 1, "{built}");
    assert!(groups(&parent).is_empty());
}

#[test]
fn b4_5_a_limit_of_processes_holds_and_is_named() {
    let env = test_env!().with_busybox();
    let parent = parent("pids");
    let many = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait; exit 4";
    let failed = run(&env, &parent, many, &["--pids-limit", "8"]).failure(1);
    assert!(failed.stderr.contains("--pids-limit: "), "{failed}");
    assert!(failed.stderr.contains("because there were 8\n"), "{failed}");
    assert!(groups(&parent).is_empty());
}

#[test]
fn b4_5_all_limits_are_those_of_the_steps_group_and_a_killed_kiln_leaves_none_for_long() {
    let env = test_env!().with_busybox();
    let parent = parent("all");
    let args = [
        "--memory=64m",
        "--cpus=0.5",
        "--cpu-shares=512",
        "--cpuset-cpus=0",
        "--cpuset-mems=0",
        "--pids-limit=77",
    ];
    let mut build = run(&env, &parent, "sleep 55555", &args).spawn();
    wait_until("the step", || {
        (!setting(&parent, ["cgroup.procs"; 2]).is_empty()).then_some(())
    });
    for (names, values) in [
        (["memory.limit_in_bytes", "memory.max"], ["67108864"; 2]),
        (["cpu.cfs_quota_us", "cpu.max"], ["50000", "50000 100000"]),
        (["cpu.shares", "cpu.weight"], ["512", "20"]),
        (["cpuset.cpus"; 2], ["0"; 2]),
        (["cpuset.mems"; 2], ["0"; 2]),
        (["pids.max"; 2], ["77"; 2]),
    ] {
        let value = setting(&parent, names);
        assert!(values.contains(&value.as_str()), "{names:?}: {value}");
    }
    build.kill().unwrap();
    drop(Output::of(build));
    // The next kiln finds the groups and takes them away, as soon as what was in them has ended.
    run(
        &env,
        &parent,
        "grep Cpus_allowed_list /proc/self/status >/cpus",
        &args,
    )
    .success();
    assert_eq!(env.saved("image").text("cpus"), "Cpus_allowed_list:\t0\n");
    for group in groups(&parent) {
        let below = fs::read_dir(&group).unwrap().flatten();
        let left = below.filter(|entry| entry.path().is_dir()).count();
        assert_eq!(left, 0, "{}", group.display());
        // It was there when the second kiln came.
        fs::remove_dir(group).unwrap();
    }
}

#[test]
fn b4_5_what_cannot_be_kept_is_an_error_that_names_the_flag() {
    let env = test_env!().with_busybox();
    let parent = parent("refused");
    let refused = run(&env, &parent, "true", &["--cpuset-cpus=99999"]).failure(3);
    let told = "--cpuset-cpus cannot be kept: `99999` is refused by `cpuset.cpus`: ";
    assert!(refused.stderr.contains(told), "{refused}");
    let most: u64 = fs::read_to_string("/proc/sys/fs/nr_open")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let limit = format!("--ulimit=nofile=1:{}", most + 1);
    let refused = run(&env, &parent, "true", &[&limit]).failure(3);
    let told = "cannot set --ulimit `nofile`: the hard limit may not be raised from ";
    assert!(refused.stderr.contains(told), "{refused}");
    assert!(groups(&parent).is_empty());
    for (args, told) in [
        (&["--memory", "1m"][..], "invalid value `1m` for --memory"),
        (
            &["--ulimit", "files=1"],
            "unknown limit `files` in --ulimit",
        ),
        (&["--add-host", "x"], "bad format for --add-host"),
        (&["--resource", "disk=1"], "unknown resource `disk`"),
        (&["--squash"], "--squash is not supported"),
    ] {
        let refused = env.build("x").args(args.iter().copied()).failure(125);
        assert!(refused.stderr.contains(told), "{refused}");
    }
}

#[test]
fn b4_5_ulimits_and_the_size_of_shm_reach_the_step() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\nRUN ulimit -Sn >/soft; ulimit -Hn >/hard; ulimit -c >/core; df -m /dev/shm | tail -n 1 >/shm\n",
    );
    let args = [
        "--ulimit=nofile=100:200",
        "--ulimit=core=-1",
        "--shm-size=10m",
    ];
    env.build("image").args(args).success();
    let image = env.saved("image");
    assert_eq!(
        (image.text("soft"), image.text("hard")),
        ("100\n".into(), "200\n".into())
    );
    assert_eq!(image.text("core"), "unlimited\n");
    let shm = image.text("shm");
    assert_eq!(shm.split_whitespace().nth(1), Some("10"), "{shm}");
}

/// A15.2: limits and names of hosts are in a step's key, addresses and groups are not.
#[test]
fn a15_2_limits_are_in_the_key() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN true\n");
    let cached = |args: &[&str]| {
        let built = env.build("image").args(args.iter().copied()).success();
        built.stderr.matches("CACHED").count() == 2
    };
    assert!(!cached(&[]));
    assert!(cached(&[]));
    assert!(!cached(&["--ulimit", "nofile=99"]));
    assert!(!cached(&["--add-host", "db:10.0.0.1"]));
    assert!(cached(&["--add-host", "db:10.0.0.2"]));
    assert!(!cached(&["--pids-limit", "1000"]));
    let parent = format!("--cgroup-parent={}", parent("key"));
    assert!(cached(&["--resource", "pids-limit=1000", &parent]));
    assert!(cached(&[
        "--rm",
        "--force-rm=false",
        "--network",
        "default"
    ]));
}

#[test]
fn c2_flags_of_old_scripts_are_said_to_mean_nothing() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\n");
    let flags = [
        "--rm",
        "--force-rm",
        "--compress",
        "--builder",
        "x",
        "--disable-content-trust=false",
    ];
    let built = env.build("image").args(flags).success();
    let told = "warning: --rm, --force-rm, --compress, --disable-content-trust, --builder have no effect with kiln\n";
    assert!(built.stderr.contains(told), "{built}");
}
