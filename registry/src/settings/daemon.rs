//! What docker's `daemon.json` says of registries (D4.2, D4.3).

use std::path::Path;

use reqwest::Url;
use serde::Deserialize;

use super::SettingsError;

/// The part of the file that registries have to do with.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Daemon {
    /// Hosts and ranges of addresses.
    pub(super) insecure_registries: Vec<String>,
    /// Addresses of mirrors of Docker Hub.
    pub(super) registry_mirrors: Vec<String>,
}

impl Daemon {
    pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Self, SettingsError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let syntax = |problem: String| SettingsError::Syntax {
            file: file.to_owned(),
            problem,
        };
        let daemon: Self =
            serde_json::from_slice(bytes).map_err(|error| syntax(error.to_string()))?;
        for mirror in &daemon.registry_mirrors {
            // What stands before an `@` may be a secret, and is not shown.
            if mirror.contains('@') {
                let problem = "the address of a mirror must not hold a user or password";
                return Err(syntax(problem.to_owned()));
            }
            let web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
            if !Url::parse(mirror).is_ok_and(|url| web(&url)) {
                return Err(syntax(format!("the mirror `{mirror}` is no http address")));
            }
        }
        Ok(daemon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d4_3_mirrors_and_insecure_registries_of_the_daemon() {
        let parse = |text: &str| Daemon::parse(Path::new("daemon.json"), text.as_bytes());
        let daemon = parse(
            r#"{"insecure-registries":["r.example:5000","10.0.0.0/8"],
                "registry-mirrors":["https://m.example/hub"],"debug":true,"log-opts":{}}"#,
        );
        let daemon = daemon.unwrap();
        assert_eq!(daemon.insecure_registries, ["r.example:5000", "10.0.0.0/8"]);
        assert_eq!(daemon.registry_mirrors, ["https://m.example/hub"]);
        assert!(parse(" \n").unwrap().registry_mirrors.is_empty());
        for wrong in [
            "1",
            "{",
            r#"{"registry-mirrors":"https://m"}"#,
            r#"{"registry-mirrors":["m.example"]}"#,
            r#"{"registry-mirrors":["ftp://m.example"]}"#,
            r#"{"registry-mirrors":["https://u:hunter2@m.example"]}"#,
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("daemon.json"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
