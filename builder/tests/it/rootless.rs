//! kiln run by an ordinary user: with subordinate ids, with few, and with none (B5.6).

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::env::{TestEnv, test_env};
use crate::people::{ID, Ids, Person, SUBORDINATE};
use crate::traces::{descendants, wait_until};

/// When all files are made that kiln makes.
const EPOCH: (&str, &str) = ("SOURCE_DATE_EPOCH", "1000000000");

/// Steps that give the same bytes whenever they run, with all that a disk of an ordinary user cannot
/// hold: owners of files, links and pipes, devices, set-user-id bits and capabilities of others.
const STEPS: &str = "FROM busybox AS made\n\
    COPY <<passwd <<group /etc/\n\
    root:x:0:0:root:/root:/bin/sh\n\
    app:x:1000:1001::/srv:/bin/sh\n\
    passwd\n\
    root:x:0:\n\
    app:x:1001:\n\
    extra:x:2000:app\n\
    group\n\
    ADD files.tar /files/\n\
    WORKDIR /srv\n\
    RUN echo a >a; ln -s a link; mkfifo pipe; mkdir -m 2750 dir; echo b >dir/b; ln dir/b dir/c; \
        touch -h -d @1 a link pipe dir/b dir; chown -R app:app dir; chown 5:6 a; chown -h 7:8 link; \
        chown :9 pipe; chmod 4711 a; touch -h -d @1 . / dir\n\
    USER app\n\
    WORKDIR /home/app\n\
    RUN test \"$(id -u):$(id -g)\" = 1000:1001; echo own >own; ln -s own also; touch -h -d @1 own also .\n\
    FROM busybox\n\
    COPY --from=made /srv /copied\n\
    COPY --from=made --chown=3:4 /files /given\n\
    COPY --from=made /files /kept\n\
    COPY --from=made /home /home\n\
    COPY --from=made /etc/passwd /etc/\n\
    USER 1000:2000\n\
    RUN test ! -w /etc/passwd || test \"$(cat /proc/self/uid_map | tr -s ' ')\" = ' 1000 0 1'\n";

/// An archive with files of several owners, a device, and a file with capabilities.
fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let entry = |name: &str, kind, mode, owner: (u64, u64)| {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        header
    };
    // cap_net_bind_service=ep, as attributes keep it
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let extension = [("SCHILY.xattr.security.capability", &capability[..])];
    archive.append_pax_extensions(extension).unwrap();
    let mut add = |mut header: tar::Header| {
        header.set_cksum();
        archive.append(&header, &[][..]).unwrap();
    };
    add(entry("capable", tar::EntryType::Regular, 0o755, (0, 0)));
    add(entry("setuid", tar::EntryType::Regular, 0o6755, (33, 34)));
    let mut null = entry("null", tar::EntryType::Char, 0o666, (0, 6));
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    add(null);
    let mut disk = entry("disk", tar::EntryType::Block, 0o660, (0, 6));
    disk.set_device_major(8).unwrap();
    disk.set_device_minor(0).unwrap();
    add(disk);
    let mut link = entry("link", tar::EntryType::Symlink, 0o777, (60_000, 60_001));
    link.set_link_name("setuid").unwrap();
    add(link);
    archive.into_inner().unwrap()
}

/// The layers that a build of [`STEPS`] gives, after those of the base.
fn layers(env: &TestEnv) -> Vec<Value> {
    env.file("files.tar", archive());
    env.give_context();
    env.built("steps", STEPS);
    let image = env.inspect("steps");
    let layers = image["RootFS"]["Layers"].as_array().unwrap();
    layers[3..].to_vec()
}

fn person(ids: Ids) -> TestEnv {
    TestEnv::new()
        .with_variable(EPOCH.0, EPOCH.1)
        .with_person(Person::new(ids))
        .with_busybox()
}

/// The build made twice with the base of root's store, so that only who builds is another.
#[test]
fn b5_6_layers_are_the_same_whoever_builds() {
    let root = test_env!("newuidmap", "setpriv").with_variable(EPOCH.0, EPOCH.1);
    let root = root.with_busybox();
    let expected = layers(&root);
    assert_eq!(expected.len(), 6);
    for ids in [Ids::Many, Ids::None] {
        let env = person(ids);
        assert_eq!(layers(&env), expected, "{ids:?}");
        let forced = env.kiln(["build", "--isolation", "root", "context"]);
        let error = forced.failure(3).stderr;
        assert!(
            error.contains("isolation `root` is not possible here: this is not root"),
            "{error}"
        );
    }
    let forced = TestEnv::new()
        .with_variable(EPOCH.0, EPOCH.1)
        .with_variable("KILN_ISOLATION", "rootless")
        .with_busybox();
    assert_eq!(layers(&forced), expected, "root in a user namespace");
}

