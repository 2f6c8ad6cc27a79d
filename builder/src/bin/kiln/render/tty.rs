//! Progress on a terminal: a line for each step that runs, finished ones above.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kiln_builder::event::{BlobState, Event, Observer};
use kiln_registry::digest::Digest;

use super::text;

/// An observer that keeps the terminal up to date.
pub(crate) fn observer() -> Observer {
    let state = Mutex::new(Terminal {
        screen: MultiProgress::new(),
        steps: HashMap::new(),
        blobs: HashMap::new(),
    });
    Observer::new(move |event| {
        // A panic elsewhere leaves lines on the screen, no more.
        state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .show(event);
    })
}

struct Terminal {
    screen: MultiProgress,
    steps: HashMap<usize, (ProgressBar, String)>,
    blobs: HashMap<Digest, ProgressBar>,
}

impl Terminal {
    fn show(&mut self, event: Event) {
        match event {
            Event::Started { step, name } => {
                let name = text::one_line(&name);
                let bar = self.screen.add(ProgressBar::new_spinner());
                bar.set_style(style("=> {wide_msg} {elapsed}"));
                bar.set_message(name.clone());
                bar.enable_steady_tick(Duration::from_millis(200));
                self.steps.insert(step, (bar, name));
            }
            Event::Cached { name, .. } => {
                self.line(&format!("=> CACHED {}", text::one_line(&name)));
            }
            Event::Miss { step, reason } => {
                if let Some((bar, name)) = self.steps.get_mut(&step) {
                    *name = format!("{name} (miss: {})", text::one_line(&reason));
                    bar.set_message(name.clone());
                }
            }
            Event::Explained(_) => {}
            Event::Output { step, bytes, .. } => {
                // The last line that has something in it; the whole output is for the plain form.
                let last = bytes
                    .split(|&byte| byte == b'\n')
                    .rev()
                    .map(text::printable)
                    .find(|line| !line.trim().is_empty());
                if let (Some((bar, name)), Some(last)) = (self.steps.get(&step), last) {
                    bar.set_message(format!("{} | {}", text::cut(name, 60), last.trim()));
                }
            }
            Event::Done { step, seconds } => self.end(step, &format!("{seconds:.1}s")),
            Event::Failed { step, .. } => self.end(step, "ERROR"),
            Event::Cancelled { step } => self.end(step, "CANCELED"),
            Event::Note { text, .. } => self.line(&text),
            Event::Blob {
                digest,
                size,
                state,
            } => self.blob(digest, size, state),
        }
    }

    fn blob(&mut self, digest: Digest, size: u64, state: BlobState) {
        match state {
            BlobState::Started => {
                let bar = self.screen.add(ProgressBar::new(size));
                bar.set_style(style("   {msg} [{bar:30}] {bytes}/{total_bytes}"));
                bar.set_message(digest.short());
                self.blobs.insert(digest, bar);
            }
            BlobState::Resumed(count) | BlobState::Bytes(count) => {
                if let Some(bar) = self.blobs.get(&digest) {
                    bar.set_position(count);
                }
            }
            BlobState::Retry { wait, reason } => {
                self.line(&format!(
                    "   {}: {reason}, trying again in {wait} ms",
                    digest.short()
                ));
            }
            BlobState::Done | BlobState::Existed | BlobState::Mounted(_) => {
                if let Some(bar) = self.blobs.remove(&digest) {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn end(&mut self, step: usize, how: &str) {
        if let Some((bar, name)) = self.steps.remove(&step) {
            bar.finish_and_clear();
            self.line(&format!("=> {name} {how}"));
        }
    }

    fn line(&self, line: &str) {
        // A terminal that cannot be written to shows nothing; that is no reason to fail.
        drop(self.screen.println(line));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
