//! Capabilities and system calls of a step (B5.1, B5.2, B5.5).

use kiln_builder::runtime::{Exit, Privileges, Seccomp};

use crate::env::{Step, needs_root};
use crate::probe;

fn status(step: &Step) -> Vec<(String, String)> {
    let text = step.output();
    let lines = text.lines().filter_map(|line| line.split_once(":\t"));
    lines
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn assert_status(step: &Step, expected: &[(&str, &str)]) {
    let status = status(step);
    for (name, value) in expected {
        let found = status.iter().find(|(found, _)| found == name).unwrap();
        assert_eq!(found.1, *value, "{name}");
    }
}

/// B5.2: the fourteen, as docker has them.
const FOURTEEN: &str = "00000000a80425fb";
const NONE: &str = "0000000000000000";

#[test]
fn root_has_the_default_capabilities() {
    needs_root!();
    assert_status(
        &Step::exec(&["cat", "/proc/self/status"]),
        &[
            ("CapInh", NONE),
            ("CapPrm", FOURTEEN),
            ("CapEff", FOURTEEN),
            ("CapBnd", FOURTEEN),
            ("CapAmb", NONE),
            ("NoNewPrivs", "0"),
            ("Seccomp", "2"),
            ("SigIgn", NONE),
            ("SigBlk", NONE),
        ],
    );
}

#[test]
fn another_user_has_none() {
    needs_root!();
    assert_status(
        &Step::exec(&["cat", "/proc/self/status"]).user("app"),
        &[
            ("CapInh", NONE),
            ("CapPrm", NONE),
            ("CapEff", NONE),
            ("CapBnd", FOURTEEN),
            ("CapAmb", NONE),
        ],
    );
}

/// B5.1: set-user-id programs work.
#[test]
fn set_user_id_works() {
    needs_root!();
    let step = Step::sh("/bin/suid id -u").user("app").layer(|layer| {
        let bin = layer.join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::copy("/bin/busybox", bin.join("suid")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o4755);
        rustix::fs::chmod(bin.join("suid"), mode).unwrap();
    });
    // busybox under another name runs no applet: its own complaint proves that it started.
    assert_ne!(step.run().exit, Exit::Code(126));
    let nosuid = Step::sh("grep ' / / ' /proc/self/mountinfo").output();
    assert!(
        nosuid.contains("nodev") && !nosuid.contains("nosuid"),
        "{nosuid}"
    );
}

/// B5.5 against the running kernel: what a call fails with.
#[test]
#[cfg(target_arch = "x86_64")]
fn system_calls_are_filtered() {
    needs_root!();
    const EPERM: i32 = 1;
    const EBADF: i32 = 9;
    const EINVAL: i32 = 22;
    const ENOSYS: i32 = 38;
    let newns = 0x2_0000;
    for (name, number, argument, expected) in [
        ("mount", 165, 0, EPERM),
        ("umount2", 166, 0, EPERM),
        ("pivot_root", 155, 0, EPERM),
        ("unshare", 272, newns, EPERM),
        ("setns", 308, 0, EPERM),
        ("keyctl", 250, 0, EPERM),
        ("add_key", 248, 0, EPERM),
        ("bpf", 321, 0, EPERM),
        ("kexec_load", 246, 0, EPERM),
        ("init_module", 175, 0, EPERM),
        ("reboot", 169, 0, EPERM),
        ("swapon", 167, 0, EPERM),
        ("settimeofday", 164, 0, EPERM),
        ("open_by_handle_at", 304, 0, EPERM),
        ("userfaultfd", 323, 0, EPERM),
        ("io_uring_setup", 425, 0, EPERM),
        ("clone of a namespace", 56, newns | 17, EPERM),
        ("clone3", 435, 0, ENOSYS),
        ("a call of the future", 1000, 0, ENOSYS),
        ("socket AF_VSOCK", 41, 40, EPERM),
        ("socket AF_ALG", 41, 38, EPERM),
        ("personality ADDR_NO_RANDOMIZE", 135, 0x4_0000, EPERM),
        // These reach the kernel.
        ("close", 3, 99, EBADF),
        ("fchdir", 81, 99, EBADF),
        ("pipe2", 293, 0, 14),
        ("dup3", 292, 0, EINVAL),
        ("personality query", 135, 0xffff_ffff, 0),
        ("getuid", 102, 0, 0),
    ] {
        let step = Step::exec(&["/probe"]).layer(|layer| {
            probe::write(&layer.join("probe"), &probe::amd64(number, argument));
        });
        assert_eq!(step.run().exit, Exit::Code(expected), "{name}");
    }
}

/// B5.5: i386 programs run, and are filtered too.
#[test]
#[cfg(target_arch = "x86_64")]
fn programs_of_i386_run() {
    needs_root!();
    let run = |number, argument| {
        let step = Step::exec(&["/probe"]).layer(|layer| {
            probe::write(&layer.join("probe"), &probe::i386(number, argument));
        });
        step.try_run()
    };
    match run(24, 0) {
        // A kernel without the emulation.
        Err(kiln_builder::runtime::RuntimeError::Format { .. }) => return,
        result => assert_eq!(result.unwrap().exit, Exit::Code(0), "getuid"),
    }
    assert_eq!(run(21, 0).unwrap().exit, Exit::Code(1), "mount");
    assert_eq!(run(310, 0x2_0000).unwrap().exit, Exit::Code(1), "unshare");
    assert_eq!(run(6, 99).unwrap().exit, Exit::Code(9), "close");
}

/// `--security-opt seccomp=unconfined`: no filter, and nothing else changes.
#[test]
#[cfg(target_arch = "x86_64")]
fn without_a_filter_the_capabilities_stay() {
    needs_root!();
    let mut step = Step::exec(&["cat", "/proc/self/status"]);
    step.spec.privileges = Privileges::Sandbox(Seccomp::Unconfined);
    assert_status(
        &step,
        &[("Seccomp", "0"), ("CapEff", FOURTEEN), ("CapBnd", FOURTEEN)],
    );
    // personality(ADDR_NO_RANDOMIZE), which the default refuses
    assert_eq!(filtered(Seccomp::Unconfined, 135, 0x4_0000), Exit::Code(0));
    assert_eq!(filtered(Seccomp::Default, 135, 0x4_0000), Exit::Code(1));
}

/// Runs a program that makes one call.
#[cfg(target_arch = "x86_64")]
fn filtered(seccomp: Seccomp, number: u32, argument: u64) -> Exit {
    let mut step = Step::exec(&["/probe"]).layer(|layer| {
        probe::write(&layer.join("probe"), &probe::amd64(number, argument));
    });
    step.spec.privileges = Privileges::Sandbox(seccomp);
    step.run().exit
}

/// B5.5: a profile of the user's, against the running kernel.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_profile_is_obeyed() {
    needs_root!();
    let profile = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71 },
            { "names": ["getgid"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["geteuid"], "action": "SCMP_ACT_TRAP" },
            { "names": ["getegid"], "action": "SCMP_ACT_TRACE" },
            { "names": ["fchdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
              "args": [{ "index": 0, "value": 96, "op": "SCMP_CMP_GT" }] },
            { "names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6,
              "args": [{ "index": 0, "value": 8589934592, "valueTwo": 8589934592, "op": "SCMP_CMP_MASKED_EQ" }] }
        ]
    }"#;
    for (name, number, argument, expected) in [
        ("getuid", 102, 0, Exit::Code(71)),
        ("getgid", 104, 0, Exit::Signal(libc::SIGSYS)),
        ("geteuid", 107, 0, Exit::Signal(libc::SIGSYS)),
        ("getegid without a tracer", 108, 0, Exit::Code(38)),
        ("fchdir 97", 81, 97, Exit::Code(5)),
        ("fchdir 96", 81, 96, Exit::Code(9)),
        (
            "personality bit 33",
            135,
            1 << 33 | 0xffff_ffff,
            Exit::Code(6),
        ),
        (
            "personality bit 34",
            135,
            1 << 34 | 0xffff_ffff,
            Exit::Code(0),
        ),
        // The kernel refuses it, not the filter: there is no CAP_SYS_ADMIN.
        ("unshare", 272, 0x2_0000, Exit::Code(1)),
    ] {
        let seccomp = Seccomp::Profile(profile.to_owned());
        assert_eq!(filtered(seccomp, number, argument), expected, "{name}");
    }
}

