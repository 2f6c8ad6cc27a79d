//! A stock container: docker's default capabilities and its seccomp profile, as CI systems give one.
//! A test runs itself again in it, with this machine's files around it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::env::{missing, skip};

/// Set in the container.
const INSIDE: &str = "KILN_TEST_CONTAINER";

/// What docker gives to root in a container.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

/// Whether this process is in a container.
pub(crate) fn is_entered() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether the calling test is in a container. If not, it is run there by this call, and is to
/// return.
pub(crate) fn is_inside() -> bool {
    is_inside_with(Vec::new)
}

/// The same with more variables for the test in the container.
pub(crate) fn is_inside_with(variables: impl FnOnce() -> Vec<String>) -> bool {
    if is_entered() {
        return true;
    }
    if let Some(missing) = missing(&["runc"]) {
        skip(&missing);
        return false;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap();
    let bundle = tempfile::tempdir().unwrap();
    let rootfs = bundle.path().join("rootfs");
    let mounts = mounts(&rootfs);
    let config = configuration(test, &mounts, variables());
    fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let name = bundle.path().file_name().unwrap();
    let output = Command::new("runc")
        .args(["run", "--no-new-keyring", "--bundle"])
        .arg(bundle.path())
        .arg(name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} in a container: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// The container's mounts: this machine's folders, and docker's file systems.
fn mounts(rootfs: &Path) -> Vec<Value> {
    fs::create_dir(rootfs).unwrap();
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for entry in fs::read_dir("/").unwrap() {
        let entry = entry.unwrap();
        let (from, into) = (entry.path(), rootfs.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), &into).unwrap();
        } else if kind.is_dir() {
            fs::create_dir(&into).unwrap();
            if !["/proc", "/dev", "/sys"]
                .map(Path::new)
                .contains(&from.as_path())
            {
                mounts.push(json!({"destination": from, "source": from, "type": "bind",
                    "options": ["rbind"]}));
            }
        }
    }
    mounts
}

fn configuration(test: &str, mounts: &[Value], more: Vec<String>) -> Value {
    let mut env: Vec<String> = std::env::vars()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    env.push(format!("{INSIDE}=1"));
    env.extend(more);
    let program = std::env::current_exe().unwrap();
    let capabilities = json!(CAPABILITIES);
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [program, "--exact", test, "--nocapture"],
            "env": env,
            "cwd": std::env::current_dir().unwrap(),
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": seccomp(),
        },
    })
}

/// docker's default profile, as runtimes want it.
fn seccomp() -> Value {
    let text = include_str!("../../src/runtime/seccomp/default.json");
    let profile: Value = serde_json::from_str(text).unwrap();
    let (here, architecture) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        other => panic!("no name for {other} in docker's profile"),
    };
    let calls = profile["syscalls"].as_array().unwrap().iter();
    let calls = calls
        .filter(|call| match call["includes"]["arches"].as_array() {
            Some(arches) => arches.contains(&json!(here)),
            None => true,
        })
        .map(|call| {
            let mut call = call.clone();
            let fields = call.as_object_mut().unwrap();
            fields
                .retain(|name, _| ["names", "action", "errnoRet", "args"].contains(&name.as_str()));
            call
        });
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [architecture],
        "syscalls": calls.collect::<Vec<_>>(),
    })
}
