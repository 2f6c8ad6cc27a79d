//! Builds where nothing can be mounted: root in a stock container.

use std::fs;

use crate::container;
use crate::env::TestEnv;

/// DEMAND 1
#[test]
fn a_stock_container_is_enough_and_what_it_lacks_is_said() {
    if !container::is_inside() {
        return;
    }
    let env = TestEnv::new().with_busybox();
    env.file("given", "by the context\n");
    env.dockerfile(
        "FROM busybox\n\
         RUN --mount=type=cache,target=/cache date >/cache/x && ls /dev >/devices; ls /proc /sys >/kernel 2>&1; grep Cap /etc/hosts; true\n\
         COPY given /\n\
         WORKDIR /made/here\n\
         RUN cat /given /etc/hosts /etc/hostname >seen && test -s /dev/null; echo x >/dev/null && test ! -s /dev/null\n",
    );
    let built = env.build("first").arg("--progress=plain").success();
    let line = "isolation: chroot (a seccomp filter denies namespaces or mounts): steps are not isolated from each other or from this container, and have no /proc";
    assert!(built.stderr.contains(line), "{built}");
    let run = env
        .kiln(["run", "-q", "first", "cat", "/devices", "/made/here/seen"])
        .success();
    let expected = "full\nnull\nrandom\nshm\ntty\nurandom\nzero\nby the context\n\
         127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\nbuildkitsandbox\n";
    assert_eq!(run.stdout, expected);
    // Nothing of the run is in the image, and nothing is left in the store.
    let saved = env.saved("first");
    let names = saved.layers.iter().skip(3).flat_map(|layer| layer.keys());
    let names: Vec<&String> = names.collect();
    let expected = [
        "devices",
        "kernel",
        "given",
        "made",
        "made/here",
        "made",
        "made/here",
        "made/here/seen",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read_dir(env.store().join("tmp")).unwrap().count(), 0);
}

/// What a level cannot give is refused by name.
#[test]
fn what_needs_mounts_or_namespaces_is_refused() {
    if !container::is_inside() {
        return;
    }
    let env = TestEnv::new().with_busybox();
    env.dockerfile("FROM busybox\nRUN --network=none true\n");
    let failed = env.build("x").failure(3);
    assert!(
        failed
            .stderr
            .contains("a step without network is not possible with isolation `chroot`"),
        "{failed}"
    );
    env.dockerfile("FROM busybox\nRUN true\n");
    let failed = env.build("x").arg("--snapshotter=overlay").failure(3);
    assert!(
        failed
            .stderr
            .contains("--snapshotter=overlay does not work here"),
        "{failed}"
    );
}

/// A process that a step leaves behind does not outlive it.
#[test]
fn processes_end_with_their_step() {
    if !container::is_inside() {
        return;
    }
    let env = TestEnv::new().with_busybox();
    env.dockerfile(
        "FROM busybox\n\
         RUN (setsid sh -c 'trap \"\" TERM HUP; sleep 4321' &) ; (setsid setsid sleep 4321 &); sleep 0.2\n",
    );
    env.build("x").success();
    let running = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("4321")
    });
    assert_eq!(running.count(), 0);
}

/// B1.6, B6.3
#[test]
fn the_image_s_own_files_are_as_they_were() {
    if !container::is_inside() {
        return;
    }
    let env = TestEnv::new().with_busybox();
    env.file("etc/hosts", "own\n").file("dev/own", "own\n");
    env.dockerfile(
        "FROM busybox\n\
         COPY etc /etc\n\
         COPY dev /dev\n\
         RUN --mount=type=tmpfs,target=/a/b --mount=type=secret,id=s,required --mount=type=bind,target=/etc/context \
           cat /run/secrets/s && test -f /etc/context/Dockerfile && echo changed >/etc/hosts && echo x >/a/b/x && rm /dev/zero\n\
         RUN cat /etc/hosts && ! ls /a && ! ls /run/secrets && ! ls /etc/context\n",
    );
    let secret = env.path("secret");
    fs::write(&secret, "hidden").unwrap();
    let flag = format!("--secret=id=s,src={}", secret.display());
    env.build("x").arg(&flag).success();
    let layers = env
        .kiln(["history", "--no-trunc", "--format", "{{.Size}}", "x"])
        .run();
    assert!(
        layers.stdout.is_empty() || layers.stdout.starts_with("0"),
        "{layers}"
    );
    let run = env
        .kiln([
            "run",
            "-q",
            "x",
            "sh",
            "-c",
            "ls /a /run /etc/context 2>&1 | grep -c 'No such'",
        ])
        .run();
    assert_eq!(run.stdout, "3\n", "{run}");
}

/// Steps whose files have fixed times give the same layers as with all rights, byte for byte.
#[test]
fn the_same_steps_give_the_same_layers() {
    const EXPECTED: &str = "KILN_TEST_DIFF_IDS";
    let diff_ids = || {
        let env = TestEnv::new().with_busybox();
        env.built(
            "same",
            "FROM busybox\n\
             RUN mkdir -p /a/b /a/c && echo 1 >/a/b/1 && ln /a/b/1 /a/b/2 && ln -s b /a/l && mkfifo /a/p \
               && chown -R 7:8 /a/b && chmod 4750 /a/b/1 && mknod /a/n c 1 3 && find /a | xargs touch -h -d @100\n\
             RUN rm -r /a/b /a/p && mkdir /a/b && echo 2 >/a/b/3 && chmod 700 /a/c && echo 3 >>/a/x \
               && find /a | xargs touch -h -d @200\n\
             WORKDIR /a/c\n\
             RUN --mount=type=tmpfs,target=/a/t echo x >/a/t/x && rm /a/b/3 && touch -d @300 /a/b\n\
             RUN mv /a/x /a/c/y && touch -d @400 /a /a/c && cp /etc/hosts /a/t && touch -d @400 /a/t /a\n\
             RUN true\n",
        );
        let inspected = env.inspect("same");
        let layers = inspected["RootFS"]["Layers"].as_array().unwrap();
        let built = layers.iter().skip(3).map(|layer| layer.as_str().unwrap());
        built.collect::<Vec<_>>().join(" ")
    };
    if container::is_inside_with(|| vec![format!("{EXPECTED}={}", diff_ids())]) {
        assert_eq!(diff_ids(), std::env::var(EXPECTED).unwrap());
    }
}
