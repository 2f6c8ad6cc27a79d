//! What comes from the cache is what executing would have left.

use std::fs;
use std::path::Path;

use crate::cache::{ALL, executed, steps, three};
use crate::env::{Run, TestEnv, test_env};

/// A step's layer stands on the result that it was made upon, and on no other of the same definition:
/// an image is never put together from two executions.
#[test]
fn killer_2_a_layer_is_not_put_upon_another_result_of_the_same_step() {
    let env = test_env!().with_busybox();
    env.dockerfile(
        "FROM busybox\n\
         RUN cat /proc/sys/kernel/random/uuid >/id\n\
         RUN --mount=type=secret,id=s cp /id /copy; test \"$(cat /run/secrets/s)\" = ok\n",
    );
    let build = |value: &str| with_secret(&env, value);
    build("ok").success();
    // the first step is executed again, and the second one fails
    build("bad").arg("--no-cache").failure(1);
    build("ok").success();
    let saved = env.saved("one");
    assert_eq!(saved.text("id"), saved.text("copy"));
    assert_eq!(steps(&build("ok").success()).0, [""; 0]);
}

/// A build that knows a secret, which is no part of any key.
fn with_secret(env: &TestEnv, value: &str) -> Run {
    fs::write(env.path("secret"), value).unwrap();
    let secret = format!("id=s,src={}", env.path("secret").display());
    env.build("one").args(["--secret", &secret])
}

/// The same with what a stage copies: from the result that is there now.
#[test]
fn killer_2_files_are_not_copied_from_a_former_result_of_a_stage() {
    let env = test_env!().with_busybox();
    let dockerfile = "FROM busybox AS make\n\
         RUN cat /proc/sys/kernel/random/uuid >/id\n\
         FROM busybox\n\
         COPY --from=make /id /one\n\
         RUN --mount=type=secret,id=s test \"$(cat /run/secrets/s)\" = ok\n\
         COPY --from=make /id /two\n";
    env.dockerfile(dockerfile);
    let build = |value: &str| with_secret(&env, value);
    build("ok").success();
    build("bad").arg("--no-cache").failure(1);
    env.dockerfile(&dockerfile.replace("/two", "/three"));
    build("ok").success();
    let saved = env.saved("one");
    assert_eq!(saved.text("one"), saved.text("three"));
}

/// Every source counts, not only the first one.
#[test]
fn killer_2_all_sources_of_a_copy_are_in_the_key() {
    let env = test_env!().with_busybox();
    env.file("a", "1").file("b", "2").file("c/d", "3");
    let dockerfile = "FROM busybox\nCOPY a b c/* /dir/\n";
    assert_eq!(executed(&env, dockerfile).len(), 1);
    for name in ["a", "b", "c/d"] {
        env.file(name, "changed");
        assert_eq!(executed(&env, dockerfile).len(), 1, "{name}");
        let name = name.rsplit('/').next().unwrap();
        let text = env.saved("one").text(&format!("dir/{name}"));
        assert_eq!(text, "changed");
    }
    assert_eq!(executed(&env, dockerfile), [""; 0]);
}

/// A changed file that looks as it did: the same size and the same times.
#[test]
fn killer_1_content_counts_whatever_size_and_times_say() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "first!").file("dir/b", "1");
    let old = env.context().join("dir/a");
    let time = |path: &Path| {
        let path = path.to_str().unwrap();
        env.program("touch", ["-d", "@1500000000", path]).success();
    };
    time(&old);
    std::thread::sleep(std::time::Duration::from_millis(50));
    three(&env);
    assert_eq!(three(&env), [""; 0]);
    let changes: [(&str, &dyn Fn()); 3] = [
        ("written in place", &|| fs::write(&old, "second").unwrap()),
        ("replaced by another file", &|| {
            let new = env.context().join("new");
            fs::write(&new, "third!").unwrap();
            time(&new);
            fs::rename(&new, &old).unwrap();
        }),
        ("replaced by a name of another file", &|| {
            let other = env.path("other");
            fs::write(&other, "fourth").unwrap();
            time(&other);
            fs::remove_file(&old).unwrap();
            fs::hard_link(&other, &old).unwrap();
        }),
    ];
    for (what, change) in changes {
        change();
        time(&old);
        assert_eq!(three(&env), ALL, "{what}");
        let content = fs::read_to_string(&old).unwrap();
        assert_eq!(env.saved("one").text("dir/a"), content, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(three(&env), [""; 0], "{what}, and not changed since");
    }
}

/// Deleted files stay deleted, and a directory that was made anew shows nothing of the old one, also
/// when the layers come from the cache.
#[test]
fn killer_3_what_was_deleted_does_not_come_back_from_the_cache() {
    let env = test_env!().with_busybox();
    env.file("d/old", "1").file("d/sub/deep", "2");
    let dockerfile = "FROM busybox\n\
         COPY d /d\n\
         RUN rm /d/old; rm -r /d/sub; mkdir /d/sub; echo new >/d/sub/new\n\
         RUN find /d | sort >/seen\n\
         RUN echo LAST\n";
    let seen = "/d\n/d/sub\n/d/sub/new\n";
    for last in ["one", "two"] {
        let text = dockerfile.replace("LAST", last);
        assert!(executed(&env, &text).contains(&format!("RUN echo {last}")));
        assert_eq!(env.saved("one").text("seen"), seen);
    }
    let text = dockerfile.replace("LAST", "two; find /d | sort >/later");
    assert_eq!(
        executed(&env, &text),
        ["RUN echo two; find /d | sort >/later"]
    );
    assert_eq!(env.saved("one").text("later"), seen);
}

/// What is damaged or missing in the cache is a miss.
#[test]
fn killer_14_a_damaged_cache_is_a_miss_and_never_a_failure() {
    let env = test_env!().with_busybox();
    env.file("dir/a", "1");
    three(&env);
    let garbage = |folder: &str| {
        for entry in fs::read_dir(env.store().join(folder)).unwrap() {
            fs::write(entry.unwrap().path(), "garbage").unwrap();
        }
    };
    garbage("cache");
    assert_eq!(three(&env), [""; 0], "without digests of files");
    for entry in fs::read_dir(env.store().join("snapshots")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("sum").exists() {
            fs::remove_dir_all(path).unwrap();
        }
    }
    let again = three(&env);
    assert!(again.contains(&ALL[1].to_owned()), "{again:?}");
    assert_eq!(env.saved("one").text("sum"), "1");
    // records of the build before that say nothing
    for sql in [
        "UPDATE steps SET description = 'garbage'",
        "UPDATE file_lists SET files = x'00'",
        "UPDATE file_lists SET files = x'01ffff'",
        "DELETE FROM steps",
        "UPDATE cache SET upon = 'garbage'",
    ] {
        let database = rusqlite::Connection::open(env.store().join("kiln.db")).unwrap();
        database.execute(sql, []).unwrap();
        drop(database);
        assert_eq!(three(&env), [""; 0], "{sql}");
        env.file("dir/a", sql);
        assert_eq!(three(&env), ALL, "{sql}");
    }
}
