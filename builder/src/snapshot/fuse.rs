//! Stacks mounted by fuse-overlayfs, for an ordinary user whose kernel does not let overlayfs be
//! mounted in a user namespace (B5.6).
//!
//! The mount is in the mount namespace that kiln has entered at its start, so that nobody else sees
//! it, and it goes when kiln does. The program that serves it has a shell above it, which waits for
//! the end of its standard input: when kiln ends, however it ends, the shell ends the program.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::UnmountFlags;

use crate::sys::ids;
use crate::sys::root::Root;

/// The program.
const PROGRAM: &str = "fuse-overlayfs";

/// Runs its arguments until standard input ends. Its own standard error is closed, so that the end
/// of that pipe is the end of the program.
const GUARD: &str = r#""$@" </dev/null & exec 2>/dev/null; read -r _; kill -9 $!; wait"#;

/// Name of the directory that receives what is written, beside the mount.
const UPPER: &str = "upper";

/// How long the program may take to mount.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the mount point is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(2);

/// What the program says of itself when it fails, bytes.
const LAST_WORDS: u64 = 4096;

/// A mount, gone when dropped.
#[derive(Debug)]
pub(super) struct Mount {
    guard: Child,
    place: PathBuf,
}

impl Mount {
    /// Merges layers, topmost first, on the empty directory `fs` in a folder; `upper` and `work` in it
    /// receive what is written.
    ///
    /// # Errors
    /// When the program is missing, or does not mount; with what it says.
    pub(super) fn new(lowers: &[PathBuf], folder: &Path) -> io::Result<Self> {
        if ids::in_initial_namespace()? {
            let message = "it is for rootless builds, whose mounts nobody else sees";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let place = folder.join("fs");
        let (upper, work, empty) = (
            folder.join(UPPER),
            folder.join("work"),
            folder.join("empty"),
        );
        for directory in [&upper, &work, &empty] {
            fs::create_dir(directory)?;
            // The upper directory is the top of what is shown.
            fs::set_permissions(directory, fs::metadata(&place)?.permissions())?;
        }
        let outside = fs::metadata(&place)?.dev();
        let lowers = if lowers.is_empty() {
            std::slice::from_ref(&empty)
        } else {
            lowers
        };
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            list(lowers)?,
            list(&[upper])?,
            list(&[work])?,
        );
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "sh", PROGRAM, "-f", "-o", &options])
            .arg(&place)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is kiln's to judge.
            .process_group(0)
            .spawn()?;
        let said = guard.stderr.take();
        let mount = Self { guard, place };
        mount.wait(outside, said)?;
        Ok(mount)
    }

    /// What it received since it was made, in a form of its own.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn written(&self) -> io::Result<Root> {
        Root::open(&self.place.with_file_name(UPPER))
    }

    /// Waits until something is mounted, or the program has ended.
    fn wait(&self, outside: u64, said: Option<ChildStderr>) -> io::Result<()> {
        let mut said = said.ok_or(io::ErrorKind::BrokenPipe)?;
        let start = Instant::now();
        while fs::metadata(&self.place)?.dev() == outside {
            let mut fds = [PollFd::new(&said, PollFlags::IN)];
            let ended = rustix::event::poll(&mut fds, Some(&Timespec::default()))? > 0
                && fds[0].revents().contains(PollFlags::HUP);
            if ended || start.elapsed() > PATIENCE {
                let mut words = String::new();
                if ended {
                    said.by_ref().take(LAST_WORDS).read_to_string(&mut words)?;
                }
                return Err(failure(&words));
            }
            thread::sleep(LOOK);
        }
        // Nobody listens from now on, and the program must not wait for anybody.
        let mut rest = File::from(std::os::fd::OwnedFd::from(said));
        thread::spawn(move || drop(io::copy(&mut rest, &mut io::sink())));
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever still holds a file of it keeps it until then.
        _ = rustix::mount::unmount(&self.place, UnmountFlags::DETACH);
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
    }
}

/// Directories as an option; a character that means something there is refused. The store's own
/// names have none, so that only `--root` can bring one.
fn list(directories: &[PathBuf]) -> io::Result<String> {
    let texts = directories.iter().map(|directory| {
        let text = directory.to_str();
        let plain = text.filter(|text| !text.contains([',', ':', '\\']));
        plain.ok_or_else(|| {
            let message = format!("it cannot take `{}` as a path", directory.display());
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    });
    Ok(texts.collect::<io::Result<Vec<_>>>()?.join(":"))
}

fn failure(words: &str) -> io::Error {
    let last = words.lines().map(str::trim).rfind(|line| !line.is_empty());
    io::Error::other(match last {
        // The shell's word for a program that is not there.
        Some(line) if line.ends_with("not found") => format!("`{PROGRAM}` is not installed"),
        Some(line) => line.to_owned(),
        None => format!("`{PROGRAM}` mounts nothing"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_would_be_options_are_refused() {
        let paths = ["/a", "/b c"].map(PathBuf::from);
        assert_eq!(list(&paths).unwrap(), "/a:/b c");
        for odd in ["/a,b", "/a:b", "/a\\b"] {
            assert!(list(&[PathBuf::from(odd)]).is_err(), "{odd}");
        }
    }

    #[test]
    fn the_last_line_says_why() {
        let text = |words| failure(words).to_string();
        assert_eq!(
            text("sh: 1: fuse-overlayfs: not found\n"),
            "`fuse-overlayfs` is not installed"
        );
        assert_eq!(text("warning\nfuse: no device\n\n"), "fuse: no device");
        assert_eq!(text(""), "`fuse-overlayfs` mounts nothing");
    }
}
