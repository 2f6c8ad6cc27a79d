//! Known ways out of a container, each tried from inside a step and shown to fail.
//!
//! An attack prints ESCAPED where it succeeds. That it is a real one is shown too: the same attack
//! succeeds with `--security=insecure`, or on the host.

mod images;
mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kiln_builder::runtime::{Cancel, Exit, Native, Network, Privileges};
use tempfile::TempDir;

use crate::env::{Step, needs_root, tmpfs};

/// `attack.c`, compiled without libraries.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROGRAM.get_or_init(|| {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("attack");
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/runtime/attacks/attack.c"
        );
        let mut compiler = Command::new("gcc");
        compiler.args(["-static", "-O1", "-Wall", "-Werror"]);
        compiler.arg(concat!("-DKILN=\"", env!("CARGO_BIN_EXE_kiln"), "\""));
        compiler.arg("-o");
        let status = compiler.arg(&path).arg(source).status().unwrap();
        assert!(status.success(), "gcc cannot compile {source}");
        (directory, path)
    });
    path
}

/// A step with `/attack`.
fn armed(args: &[&str]) -> Step {
    let args: Vec<_> = ["/attack"].iter().chain(args).copied().collect();
    Step::exec(&args).layer(|layer| {
        fs::copy(program(), layer.join("attack")).unwrap();
    })
}

/// The error that stops an attack in a step; 0 for none.
fn stopped_by(args: &[&str]) -> i32 {
    code(&armed(args))
}

fn code(step: &Step) -> i32 {
    match step.run().exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => panic!("signal {signal}"),
    }
}

/// The same with all rights.
fn with_all_rights(args: &[&str]) -> i32 {
    let mut step = armed(args);
    step.spec.privileges = Privileges::Insecure;
    code(&step)
}

/// The same on the host.
fn on_the_host(args: &[&str]) -> i32 {
    let status = Command::new(program()).args(args).status().unwrap();
    status.code().unwrap()
}

/// Tries a script in a step, and with all rights, where it succeeds.
fn contained(script: &str) {
    let escaped = |outcome: &crate::env::Outcome| outcome.stdout.contains("ESCAPED");
    let step = || Step::sh(script).mount(tmpfs("/scratch"));
    let outcome = step().run();
    assert!(!escaped(&outcome), "`{script}` escapes");
    assert!(!outcome.stderr.is_empty(), "`{script}` says why it fails");
    let mut step = step();
    step.spec.privileges = Privileges::Insecure;
    let outcome = step.run();
    let stderr = outcome.stderr.as_str();
    assert!(escaped(&outcome), "`{script}` is no attack: {stderr}");
}

/// B5.4
#[test]
fn settings_of_the_kernel_cannot_be_written() {
    needs_root!();
    contained("f=/proc/sys/kernel/core_pattern; v=$(cat $f); echo \"$v\" >$f && echo ESCAPED");
    contained("f=/proc/sys/vm/swappiness; v=$(cat $f); echo \"$v\" >$f && echo ESCAPED");
    if Path::new("/proc/sysrq-trigger").exists() {
        contained("echo h >/proc/sysrq-trigger && echo ESCAPED");
    }
    contained("chmod 755 /sys/kernel && echo ESCAPED");
    contained("chmod 644 /proc/irq/default_smp_affinity && echo ESCAPED");
}

/// B5.5
#[test]
fn nothing_can_be_mounted() {
    needs_root!();
    contained("mount -t tmpfs none /tmp && echo ESCAPED");
    contained("mount -t proc none /tmp && echo ESCAPED");
    contained("mount --bind /bin /tmp && echo ESCAPED");
    contained("mount -t overlay -o lowerdir=/bin:/etc none /tmp && echo ESCAPED");
    contained("mount -t devtmpfs none /tmp && echo ESCAPED");
    // What covers a path of /proc, or makes it read-only, cannot be taken away. With all rights
    // there is nothing to take away, but another file system to mount.
    for path in ["/proc/kcore", "/proc/sys", "/sys/firmware", "/etc/hosts"] {
        let outcome = Step::sh(&format!("umount {path}")).run();
        assert_ne!(outcome.exit, Exit::Code(0), "{path}");
    }
    contained("mount -o remount,ro /scratch && mount -o remount,rw /scratch && echo ESCAPED");
}

