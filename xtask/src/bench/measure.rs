//! Wall time, CPU time and memory of a command, as the kernel accounts for them in `/proc`.

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;

/// How often the memory of the processes is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// What one run of a command took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Seconds from start to end.
    pub(super) wall: f64,
    /// Seconds of CPU, user and system, of the command, its children and its daemon.
    pub(super) cpu: f64,
    /// Bytes of resident memory: the largest sum over the command, its children and its daemon.
    pub(super) memory: u64,
}

/// Runs a command and measures it; `daemon` is the process that works on its behalf.
pub(super) fn measure(mut command: Command, daemon: Option<u32>) -> Result<Sample> {
    let name = process::line(&command);
    // what waits to be written is not this command's
    process::quiet(&mut Command::new("sync"))?;
    let tick = ticks_per_second()?;
    let before = cpu_ticks(daemon)?;
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let roots: Vec<u32> = std::iter::once(child.id()).chain(daemon).collect();
    let ended = AtomicBool::new(false);
    let (output, wall, memory) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| peak_memory(&roots, &ended));
        let output = child.wait_with_output();
        let wall = started.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (output, wall, sampler.join())
    });
    let output = output.with_context(|| format!("cannot read from `{name}`"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!(
            "`{name}` failed: {}\n{}",
            output.status,
            process::tail(&text, 20)
        );
    }
    let Ok(memory) = memory else {
        bail!("the thread that watches the memory of `{name}` failed");
    };
    let ticks = cpu_ticks(daemon)?.saturating_sub(before);
    Ok(Sample {
        wall,
        cpu: ticks as f64 / tick,
        memory,
    })
}

fn ticks_per_second() -> Result<f64> {
    let text = process::output(Command::new("getconf").arg("CLK_TCK"))?;
    text.trim()
        .parse()
        .with_context(|| format!("`getconf CLK_TCK` printed `{}`", text.trim()))
}

/// Returns the CPU time of all our children that have ended, and of a daemon with its own.
fn cpu_ticks(daemon: Option<u32>) -> Result<u64> {
    let ours = Stat::read("self").context("cannot read `/proc/self/stat`")?;
    let theirs = daemon.and_then(|pid| Stat::read(&pid.to_string()));
    Ok(ours.children_ticks + theirs.map_or(0, |stat| stat.own_ticks + stat.children_ticks))
}

/// Looks at the memory of `roots` and all below them until `ended`.
fn peak_memory(roots: &[u32], ended: &AtomicBool) -> u64 {
    let page = process::output(Command::new("getconf").arg("PAGE_SIZE"));
    let page = page
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(4096);
    let mut peak = 0;
    while !ended.load(Ordering::Relaxed) {
        let stats = all_stats();
        let pages: u64 = below(roots, &stats)
            .iter()
            .map(|pid| stats[pid].resident_pages)
            .sum();
        // a short process may be gone between two looks; the kernel keeps its high-water mark
        let marks = roots.first().map_or(0, |&pid| high_water(pid));
        peak = peak.max(pages * page).max(marks);
        std::thread::sleep(INTERVAL);
    }
    peak
}

fn high_water(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// The fields of `/proc/PID/stat` that are of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    own_ticks: u64,
    children_ticks: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // the program's name, in parentheses, may have blanks and parentheses in it
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            own_ticks: number(11)? + number(12)?,
            children_ticks: number(13)? + number(14)?,
            resident_pages: number(21)?,
        })
    }
}

fn all_stats() -> HashMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.parse().ok()?, Stat::read(&name)?))
        })
        .collect()
}

/// Returns those of `stats` that are in `roots` or descend from them.
fn below(roots: &[u32], stats: &HashMap<u32, Stat>) -> Vec<u32> {
    let mut found: Vec<u32> = roots
        .iter()
        .copied()
        .filter(|pid| stats.contains_key(pid))
        .collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = stats
            .iter()
            .filter(|(_, stat)| stat.parent == parent)
            .map(|(pid, _)| *pid);
        let new: Vec<u32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses() {
        let text = "12 (a) b (c) S 7 12 12 0 -1 4194560 100 0 0 0 3 4 5 6 20 0 1 0 99 1000 250 18446744073709551615";
        let expected = Stat {
            parent: 7,
            own_ticks: 7,
            children_ticks: 11,
            resident_pages: 250,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("12 (cut) S 7"), None);
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let stat = |parent| Stat {
            parent,
            own_ticks: 0,
            children_ticks: 0,
            resident_pages: 1,
        };
        let stats = HashMap::from([(10, stat(30)), (30, stat(20)), (20, stat(1)), (40, stat(1))]);
        let mut found = below(&[20, 99], &stats);
        found.sort_unstable();
        assert_eq!(found, [10, 20, 30]);
    }

    #[test]
    fn measures_time_and_memory() {
        let mut command = Command::new("sh");
        // half a second of work on 50 MB
        command.args(["-c", "x=$(head -c 50000000 /dev/zero | tr '\\0' x); sleep 0.2; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ${#x} >/dev/null"]);
        let sample = measure(command, None).unwrap();
        assert!(sample.wall >= 0.2, "{sample:?}");
        assert!(sample.cpu > 0.0 && sample.cpu < 60.0, "{sample:?}");
        assert!(sample.memory > 50_000_000, "{sample:?}");
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo broken >&2; exit 1"]);
        assert!(
            measure(failing, None)
                .unwrap_err()
                .to_string()
                .ends_with("broken")
        );
    }
}