/// Owners beyond the range of a user are written down; only a step cannot be of such a user.
#[test]
fn b5_6_owners_beyond_the_range_are_kept() {
    let root = test_env!("newuidmap", "setpriv").with_variable(EPOCH.0, EPOCH.1);
    let root = root.with_busybox();
    let env = person(Ids::Few);
    let text = "FROM busybox\nADD files.tar /files/\nCOPY --chown=1000:1001 <<x /\nx\n";
    let ids = [&root, &env].map(|env| {
        env.file("files.tar", archive());
        env.give_context();
        env.built("x", text);
        env.inspect("x")["RootFS"]["Layers"].clone()
    });
    assert_eq!(ids[0], ids[1]);
    env.dockerfile("FROM x\nUSER 1000\nRUN true\n");
    let error = env.build("y").failure(1).stderr;
    let said = "user id 1000 does not exist here: the user namespace has the ids 0 to 10";
    assert!(error.contains(said), "{error}");
    assert!(error.contains("/etc/subuid"), "{error}");
}

/// In a user namespace files are the user's and its subordinates', and so are the processes.
#[test]
fn b5_6_a_step_has_the_ids_of_its_user() {
    test_env!("newuidmap", "setpriv");
    let env = person(Ids::Many);
    let text = "FROM busybox\nRUN mkdir /d && chown 1000 /d && tr -s ' ' </proc/self/uid_map\n";
    let output = env.dockerfile(text).build("x").success();
    let map = format!(" 0 {ID} 1");
    assert!(output.stderr.contains(&map), "{output}");
    let line = "isolation: rootless (65536 subordinate ids)";
    assert!(output.stderr.contains(line), "{output}");
    let owners: Vec<u32> = walkdir::WalkDir::new(env.store())
        .into_iter()
        .filter_map(Result::ok)
        .map(|entry| entry.metadata().unwrap().uid())
        .filter(|owner| *owner != ID)
        .collect();
    assert_eq!(owners, [SUBORDINATE + 999]);
    let mode = fs::metadata(env.store()).unwrap().permissions().mode();
    assert_eq!(mode & 0o77, 0, "others could run set-user-id programs");
}

/// Nobody but root exists; package managers must not notice.
#[test]
fn b5_6_users_are_made_up_where_there_is_one_id() {
    test_env!("newuidmap", "setpriv");
    let env = person(Ids::None);
    let text = "FROM busybox\n\
        RUN echo 'app:x:1000:1001::/:/bin/sh' >/etc/passwd; echo 'app:x:1001:' >/etc/group\n\
        RUN su app -c 'id -u; id -g' >/tmp/su; test \"$(tr '\\n' : </tmp/su)\" = 1000:1001:; \
            test \"$(id -u)\" = 0; touch /tmp/x; chown 5:6 /tmp/x; ! chown 5 /tmp/none; \
            mkdir /tmp/r; ln -s /tmp/x /tmp/r/l; cd /tmp/r; chown 7:6 l; chown 7 ../x ../r\n\
        RUN test \"$(stat -c %u:%g /tmp/x /tmp/r | tr '\\n' ,)\" = 7:6,7:0,; cp -a /tmp/r /tmp/s; \
            ls -ln /tmp/s/l; chown -h 8:9 /tmp/s/l; cp -a /tmp/s/l /tmp/t\n\
        USER app\n\
        RUN touch /tmp/own; test \"$(id -u):$(id -g)\" = 1000:1001\n";
    env.file("etc/keep", "");
    let text = text.replace("FROM busybox\n", "FROM busybox\nCOPY etc /etc/\n");
    env.give_context();
    let output = env.dockerfile(&text).build("x").success();
    let line = "isolation: rootless (a single id: /etc/subuid has no range for `fresh`)";
    assert!(output.stderr.contains(line), "{output}");
    let saved = env.saved("x");
    let owner = |path: &str| {
        let all = saved.layers.iter().rev();
        let mut found = all.filter_map(|layer| layer.get(path));
        found.next().unwrap_or_else(|| panic!("no {path}")).owner
    };
    assert_eq!(owner("tmp/x"), (7, 6), "through a link, and only the user");
    assert_eq!(owner("tmp/r/l"), (0, 0));
    assert_eq!(owner("tmp/r"), (7, 0));
    assert_eq!(owner("tmp/s"), (7, 0), "a copy");
    assert_eq!(owner("tmp/t"), (8, 9), "a copy of a link");
    assert_eq!(owner("tmp/own"), (1000, 1001));
    assert_eq!(owner("tmp/su"), (0, 0));
}