/// CVE-2022-0492 and the container escape of 2019: a step that mounts a hierarchy of control groups
/// names the program that the host starts.
#[test]
fn no_hierarchy_of_control_groups_can_be_used() {
    needs_root!();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let old = groups.lines().filter_map(|line| line.split(':').nth(1));
    let mut old = old.filter(|names| !names.is_empty() && !names.contains('='));
    let mount = match old.next() {
        Some(name) => format!("mount -t cgroup -o {name} none /tmp"),
        None => "mount -t cgroup2 none /tmp".to_owned(),
    };
    contained(&format!(
        "{mount} && mkdir /tmp/kiln-attack && rmdir /tmp/kiln-attack && echo ESCAPED"
    ));
    // The way that needs no mount right: a namespace of its own first.
    contained(&format!("unshare -rm sh -c '{mount}; echo ESCAPED'"));
    for file in ["release_agent", "cgroup.procs", "notify_on_release"] {
        let script = format!(
            "for f in $(find /sys/fs/cgroup -name {file}); do echo 1 >$f && echo ESCAPED; done"
        );
        assert!(
            !Step::sh(&script).run().stdout.contains("ESCAPED"),
            "{file}"
        );
    }
}

const NAMESPACES: [(&str, &str); 7] = [
    ("mount", "0x20000"),
    ("cgroup", "0x2000000"),
    ("uts", "0x4000000"),
    ("ipc", "0x8000000"),
    ("user", "0x10000000"),
    ("pid", "0x20000000"),
    ("network", "0x40000000"),
];

/// B5.5: not by any of the calls that make one.
#[test]
fn no_namespace_can_be_made() {
    needs_root!();
    for (name, flag) in NAMESPACES {
        for (call, expected) in [
            ("unshare", libc::EPERM),
            ("clone", libc::EPERM),
            ("clone3", libc::ENOSYS),
        ] {
            assert_eq!(stopped_by(&[call, flag]), expected, "{call}, {name}");
            assert_eq!(with_all_rights(&[call, flag]), 0, "{call}, {name}");
        }
    }
    assert_eq!(stopped_by(&["setns", "/proc/1/ns/mnt"]), libc::EPERM);
    assert_eq!(with_all_rights(&["setns", "/proc/1/ns/mnt"]), 0);
    // Also not by somebody who is not root.
    for call in ["unshare", "clone"] {
        let step = armed(&[call, "0x10000000"]).user("app");
        assert_eq!(code(&step), libc::EPERM);
    }
}

/// A step makes device nodes, and none that it makes opens, wherever it makes it.
#[test]
fn devices_do_not_open() {
    needs_root!();
    for directory in ["/", "/tmp", "/dev", "/dev/shm", "/scratch"] {
        for device in ["c 1 11", "b 7 0", "c 10 237"] {
            let node = format!("{directory}/node");
            let script = format!("mknod {node} {device} && {{ : <{node}; }} && echo ESCAPED");
            let step = Step::sh(&script).mount(tmpfs("/scratch"));
            let outcome = step.run();
            assert!(
                !outcome.stdout.contains("ESCAPED"),
                "{device} in {directory}"
            );
            assert!(
                outcome.stderr.contains("ermission denied"),
                "{}",
                outcome.stderr
            );
        }
    }
    contained("mknod /node c 1 11 && { : </node; } && echo ESCAPED");
    // One that comes with the image does not either.
    let step = Step::sh(": </node && echo ESCAPED").layer(|layer| {
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, 0o666.into());
        let device = rustix::fs::makedev(1, 11);
        rustix::fs::mknodat(rustix::fs::CWD, layer.join("node"), kind, mode, device).unwrap();
    });
    assert!(!step.run().stdout.contains("ESCAPED"));
}

/// `shocker` of 2014: files of the host by their number.
#[test]
fn files_cannot_be_opened_by_handle() {
    needs_root!();
    assert_eq!(stopped_by(&["handle", "/etc/hosts"]), libc::EPERM);
    assert_eq!(with_all_rights(&["handle", "/etc/hosts"]), 0);
}

/// CVE-2020-15257: sockets without a path belong to the network.
#[test]
fn abstract_sockets_are_out_of_reach_without_a_network() {
    needs_root!();
    let name = format!("kiln-attack-{}", std::process::id());
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let mut step = armed(&["connect", &name]);
    assert_eq!(code(&step), 0, "the host's network is the host's");
    step.spec.network = Network::None;
    assert_eq!(code(&step), libc::ECONNREFUSED);
}

