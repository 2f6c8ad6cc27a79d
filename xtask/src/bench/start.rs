//! The start of a step, measured inside one process beside the bare start of a program.

use anyhow::Result;

use super::inside;

/// Medians in seconds, as `builder/benches/start.rs` prints them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Start {
    bare: f64,
    step: f64,
}

impl Start {
    /// Builds the benchmark and runs it.
    pub(super) fn measure() -> Result<Self> {
        Self::read(&inside::run("start")?)
    }

    fn read(text: &str) -> Result<Self> {
        let report = inside::read(text)?;
        Ok(Self {
            bare: inside::seconds(&report, "bare")?,
            step: inside::seconds(&report, "step")?,
        })
    }

    /// The result in one sentence.
    pub(super) fn sentence(&self) -> String {
        format!(
            "- `start`: `RUN true` from one snapshot to the next takes {:.2} ms, {:.1} times the bare start of \
             the same program in the same namespaces ({:.2} ms)\n",
            self.step * 1000.0,
            self.step / self.bare,
            self.bare * 1000.0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_benchmark_printed() {
        let start = Start::read(r#"{"bare":0.002,"step":0.005}"#).unwrap();
        assert_eq!(
            start.sentence(),
            "- `start`: `RUN true` from one snapshot to the next takes 5.00 ms, 2.5 times the bare start of \
             the same program in the same namespaces (2.00 ms)\n"
        );
        assert!(Start::read("{}").is_err());
    }
}