#[test]
fn b5_6_images_travel() {
    test_env!("newuidmap", "setpriv", "docker-registry");
    let registry = TestEnv::new();
    let registry = registry.registry();
    for ids in [Ids::Many, Ids::None] {
        let env = person(ids);
        let name = registry.name(&format!("app:{ids:?}").to_lowercase());
        let text = "FROM busybox\nRUN mkdir /d && chown 33:33 /d\n";
        let id = env.built(&name, text);
        env.kiln(["push", &name]).success();
        env.kiln(["rmi", &name]).success();
        env.kiln(["pull", &name]).success();
        assert_eq!(env.inspect(&name)["Id"], id.as_str());
        let other = env.alike();
        let archive = env.path("image.tar");
        env.kiln(["save", &name, "-o"]).arg(&archive).success();
        other.kiln(["load", "-i"]).arg(&archive).success();
        let text = format!("FROM {name}\nRUN touch /d/more\n");
        other.built("more", &text);
        assert_eq!(
            other
                .kiln(["images", "-q"])
                .success()
                .stdout
                .lines()
                .count(),
            2
        );
    }
}

/// Another isolation has other owners on disk: they are not taken for what they are not.
#[test]
fn b5_6_a_store_belongs_to_the_ids_that_it_was_made_with() {
    test_env!("newuidmap", "setpriv");
    let env = person(Ids::Many);
    env.built("x", "FROM busybox\nRUN true\n");
    let root = TestEnv::new();
    root.dockerfile("FROM busybox\nRUN echo another\n");
    let store = env.store();
    let build = root.build("x").env("KILN_ROOT", &store);
    let error = build.failure(3).stderr;
    let said = format!("belong to the ids 0:{ID}:1,1:{SUBORDINATE}:65536");
    assert!(error.contains(&said), "{error}");
}

#[test]
fn b4_4_an_interrupt_leaves_nothing() {
    test_env!("newuidmap", "setpriv");
    for ids in [Ids::Many, Ids::None] {
        let env = person(ids);
        env.dockerfile("FROM busybox\nRUN (setsid sleep 88888 &); sleep 99999\n");
        let child = env.build("x").spawn();
        let processes = wait_until("the step", || {
            let all = descendants(child.id());
            let runs = |argument: &str| all.iter().any(|process| process.has_argument(argument));
            (runs("88888") && runs("99999")).then_some(all)
        });
        let id = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(id, Signal::TERM).unwrap();
        let output = crate::env::Output::of(child);
        assert_eq!(output.code, Some(143), "{output}");
        wait_until("the end of all processes", || {
            processes.iter().all(|one| !one.is_alive()).then_some(())
        });
        env.no_traces();
    }
}

/// The program that serves the root of a step ends with kiln, too, however that ends.
#[test]
fn b5_6_fuse_overlayfs_ends_with_a_killed_kiln() {
    let env = test_env!("newuidmap", "setpriv", "fuse-overlayfs");
    let env = env.with_variable("KILN_SNAPSHOTTER", "fuse");
    let env = env.with_person(Person::new(Ids::Many).with_fuse());
    let env = env.with_busybox();
    env.dockerfile("FROM busybox\nRUN sleep 77788\n");
    let mut child = env.build("x").spawn();
    let processes = wait_until("the step", || {
        let all = descendants(child.id());
        let runs = |argument: &str| all.iter().any(|process| process.has_argument(argument));
        (runs("77788") && runs("fuse-overlayfs")).then_some(all)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the end of all processes", || {
        processes.iter().all(|one| !one.is_alive()).then_some(())
    });
    env.built("x", "FROM busybox\nRUN true\n");
    env.no_traces();
}

/// Runs a program as an ordinary user in a user namespace in which no other can be made. The shell
/// in it is started twice: only the second time it is root there.
const DENY: &str = "mkfifo gate; \
    unshare -U sh -c 'read -r go <gate; exec sh -c \"$@\"' sh \
        'echo 0 >/proc/sys/user/max_user_namespaces && \
         exec setpriv --reuid 1000 --regid 1000 --clear-groups -- \"$@\"' sh \"$@\" & pid=$!; \
    while [ \"$(readlink /proc/$pid/ns/user)\" = \"$(readlink /proc/self/ns/user)\" ]; \
        do sleep .05; done; \
    for map in uid_map gid_map; do echo '0 0 65536' >/proc/$pid/$map; done; \
    echo >gate; rm gate; wait $pid";

