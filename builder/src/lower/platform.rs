//! Platform strings: `os[/arch[/variant]]` (A6.12).

use kiln_registry::spec::Platform;

/// A platform that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// One word that is neither an operating system nor an architecture.
    #[error("unknown operating system or architecture `{0}`")]
    Unknown(String),
    /// Not of the form `os[/arch[/variant]]`.
    #[error("invalid platform `{0}`, expected `os/arch` or `os/arch/variant`")]
    Form(String),
}

const SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];

const ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "wasm",
];

/// Reads and normalises a platform. What is left out is taken from `host`.
///
/// # Errors
/// When the text is of another form, or one word that names neither a system nor an architecture.
pub fn parse(text: &str, host: &Platform) -> Result<Platform, PlatformError> {
    let form = || PlatformError::Form(text.to_owned());
    let lower = text.to_lowercase();
    let parts: Vec<&str> = lower.split('/').collect();
    let word = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        !part.is_empty() && part.chars().all(allowed)
    };
    let (first, version) = match parts[0].split_once('(') {
        Some((os, version)) => (os, Some(version.strip_suffix(')').ok_or_else(form)?)),
        None => (parts[0], None),
    };
    if parts.len() > 3 || !word(first) || !parts[1..].iter().all(|part| word(part)) {
        return Err(form());
    }
    let mut platform = Platform {
        os: system(first).to_owned(),
        os_version: version.filter(|text| !text.is_empty()).map(str::to_owned),
        ..Platform::default()
    };
    match parts[1..] {
        [] => single(&mut platform, first, host, text)?,
        [architecture] => platform.architecture = architecture.to_owned(),
        [architecture, variant, ..] => {
            platform.architecture = architecture.to_owned();
            platform.variant = Some(variant.to_owned());
        }
    }
    normalize(&mut platform);
    Ok(platform)
}

/// Completes a platform of one word: an operating system, or an architecture of the host's.
fn single(
    platform: &mut Platform,
    word: &str,
    host: &Platform,
    text: &str,
) -> Result<(), PlatformError> {
    if SYSTEMS.contains(&platform.os.as_str()) {
        platform.architecture.clone_from(&host.architecture);
        platform.variant.clone_from(&host.variant);
        return Ok(());
    }
    platform.os.clone_from(&host.os);
    word.clone_into(&mut platform.architecture);
    normalize(platform);
    if ARCHITECTURES.contains(&platform.architecture.as_str()) {
        Ok(())
    } else {
        Err(PlatformError::Unknown(text.to_owned()))
    }
}

fn system(os: &str) -> &str {
    match os {
        "macos" => "darwin",
        other => other,
    }
}

/// Gives a platform its usual names: `aarch64` is `arm64`, `arm` is `arm/v7`, and variants that
/// say nothing are left out.
pub fn normalize(platform: &mut Platform) {
    let variant = platform.variant.take().filter(|text| !text.is_empty());
    let (architecture, variant) = match (platform.architecture.as_str(), variant.as_deref()) {
        ("i386", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", None | Some("7" | "v7")) => ("arm", Some("v7")),
        ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
        ("arm", Some("5")) => ("arm", Some("v5")),
        ("arm", Some("8")) => ("arm", Some("v8")),
        (architecture, variant) => (architecture, variant),
    };
    let (architecture, variant) = (architecture.to_owned(), variant.map(str::to_owned));
    platform.architecture = architecture;
    platform.variant = variant;
}

/// Writes a platform as `os/arch[/variant]`.
#[must_use]
pub fn format(platform: &Platform) -> String {
    let mut text = platform.os.clone();
    if let Some(version) = &platform.os_version {
        text.push_str(&format!("({version})"));
    }
    for part in std::iter::once(&platform.architecture).chain(&platform.variant) {
        if !part.is_empty() {
            text.push('/');
            text.push_str(part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A6.12
    #[test]
    fn platforms_are_normalised() {
        let host = Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            ..Platform::default()
        };
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/x86-64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macos", "darwin/amd64"),
            ("arm64", "linux/arm64"),
            ("armhf", "linux/arm/v7"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ] {
            assert_eq!(format(&parse(text, &host).unwrap()), expected, "{text}");
        }
        for bad in [
            "",
            "/",
            "linux/",
            "linux/amd64/v1/x",
            "a b/c",
            "nonsense",
            "linux(1/amd64",
        ] {
            assert!(parse(bad, &host).is_err(), "{bad}");
        }
    }
}
