//! Dockerfiles and images that are made to break out of a build: through links in the way of what
//! kiln itself writes, through mounts that are shared, and through what other steps know. The
//! attacks on a single sandbox are in `tests/runtime/attacks`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::env::{Output, TestEnv, test_env};

/// A folder of the host that is to stay as it is.
struct Victim(PathBuf);

impl Victim {
    fn new(env: &TestEnv) -> Self {
        let path = env.path("victim");
        fs::create_dir_all(path.join("dir")).unwrap();
        fs::write(path.join("file"), "host").unwrap();
        let passwd = "victim:x:4711:4711::/:/bin/sh\n";
        fs::write(path.join("passwd"), passwd).unwrap();
        Self(path)
    }

    fn shown(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn check(&self) {
        let entries = walkdir::WalkDir::new(&self.0)
            .min_depth(1)
            .sort_by_file_name();
        let paths = entries.into_iter().map(|entry| entry.unwrap().into_path());
        let names: Vec<_> = paths
            .map(|path| path.strip_prefix(&self.0).unwrap().to_owned())
            .collect();
        assert_eq!(names, ["dir", "file", "passwd"].map(PathBuf::from));
        assert_eq!(fs::read(self.0.join("file")).unwrap(), b"host");
    }
}

/// Whether a process of the machine has this argument.
fn is_running(argument: &str) -> bool {
    let wanted = format!("\0{argument}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(&wanted))
}

/// What kiln writes for COPY, ADD and WORKDIR goes through links of the image as they are meant in
/// the image.
#[test]
fn destinations_behind_links_stay_in_the_image() {
    let env = test_env!().with_busybox();
    let victim = Victim::new(&env);
    let host = victim.shown();
    env.file("f", "attack");
    env.built(
        "x",
        &format!(
            "FROM busybox\n\
             RUN mkdir /d && ln -s {host} /data && ln -s ../../../../../../../..{host} /up && \
                 ln -s /data /d/chain && ln -s /proc/1/root{host} /magic && ln -s {host}/file /file\n\
             COPY f /data/\n\
             COPY f /up/second\n\
             COPY f /d/chain/third/\n\
             COPY f /file\n\
             ADD --chown=7:7 --chmod=777 f /data/dir/\n\
             COPY --link f /data/linked\n\
             WORKDIR /data/work\n\
             WORKDIR ../../../../../../..{host}/dir/below\n\
             WORKDIR ..\n\
             RUN test -f {host}/f && test -f {host}/second && touch {host}/made ../here\n"
        ),
    );
    victim.check();
    // Of another process's root, and of a link in a circle, nothing is written at all.
    for copy in ["COPY f /magic/", "WORKDIR /magic/w"] {
        let text = format!("FROM x\n{copy}\n");
        env.dockerfile(&text).build("y").run();
        victim.check();
    }
}

/// The class of CVE-2021-30465: a directory that is shared with another build turns into a link to
/// the host while a mount point is looked for, or made, below it.
#[test]
fn a_race_for_a_mount_point_is_lost_inside() {
    let env = test_env!().with_busybox();
    let victim = Victim::new(&env);
    env.file("f", "attack");
    let attack = env.path("attack");
    fs::create_dir(&attack).unwrap();
    let swap = format!(
        "FROM busybox\n\
         RUN --mount=type=cache,id=shared,target=/c touch /c/started; \
             until test -e /c/stop; do \
                 rm -rf /c/place; ln -s {} /c/place; rm -rf /c/place; mkdir /c/place; \
             done\n",
        victim.shown()
    );
    fs::write(attack.join("Dockerfile"), swap).unwrap();
    let mut racing = env.kiln(["build"]).arg(&attack).spawn();
    env.dockerfile(
        "FROM busybox\n\
         RUN --mount=type=cache,id=shared,target=/c \
             --mount=type=bind,source=f,target=/c/place/new \
             --mount=type=tmpfs,target=/c/place/dir true\n",
    );
    let mut done = 0;
    for _ in 0..12 {
        // Whether it wins or loses the race: it ends, and nothing of the host has changed.
        let output = env.build("x").arg("--no-cache").run();
        assert!(matches!(output.code, Some(0 | 1 | 3)), "{output}");
        done += usize::from(output.code == Some(0));
        victim.check();
    }
    env.dockerfile("FROM busybox\nRUN --mount=type=cache,id=shared,target=/c test -e /c/started && touch /c/stop\n");
    env.build("x").arg("--no-cache").success();
    assert!(racing.wait().unwrap().success(), "{done} of 12");
    victim.check();
}

/// A secret is in the step that asks for it, and nowhere else.
#[test]
fn secrets_of_another_step_are_out_of_reach() {
    let env = test_env!().with_busybox();
    // Not written in one piece anywhere, so that looking for it does not find the search.
    let secret = format!("hunter{}", 2_718_281);
    fs::write(env.path("secret"), &secret).unwrap();
    let look = "grep -rl hunte[r]2718281 / --exclude-dir=sys 2>/dev/null; \
        cat /run/secrets/* /proc/[0-9]*/root/run/secrets/* 2>/dev/null; \
        cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep hunte[r]2718281";
    env.dockerfile(&format!(
        "FROM busybox AS holder\n\
         RUN --mount=type=secret,id=s,required --mount=type=secret,id=s,env=KEPT \
             --mount=type=cache,id=meet,target=/meet \
             test \"$KEPT\" = \"$(cat /run/secrets/s)\" && touch /meet/held && \
             until test -e /meet/looked; do sleep 0.1; done\n\
         FROM busybox AS thief\n\
         RUN --mount=type=cache,id=meet,target=/meet \
             until test -e /meet/held; do sleep 0.1; done; \
             {look} >/found; touch /meet/looked; ! test -s /found\n\
         FROM holder\n\
         RUN {look} >/found; ! test -s /found\n\
         COPY --from=thief /found /theirs\n"
    ));
    let secret_flag = format!("id=s,src={}", env.path("secret").display());
    let built = env.build("x").args(["--secret", &secret_flag]).success();
    assert!(!built.stderr.contains(&secret), "{built}");
    for entry in walkdir::WalkDir::new(env.store()).into_iter().flatten() {
        if entry.file_type().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            let held = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!held, "{}", entry.path().display());
        }
    }
}

