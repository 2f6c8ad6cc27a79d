//! `kiln login`: credentials are tried, then kept (D2.6).

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::SystemTime;

use anyhow::Context as _;
use jiff::Timestamp;
use kiln_builder::runtime::Cancel;
use kiln_registry::client::{Client, ClientOptions, LoginFacts, LoginKind};
use kiln_registry::credentials::{Kept, Keychain, Login, Secret, Server, Store};
use zeroize::Zeroizing;

use super::{Setup, block_on, prompt};
use crate::args::LoginArgs;
use crate::render::{self, text};
use crate::report::UsageError;

/// The longest password, bytes.
const LONGEST: u64 = 64 << 10;

pub(crate) fn run(setup: &Setup, args: &LoginArgs) -> anyhow::Result<()> {
    let server = Server::parse(&args.server)?;
    let cancel = Cancel::new()?;
    if args.check {
        return block_on(&cancel, check(setup, &server));
    }
    let by_hand = args.username.is_none() && args.password.is_none();
    if by_hand && block_on(&cancel, known(setup, &server))? {
        render::out("Login Succeeded");
        return Ok(());
    }
    let login = asked(args)?;
    block_on(&cancel, async {
        let client = with(setup, &server, &login)?;
        client.check_login(&server.registry).await?;
        let kept = Store::current()?.put(&server, &login).await?;
        if let Kept::File(file) = &kept {
            let file = file.display();
            render::err(&format!(
                "warning: the credentials are stored unencrypted in '{file}'; a credential helper (`credsStore`) keeps them better"
            ));
        }
        shadowed(&server, &login).await
    })?;
    render::out("Login Succeeded");
    Ok(())
}

/// A client that uses these credentials and no others.
fn with(setup: &Setup, server: &Server, login: &Login) -> anyhow::Result<Client> {
    Ok(Client::new(ClientOptions {
        logins: BTreeMap::from([(server.registry.clone(), login.clone())]),
        ..setup.client_options(false, Keychain::load_for_login()?)?
    }))
}

