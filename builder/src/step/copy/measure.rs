//! Measurements of walking, hashing and copying 20,000 files, beside `find` and `cp`; run with
//! `cargo test --release -p kiln-builder --lib measure -- --ignored --nocapture`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::*;
use crate::context::key::content_key;
use crate::context::select::select_all;
use crate::context::testing::op;

const FILES: usize = 20_000;
const DIRECTORIES: usize = 1_000;
const ROUNDS: usize = 5;

fn best<T>(what: &str, mut run: impl FnMut() -> T) {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        drop(run());
        times.push(begun.elapsed());
    }
    let best = times.iter().min().unwrap_or(&Duration::ZERO);
    println!("{what:<40} best {best:>10.1?}  of {times:.1?}");
}

fn process(program: &str, args: &[&std::ffi::OsStr]) {
    let status = Command::new(program)
        .args(args)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "a measurement, to be run in release mode"]
fn measure_20_000_files() {
    let dir = tempfile::tempdir().unwrap();
    let context = dir.path().join("context");
    for index in 0..DIRECTORIES {
        fs::create_dir_all(context.join(format!("{}/{index}", index % 40))).unwrap();
    }
    for index in 0..FILES {
        let name = format!(
            "{}/{}/file{index}.js",
            index % DIRECTORIES % 40,
            index % DIRECTORIES
        );
        fs::write(context.join(name), vec![b'x'; 100 + index % 8000]).unwrap();
    }
    let stats = dir.path().join("stat");
    let op = op(". /app/");
    let open = || Tree::context(&context, None, Some(&stats)).unwrap();

    best("find -printf", || {
        let format = "%p %m %U %G %s %T@ %i %n\n";
        process(
            "find",
            &[context.as_os_str(), "-printf".as_ref(), format.as_ref()],
        );
    });
    best("walk", || {
        assert_eq!(open().entries().len(), FILES + DIRECTORIES + 40);
    });
    best("walk and select `COPY . /app/`", || {
        let tree = open();
        select_all(&op, &[None, Some(&tree)]).unwrap()
    });
    let key = |save: bool| {
        let tree = open();
        let trees = [None, Some(&tree)];
        let selections = select_all(&op, &trees).unwrap();
        let key = content_key(&op, &trees, &selections).unwrap();
        if save {
            tree.save_stat_cache().unwrap();
        }
        key
    };
    best("content key, nothing remembered", || key(false));
    let first = key(true);
    best("content key, all remembered", || {
        assert_eq!(key(false), first);
    });
    let tree = open();
    let trees = [None, Some(&tree)];
    let selections = select_all(&op, &trees).unwrap();
    let upper = dir.path().join("upper");
    let empty = |path: &Path| {
        drop(fs::remove_dir_all(path));
        fs::create_dir(path).unwrap();
    };
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        empty(&upper);
        let begun = Instant::now();
        process(
            "cp",
            &["-a".as_ref(), context.as_os_str(), upper.as_os_str()],
        );
        times.0.push(begun.elapsed());
        empty(&upper);
        let begun = Instant::now();
        let inputs = CopyInputs {
            fetched: &[],
            trees: &trees,
            lower: None,
            upper: &upper,
            scratch: dir.path(),
            time: SystemTime::now(),
        };
        let report = copy(&op, &selections, &inputs, &mut |_| Ok(false)).unwrap();
        times.1.push(begun.elapsed());
        assert_eq!(report.files, FILES as u64);
    }
    println!("cp -a {:.1?}\ncopy  {:.1?}", times.0, times.1);
}
