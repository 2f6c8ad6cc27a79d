//! The system calls that a step may make (B5.5): docker's default profile as a table, turned into
//! a filter program by our own generator.

mod filter;
mod profile;

use std::io;

use crate::sys::process;

/// Installs the default profile for this process and its children.
///
/// # Errors
/// `Unsupported` on an instruction set without a table; those of `seccomp`.
pub(super) fn install() -> io::Result<()> {
    let machine = profile::Machine::current().ok_or(io::ErrorKind::Unsupported)?;
    process::install_filter(&mut filter::program(&profile::abis(machine)))
}
