//! `cargo xtask bench`: kiln against other builders, in one run on one machine.
//!
//! [`tool`] says how each builder is told to do a thing, [`workload`] what is measured,
//! [`measure`] how, [`generate`] makes the inputs, [`report`] the table. [`parse`] and [`start`] stand
//! apart: they measure inside one process ([`inside`]), and kiln alone.

mod generate;
mod inside;
mod measure;
mod parse;
mod report;
mod start;
mod tool;
mod workload;

use anyhow::{Context, Result, bail};

use crate::kiln::{self, Profile};
use crate::scratch::Scratch;
use crate::{bases, peers, workspace};
use parse::Parse;
use report::Row;
use start::Start;
use tool::Tool;
use workload::{Bench, GROWING, GROWTH, PARSE, START, Tenths, WORKLOADS};

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    runs: usize,
    write: bool,
    workloads: Vec<String>,
}

/// Measures the workloads that `arguments` name, or all.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let alone = |name: &String| [PARSE, START].contains(&name.as_str());
    if options.workloads.iter().all(alone) && !options.write {
        // they need none of the others' programs
        for name in &options.workloads {
            print!("{}", sentence(name)?);
        }
        return Ok(());
    }
    peers::ensure(&[
        peers::REGISTRY,
        peers::BUSYBOX,
        peers::BUILDAH,
        peers::PODMAN,
        peers::SKOPEO,
        peers::RUNC,
        peers::CURL,
        peers::OPENSSL,
    ])?;
    let binary = kiln::build(Profile::Release)?;
    let scratch = Scratch::new("bench")?;
    let hub = bases::serve(&binary, &["busybox"])?;
    let tools = Tool::present(&binary, &scratch)?;
    let base = format!("{}/library/busybox:latest", hub.address());
    let bench = Bench::new(&binary, &scratch, base, options.runs);

    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    let mut sentences = String::new();
    for name in &options.workloads {
        if alone(name) {
            eprintln!("measuring {name}");
            match sentence(name) {
                Ok(measured) => sentences.push_str(&measured),
                Err(error) => failures.push(format!("{name}: {error:#}")),
            }
            continue;
        }
        if name == GROWTH {
            match growth(&bench, &tools[0]) {
                Ok(table) => sentences.push_str(&table),
                Err(error) => failures.push(format!("{name}: {error:#}")),
            }
            continue;
        }
        for tool in tools.iter().filter(|tool| tool.takes_part(name)) {
            eprintln!("measuring {name}: {}", tool.name());
            match bench.measure(name, tool, Tenths::ALL) {
                Ok(samples) => rows.push(Row::new(name, tool.name(), &samples)),
                // what the others took is worth knowing all the same
                Err(error) => failures.push(format!("{name}, {}: {error:#}", tool.name())),
            }
            if let Err(error) = tool.reset() {
                failures.push(format!("emptying the store of {}: {error:#}", tool.name()));
            }
        }
        match bench.limit(name) {
            Ok(Some(samples)) => rows.push(Row::new(name, "limit", &samples)),
            Ok(None) => {}
            Err(error) => failures.push(format!("{name}, its limit: {error:#}")),
        }
    }
    let mut text = report::render(&rows, &tools, options.runs);
    text.push_str(&sentences);
    print!("{text}");
    if !failures.is_empty() {
        bail!("not measured:\n{}", failures.join("\n"));
    }
    if options.write {
        let path = workspace::root().join("docs/BENCHMARKS.md");
        std::fs::write(&path, text)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Measures how the cost of kiln grows with what it has to do.
fn growth(bench: &Bench<'_>, kiln: &Tool) -> Result<String> {
    let mut rows = Vec::new();
    for (name, unit, largest) in GROWING {
        for size in [Tenths(1), Tenths::ALL, largest] {
            eprintln!("measuring {name} with {} tenths of the {unit}", size.0);
            let samples = bench.measure(name, kiln, size)?;
            rows.push((Row::new(name, kiln.name(), &samples), unit, size.0));
            kiln.reset()?;
            if size != Tenths::ALL {
                bench.discard(name, size)?;
            }
        }
    }
    Ok(report::growth(&rows))
}

/// Measures one of those that stand apart.
fn sentence(name: &str) -> Result<String> {
    Ok(match name {
        START => Start::measure()?.sentence(),
        _ => Parse::measure()?.sentence(),
    })
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            runs: 3,
            write: false,
            workloads: Vec::new(),
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--write" => options.write = true,
                "--runs" => {
                    let number = words.next().context("`--runs` needs a number")?;
                    options.runs =
                        number
                            .parse()
                            .ok()
                            .filter(|&runs| runs > 0)
                            .with_context(|| {
                                format!("`--runs` needs a number above zero, got `{number}`")
                            })?;
                }
                name if WORKLOADS.iter().any(|(known, _)| *known == name) => {
                    options.workloads.push(name.to_owned());
                }
                other => {
                    let names: Vec<&str> = WORKLOADS.iter().map(|(name, _)| *name).collect();
                    bail!("unknown workload `{other}`; there are {}", names.join(", "));
                }
            }
        }
        if options.workloads.is_empty() {
            options.workloads = WORKLOADS
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect();
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        Options::parse(
            &words
                .iter()
                .map(|&word| word.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn options() {
        let options = parse(&["--runs", "5", "push", "--write", "noop"]).unwrap();
        assert_eq!((options.runs, options.write), (5, true));
        assert_eq!(options.workloads, ["push", "noop"]);
        assert_eq!(parse(&[]).unwrap().workloads.len(), WORKLOADS.len());
        for wrong in [
            &["--runs"][..],
            &["--runs", "0"],
            &["--runs", "x"],
            &["fly"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
