//! Programs with a terminal: kiln runs in one end of a pseudoterminal, the test sits at the other.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::{Termios, Winsize};

use crate::env::{TestEnv, test_env};
use crate::traces::{Process, descendants, wait_until};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// kiln in a terminal of 30 lines with 100 characters, as the leader of a session of its own.
pub(crate) struct Session {
    child: Option<Child>,
    /// Our end.
    screen: File,
    /// The other end, so that it does not go with kiln.
    terminal: OwnedFd,
    before: Termios,
    /// What has been shown and not looked at.
    seen: String,
}

impl Session {
    pub(crate) fn start(env: &TestEnv, args: &[&str]) -> Self {
        let screen = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        rustix::io::fcntl_setfd(&screen, rustix::io::FdFlags::CLOEXEC).unwrap();
        rustix::pty::unlockpt(&screen).unwrap();
        let name = rustix::pty::ptsname(&screen, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let before = rustix::termios::tcgetattr(&terminal).unwrap();
        resize(&screen, 30, 100);
        // `setsid` does not fork for who leads no group: the child is kiln itself.
        let child = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_kiln")])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("KILN_ROOT", env.store())
            .env("HOME", env.path("home"))
            .current_dir(env.path(""))
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap())
            .spawn()
            .unwrap();
        Self {
            child: Some(child),
            screen: File::from(screen),
            terminal,
            before,
            seen: String::new(),
        }
    }

