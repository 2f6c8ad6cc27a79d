//! `--allow`, `--security-opt` and `--runtime`: what steps may do, and what sees to it.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use kiln_builder::runtime::{OciProgram, Seccomp, check_seccomp};

use crate::render;
use crate::report::UsageError;

/// Largest profile; docker's own has 17 KB.
const LARGEST: u64 = 1 << 20;

/// What `--allow` allows the Dockerfile to ask for (B3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// `network.host`
    pub(crate) host_network: bool,
    /// `security.insecure`
    pub(crate) insecure: bool,
}

impl Allowed {
    pub(crate) fn parse(values: &[String]) -> Result<Self, UsageError> {
        let mut allowed = Self::default();
        for value in values {
            match value.trim() {
                "network.host" => allowed.host_network = true,
                "security.insecure" => allowed.insecure = true,
                other => return Err(refused(other)),
            }
        }
        Ok(allowed)
    }
}

fn refused(value: &str) -> UsageError {
    let known = "network.host and security.insecure are";
    let name = value.split('=').next().unwrap_or_default();
    UsageError::new(match name {
        "device" | "fs" | "fs.read" | "fs.write" | "ssh" => {
            format!("--allow {name} is not supported: {known}")
        }
        _ => format!("invalid entitlement `{value}`: {known} possible"),
    })
}

/// The system calls of `RUN` steps; the last word on them counts. A profile is checked here, before
/// anything is built.
pub(crate) fn seccomp(options: &[String]) -> Result<Seccomp, UsageError> {
    let mut seccomp = Seccomp::Default;
    for option in options {
        // docker takes a colon too.
        let (name, value) = option
            .split_once(['=', ':'])
            .unwrap_or((option.as_str(), ""));
        match (name, value) {
            ("seccomp", "unconfined") => seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin" | "default") => seccomp = Seccomp::Default,
            ("seccomp", "") => {
                let message = "--security-opt seccomp: name a file, `unconfined` or `builtin`";
                return Err(UsageError::new(message));
            }
            ("seccomp", file) => seccomp = Seccomp::Profile(profile(Path::new(file))?),
            // As it is: kiln sets no profile of AppArmor, no label of SELinux, and leaves
            // set-user-id programs their effect.
            ("apparmor", "unconfined") | ("label", "disable") | ("no-new-privileges", "false") => {}
            ("apparmor" | "label" | "no-new-privileges" | "systempaths" | "credentialspec", _) => {
                return Err(UsageError::new(format!(
                    "--security-opt {option} is not supported: seccomp=FILE|unconfined|builtin is"
                )));
            }
            _ => {
                return Err(UsageError::new(format!(
                    "invalid --security-opt `{option}`: seccomp=FILE|unconfined|builtin is possible"
                )));
            }
        }
    }
    Ok(seccomp)
}

/// The runtime that is asked for; none for kiln's own.
pub(crate) fn runtime(name: Option<&str>) -> Result<Option<OciProgram>, UsageError> {
    let Some(name) = name else {
        return Ok(None);
    };
    match OciProgram::find(name, std::env::var_os("PATH").as_deref()) {
        Ok(program) => Ok(Some(program)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let hint = "install crun, runc or youki, or give the path of an OCI runtime";
            Err(UsageError::new(format!(
                "--runtime {name}: there is no such program: {hint}"
            )))
        }
        Err(error) => Err(UsageError::new(format!("--runtime {name}: {error}"))),
    }
}

fn profile(file: &Path) -> Result<String, UsageError> {
    let shown = file.display();
    let unreadable = |error| UsageError::new(format!("seccomp profile `{shown}`: {error}"));
    let mut text = String::new();
    let opened = File::open(file).map_err(unreadable)?;
    let read = opened.take(LARGEST + 1).read_to_string(&mut text);
    if read.map_err(unreadable)? as u64 > LARGEST {
        let message = format!("seccomp profile `{shown}`: larger than {LARGEST} bytes");
        return Err(UsageError::new(message));
    }
    let unknown = check_seccomp(&text)
        .map_err(|error| UsageError::new(format!("seccomp profile `{shown}`: {error}")))?;
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        render::err(&format!(
            "warning: seccomp profile `{shown}`: unknown system calls are left out: {names}"
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    /// B3
    #[test]
    fn entitlements_are_known_or_refused() {
        let both = Allowed::parse(&words(&["network.host", "security.insecure"])).unwrap();
        assert!(both.host_network && both.insecure);
        assert_eq!(Allowed::parse(&[]).unwrap(), Allowed::default());
        for (value, said) in [
            ("device=vendor/class", "--allow device is not supported"),
            ("fs.read=/x", "--allow fs.read is not supported"),
            ("security", "invalid entitlement `security`"),
        ] {
            let error = Allowed::parse(&words(&[value])).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn options_are_obeyed_or_refused() {
        let seccomp = |options: &[&str]| seccomp(&words(options));
        assert_eq!(seccomp(&[]).unwrap(), Seccomp::Default);
        assert_eq!(
            seccomp(&["seccomp=unconfined"]).unwrap(),
            Seccomp::Unconfined
        );
        assert_eq!(
            seccomp(&["seccomp:unconfined"]).unwrap(),
            Seccomp::Unconfined
        );
        let last = [
            "seccomp=unconfined",
            "seccomp=builtin",
            "apparmor=unconfined",
        ];
        assert_eq!(seccomp(&last).unwrap(), Seccomp::Default);
        for (option, said) in [
            ("seccomp=/absent", "seccomp profile `/absent`: No such file"),
            ("seccomp", "--security-opt seccomp: name a file"),
            ("apparmor=docker-default", "is not supported"),
            ("label=type:x", "is not supported"),
            ("no-new-privileges", "is not supported"),
            ("nonsense", "invalid --security-opt `nonsense`"),
        ] {
            let error = seccomp(&[option]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{ \"defaultAction\": \"ALLOW\" }").unwrap();
        let option = format!("seccomp={}", file.path().display());
        let error = seccomp(&[&option]).unwrap_err().to_string();
        assert!(
            error.contains("defaultAction: unknown action `ALLOW`"),
            "{error}"
        );
        std::fs::write(file.path(), "{ \"defaultAction\": \"SCMP_ACT_ALLOW\" }").unwrap();
        assert!(matches!(seccomp(&[&option]).unwrap(), Seccomp::Profile(_)));
    }
}
