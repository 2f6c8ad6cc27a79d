//! The table of what was measured.

use std::fs;

use super::measure::Sample;
use super::tool::Tool;
use super::workload::WORKLOADS;

/// The medians of one workload with one tool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    workload: String,
    tool: &'static str,
    wall: f64,
    fastest: f64,
    slowest: f64,
    cpu: f64,
    memory: f64,
}

impl Row {
    /// Sums up the samples of one workload and tool; there is at least one.
    pub(super) fn new(workload: &str, tool: &'static str, samples: &[Sample]) -> Self {
        let walls: Vec<f64> = samples.iter().map(|sample| sample.wall).collect();
        let cpu: Vec<f64> = samples.iter().map(|sample| sample.cpu).collect();
        let memory: Vec<f64> = samples.iter().map(|sample| sample.memory as f64).collect();
        Self {
            workload: workload.to_owned(),
            tool,
            wall: median(&walls),
            fastest: walls.iter().copied().fold(f64::INFINITY, f64::min),
            slowest: walls.iter().copied().fold(0.0, f64::max),
            cpu: median(&cpu),
            memory: median(&memory),
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// Returns the report in Markdown.
pub(super) fn render(rows: &[Row], tools: &[Tool], runs: usize) -> String {
    let mut text = format!(
        "# Benchmarks\n\nMeasured by `cargo xtask bench` in one run on one machine: {}.\n\
         Medians of {runs}; wall time with the fastest and the slowest. CPU is user and system time and memory the largest\n\
         resident sum, both of the command with its children and its daemon. `ratio` is the tool's time divided by kiln's.\n\n",
        machine()
    );
    for tool in tools {
        text.push_str(&format!("- {}: {}\n", tool.name(), tool.version()));
    }
    text.push_str(&table(rows));
    text
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "\n| workload | tool | wall s | ratio | CPU s | ratio | memory MB |\n|---|---|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let own = rows
            .iter()
            .find(|other| other.workload == row.workload && other.tool == "kiln");
        let ratio = |value: f64, own: Option<f64>| match own {
            Some(own) if own > 0.0 => format!("{:.1}", value / own),
            _ => "–".to_owned(),
        };
        text.push_str(&format!(
            "| {} | {} | {:.2} ({:.2}–{:.2}) | {} | {:.2} | {} | {:.0} |\n",
            row.workload,
            row.tool,
            row.wall,
            row.fastest,
            row.slowest,
            ratio(row.wall, own.map(|own| own.wall)),
            row.cpu,
            ratio(row.cpu, own.map(|own| own.cpu)),
            row.memory / 1e6,
        ));
    }
    text.push('\n');
    for (name, what) in WORKLOADS {
        if rows.iter().any(|row| row.workload == name) {
            text.push_str(&format!("- `{name}`: {what}\n"));
        }
    }
    text
}

/// How the time of kiln grows: workload, what grows, and how many tenths of the table's size.
pub(super) fn growth(rows: &[(Row, &str, usize)]) -> String {
    let mut text = String::from(
        "\n| kiln | size | wall s | CPU s | memory MB | CPU for each unit, ratio |\n|---|---:|---:|---:|---:|---:|\n",
    );
    for (row, unit, tenths) in rows {
        let whole = rows
            .iter()
            .find(|(other, _, tenths)| other.workload == row.workload && *tenths == 10);
        let each = |cpu: f64, tenths: usize| cpu / tenths as f64;
        let ratio = whole.map_or(f64::NAN, |(whole, _, _)| {
            each(row.cpu, *tenths) / each(whole.cpu, 10)
        });
        text.push_str(&format!(
            "| {} | {} {unit} | {:.2} | {:.2} | {:.0} | {ratio:.2} |\n",
            row.workload,
            match tenths {
                1 => "a tenth of the".to_owned(),
                10 => "all".to_owned(),
                tenths => format!("{} times the", tenths / 10),
            },
            row.wall,
            row.cpu,
            row.memory / 1e6,
        ));
    }
    text
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} processors ({model}), Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_to_kiln_in_the_same_workload() {
        let sample = |wall, cpu| Sample {
            wall,
            cpu,
            memory: 12_000_000,
        };
        let rows = [
            Row::new("noop", "kiln", &[sample(0.5, 0.25)]),
            Row::new(
                "noop",
                "buildah",
                &[sample(1.0, 1.0), sample(3.0, 1.0), sample(2.0, 1.0)],
            ),
            Row::new("run50", "buildah", &[sample(9.0, 1.0)]),
        ];
        let text = table(&rows);
        assert!(
            text.contains("| noop | kiln | 0.50 (0.50–0.50) | 1.0 | 0.25 | 1.0 | 12 |"),
            "{text}"
        );
        assert!(
            text.contains("| noop | buildah | 2.00 (1.00–3.00) | 4.0 | 1.00 | 4.0 | 12 |"),
            "{text}"
        );
        assert!(
            text.contains("| run50 | buildah | 9.00 (9.00–9.00) | – | 1.00 | – | 12 |"),
            "{text}"
        );
        assert!(
            text.contains("- `run50`: 50 steps") && !text.contains("- `push`"),
            "{text}"
        );
    }
}
