//! `kiln debug`: the pure parts of kiln, asked line by line.
//!
//! One JSON object a line is read from standard input and answered by one on standard output, in
//! order and at once, until the input ends. What cannot be answered is answered by
//! `{"error": "..."}`. Nothing else is read or written, and nothing is remembered between lines, so
//! that tables of cases can be run against the binary.

mod ignore;
mod parse;
mod reference;
mod words;

use std::error::Error;
use std::io::{self, BufRead, Read as _, Write};

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::DebugCommand;

/// The longest line that is read, in bytes.
const MAX_LINE: usize = 64 << 20;

/// A refusal.
#[derive(Serialize)]
struct Refusal {
    error: String,
}

pub(crate) fn run(command: &DebugCommand) -> anyhow::Result<()> {
    match command {
        DebugCommand::Words => serve(words::answer),
        DebugCommand::Parse => serve(parse::answer),
        DebugCommand::Ignore => serve(ignore::answer),
        DebugCommand::Reference => serve(reference::answer),
    }
}

/// Answers every line of standard input.
fn serve<Q: DeserializeOwned, A: Serialize>(
    answer: fn(Q) -> Result<A, String>,
) -> anyhow::Result<()> {
    let mut input = io::stdin().lock();
    let mut output = io::stdout().lock();
    let mut line = Vec::new();
    while read_line(&mut input, &mut line).context("reading standard input")? {
        let result = question(&line).and_then(answer);
        let text = match result {
            Ok(answer) => serde_json::to_string(&answer),
            Err(error) => serde_json::to_string(&Refusal { error }),
        };
        let text = text.context("writing JSON")?;
        match writeln!(output, "{text}").and_then(|()| output.flush()) {
            // Whoever closed the other end wants no more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("writing to standard output")?,
        }
    }
    Ok(())
}

/// Reads a line without its end; `false` at the end of the input. Of a line that is too long only
/// so much is kept that it can be told.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let limit = MAX_LINE as u64 + 1;
    if input.by_ref().take(limit).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > MAX_LINE {
        skip_line(input)?;
    }
    Ok(true)
}

/// Passes over the rest of a line.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let newline = buffer.iter().position(|byte| *byte == b'\n');
        let length = newline.map_or(buffer.len(), |at| at + 1);
        input.consume(length);
        if newline.is_some() || length == 0 {
            return Ok(());
        }
    }
}

fn question<Q: DeserializeOwned>(line: &[u8]) -> Result<Q, String> {
    if line.len() > MAX_LINE {
        return Err(format!("the line is longer than {MAX_LINE} bytes"));
    }
    let invalid = |error: &dyn Error| format!("invalid request: {error}");
    let text = std::str::from_utf8(line).map_err(|error| invalid(&error))?;
    // An array would be taken for the members in their order.
    if !text.trim_start().starts_with('{') {
        return Err("invalid request: expected a JSON object".to_owned());
    }
    serde_json::from_str(text).map_err(|error| invalid(&error))
}

/// An error and its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| (**cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