    /// Types something.
    pub(crate) fn type_(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until something is shown, and gives what was shown before it.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some((before, after)) = self.seen.split_once(text) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.seen = after;
                return before;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "waited in vain for {text:?}, saw {:?}",
                self.seen
            );
            self.read();
        }
    }

    fn read(&mut self) {
        let mut fds = [PollFd::new(&self.screen, PollFlags::IN)];
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut fds, Some(&second)).unwrap() > 0 {
            let mut bytes = [0; 4096];
            let length = self.screen.read(&mut bytes).unwrap();
            self.seen += &String::from_utf8_lossy(&bytes[..length]);
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Waits until a program with this argument has the terminal.
    fn wait_for_foreground(&self, argument: &str) {
        wait_until(&format!("{argument} in the foreground"), || {
            let all = descendants(self.id());
            all.iter()
                .any(|process| process.has_argument(argument) && process.is_in_foreground())
                .then_some(())
        });
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for kiln's end: its exit code, and what was shown last. The terminal is as it was.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut child = self.child.take().unwrap();
        let started = Instant::now();
        let code = loop {
            self.read_what_is_there();
            if let Some(code) = child.try_wait().unwrap() {
                break code;
            }
            let seen = &self.seen;
            assert!(started.elapsed() < PATIENCE, "no end, saw {seen:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
        self.read_what_is_there();
        let after = rustix::termios::tcgetattr(&self.terminal).unwrap();
        assert_eq!(
            format!("{after:?}"),
            format!("{:?}", self.before),
            "the terminal is as it was"
        );
        (code.code(), std::mem::take(&mut self.seen))
    }

    fn read_what_is_there(&mut self) {
        loop {
            let mut fds = [PollFd::new(&self.screen, PollFlags::IN)];
            if rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() == 0 {
                return;
            }
            self.read();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn resize(screen: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(screen, size).unwrap();
}

fn all_end(processes: &[Process]) {
    wait_until("the end of its processes", || {
        (!processes.iter().any(|process| process.is_alive())).then_some(())
    });
}

#[test]
fn a_shell_in_a_terminal_has_size_job_control_and_an_exit_code() {
    let env = test_env!("setsid").with_busybox();
    let mut session = Session::start(&env, &["run", "-it", "--rm", "busybox", "sh"]);
    session.expect("/ # ");
    session.type_("tty; stty size; echo $TERM; ls -l /dev/console | cut -c1\n");
    session.expect("/dev/pts/0\r\n30 100\r\nxterm\r\nc\r\n/ # ");
    // Ctrl-C ends the program in the foreground, not the shell.
    session.type_("sleep 77777\n");
    session.wait_for_foreground("77777");
    session.type_("\x03");
    session.expect("^C\r\n/ # ");
    session.type_("echo code $?\n");
    session.expect("code 130\r\n/ # ");
    // Ctrl-Z stops it, and it goes on.
    session.type_("sleep 88888\n");
    session.wait_for_foreground("88888");
    session.type_("\x1a");
    session.expect("Stopped");
    session.type_("fg\n");
    session.expect("fg\r\nsleep 88888\r\n");
    // The shell says so before it gives the terminal away.
    session.wait_for_foreground("88888");
    session.type_("\x03");
    session.expect("/ # ");
    resize(session.screen.as_fd(), 50, 120);
    session.type_("until [ \"$(stty size)\" = '50 120' ]; do sleep 0.1; done; echo wi''der\n");
    // At the prompt the shell throws away what was typed before it.
    session.expect("wider\r\n/ # ");
    session.type_("exit 5\n");
    let processes = descendants(session.id());
    assert_eq!(session.end().0, Some(5));
    assert!(!processes.iter().any(|process| process.is_alive()));
    env.no_traces();
}

#[test]
fn the_terminal_belongs_to_the_user_and_is_not_the_hosts() {
    let env = test_env!("setsid").with_busybox();
    let script = "stat -c %u $(tty); echo x >/dev/tty; echo y >/dev/console; ls -1 /dev/pts; id -u";
    let args = ["run", "-it", "-u", "7", "busybox", "sh", "-c", script];
    let (code, shown) = Session::start(&env, &args).end();
    assert_eq!(
        (code, shown.as_str()),
        (Some(0), "7\r\nx\r\ny\r\n0\r\nptmx\r\n7\r\n")
    );
    // With -t alone there is a terminal, and nothing to be read from it.
    let args = ["run", "-t", "busybox", "sh", "-c", "tty; stty size"];
    let (code, shown) = Session::start(&env, &args).end();
    assert_eq!(
        (code, shown.as_str()),
        (Some(0), "/dev/pts/0\r\n30 100\r\n")
    );
    // Without -t there is none, also when kiln has one.
    let args = ["run", "-i", "busybox", "sh", "-c", "tty; cat"];
    let mut session = Session::start(&env, &args);
    session.expect("not a tty\r\n");
    session.type_("line\n\x04");
    let (code, shown) = session.end();
    assert_eq!((code, shown.as_str()), (Some(0), "line\r\nline\r\n"));
}

#[test]
fn a_terminal_in_a_user_namespace() {
    let env = test_env!("setsid");
    let rootless = ["--isolation", "rootless"];
    let load = env.kiln(rootless).arg("load").stdin(crate::env::busybox());
    load.success();
    let script = "tty; stat -c %u $(tty); stty size";
    let args = [
        "--isolation",
        "rootless",
        "run",
        "-it",
        "-u",
        "0",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    let (code, shown) = Session::start(&env, &args).end();
    assert_eq!(
        (code, shown.as_str()),
        (Some(0), "/dev/pts/0\r\n0\r\n30 100\r\n")
    );
    env.no_traces();
}

/// Also without anybody to restore it by hand: the second signal ends kiln, not the terminal.
#[test]
fn a_killed_session_leaves_the_terminal_as_it_was() {
    let env = test_env!("setsid").with_busybox();
    for signals in [&[Signal::TERM, Signal::TERM][..], &[Signal::HUP]] {
        let args = [
            "run",
            "-it",
            "busybox",
            "sh",
            "-c",
            "trap '' TERM HUP; echo up; cat",
        ];
        let mut session = Session::start(&env, &args);
        session.expect("up\r\n");
        let processes = descendants(session.id());
        for signal in signals {
            session.signal(*signal);
            std::thread::sleep(Duration::from_millis(200));
        }
        let code = if signals.len() == 2 { 143 } else { 129 };
        assert_eq!(session.end().0, Some(code));
        all_end(&processes);
        env.no_traces();
    }
}

#[test]
fn nothing_outlives_a_terminal_that_is_closed() {
    let env = test_env!("setsid").with_busybox();
    let args = [
        "run",
        "-it",
        "busybox",
        "sh",
        "-c",
        "trap '' HUP; echo up; cat; sleep 66666",
    ];
    let mut session = Session::start(&env, &args);
    session.expect("up\r\n");
    let processes = descendants(session.id());
    let mut child = session.child.take().unwrap();
    drop(session);
    wait_until("kiln's end", || child.try_wait().unwrap());
    all_end(&processes);
    env.no_traces();
}
