//! Progress line by line, in the form that docker users know (A18.5).

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use kiln_builder::event::{BlobState, Event, Observer};

use super::{err, text};

/// An observer that prints each event when it happens.
pub(crate) fn observer() -> Observer {
    let state = Mutex::new(Plain::default());
    Observer::new(move |event| {
        // A panic elsewhere leaves the numbering as it was, which is fine.
        state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .show(event);
    })
}

#[derive(Default)]
struct Plain {
    /// Step -> its number, in the order of appearance.
    numbers: HashMap<usize, Step>,
}

struct Step {
    number: usize,
    start: Instant,
    /// Output behind the last line end.
    rest: Vec<u8>,
}

impl Plain {
    fn show(&mut self, event: Event) {
        match event {
            Event::Started { step, name } => {
                let step = self.step(step);
                err(&format!("#{} {}", step.number, text::one_line(&name)));
            }
            Event::Cached { step, name } => {
                let number = self.step(step).number;
                err(&format!(
                    "#{number} {}\n#{number} CACHED\n",
                    text::one_line(&name)
                ));
            }
            Event::Miss { step, reason } => {
                let number = self.step(step).number;
                err(&format!("#{number} miss: {}", text::one_line(&reason)));
            }
            Event::Explained(_) => {}
            Event::Output { step, bytes, .. } => self.step(step).output(&bytes),
            Event::Done { step, seconds } => self.step(step).end(&format!("DONE {seconds:.1}s")),
            Event::Failed { step, seconds } => {
                self.step(step).end(&format!("ERROR after {seconds:.1}s"));
            }
            Event::Cancelled { step } => self.step(step).end("CANCELED"),
            Event::Note {
                step: Some(step),
                text,
            } => {
                let number = self.step(step).number;
                err(&format!("#{number} {text}"));
            }
            Event::Note { step: None, text } => err(&format!("note: {text}")),
            Event::Blob {
                digest,
                size,
                state,
            } => match state {
                BlobState::Done => err(&format!("{} {} done", digest, text::size(size))),
                BlobState::Retry { wait, reason } => {
                    err(&format!("{digest}: {reason}, trying again in {wait} ms"));
                }
                BlobState::Resumed(count) => err(&format!(
                    "{digest} resuming at {} of {}",
                    text::size(count),
                    text::size(size)
                )),
                BlobState::Mounted(from) => err(&format!("{digest} mounted from {from}")),
                BlobState::Started | BlobState::Bytes(_) | BlobState::Existed => {}
            },
        }
    }

    fn step(&mut self, step: usize) -> &mut Step {
        let number = self.numbers.len() + 1;
        self.numbers.entry(step).or_insert_with(|| Step {
            number,
            start: Instant::now(),
            rest: Vec::new(),
        })
    }
}

impl Step {
    fn output(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.line(&line[..end]);
        }
        // A line without end is shown in pieces, so that it cannot fill the memory.
        if self.rest.len() > 64 * 1024 {
            let line = std::mem::take(&mut self.rest);
            self.line(&line);
        }
    }

    fn line(&self, line: &[u8]) {
        err(&format!(
            "#{} {:.3} {}",
            self.number,
            self.start.elapsed().as_secs_f64(),
            text::printable(line)
        ));
    }

    fn end(&mut self, how: &str) {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.line(&line);
        }
        err(&format!("#{} {how}\n", self.number));
    }
}
