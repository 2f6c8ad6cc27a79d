//! What steps see of the network (B3.1, B6.1, B6.2).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::env::{Output, TestEnv, test_env};
use crate::lab::{HOST, Lab, WORLD, WORLD_6};
use crate::traces::{descendants, wait_until};

/// A line of a script that puts what a server says into a file, each line of it once, or `failed`. The
/// server is asked, and the connection stays open both ways, because old versions of `pasta` lose what
/// comes with the first or the last segment, or repeat it on a busy machine; one that is silent all the
/// same is tried again.
fn ask(address: &str, port: u16, file: &str) -> String {
    let hear = format!(
        "{{ echo; sleep 2; }} | timeout 5 nc -w 3 {address} {port} 2>/dev/null | sort -u >/{file}"
    );
    format!(
        "for try in 1 2 3 4; do {hear}; test -s /{file} && break; done; test -s /{file} || echo failed >/{file}\n"
    )
}

/// A Dockerfile with one step that runs all lines of a script at the same time.
fn at_once(script: &str) -> String {
    let lines = script.lines().map(|line| format!("{{ {line}; }} &\n"));
    let script: String = lines.collect();
    format!("FROM busybox\nRUN <<'END'\n{script}wait\nEND\n")
}

#[test]
fn b3_1_the_default_network_leads_out_and_not_to_the_hosts_loopback() {
    let env = test_env!("pasta", "ip", "nsenter").with_busybox();
    let lab = Lab::new();
    lab.world.tcp("0.0.0.0:8000", "the world\n");
    lab.world.tcp("[::]:8001", "the world by IPv6\n");
    lab.world.dns("0.0.0.0:53", [198, 51, 100, 53]);
    lab.host.tcp("127.0.0.1:9000", "loopback\n");
    lab.host.tcp("[::1]:9000", "loopback\n");
    lab.host.tcp("0.0.0.0:9001", "the host\n");
    lab.host.dns("127.0.0.53:53", [198, 51, 100, 54]);
    let mut script = String::new();
    script += &ask(WORLD, 8000, "tcp");
    script += &ask(WORLD_6, 8001, "tcp6");
    script += &format!("nslookup -type=a kiln.test {WORLD} >/udp 2>&1\n");
    script += "nslookup -type=a kiln.test >/dns 2>&1\n";
    script += &ask(HOST, 9001, "host");
    for (number, address) in [
        "127.0.0.1",
        "::1",
        "10.0.2.2",
        HOST,
        "169.254.1.1",
        "fe80::1%eth0",
    ]
    .iter()
    .enumerate()
    {
        script += &ask(address, 9000, &format!("loopback{number}"));
    }
    script += "ls /sys/class/net >/interfaces\n";
    script += "cat /etc/hosts >/hosts; cat /etc/resolv.conf >/resolv\n";
    env.dockerfile(&at_once(&script));
    let built = lab
        .build(&env, "out")
        .args(["--add-host", "up:host-gateway"])
        .success();
    let notes = built.stderr.matches("note: RUN has").count();
    assert_eq!(notes, 1, "{built}");
    assert!(
        built.stderr.contains("note: RUN has a network of its own"),
        "{built}"
    );
    let image = env.saved("out");
    assert_eq!(image.text("tcp"), "the world\n", "{built}");
    assert_eq!(image.text("tcp6"), "the world by IPv6\n", "{built}");
    assert!(
        image.text("udp").contains("198.51.100.53"),
        "{}",
        image.text("udp")
    );
    assert!(
        image.text("dns").contains("198.51.100.54"),
        "{}",
        image.text("dns")
    );
    assert_eq!(image.text("host"), "the host\n", "{built}");
    for number in 0..6 {
        let heard = image.text(&format!("loopback{number}"));
        assert_eq!(heard, "failed\n", "address {number}");
    }
    assert_eq!(image.text("interfaces"), "eth0\nlo\n");
    assert_eq!(image.text("resolv"), "nameserver 169.254.1.1\n");
    assert_eq!(
        image.text("hosts"),
        "127.0.0.1\tlocalhost buildkitsandbox\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         198.51.100.1\tup\n"
    );
}

#[test]
fn b3_1_the_hosts_network_has_all_that_the_host_has() {
    let env = test_env!("ip", "nsenter").with_busybox();
    let lab = Lab::new();
    lab.host.tcp("127.0.0.1:9000", "loopback\n");
    env.dockerfile(&at_once(&format!(
        "{}cat /etc/hosts >/hosts; cat /etc/resolv.conf >/resolv\n",
        ask("127.0.0.1", 9000, "loopback")
    )));
    let built = lab
        .build(&env, "host")
        .args(["--network", "host", "--add-host", "up=host-gateway"])
        .success();
    assert!(!built.stderr.contains("note: RUN has"), "{built}");
    let image = env.saved("host");
    assert_eq!(image.text("loopback"), "loopback\n", "{built}");
    assert_eq!(image.text("resolv"), "nameserver 127.0.0.53\n");
    assert!(image.text("hosts").ends_with("\n127.0.0.1\tup\n"));
}

