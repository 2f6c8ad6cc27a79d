//! Progress of `push` and `pull`: docker's lines, one per blob (D5.4, D7.6).

use std::io::{self, IsTerminal as _};

use kiln_builder::event::{BlobState, Event, Observer};

use super::{err, text, tty};

/// The words for what becomes of a blob.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    /// Its bytes were moved.
    pub(crate) done: &'static str,
    /// They did not have to be.
    pub(crate) existed: &'static str,
}

/// Words of `pull`.
pub(crate) const PULL: Words = Words {
    done: "Pull complete",
    existed: "Already exists",
};
/// Words of `push`.
pub(crate) const PUSH: Words = Words {
    done: "Pushed",
    existed: "Layer already exists",
};

/// Words of `copy`.
pub(crate) const COPY: Words = Words {
    done: "Copied",
    existed: "Already exists",
};

/// The observer of a transfer.
pub(crate) fn observer(words: Words, quiet: bool) -> Observer {
    if quiet {
        return Observer::silent();
    }
    let live = io::stderr().is_terminal().then(tty::observer);
    Observer::new(move |event| {
        let Event::Blob {
            digest,
            size,
            state,
        } = &event
        else {
            if let Event::Note { text, .. } = &event {
                err(text);
            }
            return;
        };
        let line = match state {
            BlobState::Done => Some(format!("{} ({})", words.done, text::size(*size))),
            BlobState::Existed => Some(words.existed.to_owned()),
            BlobState::Mounted(from) => Some(format!("Mounted from {from}")),
            BlobState::Resumed(count) => Some(format!(
                "Resuming at {} of {}",
                text::size(*count),
                text::size(*size)
            )),
            BlobState::Retry { wait, reason } => Some(format!("{reason}, retrying in {wait} ms")),
            BlobState::Started | BlobState::Bytes(_) => None,
        };
        let short = digest.short();
        match (&live, line) {
            (Some(live), None) => live.tell(event),
            (Some(live), Some(line)) => {
                live.tell(event.clone());
                live.tell(Event::Note {
                    step: None,
                    text: format!("{short}: {line}"),
                });
            }
            (None, Some(line)) => err(&format!("{short}: {line}")),
            (None, None) => {}
        }
    })
}
