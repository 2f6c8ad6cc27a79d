//! The bodies of the fuzz targets (`grammar/fuzz`) over the test data: they compile with every
//! compiler, and what they claim holds at least there.

#[expect(
    unreachable_pub,
    reason = "the library of the fuzz targets, in this test a module"
)]
#[path = "../fuzz/src/lib.rs"]
mod checks;

use std::path::Path;

use checks::seeds::{TARGETS, seeds};

#[test]
fn the_targets_hold_for_the_test_data() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
    for target in TARGETS {
        let check = match target {
            "dockerfile" => checks::dockerfile,
            "word" => checks::word,
            "dockerignore" => checks::dockerignore,
            "glob" => checks::glob,
            other => panic!("no test of the fuzz target {other}"),
        };
        let seeds = seeds(target, &testdata).unwrap();
        assert!(seeds.len() > 20, "{target} has hardly any seeds");
        for seed in seeds {
            check(&seed);
        }
    }
}
