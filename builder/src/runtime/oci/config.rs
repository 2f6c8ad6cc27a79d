//! `config.json`: a process specification in the words of the OCI runtime specification.

use std::path::Path;

use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use crate::runtime::filesystems::DevBy;
use crate::runtime::filesystems::{
    self, MASKED_PROC, MASKED_SYS, READ_ONLY_PROC, thermal_throttle_paths,
};
use crate::runtime::privileges::CAPABILITY_NAMES;
use crate::runtime::seccomp::Profile;
use crate::runtime::{Network, Privileges, ProcessSpec, program};
use crate::sys::users::User;

/// All capabilities, in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A mount that kiln cannot make, because its place is in a file system that the runtime mounts.
pub(super) struct Late {
    /// Where it is staged, a path of the host.
    pub(super) source: String,
    /// Absolute path in the root.
    pub(super) target: String,
    /// Whether it can be written to.
    pub(super) writable: bool,
}

/// What the runtime is told of a process.
pub(super) struct Facts<'a> {
    pub(super) spec: &'a ProcessSpec,
    pub(super) user: &'a User,
    /// The profile, where calls are filtered.
    pub(super) seccomp: Option<&'a Profile>,
    pub(super) late: &'a [Late],
    /// The control group of its own, a path from the top of every hierarchy.
    pub(super) cgroup: Option<String>,
    /// What the sandbox may do, and so at most what is in it.
    pub(super) permitted: CapabilitySet,
    pub(super) dev_by: DevBy,
}

impl Facts<'_> {
    pub(super) fn config(&self) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": self.process(),
            "root": { "path": self.spec.root.files.writable(), "readonly": false },
            "hostname": self.spec.hostname,
            "mounts": self.mounts(),
            "linux": self.linux(),
        })
    }

    pub(super) fn is_sandbox(&self) -> bool {
        matches!(self.spec.privileges, Privileges::Sandbox(_))
    }

    fn process(&self) -> Value {
        let environment = program::environment(self.spec, self.user);
        let environment: Vec<_> = environment
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect();
        json!({
            "terminal": false,
            "user": {
                "uid": self.user.uid,
                "gid": self.user.gid,
                "additionalGids": self.user.groups,
                "umask": 0o022,
            },
            "args": self.spec.args,
            "env": environment,
            "cwd": self.spec.cwd,
            "capabilities": self.capabilities(),
            "rlimits": self.rlimits(),
            // `noNewPrivileges` is false by default. youki takes any value for true when it decides
            // whether the filter has to be loaded before capabilities go.
        })
    }

    fn capabilities(&self) -> Value {
        let all = CAPABILITIES.iter().enumerate();
        let permitted = all.filter(|(number, name)| {
            let one = CapabilitySet::from_bits_retain(1 << number);
            // Nodes work in a /dev that the runtime fills, so nobody in a sandbox may make any.
            let harmless = self.dev_by == DevBy::Us || name != &&"CAP_MKNOD";
            let wanted = !self.is_sandbox() || harmless && CAPABILITY_NAMES.contains(name);
            wanted && self.permitted.contains(one)
        });
        let bounding: Vec<_> = permitted.map(|(_, name)| name).collect();
        let kept = if self.user.uid == 0 {
            bounding.as_slice()
        } else {
            &[]
        };
        json!({
            "bounding": bounding,
            "effective": kept,
            "permitted": kept,
            "inheritable": [],
            "ambient": [],
        })
    }

    fn rlimits(&self) -> Vec<Value> {
        let limits = self.spec.rlimits.iter();
        limits
            .map(|(name, soft, hard)| {
                let name = format!("RLIMIT_{}", name.to_uppercase());
                json!({ "type": name, "soft": soft, "hard": hard })
            })
            .collect()
    }

    /// The file systems of the namespaces that the runtime makes, and what has its place in them.
    fn mounts(&self) -> Vec<Value> {
        let read_only = if self.is_sandbox() { "ro" } else { "rw" };
        let sealed = ["nosuid", "noexec", "nodev"];
        let mount = |target: &str, kind: &str, options: &[&str]| {
            let options: Vec<_> = sealed.iter().chain(options).collect();
            json!({ "destination": target, "type": kind, "source": kind, "options": options })
        };
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let mut mounts = vec![
            mount("/proc", "proc", &[]),
            mount("/dev/mqueue", "mqueue", &[]),
            mount("/sys", "sysfs", &[read_only]),
            match unified || filesystems::shows_hierarchies(self.spec) {
                true => mount("/sys/fs/cgroup", "cgroup", &[read_only]),
                false => mount("/sys/fs/cgroup", "tmpfs", &["ro", "mode=755"]),
            },
        ];
        mounts.extend(self.late.iter().map(|late| {
            let access = if late.writable { "rw" } else { "ro" };
            json!({
                "destination": late.target,
                "type": "bind",
                "source": late.source,
                "options": ["bind", "nodev", access],
            })
        }));
        mounts
    }

    fn linux(&self) -> Value {
        let mut namespaces: Vec<_> = ["pid", "ipc", "uts", "mount", "cgroup"]
            .iter()
            .map(|kind| json!({ "type": kind }))
            .collect();
        // One that exists the sandbox has entered already.
        if self.spec.network == Network::None {
            namespaces.push(json!({ "type": "network" }));
        }
        let mut linux = json!({ "namespaces": namespaces });
        if let Some(cgroup) = &self.cgroup {
            let devices = json!({ "allow": !self.is_sandbox(), "access": "rwm" });
            linux["cgroupsPath"] = json!(cgroup);
            linux["resources"] = json!({ "devices": [devices] });
        }
        if self.is_sandbox() {
            let below = |top: &str, paths: &[&str]| -> Vec<String> {
                paths.iter().map(|path| format!("{top}/{path}")).collect()
            };
            let mut masked = below("/proc", &MASKED_PROC);
            masked.extend(below("/sys", &MASKED_SYS));
            masked.extend(thermal_throttle_paths().map(|path| format!("/sys/{path}")));
            linux["maskedPaths"] = json!(masked);
            linux["readonlyPaths"] = json!(below("/proc", &READ_ONLY_PROC));
        }
        if let Some(profile) = self.seccomp {
            linux["seccomp"] = seccomp(profile);
        }
        linux
    }
}

/// A profile as the specification has it, which is nearly docker's.
fn seccomp(profile: &Profile) -> Value {
    let rules = profile.rules.iter().map(|rule| {
        let args = rule.conditions.iter().map(|condition| {
            json!({
                "index": condition.index,
                "value": condition.value,
                "valueTwo": condition.masked,
                "op": condition.comparison.name(),
            })
        });
        let mut call = json!({
            "names": rule.names,
            "action": rule.action.name(),
            "args": args.collect::<Vec<_>>(),
        });
        if let Some(number) = rule.action.errno() {
            call["errnoRet"] = json!(number);
        }
        call
    });
    let architectures = profile.abis.iter().map(|abi| abi.name());
    let mut seccomp = json!({
        "defaultAction": profile.default.name(),
        "architectures": architectures.collect::<Vec<_>>(),
        "syscalls": rules.collect::<Vec<_>>(),
    });
    if let Some(number) = profile.default.errno() {
        seccomp["defaultErrnoRet"] = json!(number);
    }
    seccomp
}
