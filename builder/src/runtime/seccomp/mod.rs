//! The system calls that a step may make (B5.5): docker's default profile as a table, turned into
//! a filter program by our own generator.

mod filter;
mod profile;

use std::io;
use std::sync::OnceLock;

use libc::sock_filter;

use crate::sys::process;

/// The filter program of the default profile; `None` on an instruction set without a table.
static DEFAULT: OnceLock<Option<Vec<sock_filter>>> = OnceLock::new();

fn default() -> Option<&'static Vec<sock_filter>> {
    let program = || {
        let machine = profile::Machine::current()?;
        Some(filter::program(&profile::abis(machine)))
    };
    DEFAULT.get_or_init(program).as_ref()
}

/// Makes the default profile's filter program, for all processes that are split off later.
pub(super) fn prepare() {
    default();
}

/// Installs the default profile for this process and its children.
///
/// # Errors
/// `Unsupported` on an instruction set without a table; those of `seccomp`.
pub(super) fn install() -> io::Result<()> {
    let program = default().ok_or(io::ErrorKind::Unsupported)?;
    process::install_filter(&mut program.clone())
}