/// Tries the credentials that there are already, as docker does; whether they hold.
async fn known(setup: &Setup, server: &Server) -> anyhow::Result<bool> {
    let scope = server.scope.as_deref().unwrap_or_default();
    let keychain = Keychain::load_for_login()?;
    let Some(found) = keychain.find(&server.registry, scope).await? else {
        return Ok(false);
    };
    let origin = text::printable(found.origin.as_bytes());
    render::err(&format!(
        "Authenticating with existing credentials: {origin}"
    ));
    let client = with(setup, server, &found.login)?;
    match client.check_login(&server.registry).await {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.status(), Some(401 | 403)) && prompt::is_possible() => {
            render::err("They are refused.");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The credentials of the command line, the standard input, and the person at the terminal.
fn asked(args: &LoginArgs) -> anyhow::Result<Login> {
    let piped = args.password_stdin || args.password.as_deref() == Some("-");
    let ready = args.username.is_some() && (piped || args.password.is_some());
    if !ready && (piped || !prompt::is_possible()) {
        return Err(UsageError::new(
            "there is no terminal to ask at: give `-u NAME --password-stdin`",
        )
        .into());
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None => prompt::line("Username: ")?,
    };
    let password = match &args.password {
        _ if piped => from_stdin()?,
        Some(password) => {
            render::err(
                "warning: a password on the command line is seen by others on this machine: use --password-stdin",
            );
            Secret::new(password.clone())
        }
        None => prompt::secret("Password: ")?,
    };
    if username.is_empty() || password.expose().is_empty() {
        return Err(UsageError::new("neither the user name nor the password may be empty").into());
    }
    if username.contains(':') {
        return Err(UsageError::new("a user name must not contain a colon").into());
    }
    Ok(match username.as_str() {
        "<token>" => Login::IdentityToken(password),
        _ => Login::Basic { username, password },
    })
}

/// A password that other programs pipe in, without the line end that they put behind it.
fn from_stdin() -> anyhow::Result<Secret> {
    let mut input = Zeroizing::new(String::new());
    let mut limited = std::io::stdin().lock().take(LONGEST + 1);
    limited
        .read_to_string(&mut input)
        .context("reading the password from standard input")?;
    if input.len() as u64 > LONGEST {
        return Err(UsageError::new("the password is too long").into());
    }
    let password = input.strip_suffix('\n').unwrap_or(&input);
    Ok(Secret::new(password.strip_suffix('\r').unwrap_or(password)))
}

/// Warns where other credentials go before those that were just stored.
async fn shadowed(server: &Server, login: &Login) -> anyhow::Result<()> {
    let scope = server.scope.as_deref().unwrap_or_default();
    let found = Keychain::load()?.find(&server.registry, scope).await?;
    if let Some(found) = found.filter(|found| found.login != *login) {
        let origin = text::printable(found.origin.as_bytes());
        render::err(&format!(
            "warning: they will not be used: {origin} goes before them"
        ));
    }
    Ok(())
}

/// `--check`: what would be sent, and whether it is accepted.
async fn check(setup: &Setup, server: &Server) -> anyhow::Result<()> {
    let client = setup.client(false)?;
    let scope = server.scope.as_deref();
    let asked = client.inspect_login(&server.registry, scope).await;
    let shown = match &asked {
        Ok(facts) => lines(server, facts.as_ref()),
        Err(_) => refused(server).await?,
    };
    for (name, value) in shown {
        let line = format!("{name:<13}{}", text::one_line(&value));
        render::out(&text::printable(line.as_bytes()));
    }
    asked.map(drop).map_err(Into::into)
}

/// What is known of credentials that did not help.
async fn refused(server: &Server) -> anyhow::Result<Vec<(&'static str, String)>> {
    let scope = server.scope.as_deref().unwrap_or_default();
    let mut lines = vec![("registry:", server.registry.clone())];
    // A helper that fails is the error itself.
    if let Ok(found) = Keychain::load()?.find(&server.registry, scope).await {
        let origin = found.as_ref().map(|found| found.origin.clone());
        let none = || "none are there".to_owned();
        lines.push(("credentials:", origin.unwrap_or_else(none)));
        let said = found.map(|found| found.said).unwrap_or_default();
        if !said.is_empty() {
            lines.push(("helper says:", said));
        }
    }
    lines.push(("accepted:", "no".to_owned()));
    Ok(lines)
}

fn lines(server: &Server, facts: Option<&LoginFacts>) -> Vec<(&'static str, String)> {
    let mut lines = vec![("registry:", server.registry.clone())];
    let Some(facts) = facts else {
        lines.push(("asks for:", "nothing: it is open".to_owned()));
        return lines;
    };
    let origin = facts.origin.as_deref().unwrap_or("none are there");
    lines.push(("credentials:", origin.to_owned()));
    if !facts.said.is_empty() {
        lines.push(("helper says:", facts.said.clone()));
    }
    let kind = match &facts.kind {
        LoginKind::Anonymous => "nobody".to_owned(),
        LoginKind::Password(user) => format!("password of `{user}`"),
        LoginKind::IdentityToken => "identity token".to_owned(),
        LoginKind::RegistryToken => "registry token".to_owned(),
    };
    lines.push(("sent as:", kind));
    if let Some(service) = &facts.token_service {
        lines.push(("token from:", service.clone()));
        let granted = match (&facts.granted, &server.scope) {
            (_, None) => "nothing was asked for; name a repository, HOST/REPOSITORY".to_owned(),
            (None, Some(_)) => "the token does not say".to_owned(),
            (Some(scopes), Some(_)) if scopes.is_empty() => "nothing".to_owned(),
            (Some(scopes), Some(_)) => scopes.join(" "),
        };
        lines.push(("granted:", granted));
    }
    if let Some(expires) = facts.expires {
        lines.push(("expires:", end(expires)));
    }
    lines.push(("accepted:", "yes".to_owned()));
    lines
}

/// A time, and how far off it is.
fn end(at: SystemTime) -> String {
    let left = at.duration_since(SystemTime::now()).unwrap_or_default();
    match Timestamp::try_from(at) {
        Ok(time) => format!("{time:.0} (in {} s)", left.as_secs()),
        Err(_) => "never".to_owned(),
    }
}