/// Writing to the build context, to an image or to a cache through a mount changes what the step
/// sees only, but for the cache that it names.
#[test]
fn what_is_mounted_keeps_its_content() {
    let env = test_env!().with_busybox();
    let victim = Victim::new(&env);
    env.file("dir/f", "context");
    let write = "echo attack >f; echo attack >new; rm -f f; mkdir -p deep; ln -s / deep/root";
    env.dockerfile(&format!(
        "FROM busybox AS base\n\
         RUN mkdir /dir && echo base >/dir/f\n\
         FROM busybox\n\
         RUN --mount=type=bind,source=dir,target=/ro cd /ro && ! {{ echo attack >f; }} && ! rm f\n\
         RUN --mount=type=bind,source=dir,target=/rw,rw cd /rw && {write}\n\
         RUN --mount=type=bind,source=dir,target=/rw test $(cat /rw/f) = context && ! test -e /rw/new\n\
         RUN --mount=type=bind,from=base,source=/dir,target=/rw,rw cd /rw && {write}\n\
         RUN --mount=type=bind,from=base,source=/dir,target=/rw test $(cat /rw/f) = base && ! test -e /rw/new\n\
         RUN --mount=type=cache,id=own,target=/c cd /c && {write}; ln -s {} out; ln -s ../../.. up\n\
         RUN --mount=type=cache,id=other,target=/c ! test -e /c/new && ! ls /c/../c/../../own\n\
         RUN --mount=type=cache,id=own,target=/c cd /c && test -e new && ! test -e up/own && \
             ! test -e out/file && ! test -e {}\n",
        victim.shown(),
        env.store().display(),
    ));
    env.build("x").success();
    assert_eq!(
        fs::read(env.context().join("dir/f")).unwrap(),
        b"context\n".split_last().unwrap().1
    );
    assert_eq!(fs::read_dir(env.context().join("dir")).unwrap().count(), 1);
    victim.check();
    // What a cache brings along does not lead out when it is a mount's source or seed.
    env.dockerfile(
        "FROM busybox\n\
         RUN --mount=type=cache,id=own,target=/c cp -r /c/deep /copied; ls /copied >/list; ! grep -q boot /list\n",
    );
    env.build("y").success();
}

/// No process is left of a build, whatever a step starts.
#[test]
fn no_process_outlives_its_build() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\n\
         RUN (trap '' HUP TERM INT; setsid sleep 5551234 >/dev/null 2>&1 </dev/null &) & \
             until grep -lx sleep /proc/[0-9]*/comm >/dev/null 2>&1; do :; done; touch /started\n\
         RUN test -e /started && ! grep -lx sleep /proc/[0-9]*/comm\n",
    );
    env.build("x").success();
    assert!(!is_running("5551234"));
    env.no_traces();
}

