//! Arguments of the commands for credentials.

use clap::Args;

/// `kiln login`
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// User name [default: asked for]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,

    /// Password or token, which others on this machine can see in the list of processes; `-` reads it
    /// from standard input [default: asked for]
    #[arg(
        short,
        long,
        value_name = "PASSWORD",
        conflicts_with = "password_stdin"
    )]
    pub(crate) password: Option<String>,

    /// Read the password or token from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,

    /// Store nothing: ask the registry with the credentials there are, and show where they come from,
    /// what they grant and when they end; HOST/REPOSITORY asks for the right to push there
    #[arg(long, conflicts_with_all = ["username", "password", "password_stdin"])]
    pub(crate) check: bool,

    /// The registry, HOST[:PORT], or a part of it, HOST/PATH
    #[arg(value_name = "SERVER", default_value = "docker.io")]
    pub(crate) server: String,
}

/// `kiln logout`
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry, HOST[:PORT], or a part of it, HOST/PATH
    #[arg(value_name = "SERVER", default_value = "docker.io")]
    pub(crate) server: String,
}
