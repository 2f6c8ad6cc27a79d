//! `kiln`: builds images from Dockerfiles and moves them to and from registries.

mod args;
mod commands;
mod hint;
mod render;
mod report;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::Parser as _;
use kiln_builder::runtime;
use kiln_builder::sys::allocator::Keeping;

#[global_allocator]
static ALLOCATOR: Keeping = Keeping::new();

fn main() -> ExitCode {
    // A sandbox is kiln started anew; it must be told apart before anything else is set up.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == runtime::INIT_ARGUMENT)
    {
        return runtime::sandbox_main();
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == runtime::network::NETWORK_ARGUMENT)
    {
        return runtime::network::network_main();
    }
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    let mut setup = commands::Setup::new(&cli);
    std::panic::set_hook(Box::new(report::panicked));
    let entered = setup.enter(&cli.command);
    let run = AssertUnwindSafe(|| entered.and_then(|()| commands::run(&setup, cli.command)));
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => report::failure(&error, setup.root().ok().as_deref(), &setup.again()),
        // The hook has said what happened.
        Err(_) => ExitCode::from(report::BUG),
    }
}
