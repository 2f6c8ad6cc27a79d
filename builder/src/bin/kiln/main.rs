//! `kiln`: builds images from Dockerfiles and moves them to and from registries.

mod args;
mod commands;
mod render;
mod report;

use std::process::ExitCode;

use clap::Parser as _;
use kiln_builder::runtime;

fn main() -> ExitCode {
    // A sandbox is kiln started anew; it must be told apart before anything else is set up.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == runtime::INIT_ARGUMENT)
    {
        return runtime::sandbox_main();
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report::failure(&error),
    }
}
