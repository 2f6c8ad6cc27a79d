//! Running other programs.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command whose output matters only when it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    finish(command.stdin(Stdio::null()), None)
}

/// Runs a command with `input` on its standard input and returns its standard output.
pub(crate) fn filter(command: &mut Command, input: &[u8]) -> Result<String> {
    finish(command.stdin(Stdio::piped()), Some(input))
}

fn finish(command: &mut Command, input: Option<&[u8]>) -> Result<String> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin
            .write_all(input)
            .with_context(|| format!("cannot write to `{}`", line(command)))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot read from `{}`", line(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` failed: {}\n{}",
            line(command),
            output.status,
            tail(&format!("{text}{errors}"), 40)
        );
    }
    Ok(text)
}

/// Returns a command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Quotes a word for a shell where it needs it.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Returns the last `count` lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Finds a program on `PATH` or where administrators' programs lie.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Returns the SHA-256 of some bytes in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> Result<String> {
    first_word(&filter(&mut Command::new("sha256sum"), bytes)?)
}

/// Returns the SHA-256 of a file in hexadecimal.
pub(crate) fn sha256_file(path: &std::path::Path) -> Result<String> {
    let text = output(Command::new("sha256sum").arg(path))?;
    // a backslash in front says that the file's name, printed behind, was escaped
    first_word(text.trim_start_matches('\\'))
}

fn first_word(text: &str) -> Result<String> {
    let word = text.split_whitespace().next();
    word.map(str::to_owned)
        .context("`sha256sum` printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_take_apart() {
        let mut command = Command::new("echo");
        command.args(["plain", "two words", "", "it's", "$HOME"]);
        assert_eq!(
            line(&command),
            r"echo plain 'two words' '' 'it'\''s' '$HOME'"
        );
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let error = quiet(Command::new("sh").args(["-c", "seq 100; echo bad >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("100\nbad"), "{error}");
        assert!(!error.contains("\n50\n"), "{error}");
    }

    #[test]
    fn digests_are_sha256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b"").unwrap(), empty);
        assert_eq!(sha256_file("/dev/null".as_ref()).unwrap(), empty);
    }
}
