//! Ports of `EXPOSE` (A9.6).

/// A port specification that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PortError {
    #[error("no port specified: `{0}`")]
    Missing(String),
    #[error("invalid protocol `{0}`, expected tcp, udp or sctp")]
    Protocol(String),
    #[error("invalid container port `{0}`")]
    Container(String),
    #[error("invalid host port `{0}`")]
    Host(String),
    #[error("invalid IP address `{0}`")]
    Address(String),
    #[error("invalid ranges for container and host ports: {0} and {1}")]
    Ranges(String, String),
}

/// What one word of `EXPOSE` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// Single ports, `80/tcp`.
    pub(super) ports: Vec<String>,
    /// Whether the protocol was not written in lower case.
    pub(super) shouted: bool,
    /// Whether an address or host port was given, which `EXPOSE` has no use for.
    pub(super) mapped: bool,
}

/// Reads `[ip:][host:]port[-port][/protocol]`.
pub(super) fn parse(text: &str) -> Result<Ports, PortError> {
    let (rest, container) = match text.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, text),
    };
    let (container, written) = container.split_once('/').unwrap_or((container, ""));
    if container.is_empty() {
        return Err(PortError::Missing(text.to_owned()));
    }
    let protocol = match written.to_lowercase().as_str() {
        "" | "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        _ => return Err(PortError::Protocol(written.to_owned())),
    };
    let (first, last) =
        range(container).ok_or_else(|| PortError::Container(container.to_owned()))?;
    if let Some(rest) = rest {
        check_host(rest, container, last - first)?;
    }
    Ok(Ports {
        ports: (first..=last)
            .map(|port| format!("{port}/{protocol}"))
            .collect(),
        shouted: written != written.to_lowercase(),
        mapped: rest.is_some(),
    })
}

/// Checks the part before the container port: `[ip:]host`.
fn check_host(rest: &str, container: &str, width: u16) -> Result<(), PortError> {
    let (address, host) = rest.rsplit_once(':').unwrap_or(("", rest));
    let bare = address
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if !address.is_empty() && bare.unwrap_or(address).parse::<std::net::IpAddr>().is_err() {
        return Err(PortError::Address(address.to_owned()));
    }
    if host.is_empty() {
        return Ok(());
    }
    let (first, last) = range(host).ok_or_else(|| PortError::Host(host.to_owned()))?;
    if width != 0 && last - first != width {
        return Err(PortError::Ranges(container.to_owned(), host.to_owned()));
    }
    Ok(())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A9.6
    #[test]
    fn ports_are_read() {
        for (text, ports) in [
            ("80", "80/tcp"),
            ("0", "0/tcp"),
            ("53/udp", "53/udp"),
            ("53/UDP", "53/udp"),
            ("80/", "80/tcp"),
            ("7000-7002/sctp", "7000/sctp 7001/sctp 7002/sctp"),
            ("8080:80", "80/tcp"),
            (":80", "80/tcp"),
            ("127.0.0.1:8080:80/tcp", "80/tcp"),
            ("[::1]:8080:80", "80/tcp"),
            ("127.0.0.1::80", "80/tcp"),
            ("8000-8010:80", "80/tcp"),
        ] {
            assert_eq!(parse(text).unwrap().ports.join(" "), ports, "{text}");
        }
        assert!(parse("53/UDP").unwrap().shouted);
        assert!(parse("8080:80").unwrap().mapped);
        for bad in [
            "",
            "/tcp",
            "http",
            "80/icmp",
            "65536",
            "-1",
            "+80",
            "9-8",
            "1-2-3",
            "x:80",
            "host:1:80",
            "1-2:1-3",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
