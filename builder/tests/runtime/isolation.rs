//! What a step cannot reach (B5).

use std::fs;

use kiln_builder::runtime::{Exit, Network};

use crate::env::{Step, needs_root};

/// Runs a script as root and expects each line of it to fail.
fn all_fail(script: &str) {
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let outcome = Step::sh(&format!("{line}\n")).run();
        assert_ne!(
            outcome.exit,
            Exit::Code(0),
            "`{line}` succeeded: {}",
            outcome.stdout
        );
    }
}

/// B5.4
#[test]
fn kernel_settings_cannot_be_written() {
    needs_root!();
    all_fail(
        "echo 1 >/proc/sys/kernel/core_pattern
         echo 1 >/proc/sys/vm/drop_caches
         echo b >/proc/sysrq-trigger
         echo x >/sys/kernel/uevent_helper
         mkdir /sys/fs/cgroup/mine
         echo /x >/sys/fs/cgroup/release_agent
         mount -t tmpfs none /tmp
         mount -o remount,rw /sys
         mount -o remount,rw /proc/sys
         umount /proc/kcore
         unshare -m true
         unshare -U true
         hostname other
         dmesg
         swapoff -a",
    );
}

/// B5.4
#[test]
fn masked_paths_are_empty() {
    needs_root!();
    let script = "for path in acpi asound scsi; do ls /proc/$path 2>/dev/null; done
        for path in kcore keys timer_list sched_debug latency_stats interrupts; do
            cat /proc/$path 2>/dev/null
        done
        ls /sys/firmware 2>/dev/null; true";
    assert_eq!(Step::sh(script).output(), "");
    // They exist on the host, or the test would show nothing.
    assert!(fs::metadata("/proc/interrupts").unwrap().is_file());
    assert!(fs::read("/proc/interrupts").is_ok_and(|bytes| !bytes.is_empty()));
}

#[test]
fn only_the_step_itself_is_seen() {
    needs_root!();
    let pids = Step::sh("echo /proc/[0-9]*").output();
    assert_eq!(pids, "/proc/1");
    let mounts = Step::sh("cat /proc/self/mountinfo").output();
    assert!(!mounts.contains("upperdir=/tmp"), "{mounts}");
    assert!(!mounts.contains(" / /mnt"), "{mounts}");
    let root = Step::sh("ls /; ls /..").output();
    assert!(!root.contains("boot"), "{root}");
}

/// The step may make nodes, but none that it makes works.
#[test]
fn disks_of_the_host_cannot_be_opened() {
    needs_root!();
    let numbers = fs::read_to_string("/proc/partitions").unwrap();
    let mut disk = numbers.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        Some((
            fields.next()?.parse::<u32>().ok()?,
            fields.next()?.parse::<u32>().ok()?,
        ))
    });
    let (major, minor) = disk.next_back().unwrap();
    for directory in ["/", "/tmp", "/dev", "/dev/shm", "/scratch"] {
        let path = format!("{directory}/disk");
        let script = format!("mknod {path} b {major} {minor} && head -c 1 {path}");
        let step = Step::sh(&script).mount(crate::env::tmpfs("/scratch"));
        let outcome = step.run();
        assert_ne!(outcome.exit, Exit::Code(0), "{path} was read");
        assert!(outcome.stderr.contains("denied"), "{}", outcome.stderr);
    }
    let made = Step::sh("mknod /null c 1 3");
    assert_eq!(
        made.run().exit,
        Exit::Code(0),
        "making nodes is allowed (B5.2)"
    );
}

/// B3.1
#[test]
fn without_a_network_there_is_only_a_loopback() {
    needs_root!();
    let script = "ls /sys/class/net; cat /sys/class/net/lo/flags; ping -c 1 -W 1 127.0.0.1 >/dev/null; echo $?";
    let mut step = Step::sh(script);
    step.spec.network = Network::None;
    // IFF_UP | IFF_LOOPBACK
    assert_eq!(step.output(), "lo\n0x9\n0");
    let own = Step::exec(&["readlink", "/proc/self/ns/net"]);
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(own.output(), host.to_str().unwrap());
}

#[test]
fn other_namespaces_are_its_own() {
    needs_root!();
    for name in ["mnt", "pid", "ipc", "uts", "cgroup"] {
        let own = Step::exec(&["readlink", &format!("/proc/self/ns/{name}")]).output();
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(own, host.to_str().unwrap(), "{name}");
    }
}

/// The class of CVE-2019-5736: the runtime's own program as the step's.
#[test]
fn the_sandbox_program_cannot_be_overwritten() {
    needs_root!();
    let before = fs::read(env!("CARGO_BIN_EXE_kiln")).unwrap();
    // As its own program, kiln finds itself without the argument that makes it a sandbox.
    drop(Step::exec(&["/proc/self/exe"]).try_run());
    let script = "for n in 1 self; do : >>/proc/$n/exe; : >/proc/$n/exe; done; true";
    drop(Step::sh(script).try_run());
    assert_eq!(fs::read(env!("CARGO_BIN_EXE_kiln")).unwrap(), before);
}
