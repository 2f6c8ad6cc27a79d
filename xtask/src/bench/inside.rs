//! Benchmarks that measure inside one process and print one line of JSON: those of `cargo bench`.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{kiln, process};

/// Builds one of the builder's benchmarks, runs it and gives what it printed.
pub(super) fn run(name: &str) -> Result<String> {
    let mut cargo = kiln::cargo();
    cargo.args(["bench", "--quiet", "--package", "kiln-builder"]);
    process::output(cargo.args(["--bench", name]))
}

/// Reads what a benchmark printed.
pub(super) fn read(text: &str) -> Result<Value> {
    serde_json::from_str(text.trim())
        .with_context(|| format!("the benchmark printed no JSON: `{text}`"))
}

/// One of its times.
pub(super) fn seconds(report: &Value, name: &str) -> Result<f64> {
    let number = report[name].as_f64();
    number.with_context(|| format!("the benchmark printed no `{name}`"))
}