/// Puts a `pasta` of ours before that of the machine.
fn with_pasta(env: &TestEnv, script: &str) -> String {
    let (folder, program) = (env.path("programs"), env.path("programs/pasta"));
    fs::create_dir(&folder).unwrap();
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}:{path}:/usr/sbin:/sbin", folder.display())
}

fn refusing(env: &TestEnv, mode: &str) -> crate::env::Run {
    let path = with_pasta(env, "echo 'No /dev/net/tun here' >&2; exit 1");
    env.dockerfile("FROM busybox\nRUN ls /sys/class/net >/interfaces\nRUN true\n");
    env.build("image")
        .args(["--network", mode])
        .env("PATH", path)
}

#[test]
fn b3_1_where_pasta_refuses_the_host_lends_its_network_and_it_is_said_once() {
    let env = test_env!().with_busybox();
    let built = refusing(&env, "default").success();
    let note = "note: RUN has the host's network: `pasta` refuses: No /dev/net/tun here\n";
    assert_eq!(built.stderr.matches(note).count(), 1, "{built}");
    let mut interfaces: Vec<_> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap() + "\n")
        .collect();
    interfaces.sort();
    assert_eq!(env.saved("image").text("interfaces"), interfaces.concat());
}

#[test]
fn b3_1_a_pasta_that_is_demanded_and_refuses_is_an_error() {
    let env = test_env!().with_busybox();
    let failed = refusing(&env, "pasta").failure(3);
    let error = "--network=pasta cannot be had: `pasta` refuses: No /dev/net/tun here\n";
    assert!(failed.stderr.contains(error), "{failed}");
}

#[test]
fn b3_1_modes_that_are_none_are_refused() {
    let env = test_env!();
    for mode in ["bridge", "container:x"] {
        let refused = env.build("x").args(["--network", mode]).failure(125);
        let error = format!("network mode `{mode}` is not supported");
        assert!(refused.stderr.contains(&error), "{refused}");
    }
    let refused = env.build("x").args(["--allow", "network.all"]).failure(125);
    assert!(
        refused.stderr.contains("invalid entitlement `network.all`"),
        "{refused}"
    );
}

#[test]
fn b3_1_a_step_gets_the_hosts_network_only_where_that_is_allowed() {
    let env = test_env!().with_busybox();
    env.dockerfile("FROM busybox\nRUN --network=host ls /sys/class/net >/interfaces\n");
    let refused = env.build("x").failure(1);
    assert!(
        refused.stderr.contains("network.host is not allowed"),
        "{refused}"
    );
    env.build("x").args(["--allow", "network.host"]).success();
    let seen = env.saved("x").text("interfaces");
    let all = fs::read_dir("/sys/class/net").unwrap().count();
    assert_eq!(seen.lines().count(), all);
}

/// Whether a process of kiln's is the program that carries packets, by whichever of its names.
fn is_pasta(id: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    ["pasta", "passt"]
        .iter()
        .any(|known| name.starts_with(known))
}

/// Kiln may end while `pasta` is still being started.
#[test]
fn b3_1_a_network_that_is_not_ready_ends_with_kiln() {
    let env = test_env!().with_busybox();
    let path = with_pasta(&env, "exec sleep 66666");
    env.dockerfile("FROM busybox\nRUN true\n");
    let mut build = env.build("slow").env("PATH", path).spawn();
    let all = wait_until("the start of pasta", || {
        let all = descendants(build.id());
        let starts = all.iter().any(|process| process.has_argument("66666"));
        starts.then_some(all)
    });
    build.kill().unwrap();
    for process in &all {
        wait_until("the end of all processes", || {
            (!process.is_alive()).then_some(())
        });
    }
    drop(Output::of(build));
}

/// However kiln ends, or the process that keeps the network, nothing of it stays.
#[test]
fn b3_1_the_network_ends_with_kiln() {
    for keeper in [false, true] {
        let env = test_env!("pasta").with_busybox();
        env.dockerfile("FROM busybox\nRUN sleep 77777\n");
        let mut build = env.build("endless").spawn();
        let all = wait_until("the step and its network", || {
            let all = descendants(build.id());
            let step = all.iter().any(|process| process.has_argument("77777"));
            let pasta = all.iter().any(|process| is_pasta(process.id));
            (step && pasta).then_some(all)
        });
        if keeper {
            let keeper = all
                .iter()
                .find(|process| process.has_argument("__kiln-network"));
            keeper.unwrap().kill();
            let pasta = all.iter().filter(|process| is_pasta(process.id));
            for pasta in pasta.collect::<Vec<_>>() {
                wait_until("the end of pasta", || (!pasta.is_alive()).then_some(()));
            }
        }
        build.kill().unwrap();
        for process in &all {
            wait_until("the end of all processes", || {
                (!process.is_alive()).then_some(())
            });
        }
        drop(Output::of(build));
    }
}
