//! `kiln logout`: credentials are forgotten (D2.6).

use kiln_builder::runtime::Cancel;
use kiln_registry::credentials::{Keychain, Server, Store};

use super::block_on;
use crate::args::LogoutArgs;
use crate::render::{self, text};

pub(crate) fn run(args: &LogoutArgs) -> anyhow::Result<()> {
    let server = Server::parse(&args.server)?;
    let cancel = Cancel::new()?;
    block_on(&cancel, async {
        if Store::current()?.remove(&server).await? {
            render::out(&format!("Removing login credentials for {server}"));
        } else {
            render::out(&format!("Not logged in to {server}"));
        }
        let scope = server.scope.as_deref().unwrap_or_default();
        let keychain = Keychain::load_for_login()?;
        if let Some(found) = keychain.find(&server.registry, scope).await? {
            let origin = text::printable(found.origin.as_bytes());
            render::err(&format!("note: {origin} still has credentials for it"));
        }
        Ok(())
    })
}