/// CVE-2019-5736: the program of the runtime, as the step finds it in its own process and in the
/// one that becomes it.
#[test]
fn the_program_of_the_sandbox_cannot_be_written() {
    needs_root!();
    let kiln = Path::new(env!("CARGO_BIN_EXE_kiln"));
    let before = fs::read(kiln).unwrap();
    let interpreter = |layer: &Path| {
        crate::probe::write(&layer.join("run"), b"#!/proc/self/exe\n");
        crate::probe::write(&layer.join("sh"), b"#!/proc/self/exe -c :\n");
    };
    // Its own program is the sandbox itself, which finds itself without its argument.
    for args in [&["/proc/self/exe"][..], &["/run"], &["/sh", "-c", "x"]] {
        let step = Step::exec(args).layer(interpreter);
        if let Ok(outcome) = step.try_run() {
            assert_ne!(outcome.exit, Exit::Code(0), "{args:?}");
        }
    }
    // While it is there, another process opens it for writing.
    let script = "/run >/dev/null 2>&1 & for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
            /attack write /proc/$!/exe && echo ESCAPED
        done; wait; true";
    let step = Step::sh(script).layer(interpreter).layer(|layer| {
        fs::copy(program(), layer.join("attack")).unwrap();
    });
    assert!(!step.run().stdout.contains("ESCAPED"));
    assert!(fs::read(kiln).unwrap() == before, "the program has changed");
    // The same write succeeds on a program that nobody protects.
    let copy = TempDir::new().unwrap();
    let path = copy.path().join("sleep");
    fs::copy("/bin/sleep", &path).unwrap();
    let mut child = Command::new(&path).arg("60").spawn().unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    assert_eq!(on_the_host(&["write", &exe]), libc::ETXTBSY);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(on_the_host(&["write", path.to_str().unwrap()]), 0);
}

/// CVE-2024-21626: a directory of the host that the runtime has open.
#[test]
fn no_descriptor_leads_out() {
    needs_root!();
    let host = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    // One that a careless program passes on to its children.
    let host = host.unwrap();
    for number in 0..24 {
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/../.."),
            format!("/proc/1/fd/{number}"),
        ] {
            let step = Step::sh("echo ESCAPED").cwd(&path);
            let result = step.try_run();
            assert!(result.is_err(), "the working directory {path} was entered");
        }
    }
    let script = "for fd in /proc/self/fd/* /proc/1/fd/*; do
            case ${fd##*/} in 0|1|2) continue;; esac
            test -d $fd/ && ls $fd/ | grep -qx boot && echo ESCAPED
        done; ls /proc/1/fd; true";
    let outcome = Step::sh(script).run();
    assert!(!outcome.stdout.contains("ESCAPED"));
    assert_eq!(outcome.stdout.trim(), "0\n1\n2");
    // The same look succeeds where the descriptor is inherited.
    let mut control = Command::new("sh");
    control.args(["-c", "test -d /proc/self/fd/$0/etc && echo ESCAPED"]);
    use std::os::fd::AsRawFd;
    let output = control.arg(host.as_raw_fd().to_string()).output().unwrap();
    assert_eq!(output.stdout, b"ESCAPED\n");
}

/// The classic: `..` and links from a changed root directory.
#[test]
fn nothing_is_above_the_root() {
    needs_root!();
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("canary"), "host").unwrap();
    let canary = directory.path().join("canary");
    let canary = canary.to_str().unwrap();
    let script = format!(
        "ls /../../../{canary} && echo ESCAPED
        ln -s /../../..{canary} /tmp/link; cat /tmp/link && echo ESCAPED
        mkdir /jail && chroot /jail /bin/true; cd /proc/1/root/.. && ls .{canary} && echo ESCAPED
        true"
    );
    assert!(!Step::sh(&script).run().stdout.contains("ESCAPED"));
    for cwd in [
        "/../../../../tmp".to_owned(),
        format!("/..{}", directory.path().display()),
    ] {
        let step = Step::sh("ls canary && echo ESCAPED; pwd").cwd(&cwd);
        if let Ok(outcome) = step.try_run() {
            assert!(!outcome.stdout.contains("ESCAPED"), "{cwd}");
        }
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// Keys of the host's users are not seen, let alone used.
#[test]
fn keys_are_out_of_reach() {
    needs_root!();
    contained("grep -q . /proc/keys && echo ESCAPED || echo none >&2");
    assert_eq!(stopped_by(&["key", "find"]), libc::EPERM);
    // A program that somebody with a key starts has the key, but a step of a kiln that they start has
    // not, even if it may ask.
    let own = program().to_str().unwrap();
    assert_eq!(on_the_host(&["hold-key", own, "key", "find"]), 0);
    let mut step = armed(&["key", "find"]);
    step.spec.privileges = Privileges::Insecure;
    let core = Native::new(program().to_owned());
    let cancel = Cancel::new().unwrap();
    let exit = core.run(&step.spec, &mut |_, _| {}, &cancel).unwrap();
    assert_eq!(exit, Exit::Code(libc::ENOKEY));
}
