//! How long a Dockerfile of 200 lines takes from text to plan: one line of JSON with medians in
//! seconds, which `cargo xtask bench parse` reads. Beside it a pass of SHA-256 over the same text,
//! as a measure of the machine.

#![expect(clippy::print_stdout, reason = "its result")]

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use kiln_builder::lower::{self, BaseImage, BaseImages, LowerOptions};
use kiln_grammar::ast::Dockerfile;
use kiln_grammar::diagnostic::Diagnostic;
use kiln_registry::digest::Digest;
use kiln_registry::spec::{ImageConfig, Platform};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Stages of the file, each of [`LINES`] lines.
const STAGES: usize = 10;

/// Lines of a stage.
const LINES: usize = 20;

/// How often each thing is done.
const RUNS: usize = 301;

fn main() -> Result<()> {
    let text: String = (0..STAGES).map(stage).collect();
    let lines = text.lines().count();
    ensure!(lines == STAGES * LINES, "the file has {lines} lines");
    let file = kiln_grammar::parse(&text).map_err(wrong)?;
    let options = options();
    let bases = bases(&file, &options)?;
    let vertices = lower::lower(&file, &options, &bases)
        .map_err(wrong)?
        .graph
        .vertices()
        .len();
    ensure!(vertices > STAGES * 5, "only {vertices} vertices");

    let report = json!({
        "lines": STAGES * LINES,
        "bytes": text.len(),
        "parse": median(|| drop(kiln_grammar::parse(black_box(&text)))),
        "lower": median(|| {
            drop(lower::wanted(black_box(&file), &options, &bases));
            drop(lower::lower(black_box(&file), &options, &bases));
        }),
        "sha256": median(|| {
            black_box(Sha256::digest(black_box(&text)));
        }),
    });
    println!("{report}");
    Ok(())
}

/// What is wrong with the file of the benchmark, which is a mistake in it.
fn wrong(errors: Vec<Diagnostic>) -> anyhow::Error {
    let messages: Vec<String> = errors.into_iter().map(|error| error.message).collect();
    anyhow!("the file cannot be planned: {}", messages.join("; "))
}

/// A stage as people write them; each needs the one before.
fn stage(number: usize) -> String {
    let base = match number.checked_sub(1) {
        Some(before) => format!("stage{before}"),
        None => "alpine:3.21".to_owned(),
    };
    format!(
        r#"# Builds part {number}.
FROM {base} AS stage{number}
ARG VERSION=1.{number} TARGETARCH
ENV PART_{number}=/opt/part{number} PATH=/opt/part{number}/bin:$PATH
LABEL org.opencontainers.image.title="part {number}" \
      org.opencontainers.image.version=$VERSION
WORKDIR /src/part{number}
COPY --link package.json lock.json ./
RUN --mount=type=bind,source=lock.json,target=/tmp/lock.json \
    --mount=type=tmpfs,target=/var/cache/apk \
    apk add --no-cache build-base curl git \
    && ./configure --prefix="${{PART_{number}:-/usr/local}}" \
    && make -j4 VERSION="$VERSION" install
COPY --chown=1000:1000 --exclude=*.md src/ ./src/
RUN <<EOF
set -eux
./test --arch "$TARGETARCH"
EOF
EXPOSE 80{number}/tcp
CMD ["/opt/part{number}/bin/serve", "--port", "80{number}"]
"#
    )
}

fn options() -> LowerOptions {
    let platform = Platform {
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..Platform::default()
    };
    LowerOptions {
        platform: platform.clone(),
        build_platform: platform,
        ..LowerOptions::default()
    }
}

fn bases(file: &Dockerfile, options: &LowerOptions) -> Result<BaseImages> {
    let mut bases = BaseImages::default();
    for wanted in lower::wanted(file, options, &bases).map_err(wrong)? {
        let layer = Digest::of(b"layer");
        let config: ImageConfig = serde_json::from_value(json!({
            "os": "linux",
            "architecture": "amd64",
            "config": {"Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        }))?;
        let base = BaseImage {
            name: wanted.reference.clone(),
            config_digest: layer,
            config,
        };
        bases.insert(wanted.reference, wanted.platform, base);
    }
    Ok(bases)
}

/// The median time of one call, in seconds.
fn median(work: impl Fn()) -> f64 {
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}
