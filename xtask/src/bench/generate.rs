//! Build contexts made by code: the same bytes on every machine.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A xorshift64* generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `limit`, which must not be zero.
    fn below(&mut self, limit: usize) -> usize {
        let [.., a, b, c, d] = self.next().to_le_bytes();
        u32::from_le_bytes([a, b, c, d]) as usize % limit
    }
}

/// An endless stream of words and noise that gzip makes about 2.5 times smaller, as it does with
/// programs and their sources.
pub(super) struct Text {
    random: Random,
    words: Vec<Vec<u8>>,
}

impl Text {
    /// Starts a stream; each seed, which must not be zero, has its own.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(1);
        let letters = b"etaoinshrdlucmfw";
        let words = (0..3000)
            .map(|_| {
                let length = 2 + random.below(8);
                let mut word: Vec<u8> = (0..length)
                    .map(|_| letters[random.below(letters.len())])
                    .collect();
                word.push(b' ');
                word
            })
            .collect();
        Self {
            random: Random(seed),
            words,
        }
    }

    /// Returns the stream's next `size` bytes.
    pub(super) fn take(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size + 16);
        while bytes.len() < size {
            if self.random.below(64) == 0 {
                bytes.extend_from_slice(&self.random.next().to_le_bytes());
            } else {
                // most words are drawn from few, as in real text
                let many = if self.random.below(4) == 0 { 3000 } else { 300 };
                bytes.extend_from_slice(&self.words[self.random.below(many)]);
            }
        }
        bytes.truncate(size);
        bytes
    }
}

/// Makes `count` files of `smallest` to `largest` bytes in a tree of small folders.
pub(super) fn small_files(
    root: &Path,
    seed: u64,
    count: usize,
    smallest: usize,
    largest: usize,
) -> Result<()> {
    let (mut text, mut random) = (Text::new(seed), Random(seed + 1));
    let span = largest - smallest + 1;
    for n in 0..count {
        let folder = root.join(format!("d{:02}/s{:02}", n / 1000, n / 50 % 20));
        if n % 50 == 0 {
            fs::create_dir_all(&folder)?;
        }
        let size = smallest + random.below(span);
        write(&folder.join(format!("file{n:05}.txt")), &text.take(size))?;
    }
    Ok(())
}

/// Makes `count` files of `size` bytes in one folder.
pub(super) fn big_files(root: &Path, seed: u64, count: usize, size: usize) -> Result<()> {
    fs::create_dir_all(root)?;
    let mut text = Text::new(seed);
    for n in 0..count {
        write(&root.join(format!("big{n:03}.bin")), &text.take(size))?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use crate::scratch::Scratch;
    use std::process::Command;

    #[test]
    fn the_bytes_are_pinned() {
        let mut text = Text::new(7);
        let bytes = [text.take(1000), text.take(100_000)].concat();
        let digest = process::sha256(&bytes).unwrap();
        assert_eq!(
            digest,
            "53d933d286152b160d8e996f312bc83d7120ea963cdba28e0a66bd8a2bbcd24f"
        );
    }

    #[test]
    fn compresses_like_real_files() {
        let scratch = Scratch::new("test-generate").unwrap();
        big_files(scratch.path(), 3, 1, 1 << 20).unwrap();
        process::quiet(
            Command::new("gzip")
                .arg("-6")
                .arg(scratch.join("big000.bin")),
        )
        .unwrap();
        let ratio =
            (1 << 20) as f64 / fs::metadata(scratch.join("big000.bin.gz")).unwrap().len() as f64;
        assert!((2.0..3.5).contains(&ratio), "{ratio}");
    }

    #[test]
    fn small_files_have_the_sizes_asked_for() {
        let scratch = Scratch::new("test-small").unwrap();
        small_files(scratch.path(), 5, 120, 10, 20).unwrap();
        let first: Vec<_> = fs::read_dir(scratch.join("d00/s00")).unwrap().collect();
        assert_eq!(first.len(), 50);
        for entry in first {
            let size = entry.unwrap().metadata().unwrap().len();
            assert!((10..=20).contains(&size), "{size}");
        }
        assert_eq!(fs::read_dir(scratch.join("d00/s02")).unwrap().count(), 20);
    }
}