fn insecure(script: &str) -> Step {
    let mut step = Step::sh(script);
    step.spec.privileges = Privileges::Insecure;
    step
}

/// B3.2: all capabilities, none ambient, no filter.
#[test]
fn an_insecure_step_has_all_capabilities() {
    needs_root!();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let all = own.lines().find_map(|line| line.strip_prefix("CapPrm:\t"));
    let all = all.unwrap();
    let mut step = insecure("cat /proc/self/status");
    let expected = |effective| {
        [
            ("CapInh", NONE),
            ("CapPrm", effective),
            ("CapEff", effective),
            ("CapBnd", all),
            ("CapAmb", NONE),
            ("NoNewPrivs", "0"),
            ("Seccomp", "0"),
        ]
    };
    assert_status(&step, &expected(all));
    "app".clone_into(&mut step.spec.user);
    assert_status(&step, &expected(NONE));
}

/// B3.2: nothing is masked or read-only, and devices open.
#[test]
fn an_insecure_step_reaches_the_machine() {
    needs_root!();
    // The kernel's log, which is on every machine: that it opens is enough.
    let script = "set -e
        mount -t tmpfs none /tmp
        unshare -m true
        grep -q . /proc/interrupts
        test -w /proc/sys/vm/drop_caches
        grep -q '/sys sysfs rw' /proc/mounts
        if test -d /sys/fs/cgroup/pids; then cd /sys/fs/cgroup/pids; else cd /sys/fs/cgroup; fi
        mkdir kiln-test
        rmdir kiln-test
        for node in /node /dev/node; do
            mknod $node c 1 11
            : <$node
            rm $node
        done";
    let outcome = insecure(script).run();
    assert_eq!(outcome.exit, Exit::Code(0), "{}", outcome.stderr);
    for name in ["fuse", "kvm", "kmsg", "loop-control", "loop0", "net/tun"] {
        if std::fs::metadata(format!("/dev/{name}")).is_ok() {
            let script = format!("test -e /dev/{name}");
            assert_eq!(insecure(&script).run().exit, Exit::Code(0), "{name}");
            assert_ne!(Step::sh(&script).run().exit, Exit::Code(0), "{name}");
        }
    }
}
