//! What people see.

pub(crate) mod call;
pub(crate) mod check;
pub(crate) mod diff;
pub(crate) mod excerpt;
pub(crate) mod plain;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod transfer;
pub(crate) mod tty;

use std::io::{self, IsTerminal as _, Write as _};

use kiln_builder::event::Observer;

use crate::args::ProgressArg;

/// Prints data: one line on standard output. Whoever closed it wants no more.
pub(crate) fn out(line: &str) {
    drop(writeln!(io::stdout().lock(), "{line}"));
}

/// Prints data as it is.
pub(crate) fn out_raw(text: &str) {
    let mut stdout = io::stdout().lock();
    drop(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    );
}

/// Prints a line for people, on standard error.
pub(crate) fn err(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

/// The observer of a build.
pub(crate) fn build_observer(progress: ProgressArg, quiet: bool) -> Observer {
    match progress {
        _ if quiet => Observer::silent(),
        ProgressArg::Auto if io::stderr().is_terminal() => tty::observer(),
        ProgressArg::Auto | ProgressArg::Plain => plain::observer(),
    }
}
