//! The same specification under kiln's own core, crun and runc.
//!
//! Each probe is a step whose output, exit and changes are compared. Where a runtime differs, the
//! difference is in [`DIFFERENCES`] with its reason; one that is not there any more fails too.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_builder::runtime::{
    Cancel, Exit, Mount, Native, Network, OciProgram, Privileges, RuntimeError, Seccomp, Stream,
};
use tempfile::TempDir;

use crate::cancel::is_running;
use crate::env::{Step, needs_root, tmpfs};

const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// A probe, the runtimes that differ from kiln's own core, and why that is as it should be.
const DIFFERENCES: &[(&str, &[&str], &str)] = &[
    (
        "mounts",
        &["crun", "runc"],
        "their masks are mounts with other flags, and crun makes the root and what is read-only anew \
         without `nodev` and the like: there a control group keeps devices from opening",
    ),
    (
        "signals that are ignored",
        &["crun", "runc"],
        "the C library starts programs with its own two signals ignored, and they pass that on",
    ),
    (
        "a signal",
        &["crun", "runc"],
        "they end with a number only, and 128 and more stands for a signal, as in a shell",
    ),
];

/// Held while runtimes run, for who looks at all control groups.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

type Probe = (&'static str, fn() -> Step);

const PROBES: &[Probe] = &[
    ("ids of root", || Step::sh(IDS)),
    ("ids of a user", || Step::sh(IDS).user("app")),
    ("ids by number", || Step::sh(IDS).user("4711:4712")),
    ("capabilities of root", || Step::sh(STATUS)),
    ("capabilities of a user", || Step::sh(STATUS).user("app")),
    ("capabilities of an insecure step", || insecure(STATUS)),
    ("a set-user-id program", || {
        Step::sh("/bin/suid").user("app").layer(|layer| {
            fs::create_dir(layer.join("bin")).unwrap();
            crate::probe::write(&layer.join("bin/suid"), &crate::probe::amd64(107, 0));
            rustix::fs::chmod(layer.join("bin/suid"), 0o4755.into()).unwrap();
        })
    }),
    ("no filter", || with_seccomp(STATUS, Seccomp::Unconfined)),
    ("a profile", || {
        let profile = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }] }"#;
        with_seccomp("mkdir /x", Seccomp::Profile(profile.to_owned()))
    }),
    ("system calls", || {
        Step::sh("mount -t tmpfs none /tmp; unshare -U true; hostname x; dmesg; true")
    }),
    ("limits that are set", || {
        let mut step = Step::sh("cat /proc/self/limits");
        step.spec.rlimits = vec![
            ("nofile".to_owned(), 100, 200),
            ("core".to_owned(), 0, 0),
            ("nproc".to_owned(), 1000, 1000),
        ];
        step
    }),
    ("limits that are not set", || {
        Step::sh("cat /proc/self/limits")
    }),
    ("environment", || {
        Step::sh("env | grep -v SHLVL | sort")
            .env("A", "b c")
            .env("EMPTY", "")
    }),
    ("environment of a user", || {
        Step::sh("echo $HOME").user("app")
    }),
    ("umask and directory", || {
        Step::sh("umask; pwd; touch /tmp/f; stat -c %a /tmp/f")
    }),
    ("a directory that is missing", || {
        Step::sh("pwd; stat -c '%u:%g %a' . ..")
            .user("app")
            .cwd("/srv/new/dir")
    }),
    ("session and group", || {
        Step::sh("cut -d' ' -f 1,4,5,6 /proc/self/stat")
    }),
    ("processes", || {
        Step::sh("echo /proc/[0-9]*; cat /proc/1/comm")
    }),
    ("out of memory", || Step::sh("cat /proc/self/oom_score_adj")),
    ("control group", || {
        Step::sh("cut -d: -f 2- /proc/self/cgroup | sort")
    }),
    ("mounts", || Step::sh(MOUNTS)),
    ("mounts of an insecure step", || {
        // Which hierarchies of control groups a runtime shows is its own way.
        insecure(&format!("{MOUNTS} | grep -v /sys/fs/cgroup/"))
    }),
    ("masked paths", || Step::sh(MASKED)),
    ("read-only paths", || {
        Step::sh(
            "for f in bus fs irq sys; do test -w /proc/$f && echo $f; done; touch /sys/x; true",
        )
    }),
    ("devices", || {
        Step::sh(
            "ls -l /dev | awk '{ print $1, $3, $4, $5 }' | sort; ls /dev | sort; ls -l /dev/fd",
        )
    }),
    ("devices that a step makes", || {
        Step::sh(
            "for n in /n /tmp/n /dev/n /dev/shm/n; do
                mknod $n c 1 11 && { : 2>/dev/null <$n && echo ESCAPED || echo refused; }
                mknod ${n}0 b 7 0 && { : 2>/dev/null <${n}0 && echo ESCAPED || echo refused; }
            done; echo x >/dev/null && head -c 1 /dev/zero | wc -c",
        )
    }),
    ("devices of the image", || {
        Step::sh("sh -c ': </node && echo ESCAPED' 2>/dev/null || echo refused").layer(|layer| {
            let kind = rustix::fs::FileType::BlockDevice;
            let device = rustix::fs::makedev(7, 0);
            let node = layer.join("node");
            rustix::fs::mknodat(rustix::fs::CWD, node, kind, 0o666.into(), device).unwrap();
        })
    }),
    ("shared memory", || {
        let mut step =
            Step::sh("df -k /dev/shm | tail -1 | awk '{ print $2 }'; stat -c %a /dev/shm");
        step.spec.shm_size = 8 << 20;
        step
    }),
    ("host name and files", || {
        Step::sh("hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; : >/etc/hosts; true")
    }),
    ("the host's network", || {
        Step::sh("readlink /proc/self/ns/net")
    }),
    ("no network", || {
        let mut step = Step::sh(
            "ls /sys/class/net; cat /sys/class/net/lo/flags; ping -c 1 -W 1 127.0.0.1 >/dev/null; echo $?",
        );
        step.spec.network = Network::None;
        step
    }),
    ("a network namespace that exists", || {
        let script = "test $(readlink /proc/self/ns/net) = $(readlink /tmp/host) && echo host; ls /sys/class/net";
        let mut step = Step::sh(script).layer(|layer| {
            fs::create_dir(layer.join("tmp")).unwrap();
            let host = fs::read_link("/proc/self/ns/net").unwrap();
            std::os::unix::fs::symlink(host, layer.join("tmp/host")).unwrap();
        });
        step.spec.network = Network::Namespace("/proc/self/ns/net".into());
        step
    }),
    ("standard streams", || {
        Step::sh("wc -c; echo out; echo err >&2; ls -l /proc/self/fd | wc -l")
    }),
    ("standard streams of a user", || {
        Step::sh("echo x >/dev/stdout; echo y >/dev/stderr").user("app")
    }),
    ("exit code 0", || Step::exec(&["true"])),
    ("exit code 3", || Step::sh("exit 3")),
    ("exit code 255", || Step::sh("exit 255")),
    ("exit code of a killed child", || {
        Step::sh("sh -c 'kill -9 $$'")
    }),
    ("a signal", || {
        let profile = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["getuid"], "action": "SCMP_ACT_KILL_PROCESS" }] }"#;
        let mut step = Step::exec(&["/probe"]).layer(|layer| {
            crate::probe::write(&layer.join("probe"), &crate::probe::amd64(102, 0));
        });
        step.spec.privileges = Privileges::Sandbox(Seccomp::Profile(profile.to_owned()));
        step
    }),
    ("signals that are ignored", || {
        Step::sh("grep -E '^Sig(Ign|Blk|Cgt)' /proc/self/status")
    }),
    ("a program that is missing", || Step::exec(&["nonsense"])),
    ("a path that is missing", || Step::exec(&["/bin/nonsense"])),
    ("a file that is no program", || Step::exec(&["/etc/passwd"])),
    ("a user that is missing", || {
        Step::sh("true").user("nobody-knows")
    }),
    ("a working directory that is a file", || {
        Step::sh("true").cwd("/etc/passwd")
    }),
    ("mounts of its own", || {
        let script = "cat /a/file /dev/pipes/script; stat -c '%a %u' /dev/pipes/script; echo x >/b/new && cat /b/new; echo x >/a/file; true";
        let content = || "text\n".to_owned().into_bytes().into();
        Step::sh(script)
            .mount(tmpfs("/b"))
            .mount(Mount::File {
                content: content(),
                target: "/a/file".to_owned(),
                mode: 0o444,
                owner: (5, 6),
            })
            .mount(Mount::File {
                content: content(),
                target: "/dev/pipes/script".to_owned(),
                mode: 0o755,
                owner: (7, 7),
            })
    }),
    ("changes", || {
        Step::sh("echo x >/new; rm /bin/vi; mkdir -p /srv/a; true").mount(tmpfs("/some/where/else"))
    }),
];

