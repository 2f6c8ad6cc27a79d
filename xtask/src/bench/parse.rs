//! Reading and planning a Dockerfile, measured inside one process: a command's start would take
//! longer than what is to be seen.

use anyhow::{Context, Result};

use super::inside;

/// Medians in seconds, as `builder/benches/parse.rs` prints them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Parse {
    lines: u64,
    bytes: u64,
    parse: f64,
    lower: f64,
    sha256: f64,
}

impl Parse {
    /// Builds the benchmark and runs it.
    pub(super) fn measure() -> Result<Self> {
        Self::read(&inside::run("parse")?)
    }

    fn read(text: &str) -> Result<Self> {
        let report = inside::read(text)?;
        let whole = |name: &str| {
            let number = report[name].as_u64();
            number.with_context(|| format!("the benchmark printed no `{name}`"))
        };
        let seconds = |name: &str| inside::seconds(&report, name);
        Ok(Self {
            lines: whole("lines")?,
            bytes: whole("bytes")?,
            parse: seconds("parse")?,
            lower: seconds("lower")?,
            sha256: seconds("sha256")?,
        })
    }

    /// The result in one sentence.
    pub(super) fn sentence(&self) -> String {
        let milliseconds = |seconds: f64| format!("{:.3} ms", seconds * 1000.0);
        format!(
            "- `parse`: a Dockerfile of {} lines ({} bytes) is read in {} and planned in {}; \
             together {:.0} times a pass of SHA-256 over it ({})\n",
            self.lines,
            self.bytes,
            milliseconds(self.parse),
            milliseconds(self.lower),
            (self.parse + self.lower) / self.sha256,
            milliseconds(self.sha256),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_benchmark_printed() {
        let text = r#"{"lines":200,"bytes":8000,"parse":0.0005,"lower":0.00025,"sha256":0.00001}"#;
        assert_eq!(
            Parse::read(text).unwrap().sentence(),
            "- `parse`: a Dockerfile of 200 lines (8000 bytes) is read in 0.500 ms and planned in \
             0.250 ms; together 75 times a pass of SHA-256 over it (0.010 ms)\n"
        );
        let error = Parse::read(r#"{"lines":200}"#).unwrap_err().to_string();
        assert_eq!(error, "the benchmark printed no `bytes`");
        assert!(Parse::read("").is_err());
    }
}