/// Images in whose way users, programs and the runtime's own files are links to the host.
#[test]
fn images_do_not_borrow_from_the_host() {
    let env = test_env!().with_busybox();
    let victim = Victim::new(&env);
    let host = victim.shown();
    env.file("f", "attack");
    env.built(
        "hostile",
        &format!(
            "FROM busybox\n\
             RUN mkdir -p /etc && ln -s {host}/passwd /etc/passwd && mkfifo /etc/group && \
                 ln -s {host}/file /bin/borrowed && mkfifo /bin/pipe && chmod 777 /bin/pipe\n"
        ),
    );
    for (step, said) in [
        ("USER victim\nRUN true", "victim"),
        ("COPY --chown=victim f /", "victim"),
        ("USER victim\nWORKDIR /w", "victim"),
        ("USER 7:victim\nRUN true", "/etc/group"),
        ("RUN [\"/bin/borrowed\"]", "/bin/borrowed"),
        ("RUN [\"/bin/pipe\"]", "/bin/pipe"),
        ("SHELL [\"/bin/pipe\", \"-c\"]\nRUN true", "/bin/pipe"),
    ] {
        let failed = env
            .dockerfile(&format!("FROM hostile\n{step}\n"))
            .build("x")
            .failure(1);
        assert!(failed.stderr.contains(said), "{step}: {failed}");
        victim.check();
    }
    // The files that are shown to a step have their places in the image, not where a link says.
    env.built(
        "redirected",
        &format!(
            "FROM busybox\n\
             RUN mkdir -p /etc && cd /etc && ln -s {host}/new resolv.conf; ln -s {host}/file hosts; \
                 ln -s ../../../../../..{host}/dir/new hostname; true\n"
        ),
    );
    env.dockerfile("FROM redirected\nRUN cat /etc/hosts; echo attack >/etc/resolv.conf; true\n");
    let output = env.build("x").run();
    assert!(!output.stderr.contains("host\n"), "{output}");
    victim.check();
    assert!(Path::new(host).join("file").exists());
}

/// The levels of isolation that keep a step apart.
const LEVELS: [&str; 2] = ["root", "rootless"];

/// Attacks on the sandbox of a single step, each of which says ESCAPED where it succeeds.
const ATTACKS: [&str; 14] = [
    "mount -t tmpfs none /tmp",
    "mount --bind /bin /tmp",
    "mount -t proc none /tmp",
    "mount -o remount,rw /sys",
    "umount /proc/kcore",
    "unshare -m true",
    "unshare -rm true",
    "mknod /n c 1 11 && true </n",
    "mknod /dev/n b 7 0 && true </dev/n",
    "echo >/proc/sys/kernel/core_pattern",
    "chmod 755 /sys/kernel",
    "mkdir /sys/fs/cgroup/kiln-attack",
    "chroot /proc/1/root/../.. test -e /boot/.",
    "kill -0 OUTSIDE",
];

/// How many of them succeeded; the step's name has their texts too.
fn escaped(output: &Output) -> usize {
    let lines = output.stderr.lines().filter(|line| !line.contains("if {"));
    lines.filter(|line| line.contains(" ESCAPED: ")).count()
}

/// What keeps a step in holds at every level that isolates steps, and with another runtime.
#[test]
fn a_step_is_kept_at_every_level() {
    let env = test_env!("crun", "runc").with_busybox();
    let outside = std::process::id().to_string();
    let attacks = ATTACKS.map(|attack| {
        let attack = attack.replace("OUTSIDE", &outside);
        format!("if {{ {attack}; }} 2>/dev/null; then echo ESCAPED: '{attack}'; fi")
    });
    env.dockerfile(&format!(
        "FROM busybox\nRUN {}; echo DONE\n",
        attacks.join("; ")
    ));
    let build = || env.build("x").arg("--no-cache");
    let levels = LEVELS.map(|level| build().env("KILN_ISOLATION", level));
    let runtimes = ["crun", "runc"].map(|runtime| build().args(["--runtime", runtime]));
    for build in levels.into_iter().chain(runtimes) {
        let output = build.success();
        assert_eq!(escaped(&output), 0, "{output}");
        assert!(output.stderr.contains(" DONE\n"), "{output}");
    }
    // With all rights they are attacks: of root most, in a user namespace those that it has.
    let text = fs::read_to_string(env.context().join("Dockerfile")).unwrap();
    env.dockerfile(&text.replace("RUN ", "RUN --security=insecure "));
    for (level, succeed) in LEVELS.into_iter().zip([8, 4]) {
        let build = build().args(["--allow", "security.insecure"]);
        let output = build.env("KILN_ISOLATION", level).success();
        assert!(escaped(&output) >= succeed, "{level}: {output}");
    }
}

/// A fork bomb stays in the limit that the command line gives, under every runtime.
#[test]
fn a_fork_bomb_stays_in_its_limit() {
    let env = test_env!("crun", "runc").with_busybox();
    env.dockerfile(
        "FROM busybox\n\
         RUN n=0; while test $n -lt 60; do sleep 5551235 & n=$((n+1)); done; echo ALL=$n\n",
    );
    let build = || env.build("x").arg("--no-cache");
    let free = build().success();
    assert!(free.stderr.contains("ALL=60"), "{free}");
    for runtime in [&[][..], &["--runtime", "crun"], &["--runtime", "runc"]] {
        let limited = build().args(["--pids-limit", "40"]);
        let limited = limited.args(runtime.iter().copied()).run();
        assert!(!limited.stderr.contains("ALL=60"), "{limited}");
        assert!(limited.stderr.contains("can't fork"), "{limited}");
        assert!(!is_running("5551235"));
    }
    env.no_traces();
}