const IDS: &str = "id -u; id -g; id -G; grep -E '^(Uid|Gid|Groups):' /proc/self/status";
const STATUS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status";
const MOUNTS: &str = "awk '{ for (n = 7; $n != \"-\"; n++); o = $6; print $5, $(n + 1), o }' /proc/self/mountinfo | sort";
const MASKED: &str = "for p in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats; do
        test -d /proc/$p && ls /proc/$p | wc -l; test -f /proc/$p && cat /proc/$p | wc -c; test -c /proc/$p && echo device
    done; ls /sys/firmware | wc -l; ls /sys/devices/virtual/powercap 2>/dev/null | wc -l";

fn insecure(script: &str) -> Step {
    let mut step = Step::sh(script);
    step.spec.privileges = Privileges::Insecure;
    step
}

fn with_seccomp(script: &str, seccomp: Seccomp) -> Step {
    let mut step = Step::sh(script);
    step.spec.privileges = Privileges::Sandbox(seccomp);
    step
}

pub(crate) fn core(runtime: &str) -> Native {
    let program = OciProgram::find(runtime, std::env::var_os("PATH").as_deref());
    let program = program.unwrap_or_else(|error| panic!("{runtime}: {error}"));
    crate::env::native().with_runtime(program)
}

/// All that is seen of a step, as text.
fn seen(core: &Native, step: &Step) -> String {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut collect = |stream, bytes: &[u8]| match stream {
        Stream::Stdout => stdout.extend_from_slice(bytes),
        Stream::Stderr => stderr.extend_from_slice(bytes),
    };
    let result = core.run(&step.spec, &mut collect, &Cancel::new().unwrap());
    let result = match result {
        Ok(exit) => format!("{exit:?}"),
        Err(error) => error.to_string(),
    };
    let changes: Vec<_> = step.changes().into_iter().collect();
    format!(
        "{result}\n{}{}changes: {}\n",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
        changes.join(" ")
    )
}

