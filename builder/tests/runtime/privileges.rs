//! Capabilities and system calls of a step (B5.1, B5.2, B5.5).

use kiln_builder::runtime::Exit;

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
