//! The `kiln` command.

use std::process::ExitCode;

use kiln_builder::runtime::{INIT_ARGUMENT, sandbox_main};

fn main() -> ExitCode {
    // Before anything else: that process must have one thread and hold nothing.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == INIT_ARGUMENT)
    {
        return sandbox_main();
    }
    ExitCode::SUCCESS
}
