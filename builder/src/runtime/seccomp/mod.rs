//! The system calls that a step may make (B5.5): profiles in docker's JSON, docker's default list
//! among them as data, turned into a filter program by our own generator.
//!
//! Read in this order: `profile` (what a profile says), `syscalls` (which numbers its names mean),
//! `compile` (a verdict for every number of every calling convention), `filter` (the program).

mod compile;
mod error;
mod filter;
mod profile;
mod syscalls;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::OnceLock;

use libc::sock_filter;

use super::Seccomp;
use crate::sys::process;

pub use error::ProfileError;
use profile::Host;
pub(super) use profile::Profile;

/// docker's default profile for the capabilities that a step has. What docker allows with other
/// capabilities only is left out.
const DEFAULT: &str = include_str!("default.json");

/// The filter program of the default profile, and the flags that go with it.
static DEFAULT_FILTER: OnceLock<Option<(Vec<sock_filter>, u32)>> = OnceLock::new();

/// Checks a profile of the user's before anything is built with it, and gives the names of system
/// calls in it that kiln does not know, which a filter cannot hold.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<Vec<String>, ProfileError> {
    let profile = Profile::parse(text, &Host::current()?)?;
    compile::program(&profile)?;
    Ok(profile.unknown)
}

/// The profile that a setting means; none for no filter at all.
pub(super) fn profile(seccomp: &Seccomp) -> Result<Option<Profile>, ProfileError> {
    let text = match seccomp {
        Seccomp::Default => DEFAULT,
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Profile(text) => text,
    };
    Profile::parse(text, &Host::current()?).map(Some)
}

fn compile(text: &str) -> Result<(Vec<sock_filter>, u32), ProfileError> {
    let profile = Profile::parse(text, &Host::current()?)?;
    Ok((compile::program(&profile)?, profile.flags))
}

fn default_filter() -> Option<&'static (Vec<sock_filter>, u32)> {
    // It can fail on a machine without a table only.
    let filter = DEFAULT_FILTER.get_or_init(|| compile(DEFAULT).ok());
    filter.as_ref()
}

/// Makes the default profile's filter program, for all processes that are split off later.
pub(super) fn prepare() {
    default_filter();
}

/// Installs a profile for this process and its children.
///
/// # Errors
/// `InvalidInput` for a profile that is wrong, `Unsupported` on an instruction set without a
/// table; those of `seccomp`.
pub(super) fn install(seccomp: &Seccomp) -> io::Result<()> {
    let (mut program, flags) = match seccomp {
        Seccomp::Default => default_filter().ok_or(io::ErrorKind::Unsupported)?.clone(),
        Seccomp::Unconfined => return Ok(()),
        Seccomp::Profile(text) => compile(text)?,
    };
    process::install_filter(&mut program, flags)
}