/// Without user namespaces an ordinary user cannot build; what denies them is named.
#[test]
fn b5_6_what_denies_user_namespaces_is_named() {
    let env = test_env!("newuidmap", "setpriv", "unshare");
    env.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let kiln = env.path("kiln");
    fs::copy(env!("CARGO_BIN_EXE_kiln"), &kiln).unwrap();
    fs::set_permissions(env.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let run = |args: &[&str]| {
        let run = env.program("sh", ["-c", DENY, "sh"]).arg(&kiln);
        let run = run.env("KILN_ROOT", env.path("denied"));
        run.args(args.iter().copied())
    };
    let error = run(&["build", "context"]).failure(3).stderr;
    let said = "denied by the sysctl user.max_user_namespaces=0";
    assert!(error.contains(said), "{error}");
    assert!(
        error.contains("hint: as root: sysctl -w user.max_user_namespaces"),
        "{error}"
    );
    // Images can be looked at and moved all the same.
    run(&["images"]).success();
    let report = run(&["doctor", "--format", "json"]).failure(1).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["works"], false);
    assert!(report["error"].as_str().unwrap().contains(said), "{report}");
}

/// The kernel makes no second /proc where a container covers parts of the first: then the step sees
/// the first one, covered as it is, and can do nothing to the processes in it.
#[test]
fn b5_4_in_a_container_proc_stays_covered() {
    test_env!("newuidmap", "setpriv");
    for ids in [Ids::Many, Ids::None] {
        let env = TestEnv::new().with_person(Person::new(ids).in_container());
        let env = env.with_busybox();
        let text = "FROM busybox\n\
            RUN test -z \"$(cat /proc/interrupts)\" && test -z \"$(ls /proc/bus)\" \
             && test \"$(readlink /proc/self/exe)\" = /bin/busybox && test $$ = 1 \
             && ! cat /proc/1/environ && ! ls /proc/1/root/ && ! ls /proc/1/fd/ \
             && chown 5 /tmp && test \"$(stat -c %u /tmp)\" = 5\n";
        env.dockerfile(text).build("x").success();
    }
}

/// Root of a user namespace, as in another builder's: it needs none of its own.
#[test]
fn b5_6_root_of_a_namespace_needs_no_other() {
    let env = test_env!("unshare").with_busybox();
    env.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let store = env.path("inner");
    let kiln = env!("CARGO_BIN_EXE_kiln");
    let run = |args: &[&str]| {
        let run = env.program("unshare", ["-Ur", "-m"]).arg(kiln);
        run.env("KILN_ROOT", &store).args(args.iter().copied())
    };
    run(&["load"]).stdin(crate::env::busybox()).success();
    env.dockerfile("FROM busybox\nRUN tr -s ' ' </proc/self/uid_map; chown 5:6 /tmp\n");
    let output = run(&["build", "-t", "x", "context"]).success();
    assert!(output.stderr.contains(" 0 0 1\n"), "{output}");
    assert!(
        output.stderr.contains("isolation: rootless (a single id)"),
        "{output}"
    );
}

#[test]
fn the_doctor_says_what_there_is() {
    let env = test_env!("newuidmap", "setpriv");
    let report = |env: &TestEnv| -> Value {
        let output = env.kiln(["doctor", "--format", "json"]).success();
        serde_json::from_str(&output.stdout).unwrap()
    };
    let of = |report: &Value, name: &str| {
        let all = report["mechanisms"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"] == name);
        one.unwrap_or_else(|| panic!("no {name} in {report}"))
            .clone()
    };
    let root = report(&env);
    assert_eq!(root["isolation"], "root");
    assert_eq!(of(&root, "mount rights")["allowed"], true);
    assert_eq!(of(&root, "user attributes")["allowed"], true);
    let many = report(&TestEnv::new().with_person(Person::new(Ids::Many)));
    assert_eq!(many["isolation"], "rootless (65536 subordinate ids)");
    assert_eq!(of(&many, "mount rights")["allowed"], false);
    assert_eq!(of(&many, "overlayfs")["allowed"], true);
    let none = report(&TestEnv::new().with_person(Person::new(Ids::None)));
    let ids = of(&none, "subordinate ids");
    assert_eq!(ids["allowed"], false);
    assert_eq!(ids["detail"], "/etc/subuid has no range for `fresh`");
    assert_ne!(ids["cost"], "");
    let text = env.kiln(["doctor"]).success().stdout;
    assert!(
        text.lines().any(|line| line.starts_with("seccomp ")),
        "{text}"
    );
    assert!(
        text.ends_with("isolation: root; layers: overlay\n"),
        "{text}"
    );
}