/// The lines that only one of two texts has.
fn difference(ours: &str, theirs: &str) -> String {
    let mut text = String::new();
    for (sign, from, other) in [('-', ours, theirs), ('+', theirs, ours)] {
        let mut rest: Vec<_> = other.lines().collect();
        for line in from.lines() {
            match rest.iter().position(|one| *one == line) {
                Some(index) => drop(rest.remove(index)),
                None => writeln!(text, "    {sign} {line}").unwrap(),
            }
        }
    }
    text
}

#[test]
fn other_runtimes_do_the_same() {
    needs_root!();
    let _alone = alone();
    let own = crate::env::native();
    let mut wrong = String::new();
    for runtime in RUNTIMES {
        let core = core(runtime);
        for (name, make) in PROBES {
            let (ours, theirs) = (seen(&own, &make()), seen(&core, &make()));
            let difference = difference(&ours, &theirs);
            let known = DIFFERENCES
                .iter()
                .any(|(probe, runtimes, _)| probe == name && runtimes.contains(&runtime));
            match (difference.is_empty(), known) {
                (true, true) => {
                    writeln!(wrong, "{name}: {runtime} does not differ any more").unwrap();
                }
                (false, false) => {
                    writeln!(wrong, "{name}: {runtime} (+) is not kiln (-)\n{difference}").unwrap();
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    for (probe, ..) in DIFFERENCES {
        assert!(
            PROBES.iter().any(|(name, _)| name == probe),
            "no probe {probe}"
        );
    }
}

/// B4.4: cancelling ends everything, and no control group is left.
#[test]
fn a_cancelled_runtime_leaves_nothing() {
    needs_root!();
    let _alone = alone();
    for runtime in RUNTIMES {
        let step = Step::sh("setsid sleep 99991 & trap '' TERM INT; echo ready; sleep 99992");
        let cancel = Cancel::new().unwrap();
        let token = cancel.clone();
        let mut when_ready = |_: Stream, _: &[u8]| token.cancel();
        let result = core(runtime).run(&step.spec, &mut when_ready, &cancel);
        assert!(matches!(result, Err(RuntimeError::Cancelled)), "{result:?}");
        assert!(!is_running("99991") && !is_running("99992"), "{runtime}");
        assert_eq!(groups(), Vec::<String>::new(), "{runtime}");
        assert!(fs::read_dir(&step.spec.root.work).unwrap().next().is_none());
    }
}

/// Control groups of runtimes, in all hierarchies.
fn groups() -> Vec<String> {
    let folders = walkdir::WalkDir::new("/sys/fs/cgroup").max_depth(2);
    let names = folders.into_iter().flatten();
    let names = names.map(|entry| entry.path().display().to_string());
    names
        .filter(|name| name.contains("/kiln-") && name.len() > 40)
        .collect()
}

/// What goes wrong in the runtime is not taken for the step's own failure.
#[test]
fn failures_of_the_runtime_are_its_own() {
    needs_root!();
    let _alone = alone();
    let directory = TempDir::new().unwrap();
    let script = |name: &str, text: &str| {
        let path = directory.path().join(name);
        crate::probe::write(&path, text.as_bytes());
        core(path.to_str().unwrap())
    };
    let run = |core: &Native| {
        let step = Step::sh("exit 7");
        core.run(&step.spec, &mut |_, _| {}, &Cancel::new().unwrap())
    };
    let log = r#"for a in "$@"; do test "$p" = --log && l=$a; p=$a; done"#;
    let failing = script(
        "failing",
        &format!(
            "#!/bin/sh\n{log}\necho '{{\"level\":\"error\",\"msg\":\"no such luck\"}}' >$l; exit 1\n"
        ),
    );
    let error = run(&failing).unwrap_err();
    assert_eq!(error.to_string(), "failing: no such luck");
    let silent = script("silent", "#!/bin/sh\nexit 9\n");
    assert_eq!(run(&silent).unwrap(), Exit::Code(9));
    let broken = script("broken", "#!/absent/interpreter\n");
    let error = run(&broken).unwrap_err().to_string();
    assert!(error.contains("start `broken`"), "{error}");
    for runtime in RUNTIMES {
        assert_eq!(run(&core(runtime)).unwrap(), Exit::Code(7));
    }
    assert!(Path::new("/sys/fs/cgroup").exists());
}
