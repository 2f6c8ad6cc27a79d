//! How long `RUN true` takes from a snapshot to the next one on a warm store: one line of JSON with
//! medians in seconds, which `cargo xtask bench start` reads. Beside it, in turns with it, what no
//! sandbox can go below: processes that enter the same namespaces and start the same program.

#![expect(clippy::print_stdout, reason = "its result")]

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kiln_builder::runtime::{
    Cancel, Exit, Files, Isolation, Native, Network, Privileges, ProcessSpec, Root, Seccomp,
    Streams,
};
use kiln_builder::snapshot::{SnapshotId, Snapshots};
use kiln_builder::store::Store;
use kiln_builder::sys::process::{self, Side};
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::UnshareFlags;
use serde_json::json;

/// How often each thing is done.
const RUNS: usize = 101;

/// The program of the step, and of the processes beside it.
const PROGRAM: &str = "/bin/busybox";

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(Store::open(&folder.path().join("store"))?);
    let snapshots = Snapshots::new(store);
    let base = base(&snapshots)?;
    let points = folder.path().join("points");
    fs::create_dir(&points)?;
    let native = Native::new(PathBuf::from(env!("CARGO_BIN_EXE_kiln")));
    let cancel = Cancel::new()?;

    let (mut bare, mut step) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let start = Instant::now();
        start_bare()?;
        let between = Instant::now();
        start_step(&snapshots, &base, &points, &native, &cancel)?;
        // The first starts what the others find.
        if run > 0 {
            bare.push((between - start).as_secs_f64());
            step.push(between.elapsed().as_secs_f64());
        }
    }
    println!("{}", json!({ "bare": median(bare), "step": median(step) }));
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A snapshot with busybox as its only program.
fn base(snapshots: &Snapshots) -> Result<SnapshotId> {
    let active = snapshots.prepare()?;
    let bin = active.upper().join("bin");
    fs::create_dir(&bin)?;
    fs::copy(PROGRAM, bin.join("busybox")).with_context(|| format!("copying `{PROGRAM}`"))?;
    symlink("busybox", bin.join("true"))?;
    Ok(snapshots.commit(active)?)
}

/// From the snapshot below to the one of the step.
fn start_step(
    snapshots: &Snapshots,
    base: &SnapshotId,
    points: &Path,
    native: &Native,
    cancel: &Cancel,
) -> Result<()> {
    let active = snapshots.prepare()?;
    let spec = ProcessSpec {
        args: vec!["true".to_owned()],
        env: Vec::new(),
        secret_env: Vec::new(),
        cwd: "/".to_owned(),
        user: String::new(),
        root: Root {
            files: Files::Overlay {
                lowers: snapshots.lowers(std::slice::from_ref(base))?,
                upper: active.upper(),
            },
            work: active.work(),
            points: points.to_owned(),
            read_only: false,
        },
        hostname: "buildkitsandbox".to_owned(),
        network: Network::Host,
        hosts: String::new(),
        resolv_conf: String::new(),
        mounts: Vec::new(),
        shm_size: 64 << 20,
        rlimits: Vec::new(),
        privileges: Privileges::Sandbox(Seccomp::Default),
        cgroups: Vec::new(),
        isolation: Isolation::Root,
        streams: Streams::Pipes,
    };
    let exit = native.run(&spec, &mut |_, _| {}, cancel)?;
    ensure!(exit == Exit::Code(0), "the step ended with {exit:?}");
    snapshots.commit(active)?;
    Ok(())
}

/// A process that splits, in the namespaces of a step, for the program.
fn start_bare() -> Result<()> {
    let Side::Parent(child) = process::fork()? else {
        let done = enter().is_ok();
        #[expect(clippy::exit, reason = "the rest of `main` is the parent's")]
        std::process::exit(i32::from(!done));
    };
    let ended = waitpid(Some(child), WaitOptions::empty())?;
    let code = ended.and_then(|(_, status)| status.exit_status());
    ensure!(code == Some(0), "the bare process ended with {code:?}");
    Ok(())
}

fn enter() -> Result<()> {
    let flags = UnshareFlags::NEWPID
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    process::new_namespaces(flags)?;
    let Side::Parent(program) = process::fork()? else {
        let args = ["busybox", "true"].map(CString::new);
        let args = args.into_iter().collect::<Result<Vec<_>, _>>()?;
        match process::exec(&CString::new(PROGRAM)?, &args, &[])? {}
    };
    let ended = waitpid(Some(program), WaitOptions::empty())?;
    let code = ended.and_then(|(_, status)| status.exit_status());
    ensure!(code == Some(0), "the program ended with {code:?}");
    Ok(())
}
