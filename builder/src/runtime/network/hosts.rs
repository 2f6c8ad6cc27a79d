//! `/etc/hosts` of a sandbox (B6.1).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use serde::{Deserialize, Serialize};

use super::View;

/// A host that the command line names (`--add-host`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: HostAddress,
}

/// Where a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostAddress {
    /// At this address.
    Ip(IpAddr),
    /// `host-gateway`: it is the machine that builds.
    Gateway,
}

/// A host that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostEntryError {
    /// It is no pair.
    #[error("bad format for --add-host: `{0}`: expected NAME:ADDRESS")]
    Format(String),
    /// Its name could be read as something else in the file.
    #[error("invalid host name in --add-host: `{0}`")]
    Name(String),
    /// Its address is none.
    #[error("invalid IP address in --add-host: `{0}`")]
    Address(String),
}

impl HostEntry {
    /// Reads `NAME:ADDRESS` or `NAME=ADDRESS`; an IPv6 address may stand in brackets.
    ///
    /// # Errors
    /// [`HostEntryError`]
    pub fn parse(text: &str) -> Result<Self, HostEntryError> {
        let pair = text.split_once('=').or_else(|| text.split_once(':'));
        let pair = pair.filter(|(name, _)| !name.is_empty());
        let (name, address) = pair.ok_or_else(|| HostEntryError::Format(text.to_owned()))?;
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.len() > 253 || !name.bytes().all(good) {
            return Err(HostEntryError::Name(name.to_owned()));
        }
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let address = match address {
            "host-gateway" => HostAddress::Gateway,
            _ => {
                let address = bare.unwrap_or(address).parse();
                HostAddress::Ip(address.map_err(|_| HostEntryError::Address(text.to_owned()))?)
            }
        };
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

/// The file's text.
#[must_use]
pub fn hosts(hostname: &str, entries: &[HostEntry], view: View) -> String {
    hosts_with(hostname, entries, || gateway(view))
}

fn hosts_with(
    hostname: &str,
    entries: &[HostEntry],
    gateway: impl Fn() -> Option<IpAddr>,
) -> String {
    let mut text =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for entry in entries {
        let address = match entry.address {
            HostAddress::Ip(address) => Some(address),
            HostAddress::Gateway => gateway(),
        };
        // Writing to a string cannot fail.
        if let Some(address) = address {
            _ = writeln!(text, "{address}\t{}", entry.name);
        }
    }
    text
}

/// Where a sandbox reaches the machine that builds: on the host's own network over the loopback, from
/// another one at the address that the host has in its own network, which is not the sandbox's. What
/// listens on the host's loopback only stays out of reach. A sandbox without a network reaches
/// nothing, so that there is no address for it.
fn gateway(view: View) -> Option<IpAddr> {
    match view {
        View::Host => Some(Ipv4Addr::LOCALHOST.into()),
        View::Own => own_address(),
        View::None => None,
    }
}

/// The address that this machine uses towards others.
fn own_address() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing, it asks for the route. The addresses belong to
    // documentation; nobody is there.
    let towards = |from: &str, to: &str| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    towards("0.0.0.0:0", "203.0.113.1:9").or_else(|| towards("[::]:0", "[2001:db8::1]:9"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b6_1_entries_are_read_in_all_their_spellings() {
        for (text, name, address) in [
            ("db:10.0.0.1", "db", Some("10.0.0.1")),
            ("db=10.0.0.1", "db", Some("10.0.0.1")),
            ("six:fd00::1", "six", Some("fd00::1")),
            ("six=[fd00::1]", "six", Some("fd00::1")),
            ("six:[::1]", "six", Some("::1")),
            ("up.example.com:host-gateway", "up.example.com", None),
        ] {
            let address = match address {
                Some(address) => HostAddress::Ip(address.parse().unwrap()),
                None => HostAddress::Gateway,
            };
            let name = name.to_owned();
            assert_eq!(HostEntry::parse(text), Ok(HostEntry { name, address }));
        }
        for (text, error) in [
            (
                "db",
                "bad format for --add-host: `db`: expected NAME:ADDRESS",
            ),
            (
                ":1.2.3.4",
                "bad format for --add-host: `:1.2.3.4`: expected NAME:ADDRESS",
            ),
            ("db:1.2.3", "invalid IP address in --add-host: `db:1.2.3`"),
            ("a b:1.2.3.4", "invalid host name in --add-host: `a b`"),
            ("a\n:1.2.3.4", "invalid host name in --add-host: `a\n`"),
        ] {
            assert_eq!(HostEntry::parse(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn b6_1_the_file() {
        let entries = ["db:10.0.0.1", "host:host-gateway", "six=[fd00::1]"];
        let entries = entries.map(|text| HostEntry::parse(text).unwrap());
        let standard = "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        let text = hosts_with("box", &entries, || Some([192, 0, 2, 7].into()));
        let expected = format!("{standard}10.0.0.1\tdb\n192.0.2.7\thost\nfd00::1\tsix\n");
        assert_eq!(text, expected);
        assert_eq!(hosts("box", &[], View::Own), standard);
        let none = hosts("box", &entries, View::None);
        assert_eq!(none, format!("{standard}10.0.0.1\tdb\nfd00::1\tsix\n"));
        assert!(hosts("box", &entries, View::Host).contains("127.0.0.1\thost\n"));
    }
}
