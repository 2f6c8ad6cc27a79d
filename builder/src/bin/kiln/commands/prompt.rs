//! Questions to a person at a terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Read, Write as _};

use anyhow::{Context as _, bail};
use kiln_registry::credentials::Secret;
use zeroize::Zeroizing;

use super::foreground::RawMode;
use crate::report::Interrupted;

/// The longest answer, bytes.
const LONGEST: usize = 64 << 10;

/// Whether there is somebody to ask.
pub(crate) fn is_possible() -> bool {
    io::stdin().is_terminal()
}

/// Asks for a line that everybody may see.
pub(crate) fn line(question: &str) -> anyhow::Result<String> {
    ask(question);
    let mut answer = String::new();
    let limited = io::stdin()
        .lock()
        .take(LONGEST as u64)
        .read_line(&mut answer);
    limited.context("reading the answer")?;
    Ok(answer.trim().to_owned())
}

/// Asks for a secret, which is not shown while it is typed.
pub(crate) fn secret(question: &str) -> anyhow::Result<Secret> {
    // Not a key may be shown once the question is.
    let raw = RawMode::of_input().context("preparing the terminal")?;
    ask(question);
    let answer = typed(io::stdin().lock());
    drop(raw);
    crate::render::err("");
    answer
}

fn ask(question: &str) {
    let mut stderr = io::stderr().lock();
    drop(write!(stderr, "{question}").and_then(|()| stderr.flush()));
}

/// What is typed on a terminal that passes every key on: the keys that edit a line are ours.
fn typed(mut keys: impl Read) -> anyhow::Result<Secret> {
    let mut answer = Zeroizing::new(Vec::new());
    let mut key = [0];
    while keys.read(&mut key).context("reading the answer")? > 0 {
        match key[0] {
            b'\r' | b'\n' => break,
            // Control-C and control-D
            3 => return Err(Interrupted { signal: 2 }.into()),
            4 => break,
            // Backspace, and control-U for the whole line
            8 | 0x7f => while answer.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            0x15 => answer.clear(),
            _ if answer.len() >= LONGEST => bail!("the answer is too long"),
            other => answer.push(other),
        }
    }
    let answer = std::str::from_utf8(&answer).context("the answer is not UTF-8")?;
    Ok(Secret::new(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_6_keys_that_edit_a_secret() {
        let typed = |keys: &[u8]| typed(keys);
        for (keys, expected) in [
            (&b"abc\rmore"[..], "abc"),
            (b"abc\n", "abc"),
            (b"ab\x7fc\r", "ac"),
            (b"\x7f\x08a\r", "a"),
            ("aé\x7fb\r".as_bytes(), "ab"),
            (b"old\x15new\r", "new"),
            (b"abc\x04", "abc"),
            (b"abc", "abc"),
            (b"", ""),
        ] {
            assert_eq!(typed(keys).unwrap().expose(), expected, "{keys:?}");
        }
        assert!(typed(b"a\x03").unwrap_err().is::<Interrupted>());
        assert!(typed(b"\xff\r").is_err());
    }
}
