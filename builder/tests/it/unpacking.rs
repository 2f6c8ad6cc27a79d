//! Base images that are unpacked while they come.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::env::{TestEnv, test_env};
use crate::interrupt::Running;
use crate::liar::{Fault, Liar};
use crate::traces::wait_until;

/// Bytes of the file in the layer.
const SIZE: usize = 4 << 20;

/// Content that does not become small.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(SIZE).collect()
}

impl TestEnv {
    /// The layer's file in a snapshot that is being made, with how much of it is there.
    fn unpacked(&self) -> Option<(PathBuf, u64)> {
        let tree = walkdir::WalkDir::new(self.store().join("tmp"));
        // Others make and remove things there at the same time.
        let mut files = tree.into_iter().flatten();
        let found = files.find(|entry| entry.file_name() == "file")?;
        let size = fs::metadata(found.path()).ok()?.len();
        Some((found.into_path(), size))
    }

    /// Bytes of the layer that have come.
    fn fetched(&self, liar: &Liar) -> u64 {
        let partial = self.store().join("partial").join(liar.layer().hex());
        fs::metadata(partial).map_or(0, |partial| partial.len())
    }

    fn start(&self, dockerfile: &str, tag: &str) -> Running {
        Running(Some(self.dockerfile(dockerfile).build(tag).spawn()))
    }
}

fn end(kiln: Running, code: i32) -> String {
    let output = kiln.end();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    stderr
}

/// The last bytes never come, and the first are in a file already. Nothing stays of it.
#[test]
fn unpacking_begins_before_the_last_byte_has_come() {
    for (verb, compressed) in [("build", false), ("build", true), ("run", true)] {
        let env = test_env!().with_busybox();
        let before = env.content();
        let liar = match compressed {
            true => Liar::compressed(Fault::Stall, &noise()),
            false => Liar::with_layer(Fault::Stall, &noise()),
        };
        let kiln = match verb {
            "run" => Running(Some(env.kiln(["run", &liar.name(), "true"]).spawn())),
            _ => env.start(&format!("FROM {}\nRUN true\n", liar.name()), "x"),
        };
        wait_until("a good part of the file", || {
            let (_, size) = env.unpacked()?;
            (size > SIZE as u64 / 3).then_some(())
        });
        kiln.signal(Signal::INT);
        end(kiln, 130);
        env.no_traces();
        env.same_content(&before);
    }
}

/// Files that no step needs are not unpacked, early or late.
#[test]
fn what_no_step_needs_is_not_unpacked() {
    let env = test_env!().with_busybox();
    let before = env.content();
    let liar = Liar::with_layer(Fault::Stall, &noise());
    let build = env.start(&format!("FROM {}\nENV a=b\n", liar.name()), "x");
    wait_until("half of the layer", || {
        (env.fetched(&liar) >= SIZE as u64 / 2).then_some(())
    });
    assert_eq!(env.unpacked(), None);
    build.signal(Signal::INT);
    end(build, 130);
    env.same_content(&before);
}

/// A step that must be in the cache and is not is refused before the files of its base have come, which
/// here they never do.
#[test]
fn what_must_be_cached_waits_for_no_files() {
    let env = test_env!().with_busybox();
    let before = env.content();
    let liar = Liar::with_layer(Fault::Stall, &noise());
    env.dockerfile(&format!("FROM {}\nRUN true\n", liar.name()));
    let refused = env.build("x").arg("--require-cached").failure(1);
    let text = "not in the cache, as --require-cached demands: never built";
    assert!(refused.stderr.contains(text), "{refused}");
    env.same_content(&before);
}

/// The reader of wrong bytes fails before the digest is known, and says nothing of that.
#[test]
fn of_wrong_bytes_the_digest_is_told() {
    let env = test_env!().with_busybox();
    let before = env.content();
    let liar = Liar::compressed(Fault::Altered, &noise());
    let build = format!("FROM {}\nRUN true\n", liar.name());
    let build = env.dockerfile(&build).build("x").failure(3);
    let run = env.kiln(["run", &liar.name(), "true"]).failure(125);
    for output in [build, run] {
        let expected = format!("digest mismatch: expected {}, got ", liar.layer());
        assert!(output.stderr.contains(&expected), "{output}");
        for word in ["unpack", "deflate", "gzip", "not fetched"] {
            assert!(!output.stderr.contains(word), "{word}: {output}");
        }
    }
    env.no_traces();
    env.same_content(&before);
}

fn copies(liar: &Liar) -> String {
    let image = liar.name();
    let sum = format!("test $(wc -c </copy) = {SIZE} && sha256sum /copy");
    format!("FROM busybox\nCOPY --from={image} /file /copy\nRUN {sum}\n")
}

fn assert_copied(stderr: &str) {
    let sum = kiln_registry::digest::Digest::of(&noise()).hex();
    assert!(stderr.contains(&format!("{sum}  /copy")), "{stderr}");
}

/// A connection that breaks is waited for.
#[test]
fn a_broken_transfer_goes_on_and_so_does_unpacking() {
    let env = test_env!().with_busybox();
    let liar = Liar::compressed(Fault::CutOnce, &noise());
    let built = env.dockerfile(&copies(&liar)).build("x").success();
    assert!(built.stderr.contains("retrying in"), "{built}");
    assert_copied(&built.stderr);
    env.no_traces();
}

/// What another process has begun is gone on with: when it has ended, and while it is at it.
#[test]
fn what_another_process_has_begun_is_unpacked() {
    for at_once in [false, true] {
        let env = test_env!().with_busybox();
        let liar = Liar::compressed(Fault::StallOnce, &noise());
        let first = env.start(&copies(&liar), "first");
        wait_until("half of the layer", || {
            (env.fetched(&liar) >= SIZE as u64 / 2).then_some(())
        });
        let interrupt = |first: Running| {
            first.signal(Signal::INT);
            end(first, 130);
        };
        let second = if at_once {
            let second = env.start(&copies(&liar), "second");
            interrupt(first);
            second
        } else {
            interrupt(first);
            env.start(&copies(&liar), "second")
        };
        assert_copied(&end(second, 0));
        env.no_traces();
    }
}

/// What lies there may be damaged: it is read, found wrong, and comes anew.
#[test]
fn a_damaged_beginning_is_thrown_away() {
    let env = test_env!().with_busybox();
    let liar = Liar::compressed(Fault::CutOnce, &noise());
    let partial = env.store().join("partial").join(liar.layer().hex());
    fs::write(partial, vec![7; SIZE / 4]).unwrap();
    let built = env.dockerfile(&copies(&liar)).build("x").success();
    assert_copied(&built.stderr);
    env.no_traces();
}
