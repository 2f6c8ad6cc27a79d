//! The program that carries packets between a network namespace and the host, `pasta` of passt.

use std::path::{Path, PathBuf};

use super::resolver::{self, FORWARDER, FORWARDER_6};
use crate::sys::ids;

/// Where it is looked for besides `PATH`, which a build need not have.
const FOLDERS: &str = "/usr/local/bin:/usr/bin:/bin";

/// Its path, if it is installed.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(FOLDERS.split(':'));
    let absolute = folders.filter(|folder| folder.starts_with('/'));
    absolute
        .map(|folder| Path::new(folder).join("pasta"))
        .find(|path| path.is_file())
}

/// Its arguments for a namespace. It answers only when the namespace is ready, and stays in the
/// background.
///
/// - No port is forwarded in any direction, and the gateway does not stand for the host: what listens
///   on the host's loopback is out of reach.
/// - The namespace's addresses are not the host's, as they would be by default: those of the host
///   stay free to mean the host.
/// - As root it would change to `nobody`, who may not enter the namespace. It gives up its
///   capabilities and its view of the file system all the same.
/// - The forwarder is there where the namespace asks it, and only there: pasta would also put its
///   address on the answers of a resolver that was asked directly.
pub(super) fn arguments(namespace: &str) -> Vec<String> {
    let mut arguments: Vec<&str> = vec!["--config-net", "--quiet", "--netns", namespace];
    arguments.extend(["--ns-ifname", "eth0", "--no-map-gw"]);
    arguments.extend(["--tcp-ports", "none", "--udp-ports", "none"]);
    arguments.extend(["--tcp-ns", "none", "--udp-ns", "none"]);
    arguments.extend(["--no-dhcp", "--no-dhcpv6", "--no-ra"]);
    arguments.extend(["--address", "10.0.2.100", "--netmask", "24"]);
    arguments.extend(["--gateway", "10.0.2.2"]);
    arguments.extend(["--address", "fd00:6b69:6c6e::100", "--gateway", "fe80::1"]);
    if resolver::is_forwarded(Path::new("/")) {
        arguments.extend(["--dns-forward", FORWARDER, "--dns-forward", FORWARDER_6]);
    }
    if matches!(ids::in_initial_namespace(), Ok(true)) {
        arguments.extend(["--runas", "0:0"]);
    }
    arguments.into_iter().map(ToOwned::to_owned).collect()
}

/// Why it refused, from what it printed: the last line that is not about its log.
pub(super) fn reason(printed: &str) -> String {
    let mut lines = printed.lines().map(str::trim);
    let told = |line: &&str| !line.is_empty() && !line.starts_with("Failed to send ");
    lines
        .rfind(told)
        .unwrap_or("it does not say why")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_line() {
        let printed = "Failed to send 9 bytes to syslog\nNo routable interface\nFailed to send 3 bytes to syslog\n";
        assert_eq!(reason(printed), "No routable interface");
        assert_eq!(reason(""), "it does not say why");
    }
}
