//! `/etc/resolv.conf` of a sandbox (B6.2).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::View;

/// Where `pasta` answers for a resolver on the host's loopback, which is out of reach. The address is
/// link-local, so that it stands for no other machine.
pub(super) const FORWARDER: &str = "169.254.1.1";
/// The same for a resolver that has an IPv6 address.
pub(super) const FORWARDER_6: &str = "fd00:6b69:6c6e::53";

/// What is asked where the host knows no resolver, as docker has it.
const PUBLIC: &str = "nameserver 8.8.8.8\nnameserver 8.8.4.4\n";

/// The file's text, from that of the host whose root is `host`: behind a local stub resolver that of
/// systemd. Servers on the host's loopback are of use only in the host's network: elsewhere the
/// forwarder stands for them.
#[must_use]
pub fn resolv_conf(host: &Path, view: View) -> String {
    let read = |path: &str| fs::read_to_string(host.join(path)).unwrap_or_default();
    let text = read("etc/resolv.conf");
    let stub: Vec<_> = servers(&text).collect();
    let upstream = read("run/systemd/resolve/resolv.conf");
    let text = if stub == ["127.0.0.53"] && !upstream.is_empty() {
        upstream
    } else {
        text
    };
    match view {
        View::Host => text,
        View::Own => {
            let text = replace_loopback(&text, true);
            let known = servers(&text).next().is_some();
            if known {
                text
            } else {
                format!("{text}{PUBLIC}")
            }
        }
        // There is nobody to ask.
        View::None => replace_loopback(&text, false),
    }
}

/// Whether a sandbox with a network of its own asks the forwarder, by the host's files.
pub(super) fn is_forwarded(host: &Path) -> bool {
    let text = resolv_conf(host, View::Own);
    servers(&text).any(|server| [FORWARDER, FORWARDER_6].contains(&server))
}

fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(server)
}

/// The address on a line, if it names a server.
fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver"))
        .then(|| words.next())
        .flatten()
}

/// Puts the forwarder, once, where servers on the loopback stand if none other is left; else leaves
/// them out.
fn replace_loopback(text: &str, forwarded: bool) -> String {
    let local = |line: &str| -> Option<IpAddr> {
        let address: IpAddr = server(line)?.parse().ok()?;
        address.to_canonical().is_loopback().then_some(address)
    };
    let reachable = text
        .lines()
        .any(|line| server(line).is_some() && local(line).is_none());
    let forwarded = forwarded && !reachable;
    let mut kept: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = match local(line) {
            None => line.to_owned(),
            Some(_) if !forwarded => continue,
            Some(IpAddr::V4(_)) => format!("nameserver {FORWARDER}"),
            Some(IpAddr::V6(_)) => format!("nameserver {FORWARDER_6}"),
        };
        if !line.starts_with("nameserver") || !kept.contains(&line) {
            kept.push(line);
        }
    }
    kept.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        host
    }

    #[test]
    fn b6_2_the_forwarder_is_for_resolvers_on_the_loopback_only() {
        let forwarded = |text| is_forwarded(host(&[("etc/resolv.conf", text)]).path());
        assert!(forwarded("nameserver 127.0.0.1\n"));
        assert!(forwarded("nameserver ::1\n"));
        assert!(!forwarded("nameserver 127.0.0.1\nnameserver 10.0.0.1\n"));
        assert!(!forwarded("nameserver 10.0.0.1\n"));
    }

    #[test]
    fn b6_2_a_stub_resolver_is_replaced_by_what_stands_behind_it() {
        let stub = ("etc/resolv.conf", "nameserver 127.0.0.53\n");
        let alone = host(&[stub]);
        let text = resolv_conf(alone.path(), View::Host);
        assert_eq!(text, "nameserver 127.0.0.53\n");
        let upstream = "nameserver 10.0.0.1\n";
        let systemd = host(&[stub, ("run/systemd/resolve/resolv.conf", upstream)]);
        for view in [View::Host, View::Own, View::None] {
            assert_eq!(resolv_conf(systemd.path(), view), upstream);
        }
        let both = (
            "etc/resolv.conf",
            "nameserver 10.0.0.2\nnameserver 127.0.0.53\n",
        );
        let both = host(&[both, ("run/systemd/resolve/resolv.conf", upstream)]);
        assert!(resolv_conf(both.path(), View::Host).contains("10.0.0.2"));
    }

    #[test]
    fn b6_2_servers_on_the_loopback_are_of_no_use_in_another_network() {
        let file =
            "search example.com\nnameserver 127.0.0.1\nnameserver ::1\nnameserver 127.0.0.2\n";
        let local = host(&[("etc/resolv.conf", file)]);
        let text = resolv_conf(local.path(), View::Own);
        let expected =
            "search example.com\nnameserver 169.254.1.1\nnameserver fd00:6b69:6c6e::53\n";
        assert_eq!(text, expected);
        assert_eq!(
            resolv_conf(local.path(), View::None),
            "search example.com\n"
        );
        assert_eq!(resolv_conf(local.path(), View::Host), file);

        let mixed = host(&[(
            "etc/resolv.conf",
            "nameserver 127.0.0.1\nnameserver 10.0.0.2\n",
        )]);
        let text = resolv_conf(mixed.path(), View::Own);
        assert_eq!(text, "nameserver 10.0.0.2\n");

        let empty = host(&[]);
        assert_eq!(resolv_conf(empty.path(), View::Own), PUBLIC);
        assert_eq!(resolv_conf(empty.path(), View::Host), "");
    }
}
